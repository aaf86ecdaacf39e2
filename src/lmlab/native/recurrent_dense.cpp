#include "recurrent_dense.h"

#include <algorithm>

#include "dispatch.h"
#include "parallel.h"
#include "recurrent_product.h"
#include "recurrent_threads.h"
#include "simd.h"

namespace lmlab::recurrent {
namespace {

using namespace lmlab::simd;

template <class T>
LMLAB_INLINE auto read(const T* from, int64_t left) {
    return left >= Lanes<T>::count ? load(from) : load_part(from, left, T(0));
}
template <class T, class V>
LMLAB_INLINE void write(T* to, int64_t left, V x) {
    if (left >= Lanes<T>::count)
        store(to, x);
    else
        store_part(to, left, x);
}

// One step of one sequence. g, h, c (and dh, dc, dg) are scratch, each gate padded to whole vectors.
template <class T>
struct ForwardStep {
    T* u;
    const T* g;
    T *h, *c, *y, *extra, *tanh_c;
    bool keep;
};

template <class T>
LMLAB_INLINE void gates_forward(Kind kind, const ForwardStep<T>& s, int64_t n) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t pad = padded(n, lanes);
    const V zero = {};
    for (int64_t j = 0; j < n; j += lanes) {
        const int64_t left = n - j;
        if (kind == Kind::gru) {
            const V r = sigmoid_of(read(s.u + j, left) + load(s.g + j));
            const V z = sigmoid_of(read(s.u + n + j, left) + load(s.g + pad + j));
            const V q = load(s.g + 2 * pad + j);
            const V m = tanh_of(read(s.u + 2 * n + j, left) + r * q);
            const V h = m + z * (load(s.h + j) - m);
            store(s.h + j, h);
            write(s.y + j, left, h);
            if (s.keep) {
                write(s.u + j, left, r);
                write(s.u + n + j, left, z);
                write(s.u + 2 * n + j, left, m);
                write(s.extra + j, left, q);
            }
        } else if (kind == Kind::lstm) {
            const V i = sigmoid_of(read(s.u + j, left) + load(s.g + j));
            const V f = sigmoid_of(read(s.u + n + j, left) + load(s.g + pad + j));
            const V g = tanh_of(read(s.u + 2 * n + j, left) + load(s.g + 2 * pad + j));
            const V o = sigmoid_of(read(s.u + 3 * n + j, left) + load(s.g + 3 * pad + j));
            const V before = load(s.c + j);
            const V c = f * before + i * g;
            const V t = tanh_of(c);
            const V h = o * t;
            store(s.c + j, c);
            store(s.h + j, h);
            write(s.y + j, left, h);
            if (s.keep) {
                write(s.u + j, left, i);
                write(s.u + n + j, left, f);
                write(s.u + 2 * n + j, left, g);
                write(s.u + 3 * n + j, left, o);
                write(s.extra + j, left, before);
                write(s.tanh_c + j, left, t);
            }
        } else {
            const V sum = read(s.u + j, left) + load(s.g + j);
            const V h = kind == Kind::tanh ? tanh_of(sum) : (sum < zero ? zero : sum);
            store(s.h + j, h);
            write(s.y + j, left, h);
            if (s.keep) write(s.u + j, left, h);
        }
    }
}

template <class T>
struct BackwardStep {
    const T *gates, *prev, *extra, *tanh_c, *dy;
    T *dh, *dc, *dg;  // dh: in, of the state after; out, the part of the state before that passes by the weights
    T *du, *dq;
};

template <class T>
LMLAB_INLINE void gates_backward(Kind kind, const BackwardStep<T>& s, int64_t n) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t pad = padded(n, lanes);
    const V zero = {};
    for (int64_t j = 0; j < n; j += lanes) {
        const int64_t left = n - j;
        const V d = load(s.dh + j) + read(s.dy + j, left);
        if (kind == Kind::gru) {
            const V r = read(s.gates + j, left), z = read(s.gates + n + j, left), m = read(s.gates + 2 * n + j, left);
            const V q = read(s.extra + j, left), h = read(s.prev + j, left);
            const V dm = d * (1 - z) * (1 - m * m);
            const V dz = d * (h - m) * (z * (1 - z));
            const V dr = dm * q * (r * (1 - r));
            const V dq = dm * r;
            write(s.du + j, left, dr);
            write(s.du + n + j, left, dz);
            write(s.du + 2 * n + j, left, dm);
            write(s.dq + j, left, dq);
            store(s.dg + j, dr);
            store(s.dg + pad + j, dz);
            store(s.dg + 2 * pad + j, dq);
            store(s.dh + j, d * z);
        } else if (kind == Kind::lstm) {
            const V i = read(s.gates + j, left), f = read(s.gates + n + j, left), g = read(s.gates + 2 * n + j, left),
                    o = read(s.gates + 3 * n + j, left);
            const V before = read(s.extra + j, left), t = read(s.tanh_c + j, left);
            const V dc = load(s.dc + j) + d * o * (1 - t * t);
            const V di = dc * g * (i * (1 - i));
            const V df = dc * before * (f * (1 - f));
            const V dg = dc * i * (1 - g * g);
            const V d_o = d * t * (o * (1 - o));
            store(s.dc + j, dc * f);
            write(s.du + j, left, di);
            write(s.du + n + j, left, df);
            write(s.du + 2 * n + j, left, dg);
            write(s.du + 3 * n + j, left, d_o);
            store(s.dg + j, di);
            store(s.dg + pad + j, df);
            store(s.dg + 2 * pad + j, dg);
            store(s.dg + 3 * pad + j, d_o);
            store(s.dh + j, zero);
        } else {
            const V h = read(s.gates + j, left);
            const V dg = kind == Kind::tanh ? d * (1 - h * h) : (h <= zero ? zero : d);
            write(s.du + j, left, dg);
            store(s.dg + j, dg);
            store(s.dh + j, zero);
        }
    }
}

