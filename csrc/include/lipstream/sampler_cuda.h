// Launchers of the kernels between the passes, like those of the ring (ring_cuda.h). All tensors are float32.
#pragma once

#include <cuda_runtime_api.h>

#include "lipstream/sampler.h"

namespace lipstream::cuda {

// condition [3 C + 1, c, h, w] from first [C, h, w], mask [h, w] (1 = keep; in the condition 1 = generate), masked and
// sequence [C, c, h, w].
cudaError_t assemble_condition(float* condition, const float* first, const float* mask, const float* masked,
                               const float* sequence, const LatentShape& shape, cudaStream_t stream);

// clean = x - t * velocity; with noise (not null) also next = (1 - next_t) * clean + next_t * noise. `next` may be `x`.
cudaError_t advance(float* next, float* clean, const float* x, const float* velocity, const float* noise, double t,
                    double next_t, int64_t count, cudaStream_t stream);

}  // namespace lipstream::cuda
