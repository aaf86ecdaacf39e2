// Candidates for a vocabulary: the substrings of a corpus that repeat, found by sorting its suffixes.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenize_corpus.h"
#include "tokenize_interrupt.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

struct Seeds {
    Strings pieces;                // distinct, of two bytes or more, sorted
    std::vector<uint64_t> counts;  // occurrences in the corpus, overlapping ones too
};

// Of the substrings that occur min_count times and obey the corpus's rules: the `keep` with the greatest
// occurrences * length. Of substrings with the same occurrences, one inside the other, only the longest counts.
Seeds find_seeds(const Corpus& corpus, uint64_t min_count, size_t keep, int workers, const Interrupt& interrupt);

// Whether the bytes are whole UTF-8 characters.
bool whole_characters(View piece);

}  // namespace lmlab::tokenize
