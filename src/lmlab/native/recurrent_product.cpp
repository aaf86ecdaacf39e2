#include "recurrent_product.h"

#include <algorithm>

#include "dispatch.h"
#include "simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#define LMLAB_UNROLL _Pragma("GCC unroll 12")
#else
#define LMLAB_UNROLL
#endif

namespace lmlab::recurrent {

template <class T>
void Packed<T>::pack_forward(const T* w, int64_t gates, int64_t n, int64_t lanes) {
    const int64_t gate = padded(n, lanes);
    width = gates * gate, blocks = 1, depth = n, block_stride = 0;
    values.assign(static_cast<size_t>(depth * width), T(0));
    for (int64_t x = 0; x < gates; ++x)
        for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < n; ++k) values[k * width + x * gate + i] = w[(x * n + i) * n + k];
}

template <class T>
void Packed<T>::pack_backward(const T* w, int64_t gates, int64_t n, int64_t lanes) {
    width = padded(n, lanes), blocks = gates, depth = n, block_stride = width;
    values.assign(static_cast<size_t>(gates * n * width), T(0));
    for (int64_t row = 0; row < gates * n; ++row) std::copy(w + row * n, w + (row + 1) * n, values.data() + row * width);
}

template struct Packed<float>;
template struct Packed<double>;

