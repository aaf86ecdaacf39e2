// Building the automaton, and the sweep over a text.
#include "tokenize_automaton.h"

#include <algorithm>

#include "tokenize_cells.h"

namespace lmlab::tokenize {

namespace {
constexpr int BASE_SHIFT = 9, LIST_SHIFT = 36;
constexpr uint64_t CHECK_MASK = (1u << BASE_SHIFT) - 1, BASE_MASK = (uint64_t{1} << (LIST_SHIFT - BASE_SHIFT)) - 1;
constexpr uint64_t NOBODY = 256;
constexpr size_t MOST_LISTS = size_t{1} << (64 - LIST_SHIFT);

Strings reversed(const Strings& pieces) {
    Strings result = pieces;
    for (size_t i = 0; i < pieces.size(); ++i)
        std::reverse(result.bytes.begin() + pieces.offsets[i], result.bytes.begin() + pieces.offsets[i + 1]);
    return result;
}

// The prefixes of all members, by length and then by bytes: the children of a node lie together.
struct Prefixes {
    Prefixes(const Strings& strings, std::vector<uint32_t> members);

    size_t size() const { return byte.size(); }
    uint32_t child(uint32_t node, uint8_t x) const {  // 0 if there is none
        const auto from = byte.begin() + children[node], to = byte.begin() + children[node + 1];
        const auto found = std::lower_bound(from, to, x);
        return found != to && *found == x ? static_cast<uint32_t>(found - byte.begin()) : 0;
    }

