// The hot loops. All positions of a text are reachable, because every byte is a piece.
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

// Backward sums B are kept as B[a] * 2^(STEP * scale[a]), with B[a] within 2^-STEP .. 2^STEP: no logarithm, and
// no overflow, because a weight has at most 2^577 and 877 + 8 bits fit.
namespace {
constexpr int STEP = 300;
constexpr double SMALL = 0x1.0p-300, LARGE = 0x1.0p300;

// Brings a sum and a new term to the same scale (the smaller one: the greater magnitude). What falls below
// the smallest double in doing so is less than 2^-300 of the sum.
void align(double& sum, int32_t& scale, double& term, int32_t term_scale) {
    if (term_scale < scale) {
        sum = std::ldexp(sum, STEP * std::max(term_scale - scale, -8));
        scale = term_scale;
    } else {
        term = std::ldexp(term, STEP * std::max(scale - term_scale, -8));
    }
}
}  // namespace

void sample(const Unit* weights, const Leaf* leaves, View text, Random& random, Scratch& scratch,
            std::vector<uint32_t>& ids) {
    const uint8_t* x = text.data;
    const int64_t n = text.size;
    double* sums = scratch.values(n + 1);
    int32_t* scales = scratch.nodes(n + 1);
    sums[n] = 1.0;
    scales[n] = 0;
    for (int64_t start = n - 1; start >= 0; --start) {
        int32_t node = first_node(x[start]);
        int32_t scale = scales[start + 1];
        double sum = weights[node].value * sums[start + 1];
        for (int64_t end = start + 1; end < n;) {
            const int32_t next = weights[node].base + x[end];
            if (weights[next].check != node) break;
            node = next;
            ++end;
            double term = weights[node].value * sums[end];
            if (scales[end] != scale && term > 0.0) align(sum, scale, term, scales[end]);
            sum += term;
        }
        while (sum < SMALL) sum *= LARGE, ++scale;
        while (sum > LARGE) sum *= SMALL, --scale;
        sums[start] = sum;
        scales[start] = scale;
    }
    for (int64_t start = 0; start < n;) {
        double rest = random.uniform() * sums[start];
        const int32_t scale = scales[start];
        int32_t node = first_node(x[start]), chosen = node;
        for (int64_t end = start + 1;; ++end) {
            double term = weights[node].value * sums[end];
            if (term > 0.0) {
                if (scales[end] != scale) term = std::ldexp(term, STEP * std::max(scale - scales[end], -8));
                chosen = node;  // where rounding leaves rest >= 0, the last edge closes the interval
                rest -= term;
                if (rest < 0.0) break;
            }
            if (end == n) break;
            const int32_t next = weights[node].base + x[end];
            if (weights[next].check != node) break;
            node = next;
        }
        ids.push_back(leaves[chosen].id);
        start += leaves[chosen].length;
    }
}

}  // namespace lmlab::tokenize
