// The Python face of the kernels of lmlab.rope and of attention under its bands: the submodule lmlab._native.rope.
// Shapes are checked by the Python side; every tensor is contiguous.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "rope_band.h"
#include "rope_rotate.h"

namespace nb = nanobind;
using namespace lmlab::rope;

namespace {

template <class T, size_t N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, size_t N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

template <class T>
Shape shape_of(const std::vector<In<T, 4>>& q, const In<T, 4>& v, double scale, bool wide) {
    const auto size = [](const In<T, 4>& x, size_t axis) { return static_cast<int64_t>(x.shape(axis)); };
    return {size(q[0], 0), size(q[0], 1), size(v, 1), size(q[0], 2), size(v, 2), size(v, 3), static_cast<int>(q.size()), scale, wide};
}

template <class T, class O>
Tensors<T> tensors_of(const std::vector<In<T, 4>>& q, const std::vector<In<T, 4>>& k, const In<T, 4>& v,
                      const In<int64_t, 1>& offset, const std::optional<In<T, 1>>& slopes, const O& out, const T* top, const T* share) {
    Tensors<T> all{};
    for (size_t p = 0; p < q.size(); ++p) all.q[p] = q[p].data(), all.k[p] = k[p].data();
    all.v = v.data(), all.offset = offset.data(), all.slopes = slopes ? slopes->data() : nullptr;
    all.out = const_cast<T*>(out.data()), all.top = const_cast<T*>(top), all.share = const_cast<T*>(share);
    return all;
}

template <class T>
void bind_band(nb::module_& m) {
    m.def(
        "band_forward",
        [](std::vector<In<T, 4>> q, std::vector<In<T, 4>> k, In<T, 4> v, In<int64_t, 1> offset, std::optional<In<T, 1>> slopes,
           Out<T, 4> out, Out<T, 3> top, Out<T, 3> share, int kind, int64_t size, int64_t sinks, double scale, bool wide, int threads) {
            const Shape n = shape_of<T>(q, v, scale, wide);
            const Tensors<T> all = tensors_of<T>(q, k, v, offset, slopes, out, top.data(), share.data());
            nb::gil_scoped_release release;
            forward(all, n, Band{kind, size, sinks}, threads);
        },
        nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("offset"), nb::arg("slopes").none(), nb::arg("out"), nb::arg("top"), nb::arg("share"),
        nb::arg("kind"), nb::arg("size"), nb::arg("sinks"), nb::arg("scale"), nb::arg("wide"), nb::arg("threads"));
    m.def(
        "band_backward",
        [](std::vector<In<T, 4>> q, std::vector<In<T, 4>> k, In<T, 4> v, In<int64_t, 1> offset, std::optional<In<T, 1>> slopes,
           In<T, 4> out, In<T, 3> top, In<T, 3> share, In<T, 4> d_out, std::vector<Out<T, 4>> d_q, std::vector<Out<T, 4>> d_k, Out<T, 4> d_v,
           int kind, int64_t size, int64_t sinks, double scale, bool wide, int threads) {
            const Shape n = shape_of<T>(q, v, scale, wide);
            const Tensors<T> all = tensors_of<T>(q, k, v, offset, slopes, out, top.data(), share.data());
            Gradients<T> grads{};
            grads.d_out = d_out.data(), grads.d_v = d_v.data();
            for (size_t p = 0; p < q.size(); ++p) grads.d_q[p] = d_q[p].data(), grads.d_k[p] = d_k[p].data();
            nb::gil_scoped_release release;
            backward(all, grads, n, Band{kind, size, sinks}, threads);
        },
        nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("offset"), nb::arg("slopes").none(), nb::arg("out"), nb::arg("top"), nb::arg("share"),
        nb::arg("d_out"), nb::arg("d_q"), nb::arg("d_k"), nb::arg("d_v"), nb::arg("kind"), nb::arg("size"), nb::arg("sinks"),
        nb::arg("scale"), nb::arg("wide"), nb::arg("threads"));
}

template <class T>
void bind_rotate(nb::module_& m) {
    m.def(
        "rotate",
        [](nb::ndarray<const T, nb::ndim<4>, nb::device::cpu> x, In<T, 3> cos, In<T, 3> sin, Out<T, 4> out, bool interleaved,
           int threads) {
            const auto size = [](const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); };
            Rotation<T> all{};
            all.x = x.data(), all.b = size(x, 0), all.h = size(x, 1), all.t = size(x, 2), all.d = size(x, 3);
            all.by_b = x.stride(0), all.by_h = x.stride(1), all.by_t = x.stride(2);
            all.cos = cos.data(), all.sin = sin.data(), all.half = size(cos, 2);
            all.table_by_t = size(cos, 1) == 1 ? 0 : all.half;
            all.table_by_b = size(cos, 0) == 1 ? 0 : size(cos, 1) * all.half;
            all.interleaved = interleaved, all.out = out.data();
            nb::gil_scoped_release release;
            rotate(all, threads);
        },
        nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"), nb::arg("interleaved"), nb::arg("threads"));
}

}  // namespace

void bind_rope(nb::module_& m) {
    bind_band<float>(m);
    bind_band<double>(m);
    bind_rotate<float>(m);
    bind_rotate<double>(m);
}
