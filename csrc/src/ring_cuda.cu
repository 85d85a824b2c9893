#include <algorithm>
#include <initializer_list>

#include "lipstream/launch.cuh"
#include "lipstream/ring_cuda.h"
#include "lipstream/ring_kernels.cuh"

namespace lipstream::cuda {
namespace {

constexpr int kWide = 16;  // bytes per access of a thread, where the alignment allows it
constexpr int64_t kThreads = 256;

template <typename Storage>
constexpr int kWidePairs = kWide / (2 * static_cast<int>(sizeof(Storage)));

// Every row, block and slot starts at a multiple of the head size, so this is enough for all of them.
template <typename Storage>
bool wide(std::initializer_list<const Storage*> pointers, const FrameShape& shape) {
  const auto aligned = [](const Storage* p) { return reinterpret_cast<uintptr_t>(p) % kWide == 0; };
  return shape.pairs() % kWidePairs<Storage> == 0 && std::all_of(pointers.begin(), pointers.end(), aligned);
}

unsigned threads(const FrameShape& shape, int pairs) {
  const int64_t packs = shape.row_size() / (2 * pairs);
  return static_cast<unsigned>(std::min(kThreads, (packs + 31) / 32 * 32));
}

}  // namespace

template <typename Storage>
cudaError_t ring_write(Storage* k_ring, Storage* v_ring, const Storage* k, const Storage* v, Slot slot,
                       const RopeTables& tables, const FrameShape& shape, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(shape.rows());
  const size_t angles = static_cast<size_t>(shape.head_dim) * sizeof(float);
  if (wide<Storage>({k_ring, v_ring, k, v}, shape)) {
    constexpr int kPairs = kWidePairs<Storage>;
    return launch(ring_write_kernel<Storage, kPairs>, rows, threads(shape, kPairs), angles, stream, k_ring, v_ring, k, v,
                  slot, tables, shape);
  }
  return launch(ring_write_kernel<Storage, 1>, rows, threads(shape, 1), angles, stream, k_ring, v_ring, k, v, slot,
                tables, shape);
}

template <typename Storage>
cudaError_t ring_keep(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slot, int64_t rolling,
                      int64_t first, const FrameShape& shape, cudaStream_t stream) {
  const int64_t from = shape.slot_offset(slot);
  const size_t bytes = static_cast<size_t>(shape.row_offset(shape.rows())) * sizeof(Storage);
  const cudaError_t error = cudaMemcpyAsync(sink_base + shape.slot_offset(first), k_ring + from, bytes,
                                            cudaMemcpyDeviceToDevice, stream);
  if (error != cudaSuccess) return error;
  return cudaMemcpyAsync(v_ring + shape.slot_offset(rolling + first), v_ring + from, bytes, cudaMemcpyDeviceToDevice,
                         stream);
}

namespace {

template <typename Storage>
cudaError_t anchor(Storage* sink, const Storage* sink_base, const float* cos, const float* sin, const FrameShape& shape,
                   int64_t groups, int64_t sink_step, int64_t base_step, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(shape.rows() * groups);
  if (wide<Storage>({sink, sink_base}, shape)) {
    constexpr int kPairs = kWidePairs<Storage>;
    return launch(ring_anchor_kernel<Storage, kPairs>, rows, threads(shape, kPairs), 0, stream, sink, sink_base, cos,
                  sin, shape, sink_step, base_step);
  }
  return launch(ring_anchor_kernel<Storage, 1>, rows, threads(shape, 1), 0, stream, sink, sink_base, cos, sin, shape,
                sink_step, base_step);
}

}  // namespace

template <typename Storage>
cudaError_t ring_anchor(Storage* k_ring, const Storage* sink_base, int64_t rolling, const float* cos, const float* sin,
                        const FrameShape& shape, cudaStream_t stream) {
  return anchor(k_ring + shape.slot_offset(rolling), sink_base, cos, sin, shape, 1, 0, 0, stream);
}

template <typename Storage>
cudaError_t ring_keep_heads_first(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slots, int64_t slot,
                                  int64_t rolling, int64_t first, const FrameShape& shape, cudaStream_t stream) {
  const int64_t frame = shape.tokens * shape.head_dim;
  const auto bytes = [&](int64_t frames) { return static_cast<size_t>(frames * frame) * sizeof(Storage); };
  const auto copy = [&](Storage* to, int64_t to_slots, const Storage* from) {
    return cudaMemcpy2DAsync(to, bytes(to_slots), from, bytes(slots), bytes(shape.frames),
                             static_cast<size_t>(shape.heads), cudaMemcpyDeviceToDevice, stream);
  };
  const cudaError_t error = copy(sink_base + first * frame, slots - rolling, k_ring + slot * frame);
  if (error != cudaSuccess) return error;
  return copy(v_ring + (rolling + first) * frame, slots, v_ring + slot * frame);
}

template <typename Storage>
cudaError_t ring_anchor_heads_first(Storage* k_ring, const Storage* sink_base, int64_t slots, int64_t rolling,
                                    const float* cos, const float* sin, const FrameShape& shape, cudaStream_t stream) {
  const FrameShape head{shape.frames, shape.tokens, 1, shape.head_dim, shape.temporal_pairs};
  return anchor(k_ring + head.slot_offset(rolling), sink_base, cos, sin, head, shape.heads, head.slot_offset(slots),
                head.slot_offset(slots - rolling), stream);
}

namespace {

E4M3Ring from_slot(E4M3Ring ring, int64_t slot, const FrameShape& shape) {
  return {ring.codes + shape.slot_offset(slot), ring.scales + slot * shape.tokens * shape.heads};
}

}  // namespace

template <typename Storage>
cudaError_t ring_write_e4m3(E4M3Ring k_ring, E4M3Ring v_ring, const Storage* k, const Storage* v, Slot slot,
                            const RopeTables& tables, const FrameShape& shape, cudaStream_t stream) {
  if (shape.row_size() > kLargestE4M3Row) return cudaErrorInvalidValue;
  const size_t shared = static_cast<size_t>(shape.head_dim + 2 * shape.row_size() + 2 * shape.heads) * sizeof(float);
  return launch(ring_write_e4m3_kernel<Storage>, static_cast<unsigned>(shape.rows()), threads(shape, 1), shared, stream,
                k_ring, v_ring, k, v, slot, tables, shape);
}

cudaError_t ring_keep_e4m3(E4M3Ring k_ring, E4M3Ring v_ring, E4M3Ring sink_base, int64_t slot, int64_t rolling,
                           int64_t first, const FrameShape& shape, cudaStream_t stream) {
  const FrameShape scales{shape.frames, shape.tokens, shape.heads, 1, 0};
  const cudaError_t error =
      ring_keep<uint8_t>(k_ring.codes, v_ring.codes, sink_base.codes, slot, rolling, first, shape, stream);
  if (error != cudaSuccess) return error;
  return ring_keep<float>(k_ring.scales, v_ring.scales, sink_base.scales, slot, rolling, first, scales, stream);
}

cudaError_t ring_anchor_e4m3(E4M3Ring k_ring, E4M3Ring sink_base, int64_t rolling, const float* cos, const float* sin,
                             const FrameShape& shape, cudaStream_t stream) {
  if (shape.row_size() > kLargestE4M3Row) return cudaErrorInvalidValue;
  const size_t shared = static_cast<size_t>(shape.row_size() + shape.heads) * sizeof(float);
  return launch(ring_anchor_e4m3_kernel, static_cast<unsigned>(shape.rows()), threads(shape, 1), shared, stream,
                from_slot(k_ring, rolling, shape), sink_base, cos, sin, shape);
}

template <typename Storage>
cudaError_t ring_read_e4m3(Storage* to, E4M3Ring ring, const FrameShape& shape, cudaStream_t stream) {
  return launch(ring_read_e4m3_kernel<Storage>, static_cast<unsigned>(shape.rows()), threads(shape, 1), 0, stream, to,
                ring, shape);
}

#define LIPSTREAM_INSTANTIATE(Storage)                                                                                 \
  template cudaError_t ring_write(Storage*, Storage*, const Storage*, const Storage*, Slot, const RopeTables&,      \
                                  const FrameShape&, cudaStream_t);                                                    \
  template cudaError_t ring_keep(const Storage*, Storage*, Storage*, int64_t, int64_t, int64_t, const FrameShape&,     \
                                 cudaStream_t);                                                                        \
  template cudaError_t ring_anchor(Storage*, const Storage*, int64_t, const float*, const float*, const FrameShape&,   \
                                   cudaStream_t);                                                                      \
  template cudaError_t ring_keep_heads_first(const Storage*, Storage*, Storage*, int64_t, int64_t, int64_t, int64_t,   \
                                             const FrameShape&, cudaStream_t);                                         \
  template cudaError_t ring_anchor_heads_first(Storage*, const Storage*, int64_t, int64_t, const float*, const float*, \
                                               const FrameShape&, cudaStream_t);                                       \
  template cudaError_t ring_write_e4m3(E4M3Ring, E4M3Ring, const Storage*, const Storage*, Slot, const RopeTables&, \
                                       const FrameShape&, cudaStream_t);                                               \
  template cudaError_t ring_read_e4m3(Storage*, E4M3Ring, const FrameShape&, cudaStream_t);
LIPSTREAM_INSTANTIATE(float)
LIPSTREAM_INSTANTIATE(__half)
LIPSTREAM_INSTANTIATE(__nv_bfloat16)
#undef LIPSTREAM_INSTANTIATE

}  // namespace lipstream::cuda
