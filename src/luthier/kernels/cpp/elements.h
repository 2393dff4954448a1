// Element types, exported names and vectorisable functions that the C++ kernels share.
//
// Everything here is written so that a loop around it becomes vector instructions: no branches, no library calls,
// selections instead of ifs. Arithmetic is fp32 whatever the element type is.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#define LUTHIER_EXPORT extern "C" __attribute__((visibility("default")))
#define LUTHIER_INLINE inline __attribute__((always_inline))

// Below so many elements a loop is over before a second thread has woken up.
constexpr int64_t PARALLEL_ELEMENTS = 1 << 15;

struct bfloat16 {
    uint16_t bits;
};

template <typename To, typename From>
LUTHIER_INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

LUTHIER_INLINE float to_float(float value) { return value; }
LUTHIER_INLINE float to_float(bfloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

template <typename T>
LUTHIER_INLINE T from_float(float value);

template <>
LUTHIER_INLINE float from_float<float>(float value) {
    return value;
}

// Round to nearest, ties to even, as torch does; nan stays nan.
template <>
LUTHIER_INLINE bfloat16 from_float<bfloat16>(float value) {
    uint32_t bits = bit_cast<uint32_t>(value);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return {uint16_t(value != value ? 0x7FC0u : rounded)};
}

// 2^n for -126 <= n <= 127.
LUTHIER_INLINE float power_of_two(int32_t n) { return bit_cast<float>(uint32_t(n + 127) << 23); }

// e^r for |r| <= ln 2 / 2: 1 + r + r^2 q(r) with a minimax q (3e-9).
LUTHIER_INLINE float reduced_exponential(float r) {
    float p = 1.3814596e-3f;
    p = p * r + 8.3687175e-3f;
    p = p * r + 4.1668389e-2f;
    p = p * r + 1.6666521e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * r + 1.0f;
    return p * r + 1.0f;
}

// x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
struct Reduced {
    float r;
    int32_t n;
};

LUTHIER_INLINE Reduced reduce(float x) {
    const float shift = 12582912.0f;
    const float shifted = x * 1.44269504f + shift, whole = shifted - shift;
    float r = x - whole * 0.693145752f;  // ln 2 in two parts, the first short enough for an exact product
    r = r - whole * 1.42860677e-6f;
    return {r, bit_cast<int32_t>(shifted) - bit_cast<int32_t>(shift)};
}

// e^x, relative error below 1.2e-7; 0 at -inf, inf above 88.73, nan at nan, subnormal results as well. 2^n comes in
// two factors, because n may reach 128 and -150, which no single factor can hold.
LUTHIER_INLINE float exponential(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const Reduced reduced = reduce(x);
    const int32_t half = reduced.n >> 1;
    return reduced_exponential(reduced.r) * power_of_two(half) * power_of_two(reduced.n - half);
}

// e^x for x <= 1, as after subtracting a maximum: as above, but 0 below -87.3, where the result would be subnormal.
// Half the work, since one factor holds every 2^n left.
LUTHIER_INLINE float exponential_below_one(float x) {
    const float kept = x < -87.3f ? -87.3f : x;
    const Reduced reduced = reduce(kept);
    const float e = reduced_exponential(reduced.r) * power_of_two(reduced.n);
    return x < -87.3f ? 0.0f : e;
}

struct Sigmoid {
    float value, complement;
};

// 1 / (1 + e^-x) and 1 minus it, both with full relative accuracy on both sides.
LUTHIER_INLINE Sigmoid sigmoid(float x) {
    const float e = exponential_below_one(-__builtin_fabsf(x)), r = 1.0f / (1.0f + e);
    return {x < 0.0f ? e * r : r, x < 0.0f ? r : e * r};
}

// Hyperbolic tangent, relative error below 3e-7: an odd minimax polynomial (4e-9) near 0, where (1 - e) / (1 + e)
// with e = e^-2|x| would cancel.
LUTHIER_INLINE float hyperbolic_tangent(float x) {
    const float s = x * x;
    float q = -5.7170370e-3f;
    q = q * s + 2.0650579e-2f;
    q = q * s - 5.3743497e-2f;
    q = q * s + 1.3331491e-1f;
    q = q * s - 3.3333284e-1f;
    const float small = x + x * s * q;
    const float e = exponential_below_one(-2.0f * __builtin_fabsf(x));
    const float large = __builtin_copysignf((1.0f - e) / (1.0f + e), x);
    return s < 0.39f ? small : large;
}

// Distribution function of the standard normal, erfc(-x / sqrt 2) / 2, small tails with full relative accuracy
// (about 1e-6 at -5): erfc(z) = e^(-z^2) t Q(t) with t = 1 / (1 + 0.4 z) and a minimax Q (6e-8).
LUTHIER_INLINE float normal_cdf(float x) {
    float z = __builtin_fabsf(x) * 0.707106781f;
    float t = 1.0f / (1.0f + 0.4f * z);
    float q = 4.1612841e-2f;
    q = q * t - 1.4208183e-1f;
    q = q * t + 8.7657347e-2f;
    q = q * t + 8.3732627e-2f;
    q = q * t + 8.2703419e-2f;
    q = q * t + 1.9212767e-1f;
    q = q * t + 2.0221391e-1f;
    q = q * t + 2.2639702e-1f;
    q = q * t + 2.2563696e-1f;
    float tail = 0.5f * t * q * exponential_below_one(-0.5f * x * x);
    return x > 0.0f ? 1.0f - tail : tail;
}
