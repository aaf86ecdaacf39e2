// The Python face of the kernels of lmlab.losses: the submodule lmlab._native.losses.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "losses_rows.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace lmlab::losses;

namespace {

using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<nb::ndim<2>, nb::device::cpu>;  // rows may lie apart, see stride_of
using Integers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int64_t stride_of(const Matrix& logits, const std::optional<Matrix>& gradient) {
    const bool one_row = logits.shape(0) <= 1, one_word = logits.shape(1) <= 1;
    auto whole = [&](const Matrix& m) { return one_word || m.stride(1) == 1; };
    if (!whole(logits) || (gradient && !whole(*gradient))) throw std::invalid_argument("rows must be contiguous");
    if (gradient && !one_row && gradient->stride(0) != logits.stride(0))
        throw std::invalid_argument("logits and gradient must have the same stride");
    return logits.stride(0);
}

struct Arguments {
    Matrix logits;
    std::optional<Matrix> gradient;
    Integers target;
    Integers token;
    std::optional<Integers> row;
    std::optional<Array> table;
    std::optional<Integers> index;
    std::optional<Array> scales;
    Array value, ce, emo, lse;
    nb::ndarray<bool, nb::ndim<1>, nb::c_contig, nb::device::cpu> correct;
};

template <class T>
void run(const Arguments& a, CostKind cost, double scale, const Options& options, int threads) {
    using S = typename Lanes<T>::scalar;
    const nb::dlpack::dtype sums = nb::dtype<S>();
    auto summed = [&sums](const Array& array) {
        if (array.dtype() != sums) throw std::invalid_argument("results, costs and scales have the type of the sums");
        return static_cast<S*>(array.data());
    };
    Rows<T> rows{};
    rows.logits = static_cast<const T*>(a.logits.data());
    rows.gradient = a.gradient ? static_cast<T*>(a.gradient->data()) : nullptr;
    rows.row = a.row ? a.row->data() : nullptr;
    rows.target = a.target.data();
    rows.token = a.token.data();
    rows.table = a.table ? summed(*a.table) : nullptr;
    rows.index = a.index ? a.index->data() : nullptr;
    rows.scales = a.scales ? summed(*a.scales) : nullptr;
    rows.value = summed(a.value);
    rows.ce = summed(a.ce);
    rows.emo = summed(a.emo);
    rows.lse = summed(a.lse);
    rows.correct = a.correct.data();
    rows.v = static_cast<int64_t>(a.logits.shape(1));
    rows.stride = stride_of(a.logits, a.gradient);
    rows.scale = scale;
    rows.cost = cost;
    rows.options = options;
    const auto count = static_cast<int64_t>(a.target.shape(0));
    nb::gil_scoped_release release;
    lmlab::parallel_for(threads, count, 4, [&rows](int64_t begin, int64_t end) { visit(rows, begin, end); });
}

void visit_rows(Matrix logits, std::optional<Matrix> gradient, Integers target, Integers token,
                std::optional<Integers> row, std::optional<Array> table, std::optional<Integers> index, int cost,
                std::optional<Array> scales, double scale, Array value, Array ce, Array emo, Array lse,
                nb::ndarray<bool, nb::ndim<1>, nb::c_contig, nb::device::cpu> correct, int loss, double first,
                double second, double clamp, bool shift, double smoothing, double z_loss, double softcap,
                int threads) {
    const Arguments arguments{logits, gradient, target, token, row, table, index, scales, value, ce, emo, lse, correct};
    const Options options{static_cast<Loss>(loss), first, second, clamp, shift, smoothing, z_loss, softcap};
    const auto kind = static_cast<CostKind>(cost);
    const nb::dlpack::dtype type = logits.dtype();
    if (type == nb::dtype<float>())
        run<float>(arguments, kind, scale, options, threads);
    else if (type == nb::dtype<double>())
        run<double>(arguments, kind, scale, options, threads);
    else if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16)
        run<bfloat16>(arguments, kind, scale, options, threads);
    else
        throw std::invalid_argument("logits are float32, float64 or bfloat16");
}

