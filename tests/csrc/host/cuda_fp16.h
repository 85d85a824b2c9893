// float16 by the name it has in CUDA, with the CPU ring's conversions.
#pragma once

#include "lipstream/rope.h"

struct __half {
  lipstream::Float16 value;
};

inline float __half2float(__half x) { return lipstream::load(x.value); }
inline __half __float2half_rn(float x) {
  __half result;
  lipstream::store(result.value, x);
  return result;
}
