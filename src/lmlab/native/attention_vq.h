// Attention over quantised keys: assignment of codes, the forward pass of a sequence, one decode step.
// Letters as in lmlab/attention/vq/sweep.py: m query heads a key head, s codes, d key width, e value width,
// r recent keys before the first row, w the width of the near window.
#pragma once

#include <cstdint>

namespace lmlab::attention {

struct Shape {
    int64_t lanes;  // batch times key heads; lane x uses the codebook of head x % heads
    int64_t heads;
    int64_t m, t, d, s, e, r, w;
    bool strict;  // a row doesn't see its own position
};

// codes[x, j] = argmin_c |k_j - C_c|^2, the lowest on ties; keys [lanes t d], codebook [heads s d].
void assign(const float* keys, const float* codebook, int64_t* codes, const Shape& shape, int threads);
void assign(const double* keys, const double* codebook, int64_t* codes, const Shape& shape, int threads);

// q [lanes m t d], whose products with keys are multiplied by `scale`; q_near (or null) and k_near [lanes r+t d] for
// distances below w;
// codes [lanes r+t] (-1: no key), values [lanes r+t e]; bias [heads m w] or null; count [lanes s] and mean
// [lanes s e] of the merged keys move on. out [lanes m t e], lse [lanes m t].
template <class T>
struct Tensors {
    const T* q;
    const T* q_near;
    const T* k_near;
    const int64_t* codes;
    const T* values;
    const T* codebook;
    const T* bias;
    T* count;
    T* mean;
    T* out;
    T* lse;
    T scale;
};
void forward(const Tensors<float>& tensors, const Shape& shape, int threads);
void forward(const Tensors<double>& tensors, const Shape& shape, int threads);

// Gradients of `forward` without near queries and keys of their own. lse is its result (for an encoder that of the
// whole row), grad is the gradient of out; count and mean are the state before the first row and stay.
// Overwritten: dq [lanes m t d], dv [lanes t e], and where not null dk [lanes t d], dbias [lanes m w] and dcodebook
// [lanes s d], which has every key of its lane in it. dk: key j hears row i, every k-hat_j taken as free, if
// j >= reach floor((first + i) / reach) - first - back.
template <class T>
struct States {
    const T* q;
    const int64_t* codes;
    const T* values;
    const T* codebook;
    const T* bias;
    const T* count;
    const T* mean;
    const T* lse;
    T scale;
};
template <class T>
struct Gradient {
    const T* grad;
    const T* dot;  // out . grad of each row, [lanes m t]
    T* dq;
    T* dk;
    T* dv;
    T* dbias;
    T* dcodebook;
    int64_t first, reach, back;
};
void backward(const States<float>& states, const Gradient<float>& gradient, const Shape& shape, int threads);
void backward(const States<double>& states, const Gradient<double>& gradient, const Shape& shape, int threads);

// One token: q [lanes m d], key [lanes d], value [lanes e], bias [heads m w]; the ring of r recent keys, recent_codes
// [lanes r] and recent_values [lanes r e], and the merged ones move on in place. NaN in a key gives code 0.
template <class T>
struct Step {
    const T* q;
    const T* key;
    const T* value;
    const T* codebook;
    const T* bias;
    const bool* mask;  // [batch] or null
    T* count;
    T* mean;
    int64_t* recent_codes;
    T* recent_values;
    int64_t* seen;  // [batch], keys so far
    int64_t position;
    T* out;
    T scale;  // of q . k
};
void step(const Step<float>& one, const Shape& shape);
void step(const Step<double>& one, const Shape& shape);

}  // namespace lmlab::attention
