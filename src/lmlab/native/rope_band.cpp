#include "rope_band.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "aligned.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace lmlab::rope {
namespace {

using namespace lmlab::simd;

constexpr int R = 6;               // query rows of a strip: their sums stay in registers
constexpr int64_t kRows = 16 * R;  // query rows of a tile: they read a tile of keys together
constexpr int64_t kKeys = 96;      // keys of a tile: a multiple of R and of the vectors that `products` takes at once

// Half-open range of the keys that query i meets in part p. Both ends never fall as i rises.
struct Range {
    int64_t from, to;
};
LMLAB_INLINE Range range_of(const Band& band, int p, int64_t i) {
    switch (band.kind) {
        case Band::window:
            if (p == 0) return {std::max<int64_t>(0, i - band.size + 1), i + 1};
            return {0, std::clamp<int64_t>(i - band.size + 1, 0, band.sinks)};
        case Band::split:
            if (p == 0) return {std::max<int64_t>(0, i - band.size + 1), i + 1};
            return {0, std::max<int64_t>(0, i - band.size + 1)};
        case Band::chunks: {
            const int64_t chunk = i / band.size, previous = std::max<int64_t>(0, chunk - 1);
            if (p == 0) return {chunk * band.size, i + 1};
            if (p == 1) return {previous * band.size, chunk * band.size};
            return {0, previous * band.size};
        }
        default:
            return {0, i + 1};
    }
}

// Rows with one row in each vector lane, [rows/lanes][d][lanes], zeros where there is no row.
template <class T>
LMLAB_INLINE void pack(const T* rows, int64_t count, int64_t d, T* to) {
    constexpr int64_t lanes = Lanes<T>::count;
    for (int64_t first = 0; first < count; first += lanes, to += lanes * d) {
        const int64_t here = std::min(lanes, count - first);
        for (int64_t x = 0; x < d; ++x)
            for (int64_t lane = 0; lane < lanes; ++lane) to[x * lanes + lane] = lane < here ? rows[(first + lane) * d + x] : T(0);
    }
}

template <class T>
LMLAB_INLINE int64_t packed_size(int64_t count, int64_t d) {
    return (count + kKeys - 1) / kKeys * kKeys * d;
}

// Rows widened with zeros to whole vectors; the rows themselves where they already are whole.
template <class T>
LMLAB_INLINE const T* widened(const T* rows, int64_t count, int64_t d, int64_t width, aligned_vector<T>& space) {
    if (d == width) return rows;
    space.assign(static_cast<size_t>(count * width), T(0));
    for (int64_t j = 0; j < count; ++j) std::copy(rows + j * d, rows + (j + 1) * d, space.data() + j * width);
    return space.data();
}

// to[i][lane] = scale * rows[i] . packed, for R rows (a missing one repeats the last) and vectors first ... last
// of packed rows, W at a time; `first` and `last` are multiples of W.
template <class T, int W>
LMLAB_INLINE void products(const T* rows, int64_t stride, int64_t count, const T* packed, int64_t d, int64_t first, int64_t last, T scale, T* to, int64_t width) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const T* row[R];
    for (int i = 0; i < R; ++i) row[i] = rows + std::min<int64_t>(i, count - 1) * stride;
    for (int64_t g = first; g < last; g += W) {
        const T* columns = packed + g * lanes * d;
        V sum[R][W];
        for (int i = 0; i < R; ++i)
            for (int w = 0; w < W; ++w) sum[i][w] = V{};
        for (int64_t x = 0; x < d; ++x) {
            V column[W];
            for (int w = 0; w < W; ++w) column[w] = load(columns + (w * d + x) * lanes);
            for (int i = 0; i < R; ++i) {
                const V one = V{} + row[i][x];
                for (int w = 0; w < W; ++w) sum[i][w] += column[w] * one;
            }
        }
        for (int i = 0; i < R; ++i)
            for (int w = 0; w < W; ++w) store(to + i * width + (g + w) * lanes, sum[i][w] * scale);
    }
}

