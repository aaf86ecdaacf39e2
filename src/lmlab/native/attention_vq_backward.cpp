#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention_vq.h"
#include "attention_vq_tile.h"
#include "parallel.h"

namespace lmlab::attention {
namespace {

constexpr int64_t kKeys = 128;  // single keys a chunk

int64_t whole(int64_t count, int64_t part) { return (count + part - 1) / part * part; }

// Rows of a result, padded to whole vectors while they are summed up.
template <class T>
class Sums {
public:
    Sums(T* to, int64_t rows, int64_t width) : to_(to), rows_(rows), width_(width), padded_(whole(width, Lanes<T>::count)) {
        if (!to) return;
        if (padded_ == width) std::fill(to, to + rows * width, T(0));
        else own_.assign(static_cast<size_t>(rows * padded_), T(0));
    }
    LMLAB_INLINE T* row(int64_t x) { return (own_.empty() ? to_ : own_.data()) + x * padded_; }
    void finish() {
        if (own_.empty()) return;
        for (int64_t x = 0; x < rows_; ++x) std::copy(own_.data() + x * padded_, own_.data() + x * padded_ + width_, to_ + x * width_);
    }

private:
    T* to_;
    int64_t rows_, width_, padded_;
    aligned_vector<T> own_;
};

// The merged keys of one lane while time goes backwards. Dividing a key out of a running mean would lose digits, so
// what a key changed is kept: for one segment of time, replayed from a copy of the state at its start. Segments have
// K s, (K-1) s, .., s keys: the changes of a segment take the room of its copy and of the later ones, which are done
// with, so all of it is K states, about sqrt(2 t s) rows.
template <class T>
class Undo {
public:
    aligned_vector<T> count;  // padded to whole vectors
    Packed<T> mean;        // a code in each lane

    Undo(const T* counts, const T* means, const int64_t* codes, const T* values, const Shape& n)
        : s_(n.s), e_(n.e), codes_(codes), values_(values), count_(counts, counts + n.s), mean_(means, means + n.s * n.e) {
        int64_t longest = 1;
        while (longest * (longest + 1) / 2 * s_ < n.t) ++longest;
        room_.resize(static_cast<size_t>(longest * s_ * (e_ + 1)));
        int64_t end = 0;
        for (int64_t length = longest * s_; end < n.t; length -= s_) {
            for (int64_t j = starts_.empty() ? 0 : starts_.back(); j < end; ++j) add(j);
            T* copy = room_.data() + static_cast<int64_t>(starts_.size()) * s_ * (e_ + 1);
            std::copy(mean_.begin(), mean_.end(), std::copy(count_.begin(), count_.end(), copy));
            starts_.push_back(end);
            end += length;
        }
        open(n.t - 1);
    }

    // To the state before key j was merged; j goes down one by one.
    LMLAB_INLINE void step_back(int64_t j) {
        if (j < opened_) open(j);
        const int64_t code = codes_[j];
        if (code < 0) return;
        const T* old = before_ + (j - opened_) * e_;
        T* to = mean.codes.data() + (code / lanes) * e_ * lanes + code % lanes;
        for (int64_t y = 0; y < e_; ++y) to[y * lanes] = old[y];
        count[static_cast<size_t>(code)] -= T(1);
    }

private:
    static constexpr int64_t lanes = Lanes<T>::count;
    int64_t s_, e_;
    const int64_t* codes_;
    const T* values_;
    aligned_vector<T> count_, mean_;
    aligned_vector<T> room_;          // from the front: copies of the state at each start; at the end: changes
    std::vector<int64_t> starts_;  // first keys of the segments that weren't opened yet
    int64_t opened_ = 0;           // first key of the segment whose changes are kept
    T* before_ = nullptr;          // the mean that each of its keys changed, [keys e]

    LMLAB_INLINE void add(int64_t j) {
        const int64_t code = codes_[j];
        if (code < 0) return;
        T* to = mean_.data() + code * e_;
        const T* value = values_ + j * e_;
        const T share = T(1) / (count_[static_cast<size_t>(code)] += T(1));
        for (int64_t y = 0; y < e_; ++y) to[y] += (value[y] - to[y]) * share;
    }

