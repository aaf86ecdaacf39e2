// The matrix products around a recurrence: tall and narrow, one row a step. Each row is summed in the same order
// whatever its neighbours and the number of threads.
#pragma once

#include <cstdint>

namespace lmlab::recurrent {

// out [rows, n] = x [rows, k] w (+ bias [n]); w is [k, n], or [n, k] if transposed.
template <class T>
struct RowsTimes {
    const T *x, *w, *bias;
    T* out;
    int64_t rows, k, n;
    bool transposed;
};

// out [n, m] = a^T b and sums [n] = the column sums of a, over columns first … first + n of a [rows, width] and
// b [rows, m]. sums may be null.
template <class T>
struct OuterSum {
    const T *a, *b;
    T *out, *sums;
    int64_t rows, width, first, n, m;
};

// out [n] = the column sums of a * b and sums [n] = those of a, over columns first … first + n of a [rows, width]; b
// [rows, m] is repeated over them: the hidden weights of a diagonal cell. sums may be null.
template <class T>
struct DiagonalSum {
    const T *a, *b;
    T *out, *sums;
    int64_t rows, width, first, n, m;
};

void rows_times(const RowsTimes<float>& all, int threads);
void rows_times(const RowsTimes<double>& all, int threads);
void outer_sum(const OuterSum<float>& all, int threads);
void outer_sum(const OuterSum<double>& all, int threads);
void diagonal_sum(const DiagonalSum<float>& all, int threads);
void diagonal_sum(const DiagonalSum<double>& all, int threads);

}  // namespace lmlab::recurrent
