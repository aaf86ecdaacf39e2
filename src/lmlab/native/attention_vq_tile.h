// Pieces of the kernels of VQ attention: products of a few rows with all codes, weighted sums of rows, exponentials.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "aligned.h"
#include "attention_vq.h"
#include "dispatch.h"
#include "simd.h"

namespace lmlab::attention {

using namespace lmlab::simd;

constexpr int64_t kRows = 16;  // query rows a tile: the codebook and the means are read once for all of them

// The codes of one head with a code in each vector lane, [s/lanes][d][lanes], and half their squared norms.
template <class T>
struct Packed {
    static constexpr int64_t lanes = Lanes<T>::count;
    int64_t vectors = 0;
    aligned_vector<T> codes, half;

    void pack(const T* codebook, int64_t s, int64_t d) {
        vectors = (s + lanes - 1) / lanes;
        codes.assign(static_cast<size_t>(vectors * d * lanes), T(0));
        half.assign(static_cast<size_t>(vectors * lanes), std::numeric_limits<T>::infinity());
        for (int64_t c = 0; c < s; ++c) {
            T* to = codes.data() + (c / lanes) * d * lanes + c % lanes;
            T norm = 0;
            for (int64_t x = 0; x < d; ++x) {
                to[x * lanes] = codebook[c * d + x];
                norm += codebook[c * d + x] * codebook[c * d + x];
            }
            half[static_cast<size_t>(c)] = norm / 2;
        }
    }
};

// Products of R rows with two vectors of codes: each lane sums over d in the same order, so equal codes give
// equal results to the last bit.
template <class T, int R, class V = typename Lanes<T>::vector>
LMLAB_INLINE void products(const T* const* rows, const T* a, const T* b, int64_t d, V (&left)[R], V (&right)[R]) {
    constexpr int64_t lanes = Lanes<T>::count;
    for (int i = 0; i < R; ++i) left[i] = right[i] = V{};
    for (int64_t x = 0; x < d; ++x) {
        const V va = load(a + x * lanes), vb = load(b + x * lanes);
        for (int i = 0; i < R; ++i) {
            const T one = rows[i][x];
            left[i] += va * one;
            right[i] += vb * one;
        }
    }
}

// Scores of up to 4 rows on the vectors [begin, end) of codes: store(i, vector index, products).
template <class T, class Store>
LMLAB_INLINE void rows_by_codes(const T* const* rows, int64_t count, const Packed<T>& packed, int64_t d, int64_t begin, int64_t end, Store&& store) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const T* four[4];
    for (int64_t i = 0; i < 4; ++i) four[i] = rows[std::min(i, count - 1)];
    for (int64_t vec = begin; vec < end; vec += 2) {
        const T* a = packed.codes.data() + vec * d * lanes;
        const T* b = vec + 1 < end ? a + d * lanes : a;
        V left[4], right[4];
        products<T, 4>(four, a, b, d, left, right);
        for (int64_t i = 0; i < count; ++i) {
            store(i, vec, left[i]);
            if (vec + 1 < end) store(i, vec + 1, right[i]);
        }
    }
}

// The same on all codes.
template <class T, class Store>
LMLAB_INLINE void rows_by_codes(const T* const* rows, int64_t count, const Packed<T>& packed, int64_t d, Store&& store) {
    rows_by_codes(rows, count, packed, d, 0, packed.vectors, store);
}

// The sum of all lanes, by halves.
LMLAB_INLINE float sum_lanes(f32x16 x) {
    using f32x8 = float __attribute__((vector_size(32)));
    using f32x4 = float __attribute__((vector_size(16)));
    f32x8 low, high;
    std::memcpy(&low, &x, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
    low += high;
    f32x4 first, second;
    std::memcpy(&first, &low, sizeof first);
    std::memcpy(&second, reinterpret_cast<const char*>(&low) + sizeof first, sizeof second);
    first += second;
    return (first[0] + first[2]) + (first[1] + first[3]);
}
LMLAB_INLINE double sum_lanes(f64x8 x) {
    using f64x4 = double __attribute__((vector_size(32)));
    f64x4 low, high;
    std::memcpy(&low, &x, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}

// The sums of all lanes of four vectors; each is summed in the order of sum_lanes.
LMLAB_INLINE void sum_lanes_of_four(const f32x16* x, float* out) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
    using f32x8 = float __attribute__((vector_size(32)));
    using f32x4 = float __attribute__((vector_size(16)));
    f32x4 part[4];
    for (int i = 0; i < 4; ++i) {
        const f32x8 half = __builtin_shufflevector(x[i], x[i], 0, 1, 2, 3, 4, 5, 6, 7) +
                           __builtin_shufflevector(x[i], x[i], 8, 9, 10, 11, 12, 13, 14, 15);
        part[i] = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
    }
    const f32x4 low = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) + __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
    const f32x4 high = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) + __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
    const f32x4 sum = __builtin_shufflevector(low, high, 0, 1, 4, 5) + __builtin_shufflevector(low, high, 2, 3, 6, 7);
    std::memcpy(out, &sum, sizeof sum);
    return;
