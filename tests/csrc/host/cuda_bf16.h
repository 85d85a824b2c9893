// bfloat16 by the name it has in CUDA, with the CPU ring's conversions.
#pragma once

#include "lipstream/rope.h"

struct __nv_bfloat16 {
  lipstream::BFloat16 value;
};

inline float __bfloat162float(__nv_bfloat16 x) { return lipstream::load(x.value); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  __nv_bfloat16 result;
  lipstream::store(result.value, x);
  return result;
}
