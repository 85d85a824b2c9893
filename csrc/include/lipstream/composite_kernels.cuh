// Compositing on the device. What a pixel becomes is the arithmetic of the CPU (composite_pixel.h), bit for bit; the
// colour offset and the averages over blocks, which the CPU leaves to OpenCV, agree to float32's rounding.
#pragma once

#include <cmath>
#include <cstdint>

#include "lipstream/composite_cuda.h"
#include "lipstream/composite_pixel.h"

namespace lipstream::cuda {

constexpr float kSpread = 0.12f;   // see lipstream/face/compositing.py: _OFFSET_SPREAD, _OFFSET_BLUR, _BESIDE
constexpr float kBlur = 1.5f;
constexpr float kBeside = 0.1f;
constexpr int kBlurReach = 6;      // OpenCV's, for this standard deviation and float32
constexpr int kColours = 3;

// A small image in shared memory, [side, side, 4]: three colours and their weight.
struct Level {
  float* values;
  int side;

  __device__ float& at(int row, int column, int channel) const { return values[(row * side + column) * 4 + channel]; }
};

// Cells of all levels: `cells` a side, half as many, and so on to one.
LIPSTREAM_HD inline int pyramid_size(int cells) {
  int count = 0;
  for (int side = cells; side > 0; side /= 2) count += side * side;
  return count;
}

// Calls visit(index, weight) for the samples of a mean over [cell, cell + 1) * size / cells: whole and partial ones.
template <typename Visit>
__device__ inline void over_cell(int cell, int cells, int64_t size, const Visit& visit) {
  const double scale = static_cast<double>(size) / cells, low = cell * scale, high = low + scale;
  for (auto i = static_cast<int64_t>(low); i < size && static_cast<double>(i) < high - 1e-3; ++i) {
    const double from = fmax(low, static_cast<double>(i)), to = fmin(high, static_cast<double>(i + 1));
    if (to - from > 1e-3) visit(i, static_cast<float>((to - from) / scale));  // as OpenCV's INTER_AREA
  }
}

// Where position `i` of `wanted` samples lies between two of `given`, linearly; the border is repeated.
struct Between {
  int low, high;
  float share;
};

__device__ inline Between between(int64_t i, int64_t wanted, int given) {
  const float place = static_cast<float>((static_cast<double>(i) + 0.5) * given / static_cast<double>(wanted) - 0.5);
  const float base = floorf(place);
  const int low = static_cast<int>(base);
  if (low < 0) return {0, 0, 0.0f};
  if (low >= given - 1) return {given - 1, given - 1, 0.0f};
  return {low, low + 1, place - base};
}

__device__ inline float mixed(float a, float b, float share) { return a * (1.0f - share) + b * share; }

__device__ inline int reflected(int i, int size) {
  if (size == 1) return 0;
  while (i < 0 || i >= size) i = i < 0 ? -i : 2 * (size - 1) - i;
  return i;
}

// One block with a thread for each cell. Its shared memory: the pyramid, and two numbers for each colour.
static __global__ void __launch_bounds__(kMostCells * kMostCells)
    colour_offset_kernel(float* __restrict__ offset, const uint8_t* __restrict__ generated, int64_t size,
                         const float* __restrict__ wanted, const float* __restrict__ trusted, int cells) {
  extern __shared__ float shared[];
  const int cell = static_cast<int>(threadIdx.x), row = cell / cells, column = cell % cells, count = cells * cells;
  const Level finest{shared, cells};
  float difference[kColours] = {};
  over_cell(row, cells, size, [&](int64_t y, float wy) {
    over_cell(column, cells, size, [&](int64_t x, float wx) {
      for (int c = 0; c < kColours; ++c) {
        difference[c] += wy * wx * (static_cast<float>(generated[(y * size + x) * kColours + c]) / 255.0f);
      }
    });
  });
  for (int c = 0; c < kColours; ++c) {
    difference[c] = wanted[cell * kColours + c] - difference[c];
    finest.at(row, column, c) = difference[c];
  }
  const float trust = trusted[cell];
  finest.at(row, column, kColours) = trust;
  float* const middles = shared + pyramid_size(cells) * 4;  // behind it
  __syncthreads();

  // The median of each colour beside the mask: the mean of the two numbers in the middle.
  int beside = 0;
  for (int i = 0; i < count; ++i) beside += shared[4 * i + kColours] > kBeside;
  if (trust > kBeside) {
    for (int c = 0; c < kColours; ++c) {
      int before = 0;
      for (int i = 0; i < count; ++i) {
        if (!(shared[4 * i + kColours] > kBeside)) continue;
        const float other = shared[4 * i + c];
        before += other < difference[c] || (other == difference[c] && i < cell);
      }
      if (before == (beside - 1) / 2) middles[2 * c] = difference[c];
      if (before == beside / 2) middles[2 * c + 1] = difference[c];
    }
  }
  __syncthreads();
  if (beside == 0) {  // the whole block
    for (int c = 0; c < kColours; ++c) offset[cell * kColours + c] = 0.0f;
    return;
  }
  float farthest = 0.0f;
  for (int c = 0; c < kColours; ++c) {
    const float deviation = (difference[c] - (middles[2 * c] + middles[2 * c + 1]) / 2.0f) / kSpread;
    farthest = fmaxf(farthest, deviation * deviation);
  }
  const float likely = 1.0f / (1.0f + farthest);  // Geman-McClure
  finest.at(row, column, kColours) = trust * (likely * likely);
  __syncthreads();

  // Down the pyramid: means by weight, and up again: each level filled from the coarser one (Gortler et al., 1996).
  Level level = finest;
  while (level.side > 1) {
    const Level half{level.values + 4 * level.side * level.side, level.side / 2};
    if (cell < half.side * half.side) {
      const int y = cell / half.side, x = cell % half.side;
      float sums[kColours] = {}, weight = 0.0f;
      over_cell(y, half.side, level.side, [&](int64_t i, float wy) {
        over_cell(x, half.side, level.side, [&](int64_t j, float wx) {
          const int r = static_cast<int>(i), s = static_cast<int>(j);
          const float share = wy * wx * level.at(r, s, kColours);
          weight += share;
          for (int c = 0; c < kColours; ++c) sums[c] += share * level.at(r, s, c);
        });
      });
      for (int c = 0; c < kColours; ++c) half.at(y, x, c) = sums[c] / fmaxf(weight, 1e-6f);
      half.at(y, x, kColours) = fminf(2.0f * weight, 1.0f);
    }
    __syncthreads();
    level = half;
  }
  for (int side = 1; side < cells;) {
    Level fine = finest;  // the level whose half has `side`
    while (fine.side / 2 != side) fine = {fine.values + 4 * fine.side * fine.side, fine.side / 2};
    const Level coarse{fine.values + 4 * fine.side * fine.side, side};
    if (cell < fine.side * fine.side) {
      const int y = cell / fine.side, x = cell % fine.side;
      const Between down = between(y, fine.side, side), across = between(x, fine.side, side);
      const float weight = fine.at(y, x, kColours);
      for (int c = 0; c < kColours; ++c) {
        const float upper = mixed(coarse.at(down.low, across.low, c), coarse.at(down.low, across.high, c), across.share);
        const float lower = mixed(coarse.at(down.high, across.low, c), coarse.at(down.high, across.high, c), across.share);
        const float filled = mixed(upper, lower, down.share);
        fine.at(y, x, c) = filled + weight * (fine.at(y, x, c) - filled);
      }
    }
    __syncthreads();
    side = fine.side;
  }

  // The low pass: along rows, then along columns.
  float weights[2 * kBlurReach + 1], total = 0.0f;
  for (int i = -kBlurReach; i <= kBlurReach; ++i) {
    const auto x = static_cast<float>(i);
    total += weights[i + kBlurReach] = expf(-x * x / (2.0f * kBlur * kBlur));
  }
  for (const bool rows : {true, false}) {
    float sums[kColours] = {};
    for (int i = -kBlurReach; i <= kBlurReach; ++i) {
      const int y = rows ? row : reflected(row + i, cells), x = rows ? reflected(column + i, cells) : column;
      for (int c = 0; c < kColours; ++c) sums[c] += weights[i + kBlurReach] / total * finest.at(y, x, c);
    }
    __syncthreads();
    for (int c = 0; c < kColours; ++c) finest.at(row, column, c) = sums[c];
    __syncthreads();
  }
  for (int c = 0; c < kColours; ++c) offset[cell * kColours + c] = finest.at(row, column, c);
}

// One thread for each pixel of the part.
static __global__ void corrected_part_kernel(float* __restrict__ part, const uint8_t* __restrict__ generated, int64_t size,
                                             const float* __restrict__ offset, int cells, Part shape) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, width = shape.width();
  if (i >= width * shape.height()) return;
  const int64_t rows = shape.height() - 2 * shape.pad, columns = width - 2 * shape.pad, block = shape.block;
  const int64_t top = limited<int64_t>(i / width - shape.pad, 0, rows - 1) * block;
  const int64_t left = limited<int64_t>(i % width - shape.pad, 0, columns - 1) * block;
  float sums[kColours] = {};
  for (int64_t dy = 0; dy < block; ++dy) {
    const int64_t y = shape.shown.y0 + limited<int64_t>(top + dy, 0, shape.shown.y1 - shape.shown.y0 - 1);
    const Between down = between(y, size, cells);
    for (int64_t dx = 0; dx < block; ++dx) {
      const int64_t x = shape.shown.x0 + limited<int64_t>(left + dx, 0, shape.shown.x1 - shape.shown.x0 - 1);
      const Between across = between(x, size, cells);
      for (int c = 0; c < kColours; ++c) {
        const auto cell = [&](int row, int column) { return offset[(row * cells + column) * kColours + c]; };
        const float upper = mixed(cell(down.low, across.low), cell(down.low, across.high), across.share);
        const float lower = mixed(cell(down.high, across.low), cell(down.high, across.high), across.share);
        sums[c] += static_cast<float>(generated[(y * size + x) * kColours + c]) / 255.0f + mixed(upper, lower, down.share);
      }
    }
  }
  for (int c = 0; c < kColours; ++c) part[4 * i + c] = sums[c] / static_cast<float>(block * block);
  part[4 * i + kColours] = 0.0f;
}

// One thread for each pixel of the block.
static __global__ void render_kernel(float* __restrict__ block, Region region, Samples picture, Affine to_picture, Filter x,
                                     Filter y, Samples alpha, Affine to_alpha) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, width = region.x1 - region.x0;
  if (i >= width * (region.y1 - region.y0)) return;
  render_pixel(block + kLanes * i, region.x0 + i % width, region.y0 + i / width, 1.0f, picture, to_picture, x, y, alpha,
               to_alpha);
}

struct Row {
  float values[4];
};

// One thread for each sample.
template <typename T>
static __global__ void blend_kernel(T* __restrict__ samples, int64_t height, int64_t width, const float* __restrict__ block,
                                    int64_t block_height, int64_t block_width, Taps x, Taps y, Row row, float most) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= width * height) return;
  samples[i] =
      blend_sample(samples[i], i % width, i / width, block, block_height, block_width, x, y, row.values, most);
}

}  // namespace lipstream::cuda
