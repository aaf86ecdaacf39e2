#include "recurrent_matrix.h"

#include <algorithm>

#include "dispatch.h"
#include "parallel.h"
#include "recurrent_product.h"
#include "recurrent_threads.h"
#include "simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#define LMLAB_UNROLL _Pragma("GCC unroll 8")
#else
#define LMLAB_UNROLL
#endif

namespace lmlab::recurrent {
namespace {

using namespace lmlab::simd;

constexpr int64_t kLoad = 8;       // products in the time that one of a vector pair from memory takes
constexpr int kRows = 4;           // rows of x, or columns of a, of one tile: of more, GCC keeps some sums on the stack
constexpr int64_t kStretch = 128;  // rows of a and b that stay in the first cache
constexpr int64_t kBlock = 64;     // columns whose sums stay in registers
constexpr int64_t kShare = 192;    // rows that a thread takes at a time

// w as panels of V vectors of columns, the last ones narrower and padded with zeros: [k][columns of the panel].
template <class T>
struct Panels {
    aligned_vector<T> values;
    int64_t k, n, vectors;

    explicit Panels(const RowsTimes<T>& all)
        : k(all.k), n(all.n), vectors(padded(all.n, Lanes<T>::count) / Lanes<T>::count) {
        constexpr int64_t lanes = Lanes<T>::count;
        values.assign(static_cast<size_t>(k * vectors * lanes), T(0));
        for (int64_t first = 0; first < vectors;) {
            const int64_t width = panel(first) * lanes;
            T* to = values.data() + first * lanes * k;
            for (int64_t i = 0; i < k; ++i)
                for (int64_t j = 0; j < width && first * lanes + j < n; ++j) {
                    const int64_t column = first * lanes + j;
                    to[i * width + j] = all.transposed ? all.w[column * k + i] : all.w[i * n + column];
                }
            first += panel(first);
        }
    }
    // Vectors in the panel that begins at vector `first`: 4, and 2 or 1 at the end.
    int64_t panel(int64_t first) const {
        const int64_t left = vectors - first;
        return left >= 4 ? 4 : left >= 2 ? 2 : 1;
    }
};

// R rows by V vectors of a panel that is `width` columns wide.
template <class T, int R, int V>
LMLAB_INLINE void tile(const RowsTimes<T>& all, const T* panel, int64_t width, int64_t row, int64_t column) {
    using Vec = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const T* x = all.x + row * all.k;
    Vec sum[R][V];
    LMLAB_UNROLL for (int v = 0; v < V; ++v) {
        const int64_t left = all.n - column - v * lanes;
        const Vec start = !all.bias ? Vec{} : left >= lanes ? load(all.bias + column + v * lanes)
                                                            : load_part(all.bias + column + v * lanes, left, T(0));
        LMLAB_UNROLL for (int r = 0; r < R; ++r) sum[r][v] = start;
    }
    for (int64_t i = 0; i < all.k; ++i, panel += width) {
        Vec w[V];
        LMLAB_UNROLL for (int v = 0; v < V; ++v) w[v] = load(panel + v * lanes);
        LMLAB_UNROLL for (int r = 0; r < R; ++r) {
            const T number = x[r * all.k + i];
            LMLAB_UNROLL for (int v = 0; v < V; ++v) sum[r][v] += w[v] * number;
        }
    }
    LMLAB_UNROLL for (int r = 0; r < R; ++r)
        LMLAB_UNROLL for (int v = 0; v < V; ++v) {
            const int64_t left = all.n - column - v * lanes;
            T* to = all.out + (row + r) * all.n + column + v * lanes;
            if (left >= lanes)
                store(to, sum[r][v]);
            else
                store_part(to, left, sum[r][v]);
        }
}

template <class T, int V>
LMLAB_INLINE void panel_rows(const RowsTimes<T>& all, const T* panel, int64_t width, int64_t column, int64_t begin, int64_t end) {
    int64_t row = begin;
    for (; row + kRows <= end; row += kRows) tile<T, kRows, V>(all, panel, width, row, column);
    switch (end - row) {  // fewer rows at once would wait for each other
        case 3: return tile<T, 3, V>(all, panel, width, row, column);
        case 2: return tile<T, 2, V>(all, panel, width, row, column);
        case 1: return tile<T, 1, V>(all, panel, width, row, column);
    }
}

template <class T>
LMLAB_INLINE void some_rows(const RowsTimes<T>& all, const Panels<T>& panels, bool wide, int64_t begin, int64_t end) {
    constexpr int64_t lanes = Lanes<T>::count;
    for (int64_t first = 0; first < panels.vectors;) {
        const int64_t count = panels.panel(first), width = count * lanes;
        const T* panel = panels.values.data() + first * lanes * panels.k;
        if (wide && count == 4)
            panel_rows<T, 4>(all, panel, width, first * lanes, begin, end);
        else if (wide && count == 2)
            panel_rows<T, 2>(all, panel, width, first * lanes, begin, end);
        else
            for (int64_t v = 0; v < count; ++v)
                panel_rows<T, 1>(all, panel + v * lanes, width, (first + v) * lanes, begin, end);
        first += count;
    }
}

// R columns of a by V vectors of b, over some rows; `whole` of them can be read a vector at a time to the right.
template <class T, int R, int V>
LMLAB_INLINE void outer_tile(const OuterSum<T>& all, int64_t column, int64_t to, int64_t begin, int64_t end, int64_t whole) {
    using Vec = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    Vec sum[R][V];
    LMLAB_UNROLL for (int r = 0; r < R; ++r)
        LMLAB_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = Vec{};
    const T* a = all.a + begin * all.width + all.first + column;
    const T* b = all.b + begin * all.m + to;
    const int64_t last_left = all.m - to - (V - 1) * lanes;
    for (int64_t row = begin; row < end; ++row, a += all.width, b += all.m) {
        Vec y[V];
        LMLAB_UNROLL for (int v = 0; v < V - 1; ++v) y[v] = load(b + v * lanes);
        y[V - 1] = row < whole || last_left >= lanes ? load(b + (V - 1) * lanes)
                                                     : load_part(b + (V - 1) * lanes, last_left, T(0));
        LMLAB_UNROLL for (int r = 0; r < R; ++r) {
            const T number = a[r];
            LMLAB_UNROLL for (int v = 0; v < V; ++v) sum[r][v] += y[v] * number;
        }
    }
    LMLAB_UNROLL for (int r = 0; r < R; ++r)
        LMLAB_UNROLL for (int v = 0; v < V; ++v) {
            T* out = all.out + (column + r) * all.m + to + v * lanes;
            const int64_t left = all.m - to - v * lanes;
            if (left >= lanes)
                store(out, load(out) + sum[r][v]);
            else
                store_part(out, left, load_part(out, left, T(0)) + sum[r][v]);
        }
}

template <class T, int R>
LMLAB_INLINE void outer_columns(const OuterSum<T>& all, bool wide, int64_t column, int64_t begin, int64_t end, int64_t whole) {
    constexpr int64_t lanes = Lanes<T>::count;
    int64_t to = 0;
    if (wide) {
        for (; all.m - to > 3 * lanes; to += 4 * lanes) outer_tile<T, R, 4>(all, column, to, begin, end, whole);
        for (; all.m - to > lanes; to += 2 * lanes) outer_tile<T, R, 2>(all, column, to, begin, end, whole);
    }
    for (; to < all.m; to += lanes) outer_tile<T, R, 1>(all, column, to, begin, end, whole);
}

template <class T>
LMLAB_INLINE void some_columns(const OuterSum<T>& all, bool wide, int64_t begin, int64_t end) {
    // Past these rows a whole vector could reach behind the end of b.
    const int64_t whole = all.rows - 1 - (Lanes<T>::count + all.m - 1) / all.m;
    for (int64_t row = 0; row < all.rows; row += kStretch) {
        const int64_t last = std::min(all.rows, row + kStretch);
        int64_t column = begin;
        for (; column + kRows <= end; column += kRows) outer_columns<T, kRows>(all, wide, column, row, last, whole);
        for (; column < end; ++column) outer_columns<T, 1>(all, wide, column, row, last, whole);
        if (!all.sums) continue;
        for (int64_t from = begin; from < end; from += kStretch) {
            const int64_t count = std::min(kStretch, end - from);
            T sum[kStretch] = {};  // of this stretch alone, which rounds less
            for (int64_t r = row; r < last; ++r)
                for (int64_t c = 0; c < count; ++c) sum[c] += all.a[r * all.width + all.first + from + c];
            for (int64_t c = 0; c < count; ++c) all.sums[from + c] += sum[c];
        }
    }
}

// Columns begin … end of the result, which lie in one repetition of b.
template <class T>
LMLAB_INLINE void some_products(const DiagonalSum<T>& all, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < all.rows; row += kStretch) {
        const int64_t last = std::min(all.rows, row + kStretch);
        for (int64_t from = begin; from < end; from += kBlock) {
            const int64_t count = std::min(kBlock, end - from);
            T product[kBlock] = {}, sum[kBlock] = {};  // of this stretch alone, which rounds less
            for (int64_t r = row; r < last; ++r) {
                const T* a = all.a + r * all.width + all.first + from;
                const T* b = all.b + r * all.m + from % all.m;
                for (int64_t c = 0; c < count; ++c) {
                    product[c] += a[c] * b[c];
                    sum[c] += a[c];
                }
            }
            for (int64_t c = 0; c < count; ++c) {
                all.out[from + c] += product[c];
                if (all.sums) all.sums[from + c] += sum[c];
            }
        }
    }
}

LMLAB_MULTIVERSION void rows_f32(const RowsTimes<float>& all, const Panels<float>& p, bool wide, int64_t begin, int64_t end) {
    some_rows(all, p, wide, begin, end);
}
LMLAB_MULTIVERSION void rows_f64(const RowsTimes<double>& all, const Panels<double>& p, bool wide, int64_t begin, int64_t end) {
    some_rows(all, p, wide, begin, end);
}
LMLAB_MULTIVERSION void outer_f32(const OuterSum<float>& all, bool wide, int64_t begin, int64_t end) { some_columns(all, wide, begin, end); }
LMLAB_MULTIVERSION void outer_f64(const OuterSum<double>& all, bool wide, int64_t begin, int64_t end) { some_columns(all, wide, begin, end); }
LMLAB_MULTIVERSION void diagonal_f32(const DiagonalSum<float>& all, int64_t begin, int64_t end) { some_products(all, begin, end); }
LMLAB_MULTIVERSION void diagonal_f64(const DiagonalSum<double>& all, int64_t begin, int64_t end) { some_products(all, begin, end); }
void rows(const RowsTimes<float>& all, const Panels<float>& p, bool wide, int64_t b, int64_t e) { rows_f32(all, p, wide, b, e); }
void rows(const RowsTimes<double>& all, const Panels<double>& p, bool wide, int64_t b, int64_t e) { rows_f64(all, p, wide, b, e); }
void columns(const OuterSum<float>& all, bool wide, int64_t b, int64_t e) { outer_f32(all, wide, b, e); }
void columns(const OuterSum<double>& all, bool wide, int64_t b, int64_t e) { outer_f64(all, wide, b, e); }

void products(const DiagonalSum<float>& all, int64_t b, int64_t e) { diagonal_f32(all, b, e); }
void products(const DiagonalSum<double>& all, int64_t b, int64_t e) { diagonal_f64(all, b, e); }

template <class T>
void rows_by(const RowsTimes<T>& all, int threads) {
    const Panels<T> panels(all);
    const bool wide = has_wide_registers();
    parallel_for(useful_threads(product_time(all.rows, all.k, all.n), threads), all.rows, kShare,
                 [&](int64_t begin, int64_t end) { rows(all, panels, wide, begin, end); });
}

template <class T>
void columns_by(const OuterSum<T>& all, int threads) {
    std::fill(all.out, all.out + all.n * all.m, T(0));
    if (all.sums) std::fill(all.sums, all.sums + all.n, T(0));
    const bool wide = has_wide_registers();
    threads = useful_threads(product_time(all.rows, all.n, all.m), threads);
    const int64_t share = threads == 1 ? all.n : padded((all.n + threads - 1) / threads, kRows);
    parallel_for(threads, all.n, share, [&](int64_t begin, int64_t end) { columns(all, wide, begin, end); });
}

template <class T>
void diagonals_by(const DiagonalSum<T>& all, int threads) {
    std::fill(all.out, all.out + all.n, T(0));
    if (all.sums) std::fill(all.sums, all.sums + all.n, T(0));
    threads = useful_threads(product_time(all.rows, all.n, kLoad), threads);
    const int64_t blocks = (all.m + kBlock - 1) / kBlock;  // of one repetition
    parallel_for(threads, all.n / all.m * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x) {
            const int64_t from = x / blocks * all.m + x % blocks * kBlock;
            products(all, from, std::min(from + kBlock, (x / blocks + 1) * all.m));
        }
    });
}

}  // namespace

void rows_times(const RowsTimes<float>& all, int threads) { rows_by(all, threads); }
void rows_times(const RowsTimes<double>& all, int threads) { rows_by(all, threads); }
void outer_sum(const OuterSum<float>& all, int threads) { columns_by(all, threads); }
void outer_sum(const OuterSum<double>& all, int threads) { columns_by(all, threads); }
void diagonal_sum(const DiagonalSum<float>& all, int threads) { diagonals_by(all, threads); }
void diagonal_sum(const DiagonalSum<double>& all, int threads) { diagonals_by(all, threads); }

}  // namespace lmlab::recurrent
