// Building the double array.
#include "tokenize_trie.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "tokenize_cells.h"

namespace lmlab::tokenize {

namespace {
constexpr int32_t FREE = -1;
}  // namespace

int compare(View a, View b) {
    const int order = std::memcmp(a.data, b.data, static_cast<size_t>(std::min(a.size, b.size)));
    if (order != 0) return order;
    return a.size < b.size ? -1 : a.size > b.size;
}

Trie::Trie(const Strings& pieces, std::vector<uint32_t> members) {
    auto before = [&](uint32_t a, uint32_t b) { return compare(pieces[a], pieces[b]) < 0; };
    if (!std::is_sorted(members.begin(), members.end(), before)) std::sort(members.begin(), members.end(), before);

    struct Range {  // the members that share the path to `node`, which is `depth` bytes long
        int32_t node;
        uint32_t first, last, depth;
    };
    Cells cells(static_cast<size_t>(std::numeric_limits<int32_t>::max()) - 512);
    for (int32_t cell = 0; cell <= 256; ++cell) cells.take(cell);  // the root and its children, the single bytes
    auto fit = [&] {
        units.resize(cells.size(), Unit{0, FREE, 0.0});
        leaves.resize(cells.size(), Leaf{NO_PIECE, 0});
    };
    fit();
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
        const int32_t base = range.node == 0 ? 1 : cells.place(children, [](int32_t) { return true; });
        fit();
        units[range.node].base = base;
        for (size_t k = 0; k < children.size(); ++k) {
            const int32_t child = base + children[k];
            if (range.node > 0) cells.take(child);
            units[child].check = range.node;
            queue.push_back({child, starts[k], starts[k + 1], range.depth + 1});
        }
    }
    units.resize(cells.end() + 256, Unit{0, FREE, 0.0});  // base + any byte stays inside
    leaves.resize(cells.end() + 256, Leaf{NO_PIECE, 0});
    units.shrink_to_fit();
    leaves.shrink_to_fit();
}

void Trie::set_values(const double* value, double none) {
    for (size_t node = 0; node < units.size(); ++node)
        units[node].value = leaves[node].id == NO_PIECE ? none : value[leaves[node].id];
}

}  // namespace lmlab::tokenize
