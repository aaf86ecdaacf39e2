// The Python face of the kernels of lmlab.attention: the submodule lmlab._native.attention.
// Shapes are checked by the Python side; every tensor is contiguous.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "attention_vq.h"

namespace nb = nanobind;
using namespace lmlab::attention;

namespace {

template <class T, size_t N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, size_t N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

template <class A>
auto pointer(const std::optional<A>& array) -> decltype(array->data()) {
    return array ? array->data() : nullptr;
}

template <class T>
void bind_assign(nb::module_& m) {
    m.def("assign", [](In<T, 4> keys, In<T, 3> codebook, Out<int64_t, 3> codes, int threads) {
        Shape n{};
        n.lanes = static_cast<int64_t>(keys.shape(0) * keys.shape(1));
        n.heads = static_cast<int64_t>(codebook.shape(0));
        n.t = static_cast<int64_t>(keys.shape(2)), n.d = static_cast<int64_t>(keys.shape(3));
        n.s = static_cast<int64_t>(codebook.shape(1));
        nb::gil_scoped_release release;
        assign(keys.data(), codebook.data(), codes.data(), n, threads);
    });
}

template <class T>
void bind_forward(nb::module_& m) {
    m.def(
        "forward",
        [](In<T, 5> q, std::optional<In<T, 5>> q_near, std::optional<In<T, 4>> k_near, In<int64_t, 3> codes,
           In<T, 4> values, In<T, 3> codebook, std::optional<In<T, 3>> bias, Out<T, 3> count, Out<T, 4> mean,
           Out<T, 5> out, Out<T, 4> lse, double scale, int64_t window, bool strict, int threads) {
            Shape n{};
            n.lanes = static_cast<int64_t>(q.shape(0) * q.shape(1)), n.heads = static_cast<int64_t>(q.shape(1));
            n.m = static_cast<int64_t>(q.shape(2)), n.t = static_cast<int64_t>(q.shape(3));
            n.d = static_cast<int64_t>(q.shape(4)), n.s = static_cast<int64_t>(codebook.shape(1));
            n.e = static_cast<int64_t>(values.shape(3)), n.r = static_cast<int64_t>(codes.shape(2)) - n.t;
            n.w = window, n.strict = strict;
            const Tensors<T> all{q.data(), pointer(q_near), pointer(k_near), codes.data(), values.data(), codebook.data(),
                                 pointer(bias), count.data(), mean.data(), out.data(), lse.data(), static_cast<T>(scale)};
            nb::gil_scoped_release release;
            forward(all, n, threads);
        },
        nb::arg("q"), nb::arg("q_near").none(), nb::arg("k_near").none(), nb::arg("codes"), nb::arg("values"),
        nb::arg("codebook"), nb::arg("bias").none(), nb::arg("count"), nb::arg("mean"), nb::arg("out"), nb::arg("lse"),
        nb::arg("scale"), nb::arg("window"), nb::arg("strict"), nb::arg("threads"));
}

template <class T>
void bind_backward(nb::module_& m) {
    m.def(
        "backward",
        [](In<T, 5> q, In<int64_t, 3> codes, In<T, 4> values, In<T, 3> codebook, std::optional<In<T, 3>> bias,
           In<T, 3> count, In<T, 4> mean, In<T, 4> lse, In<T, 5> grad, In<T, 4> dot, Out<T, 5> dq,
           std::optional<Out<T, 4>> dk, Out<T, 4> dv, std::optional<Out<T, 4>> dbias, std::optional<Out<T, 4>> dcodebook,
           double scale, int64_t window, bool strict, int64_t first, int64_t reach, int64_t back, int threads) {
            Shape n{};
            n.lanes = static_cast<int64_t>(q.shape(0) * q.shape(1)), n.heads = static_cast<int64_t>(q.shape(1));
            n.m = static_cast<int64_t>(q.shape(2)), n.t = static_cast<int64_t>(q.shape(3));
            n.d = static_cast<int64_t>(q.shape(4)), n.s = static_cast<int64_t>(codebook.shape(1));
            n.e = static_cast<int64_t>(values.shape(3)), n.r = static_cast<int64_t>(codes.shape(2)) - n.t;
            n.w = window, n.strict = strict;
            const States<T> all{q.data(), codes.data(), values.data(), codebook.data(), pointer(bias), count.data(),
                                mean.data(), lse.data(), static_cast<T>(scale)};
            const Gradient<T> g{grad.data(), dot.data(), dq.data(), pointer(dk), dv.data(), pointer(dbias),
                                pointer(dcodebook), first, reach, back};
            nb::gil_scoped_release release;
            backward(all, g, n, threads);
        },
        nb::arg("q"), nb::arg("codes"), nb::arg("values"), nb::arg("codebook"), nb::arg("bias").none(), nb::arg("count"),
        nb::arg("mean"), nb::arg("lse"), nb::arg("grad"), nb::arg("dot"), nb::arg("dq"), nb::arg("dk").none(),
        nb::arg("dv"), nb::arg("dbias").none(), nb::arg("dcodebook").none(), nb::arg("scale"), nb::arg("window"),
        nb::arg("strict"), nb::arg("first"), nb::arg("reach"), nb::arg("back"), nb::arg("threads"));
}

template <class T>
void bind_step(nb::module_& m) {
    m.def(
        "step",
        [](In<T, 4> q, In<T, 4> key, In<T, 4> value, In<T, 3> codebook, std::optional<In<T, 2>> bias,
           std::optional<In<bool, 2>> mask, Out<T, 3> count, Out<T, 4> mean, Out<int64_t, 3> recent_codes,
           Out<T, 4> recent_values, Out<int64_t, 1> seen, Out<T, 4> out, double scale,
           int64_t position, int64_t window) {
            Shape n{};
            n.heads = static_cast<int64_t>(key.shape(1)), n.lanes = static_cast<int64_t>(q.shape(0)) * n.heads;
            n.m = static_cast<int64_t>(q.shape(1)) / n.heads, n.d = static_cast<int64_t>(q.shape(3)), n.t = 1;
            n.s = static_cast<int64_t>(codebook.shape(1)), n.e = static_cast<int64_t>(value.shape(3));
            n.r = static_cast<int64_t>(recent_codes.shape(2)), n.w = window;
            const Step<T> one{q.data(), key.data(), value.data(), codebook.data(), pointer(bias), pointer(mask),
                              count.data(), mean.data(), recent_codes.data(), recent_values.data(), seen.data(), position, out.data(),
                              static_cast<T>(scale)};
            nb::gil_scoped_release release;
            step(one, n);
        },
        nb::arg("q"), nb::arg("key"), nb::arg("value"), nb::arg("codebook"), nb::arg("bias").none(), nb::arg("mask").none(),
        nb::arg("count"), nb::arg("mean"), nb::arg("recent_codes"), nb::arg("recent_values"), nb::arg("seen"),
        nb::arg("out"), nb::arg("scale"), nb::arg("position"), nb::arg("window"));
}

}  // namespace

void bind_attention(nb::module_& m) {
    bind_assign<float>(m);
    bind_assign<double>(m);
    bind_forward<float>(m);
    bind_forward<double>(m);
    bind_backward<float>(m);
    bind_backward<double>(m);
    bind_step<float>(m);
    bind_step<double>(m);
}