#endif
#endif
    for (int i = 0; i < 4; ++i) out[i] = sum_lanes(x[i]);
}
LMLAB_INLINE void sum_lanes_of_four(const f64x8* x, double* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum_lanes(x[i]);
}

template <class T>
LMLAB_INLINE T dot(const T* a, const T* b, int64_t d) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    V sum{};
    int64_t x = 0;
    for (; x + lanes <= d; x += lanes) sum += load(a + x) * load(b + x);
    T rest = sum_lanes(sum);
    for (; x < d; ++x) rest += a[x] * b[x];
    return rest;
}

// out[i] += sum over k of weight(i, k) * row(k), R rows at a time, W vectors wide from the vector `first` on.
// Rows whose weights are all 0 may hold anything finite.
template <class T, int R, int W, class Weight, class Row>
LMLAB_INLINE void mix_part(const Weight& weight, int64_t count, const Row& row, int64_t first, T* const* out) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    V sum[R][W];
    for (int i = 0; i < R; ++i)
        for (int x = 0; x < W; ++x) sum[i][x] = load(out[i] + (first + x) * lanes);
    for (int64_t k = 0; k < count; ++k) {
        const T* values = row(k) + first * lanes;
        V v[W];
        for (int x = 0; x < W; ++x) v[x] = load(values + x * lanes);
        for (int i = 0; i < R; ++i) {
            const T one = weight(i, k);
            for (int x = 0; x < W; ++x) sum[i][x] += v[x] * one;
        }
    }
    for (int i = 0; i < R; ++i)
        for (int x = 0; x < W; ++x) store(out[i] + (first + x) * lanes, sum[i][x]);
}

template <class T, int R, class Weight, class Row>
LMLAB_INLINE void mix_rows(const Weight& weight, int64_t count, const Row& row, int64_t vectors, T* const* out) {
    int64_t x = 0;
    for (; x + 4 <= vectors; x += 4) mix_part<T, R, 4>(weight, count, row, x, out);
    for (; x < vectors; ++x) mix_part<T, R, 1>(weight, count, row, x, out);
}

// out[i] += sum over k of weights[i][k] * row(k) for `rows` rows of out.
template <class T, class Row>
LMLAB_INLINE void mix(const T* const* weights, int64_t rows, int64_t count, const Row& row, int64_t vectors, T* const* out) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4)
        mix_rows<T, 4>([&](int64_t one, int64_t k) { return weights[i + one][k]; }, count, row, vectors, out + i);
    for (; i < rows; ++i) mix_rows<T, 1>([&](int64_t, int64_t k) { return weights[i][k]; }, count, row, vectors, out + i);
}

// The transposed product: out(c) += sum over the `rows` rows of weights[row][c] * row(row), for c in [begin, end).
template <class T, class Row, class Out>
LMLAB_INLINE void mix_onto(const T* const* weights, int64_t rows, int64_t begin, int64_t end, const Row& row, int64_t vectors, const Out& out) {
    int64_t c = begin;
    for (; c + 4 <= end; c += 4) {
        T* const four[4] = {out(c), out(c + 1), out(c + 2), out(c + 3)};
        mix_rows<T, 4>([&](int64_t one, int64_t k) { return weights[k][c + one]; }, rows, row, vectors, four);
    }
    for (; c < end; ++c) {
        T* const one[1] = {out(c)};
        mix_rows<T, 1>([&](int64_t, int64_t k) { return weights[k][c]; }, rows, row, vectors, one);
    }
}

// logits -> exp(logits - top), in place; returns the sum. `count` is a multiple of the lanes.
template <class T>
LMLAB_INLINE T exponentials(T* logits, int64_t count, T top) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    V sum{};
    for (int64_t x = 0; x < count; x += lanes) {
        const V e = exp_negative(load(logits + x) - (V{} + top));
        store(logits + x, e);
        sum += e;
    }
    return sum_lanes(sum);
}

template <class T>
LMLAB_INLINE T largest(const T* values, int64_t count, T start) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    V top = V{} + start;
    for (int64_t x = 0; x < count; x += lanes) {
        const V v = load(values + x);
        top = v > top ? v : top;
    }
    T all[lanes];
    store(all, top);
    return *std::max_element(all, all + lanes);
}

template <class T>
std::vector<Packed<T>> pack_all(const T* codebook, const Shape& n) {
    std::vector<Packed<T>> packed(static_cast<size_t>(n.heads));
    for (int64_t head = 0; head < n.heads; ++head) packed[head].pack(codebook + head * n.s * n.d, n.s, n.d);
    return packed;
}

}  // namespace lmlab::attention
