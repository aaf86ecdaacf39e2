// The hot loops. All positions of a text are reachable, because every byte is a piece.
#include "tokenize_segment.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "dispatch.h"

namespace lmlab::tokenize {

namespace {
constexpr double NO_SCORE = -std::numeric_limits<double>::infinity();
constexpr int64_t BLOCK = 4096;  // bytes whose lists of matches stay in the first cache

constexpr int64_t AHEAD = 12;  // bytes that lists are asked for ahead of their use
LMLAB_INLINE void prefetch([[maybe_unused]] const void* address) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(address);
#endif
}

// The best score so far with its piece. Candidates come longest first, and only a strictly better one replaces:
// on ties the longest last piece stays.
struct Best {
    double score;
    uint64_t piece;

    LMLAB_INLINE void take(double other, uint64_t other_piece) {
        const bool better = other > score;
        score = better ? other : score;
        piece = choose(better, other_piece, piece);
    }
};

// The scores of the best paths to the last 256 positions, and to the one just reached.
struct Front {
    double ring[256];  // by position modulo 256
    double here = 0.0;

    void start(int64_t longest) {  // nothing reaches over the beginning of a text
        for (int64_t i = 1; i <= longest; ++i) ring[256 - i] = NO_SCORE;
        ring[0] = here = 0.0;
    }
};

// Goes from byte `from` to byte `to` of a text; back[e] becomes the last piece of the best path to e.
void relax(const Matches& scores, const uint8_t* text, int64_t from, int64_t to, const uint32_t* lists, Front& front,
           uint64_t* back) {
    const Match* pairs = scores.pairs.data();
    double here = front.here;
    for (int64_t end = from + 1; end <= to; ++end) {
        const Match* list = pairs + 2 * static_cast<size_t>(lists[end - from - 1]);
        prefetch(pairs + 2 * static_cast<size_t>(lists[std::min(end + AHEAD, to) - from - 1]));
        auto score = [&](const Match& match) {
            return front.ring[static_cast<uint8_t>(end - length_of(match.piece))] + match.value;
        };
        Best best{score(list[0]), list[0].piece};
        best.take(score(list[1]), list[1].piece);
        while (list[1].piece & MORE) {
            list += 2;
            Best next{score(list[0]), list[0].piece};
            next.take(score(list[1]), list[1].piece);
            best.take(next.score, next.piece);
        }
        const Match& single = scores.singles[text[end - 1]];  // the last candidate: it needn't wait for the ring
        const double last = here + single.value;
        const bool longer = best.score >= last;
        here = longer ? best.score : last;
        back[end] = choose(longer, best.piece, single.piece);
        front.ring[static_cast<uint8_t>(end)] = here;
    }
    front.here = here;
}

// Appends the ids of the path that `back` holds; returns how many they are.
int64_t trace(const uint64_t* back, int64_t size, Rooms& rooms, std::vector<uint32_t>& ids) {
    uint32_t* const last = rooms.ids(size) + size;  // written from the end on
    uint32_t* first = last;
    for (int64_t end = size; end > 0; end -= length_of(back[end])) *--first = id_of(back[end]);
    ids.insert(ids.end(), first, last);
    return last - first;
}
}  // namespace

void segment_best(const Automaton& ending, const Matches& scores, const Texts& texts, Rooms& rooms,
                  std::vector<uint32_t>& ids, int64_t* counts) {
    std::fill(counts, counts + texts.count, 0);
    const int64_t total = texts.ends[texts.count - 1];
    uint32_t* lists = rooms.lists(std::min(total, BLOCK));
    uint64_t* back = nullptr;
    Front front;
    size_t i = 0;
    int64_t begin = 0;  // of text i
    for (int64_t block = 0; block < total; block += BLOCK) {
        const int64_t stop = std::min(total, block + BLOCK);
        ending.find({texts.bytes, total}, block, stop, lists);
        for (int64_t at = block; at < stop;) {
            while (texts.ends[i] == begin) ++i;  // empty texts
            const int64_t end = texts.ends[i], to = std::min(end, stop);
            if (at == begin) {
                front.start(ending.longest);
                back = rooms.back(end - begin + 1);
            }
            relax(scores, texts.bytes + begin, at - begin, to - begin, lists + (at - block), front, back);
            at = to;
            if (to < end) continue;
            if (!(front.here > NO_SCORE)) throw std::overflow_error("the scores of a text add up to less than -1.7e308: give smaller scores");
            counts[i++] = trace(back, end - begin, rooms, ids);
            begin = end;
        }
    }
}

