// A generated picture as it is blended into a frame, seen through affine maps: one pass over the pixels it can touch.
// Also the resampling of a plane, with the same filters.
#pragma once

#include <cstdint>

namespace lipstream {

// Float samples [height, width, channels], row-major.
struct Samples {
  const float* data;
  int64_t height, width;
};

// Pixel centres (x, y) of the frame -> (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]), those of a picture.
struct Affine {
  double m[6];
};

// Pixels x0 <= x < x1, y0 <= y < y1.
struct Region {
  int64_t x0, y0, x1, y1;
};

// Weights [kPhases, taps] of a resampling filter along one axis: at position p the samples from floor(p) - taps / 2 + 1 on
// are weighted by the row of p's fraction, rounded to 1 / kPhases. taps is even.
constexpr int64_t kPhases = 256;
struct Filter {
  const float* weights;
  int64_t taps;
};

// block [y1 - y0, x1 - x0, 4] becomes red, green and blue of the picture, limited to 0..1 and times the opacity, and the
// opacity, strength * alpha.
//
// picture [h, w, 4], of red, green, blue and 0, is sampled by the filters, at least as large as they are; beyond it
// samples those of its border. alpha [_, _] is sampled linearly, with 0 around it; a pixel whose alpha is not above 0 is
// all 0.
void render(float* block, const Region& region, float strength, const Samples& picture, const Affine& to_picture,
            const Filter& x, const Filter& y, const Samples& alpha, const Affine& to_alpha);

// view [height, width] becomes plane [h, w] sampled by the filters, as `render` samples a picture; x.taps is a multiple
// of 4.
void resample(float* view, int64_t height, int64_t width, const Samples& plane, const Affine& to_plane, const Filter& x,
              const Filter& y);

// How one axis of a plane's samples lies over the pixels of a block: sample i of a region takes the pixels from
// first + i * step on, each by its weight; beyond the block its border is repeated.
struct Taps {
  int64_t first, step;
  const float* weights;
  int64_t count;
};

// Samples [y0, y1) x [x0, x1) of a plane become sample + (value - opacity * sample), rounded and at most `most`; value and opacity are means
// over the taps of block [height, width, 4], as `render` fills it: value is row[0..2] of red, green and blue, plus row[3]
// times the opacity. A sample whose opacity is 0 keeps its bits. `pitch` is the number of samples from row to row.
template <typename T>
void blend(T* plane, int64_t pitch, const Region& region, const float* block, int64_t height, int64_t width, const Taps& x,
           const Taps& y, const float* row, float most);

}  // namespace lipstream
