#include "recurrent_scan.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "recurrent_product.h"
#include "recurrent_threads.h"
#include "simd.h"

namespace lmlab::recurrent {
namespace {

using namespace lmlab::simd;

template <class T>
LMLAB_INLINE Complex<T> operator+(Complex<T> x, Complex<T> y) {
    return {x.re + y.re, x.im + y.im};
}
template <class T>
LMLAB_INLINE Complex<T> operator*(Complex<T> x, Complex<T> y) {
    return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}
LMLAB_INLINE float conjugate(float x) { return x; }
LMLAB_INLINE double conjugate(double x) { return x; }
template <class T>
LMLAB_INLINE Complex<T> conjugate(Complex<T> x) {
    return {x.re, -x.im};
}

template <class E>
constexpr bool is_real = std::is_floating_point_v<E>;

constexpr int64_t kBlock = 64;  // channels that one pass over time carries

// Where the walk over time begins and how it moves, for an array with the given stride of time.
struct Walk {
    int64_t first, step;
    Walk(const ScanLayout& layout, int64_t stride, bool backwards)
        : first(backwards ? (layout.steps - 1) * stride : 0), step(backwards ? -stride : stride) {}
};

// V whole vectors of neighbouring channels, the states in registers.
template <class T, int V>
LMLAB_INLINE void vectors_forward(const ScanLayout& layout, const T* a, const T* b, T* h, const T* h0) {
    using Vec = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const Walk wa(layout, layout.a[1], layout.reverse), wb(layout, layout.b[1], layout.reverse), wh(layout, layout.n, layout.reverse);
    a += wa.first, b += wb.first, h += wh.first;
    Vec state[V];
    for (int v = 0; v < V; ++v) state[v] = h0 ? load(h0 + v * lanes) : Vec{};
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, b += wb.step, h += wh.step)
        for (int v = 0; v < V; ++v) {
            state[v] = load(a + v * lanes) * state[v] + load(b + v * lanes);
            store(h + v * lanes, state[v]);
        }
}

// Up to kBlock channels with any strides.
template <class E>
LMLAB_INLINE void channels_forward(const ScanLayout& layout, const E* a, const E* b, E* h, const E* h0, int64_t count) {
    const Walk wa(layout, layout.a[1], layout.reverse), wb(layout, layout.b[1], layout.reverse), wh(layout, layout.n, layout.reverse);
    a += wa.first, b += wb.first, h += wh.first;
    E state[kBlock];
    for (int64_t j = 0; j < count; ++j) state[j] = h0 ? h0[j * layout.h0[1]] : E{};
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, b += wb.step, h += wh.step)
        for (int64_t j = 0; j < count; ++j) h[j] = state[j] = a[j * layout.a[2]] * state[j] + b[j * layout.b[2]];
}

template <class E>
LMLAB_INLINE void block_forward(const ScanLayout& layout, const Scan<E>& all, int64_t sequence, int64_t from) {
    int64_t count = std::min(kBlock, layout.n - from);
    const E* a = all.a + sequence * layout.a[0] + from * layout.a[2];
    const E* b = all.b + sequence * layout.b[0] + from * layout.b[2];
    const E* h0 = all.h0 ? all.h0 + sequence * layout.h0[0] + from * layout.h0[1] : nullptr;
    E* h = all.h + sequence * layout.steps * layout.n + from;
    if constexpr (is_real<E>) {
        constexpr int64_t lanes = Lanes<E>::count;
        if (layout.a[2] == 1 && layout.b[2] == 1 && (h0 == nullptr || layout.h0[1] == 1)) {
            auto pass = [&](auto vectors) {
                constexpr int V = decltype(vectors)::value;
                for (; count >= V * lanes; count -= V * lanes) {
                    vectors_forward<E, V>(layout, a, b, h, h0);
                    a += V * lanes, b += V * lanes, h += V * lanes;
                    if (h0) h0 += V * lanes;
                }
            };
            pass(std::integral_constant<int, 4>{});
            pass(std::integral_constant<int, 2>{});
            pass(std::integral_constant<int, 1>{});
        }
    }
    if (count) channels_forward(layout, a, b, h, h0, count);
}

