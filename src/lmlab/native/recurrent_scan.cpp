#include "recurrent_scan.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
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

// y_i = sum_j A_ij x_j; rows that lie side by side are summed by vectors.
template <class E>
LMLAB_INLINE E row_product(const E* row, int64_t stride, const E* x, int64_t n) {
    if constexpr (is_real<E>) {
        E sum = 0;
        if (stride == 1) {
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < n; ++j) sum += row[j] * x[j];
        } else {
            for (int64_t j = 0; j < n; ++j) sum += row[j * stride] * x[j];
        }
        return sum;
    } else {
        E sum{};
        for (int64_t j = 0; j < n; ++j) sum = sum + row[j * stride] * x[j];
        return sum;
    }
}

template <class E>
LMLAB_INLINE void dense_forward(const ScanLayout& layout, const Scan<E>& all, int64_t sequence, E* state) {
    const int64_t n = layout.n;
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

// Item: a sequence, and for a diagonal one a block of its channels. scratch: 2n elements.
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
    const int64_t work = layout.batch * layout.steps * layout.n * (layout.dense ? layout.n : 1);
    threads = static_cast<int>(std::clamp<int64_t>(work >> 18, 1, threads));
    parallel_for(threads, layout.batch * blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<E> scratch(static_cast<size_t>(layout.dense ? 2 * layout.n : 0));
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
