// Products of a few state vectors with one recurrent weight matrix, the inner loop of the dense cells.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace lmlab::recurrent {

inline int64_t padded(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

constexpr int kTile = 4;  // state vectors that are multiplied together: the matrix is read once for all of them

// A matrix of `blocks` x `depth` rows, each padded to `width` (whole vectors), that is added up along its rows:
// out[c] += sum over (block, k) of in[block * block_stride + k] * matrix[block * depth + k][c].
template <class T>
struct Packed {
    aligned_vector<T> values;
    int64_t width = 0, blocks = 1, depth = 0, block_stride = 0;

    // Torch's W [gates * n, n] for g = W h: one block, columns of W, each gate padded by itself.
    void pack_forward(const T* w, int64_t gates, int64_t n, int64_t lanes);
    // The same W for dh = W^T dg: a block for each gate, rows of W.
    void pack_backward(const T* w, int64_t gates, int64_t n, int64_t lanes);
};

// For `count` <= kTile vectors. The order of the sums depends on the matrix only, never on `count` or `turned`.
// turned: columns from the last to the first. A matrix a little too large for the first cache, gone through
// forth and back, finds there what it went through last.
void multiply_add(const Packed<float>& matrix, bool turned, const float* const* in, float* const* out, int64_t count);
void multiply_add(const Packed<double>& matrix, bool turned, const double* const* in, double* const* out, int64_t count);

// Whether the processor has 32 registers of 64 bytes.
bool has_wide_registers();

}  // namespace lmlab::recurrent
