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

// (a + ib) * (cos + i sin). Built without fused multiply-add everywhere, so that CPU and GPU agree to the bit.
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
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;                  // rounding could carry a NaN into infinity
  to.bits = static_cast<uint16_t>(nan ? 0x7fffu : rounded);
}

}  // namespace lipstream
