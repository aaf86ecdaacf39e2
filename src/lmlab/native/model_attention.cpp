#include "model_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "aligned.h"
#include "dispatch.h"
#include "model_tile.h"

namespace lmlab::model {
namespace {

using simd::exp_negative;
using simd::first_lanes;
using simd::Lanes;
using simd::load;
using simd::narrow;
using simd::store;
using simd::widen;

constexpr int64_t block = 16;  // query rows that go through softmax together

LMLAB_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Room for the arrays of one piece of work, each on a cache line, zero at first.
template <class S>
class Scratch {
   public:
    explicit Scratch(int64_t numbers) : room_(static_cast<size_t>(numbers) + 16 * line, S(0)), next_(room_.data()) {}
    S* take(int64_t numbers) {
        S* const taken = next_;
        next_ += round_up(numbers, line);
        return taken;
    }

   private:
    static constexpr int64_t line = 64 / sizeof(S);
    aligned_vector<S> room_;
    S* next_;
};

// Sizes that both passes need: a key head's rows, padded to whole vectors and whole panels.
template <class S>
struct Padded {
    static constexpr int64_t L = Lanes<S>::count, width = 2 * L;
    int64_t stride, e, t, group;
    explicit Padded(const AttentionShape& n)
        : stride((n.h + 2 * n.g) * n.e), e(round_up(n.e, L)), t(round_up(n.t, width)), group(n.h / n.g) {}
    // Columns of the keys that the query rows from `start` on may see, in whole panels.
    int64_t columns(int64_t start) const { return std::min(round_up(start + block, width), t); }
};

// to[0..e) = factor times the head `from`, turned by its position's angles; sign -1 turns it back.
template <class S, class From, class To>
LMLAB_INLINE void turn(const From* from, const S* cosines, const S* sines, S sign, S factor, const AttentionShape& n, To* to) {
    for (int64_t i = 0; i < n.m; ++i) {
        const S first = static_cast<S>(widen(from[i])), second = static_cast<S>(widen(from[i + n.m]));
        const S cosine = cosines[i] * factor, sine = sines[i] * sign * factor;
        narrow(to + i, first * cosine - second * sine);
        narrow(to + i + n.m, second * cosine + first * sine);
    }
    for (int64_t i = 2 * n.m; i < n.e; ++i) narrow(to + i, static_cast<S>(widen(from[i])) * factor);
}

// Rows [t, stride e_pad] as panels [t / width][e][width]: the layout that `multiply` reads in order.
template <class S>
LMLAB_INLINE void transpose(const S* rows, int64_t t, int64_t e, int64_t e_pad, S* panels) {
    constexpr int64_t width = Padded<S>::width;
    for (int64_t j = 0; j < t; ++j) {
        S* const column = panels + j / width * (e * width) + j % width;
        for (int64_t i = 0; i < e; ++i) column[i * width] = rows[j * e_pad + i];
    }
}

// out [block, columns] = a [block, e] times panels.
template <class S>
LMLAB_INLINE void times_panels(const S* a, int64_t e, int64_t e_pad, const S* panels, int64_t columns, S* out) {
    constexpr int64_t width = Padded<S>::width;
    for (int64_t j = 0; j < columns; j += width)
        multiply<S>(a, e_pad, 1, panels + j * e, width, out + j, columns, block, width, e, false);
}

// The first `valid` logits of a row become e^(logit - most), the others 0; their sum, and most.
template <class S>
LMLAB_INLINE double softmax_row(S* row, int64_t valid, int64_t columns, S* most) {
    using V = typename Lanes<S>::vector;
    constexpr int64_t L = Lanes<S>::count;
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    V largest = V{} + lowest;
    for (int64_t j = 0; j < valid; j += L) {
        const V part = first_lanes(load(row + j), std::min(L, valid - j), lowest);
        largest = part > largest ? part : largest;
    }
    *most = lowest;
    for (int64_t lane = 0; lane < L; ++lane) *most = std::max(*most, static_cast<S>(largest[lane]));
    V sum = {};
    int64_t j = 0;
    for (; j < valid; j += L) {
        const V weight = first_lanes(exp_negative(load(row + j) - *most), std::min(L, valid - j), S(0));
        sum += weight;
        store(row + j, weight);
    }
    for (; j < columns; j += L) store(row + j, V{});
    return simd::lanes_sum(sum);
}

template <class S, class T>
LMLAB_INLINE void forward(const AttentionTensors<S, T>& x, const AttentionShape& n, int64_t pair) {
    const Padded<S> pad(n);
    const int64_t row = pair / n.g, head = pair % n.g;
    const T* const base = x.qkv + row * n.t * pad.stride;
    Scratch<S> room(2 * pad.t * pad.e + pad.t * n.e + block * (2 * pad.e + pad.t));
    S* const keys = room.take(pad.t * pad.e);
    S* const values = room.take(pad.t * pad.e);
    S* const panels = room.take(pad.t * n.e);
    S* const queries = room.take(block * pad.e);
    S* const mixed = room.take(block * pad.e);
    S* const weights = room.take(block * pad.t);
    for (int64_t j = 0; j < n.t; ++j) {
        const T* const key = base + j * pad.stride + (n.h + head) * n.e;
        turn(key, x.cosines + j * n.m, x.sines + j * n.m, S(1), S(1), n, keys + j * pad.e);
        for (int64_t i = 0; i < n.e; ++i) values[j * pad.e + i] = static_cast<S>(widen(key[n.g * n.e + i]));
    }
    transpose(keys, n.t, n.e, pad.e, panels);
    for (int64_t q = head * pad.group; q < (head + 1) * pad.group; ++q) {
        for (int64_t start = 0; start < n.t; start += block) {
            const int64_t rows = std::min(block, n.t - start), columns = pad.columns(start);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t i = start + r;
                turn(base + i * pad.stride + q * n.e, x.cosines + i * n.m, x.sines + i * n.m, S(1),
                     static_cast<S>(n.scale), n, queries + r * pad.e);
            }
            times_panels(queries, n.e, pad.e, panels, columns, weights);
            S inverse[block] = {};
            for (int64_t r = 0; r < rows; ++r) {
                S most;
                const double sum = softmax_row(weights + r * columns, start + r + 1, columns, &most);
                inverse[r] = static_cast<S>(1 / sum);
                x.lse[(row * n.h + q) * n.t + start + r] = static_cast<S>(most + std::log(sum));
            }
            multiply<S>(weights, columns, 1, values, pad.e, mixed, pad.e, block, pad.e, std::min(start + block, pad.t), false);
            for (int64_t r = 0; r < rows; ++r) {
                T* const out = x.out + ((row * n.t + start + r) * n.h + q) * n.e;
                for (int64_t i = 0; i < n.e; ++i) narrow(out + i, mixed[r * pad.e + i] * inverse[r]);
            }
        }
    }
}

template <class S, class T>
LMLAB_INLINE void backward(const AttentionTensors<S, T>& x, const AttentionShape& n, int64_t pair) {
    using V = typename Lanes<S>::vector;
    constexpr int64_t L = Lanes<S>::count;
    const Padded<S> pad(n);
    const int64_t row = pair / n.g, head = pair % n.g;
    const T* const base = x.qkv + row * n.t * pad.stride;
    T* const d_base = x.d_qkv + row * n.t * pad.stride;
    Scratch<S> room(4 * pad.t * pad.e + 2 * pad.t * n.e + block * (3 * pad.e + 2 * pad.t));
    S* const keys = room.take(pad.t * pad.e);
    S* const values = room.take(pad.t * pad.e);
    S* const d_keys = room.take(pad.t * pad.e);
    S* const d_values = room.take(pad.t * pad.e);
    S* const key_panels = room.take(pad.t * n.e);
    S* const value_panels = room.take(pad.t * n.e);
    S* const queries = room.take(block * pad.e);
    S* const d_queries = room.take(block * pad.e);
    S* const d_mixed = room.take(block * pad.e);
    S* const weights = room.take(block * pad.t);
    S* const d_weights = room.take(block * pad.t);
    for (int64_t j = 0; j < n.t; ++j) {
        const T* const key = base + j * pad.stride + (n.h + head) * n.e;
        turn(key, x.cosines + j * n.m, x.sines + j * n.m, S(1), S(1), n, keys + j * pad.e);
        for (int64_t i = 0; i < n.e; ++i) values[j * pad.e + i] = static_cast<S>(widen(key[n.g * n.e + i]));
    }
    transpose(keys, n.t, n.e, pad.e, key_panels);
    transpose(values, n.t, n.e, pad.e, value_panels);
    for (int64_t q = head * pad.group; q < (head + 1) * pad.group; ++q) {
        for (int64_t start = 0; start < n.t; start += block) {
            const int64_t rows = std::min(block, n.t - start), columns = pad.columns(start);
            const int64_t seen = std::min(start + block, pad.t);
            S inner[block];
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t i = start + r, place = ((row * n.t + i) * n.h + q) * n.e;
                turn(base + i * pad.stride + q * n.e, x.cosines + i * n.m, x.sines + i * n.m, S(1),
                     static_cast<S>(n.scale), n, queries + r * pad.e);
                inner[r] = 0;
                for (int64_t c = 0; c < n.e; ++c) {
                    const S d_out = static_cast<S>(widen(x.d_out[place + c]));
                    d_mixed[r * pad.e + c] = d_out;
                    inner[r] += d_out * static_cast<S>(widen(x.out[place + c]));
                }
            }
            times_panels(queries, n.e, pad.e, key_panels, columns, weights);
            times_panels(d_mixed, n.e, pad.e, value_panels, columns, d_weights);
            for (int64_t r = 0; r < block; ++r) {
                S* const w = weights + r * columns;
                S* const d = d_weights + r * columns;
                const int64_t valid = r < rows ? start + r + 1 : 0;
                const S lse = r < rows ? x.lse[(row * n.h + q) * n.t + start + r] : S(0);
                int64_t j = 0;
                for (; j < valid; j += L) {
                    const V p = first_lanes(exp_negative(load(w + j) - lse), std::min(L, valid - j), S(0));
                    store(w + j, p);
                    store(d + j, first_lanes(p * (load(d + j) - inner[r]), std::min(L, valid - j), S(0)));
                }
                for (; j < columns; j += L) {
                    store(w + j, V{});
                    store(d + j, V{});
                }
            }
            multiply<S>(d_weights, columns, 1, keys, pad.e, d_queries, pad.e, block, pad.e, seen, false);
            multiply<S>(weights, 1, columns, d_mixed, pad.e, d_values, pad.e, seen, pad.e, rows, true);
            multiply<S>(d_weights, 1, columns, queries, pad.e, d_keys, pad.e, seen, pad.e, rows, true);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t i = start + r;
                turn(d_queries + r * pad.e, x.cosines + i * n.m, x.sines + i * n.m, S(-1), static_cast<S>(n.scale), n,
                     d_base + i * pad.stride + q * n.e);
            }
        }
    }
    for (int64_t j = 0; j < n.t; ++j) {
        T* const d_key = d_base + j * pad.stride + (n.h + head) * n.e;
        turn(d_keys + j * pad.e, x.cosines + j * n.m, x.sines + j * n.m, S(-1), S(1), n, d_key);
        for (int64_t i = 0; i < n.e; ++i) narrow(d_key + n.g * n.e + i, d_values[j * pad.e + i]);
    }
}