// to[i] += sum over k of weight(i, k) * rows[k] for R rows, W vectors wide; weight(i, k) lies at
// weights[i * by_row + k * by_term]. A tile's sum is made by itself: fewer roundings than one long chain.
template <class T, int W>
LMLAB_INLINE void mix_vectors(const T* weights, int64_t by_row, int64_t by_term, int64_t terms, const T* rows, int64_t stride, T* to, int64_t to_stride) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    V sum[R][W];
    for (int i = 0; i < R; ++i)
        for (int w = 0; w < W; ++w) sum[i][w] = V{};
    for (int64_t k = 0; k < terms; ++k) {
        V value[W];
        for (int w = 0; w < W; ++w) value[w] = load(rows + k * stride + w * lanes);
        const T* weight = weights + k * by_term;
        for (int i = 0; i < R; ++i) {
            const V one = V{} + weight[i * by_row];
            for (int w = 0; w < W; ++w) sum[i][w] += value[w] * one;
        }
    }
    for (int i = 0; i < R; ++i)
        for (int w = 0; w < W; ++w) store(to + i * to_stride + w * lanes, load(to + i * to_stride + w * lanes) + sum[i][w]);
}

template <class T, int W>
LMLAB_INLINE void mix(const T* weights, int64_t by_row, int64_t by_term, int64_t terms, const T* rows, int64_t width, T* to, int64_t to_stride) {
    constexpr int64_t lanes = Lanes<T>::count;
    int64_t x = 0;
    for (; x + W * lanes <= width; x += W * lanes) mix_vectors<T, W>(weights, by_row, by_term, terms, rows + x, width, to + x, to_stride);
    for (; x < width; x += lanes) mix_vectors<T, 1>(weights, by_row, by_term, terms, rows + x, width, to + x, to_stride);
}

// The keys of a tile that a strip of query rows meets in one part.
template <int W, int64_t lanes>
struct Cut {
    int64_t first, last;  // vectors, multiples of W
    LMLAB_INLINE Cut(const Band& band, int p, int64_t i_first, int64_t i_last, int64_t tile, int64_t tile_end) {
        const int64_t from = std::max(range_of(band, p, i_first).from, tile) - tile;
        const int64_t to = std::min(range_of(band, p, i_last).to, tile_end) - tile;
        const bool none = to <= from;
        first = none ? 0 : from / (W * lanes) * W;
        last = none ? 0 : (to + W * lanes - 1) / (W * lanes) * W;
    }
};

// Fills the logits of one row that lie outside its own range of keys.
template <class T>
LMLAB_INLINE void mask_row(T* logits, int64_t first, int64_t last, Range range, int64_t tile, T fill) {
    const int64_t from = std::clamp(range.from - tile, first, last), to = std::clamp(range.to - tile, from, last);
    std::fill(logits + first, logits + from, fill);
    std::fill(logits + to, logits + last, fill);
}

template <class T>
LMLAB_INLINE void add_slope(T* logits, int64_t first, int64_t last, int64_t tile, int64_t i, T slope) {
    for (int64_t x = first; x < last; ++x) logits[x] += slope * static_cast<T>(tile + x - i);
}

// Largest lane and sum of lanes, by halves: a chain of four steps, not of sixteen.
template <class T, int64_t lanes>
LMLAB_INLINE T lanes_largest(const T (&all)[lanes]) {
    if constexpr (lanes == 1) {
        return all[0];
    } else {
        T half[lanes / 2];
        for (int64_t x = 0; x < lanes / 2; ++x) half[x] = all[x] > all[x + lanes / 2] ? all[x] : all[x + lanes / 2];
        return lanes_largest(half);
    }
}
template <class T, int64_t lanes>
LMLAB_INLINE T lanes_total(const T (&all)[lanes]) {
    if constexpr (lanes == 1) {
        return all[0];
    } else {
        T half[lanes / 2];
        for (int64_t x = 0; x < lanes / 2; ++x) half[x] = all[x] + all[x + lanes / 2];
        return lanes_total(half);
    }
}

template <class T>
LMLAB_INLINE T largest(const T* values, int64_t count) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    V top = V{} - std::numeric_limits<T>::infinity();
    for (int64_t x = 0; x < count; x += lanes) {
        const V v = load(values + x);
        top = v > top ? v : top;
    }
    T all[lanes];
    store(all, top);
    return lanes_largest(all);
}

