// Compositing for every place of the picture in the frame, as a sanitizer wants to see it: nothing outside is touched.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../../csrc/src/composite_cpu.cpp"

using lipstream::Affine;
using lipstream::Samples;

int main() {
  std::mt19937 random(0);
  const auto uniform = [&](double low, double high) { return std::uniform_real_distribution<double>(low, high)(random); };
  const auto between = [&](int low, int high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  const auto filled = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = static_cast<float>(uniform(0, 1));
    return values;
  };
  int64_t changed = 0;
  for (int round = 0; round < 2000; ++round) {
    const int64_t width = between(1, 40), height = between(1, 40);
    std::vector<uint8_t> frame(static_cast<size_t>(width * height * 3), 100);
    const std::vector<uint8_t> before = frame;
    const int64_t sizes[] = {between(1, 24), between(1, 24), between(1, 5), between(1, 5), between(1, 24), between(1, 24)};
    const std::vector<float> picture = filled(sizes[0] * sizes[1] * 3), offset = filled(sizes[2] * sizes[3] * 3);
    const std::vector<float> alpha = filled(sizes[4] * sizes[5]), gate = filled(sizes[4] * sizes[5]);
    const auto map = [&] {
      const double zoom = std::exp(uniform(-2, 2)), angle = uniform(0, 6.3);
      const double c = zoom * std::cos(angle), s = zoom * std::sin(angle);
      const double x = uniform(0, 40), y = uniform(0, 40);  // this place of the frame lies in the picture
      return Affine{{c, -s, uniform(0, 20) - c * x + s * y, s, c, uniform(0, 20) - s * x - c * y}};
    };
    const Samples gates{gate.data(), sizes[4], sizes[5]};
    const int64_t x0 = between(0, static_cast<int>(width)), y0 = between(0, static_cast<int>(height));
    const int64_t x1 = between(static_cast<int>(x0), static_cast<int>(width));
    const int64_t y1 = between(static_cast<int>(y0), static_cast<int>(height));
    lipstream::composite(frame.data(), width, {x0, y0, x1, y1}, {picture.data(), sizes[0], sizes[1]}, map(),
                         {offset.data(), sizes[2], sizes[3]}, map(), {alpha.data(), sizes[4], sizes[5]}, map(),
                         round % 2 ? &gates : nullptr, map());
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const bool inside = x0 <= x && x < x1 && y0 <= y && y < y1;
        for (int64_t c = 0; c < 3; ++c) {
          const auto i = static_cast<size_t>((y * width + x) * 3 + c);
          if (frame[i] == before[i]) continue;
          ++changed;
          if (!inside) return std::fprintf(stderr, "a pixel outside the region was written\n"), 1;
        }
      }
    }
  }
  std::printf("%lld values changed\n", static_cast<long long>(changed));
  return changed > 5000 ? 0 : 1;
}
