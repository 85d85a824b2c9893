#include "lipstream/composite_cuda.h"
#include "lipstream/composite_kernels.cuh"
#include "lipstream/launch.cuh"

#include <algorithm>

namespace lipstream::cuda {
namespace {

constexpr unsigned kBlockSize = 256;

unsigned blocks_for(int64_t count) { return static_cast<unsigned>((count + kBlockSize - 1) / kBlockSize); }

}  // namespace

cudaError_t colour_offset(float* offset, const uint8_t* generated, int64_t size, const float* wanted, const float* trusted,
                          int64_t cells, cudaStream_t stream) {
  const size_t shared = static_cast<size_t>(4 * pyramid_size(static_cast<int>(cells)) + 2 * kColours) * sizeof(float);
  return launch(colour_offset_kernel, 1, static_cast<unsigned>(cells * cells), shared, stream, offset, generated, size,
                wanted, trusted, static_cast<int>(cells));
}

cudaError_t corrected_part(float* part, const uint8_t* generated, int64_t size, const float* offset, int64_t cells,
                           const Part& shape, cudaStream_t stream) {
  return launch(corrected_part_kernel, blocks_for(shape.height() * shape.width()), kBlockSize, 0, stream, part, generated,
                size, offset, static_cast<int>(cells), shape);
}

cudaError_t render(float* block, const Region& region, const Samples& picture, const Affine& to_picture, const Filter& x,
                   const Filter& y, const Samples& alpha, const Affine& to_alpha, cudaStream_t stream) {
  const int64_t count = (region.x1 - region.x0) * (region.y1 - region.y0);
  return launch(render_kernel, blocks_for(count), kBlockSize, 0, stream, block, region, picture, to_picture, x, y, alpha,
                to_alpha);
}

template <typename T>
cudaError_t blend(T* samples, int64_t height, int64_t width, const float* block, int64_t block_height, int64_t block_width,
                  const Taps& x, const Taps& y, const float* row, float most, cudaStream_t stream) {
  Row values{};
  std::copy_n(row, 4, values.values);
  return launch(blend_kernel<T>, blocks_for(height * width), kBlockSize, 0, stream, samples, height, width, block,
                block_height, block_width, x, y, values, most);
}

template cudaError_t blend(uint8_t*, int64_t, int64_t, const float*, int64_t, int64_t, const Taps&, const Taps&,
                           const float*, float, cudaStream_t);
template cudaError_t blend(uint16_t*, int64_t, int64_t, const float*, int64_t, int64_t, const Taps&, const Taps&,
                           const float*, float, cudaStream_t);

}  // namespace lipstream::cuda
