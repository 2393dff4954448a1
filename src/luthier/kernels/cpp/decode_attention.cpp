// Attention of one new token per sequence over keys and values that lie in blocks.
//
// The cache is [blocks, key heads, BLOCK tokens, head size]; a sequence names its blocks in a row of `tables`. All new
// keys and values are stored first, so that several rows may be new tokens of one sequence. Then one task is a row and
// a key head: it reads each key and value once for all query heads that share them. Scores, softmax and sums are fp32.

#include <vector>

#include "vectors.h"

namespace {

struct Shape {
    int64_t heads, key_heads, size, block, window;
    float scale, softcap;
};

template <typename T>
struct Cache {
    T* keys;
    T* values;
    const int32_t* table;  // of this sequence
    int64_t block_stride, head_offset, block, size;

    LUTHIER_INLINE T* place(T* base, int64_t token) const {
        return base + table[token / block] * block_stride + head_offset + token % block * size;
    }
};

template <typename T>
LUTHIER_INLINE float dot(const float* query, const T* key, int64_t size) {
    float_vector sum = {};
    int64_t d = 0;
    for (; d + LANES <= size; d += LANES) sum += load(query + d) * load(key + d);
    float total = 0.0f;
    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    for (; d < size; d++) total += query[d] * to_float(key[d]);
    return total;
}

// scores[j][t] for the tokens from `first` on, of every query head j of the group.
template <typename T>
void score(const Cache<T>& cache, const float* query, int64_t group, int64_t first, int64_t length, const Shape& shape,
           float* scores) {
    int64_t num = length - first, size = shape.size, token = first;
    for (; token + 4 <= length && size % LANES == 0; token += 4) {
        const T* key[4];
        for (int t = 0; t < 4; t++) key[t] = cache.place(cache.keys, token + t);
        for (int64_t j = 0; j < group; j++) {
            float_vector sum[4] = {};
            for (int64_t d = 0; d < size; d += LANES) {
                float_vector part = load(query + j * size + d);
                IN_REGISTER(part);
                for (int t = 0; t < 4; t++) sum[t] += part * load(key[t] + d);
            }
            float_quad total = lane_sums(sum[0], sum[1], sum[2], sum[3]);
            for (int t = 0; t < 4; t++) scores[j * num + token - first + t] = total[t] * shape.scale;
        }
    }
    for (; token < length; token++) {
        const T* key = cache.place(cache.keys, token);
        for (int64_t j = 0; j < group; j++)
            scores[j * num + token - first] = dot(query + j * size, key, size) * shape.scale;
    }
}

// Scores to weights, in place; returns one over their sum.
float soften(float* scores, int64_t num, float softcap) {
    if (softcap > 0.0f)
        for (int64_t t = 0; t < num; t++) scores[t] = softcap * hyperbolic_tangent(scores[t] / softcap);
    float most = scores[0];
    for (int64_t t = 1; t < num; t++) most = scores[t] > most ? scores[t] : most;
    for (int64_t t = 0; t < num; t++) scores[t] = exponential(scores[t] - most);
    double total = 0.0;
    for (int64_t t = 0; t < num; t++) total += scores[t];
    return float(1.0 / total);
}

constexpr int64_t CHUNK = 4 * LANES;  // features that are summed in registers

// out[d] = factor * sum over t of weights[t] values[t][d]
template <typename T>
void mix(const Cache<T>& cache, const float* weights, int64_t first, int64_t length, float factor, float* out) {
    int64_t size = cache.size, d = 0;
    for (; d + CHUNK <= size; d += CHUNK) {
        float_vector sum[4] = {};
        for (int64_t token = first; token < length;) {
            int64_t stop = (token / cache.block + 1) * cache.block;
            stop = stop < length ? stop : length;
            for (const T* value = cache.place(cache.values, token) + d; token < stop; token++, value += size)
                for (int part = 0; part < 4; part++) sum[part] += weights[token - first] * load(value + part * LANES);
        }
        for (int part = 0; part < 4; part++) store(out + d + part * LANES, sum[part] * factor);
    }
    for (; d < size; d++) {
        float sum = 0.0f;
        for (int64_t token = first; token < length; token++)
            sum += weights[token - first] * to_float(cache.place(cache.values, token)[d]);
        out[d] = sum * factor;
    }
}

template <typename T>
void attend(const float* query, const float* key, const float* value, float* out, T* keys, T* values,
            const int32_t* tables, const int32_t* lengths, int64_t rows, const Shape& shape, int64_t table_stride,
            const int64_t* strides) {
    int64_t group = shape.heads / shape.key_heads, size = shape.size;
    int64_t head_stride = shape.block * size;
    auto blocks_of = [&](int64_t row, int64_t head) -> Cache<T> {
        return {keys, values, tables + row * table_stride, shape.key_heads * head_stride, head * head_stride,
                shape.block, size};
    };
#pragma omp parallel
    {
        std::vector<float> scores;
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t head = 0; head < shape.key_heads; head++) {
                Cache<T> cache = blocks_of(row, head);
                T* new_key = cache.place(keys, lengths[row] - 1);
                T* new_value = cache.place(values, lengths[row] - 1);
                for (int64_t d = 0; d < size; d++) {
                    new_key[d] = from_float<T>(key[row * strides[1] + head * size + d]);
                    new_value[d] = from_float<T>(value[row * strides[2] + head * size + d]);
                }
            }
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t head = 0; head < shape.key_heads; head++) {
                Cache<T> cache = blocks_of(row, head);
                int64_t length = lengths[row];
                int64_t first = shape.window > 0 && length > shape.window ? length - shape.window : 0;
                int64_t num = length - first;
                scores.resize(group * num);
                const float* queries = query + row * strides[0] + head * group * size;
                score(cache, queries, group, first, length, shape, scores.data());
                for (int64_t j = 0; j < group; j++) {
                    float factor = soften(scores.data() + j * num, num, shape.softcap);
                    mix(cache, scores.data() + j * num, first, length, factor,
                        out + row * strides[3] + (head * group + j) * size);
                }
            }
        }
    }
}

}  // namespace

#define DECODE_ATTENTION(T, SUFFIX)                                                                                   \
    LUTHIER_EXPORT void decode_attention_##SUFFIX(                                                                    \
        const float* query, const float* key, const float* value, float* out, T* keys, T* values,                     \
        const int32_t* tables, const int32_t* lengths, int64_t rows, int64_t heads, int64_t key_heads, int64_t size,  \
        int64_t block, int64_t window, int64_t table_stride, int64_t query_stride, int64_t key_stride,                \
        int64_t value_stride, int64_t out_stride, float scale, float softcap) {                                       \
        Shape shape = {heads, key_heads, size, block, window, scale, softcap};                                        \
        int64_t strides[4] = {query_stride, key_stride, value_stride, out_stride};                                    \
        attend(query, key, value, out, keys, values, tables, lengths, rows, shape, table_stride, strides);            \
    }

DECODE_ATTENTION(float, f32)
DECODE_ATTENTION(bfloat16, bf16)
