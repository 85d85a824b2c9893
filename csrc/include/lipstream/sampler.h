// Shape of the latents of one chunk.
#pragma once

#include <cstdint>

#include "lipstream/ring.h"

namespace lipstream {

// Latents are [C, c, h, w]; the condition is [3 C + 1, c, h, w]: the stream's first latent frame, the mask, the chunk's
// latents with the mouth masked, and its sequence latents (`sequence` of the student's config).
struct LatentShape {
  int64_t channels;  // C
  int64_t frames;    // c
  int64_t cells;     // h * w

  LIPSTREAM_HD constexpr int64_t plane() const { return frames * cells; }
  LIPSTREAM_HD constexpr int64_t size() const { return channels * plane(); }
  LIPSTREAM_HD constexpr int64_t condition_size() const { return (3 * channels + 1) * plane(); }
};

}  // namespace lipstream
