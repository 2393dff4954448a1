// RMSNorm over the last dimension of [T, H, D] (H = 1 for [T, D]), with the residual sum before it and the gradient
// that goes past it. Strides are in elements; the last stride is 1; the weight is fp32 and holds the offset already.
// A row is read twice, the second time from the first-level cache.

#include <cmath>
#include <vector>

#include "elements.h"

namespace {

struct Strides {
    int64_t token, head;
};

template <typename T>
LUTHIER_INLINE void normalise(const T* x, const T* residual, T* summed, const float* weight, T* out, float* rstd,
                              int64_t D, float eps) {
    if (residual != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) summed[i] = from_float<T>(to_float(x[i]) + to_float(residual[i]));
        x = summed;  // what is normalised is the sum as it is kept, rounded: the backward sees the same
    }
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < D; ++i) squares += to_float(x[i]) * to_float(x[i]);
    const float scale = 1.0f / std::sqrt(squares / float(D) + eps);
    *rstd = scale;
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) out[i] = from_float<T>(to_float(x[i]) * scale * weight[i]);
}

template <typename T>
void forward(const T* x, const T* residual, T* summed, const float* weight, T* out, float* rstd, int64_t tokens,
             int64_t heads, int64_t D, Strides sx, Strides sr, Strides ss, Strides so, float eps) {
#pragma omp parallel for schedule(static) if (tokens * heads * D >= PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h)
            normalise(x + t * sx.token + h * sx.head,
                      residual ? residual + t * sr.token + h * sr.head : nullptr,
                      summed ? summed + t * ss.token + h * ss.head : nullptr, weight,
                      out + t * so.token + h * so.head, rstd + t * heads + h, D, eps);
}

// dx = rstd (w g - xhat mean(w g xhat)) + past; adds g xhat to `weight_grad`. `out` may be `grad` or `past`: each
// element is read before it is written.
template <typename T>
LUTHIER_INLINE void differentiate(const T* grad, const T* x, float rstd, const float* weight, const T* past, T* out,
                                  float* weight_grad, int64_t D) {
    float dot = 0.0f;
    if (weight_grad != nullptr) {
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < D; ++i) {
            const float product = to_float(grad[i]) * to_float(x[i]);
            dot += product * weight[i];
            weight_grad[i] += product * rstd;
        }
    } else {
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < D; ++i) dot += to_float(grad[i]) * to_float(x[i]) * weight[i];
    }
    const float along = dot * rstd * rstd / float(D);
    if (past != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < D; ++i)
            out[i] = from_float<T>(rstd * (to_float(grad[i]) * weight[i] - to_float(x[i]) * along) +
                                   to_float(past[i]));
    } else {
#pragma omp simd
        for (int64_t i = 0; i < D; ++i)
            out[i] = from_float<T>(rstd * (to_float(grad[i]) * weight[i] - to_float(x[i]) * along));
    }
}

// The weight's gradient is summed over blocks of tokens first and over the blocks then. The blocks depend on the
// number of tokens alone, so the result is the same bits with any number of threads.
template <typename T>
void backward(const T* grad, const T* x, const float* rstd, const float* weight, const T* past, T* out,
              float* weight_grad, int64_t tokens, int64_t heads, int64_t D, Strides sg, Strides sx, Strides sp,
              Strides so) {
    const int64_t block = tokens / 256 > 64 ? tokens / 256 : 64;
    const int64_t blocks = (tokens + block - 1) / block;
    std::vector<float> partial(weight_grad ? blocks * D : 0, 0.0f);
#pragma omp parallel if (tokens * heads * D >= PARALLEL_ELEMENTS)
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t end = (b + 1) * block < tokens ? (b + 1) * block : tokens;
            for (int64_t t = b * block; t < end; ++t)
                for (int64_t h = 0; h < heads; ++h)
                    differentiate(grad + t * sg.token + h * sg.head, x + t * sx.token + h * sx.head,
                                  rstd[t * heads + h], weight, past ? past + t * sp.token + h * sp.head : nullptr,
                                  out + t * so.token + h * so.head, weight_grad ? partial.data() + b * D : nullptr,
                                  D);
        }
        if (weight_grad != nullptr) {
#pragma omp for schedule(static)
            for (int64_t start = 0; start < D; start += 64) {
                const int64_t end = start + 64 < D ? start + 64 : D;
                for (int64_t i = start; i < end; ++i) weight_grad[i] = 0.0f;
                for (int64_t b = 0; b < blocks; ++b)
#pragma omp simd
                    for (int64_t i = start; i < end; ++i) weight_grad[i] += partial[b * D + i];
            }
        }
    }
}

}  // namespace

#define DEFINE(SUFFIX, T)                                                                                         \
    LUTHIER_EXPORT void rms_norm_forward_##SUFFIX(const T* x, const T* residual, T* summed, const float* weight,  \
                                                  T* out, float* rstd, int64_t tokens, int64_t heads, int64_t D, \
                                                  int64_t x0, int64_t x1, int64_t r0, int64_t r1, int64_t s0,    \
                                                  int64_t s1, int64_t o0, int64_t o1, float eps) {               \
        forward<T>(x, residual, summed, weight, out, rstd, tokens, heads, D, {x0, x1}, {r0, r1}, {s0, s1},       \
                   {o0, o1}, eps);                                                                                \
    }                                                                                                             \
    LUTHIER_EXPORT void rms_norm_backward_##SUFFIX(const T* grad, const T* x, const float* rstd,                  \
                                                   const float* weight, const T* past, T* out,                    \
                                                   float* weight_grad, int64_t tokens, int64_t heads, int64_t D, \
                                                   int64_t g0, int64_t g1, int64_t x0, int64_t x1, int64_t p0,   \
                                                   int64_t p1, int64_t o0, int64_t o1) {                          \
        backward<T>(grad, x, rstd, weight, past, out, weight_grad, tokens, heads, D, {g0, g1}, {x0, x1},         \
                    {p0, p1}, {o0, o1});                                                                          \
    }

DEFINE(f32, float)
DEFINE(bf16, bfloat16)