template <class T>
LMLAB_INLINE void gates_forward_all(Kind kind, const ForwardStep<T>* steps, int64_t count, int64_t n) {
    for (int64_t r = 0; r < count; ++r) {  // the kind is a constant inside each branch
        if (kind == Kind::gru)
            gates_forward(Kind::gru, steps[r], n);
        else if (kind == Kind::lstm)
            gates_forward(Kind::lstm, steps[r], n);
        else if (kind == Kind::tanh)
            gates_forward(Kind::tanh, steps[r], n);
        else
            gates_forward(Kind::relu, steps[r], n);
    }
}
template <class T>
LMLAB_INLINE void gates_backward_all(Kind kind, const BackwardStep<T>* steps, int64_t count, int64_t n) {
    for (int64_t r = 0; r < count; ++r) {
        if (kind == Kind::gru)
            gates_backward(Kind::gru, steps[r], n);
        else if (kind == Kind::lstm)
            gates_backward(Kind::lstm, steps[r], n);
        else if (kind == Kind::tanh)
            gates_backward(Kind::tanh, steps[r], n);
        else
            gates_backward(Kind::relu, steps[r], n);
    }
}

LMLAB_MULTIVERSION void forward_f32(Kind kind, const ForwardStep<float>* steps, int64_t count, int64_t n) {
    gates_forward_all(kind, steps, count, n);
}
LMLAB_MULTIVERSION void forward_f64(Kind kind, const ForwardStep<double>* steps, int64_t count, int64_t n) {
    gates_forward_all(kind, steps, count, n);
}
LMLAB_MULTIVERSION void backward_f32(Kind kind, const BackwardStep<float>* steps, int64_t count, int64_t n) {
    gates_backward_all(kind, steps, count, n);
}
LMLAB_MULTIVERSION void backward_f64(Kind kind, const BackwardStep<double>* steps, int64_t count, int64_t n) {
    gates_backward_all(kind, steps, count, n);
}
void gates(Kind kind, const ForwardStep<float>* s, int64_t count, int64_t n) { forward_f32(kind, s, count, n); }
void gates(Kind kind, const ForwardStep<double>* s, int64_t count, int64_t n) { forward_f64(kind, s, count, n); }
void gates(Kind kind, const BackwardStep<float>* s, int64_t count, int64_t n) { backward_f32(kind, s, count, n); }
void gates(Kind kind, const BackwardStep<double>* s, int64_t count, int64_t n) { backward_f64(kind, s, count, n); }

