// The ring's CUDA kernels. One block per row (a token of a frame), whose angles are loaded into shared memory once for
// all heads; a thread copies PAIRS pairs at a time. blockIdx.x counts rows; offsets are int64.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "lipstream/e4m3.h"
#include "lipstream/ring.h"
#include "lipstream/rope.h"

namespace lipstream::cuda {

template <typename Storage, int PAIRS>
struct alignas(2 * PAIRS * sizeof(Storage)) Pack {
  Storage values[2 * PAIRS];
};

__device__ inline float load(float x) { return x; }
__device__ inline float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float load(__half x) { return __half2float(x); }
__device__ inline void store(float& to, float value) { to = value; }
__device__ inline void store(__half& to, float value) { to = __float2half_rn(value); }
__device__ inline void store(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

// Rotates the pairs j, j + 1, ... of a head; those from `turned` on are unchanged.
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

// Angles of a row, cos then sin [pairs], into shared memory.
__device__ inline void load_angles(float* angles, const RopeTables& tables, const FrameShape& shape, int64_t row) {
  const int pairs = static_cast<int>(shape.pairs());
  for (int j = static_cast<int>(threadIdx.x); j < pairs; j += static_cast<int>(blockDim.x)) {
    const bool temporal = j < shape.temporal_pairs;
    const int64_t at = temporal ? shape.temporal_offset(row) + j : shape.spatial_offset(row) + j - shape.temporal_pairs;
    angles[j] = temporal ? tables.cos_t[at] : tables.cos_s[at];
    angles[pairs + j] = temporal ? tables.sin_t[at] : tables.sin_s[at];
  }
}

template <typename Storage, int PAIRS>
__global__ void ring_write_kernel(Storage* __restrict__ k_ring, Storage* __restrict__ v_ring,
                                  const Storage* __restrict__ k, const Storage* __restrict__ v, Slot slot,
                                  RopeTables tables, FrameShape shape) {
  using Pack = Pack<Storage, PAIRS>;
  extern __shared__ float angles[];
  const int64_t row = blockIdx.x, first = slot.get();
  if (!slot.fits(first)) return;
  const int pairs = static_cast<int>(shape.pairs());
  const float *const cos = angles, *const sin = angles + pairs;
  load_angles(angles, tables, shape, row);
  __syncthreads();

  const int64_t offset = shape.row_offset(row);
  const auto* k_from = reinterpret_cast<const Pack*>(k + offset);
  const auto* v_from = reinterpret_cast<const Pack*>(v + offset);
  auto* k_to = reinterpret_cast<Pack*>(k_ring + shape.slot_offset(first) + offset);
  auto* v_to = reinterpret_cast<Pack*>(v_ring + shape.slot_offset(first) + offset);
  const int packs = static_cast<int>(shape.row_size() / (2 * PAIRS));
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack value = v_from[i];  // loaded before the wait for K
    k_to[i] = rotate_pack(k_from[i], cos, sin, i * PAIRS % pairs, pairs);
    v_to[i] = value;
  }
}

// sink: the first sink slot of k_ring. Rows may be in groups, `sink_step` and `base_step` elements apart.
template <typename Storage, int PAIRS>
__global__ void ring_anchor_kernel(Storage* __restrict__ sink, const Storage* __restrict__ sink_base,
                                   const float* __restrict__ cos, const float* __restrict__ sin, FrameShape shape,
                                   int64_t sink_step, int64_t base_step) {
  using Pack = Pack<Storage, PAIRS>;
  const int64_t group = blockIdx.x / shape.rows(), offset = shape.row_offset(blockIdx.x % shape.rows());
  const auto* from = reinterpret_cast<const Pack*>(sink_base + group * base_step + offset);
  auto* to = reinterpret_cast<Pack*>(sink + group * sink_step + offset);
  const int packs = static_cast<int>(shape.row_size() / (2 * PAIRS)), pairs = static_cast<int>(shape.pairs());
  const int turned = static_cast<int>(shape.temporal_pairs);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    to[i] = rotate_pack(from[i], cos, sin, i * PAIRS % pairs, turned);
  }
}

