// lipstream._native: the ring's arithmetic, and its CPU kernels on NumPy arrays, in place and without copies.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "arguments.h"
#include "lipstream/composite.h"
#include "lipstream/composite_pixel.h"
#include "lipstream/e4m3.h"
#include "lipstream/ring_call.h"
#include "lipstream/ring_cpu.h"

namespace py = pybind11;

namespace lipstream {
namespace {

using Shape = std::vector<int64_t>;
constexpr int64_t kAny = -1;  // in an expected shape

using lipstream::str;

std::string str(const Shape& shape) {
  std::string text = "(";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + (size == kAny ? "any" : str(size));
  return text + ")";
}

std::string str(const py::dtype& dtype) { return py::str(dtype); }

Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

// The object as an array that a kernel can use without a copy.
py::array checked(const char* name, const py::object& object, const Shape& expected) {
  const std::string found = std::string(name) + " is ";
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(found + "a " + Py_TYPE(object.ptr())->tp_name + ", expected a numpy array");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  const Shape shape = shape_of(array);
  bool fits = shape.size() == expected.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = expected[i] == kAny || shape[i] == expected[i];
  if (!fits) throw py::value_error(found + "of shape " + str(shape) + ", expected " + str(expected));
  constexpr int kPlain = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kPlain) != kPlain) {
    throw py::value_error(found + "strided or unaligned, expected C-contiguous and aligned memory");
  }
  return array;
}

py::array writable(const char* name, const py::object& object, const Shape& expected) {
  const py::array array = checked(name, object, expected);
  if (!array.writeable()) throw py::value_error(std::string(name) + " is read-only, expected a writable array");
  return array;
}

py::array floats(const char* name, const py::object& object, const Shape& expected) {
  const py::array array = checked(name, object, expected);
  if (!py::isinstance<py::array_t<float>>(array)) {
    throw py::type_error(std::string(name) + " is " + str(array.dtype()) + ", expected float32");
  }
  return array;
}

// Shape of a K or V ring, [F, T, H, D].
Shape ring_shape(const py::array& ring) {
  const Shape shape = shape_of(ring);
  for (const int64_t size : shape) {
    if (size < 1) throw py::value_error("k_ring is of shape " + str(shape) + ", expected no empty dimension");
  }
  check_pairs(shape[3], 0);
  return shape;
}

// Outputs must not overlap other arguments: kernels read and write in unspecified order.
void check_disjoint(std::initializer_list<py::array> written, const std::vector<py::array>& read) {
  const auto before = [](const py::array& a, const py::array& b) {
    const auto* end = static_cast<const char*>(a.data()) + a.nbytes();
    return std::less_equal<const void*>()(end, b.data());
  };
  const auto check = [&](const py::array& a, const py::array& b) {
    if (a.size() > 0 && b.size() > 0 && !before(a, b) && !before(b, a)) {
      throw py::value_error("an array that is written shares memory with another, expected separate ones");
    }
  };
  for (const py::array* a = written.begin(); a != written.end(); ++a) {
    for (const py::array* b = written.begin(); b != a; ++b) check(*a, *b);
    for (const py::array& b : read) check(*a, b);
  }
}

void check_threads(int64_t threads) {
  if (threads < 0) throw py::value_error("threads is " + str(threads) + ", expected 1 or more, or 0 for automatic");
}

template <typename T>
T* data(const py::array& array) {  // the caller has checked that output arrays are writable
  return static_cast<T*>(const_cast<void*>(array.data()));
}

// Calls kernel(Storage{}) for the dtype that all the arrays share.
template <typename Kernel>
void dispatch(std::initializer_list<py::array> arrays, const Kernel& kernel) {
  const py::dtype dtype = arrays.begin()->dtype();
  for (const py::array& array : arrays) {
    if (!array.dtype().equal(dtype)) {
      throw py::type_error("the arrays are " + str(dtype) + " and " + str(array.dtype()) + ", expected one dtype");
    }
  }
  if (py::isinstance<py::array_t<float>>(*arrays.begin())) return kernel(float{});
  if (py::isinstance<py::array_t<uint16_t>>(*arrays.begin())) return kernel(BFloat16{});
  throw py::type_error("the arrays are " + str(dtype) + ", expected float32, or uint16 that holds bfloat16");
}

RingPosition ring_position(int64_t chunk, int64_t window, int64_t sink, int64_t chunk_frames) {
  const RingGeometry geometry{window, sink, chunk_frames};
  validate(geometry, chunk);
  return geometry.position(chunk);
}

