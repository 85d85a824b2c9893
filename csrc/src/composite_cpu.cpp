#include "lipstream/composite.h"
#include "lipstream/composite_pixel.h"

namespace lipstream {

void render(float* block, const Region& region, float strength, const Samples& picture, const Affine& to_picture,
            const Filter& fx, const Filter& fy, const Samples& alpha, const Affine& to_alpha) {
  for (int64_t y = region.y0; y < region.y1; ++y) {
    for (int64_t x = region.x0; x < region.x1; ++x, block += kLanes) {
      render_pixel(block, x, y, strength, picture, to_picture, fx, fy, alpha, to_alpha);
    }
  }
}

namespace {

// The numbers of taps, if they are known when this is compiled, else 0.
template <int64_t kX, int64_t kY>
void resample_by(float* view, int64_t height, int64_t width, const Samples& plane, const Affine& to_plane,
                 const Filter& fx, const Filter& fy) {
  const int64_t taps_x = kX ? kX : fx.taps, taps_y = kY ? kY : fy.taps;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x, ++view) {
      const Place place = apply(to_plane, x, y);
      const Taps1d across = taps_at(fx, place.x, plane.width), down = taps_at(fy, place.y, plane.height);
      const float* row = plane.data + down.first * plane.width + across.first;
      Lanes sums{};
      for (int64_t i = 0; i < taps_y; ++i, row += plane.width) {
        Lanes line{};
        for (int64_t j = 0; j < taps_x; j += kLanes) line += load(across.weights + j) * load(row + j);
        sums += down.weights[i] * line;
      }
      *view = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
  }
}

}  // namespace

void resample(float* view, int64_t height, int64_t width, const Samples& plane, const Affine& to_plane, const Filter& fx,
              const Filter& fy) {
  const bool magnified = fx.taps == 8 && fy.taps == 6;
  (magnified ? resample_by<8, 6> : resample_by<0, 0>)(view, height, width, plane, to_plane, fx, fy);
}

template <typename T>
void blend(T* plane, int64_t pitch, const Region& region, const float* block, int64_t height, int64_t width, const Taps& tx,
           const Taps& ty, const float* row, float most) {
  for (int64_t y = 0; y < region.y1 - region.y0; ++y) {
    T* const line = plane + (region.y0 + y) * pitch + region.x0;
    for (int64_t x = 0; x < region.x1 - region.x0; ++x) {
      line[x] = blend_sample(line[x], x, y, block, height, width, tx, ty, row, most);
    }
  }
}

template void blend(uint8_t*, int64_t, const Region&, const float*, int64_t, int64_t, const Taps&, const Taps&, const float*,
                    float);
template void blend(uint16_t*, int64_t, const Region&, const float*, int64_t, int64_t, const Taps&, const Taps&, const float*,
                    float);

}  // namespace lipstream
