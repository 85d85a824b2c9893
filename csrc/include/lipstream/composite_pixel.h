// The arithmetic of one pixel of compositing, the same bits on CPU and GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "lipstream/composite.h"
#include "lipstream/ring.h"

namespace lipstream {

struct Place {
  double x, y;
};

LIPSTREAM_HD inline Place apply(const Affine& map, int64_t x, int64_t y) {
  const auto px = static_cast<double>(x), py = static_cast<double>(y);
  return {map.m[0] * px + map.m[1] * py + map.m[2], map.m[3] * px + map.m[4] * py + map.m[5]};
}

template <typename T>
LIPSTREAM_HD inline T limited(T value, T low, T high) {
  return value < low ? low : high < value ? high : value;
}

// The largest whole number up to `value`. (std::floor is a function call where the target CPUs may lack the instruction.)
LIPSTREAM_HD inline int64_t whole(double value) {
  const auto nearest = static_cast<int64_t>(value);
  return static_cast<double>(nearest) > value ? nearest - 1 : nearest;
}

// One channel, linear, 0 around it.
LIPSTREAM_HD inline float sample_alpha(const Samples& alpha, Place place) {
  const int64_t x = whole(place.x), y = whole(place.y);
  const auto fx = static_cast<float>(place.x - static_cast<double>(x));
  const auto fy = static_cast<float>(place.y - static_cast<double>(y));
  if (x < -1 || y < -1 || x >= alpha.width || y >= alpha.height) return 0.0F;
  const bool left = x >= 0, right = x + 1 < alpha.width, top = y >= 0, bottom = y + 1 < alpha.height;
  const float* const row = alpha.data + y * alpha.width + x;
  const float* const next = row + alpha.width;
  const float upper = (top && left ? row[0] : 0.0F) * (1 - fx) + (top && right ? row[1] : 0.0F) * fx;
  const float lower = (bottom && left ? next[0] : 0.0F) * (1 - fx) + (bottom && right ? next[1] : 0.0F) * fx;
  return upper * (1 - fy) + lower * fy;
}

// Four floats: a vector register of the CPU.
constexpr int64_t kLanes = 4;
#if defined(__GNUC__) && !defined(__CUDACC__)
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
#else
struct Lanes {
  float x[kLanes];
  LIPSTREAM_HD Lanes& operator+=(const Lanes& other) {
    for (int64_t c = 0; c < kLanes; ++c) x[c] += other.x[c];
    return *this;
  }
  LIPSTREAM_HD float operator[](int64_t c) const { return x[c]; }
};
LIPSTREAM_HD inline Lanes operator*(float weight, Lanes lanes) {
  for (int64_t c = 0; c < kLanes; ++c) lanes.x[c] *= weight;
  return lanes;
}
LIPSTREAM_HD inline Lanes operator*(Lanes lanes, const Lanes& other) {
  for (int64_t c = 0; c < kLanes; ++c) lanes.x[c] *= other.x[c];
  return lanes;
}
#endif

// On the device `four` is aligned to all of it.
LIPSTREAM_HD inline Lanes load(const float* four) {
#if defined(__CUDA_ARCH__)
  const float4 found = *reinterpret_cast<const float4*>(four);
  return {{found.x, found.y, found.z, found.w}};
#else
  Lanes lanes;
  memcpy(&lanes, four, sizeof(lanes));
  return lanes;
#endif
}

// The taps of a filter at a position along an axis of `size` samples, at least as many as the taps.
struct Taps1d {
  int64_t first;
  const float* weights;
};

LIPSTREAM_HD inline Taps1d taps_at(const Filter& filter, double position, int64_t size) {
  // Counted from one sample before the first, so that it is not negative and a cast rounds down.
  const auto phase = static_cast<int64_t>((limited(position, -1.0, static_cast<double>(size)) + 1) * kPhases + 0.5);
  const int64_t first = phase / kPhases - filter.taps / 2;
  return {limited<int64_t>(first, 0, size - filter.taps), filter.weights + phase % kPhases * filter.taps};
}

// Red, green, blue and 0 of a picture [h, w, 4].
LIPSTREAM_HD inline Lanes sample_picture(const Samples& picture, Place place, const Filter& fx, const Filter& fy) {
  const Taps1d x = taps_at(fx, place.x, picture.width), y = taps_at(fy, place.y, picture.height);
  const float* row = picture.data + (y.first * picture.width + x.first) * kLanes;
  Lanes sums{};
  for (int64_t i = 0; i < fy.taps; ++i, row += picture.width * kLanes) {
    Lanes line{};
    for (int64_t j = 0; j < fx.taps; ++j) line += x.weights[j] * load(row + j * kLanes);
    sums += y.weights[i] * line;
  }
  return sums;
}

// A pixel of `render`'s block.
LIPSTREAM_HD inline void render_pixel(float* pixel, int64_t x, int64_t y, float strength, const Samples& picture,
                                      const Affine& to_picture, const Filter& fx, const Filter& fy, const Samples& alpha,
                                      const Affine& to_alpha) {
  constexpr int64_t kColours = kLanes - 1;
  const float opacity = strength * sample_alpha(alpha, apply(to_alpha, x, y));
  if (!(opacity > 0)) {
    for (int64_t c = 0; c < kLanes; ++c) pixel[c] = 0.0F;
    return;
  }
  const Lanes colour = sample_picture(picture, apply(to_picture, x, y), fx, fy);
  for (int64_t c = 0; c < kColours; ++c) pixel[c] = opacity * limited(colour[c], 0.0F, 1.0F);
  pixel[kColours] = opacity;
}

// Sample (x, y) of a plane's region, see `blend`; x and y count from the region's corner.
template <typename T>
LIPSTREAM_HD inline T blend_sample(T sample, int64_t x, int64_t y, const float* block, int64_t height, int64_t width,
                                   const Taps& tx, const Taps& ty, const float* row, float most) {
  const int64_t left = tx.first + x * tx.step, top = ty.first + y * ty.step;
  Lanes sums{};
  for (int64_t j = 0; j < ty.count; ++j) {
    const float* line = block + limited<int64_t>(top + j, 0, height - 1) * width * kLanes;
    for (int64_t i = 0; i < tx.count; ++i) {
      const float weight = ty.weights[j] * tx.weights[i];
      sums += weight * load(line + limited<int64_t>(left + i, 0, width - 1) * kLanes);
    }
  }
  const float opacity = sums[kLanes - 1];
  if (!(opacity > 0)) return sample;
  const auto source = static_cast<float>(sample);
  const float value = row[0] * sums[0] + row[1] * sums[1] + row[2] * sums[2] + row[3] * opacity;
  return static_cast<T>(limited(source + (value - opacity * source) + 0.5F, 0.0F, most));
}

}  // namespace lipstream
