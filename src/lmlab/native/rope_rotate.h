// Turning the rotary pairs of queries or keys.
#pragma once

#include <cstdint>

namespace lmlab::rope {

// x [b h t d] with any strides over b, h and t (in elements); cos and sin [b or 1, t or 1, half] with strides 0
// where there is one row; out [b h t d] contiguous. Two rounded products a value, never a fused one (the file is
// compiled so), as a model that rotates by itself computes.
template <class T>
struct Rotation {
    const T* x;
    int64_t b, h, t, d, by_b, by_h, by_t;
    const T *cos, *sin;
    int64_t half, table_by_b, table_by_t;
    bool interleaved;
    T* out;
};
void rotate(const Rotation<float>& all, int threads);
void rotate(const Rotation<double>& all, int threads);

}  // namespace lmlab::rope
