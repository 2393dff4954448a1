// Softmax attention over a forest of segments: forward, tile by tile with a running maximum (arXiv:2205.14135).

#include "attention_scores.h"

namespace attention {
namespace {

struct KeyTile {
    float *key_transposed, *value;
};

// One thread's buffers.
struct Bench {
    TileCache<KeyTile> tiles;
    int64_t ld_key, ld_value, ld_scores;
    float *query, *scores, *out, *maximum, *sum, *unpacked;

    static int64_t floats(const Call& call, const Plan& plan) {
        const int64_t key = leading(call.key_size), value = leading(call.value_size), row = leading(TILE_KEYS);
        const int64_t rows = plan.chunk_rows * (key + row + value) + 2 * round_up(plan.chunk_rows, LINE);
        return rows + TILE_KEYS * key + TileCache<KeyTile>::num_slots(plan) * (call.key_size * row + TILE_KEYS * value);
    }

    Bench(const Call& call, const Plan& plan, float* memory)
        : tiles(plan), ld_key(leading(call.key_size)), ld_value(leading(call.value_size)),
          ld_scores(leading(TILE_KEYS)) {
        query = take(memory, plan.chunk_rows * ld_key);
        scores = take(memory, plan.chunk_rows * ld_scores);
        out = take(memory, plan.chunk_rows * ld_value);
        maximum = take(memory, plan.chunk_rows);
        sum = take(memory, plan.chunk_rows);
        unpacked = take(memory, TILE_KEYS * ld_key);
        for (KeyTile& tile : tiles.slots)
            tile = {take(memory, call.key_size * ld_scores), take(memory, TILE_KEYS * ld_value)};
    }
};

const KeyTile& fetch(const Call& call, Bench& bench, const Tile& tile, int64_t kv_head) {
    return bench.tiles.get(tile, kv_head, [&](KeyTile& to) {
        const Heads key = call.tensor(call.key, 1, call.key_size), value = call.tensor(call.value, 2, call.value_size);
        const int64_t padded = round_up(call.value_size, PANEL);
        for (int64_t k = 0; k < tile.count; ++k) {
            key.load(tile.token + k, kv_head, 1.0f, bench.unpacked + k * bench.ld_key, call.key_size);
            value.load(tile.token + k, kv_head, 1.0f, to.value + k * bench.ld_value, padded);
        }
        transpose(bench.unpacked, bench.ld_key, tile.count, call.key_size, to.key_transposed, bench.ld_scores);
    });
}

// Turns a row of scores into weights relative to the running maximum; returns what the row's past is worth now.
LUTHIER_INLINE float soften(float* scores, Range panels, Range seen, float softcap, float& maximum, float& sum) {
    const float nothing = -std::numeric_limits<float>::infinity();
    if (softcap > 0.0f)
        for (int64_t j = panels.low; j < panels.high; ++j) scores[j] = capped(scores[j], softcap);
    for (int64_t j = panels.low; j < seen.low; ++j) scores[j] = nothing;
    for (int64_t j = seen.high; j < panels.high; ++j) scores[j] = nothing;
    float peak = maximum;
#pragma omp simd reduction(max : peak)
    for (int64_t j = panels.low; j < panels.high; ++j) peak = scores[j] > peak ? scores[j] : peak;
    const float base = peak == nothing ? 0.0f : peak;  // where a window has hidden all keys so far
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t j = panels.low; j < panels.high; ++j) {
        scores[j] = weight_of(scores[j] - base);
        total += scores[j];
    }
    const float past = weight_of(maximum - base);
    sum = sum * past + total;
    maximum = peak;
    return past;
}

void soften_chunk(const Call& call, const View& view, Bench& bench) {
    for (int64_t block = 0; block < view.blocks; ++block) {
        const Range panels = view.panels(block);
        if (panels.empty()) continue;
        for (int64_t row = block * ROWS; row < (block + 1) * ROWS; ++row) {
            const Range seen = row < view.rows ? view.of_row(row) : Range{panels.low, panels.low};
            const float past = soften(bench.scores + row * bench.ld_scores, panels, seen, call.softcap,
                                      bench.maximum[row], bench.sum[row]);
            float* out = bench.out + row * bench.ld_value;
            if (past != 1.0f)
#pragma omp simd
                for (int64_t d = 0; d < bench.ld_value; ++d) out[d] *= past;
        }
    }
}

void start_rows(const Call& call, const Chunk& chunk, int64_t kv_head, Bench& bench) {
    const int64_t group = call.group(), rows = round_up(chunk.count * group, ROWS);
    for (int64_t row = 0; row < rows; ++row) {
        // A sink is a key that everybody sees and that has no value.
        bench.maximum[row] = call.sinks ? call.sinks[kv_head * group + row % group]
                                        : -std::numeric_limits<float>::infinity();
        bench.sum[row] = call.sinks ? 1.0f : 0.0f;
    }
    std::fill_n(bench.out, rows * bench.ld_value, 0.0f);
    load_rows(call, chunk, call.tensor(call.query, 0, call.key_size), kv_head, call.scale, bench.query, bench.ld_key);
}

void finish_rows(const Call& call, const Chunk& chunk, int64_t kv_head, const Bench& bench) {
    const Heads out = call.tensor(call.out, 3, call.value_size);
    const int64_t group = call.group();
    for (int64_t row = 0; row < chunk.count * group; ++row) {
        const int64_t token = chunk.token + row / group, head = kv_head * group + row % group;
        out.store(token, head, 1.0f / bench.sum[row], bench.out + row * bench.ld_value);
        call.logsumexp[head * call.tokens() + token] = bench.maximum[row] + std::log(bench.sum[row]);
    }
}

void forward_chunk(const Call& call, const Chunk& chunk, int64_t kv_head, const std::vector<const Tile*>& path,
                   Bench& bench) {
    start_rows(call, chunk, kv_head, bench);
    for (const Tile* tile : path) {
        const View view(call, chunk, *tile);
        if (view.empty()) continue;
        const KeyTile& keys = fetch(call, bench, *tile, kv_head);
        product_of_scores(view, call.key_size, bench.query, bench.ld_key, keys.key_transposed, bench.ld_scores,
                          bench.scores, bench.ld_scores);
        soften_chunk(call, view, bench);
        add_to_rows(view, bench.scores, bench.ld_scores, keys.value, bench.ld_value, call.value_size, bench.out,
                    bench.ld_value);
    }
    finish_rows(call, chunk, kv_head, bench);
}

}  // namespace
}  // namespace attention

LUTHIER_EXPORT void attention_forward(const attention::Call* arguments) {
    using namespace attention;
    const Call& call = *arguments;
    const Plan plan = make_plan(call, 4);
    const int64_t tasks = int64_t(plan.tasks.size()), threads = plan.threads;
    if (threads < 1) return;
    const int64_t floats = Bench::floats(call, plan);
    const Memory memory(floats * threads);
#pragma omp parallel num_threads(int(threads))
    {
        Bench bench(call, plan, memory.get() + floats * thread_number());
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tasks; ++t) {
            const Task& task = plan.tasks[t];
            std::vector<const Tile*> path;
            int64_t segment = -1;
            for (int64_t c = task.first_chunk; c < task.last_chunk; ++c) {
                const Chunk& chunk = plan.chunks[c];
                if (chunk.segment != segment) path = plan.path(segment = chunk.segment);
                forward_chunk(call, chunk, task.kv_head, path, bench);
            }
        }
    }
}