namespace {

using namespace lmlab::simd;

// R vectors by V neighbouring vectors of columns. Each sum runs in C interleaved chains, so that enough of them
// are under way to hide the latency of a multiply-add even for one vector and a narrow matrix.
template <class T, int R, int V, int C>
LMLAB_INLINE void group(const Packed<T>& matrix, int64_t column, const T* const* in, T* const* out) {
    using Vec = typename Lanes<T>::vector;
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t width = matrix.width, depth = matrix.depth;
    Vec sum[C][R][V];
    LMLAB_UNROLL for (int c = 0; c < C; ++c)
        LMLAB_UNROLL for (int r = 0; r < R; ++r)
            LMLAB_UNROLL for (int v = 0; v < V; ++v) sum[c][r][v] = Vec{};
    for (int64_t block = 0; block < matrix.blocks; ++block) {
        const T* weights = matrix.values.data() + block * depth * width + column;
        const T* from[R];
        LMLAB_UNROLL for (int r = 0; r < R; ++r) from[r] = in[r] + block * matrix.block_stride;
        int64_t k = 0;
        for (; k + C <= depth; k += C) {
            LMLAB_UNROLL for (int c = 0; c < C; ++c) {
                Vec w[V];
                LMLAB_UNROLL for (int v = 0; v < V; ++v) w[v] = load(weights + (k + c) * width + v * lanes);
                LMLAB_UNROLL for (int r = 0; r < R; ++r) {
                    const T x = from[r][k + c];
                    LMLAB_UNROLL for (int v = 0; v < V; ++v) sum[c][r][v] += w[v] * x;
                }
            }
        }
        LMLAB_UNROLL for (int c = 0; c < C - 1; ++c) {
            if (k + c >= depth) break;
            LMLAB_UNROLL for (int r = 0; r < R; ++r) {
                const T x = from[r][k + c];
                LMLAB_UNROLL for (int v = 0; v < V; ++v) sum[c][r][v] += load(weights + (k + c) * width + v * lanes) * x;
            }
        }
    }
    LMLAB_UNROLL for (int r = 0; r < R; ++r) {
        LMLAB_UNROLL for (int v = 0; v < V; ++v) {
            Vec total = sum[0][r][v];
            if constexpr (C == 2) total = total + sum[1][r][v];
            if constexpr (C == 4) total = (total + sum[1][r][v]) + (sum[2][r][v] + sum[3][r][v]);
            T* to = out[r] + column + v * lanes;
            store(to, load(to) + total);
        }
    }
}

// Columns from `column` on, V vectors at a time while there are so many left; gives back the first column left.
template <class T, int R, int V, int C>
LMLAB_INLINE int64_t groups(const Packed<T>& matrix, int64_t column, const T* const* in, T* const* out) {
    constexpr int64_t step = V * Lanes<T>::count;
    for (; column + step <= matrix.width; column += step) group<T, R, V, C>(matrix, column, in, out);
    return column;
}

// All columns, V vectors at a time, then by smaller groups: few sums alone would wait for each other.
template <class T, int R, int V, int C>
LMLAB_INLINE void sweep(const Packed<T>& matrix, const T* const* in, T* const* out) {
    int64_t column = groups<T, R, V, C>(matrix, 0, in, out);
    if constexpr (V > 4) column = groups<T, R, 4, C>(matrix, column, in, out);
    if constexpr (V > 2) column = groups<T, R, 2, C>(matrix, column, in, out);
    if constexpr (V > 1) groups<T, R, 1, C>(matrix, column, in, out);
}

// All columns in groups of V vectors, which divide them, from the first to the last or from the last to the first.
template <class T, int R, int V, int C>
LMLAB_INLINE void sweep_either_way(const Packed<T>& matrix, bool turned, const T* const* in, T* const* out) {
    constexpr int64_t step = V * Lanes<T>::count;
    for (int64_t column = 0; column < matrix.width; column += step)
        group<T, R, V, C>(matrix, turned ? matrix.width - step - column : column, in, out);
}

// Whether a matrix fills the first cache, of 32 or 48 KB, and most of it would fit.
template <class T>
bool beyond_cache(const Packed<T>& matrix) {
    const size_t bytes = matrix.values.size() * sizeof(T);
    return bytes >= 30u << 10 && bytes <= 72u << 10;
}

// Chains by the width of the matrix; vectors a group by the registers: 32 of 64 bytes, or 16 of 32 bytes.
template <class T, int R>
LMLAB_INLINE void by_width(const Packed<T>& matrix, bool wide, bool turned, const T* const* in, T* const* out) {
    const int64_t vectors = matrix.width / Lanes<T>::count;
    if (vectors >= 8) {
        if (R == 1 && wide && vectors % 6 == 0 && beyond_cache(matrix))
            sweep_either_way<T, R, (R == 1 ? 6 : 1), 1>(matrix, turned, in, out);
        else if (R == 1 && wide && vectors % 12 == 0)
            sweep<T, R, (R == 1 ? 12 : 1), 1>(matrix, in, out);
        else if (wide)
            sweep<T, R, (R == 4 ? 4 : 8), 1>(matrix, in, out);
        else
            sweep<T, R, (R == 4 ? 1 : 2), 1>(matrix, in, out);
    } else if (vectors >= 4) {
        if (wide)
            sweep<T, R, (R == 4 ? 2 : 4), 2>(matrix, in, out);
        else
            sweep<T, R, 1, 2>(matrix, in, out);
    } else if (R == 1 && wide && vectors == 3) {
        sweep<T, R, (R == 1 ? 3 : 1), 4>(matrix, in, out);
    } else if (R == 1 && wide && vectors == 2) {
        sweep<T, R, (R == 1 ? 2 : 1), 4>(matrix, in, out);
    } else {
        sweep<T, R, 1, 4>(matrix, in, out);
    }
}

template <class T>
LMLAB_INLINE void by_count(const Packed<T>& matrix, bool wide, bool turned, const T* const* in, T* const* out, int64_t count) {
    if (count == 4) {
        by_width<T, 4>(matrix, wide, turned, in, out);
        return;
    }
    if (count >= 2) by_width<T, 2>(matrix, wide, turned, in, out);
    if (count % 2) by_width<T, 1>(matrix, wide, turned, in + (count - 1), out + (count - 1));
}

LMLAB_MULTIVERSION void multiply_f32(const Packed<float>& matrix, bool wide, bool turned, const float* const* in, float* const* out, int64_t count) {
    by_count(matrix, wide, turned, in, out, count);
}
LMLAB_MULTIVERSION void multiply_f64(const Packed<double>& matrix, bool wide, bool turned, const double* const* in, double* const* out, int64_t count) {
    by_count(matrix, wide, turned, in, out, count);
}

}  // namespace

bool has_wide_registers() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

void multiply_add(const Packed<float>& matrix, bool turned, const float* const* in, float* const* out, int64_t count) {
    static const bool wide = has_wide_registers();
    multiply_f32(matrix, wide, turned, in, out, count);
}
void multiply_add(const Packed<double>& matrix, bool turned, const double* const* in, double* const* out, int64_t count) {
    static const bool wide = has_wide_registers();
    multiply_f64(matrix, wide, turned, in, out, count);
}

}  // namespace lmlab::recurrent
