// Launchers of the ring's CUDA kernels: raw device pointers, a stream, no synchronisation, so they can be captured in a
// graph. Storage is float, __half or __nv_bfloat16. Arguments are not checked here; the bindings check them. K and V
// pointers must be aligned to one pair (2 elements); if they are aligned to 16 bytes and a head is a whole number of
// 16-byte words, accesses are 16 bytes wide.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "lipstream/e4m3.h"
#include "lipstream/ring.h"
#include "lipstream/rope.h"

namespace lipstream::cuda {

// ring_cpu.h describes each function. The result is the launch's error.
template <typename Storage>
cudaError_t ring_write(Storage* k_ring, Storage* v_ring, const Storage* k, const Storage* v, Slot slot,
                       const RopeTables& tables, const FrameShape& shape, cudaStream_t stream);

template <typename Storage>
cudaError_t ring_keep(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slot, int64_t rolling,
                      int64_t first, const FrameShape& shape, cudaStream_t stream);

template <typename Storage>
cudaError_t ring_anchor(Storage* k_ring, const Storage* sink_base, int64_t rolling, const float* cos, const float* sin,
                        const FrameShape& shape, cudaStream_t stream);

// keep and anchor for a ring [H, F T, D] and its sink's copy [H, S T, D], the layout of TensorRT's KVCacheUpdate:
// F = slots, S = slots - rolling.
template <typename Storage>
cudaError_t ring_keep_heads_first(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slots, int64_t slot,
                                  int64_t rolling, int64_t first, const FrameShape& shape, cudaStream_t stream);

template <typename Storage>
cudaError_t ring_anchor_heads_first(Storage* k_ring, const Storage* sink_base, int64_t slots, int64_t rolling,
                                    const float* cos, const float* sin, const FrameShape& shape, cudaStream_t stream);

// The same for a ring in FP8. A row of K and V in float32 goes through shared memory, so H * D is at most 5632.
template <typename Storage>
cudaError_t ring_write_e4m3(E4M3Ring k_ring, E4M3Ring v_ring, const Storage* k, const Storage* v, Slot slot,
                            const RopeTables& tables, const FrameShape& shape, cudaStream_t stream);

cudaError_t ring_keep_e4m3(E4M3Ring k_ring, E4M3Ring v_ring, E4M3Ring sink_base, int64_t slot, int64_t rolling,
                           int64_t first, const FrameShape& shape, cudaStream_t stream);

cudaError_t ring_anchor_e4m3(E4M3Ring k_ring, E4M3Ring sink_base, int64_t rolling, const float* cos, const float* sin,
                             const FrameShape& shape, cudaStream_t stream);

template <typename Storage>
cudaError_t ring_read_e4m3(Storage* to, E4M3Ring ring, const FrameShape& shape, cudaStream_t stream);

constexpr int64_t kLargestE4M3Row = 5632;

}  // namespace lipstream::cuda