// What one head of keys is read as.
template <class T>
struct Keys {
    const T* packed[kParts];
    const T* rows[kParts];  // widened; for the backward pass
    const T* values;        // widened
    const T* values_packed;
};

// One tile of query rows of one head.
// W: vectors at once in `products`, M: in `mix`.
template <class T, int W, int M>
LMLAB_INLINE void forward_tile(const Tensors<T>& all, const Shape& n, const Band& band, const Keys<T>& keys, int64_t lane, int64_t start) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    constexpr T none = -std::numeric_limits<T>::infinity();
    const int64_t width = (n.d + lanes - 1) / lanes * lanes;
    const int64_t rows = std::min(kRows, n.t - start);
    const int64_t offset = all.offset[lane / n.h] + start;
    const T slope = all.slopes ? all.slopes[lane % n.h] : T(0);
    aligned_vector<T> mixed(static_cast<size_t>(kRows * width), T(0));
    T top[kRows], total[kRows], weights[R * kKeys];
    std::fill(top, top + kRows, none);
    std::fill(total, total + kRows, T(0));

    for (int p = 0; p < n.parts; ++p) {
        const T* q = all.q[p] + (lane * n.t + start) * n.d;
        const int64_t begin = range_of(band, p, offset).from, end = std::min(range_of(band, p, offset + rows - 1).to, n.keys);
        for (int64_t tile = begin / kKeys * kKeys; tile < end; tile += kKeys) {
            const int64_t tile_end = std::min(tile + kKeys, end);
            for (int64_t strip = 0; strip < rows; strip += R) {
                const int64_t here = std::min<int64_t>(R, rows - strip), i = offset + strip;
                const Cut<W, lanes> cut(band, p, i, i + here - 1, tile, tile_end);
                if (cut.last == 0) continue;
                const int64_t first = cut.first * lanes, last = cut.last * lanes;
                products<T, W>(q + strip * n.d, n.d, here, keys.packed[p] + tile * n.d, n.d, cut.first, cut.last, static_cast<T>(n.scale), weights, kKeys);
                for (int64_t row = 0; row < here; ++row) {
                    T* logit = weights + row * kKeys;
                    if (slope != 0) add_slope(logit, first, last, tile, i + row, slope);
                    mask_row(logit, first, last, range_of(band, p, i + row), tile, none);
                    T& high = top[strip + row];
                    T& sum = total[strip + row];
                    const T higher = std::max(high, largest(logit + first, last - first));
                    if (higher == none) {  // no key for this row here
                        std::fill(logit + first, logit + last, T(0));
                        continue;
                    }
                    if (higher != high) {
                        const T shrink = std::exp(high - higher);
                        sum *= shrink;
                        T* out = mixed.data() + (strip + row) * width;
                        for (int64_t x = 0; x < width; x += lanes) store(out + x, load(out + x) * shrink);
                        high = higher;
                    }
                    V sums{};
                    for (int64_t x = first; x < last; x += lanes) {
                        const V e = exp_negative(load(logit + x) - high);
                        store(logit + x, e);
                        sums += e;
                    }
                    T all_sums[lanes];
                    store(all_sums, sums);
                    sum += lanes_total(all_sums);
                }
                for (int64_t row = here; row < R; ++row) std::fill(weights + row * kKeys + first, weights + row * kKeys + last, T(0));
                const int64_t terms = std::min(last, n.keys - tile) - first;
                mix<T, M>(weights + first, kKeys, 1, terms, keys.values + (tile + first) * width, width, mixed.data() + strip * width, width);
            }
        }
    }
    for (int64_t row = 0; row < rows; ++row) {
        const T share = 1 / total[row];
        const T* from = mixed.data() + row * width;
        T* out = all.out + (lane * n.t + start + row) * n.d;
        for (int64_t x = 0; x < n.d; ++x) out[x] = from[x] * share;
        all.top[lane * n.t + start + row] = top[row], all.share[lane * n.t + start + row] = share;
    }
}