// Codes and scales of a row whose values are in shared memory [row_size]; `scales`, also there, has one element per head.
__device__ inline void round_row(uint8_t* codes, float* head_scales, const float* values, float* scales,
                                 const FrameShape& shape) {
  const int dim = static_cast<int>(shape.head_dim), heads = static_cast<int>(shape.heads);
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  for (int head = first; head < heads; head += step) {
    float amax = 0.0f;
    for (int i = 0; i < dim; ++i) amax = fmaxf(amax, fabsf(values[head * dim + i]));
    head_scales[head] = scales[head] = e4m3_scale(amax);
  }
  __syncthreads();
  for (int i = first; i < heads * dim; i += step) codes[i] = to_e4m3(values[i] / scales[i / dim]);
}

// Shared memory, all float32: angles [2 pairs], K and V of the row [2 row_size], scales [2 heads].
template <typename Storage>
__global__ void ring_write_e4m3_kernel(E4M3Ring k_ring, E4M3Ring v_ring, const Storage* __restrict__ k,
                                       const Storage* __restrict__ v, Slot slot, RopeTables tables, FrameShape shape) {
  extern __shared__ float angles[];
  const int64_t row = blockIdx.x, offset = shape.row_offset(row), start = slot.get();
  if (!slot.fits(start)) return;
  const int pairs = static_cast<int>(shape.pairs()), size = static_cast<int>(shape.row_size());
  float *const k_row = angles + 2 * pairs, *const v_row = k_row + size, *const scales = v_row + size;
  load_angles(angles, tables, shape, row);
  __syncthreads();
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  for (int i = first; i < size / 2; i += step) {
    const int j = i % pairs;
    rotate(load(k[offset + 2 * i]), load(k[offset + 2 * i + 1]), angles[j], angles[pairs + j], k_row[2 * i],
           k_row[2 * i + 1]);
    v_row[2 * i] = load(v[offset + 2 * i]);
    v_row[2 * i + 1] = load(v[offset + 2 * i + 1]);
  }
  __syncthreads();
  const int64_t to = shape.slot_offset(start) + offset, heads = to / shape.head_dim;
  round_row(k_ring.codes + to, k_ring.scales + heads, k_row, scales, shape);
  round_row(v_ring.codes + to, v_ring.scales + heads, v_row, scales + shape.heads, shape);
}

// Shared memory, all float32: the row [row_size], scales [heads].
static __global__ void ring_anchor_e4m3_kernel(E4M3Ring sink, E4M3Ring base, const float* __restrict__ cos,
                                               const float* __restrict__ sin, FrameShape shape) {
  extern __shared__ float angles[];
  const int64_t row = blockIdx.x, offset = shape.row_offset(row), heads = row * shape.heads;
  const int pairs = static_cast<int>(shape.pairs()), size = static_cast<int>(shape.row_size());
  float* const values = angles;
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  for (int i = first; i < size / 2; i += step) {
    const int j = i % pairs;
    const float scale = base.scales[heads + i / pairs];
    const float a = from_e4m3(base.codes[offset + 2 * i]) * scale;
    const float b = from_e4m3(base.codes[offset + 2 * i + 1]) * scale;
    values[2 * i] = a;
    values[2 * i + 1] = b;
    if (j < shape.temporal_pairs) rotate(a, b, cos[j], sin[j], values[2 * i], values[2 * i + 1]);
  }
  __syncthreads();
  round_row(sink.codes + offset, sink.scales + heads, values, values + size, shape);
}

template <typename Storage>
__global__ void ring_read_e4m3_kernel(Storage* __restrict__ to, E4M3Ring ring, FrameShape shape) {
  const int64_t offset = shape.row_offset(blockIdx.x), heads = blockIdx.x * shape.heads;
  const int size = static_cast<int>(shape.row_size()), dim = static_cast<int>(shape.head_dim);
  for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
    store(to[offset + i], from_e4m3(ring.codes[offset + i]) * ring.scales[heads + i / dim]);
  }
}

}  // namespace lipstream::cuda
