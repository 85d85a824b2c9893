#include "lipstream/composite.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace lipstream {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kTaps = 4;

struct Place {
  double x, y;
};

// floor(value) and the remainder. (std::floor is a function call where the target CPUs may lack the instruction.)
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

// Weights of the samples at -1, 0, 1, 2 for a position `t` after sample 0.
inline void cubic(float t, float* weights) {
  constexpr float a = -0.75F;
  weights[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
  weights[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
  weights[2] = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1;
  weights[3] = 1 - weights[0] - weights[1] - weights[2];
}

// Three channels and one of padding, the width of a vector register.
constexpr int64_t kLanes = 4;
#if defined(__GNUC__)
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
#else
struct Lanes {
  float x[kLanes];
  Lanes& operator+=(const Lanes& other) {
    for (int64_t c = 0; c < kLanes; ++c) x[c] += other.x[c];
    return *this;
  }
  float operator[](int64_t c) const { return x[c]; }
};
inline Lanes operator+(Lanes a, const Lanes& b) { return a += b; }
inline Lanes operator*(float weight, Lanes lanes) {
  for (int64_t c = 0; c < kLanes; ++c) lanes.x[c] *= weight;
  return lanes;
}
#endif

inline Lanes load(const float* pixel) {
  Lanes lanes;
  std::memcpy(&lanes, pixel, sizeof(lanes));
  return lanes;
}

// The weighted sum of 4 x 4 pixels; one float more of each row is read.
inline Lanes sum_taps(const float* const* rows, const float* wx, const float* wy) {
  Lanes sums{};
  for (int64_t i = 0; i < kTaps; ++i) {
    Lanes line{};
    for (int64_t j = 0; j < kTaps; ++j) line += wx[j] * load(rows[i] + j * kChannels);
    sums += wy[i] * line;
  }
  return sums;
}

Lanes sum_taps_at_border(const Samples& picture, int64_t x, int64_t y, const float* wx, const float* wy) {
  float patch[kTaps][(kTaps + 1) * kChannels] = {};
  const float* rows[kTaps];
  for (int64_t i = 0; i < kTaps; ++i) {
    rows[i] = patch[i];
    const float* row = picture.data + std::clamp<int64_t>(y + i, 0, picture.height - 1) * picture.width * kChannels;
    for (int64_t j = 0; j < kTaps; ++j) {
      std::copy_n(row + std::clamp<int64_t>(x + j, 0, picture.width - 1) * kChannels, kChannels, patch[i] + j * kChannels);
    }
  }
  return sum_taps(rows, wx, wy);
}

// Cubic, the border repeated.
inline Lanes sample_picture(const Samples& picture, Place place) {
  float fx, fy, wx[kTaps], wy[kTaps];
  const int64_t x = split(place.x, fx) - 1, y = split(place.y, fy) - 1;
  cubic(fx, wx);
  cubic(fy, wy);
  if (x < 0 || y < 0 || x + kTaps >= picture.width || y + kTaps > picture.height) {
    return sum_taps_at_border(picture, x, y, wx, wy);
  }
  const float* first = picture.data + (y * picture.width + x) * kChannels;
  const int64_t pitch = picture.width * kChannels;
  const float* const rows[] = {first, first + pitch, first + 2 * pitch, first + 3 * pitch};
  return sum_taps(rows, wx, wy);
}

}  // namespace

void render(float* block, const Region& region, float strength, const Samples& picture, const Affine& to_picture,
            const Samples& alpha, const Affine& to_alpha, const Samples* gate, const Affine& to_gate) {
  for (int64_t y = region.y0; y < region.y1; ++y) {
    for (int64_t x = region.x0; x < region.x1; ++x, block += kLanes) {
      std::fill_n(block, kLanes, 0.0F);
      const float opacity = strength * sample_alpha(alpha, apply(to_alpha, x, y));
      if (!(opacity > 0)) continue;
      if (gate != nullptr && !(sample_alpha(*gate, apply(to_gate, x, y)) > 0)) continue;
      const Lanes colour = sample_picture(picture, apply(to_picture, x, y));
      for (int64_t c = 0; c < kChannels; ++c) block[c] = opacity * std::clamp(colour[c], 0.0F, 1.0F);
      block[kChannels] = opacity;
    }
  }
}

template <typename T>
void blend(T* plane, int64_t pitch, const Region& region, const float* block, int64_t height, int64_t width, const Taps& tx,
           const Taps& ty, const float* row, float most) {
  for (int64_t y = region.y0; y < region.y1; ++y) {
    const int64_t top = ty.first + (y - region.y0) * ty.step;
    for (int64_t x = region.x0; x < region.x1; ++x) {
      const int64_t left = tx.first + (x - region.x0) * tx.step;
      Lanes sums{};
      for (int64_t j = 0; j < ty.count; ++j) {
        const float* line = block + std::clamp<int64_t>(top + j, 0, height - 1) * width * kLanes;
        for (int64_t i = 0; i < tx.count; ++i) {
          const float weight = ty.weights[j] * tx.weights[i];
          sums += weight * load(line + std::clamp<int64_t>(left + i, 0, width - 1) * kLanes);
        }
      }
      const float opacity = sums[kChannels];
      if (!(opacity > 0)) continue;
      T& sample = plane[y * pitch + x];
      const auto source = static_cast<float>(sample);
      const float value = row[0] * sums[0] + row[1] * sums[1] + row[2] * sums[2] + row[3] * opacity;
      sample = static_cast<T>(std::clamp(source + (value - opacity * source) + 0.5F, 0.0F, most));
    }
  }
}

template void blend(uint8_t*, int64_t, const Region&, const float*, int64_t, int64_t, const Taps&, const Taps&, const float*,
                    float);
template void blend(uint16_t*, int64_t, const Region&, const float*, int64_t, int64_t, const Taps&, const Taps&, const float*,
                    float);

}  // namespace lipstream