// The hidden weights, packed for one of the two products.
template <class T>
struct Weights {
    Packed<T> matrix;
    aligned_vector<T> diagonal, bias;
    int64_t gates = 0, n = 0, pad = 0;

    Weights(const Layout& layout, const T* weight, const T* bias_of, bool transposed)
        : gates(gate_count(layout.kind)), n(layout.n), pad(padded(layout.n, Lanes<T>::count)) {
        if (layout.diagonal)
            spread(weight, diagonal);
        else if (transposed)
            matrix.pack_backward(weight, gates, n, Lanes<T>::count);
        else
            matrix.pack_forward(weight, gates, n, Lanes<T>::count);
        spread(bias_of, bias);
    }

    void spread(const T* from, aligned_vector<T>& to) const {
        to.assign(static_cast<size_t>(gates * pad), T(0));
        if (from == nullptr) return;
        for (int64_t x = 0; x < gates; ++x) std::copy(from + x * n, from + (x + 1) * n, to.data() + x * pad);
    }

    // g = bias + W h
    void states_to_gates(bool turned, const T* const* h, T* const* g, int64_t count) const {
        for (int64_t r = 0; r < count; ++r) std::copy(bias.begin(), bias.end(), g[r]);
        if (diagonal.empty()) {
            multiply_add(matrix, turned, h, g, count);
            return;
        }
        for (int64_t r = 0; r < count; ++r)
            for (int64_t x = 0; x < gates; ++x)
                for (int64_t j = 0; j < n; ++j) g[r][x * pad + j] += diagonal[x * pad + j] * h[r][j];
    }

    // dh += W^T dg
    void gates_to_states(bool turned, const T* const* dg, T* const* dh, int64_t count) const {
        if (diagonal.empty()) {
            multiply_add(matrix, turned, dg, dh, count);
            return;
        }
        for (int64_t r = 0; r < count; ++r)
            for (int64_t x = 0; x < gates; ++x)
                for (int64_t j = 0; j < n; ++j) dh[r][j] += diagonal[x * pad + j] * dg[r][x * pad + j];
    }
};

// The sequences of one tile that have a step t, and the row of each.
struct Present {
    int64_t row[kTile];
    int64_t which[kTile];
    int64_t count = 0;

    Present(const Layout& layout, int64_t first, int64_t last, int64_t t) {
        for (int64_t b = first; b < last; ++b) {
            if (layout.lengths != nullptr && t >= layout.lengths[b]) continue;
            which[count] = b - first;
            row[count++] = layout.starts[t] + b * layout.row_step;
        }
    }
};

template <class T>
void forward_tile(const Layout& layout, const Forward<T>& all, const Weights<T>& weights, int64_t first, int64_t last) {
    const int64_t n = layout.n, pad = weights.pad, width = weights.gates * n;
    aligned_vector<T> h(kTile * pad, T(0)), c(kTile * pad, T(0)), g(kTile * weights.gates * pad);
    for (int64_t b = first; b < last; ++b) {
        std::copy(all.h + b * n, all.h + (b + 1) * n, h.data() + (b - first) * pad);
        if (all.c) std::copy(all.c + b * n, all.c + (b + 1) * n, c.data() + (b - first) * pad);
    }
    for (int64_t s = 0; s < layout.steps; ++s) {
        const int64_t t = layout.reverse ? layout.steps - 1 - s : s;
        const Present here(layout, first, last, t);
        ForwardStep<T> steps[kTile];
        const T* states[kTile];
        T* sums[kTile];
        for (int64_t r = 0; r < here.count; ++r) {
            const int64_t row = here.row[r];
            T* state = h.data() + here.which[r] * pad;
            T* cell = c.data() + here.which[r] * pad;
            if (layout.cut != nullptr && layout.cut[row]) {
                std::fill(state, state + pad, T(0));
                std::fill(cell, cell + pad, T(0));
            }
            states[r] = state, sums[r] = g.data() + r * weights.gates * pad;
            steps[r] = {all.u + row * width, sums[r], state, cell, all.y + row * n,
                        all.extra ? all.extra + row * n : nullptr, all.tanh_c ? all.tanh_c + row * n : nullptr,
                        all.prev != nullptr};
            if (all.prev) std::copy(state, state + n, all.prev + row * n);
        }
        weights.states_to_gates(s % 2 != 0, states, sums, here.count);
        gates(layout.kind, steps, here.count, n);
    }
    for (int64_t b = first; b < last; ++b) {
        std::copy(h.data() + (b - first) * pad, h.data() + (b - first) * pad + n, all.h + b * n);
        if (all.c) std::copy(c.data() + (b - first) * pad, c.data() + (b - first) * pad + n, all.c + b * n);
    }
}

