// The CUDA kernels and their launchers, compiled for the host, against the CPU ring: the same bits.
//
// Every window of a table, float32, bfloat16 and FP8, odd sizes, and pointers that are aligned to a pair only. A guard
// band around every buffer must stay as it was.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "../../../csrc/src/ring_cpu.cpp"
#include "../../../csrc/src/ring_cuda.cu"
#include "../../../csrc/src/sampler_cuda.cu"

namespace lipstream {
namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (!holds && ++failures <= 20) std::fprintf(stderr, "differs: %s\n", what.c_str());
}

// Two equal buffers, of the CPU's type and of CUDA's, `offset` elements behind a 16-byte boundary, guards around them.
template <typename T>
class Twins {
 public:
  Twins(int64_t count, int64_t offset, std::mt19937& random) : count_(count), offset_(offset) {
    const size_t size = static_cast<size_t>(count + offset + 2 * kGuard);
    for (std::vector<T>* side : {&cpu_, &gpu_}) side->resize(size);
    std::uniform_real_distribution<float> values(-3.0f, 3.0f);
    for (size_t i = 0; i < size; ++i) {
      set(cpu_[i], values(random));
      gpu_[i] = cpu_[i];
    }
    before_ = cpu_;
  }

  T* cpu() { return cpu_.data() + kGuard + offset_; }
  T* gpu() { return gpu_.data() + kGuard + offset_; }
  int64_t count() const { return count_; }

  void check(const std::string& what) {
    expect(std::memcmp(cpu_.data(), gpu_.data(), cpu_.size() * sizeof(T)) == 0, what);
    const size_t head = static_cast<size_t>(kGuard + offset_) * sizeof(T);
    expect(std::memcmp(gpu_.data(), before_.data(), head) == 0, what + ": guard before");
    const size_t tail = static_cast<size_t>(kGuard + offset_ + count_);
    expect(std::memcmp(gpu_.data() + tail, before_.data() + tail, kGuard * sizeof(T)) == 0, what + ": guard behind");
  }

 private:
  static constexpr int64_t kGuard = 64;  // elements: a multiple of 16 bytes for all types
  static void set(float& to, float x) { to = x; }
  static void set(BFloat16& to, float x) { store(to, x); }
  static void set(Float16& to, float x) { store(to, x); }
  static void set(uint8_t& to, float x) { to = to_e4m3(x); }

  int64_t count_, offset_;
  std::vector<T> cpu_, gpu_, before_;
};

template <typename T>
struct DeviceType {
  using type = T;
};
template <>
struct DeviceType<BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct DeviceType<Float16> {
  using type = __half;
};

template <typename T>
typename DeviceType<T>::type* device(T* pointer) {
  return reinterpret_cast<typename DeviceType<T>::type*>(pointer);
}

struct Sizes {
  int64_t tokens, heads, head_dim;
};

// Frames [F, T, H, D] as [H, F T, D].
template <typename T>
std::vector<T> heads_first(const T* from, int64_t frames, const Sizes& s) {
  const int64_t rows = frames * s.tokens;
  std::vector<T> to(static_cast<size_t>(rows * s.heads * s.head_dim));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < s.heads; ++head) {
      std::memcpy(to.data() + (head * rows + row) * s.head_dim, from + (row * s.heads + head) * s.head_dim,
                  static_cast<size_t>(s.head_dim) * sizeof(T));
    }
  }
  return to;
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

struct Case {
  RingGeometry geometry;
  int64_t tokens, heads, head_dim, offset;
};

std::string name(const char* kind, const Case& c, int64_t chunk, const char* buffer) {
  return std::string(kind) + " window " + std::to_string(c.geometry.window) + " sink " +
         std::to_string(c.geometry.sink) + " [" + std::to_string(c.tokens) + ", " + std::to_string(c.heads) + ", " +
         std::to_string(c.head_dim) + "] offset " + std::to_string(c.offset) + " chunk " + std::to_string(chunk) + ": " +
         buffer;
}

