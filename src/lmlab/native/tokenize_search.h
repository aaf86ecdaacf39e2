// The n best segmentations, and n different draws: both are a best-first search.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenize_lattice.h"
#include "tokenize_random.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

using Paths = std::vector<std::vector<uint32_t>>;

// By falling score; the first is the Viterbi path. `scores`: by id.
Paths n_best(const Trie& trie, const double* scores, View text, int64_t n);

// Successive draws without replacement (Gumbel top-k; Kool, van Hoof and Welling, arXiv 1903.06059).
Paths sample_without_replacement(const Trie& trie, const std::vector<Wide>& weights, View text, int64_t n,
                                 Random& random);

}  // namespace lmlab::tokenize
