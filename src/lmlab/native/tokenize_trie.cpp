// Building the double array.
#include "tokenize_trie.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace lmlab::tokenize {

namespace {
constexpr int32_t FREE = -1;
constexpr int ATTEMPTS = 48;  // free nodes tried for a family of children before it goes to the end
}  // namespace

int compare(View a, View b) {
    const int order = std::memcmp(a.data, b.data, static_cast<size_t>(std::min(a.size, b.size)));
    if (order != 0) return order;
    return a.size < b.size ? -1 : a.size > b.size;
}

void Trie::grow(size_t size) {
    const size_t old = units.size();
    if (size > static_cast<size_t>(std::numeric_limits<int32_t>::max()) - 512)
        throw std::length_error("the pieces are too many or too long: the trie has room for 2^31 bytes of them");
    units.resize(size, Unit{0, FREE, 0.0});
    leaves.resize(size, Leaf{NO_PIECE, 0});
    next_free_.resize(size);
    previous_free_.resize(size);
    for (size_t i = old; i < size; ++i) {
        next_free_[i] = -1;
        previous_free_[i] = last_free_;
        if (last_free_ >= 0) next_free_[last_free_] = static_cast<int32_t>(i);
        else first_free_ = static_cast<int32_t>(i);
        last_free_ = static_cast<int32_t>(i);
    }
}

void Trie::take(int32_t node) {
    const int32_t before = previous_free_[node], after = next_free_[node];
    (before >= 0 ? next_free_[before] : first_free_) = after;
    (after >= 0 ? previous_free_[after] : last_free_) = before;
    untouched_ = std::max(untouched_, static_cast<size_t>(node) + 1);
}

// A base at which all children fall on free nodes. An only child fills the first gap, so gaps don't last.
int32_t Trie::place(const std::vector<uint8_t>& children) {
    int32_t at = first_free_;
    for (int attempt = 0; at >= 0 && attempt < ATTEMPTS; ++attempt, at = next_free_[at]) {
        const int32_t base = at - children[0];
        if (base < 1) continue;
        if (static_cast<size_t>(base) + 256 > units.size()) break;
        bool fits = true;
        for (uint8_t child : children) fits = fits && units[base + child].check == FREE;
        if (fits) return base;
    }
    if (untouched_ + 256 > units.size()) grow(untouched_ + 512 + units.size() / 2);
    return static_cast<int32_t>(untouched_) - children[0];
}

Trie::Trie(const Strings& pieces, std::vector<uint32_t> members) {
    auto before = [&](uint32_t a, uint32_t b) { return compare(pieces[a], pieces[b]) < 0; };
    if (!std::is_sorted(members.begin(), members.end(), before)) std::sort(members.begin(), members.end(), before);

    struct Range {  // the members that share the path to `node`, which is `depth` bytes long
        int32_t node;
        uint32_t first, last, depth;
    };
    grow(1024);
    take(0);
    units[0].check = std::numeric_limits<int32_t>::max();  // nobody's child
    std::vector<Range> queue{{0, 0, static_cast<uint32_t>(members.size()), 0}};
    std::vector<uint8_t> children;
    std::vector<uint32_t> starts;
    for (size_t head = 0; head < queue.size(); ++head) {
        Range range = queue[head];
        const View top = pieces[members[range.first]];
        if (range.depth > 0 && top.size == range.depth) {
            leaves[range.node] = {members[range.first], range.depth};
            longest = std::max<size_t>(longest, range.depth);
            ++range.first;
        }
        if (range.first == range.last) continue;  // base 0 leads to the root's children: never ours
        children.clear();
        starts.clear();
        for (uint32_t i = range.first; i < range.last; ++i) {
            const uint8_t byte = pieces[members[i]].data[range.depth];
            if (children.empty() || children.back() != byte) {
                children.push_back(byte);
                starts.push_back(i);
            }
        }
        starts.push_back(range.last);
        const int32_t base = range.node == 0 ? 1 : place(children);
        units[range.node].base = base;
        for (size_t k = 0; k < children.size(); ++k) {
            const int32_t child = base + children[k];
            take(child);
            units[child].check = range.node;
            queue.push_back({child, starts[k], starts[k + 1], range.depth + 1});
        }
    }
    std::vector<int32_t>().swap(next_free_);
    std::vector<int32_t>().swap(previous_free_);
    size_t used = units.size();
    while (used > 257 && units[used - 1].check == FREE) --used;
    units.resize(used + 256, Unit{0, FREE, 0.0});  // base + any byte stays inside
    leaves.resize(used + 256, Leaf{NO_PIECE, 0});
    units.shrink_to_fit();
    leaves.shrink_to_fit();
}

void Trie::set_values(const double* value, double none) {
    for (size_t node = 0; node < units.size(); ++node)
        units[node].value = leaves[node].id == NO_PIECE ? none : value[leaves[node].id];
}

std::vector<Unit> Trie::with_values(const double* value, double none) const {
    std::vector<Unit> result = units;
    for (size_t node = 0; node < result.size(); ++node)
        result[node].value = leaves[node].id == NO_PIECE ? none : value[leaves[node].id];
    return result;
}

}  // namespace lmlab::tokenize
