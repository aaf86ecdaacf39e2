// Suffixes are dealt into buckets by their first two bytes; each bucket is sorted alone, which bounds the memory,
// lets workers share the work, and gives Ctrl-C a place to come through.
#include "tokenize_seeds.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace lmlab::tokenize {

namespace {

constexpr size_t BUCKETS = 1 << 16;

struct Suffix {
    uint64_t key;  // bytes 2 .. 9, big endian, so that most comparisons are one of integers
    uint32_t position;
};

struct Candidate {
    uint32_t position;
    uint32_t length;
    uint64_t count;
    uint64_t gain() const { return count * length; }
};

bool continues(uint8_t byte) { return (byte & 0xC0) == 0x80; }
bool digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

// The greatest gains of what was pushed, in at most twice `keep` places.
class Best {
public:
    Best(size_t keep, const uint8_t* bytes) : keep_(keep), bytes_(bytes) {}
    void push(const Candidate& candidate) {
        if (kept_.size() == 2 * keep_) cut();
        if (candidate.gain() >= least_) kept_.push_back(candidate);
    }
    void cut() {
        if (kept_.size() <= keep_) return;
        std::nth_element(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(keep_), kept_.end(),
                         [&](const Candidate& a, const Candidate& b) { return before(a, b); });
        kept_.resize(keep_);
        least_ = kept_.back().gain();
        for (const Candidate& candidate : kept_) least_ = std::min(least_, candidate.gain());
    }
    std::vector<Candidate>& kept() { return kept_; }

private:
    bool before(const Candidate& a, const Candidate& b) const {
        if (a.gain() != b.gain()) return a.gain() > b.gain();
        return compare({bytes_ + a.position, a.length}, {bytes_ + b.position, b.length}) < 0;
    }
    size_t keep_;
    const uint8_t* bytes_;
    uint64_t least_ = 0;
    std::vector<Candidate> kept_;
};

// How far a piece that begins at each byte may reach: to the end of its chunk, or to a digit.
std::vector<uint8_t> reach(const Corpus& corpus) {
    const Rules& rules = corpus.rules();
    const int64_t longest = std::min<int64_t>(rules.max_piece_bytes, 255);
    std::vector<uint8_t> room(corpus.bytes().size(), 0);
    for (const Corpus::Chunk& chunk : corpus.chunks()) {
        int64_t run = 0;
        for (int64_t i = chunk.start + chunk.size - 1; i >= chunk.start; --i) {
            run = rules.split_digits && digit(corpus.bytes()[i]) ? 0 : run + 1;
            room[i] = static_cast<uint8_t>(std::min(run, longest));
        }
    }
    return room;
}

class BucketWork {
public:
    BucketWork(const Corpus& corpus, const std::vector<uint8_t>& room, bool repeats, uint64_t min_count, Best& best)
        : corpus_(corpus), bytes_(corpus.bytes().data()), room_(room), repeats_(repeats), min_count_(min_count),
          best_(best) {}

    void run(const uint32_t* positions, size_t count) {
        sort(positions, count);
        intervals();
    }

private:
    void sort(const uint32_t* positions, size_t count) {
        suffixes_.resize(count);
        for (size_t i = 0; i < count; ++i) {
            uint64_t key = 0;
            const int64_t tail = std::min<int64_t>(room_[positions[i]] - 2, 8);
            for (int64_t k = 0; k < tail; ++k)
                key |= static_cast<uint64_t>(bytes_[positions[i] + 2 + k]) << (56 - 8 * k);
            suffixes_[i] = {key, positions[i]};
        }
        std::sort(suffixes_.begin(), suffixes_.end(), [&](const Suffix& a, const Suffix& b) {
            if (a.key != b.key) return a.key < b.key;
            const int order = compare(view(a.position), view(b.position));
            return order != 0 ? order < 0 : a.position < b.position;
        });
    }

    View view(uint32_t position) const { return {bytes_ + position, room_[position]}; }

    uint32_t common(uint32_t a, uint32_t b) const {
        const uint32_t most = std::min(room_[a], room_[b]);
        uint32_t length = 2;
        while (length < most && bytes_[a + length] == bytes_[b + length]) ++length;
        return length;
    }

    uint64_t weight(uint32_t position) const {
        if (!repeats_) return 1;
        const auto& chunks = corpus_.chunks();
        auto after = std::upper_bound(chunks.begin(), chunks.end(), static_cast<int64_t>(position),
                                      [](int64_t p, const Corpus::Chunk& chunk) { return p < chunk.start; });
        return (after - 1)->count;
    }

