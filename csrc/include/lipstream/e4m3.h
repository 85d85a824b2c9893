// FP8 of the kind E4M3 (OCP 8-bit floating point, no infinities, largest 448), the same bits on CPU and GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "lipstream/ring.h"

namespace lipstream {

LIPSTREAM_HD inline uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

LIPSTREAM_HD inline float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

// To nearest, ties to even; larger values than 448 become 448.
LIPSTREAM_HD inline uint8_t to_e4m3(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);   // NaN
  if (size >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448
  if (size < 0x3c800000u) {  // below 2^-6: multiples of 2^-9, which the last bits of 2^14 + x count
    return static_cast<uint8_t>(sign | (bits_of(float_of(size) + 16384.0f) - bits_of(16384.0f)));
  }
  const uint32_t rounded = size + 0x7ffffu + (size >> 20 & 1u);
  const uint32_t code = (rounded >> 20) - (120u << 3);
  return static_cast<uint8_t>(sign | (code < 0x7eu ? code : 0x7eu));
}

LIPSTREAM_HD inline float from_e4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, size = code & 0x7fu;
  if (size == 0x7fu) return float_of(sign | 0x7fc00000u);
  if (size < 8u) return float_of(sign | bits_of(static_cast<float>(size) * 0.001953125f));
  return float_of(sign | ((size + (120u << 3)) << 20));
}

}  // namespace lipstream
