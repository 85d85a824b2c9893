// Rendering for every place of the picture in the frame, under a sanitizer: all values are written, and valid.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../../csrc/src/composite_cpu.cpp"

using lipstream::Affine;
using lipstream::Filter;
using lipstream::kPhases;

int main() {
  std::mt19937 random(0);
  const auto uniform = [&](double low, double high) { return std::uniform_real_distribution<double>(low, high)(random); };
  const auto between = [&](int low, int high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  const auto filled = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = static_cast<float>(uniform(0, 1));
    return values;
  };
  int64_t opaque = 0;
  for (int round = 0; round < 2000; ++round) {
    const int64_t width = between(1, 40), height = between(1, 40);
    const int64_t sizes[] = {between(2, 24), between(2, 24), between(1, 24), between(1, 24)};
    const std::vector<float> picture = filled(sizes[0] * sizes[1] * 4), alpha = filled(sizes[2] * sizes[3]);
    const int64_t taps[] = {2 * between(1, static_cast<int>(sizes[1] / 2)), 2 * between(1, static_cast<int>(sizes[0] / 2))};
    const std::vector<float> across = filled(kPhases * taps[0]), down = filled(kPhases * taps[1]);
    const auto map = [&] {
      const double zoom = std::exp(uniform(-2, 2)), angle = uniform(0, 6.3);
      const double c = zoom * std::cos(angle), s = zoom * std::sin(angle);
      const double x = uniform(0, 40), y = uniform(0, 40);  // this place of the frame lies in the picture
      return Affine{{c, -s, uniform(0, 20) - c * x + s * y, s, c, uniform(0, 20) - s * x - c * y}};
    };
    const int64_t x0 = between(0, static_cast<int>(width)), y0 = between(0, static_cast<int>(height));
    const int64_t x1 = between(static_cast<int>(x0), static_cast<int>(width));
    const int64_t y1 = between(static_cast<int>(y0), static_cast<int>(height));
    std::vector<float> block(static_cast<size_t>((x1 - x0) * (y1 - y0) * 4), -1);
    lipstream::render(block.data(), {x0, y0, x1, y1}, 0.5F, {picture.data(), sizes[0], sizes[1]}, map(),
                      {across.data(), taps[0]}, {down.data(), taps[1]}, {alpha.data(), sizes[2], sizes[3]}, map());
    const std::vector<float> plane = filled(sizes[0] * sizes[1]);
    if (sizes[1] >= 4) {
      const std::vector<float> wide = filled(kPhases * 4);
      std::vector<float> view(static_cast<size_t>(width * height));
      lipstream::resample(view.data(), height, width, {plane.data(), sizes[0], sizes[1]}, map(), {wide.data(), 4},
                          {down.data(), taps[1]});
    }
    for (size_t i = 0; i < block.size(); i += 4) {
      const float opacity = block[i + 3];
      opaque += opacity > 0;
      for (size_t c = 0; c < 3; ++c) {
        if (!(block[i + c] >= 0 && block[i + c] <= opacity && opacity <= 0.5F)) {
          return std::fprintf(stderr, "a colour above its opacity, or not written\n"), 1;
        }
      }
    }
  }
  std::printf("%lld opaque pixels\n", static_cast<long long>(opaque));
  return opaque > 3000 ? 0 : 1;
}