// All query rows of one head; d_k, d_v and `d_keys`, `d_values` are widened.
template <class T, int W, int M>
LMLAB_INLINE void backward_head(const Tensors<T>& all, const Gradients<T>& grads, const Shape& n, const Band& band, const Keys<T>& keys, int64_t lane, T* const* d_keys, T* d_values) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t width = (n.d + lanes - 1) / lanes * lanes;
    const T slope = all.slopes ? all.slopes[lane % n.h] : T(0);
    const T scale = static_cast<T>(n.scale);
    aligned_vector<T> queries_space, grads_space, d_queries(static_cast<size_t>(kRows * width));
    aligned_vector<T> weights(static_cast<size_t>(kRows * kKeys)), slants(weights);
    T delta[kRows];

    for (int64_t start = 0; start < n.t; start += kRows) {
        const int64_t rows = std::min(kRows, n.t - start), place = lane * n.t + start;
        const int64_t offset = all.offset[lane / n.h] + start;
        const T* d_out = grads.d_out + place * n.d;
        const T* out = all.out + place * n.d;
        for (int64_t row = 0; row < rows; ++row) {
            T sum = 0;
            for (int64_t x = 0; x < n.d; ++x) sum += d_out[row * n.d + x] * out[row * n.d + x];
            delta[row] = sum;
        }
        const T* wide_d_out = widened(d_out, rows, n.d, width, grads_space);
        for (int p = 0; p < n.parts; ++p) {
            const T* q = all.q[p] + place * n.d;
            const int64_t begin = range_of(band, p, offset).from, end = std::min(range_of(band, p, offset + rows - 1).to, n.keys);
            if (end <= begin) continue;
            const T* wide_q = widened(q, rows, n.d, width, queries_space);
            std::fill(d_queries.begin(), d_queries.end(), T(0));
            for (int64_t tile = begin / kKeys * kKeys; tile < end; tile += kKeys) {
                const int64_t tile_end = std::min(tile + kKeys, end);
                int64_t low = rows, high = 0, left = kKeys, right = 0;  // the rows and keys that meet in this tile
                for (int64_t strip = 0; strip < rows; strip += R) {
                    const int64_t here = std::min<int64_t>(R, rows - strip), i = offset + strip;
                    const Cut<W, lanes> cut(band, p, i, i + here - 1, tile, tile_end);
                    if (cut.last == 0) continue;
                    low = std::min(low, strip), high = strip + here;
                    left = std::min(left, cut.first * lanes), right = std::max(right, cut.last * lanes);
                }
                left = left / R * R, right = (right + R - 1) / R * R;
                for (int64_t strip = low; strip < high; strip += R) {
                    const int64_t here = std::min<int64_t>(R, rows - strip), i = offset + strip;
                    const Cut<W, lanes> cut(band, p, i, i + here - 1, tile, tile_end);
                    const int64_t first = cut.first * lanes, last = cut.last * lanes;
                    T* weight = weights.data() + strip * kKeys;
                    T* slant = slants.data() + strip * kKeys;
                    products<T, W>(q + strip * n.d, n.d, here, keys.packed[p] + tile * n.d, n.d, cut.first, cut.last, scale, weight, kKeys);
                    products<T, W>(d_out + strip * n.d, n.d, here, keys.values_packed + tile * n.d, n.d, cut.first, cut.last, T(1), slant, kKeys);
                    for (int64_t row = 0; row < R; ++row) {
                        T* w = weight + row * kKeys;
                        T* s = slant + row * kKeys;
                        if (row >= here || first == last) {
                            std::fill(w, w + kKeys, T(0)), std::fill(s, s + kKeys, T(0));
                            continue;
                        }
                        if (slope != 0) add_slope(w, first, last, tile, i + row, slope);
                        mask_row(w, first, last, range_of(band, p, i + row), tile, -std::numeric_limits<T>::infinity());
                        const T top = all.top[place + strip + row], total = all.share[place + strip + row], mean = delta[strip + row];
                        for (int64_t x = first; x < last; x += lanes) {
                            const V share = exp_negative(load(w + x) - top) * total;
                            store(w + x, share);
                            store(s + x, share * (load(s + x) - mean) * scale);
                        }
                        std::fill(w + left, w + std::max(left, first), T(0)), std::fill(w + last, w + std::max(right, last), T(0));
                        std::fill(s + left, s + std::max(left, first), T(0)), std::fill(s + last, s + std::max(right, last), T(0));
                    }
                    const int64_t terms = std::min(last, n.keys - tile) - first;
                    if (terms > 0) mix<T, M>(slant + first, kKeys, 1, terms, keys.rows[p] + (tile + first) * width, width, d_queries.data() + strip * width, width);
                }
                // d_keys and d_values hold whole tiles, so that R keys at a time may pass the last key
                for (int64_t key = left; key < right; key += R) {
                    mix<T, M>(weights.data() + low * kKeys + key, 1, kKeys, high - low, wide_d_out + low * width, width, d_values + (tile + key) * width, width);
                    mix<T, M>(slants.data() + low * kKeys + key, 1, kKeys, high - low, wide_q + low * width, width, d_keys[p] + (tile + key) * width, width);
                }
            }
            T* d_q = grads.d_q[p] + place * n.d;
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t x = 0; x < n.d; ++x) d_q[row * n.d + x] += d_queries[row * width + x];
        }
    }
}