template <class T>
void backward_tile(const Layout& layout, const Backward<T>& all, const Weights<T>& weights, int64_t first, int64_t last) {
    const int64_t n = layout.n, pad = weights.pad, width = weights.gates * n;
    aligned_vector<T> dh(kTile * pad, T(0)), dc(kTile * pad, T(0)), dg(kTile * weights.gates * pad, T(0));
    for (int64_t b = first; b < last; ++b) {
        std::copy(all.dh + b * n, all.dh + (b + 1) * n, dh.data() + (b - first) * pad);
        if (all.dc) std::copy(all.dc + b * n, all.dc + (b + 1) * n, dc.data() + (b - first) * pad);
    }
    for (int64_t s = 0; s < layout.steps; ++s) {
        const int64_t t = layout.reverse ? s : layout.steps - 1 - s;
        const Present here(layout, first, last, t);
        BackwardStep<T> steps[kTile];
        const T* sums[kTile];
        T* states[kTile];
        for (int64_t r = 0; r < here.count; ++r) {
            const int64_t row = here.row[r];
            T* of_gates = dg.data() + r * weights.gates * pad;
            states[r] = dh.data() + here.which[r] * pad, sums[r] = of_gates;
            steps[r] = {all.gates + row * width,
                        all.prev + row * n,
                        all.extra ? all.extra + row * n : nullptr,
                        all.tanh_c ? all.tanh_c + row * n : nullptr,
                        all.dy + row * n,
                        states[r],
                        dc.data() + here.which[r] * pad,
                        of_gates,
                        all.du + row * width,
                        all.dq ? all.dq + row * n : nullptr};
        }
        gates(layout.kind, steps, here.count, n);
        weights.gates_to_states(s % 2 != 0, sums, states, here.count);
        if (layout.cut == nullptr) continue;
        for (int64_t r = 0; r < here.count; ++r) {
            if (!layout.cut[here.row[r]]) continue;
            std::fill(states[r], states[r] + pad, T(0));
            std::fill(steps[r].dc, steps[r].dc + pad, T(0));
        }
    }
    for (int64_t b = first; b < last; ++b) {
        std::copy(dh.data() + (b - first) * pad, dh.data() + (b - first) * pad + n, all.dh + b * n);
        if (all.dc) std::copy(dc.data() + (b - first) * pad, dc.data() + (b - first) * pad + n, all.dc + b * n);
    }
}

int threads_for(const Layout& n, int threads) {
    return useful_threads(cell_time(n.batch, n.steps, gate_count(n.kind), n.n, n.diagonal), threads);
}

template <class T>
void forward_all(const Layout& layout, const Forward<T>& all, int threads) {
    const Weights<T> weights(layout, all.weight, all.bias, false);
    const int64_t tiles = (layout.batch + kTile - 1) / kTile;
    parallel_for(threads_for(layout, threads), tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x)
            forward_tile(layout, all, weights, x * kTile, std::min(layout.batch, (x + 1) * kTile));
    });
}

template <class T>
void backward_all(const Layout& layout, const Backward<T>& all, int threads) {
    const Weights<T> weights(layout, all.weight, nullptr, true);
    const int64_t tiles = (layout.batch + kTile - 1) / kTile;
    parallel_for(threads_for(layout, threads), tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x)
            backward_tile(layout, all, weights, x * kTile, std::min(layout.batch, (x + 1) * kTile));
    });
}

}  // namespace

void forward(const Layout& layout, const Forward<float>& all, int threads) { forward_all(layout, all, threads); }
void forward(const Layout& layout, const Forward<double>& all, int threads) { forward_all(layout, all, threads); }
void backward(const Layout& layout, const Backward<float>& all, int threads) { backward_all(layout, all, threads); }
void backward(const Layout& layout, const Backward<double>& all, int threads) { backward_all(layout, all, threads); }

}  // namespace lmlab::recurrent
