// The decoder's element-wise passes, each one visit to memory: residual sum with RMS norm, and SiLU(gate) * up.
#pragma once

#include <cstdint>

#include "simd.h"

namespace lmlab::model {

using simd::bfloat16;

// S: type of the residual stream and of the arithmetic; T: type of what the matrices give and take, S or bfloat16.
template <class S, class T>
struct NormRows {
    const S* x;      // [n d]
    const T* delta;  // [n d] or null
    const S* gain;   // [d]
    S* sum;          // [n d]: x + delta; null without delta
    T* y;            // [n d]: gain * sum / rms
    S* inverse;      // [n]: 1 / rms
    double eps;
    int64_t d;
};

// d_x = d_sum + the norm's part; d_delta is the same in type T (null where T is S: it is d_x).
template <class S, class T>
struct NormGradient {
    const S* sum;      // [n d], what was normed
    const S* gain;     // [d]
    const S* inverse;  // [n]
    const T* d_y;      // [n d]
    const S* d_sum;    // [n d] or null
    S* d_x;            // [n d]
    T* d_delta;        // [n d] or null
    S* d_gain;         // [pieces d]: a sum for each `piece` rows
    int64_t d;
};
constexpr int64_t piece = 64;  // rows

template <class T>
struct SwigluRows {
    const T* gate_up;  // [n 2f]
    T* y;              // [n f], forward
    const T* d_y;      // [n f], backward
    T* d_gate_up;      // [n 2f], backward
    int64_t f;
};

#define LMLAB_ROWS(S, T)                                                               \
    void norm(const NormRows<S, T>& rows, int64_t begin, int64_t end);                 \
    /* begin is a multiple of `piece` */                                               \
    void norm_backward(const NormGradient<S, T>& rows, int64_t begin, int64_t end);
LMLAB_ROWS(float, float)
LMLAB_ROWS(double, double)
LMLAB_ROWS(float, bfloat16)
#undef LMLAB_ROWS

void swiglu(const SwigluRows<float>& rows, int64_t begin, int64_t end);
void swiglu(const SwigluRows<double>& rows, int64_t begin, int64_t end);
void swiglu(const SwigluRows<bfloat16>& rows, int64_t begin, int64_t end);
void swiglu_backward(const SwigluRows<float>& rows, int64_t begin, int64_t end);
void swiglu_backward(const SwigluRows<double>& rows, int64_t begin, int64_t end);
void swiglu_backward(const SwigluRows<bfloat16>& rows, int64_t begin, int64_t end);

}  // namespace lmlab::model
