// All positions of a text are reachable, because every byte is a piece.
#include "tokenize_encode.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lmlab::tokenize {

// Relaxes forward. Starts rise, so the candidates of an end come longest first, and only a strictly better one
// replaces: on ties the longest last piece stays.
const int32_t* viterbi(const Unit* scores, View text, Scratch& scratch) {
    const uint8_t* x = text.data;
    const int64_t n = text.size;
    double* best = scratch.values(n + 1);
    int32_t* back = scratch.nodes(n + 1);
    std::fill(best, best + n + 1, -std::numeric_limits<double>::infinity());
    best[0] = 0.0;
    for (int64_t start = 0; start < n; ++start) {
        const double here = best[start];
        int32_t node = first_node(x[start]);
        for (int64_t end = start + 1;; ++end) {
            const double score = here + scores[node].value, old = best[end];
            const int32_t old_node = back[end];
            const bool better = score > old;  // no branch: it would be guessed wrong too often
            best[end] = better ? score : old;
            back[end] = better ? node : old_node;
            if (end == n) break;
            const int32_t next = scores[node].base + x[end];
            if (scores[next].check != node) break;
            node = next;
        }
    }
    return back;
}

const int32_t* viterbi_sampling(const Unit* scores, View text, double alpha, Random& random, Scratch& scratch) {
    const uint8_t* x = text.data;
    const int64_t n = text.size;
    const double none = -std::numeric_limits<double>::infinity();
    double* kept = scratch.values(n + 1);
    int32_t* back = scratch.nodes(n + 1);
    std::fill(kept, kept + n + 1, none);
    kept[0] = 0.0;
    for (int64_t start = 0; start < n; ++start) {
        int32_t node = first_node(x[start]);
        for (int64_t end = start + 1;; ++end) {
            if (scores[node].value != none) {
                const double score = kept[start] + scores[node].value;
                if (kept[end] == none || random.uniform() * (1.0 + std::exp(-alpha * (score - kept[end]))) < 1.0) {
                    kept[end] = score;
                    back[end] = node;
                }
            }
            if (end == n) break;
            const int32_t next = scores[node].base + x[end];
            if (scores[next].check != node) break;
            node = next;
        }
    }
    return back;
}

void trace(const int32_t* back, const Leaf* leaves, int64_t size, std::vector<uint32_t>& ids) {
    const size_t first = ids.size();
    for (int64_t end = size; end > 0;) {
        const Leaf leaf = leaves[back[end]];
        ids.push_back(leaf.id);
        end -= leaf.length;
    }
    std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end());
}

}  // namespace lmlab::tokenize
