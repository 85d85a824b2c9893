// Launchers of the kernels between the passes and around the codec, like those of the ring (ring_cuda.h).
#pragma once

#include <cuda_runtime_api.h>

#include "lipstream/sampler.h"

namespace lipstream::cuda {

// All float32: condition [3 C + 1, c, h, w] from first [C, h, w], mask [h, w] (1 = keep; in the condition 1 = generate), masked and
// sequence [C, c, h, w].
cudaError_t assemble_condition(float* condition, const float* first, const float* mask, const float* masked,
                               const float* sequence, const LatentShape& shape, cudaStream_t stream);

// clean = x - t * velocity; with noise (not null) also next = (1 - next_t) * clean + next_t * noise. `next` may be `x`.
cudaError_t advance(float* next, float* clean, const float* x, const float* velocity, const float* noise, double t,
                    double next_t, int64_t count, cudaStream_t stream);

// planes float32 [n, 3, H, W] = bytes uint8 [n, H, W, 3] / 255; n < 2^16.
cudaError_t unpack_pictures(float* planes, const uint8_t* bytes, int64_t count, int64_t pixels, cudaStream_t stream);

// bytes uint8 [n, H, W, 3] = planes float32 [n, 3, H, W], clamped to [0, 1], times 255, rounded half to even; n < 2^16.
// `not_finite` becomes 1 if one of them is infinite or NaN, and stays as it is otherwise.
cudaError_t pack_pictures(uint8_t* bytes, int32_t* not_finite, const float* planes, int64_t count, int64_t pixels,
                          cudaStream_t stream);

}  // namespace lipstream::cuda
