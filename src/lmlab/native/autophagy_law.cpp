#include "autophagy_law.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"

namespace lmlab::autophagy {

namespace {

using simd::load;
using simd::store;

// A shape below 1 has no Marsaglia-Tsang proposal; n = 2, the only such case, is the square of a normal.
double shape_of(int64_t n) { return std::max(1.0, 0.5 * static_cast<double>(n - 1)); }

LMLAB_INLINE f64x8 chi_square(const Step& step, Eight& random) {
    if (step.n > 2) return 2.0 * random.gamma(step.half);
    const f64x8 zero = {};
    if (step.n < 2) return zero;
    const f64x8 z = random.normal();
    return z * z;
}

// What eight trials keep of a set (mean, scatter) or a model (mean, variance). Plain numbers, because a
// vector of the standard library need not be aligned as registers are.
struct Moments {
    double mean[LANES], spread[LANES];
};

}  // namespace

Step::Step(int64_t n, int64_t source, int64_t slot, double weight, double share, double cross)
    : n(n), source(source), slot(slot), weight(weight), share(share), cross(cross),
      mean_scale(1.0 / std::sqrt(static_cast<double>(n))), half(shape_of(n)) {}

LMLAB_MULTIVERSION
void run_block(const Program& program, double bias, const uint64_t* seed, int64_t trials, int64_t stride,
               double* mean, double* var) {
    Eight random(seed);
    std::vector<Moments> sets(program.set_slots), models(program.model_slots);
    for (int64_t first = 0; first < trials; first += LANES) {
        const int64_t count = std::min<int64_t>(LANES, trials - first);
        f64x8 m = {}, s = {};
        for (const Generation& generation : program.generations) {
            bool merge = generation.onto;
            for (int64_t i = generation.first; i < generation.last; ++i, merge = true) {
                const Step& step = program.steps[i];
                f64x8 at, scatter;
                if (step.source == KEPT) {
                    at = load(sets[step.slot].mean);
                    scatter = load(sets[step.slot].spread);
                } else {
                    at = random.normal() * step.mean_scale;
                    scatter = chi_square(step, random);
                    if (step.source != REAL) {
                        const Moments& model = models[step.source];
                        const f64x8 scale = bias * load(model.spread);
                        at = load(model.mean) + square_root(scale) * at;
                        scatter *= scale;
                    }
                    if (step.slot >= 0) {
                        store(sets[step.slot].mean, at);
                        store(sets[step.slot].spread, scatter);
                    }
                }
                if (!merge) {
                    m = at;
                    s = step.weight * scatter;
                    continue;
                }
                const f64x8 delta = at - m;
                m += step.share * delta;
                s += step.weight * scatter + step.cross * delta * delta;
            }
            const f64x8 fitted = s * (1.0 / generation.denominator);
            if (generation.slot >= 0) {
                store(models[generation.slot].mean, m);
                store(models[generation.slot].spread, fitted);
            }
            if (generation.row < 0) continue;
            const int64_t at = generation.row * stride + first;
            simd::store_part(mean + at, count, m);
            simd::store_part(var + at, count, fitted);
        }
    }
}

}  // namespace lmlab::autophagy
