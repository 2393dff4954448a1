// 4-bit weights decoded into rows of a wider buffer: one pass, half a byte in, one element out.
//
// A block's 16 values are made first, table[code] * absmax in fp32 and rounded once, so what is written is what the
// definition says, to the bit; after that a weight costs one look-up in a line of the first-level cache.

#include "elements.h"

namespace {

template <typename T>
void decode(const uint8_t* codes, const float* absmax, const float* table, T* out, int64_t rows, int64_t width,
            int64_t block, int64_t stride) {
    const int64_t per_row = width / block, half = block / 2;
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t number = 0; number < per_row; ++number) {
            const int64_t index = row * per_row + number;
            T values[16];
            for (int code = 0; code < 16; ++code) values[code] = from_float<T>(table[code] * absmax[index]);
            const uint8_t* from = codes + index * half;
            T* to = out + row * stride + number * block;
            for (int64_t pair = 0; pair < half; ++pair) {
                const unsigned byte = from[pair];
                to[2 * pair] = values[byte >> 4];
                to[2 * pair + 1] = values[byte & 15];
            }
        }
    }
}

}  // namespace

#define DEFINE(NAME, T)                                                                                           \
    LUTHIER_EXPORT void four_bits_##NAME(const uint8_t* codes, const float* absmax, const float* table, T* out,   \
                                         int64_t rows, int64_t width, int64_t block, int64_t stride) {            \
        decode<T>(codes, absmax, table, out, rows, width, block, stride);                                         \
    }

DEFINE(f32, float)
DEFINE(bf16, bfloat16)
