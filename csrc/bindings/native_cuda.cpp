// lipstream._native_cuda: the CUDA kernels on device addresses, enqueued on the caller's stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "arguments.h"
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

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  using py::arg;
  const auto named = py::kw_only();
  module.doc() = "The K/V ring's CUDA kernels, those between the passes, and those that convert pictures.";
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
  module.def("pack_pictures", &pack_pictures, arg("bytes"), arg("not_finite"), arg("planes"), named, arg("picture_shape"),
             arg("stream") = Address{0});
}

}  // namespace lipstream
