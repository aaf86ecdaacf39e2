// Text to ids by walks through a trie: the best segmentation under a vocabulary that is used once (building an
// automaton takes longer), and the biased rule that is kept for comparison.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tokenize_random.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

// Room for the sweeps over one text; grows to the longest text and is used again.
class Scratch {
public:
    double* values(int64_t n) { return room(values_, values_size_, n); }
    int32_t* nodes(int64_t n) { return room(nodes_, nodes_size_, n); }

private:
    template <class T>
    static T* room(std::unique_ptr<T[]>& block, int64_t& size, int64_t n) {
        if (n > size) {
            size = n + n / 4;
            block.reset(new T[static_cast<size_t>(size)]);
        }
        return block.get();
    }
    std::unique_ptr<double[]> values_;
    std::unique_ptr<int32_t[]> nodes_;
    int64_t values_size_ = 0, nodes_size_ = 0;
};

// Each returns the last node of the kept path for every end position: back[e] is the node of the piece
// that ends at byte e (back[0] is unused). `scores`: units whose value is the score, -inf where none ends.
const int32_t* viterbi(const Unit* scores, View text, Scratch& scratch);
const int32_t* viterbi_sampling(const Unit* scores, View text, double alpha, Random& random, Scratch& scratch);

// Appends the ids of the path that `back` holds, first to last.
void trace(const int32_t* back, const Leaf* leaves, int64_t size, std::vector<uint32_t>& ids);

}  // namespace lmlab::tokenize
