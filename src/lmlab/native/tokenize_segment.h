// Text to ids, fast: the best segmentation and an exact draw, with the matches that an automaton finds.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tokenize_automaton.h"
#include "tokenize_random.h"

namespace lmlab::tokenize {

// Memory for the work on one text, which grows to the longest one and is used again.
template <class T>
class Room {
public:
    T* operator()(int64_t size) {
        if (size > size_) {
            size_ = size + size / 4;
            block_.reset(new T[static_cast<size_t>(size_)]);
        }
        return block_.get();
    }

private:
    std::unique_ptr<T[]> block_;
    int64_t size_ = 0;
};

struct Rooms {
    Room<uint8_t> bytes;
    Room<uint32_t> lists, ids;
    Room<uint64_t> back;
    Room<double> sums;
    Room<int32_t> scales;
};

// Texts that lie one after another: text i is bytes[ends[i - 1] .. ends[i]), the first one begins at 0.
struct Texts {
    const uint8_t* bytes;
    const int64_t* ends;
    size_t count;
};

// Each appends the ids of all texts to `ids` and puts their numbers into counts[0 .. texts.count).

// `ending`: an automaton that reads forward, with `scores` (-inf for none).
void segment_best(const Automaton& ending, const Matches& scores, const Texts& texts, Rooms& rooms,
                  std::vector<uint32_t>& ids, int64_t* counts);

// Draws from exp(alpha S) / Z, text i with stream `stream + i`. `beginning`: an automaton that reads backward, with
// the weights exp(alpha s) (0 for none); every weight must lie within 2^-577 .. 2^577 (WEIGHT_LOG_LIMIT), else see
// tokenize_lattice.h.
constexpr double WEIGHT_LOG_LIMIT = 400.0;
void segment_draw(const Automaton& beginning, const Matches& weights, const Texts& texts, uint64_t seed,
                  uint64_t stream, Rooms& rooms, std::vector<uint32_t>& ids, int64_t* counts);

}  // namespace lmlab::tokenize