// carry = a_{t+1}* lambda_{t+1}: one pass against the order of time gives lambda, da and dh0.
template <class T, int V, bool A>
LMLAB_INLINE void vectors_backward(const ScanLayout& layout, const T* a, const T* g, const T* h, const T* h0, T* da, T* db, T* dh0) {
    using Vec = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const Walk wa(layout, layout.a[1], !layout.reverse), wg(layout, layout.b[1], !layout.reverse), wh(layout, layout.n, !layout.reverse);
    a += wa.first, g += wg.first, h += wh.first, db += wh.first;
    if (A) da += wh.first;
    Vec carry[V];
    for (int v = 0; v < V; ++v) carry[v] = Vec{};
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, g += wg.step, h += wh.step, db += wh.step) {
        const bool last = t + 1 == layout.steps;
        for (int v = 0; v < V; ++v) {
            const Vec lambda = load(g + v * lanes) + carry[v];
            store(db + v * lanes, lambda);
            if (A) {
                const Vec before = last ? (h0 ? load(h0 + v * lanes) : Vec{}) : load(h + wh.step + v * lanes);
                store(da + v * lanes, lambda * before);
            }
            carry[v] = load(a + v * lanes) * lambda;
        }
        if (A) da += wh.step;
    }
    if (dh0)
        for (int v = 0; v < V; ++v) store(dh0 + v * lanes, carry[v]);
}

template <class E>
LMLAB_INLINE void channels_backward(const ScanLayout& layout, const E* a, const E* g, const E* h, const E* h0, E* da, E* db, E* dh0, int64_t count) {
    const Walk wa(layout, layout.a[1], !layout.reverse), wg(layout, layout.b[1], !layout.reverse), wh(layout, layout.n, !layout.reverse);
    a += wa.first, g += wg.first, h += wh.first, db += wh.first;
    if (da) da += wh.first;
    E carry[kBlock];
    for (int64_t j = 0; j < count; ++j) carry[j] = E{};
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, g += wg.step, h += wh.step, db += wh.step) {
        const bool last = t + 1 == layout.steps;
        for (int64_t j = 0; j < count; ++j) {
            const E lambda = g[j * layout.b[2]] + carry[j];
            db[j] = lambda;
            if (da) {
                const E before = last ? (h0 ? h0[j * layout.h0[1]] : E{}) : h[wh.step + j];
                da[j] = lambda * conjugate(before);
            }
            carry[j] = conjugate(a[j * layout.a[2]]) * lambda;
        }
        if (da) da += wh.step;
    }
    if (dh0)
        for (int64_t j = 0; j < count; ++j) dh0[j] = carry[j];
}

template <class E>
LMLAB_INLINE void block_backward(const ScanLayout& layout, const ScanGradient<E>& all, int64_t sequence, int64_t from) {
    int64_t count = std::min(kBlock, layout.n - from);
    const int64_t at = sequence * layout.steps * layout.n + from;
    const E* a = all.a + sequence * layout.a[0] + from * layout.a[2];
    const E* g = all.dh + sequence * layout.b[0] + from * layout.b[2];
    const E* h0 = all.h0 ? all.h0 + sequence * layout.h0[0] + from * layout.h0[1] : nullptr;
    const E* h = all.h + at;
    E *da = all.da ? all.da + at : nullptr, *db = all.db + at;
    E* dh0 = all.dh0 ? all.dh0 + sequence * layout.n + from : nullptr;
    if constexpr (is_real<E>) {
        constexpr int64_t lanes = Lanes<E>::count;
        if (layout.a[2] == 1 && layout.b[2] == 1 && (h0 == nullptr || layout.h0[1] == 1)) {
            auto pass = [&](auto vectors) {
                constexpr int V = decltype(vectors)::value;
                for (; count >= V * lanes; count -= V * lanes) {
                    if (da)
                        vectors_backward<E, V, true>(layout, a, g, h, h0, da, db, dh0);
                    else
                        vectors_backward<E, V, false>(layout, a, g, h, h0, da, db, dh0);
                    a += V * lanes, g += V * lanes, h += V * lanes, db += V * lanes;
                    if (h0) h0 += V * lanes;
                    if (da) da += V * lanes;
                    if (dh0) dh0 += V * lanes;
                }
            };
            pass(std::integral_constant<int, 4>{});
            pass(std::integral_constant<int, 2>{});
            pass(std::integral_constant<int, 1>{});
        }
    }
    if (count) channels_backward(layout, a, g, h, h0, da, db, dh0, count);
}

