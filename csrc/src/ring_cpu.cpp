#include "lipstream/ring_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace lipstream::cpu {
namespace {

constexpr int64_t kElementsPerThread = int64_t{1} << 18;  // below this, starting a thread costs more than it saves
constexpr int64_t kMaxThreads = 256;

int64_t thread_count(int64_t wanted, const FrameShape& shape) {
  const int64_t useful = shape.rows() * shape.row_size() / kElementsPerThread;
  const int64_t present = std::thread::hardware_concurrency();
  const int64_t count = wanted > 0 ? std::min(wanted, kMaxThreads) : std::min(present, useful);
  return std::max<int64_t>(1, std::min(count, shape.rows()));
}

// Runs work(begin, end) over [0, rows) on several threads, including the caller's.
template <typename Work>
void parallel_rows(int64_t rows, int64_t threads, const Work& work) {
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  int64_t begin = 0;
  for (int64_t i = 1; i < threads; ++i) {
    const int64_t end = rows * i / threads;
    try {
      others.emplace_back(work, begin, end);
    } catch (const std::system_error&) {
      break;  // no more threads available: the caller's thread does the rest
    }
    begin = end;
  }
  work(begin, rows);
  for (std::thread& thread : others) thread.join();
}

template <typename Storage>
void rotate_pairs(Storage* __restrict to, const Storage* __restrict from, const float* __restrict cos,
                  const float* __restrict sin, int64_t pairs) {
  for (int64_t j = 0; j < pairs; ++j) {
    float real, imag;
    rotate(load(from[2 * j]), load(from[2 * j + 1]), cos[j], sin[j], real, imag);
    store(to[2 * j], real);
    store(to[2 * j + 1], imag);
  }
}

template <typename Storage>
void copy(Storage* to, const Storage* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(Storage));
}

}  // namespace

template <typename Storage>
void ring_write(Storage* k_ring, Storage* v_ring, const Storage* k, const Storage* v, int64_t slot,
                const RopeTables& tables, const FrameShape& shape, int64_t threads) {
  Storage* const k_block = k_ring + shape.slot_offset(slot);
  Storage* const v_block = v_ring + shape.slot_offset(slot);
  const int64_t turned = 2 * shape.temporal_pairs;
  parallel_rows(shape.rows(), thread_count(threads, shape), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = shape.temporal_offset(row), s = shape.spatial_offset(row);
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t at = shape.row_offset(row) + head * shape.head_dim;
        rotate_pairs(k_block + at, k + at, tables.cos_t + t, tables.sin_t + t, shape.temporal_pairs);
        rotate_pairs(k_block + at + turned, k + at + turned, tables.cos_s + s, tables.sin_s + s, shape.spatial_pairs());
      }
    }
    copy(v_block + shape.row_offset(begin), v + shape.row_offset(begin), shape.row_offset(end - begin));
  });
}

template <typename Storage>
void ring_keep(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slot, int64_t rolling, int64_t first,
               const FrameShape& shape) {
  const int64_t from = shape.slot_offset(slot), count = shape.row_offset(shape.rows());
  copy(sink_base + shape.slot_offset(first), k_ring + from, count);
  copy(v_ring + shape.slot_offset(rolling + first), v_ring + from, count);
}

template <typename Storage>
void ring_anchor(Storage* k_ring, const Storage* sink_base, int64_t rolling, const float* cos, const float* sin,
                 const FrameShape& shape, int64_t threads) {
  Storage* const sink = k_ring + shape.slot_offset(rolling);
  const int64_t turned = 2 * shape.temporal_pairs;
  parallel_rows(shape.rows(), thread_count(threads, shape), [=](int64_t begin, int64_t end) {
    for (int64_t at = shape.row_offset(begin); at < shape.row_offset(end); at += shape.head_dim) {
      rotate_pairs(sink + at, sink_base + at, cos, sin, shape.temporal_pairs);
      copy(sink + at + turned, sink_base + at + turned, 2 * shape.spatial_pairs());
    }
  });
}

#define LIPSTREAM_INSTANTIATE(Storage)                                                                               \
  template void ring_write(Storage*, Storage*, const Storage*, const Storage*, int64_t, const RopeTables&,           \
                           const FrameShape&, int64_t);                                                              \
  template void ring_keep(const Storage*, Storage*, Storage*, int64_t, int64_t, int64_t, const FrameShape&);         \
  template void ring_anchor(Storage*, const Storage*, int64_t, const float*, const float*, const FrameShape&, int64_t);
LIPSTREAM_INSTANTIATE(float)
LIPSTREAM_INSTANTIATE(Float16)
LIPSTREAM_INSTANTIATE(BFloat16)
#undef LIPSTREAM_INSTANTIATE

}  // namespace lipstream::cpu
