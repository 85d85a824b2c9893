// lipstream._native_cuda: the CUDA kernels on device addresses, enqueued on the caller's stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "arguments.h"
#include "lipstream/composite_cuda.h"
#include "lipstream/ring_cuda.h"
#include "lipstream/sampler_cuda.h"

namespace py = pybind11;

namespace lipstream {
namespace {

using Address = uintptr_t;
using RingShape = std::array<int64_t, 4>;  // F, T, H, D

void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no device: clears it, so that later calls do not report it
  return 0;
}

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check_addresses(std::initializer_list<std::pair<const char*, Address>> addresses, size_t alignment) {
  for (const auto& [name, address] : addresses) {
    if (address == 0 || address % alignment != 0) {
      throw py::value_error(std::string(name) + " is " + std::to_string(address) +
                            ", expected a device address, a multiple of " + std::to_string(alignment));
    }
  }
}

// Also checks the limits of the kernels: rows in a grid, heads in its second dimension, angles in shared memory.
void check_ring_shape(const RingShape& ring) {
  constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
  const auto [frames, tokens, heads, dim] = ring;
  const bool fits = frames >= 1 && tokens >= 1 && heads >= 1 && dim >= 1 && frames <= kMostFrames &&
                    frames <= kMostRows / tokens && dim <= kLargestHeadDim && heads <= kMostHeads;
  if (!fits) {
    throw py::value_error("ring_shape is (" + str(frames) + ", " + str(tokens) + ", " + str(heads) + ", " + str(dim) +
                          "), expected [F, T, H, D] from 1 up with F and H < 2^16, F * T < 2^31 and D <= 4096");
  }
}

constexpr const char* kE4M3 = "float8_e4m3";

// Calls kernel(Number{}, Stored{}) for the dtype named: of numbers, and how the ring stores them.
template <typename Kernel>
void dispatch(const std::string& dtype, const Kernel& kernel) {
  if (dtype == "float32") return kernel(float{}, float{});
  if (dtype == "float16") return kernel(__half{}, __half{});
  if (dtype == "bfloat16") return kernel(__nv_bfloat16{}, __nv_bfloat16{});
  if (dtype == kE4M3) return kernel(__nv_bfloat16{}, uint8_t{});
  throw py::value_error("dtype is '" + dtype + "', expected 'float32', 'float16', 'bfloat16' or 'float8_e4m3'");
}

void ring_write(Address k_ring, Address v_ring, Address k, Address v, Address weight, int64_t slot, Address cos_t,
                Address sin_t, Address cos_s, Address sin_s, const RingShape& ring, int64_t frames,
                int64_t temporal_pairs, float eps, const std::string& dtype, Address k_scale, Address v_scale,
                Address stream) {
  check_ring_shape(ring);
  const FrameShape shape{frames, ring[1], ring[2], ring[3], temporal_pairs};
  check_pairs(shape.head_dim, shape.temporal_pairs);
  if (frames < 1) throw py::value_error("frames is " + str(frames) + ", expected 1 or more");
  check_range("slot", slot, frames, ring[0]);
  check_addresses({{"k_weight", weight}}, sizeof(float));
  if (temporal_pairs > 0) check_addresses({{"cos_t", cos_t}, {"sin_t", sin_t}}, sizeof(float));
  if (shape.spatial_pairs() > 0) check_addresses({{"cos_s", cos_s}, {"sin_s", sin_s}}, sizeof(float));
  const bool scaled = dtype == kE4M3;
  if (scaled) check_addresses({{"k_scale", k_scale}, {"v_scale", v_scale}}, sizeof(float));
  dispatch(dtype, [&](auto number, auto stored) {
    using Number = decltype(number);
    using Stored = decltype(stored);
    check_addresses({{"k_ring", k_ring}, {"v_ring", v_ring}}, 2 * sizeof(Stored));
    check_addresses({{"k", k}, {"v", v}}, 2 * sizeof(Number));
    const RopeTables tables{at<float>(cos_t), at<float>(sin_t), at<float>(cos_s), at<float>(sin_s)};
    const cuda::RingScales scales{scaled ? at<const float>(k_scale) : nullptr,
                                  scaled ? at<const float>(v_scale) : nullptr};
    check_cuda(cuda::ring_write(at<Stored>(k_ring), at<Stored>(v_ring), at<const Number>(k), at<const Number>(v),
                                at<const float>(weight), eps, slot, tables, scales, shape, ring[0],
                                at<CUstream_st>(stream)));
  });
}

// The address of one layer, or those of all layers.
using Addresses = std::variant<Address, std::vector<Address>>;

std::vector<Address> all(const Addresses& given) {
  if (const auto* one = std::get_if<Address>(&given)) return {*one};
  return std::get<std::vector<Address>>(given);
}

// Addresses of every layer, all of one length; those that are not used are empty.
std::vector<cuda::RingLayer> layers_of(const Addresses& k_ring, const Addresses* v_ring, const Addresses& sink_base,
                                       size_t alignment) {
  const std::vector<Address> k = all(k_ring), base = all(sink_base);
  const std::vector<Address> v = v_ring ? all(*v_ring) : k;
  if (v.size() != k.size() || base.size() != k.size()) {
    throw py::value_error("the addresses are of " + std::to_string(k.size()) + ", " + std::to_string(v.size()) +
                          " and " + std::to_string(base.size()) + " layers, expected the same number");
  }
  std::vector<cuda::RingLayer> layers;
  for (size_t i = 0; i < k.size(); ++i) {
    check_addresses({{"k_ring", k[i]}, {"v_ring", v[i]}, {"sink_base", base[i]}}, alignment);
    layers.push_back({at<void>(k[i]), at<void>(v[i]), at<void>(base[i])});
  }
  return layers;
}

void check_layout(const std::string& dtype, bool heads_first) {
  if (dtype == kE4M3 && !heads_first) throw py::value_error("heads_first is False, expected True for 'float8_e4m3'");
}

void ring_keep(const Addresses& k_ring, const Addresses& v_ring, const Addresses& sink_base, int64_t slot,
               int64_t rolling, int64_t first, int64_t count, const RingShape& ring, const std::string& dtype,
               bool heads_first, Address stream) {
  check_ring_shape(ring);
  check_pairs(ring[3], 0);
  check_layout(dtype, heads_first);
  check_range("rolling", rolling, 0, ring[0]);
  if (count == 0) return;  // with no frame to keep, `slot` has no meaning
  check_range("slot", slot, count, rolling);
  check_range("first", first, count, ring[0] - rolling);
  dispatch(dtype, [&](auto, auto stored) {
    constexpr size_t kSize = sizeof(stored);
    const std::vector<cuda::RingLayer> layers = layers_of(k_ring, &v_ring, sink_base, 2 * kSize);
    const FrameShape shape{count, ring[1], ring[2], ring[3], 0};
    check_cuda(cuda::ring_keep(layers.data(), layers.size(), kSize, {ring[0], rolling, heads_first}, slot, first, shape,
                               at<CUstream_st>(stream)));
  });
}

void ring_anchor(const Addresses& k_ring, const Addresses& sink_base, int64_t rolling, int64_t count, Address cos,
                 Address sin, const RingShape& ring, int64_t temporal_pairs, const std::string& dtype, bool heads_first,
                 Address stream) {
  check_ring_shape(ring);
  const FrameShape shape{count, ring[1], ring[2], ring[3], temporal_pairs};
  check_pairs(shape.head_dim, shape.temporal_pairs);
  check_layout(dtype, heads_first);
  check_range("rolling", rolling, count, ring[0]);
  if (count == 0) return;
  if (temporal_pairs > 0) check_addresses({{"cos", cos}, {"sin", sin}}, sizeof(float));
  dispatch(dtype, [&](auto, auto stored) {
    using Stored = decltype(stored);
    const std::vector<cuda::RingLayer> layers = layers_of(k_ring, nullptr, sink_base, 2 * sizeof(Stored));
    check_cuda(cuda::ring_anchor<Stored>(layers.data(), layers.size(), {ring[0], rolling, heads_first},
                                         at<const float>(cos), at<const float>(sin), shape, at<CUstream_st>(stream)));
  });
}

constexpr int64_t kMostElements = std::numeric_limits<int32_t>::max();

void assemble_condition(Address condition, Address first, Address mask, Address masked, Address sequence,
                        const RingShape& latent, Address stream) {
  const auto [channels, frames, height, width] = latent;
  const bool fits = channels >= 1 && frames >= 1 && height >= 1 && width >= 1 && height <= kMostElements / width &&
                    frames <= kMostElements / (height * width) && channels <= kMostElements / 4 / (frames * height * width);
  if (!fits) throw py::value_error("latent_shape is not [C, c, h, w] from 1 up with fewer than 2^29 elements");
  check_addresses({{"condition", condition}, {"first", first}, {"mask", mask}, {"masked", masked}, {"sequence", sequence}},
                  sizeof(float));
  const LatentShape shape{channels, frames, height * width};
  check_cuda(cuda::assemble_condition(at<float>(condition), at<const float>(first), at<const float>(mask),
                                      at<const float>(masked), at<const float>(sequence), shape, at<CUstream_st>(stream)));
}

void advance(Address next, Address clean, Address x, Address velocity, Address noise, double t, double next_t,
             int64_t count, Address stream) {
  if (count < 0 || count > kMostElements) throw py::value_error("count is " + str(count) + ", expected 0 to 2^31 - 1");
  if (count == 0) return;
  check_addresses({{"clean", clean}, {"x", x}, {"velocity", velocity}}, sizeof(float));
  if (noise != 0) check_addresses({{"next", next}, {"noise", noise}}, sizeof(float));
  check_cuda(cuda::advance(at<float>(next), at<float>(clean), at<const float>(x), at<const float>(velocity),
                           at<const float>(noise), t, next_t, count, at<CUstream_st>(stream)));
}

using PictureShape = std::array<int64_t, 3>;  // n, H, W

// Pixels of each picture.
int64_t check_pictures(const PictureShape& shape, Address planes, Address bytes) {
  constexpr int64_t kMostPictures = std::numeric_limits<uint16_t>::max();  // in the grid's second dimension
  const auto [count, height, width] = shape;
  const bool fits = count >= 1 && height >= 1 && width >= 1 && count <= kMostPictures && height <= kMostElements / width &&
                    height * width <= kMostElements / 3 / count;
  if (!fits) {
    throw py::value_error("picture_shape is (" + str(count) + ", " + str(height) + ", " + str(width) +
                          "), expected [n, H, W] from 1 up with n < 2^16 and 3 * n * H * W < 2^31");
  }
  check_addresses({{"planes", planes}}, sizeof(float));
  check_addresses({{"bytes", bytes}}, 1);
  return height * width;
}

void unpack_pictures(Address planes, Address bytes, const PictureShape& shape, Address stream) {
  const int64_t pixels = check_pictures(shape, planes, bytes);
  check_cuda(cuda::unpack_pictures(at<float>(planes), at<const uint8_t>(bytes), shape[0], pixels, at<CUstream_st>(stream)));
}

void pack_pictures(Address bytes, Address not_finite, Address planes, const PictureShape& shape, Address stream) {
  const int64_t pixels = check_pictures(shape, planes, bytes);
  check_addresses({{"not_finite", not_finite}}, sizeof(int32_t));
  check_cuda(cuda::pack_pictures(at<uint8_t>(bytes), at<int32_t>(not_finite), at<const float>(planes), shape[0], pixels,
                                 at<CUstream_st>(stream)));
}

// Addresses of compositing: float32, float32 in whole groups of four, or bytes.
void check_composite(std::initializer_list<std::pair<const char*, Address>> floats,
                     std::initializer_list<std::pair<const char*, Address>> fours,
                     std::initializer_list<std::pair<const char*, Address>> bytes) {
  check_addresses(floats, sizeof(float));
  check_addresses(fours, 4 * sizeof(float));
  check_addresses(bytes, 1);
}

void check_size(const char* name, int64_t found, int64_t least, int64_t most) {
  if (found < least || found > most) {
    throw py::value_error(std::string(name) + " is " + str(found) + ", expected " + str(least) + " to " + str(most));
  }
}

void check_area(const char* name, const std::array<int64_t, 2>& shape) {
  if (shape[0] < 1 || shape[1] < 1 || shape[0] > kMostElements / shape[1] / 4) {
    throw py::value_error(std::string(name) + " is (" + str(shape[0]) + ", " + str(shape[1]) +
                          "), expected [h, w] from 1 up with 4 * h * w < 2^31");
  }
}

Affine affine(const char* name, const std::array<double, 6>& values) {
  Affine map{};
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] > -1e9 && values[i] < 1e9)) throw py::value_error(std::string(name) + " holds " + std::to_string(values[i]));
    map.m[i] = values[i];
  }
  return map;
}

