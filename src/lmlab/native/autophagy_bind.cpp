// The Python face of the kernels of lmlab.autophagy: the submodule lmlab._native.autophagy.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "autophagy_law.h"

namespace nb = nanobind;
namespace law = lmlab::autophagy;

namespace {

template <class T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::device::cpu, nb::c_contig>;
using Out = nb::ndarray<double, nb::ndim<2>, nb::device::cpu>;

law::Program program(Array<const int64_t, 2> steps, Array<const double, 2> weights,
                     Array<const int64_t, 2> generations, Array<const double, 1> denominators, int64_t set_slots,
                     int64_t model_slots) {
    law::Program made{{}, {}, set_slots, model_slots};
    for (size_t i = 0; i < steps.shape(0); ++i)
        made.steps.emplace_back(steps(i, 0), steps(i, 1), steps(i, 2), weights(i, 0), weights(i, 1), weights(i, 2));
    for (size_t t = 0; t < generations.shape(0); ++t)
        made.generations.push_back({generations(t, 0) != 0, generations(t, 1), generations(t, 2), generations(t, 3),
                                    denominators(t), generations(t, 4)});
    return made;
}

void run_block(const law::Program& program, double bias, Array<const uint64_t, 1> seed, Out mean, Out var) {
    if (seed.shape(0) != law::SEED_WORDS || mean.shape(0) != var.shape(0) || mean.shape(1) != var.shape(1) ||
        mean.stride(1) != 1 || var.stride(1) != 1 || mean.stride(0) != var.stride(0))
        throw nb::value_error("run_block: seed, mean or var has the wrong shape");
    nb::gil_scoped_release released;
    law::run_block(program, bias, seed.data(), static_cast<int64_t>(mean.shape(1)), mean.stride(0), mean.data(),
                   var.data());
}

}  // namespace

void bind_autophagy(nb::module_& m) {
    nb::class_<law::Program>(m, "Program");
    m.attr("SEED_WORDS") = law::SEED_WORDS;
    m.def("program", &program, nb::arg("steps"), nb::arg("weights"), nb::arg("generations"), nb::arg("denominators"),
          nb::arg("set_slots"), nb::arg("model_slots"));
    m.def("run_block", &run_block, nb::arg("program"), nb::arg("bias"), nb::arg("seed"), nb::arg("mean"),
          nb::arg("var"));
}
