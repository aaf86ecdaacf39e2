// One direction of one layer of RNN, GRU or LSTM, forward and backward, fused over time. The hidden weights are a
// dense matrix or, for the diagonal cells, a vector.
#pragma once

#include <cstdint>

namespace lmlab::recurrent {

enum class Kind : int { tanh = 0, relu = 1, gru = 2, lstm = 3 };

inline int64_t gate_count(Kind kind) { return kind == Kind::gru ? 3 : kind == Kind::lstm ? 4 : 1; }

// Where step t of sequence b stands: row starts[t] + b * row_step of every matrix. So batch-first, time-first and
// packed sequences are one layout. A step with t >= lengths[b] isn't there; its rows are not touched.
struct Layout {
    int64_t batch, steps, n, row_step;
    const int64_t* starts;   // [steps]
    const int64_t* lengths;  // [batch] or null
    const bool* cut;         // [rows] or null: the state before this step is zero
    bool reverse;
    bool diagonal;
    Kind kind;
};

// What forward keeps for backward: gates over the projections, prev = the state before the step, and for a
// GRU extra = W_hn h + b_hn, for an LSTM extra = c before the step and tanh_c.
template <class T>
struct Forward {
    T* u;             // [rows, gates * n], projections; gates afterwards, when prev is given
    const T* weight;  // [gates * n, n], or [gates * n] for a diagonal cell
    const T* bias;    // [gates * n] or null
    T *h, *c;         // [batch, n], the states before; the states after
    T* y;             // [rows, n]
    T *prev, *extra, *tanh_c;  // [rows, n] or null
};

template <class T>
struct Backward {
    const T *gates, *prev, *extra, *tanh_c, *weight;
    const T* dy;  // [rows, n]
    T *dh, *dc;   // [batch, n]: of the states after; of the states before
    T* du;        // [rows, gates * n]: of the projections
    T* dq;        // [rows, n], GRU: of extra
};

void forward(const Layout& layout, const Forward<float>& all, int threads);
void forward(const Layout& layout, const Forward<double>& all, int threads);
void backward(const Layout& layout, const Backward<float>& all, int threads);
void backward(const Layout& layout, const Backward<double>& all, int threads);

}  // namespace lmlab::recurrent