// y_i = sum_j A_ij x_j
template <class E>
LMLAB_INLINE E row_product(const E* row, int64_t stride, const E* x, int64_t n) {
    E sum{};
    if constexpr (is_real<E>) {
        if (stride == 1) {
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < n; ++j) sum += row[j] * x[j];
            return sum;
        }
    }
    for (int64_t j = 0; j < n; ++j) sum = sum + row[j * stride] * x[j];
    return sum;
}

// Vectors of 32 bytes: matrices of a scan are small.
using f32x8 = float __attribute__((vector_size(32)));
using f64x4 = double __attribute__((vector_size(32)));
using i32x8 = int32_t __attribute__((vector_size(32)));
using i64x4 = int64_t __attribute__((vector_size(32)));
template <class T>
struct Narrow {
    using vector = f32x8;
    static constexpr int64_t count = 8;
};
template <>
struct Narrow<double> {
    using vector = f64x4;
    static constexpr int64_t count = 4;
};
template <class T>
LMLAB_INLINE typename Narrow<T>::vector narrow_load(const T* from) {
    typename Narrow<T>::vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
template <class T, class V>
LMLAB_INLINE void narrow_store(T* to, const V& x) {
    std::memcpy(to, &x, sizeof x);
}
#if defined(__clang__)
#define LMLAB_SHUFFLE(x, y, Lanes, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define LMLAB_SHUFFLE(x, y, Lanes, ...) __builtin_shuffle(x, y, Lanes{__VA_ARGS__})
#endif

// The sums of the lanes of L vectors, one in each lane of the result: log L steps for all of them together.
LMLAB_INLINE f32x8 row_sums(const f32x8* p) {
    f32x8 s[4], q[2];
    for (int i = 0; i < 4; ++i)
        s[i] = LMLAB_SHUFFLE(p[2 * i], p[2 * i + 1], i32x8, 0, 8, 2, 10, 4, 12, 6, 14) +
               LMLAB_SHUFFLE(p[2 * i], p[2 * i + 1], i32x8, 1, 9, 3, 11, 5, 13, 7, 15);
    for (int i = 0; i < 2; ++i)
        q[i] = LMLAB_SHUFFLE(s[2 * i], s[2 * i + 1], i32x8, 0, 1, 8, 9, 4, 5, 12, 13) +
               LMLAB_SHUFFLE(s[2 * i], s[2 * i + 1], i32x8, 2, 3, 10, 11, 6, 7, 14, 15);
    return LMLAB_SHUFFLE(q[0], q[1], i32x8, 0, 1, 2, 3, 8, 9, 10, 11) +
           LMLAB_SHUFFLE(q[0], q[1], i32x8, 4, 5, 6, 7, 12, 13, 14, 15);
}
LMLAB_INLINE f64x4 row_sums(const f64x4* p) {
    f64x4 s[2];
    for (int i = 0; i < 2; ++i)
        s[i] = LMLAB_SHUFFLE(p[2 * i], p[2 * i + 1], i64x4, 0, 4, 2, 6) +
               LMLAB_SHUFFLE(p[2 * i], p[2 * i + 1], i64x4, 1, 5, 3, 7);
    return LMLAB_SHUFFLE(s[0], s[1], i64x4, 0, 1, 4, 5) + LMLAB_SHUFFLE(s[0], s[1], i64x4, 2, 3, 6, 7);
}

// `count` elements, zeros behind them.
template <class T>
LMLAB_INLINE typename Narrow<T>::vector narrow_part(const T* from, int64_t count) {
    T part[Narrow<T>::count] = {};
    std::memcpy(part, from, static_cast<size_t>(count) * sizeof(T));
    return narrow_load<T>(part);
}

// Matrices whose rows lie in memory as such. The state is a padded row of whole vectors, so that a step reads what
// the step before wrote in the same pieces, and waits for no more than one product and log L sums.
template <class T, bool One>
LMLAB_INLINE void rows_forward(const ScanLayout& layout, const Scan<T>& all, int64_t sequence, T* state) {
    using V = typename Narrow<T>::vector;
    constexpr int64_t lanes = Narrow<T>::count;
    const int64_t n = layout.n, chunks = One ? 1 : (n + lanes - 1) / lanes, left = n - (chunks - 1) * lanes;
    const Walk wa(layout, layout.a[1], layout.reverse), wb(layout, layout.b[1], layout.reverse), wh(layout, n, layout.reverse);
    const T* a = all.a + sequence * layout.a[0] + wa.first;
    const T* b = all.b + sequence * layout.b[0] + wb.first;
    T* h = all.h + sequence * layout.steps * n + wh.first;
    T* next = state + chunks * lanes;
    std::fill(state, next + chunks * lanes, T(0));
    for (int64_t j = 0; j < n; ++j) state[j] = all.h0 ? all.h0[sequence * layout.h0[0] + j * layout.h0[1]] : T(0);
    V one = narrow_load<T>(state);
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, b += wb.step, h += wh.step) {
        for (int64_t block = 0; block < chunks; ++block) {
            const int64_t from = block * lanes, rows = block + 1 < chunks ? lanes : left;
            V sum[lanes];
            for (int64_t r = 0; r < lanes; ++r) {
                sum[r] = V{};
                if (r >= rows) continue;
                const T* row = a + (from + r) * layout.a[2];
                for (int64_t c = 0; c + 1 < chunks; ++c) sum[r] += narrow_load<T>(row + c * lanes) * narrow_load<T>(state + c * lanes);
                const T* end = row + (chunks - 1) * lanes;
                const V last = left == lanes ? narrow_load<T>(end) : narrow_part<T>(end, left);
                sum[r] += last * (One ? one : narrow_load<T>(state + (chunks - 1) * lanes));
            }
            V driven;
            if (rows == lanes && layout.b[2] == 1) {
                driven = narrow_load<T>(b + from);
            } else {
                T part[lanes] = {};
                for (int64_t r = 0; r < rows; ++r) part[r] = b[(from + r) * layout.b[2]];
                driven = narrow_load<T>(part);
            }
            const V y = row_sums(sum) + driven;
            if (One)
                one = y;
            else
                narrow_store(next + from, y);
            if (rows == lanes) {
                narrow_store(h + from, y);
            } else {
                T part[lanes];
                narrow_store(part, y);
                std::copy(part, part + rows, h + from);
            }
        }
        std::swap(state, next);
    }
}

