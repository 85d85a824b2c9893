// The ring's CUDA kernels. Offsets are int64; a thread handles PAIRS adjacent pairs of a head at a time. Blocks are
// two-dimensional, threadIdx.x the position in a head and threadIdx.y the head or row, so that no index is divided.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "lipstream/e4m3.h"
#include "lipstream/ring.h"
#include "lipstream/ring_cuda.h"
#include "lipstream/rope.h"

namespace lipstream::cuda {

constexpr int kWide = 16;  // bytes of a thread's largest access

template <typename T, int N>
struct alignas(N * sizeof(T) < kWide ? N * sizeof(T) : kWide) Pack {
  T values[N];
};

__device__ inline float load(float x) { return x; }
__device__ inline float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float load(__half x) { return __half2float(x); }
__device__ inline void store(float& to, float value) { to = value; }
__device__ inline void store(__half& to, float value) { to = __float2half_rn(value); }
__device__ inline void store(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

// Two numbers, and two codes of an FP8 ring (uint8_t), which stand for code * scale; loaded without their scale.
template <typename Number>
__device__ inline void load_pair(const Number* from, float& a, float& b) {
  a = load(from[0]);
  b = load(from[1]);
}

template <typename Number>
__device__ inline void store_pair(Number* to, float a, float b, float) {
  store(to[0], a);
  store(to[1], b);
}

__device__ inline void load_pair(const uint8_t* from, float& a, float& b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  __half2_raw halves;
  const auto codes = static_cast<uint16_t>(from[0] | from[1] << 8);
  asm("{.reg .b32 both; cvt.rn.f16x2.e4m3x2 both, %2; mov.b32 {%0, %1}, both;}" : "=h"(halves.x), "=h"(halves.y) : "h"(codes));
  a = __half2float(__half_raw{halves.x});
  b = __half2float(__half_raw{halves.y});
#else
  a = from_e4m3(from[0]);
  b = from_e4m3(from[1]);
#endif
}

__device__ inline void store_pair(uint8_t* to, float a, float b, float scale) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t codes;  // rounded as by to_e4m3
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(b / scale), "f"(a / scale));
  to[0] = static_cast<uint8_t>(codes);
  to[1] = static_cast<uint8_t>(codes >> 8);
#else
  to[0] = to_e4m3(a / scale);
  to[1] = to_e4m3(b / scale);
#endif
}

// Numbers as the ring stores them.
template <typename Stored, typename Number, int N>
__device__ inline Pack<Stored, N> stored(const Pack<Number, N>& numbers, float scale) {
  if constexpr (std::is_same_v<Stored, Number>) {
    return numbers;
  } else {
    Pack<Stored, N> codes;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      store_pair(codes.values + i, load(numbers.values[i]), load(numbers.values[i + 1]), scale);
    }
    return codes;
  }
}

__device__ inline int thread_of_block() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }
__device__ inline int threads_of_block() { return static_cast<int>(blockDim.x * blockDim.y); }

// Angles of a token of a frame, cos then sin [pairs], into shared memory.
__device__ inline void load_angles(float* angles, const RopeTables& tables, const FrameShape& shape, int64_t frame,
                                   int64_t token) {
  const int pairs = static_cast<int>(shape.pairs()), temporal = static_cast<int>(shape.temporal_pairs);
  const int64_t t = frame * temporal, s = token * (pairs - temporal) - temporal;
#pragma unroll 1
  for (int j = thread_of_block(); j < pairs; j += threads_of_block()) {
    angles[j] = j < temporal ? tables.cos_t[t + j] : tables.cos_s[s + j];
    angles[pairs + j] = j < temporal ? tables.sin_t[t + j] : tables.sin_s[s + j];
  }
}

