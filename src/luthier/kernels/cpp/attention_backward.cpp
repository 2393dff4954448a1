// Softmax attention over a forest of segments: backward. The weights are recomputed tile by tile from the
// log-sum-exp; with P the weights, dP = dO V^T and delta = sum(dO * O) of a row, the scores' gradient is P (dP - delta)
// (arXiv:2205.14135, appendix B).
//
// A task sums the gradients of all the keys of its tree in fp32. Where several tasks share a tree, each has a sum of
// its own and these are added in a fixed order, so that the same number of threads gives the same bits.

#include "attention_scores.h"

namespace attention {
namespace {

struct KeyTile {
    float *key_transposed, *value_transposed, *key;
};

// Sums of the gradients of one tree's keys and values, for one head.
struct KeySums {
    float *key, *value;
};

// One thread's buffers.
struct Bench {
    TileCache<KeyTile> tiles;
    int64_t ld_key, ld_value, ld_scores;
    float *query, *query_grad, *grad, *scores, *grad_scores, *logsumexp, *delta, *unpacked;
    KeySums sums;

    static int64_t floats(const Call& call, const Plan& plan, int64_t whole_rows) {
        const int64_t key = leading(call.key_size), value = leading(call.value_size), row = leading(TILE_KEYS);
        const int64_t per_tile = (call.key_size + call.value_size) * row + TILE_KEYS * key;
        return plan.chunk_rows * (2 * key + value + 2 * row) + 2 * round_up(plan.chunk_rows, LINE) +
               TILE_KEYS * value + TileCache<KeyTile>::num_slots(plan) * per_tile + whole_rows * (key + value);
    }

