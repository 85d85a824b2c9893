// The operations on latents between the passes of a chunk, on the device, so that no pass waits for the host. Arithmetic
// and rounding are those of lipstream/backends/sampler.py: float64, rounded once to float32. Behind them the conversions
// of pictures, which are uint8 on the host and float32 in the graphs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

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

// Pictures: one in each row of the grid, and in it one pixel a thread, so that adjacent threads have adjacent pixels of
// the bytes [H, W, 3] and of the planes [3, H, W].
struct Pixel {
  int64_t bytes, plane;  // index of its first byte, and of its value in the first plane
};

__device__ inline Pixel pixel_of(int64_t within, int64_t pixels) {
  const int64_t before = 3 * pixels * blockIdx.y;
  return {before + 3 * within, before + within};
}

static __global__ void unpack_kernel(float* __restrict__ planes, const uint8_t* __restrict__ bytes, int64_t pixels) {
  const int64_t i = thread();
  if (i >= pixels) return;
  const Pixel at = pixel_of(i, pixels);
  for (int channel = 0; channel < 3; ++channel) {
    planes[at.plane + channel * pixels] = static_cast<float>(bytes[at.bytes + channel]) / 255.0f;
  }
}

constexpr float kLargest = std::numeric_limits<float>::max();

// `not_finite` becomes 1 if a value is infinite or NaN; all threads that write it write the same.
static __global__ void pack_kernel(uint8_t* __restrict__ bytes, int32_t* __restrict__ not_finite,
                                   const float* __restrict__ planes, int64_t pixels) {
  const int64_t i = thread();
  if (i >= pixels) return;
  const Pixel at = pixel_of(i, pixels);
  for (int channel = 0; channel < 3; ++channel) {
    const float value = planes[at.plane + channel * pixels];
    if (!(fabsf(value) <= kLargest)) *not_finite = 1;
    bytes[at.bytes + channel] = static_cast<uint8_t>(rintf(fminf(fmaxf(value, 0.0f), 1.0f) * 255.0f));  // ties to even
  }
}

}  // namespace lipstream::cuda
