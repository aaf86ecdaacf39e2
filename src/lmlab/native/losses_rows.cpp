// The row visit of lmlab.losses. Notation as in docs/losses.md: one row of logits u (z after the soft-cap), its
// target t, p = softmax(z). The target is kept out of every sum: r = sum of e^{z_j - m} over j != t, and E the
// same weighted by c_j; so 1 - p_t, ce and emo are right in relative terms however near p_t is to 1.
#include "losses_rows.h"

#include <algorithm>

namespace lmlab::losses {
namespace {

// Sums in the lanes' type are moved to double after so many elements, so that long rows lose nothing.
constexpr int64_t kBlock = 4096;

template <class T>
using Vector = typename Lanes<T>::vector;
template <class T>
using Scalar = typename Lanes<T>::scalar;

template <class T>
LMLAB_INLINE double largest(const T* z, int64_t count) {
    constexpr int64_t L = Lanes<T>::count;
    Vector<T> top = Vector<T>{} + static_cast<Scalar<T>>(-std::numeric_limits<double>::infinity());
    int64_t j = 0;
    for (; j + L <= count; j += L) {
        const Vector<T> x = load(z + j);
        top = x > top ? x : top;
    }
    if (j < count) {
        const Vector<T> x = load_part(z + j, count - j, minus_infinity<T>());
        top = x > top ? x : top;
    }
    Scalar<T> lanes[L];
    store(lanes, top);
    return *std::max_element(lanes, lanes + L);
}

struct Sums {
    double e = 0, cost = 0, z = 0;  // of e^{z - m}, of e^{z - m} c, of z - m
};

template <CostKind kind, class V>
LMLAB_INLINE V cost_of(V entry) {
    if constexpr (kind == CostKind::cosines) {
        const V zero = {};
        const V c = 1 - entry;
        return c > zero ? c : zero;
    }
    return entry;
}

// What a row may have beside a softmax. `plain` rows have neither, and are compiled apart.
template <class S>
struct Extras {
    bool capped, smoothed;
    S cap, inverse;
};

template <class S, bool plain>
LMLAB_INLINE Extras<S> extras_of(const Options& o) {
    const bool capped = !plain && o.softcap > 0;
    const S cap = static_cast<S>(o.softcap);
    return {capped, !plain && o.smoothing > 0, cap, capped ? 1 / cap : S{0}};
}

template <bool plain, class V, class S>
LMLAB_INLINE V soft_capped(V u, const Extras<S>& extras) {
    return !plain && extras.capped ? extras.cap * tanh_of(u * extras.inverse) : u;
}

// One logit in the vectors' own arithmetic, so that the greatest z is exactly that of the sums.
template <class T, bool plain>
LMLAB_INLINE double one_capped(double u, const Extras<Scalar<T>>& extras) {
    const Vector<T> lanes = Vector<T>{} + static_cast<Scalar<T>>(u);
    return static_cast<double>(soft_capped<plain>(lanes, extras)[0]);
}

// Adds to `sums` the words [0, count) of a row whose greatest z is m.
template <class T, CostKind kind, bool plain>
LMLAB_INLINE void add_up(const T* u, const Scalar<T>* c, int64_t count, Scalar<T> m, const Extras<Scalar<T>>& extras,
                         Sums& sums) {
    constexpr int64_t L = Lanes<T>::count;
    constexpr bool costed = kind == CostKind::cosines || kind == CostKind::costs;
    using V = Vector<T>;
    const bool smoothed = !plain && extras.smoothed;
    for (int64_t block = 0; block < count; block += kBlock) {
        const int64_t stop = std::min(count, block + kBlock);
        V e0 = {}, e1 = {}, c0 = {}, c1 = {}, z0 = {};
        int64_t j = block;
        for (; j + 2 * L <= stop; j += 2 * L) {
            const V za = soft_capped<plain>(load(u + j), extras) - m;
            const V zb = soft_capped<plain>(load(u + j + L), extras) - m;
            const V a = exp_negative(za), b = exp_negative(zb);
            e0 += a;
            e1 += b;
            if constexpr (costed) {
                c0 += a * cost_of<kind>(load(c + j));
                c1 += b * cost_of<kind>(load(c + j + L));
            }
            if (smoothed) z0 += za + zb;
        }
        for (; j < stop; j += L) {
            const int64_t left = std::min(L, stop - j);
            V z = left == L ? load(u + j) : load_part(u + j, left, minus_infinity<T>());
            // The missing lanes go to -infinity once more, as the soft-cap lifts them.
            z = first_lanes(soft_capped<plain>(z, extras) - m, left, static_cast<Scalar<T>>(-INFINITY));
            const V e = exp_negative(z);
            e0 += e;
            if constexpr (costed)
                c0 += e * cost_of<kind>(left == L ? load(c + j) : load_part(c + j, left, Scalar<T>{0}));
            if (smoothed) z0 += first_lanes(z, left, Scalar<T>{0});
        }
        sums.e += lanes_sum(e0 + e1);
        if constexpr (costed) sums.cost += lanes_sum(c0 + c1);
        if (smoothed) sums.z += lanes_sum(z0);
    }
}

// What the gradient of a row needs: dz_j = e^{z_j - m} (base + slope c_j) - shift, all times the row's scale.
template <class S>
struct Slopes {
    S m, base, slope, shift;
};

template <class T, CostKind kind, bool plain>
LMLAB_INLINE Vector<T> gradient_of(Vector<T> u, Vector<T> entry, const Slopes<Scalar<T>>& s,
                                   const Extras<Scalar<T>>& extras) {
    const Vector<T> z = soft_capped<plain>(u, extras);
    const Vector<T> e = exp_negative(z - s.m);
    Vector<T> dz;
    if constexpr (kind == CostKind::cosines || kind == CostKind::costs)
        dz = e * (s.base + s.slope * cost_of<kind>(entry)) - s.shift;
    else
        dz = e * s.base - s.shift;
    if (!plain && extras.capped) dz *= 1 - (z * extras.inverse) * (z * extras.inverse);
    return dz;
}

template <class T, CostKind kind, bool plain>
LMLAB_INLINE void differentiate(const T* u, T* out, const Scalar<T>* c, int64_t count, const Slopes<Scalar<T>>& s,
                                const Extras<Scalar<T>>& extras) {
    constexpr int64_t L = Lanes<T>::count;
    constexpr bool costed = kind == CostKind::cosines || kind == CostKind::costs;
    using V = Vector<T>;
    const V none = {};
    int64_t j = 0;
    for (; j + L <= count; j += L)
        store(out + j, gradient_of<T, kind, plain>(load(u + j), costed ? load(c + j) : none, s, extras));
    if (j < count) {
        const V last = load_part(u + j, count - j, T{});
        const V entry = costed ? load_part(c + j, count - j, Scalar<T>{0}) : none;
        store_part(out + j, count - j, gradient_of<T, kind, plain>(last, entry, s, extras));
    }
}

// A row's value and, in its gradient, the weights a of ce_eps, b of emo and g of the pull at p_t.
struct Weights {
    double value, a, b, g;
};

LMLAB_INLINE Weights weigh(const Options& o, double ce, double smooth, double emo, double p, double rest) {
    switch (o.loss) {
        case Loss::ce:
            return {smooth, 1, 0, 0};
        case Loss::tvd:
            return {rest, 0, 0, p};
        case Loss::dft:
            return {p * smooth, p, 0, 0};
        case Loss::focal: {
            const double a = std::pow(rest, o.first);
            const bool flat = o.first == 0 || rest == 0;
            return {a * smooth, a, 0, flat ? 0 : o.first * p * std::pow(rest, o.first - 1) * smooth};
        }
        case Loss::tailr: {  // gamma = 0 at p = 0 is 0 / 0, and the limit is 1
            const double share = o.first > 0 ? p / (o.first + (1 - o.first) * p) : 1.0;
            const double a = share < o.second ? o.second : (share > 1 ? 1 : share);
            return {a * smooth, a, 0, 0};
        }
        case Loss::mixce: {
            const double a = o.first + (1 - o.first) * p;
            return {a * smooth, a, 0, 0};
        }
        default:
            break;
    }
    const double e = o.shift ? emo + p : emo;
    if (o.loss == Loss::emo_none) return {o.first * smooth + o.second * e, o.first, o.second, 0};
    double ratio = o.loss == Loss::emo_emo ? ce / (e + 1e-10) : e / (ce + 1e-10);
    if (ratio > o.clamp) ratio = o.clamp;
    if (o.loss == Loss::emo_emo) return {0.5 * (smooth + ratio * e), 0.5, 0.5 * ratio, 0};
    return {e + ratio * smooth, ratio, 1, 0};
}

template <class T, CostKind kind, bool plain>
LMLAB_INLINE void visit_row(const Rows<T>& rows, int64_t i) {
    using S = Scalar<T>;
    constexpr bool costed = kind == CostKind::cosines || kind == CostKind::costs;
    const Options& o = rows.options;
    const int64_t v = rows.v, t = rows.target[i], token = rows.token[i];
    const int64_t where = (rows.row ? rows.row[i] : i) * rows.stride;
    const T* u = rows.logits + where;
    const S* c = costed ? rows.table + rows.index[i] * v : nullptr;
    const Extras<S> extras = extras_of<S, plain>(o);
    const bool capped = extras.capped, smoothed = extras.smoothed;

    struct Side {
        int64_t start, count;
        double top;
    };
    Side sides[] = {{0, t, 0}, {t + 1, v - t - 1, 0}};  // the words before and after the target
    for (Side& side : sides) side.top = largest(u + side.start, side.count);
    const double u_t = widen(u[t]), top_before = sides[0].top, top_after = sides[1].top;
    const double top = std::max(std::max(top_before, top_after), u_t);
    const double m = one_capped<T, plain>(top, extras), z_t = one_capped<T, plain>(u_t, extras);

    Sums sums;
    for (const Side& side : sides)
        add_up<T, kind, plain>(u + side.start, costed ? c + side.start : nullptr, side.count, static_cast<S>(m),
                               extras, sums);
    const double e_t = std::exp(z_t - m), total = sums.e + e_t, log_total = std::log(total);
    const double lse = m + log_total;
    // m - z_t is 0 in the first case, unless both are infinite: then the row is NaN.
    const double ce = (m - z_t) + (z_t == m ? std::log1p(sums.e) : log_total);
    const double p = e_t / total, rest = sums.e / total;
    const bool zero_one = rows.cost == CostKind::zero_one, with_cost = costed || zero_one;
    const double emo = costed ? sums.cost / total : (zero_one ? rest : 0);
    double smooth = ce;
    if (smoothed) smooth = (1 - o.smoothing) * ce + o.smoothing * (log_total - (sums.z + (z_t - m)) / v);

    const Weights w = weigh(o, ce, smooth, emo, p, rest);
    rows.value[token] = static_cast<S>(o.z_loss > 0 ? w.value + o.z_loss * lse * lse : w.value);
    rows.ce[token] = static_cast<S>(ce);
    rows.emo[token] = static_cast<S>(emo);
    rows.lse[token] = static_cast<S>(lse);
    rows.correct[token] = ce == ce && (t == 0 || u_t > top_before) && u_t >= top_after;
    if (!rows.gradient) return;

    const double scale = rows.scales ? static_cast<double>(rows.scales[i]) : rows.scale;
    const double pull = o.z_loss > 0 ? 2 * o.z_loss * lse : 0;  // of the z-loss, at every word by p_j
    double k0 = w.a + w.g + pull;
    if (with_cost) k0 -= w.b * emo;
    if (zero_one) k0 += w.b;
    const Slopes<S> slopes{static_cast<S>(m), static_cast<S>(k0 * scale / total),
                           static_cast<S>(w.b * scale / total),
                           static_cast<S>(smoothed ? w.a * o.smoothing / v * scale : 0)};
    T* out = rows.gradient + where;
    for (const Side& side : sides)
        differentiate<T, kind, plain>(u + side.start, out + side.start, costed ? c + side.start : nullptr, side.count,
                                      slopes, extras);
    double d = -(w.a + w.g) * rest + pull * p;
    if (smoothed) d += w.a * o.smoothing * (1 - 1.0 / v);
    if (with_cost) d -= w.b * emo * p;
    if (capped) d *= 1 - (z_t / o.softcap) * (z_t / o.softcap);
    narrow(out + t, d * scale);
}

template <class T, bool plain>
LMLAB_INLINE void visit_soft_row(const Rows<T>& rows, int64_t i) {
    using S = Scalar<T>;
    const Options& o = rows.options;
    const int64_t v = rows.v, token = rows.token[i], where = (rows.row ? rows.row[i] : i) * rows.stride;
    const T* u = rows.logits + where;
    const S* c = rows.table + i * v;
    const Extras<S> extras = extras_of<S, plain>(o);
    const S m = static_cast<S>(one_capped<T, plain>(largest(u, v), extras));
    Sums sums;
    add_up<T, CostKind::costs, plain>(u, c, v, m, extras, sums);
    const double emo = sums.cost / sums.e;
    rows.lse[token] = static_cast<S>(m + std::log(sums.e));
    rows.emo[token] = static_cast<S>(emo);
    if (!rows.gradient) return;
    const double scale = (rows.scales ? static_cast<double>(rows.scales[i]) : rows.scale) / sums.e;
    const double base = (o.first * rows.mass[i] - o.second * emo) * scale;
    const Slopes<S> slopes{m, static_cast<S>(base), static_cast<S>(o.second * scale), S{0}};
    differentiate<T, CostKind::costs, plain>(u, rows.gradient + where, c, v, slopes, extras);
}

template <class T>
LMLAB_INLINE void visit_soft_rows(const Rows<T>& rows, int64_t begin, int64_t end) {
    if (rows.options.softcap > 0)
        for (int64_t i = begin; i < end; ++i) visit_soft_row<T, false>(rows, i);
    else
        for (int64_t i = begin; i < end; ++i) visit_soft_row<T, true>(rows, i);
}

template <class T, CostKind kind>
LMLAB_INLINE void visit_rows(const Rows<T>& rows, int64_t begin, int64_t end) {
    if (rows.options.smoothing > 0 || rows.options.softcap > 0)
        for (int64_t i = begin; i < end; ++i) visit_row<T, kind, false>(rows, i);
    else
        for (int64_t i = begin; i < end; ++i) visit_row<T, kind, true>(rows, i);
}

template <class T>
LMLAB_INLINE void visit_rows(const Rows<T>& rows, int64_t begin, int64_t end) {
    if (rows.cost == CostKind::cosines)
        visit_rows<T, CostKind::cosines>(rows, begin, end);
    else if (rows.cost == CostKind::costs)
        visit_rows<T, CostKind::costs>(rows, begin, end);
    else
        visit_rows<T, CostKind::none>(rows, begin, end);
}

}  // namespace

LMLAB_MULTIVERSION void visit(const Rows<float>& rows, int64_t begin, int64_t end) { visit_rows(rows, begin, end); }
LMLAB_MULTIVERSION void visit(const Rows<double>& rows, int64_t begin, int64_t end) { visit_rows(rows, begin, end); }
LMLAB_MULTIVERSION void visit(const Rows<bfloat16>& rows, int64_t begin, int64_t end) {
    visit_rows(rows, begin, end);
}
LMLAB_MULTIVERSION void visit_soft(const Rows<float>& rows, int64_t begin, int64_t end) {
    visit_soft_rows(rows, begin, end);
}
LMLAB_MULTIVERSION void visit_soft(const Rows<double>& rows, int64_t begin, int64_t end) {
    visit_soft_rows(rows, begin, end);
}

}  // namespace lmlab::losses