    Bench(const Call& call, const Plan& plan, int64_t whole_rows, float* memory)
        : tiles(plan), ld_key(leading(call.key_size)), ld_value(leading(call.value_size)),
          ld_scores(leading(TILE_KEYS)) {
        query = take(memory, plan.chunk_rows * ld_key);
        query_grad = take(memory, plan.chunk_rows * ld_key);
        grad = take(memory, plan.chunk_rows * ld_value);
        scores = take(memory, plan.chunk_rows * ld_scores);
        grad_scores = take(memory, plan.chunk_rows * ld_scores);
        logsumexp = take(memory, plan.chunk_rows);
        delta = take(memory, plan.chunk_rows);
        unpacked = take(memory, TILE_KEYS * ld_value);
        for (KeyTile& tile : tiles.slots)
            tile = {take(memory, call.key_size * ld_scores), take(memory, call.value_size * ld_scores),
                    take(memory, TILE_KEYS * ld_key)};
        sums.key = take(memory, whole_rows * ld_key);
        sums.value = take(memory, whole_rows * ld_value);
    }
};

const KeyTile& fetch(const Call& call, Bench& bench, const Tile& tile, int64_t kv_head) {
    return bench.tiles.get(tile, kv_head, [&](KeyTile& to) {
        const Heads key = call.tensor(call.key, 1, call.key_size), value = call.tensor(call.value, 2, call.value_size);
        const int64_t padded = round_up(call.key_size, PANEL);
        for (int64_t k = 0; k < tile.count; ++k) {
            key.load(tile.token + k, kv_head, 1.0f, to.key + k * bench.ld_key, padded);
            value.load(tile.token + k, kv_head, 1.0f, bench.unpacked + k * bench.ld_value, call.value_size);
        }
        transpose(to.key, bench.ld_key, tile.count, call.key_size, to.key_transposed, bench.ld_scores);
        transpose(bench.unpacked, bench.ld_value, tile.count, call.value_size, to.value_transposed, bench.ld_scores);
    });
}

void start_rows(const Call& call, const Chunk& chunk, int64_t kv_head, Bench& bench) {
    const Heads out = call.tensor(call.out, 3, call.value_size);
    const int64_t group = call.group(), rows = chunk.count * group, padded = round_up(rows, ROWS);
    load_rows(call, chunk, call.tensor(call.query, 0, call.key_size), kv_head, call.scale, bench.query, bench.ld_key);
    load_rows(call, chunk, call.tensor(call.grad, 4, call.value_size), kv_head, 1.0f, bench.grad, bench.ld_value);
    std::fill_n(bench.query_grad, padded * bench.ld_key, 0.0f);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = chunk.token + row / group, head = kv_head * group + row % group;
        const float* grad = bench.grad + row * bench.ld_value;
        float* values = bench.unpacked;
        out.load(token, head, 1.0f, values, call.value_size);
        float delta = 0.0f;
#pragma omp simd reduction(+ : delta)
        for (int64_t d = 0; d < call.value_size; ++d) delta += grad[d] * values[d];
        bench.delta[row] = delta;
        bench.logsumexp[row] = call.logsumexp[head * call.tokens() + token];
    }
}

// Turns a row of scores into weights, and the gradients of the weights into those of the scores.
LUTHIER_INLINE void differentiate(float* scores, float* grads, Range panels, Range seen, int64_t count, float softcap,
                                  float logsumexp, float delta) {
    if (softcap > 0.0f) {
        for (int64_t j = panels.low; j < panels.high; ++j) {
            const float t = hyperbolic_tangent(scores[j] / softcap), p = weight_of(softcap * t - logsumexp);
            scores[j] = p;
            grads[j] = p * (grads[j] - delta) * (1.0f - t * t);
        }
    } else {
#pragma omp simd
        for (int64_t j = panels.low; j < panels.high; ++j) {
            const float p = weight_of(scores[j] - logsumexp);
            scores[j] = p;
            grads[j] = p * (grads[j] - delta);
        }
    }
    // Products by columns read whole blocks of keys, so the rest of the row must be zero, not whatever was there.
    const int64_t end = round_up(count, ROWS);
    for (int64_t j = 0; j < seen.low; ++j) scores[j] = grads[j] = 0.0f;
    for (int64_t j = seen.high; j < end; ++j) scores[j] = grads[j] = 0.0f;
}

void differentiate_chunk(const Call& call, const View& view, Bench& bench) {
    for (int64_t block = 0; block < view.blocks; ++block) {
        const Range panels = view.panels(block);
        if (panels.empty()) continue;
        for (int64_t row = block * ROWS; row < (block + 1) * ROWS; ++row) {
            float *scores = bench.scores + row * bench.ld_scores, *grads = bench.grad_scores + row * bench.ld_scores;
            if (row < view.rows) {
                differentiate(scores, grads, panels, view.of_row(row), view.count, call.softcap, bench.logsumexp[row],
                              bench.delta[row]);
            } else {
                std::fill_n(grads, TILE_KEYS, 0.0f);
            }
        }
    }
}

void backward_chunk(const Call& call, const Chunk& chunk, int64_t kv_head, const std::vector<const Tile*>& path,
                    const KeySums& sums, Bench& bench) {
    const int64_t ld = bench.ld_scores, ld_key = bench.ld_key, ld_value = bench.ld_value;
    start_rows(call, chunk, kv_head, bench);
    for (const Tile* tile : path) {
        const View view(call, chunk, *tile);
        if (view.empty()) continue;
        const KeyTile& keys = fetch(call, bench, *tile, kv_head);
        product_of_scores(view, call.key_size, bench.query, ld_key, keys.key_transposed, ld, bench.scores, ld);
        product_of_scores(view, call.value_size, bench.grad, ld_value, keys.value_transposed, ld, bench.grad_scores,
                          ld);
        differentiate_chunk(call, view, bench);
        add_to_rows(view, bench.grad_scores, ld, keys.key, ld_key, call.key_size, bench.query_grad, ld_key);
        add_to_keys(view, bench.grad_scores, ld, bench.query, ld_key, call.key_size, sums.key + tile->row * ld_key,
                    ld_key);
        add_to_keys(view, bench.scores, ld, bench.grad, ld_value, call.value_size, sums.value + tile->row * ld_value,
                    ld_value);
    }
    const Heads query_grad = call.tensor(call.query_grad, 5, call.key_size);
    const int64_t group = call.group();
    for (int64_t row = 0; row < chunk.count * group; ++row)
        query_grad.store(chunk.token + row / group, kv_head * group + row % group, call.scale,
                         bench.query_grad + row * ld_key);
}

void store_keys(const Call& call, const Tile& tile, int64_t kv_head, const KeySums& sums, const Bench& bench) {
    const Heads key = call.tensor(call.key_grad, 6, call.key_size);
    const Heads value = call.tensor(call.value_grad, 7, call.value_size);
    for (int64_t k = 0; k < tile.count; ++k) {
        key.store(tile.token + k, kv_head, 1.0f, sums.key + (tile.row + k) * bench.ld_key);
        value.store(tile.token + k, kv_head, 1.0f, sums.value + (tile.row + k) * bench.ld_value);
    }
}

void run_task(const Call& call, const Plan& plan, const Task& task, const KeySums& sums, Bench& bench) {
    const Tree& tree = plan.trees[task.tree];
    std::fill_n(sums.key, tree.rows * bench.ld_key, 0.0f);
    std::fill_n(sums.value, tree.rows * bench.ld_value, 0.0f);
    std::vector<const Tile*> path;
    int64_t segment = -1;
    for (int64_t c = task.first_chunk; c < task.last_chunk; ++c) {
        const Chunk& chunk = plan.chunks[c];
        if (chunk.segment != segment) path = plan.path(segment = chunk.segment);
        backward_chunk(call, chunk, task.kv_head, path, sums, bench);
    }
    if (!task.whole) return;
    for (int64_t s : tree.segments)
        for (const Tile& tile : plan.segments[s].tiles) store_keys(call, tile, task.kv_head, sums, bench);
}

// Adds the sums of all tasks of this tree and head to those of the first, and writes them.
void join(const Call& call, const Plan& plan, const std::vector<const Task*>& parts, const std::vector<KeySums>& sums,
          const Tile& tile, const Bench& bench) {
    const KeySums& first = sums[parts[0] - plan.tasks.data()];
    for (size_t p = 1; p < parts.size(); ++p) {
        const KeySums& other = sums[parts[p] - plan.tasks.data()];
        const int64_t keys = tile.row * bench.ld_key, values = tile.row * bench.ld_value;
        for (int64_t i = 0; i < tile.count * bench.ld_key; ++i) first.key[keys + i] += other.key[keys + i];
        for (int64_t i = 0; i < tile.count * bench.ld_value; ++i) first.value[values + i] += other.value[values + i];
    }
    store_keys(call, tile, parts[0]->kv_head, first, bench);
}

// The tasks of each tree and head that were more than one, in the order of their queries.
std::vector<std::vector<const Task*>> shared_trees(const Call& call, const Plan& plan) {
    std::vector<std::vector<const Task*>> parts(plan.trees.size() * call.kv_heads);
    for (const Task& task : plan.tasks)
        if (!task.whole) parts[task.tree * call.kv_heads + task.kv_head].push_back(&task);
    parts.erase(std::remove_if(parts.begin(), parts.end(), [](const auto& p) { return p.empty(); }), parts.end());
    for (auto& p : parts)
        std::sort(p.begin(), p.end(), [](const Task* a, const Task* b) { return a->partial < b->partial; });
    return parts;
}

}  // namespace
}  // namespace attention

