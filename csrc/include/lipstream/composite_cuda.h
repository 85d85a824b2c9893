// Launchers of compositing on the device: the steps of lipstream/face/compositing.py for one frame.
#pragma once

#include <cuda_runtime_api.h>

#include "lipstream/composite.h"
#include "lipstream/ring.h"

namespace lipstream::cuda {

// The largest grid of the colour offset, a side: one thread for each cell.
constexpr int64_t kMostCells = 32;

// The generated picture, uint8 [size, size, 3], and the offset of its colour.
//
// offset float32 [cells, cells, 3], cells up to kMostCells and to size: what takes the means of the picture to `wanted`
// [cells, cells, 3] where `trusted` [cells, cells] is above 0.1, the less the farther from the median; filled in smoothly
// elsewhere, and low-passed.
cudaError_t colour_offset(float* offset, const uint8_t* generated, int64_t size, const float* wanted, const float* trusted,
                          int64_t cells, cudaStream_t stream);

// The part [x0, x1) x [y0, y1) of the picture with its offset, averaged over blocks of block x block pixels, with its border
// repeated `pad` times, float32 [h, w, 4]; the fourth is 0.
struct Part {
  Region shown;
  int64_t block, pad;

  LIPSTREAM_HD int64_t height() const { return (shown.y1 - shown.y0 + block - 1) / block + 2 * pad; }
  LIPSTREAM_HD int64_t width() const { return (shown.x1 - shown.x0 + block - 1) / block + 2 * pad; }
};
cudaError_t corrected_part(float* part, const uint8_t* generated, int64_t size, const float* offset, int64_t cells,
                           const Part& shape, cudaStream_t stream);

// As `lipstream::render`.
cudaError_t render(float* block, const Region& region, const Samples& picture, const Affine& to_picture, const Filter& x,
                   const Filter& y, const Samples& alpha, const Affine& to_alpha, cudaStream_t stream);

// As `lipstream::blend`, on the samples [height, width] of the region alone.
template <typename T>
cudaError_t blend(T* samples, int64_t height, int64_t width, const float* block, int64_t block_height, int64_t block_width,
                  const Taps& x, const Taps& y, const float* row, float most, cudaStream_t stream);

}  // namespace lipstream::cuda