// K and V of a chunk's frames [c, T, H, D] and their rotation tables, checked against the ring [F, T, H, D].
struct NewFrames {
  NewFrames(const Shape& ring, const py::object& k_, const py::object& v_, const py::object& cos_t_,
            const py::object& sin_t_, const py::object& cos_s_, const py::object& sin_s_)
      : k(checked("k", k_, {kAny, ring[1], ring[2], ring[3]})),
        v(checked("v", v_, shape_of(k))),
        cos_t(floats("cos_t", cos_t_, {k.shape(0), kAny})),
        shape{k.shape(0), ring[1], ring[2], ring[3], cos_t.shape(1)} {
    check_pairs(shape.head_dim, shape.temporal_pairs);
    sin_t = floats("sin_t", sin_t_, shape_of(cos_t));
    cos_s = floats("cos_s", cos_s_, {shape.tokens, shape.spatial_pairs()});
    sin_s = floats("sin_s", sin_s_, shape_of(cos_s));
  }
  std::vector<py::array> arrays() const { return {k, v, cos_t, sin_t, cos_s, sin_s}; }
  RopeTables tables() const { return {data<float>(cos_t), data<float>(sin_t), data<float>(cos_s), data<float>(sin_s)}; }

  py::array k, v, cos_t, sin_t, cos_s, sin_s;
  FrameShape shape;
};

void ring_write(const py::object& k_ring_, const py::object& v_ring_, const py::object& k_, const py::object& v_,
                int64_t slot, const py::object& cos_t_, const py::object& sin_t_, const py::object& cos_s_,
                const py::object& sin_s_, int64_t threads) {
  const py::array k_ring = writable("k_ring", k_ring_, {kAny, kAny, kAny, kAny});
  const Shape ring = ring_shape(k_ring);
  const py::array v_ring = writable("v_ring", v_ring_, ring);
  const NewFrames written(ring, k_, v_, cos_t_, sin_t_, cos_s_, sin_s_);
  const FrameShape& shape = written.shape;
  if (shape.frames < 1) {
    throw py::value_error("k is of shape " + str(shape_of(written.k)) + ", expected 1 frame or more");
  }
  check_range("slot", slot, shape.frames, ring[0]);
  check_disjoint({k_ring, v_ring}, written.arrays());
  check_threads(threads);
  dispatch({k_ring, v_ring, written.k, written.v}, [&](auto storage) {
    using T = decltype(storage);
    const RopeTables tables = written.tables();
    const py::gil_scoped_release released;
    cpu::ring_write(data<T>(k_ring), data<T>(v_ring), data<const T>(written.k), data<const T>(written.v), slot, tables,
                    shape, threads);
  });
}

void ring_keep(const py::object& k_ring_, const py::object& v_ring_, const py::object& sink_base_, int64_t slot,
               int64_t rolling, int64_t first, int64_t count) {
  const py::array k_ring = checked("k_ring", k_ring_, {kAny, kAny, kAny, kAny});
  const Shape ring = ring_shape(k_ring);
  const py::array v_ring = writable("v_ring", v_ring_, ring);
  check_range("rolling", rolling, 0, ring[0]);
  const int64_t sink = ring[0] - rolling;
  const py::array sink_base = writable("sink_base", sink_base_, {sink, ring[1], ring[2], ring[3]});
  if (count != 0) {  // with no frame to keep, `slot` has no meaning
    check_range("slot", slot, count, rolling);
    check_range("first", first, count, sink);
  }
  check_disjoint({v_ring, sink_base}, {k_ring});
  dispatch({k_ring, v_ring, sink_base}, [&](auto storage) {
    using T = decltype(storage);
    const FrameShape shape{count, ring[1], ring[2], ring[3], 0};
    const py::gil_scoped_release released;
    cpu::ring_keep(data<const T>(k_ring), data<T>(v_ring), data<T>(sink_base), slot, rolling, first, shape);
  });
}

void ring_anchor(const py::object& k_ring_, const py::object& sink_base_, int64_t rolling, int64_t count,
                 const py::object& cos_, const py::object& sin_, int64_t threads) {
  const py::array k_ring = writable("k_ring", k_ring_, {kAny, kAny, kAny, kAny});
  const Shape ring = ring_shape(k_ring);
  check_range("rolling", rolling, 0, ring[0]);
  const py::array sink_base = checked("sink_base", sink_base_, {ring[0] - rolling, ring[1], ring[2], ring[3]});
  const py::array cos = floats("cos", cos_, {kAny});
  const py::array sin = floats("sin", sin_, shape_of(cos));
  const FrameShape shape{count, ring[1], ring[2], ring[3], cos.shape(0)};
  check_pairs(shape.head_dim, shape.temporal_pairs);
  check_range("rolling", rolling, count, ring[0]);
  check_disjoint({k_ring}, {sink_base, cos, sin});
  check_threads(threads);
  dispatch({k_ring, sink_base}, [&](auto storage) {
    using T = decltype(storage);
    const py::gil_scoped_release released;
    cpu::ring_anchor(data<T>(k_ring), data<const T>(sink_base), rolling, data<const float>(cos),
                     data<const float>(sin), shape, threads);
  });
}

