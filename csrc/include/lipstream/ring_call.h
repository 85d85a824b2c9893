// One call of the node KVRingWrite: shapes, types and checks, independent of TensorRT.
//
// Tensors, in order: k_ring, v_ring [F, T, H, D], k, v [c, T, H, D], slot int64 [1], cos_t, sin_t [c, temporal pairs],
// cos_s, sin_s [T, spatial pairs]; with an FP8 ring also k_scales, v_scales float32 [F, T, H], and k, v are bfloat16.
// Results: the rings, in place; with an FP8 ring also the scales, in place, and K and V as numbers, bfloat16 [F, T, H, D].
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "lipstream/ring.h"

namespace lipstream {

enum class Type : int32_t { kFloat, kHalf, kBFloat16, kE4M3, kInt64, kOther };

inline const char* name(Type type) {
  constexpr std::array<const char*, 6> kNames{"float32", "float16", "bfloat16", "float8 (E4M3)", "int64", "another type"};
  return kNames[static_cast<size_t>(type)];
}

struct TensorShape {
  Type type;
  std::vector<int64_t> sizes;
};

class RingCall {
 public:
  static constexpr std::array<const char*, 11> kInputs{"k_ring", "v_ring", "k",     "v",        "slot",    "cos_t",
                                                       "sin_t",  "cos_s",  "sin_s", "k_scales", "v_scales"};
  static constexpr int kScales = 9;  // index of k_scales

  static constexpr int inputs(bool e4m3) { return e4m3 ? 11 : 9; }
  static constexpr int outputs(bool e4m3) { return e4m3 ? 6 : 2; }

  // The input that an output shares memory with, -1 for none.
  static constexpr int aliased(int output) { return output < 2 ? output : output < 4 ? kScales + output - 2 : -1; }

  // Type of a tensor, given that of the ring.
  static constexpr Type type_of(int tensor, Type ring) {
    if (tensor < 2) return ring;
    if (tensor < 4) return ring == Type::kE4M3 ? Type::kBFloat16 : ring;
    return tensor == 4 ? Type::kInt64 : Type::kFloat;
  }

  static constexpr bool holds(Type ring) {
    return ring == Type::kFloat || ring == Type::kHalf || ring == Type::kBFloat16 || ring == Type::kE4M3;
  }

  // Throws std::invalid_argument with what was found and expected.
  explicit RingCall(const std::vector<TensorShape>& tensors) {
    if (tensors.empty() || !holds(tensors[0].type)) {
      fail("k_ring is " + std::string(tensors.empty() ? "missing" : name(tensors[0].type)) +
           ", expected float32, float16, bfloat16 or float8 (E4M3)");
    }
    type_ = tensors[0].type;
    const auto count = static_cast<size_t>(inputs(e4m3()));
    if (tensors.size() != count) {
      fail(std::to_string(tensors.size()) + " inputs, expected " + std::to_string(count) + " with a ring of " +
           name(type_));
    }
    for (size_t i = 0; i < count; ++i) {
      const Type expected = type_of(static_cast<int>(i), type_);
      if (tensors[i].type != expected) {
        fail(std::string(kInputs[i]) + " is " + name(tensors[i].type) + ", expected " + name(expected));
      }
    }
    const std::vector<int64_t>& ring = sized(tensors, 0, {-1, -1, -1, -1});
    const std::vector<int64_t>& k = sized(tensors, 2, {-1, ring[1], ring[2], ring[3]});
    sized(tensors, 1, ring);
    sized(tensors, 3, k);
    sized(tensors, 4, {1});
    const std::vector<int64_t>& temporal = sized(tensors, 5, {k[0], -1}, 0);
    if (ring[3] % 2 != 0) fail("the head size is " + std::to_string(ring[3]) + ", expected an even number");
    if (temporal[1] > ring[3] / 2) {
      fail("there are " + std::to_string(temporal[1]) + " temporal pairs, expected at most " +
           std::to_string(ring[3] / 2));
    }
    sized(tensors, 6, temporal, 0);
    const std::vector<int64_t> spatial{ring[1], ring[3] / 2 - temporal[1]};
    sized(tensors, 7, spatial, 0);
    sized(tensors, 8, spatial, 0);
    if (e4m3()) {
      for (const size_t i : {9, 10}) sized(tensors, i, {ring[0], ring[1], ring[2]});
    }
    if (k[0] > ring[0]) {
      fail("a chunk of " + std::to_string(k[0]) + " frames, expected at most the ring's " + std::to_string(ring[0]));
    }
    slots_ = ring[0];
    shape_ = {k[0], ring[1], ring[2], ring[3], temporal[1]};
  }

  Type type() const { return type_; }
  bool e4m3() const { return type_ == Type::kE4M3; }
  // The chunk's own frames.
  const FrameShape& chunk() const { return shape_; }
  // All frames of the bound ring: those that are attended.
  FrameShape ring() const { return {slots_, shape_.tokens, shape_.heads, shape_.head_dim, shape_.temporal_pairs}; }
  int64_t slots() const { return slots_; }
  // The largest slot at which the chunk fits.
  int64_t last_slot() const { return slots_ - shape_.frames; }

 private:
  [[noreturn]] static void fail(const std::string& message) { throw std::invalid_argument("KVRingWrite: " + message); }

  static const std::vector<int64_t>& sized(const std::vector<TensorShape>& tensors, size_t index,
                                           const std::vector<int64_t>& expected, int64_t least = 1) {
    const std::vector<int64_t>& found = tensors[index].sizes;
    bool fits = found.size() == expected.size();
    for (size_t i = 0; fits && i < found.size(); ++i) {
      fits = expected[i] < 0 ? found[i] >= least : found[i] == expected[i];
    }
    if (!fits) fail(std::string(kInputs[index]) + " is of shape " + text(found) + ", expected " + text(expected));
    return found;
  }

  static std::string text(const std::vector<int64_t>& sizes) {
    std::string result = "[";
    for (const int64_t size : sizes) {
      result += (result.size() > 1 ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
    }
    return result + "]";
  }

  Type type_;
  int64_t slots_;
  FrameShape shape_;
};

}  // namespace lipstream