template <class E>
LMLAB_INLINE void dense_forward(const ScanLayout& layout, const Scan<E>& all, int64_t sequence, E* state) {
    const int64_t n = layout.n;
    if constexpr (is_real<E>) {
        constexpr int64_t lanes = Narrow<E>::count;
        // A row that fills its vectors badly is summed faster as it comes.
        if (layout.a[3] == 1 && (n % lanes == 0 || n > 2 * lanes)) {
            if (n == lanes)
                rows_forward<E, true>(layout, all, sequence, state);
            else
                rows_forward<E, false>(layout, all, sequence, state);
            return;
        }
    }
    const Walk wa(layout, layout.a[1], layout.reverse), wb(layout, layout.b[1], layout.reverse), wh(layout, n, layout.reverse);
    const E* a = all.a + sequence * layout.a[0] + wa.first;
    const E* b = all.b + sequence * layout.b[0] + wb.first;
    E* h = all.h + sequence * layout.steps * n + wh.first;
    for (int64_t j = 0; j < n; ++j) state[j] = all.h0 ? all.h0[sequence * layout.h0[0] + j * layout.h0[1]] : E{};
    const E* before = state;
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, b += wb.step, h += wh.step) {
        for (int64_t i = 0; i < n; ++i)
            h[i] = row_product(a + i * layout.a[2], layout.a[3], before, n) + b[i * layout.b[2]];
        before = h;
    }
}

template <class E>
LMLAB_INLINE void dense_backward(const ScanLayout& layout, const ScanGradient<E>& all, int64_t sequence, E* carry, E* start) {
    const int64_t n = layout.n;
    const Walk wa(layout, layout.a[1], !layout.reverse), wg(layout, layout.b[1], !layout.reverse), wh(layout, n, !layout.reverse);
    const int64_t at = sequence * layout.steps * n + wh.first;
    const E* a = all.a + sequence * layout.a[0] + wa.first;
    const E* g = all.dh + sequence * layout.b[0] + wg.first;
    const E* h = all.h + at;
    E *da = all.da ? all.da + at * n : nullptr, *db = all.db + at;
    for (int64_t j = 0; j < n; ++j) {
        start[j] = all.h0 ? all.h0[sequence * layout.h0[0] + j * layout.h0[1]] : E{};
        carry[j] = E{};
    }
    for (int64_t t = 0; t < layout.steps; ++t, a += wa.step, g += wg.step, h += wh.step, db += wh.step) {
        const E* before = t + 1 == layout.steps ? start : h + wh.step;
        for (int64_t i = 0; i < n; ++i) db[i] = g[i * layout.b[2]] + carry[i];
        for (int64_t j = 0; j < n; ++j) carry[j] = E{};
        for (int64_t i = 0; i < n; ++i) {
            const E lambda = db[i];
            const E* row = a + i * layout.a[2];
            if (layout.a[3] == 1)
                for (int64_t j = 0; j < n; ++j) carry[j] = carry[j] + conjugate(row[j]) * lambda;
            else
                for (int64_t j = 0; j < n; ++j) carry[j] = carry[j] + conjugate(row[j * layout.a[3]]) * lambda;
            if (da)
                for (int64_t j = 0; j < n; ++j) da[i * n + j] = lambda * conjugate(before[j]);
        }
        if (da) da += wh.step * n;
    }
    if (all.dh0) std::copy(carry, carry + n, all.dh0 + sequence * n);
}