// Of the generated picture and the grid over it.
void check_grid(int64_t size, int64_t cells) {
  check_size("size", size, 1, 1 << 14);
  check_size("cells", cells, 1, std::min(cuda::kMostCells, size));
}

void colour_offset(Address offset, Address generated, Address wanted, Address trusted, int64_t size, int64_t cells,
                   Address stream) {
  check_composite({{"offset", offset}, {"wanted", wanted}, {"trusted", trusted}}, {}, {{"generated", generated}});
  check_grid(size, cells);
  check_cuda(cuda::colour_offset(at<float>(offset), at<const uint8_t>(generated), size, at<const float>(wanted),
                                 at<const float>(trusted), cells, at<CUstream_st>(stream)));
}

void corrected_part(Address part, Address generated, Address offset, int64_t size, int64_t cells,
                    const std::array<int64_t, 4>& shown, int64_t block, int64_t pad, Address stream) {
  check_composite({{"offset", offset}}, {{"part", part}}, {{"generated", generated}});
  check_grid(size, cells);
  const auto [x0, y0, x1, y1] = shown;
  if (x0 < 0 || y0 < 0 || x0 >= x1 || y0 >= y1 || x1 > size || y1 > size) {
    throw py::value_error("shown is not a part of a picture of " + str(size) + " pixels a side");
  }
  check_size("block", block, 1, size);
  check_size("pad", pad, 0, 1 << 10);
  check_cuda(cuda::corrected_part(at<float>(part), at<const uint8_t>(generated), size, at<const float>(offset), cells,
                                  {{x0, y0, x1, y1}, block, pad}, at<CUstream_st>(stream)));
}

