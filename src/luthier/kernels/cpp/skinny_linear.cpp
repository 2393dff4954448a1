// A linear layer for few rows: y[M, N] = scale (x W^T + x2 W2^T + bias) (+ y), with W [N, K] and W2 [N, K2] row-major.
//
// Few rows make a general GEMM slow: it spends its time on rearranging W, which it then uses only M times. Here nothing
// is rearranged. Both operands are contiguous along K, so a tile of TILE_N rows of W and TILE_M rows of x is a set of
// dot products: one vector accumulator each, summed across lanes once at the end. A tile of W stays in the first-level
// cache while all rows of x pass, and the next one is fetched meanwhile.
//
// The second pair continues the same sum: a low-rank adapter costs its K2 columns and no second pass over y.
// A row's result does not depend on how many rows there are: the order of its sums is the same.

#include <vector>

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_M = 6;
#else
constexpr int TILE_M = 3;  // 3 x 4 accumulators, 3 vectors of x and 1 of W: all 16 registers
#endif
constexpr int TILE_N = 4;
constexpr int TILES = 2;            // of W that take turns with the same rows of x
constexpr int64_t BLOCK_K = 640;    // so long they are: 20 KiB, and a tile of x, fit into a cache of 32
constexpr int64_t LINE = 64;

typedef float Partial[TILE_N * TILES];

// partial[m][n] += sum over k of x[m][k] w[n][k], for one tile.
template <int M>
LUTHIER_INLINE void tile(const float* x, int64_t x_stride, const float* const* w, int64_t length, Partial* partial,
                         int first) {
    float_vector sum[M][TILE_N] = {};
    int64_t k = 0;
    for (; k + LANES <= length; k += LANES) {
        float_vector in[M];
        for (int m = 0; m < M; m++) {
            in[m] = load(x + m * x_stride + k);
            IN_REGISTER(in[m]);
        }
        for (int n = 0; n < TILE_N; n++) {
            float_vector weight = load(w[n] + k);
            IN_REGISTER(weight);
            for (int m = 0; m < M; m++) sum[m][n] += in[m] * weight;
        }
    }
    if (k < length) {
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            float_vector in = load_some(x + m * x_stride + k, length - k);
#pragma GCC unroll 8
            for (int n = 0; n < TILE_N; n++) sum[m][n] += in * load_some(w[n] + k, length - k);
        }
    }
#pragma GCC unroll 8  // or the sums would be indexed, and so live in memory from the start
    for (int m = 0; m < M; m++) {
        float_quad kept, total = lane_sums(sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
        std::memcpy(&kept, partial[m] + first, sizeof(kept));
        kept += total;
        std::memcpy(partial[m] + first, &kept, sizeof(kept));
    }
}

// What is read next, fetched a few lines at a time.
struct Ahead {
    const char* next;
    int64_t lines;

    LUTHIER_INLINE void fetch(int64_t share) {
        for (; share > 0 && lines > 0; share--, lines--, next += LINE) __builtin_prefetch(next, 0, 2);
    }
};

// Up to M rows of x against all tiles of W, in one go: rows by themselves would load each vector of W once more.
template <int M>
LUTHIER_INLINE void some_rows(int64_t rows, const float* x, int64_t x_stride, const float* const* w, int64_t length,
                              Partial* partial) {
    if constexpr (M > 1) {
        if (rows < M) return some_rows<M - 1>(rows, x, x_stride, w, length, partial);
    }
    for (int n = 0; n < TILES * TILE_N; n += TILE_N) tile<M>(x, x_stride, w + n, length, partial, n);
}

// All rows of x against all tiles of W.
void all_rows(int64_t rows, const float* x, int64_t x_stride, const float* const* w, int64_t length, Partial* partial,
              Ahead ahead) {
    int64_t share = ahead.lines * TILE_M / rows + 1;
    for (int64_t m = 0; m < rows; m += TILE_M) {
        ahead.fetch(share);
        some_rows<TILE_M>(rows - m, x + m * x_stride, x_stride, w, length, partial + m);
    }
}

