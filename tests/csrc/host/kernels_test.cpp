// The CUDA kernels that move the sink, and those between the passes, compiled for the host: the bits of the CPU ring.
// With the argument "pictures" it converts pictures for test_kernels_on_cpu.py, which compares them with NumPy.
//
// Every window of a table, all types of a ring, odd sizes, and pointers that are aligned to a pair only; all layers in
// one launch. A guard band around every buffer must stay as it was. plugin_driver.cpp runs the kernel that writes.
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
  size_t layers;
};

std::string name(const char* kind, const Case& c, int64_t chunk, const char* buffer) {
  return std::string(kind) + " window " + std::to_string(c.geometry.window) + " sink " +
         std::to_string(c.geometry.sink) + " [" + std::to_string(c.tokens) + ", " + std::to_string(c.heads) + ", " +
         std::to_string(c.head_dim) + "] offset " + std::to_string(c.offset) + " chunk " + std::to_string(chunk) + ": " +
         buffer;
}

// The CPU ring, which has no FP8.
void anchor(uint8_t* k_ring, const uint8_t* base, int64_t rolling, const float* cos, const float* sin,
            const FrameShape& shape) {
  for (int64_t i = 0; i < shape.slot_offset(shape.frames); i += 2) {
    const int64_t j = i / 2 % shape.pairs(), to = shape.slot_offset(rolling) + i;
    k_ring[to] = base[i];
    k_ring[to + 1] = base[i + 1];
    if (j >= shape.temporal_pairs) continue;
    float real, imag;
    rotate(from_e4m3(base[i]), from_e4m3(base[i + 1]), cos[j], sin[j], real, imag);
    k_ring[to] = to_e4m3(real);
    k_ring[to + 1] = to_e4m3(imag);
  }
}

template <typename T>
void anchor(T* k_ring, const T* base, int64_t rolling, const float* cos, const float* sin, const FrameShape& shape) {
  cpu::ring_anchor(k_ring, base, rolling, cos, sin, shape, 1);
}

// The addresses of every layer, of frames that lie either way.
template <typename Storage>
std::vector<cuda::RingLayer> layers_of(std::vector<Storage*> k, std::vector<Storage*> v, std::vector<Storage*> base) {
  std::vector<cuda::RingLayer> layers;
  for (size_t i = 0; i < k.size(); ++i) layers.push_back({k[i], v[i], base[i]});
  return layers;
}

