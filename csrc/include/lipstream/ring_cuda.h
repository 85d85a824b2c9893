// Launchers of the ring's CUDA kernels: raw device pointers, a stream, no synchronisation, fit for graph capture.
// Storage is float or __nv_bfloat16. Arguments are trusted: bindings check them. K and V pointers must be aligned to
// one pair (2 elements); at 16 bytes and with a head of whole 16-byte words, accesses are 16 bytes wide.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "lipstream/ring.h"
#include "lipstream/rope.h"

namespace lipstream::cuda {

// See ring_cpu.h for what each does. The result is the launch's error.
template <typename Storage>
cudaError_t ring_write(Storage* k_ring, Storage* v_ring, const Storage* k, const Storage* v, int64_t slot,
                       const RopeTables& tables, const FrameShape& shape, cudaStream_t stream);

template <typename Storage>
cudaError_t ring_keep(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slot, int64_t rolling,
                      int64_t first, const FrameShape& shape, cudaStream_t stream);

template <typename Storage>
cudaError_t ring_anchor(Storage* k_ring, const Storage* sink_base, int64_t rolling, const float* cos, const float* sin,
                        const FrameShape& shape, cudaStream_t stream);

}  // namespace lipstream::cuda