    // Walks the tree of common prefixes with a stack; a node of it is an interval of suffixes.
    void intervals() {
        std::vector<Node>& stack = stack_;
        stack.clear();
        stack.push_back({1, 0});
        uint32_t shared_before = 1;
        for (size_t i = 0; i < suffixes_.size(); ++i) {
            const uint32_t position = suffixes_[i].position;
            const uint32_t shared =
                i + 1 < suffixes_.size() ? common(position, suffixes_[i + 1].position) : 1;
            const uint64_t own = weight(position);
            const uint32_t parent = std::max(shared_before, shared);
            if (room_[position] > parent) offer(position, room_[position], parent, own);  // a leaf
            if (shared > stack.back().length) stack.push_back({shared, 0});
            stack.back().count += own;
            while (stack.back().length > shared) {
                const Node node = stack.back();
                stack.pop_back();
                offer(position, node.length, std::max(stack.back().length, shared), node.count);
                if (stack.back().length < shared) stack.push_back({shared, 0});
                stack.back().count += node.count;
            }
            shared_before = shared;
        }
    }

    void offer(uint32_t position, uint32_t length, uint32_t parent, uint64_t count) {
        if (count < min_count_) return;
        if (corpus_.rules().characters_whole) {
            for (int back = 0; back < 3 && !whole_characters({bytes_ + position, length}); ++back) --length;
            if (length <= parent || !whole_characters({bytes_ + position, length})) return;
        }
        if (length >= 2) best_.push({position, length, count});
    }

    const Corpus& corpus_;
    const uint8_t* bytes_;
    const std::vector<uint8_t>& room_;
    const bool repeats_;  // some chunk stands for more than one
    const uint64_t min_count_;
    Best& best_;
    std::vector<Suffix> suffixes_;
    struct Node {
        uint32_t length;
        uint64_t count;
    };
    std::vector<Node> stack_;
};

}  // namespace

bool whole_characters(View piece) {
    for (int64_t i = 0; i < piece.size;) {
        const uint8_t lead = piece.data[i];
        const int length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
        if (length == 0 || i + length > piece.size) return false;
        for (int k = 1; k < length; ++k)
            if (!continues(piece.data[i + k])) return false;
        if (length >= 3) {
            const uint8_t second = piece.data[i + 1];
            if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F)) return false;
            if ((lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)) return false;
        }
        i += length;
    }
    return true;
}

Seeds find_seeds(const Corpus& corpus, uint64_t min_count, size_t keep, int workers, const Interrupt& interrupt) {
    const uint8_t* bytes = corpus.bytes().data();
    const size_t size = corpus.bytes().size();
    const std::vector<uint8_t> room = reach(corpus);
    auto begins = [&](size_t i) {
        return room[i] >= 2 && !(corpus.rules().characters_whole && continues(bytes[i]));
    };
    auto bucket = [&](size_t i) { return static_cast<size_t>(bytes[i]) << 8 | bytes[i + 1]; };

    std::vector<uint32_t> start(BUCKETS + 1, 0);
    for (size_t i = 0; i < size; ++i)
        if (begins(i)) ++start[bucket(i) + 1];
    for (size_t b = 0; b < BUCKETS; ++b) start[b + 1] += start[b];
    std::vector<uint32_t> positions(start[BUCKETS]);
    {
        std::vector<uint32_t> next(start.begin(), start.end() - 1);
        for (size_t i = 0; i < size; ++i)
            if (begins(i)) positions[next[bucket(i)]++] = static_cast<uint32_t>(i);
    }
    interrupt.poll();

    const bool repeats = std::any_of(corpus.chunks().begin(), corpus.chunks().end(),
                                     [](const Corpus::Chunk& chunk) { return chunk.count > 1; });
    Best all(keep, bytes);
    std::mutex merging;
    parallel_for(workers, BUCKETS, 256, [&](int64_t begin, int64_t end) {
        Best best(keep, bytes);
        BucketWork work(corpus, room, repeats, min_count, best);
        for (int64_t b = begin; b < end; ++b) {
            if (start[b + 1] == start[b]) continue;
            work.run(positions.data() + start[b], start[b + 1] - start[b]);
            interrupt.poll();
        }
        std::lock_guard<std::mutex> guard(merging);
        for (const Candidate& candidate : best.kept()) all.push(candidate);
    });
    all.cut();

    std::vector<Candidate>& kept = all.kept();
    auto view = [&](const Candidate& c) { return View{bytes + c.position, c.length}; };
    std::sort(kept.begin(), kept.end(),
              [&](const Candidate& a, const Candidate& b) { return compare(view(a), view(b)) < 0; });
    Seeds seeds;
    for (const Candidate& candidate : kept) {
        seeds.pieces.push(view(candidate));
        seeds.counts.push_back(candidate.count);
    }
    return seeds;
}

}  // namespace lmlab::tokenize
