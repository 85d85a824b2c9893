// The ring on a CPU. Storage is float, Float16 or BFloat16. Arguments are not checked here; the bindings check them.
#pragma once

#include <cstdint>

#include "lipstream/ring.h"
#include "lipstream/rope.h"

namespace lipstream::cpu {

// Writes a chunk, k and v [shape], into the block at `slot` of the rings: K rotated, V unchanged.
// threads = 0 chooses the number by the size; the result does not depend on it.
template <typename Storage>
void ring_write(Storage* k_ring, Storage* v_ring, const Storage* k, const Storage* v, int64_t slot,
                const RopeTables& tables, const FrameShape& shape, int64_t threads);

// Saves shape.frames frames, from `slot` on, before their block is overwritten: K into sink_base at `first`, V into the
// sink slots of v_ring, rolling + first and on.
template <typename Storage>
void ring_keep(const Storage* k_ring, Storage* v_ring, Storage* sink_base, int64_t slot, int64_t rolling,
               int64_t first, const FrameShape& shape);

// Fills the first shape.frames sink slots of k_ring from sink_base, temporal pairs rotated by the angles given,
// cos and sin [temporal_pairs]. Always from sink_base, so rounding does not add up over a stream.
template <typename Storage>
void ring_anchor(Storage* k_ring, const Storage* sink_base, int64_t rolling, const float* cos, const float* sin,
                 const FrameShape& shape, int64_t threads);

}  // namespace lipstream::cpu
