// A small matrix product for operands that lie in the cache.
#pragma once

#include <cstdint>

#include "simd.h"

namespace lmlab::model {

// c[8, count vectors] (+)= a · b: 8 rows at a time keep 16 sums in registers.
template <class S, int count>
LMLAB_INLINE void tile(const S* a, int64_t a_row, int64_t a_depth, const S* b, int64_t b_stride, S* c, int64_t c_stride,
                       int64_t depth, bool add) {
    using V = typename simd::Lanes<S>::vector;
    constexpr int64_t L = simd::Lanes<S>::count;
    V sums[8][count];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < count; ++v) sums[r][v] = add ? simd::load(c + r * c_stride + v * L) : V{};
    for (int64_t k = 0; k < depth; ++k) {
        V right[count];
#pragma GCC unroll 2
        for (int v = 0; v < count; ++v) right[v] = simd::load(b + k * b_stride + v * L);
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            const S left = a[r * a_row + k * a_depth];
#pragma GCC unroll 2
            for (int v = 0; v < count; ++v) sums[r][v] += right[v] * left;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < count; ++v) simd::store(c + r * c_stride + v * L, sums[r][v]);
}

// c[rows, columns] = a · b, or c + a · b if add. a[r, k] lies at a + r·a_row + k·a_depth; b [depth, columns] and c
// have unit stride in columns. rows is a multiple of 8, columns of the vector's length.
template <class S>
LMLAB_INLINE void multiply(const S* a, int64_t a_row, int64_t a_depth, const S* b, int64_t b_stride, S* c,
                           int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool add) {
    constexpr int64_t L = simd::Lanes<S>::count;
    int64_t j = 0;
    for (; j + 2 * L <= columns; j += 2 * L)
        for (int64_t i = 0; i < rows; i += 8)
            tile<S, 2>(a + i * a_row, a_row, a_depth, b + j, b_stride, c + i * c_stride + j, c_stride, depth, add);
    if (j < columns)
        for (int64_t i = 0; i < rows; i += 8)
            tile<S, 1>(a + i * a_row, a_row, a_depth, b + j, b_stride, c + i * c_stride + j, c_stride, depth, add);
}

}  // namespace lmlab::model
