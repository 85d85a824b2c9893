// Blends a generated picture into a frame through an affine map, in one pass over the pixels that can change.
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

// frame [_, width, 3] becomes frame + alpha * (255 * (picture + offset) - frame), rounded and saturated, in the region.
//
// picture [h, w, 3] is sampled cubically (Keys, a = -0.75, as OpenCV), its border repeated; offset [_, _, 3] linearly, its
// border repeated; alpha [_, _] linearly, with 0 around it. A pixel whose alpha or, where there is one, gate [_, _]
// (sampled as alpha) is not above 0 keeps its bits.
void composite(uint8_t* frame, int64_t width, const Region& region, const Samples& picture, const Affine& to_picture,
               const Samples& offset, const Affine& to_offset, const Samples& alpha, const Affine& to_alpha,
               const Samples* gate, const Affine& to_gate);

}  // namespace lipstream
