// The law q(y) = exp(alpha S(y)) / Z over all segmentations of a text: Z, posteriors, expected counts.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenize_random.h"
#include "tokenize_trie.h"
#include "tokenize_wide.h"

namespace lmlab::tokenize {

// Weights exp(alpha s) by id, for any finite alpha * s.
std::vector<Wide> wide_weights(const double* scores, size_t count, double alpha);

// The sums over the segmentations of text[0, a) and of text[a, n), for a = 0 .. n.
std::vector<Wide> forward_sums(const Trie& trie, const std::vector<Wide>& weights, View text);
std::vector<Wide> backward_sums(const Trie& trie, const std::vector<Wide>& weights, View text);

struct Edge {
    int64_t start, end;
    uint32_t id;
    double probability;
};
// Every edge with its posterior probability, by (start, end).
std::vector<Edge> edges(const Trie& trie, const std::vector<Wide>& weights, View text);

// Adds `times` the expected count of each piece to counts[id]; returns log Z.
double add_marginals(const Trie& trie, const std::vector<Wide>& weights, View text, double times, double* counts);

// A draw, for weights too far apart for `sample` (tokenize_encode.h).
void sample_wide(const Trie& trie, const std::vector<Wide>& weights, View text, Random& random,
                 std::vector<uint32_t>& ids);

// Calls visit(end, leaf) for every piece that begins at byte `start`, shortest first.
template <class Visit>
void each_piece(const Trie& trie, View text, int64_t start, Visit&& visit) {
    int32_t node = first_node(text.data[start]);
    for (int64_t end = start + 1;; ++end) {
        if (trie.leaves[node].id != NO_PIECE) visit(end, trie.leaves[node]);
        if (end == text.size) return;
        const int32_t next = trie.units[node].base + text.data[end];
        if (trie.units[next].check != node) return;
        node = next;
    }
}

}  // namespace lmlab::tokenize
