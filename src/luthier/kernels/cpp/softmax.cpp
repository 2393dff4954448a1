// The elementwise part of the head: log-probability of one target per row of logits, and the gradient of the raw
// logits, in place. A row (200 to 600 KB) is swept once for the maximum and the sum, and a second time, from the
// second-level cache, for the gradient.
//
// shaped = cap tanh(scale logit / cap), or scale logit without a cap (cap 0).

#include <cmath>
#include <limits>

#include "elements.h"

namespace {

constexpr int64_t BLOCK = 1024;  // elements whose sum is kept in fp32; blocks are added in double

struct Shape {
    float scale, cap, inverse_cap;
};

template <bool CAPPED>
LUTHIER_INLINE float shaped(float logit, Shape shape) {
    const float scaled = logit * shape.scale;
    return CAPPED ? shape.cap * hyperbolic_tangent(scaled * shape.inverse_cap) : scaled;
}

// The same as one number in a variable of its own: fused into the subtraction that follows, the product would keep more
// digits than those the normaliser was made of, and a sure prediction would not have logp 0.
template <bool CAPPED>
LUTHIER_INLINE float shaped_and_rounded(float logit, Shape shape) {
    const volatile float rounded = shaped<CAPPED>(logit, shape);
    return rounded;
}

// log of the sum of e^shaped over a row: blockwise, relative to the largest value seen so far.
template <bool CAPPED, typename T>
LUTHIER_INLINE float log_normaliser(const T* row, int64_t V, Shape shape) {
    const float lowest = -std::numeric_limits<float>::infinity();
    float largest = lowest;
    double total = 0.0;
    float values[BLOCK];
    for (int64_t start = 0; start < V; start += BLOCK) {
        const int64_t size = start + BLOCK < V ? BLOCK : V - start;
        float top = lowest;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < size; ++i) {
            values[i] = shaped<CAPPED>(to_float(row[start + i]), shape);
            top = values[i] > top ? values[i] : top;
        }
        if (top > largest) {
            total *= std::exp(double(largest) - double(top));
            largest = top;
        }
        const float base = largest == lowest ? 0.0f : largest;  // all -inf so far: -inf - -inf would be nan
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) sum += exponential_below_one(values[i] - base);
        total += sum;
    }
    return float(double(largest) + std::log(total));
}

// row <- coefficient (onehot(target) - softmax), through the shape.
template <bool CAPPED, typename T>
LUTHIER_INLINE void differentiate(T* row, int64_t V, float logz, int64_t target, float coefficient, Shape shape) {
    const float raw = to_float(row[target]);
    const float factor = -coefficient * shape.scale;
#pragma omp simd
    for (int64_t i = 0; i < V; ++i) {
        const float value = shaped<CAPPED>(to_float(row[i]), shape);
        const float slope = CAPPED ? 1.0f - (value * shape.inverse_cap) * (value * shape.inverse_cap) : 1.0f;
        row[i] = from_float<T>(factor * exponential_below_one(value - logz) * slope);
    }
    const float value = shaped_and_rounded<CAPPED>(raw, shape);
    const float slope = CAPPED ? 1.0f - (value * shape.inverse_cap) * (value * shape.inverse_cap) : 1.0f;
    // e^(value - logz) - 1 without cancelling where the target is nearly certain.
    row[target] = from_float<T>(float(double(factor) * std::expm1(double(value) - double(logz)) * slope));
}

template <bool CAPPED, typename T>
void run(T* logits, int64_t stride, const int64_t* target, const float* coefficient, float* logp, float* logz,
         int64_t rows, int64_t V, Shape shape, bool normalise) {
#pragma omp parallel for schedule(static) if (rows * V >= PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; ++r) {
        T* row = logits + r * stride;
        if (normalise) {
            logz[r] = log_normaliser<CAPPED>(row, V, shape);
            logp[r] = shaped_and_rounded<CAPPED>(to_float(row[target[r]]), shape) - logz[r];
        }
        if (coefficient != nullptr) differentiate<CAPPED>(row, V, logz[r], target[r], coefficient[r], shape);
    }
}

}  // namespace

// With `normalise`: writes logp and logz. With `coefficient`: turns the logits into their gradient (reads logz).
#define DEFINE(SUFFIX, T)                                                                                          \
    LUTHIER_EXPORT void softmax_gradient_##SUFFIX(T* logits, int64_t stride, const int64_t* target,                \
                                                  const float* coefficient, float* logp, float* logz, int64_t rows, \
                                                  int64_t V, float scale, float cap, int64_t normalise) {          \
        if (cap > 0.0f)                                                                                            \
            run<true, T>(logits, stride, target, coefficient, logp, logz, rows, V, {scale, cap, 1.0f / cap}, normalise != 0);  \
        else                                                                                                       \
            run<false, T>(logits, stride, target, coefficient, logp, logz, rows, V, {scale, 0.0f, 0.0f}, normalise != 0); \
    }

DEFINE(f32, float)
DEFINE(bf16, bfloat16)