    void open(int64_t last) {
        opened_ = starts_.back();
        starts_.pop_back();
        const T* copy = room_.data() + static_cast<int64_t>(starts_.size()) * s_ * (e_ + 1);
        count_.assign(copy, copy + s_);
        mean_.assign(copy + s_, copy + s_ * (e_ + 1));
        before_ = room_.data() + static_cast<int64_t>(room_.size()) - (last + 1 - opened_) * e_;
        for (int64_t j = opened_; j <= last; ++j) {
            const T* now = mean_.data() + std::max<int64_t>(codes_[j], 0) * e_;
            std::copy(now, now + e_, before_ + (j - opened_) * e_);
            add(j);
        }
        mean.pack(mean_.data(), s_, e_);
        count = count_;
        count.resize(static_cast<size_t>(whole(s_, lanes)), T(0));
    }
};

// Values with a key in each lane, a few chunks at a time.
template <class T>
class Chunks {
public:
    Chunks(const T* values, int64_t span, int64_t e, int64_t held)
        : values_(values), span_(span), e_(e), packed_(static_cast<size_t>(held)), holds_(static_cast<size_t>(held), -1) {}

    const Packed<T>& at(int64_t number) {
        const size_t slot = static_cast<size_t>(number) % packed_.size();
        if (holds_[slot] != number) {
            const int64_t begin = number * kKeys;
            packed_[slot].pack(values_ + begin * e_, std::min(kKeys, span_ - begin), e_);
            holds_[slot] = number;
        }
        return packed_[slot];
    }

private:
    const T* values_;
    int64_t span_, e_;
    std::vector<Packed<T>> packed_;
    std::vector<int64_t> holds_;
};

int64_t floor_multiple(int64_t x, int64_t of) { return (x >= 0 ? x / of : -((of - 1 - x) / of)) * of; }

template <class T>
LMLAB_INLINE void backward_lane(const States<T>& all, const Gradient<T>& g, const Shape& n, int64_t lane, const Packed<T>& packed) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    constexpr T none = -std::numeric_limits<T>::infinity();
    const int64_t head = lane % n.heads, span = n.r + n.t;
    const int64_t wide_d = whole(n.d, lanes), wide_e = whole(n.e, lanes), wide_s = whole(n.s, lanes);
    const T* q = all.q + lane * n.m * n.t * n.d;
    const T* grad = g.grad + lane * n.m * n.t * n.e;
    const T* lse = all.lse + lane * n.m * n.t;
    const T* dots = g.dot + lane * n.m * n.t;
    T* dq = g.dq + lane * n.m * n.t * n.d;
    const int64_t* codes = all.codes + lane * span;
    const T* values = all.values + lane * span * n.e;
    const T* bias = all.bias ? all.bias + head * n.m * n.w : nullptr;
    T* dbias = g.dbias ? g.dbias + lane * n.m * n.w : nullptr;
    if (dbias) std::fill(dbias, dbias + n.m * n.w, T(0));
    Sums<T> dk(g.dk ? g.dk + lane * n.t * n.d : nullptr, n.t, n.d), dv(g.dv + lane * n.t * n.e, n.t, n.e);
    Sums<T> dcodebook(g.dcodebook ? g.dcodebook + lane * n.s * n.d : nullptr, n.s, n.d);

    aligned_vector<T> padded_book;
    const T* book = all.codebook + head * n.s * n.d;
    if (wide_d != n.d) {
        padded_book.assign(static_cast<size_t>(n.s * wide_d), T(0));
        for (int64_t c = 0; c < n.s; ++c) std::copy(book + c * n.d, book + (c + 1) * n.d, padded_book.data() + c * wide_d);
        book = padded_book.data();
    }

    const int64_t time = std::max<int64_t>(1, kRows / n.m), rows = time * n.m;
    const auto buffer = [&](int64_t width) { return aligned_vector<T>(static_cast<size_t>(rows * width), T(0)); };
    auto queries = buffer(wide_d), grads = buffer(wide_e), scores = buffer(wide_s), shares = buffer(wide_s), changes = buffer(wide_s);
    auto weight = buffer(kKeys), change = buffer(kKeys), heard = buffer(kKeys), mixed = buffer(wide_d);
    aligned_vector<T> later(static_cast<size_t>(n.s * wide_e), T(0));  // sum of do times the weight of one key of each code
    const auto pointers = [&](aligned_vector<T>& of, int64_t width) {
        std::vector<T*> each(static_cast<size_t>(rows));
        for (int64_t row = 0; row < rows; ++row) each[static_cast<size_t>(row)] = of.data() + row * width;
        return each;
    };
    const auto query_rows = pointers(queries, wide_d), grad_rows = pointers(grads, wide_e), share_rows = pointers(shares, wide_s);
    const auto change_rows = pointers(changes, wide_s), weight_rows = pointers(weight, kKeys), heard_rows = pointers(heard, kKeys);
    const auto mixed_rows = pointers(mixed, wide_d);
    const auto query = [&](int64_t row) { return query_rows[static_cast<size_t>(row)]; };
    const auto gradient = [&](int64_t row) { return grad_rows[static_cast<size_t>(row)]; };

