// Rotary position embedding on [T, H, D], half-split: feature i of the first half turns with feature i of the second.
// The tables are [T, P], P <= D, in the element type or fp32; features from P on pass through. `out` may be `x`.

#include "elements.h"

namespace {

template <typename T, typename Table>
LUTHIER_INLINE void turn(const T* x, const Table* cosine, const Table* sine, T* out, int64_t half, float sign) {
    if (sign > 0.0f) {
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            const float first = to_float(x[i]), second = to_float(x[i + half]);
            out[i] = from_float<T>(first * to_float(cosine[i]) - second * to_float(sine[i]));
            out[i + half] = from_float<T>(second * to_float(cosine[i + half]) + first * to_float(sine[i + half]));
        }
    } else {  // the transpose of the same 2 x 2 matrices
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            const float first = to_float(x[i]), second = to_float(x[i + half]);
            out[i] = from_float<T>(first * to_float(cosine[i]) + second * to_float(sine[i + half]));
            out[i + half] = from_float<T>(second * to_float(cosine[i + half]) - first * to_float(sine[i]));
        }
    }
}

template <typename T, typename Table>
void rotate(const T* x, const Table* cosine, const Table* sine, T* out, int64_t tokens, int64_t heads, int64_t D,
            int64_t P, int64_t x0, int64_t x1, int64_t cos0, int64_t sin0, int64_t o0, int64_t o1, float sign) {
#pragma omp parallel for schedule(static) if (tokens * heads * D >= PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h) {
            const T* from = x + t * x0 + h * x1;
            T* to = out + t * o0 + h * o1;
            turn(from, cosine + t * cos0, sine + t * sin0, to, P / 2, sign);
            if (from != to)
                for (int64_t i = P; i < D; ++i) to[i] = from[i];
        }
}

}  // namespace

#define DEFINE(NAME, T, TABLE)                                                                                    \
    LUTHIER_EXPORT void rotary_##NAME(const T* x, const TABLE* cosine, const TABLE* sine, T* out, int64_t tokens, \
                                      int64_t heads, int64_t D, int64_t P, int64_t x0, int64_t x1, int64_t cos0, \
                                      int64_t sin0, int64_t o0, int64_t o1, float sign) {                        \
        rotate<T, TABLE>(x, cosine, sine, out, tokens, heads, D, P, x0, x1, cos0, sin0, o0, o1, sign);           \
    }

DEFINE(f32_f32, float, float)
DEFINE(bf16_bf16, bfloat16, bfloat16)
DEFINE(bf16_f32, bfloat16, float)