template <typename T>
void stream(const char* kind, const Case& c, std::mt19937& random) {
  const RingGeometry& g = c.geometry;
  const int64_t temporal = c.head_dim / 2 - 2 * (c.head_dim / 6), spatial = c.head_dim / 2 - temporal;
  const int64_t frame = c.tokens * c.heads * c.head_dim;
  Twins<T> k_ring(g.window * frame, c.offset, random), v_ring(g.window * frame, c.offset, random),
      base(g.sink * frame, c.offset, random);
  const int64_t scales = c.tokens * c.heads;
  Twins<uint8_t> k_codes(g.window * frame, c.offset, random), v_codes(g.window * frame, c.offset, random),
      base_codes(g.sink * frame, c.offset, random);
  Twins<float> k_scales(g.window * scales, 0, random), v_scales(g.window * scales, 0, random),
      base_scales(g.sink * scales, 0, random);
  const E4M3Ring k8{k_codes.cpu(), k_scales.cpu()}, v8{v_codes.cpu(), v_scales.cpu()}, b8{base_codes.cpu(), base_scales.cpu()};
  const E4M3Ring gk8{k_codes.gpu(), k_scales.gpu()}, gv8{v_codes.gpu(), v_scales.gpu()},
      gb8{base_codes.gpu(), base_scales.gpu()};
  for (int64_t chunk = 0; chunk < g.blocks() * 2 + 2; ++chunk) {
    const RingPosition p = g.position(chunk);
    Twins<T> k(g.chunk_frames * frame, c.offset, random), v(g.chunk_frames * frame, c.offset, random);
    Twins<float> cos_t(g.chunk_frames * temporal, 0, random), sin_t(g.chunk_frames * temporal, 0, random),
        cos_s(c.tokens * spatial, 0, random), sin_s(c.tokens * spatial, 0, random), turn(2 * temporal, 0, random);
    const RopeTables tables{cos_t.cpu(), sin_t.cpu(), cos_s.cpu(), sin_s.cpu()};
    const FrameShape shape{g.chunk_frames, c.tokens, c.heads, c.head_dim, temporal};
    const Sizes sizes{c.tokens, c.heads, c.head_dim};
    std::vector<T> k_heads = heads_first(k_ring.cpu(), g.window, sizes), v_heads = heads_first(v_ring.cpu(), g.window, sizes),
                   base_heads = heads_first(base.cpu(), g.sink, sizes);
    if (p.keep_count) {
      const FrameShape kept{p.keep_count, c.tokens, c.heads, c.head_dim, 0};
      cpu::ring_keep(k_ring.cpu(), v_ring.cpu(), base.cpu(), p.keep_slot, g.rolling(), p.keep_first, kept);
      cuda::ring_keep(device(k_ring.gpu()), device(v_ring.gpu()), device(base.gpu()), p.keep_slot, g.rolling(),
                      p.keep_first, kept, nullptr);
      cuda::ring_keep_heads_first(device(k_heads.data()), device(v_heads.data()), device(base_heads.data()), g.window,
                                  p.keep_slot, g.rolling(), p.keep_first, kept, nullptr);
      cpu::ring_keep_e4m3(k8, v8, b8, p.keep_slot, g.rolling(), p.keep_first, kept);
      cuda::ring_keep_e4m3(gk8, gv8, gb8, p.keep_slot, g.rolling(), p.keep_first, kept, nullptr);
    }
    if (p.anchored) {
      const FrameShape sink{p.anchored, c.tokens, c.heads, c.head_dim, temporal};
      const float *cos = turn.cpu(), *sin = turn.cpu() + temporal;
      cpu::ring_anchor(k_ring.cpu(), base.cpu(), g.rolling(), cos, sin, sink, 1);
      cuda::ring_anchor(device(k_ring.gpu()), device(base.gpu()), g.rolling(), cos, sin, sink, nullptr);
      cuda::ring_anchor_heads_first(device(k_heads.data()), device(base_heads.data()), g.window, g.rolling(), cos, sin, sink,
                                    nullptr);
      cpu::ring_anchor_e4m3(k8, b8, g.rolling(), cos, sin, sink, 1);
      expect(!cuda::ring_anchor_e4m3(gk8, gb8, g.rolling(), cos, sin, sink, nullptr), "anchor launches");
    }
    expect(same(k_heads, heads_first(k_ring.cpu(), g.window, sizes)), name(kind, c, chunk, "k_ring, heads first"));
    expect(same(v_heads, heads_first(v_ring.cpu(), g.window, sizes)), name(kind, c, chunk, "v_ring, heads first"));
    expect(same(base_heads, heads_first(base.cpu(), g.sink, sizes)), name(kind, c, chunk, "sink_base, heads first"));
    cpu::ring_write(k_ring.cpu(), v_ring.cpu(), k.cpu(), v.cpu(), p.slot, tables, shape, 1);
    const int64_t outside = g.window - g.chunk_frames + 1;  // from a place on the device: writes nothing
    const Slot place(&p.slot, outside - 1), wrong(&outside, outside - 1);
    for (const Slot& slot : {place, wrong}) {
      cuda::ring_write(device(k_ring.gpu()), device(v_ring.gpu()), device(k.gpu()), device(v.gpu()), slot, tables, shape,
                       nullptr);
    }
    cpu::ring_write_e4m3(k8, v8, k.cpu(), v.cpu(), p.slot, tables, shape, 1);
    expect(!cuda::ring_write_e4m3(gk8, gv8, device(k.gpu()), device(v.gpu()), p.slot, tables, shape, nullptr),
           "write launches");
    Twins<T> read(p.valid * frame, c.offset, random);
    const FrameShape attended{p.valid, c.tokens, c.heads, c.head_dim, 0};
    cpu::ring_read_e4m3(read.cpu(), k8, attended, 1);
    cuda::ring_read_e4m3(device(read.gpu()), gk8, attended, nullptr);

    k_ring.check(name(kind, c, chunk, "k_ring"));
    v_ring.check(name(kind, c, chunk, "v_ring"));
    base.check(name(kind, c, chunk, "sink_base"));
    k_codes.check(name(kind, c, chunk, "k codes"));
    k_scales.check(name(kind, c, chunk, "k scales"));
    v_codes.check(name(kind, c, chunk, "v codes"));
    v_scales.check(name(kind, c, chunk, "v scales"));
    base_codes.check(name(kind, c, chunk, "sink codes"));
    base_scales.check(name(kind, c, chunk, "sink scales"));
    read.check(name(kind, c, chunk, "read"));
  }
}

