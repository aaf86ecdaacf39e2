// Forward and backward sums over the lattice of a text, in numbers with wide exponents.
#include "tokenize_lattice.h"

namespace lmlab::tokenize {

std::vector<Wide> wide_weights(const double* scores, size_t count, double alpha) {
    std::vector<Wide> weights(count);
    for (size_t i = 0; i < count; ++i)
        if (scores[i] != -std::numeric_limits<double>::infinity()) weights[i] = Wide::exp(alpha * scores[i]);
    return weights;
}

std::vector<Wide> forward_sums(const Trie& trie, const std::vector<Wide>& weights, View text) {
    std::vector<Wide> sums(static_cast<size_t>(text.size) + 1);
    sums[0] = {1.0, 0};
    for (int64_t start = 0; start < text.size; ++start)
        each_piece(trie, text, start,
                   [&](int64_t end, Leaf leaf) { sums[end] = sums[end] + sums[start] * weights[leaf.id]; });
    return sums;
}

std::vector<Wide> backward_sums(const Trie& trie, const std::vector<Wide>& weights, View text) {
    std::vector<Wide> sums(static_cast<size_t>(text.size) + 1);
    sums[text.size] = {1.0, 0};
    for (int64_t start = text.size - 1; start >= 0; --start)
        each_piece(trie, text, start,
                   [&](int64_t end, Leaf leaf) { sums[start] = sums[start] + weights[leaf.id] * sums[end]; });
    return sums;
}

std::vector<Edge> edges(const Trie& trie, const std::vector<Wide>& weights, View text) {
    std::vector<Edge> result;
    if (text.size == 0) return result;
    const std::vector<Wide> before = forward_sums(trie, weights, text), after = backward_sums(trie, weights, text);
    for (int64_t start = 0; start < text.size; ++start) {
        const Wide share = before[start] / after[0];
        each_piece(trie, text, start, [&](int64_t end, Leaf leaf) {
            result.push_back({start, end, leaf.id, (share * weights[leaf.id] * after[end]).value()});
        });
    }
    return result;
}

// Forward sums are pushed as far as the backward ones allow in the same sweep: two arrays of a text, no edges.
double add_marginals(const Trie& trie, const std::vector<Wide>& weights, View text, double times, double* counts) {
    if (text.size == 0) return 0.0;
    const std::vector<Wide> after = backward_sums(trie, weights, text);
    std::vector<Wide> before(static_cast<size_t>(text.size) + 1);
    before[0] = {1.0, 0};
    for (int64_t start = 0; start < text.size; ++start) {
        const Wide here = before[start], share = here / after[0];
        each_piece(trie, text, start, [&](int64_t end, Leaf leaf) {
            const Wide weight = weights[leaf.id];
            before[end] = before[end] + here * weight;
            counts[leaf.id] += times * (share * weight * after[end]).value();
        });
    }
    return after[0].log();
}

void sample_wide(const Trie& trie, const std::vector<Wide>& weights, View text, Random& random,
                 std::vector<uint32_t>& ids) {
    const std::vector<Wide> after = backward_sums(trie, weights, text);
    for (int64_t start = 0; start < text.size;) {
        double rest = random.uniform();
        Leaf chosen{NO_PIECE, 0};
        bool open = true;
        each_piece(trie, text, start, [&](int64_t end, Leaf leaf) {
            const double share = (weights[leaf.id] * after[end] / after[start]).value();
            if (!open || (share == 0.0 && chosen.id != NO_PIECE)) return;
            chosen = leaf;
            rest -= share;
            open = rest >= 0.0;
        });
        ids.push_back(chosen.id);
        start += chosen.length;
    }
}

}  // namespace lmlab::tokenize