template <class T>
void run_soft(const Matrix& logits, const std::optional<Matrix>& gradient, const Integers& token,
              const std::optional<Integers>& row, const Array& table, const Array& mass,
              const std::optional<Array>& scales, double scale, const Array& emo, const Array& lse,
              const Options& options, int threads) {
    for (const Array* array : {&table, &mass, &emo, &lse})
        if (array->dtype() != nb::dtype<T>()) throw std::invalid_argument("all arrays have the logits' type");
    Rows<T> rows{};
    rows.logits = static_cast<const T*>(logits.data());
    rows.gradient = gradient ? static_cast<T*>(gradient->data()) : nullptr;
    rows.row = row ? row->data() : nullptr;
    rows.token = token.data();
    rows.table = static_cast<const T*>(table.data());
    rows.mass = static_cast<const T*>(mass.data());
    rows.scales = scales ? static_cast<const T*>(scales->data()) : nullptr;
    rows.emo = static_cast<T*>(emo.data());
    rows.lse = static_cast<T*>(lse.data());
    rows.v = static_cast<int64_t>(logits.shape(1));
    rows.stride = stride_of(logits, gradient);
    rows.scale = scale;
    rows.options = options;
    const auto count = static_cast<int64_t>(token.shape(0));
    nb::gil_scoped_release release;
    lmlab::parallel_for(threads, count, 4, [&rows](int64_t begin, int64_t end) { visit_soft(rows, begin, end); });
}

void visit_soft_rows(Matrix logits, std::optional<Matrix> gradient, Integers token, std::optional<Integers> row,
                     Array table, Array mass, std::optional<Array> scales, double scale, Array emo, Array lse,
                     double ce_weight, double emo_weight, double softcap, int threads) {
    Options options;
    options.first = ce_weight;
    options.second = emo_weight;
    options.softcap = softcap;
    if (logits.dtype() == nb::dtype<float>())
        run_soft<float>(logits, gradient, token, row, table, mass, scales, scale, emo, lse, options, threads);
    else if (logits.dtype() == nb::dtype<double>())
        run_soft<double>(logits, gradient, token, row, table, mass, scales, scale, emo, lse, options, threads);
    else
        throw std::invalid_argument("logits are float32 or float64");
}

}  // namespace

void bind_losses(nb::module_& m) {
    m.def("visit_rows", &visit_rows, nb::arg("logits").noconvert(), nb::arg("gradient").noconvert().none(),
          nb::arg("target").noconvert(), nb::arg("token").noconvert(), nb::arg("row").noconvert().none(),
          nb::arg("table").noconvert().none(), nb::arg("index").noconvert().none(), nb::arg("cost"),
          nb::arg("scales").noconvert().none(), nb::arg("scale"), nb::arg("value").noconvert(),
          nb::arg("ce").noconvert(), nb::arg("emo").noconvert(), nb::arg("lse").noconvert(),
          nb::arg("correct").noconvert(), nb::arg("loss"), nb::arg("first"), nb::arg("second"), nb::arg("clamp"),
          nb::arg("shift"), nb::arg("smoothing"), nb::arg("z_loss"), nb::arg("softcap"), nb::arg("threads"),
          "See lmlab.losses.visit.");
    m.def("visit_soft_rows", &visit_soft_rows, nb::arg("logits").noconvert(), nb::arg("gradient").noconvert().none(),
          nb::arg("token").noconvert(), nb::arg("row").noconvert().none(), nb::arg("table").noconvert(),
          nb::arg("mass").noconvert(), nb::arg("scales").noconvert().none(), nb::arg("scale"),
          nb::arg("emo").noconvert(), nb::arg("lse").noconvert(), nb::arg("ce_weight"), nb::arg("emo_weight"),
          nb::arg("softcap"), nb::arg("threads"), "See lmlab.losses.visit.");
}
