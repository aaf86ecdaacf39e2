#include "attention_vq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention_vq_tile.h"
#include "parallel.h"

namespace lmlab::attention {
namespace {

template <class T>
LMLAB_INLINE void assign_keys(const T* keys, int64_t begin, int64_t end, int64_t d, const Packed<T>& packed, int64_t* codes) {
    using V = typename Lanes<T>::vector;
    using I = decltype(V{} < V{});  // a vector of integers as wide as T
    constexpr int64_t lanes = Lanes<T>::count;
    for (int64_t j = begin; j < end; j += 4) {
        const int64_t count = std::min<int64_t>(4, end - j);
        const T* rows[4];
        for (int64_t i = 0; i < count; ++i) rows[i] = keys + (j + i) * d;
        V best[4];
        I where[4];
        for (int i = 0; i < 4; ++i) {
            best[i] = V{} + std::numeric_limits<T>::infinity();
            where[i] = I{};
        }
        rows_by_codes(rows, count, packed, d, [&](int64_t i, int64_t vec, const V& dot) {
            const V score = load(packed.half.data() + vec * lanes) - dot;
            const I better = score < best[i];
            best[i] = better ? score : best[i];
            where[i] = better ? I{} + static_cast<std::remove_reference_t<decltype(where[i][0])>>(vec) : where[i];
        });
        for (int64_t i = 0; i < count; ++i) {
            int64_t code = 0;
            T least = std::numeric_limits<T>::infinity();
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t c = static_cast<int64_t>(where[i][lane]) * lanes + lane;
                if (best[i][lane] < least || (best[i][lane] == least && c < code)) least = best[i][lane], code = c;
            }
            codes[j + i] = code;
        }
    }
}


// Counts, log counts and mean values of one lane's merged keys, padded to whole vectors.
template <class T>
struct Merged {
    static constexpr int64_t lanes = Lanes<T>::count;
    int64_t s, padded_s, e, padded_e;
    aligned_vector<T> count, log_count, mean;

