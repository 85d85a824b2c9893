#include <algorithm>
#include <initializer_list>

#include "lipstream/launch.cuh"
#include "lipstream/ring_cuda.h"
#include "lipstream/ring_kernels.cuh"

namespace lipstream::cuda {
namespace {

constexpr int64_t kThreads = 256;  // of a block, at most

template <typename Number>
constexpr int kWidePairs = kWide / (2 * static_cast<int>(sizeof(Number)));

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kWide == 0; }

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [](const void* p) { return aligned(p); });
}

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads of a block that handles `rows` rows of `packs` packs: x along a row, y over the rows, as even as possible.
dim3 threads(int64_t rows, int64_t packs) {
  const int64_t x = std::min(packs, kThreads), turns = ceiling(rows, kThreads / x);
  return {static_cast<unsigned>(x), static_cast<unsigned>(ceiling(rows, turns))};
}

template <typename Number, typename Stored, int PAIRS>
cudaError_t write(Stored* k_ring, Stored* v_ring, const Number* k, const Number* v, const float* weight, float eps,
                  Slot slot, const RopeTables& tables, const RingScales& scales, const FrameShape& shape, int64_t slots,
                  cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(shape.tokens), static_cast<unsigned>(shape.frames));
  const dim3 block = threads(shape.heads, shape.pairs() / PAIRS);
  const size_t shared = static_cast<size_t>(shape.head_dim + block.x * block.y + kSums) * sizeof(float);
  return launch(ring_write_kernel<Number, Stored, PAIRS>, grid, block, shared, stream, k_ring, v_ring, k, v, weight, eps,
                slot, tables, scales, shape, slots);
}

SinkMove sink_move(const RingLayout& layout, const FrameShape& shape, int64_t slot, int64_t first) {
  const int64_t groups = layout.heads_first ? shape.heads : 1;
  const int64_t frame = shape.tokens * shape.row_size() / groups;
  return {shape.frames * frame,
          layout.slots * frame,
          (layout.slots - layout.rolling) * frame,
          slot * frame,
          (layout.rolling + first) * frame,
          first * frame};
}

// A launch for every kLayersAtOnce layers, whose addresses are arguments of the kernel.
template <typename Launch>
cudaError_t for_layers(const RingLayer* layers, size_t count, const Launch& start) {
  cudaError_t error = cudaSuccess;
  for (size_t begin = 0; begin < count && error == cudaSuccess; begin += kLayersAtOnce) {
    RingLayers some{};
    const size_t of_these = std::min(kLayersAtOnce, count - begin);
    std::copy_n(layers + begin, of_these, some.at);
    error = start(some, static_cast<unsigned>(of_these));
  }
  return error;
}

template <typename Word>
cudaError_t keep(const RingLayer* layers, size_t count, const SinkMove& bytes, unsigned groups, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(Word);
  const SinkMove move{bytes.size / kSize,      bytes.ring_step / kSize, bytes.base_step / kSize,
                      bytes.ring_from / kSize, bytes.ring_to / kSize,   bytes.base_to / kSize};
  const int64_t block = std::min(kThreads, ceiling(move.size, kTurns));
  const auto blocks = static_cast<unsigned>(ceiling(move.size, block * kTurns));
  return for_layers(layers, count, [&](const RingLayers& some, unsigned of_these) {
    return launch(ring_keep_kernel<Word>, dim3(blocks, groups, of_these), static_cast<unsigned>(block), 0, stream, some, move);
  });
}

