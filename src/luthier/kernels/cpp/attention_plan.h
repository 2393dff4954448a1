// Which pieces of work attention over a forest of segments falls into.
//
// Keys are cut into tiles of one segment, queries into chunks of one segment. A chunk looks at the tiles of its
// ancestors and of its own segment. A task is a run of chunks of one tree and one key/value head; all query heads
// that share it are stacked into the rows of a chunk (row = token * group + head), so keys are read once for them.
#pragma once

#include <algorithm>
#include <vector>

#include "attention_tiles.h"

namespace attention {

// The arguments of a call; mirrored field by field in attention_native.py.
struct Call {
    void *query, *key, *value, *out, *grad, *query_grad, *key_grad, *value_grad;
    float* logsumexp;  // [heads, tokens]
    const float* sinks;
    const int64_t *starts, *parents;
    int64_t strides[8][2];  // token and head stride of the first eight, in their order
    int64_t num_segments, heads, kv_heads, key_size, value_size, window, threads, bf16;
    float scale, softcap;

    Heads tensor(void* data, int which, int64_t size) const {
        return {data, strides[which][0], strides[which][1], size, bf16 != 0};
    }
    int64_t group() const { return heads / kv_heads; }
    int64_t tokens() const { return starts[num_segments]; }
};

struct Tile {
    int64_t id, token, count, position;  // first token in the stream, its position on the path
    int64_t row;                          // of its keys among all keys of the tree, in padded tiles
};

struct Chunk {
    int64_t segment, token, count, position;
    double work;
};

struct Segment {
    int64_t start, length, parent, offset, root;
    std::vector<Tile> tiles;
};

struct Task {
    int64_t kv_head, tree, first_chunk, last_chunk;
    double work;
    int64_t partial;  // number among the tree's tasks of this head
    bool whole;       // the only one
};

struct Tree {
    int64_t first_chunk, last_chunk, rows;
    std::vector<int64_t> segments;
    double work;
};

struct Plan {
    std::vector<Segment> segments;
    std::vector<Tree> trees;
    std::vector<Chunk> chunks;
    std::vector<Task> tasks;
    int64_t num_tiles = 0, chunk_tokens, chunk_rows;
    int64_t threads;  // at most as many as tasks

    // The tiles that the chunks of a segment may look at, from the root down.
    std::vector<const Tile*> path(int64_t segment) const {
        std::vector<int64_t> line;
        for (int64_t s = segment; s >= 0; s = segments[s].parent) line.push_back(s);
        std::vector<const Tile*> tiles;
        for (size_t i = line.size(); i-- > 0;)
            for (const Tile& tile : segments[line[i]].tiles) tiles.push_back(&tile);
        return tiles;
    }
};

inline void lay_out_segments(const Call& call, Plan& plan) {
    plan.segments.resize(call.num_segments);
    std::vector<int64_t> tree_of(call.num_segments, -1);
    for (int64_t s = 0; s < call.num_segments; ++s) {
        Segment& segment = plan.segments[s];
        segment = {call.starts[s], call.starts[s + 1] - call.starts[s], call.parents[s], 0, s, {}};
        for (int64_t a = segment.parent; a >= 0; a = call.parents[a]) {
            segment.offset += call.starts[a + 1] - call.starts[a];
            segment.root = a;
        }
        if (segment.root == s) {
            tree_of[s] = int64_t(plan.trees.size());
            plan.trees.push_back({});
        }
    }
    for (int64_t s = 0; s < call.num_segments; ++s) {
        Segment& segment = plan.segments[s];
        Tree& tree = plan.trees[tree_of[segment.root]];
        tree.segments.push_back(s);
        for (int64_t first = 0; first < segment.length; first += TILE_KEYS) {
            const int64_t count = std::min(TILE_KEYS, segment.length - first);
            const int64_t id = plan.num_tiles++;
            segment.tiles.push_back({id, segment.start + first, count, segment.offset + first, tree.rows});
            tree.rows += round_up(count, ROWS);
        }
    }
}

inline void cut_into_chunks(const Call& call, Plan& plan) {
    plan.chunk_tokens = std::max<int64_t>(1, CHUNK_ROWS / call.group());
    plan.chunk_rows = round_up(plan.chunk_tokens * call.group(), ROWS);
    for (Tree& tree : plan.trees) {
        tree.first_chunk = int64_t(plan.chunks.size());
        for (int64_t s : tree.segments) {
            const Segment& segment = plan.segments[s];
            for (int64_t first = 0; first < segment.length; first += plan.chunk_tokens) {
                const int64_t count = std::min(plan.chunk_tokens, segment.length - first);
                const int64_t position = segment.offset + first;
                const double seen = double(std::min(position + count, call.window)) + 16.0;
                plan.chunks.push_back({s, segment.start + first, count, position, double(count) * seen});
                tree.work += double(count) * seen;
            }
        }
        tree.last_chunk = int64_t(plan.chunks.size());
    }
}

// So many multiplications take about as long as another thread needs to wake up.
constexpr double THREAD_WORK = 5e5;

// Cuts trees that would keep one thread busy long after the others into runs of about equal work.
inline Plan make_plan(const Call& call, int64_t tasks_per_thread) {
    Plan plan;
    lay_out_segments(call, plan);
    cut_into_chunks(call, plan);
    double total = 0.0;
    for (const Tree& tree : plan.trees) total += tree.work * double(call.kv_heads);
    const double multiplications = total * double(call.group() * (call.key_size + call.value_size));
    const int64_t threads = std::min(call.threads, 1 + int64_t(multiplications / THREAD_WORK));
    const double share = total / double(threads * tasks_per_thread);
    for (int64_t t = 0; t < int64_t(plan.trees.size()); ++t) {
        const Tree& tree = plan.trees[t];
        const int64_t chunks = tree.last_chunk - tree.first_chunk;
        int64_t pieces = threads == 1 ? 1 : int64_t(tree.work / share + 0.999);
        pieces = std::max<int64_t>(1, std::min(pieces, chunks / 2));
        for (int64_t head = 0; head < call.kv_heads; ++head) {
            int64_t chunk = tree.first_chunk;
            double done = 0.0;
            for (int64_t piece = 0; piece < pieces; ++piece) {
                Task task{head, t, chunk, chunk, 0.0, piece, pieces == 1};
                const double goal = tree.work * double(piece + 1) / double(pieces);
                while (chunk < tree.last_chunk && (piece + 1 == pieces || done + task.work < goal))
                    task.work += plan.chunks[chunk++].work;
                done += task.work;
                task.last_chunk = chunk;
                plan.tasks.push_back(task);
            }
        }
    }
    plan.threads = std::min(threads, int64_t(plan.tasks.size()));
    std::stable_sort(plan.tasks.begin(), plan.tasks.end(),
                     [](const Task& a, const Task& b) { return a.work > b.work; });
    return plan;
}

}  // namespace attention