    const int64_t tile_count = (n.t + time - 1) / time;
    const int64_t all_chunks = (span + kKeys - 1) / kKeys;
    // chunks that a tile looks at; while it goes backwards each is packed once
    const int64_t reaches = std::min(span, (g.dk ? g.reach + g.back : 0) + n.r + time) / kKeys + 2;
    Chunks<T> chunks(values, span, n.e, std::min(all_chunks, reaches));
    Undo<T> far(all.count + lane * n.s, all.mean + lane * n.s * n.e, codes, values, n);

    for (int64_t tile = tile_count - 1; tile >= 0; --tile) {
        const int64_t start = tile * time, here = std::min(time, n.t - start), count = here * n.m;
        // these keys were merged after the tile's rows: what later rows owe them, and back to before
        for (int64_t j = start + here - 1; j >= start; --j) {
            if (codes[j] >= 0 && j >= n.r) {
                T* to = dv.row(j - n.r);
                const T* owed = later.data() + codes[j] * wide_e;
                for (int64_t y = 0; y < wide_e; y += lanes) store(to + y, load(to + y) + load(owed + y));
            }
            far.step_back(j);
        }
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = (row / here) * n.t + start + row % here;
            std::copy(q + at * n.d, q + (at + 1) * n.d, queries.data() + row * wide_d);
            std::copy(grad + at * n.e, grad + (at + 1) * n.e, grads.data() + row * wide_e);
        }
        for (int64_t row = 0; row < count; row += 4) {
            const int64_t four = std::min<int64_t>(4, count - row);
            rows_by_codes(query_rows.data() + row, four, packed, n.d, [&](int64_t i, int64_t vec, const V& x) {
                store(scores.data() + (row + i) * wide_s + vec * lanes, x * all.scale);
            });
            rows_by_codes(grad_rows.data() + row, four, far.mean, n.e, [&](int64_t i, int64_t vec, const V& x) {
                store(changes.data() + (row + i) * wide_s + vec * lanes, x);
            });
        }
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = (row / here) * n.t + start + row % here;
            const V level = V{} + std::max(lse[at], std::numeric_limits<T>::lowest()), dot = V{} + dots[at], zero{};
            const T* score = scores.data() + row * wide_s;
            for (int64_t c = 0; c < wide_s; c += lanes) {
                const V number = load(far.count.data() + c);
                const V x = load(score + c) - level;
                const V share = number > zero ? exp_negative(x < zero ? x : zero) : zero;
                store(shares.data() + row * wide_s + c, share);
                T* change_of = changes.data() + row * wide_s + c;
                store(change_of, number > zero ? share * number * (load(change_of) - dot) : zero);
            }
        }
        mix_onto<T>(share_rows.data(), count, 0, n.s, gradient, wide_e / lanes, [&](int64_t c) { return later.data() + c * wide_e; });

