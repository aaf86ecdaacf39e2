// Exact causal attention whose logits come from up to three rotated copies ("parts") of the same queries and
// keys, each used for an interval of keys: every band of lmlab/attention/band.py in one pass, O(t d) memory.
#pragma once

#include <cstdint>

namespace lmlab::rope {

constexpr int kParts = 3;

// The regions of lmlab/attention/band.py, with r = i - j >= 0.
struct Band {
    enum Kind : int { plain = 0, window = 1, split = 2, chunks = 3 };
    int kind;
    int64_t size;   // w of window and split, the step of chunks
    int64_t sinks;  // of window
};

struct Shape {
    int64_t b, h, hk, t, keys, d;
    int parts;
    double scale;
    bool wide;  // may use 32 registers of 64 bytes where the processor has them
};

// q [b h t d], k and v [b hk keys d], offset [b]: the position of each row's first query; slopes [h] or null:
// -slope * r is added to the logits. out [b h t d]. top, share [b h t]: the largest logit of a row and 1 / sum of
// e^(logit - top): apart, since their sum as one logarithm would lose digits of the weights in float32.
template <class T>
struct Tensors {
    const T* q[kParts];
    const T* k[kParts];
    const T* v;
    const int64_t* offset;
    const T* slopes;
    T* out;
    T* top;
    T* share;
};
void forward(const Tensors<float>& tensors, const Shape& shape, const Band& band, int threads);
void forward(const Tensors<double>& tensors, const Shape& shape, const Band& band, int threads);

// d_out [b h t d] -> d_q, d_k of each part and d_v; all are added to. Parts may share one d_k.
template <class T>
struct Gradients {
    const T* d_out;
    T* d_q[kParts];
    T* d_k[kParts];
    T* d_v;
};
void backward(const Tensors<float>& tensors, const Gradients<float>& grads, const Shape& shape, const Band& band, int threads);
void backward(const Tensors<double>& tensors, const Gradients<double>& grads, const Shape& shape, const Band& band, int threads);

}  // namespace lmlab::rope
