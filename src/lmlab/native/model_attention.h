// Causal attention of short sequences with the rotation inside: forward and backward, one (row, key head) at a time.
// b batch, t time, h query heads, g key heads (h a multiple of g), e head width, m rotated pairs (0: none).
#pragma once

#include <cstdint>

#include "simd.h"

namespace lmlab::model {

using simd::bfloat16;

struct AttentionShape {
    int64_t b, t, h, g, e, m;
    double scale;  // of q·k
};

// S: type of the arithmetic, float or double; T: element type of the tensors, S or bfloat16.
template <class S, class T>
struct AttentionTensors {
    const T* qkv;  // [b t (h + 2g) e]: query, key and value heads
    const S* cosines;  // [t m]
    const S* sines;  // [t m]
    T* out;  // [b t h e]
    S* lse;  // [b h t], log of the sum of e^logit
    const T* d_out;  // [b t h e], backward only
    T* d_qkv;  // like qkv
};

// begin, end: of the b·g pairs of a batch row and a key head.
void attend(const AttentionTensors<float, float>& x, const AttentionShape& n, int64_t begin, int64_t end);
void attend(const AttentionTensors<double, double>& x, const AttentionShape& n, int64_t begin, int64_t end);
void attend(const AttentionTensors<float, bfloat16>& x, const AttentionShape& n, int64_t begin, int64_t end);
void attend_backward(const AttentionTensors<float, float>& x, const AttentionShape& n, int64_t begin, int64_t end);
void attend_backward(const AttentionTensors<double, double>& x, const AttentionShape& n, int64_t begin, int64_t end);
void attend_backward(const AttentionTensors<float, bfloat16>& x, const AttentionShape& n, int64_t begin, int64_t end);

}  // namespace lmlab::model
