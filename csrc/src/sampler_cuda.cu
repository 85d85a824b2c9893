#include "lipstream/launch.cuh"
#include "lipstream/sampler_cuda.h"
#include "lipstream/sampler_kernels.cuh"

namespace lipstream::cuda {
namespace {

constexpr int64_t kBlock = 256;

unsigned blocks(int64_t count) { return static_cast<unsigned>((count + kBlock - 1) / kBlock); }

}  // namespace

cudaError_t assemble_condition(float* condition, const float* first, const float* mask, const float* masked,
                               const float* sequence, const LatentShape& shape, cudaStream_t stream) {
  return launch(condition_kernel, blocks(shape.condition_size()), static_cast<unsigned>(kBlock), 0, stream, condition, first,
                mask, masked, sequence, shape);
}

cudaError_t advance(float* next, float* clean, const float* x, const float* velocity, const float* noise, double t,
                    double next_t, int64_t count, cudaStream_t stream) {
  return launch(advance_kernel, blocks(count), static_cast<unsigned>(kBlock), 0, stream, next, clean, x, velocity, noise, t,
                next_t, count);
}

cudaError_t unpack_pictures(float* planes, const uint8_t* bytes, int64_t count, int64_t pixels, cudaStream_t stream) {
  const dim3 grid(blocks(pixels), static_cast<unsigned>(count));
  return launch(unpack_kernel, grid, static_cast<unsigned>(kBlock), 0, stream, planes, bytes, pixels);
}

cudaError_t pack_pictures(uint8_t* bytes, int32_t* not_finite, const float* planes, int64_t count, int64_t pixels,
                          cudaStream_t stream) {
  const dim3 grid(blocks(pixels), static_cast<unsigned>(count));
  return launch(pack_kernel, grid, static_cast<unsigned>(kBlock), 0, stream, bytes, not_finite, planes, pixels);
}

}  // namespace lipstream::cuda
