#include "recurrent_diagonal.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "dispatch.h"
#include "parallel.h"
#include "recurrent_threads.h"
#include "simd.h"

namespace lmlab::recurrent {
namespace {

using namespace lmlab::simd;

constexpr int kDepth = 16;  // steps of a window that stand in one lane; a window is kDepth * lanes steps
constexpr int kMostSweeps = 24;
constexpr double kByChannel = 10;  // the time of a step here over that of one with the channels side by side
constexpr int kMostGates = 3;
constexpr int kMostKept = 4;  // gates, and a GRU's W_hn h + b_hn

template <class T>
using Vector = typename Lanes<T>::vector;

template <class T>
struct Channel {
    T weight[kMostGates], bias[kMostGates];
};

template <class V>
LMLAB_INLINE V larger(V x, V y) {
    return x > y ? x : y;
}
template <class V>
LMLAB_INLINE V size_of(V x) {
    const V zero = {};
    return x < zero ? -x : x;
}

// f and, if wanted, its derivative by the state h, for as many steps as a vector holds.
template <class T, Kind kind, bool slope>
LMLAB_INLINE void cell(const Channel<T>& c, Vector<T> h, const Vector<T>* u, Vector<T>& f, Vector<T>& j, Vector<T>* kept) {
    using V = Vector<T>;
    const V zero = {};
    if constexpr (kind == Kind::gru) {
        const V r = sigmoid_of(u[0] + c.bias[0] + h * c.weight[0]);
        const V z = sigmoid_of(u[1] + c.bias[1] + h * c.weight[1]);
        const V q = h * c.weight[2] + c.bias[2];
        const V m = tanh_of(u[2] + r * q);
        f = m + z * (h - m);
        if constexpr (slope) {
            const V dm = (1 - z) * (1 - m * m);
            j = z + dm * r * (c.weight[2] + q * (1 - r) * c.weight[0]) + (h - m) * z * (1 - z) * c.weight[1];
        }
        kept[0] = r, kept[1] = z, kept[2] = m, kept[3] = q;
    } else {
        const V sum = u[0] + c.bias[0] + h * c.weight[0];
        if constexpr (kind == Kind::tanh) {
            f = tanh_of(sum);
            if constexpr (slope) j = (1 - f * f) * c.weight[0];
        } else {
            f = sum < zero ? zero : sum;
            if constexpr (slope) j = sum > zero ? zero + c.weight[0] : zero;
        }
        kept[0] = f;
    }
}

// A window of one channel. Step s stands in lane s / kDepth of vector s % kDepth.
template <class T>
struct Window {
    Vector<T> u[kDepth][kMostGates];
    Vector<T> goes_on[kDepth];  // 1, or 0 where a sequence starts and behind the last step
    Vector<T> x[kDepth];
    Vector<T> kept[kDepth][kMostKept];
};

// Lane l gets lane l - 1, lane 0 the given number.
template <class T>
LMLAB_INLINE Vector<T> one_lane_later(Vector<T> x, T first) {
    constexpr int64_t lanes = Lanes<T>::count;
    T numbers[lanes + 1];
    numbers[0] = first;
    store(numbers + 1, x);
    return load(numbers);
}

template <class T>
LMLAB_INLINE T largest(Vector<T> x) {
    T numbers[Lanes<T>::count];
    store(numbers, x);
    return *std::max_element(numbers, numbers + Lanes<T>::count);
}

// One sweep: x becomes the solution of the recurrence linearised at x. Each lane runs over its own steps, keeping
// h = P * (state before the lane) + L; then the lanes are joined. Returns the largest relative step.
template <class T, Kind kind>
LMLAB_INLINE T newton_sweep(const Channel<T>& c, Window<T>& w, T carry) {
    using V = Vector<T>;
    constexpr int64_t lanes = Lanes<T>::count;
    const V zero = {};
    V before = one_lane_later<T>(w.x[kDepth - 1], carry), p = zero + 1, l = zero;
    V product[kDepth], sum[kDepth];
    for (int k = 0; k < kDepth; ++k) {
        const V h = before * w.goes_on[k];
        V f, j;
        cell<T, kind, true>(c, h, w.u[k], f, j, w.kept[k]);
        const V a = j * w.goes_on[k];
        p = a * p;
        l = a * l + (f - j * h);
        product[k] = p, sum[k] = l;
        before = w.x[k];
    }
    T ps[lanes], ls[lanes], starts[lanes];
    store(ps, p), store(ls, l);
    T state = carry;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        starts[lane] = state;
        state = ps[lane] * state + ls[lane];
    }
    const V start = load(starts);
    V moved = zero, broken = zero;
    for (int k = 0; k < kDepth; ++k) {
        const V x = product[k] * start + sum[k];
        moved = larger(moved, size_of(x - w.x[k]) / (1 + size_of(x)));
        broken += x * 0;  // NaN where x isn't finite
        w.x[k] = x;
    }
    const T step = largest<T>(moved);
    return lanes_sum(broken) == 0 ? step : std::numeric_limits<T>::infinity();
}

// The residual of x, and the gates at its states.
template <class T, Kind kind>
LMLAB_INLINE T residual_pass(const Channel<T>& c, Window<T>& w, T carry) {
    using V = Vector<T>;
    V before = one_lane_later<T>(w.x[kDepth - 1], carry), worst = {};
    for (int k = 0; k < kDepth; ++k) {
        V f, j;
        cell<T, kind, false>(c, before * w.goes_on[k], w.u[k], f, j, w.kept[k]);
        worst = larger(worst, size_of(w.x[k] - f) / (1 + size_of(w.x[k])));
        before = w.x[k];
    }
    return largest<T>(worst);
}

// Sweeps until the residual is at rounding; false if that is not reached.
template <class T, Kind kind>
LMLAB_INLINE bool newton(const Channel<T>& c, Window<T>& w, T carry, Found& found) {
    using V = Vector<T>;
    const T rounding = 32 * std::numeric_limits<T>::epsilon();
    const T near = std::sqrt(std::numeric_limits<T>::epsilon());  // the next step is about the square of this one
    const V start = V{} + carry;
    for (int k = 0; k < kDepth; ++k) {
        V j;
        cell<T, kind, false>(c, start * w.goes_on[k], w.u[k], w.x[k], j, w.kept[k]);
    }
    for (int sweeps = 1; sweeps <= kMostSweeps; ++sweeps) {
        const T step = newton_sweep<T, kind>(c, w, carry);
        if (!(step < std::numeric_limits<T>::infinity())) return false;
        if (step > near) continue;
        const T residual = residual_pass<T, kind>(c, w, carry);
        if (residual <= rounding) {
            found.sweeps = std::max(found.sweeps, sweeps);
            found.residual = std::max(found.residual, static_cast<double>(residual));
            return true;
        }
    }
    return false;
}

template <class T, Kind kind>
LMLAB_INLINE void by_steps(const Channel<T>& c, Window<T>& w, T carry, int64_t count) {
    using V = Vector<T>;
    T h = carry;
    for (int64_t s = 0; s < count; ++s) {
        const int64_t lane = s / kDepth, k = s % kDepth;
        V u[kMostGates], f, j, kept[kMostKept] = {};
        for (int g = 0; g < kMostGates; ++g) u[g] = V{} + w.u[k][g][lane];
        cell<T, kind, false>(c, V{} + h * w.goes_on[k][lane], u, f, j, kept);
        h = f[0];
        w.x[k][lane] = h;
        for (int g = 0; g < kMostKept; ++g) w.kept[k][g][lane] = kept[g][0];
    }
}

// Channel j of sequence b, window after window.
template <class T, Kind kind>
LMLAB_INLINE Found channel(const Layout& layout, const Forward<T>& all, int64_t b, int64_t j, bool use_newton) {
    constexpr int64_t lanes = Lanes<T>::count, gates = kind == Kind::gru ? 3 : 1;
    const int64_t n = layout.n;
    Channel<T> c{};
    for (int64_t g = 0; g < gates; ++g) {
        c.weight[g] = all.weight[g * n + j];
        c.bias[g] = all.bias ? all.bias[g * n + j] : T(0);
    }
    Found found;
    Window<T> w{};
    T carry = all.h[b * n + j];
    for (int64_t first = 0; first < layout.steps; first += kDepth * lanes) {
        const int64_t count = std::min<int64_t>(kDepth * lanes, layout.steps - first);
        auto row_of = [&](int64_t s) {
            const int64_t t = layout.reverse ? layout.steps - 1 - first - s : first + s;
            return layout.starts[t] + b * layout.row_step;
        };
        for (int k = 0; k < kDepth; ++k) {
            T u[gates][lanes] = {}, goes_on[lanes] = {};
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t s = lane * kDepth + k;
                if (s >= count) break;
                const int64_t row = row_of(s);
                for (int64_t g = 0; g < gates; ++g) u[g][lane] = all.u[(row * gates + g) * n + j];
                goes_on[lane] = layout.cut && layout.cut[row] ? T(0) : T(1);
            }
            for (int64_t g = 0; g < gates; ++g) w.u[k][g] = load(u[g]);
            w.goes_on[k] = load(goes_on);
        }
        if (use_newton && !newton<T, kind>(c, w, carry, found)) {
            use_newton = false;
            found.repaired = true;
        }
        if (!use_newton) by_steps<T, kind>(c, w, carry, count);
        for (int64_t s = 0; s < count; ++s) {
            const int64_t lane = s / kDepth, k = s % kDepth, row = row_of(s);
            if (all.prev) {
                all.prev[row * n + j] = carry * w.goes_on[k][lane];
                for (int64_t g = 0; g < gates; ++g) all.u[(row * gates + g) * n + j] = w.kept[k][g][lane];
                if (kind == Kind::gru) all.extra[row * n + j] = w.kept[k][3][lane];
            }
            all.y[row * n + j] = carry = w.x[k][lane];
        }
    }
    all.h[b * n + j] = carry;
    return found;
}

