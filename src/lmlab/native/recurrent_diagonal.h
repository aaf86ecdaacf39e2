// Diagonal RNN and GRU with few channels: Newton's method with the steps of a window side by side in vectors.
#pragma once

#include "recurrent_dense.h"

namespace lmlab::recurrent {

// How the windows were solved: the most sweeps and the largest residual of any, and whether one did not
// converge, so that its channel went on step by step.
struct Found {
    int sweeps = 0;
    double residual = 0;
    bool repaired = false;
};

// Arguments as `forward` of a diagonal cell without lengths, Kind::lstm excluded. newton false: step by step.
Found forward_by_channel(const Layout& layout, const Forward<float>& all, bool newton, int threads);
Found forward_by_channel(const Layout& layout, const Forward<double>& all, bool newton, int threads);

}  // namespace lmlab::recurrent