// How the TensorRT plugin interprets the shapes of a call.
py::dict ring_call(const std::vector<std::pair<std::string, Shape>>& tensors) {
  std::vector<TensorShape> shapes;
  for (const auto& [type, sizes] : tensors) {
    Type found = Type::kOther;
    for (const Type known : {Type::kFloat, Type::kHalf, Type::kBFloat16, Type::kE4M3, Type::kInt64}) {
      if (type == name(known)) found = known;
    }
    shapes.push_back({found, sizes});
  }
  const RingCall call(shapes);
  py::dict found;
  found["chunk_frames"] = call.chunk().frames;
  found["temporal_pairs"] = call.chunk().temporal_pairs;
  found["slots"] = call.slots();
  found["last_slot"] = call.last_slot();
  return found;
}

// Float32 samples, [h, w, 4] or [h, w], none of the sizes 0.
Samples samples(const py::array& array, const char* name) {
  for (const int64_t size : shape_of(array)) {
    if (size < 1) throw py::value_error(std::string(name) + " is of shape " + str(shape_of(array)) + ", expected pixels");
  }
  return {data<float>(array), array.shape(0), array.shape(1)};
}

Affine affine(const char* name, const py::object& object) {
  const py::array array = checked(name, object, {2, 3});
  if (!py::isinstance<py::array_t<double>>(array)) {
    throw py::type_error(std::string(name) + " is " + str(array.dtype()) + ", expected float64");
  }
  Affine map{};
  std::copy_n(data<double>(array), 6, map.m);
  for (const double x : map.m) {
    if (!(std::abs(x) < 1e9)) throw py::value_error(std::string(name) + " holds " + std::to_string(x));
  }
  return map;
}

// Weights [kPhases, taps] for an axis of `size` samples.
Filter filter(const py::array& array, const char* name, int64_t multiple, int64_t size) {
  const int64_t taps = array.shape(1);
  if (taps < 2 || taps % multiple != 0) {
    throw py::value_error(std::string(name) + " has " + str(taps) + " taps, expected a multiple of " + str(multiple));
  }
  if (taps > size) throw py::value_error(std::string(name) + " has " + str(taps) + " taps for " + str(size) + " samples");
  return {data<float>(array), taps};
}

void render_(const py::object& block_, const std::array<int64_t, 2>& corner, float strength, const py::object& picture_,
             const py::object& to_picture_, const py::object& filter_x, const py::object& filter_y,
             const py::object& alpha_, const py::object& to_alpha_) {
  const py::array block = writable("block", block_, {kAny, kAny, 4});
  floats("block", block_, {kAny, kAny, 4});
  const auto [x, y] = corner;
  const py::array picture = floats("picture", picture_, {kAny, kAny, 4}), alpha = floats("alpha", alpha_, {kAny, kAny});
  const py::array across = floats("filter_x", filter_x, {kPhases, kAny});
  const py::array down = floats("filter_y", filter_y, {kPhases, kAny});
  check_disjoint({block}, {picture, alpha, across, down});
  const Affine to_picture = affine("to_picture", to_picture_), to_alpha = affine("to_alpha", to_alpha_);
  const Samples colours = samples(picture, "picture"), opacities = samples(alpha, "alpha");
  const Filter fx = filter(across, "filter_x", 2, colours.width), fy = filter(down, "filter_y", 2, colours.height);
  const Region region{x, y, x + block.shape(1), y + block.shape(0)};
  const py::gil_scoped_release released;
  render(data<float>(block), region, strength, colours, to_picture, fx, fy, opacities, to_alpha);
}

void resample_(const py::object& view_, const py::object& plane_, const py::object& to_plane_, const py::object& filter_x,
               const py::object& filter_y) {
  const py::array view = writable("view", view_, {kAny, kAny});
  floats("view", view_, {kAny, kAny});
  const py::array plane = floats("plane", plane_, {kAny, kAny});
  const py::array across = floats("filter_x", filter_x, {kPhases, kAny});
  const py::array down = floats("filter_y", filter_y, {kPhases, kAny});
  check_disjoint({view}, {plane, across, down});
  const Affine to_plane = affine("to_plane", to_plane_);
  const Samples found = samples(plane, "plane");
  const Filter fx = filter(across, "filter_x", kLanes, found.width), fy = filter(down, "filter_y", 2, found.height);
  const py::gil_scoped_release released;
  resample(data<float>(view), view.shape(0), view.shape(1), found, to_plane, fx, fy);
}

