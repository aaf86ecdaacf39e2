// The Python face of the kernels of lmlab.recurrent: the submodule lmlab._native.recurrent.
// Shapes are checked by the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "recurrent_dense.h"
#include "recurrent_diagonal.h"
#include "recurrent_matrix.h"
#include "recurrent_scan.h"
#include "recurrent_threads.h"

namespace nb = nanobind;
using namespace lmlab::recurrent;

namespace {

template <class T, size_t N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, size_t N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Strided = nb::ndarray<const T, nb::device::cpu>;

template <class A>
auto pointer(const std::optional<A>& array) -> decltype(array->data()) {
    return array ? array->data() : nullptr;
}

// A complex tensor comes as numbers with a last axis of two; `parts` numbers make an element.
template <class A>
void strides(const A& array, int64_t* to, size_t axes, int64_t parts) {
    for (size_t x = 0; x < axes; ++x) to[x] = array.shape(x) == 1 ? 0 : array.stride(x) / parts;
}

template <class T, class A>
ScanLayout scan_layout(const A& a, const Strided<T>& b, const std::optional<Strided<T>>& h0, bool dense, bool reverse, int64_t parts) {
    ScanLayout n{};
    n.batch = static_cast<int64_t>(b.shape(0)), n.steps = static_cast<int64_t>(b.shape(1)), n.n = static_cast<int64_t>(b.shape(2));
    strides(a, n.a, dense ? 4 : 3, parts);
    strides(b, n.b, 3, parts);
    if (h0) strides(*h0, n.h0, 2, parts);
    if (n.n == 1) n.a[2] = n.a[3] = n.b[2] = n.h0[1] = 1;
    n.dense = dense, n.reverse = reverse;
    return n;
}

template <class T>
void bind_scan(nb::module_& m) {
    m.def(
        "scan",
        [](Strided<T> a, Strided<T> b, std::optional<Strided<T>> h0, nb::ndarray<T, nb::device::cpu, nb::c_contig> h, bool dense,
           bool reverse, bool is_complex, int threads) {
            const ScanLayout n = scan_layout<T>(a, b, h0, dense, reverse, is_complex ? 2 : 1);
            nb::gil_scoped_release release;
            if (is_complex) {
                using E = Complex<T>;
                scan(n, Scan<E>{reinterpret_cast<const E*>(a.data()), reinterpret_cast<const E*>(b.data()),
                                reinterpret_cast<const E*>(pointer(h0)), reinterpret_cast<E*>(h.data())}, threads);
            } else {
                scan(n, Scan<T>{a.data(), b.data(), pointer(h0), h.data()}, threads);
            }
        },
        nb::arg("a"), nb::arg("b"), nb::arg("h0").none(), nb::arg("h"), nb::arg("dense"), nb::arg("reverse"),
        nb::arg("is_complex"), nb::arg("threads"));
    using Whole = nb::ndarray<T, nb::device::cpu, nb::c_contig>;
    m.def(
        "scan_gradient",
        [](Strided<T> a, Strided<T> dh, std::optional<Strided<T>> h0, Whole h, std::optional<Whole> da, Whole db,
           std::optional<Whole> dh0, bool dense, bool reverse, bool is_complex, int threads) {
            const ScanLayout n = scan_layout<T>(a, dh, h0, dense, reverse, is_complex ? 2 : 1);
            nb::gil_scoped_release release;
            if (is_complex) {
                using E = Complex<T>;
                scan_gradient(n, ScanGradient<E>{reinterpret_cast<const E*>(a.data()), reinterpret_cast<const E*>(dh.data()),
                                                 reinterpret_cast<const E*>(pointer(h0)), reinterpret_cast<const E*>(h.data()),
                                                 reinterpret_cast<E*>(pointer(da)), reinterpret_cast<E*>(db.data()),
                                                 reinterpret_cast<E*>(pointer(dh0))}, threads);
            } else {
                scan_gradient(n, ScanGradient<T>{a.data(), dh.data(), pointer(h0), h.data(), pointer(da), db.data(), pointer(dh0)}, threads);
            }
        },
        nb::arg("a"), nb::arg("dh"), nb::arg("h0").none(), nb::arg("h"), nb::arg("da").none(), nb::arg("db"),
        nb::arg("dh0").none(), nb::arg("dense"), nb::arg("reverse"), nb::arg("is_complex"), nb::arg("threads"));
}

Layout layout_of(int kind, bool diagonal, bool reverse, int64_t batch, int64_t n, const In<int64_t, 1>& starts, int64_t row_step,
                 const std::optional<In<int64_t, 1>>& lengths, const std::optional<In<bool, 1>>& cut) {
    return Layout{batch, static_cast<int64_t>(starts.shape(0)), n, row_step, starts.data(), pointer(lengths), pointer(cut),
                  reverse, diagonal, static_cast<Kind>(kind)};
}

template <class T>
void bind_cells(nb::module_& m) {
    using Hidden = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;  // a matrix, or a vector for a diagonal cell
    m.def(
        "forward",
        [](int kind, bool diagonal, bool reverse, In<int64_t, 1> starts, int64_t row_step, std::optional<In<int64_t, 1>> lengths,
           std::optional<In<bool, 1>> cut, Out<T, 2> u, Hidden weight, std::optional<In<T, 1>> bias, Out<T, 2> h,
           std::optional<Out<T, 2>> c, Out<T, 2> y, std::optional<Out<T, 2>> prev, std::optional<Out<T, 2>> extra,
           std::optional<Out<T, 2>> tanh_c, int threads) {
            const Layout n = layout_of(kind, diagonal, reverse, static_cast<int64_t>(h.shape(0)), static_cast<int64_t>(h.shape(1)),
                                       starts, row_step, lengths, cut);
            const Forward<T> all{u.data(), weight.data(), pointer(bias), h.data(), pointer(c), y.data(), pointer(prev), pointer(extra), pointer(tanh_c)};
            nb::gil_scoped_release release;
            forward(n, all, threads);
        },
        nb::arg("kind"), nb::arg("diagonal"), nb::arg("reverse"), nb::arg("starts"), nb::arg("row_step"), nb::arg("lengths").none(),
        nb::arg("cut").none(), nb::arg("u"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("h"), nb::arg("c").none(),
        nb::arg("y"), nb::arg("prev").none(), nb::arg("extra").none(), nb::arg("tanh_c").none(), nb::arg("threads"));
    m.def(
        "forward_by_channel",
        [](int kind, bool newton, bool reverse, In<int64_t, 1> starts, int64_t row_step, std::optional<In<bool, 1>> cut, Out<T, 2> u,
           In<T, 1> weight, std::optional<In<T, 1>> bias, Out<T, 2> h, Out<T, 2> y, std::optional<Out<T, 2>> prev,
           std::optional<Out<T, 2>> extra, int threads) {
            const Layout n = layout_of(kind, true, reverse, static_cast<int64_t>(h.shape(0)), static_cast<int64_t>(h.shape(1)), starts,
                                       row_step, std::nullopt, cut);
            const Forward<T> all{u.data(), weight.data(), pointer(bias), h.data(), nullptr, y.data(), pointer(prev), pointer(extra), nullptr};
            Found found;
            {
                nb::gil_scoped_release release;
                found = forward_by_channel(n, all, newton, threads);
            }
            return nb::make_tuple(found.sweeps, found.residual, found.repaired);
        },
        nb::arg("kind"), nb::arg("newton"), nb::arg("reverse"), nb::arg("starts"), nb::arg("row_step"), nb::arg("cut").none(),
        nb::arg("u"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("h"), nb::arg("y"), nb::arg("prev").none(),
        nb::arg("extra").none(), nb::arg("threads"));
    m.def(
        "backward",
        [](int kind, bool diagonal, bool reverse, In<int64_t, 1> starts, int64_t row_step, std::optional<In<int64_t, 1>> lengths,
           std::optional<In<bool, 1>> cut, In<T, 2> gates, In<T, 2> prev, std::optional<In<T, 2>> extra,
           std::optional<In<T, 2>> tanh_c, Hidden weight, In<T, 2> dy, Out<T, 2> dh, std::optional<Out<T, 2>> dc, Out<T, 2> du,
           std::optional<Out<T, 2>> dq, int threads) {
            const Layout n = layout_of(kind, diagonal, reverse, static_cast<int64_t>(dh.shape(0)), static_cast<int64_t>(dh.shape(1)),
                                       starts, row_step, lengths, cut);
            const Backward<T> all{gates.data(), prev.data(), pointer(extra), pointer(tanh_c), weight.data(), dy.data(), dh.data(), pointer(dc), du.data(), pointer(dq)};
            nb::gil_scoped_release release;
            backward(n, all, threads);
        },
        nb::arg("kind"), nb::arg("diagonal"), nb::arg("reverse"), nb::arg("starts"), nb::arg("row_step"), nb::arg("lengths").none(),
        nb::arg("cut").none(), nb::arg("gates"), nb::arg("prev"), nb::arg("extra").none(), nb::arg("tanh_c").none(), nb::arg("weight"),
        nb::arg("dy"), nb::arg("dh"), nb::arg("dc").none(), nb::arg("du"), nb::arg("dq").none(), nb::arg("threads"));
}

template <class T>
void bind_products(nb::module_& m) {
    m.def(
        "rows_times",
        [](In<T, 2> x, In<T, 2> w, std::optional<In<T, 1>> bias, Out<T, 2> out, bool transposed, int threads) {
            const RowsTimes<T> all{x.data(), w.data(), pointer(bias), out.data(), static_cast<int64_t>(x.shape(0)),
                                   static_cast<int64_t>(x.shape(1)), static_cast<int64_t>(out.shape(1)), transposed};
            nb::gil_scoped_release release;
            rows_times(all, threads);
        },
        nb::arg("x"), nb::arg("w"), nb::arg("bias").none(), nb::arg("out"), nb::arg("transposed"), nb::arg("threads"));
    m.def(
        "outer_sum",
        [](In<T, 2> a, int64_t first, In<T, 2> b, Out<T, 2> out, std::optional<Out<T, 1>> sums, int threads) {
            const OuterSum<T> all{a.data(), b.data(), out.data(), pointer(sums), static_cast<int64_t>(a.shape(0)),
                                  static_cast<int64_t>(a.shape(1)), first, static_cast<int64_t>(out.shape(0)),
                                  static_cast<int64_t>(out.shape(1))};
            nb::gil_scoped_release release;
            outer_sum(all, threads);
        },
        nb::arg("a"), nb::arg("first"), nb::arg("b"), nb::arg("out"), nb::arg("sums").none(), nb::arg("threads"));
    m.def(
        "diagonal_sum",
        [](In<T, 2> a, int64_t first, In<T, 2> b, Out<T, 1> out, std::optional<Out<T, 1>> sums, int threads) {
            const DiagonalSum<T> all{a.data(), b.data(), out.data(), pointer(sums), static_cast<int64_t>(a.shape(0)),
                                     static_cast<int64_t>(a.shape(1)), first, static_cast<int64_t>(out.shape(0)),
                                     static_cast<int64_t>(b.shape(1))};
            nb::gil_scoped_release release;
            diagonal_sum(all, threads);
        },
        nb::arg("a"), nb::arg("first"), nb::arg("b"), nb::arg("out"), nb::arg("sums").none(), nb::arg("threads"));
}

void bind_threads(nb::module_& m) {
    m.def("useful_threads", &useful_threads, nb::arg("nanoseconds"), nb::arg("threads"));
    m.def("product_time", &product_time, nb::arg("rows"), nb::arg("k"), nb::arg("n"));
    m.def("cell_time", &cell_time, nb::arg("batch"), nb::arg("steps"), nb::arg("gates"), nb::arg("n"), nb::arg("diagonal"));
    m.def("scan_time", &scan_time, nb::arg("batch"), nb::arg("steps"), nb::arg("n"), nb::arg("dense"));
}

}  // namespace

// A submodule for each type: an overload that does not fit would use up the capsules that tensors come in.
void bind_recurrent(nb::module_& m) {
    nb::module_ f32 = m.def_submodule("float32"), f64 = m.def_submodule("float64");
    bind_scan<float>(f32);
    bind_scan<double>(f64);
    bind_cells<float>(f32);
    bind_cells<double>(f64);
    bind_products<float>(f32);
    bind_products<double>(f64);
    bind_threads(m);
}