#define LMLAB_ROPE_ENTRIES(NAME, T, ATTRIBUTE, W, M)                                                                    \
    ATTRIBUTE void forward_##NAME(const Tensors<T>& all, const Shape& n, const Band& band, const Keys<T>& keys,         \
                                  int64_t lane, int64_t start) {                                                        \
        forward_tile<T, W, M>(all, n, band, keys, lane, start);                                                         \
    }                                                                                                                   \
    ATTRIBUTE void backward_##NAME(const Tensors<T>& all, const Gradients<T>& grads, const Shape& n, const Band& band,  \
                                   const Keys<T>& keys, int64_t lane, T* const* d_keys, T* d_values) {                  \
        backward_head<T, W, M>(all, grads, n, band, keys, lane, d_keys, d_values);                                      \
    }

// With 32 registers of 64 bytes a strip holds 6 x 4 sums; elsewhere 6 x 1 fills 12 to 24 registers.
LMLAB_ROPE_ENTRIES(narrow, float, LMLAB_MULTIVERSION, 1, 1)
LMLAB_ROPE_ENTRIES(narrow, double, LMLAB_MULTIVERSION, 1, 1)
#if defined(__x86_64__) && defined(__linux__)
#define LMLAB_WIDE __attribute__((target("arch=x86-64-v4")))
LMLAB_ROPE_ENTRIES(wide, float, LMLAB_WIDE, 3, 4)
LMLAB_ROPE_ENTRIES(wide, double, LMLAB_WIDE, 3, 4)
bool is_wide() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
LMLAB_ROPE_ENTRIES(wide, float, , 1, 1)
LMLAB_ROPE_ENTRIES(wide, double, , 1, 1)
bool is_wide() { return false; }
#endif

// Packed copies of the keys of every head; parts that are one tensor are packed once.
template <class T>
struct Packed {
    int64_t size;
    aligned_vector<T> of[kParts], values;
    int source[kParts];

    Packed(const Tensors<T>& all, const Shape& n, bool with_values, int threads) : size(packed_size<T>(n.keys, n.d)) {
        const int64_t heads = n.b * n.hk;
        for (int p = 0; p < n.parts; ++p) {
            source[p] = p;
            for (int other = 0; other < p; ++other)
                if (all.k[other] == all.k[p]) source[p] = source[other];
            if (source[p] == p) pack_heads(all.k[p], of[p], n, heads, threads);
        }
        if (with_values) pack_heads(all.v, values, n, heads, threads);
    }
    void pack_heads(const T* from, aligned_vector<T>& to, const Shape& n, int64_t heads, int threads) {
        to.assign(static_cast<size_t>(heads * size), T(0));
        parallel_for(threads, heads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t x = begin; x < end; ++x) pack(from + x * n.keys * n.d, n.keys, n.d, to.data() + x * size);
        });
    }
    void point(Keys<T>& keys, int64_t head, int parts) const {
        for (int p = 0; p < parts; ++p) keys.packed[p] = of[source[p]].data() + head * size;
        keys.values_packed = values.empty() ? nullptr : values.data() + head * size;
    }
};

// Starting a thread costs as much as some 4 million multiplications.
int worth(const Shape& n, int threads) {
    const double work = static_cast<double>(n.b * n.h) * static_cast<double>(n.t) * static_cast<double>(n.keys) * static_cast<double>(n.d);
    return static_cast<int>(std::clamp(work / 4e6, 1.0, static_cast<double>(std::max(1, threads))));
}

