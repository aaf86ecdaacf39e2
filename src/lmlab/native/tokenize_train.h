// Learning a unigram vocabulary: count the pieces that the present one uses (E), take the logarithm of their
// shares (M), drop what is worth least, again and again.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenize_corpus.h"
#include "tokenize_interrupt.h"
#include "tokenize_seeds.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

enum class Pruning { compression, likelihood };

class Trainer {
public:
    Trainer(const Corpus& corpus, Seeds seeds);

    // Where training is: all that changes after the seeds are found. Vectors are by id of a seed.
    struct State {
        std::vector<uint32_t> members;
        std::vector<double> counts, scores;
    };
    State state() const { return {members_, counts_, scores_}; }
    Trainer(const Corpus& corpus, Strings all, std::vector<uint64_t> occurrences, State state);
    const Strings& all() const { return all_; }
    const std::vector<uint64_t>& occurrences() const { return occurrences_; }

    // Counts over the corpus by Viterbi, or by expectation (soft); then new scores. Returns the number of tokens.
    double step(bool soft, int workers, const Interrupt& interrupt);

    // Pieces of two bytes or more whose last count is lower go.
    void drop_rare(double min_count);

    // Keeps the `target` pieces whose loss would cost most; needs a count before it (a hard one for compression).
    void prune(size_t target, Pruning pruning, int workers, const Interrupt& interrupt);

    // Pieces that were dropped come back, those with most occurrences first, until there are `target`.
    void refill(size_t target);

    // Counts over other text with the present scores, which stay as they are until `finish_counts`.
    void start_counts();
    void count(const std::vector<View>& texts, int workers, const Interrupt& interrupt);
    double finish_counts();

    size_t size() const { return members_.size(); }
    View piece(size_t i) const { return all_[members_[i]]; }
    double piece_count(size_t i) const { return counts_[members_[i]]; }
    double score(size_t i) const { return scores_[members_[i]]; }

private:
    double instead_of(uint32_t id, std::vector<double>& best, std::vector<uint32_t>& last,
                      std::vector<uint32_t>& parts) const;
    void rebuild();
    void update_scores();

    const Corpus& corpus_;
    Strings all_;                          // the 256 bytes, then the seeds, sorted among themselves
    std::vector<uint64_t> occurrences_;    // by id in all_
    std::vector<uint32_t> members_;        // ids that are in the vocabulary now, rising
    std::vector<double> counts_, scores_;  // by id in all_
    std::vector<uint32_t> places_;         // in how many places of the corpus the last hard count found it
    Trie trie_;                            // of the members; values are the scores
};

}  // namespace lmlab::tokenize