// The kernels between the passes, against their formulas.
void sampler(std::mt19937& random) {
  constexpr LatentShape shape{3, 2, 35};
  const int64_t size = shape.size(), plane = shape.plane();
  Twins<float> first(shape.channels * shape.cells, 0, random), mask(shape.cells, 0, random), masked(size, 0, random),
      sequence(size, 0, random), condition(shape.condition_size(), 0, random);
  cuda::assemble_condition(condition.gpu(), first.gpu(), mask.gpu(), masked.gpu(), sequence.gpu(), shape, nullptr);
  for (int64_t i = 0; i < shape.condition_size(); ++i) {
    const int64_t channel = i / plane, cell = i % shape.cells, C = shape.channels;
    float& expected = condition.cpu()[i];
    if (channel < C) expected = first.cpu()[channel * shape.cells + cell];
    if (channel == C) expected = 1 - mask.cpu()[cell];
    if (channel > C) expected = channel <= 2 * C ? masked.cpu()[i - (C + 1) * plane] : sequence.cpu()[i - (2 * C + 1) * plane];
  }
  condition.check("condition");
  for (const bool noisy : {true, false}) {
    Twins<float> x(size, 0, random), clean(size, 0, random), velocity(size, 0, random), noise(size, 0, random);
    const double t = 0.999, next = 0.769;
    cuda::advance(x.gpu(), clean.gpu(), x.gpu(), velocity.gpu(), noisy ? noise.gpu() : nullptr, t, next, size, nullptr);
    for (int64_t i = 0; i < size; ++i) {
      const double step = t * velocity.cpu()[i];
      clean.cpu()[i] = static_cast<float>(x.cpu()[i] - step);
      const double kept = (1 - next) * clean.cpu()[i], added = next * noise.cpu()[i];
      if (noisy) x.cpu()[i] = static_cast<float>(kept + added);
    }
    x.check("x");
    clean.check("clean");
  }
}

}  // namespace
}  // namespace lipstream

int main() {
  using lipstream::Case;
  std::mt19937 random(0);
  int cases = 0;
  for (const lipstream::RingGeometry geometry :
       {lipstream::RingGeometry{7, 1, 3}, {6, 0, 3}, {10, 1, 3}, {9, 3, 3}, {11, 5, 3}, {3, 1, 2}, {2, 1, 1}}) {
    // Whole 16-byte words, heads that are not, one pair, a row wider than a block, and pointers two elements off.
    for (const auto& [tokens, heads, head_dim] :
         {lipstream::Sizes{3, 2, 16}, {2, 3, 12}, {1, 1, 2}, {2, 5, 14}, {1, 9, 64}}) {
      for (const int64_t offset : {0, 2}) {
        const Case c{geometry, tokens, heads, head_dim, offset};
        lipstream::stream<float>("float32", c, random);
        lipstream::stream<lipstream::BFloat16>("bfloat16", c, random);
        lipstream::stream<lipstream::Float16>("float16", c, random);
        cases += 3;
      }
    }
  }
  lipstream::sampler(random);
  const lipstream::FrameShape wide{1, 1, 1, lipstream::cuda::kLargestE4M3Row + 2, 0};
  const lipstream::E4M3Ring none{nullptr, nullptr};
  const lipstream::RopeTables tables{nullptr, nullptr, nullptr, nullptr};
  const float* nothing = nullptr;
  lipstream::expect(lipstream::cuda::ring_write_e4m3(none, none, nothing, nothing, 0, tables, wide, nullptr) != 0,
                    "a row that shared memory cannot hold is refused");
  std::printf("%d streams, %d differences\n", cases, lipstream::failures);
  return lipstream::failures == 0 ? 0 : 1;
}
