// A visit to rows of logits: statistics, loss and gradient of the family in lmlab.losses.
#pragma once

#include <cstdint>
#include <limits>

#include "simd.h"

namespace lmlab::losses {

using namespace simd;

// The order is that of _LOSSES in visit.py.
enum class Loss : int { ce, tvd, dft, focal, tailr, mixce, emo_none, emo_emo, emo_ce };

struct Options {
    Loss loss = Loss::ce;
    double first = 0, second = 0;  // gamma, floor (TaiLr); gamma (Focal); eta (MixCE); weights ce, emo (EMO)
    double clamp = std::numeric_limits<double>::infinity();
    bool shift = false;
    double smoothing = 0, z_loss = 0, softcap = 0;  // softcap 0: none
};

enum class CostKind : int { none, zero_one, cosines, costs };

// T: element type of the logits; S: the type of sums, float or double.
template <class T, class S = typename Lanes<T>::scalar>
struct Rows {
    const T* logits;         // [.. v]
    T* gradient;             // like logits (or the same), or null
    const int64_t* row;      // [r] which row of logits and gradient; null: 0, 1, ...
    const int64_t* target;   // [r]; null in visit_soft
    const int64_t* token;    // [r] where the results go
    const S* table;          // [u v], for CostKind cosines and costs
    const int64_t* index;    // [r] which row of table
    const S* mass;           // [r] Σ τ of the row, in visit_soft only
    const S* scales;         // [r] factor of each row's gradient; null: `scale` for all
    S* value;
    S* ce;
    S* emo;
    S* lse;
    bool* correct;
    int64_t v;
    int64_t stride;          // from one row of logits, and of gradient, to the next
    double scale;
    CostKind cost;
    Options options;
};

void visit(const Rows<float>& rows, int64_t begin, int64_t end);
void visit(const Rows<double>& rows, int64_t begin, int64_t end);
void visit(const Rows<bfloat16>& rows, int64_t begin, int64_t end);

// Soft labels: table [r v] holds r_i = Σ_j τ_j c_ij of each row. Fills lse and emo = Σ_i p_i r_i, and the gradient of
// first · Σ_j τ_j (lse - sg(z_j)) + second · emo; the term of the z_j is the caller's.
void visit_soft(const Rows<float>& rows, int64_t begin, int64_t end);
void visit_soft(const Rows<double>& rows, int64_t begin, int64_t end);

}  // namespace lmlab::losses
