// Linear recurrences h_t = a_t h_{t-1} + b_t, with a_t diagonal or dense, real or complex, and their gradient.
#pragma once

#include <cstdint>

namespace lmlab::recurrent {

// Elements as they lie in memory: a complex tensor is read through pairs of numbers.
template <class T>
struct Complex {
    T re, im;
};

// Strides count elements; 0 where an axis is broadcast. `reverse` runs from the last step to the first.
struct ScanLayout {
    int64_t batch, steps, n;
    int64_t a[4];   // [b t n] or [b t n n]
    int64_t b[3];   // [b t n]; in backward: of the gradient that comes in
    int64_t h0[2];  // [b n]
    bool dense, reverse;
};

template <class E>
struct Scan {
    const E *a, *b, *h0;  // h0 may be null
    E* h;                 // [b t n], contiguous
};

template <class E>
struct ScanGradient {
    const E *a, *dh, *h0, *h;
    E *da, *db, *dh0;  // [b t n (n)], [b t n], [b n], contiguous; da and dh0 may be null
};

template <class E>
void scan(const ScanLayout& layout, const Scan<E>& all, int threads);
template <class E>
void scan_gradient(const ScanLayout& layout, const ScanGradient<E>& all, int threads);

}  // namespace lmlab::recurrent