// Backward sums B are kept as B[a] * 2^(STEP * scale[a]), with B[a] within 2^-STEP .. 2^STEP: no logarithm, and
// no overflow, because a weight has at most 2^577 and 877 + 8 bits fit.
namespace {
constexpr int STEP = 300;
constexpr double SMALL = 0x1.0p-300, LARGE = 0x1.0p300;

double scaled(double term, int32_t by) {  // times 2^(STEP * by)
    for (; by < 0 && term > 0.0; ++by) term *= SMALL;
    for (; by > 0; --by) term *= LARGE;
    return term;
}

// The sum over all pieces that begin at a byte, where the sums that they lead to differ in scale.
double sum_apart(const Match* list, const Match& single, const double* sums, int32_t* scales) {
    int32_t scale = scales[1];
    double sum = single.value * sums[1];
    auto add = [&](const Match& match) {
        const uint8_t length = length_of(match.piece);
        double term = match.value * sums[length];
        if (!(term > 0.0)) return;
        // To the smaller scale, that of the greater magnitude. What falls below the smallest double in doing so
        // is less than 2^-300 of the sum.
        if (scales[length] < scale) {
            sum = scaled(sum, scales[length] - scale);
            scale = scales[length];
        } else {
            term = scaled(term, scale - scales[length]);
        }
        sum += term;
    };
    for (;; list += 2) {
        add(list[0]);
        add(list[1]);
        if (!(list[1].piece & MORE)) break;
    }
    scales[0] = scale;
    return sum;
}

void sum_backward(const Matches& weights, const uint8_t* text, int64_t size, const uint32_t* lists, int64_t longest,
                  double* sums, int32_t* scales) {
    const Match* pairs = weights.pairs.data();
    int64_t even = std::numeric_limits<int64_t>::max();  // the last position that has the scale of the next byte's
    double here = sums[size] = 1.0;
    std::fill(sums + size + 1, sums + size + 1 + longest, 0.0);  // nothing reaches over the end
    int32_t scale = scales[size] = 0;
    for (int64_t start = size - 1; start >= 0; --start) {
        const Match* list = pairs + 2 * static_cast<size_t>(lists[start]);
        const Match& single = weights.singles[text[start]];
        if (start + longest <= even) {
            auto term = [&](const Match& match) { return match.value * sums[start + length_of(match.piece)]; };
            double sum = term(list[0]) + term(list[1]);
            while (list[1].piece & MORE) {
                list += 2;
                sum += term(list[0]) + term(list[1]);
            }
            here = sum + single.value * here;  // last: the next byte waits for it
        } else {
            here = sum_apart(list, single, sums + start, scales + start);
            if (scales[start] != scale) even = start;
            scale = scales[start];
        }
        if (here < SMALL || here > LARGE) {
            while (here < SMALL) here *= LARGE, ++scale;
            while (here > LARGE) here *= SMALL, --scale;
            even = start;
        }
        sums[start] = here;
        scales[start] = scale;
    }
}

// The piece that a draw takes at a byte: sums, scales from that byte on.
LMLAB_INLINE uint64_t draw(const Match* list, const Match& single, const double* sums, const int32_t* scales,
                           double uniform) {
    double rest = uniform * sums[0];
    uint64_t chosen = single.piece;  // where rounding leaves rest >= 0, the last piece closes the interval
    auto take = [&](const Match& match) {
        const uint8_t length = length_of(match.piece);
        double term = match.value * sums[length];
        if (!(term > 0.0)) return false;
        if (scales[length] != scales[0]) term = scaled(term, scales[0] - scales[length]);
        chosen = match.piece;
        rest -= term;
        return rest < 0.0;
    };
    if (take(single)) return chosen;
    while (!take(list[0]) && !take(list[1]) && (list[1].piece & MORE)) list += 2;
    return chosen;
}
}  // namespace

void segment_draw(const Automaton& beginning, const Matches& weights, const Texts& texts, uint64_t seed,
                  uint64_t stream, Rooms& rooms, std::vector<uint32_t>& ids, int64_t* counts) {
    const int64_t total = texts.ends[texts.count - 1];
    uint32_t* lists = rooms.lists(total);
    beginning.find({texts.bytes, total}, 0, total, lists);
    const Match* pairs = weights.pairs.data();
    int64_t begin = 0;
    for (size_t i = 0; i < texts.count; ++i) {
        const int64_t size = texts.ends[i] - begin;
        const uint8_t* text = texts.bytes + begin;
        double* sums = rooms.sums(size + 1 + beginning.longest);
        int32_t* scales = rooms.scales(size + 1 + beginning.longest);
        sum_backward(weights, text, size, lists + begin, beginning.longest, sums, scales);
        Random random(seed, stream + i);
        const size_t before = ids.size();
        for (int64_t at = 0; at < size;) {
            const uint64_t piece = draw(pairs + 2 * static_cast<size_t>(lists[begin + at]), weights.singles[text[at]],
                                        sums + at, scales + at, random.uniform());
            ids.push_back(id_of(piece));
            at += length_of(piece);
        }
        counts[i] = static_cast<int64_t>(ids.size() - before);
        begin = texts.ends[i];
    }
}

}  // namespace lmlab::tokenize