template <typename Stored, int PAIRS>
cudaError_t anchor(const RingLayer* layers, size_t count, const RingLayout& layout, const float* cos, const float* sin,
                   const FrameShape& shape, cudaStream_t stream) {
  const int64_t groups = layout.heads_first ? shape.heads : 1, rows = shape.rows() * shape.heads / groups;
  const dim3 block = threads(std::min(rows, kThreads), shape.pairs() / PAIRS);
  const auto blocks = static_cast<unsigned>(ceiling(rows, block.y * kTurns));
  const SinkMove move = sink_move(layout, shape, 0, 0);
  return for_layers(layers, count, [&](const RingLayers& some, unsigned of_these) {
    return launch(ring_anchor_kernel<Stored, PAIRS>, dim3(blocks, static_cast<unsigned>(groups), of_these), block, 0,
                  stream, some, move, cos, sin, rows, static_cast<int>(shape.pairs()),
                  static_cast<int>(shape.temporal_pairs));
  });
}

}  // namespace

template <typename Number, typename Stored>
cudaError_t ring_write(Stored* k_ring, Stored* v_ring, const Number* k, const Number* v, const float* weight, float eps,
                       Slot slot, const RopeTables& tables, const RingScales& scales, const FrameShape& shape,
                       int64_t slots, cudaStream_t stream) {
  constexpr int kPairs = kWidePairs<Number>;
  const bool wide = shape.pairs() % kPairs == 0 && aligned({k_ring, v_ring, k, v, weight});
  const auto start = wide ? write<Number, Stored, kPairs> : write<Number, Stored, 1>;
  return start(k_ring, v_ring, k, v, weight, eps, slot, tables, scales, shape, slots, stream);
}

cudaError_t ring_keep(const RingLayer* layers, size_t count, int64_t element_size, const RingLayout& layout, int64_t slot,
                      int64_t first, const FrameShape& shape, cudaStream_t stream) {
  const FrameShape bytes{shape.frames, shape.tokens, shape.heads, shape.head_dim * element_size, 0};
  const bool wide = bytes.head_dim % kWide == 0 && std::all_of(layers, layers + count, [](const RingLayer& layer) {
                      return aligned({layer.k_ring, layer.v_ring, layer.sink_base});
                    });
  const unsigned groups = layout.heads_first ? static_cast<unsigned>(shape.heads) : 1;
  const auto start = wide ? keep<Pack<uint32_t, 4>> : keep<uint16_t>;
  return start(layers, count, sink_move(layout, bytes, slot, first), groups, stream);
}

template <typename Stored>
cudaError_t ring_anchor(const RingLayer* layers, size_t count, const RingLayout& layout, const float* cos,
                        const float* sin, const FrameShape& shape, cudaStream_t stream) {
  constexpr int kPairs = kWidePairs<Stored>;
  const bool wide = shape.pairs() % kPairs == 0 && std::all_of(layers, layers + count, [](const RingLayer& layer) {
                      return aligned({layer.k_ring, layer.sink_base});
                    });
  const auto start = wide ? anchor<Stored, kPairs> : anchor<Stored, 1>;
  return start(layers, count, layout, cos, sin, shape, stream);
}

#define LIPSTREAM_WRITE(Number, Stored)                                                                              \
  template cudaError_t ring_write(Stored*, Stored*, const Number*, const Number*, const float*, float, Slot,         \
                                  const RopeTables&, const RingScales&, const FrameShape&, int64_t, cudaStream_t);
LIPSTREAM_WRITE(float, float)
LIPSTREAM_WRITE(__half, __half)
LIPSTREAM_WRITE(__nv_bfloat16, __nv_bfloat16)
LIPSTREAM_WRITE(__nv_bfloat16, uint8_t)
#undef LIPSTREAM_WRITE

#define LIPSTREAM_ANCHOR(Stored)                                                                                     \
  template cudaError_t ring_anchor<Stored>(const RingLayer*, size_t, const RingLayout&, const float*, const float*,  \
                                           const FrameShape&, cudaStream_t);
LIPSTREAM_ANCHOR(float)
LIPSTREAM_ANCHOR(__half)
LIPSTREAM_ANCHOR(__nv_bfloat16)
LIPSTREAM_ANCHOR(uint8_t)
#undef LIPSTREAM_ANCHOR

}  // namespace lipstream::cuda