template <class T>
LMLAB_INLINE Found of_kind(const Layout& layout, const Forward<T>& all, int64_t b, int64_t j, bool newton) {
    if (layout.kind == Kind::gru) return channel<T, Kind::gru>(layout, all, b, j, newton);
    if (layout.kind == Kind::tanh) return channel<T, Kind::tanh>(layout, all, b, j, newton);
    return channel<T, Kind::relu>(layout, all, b, j, newton);
}

LMLAB_MULTIVERSION Found channel_f32(const Layout& n, const Forward<float>& all, int64_t b, int64_t j, bool newton) {
    return of_kind(n, all, b, j, newton);
}
LMLAB_MULTIVERSION Found channel_f64(const Layout& n, const Forward<double>& all, int64_t b, int64_t j, bool newton) {
    return of_kind(n, all, b, j, newton);
}
Found one(const Layout& n, const Forward<float>& all, int64_t b, int64_t j, bool newton) { return channel_f32(n, all, b, j, newton); }
Found one(const Layout& n, const Forward<double>& all, int64_t b, int64_t j, bool newton) { return channel_f64(n, all, b, j, newton); }

template <class T>
Found every_channel(const Layout& layout, const Forward<T>& all, bool newton, int threads) {
    Found total;
    std::mutex lock;
    const int64_t channels = layout.batch * layout.n;
    const double time = cell_time(layout.batch, layout.steps, gate_count(layout.kind), layout.n, true);
    threads = useful_threads(kByChannel * time, threads);
    parallel_for(threads, channels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x) {
            const Found found = one(layout, all, x / layout.n, x % layout.n, newton);
            std::lock_guard<std::mutex> guard(lock);
            total.sweeps = std::max(total.sweeps, found.sweeps);
            total.residual = std::max(total.residual, found.residual);
            total.repaired = total.repaired || found.repaired;
        }
    });
    return total;
}

}  // namespace

Found forward_by_channel(const Layout& layout, const Forward<float>& all, bool newton, int threads) {
    return every_channel(layout, all, newton, threads);
}
Found forward_by_channel(const Layout& layout, const Forward<double>& all, bool newton, int threads) {
    return every_channel(layout, all, newton, threads);
}

}  // namespace lmlab::recurrent