// Sum of the threads' values, the same in all of them, in an order that depends on their number only.
// `partial` [threads + kSums] is shared memory; what was written to it before is read by all threads after.
constexpr int kSums = 8;
__device__ inline float block_sum(float value, float* partial) {
  const int thread = thread_of_block(), threads = threads_of_block(), count = threads < kSums ? threads : kSums;
  float* const sums = partial + threads;
  partial[thread] = value;
  __syncthreads();
  if (thread < count) {
    float sum = 0.0f;
    for (int i = thread; i < threads; i += kSums) sum += partial[i];
    sums[thread] = sum;
  }
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += sums[i];
  return sum;
}

// K normalised, rotated and stored, V stored: see ring_write. A block per row: blockIdx.x is the token, blockIdx.y the
// frame. Shared memory, float32: angles [2 pairs], partial sums [threads + kSums].
template <typename Number, typename Stored, int PAIRS>
__global__ void ring_write_kernel(Stored* __restrict__ k_ring, Stored* __restrict__ v_ring,
                                  const Number* __restrict__ k, const Number* __restrict__ v,
                                  const float* __restrict__ weight, float eps, Slot slot, RopeTables tables,
                                  RingScales scales, FrameShape shape, int64_t slots) {
  using Numbers = Pack<Number, 2 * PAIRS>;
  using Codes = Pack<Stored, 2 * PAIRS>;
  extern __shared__ __align__(16) float shared[];
  const int64_t start = slot.get();
  if (!slot.fits(start)) return;
  const int64_t token = blockIdx.x, frame = blockIdx.y, row = frame * shape.tokens + token;
  const int heads = static_cast<int>(shape.heads), pairs = static_cast<int>(shape.pairs()), packs = pairs / PAIRS;
  const int first_head = static_cast<int>(threadIdx.y), head_step = static_cast<int>(blockDim.y);
  const int first_pack = static_cast<int>(threadIdx.x), pack_step = static_cast<int>(blockDim.x);
  load_angles(shared, tables, shape, frame, token);

  const auto* const k_row = reinterpret_cast<const Numbers*>(k + shape.row_offset(row));
  float squares = 0.0f;
#pragma unroll 1  // unrolled, the number of turns would be computed by a division
  for (int head = first_head; head < heads; head += head_step) {
#pragma unroll 1
    for (int p = first_pack; p < packs; p += pack_step) {
      const Numbers numbers = k_row[head * packs + p];
#pragma unroll
      for (int i = 0; i < 2 * PAIRS; ++i) squares += load(numbers.values[i]) * load(numbers.values[i]);
    }
  }
  const float mean = block_sum(squares, shared + 2 * pairs) / static_cast<float>(shape.row_size());
  const float factor = 1.0f / sqrtf(mean + eps);

  const auto* const v_row = reinterpret_cast<const Numbers*>(v + shape.row_offset(row));
  const auto* const weights = reinterpret_cast<const Pack<float, 2 * PAIRS>*>(weight);
  const auto* const cos = reinterpret_cast<const Pack<float, PAIRS>*>(shared);
  const auto* const sin = reinterpret_cast<const Pack<float, PAIRS>*>(shared + pairs);
  auto* const k_to = reinterpret_cast<Codes*>(k_ring) + (start * shape.tokens + row) * packs;
  auto* const v_to = reinterpret_cast<Codes*>(v_ring) + (start * shape.tokens + row) * packs;
  const int64_t head_packs = slots * shape.tokens * packs;
  const float k_scale = scales.k ? *scales.k : 1.0f, v_scale = scales.v ? *scales.v : 1.0f;
#pragma unroll 1
  for (int head = first_head; head < heads; head += head_step) {
#pragma unroll 1
    for (int p = first_pack; p < packs; p += pack_step) {
      const int from = head * packs + p;
      const Numbers v_numbers = v_row[from];
      Numbers numbers = k_row[from];  // in the L1 cache since the sum
      const Pack<float, 2 * PAIRS> scale = weights[from];
      const Pack<float, PAIRS> c = cos[p], s = sin[p];
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) {
        Number& a = numbers.values[2 * i];
        Number& b = numbers.values[2 * i + 1];
        store(a, load(a) * factor);
        store(b, load(b) * factor);
        float real, imag;
        rotate(load(a) * scale.values[2 * i], load(b) * scale.values[2 * i + 1], c.values[i], s.values[i], real, imag);
        store(a, real);
        store(b, imag);
      }
      k_to[head * head_packs + p] = stored<Stored>(numbers, k_scale);
      v_to[head * head_packs + p] = stored<Stored>(v_numbers, v_scale);
    }
  }
}

