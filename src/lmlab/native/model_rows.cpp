#include "model_rows.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"

namespace lmlab::model {
namespace {

using simd::exp_negative;
using simd::Lanes;
using simd::lanes_sum;
using simd::load;
using simd::load_part;
using simd::store;
using simd::store_part;

// visit(j, load, store) for the whole vectors of a row of d elements, and once for what is left of it.
template <class S, class Visit>
LMLAB_INLINE void along(int64_t d, Visit&& visit) {
    constexpr int64_t L = Lanes<S>::count;
    int64_t j = 0;
    for (; j + L <= d; j += L) visit(j, L);
    if (j < d) visit(j, d - j);
}
template <class T>
LMLAB_INLINE auto get(const T* from, int64_t count) {
    return count == Lanes<T>::count ? load(from) : load_part(from, count, T{});
}
template <class T, class V>
LMLAB_INLINE void put(T* to, int64_t count, V x) {
    if (count == Lanes<T>::count)
        store(to, x);
    else
        store_part(to, count, x);
}

template <class S, class T>
LMLAB_INLINE void norm_rows(const NormRows<S, T>& rows, int64_t begin, int64_t end) {
    using V = typename Lanes<S>::vector;
    for (int64_t i = begin; i < end; ++i) {
        const S* x = rows.x + i * rows.d;
        V squares = {};
        if (rows.delta) {
            S* const sum = rows.sum + i * rows.d;
            const T* const delta = rows.delta + i * rows.d;
            along<S>(rows.d, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
                const V both = get(x + j, count) + get(delta + j, count);
                put(sum + j, count, both);
                squares += both * both;
            });
            x = sum;
        } else {
            along<S>(rows.d, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
                const V one = get(x + j, count);
                squares += one * one;
            });
        }
        const S inverse = static_cast<S>(1 / std::sqrt(lanes_sum(squares) / static_cast<double>(rows.d) + rows.eps));
        rows.inverse[i] = inverse;
        T* const y = rows.y + i * rows.d;
        along<S>(rows.d, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            put(y + j, count, get(x + j, count) * inverse * get(rows.gain + j, count));
        });
    }
}

template <class S, class T>
LMLAB_INLINE void norm_gradient(const NormGradient<S, T>& rows, int64_t begin, int64_t end) {
    using V = typename Lanes<S>::vector;
    for (int64_t i = begin; i < end; ++i) {
        S* const d_gain = rows.d_gain + i / piece * rows.d;
        const S* const x = rows.sum + i * rows.d;
        const T* const d_y = rows.d_y + i * rows.d;
        const S inverse = rows.inverse[i];
        const bool first = i % piece == 0;
        V products = {};
        along<S>(rows.d, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            const V dy = get(d_y + j, count), unit = get(x + j, count) * inverse, part = dy * unit;
            put(d_gain + j, count, first ? part : get(d_gain + j, count) + part);
            products += part * get(rows.gain + j, count);
        });
        const S mean = static_cast<S>(lanes_sum(products) / static_cast<double>(rows.d));
        S* const d_x = rows.d_x + i * rows.d;
        along<S>(rows.d, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            const V unit = get(x + j, count) * inverse;
            V d = (get(d_y + j, count) * get(rows.gain + j, count) - unit * mean) * inverse;
            if (rows.d_sum) d += get(rows.d_sum + i * rows.d + j, count);
            put(d_x + j, count, d);
            if (rows.d_delta) put(rows.d_delta + i * rows.d + j, count, d);
        });
    }
}

// 1 / (1 + e^-x)
template <class V>
LMLAB_INLINE V sigmoid(V x) {
    const V zero = {};
    const V e = exp_negative(x < zero ? x : -x);
    return (x < zero ? e : zero + 1) / (1 + e);
}

template <class T>
LMLAB_INLINE void swiglu_rows(const SwigluRows<T>& rows, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const T* const gate = rows.gate_up + i * 2 * rows.f;
        T* const y = rows.y + i * rows.f;
        along<T>(rows.f, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            const auto g = get(gate + j, count);
            put(y + j, count, g * sigmoid(g) * get(gate + rows.f + j, count));
        });
    }
}

template <class T>
LMLAB_INLINE void swiglu_gradient(const SwigluRows<T>& rows, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const T* const gate = rows.gate_up + i * 2 * rows.f;
        const T* const d_y = rows.d_y + i * rows.f;
        T* const d_gate = rows.d_gate_up + i * 2 * rows.f;
        along<T>(rows.f, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            const auto g = get(gate + j, count), s = sigmoid(g), d = get(d_y + j, count);
            put(d_gate + j, count, d * get(gate + rows.f + j, count) * s * (1 + g * (1 - s)));
            put(d_gate + rows.f + j, count, d * g * s);
        });
    }
}

// The dispatcher of instruction sets takes plain functions only.
#define LMLAB_NORM(suffix, S, T)                                                                            \
    LMLAB_MULTIVERSION void norm_##suffix(const NormRows<S, T>& rows, int64_t begin, int64_t end) {         \
        norm_rows(rows, begin, end);                                                                        \
    }                                                                                                       \
    LMLAB_MULTIVERSION void norm_backward_##suffix(const NormGradient<S, T>& rows, int64_t begin, int64_t end) { \
        norm_gradient(rows, begin, end);                                                                    \
    }
#define LMLAB_SWIGLU(suffix, T)                                                                             \
    LMLAB_MULTIVERSION void swiglu_##suffix(const SwigluRows<T>& rows, int64_t begin, int64_t end) {        \
        swiglu_rows(rows, begin, end);                                                                      \
    }                                                                                                       \
    LMLAB_MULTIVERSION void swiglu_backward_##suffix(const SwigluRows<T>& rows, int64_t begin, int64_t end) { \
        swiglu_gradient(rows, begin, end);                                                                  \
    }
LMLAB_NORM(f32, float, float)
LMLAB_NORM(f64, double, double)
LMLAB_NORM(bf16, float, bfloat16)
LMLAB_SWIGLU(f32, float)
LMLAB_SWIGLU(f64, double)
LMLAB_SWIGLU(bf16, bfloat16)

}  // namespace

#define LMLAB_NORM_FACE(suffix, S, T)                                                                       \
    void norm(const NormRows<S, T>& rows, int64_t begin, int64_t end) { norm_##suffix(rows, begin, end); }  \
    void norm_backward(const NormGradient<S, T>& rows, int64_t begin, int64_t end) {                        \
        norm_backward_##suffix(rows, begin, end);                                                           \
    }
#define LMLAB_SWIGLU_FACE(suffix, T)                                                                        \
    void swiglu(const SwigluRows<T>& rows, int64_t begin, int64_t end) { swiglu_##suffix(rows, begin, end); } \
    void swiglu_backward(const SwigluRows<T>& rows, int64_t begin, int64_t end) {                           \
        swiglu_backward_##suffix(rows, begin, end);                                                         \
    }
LMLAB_NORM_FACE(f32, float, float)
LMLAB_NORM_FACE(f64, double, double)
LMLAB_NORM_FACE(bf16, float, bfloat16)
LMLAB_SWIGLU_FACE(f32, float)
LMLAB_SWIGLU_FACE(f64, double)
LMLAB_SWIGLU_FACE(bf16, bfloat16)

}  // namespace lmlab::model
