// All pieces that end at each byte of a text (or begin there), found by one step a byte.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

// a if `first`, else b. No branch: it would be guessed wrong too often.
LMLAB_INLINE uint64_t choose(bool first, uint64_t a, uint64_t b) {
    return b ^ ((a ^ b) & (uint64_t{0} - static_cast<uint64_t>(first)));
}

enum class Reading { forward, backward };  // which way a text is read

// A piece at a place of a text, and a score or weight. `piece` is the id, the length in bytes above bit 32, and
// MORE in the second of a pair that another pair follows: one word, so that it is chosen without a branch.
struct Match {
    double value;
    uint64_t piece;
};
constexpr uint64_t MORE = uint64_t{1} << 48;
inline uint32_t id_of(uint64_t piece) { return static_cast<uint32_t>(piece); }
inline uint8_t length_of(uint64_t piece) { return static_cast<uint8_t>(piece >> 32); }

// Matches in lists of pairs: list k begins at pairs[2 * k]. Odd lists are filled up, and list 0 is made, of matches
// that are as long as the longest piece and have the value of none. Single bytes are in no list.
struct Matches {
    std::vector<Match> pairs;
    Match singles[256];
};

// The automaton of Aho and Corasick ("Efficient string matching", CACM 18, 1975). A state is the longest string
// that has just been read and that begins a piece (read backward: that ends one). Its row holds the steps to
// longer prefixes, its own and those of its suffixes of three bytes and more; a step that is not there is looked for
// in the rows of the last two bytes and of the last one, which keeps the rows short (all steps in the rows: three
// times the memory). Rows lie in one double array. A state needs no number: all that matters of it is its row and
// its list of matches, which is what a step gives.
class Automaton {
public:
    // members: ids of distinct pieces, all 256 single bytes among them.
    Automaton(const Strings& pieces, std::vector<uint32_t> members, Reading reading);

    // value: by id. Lists hold the longest piece first if the text is read forward, else the shortest.
    Matches matches(const double* value, double none) const;

    // lists[i - begin]: the list of the pieces that end with byte i of text (read backward: that begin with it),
    // for begin <= i < end. Pieces may reach out of [begin, end), but not out of the text.
    void find(View text, int64_t begin, int64_t end, uint32_t* lists) const;

    int64_t longest = 1;  // piece, in bytes

private:
    template <int STEP>
    void sweep(const uint8_t* first, int64_t before, int64_t count, uint32_t* lists) const;
    template <int STEP, int LANES>
    void sweep_lanes(const uint8_t* first, int64_t before, int64_t count, uint32_t* lists) const;

    Reading reading_;
    // A step: the byte that it is for (NOBODY in a free cell), then the base of the row and the number of the
    // list of the state that it leads to. The step from a row by byte x is in cell base + x, if that is for x:
    // no two rows have the same base.
    std::vector<uint64_t> cells_;
    uint64_t bytes_[256];           // the steps to states of one byte
    uint32_t singles_[256];         // their ids
    std::vector<uint64_t> pieces_;  // as in Match, by place in the lists
};

}  // namespace lmlab::tokenize
