// Best-first search over prefixes or suffixes of segmentations, with an exact bound: no step is wasted.
#include "tokenize_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

namespace lmlab::tokenize {

namespace {

struct State {  // a partial segmentation: the piece added last, and the state before it
    int64_t position;
    int64_t parent;
    uint32_t id;
};

struct Entry {
    double key;      // the greatest comes out first,
    int64_t number;  // and on ties the newest: a finished path before another one is begun
    bool operator<(const Entry& other) const {
        return key != other.key ? key < other.key : number < other.number;
    }
};

std::vector<uint32_t> path_to(const std::vector<State>& states, int64_t at) {
    std::vector<uint32_t> ids;
    for (; states[at].parent >= 0; at = states[at].parent) ids.push_back(states[at].id);
    return ids;
}

}  // namespace

// From the end of the text backwards. The key is minus what the path loses against the best one, a sum of exact
// zeros along the Viterbi path; candidates of an end are pushed shortest last piece first, so that of equals the
// longest is taken, as Viterbi does.
Paths n_best(const Trie& trie, const double* scores, View text, int64_t n) {
    struct Back {
        int64_t start;
        uint32_t id;
        double score;
    };
    std::vector<double> best(static_cast<size_t>(text.size) + 1, -std::numeric_limits<double>::infinity());
    std::vector<std::vector<Back>> backs(static_cast<size_t>(text.size) + 1);
    best[0] = 0.0;
    for (int64_t start = 0; start < text.size; ++start)
        each_piece(trie, text, start, [&](int64_t end, Leaf leaf) {
            const double score = best[start] + scores[leaf.id];
            backs[end].push_back({start, leaf.id, score});
            best[end] = std::max(best[end], score);
        });

    std::vector<State> states{{text.size, -1, 0}};
    std::priority_queue<Entry> open;
    open.push({0.0, 0});
    Paths paths;
    while (!open.empty() && static_cast<int64_t>(paths.size()) < n) {
        const Entry top = open.top();
        open.pop();
        const int64_t end = states[top.number].position;
        if (end == 0) {
            paths.push_back(path_to(states, top.number));
            continue;
        }
        for (auto back = backs[end].rbegin(); back != backs[end].rend(); ++back) {
            states.push_back({back->start, top.number, back->id});
            open.push({top.key + (back->score - best[end]), static_cast<int64_t>(states.size()) - 1});
        }
    }
    return paths;
}

// From left to right. A prefix stands for all its completions: its key is the greatest of their Gumbel-perturbed
// log probabilities, drawn without drawing them. Children get keys conditioned on having the parent's as maximum.
Paths sample_without_replacement(const Trie& trie, const std::vector<Wide>& weights, View text, int64_t n,
                                 Random& random) {
    const std::vector<Wide> after = backward_sums(trie, weights, text);
    auto gumbel = [&] { return -std::log(-std::log((static_cast<double>(random.next() >> 12) + 0.5) * 0x1.0p-52)); };

    struct Child {
        int64_t end;
        uint32_t id;
        double log_mass, key;
    };
    std::vector<State> states{{0, -1, 0}};
    std::vector<double> log_mass{0.0};
    std::priority_queue<Entry> open;
    open.push({gumbel(), 0});
    Paths paths;
    std::vector<Child> children;
    while (!open.empty() && static_cast<int64_t>(paths.size()) < n) {
        const Entry top = open.top();
        open.pop();
        const int64_t start = states[top.number].position;
        if (start == text.size) {
            paths.push_back(path_to(states, top.number));
            std::reverse(paths.back().begin(), paths.back().end());
            continue;
        }
        children.clear();
        double greatest = -std::numeric_limits<double>::infinity();
        each_piece(trie, text, start, [&](int64_t end, Leaf leaf) {
            const double mass = log_mass[top.number] + (weights[leaf.id] * after[end] / after[start]).log();
            children.push_back({end, leaf.id, mass, mass + gumbel()});
            greatest = std::max(greatest, children.back().key);
        });
        for (const Child& child : children) {
            // -log(exp(-top) - exp(-greatest) + exp(-key)), written so that nothing cancels
            const double v = top.key - child.key + std::log1p(-std::exp(child.key - greatest));
            const double key = top.key - std::max(0.0, v) - std::log1p(std::exp(-std::fabs(v)));
            states.push_back({child.end, top.number, child.id});
            log_mass.push_back(child.log_mass);
            open.push({key, static_cast<int64_t>(states.size()) - 1});
        }
    }
    return paths;
}

}  // namespace lmlab::tokenize