void render_(Address block, Address picture, Address filter_x, Address filter_y, Address alpha,
            const std::array<int64_t, 4>& region, const std::array<int64_t, 2>& picture_shape,
            const std::array<double, 6>& to_picture, const std::array<int64_t, 2>& taps,
            const std::array<int64_t, 2>& alpha_shape, const std::array<double, 6>& to_alpha, Address stream) {
  check_composite({{"filter_x", filter_x}, {"filter_y", filter_y}, {"alpha", alpha}},
                  {{"block", block}, {"picture", picture}}, {});
  const auto [x0, y0, x1, y1] = region;
  check_area("region", {y1 - y0, x1 - x0});
  check_area("picture_shape", picture_shape);
  check_area("alpha_shape", alpha_shape);
  for (const size_t axis : {0, 1}) {
    check_size("taps", taps[axis], 2, picture_shape[1 - axis]);
    if (taps[axis] % 2 != 0) throw py::value_error("taps are " + str(taps[axis]) + ", expected an even number");
  }
  check_cuda(cuda::render(at<float>(block), {x0, y0, x1, y1},
                          {at<const float>(picture), picture_shape[0], picture_shape[1]}, affine("to_picture", to_picture),
                          {at<const float>(filter_x), taps[0]}, {at<const float>(filter_y), taps[1]},
                          {at<const float>(alpha), alpha_shape[0], alpha_shape[1]}, affine("to_alpha", to_alpha),
                          at<CUstream_st>(stream)));
}

