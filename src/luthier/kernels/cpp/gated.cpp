// Gated product of an MLP, act(gate) * up on [T, I], and its gradient. Strides are in elements, the last one is 1.
// Every output may be any input: each element is read before it is written.

#include "elements.h"

namespace {

struct Activation {
    float value, slope;
};

struct Silu {
    LUTHIER_INLINE static float value(float x) { return x * sigmoid(x).value; }
    LUTHIER_INLINE static Activation with_slope(float x) {
        const Sigmoid s = sigmoid(x);
        return {x * s.value, s.value + x * s.value * s.complement};
    }
};

// 0.5 x (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3); 0.5 (1 + tanh u) = sigmoid(2 u), which does not cancel.
struct GeluTanh {
    LUTHIER_INLINE static float twice_u(float x) { return 1.59576912f * (x + 0.044715f * x * x * x); }
    LUTHIER_INLINE static float value(float x) { return x * sigmoid(twice_u(x)).value; }
    LUTHIER_INLINE static Activation with_slope(float x) {
        const Sigmoid s = sigmoid(twice_u(x));
        return {x * s.value, s.value + x * s.value * s.complement * (1.59576912f + 0.214064449f * x * x)};
    }
};

struct Gelu {
    LUTHIER_INLINE static float value(float x) { return x * normal_cdf(x); }
    LUTHIER_INLINE static Activation with_slope(float x) {
        const float cdf = normal_cdf(x);
        return {x * cdf, cdf + x * 0.398942280f * exponential_below_one(-0.5f * x * x)};
    }
};

template <typename Kind, typename T>
void forward(const T* gate, const T* up, T* out, int64_t tokens, int64_t I, int64_t g0, int64_t u0, int64_t o0) {
#pragma omp parallel for schedule(static) if (tokens * I >= PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < tokens; ++t) {
        const T *g = gate + t * g0, *u = up + t * u0;
        T* o = out + t * o0;
#pragma omp simd
        for (int64_t i = 0; i < I; ++i) o[i] = from_float<T>(Kind::value(to_float(g[i])) * to_float(u[i]));
    }
}

template <typename Kind, bool KEEP, typename T>
LUTHIER_INLINE void differentiate(const T* grad, const T* g, const T* u, T* dg, T* du, T* product, int64_t I) {
#pragma omp simd
    for (int64_t i = 0; i < I; ++i) {
        const float incoming = to_float(grad[i]), up = to_float(u[i]);
        const Activation a = Kind::with_slope(to_float(g[i]));
        dg[i] = from_float<T>(incoming * up * a.slope);
        du[i] = from_float<T>(incoming * a.value);
        if (KEEP) product[i] = from_float<T>(a.value * up);
    }
}

template <typename Kind, typename T>
void backward(const T* grad, const T* gate, const T* up, T* gate_grad, T* up_grad, T* product, int64_t tokens,
              int64_t I, int64_t d0, int64_t g0, int64_t u0, int64_t gg0, int64_t ug0, int64_t p0) {
#pragma omp parallel for schedule(static) if (tokens * I >= PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < tokens; ++t) {
        const T *d = grad + t * d0, *g = gate + t * g0, *u = up + t * u0;
        T *dg = gate_grad + t * gg0, *du = up_grad + t * ug0;
        if (product != nullptr)
            differentiate<Kind, true>(d, g, u, dg, du, product + t * p0, I);
        else
            differentiate<Kind, false, T>(d, g, u, dg, du, nullptr, I);
    }
}

}  // namespace

#define DEFINE(NAME, KIND, T)                                                                                      \
    LUTHIER_EXPORT void gated_forward_##NAME(const T* gate, const T* up, T* out, int64_t tokens, int64_t I,        \
                                             int64_t g0, int64_t u0, int64_t o0) {                                 \
        forward<KIND, T>(gate, up, out, tokens, I, g0, u0, o0);                                                    \
    }                                                                                                              \
    LUTHIER_EXPORT void gated_backward_##NAME(const T* grad, const T* gate, const T* up, T* gate_grad, T* up_grad, \
                                              T* product, int64_t tokens, int64_t I, int64_t d0, int64_t g0,       \
                                              int64_t u0, int64_t gg0, int64_t ug0, int64_t p0) {                  \
        backward<KIND, T>(grad, gate, up, gate_grad, up_grad, product, tokens, I, d0, g0, u0, gg0, ug0, p0);       \
    }

DEFINE(silu_f32, Silu, float)
DEFINE(silu_bf16, Silu, bfloat16)
DEFINE(gelu_tanh_f32, GeluTanh, float)
DEFINE(gelu_tanh_bf16, GeluTanh, bfloat16)
DEFINE(gelu_f32, Gelu, float)
DEFINE(gelu_bf16, Gelu, bfloat16)