        const auto first_heard = [&](int64_t i) {
            return g.dk ? std::max(n.r, n.r + floor_multiple(g.first + i, g.reach) - g.first - g.back) : span;
        };
        const int64_t begin = std::min(start, first_heard(start)), end = n.r + start + here - (n.strict ? 1 : 0);
        for (int64_t number = begin / kKeys; number * kKeys < end; ++number) {
            const Packed<T>& chunk = chunks.at(number);
            const int64_t base = number * kKeys;
            const int64_t low = std::max(begin, base) - base, high = std::min(end, base + kKeys) - base;
            const int64_t from = low / lanes * lanes, to = whole(high, lanes);
            for (int64_t row = 0; row < count; row += 4) {
                const int64_t four = std::min<int64_t>(4, count - row);
                rows_by_codes(grad_rows.data() + row, four, chunk, n.e, from / lanes, to / lanes, [&](int64_t i, int64_t vec, const V& x) {
                    store(change.data() + (row + i) * kKeys + vec * lanes, x);
                });
            }
            for (int64_t row = 0; row < count; ++row) {
                const int64_t i = row % here, at = (row / here) * n.t + start + i;
                const int64_t own = n.r + start + i - base, last = own - (n.strict ? 1 : 0);
                const T* score = scores.data() + row * wide_s;
                T* logit = weight.data() + row * kKeys;
                T* d = change.data() + row * kKeys;
                T* h = heard.data() + row * kKeys;
                const int64_t stop = std::min(high, last + 1);
                std::fill(logit + from, logit + to, none);
                for (int64_t j = low; j < stop; ++j) logit[j] = codes[base + j] < 0 ? none : score[codes[base + j]];
                const int64_t near = std::max(std::max(low, start - base), own - n.w + 1);
                if (bias) {
                    const T* b = bias + (row / here) * n.w;
                    for (int64_t j = near; j < stop; ++j) logit[j] += b[own - j];
                }
                const V level = V{} + std::max(lse[at], std::numeric_limits<T>::lowest()), dot = V{} + dots[at], zero{};
                for (int64_t j = from; j < to; j += lanes) {
                    const V x = load(logit + j) - level;
                    const V w = exp_negative(x < zero ? x : zero);
                    store(logit + j, w);
                    store(d + j, w > zero ? w * (load(d + j) - dot) : zero);
                }
                const int64_t single = std::max(low, start - base);
                T* by_code = changes.data() + row * wide_s;
                for (int64_t j = single; j < stop; ++j)
                    if (codes[base + j] >= 0) by_code[codes[base + j]] += d[j];
                if (dbias) {
                    T* b = dbias + (row / here) * n.w;
                    for (int64_t j = near; j < stop; ++j) b[own - j] += d[j];
                }
                if (g.dk) {
                    const int64_t hears = std::min(std::max(first_heard(start + i) - base, low), high);
                    std::fill(h + low, h + hears, T(0));
                    for (int64_t j = hears; j < high; ++j) h[j] = d[j] * all.scale;
                }
            }
            const int64_t kept = std::max(low, n.r - base);  // keys of the state get no gradient
            const int64_t single = std::max(kept, start - base);
            mix_onto<T>(weight_rows.data(), count, single, high, gradient, wide_e / lanes, [&](int64_t j) { return dv.row(base + j - n.r); });
            if (g.dk)
                mix_onto<T>(heard_rows.data(), count, kept, high, query, wide_d / lanes, [&](int64_t j) { return dk.row(base + j - n.r); });
        }

        for (int64_t x = 0; x < count * wide_s; ++x) changes[static_cast<size_t>(x)] *= all.scale;
        std::fill(mixed.begin(), mixed.end(), T(0));
        mix<T>(change_rows.data(), count, n.s, [&](int64_t c) { return book + c * wide_d; }, wide_d / lanes, mixed_rows.data());
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = (row / here) * n.t + start + row % here;
            std::copy(mixed.data() + row * wide_d, mixed.data() + row * wide_d + n.d, dq + at * n.d);
        }
        if (g.dcodebook)
            mix_onto<T>(change_rows.data(), count, 0, n.s, query, wide_d / lanes, [&](int64_t c) { return dcodebook.row(c); });
    }
    dk.finish();
    dv.finish();
    dcodebook.finish();
}

LMLAB_MULTIVERSION void backward_f32(const States<float>& all, const Gradient<float>& g, const Shape& n, int64_t lane, const Packed<float>& packed) {
    backward_lane(all, g, n, lane, packed);
}
LMLAB_MULTIVERSION void backward_f64(const States<double>& all, const Gradient<double>& g, const Shape& n, int64_t lane, const Packed<double>& packed) {
    backward_lane(all, g, n, lane, packed);
}

}  // namespace

void backward(const States<float>& all, const Gradient<float>& g, const Shape& n, int threads) {
    const auto packed = pack_all(all.codebook, n);
    parallel_for(threads, n.lanes, 1, [&](int64_t begin, int64_t end) {
        for (int64_t lane = begin; lane < end; ++lane) backward_f32(all, g, n, lane, packed[lane % n.heads]);
    });
}
void backward(const States<double>& all, const Gradient<double>& g, const Shape& n, int threads) {
    const auto packed = pack_all(all.codebook, n);
    parallel_for(threads, n.lanes, 1, [&](int64_t begin, int64_t end) {
        for (int64_t lane = begin; lane < end; ++lane) backward_f64(all, g, n, lane, packed[lane % n.heads]);
    });
}

}  // namespace lmlab::attention