// One of the two products.
struct Pair {
    const float* x;
    int64_t x_stride;
    const void* w;
    int64_t w_stride;
    int64_t length;
    bool narrow;  // W is bfloat16
};

// Adds the product's part for WIDTH outputs from `first` on; past the last output, that one again.
constexpr int64_t WIDTH = TILE_N * TILES;

template <typename W>
void add_product(int64_t rows, int64_t first, int64_t outputs, const Pair& pair, Partial* partial) {
    alignas(64) float wide[WIDTH][BLOCK_K];
    const W* weight = static_cast<const W*>(pair.w);
    int64_t blocks = (pair.length + BLOCK_K - 1) / BLOCK_K;
    // equal shares rounded up to whole vectors: never above BLOCK_K, which is a whole number of them
    int64_t block = blocks > 1 ? ((pair.length + blocks - 1) / blocks + 15) / 16 * 16 : pair.length;
    for (int64_t k = 0; k < pair.length; k += block) {
        int64_t length = pair.length - k < block ? pair.length - k : block;
        const float* w[WIDTH];
        for (int n = 0; n < WIDTH; n++) {
            const W* row = weight + (first + n < outputs ? first + n : outputs - 1) * pair.w_stride + k;
            if constexpr (sizeof(W) == sizeof(float)) {
                w[n] = row;
            } else {
                for (int64_t j = 0; j < length; j++) wide[n][j] = to_float(row[j]);
                w[n] = wide[n];
            }
        }
        // The next outputs' rows follow these ones; with several blocks each fetches its part of them.
        int64_t bytes = WIDTH * pair.w_stride * int64_t(sizeof(W));
        const char* next = reinterpret_cast<const char*>(weight + (first + WIDTH) * pair.w_stride);
        int64_t lines = first + WIDTH < outputs ? bytes / LINE / blocks : 0;
        Ahead ahead = {next + k / block * lines * LINE, lines};
        all_rows(rows, pair.x + k, pair.x_stride, w, length, partial, ahead);
    }
}

void linear(int64_t rows, int64_t outputs, const Pair* pairs, const float* bias, float* out, int64_t out_stride,
            float scale, bool add) {
    int64_t groups = (outputs + WIDTH - 1) / WIDTH;
#pragma omp parallel if (rows * outputs * pairs[0].length > PARALLEL_ELEMENTS)
    {
        std::vector<float> sums(rows * WIDTH + 16);
        Partial* partial = reinterpret_cast<Partial*>((reinterpret_cast<uintptr_t>(sums.data()) + 63) / 64 * 64);
#pragma omp for schedule(static)
        for (int64_t number = 0; number < groups; number++) {
            int64_t first = number * WIDTH, width = outputs - first < WIDTH ? outputs - first : WIDTH;
            std::memset(partial, 0, sizeof(Partial) * rows);
            for (int p = 0; p < 2; p++) {
                if (pairs[p].narrow)
                    add_product<bfloat16>(rows, first, outputs, pairs[p], partial);
                else
                    add_product<float>(rows, first, outputs, pairs[p], partial);
            }
            for (int64_t m = 0; m < rows; m++) {
                float* place = out + m * out_stride + first;
                for (int64_t n = 0; n < width; n++) {
                    float value = scale * (partial[m][n] + (bias ? bias[first + n] : 0.0f));
                    place[n] = add ? place[n] + value : value;
                }
            }
        }
    }
}

}  // namespace

LUTHIER_EXPORT void skinny_linear(const float* x, const void* w, const float* x2, const void* w2, const float* bias,
                                  float* out, int64_t rows, int64_t outputs, int64_t length, int64_t length2,
                                  int64_t x_stride, int64_t w_stride, int64_t x2_stride, int64_t w2_stride,
                                  int64_t out_stride, int64_t narrow, int64_t narrow2, int64_t add, float scale) {
    if (rows == 0) return;
    Pair pairs[2] = {{x, x_stride, w, w_stride, length, narrow != 0},
                     {x2, x2_stride, w2, w2_stride, length2, narrow2 != 0}};
    linear(rows, outputs, pairs, bias, out, out_stride, scale, add != 0);
}