void blend_(const py::object& plane_, const std::array<int64_t, 4>& region_, const py::object& block_,
            const std::array<int64_t, 2>& first, const std::array<int64_t, 2>& step, const py::object& weights_x,
            const py::object& weights_y, const std::array<float, 4>& row, float most) {
  if (!py::isinstance<py::array>(plane_)) throw py::type_error("plane is not a numpy array");
  const auto plane = py::reinterpret_borrow<py::array>(plane_);
  const bool wide = py::isinstance<py::array_t<uint16_t>>(plane);
  if (!wide && !py::isinstance<py::array_t<uint8_t>>(plane)) {
    throw py::type_error("plane is " + str(plane.dtype()) + ", expected uint8 or uint16");
  }
  // Rows may be padded: the planes of a decoded frame are.
  if (plane.ndim() != 2 || plane.strides(1) != plane.itemsize() || plane.strides(0) % plane.itemsize() != 0) {
    throw py::value_error("plane is of shape " + str(shape_of(plane)) + ", expected rows of adjacent samples");
  }
  if (!plane.writeable()) throw py::value_error("plane is read-only");
  const auto [x0, y0, x1, y1] = region_;
  if (x0 < 0 || y0 < 0 || x0 > x1 || y0 > y1 || x1 > plane.shape(1) || y1 > plane.shape(0)) {
    throw py::value_error("region is not a part of the plane");
  }
  const py::array block = floats("block", block_, {kAny, kAny, 4});
  if (block.size() == 0) throw py::value_error("block is of shape " + str(shape_of(block)) + ", expected pixels");
  const py::array x = floats("weights_x", weights_x, {kAny}), y = floats("weights_y", weights_y, {kAny});
  const Taps taps_x{first[0], step[0], data<float>(x), x.size()}, taps_y{first[1], step[1], data<float>(y), y.size()};
  const Region region{x0, y0, x1, y1};
  const int64_t pitch = plane.strides(0) / plane.itemsize(), height = block.shape(0), width = block.shape(1);
  const py::gil_scoped_release released;
  if (wide) {
    blend(data<uint16_t>(plane), pitch, region, data<float>(block), height, width, taps_x, taps_y, row.data(), most);
  } else {
    blend(data<uint8_t>(plane), pitch, region, data<float>(block), height, width, taps_x, taps_y, row.data(), most);
  }
}

std::string repr(const RingPosition& p) {
  return "RingPosition(chunk=" + str(p.chunk) + ", slot=" + str(p.slot) + ", valid=" + str(p.valid) +
         ", anchored=" + str(p.anchored) + ", shift=" + str(p.shift) + ", keep_slot=" + str(p.keep_slot) +
         ", keep_first=" + str(p.keep_first) + ", keep_count=" + str(p.keep_count) + ")";
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  using py::arg;
  module.doc() = "The K/V ring: index arithmetic and CPU kernels; and the generated pixels of compositing.";

  py::class_<RingPosition>(module, "RingPosition", "The effect of one chunk on the ring.", py::is_final())
      .def_readonly("chunk", &RingPosition::chunk)
      .def_readonly("slot", &RingPosition::slot)
      .def_readonly("valid", &RingPosition::valid)
      .def_readonly("anchored", &RingPosition::anchored)
      .def_readonly("shift", &RingPosition::shift)
      .def_readonly("keep_slot", &RingPosition::keep_slot)
      .def_readonly("keep_first", &RingPosition::keep_first)
      .def_readonly("keep_count", &RingPosition::keep_count)
      .def("__repr__", &repr);

  module.def("ring_position", &ring_position, arg("chunk"), arg("window"), arg("sink"), arg("chunk_frames") = 3);
  module.def("ring_write", &ring_write, arg("k_ring"), arg("v_ring"), arg("k"), arg("v"), arg("slot"), arg("cos_t"),
             arg("sin_t"), arg("cos_s"), arg("sin_s"), arg("threads") = 0);
  module.def("ring_keep", &ring_keep, arg("k_ring"), arg("v_ring"), arg("sink_base"), arg("slot"), arg("rolling"),
             arg("first"), arg("count"));
  module.def("ring_anchor", &ring_anchor, arg("k_ring"), arg("sink_base"), arg("rolling"), arg("count"), arg("cos"),
             arg("sin"), arg("threads") = 0);
  module.def("ring_call", &ring_call, arg("tensors"));
  module.def("render", &render_, arg("block"), arg("corner"), arg("strength"), arg("picture"), arg("to_picture"),
             arg("filter_x"), arg("filter_y"), arg("alpha"), arg("to_alpha"));
  module.def("resample", &resample_, arg("view"), arg("plane"), arg("to_plane"), arg("filter_x"), arg("filter_y"));
  module.def("blend", &blend_, arg("plane"), arg("region"), arg("block"), arg("first"), arg("step"), arg("weights_x"),
             arg("weights_y"), arg("row"), arg("most"));
  module.def("e4m3", py::vectorize([](float x) { return to_e4m3(x); }), arg("x"));
}

}  // namespace lipstream
