#include <algorithm>
#include <initializer_list>

#include "lipstream/ring_cuda.h"
#include "lipstream/ring_kernels.cuh"

namespace lipstream::cuda {
namespace {

constexpr int kWide = 16;  // bytes a thread moves at a time where it can
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
cudaError_t ring_write(Storage* k_ring, Storage* v_ring, const Storage* k, const Storage* v, int64_t slot,
                       const RopeTables& tables, const FrameShape& shape, cudaStream_t stream) {
  Storage* const k_block = k_ring + shape.slot_offset(slot);
  Storage* const v_block = v_ring + shape.slot_offset(slot);
  const auto rows = static_cast<unsigned>(shape.rows());
  const size_t angles = static_cast<size_t>(shape.head_dim) * sizeof(float);
  if (wide<Storage>({k_ring, v_ring, k, v}, shape)) {
    constexpr int kPairs = kWidePairs<Storage>;
    ring_write_kernel<Storage, kPairs>
        <<<rows, threads(shape, kPairs), angles, stream>>>(k_block, v_block, k, v, tables, shape);
  } else {
    ring_write_kernel<Storage, 1><<<rows, threads(shape, 1), angles, stream>>>(k_block, v_block, k, v, tables, shape);
  }
  return cudaGetLastError();
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

template <typename Storage>
cudaError_t ring_anchor(Storage* k_ring, const Storage* sink_base, int64_t rolling, const float* cos, const float* sin,
                        const FrameShape& shape, cudaStream_t stream) {
  Storage* const sink = k_ring + shape.slot_offset(rolling);
  const auto rows = static_cast<unsigned>(shape.rows());
  if (wide<Storage>({k_ring, sink_base}, shape)) {
    constexpr int kPairs = kWidePairs<Storage>;
    ring_anchor_kernel<Storage, kPairs><<<rows, threads(shape, kPairs), 0, stream>>>(sink, sink_base, cos, sin, shape);
  } else {
    ring_anchor_kernel<Storage, 1><<<rows, threads(shape, 1), 0, stream>>>(sink, sink_base, cos, sin, shape);
  }
  return cudaGetLastError();
}

#define LIPSTREAM_INSTANTIATE(Storage)                                                                                 \
  template cudaError_t ring_write(Storage*, Storage*, const Storage*, const Storage*, int64_t, const RopeTables&,      \
                                  const FrameShape&, cudaStream_t);                                                    \
  template cudaError_t ring_keep(const Storage*, Storage*, Storage*, int64_t, int64_t, int64_t, const FrameShape&,     \
                                 cudaStream_t);                                                                        \
  template cudaError_t ring_anchor(Storage*, const Storage*, int64_t, const float*, const float*, const FrameShape&,   \
                                   cudaStream_t);
LIPSTREAM_INSTANTIATE(float)
LIPSTREAM_INSTANTIATE(__nv_bfloat16)
#undef LIPSTREAM_INSTANTIATE

}  // namespace lipstream::cuda