// The dispatcher of instruction sets takes plain functions only.
#define LMLAB_PAIRS(name, pass, S, T)                                                                        \
    LMLAB_MULTIVERSION void name(const AttentionTensors<S, T>& x, const AttentionShape& n, int64_t begin, int64_t end) { \
        for (int64_t pair = begin; pair < end; ++pair) pass(x, n, pair);                                     \
    }
LMLAB_PAIRS(forward_f32, forward, float, float)
LMLAB_PAIRS(forward_f64, forward, double, double)
LMLAB_PAIRS(forward_bf16, forward, float, bfloat16)
LMLAB_PAIRS(backward_f32, backward, float, float)
LMLAB_PAIRS(backward_f64, backward, double, double)
LMLAB_PAIRS(backward_bf16, backward, float, bfloat16)
#undef LMLAB_PAIRS

}  // namespace

void attend(const AttentionTensors<float, float>& x, const AttentionShape& n, int64_t begin, int64_t end) {
    forward_f32(x, n, begin, end);
}
void attend(const AttentionTensors<double, double>& x, const AttentionShape& n, int64_t begin, int64_t end) {
    forward_f64(x, n, begin, end);
}
void attend(const AttentionTensors<float, bfloat16>& x, const AttentionShape& n, int64_t begin, int64_t end) {
    forward_bf16(x, n, begin, end);
}
void attend_backward(const AttentionTensors<float, float>& x, const AttentionShape& n, int64_t begin, int64_t end) {
    backward_f32(x, n, begin, end);
}
void attend_backward(const AttentionTensors<double, double>& x, const AttentionShape& n, int64_t begin, int64_t end) {
    backward_f64(x, n, begin, end);
}
void attend_backward(const AttentionTensors<float, bfloat16>& x, const AttentionShape& n, int64_t begin, int64_t end) {
    backward_bf16(x, n, begin, end);
}

}  // namespace lmlab::model
