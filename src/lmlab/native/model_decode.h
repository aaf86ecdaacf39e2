// One token of every row of a batch through a whole decoder with caches: norm, attention, SwiGLU, head.
#pragma once

#include <cstdint>
#include <vector>

namespace lmlab::model {

struct DecodeShape {
    int64_t b, d, h, g, e, m, f, v;  // rows, width, query heads, key heads, head width, rotated pairs, inner width, words
    double eps, scale, factor;       // of the norms; of q·k; of the last hidden state
};

template <class S>
struct DecodeLayer {
    const S* mixer_norm;  // [d]
    const S* qkv;         // [(h + 2g) e, d]
    const S* q_gain;      // [e] or null
    const S* k_gain;
    const S* out;       // [d, h e]
    const S* mlp_norm;  // [d]
    const S* gate_up;   // [2f, d]
    const S* down;      // [d, f]
    S* keys;            // [b g capacity e]
    S* values;
    int64_t capacity;
};

template <class S>
struct Decode {
    S* x;  // [b d]: embeddings, overwritten
    std::vector<DecodeLayer<S>> layers;
    const S* norm;              // [d]
    const S* head;              // [v d]
    const S* cosines;           // [b m] at the rows' positions
    const S* sines;
    const int64_t* positions;  // [b]: entries of the caches that are filled
    S* logits;                 // [b v]
};

void decode(const Decode<float>& x, const DecodeShape& n);
void decode(const Decode<double>& x, const DecodeShape& n);

}  // namespace lmlab::model