LUTHIER_EXPORT void attention_backward(const attention::Call* arguments) {
    using namespace attention;
    const Call& call = *arguments;
    const Plan plan = make_plan(call, 2);
    const int64_t tasks = int64_t(plan.tasks.size()), threads = plan.threads;
    if (threads < 1) return;
    int64_t whole_rows = 0, shared_rows = 0;
    for (const Task& task : plan.tasks) {
        const int64_t rows = plan.trees[task.tree].rows;
        task.whole ? whole_rows = std::max(whole_rows, rows) : shared_rows += rows;
    }
    const int64_t floats = Bench::floats(call, plan, whole_rows);
    const int64_t ld_key = leading(call.key_size), ld_value = leading(call.value_size);
    const Memory memory(floats * threads + shared_rows * (ld_key + ld_value));
    float* rest = memory.get() + floats * threads;
    std::vector<KeySums> sums(tasks);
    for (int64_t t = 0; t < tasks; ++t)
        if (!plan.tasks[t].whole) {
            const int64_t rows = plan.trees[plan.tasks[t].tree].rows;
            sums[t].key = take(rest, rows * ld_key);
            sums[t].value = take(rest, rows * ld_value);
        }
    const auto shared = shared_trees(call, plan);
#pragma omp parallel num_threads(int(threads))
    {
        Bench bench(call, plan, whole_rows, memory.get() + floats * thread_number());
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tasks; ++t)
            run_task(call, plan, plan.tasks[t], plan.tasks[t].whole ? bench.sums : sums[t], bench);
        for (const auto& parts : shared)
            for (int64_t s : plan.trees[parts[0]->tree].segments) {
                const std::vector<Tile>& tiles = plan.segments[s].tiles;
#pragma omp for schedule(static) nowait
                for (int64_t i = 0; i < int64_t(tiles.size()); ++i) join(call, plan, parts, sums, tiles[i], bench);
            }
    }
}