// Item: a sequence, and for a diagonal one a block of its channels. scratch: 2n elements, in whole vectors.
template <class E>
LMLAB_INLINE void item_forward(const ScanLayout& layout, const Scan<E>& all, int64_t item, int64_t blocks, E* scratch) {
    if (layout.dense)
        dense_forward(layout, all, item, scratch);
    else
        block_forward(layout, all, item / blocks, item % blocks * kBlock);
}
template <class E>
LMLAB_INLINE void item_backward(const ScanLayout& layout, const ScanGradient<E>& all, int64_t item, int64_t blocks, E* scratch) {
    if (layout.dense)
        dense_backward(layout, all, item, scratch, scratch + layout.n);
    else
        block_backward(layout, all, item / blocks, item % blocks * kBlock);
}

using C32 = Complex<float>;
using C64 = Complex<double>;
#define LMLAB_ONE_TYPE(E, suffix)                                                                                     \
    LMLAB_MULTIVERSION void forward_##suffix(const ScanLayout& n, const Scan<E>& all, int64_t x, int64_t k, E* s) {   \
        item_forward(n, all, x, k, s);                                                                                \
    }                                                                                                                 \
    LMLAB_MULTIVERSION void backward_##suffix(const ScanLayout& n, const ScanGradient<E>& all, int64_t x, int64_t k, E* s) { \
        item_backward(n, all, x, k, s);                                                                               \
    }                                                                                                                 \
    void one(const ScanLayout& n, const Scan<E>& all, int64_t x, int64_t k, E* s) { forward_##suffix(n, all, x, k, s); } \
    void one(const ScanLayout& n, const ScanGradient<E>& all, int64_t x, int64_t k, E* s) { backward_##suffix(n, all, x, k, s); }
LMLAB_ONE_TYPE(float, f32)
LMLAB_ONE_TYPE(double, f64)
LMLAB_ONE_TYPE(C32, c32)
LMLAB_ONE_TYPE(C64, c64)
#undef LMLAB_ONE_TYPE

template <class E, class All>
void every(const ScanLayout& layout, const All& all, int threads) {
    const int64_t blocks = layout.dense ? 1 : (layout.n + kBlock - 1) / kBlock;
    const double time = scan_time(layout.batch, layout.steps, layout.n, layout.dense);
    threads = useful_threads(time * (sizeof(E) / 4), threads);
    parallel_for(threads, layout.batch * blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<E> scratch(static_cast<size_t>(layout.dense ? 2 * padded(layout.n, 8) : 0));
        for (int64_t x = begin; x < end; ++x) one(layout, all, x, blocks, scratch.data());
    });
}

}  // namespace

template <class E>
void scan(const ScanLayout& layout, const Scan<E>& all, int threads) {
    every<E>(layout, all, threads);
}
template <class E>
void scan_gradient(const ScanLayout& layout, const ScanGradient<E>& all, int threads) {
    every<E>(layout, all, threads);
}

template void scan(const ScanLayout&, const Scan<float>&, int);
template void scan(const ScanLayout&, const Scan<double>&, int);
template void scan(const ScanLayout&, const Scan<C32>&, int);
template void scan(const ScanLayout&, const Scan<C64>&, int);
template void scan_gradient(const ScanLayout&, const ScanGradient<float>&, int);
template void scan_gradient(const ScanLayout&, const ScanGradient<double>&, int);
template void scan_gradient(const ScanLayout&, const ScanGradient<C32>&, int);
template void scan_gradient(const ScanLayout&, const ScanGradient<C64>&, int);

}  // namespace lmlab::recurrent
