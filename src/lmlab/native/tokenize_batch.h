// A vocabulary ready for use, and its use on many texts at once.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "tokenize_encode.h"
#include "tokenize_lattice.h"
#include "tokenize_segment.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

// The weights of one alpha, in the form that its size allows.
struct Weights {
    double alpha;
    const Automaton* beginning;  // null where alpha * s goes beyond WEIGHT_LOG_LIMIT
    Matches matches;             // for segment_draw
    std::vector<Wide> wide;  // by id
};

class Vocabulary {
public:
    // Scores are -inf for special ids, which never match inside a text.
    Vocabulary(Strings pieces, std::vector<double> scores);

    // What segmenting needs, made at the first use. The caller holds the interpreter's lock: that is the guard.
    struct Best {
        Automaton ending;
        Matches matches;
    };
    const Best& best();
    std::shared_ptr<const Weights> weights(double alpha);  // kept for the last few values of alpha

    const Strings pieces;
    const std::vector<double> scores;
    Trie trie;  // values are the scores

private:
    std::unique_ptr<const Best> best_;
    std::unique_ptr<const Automaton> beginning_;
    std::deque<std::shared_ptr<const Weights>> recent_;
};

// How ids are made of texts: the best, or a draw from streams of `seed`.
struct Draw {
    const Vocabulary::Best* best = nullptr;  // or
    std::shared_ptr<const Weights> weights = nullptr;
    uint64_t seed = 0;
    bool biased = false;  // the rule named viterbi-sampling
};

// Appends the ids of all texts; text i draws from stream `stream + i`.
void encode(const Vocabulary& vocabulary, const Texts& texts, const Draw& draw, uint64_t stream, Rooms& rooms,
            std::vector<uint32_t>& ids, int64_t* counts);

// Texts are dealt out in runs of about 64 KiB; text i draws from stream `stream + i`, whoever encodes it.
struct Runs {
    std::vector<size_t> first;               // of each run, and the end
    std::vector<std::vector<uint32_t>> ids;  // by run
};
Runs encode_batch(const Vocabulary& vocabulary, const std::vector<View>& texts, const Draw& draw, uint64_t stream,
                  int threads, int64_t* counts);

// Copies the ids of all runs one after another into `out`.
void gather(const Runs& runs, int threads, uint32_t* out);

}  // namespace lmlab::tokenize
