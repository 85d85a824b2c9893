// Argument checks and errors of both Python modules. Every message has what was found and what was expected.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace lipstream {

inline std::string str(int64_t value) { return std::to_string(value); }

// `count` frames from index `first` on must lie within [0, end).
inline void check_range(const char* name, int64_t first, int64_t count, int64_t end) {
  if (count < 0) throw pybind11::value_error("count is " + str(count) + " frames, expected 0 or more");
  if (first < 0 || count > end || first > end - count) {
    throw pybind11::value_error(std::string(name) + " is " + str(first) + ", expected the " + str(count) +
                                " frames from there on to lie within 0 to " + str(end));
  }
}

inline void check_pairs(int64_t head_dim, int64_t temporal_pairs) {
  if (head_dim < 2 || head_dim % 2 != 0) {
    throw pybind11::value_error("the head size is " + str(head_dim) + ", expected an even number from 2 up");
  }
  if (temporal_pairs < 0 || temporal_pairs > head_dim / 2) {
    throw pybind11::value_error("there are " + str(temporal_pairs) + " temporal pairs, expected 0 to " +
                                str(head_dim / 2) + " (half the head size)");
  }
}

}  // namespace lipstream
