// Rotary position embedding of one pair: arithmetic in float32, storage in float32 or bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "lipstream/ring.h"

namespace lipstream {

// cos and sin of every angle, float32, rounded once from float64 (a stream may run for days).
struct RopeTables {
  const float* cos_t;  // [frames, temporal_pairs]
  const float* sin_t;
  const float* cos_s;  // [tokens, spatial_pairs]
  const float* sin_s;
};

// (a + ib) * (cos + i sin). Always compiled without fused multiply-add, so that CPU and GPU give the same bits.
LIPSTREAM_HD inline void rotate(float a, float b, float cos, float sin, float& real, float& imag) {
  real = a * cos - b * sin;
  imag = a * sin + b * cos;
}

// bfloat16 on the CPU: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float& to, float value) { to = value; }
inline void store(BFloat16& to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;                  // rounding could turn a NaN into infinity
  to.bits = static_cast<uint16_t>(nan ? 0x7fffu : rounded);
}

// float16 on the CPU: IEEE 754 binary16.
struct Float16 {
  uint16_t bits;
};

inline float load(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, size = x.bits & 0x7fffu;
  uint32_t bits = size << 13;
  if (size >= 0x7c00u) {
    bits += (255u - 31u) << 23;  // infinity and NaN
  } else if (size >= 0x0400u) {
    bits += (127u - 15u) << 23;
  } else {  // multiples of 2^-24
    const float value = static_cast<float>(size) * 0x1p-24f;
    std::memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(Float16& to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  uint32_t half;
  if (size > 0x7f800000u) {
    half = 0x7fffu;  // NaN, as CUDA encodes it
  } else if (size >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (size >= 0x38800000u) {
    half = (size + 0xfffu + (size >> 13 & 1u) - ((127u - 15u) << 23)) >> 13;
  } else {  // multiples of 2^-24, which the last bits of 0.5 + x count
    float magnitude;
    std::memcpy(&magnitude, &size, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&half, &magnitude, sizeof half);
    half -= 0x3f000000u;
  }
  to.bits = static_cast<uint16_t>(sign | half);
}

}  // namespace lipstream
