// A set of pieces as a double array: one 16-byte unit a node, so that a step down costs one cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmlab::tokenize {

struct View {
    const uint8_t* data;
    int64_t size;
};

// Byte strings laid one after another; number i is bytes[offsets[i] .. offsets[i + 1]).
struct Strings {
    std::vector<uint8_t> bytes;
    std::vector<int64_t> offsets{0};

    size_t size() const { return offsets.size() - 1; }
    View operator[](size_t i) const { return {bytes.data() + offsets[i], offsets[i + 1] - offsets[i]}; }
    void push(View piece) {
        bytes.insert(bytes.end(), piece.data, piece.data + piece.size);
        offsets.push_back(static_cast<int64_t>(bytes.size()));
    }
};

int compare(View a, View b);  // lexicographic by bytes; a prefix comes first

// The child of node c by byte x is c' = base + x, if units[c'].check == c. `value` belongs to the piece that
// ends here: a score (-inf where none ends) or a weight (0 where none ends), so that sweeps need no test.
struct Unit {
    int32_t base;
    int32_t check;
    double value;
};

struct Leaf {
    uint32_t id;      // NO_PIECE where no piece ends
    uint32_t length;  // of the piece, in bytes
};

constexpr uint32_t NO_PIECE = 0xFFFFFFFFu;

// Node 0 is the root. All 256 single bytes must be members: byte x is node 1 + x, which needs no check.
class Trie {
public:
    Trie() = default;
    // members: ids of distinct pieces of `pieces`, in any order.
    Trie(const Strings& pieces, std::vector<uint32_t> members);

    // Sets the units' values: value[id] at each node where piece id ends, and `none` elsewhere.
    void set_values(const double* value, double none);

    std::vector<Unit> units;
    std::vector<Leaf> leaves;  // by node
    size_t longest = 1;
};

inline int32_t first_node(uint8_t byte) { return 1 + byte; }

}  // namespace lmlab::tokenize