constexpr int kTurns = 4;  // rows or words of a thread of ring_keep and ring_anchor

struct RingLayers {
  RingLayer at[kLayersAtOnce];
};

// Some frames of every layer's ring and of its sink's copy, in elements or words of `ring_keep_kernel`. They are one
// block of memory each (frames first) or one per head (heads first): `groups` blocks, the steps apart.
struct SinkMove {
  int64_t size;       // of a block
  int64_t ring_step;  // from block to block
  int64_t base_step;
  int64_t ring_from;  // first frame kept, in the ring
  int64_t ring_to;    // its sink slot
  int64_t base_to;    // its place in the sink's copy
};

// blockIdx.y: block of memory, blockIdx.z: layer.
template <typename Word>
__global__ void ring_keep_kernel(RingLayers layers, SinkMove move) {
  const RingLayer& layer = layers.at[blockIdx.z];
  const int64_t ring = blockIdx.y * move.ring_step;
  const Word* const k = static_cast<const Word*>(layer.k_ring) + ring + move.ring_from;
  const Word* const v = static_cast<const Word*>(layer.v_ring) + ring + move.ring_from;
  Word* const base = static_cast<Word*>(layer.sink_base) + blockIdx.y * move.base_step + move.base_to;
  Word* const sink = static_cast<Word*>(layer.v_ring) + ring + move.ring_to;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTurns * blockDim.x + threadIdx.x;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t i = first + turn * static_cast<int64_t>(blockDim.x);
    if (i >= move.size) break;
    const Word value = v[i];
    base[i] = k[i];
    sink[i] = value;
  }
}

// Rotates the first `turned` pairs of every head of the frames moved; the others are copied. blockIdx as above; a
// thread keeps its place in the head, and so its angles, over its rows of `2 * pairs` elements.
template <typename Stored, int PAIRS>
__global__ void ring_anchor_kernel(RingLayers layers, SinkMove move, const float* __restrict__ cos,
                                   const float* __restrict__ sin, int64_t rows, int pairs, int turned) {
  using Codes = Pack<Stored, 2 * PAIRS>;
  const RingLayer& layer = layers.at[blockIdx.z];
  const auto* const from = reinterpret_cast<const Codes*>(static_cast<const Stored*>(layer.sink_base) +
                                                          blockIdx.y * move.base_step + move.base_to);
  auto* const to =
      reinterpret_cast<Codes*>(static_cast<Stored*>(layer.k_ring) + blockIdx.y * move.ring_step + move.ring_to);
  const int packs = pairs / PAIRS;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTurns * blockDim.y + threadIdx.y;
#pragma unroll 1
  for (int p = static_cast<int>(threadIdx.x); p < packs; p += static_cast<int>(blockDim.x)) {
    const int left = turned - p * PAIRS;  // pairs of this pack, and of those behind it, that are rotated
    float c[PAIRS], s[PAIRS];
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      c[i] = i < left ? cos[p * PAIRS + i] : 1.0f;
      s[i] = i < left ? sin[p * PAIRS + i] : 0.0f;
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t row = first + turn * static_cast<int64_t>(blockDim.y);
      if (row >= rows) break;
      Codes codes = from[row * packs + p];
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) {
        if (i >= left) continue;
        float a, b, real, imag;
        load_pair(codes.values + 2 * i, a, b);  // rotating is linear, so codes do not need their scale
        rotate(a, b, c[i], s[i], real, imag);
        store_pair(codes.values + 2 * i, real, imag, 1.0f);
      }
      to[row * packs + p] = codes;
    }
  }
}

}  // namespace lipstream::cuda
