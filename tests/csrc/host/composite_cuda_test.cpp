// Compositing of one frame by the kernels and launchers of the device, run as CPU code: arguments on the command line,
// arrays on standard input, the blended planes on standard output. tests/csrc/test_composite_cuda.py compares them.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../../csrc/src/composite_cuda.cu"

namespace {

template <typename T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (std::fread(values.data(), sizeof(T), values.size(), stdin) != values.size()) std::abort();
  return values;
}

void check(cudaError_t error) {
  if (error != cudaSuccess) std::abort();
}

}  // namespace

int main(int count, char** given) {
  std::vector<int64_t> numbers;
  for (int i = 1; i < count; ++i) numbers.push_back(std::atoll(given[i]));
  auto next = numbers.begin();
  const int64_t size = *next++, cells = *next++;
  const lipstream::cuda::Part shape{{next[0], next[1], next[2], next[3]}, next[4], next[5]};
  const lipstream::Region region{next[6], next[7], next[8], next[9]};
  const int64_t taps_x = next[10], taps_y = next[11], planes = next[12];
  next += 13;
  const auto generated = read<uint8_t>(size * size * 3);
  const auto wanted = read<float>(cells * cells * 3), trusted = read<float>(cells * cells);
  const auto alpha = read<float>(size * size);
  const auto filter_x = read<float>(lipstream::kPhases * taps_x), filter_y = read<float>(lipstream::kPhases * taps_y);
  const auto maps = read<double>(12);
  lipstream::Affine to_picture{}, to_crop{};
  std::copy_n(maps.begin(), 6, to_picture.m);
  std::copy_n(maps.begin() + 6, 6, to_crop.m);

  const int64_t height = region.y1 - region.y0, width = region.x1 - region.x0;
  std::vector<float> offset(static_cast<size_t>(cells * cells * 3));
  std::vector<float> part(static_cast<size_t>(4 * shape.height() * shape.width()));
  std::vector<float> block(static_cast<size_t>(4 * height * width));
  namespace cuda = lipstream::cuda;
  check(cuda::colour_offset(offset.data(), generated.data(), size, wanted.data(), trusted.data(), cells, nullptr));
  check(cuda::corrected_part(part.data(), generated.data(), size, offset.data(), cells, shape, nullptr));
  check(cuda::render(block.data(), region, {part.data(), shape.height(), shape.width()}, to_picture,
                     {filter_x.data(), taps_x}, {filter_y.data(), taps_y}, {alpha.data(), size, size}, to_crop, nullptr));
  std::fwrite(offset.data(), sizeof(float), offset.size(), stdout);
  for (int64_t plane = 0; plane < planes; ++plane, next += 9) {
    const auto weights_x = read<float>(next[6]), weights_y = read<float>(next[7]);
    const auto row = read<float>(5);
    const lipstream::Taps x{next[2], next[4], weights_x.data(), next[6]}, y{next[3], next[5], weights_y.data(), next[7]};
    const auto blend = [&](auto sample) {
      using T = decltype(sample);
      auto samples = read<T>(next[0] * next[1]);
      check(cuda::blend(samples.data(), next[0], next[1], block.data(), height, width, x, y, row.data(), row[4], nullptr));
      std::fwrite(samples.data(), sizeof(T), samples.size(), stdout);
    };
    next[8] == 1 ? blend(uint8_t{}) : blend(uint16_t{});
  }
  return 0;
}
