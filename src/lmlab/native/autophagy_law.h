// The exact law of a one-dimensional Gaussian loop, run for a block of trials.
#pragma once

#include <cstdint>
#include <vector>

#include "autophagy_random.h"

namespace lmlab::autophagy {

constexpr int64_t REAL = -1, KEPT = -2;  // sources of a set that are no model's slot

// One set, in the order of merging (src/lmlab/autophagy/program.py).
struct Step {
    int64_t n, source, slot;
    double weight, share, cross;
    double mean_scale;  // 1/sqrt(n)
    Gamma half;         // of the scatter's chi-square, n - 1 degrees of freedom: twice a gamma

    Step(int64_t n, int64_t source, int64_t slot, double weight, double share, double cross);
};

struct Generation {
    bool onto;  // go on from the last generation's merged sets
    int64_t slot, first, last;  // where the model is kept (-1: nowhere), its steps
    double denominator;
    int64_t row;  // where its results go (-1: nowhere)
};

struct Program {
    std::vector<Step> steps;
    std::vector<Generation> generations;
    int64_t set_slots, model_slots;
};

// Fills mean and var, [rows, trials] with rows `stride` apart. seed: SEED_WORDS random words.
void run_block(const Program& program, double bias, const uint64_t* seed, int64_t trials, int64_t stride,
               double* mean, double* var);

}  // namespace lmlab::autophagy
