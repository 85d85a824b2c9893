// The ring's CUDA kernels. One block per row (a token of a frame): its angles go to shared memory once and serve all
// heads; a thread moves PAIRS pairs at a time. Rows are counted in blockIdx.x, offsets in int64.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "lipstream/ring.h"
#include "lipstream/rope.h"

namespace lipstream::cuda {

template <typename Storage, int PAIRS>
struct alignas(2 * PAIRS * sizeof(Storage)) Pack {
  Storage values[2 * PAIRS];
};

__device__ inline float load(float x) { return x; }
__device__ inline float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float& to, float value) { to = value; }
__device__ inline void store(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

// Rotates the pairs j, j + 1, ... of a head; those from `turned` on stay as they are.
template <typename Storage, int PAIRS>
__device__ inline Pack<Storage, PAIRS> rotate_pack(Pack<Storage, PAIRS> pack, const float* cos, const float* sin,
                                                   int j, int turned) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    if (j + i < turned) {
      float real, imag;
      rotate(load(pack.values[2 * i]), load(pack.values[2 * i + 1]), cos[j + i], sin[j + i], real, imag);
      store(pack.values[2 * i], real);
      store(pack.values[2 * i + 1], imag);
    }
  }
  return pack;
}

// k_block and v_block: the block's first slot.
template <typename Storage, int PAIRS>
__global__ void ring_write_kernel(Storage* __restrict__ k_block, Storage* __restrict__ v_block,
                                  const Storage* __restrict__ k, const Storage* __restrict__ v, RopeTables tables,
                                  FrameShape shape) {
  using Pack = Pack<Storage, PAIRS>;
  extern __shared__ float angles[];
  const int64_t row = blockIdx.x;
  const int pairs = static_cast<int>(shape.pairs());
  float *const cos = angles, *const sin = angles + pairs;
  for (int j = threadIdx.x; j < pairs; j += blockDim.x) {
    const bool temporal = j < shape.temporal_pairs;
    const int64_t at = temporal ? shape.temporal_offset(row) + j : shape.spatial_offset(row) + j - shape.temporal_pairs;
    cos[j] = temporal ? tables.cos_t[at] : tables.cos_s[at];
    sin[j] = temporal ? tables.sin_t[at] : tables.sin_s[at];
  }
  __syncthreads();

  const int64_t offset = shape.row_offset(row);
  const auto* k_from = reinterpret_cast<const Pack*>(k + offset);
  const auto* v_from = reinterpret_cast<const Pack*>(v + offset);
  auto* k_to = reinterpret_cast<Pack*>(k_block + offset);
  auto* v_to = reinterpret_cast<Pack*>(v_block + offset);
  const int packs = static_cast<int>(shape.row_size() / (2 * PAIRS));
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack value = v_from[i];  // asked for before K is waited for
    k_to[i] = rotate_pack(k_from[i], cos, sin, i * PAIRS % pairs, pairs);
    v_to[i] = value;
  }
}

// sink: the first sink slot of k_ring.
template <typename Storage, int PAIRS>
__global__ void ring_anchor_kernel(Storage* __restrict__ sink, const Storage* __restrict__ sink_base,
                                   const float* __restrict__ cos, const float* __restrict__ sin, FrameShape shape) {
  using Pack = Pack<Storage, PAIRS>;
  const int64_t offset = shape.row_offset(blockIdx.x);
  const auto* from = reinterpret_cast<const Pack*>(sink_base + offset);
  auto* to = reinterpret_cast<Pack*>(sink + offset);
  const int packs = static_cast<int>(shape.row_size() / (2 * PAIRS)), pairs = static_cast<int>(shape.pairs());
  const int turned = static_cast<int>(shape.temporal_pairs);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    to[i] = rotate_pack(from[i], cos, sin, i * PAIRS % pairs, turned);
  }
}

}  // namespace lipstream::cuda