    Merged(const T* counts, const T* means, int64_t s_, int64_t e_)
        : s(s_), padded_s((s_ + lanes - 1) / lanes * lanes), e(e_), padded_e((e_ + lanes - 1) / lanes * lanes),
          count(static_cast<size_t>(padded_s), T(0)), log_count(static_cast<size_t>(padded_s)),
          mean(static_cast<size_t>(padded_s * padded_e), T(0)) {
        std::copy(counts, counts + s, count.begin());
        for (int64_t c = 0; c < padded_s; ++c) log_count[static_cast<size_t>(c)] = std::log(count[static_cast<size_t>(c)]);
        for (int64_t c = 0; c < s; ++c) std::copy(means + c * e, means + (c + 1) * e, mean.begin() + c * padded_e);
    }
    LMLAB_INLINE void add(int64_t code, const T* value) {
        if (code < 0) return;
        T* to = mean.data() + code * padded_e;
        const T n = count[static_cast<size_t>(code)] += T(1);
        log_count[static_cast<size_t>(code)] = std::log(n);
        const T share = T(1) / n;
        for (int64_t x = 0; x < e; ++x) to[x] += (value[x] - to[x]) * share;
    }
    void write(T* counts, T* means) const {
        std::copy(count.begin(), count.begin() + s, counts);
        for (int64_t c = 0; c < s; ++c) std::copy(mean.data() + c * padded_e, mean.data() + c * padded_e + e, means + c * e);
    }
};

// One lane of a sequence: tiles of time, each a tile of at most kRows query rows.
template <class T>
LMLAB_INLINE void forward_lane(const Tensors<T>& all, const Shape& n, int64_t lane, const Packed<T>& packed) {
    constexpr int64_t lanes = Lanes<T>::count;
    constexpr T none = -std::numeric_limits<T>::infinity();
    const int64_t head = lane % n.heads, span = n.r + n.t;
    const T* q = all.q + lane * n.m * n.t * n.d;
    const T* q_near = all.q_near ? all.q_near + lane * n.m * n.t * n.d : nullptr;
    const T* k_near = all.k_near ? all.k_near + lane * span * n.d : nullptr;
    const int64_t* codes = all.codes + lane * span;
    const T* bias = all.bias ? all.bias + head * n.m * n.w : nullptr;
    Merged<T> merged(all.count + lane * n.s, all.mean + lane * n.s * n.e, n.s, n.e);
    const int64_t width = merged.padded_e;

    const T* values = all.values + lane * span * n.e;
    aligned_vector<T> padded_values;
    if (width != n.e) {
        padded_values.assign(static_cast<size_t>(span * width), T(0));
        for (int64_t j = 0; j < span; ++j) std::copy(values + j * n.e, values + (j + 1) * n.e, padded_values.data() + j * width);
        values = padded_values.data();
    }

    const int64_t time = std::max<int64_t>(1, kRows / n.m);
    const int64_t rows = time * n.m, single = (n.r + time + lanes - 1) / lanes * lanes;
    aligned_vector<T> scores(static_cast<size_t>(rows * merged.padded_s)), near(static_cast<size_t>(rows * single));
    aligned_vector<T> mixed(static_cast<size_t>(rows * width));
    std::vector<const T*> query(static_cast<size_t>(rows)), score_rows(query), near_rows(query);
    std::vector<T*> mixed_rows(static_cast<size_t>(rows));

    for (int64_t start = 0; start < n.t; start += time) {
        const int64_t here = std::min(time, n.t - start), count = here * n.m;
        for (int64_t row = 0; row < count; ++row) {
            query[row] = q + ((row / here) * n.t + start + row % here) * n.d;
            score_rows[row] = scores.data() + row * merged.padded_s;
            near_rows[row] = near.data() + row * single;
            mixed_rows[row] = mixed.data() + row * width;
        }
        for (int64_t row = 0; row < count; row += 4)
            rows_by_codes(query.data() + row, std::min<int64_t>(4, count - row), packed, n.d, [&](int64_t i, int64_t vec, const auto& dots) {
                store(scores.data() + (row + i) * merged.padded_s + vec * lanes, dots * all.scale);
            });

        for (int64_t row = 0; row < count; ++row) {
            T* score = scores.data() + row * merged.padded_s;
            T* logit = near.data() + row * single;
            const int64_t i = row % here, own = n.r + i;  // place of the row's own key among the single ones
            const int64_t last = own - (n.strict ? 1 : 0);
            const int64_t* code = codes + start;
            for (int64_t j = 0; j <= last; ++j) logit[j] = code[j] < 0 ? none : score[code[j]];
            const int64_t from = std::max<int64_t>(0, own - n.w + 1);
            if (q_near) {
                const T* turned = q_near + ((row / here) * n.t + start + i) * n.d;
                for (int64_t j = from; j <= last; ++j)
                    if (code[j] >= 0) logit[j] = dot(turned, k_near + (start + j) * n.d, n.d) * all.scale;
            }
            if (bias) {
                const T* b = bias + (row / here) * n.w;
                for (int64_t j = from; j <= last; ++j) logit[j] += b[own - j];
            }
            for (int64_t j = last + 1; j < single; ++j) logit[j] = none;
            for (int64_t c = 0; c < merged.padded_s; ++c) score[c] += merged.log_count[static_cast<size_t>(c)];

            T top = largest(score, merged.padded_s, std::numeric_limits<T>::lowest());
            top = largest(logit, single, top);
            const T total = exponentials(score, merged.padded_s, top) + exponentials(logit, single, top);
            all.lse[(lane * n.m + row / here) * n.t + start + i] = top + std::log(total);
            // weights that sum to 1: the mixing below then needs no division of its own
            const T scale = total > 0 ? T(1) / total : T(0);
            for (int64_t c = 0; c < merged.padded_s; ++c) score[c] *= scale;
            for (int64_t j = 0; j < single; ++j) logit[j] *= scale;
        }

        std::fill(mixed.begin(), mixed.begin() + count * width, T(0));
        mix<T>(score_rows.data(), count, merged.s, [&](int64_t c) { return merged.mean.data() + c * width; }, width / lanes, mixed_rows.data());
        mix<T>(near_rows.data(), count, n.r + here, [&](int64_t j) { return values + (start + j) * width; }, width / lanes, mixed_rows.data());
        for (int64_t row = 0; row < count; ++row)
            std::copy(mixed_rows[row], mixed_rows[row] + n.e, all.out + ((lane * n.m + row / here) * n.t + start + row % here) * n.e);
        for (int64_t j = start; j < start + here; ++j) merged.add(codes[j], values + j * width);
    }
    merged.write(all.count + lane * n.s, all.mean + lane * n.s * n.e);
}

// From the codes c[0], c[1] .. of `count` <= 4: q . c, or with Distance |c|^2 / 2 - q . c = sum of c (c / 2 - q).
template <bool Distance, class T>
LMLAB_INLINE void row_by_four(const T* q, const T* codes, int64_t count, int64_t d, T* out) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const T* c[4];
    for (int64_t i = 0; i < 4; ++i) c[i] = codes + std::min(i, count - 1) * d;
    V sum[4]{};
    int64_t x = 0;
    for (; x + lanes <= d; x += lanes) {
        const V here = load(q + x);
        for (int i = 0; i < 4; ++i) {
            const V code = load(c[i] + x);
            sum[i] += code * (Distance ? code * T(0.5) - here : here);
        }
    }
    T four[4];
    sum_lanes_of_four(sum, four);
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t y = x; y < d; ++y) four[i] += c[i][y] * (Distance ? c[i][y] * T(0.5) - q[y] : q[y]);
        out[i] = four[i];
    }
}

