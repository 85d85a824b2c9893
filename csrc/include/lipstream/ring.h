// The K/V ring of one layer: which slots a chunk writes, attends to and evicts.
//
// The CPU kernels, the CUDA kernels and the Python binding share this arithmetic.
//
// K and V are [F, T, H, D] row-major: F = R + S frame slots, T tokens per latent frame, H heads, D head size.
// Slots [0, R) are m = R / c blocks of c = chunk_frames slots that chunks write in turn; slots [R, R + S) are the sink,
// the first S frames of the stream, which move there when their block is overwritten. Since the blocks fill from the
// front and the sink only once all blocks are full, the attended slots are always a prefix.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#define LIPSTREAM_HD __host__ __device__
#else
#define LIPSTREAM_HD
#endif

namespace lipstream {

// The effect of one chunk on the ring.
struct RingPosition {
  int64_t chunk;       // index of the chunk, from 0
  int64_t slot;        // first slot of the block it writes
  int64_t valid;       // frames it attends to: slots [0, valid)
  int64_t anchored;    // sink frames among them: slots [R, R + anchored)
  int64_t shift;       // temporal positions by which the sink is rotated forward, towards this chunk
  int64_t keep_slot;   // first slot to save into the sink before the block is written, -1 if none
  int64_t keep_first;  // index within the sink of the first frame saved
  int64_t keep_count;  // frames saved
};

struct RingGeometry {
  int64_t window;        // latent frames attended once the ring is full, sink included
  int64_t sink;          // S: first frames of the stream, always attended
  int64_t chunk_frames;  // c: latent frames in a chunk

  LIPSTREAM_HD constexpr int64_t rolling() const { return window - sink; }
  LIPSTREAM_HD constexpr int64_t blocks() const { return rolling() / chunk_frames; }
  LIPSTREAM_HD constexpr int64_t last_chunk() const {
    return INT64_MAX / chunk_frames - 1;  // its frame indices still fit an int64
  }

  // Needs a valid geometry and 0 <= chunk <= last_chunk().
  LIPSTREAM_HD constexpr RingPosition position(int64_t chunk) const {
    const int64_t m = blocks(), c = chunk_frames;
    const int64_t slot = c * (chunk % m);
    if (chunk < m) return {chunk, slot, c * (chunk + 1), 0, 0, -1, 0, 0};

    const int64_t evicted = c * (chunk - m);  // stream index of the first frame in the overwritten block
    const int64_t anchored = evicted + c < sink ? evicted + c : sink;
    const int64_t valid = rolling() + anchored;
    // The released model numbers the window 0 .. valid - 1; only differences of positions matter, so counting from
    // the other end (the chunk at its own stream index) is the same with the sink moved forward by the gap.
    const int64_t shift = c * (chunk + 1) - valid;
    if (evicted >= sink) return {chunk, slot, valid, anchored, shift, -1, 0, 0};
    return {chunk, slot, valid, anchored, shift, slot, evicted, anchored - evicted};
  }
};

// Throws std::invalid_argument with what was found and expected.
inline void validate(const RingGeometry& g) {
  const auto fail = [](const std::string& message) { throw std::invalid_argument(message); };
  if (g.chunk_frames < 1) fail("chunk_frames is " + std::to_string(g.chunk_frames) + ", expected 1 or more");
  if (g.sink < 0) fail("sink is " + std::to_string(g.sink) + " frames, expected 0 or more");
  if (g.window <= g.sink || g.rolling() % g.chunk_frames != 0) {
    fail("the rolling part (window " + std::to_string(g.window) + " without sink " + std::to_string(g.sink) +
         ") is not a whole number of chunks, expected one or more times " + std::to_string(g.chunk_frames) + " frames");
  }
}

inline void validate(const RingGeometry& g, int64_t chunk) {
  validate(g);
  if (chunk < 0 || chunk > g.last_chunk()) {
    throw std::invalid_argument("chunk is " + std::to_string(chunk) + ", expected 0 to " +
                                std::to_string(g.last_chunk()));
  }
}

// Limits of the CUDA kernels: dimensions of a grid, and a head's angles in shared memory.
constexpr int64_t kMostFrames = 65535, kMostHeads = 65535, kLargestHeadDim = 4096;

// Shape of some frames of K or V, and offsets in them. A row is one token of one frame: H x D elements.
struct FrameShape {
  int64_t frames;
  int64_t tokens;          // T
  int64_t heads;           // H
  int64_t head_dim;        // D, even: D / 2 complex pairs of adjacent elements
  int64_t temporal_pairs;  // pairs that rotate with time; those after them rotate with height, then width

  LIPSTREAM_HD constexpr int64_t rows() const { return frames * tokens; }
  LIPSTREAM_HD constexpr int64_t row_size() const { return heads * head_dim; }
  LIPSTREAM_HD constexpr int64_t row_offset(int64_t row) const { return row * row_size(); }
  LIPSTREAM_HD constexpr int64_t slot_offset(int64_t slot) const { return slot * tokens * row_size(); }
  LIPSTREAM_HD constexpr int64_t pairs() const { return head_dim / 2; }
  LIPSTREAM_HD constexpr int64_t spatial_pairs() const { return pairs() - temporal_pairs; }
  // Offsets of a row's angles in the temporal table [frames, temporal_pairs] and the spatial one [tokens, spatial_pairs].
  LIPSTREAM_HD constexpr int64_t temporal_offset(int64_t row) const { return row / tokens * temporal_pairs; }
  LIPSTREAM_HD constexpr int64_t spatial_offset(int64_t row) const { return row % tokens * spatial_pairs(); }
};

// The slot that a chunk is written to: a host value, or an address on the device, which a captured graph reads at each
// launch. With a slot from the device that is outside the ring, nothing is written.
struct Slot {
  const int64_t* address;  // null: `value` holds
  int64_t value;
  int64_t last;  // largest that fits

  LIPSTREAM_HD constexpr Slot(int64_t known) : address(nullptr), value(known), last(known) {}
  LIPSTREAM_HD constexpr Slot(const int64_t* place, int64_t largest) : address(place), value(0), last(largest) {}
  LIPSTREAM_HD constexpr int64_t get() const { return address ? *address : value; }
  LIPSTREAM_HD constexpr bool fits(int64_t slot) const { return slot >= 0 && slot <= last; }
};

}  // namespace lipstream
