// The operations on latents between the passes of a chunk, on the device, so that no pass waits for the host. Arithmetic
// and rounding are those of lipstream/backends/sampler.py: float64, rounded once to float32.
#pragma once

#include <cstdint>

#include "lipstream/sampler.h"

namespace lipstream::cuda {

__device__ inline int64_t thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

static __global__ void condition_kernel(float* __restrict__ condition, const float* __restrict__ first,
                                        const float* __restrict__ mask, const float* __restrict__ masked,
                                        const float* __restrict__ sequence, LatentShape shape) {
  const int64_t i = thread();
  if (i >= shape.condition_size()) return;
  const int64_t channel = i / shape.plane(), within = i % shape.plane(), cell = within % shape.cells;
  if (channel < shape.channels) {
    condition[i] = first[channel * shape.cells + cell];
  } else if (channel == shape.channels) {
    condition[i] = 1.0f - mask[cell];
  } else if (channel <= 2 * shape.channels) {
    condition[i] = masked[(channel - shape.channels - 1) * shape.plane() + within];
  } else {
    condition[i] = sequence[(channel - 2 * shape.channels - 1) * shape.plane() + within];
  }
}

// `next` may be `x`.
static __global__ void advance_kernel(float* next, float* __restrict__ clean, const float* x,
                                      const float* __restrict__ velocity, const float* __restrict__ noise, double t,
                                      double next_t, int64_t count) {
  const int64_t i = thread();
  if (i >= count) return;
  const auto x0 = static_cast<float>(static_cast<double>(x[i]) - t * static_cast<double>(velocity[i]));
  clean[i] = x0;
  if (noise == nullptr) return;
  next[i] = static_cast<float>((1.0 - next_t) * static_cast<double>(x0) + next_t * static_cast<double>(noise[i]));
}

}  // namespace lipstream::cuda
