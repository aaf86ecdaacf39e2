#include "model_decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "aligned.h"
#include "dispatch.h"
#include "simd.h"

namespace lmlab::model {
namespace {

using simd::exp_negative;
using simd::Lanes;
using simd::load;
using simd::load_part;

// The sum of a vector's lanes, in halves.
LMLAB_INLINE float total(simd::f32x16 x) {
    using f32x8 = float __attribute__((vector_size(32)));
    using f32x4 = float __attribute__((vector_size(16)));
    f32x8 halves[2];
    std::memcpy(halves, &x, sizeof x);
    const f32x8 eight = halves[0] + halves[1];
    f32x4 quarters[2];
    std::memcpy(quarters, &eight, sizeof eight);
    const f32x4 four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}
LMLAB_INLINE double total(simd::f64x8 x) {
    using f64x4 = double __attribute__((vector_size(32)));
    f64x4 halves[2];
    std::memcpy(halves, &x, sizeof x);
    const f64x4 four = halves[0] + halves[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

template <class S>
LMLAB_INLINE auto get(const S* from, int64_t count) {
    return count == Lanes<S>::count ? load(from) : load_part(from, count, S(0));
}

// y[r, o] = w[o]·x[r] for `rows` rows of x: w is read once. A row's sums don't depend on the rows beside it.
template <class S, int rows>
LMLAB_INLINE void dot_rows(const S* w, const S* x, S* y, int64_t outputs, int64_t inputs) {
    using V = typename Lanes<S>::vector;
    constexpr int64_t L = Lanes<S>::count;
    const int64_t whole = inputs / L * L;
    for (int64_t o = 0; o < outputs; ++o) {
        const S* const weights = w + o * inputs;
        V sums[rows] = {};
        for (int64_t j = 0; j < whole; j += L) {
            const V weight = load(weights + j);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) sums[r] += weight * load(x + r * inputs + j);
        }
        if (whole < inputs) {
            const V weight = load_part(weights + whole, inputs - whole, S(0));
            for (int r = 0; r < rows; ++r) sums[r] += weight * load_part(x + r * inputs + whole, inputs - whole, S(0));
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) y[r * outputs + o] = total(sums[r]);
    }
}

template <class S>
LMLAB_INLINE void multiply(const S* w, const S* x, S* y, int64_t rows, int64_t outputs, int64_t inputs) {
    while (rows > 0) {
        const int64_t some = rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        switch (some) {
            case 8: dot_rows<S, 8>(w, x, y, outputs, inputs); break;
            case 4: dot_rows<S, 4>(w, x, y, outputs, inputs); break;
            case 2: dot_rows<S, 2>(w, x, y, outputs, inputs); break;
            default: dot_rows<S, 1>(w, x, y, outputs, inputs);
        }
        rows -= some, x += some * inputs, y += some * outputs;
    }
}

// y = gain * x / rms(x), d numbers; y may be x.
template <class S>
LMLAB_INLINE void norm_row(const S* x, const S* gain, S* y, int64_t d, double eps) {
    double squares = 0;
    for (int64_t j = 0; j < d; ++j) squares += static_cast<double>(x[j]) * static_cast<double>(x[j]);
    const S inverse = static_cast<S>(1 / std::sqrt(squares / static_cast<double>(d) + eps));
    for (int64_t j = 0; j < d; ++j) y[j] = x[j] * inverse * gain[j];
}

template <class S>
LMLAB_INLINE void turn(S* head, const S* cosines, const S* sines, int64_t m) {
    for (int64_t i = 0; i < m; ++i) {
        const S first = head[i], second = head[i + m];
        head[i] = first * cosines[i] - second * sines[i];
        head[i + m] = second * cosines[i] + first * sines[i];
    }
}

// out [e] = softmax(scale q·keys) values over `count` entries of the cache.
template <class S>
LMLAB_INLINE void attend_row(const S* q, const S* keys, const S* values, int64_t count, int64_t e, S scale, S* weights, S* out) {
    using V = typename Lanes<S>::vector;
    constexpr int64_t L = Lanes<S>::count;
    S most = -std::numeric_limits<S>::infinity();
    for (int64_t j = 0; j < count; ++j) {
        V sum = {};
        for (int64_t i = 0; i < e; i += L) sum += get(q + i, std::min(L, e - i)) * get(keys + j * e + i, std::min(L, e - i));
        weights[j] = total(sum) * scale;
        most = std::max(most, weights[j]);
    }
    V sums = {};
    for (int64_t j = 0; j < count; j += L) {
        const int64_t some = std::min(L, count - j);
        const V weight = simd::first_lanes(exp_negative(get(weights + j, some) - most), some, S(0));
        sums += weight;
        if (some == L)
            simd::store(weights + j, weight);
        else
            simd::store_part(weights + j, some, weight);
    }
    const S inverse = 1 / total(sums);
    for (int64_t i = 0; i < e; ++i) out[i] = 0;
    for (int64_t j = 0; j < count; ++j) {
        const S weight = weights[j] * inverse;
        for (int64_t i = 0; i < e; ++i) out[i] += weight * values[j * e + i];
    }
}

template <class S>
LMLAB_INLINE void attention(const DecodeLayer<S>& layer, const Decode<S>& x, const DecodeShape& n, S* qkv, S* weights, S* mixed) {
    for (int64_t r = 0; r < n.b; ++r) {
        S* const heads = qkv + r * (n.h + 2 * n.g) * n.e;
        const int64_t position = x.positions[r];
        for (int64_t head = 0; head < n.h + n.g; ++head) {
            S* const one = heads + head * n.e;
            const S* const gain = head < n.h ? layer.q_gain : layer.k_gain;
            if (gain) norm_row(one, gain, one, n.e, n.eps);
            turn(one, x.cosines + r * n.m, x.sines + r * n.m, n.m);
        }
        for (int64_t g = 0; g < n.g; ++g) {
            const int64_t place = ((r * n.g + g) * layer.capacity + position) * n.e;
            std::copy_n(heads + (n.h + g) * n.e, n.e, layer.keys + place);
            std::copy_n(heads + (n.h + n.g + g) * n.e, n.e, layer.values + place);
        }
        for (int64_t head = 0; head < n.h; ++head) {
            const int64_t cache = (r * n.g + head * n.g / n.h) * layer.capacity * n.e;
            attend_row(heads + head * n.e, layer.keys + cache, layer.values + cache, position + 1, n.e,
                       static_cast<S>(n.scale), weights, mixed + (r * n.h + head) * n.e);
        }
    }
}

template <class S>
LMLAB_INLINE void swiglu(const S* gate_up, S* y, int64_t f) {
    using V = typename Lanes<S>::vector;
    constexpr int64_t L = Lanes<S>::count;
    for (int64_t j = 0; j < f; j += L) {
        const int64_t some = std::min(L, f - j);
        const V gate = get(gate_up + j, some), zero = {};
        const V small = exp_negative(gate < zero ? gate : -gate);
        const V sigmoid = (gate < zero ? small : zero + 1) / (1 + small);
        const V out = gate * sigmoid * get(gate_up + f + j, some);
        if (some == L)
            simd::store(y + j, out);
        else
            simd::store_part(y + j, some, out);
    }
}

template <class S>
LMLAB_INLINE void decode_rows(const Decode<S>& x, const DecodeShape& n) {
    const int64_t heads = (n.h + 2 * n.g) * n.e;
    int64_t longest = 0;
    for (int64_t r = 0; r < n.b; ++r) longest = std::max(longest, x.positions[r] + 1);
    aligned_vector<S> normed(n.b * n.d), qkv(n.b * heads), mixed(n.b * n.h * n.e), delta(n.b * n.d), gate_up(n.b * 2 * n.f),
        inner(n.b * n.f), weights(longest);
    auto norm = [&](const S* gain, S* y) {
        for (int64_t r = 0; r < n.b; ++r) norm_row(x.x + r * n.d, gain, y + r * n.d, n.d, n.eps);
    };
    auto add = [&] {
        for (int64_t j = 0; j < n.b * n.d; ++j) x.x[j] += delta[j];
    };
    for (const DecodeLayer<S>& layer : x.layers) {
        norm(layer.mixer_norm, normed.data());
        multiply(layer.qkv, normed.data(), qkv.data(), n.b, heads, n.d);
        attention(layer, x, n, qkv.data(), weights.data(), mixed.data());
        multiply(layer.out, mixed.data(), delta.data(), n.b, n.d, n.h * n.e);
        add();
        norm(layer.mlp_norm, normed.data());
        multiply(layer.gate_up, normed.data(), gate_up.data(), n.b, 2 * n.f, n.d);
        for (int64_t r = 0; r < n.b; ++r) swiglu(gate_up.data() + r * 2 * n.f, inner.data() + r * n.f, n.f);
        multiply(layer.down, inner.data(), delta.data(), n.b, n.d, n.f);
        add();
    }
    norm(x.norm, normed.data());
    for (S& number : normed) number *= static_cast<S>(n.factor);
    multiply(x.head, normed.data(), x.logits, n.b, n.v, n.d);
}

LMLAB_MULTIVERSION void decode_f32(const Decode<float>& x, const DecodeShape& n) { decode_rows(x, n); }
LMLAB_MULTIVERSION void decode_f64(const Decode<double>& x, const DecodeShape& n) { decode_rows(x, n); }

}  // namespace

void decode(const Decode<float>& x, const DecodeShape& n) { decode_f32(x, n); }
void decode(const Decode<double>& x, const DecodeShape& n) { decode_f64(x, n); }

}  // namespace lmlab::model
