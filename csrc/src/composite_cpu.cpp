#include "lipstream/composite.h"

#include <algorithm>
#include <cmath>

namespace lipstream {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kTaps = 4;

struct Place {
  double x, y;
};

// floor(value), and what is left of it. (std::floor is a call where the CPU may lack the instruction.)
inline int64_t split(double value, float& rest) {
  auto whole = static_cast<int64_t>(value);
  if (static_cast<double>(whole) > value) --whole;
  rest = static_cast<float>(value - static_cast<double>(whole));
  return whole;
}

inline Place apply(const Affine& map, int64_t x, int64_t y) {
  const auto px = static_cast<double>(x), py = static_cast<double>(y);
  return {map.m[0] * px + map.m[1] * py + map.m[2], map.m[3] * px + map.m[4] * py + map.m[5]};
}

// One channel, linear, 0 around it.
inline float sample_alpha(const Samples& alpha, Place place) {
  float fx, fy;
  const int64_t x = split(place.x, fx), y = split(place.y, fy);
  if (x < -1 || y < -1 || x >= alpha.width || y >= alpha.height) return 0.0F;
  if (x >= 0 && y >= 0 && x + 1 < alpha.width && y + 1 < alpha.height) {
    const float* row = alpha.data + y * alpha.width + x;
    const float* next = row + alpha.width;
    return (row[0] * (1 - fx) + row[1] * fx) * (1 - fy) + (next[0] * (1 - fx) + next[1] * fx) * fy;
  }
  const auto at = [&](int64_t row, int64_t column) {
    const bool inside = row >= 0 && row < alpha.height && column >= 0 && column < alpha.width;
    return inside ? alpha.data[row * alpha.width + column] : 0.0F;
  };
  const float upper = at(y, x) * (1 - fx) + at(y, x + 1) * fx;
  const float lower = at(y + 1, x) * (1 - fx) + at(y + 1, x + 1) * fx;
  return upper * (1 - fy) + lower * fy;
}

// Weights of the samples at -1, 0, 1, 2 for a place `t` behind sample 0.
inline void cubic(float t, float* weights) {
  constexpr float a = -0.75F;
  weights[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
  weights[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
  weights[2] = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1;
  weights[3] = 1 - weights[0] - weights[1] - weights[2];
}

// Sums are four wide, as vector registers are; the fourth is of no use.
constexpr int64_t kLanes = 4;

inline void add(float* sums, const float* pixel, float weight) {
  for (int64_t c = 0; c < kLanes; ++c) sums[c] += weight * pixel[c];
}

// The weighted sum of 4 x 4 pixels; a pixel more of each row is read.
inline void sum_taps(const float* const* rows, const float* wx, const float* wy, float* sums) {
  for (int64_t c = 0; c < kLanes; ++c) sums[c] = 0;
  for (int64_t i = 0; i < kTaps; ++i) {
    float line[kLanes] = {};
    for (int64_t j = 0; j < kTaps; ++j) add(line, rows[i] + j * kChannels, wx[j]);
    add(sums, line, wy[i]);
  }
}

void sum_taps_at_border(const Samples& picture, int64_t x, int64_t y, const float* wx, const float* wy, float* sums) {
  float patch[kTaps][(kTaps + 1) * kChannels] = {};
  const float* rows[kTaps];
  for (int64_t i = 0; i < kTaps; ++i) {
    rows[i] = patch[i];
    const float* row = picture.data + std::clamp<int64_t>(y + i, 0, picture.height - 1) * picture.width * kChannels;
    for (int64_t j = 0; j < kTaps; ++j) {
      std::copy_n(row + std::clamp<int64_t>(x + j, 0, picture.width - 1) * kChannels, kChannels, patch[i] + j * kChannels);
    }
  }
  sum_taps(rows, wx, wy, sums);
}

// Cubic, the border repeated.
inline void sample_picture(const Samples& picture, Place place, float* colour) {
  float fx, fy, wx[kTaps], wy[kTaps];
  const int64_t x = split(place.x, fx) - 1, y = split(place.y, fy) - 1;
  cubic(fx, wx);
  cubic(fy, wy);
  if (x < 0 || y < 0 || x + kTaps >= picture.width || y + kTaps > picture.height) {
    return sum_taps_at_border(picture, x, y, wx, wy, colour);
  }
  const float* first = picture.data + (y * picture.width + x) * kChannels;
  const int64_t pitch = picture.width * kChannels;
  const float* const rows[] = {first, first + pitch, first + 2 * pitch, first + 3 * pitch};
  sum_taps(rows, wx, wy, colour);
}

// Adds the offset at a place of the picture, linear, its border repeated.
inline void add_offset(const Samples& offset, Place place, float* colour) {
  const double right = static_cast<double>(offset.width - 1), bottom = static_cast<double>(offset.height - 1);
  float fx, fy;
  const int64_t x = split(std::clamp(place.x, 0.0, right), fx), y = split(std::clamp(place.y, 0.0, bottom), fy);
  const int64_t next_x = std::min(x + 1, offset.width - 1), next_y = std::min(y + 1, offset.height - 1);
  const float* upper = offset.data + y * offset.width * kChannels;
  const float* lower = offset.data + next_y * offset.width * kChannels;
  const float weights[] = {(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy};
  for (int64_t c = 0; c < kChannels; ++c) {
    colour[c] += weights[0] * upper[x * kChannels + c] + weights[1] * upper[next_x * kChannels + c] +
                 weights[2] * lower[x * kChannels + c] + weights[3] * lower[next_x * kChannels + c];
  }
}

}  // namespace

void composite(uint8_t* frame, int64_t width, const Region& region, const Samples& picture, const Affine& to_picture,
               const Samples& offset, const Samples& alpha, const Affine& to_alpha, const Samples* gate,
               const Affine& to_gate) {
  const double zoom_x = static_cast<double>(offset.width) / static_cast<double>(picture.width);
  const double zoom_y = static_cast<double>(offset.height) / static_cast<double>(picture.height);
  for (int64_t y = region.y0; y < region.y1; ++y) {
    for (int64_t x = region.x0; x < region.x1; ++x) {
      const float opacity = sample_alpha(alpha, apply(to_alpha, x, y));
      if (!(opacity > 0)) continue;
      if (gate != nullptr && !(sample_alpha(*gate, apply(to_gate, x, y)) > 0)) continue;
      const Place place = apply(to_picture, x, y);
      float colour[kLanes];
      sample_picture(picture, place, colour);
      add_offset(offset, {(place.x + 0.5) * zoom_x - 0.5, (place.y + 0.5) * zoom_y - 0.5}, colour);
      uint8_t* pixel = frame + (y * width + x) * kChannels;
      for (int64_t c = 0; c < kChannels; ++c) {
        const auto source = static_cast<float>(pixel[c]);
        const float wanted = std::clamp(255 * colour[c], 0.0F, 255.0F);
        pixel[c] = static_cast<uint8_t>(source + opacity * (wanted - source) + 0.5F);
      }
    }
  }
}

}  // namespace lipstream
