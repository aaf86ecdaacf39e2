// The Python face of the kernels of lmlab.model: the submodule lmlab._native.model.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "model_attention.h"
#include "model_decode.h"
#include "model_rows.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace lmlab::model;

namespace {

using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Maybe = std::optional<Array>;

bool is_bfloat16(const Array& array) {
    return array.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && array.dtype().bits == 16;
}

template <class T>
T* data(const Array& array) {
    const bool right = std::is_same_v<T, bfloat16> ? is_bfloat16(array)
                                                   : array.dtype() == nb::dtype<std::conditional_t<std::is_same_v<T, bfloat16>, float, T>>();
    if (!right) throw std::invalid_argument("the tensors' types don't go together");
    return static_cast<T*>(array.data());
}
template <class T>
T* data(const Maybe& array) {
    return array ? data<T>(*array) : nullptr;
}

// run(S{}, T{}) for the types of the arithmetic and of the tensors that `array` calls for.
template <class Run>
void by_type(const Array& array, Run&& run) {
    if (array.dtype() == nb::dtype<float>())
        run(float{}, float{});
    else if (array.dtype() == nb::dtype<double>())
        run(double{}, double{});
    else if (is_bfloat16(array))
        run(float{}, bfloat16{});
    else
        throw std::invalid_argument("float32, float64 or bfloat16 is wanted");
}

int64_t length(const Array& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

AttentionShape shape_of(const Array& qkv, const Array& cosines, int64_t kv_heads, double scale) {
    if (qkv.ndim() != 4 || cosines.ndim() != 2) throw std::invalid_argument("qkv is [b t heads e], cosines [t m]");
    return {length(qkv, 0), length(qkv, 1), length(qkv, 2) - 2 * kv_heads, kv_heads, length(qkv, 3), length(cosines, 1), scale};
}

void attend_all(Array qkv, Array cosines, Array sines, int64_t kv_heads, double scale, Array out, Array lse, int threads) {
    const AttentionShape n = shape_of(qkv, cosines, kv_heads, scale);
    by_type(qkv, [&](auto s, auto t) {
        using S = decltype(s);
        using T = decltype(t);
        const AttentionTensors<S, T> x{data<T>(qkv), data<S>(cosines), data<S>(sines), data<T>(out), data<S>(lse), nullptr, nullptr};
        nb::gil_scoped_release release;
        lmlab::parallel_for(threads, n.b * n.g, 1, [&](int64_t begin, int64_t end) { attend(x, n, begin, end); });
    });
}

void attend_all_backward(Array qkv, Array cosines, Array sines, int64_t kv_heads, double scale, Array out, Array lse,
                         Array d_out, Array d_qkv, int threads) {
    const AttentionShape n = shape_of(qkv, cosines, kv_heads, scale);
    by_type(qkv, [&](auto s, auto t) {
        using S = decltype(s);
        using T = decltype(t);
        const AttentionTensors<S, T> x{data<T>(qkv), data<S>(cosines), data<S>(sines), data<T>(out),
                                       data<S>(lse), data<T>(d_out), data<T>(d_qkv)};
        nb::gil_scoped_release release;
        lmlab::parallel_for(threads, n.b * n.g, 1, [&](int64_t begin, int64_t end) { attend_backward(x, n, begin, end); });
    });
}

void norm_all(Array x, Maybe delta, Array gain, double eps, Maybe sum, Array y, Array inverse, int threads) {
    by_type(y, [&](auto s, auto t) {
        using S = decltype(s);
        using T = decltype(t);
        const NormRows<S, T> rows{data<S>(x), data<T>(delta), data<S>(gain), data<S>(sum),
                                  data<T>(y), data<S>(inverse), eps, length(gain, 0)};
        const int64_t count = length(inverse, 0);
        nb::gil_scoped_release release;
        lmlab::parallel_for(threads, count, 4 * piece, [&](int64_t begin, int64_t end) { norm(rows, begin, end); });
    });
}

void norm_all_backward(Array sum, Array gain, Array inverse, Array d_y, Maybe d_sum, Array d_x, Maybe d_delta,
                       Array d_gain, int threads) {
    by_type(d_y, [&](auto s, auto t) {
        using S = decltype(s);
        using T = decltype(t);
        const NormGradient<S, T> rows{data<S>(sum), data<S>(gain), data<S>(inverse), data<T>(d_y), data<S>(d_sum),
                                      data<S>(d_x), data<T>(d_delta), data<S>(d_gain), length(gain, 0)};
        const int64_t count = length(inverse, 0);
        nb::gil_scoped_release release;
        lmlab::parallel_for(threads, count, 4 * piece,
                            [&](int64_t begin, int64_t end) { norm_backward(rows, begin, end); });
    });
}

void swiglu_all(Array gate_up, Array y, int threads) {
    by_type(gate_up, [&](auto, auto t) {
        using T = decltype(t);
        const SwigluRows<T> rows{data<T>(gate_up), data<T>(y), nullptr, nullptr, length(y, 1)};
        const int64_t count = length(y, 0);
        nb::gil_scoped_release release;
        lmlab::parallel_for(threads, count, 128, [&](int64_t begin, int64_t end) { swiglu(rows, begin, end); });
    });
}

void swiglu_all_backward(Array gate_up, Array d_y, Array d_gate_up, int threads) {
    by_type(gate_up, [&](auto, auto t) {
        using T = decltype(t);
        const SwigluRows<T> rows{data<T>(gate_up), nullptr, data<T>(d_y), data<T>(d_gate_up), length(d_y, 1)};
        const int64_t count = length(d_y, 0);
        nb::gil_scoped_release release;
        lmlab::parallel_for(threads, count, 128, [&](int64_t begin, int64_t end) { swiglu_backward(rows, begin, end); });
    });
}

// layers: (mixer_norm, qkv, q_gain, k_gain, out, mlp_norm, gate_up, down, keys, values) each.
void decode_all(Array x, nb::list layers, Array last_norm, Array head, Array cosines, Array sines,
                nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> positions, Array logits,
                double eps, double scale, double factor) {
    by_type(x, [&](auto s, auto t) {
        using S = decltype(s);
        if constexpr (std::is_same_v<S, decltype(t)>) {
            Decode<S> all{data<S>(x), {}, data<S>(last_norm), data<S>(head), data<S>(cosines), data<S>(sines), positions.data(), data<S>(logits)};
            DecodeShape n{length(x, 0), length(x, 1), 0, 0, 0, length(cosines, 1), 0, length(head, 0), eps, scale, factor};
            std::vector<Array> held;
            for (nb::handle item : layers) {
                const auto parts = nb::cast<nb::tuple>(item);
                auto part = [&](size_t index) {
                    held.push_back(nb::cast<Array>(parts[index]));
                    return data<S>(held.back());
                };
                auto maybe = [&](size_t index) { return parts[index].is_none() ? nullptr : part(index); };
                const DecodeLayer<S> layer{part(0), part(1), maybe(2), maybe(3), part(4), part(5), part(6), part(7), part(8), part(9), 0};
                const Array& keys = held[held.size() - 2];
                n.g = length(keys, 1);
                n.e = length(keys, 3);
                n.h = length(held[held.size() - 6], 1) / n.e;
                n.f = length(held[held.size() - 3], 1);
                all.layers.push_back(layer);
                all.layers.back().capacity = length(keys, 2);
            }
            nb::gil_scoped_release release;
            decode(all, n);
        } else {
            throw std::invalid_argument("float32 or float64 is wanted");
        }
    });
}

}  // namespace

void bind_model(nb::module_& m) {
    m.attr("piece") = piece;
    m.def("attend", &attend_all);
    m.def("attend_backward", &attend_all_backward);
    m.def("norm", &norm_all, nb::arg("x"), nb::arg("delta").none(), nb::arg("gain"), nb::arg("eps"), nb::arg("sum").none(),
          nb::arg("y"), nb::arg("inverse"), nb::arg("threads"));
    m.def("norm_backward", &norm_all_backward, nb::arg("sum"), nb::arg("gain"), nb::arg("inverse"), nb::arg("d_y"),
          nb::arg("d_sum").none(), nb::arg("d_x"), nb::arg("d_delta").none(), nb::arg("d_gain"), nb::arg("threads"));
    m.def("swiglu", &swiglu_all);
    m.def("decode", &decode_all);
    m.def("swiglu_backward", &swiglu_all_backward);
}