    std::vector<uint8_t> byte;       // the last one
    std::vector<uint8_t> length;
    std::vector<uint32_t> children;  // of node k: children[k] .. children[k + 1]
    std::vector<uint32_t> piece;     // NO_PIECE if no member ends here
    std::vector<uint32_t> shorter;   // the longest proper suffix that is a prefix too
};

Prefixes::Prefixes(const Strings& strings, std::vector<uint32_t> members) {
    std::sort(members.begin(), members.end(),
              [&](uint32_t a, uint32_t b) { return compare(strings[a], strings[b]) < 0; });
    struct Range {  // the members that begin with a prefix
        uint32_t first, last;
    };
    std::vector<Range> ranges{{0, static_cast<uint32_t>(members.size())}};
    byte.push_back(0);
    length.push_back(0);
    shorter.push_back(0);
    for (uint32_t node = 0; node < ranges.size(); ++node) {
        Range range = ranges[node];
        const uint8_t depth = length[node];
        children.push_back(static_cast<uint32_t>(ranges.size()));
        piece.push_back(NO_PIECE);
        if (strings[members[range.first]].size == depth) piece[node] = members[range.first++];
        while (range.first < range.last) {
            const uint8_t x = strings[members[range.first]].data[depth];
            uint32_t last = range.first;
            while (last < range.last && strings[members[last]].data[depth] == x) ++last;
            ranges.push_back({range.first, last});
            byte.push_back(x);
            length.push_back(static_cast<uint8_t>(depth + 1));
            range.first = last;
        }
        // The children of all shorter prefixes are known by now, and so is where their suffixes lead.
        shorter.resize(ranges.size(), 0);
        for (uint32_t child_ = children[node]; node > 0 && child_ < ranges.size(); ++child_) {
            uint32_t suffix = shorter[node];
            while (!(shorter[child_] = child(suffix, byte[child_])) && suffix > 0) suffix = shorter[suffix];
        }
    }
    children.push_back(static_cast<uint32_t>(ranges.size()));
}
}  // namespace

Automaton::Automaton(const Strings& pieces, std::vector<uint32_t> members, Reading reading) : reading_(reading) {
    const Prefixes nodes(reading == Reading::forward ? pieces : reversed(pieces), std::move(members));
    const size_t count = nodes.size();
    longest = nodes.length.back();

    // Lists: of a piece, itself and the pieces that end with it; of another prefix, that of its suffix. They are
    // laid out by id, since pieces that are used much mostly have the first ids: so these share the cache.
    std::vector<uint32_t> list(count, 0), next(count, 0), heads;
    for (uint32_t node = 1; node < count; ++node) {
        const uint32_t suffix = nodes.shorter[node];
        next[node] = nodes.piece[suffix] != NO_PIECE && nodes.length[suffix] > 1 ? suffix : next[suffix];
        if (nodes.length[node] > 1 && nodes.piece[node] != NO_PIECE) heads.push_back(node);
    }
    std::sort(heads.begin(), heads.end(), [&](uint32_t a, uint32_t b) { return nodes.piece[a] < nodes.piece[b]; });
    pieces_.assign(2, static_cast<uint64_t>(longest) << 32 | NO_PIECE);
    std::vector<uint64_t> found;
    for (uint32_t head : heads) {
        found.clear();
        for (uint32_t node = head; node > 0; node = next[node])
            found.push_back(nodes.piece[node] | static_cast<uint64_t>(nodes.length[node]) << 32);
        if (reading == Reading::backward) std::reverse(found.begin(), found.end());
        for (size_t i = 1; i + 1 < found.size(); i += 2) found[i] |= MORE;
        if (found.size() % 2 == 1) found.push_back(pieces_[0]);
        list[head] = static_cast<uint32_t>(pieces_.size() / 2);
        pieces_.insert(pieces_.end(), found.begin(), found.end());
        if (pieces_.size() / 2 >= MOST_LISTS) throw std::length_error("the pieces are too many for one vocabulary");
    }
    for (uint32_t node = 1; node < count; ++node)
        if (nodes.piece[node] == NO_PIECE) list[node] = list[nodes.shorter[node]];

    // Rows: own children, and those of the suffix's row for other bytes. A prefix without children shares that row.
    struct Child {
        uint8_t byte;
        uint32_t node;
    };
    struct Row {
        size_t first = 0, last = 0;
        int32_t base = 0;  // of the row that nothing leads from
    };
    std::vector<Child> steps;
    std::vector<Row> rows(count);
    std::vector<bool> based;
    std::vector<uint8_t> family;
    Cells cells(BASE_MASK - 256);
    for (int32_t cell = 0; cell < 256; ++cell) cells.take(cell);
    cells_.assign(cells.size(), NOBODY);
    std::vector<uint32_t> leads(cells.size(), 0);  // to which node, by cell
    for (uint32_t node = 1; node < count; ++node) {
        const uint32_t suffix = nodes.shorter[node];
        const Row inherited = nodes.length[suffix] > 2 ? rows[suffix] : Row{};
        uint32_t child = nodes.children[node];
        const uint32_t last = nodes.children[node + 1];
        if (child == last) {
            rows[node] = inherited;
            continue;
        }
        Row row{steps.size(), 0, 0};
        size_t other = inherited.first;
        while (child < last || other < inherited.last) {
            const bool own = other == inherited.last || (child < last && nodes.byte[child] <= steps[other].byte);
            if (own && other < inherited.last && nodes.byte[child] == steps[other].byte) ++other;
            const Child step = own ? Child{nodes.byte[child], child} : steps[other];
            own ? ++child : ++other;
            steps.push_back(step);
        }
        row.last = steps.size();
        family.clear();
        for (size_t i = row.first; i < row.last; ++i) family.push_back(steps[i].byte);
        based.resize(cells.size() + 256);
        row.base = cells.place(family, [&](int32_t base) { return !based[base]; });
        based[row.base] = true;
        leads.resize(cells.size(), 0);
        for (size_t i = row.first; i < row.last; ++i) {
            cells.take(row.base + steps[i].byte);
            leads[row.base + steps[i].byte] = steps[i].node;
        }
        rows[node] = row;
    }
    auto step_to = [&](uint32_t node) {
        return nodes.byte[node] | static_cast<uint64_t>(rows[node].base) << BASE_SHIFT |
               static_cast<uint64_t>(list[node]) << LIST_SHIFT;
    };
    cells_.assign(cells.end() + 256, NOBODY);  // base + any byte stays inside
    for (size_t cell = 256; cell < cells.end(); ++cell)
        if (leads[cell] > 0) cells_[cell] = step_to(leads[cell]);
    for (uint32_t node = 1; node <= 256; ++node) {
        bytes_[nodes.byte[node]] = step_to(node);
        singles_[nodes.byte[node]] = nodes.piece[node];
    }
}

Matches Automaton::matches(const double* value, double none) const {
    Matches result;
    result.pairs.reserve(pieces_.size());
    for (uint64_t piece : pieces_) result.pairs.push_back({id_of(piece) == NO_PIECE ? none : value[id_of(piece)], piece});
    for (int byte = 0; byte < 256; ++byte)
        result.singles[byte] = {value[singles_[byte]], singles_[byte] | uint64_t{1} << 32};
    return result;
}

void Automaton::find(View text, int64_t begin, int64_t end, uint32_t* lists) const {
    if (begin == end) return;
    if (reading_ == Reading::forward) sweep<1>(text.data + begin, begin, end - begin, lists);
    else sweep<-1>(text.data + end - 1, text.size - end, end - begin, lists + (end - begin - 1));
}

// A step waits for the one before, mostly for a cell from the second cache. So a text is cut into lanes
// that advance side by side; a lane has the right state after `longest` bytes, whatever it began with.
template <int STEP>
void Automaton::sweep(const uint8_t* first, int64_t before, int64_t count, uint32_t* lists) const {
    if (count >= 8 * longest) sweep_lanes<STEP, 4>(first, before, count, lists);
    else sweep_lanes<STEP, 1>(first, before, count, lists);
}

template <int STEP, int LANES>
void Automaton::sweep_lanes(const uint8_t* first, int64_t before, int64_t count, uint32_t* lists) const {
    const uint64_t* cells = cells_.data();
    const int64_t each = count / LANES;
    // Of the rows of the state, of the last two bytes and of the last byte, where these begin a piece.
    uint64_t base[LANES] = {}, base_two[LANES] = {}, base_one[LANES] = {};
    auto step = [&](int lane, int64_t at) {
        const uint64_t x = first[STEP * at], one = bytes_[x];
        auto better = [x](uint64_t cell, uint64_t other) { return choose((cell & CHECK_MASK) == x, cell, other); };
        const uint64_t two = better(cells[base_one[lane] + x], one);
        const uint64_t to = better(cells[base[lane] + x], better(cells[base_two[lane] + x], two));
        base[lane] = (to >> BASE_SHIFT) & BASE_MASK;
        base_two[lane] = (two >> BASE_SHIFT) & BASE_MASK;
        base_one[lane] = (one >> BASE_SHIFT) & BASE_MASK;
        return static_cast<uint32_t>(to >> LIST_SHIFT);
    };
    for (int64_t early = longest - 1; early > 0; --early)
        for (int lane = 0; lane < LANES; ++lane)
            if (lane > 0 || early <= before) step(lane, lane * each - early);
    for (int64_t i = 0; i < each; ++i)
        for (int lane = 0; lane < LANES; ++lane) lists[STEP * (lane * each + i)] = step(lane, lane * each + i);
    for (int64_t i = LANES * each; i < count; ++i) lists[STEP * i] = step(LANES - 1, i);
}

}  // namespace lmlab::tokenize