void blend_(Address samples, Address block, Address weights_x, Address weights_y, const std::array<int64_t, 2>& shape,
           const std::array<int64_t, 2>& block_shape, const std::array<int64_t, 2>& first,
           const std::array<int64_t, 2>& step, const std::array<int64_t, 2>& taps, const std::array<float, 4>& row, float most,
           const std::string& dtype, Address stream) {
  check_composite({{"weights_x", weights_x}, {"weights_y", weights_y}}, {{"block", block}}, {{"samples", samples}});
  check_area("shape", shape);
  check_area("block_shape", block_shape);
  for (const size_t axis : {0, 1}) check_size("taps", taps[axis], 1, 64);
  const Taps x{first[0], step[0], at<const float>(weights_x), taps[0]};
  const Taps y{first[1], step[1], at<const float>(weights_y), taps[1]};
  const auto run = [&](auto sample) {
    using T = decltype(sample);
    check_addresses({{"samples", samples}}, sizeof(T));
    check_cuda(cuda::blend(at<T>(samples), shape[0], shape[1], at<const float>(block), block_shape[0], block_shape[1], x, y,
                           row.data(), most, at<CUstream_st>(stream)));
  };
  if (dtype == "uint8") return run(uint8_t{});
  if (dtype == "uint16") return run(uint16_t{});
  throw py::value_error("dtype is '" + dtype + "', expected 'uint8' or 'uint16'");
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  using py::arg;
  const auto named = py::kw_only();
  module.doc() = "The K/V ring's CUDA kernels, those between the passes, those that convert pictures, and compositing.";
  module.def("device_count", &device_count);
  module.def("synchronize", [](Address stream) { check_cuda(cudaStreamSynchronize(at<CUstream_st>(stream))); },
             arg("stream") = Address{0}, py::call_guard<py::gil_scoped_release>());
  module.def("ring_write", &ring_write, arg("k_ring"), arg("v_ring"), arg("k"), arg("v"), arg("k_weight"), arg("slot"),
             arg("cos_t"), arg("sin_t"), arg("cos_s"), arg("sin_s"), named, arg("ring_shape"), arg("frames"),
             arg("temporal_pairs"), arg("eps"), arg("dtype"), arg("k_scale") = Address{0}, arg("v_scale") = Address{0},
             arg("stream") = Address{0});
  module.def("ring_keep", &ring_keep, arg("k_ring"), arg("v_ring"), arg("sink_base"), arg("slot"), arg("rolling"),
             arg("first"), arg("count"), named, arg("ring_shape"), arg("dtype"), arg("heads_first") = false,
             arg("stream") = Address{0});
  module.def("ring_anchor", &ring_anchor, arg("k_ring"), arg("sink_base"), arg("rolling"), arg("count"), arg("cos"),
             arg("sin"), named, arg("ring_shape"), arg("temporal_pairs"), arg("dtype"), arg("heads_first") = false,
             arg("stream") = Address{0});
  module.def("assemble_condition", &assemble_condition, arg("condition"), arg("first"), arg("mask"), arg("masked"),
             arg("sequence"), named, arg("latent_shape"), arg("stream") = Address{0});
  module.def("advance", &advance, arg("next"), arg("clean"), arg("x"), arg("velocity"), arg("noise"), named, arg("t"),
             arg("next_t"), arg("count"), arg("stream") = Address{0});
  module.def("unpack_pictures", &unpack_pictures, arg("planes"), arg("bytes"), named, arg("picture_shape"),
             arg("stream") = Address{0});
  module.def("colour_offset", &colour_offset, arg("offset"), arg("generated"), arg("wanted"), arg("trusted"), named,
             arg("size"), arg("cells"), arg("stream") = Address{0});
  module.def("corrected_part", &corrected_part, arg("part"), arg("generated"), arg("offset"), named, arg("size"),
             arg("cells"), arg("shown"), arg("block"), arg("pad"), arg("stream") = Address{0});
  module.def("render", &render_, arg("block"), arg("picture"), arg("filter_x"), arg("filter_y"), arg("alpha"), named,
             arg("region"), arg("picture_shape"), arg("to_picture"), arg("taps"), arg("alpha_shape"), arg("to_alpha"),
             arg("stream") = Address{0});
  module.def("blend", &blend_, arg("samples"), arg("block"), arg("weights_x"), arg("weights_y"), named, arg("shape"),
             arg("block_shape"), arg("first"), arg("step"), arg("taps"), arg("row"), arg("most"), arg("dtype"),
             arg("stream") = Address{0});
  module.def("pack_pictures", &pack_pictures, arg("bytes"), arg("not_finite"), arg("planes"), named, arg("picture_shape"),
             arg("stream") = Address{0});
}

}  // namespace lipstream