template <class T>
void forward_all(const Tensors<T>& all, const Shape& n, const Band& band, int threads) {
    threads = worth(n, threads);
    const Packed<T> packed(all, n, false, threads);
    const int64_t width = (n.d + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count, heads = n.b * n.hk;
    aligned_vector<T> space;
    const T* values = widened(all.v, heads * n.keys, n.d, width, space);
    const int64_t tiles = (n.t + kRows - 1) / kRows, lanes = n.b * n.h;
    const auto tile = n.wide && is_wide() ? static_cast<void (*)(const Tensors<T>&, const Shape&, const Band&, const Keys<T>&, int64_t, int64_t)>(forward_wide)
                                : static_cast<void (*)(const Tensors<T>&, const Shape&, const Band&, const Keys<T>&, int64_t, int64_t)>(forward_narrow);
    parallel_for(threads, lanes * tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x) {
            const int64_t lane = x / tiles, head = lane / n.h * n.hk + lane % n.h / (n.h / n.hk);
            Keys<T> keys{};
            packed.point(keys, head, n.parts);
            keys.values = values + head * n.keys * width;
            tile(all, n, band, keys, lane, (tiles - 1 - x % tiles) * kRows);  // long tiles first
        }
    });
}

template <class T>
void backward_all(const Tensors<T>& all, const Gradients<T>& grads, const Shape& n, const Band& band, int threads) {
    threads = worth(n, threads);
    const Packed<T> packed(all, n, true, threads);
    const int64_t width = (n.d + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count;
    const int64_t group = n.h / n.hk, padded = (n.keys + kKeys - 1) / kKeys * kKeys;
    const auto whole = n.wide && is_wide() ? static_cast<void (*)(const Tensors<T>&, const Gradients<T>&, const Shape&, const Band&, const Keys<T>&, int64_t, T* const*, T*)>(backward_wide)
                                 : static_cast<void (*)(const Tensors<T>&, const Gradients<T>&, const Shape&, const Band&, const Keys<T>&, int64_t, T* const*, T*)>(backward_narrow);
    parallel_for(threads, n.b * n.hk, 1, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head) {
            Keys<T> keys{};
            packed.point(keys, head, n.parts);
            aligned_vector<T> rows_space[kParts], d_keys[kParts], d_values(static_cast<size_t>(padded * width), T(0));
            T* d_keys_at[kParts] = {};
            for (int p = 0; p < n.parts; ++p) {
                keys.rows[p] = widened(all.k[p] + head * n.keys * n.d, n.keys, n.d, width, rows_space[p]);
                d_keys[p].assign(static_cast<size_t>(padded * width), T(0));
                d_keys_at[p] = d_keys[p].data();
            }
            for (int64_t x = 0; x < group; ++x)
                whole(all, grads, n, band, keys, head / n.hk * n.h + head % n.hk * group + x, d_keys_at, d_values.data());
            const auto add = [&](const aligned_vector<T>& from, T* to) {
                for (int64_t j = 0; j < n.keys; ++j)
                    for (int64_t x = 0; x < n.d; ++x) to[j * n.d + x] += from[static_cast<size_t>(j * width + x)];
            };
            for (int p = 0; p < n.parts; ++p) add(d_keys[p], grads.d_k[p] + head * n.keys * n.d);
            add(d_values, grads.d_v + head * n.keys * n.d);
        }
    });
}

}  // namespace

void forward(const Tensors<float>& tensors, const Shape& shape, const Band& band, int threads) {
    forward_all(tensors, shape, band, threads);
}
void forward(const Tensors<double>& tensors, const Shape& shape, const Band& band, int threads) {
    forward_all(tensors, shape, band, threads);
}
void backward(const Tensors<float>& tensors, const Gradients<float>& grads, const Shape& shape, const Band& band, int threads) {
    backward_all(tensors, grads, shape, band, threads);
}
void backward(const Tensors<double>& tensors, const Gradients<double>& grads, const Shape& shape, const Band& band, int threads) {
    backward_all(tensors, grads, shape, band, threads);
}

}  // namespace lmlab::rope
