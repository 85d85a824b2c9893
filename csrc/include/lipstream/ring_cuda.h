// Launchers of the ring's CUDA kernels: raw device pointers, a stream, no synchronisation, so they can be captured in a
// graph. Arguments are not checked here; the bindings and the plugin check them. K and V pointers must be aligned to one
// pair (2 elements); if they are aligned to 16 bytes and a head is a whole number of 16-byte words, accesses are 16
// bytes wide. The result is the launch's error.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "lipstream/ring.h"
#include "lipstream/rope.h"

namespace lipstream::cuda {

// Addresses of the float32 scales of K and V of an FP8 ring on the device, null for other rings.
struct RingScales {
  const float* k;
  const float* v;
};

// One layer's new rows, k and v [c T, H D] as the linear layers give them, into slots [slot, slot + c) of its rings,
// heads first: [H, F T, D], F = slots. Number is float, __half or __nv_bfloat16; Stored is Number, or uint8_t for E4M3
// codes, with `scales`.
//
// K is normalised over the whole row, x / sqrt(mean(x^2) + eps), rounded to Number, multiplied by weight [H D] and
// rotated in float32, and rounded once more; V is as it was. Codes are of these numbers divided by the scale.
template <typename Number, typename Stored>
cudaError_t ring_write(Stored* k_ring, Stored* v_ring, const Number* k, const Number* v, const float* weight, float eps,
                       Slot slot, const RopeTables& tables, const RingScales& scales, const FrameShape& shape,
                       int64_t slots, cudaStream_t stream);

constexpr size_t kLayersAtOnce = 64;  // of one launch

struct RingLayer {
  void* k_ring;
  void* v_ring;     // read and written by ring_keep only
  void* sink_base;  // K of the sink as it was written
};

// How a layer's ring and its sink's copy lie: frames first, [F, T, H, D] and [S, T, H, D], or heads first, as of
// TensorRT's KVCacheUpdate, [H, F T, D] and [H, S T, D]; S = F - rolling.
struct RingLayout {
  int64_t slots;    // F
  int64_t rolling;  // slots before the sink
  bool heads_first;
};

// ring_cpu.h describes the two; `layers` [count], all of one shape, take one launch for every kLayersAtOnce of them.
cudaError_t ring_keep(const RingLayer* layers, size_t count, int64_t element_size, const RingLayout& layout, int64_t slot,
                      int64_t first, const FrameShape& shape, cudaStream_t stream);

// Stored is a Number, or uint8_t for E4M3 codes, which are rotated and rounded as numbers of scale 1.
template <typename Stored>
cudaError_t ring_anchor(const RingLayer* layers, size_t count, const RingLayout& layout, const float* cos,
                        const float* sin, const FrameShape& shape, cudaStream_t stream);

}  // namespace lipstream::cuda