template <typename T>
void stream(const char* kind, const Case& c, std::mt19937& random) {
  using Device = typename DeviceType<T>::type;
  const RingGeometry& g = c.geometry;
  const Sizes sizes{c.tokens, c.heads, c.head_dim};
  const int64_t temporal = c.head_dim / 2 - 2 * (c.head_dim / 6), frame = c.tokens * c.heads * c.head_dim;
  struct Layer {
    Twins<T> k, v, base;
    std::vector<T> k_heads, v_heads, base_heads;
  };
  std::vector<Layer> layers;
  for (size_t i = 0; i < c.layers; ++i) {
    const auto twins = [&](int64_t frames) { return Twins<T>(frames * frame, c.offset, random); };
    layers.push_back({twins(g.window), twins(g.window), twins(g.sink), {}, {}, {}});
  }
  for (int64_t chunk = 0; chunk < g.blocks() * 2 + 2; ++chunk) {
    const RingPosition p = g.position(chunk);
    Twins<float> turn(2 * temporal, 0, random);
    const float *cos = turn.cpu(), *sin = turn.cpu() + temporal;
    std::vector<Device*> at[6];
    for (Layer& layer : layers) {
      Twins<T> written(g.chunk_frames * frame, 0, random);  // what a chunk would leave in its block
      for (Twins<T>* ring : {&layer.k, &layer.v}) {
        std::copy_n(written.cpu(), written.count(), ring->cpu() + p.slot * frame);
        std::copy_n(written.cpu(), written.count(), ring->gpu() + p.slot * frame);
      }
      layer.k_heads = heads_first(layer.k.cpu(), g.window, sizes);
      layer.v_heads = heads_first(layer.v.cpu(), g.window, sizes);
      layer.base_heads = heads_first(layer.base.cpu(), g.sink, sizes);
      T* const all[] = {layer.k.gpu(),        layer.v.gpu(),        layer.base.gpu(),
                        layer.k_heads.data(), layer.v_heads.data(), layer.base_heads.data()};
      for (size_t i = 0; i < 6; ++i) at[i].push_back(device(all[i]));
    }
    const int before = cuda::launches;
    for (const bool by_heads : {false, true}) {
      const size_t i = by_heads ? 3 : 0;
      const std::vector<cuda::RingLayer> addresses = layers_of(at[i], at[i + 1], at[i + 2]);
      const cuda::RingLayout layout{g.window, g.rolling(), by_heads};
      if (p.keep_count) {
        const FrameShape kept{p.keep_count, c.tokens, c.heads, c.head_dim, 0};
        expect(!cuda::ring_keep(addresses.data(), c.layers, sizeof(T), layout, p.keep_slot, p.keep_first, kept, nullptr),
               "keep launches");
      }
      if (p.anchored) {
        const FrameShape sink{p.anchored, c.tokens, c.heads, c.head_dim, temporal};
        expect(!cuda::ring_anchor<Device>(addresses.data(), c.layers, layout, cos, sin, sink, nullptr), "anchor launches");
      }
    }
    const int expected = 2 * (int{p.keep_count > 0} + int{p.anchored > 0});
    expect(cuda::launches - before == expected * static_cast<int>((c.layers + 63) / 64), "launches");
    for (size_t i = 0; i < c.layers; ++i) {
      Layer& layer = layers[i];
      if (p.keep_count) {
        const FrameShape kept{p.keep_count, c.tokens, c.heads, c.head_dim, 0};
        cpu::ring_keep(layer.k.cpu(), layer.v.cpu(), layer.base.cpu(), p.keep_slot, g.rolling(), p.keep_first, kept);
      }
      if (p.anchored) {
        const FrameShape sink{p.anchored, c.tokens, c.heads, c.head_dim, temporal};
        anchor(layer.k.cpu(), layer.base.cpu(), g.rolling(), cos, sin, sink);
      }
      expect(same(layer.k_heads, heads_first(layer.k.cpu(), g.window, sizes)), name(kind, c, chunk, "k_ring, heads first"));
      expect(same(layer.v_heads, heads_first(layer.v.cpu(), g.window, sizes)), name(kind, c, chunk, "v_ring, heads first"));
      expect(same(layer.base_heads, heads_first(layer.base.cpu(), g.sink, sizes)),
             name(kind, c, chunk, "sink_base, heads first"));
      layer.k.check(name(kind, c, chunk, "k_ring"));
      layer.v.check(name(kind, c, chunk, "v_ring"));
      layer.base.check(name(kind, c, chunk, "sink_base"));
    }
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

// Reads from standard input uint8 [n, H, W, 3] and float32 [n, 3, H, W]; writes the first as float32 planes, the second
// as bytes, and whether a value of it is not finite (int32).
int convert_pictures(int64_t count, int64_t pixels) {
  const size_t size = static_cast<size_t>(3 * count * pixels);
  std::vector<uint8_t> bytes(size), packed(size);
  std::vector<float> planes(size), unpacked(size);
  int32_t not_finite = 0;
  bool done = std::fread(bytes.data(), 1, size, stdin) == size && std::fread(planes.data(), 4, size, stdin) == size;
  done = done && cuda::unpack_pictures(unpacked.data(), bytes.data(), count, pixels, nullptr) == cudaSuccess;
  done = done && cuda::pack_pictures(packed.data(), &not_finite, planes.data(), count, pixels, nullptr) == cudaSuccess;
  done = done && std::fwrite(unpacked.data(), 4, size, stdout) == size;
  done = done && std::fwrite(packed.data(), 1, size, stdout) == size && std::fwrite(&not_finite, 4, 1, stdout) == 1;
  return done ? 0 : 1;
}

}  // namespace
}  // namespace lipstream

int main(int count, char** given) {
  if (count == 4 && std::string(given[1]) == "pictures") {
    return lipstream::convert_pictures(std::atoll(given[2]), std::atoll(given[3]));
  }
  using lipstream::Case;
  std::mt19937 random(0);
  int cases = 0;
  const auto run = [&](const Case& c) {
    lipstream::stream<float>("float32", c, random);
    lipstream::stream<lipstream::BFloat16>("bfloat16", c, random);
    lipstream::stream<lipstream::Float16>("float16", c, random);
    lipstream::stream<uint8_t>("float8", c, random);
    cases += 4;
  };
  for (const lipstream::RingGeometry geometry :
       {lipstream::RingGeometry{7, 1, 3}, {6, 0, 3}, {10, 1, 3}, {9, 3, 3}, {11, 5, 3}, {3, 1, 2}, {2, 1, 1}}) {
    // Whole 16-byte words, heads that are not, one pair, and a row wider than a block; pointers two elements off.
    for (const auto& [tokens, heads, head_dim] :
         {lipstream::Sizes{3, 2, 16}, {2, 3, 12}, {1, 1, 2}, {2, 5, 14}, {1, 9, 64}, {1, 1, 600}}) {
      for (const int64_t offset : {0, 2}) run({geometry, tokens, heads, head_dim, offset, 2});
    }
  }
  run({{7, 1, 3}, 1, 2, 16, 0, 70});  // more layers than a launch has
  lipstream::sampler(random);
  std::printf("%d streams, %d differences\n", cases, lipstream::failures);
  return lipstream::failures == 0 ? 0 : 1;
}
