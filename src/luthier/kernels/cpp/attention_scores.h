// What a chunk of queries sees of a tile of keys, the products that follow this shape, and the tiles at hand.
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>

#include "attention_plan.h"

namespace attention {

struct Range {
    int64_t low, high;
    bool empty() const { return high <= low; }
};

// A chunk of queries against one tile of keys.
struct View {
    int64_t group, rows, blocks, count;  // rows in use; blocks of ROWS rows; keys in the tile
    int64_t ahead;                       // position of the first query minus that of the first key
    int64_t window, tokens;

    View(const Call& call, const Chunk& chunk, const Tile& tile)
        : group(call.group()), rows(chunk.count * call.group()), blocks(round_up(rows, ROWS) / ROWS),
          count(tile.count), ahead(chunk.position - tile.position), window(call.window), tokens(chunk.count) {}

    // Keys that the tokens from `first` to `last` see, all of them together.
    Range between(int64_t first, int64_t last) const {
        const int64_t high = std::min(count, ahead + last + 1);
        return {std::max<int64_t>(0, ahead + first - window + 1), high};
    }
    Range of_row(int64_t row) const { return between(row / group, row / group); }
    Range of_block(int64_t block) const {
        const int64_t last = std::min((block * ROWS + ROWS - 1) / group, tokens - 1);
        return between(block * ROWS / group, last);
    }
    // The same in whole panels.
    Range panels(int64_t block) const {
        const Range seen = of_block(block);
        if (seen.empty()) return {0, 0};
        return {seen.low / PANEL * PANEL, round_up(seen.high, PANEL)};
    }
    // Rows that see any key from `first` to `last`.
    Range rows_that_see(int64_t first, int64_t last) const {
        const int64_t from = std::max<int64_t>(0, first - ahead);
        const int64_t stop = std::min(tokens, last - ahead + window);
        return {from * group, stop * group};
    }
    bool empty() const { return between(0, tokens - 1).empty(); }
};

// scores[rows, keys] = left right over `depth`, where something is seen.
LUTHIER_INLINE void product_of_scores(const View& view, int64_t depth, const float* left, int64_t ld_left,
                                      const float* right, int64_t ld_right, float* scores, int64_t ld) {
    for (int64_t c = 0; c < round_up(view.count, PANEL); c += PANEL)
        for (int64_t block = 0; block < view.blocks; ++block) {
            const Range seen = view.panels(block);
            if (c < seen.low || c >= seen.high) continue;
            const int64_t row = block * ROWS;
            micro<false, false>(depth, left + row * ld_left, ld_left, right + c, ld_right, scores + row * ld + c, ld);
        }
}

// to[rows, size] += weights[rows, keys] keys[keys, size].
LUTHIER_INLINE void add_to_rows(const View& view, const float* weights, int64_t ld_weights, const float* keys,
                                int64_t ld, int64_t size, float* to, int64_t ld_to) {
    for (int64_t d = 0; d < size; d += PANEL)
        for (int64_t block = 0; block < view.blocks; ++block) {
            const Range seen = view.of_block(block);
            if (seen.empty()) continue;
            const int64_t row = block * ROWS;
            micro<false, true>(seen.high - seen.low, weights + row * ld_weights + seen.low, ld_weights,
                               keys + seen.low * ld + d, ld, to + row * ld_to + d, ld_to);
        }
}

// to[keys, size] += weights[rows, keys]^T rows[rows, size].
LUTHIER_INLINE void add_to_keys(const View& view, const float* weights, int64_t ld_weights, const float* rows,
                                int64_t ld, int64_t size, float* to, int64_t ld_to) {
    for (int64_t d = 0; d < size; d += PANEL)
        for (int64_t key = 0; key < view.count; key += ROWS) {
            const Range seen = view.rows_that_see(key, std::min<int64_t>(key + ROWS, view.count) - 1);
            if (seen.empty()) continue;
            micro<true, true>(seen.high - seen.low, weights + seen.low * ld_weights + key, ld_weights,
                              rows + seen.low * ld + d, ld, to + key * ld_to + d, ld_to);
        }
}

// Stacks the query heads of one key/value head: row = token * group + head.
LUTHIER_INLINE void load_rows(const Call& call, const Chunk& chunk, const Heads& from, int64_t kv_head, float scale,
                              float* to, int64_t ld) {
    const int64_t group = call.group(), padded = round_up(from.size, PANEL);
    for (int64_t row = 0; row < chunk.count * group; ++row)
        from.load(chunk.token + row / group, kv_head * group + row % group, scale, to + row * ld, padded);
    for (int64_t row = chunk.count * group; row < round_up(chunk.count * group, ROWS); ++row)
        std::fill_n(to + row * ld, padded, 0.0f);
}

// Where the scores of a row are, as the softmax of the model sees them: soft-capped if asked for.
LUTHIER_INLINE float capped(float score, float softcap) { return softcap * hyperbolic_tangent(score / softcap); }

// e^x where x is at most about 0, as a score is below its maximum or log-sum-exp; nan at nan, and exactly 0 where it
// would be subnormal, since such numbers slow multiplications down on some processors. The polynomial is that of
// `exponential`; with the exponent's bias in the shift, the lowest bits are those of 2^n.
LUTHIER_INLINE float weight_of(float x) {
    const float shift = 12582912.0f + 127.0f;
    const float near = x < -87.0f ? -87.0f : x;
    const float shifted = near * 1.44269504f + shift;
    const float whole = shifted - shift;
    float r = near - whole * 0.693145752f;
    r = r - whole * 1.42860677e-6f;
    float q = 1.3814596e-3f;
    q = q * r + 8.3687175e-3f;
    q = q * r + 4.1668389e-2f;
    q = q * r + 1.6666521e-1f;
    q = q * r + 4.9999994e-1f;
    const float p = q * r * r + r + 1.0f;
    const float weight = p * bit_cast<float>(bit_cast<uint32_t>(shifted) << 23);
    return x < -87.0f ? 0.0f : weight;
}

// Uninitialised floats, aligned to cache lines.
class Memory {
  public:
    explicit Memory(int64_t floats) {
        if (floats > 0 && posix_memalign(&found_, 64, size_t(floats) * sizeof(float)) != 0) std::abort();
    }
    ~Memory() { std::free(found_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    float* get() const { return static_cast<float*>(found_); }

  private:
    void* found_ = nullptr;
};

// The next piece of memory, in whole cache lines.
LUTHIER_INLINE float* take(float*& memory, int64_t floats) {
    float* piece = memory;
    memory += round_up(floats, LINE);
    return piece;
}

inline int thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Tiles of one thread that were unpacked lately: all but very long documents are unpacked once for all their chunks.
template <typename Content>
struct TileCache {
    static constexpr int64_t MOST = 48;  // some megabytes, which fit in the last-level cache
    std::vector<Content> slots;
    std::vector<int64_t> held_tile, held_head;

    static int64_t num_slots(const Plan& plan) { return std::max<int64_t>(1, std::min(MOST, plan.num_tiles)); }

    explicit TileCache(const Plan& plan)
        : slots(num_slots(plan)), held_tile(num_slots(plan), -1), held_head(num_slots(plan), -1) {}

    template <typename Unpack>
    const Content& get(const Tile& tile, int64_t kv_head, Unpack unpack) {
        const int64_t slot = tile.id % int64_t(slots.size());
        if (held_tile[slot] != tile.id || held_head[slot] != kv_head) {
            unpack(slots[slot]);
            held_tile[slot] = tile.id;
            held_head[slot] = kv_head;
        }
        return slots[slot];
    }
};

}  // namespace attention
