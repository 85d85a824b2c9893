// A generated picture as it is blended into a frame, seen through affine maps: one pass over the pixels it can touch.
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

// block [y1 - y0, x1 - x0, 4] becomes red, green and blue of the picture, limited to 0..1 and times the opacity, and the
// opacity, strength * alpha.
//
// picture [h, w, 3] is sampled cubically (Keys, a = -0.75, as OpenCV), its border repeated; alpha [_, _]
// linearly, with 0 around it. A pixel whose alpha or, where there is one, gate [_, _]
// (sampled as alpha) is not above 0 is all 0.
void render(float* block, const Region& region, float strength, const Samples& picture, const Affine& to_picture,
            const Samples& alpha, const Affine& to_alpha, const Samples* gate, const Affine& to_gate);

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