// out += sum over k of weights[k] * rows[k], e wide, two sums at a time so that one needn't wait for the other.
template <class T>
LMLAB_INLINE void mix_one(const T* weights, const T* rows, int64_t count, int64_t e, T* out) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    int64_t x = 0;
    for (; x + 4 * lanes <= e; x += 4 * lanes) {
        V even[4], odd[4]{};
        for (int i = 0; i < 4; ++i) even[i] = load(out + x + i * lanes);
        int64_t k = 0;
        for (; k + 2 <= count; k += 2)
            for (int i = 0; i < 4; ++i) {
                even[i] += load(rows + k * e + x + i * lanes) * weights[k];
                odd[i] += load(rows + (k + 1) * e + x + i * lanes) * weights[k + 1];
            }
        if (k < count)
            for (int i = 0; i < 4; ++i) even[i] += load(rows + k * e + x + i * lanes) * weights[k];
        for (int i = 0; i < 4; ++i) store(out + x + i * lanes, even[i] + odd[i]);
    }
    if (x < e)
        for (int64_t k = 0; k < count; ++k)
            for (int64_t y = x; y < e; ++y) out[y] += weights[k] * rows[k * e + y];
}

template <class T>
LMLAB_INLINE void step_lane(const Step<T>& one, const Shape& n, int64_t lane) {
    using V = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    constexpr T none = -std::numeric_limits<T>::infinity();
    const int64_t head = lane % n.heads;
    const T* codebook = one.codebook + head * n.s * n.d;
    T* count = one.count + lane * n.s;
    T* mean = one.mean + lane * n.s * n.e;
    int64_t* ring = one.recent_codes + lane * n.r;
    T* ring_values = one.recent_values + lane * n.r * n.e;
    const T* value = one.value + lane * n.e;

    // the codebook is read once: four codes against the key, then against every query
    const bool seen = !one.mask || one.mask[lane / n.heads];
    const int64_t padded = (n.s + lanes - 1) / lanes * lanes, ring_padded = (n.r + 1 + lanes - 1) / lanes * lanes;
    const int64_t width = padded + ring_padded;
    aligned_vector<T> weights(static_cast<size_t>(n.m * width), none);
    int64_t code = seen ? 0 : -1;
    T least = std::numeric_limits<T>::infinity();
    for (int64_t c = 0; c < n.s; c += 4) {
        const int64_t four = std::min<int64_t>(4, n.s - c);
        if (seen) {
            T score[4];
            row_by_four<true>(one.key + lane * n.d, codebook + c * n.d, four, n.d, score);
            for (int64_t i = 0; i < four; ++i)
                if (score[i] < least) least = score[i], code = c + i;
        }
        for (int64_t x = 0; x < n.m; ++x)
            row_by_four<false>(one.q + (lane * n.m + x) * n.d, codebook + c * n.d, four, n.d, weights.data() + x * width + c);
    }
    const int64_t oldest = n.r ? one.position % n.r : 0;  // place of the key that leaves
    for (int64_t x = 0; x < n.m; ++x) {
        T* weight = weights.data() + x * width;
        T* near = weight + padded;  // by place in the ring, then the new key
        T* out = one.out + (lane * n.m + x) * n.e;
        const T* bias = one.bias ? one.bias + (head * n.m + x) * n.w : nullptr;
        for (int64_t c = 0; c < n.s; ++c) weight[c] *= one.scale;
        for (int64_t place = 0; place < n.r; ++place) {
            const int64_t back = place < oldest ? oldest - place : oldest - place + n.r;
            if (ring[place] >= 0) near[place] = weight[ring[place]] + (bias && back < n.w ? bias[back] : T(0));
        }
        if (code >= 0) near[n.r] = weight[code] + (bias ? bias[0] : T(0));
        for (int64_t c = 0; c < n.s; ++c) weight[c] = count[c] > 0 ? weight[c] : none;
        const T top = largest(weight, width, std::numeric_limits<T>::lowest());
        exponentials(weight, width, top);
        for (int64_t c = 0; c < n.s; ++c) weight[c] *= count[c];  // no logarithm: exp(logit) count = exp(logit + ln count)
        V sum{};
        for (int64_t c = 0; c < width; c += lanes) sum += load(weight + c);
        const T total = sum_lanes(sum);
        std::fill(out, out + n.e, T(0));
        if (!(total > 0)) continue;
        const V share = V{} + T(1) / total;
        for (int64_t c = 0; c < width; c += lanes) store(weight + c, load(weight + c) * share);
        mix_one(weight, mean, n.s, n.e, out);
        mix_one(near, ring_values, n.r, n.e, out);
        mix_one(near + n.r, value, 1, n.e, out);
    }
    // the key that falls out of the ring is merged; without a ring the new one is
    const int64_t leaving = n.r ? ring[oldest] : code;
    if (leaving >= 0) {
        const T* gone = n.r ? ring_values + oldest * n.e : value;
        const T share = T(1) / (count[leaving] += T(1));
        for (int64_t y = 0; y < n.e; ++y) mean[leaving * n.e + y] += (gone[y] - mean[leaving * n.e + y]) * share;
    }
    if (n.r) {
        ring[oldest] = code;
        std::copy(value, value + n.e, ring_values + oldest * n.e);
    }
}

