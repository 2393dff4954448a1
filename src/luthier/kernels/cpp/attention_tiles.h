// The small matrix products that attention over segments is made of, on tiles that stay in the second-level cache,
// and the copies that bring strided fp32 or bf16 rows into such tiles.
//
// A product is cut into micro tiles of ROWS x PANEL that live in vector registers. The left operand is read one
// number at a time, the right one a panel of PANEL neighbouring columns at a time, so that every multiplication
// feeds LANES lanes. Leading dimensions are odd multiples of a cache line: powers of two would let the rows of a tile
// push each other out of the first-level cache.
#pragma once

#include <algorithm>

#include "elements.h"

namespace attention {

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 2, ROWS = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, VECTORS = 4, ROWS = 6;
#else
constexpr int LANES = 4, VECTORS = 2, ROWS = 6;
#endif
constexpr int64_t PANEL = LANES * VECTORS;
constexpr int64_t LINE = 16;      // floats in a cache line
constexpr int64_t TILE_KEYS = 96;  // a multiple of ROWS and of PANEL
constexpr int64_t CHUNK_ROWS = 96;

typedef float Vector __attribute__((vector_size(LANES * 4), may_alias));

LUTHIER_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Floats from one row of a tile to the next.
LUTHIER_INLINE int64_t leading(int64_t columns) {
    const int64_t lines = round_up(columns, PANEL > LINE ? PANEL : LINE) / LINE;
    return (lines | 1) * LINE;
}

// C[ROWS, PANEL] = (ADD ? C : 0) + A B over `depth`; A is [ROWS, depth], or [depth, ROWS] if TRANSPOSED.
template <bool TRANSPOSED, bool ADD>
LUTHIER_INLINE void micro(int64_t depth, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                          int64_t ldc) {
    Vector sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            sums[m][v] = ADD ? *(const Vector*)(C + m * ldc + v * LANES) : Vector{};
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) right[v] = *(const Vector*)(B + k * ldb + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m) {
            const float left = TRANSPOSED ? A[k * lda + m] : A[m * lda + k];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[m][v] += left * right[v];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) *(Vector*)(C + m * ldc + v * LANES) = sums[m][v];
}

// A [tokens, heads, size] tensor of either element type; strides in elements, the last one 1.
struct Heads {
    void* data;
    int64_t token_stride, head_stride, size;
    bool bf16;

    // Copies `size` numbers of one token's head, times `scale`, and zeros up to `padded`.
    void load(int64_t token, int64_t head, float scale, float* to, int64_t padded) const {
        const int64_t offset = token * token_stride + head * head_stride;
        if (bf16) {
            const bfloat16* from = (const bfloat16*)data + offset;
#pragma omp simd
            for (int64_t d = 0; d < size; ++d) to[d] = to_float(from[d]) * scale;
        } else {
            const float* from = (const float*)data + offset;
#pragma omp simd
            for (int64_t d = 0; d < size; ++d) to[d] = from[d] * scale;
        }
        for (int64_t d = size; d < padded; ++d) to[d] = 0.0f;
    }

    void store(int64_t token, int64_t head, float scale, const float* from) const {
        const int64_t offset = token * token_stride + head * head_stride;
        if (bf16) {
            bfloat16* to = (bfloat16*)data + offset;
#pragma omp simd
            for (int64_t d = 0; d < size; ++d) to[d] = from_float<bfloat16>(from[d] * scale);
        } else {
            float* to = (float*)data + offset;
#pragma omp simd
            for (int64_t d = 0; d < size; ++d) to[d] = from[d] * scale;
        }
    }
};

// Writes the transpose of a [count, size] tile, with zeros in the columns up to a whole panel.
LUTHIER_INLINE void transpose(const float* from, int64_t ld_from, int64_t count, int64_t size, float* to,
                              int64_t ld_to) {
    for (int64_t c0 = 0; c0 < count; c0 += 8) {
        const int64_t width = std::min<int64_t>(8, count - c0);
        if (width == 8) {
            for (int64_t d = 0; d < size; ++d)
#pragma GCC unroll 8
                for (int c = 0; c < 8; ++c) to[d * ld_to + c0 + c] = from[(c0 + c) * ld_from + d];
        } else {
            for (int64_t d = 0; d < size; ++d)
                for (int64_t c = 0; c < width; ++c) to[d * ld_to + c0 + c] = from[(c0 + c) * ld_from + d];
        }
    }
    const int64_t padded = round_up(count, PANEL);
    if (padded > count)
        for (int64_t d = 0; d < size; ++d)
            for (int64_t c = count; c < padded; ++c) to[d * ld_to + c] = 0.0f;
}

}  // namespace attention
