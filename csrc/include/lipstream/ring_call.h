// One call of the TensorRT plugin KVRingWrite: shapes, types and checks, independent of TensorRT.
//
// Tensors, in order: k_ring, v_ring [1, H, F T, D], heads first; k, v [1, c T, H D], as the linear layers give them;
// k_weight float32 [H D], of K's RMSNorm; slot int64 [1]; cos_t, sin_t float32 [c, temporal pairs], cos_s, sin_s
// [T, spatial pairs]. With a ring in FP8 k and v are bfloat16, and k_scale, v_scale float32 [] or [1] follow.
// Results: the rings, in place.
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
  enum Input : int { kKRing, kVRing, kK, kV, kWeight, kSlot, kCosT, kSinT, kCosS, kSinS, kKScale, kVScale };
  static constexpr std::array<const char*, 12> kInputs{"k_ring", "v_ring", "k",     "v",     "k_weight", "slot",
                                                       "cos_t",  "sin_t",  "cos_s", "sin_s", "k_scale",  "v_scale"};
  static constexpr int kOutputs = 2;  // each shares memory with the input of its index

  static constexpr int inputs(Type ring) { return ring == Type::kE4M3 ? 12 : 10; }

  // Type of an input, given that of the ring.
  static constexpr Type type_of(int input, Type ring) {
    if (input <= kVRing) return ring;
    if (input <= kV) return ring == Type::kE4M3 ? Type::kBFloat16 : ring;
    return input == kSlot ? Type::kInt64 : Type::kFloat;
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
    const auto count = static_cast<size_t>(inputs(type_));
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
    const std::vector<int64_t>& ring = sized(tensors, kKRing, {1, -1, -1, -1});
    sized(tensors, kVRing, ring);
    const int64_t heads = ring[1], rows = ring[2], dim = ring[3];
    if (dim % 2 != 0 || dim > kLargestHeadDim || heads > kMostHeads) {
      fail("there are " + std::to_string(heads) + " heads of " + std::to_string(dim) + ", expected up to " +
           std::to_string(kMostHeads) + " of an even size up to " + std::to_string(kLargestHeadDim));
    }
    sized(tensors, kSlot, {1});
    const std::vector<int64_t>& temporal = sized(tensors, kCosT, {-1, -1}, 0);
    sized(tensors, kSinT, temporal, 0);
    const int64_t frames = temporal[0], pairs = temporal[1];
    if (pairs > dim / 2) {
      fail("there are " + std::to_string(pairs) + " temporal pairs, expected at most " + std::to_string(dim / 2));
    }
    const std::vector<int64_t>& spatial = sized(tensors, kCosS, {-1, dim / 2 - pairs}, 0);
    sized(tensors, kSinS, spatial, 0);
    const int64_t tokens = spatial[0];
    if (frames < 1 || tokens < 1 || frames > kMostFrames || rows % tokens != 0 || rows / tokens < frames) {
      fail("a ring of " + std::to_string(rows) + " rows, a chunk of " + std::to_string(frames) + " frames (cos_t) of " +
           std::to_string(tokens) + " tokens (cos_s), expected a whole number of frames, and at least the chunk's");
    }
    sized(tensors, kWeight, {heads * dim});
    for (const Input input : {kK, kV}) sized(tensors, input, {1, frames * tokens, heads * dim});
    if (type_ == Type::kE4M3) {
      for (const Input input : {kKScale, kVScale}) {
        if (!tensors[input].sizes.empty()) sized(tensors, input, {1});
      }
    }
    slots_ = rows / tokens;
    shape_ = {frames, tokens, heads, dim, pairs};
  }

  Type type() const { return type_; }
  // The chunk's own frames.
  const FrameShape& chunk() const { return shape_; }
  // Frames of the ring, F.
  int64_t slots() const { return slots_; }
  // The largest slot at which the chunk fits.
  int64_t last_slot() const { return slots_ - shape_.frames; }

 private:
  [[noreturn]] static void fail(const std::string& message) { throw std::invalid_argument("KVRingWrite: " + message); }

  static const std::vector<int64_t>& sized(const std::vector<TensorShape>& tensors, int index,
                                           const std::vector<int64_t>& expected, int64_t least = 1) {
    const std::vector<int64_t>& found = tensors[static_cast<size_t>(index)].sizes;
    bool fits = found.size() == expected.size();
    for (size_t i = 0; fits && i < found.size(); ++i) {
      fits = expected[i] < 0 ? found[i] >= least : found[i] == expected[i];
    }
    if (!fits) {
      fail(std::string(kInputs[static_cast<size_t>(index)]) + " is of shape " + text(found) + ", expected " +
           text(expected));
    }
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