LMLAB_MULTIVERSION void assign_f32(const float* keys, int64_t begin, int64_t end, int64_t d, const Packed<float>& packed, int64_t* codes) {
    assign_keys(keys, begin, end, d, packed, codes);
}
LMLAB_MULTIVERSION void assign_f64(const double* keys, int64_t begin, int64_t end, int64_t d, const Packed<double>& packed, int64_t* codes) {
    assign_keys(keys, begin, end, d, packed, codes);
}
LMLAB_MULTIVERSION void forward_f32(const Tensors<float>& all, const Shape& n, int64_t lane, const Packed<float>& packed) {
    forward_lane(all, n, lane, packed);
}
LMLAB_MULTIVERSION void forward_f64(const Tensors<double>& all, const Shape& n, int64_t lane, const Packed<double>& packed) {
    forward_lane(all, n, lane, packed);
}
LMLAB_MULTIVERSION void step_f32(const Step<float>& one, const Shape& n, int64_t lane) { step_lane(one, n, lane); }
LMLAB_MULTIVERSION void step_f64(const Step<double>& one, const Shape& n, int64_t lane) { step_lane(one, n, lane); }

template <class T, class One>
void assign_all(const T* keys, const T* codebook, int64_t* codes, const Shape& n, int threads, One&& one) {
    const auto packed = pack_all(codebook, n);
    constexpr int64_t piece = 1024;
    const int64_t pieces = (n.t + piece - 1) / piece;
    parallel_for(threads, n.lanes * pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x) {
            const int64_t lane = x / pieces, from = x % pieces * piece;
            one(keys + lane * n.t * n.d, from, std::min(from + piece, n.t), n.d, packed[lane % n.heads], codes + lane * n.t);
        }
    });
}

}  // namespace

void assign(const float* keys, const float* codebook, int64_t* codes, const Shape& n, int threads) {
    assign_all(keys, codebook, codes, n, threads, assign_f32);
}
void assign(const double* keys, const double* codebook, int64_t* codes, const Shape& n, int threads) {
    assign_all(keys, codebook, codes, n, threads, assign_f64);
}

void forward(const Tensors<float>& all, const Shape& n, int threads) {
    const auto packed = pack_all(all.codebook, n);
    parallel_for(threads, n.lanes, 1, [&](int64_t begin, int64_t end) {
        for (int64_t lane = begin; lane < end; ++lane) forward_f32(all, n, lane, packed[lane % n.heads]);
    });
}
void forward(const Tensors<double>& all, const Shape& n, int threads) {
    const auto packed = pack_all(all.codebook, n);
    parallel_for(threads, n.lanes, 1, [&](int64_t begin, int64_t end) {
        for (int64_t lane = begin; lane < end; ++lane) forward_f64(all, n, lane, packed[lane % n.heads]);
    });
}

namespace {
template <class T>
void count_seen(const Step<T>& one, const Shape& n) {
    for (int64_t x = 0; x < n.lanes / n.heads; ++x) one.seen[x] += !one.mask || one.mask[x];
}
}  // namespace

void step(const Step<float>& one, const Shape& n) {
    count_seen(one, n);
    for (int64_t lane = 0; lane < n.lanes; ++lane) step_f32(one, n, lane);
}
void step(const Step<double>& one, const Shape& n) {
    count_seen(one, n);
    for (int64_t lane = 0; lane < n.lanes; ++lane) step_f64(one, n, lane);
}

}  // namespace lmlab::attention
