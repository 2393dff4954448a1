// Vectors of floats as the compiler knows them: as wide as this processor's registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "elements.h"

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float float_vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float float_quad __attribute__((vector_size(16)));

// Keeps a value in a register. Without it the compiler reads a factor from memory once for each product that it is
// in: more loads than the processor has ports for.
#if defined(__x86_64__)
#define IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__)
#define IN_REGISTER(value) __asm__("" : "+w"(value))
#else
#define IN_REGISTER(value)
#endif

LUTHIER_INLINE float_vector load(const float* from) {
    float_vector value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

LUTHIER_INLINE float_vector load(const bfloat16* from) {
    float lanes[LANES];
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = to_float(from[lane]);
    return load(lanes);
}

// The first `count` lanes from memory, the others 0.
LUTHIER_INLINE float_vector load_some(const float* from, int64_t count) {
    float lanes[LANES] = {};
    for (int64_t lane = 0; lane < count; lane++) lanes[lane] = from[lane];
    return load(lanes);
}

LUTHIER_INLINE void store(float* to, float_vector value) { std::memcpy(to, &value, sizeof(value)); }

LUTHIER_INLINE float_quad quad_of(const float_vector& value, int part) {
    float_quad quad;
    std::memcpy(&quad, reinterpret_cast<const float*>(&value) + 4 * part, sizeof(quad));
    return quad;
}

// A vector's quads summed.
LUTHIER_INLINE float_quad folded(float_vector value) {
    float_quad sum = quad_of(value, 0);
    for (int part = 1; part < LANES / 4; part++) sum += quad_of(value, part);
    return sum;
}

// The sums across lanes of four vectors.
LUTHIER_INLINE float_quad lane_sums(float_vector a, float_vector b, float_vector c, float_vector d) {
    float_quad p = folded(a), q = folded(b), r = folded(c), s = folded(d);
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // has no __builtin_shufflevector; the same sums
    return float_quad{(p[0] + p[2]) + (p[1] + p[3]), (q[0] + q[2]) + (q[1] + q[3]),
                      (r[0] + r[2]) + (r[1] + r[3]), (s[0] + s[2]) + (s[1] + s[3])};
#else
    float_quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    float_quad rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
    return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
#endif
}
