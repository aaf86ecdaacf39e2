// Vectors of 64 bytes: load and store of each element type, exp, tanh, sigmoid.
//
// They are the compiler's own vector extensions (GCC, Clang), so the same text becomes AVX-512, two AVX2, four
// SSE2 or four NEON registers, and sums are always taken in the same order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "dispatch.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // all of this is inlined: no vector crosses a call
#endif

namespace lmlab::simd {

struct bfloat16 {
    uint16_t bits;
};

using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));
using f64x8 = double __attribute__((vector_size(64)));
using i64x8 = int64_t __attribute__((vector_size(64)));

template <class To, class From>
LMLAB_INLINE To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// What a row of element type T is computed in.
template <class T>
struct Lanes {
    using vector = f32x16;
    using scalar = float;
    static constexpr int64_t count = 16;
};
template <>
struct Lanes<double> {
    using vector = f64x8;
    using scalar = double;
    static constexpr int64_t count = 8;
};

LMLAB_INLINE f32x16 load(const float* from) {
    f32x16 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
LMLAB_INLINE f64x8 load(const double* from) {
    f64x8 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
LMLAB_INLINE f32x16 load(const bfloat16* from) {
    u16x16 x;
    std::memcpy(&x, from, sizeof x);
    return bits_as<f32x16>(__builtin_convertvector(x, u32x16) << 16);
}

LMLAB_INLINE void store(float* to, f32x16 x) { std::memcpy(to, &x, sizeof x); }
LMLAB_INLINE void store(double* to, f64x8 x) { std::memcpy(to, &x, sizeof x); }
LMLAB_INLINE void store(bfloat16* to, f32x16 x) {
    const u32x16 bits = bits_as<u32x16>(x);
    const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const u16x16 half = __builtin_convertvector(x == x ? rounded : rounded - rounded + 0x7fc0u, u16x16);
    std::memcpy(to, &half, sizeof half);
}

// The last `count` < lanes elements of a row; the missing lanes hold `fill`.
template <class T>
LMLAB_INLINE auto load_part(const T* from, int64_t count, T fill) {
    T part[Lanes<T>::count];
    std::fill(part, part + Lanes<T>::count, fill);
    std::memcpy(part, from, static_cast<size_t>(count) * sizeof(T));
    return load(part);
}
template <class T, class V>
LMLAB_INLINE void store_part(T* to, int64_t count, V x) {
    T part[Lanes<T>::count];
    store(part, x);
    std::memcpy(to, part, static_cast<size_t>(count) * sizeof(T));
}

// x in the first `count` lanes, `fill` in the others.
LMLAB_INLINE f32x16 first_lanes(f32x16 x, int64_t count, float fill) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 zero = {};
    return lane < static_cast<int32_t>(count) ? x : zero + fill;
}
LMLAB_INLINE f64x8 first_lanes(f64x8 x, int64_t count, double fill) {
    const i64x8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const f64x8 zero = {};
    return lane < count ? x : zero + fill;
}

template <class V>
LMLAB_INLINE double lanes_sum(V x) {
    using S = std::remove_reference_t<decltype(x[0])>;
    constexpr int64_t count = sizeof(V) / sizeof(S);
    S lanes[count];
    store(lanes, x);
    double sum = 0;
    for (int64_t lane = 0; lane < count; ++lane) sum += static_cast<double>(lanes[lane]);
    return sum;
}

LMLAB_INLINE float widen(float x) { return x; }
LMLAB_INLINE double widen(double x) { return x; }
LMLAB_INLINE float widen(bfloat16 x) { return bits_as<float>(uint32_t{x.bits} << 16); }

LMLAB_INLINE void narrow(float* to, double x) { *to = static_cast<float>(x); }
LMLAB_INLINE void narrow(double* to, double x) { *to = x; }
LMLAB_INLINE void narrow(bfloat16* to, double x) {
    const uint32_t bits = bits_as<uint32_t>(static_cast<float>(x));
    to->bits = x == x ? static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : uint16_t{0x7fc0};
}

template <class T>
LMLAB_INLINE T minus_infinity() {
    return -std::numeric_limits<T>::infinity();
}
template <>
LMLAB_INLINE bfloat16 minus_infinity<bfloat16>() {
    return bfloat16{0xff80};
}

// e^x for x <= 0 (or NaN), within 2 ulp; 0 below -87. Cody and Waite's reduction, Cephes' polynomial.
LMLAB_INLINE f32x16 exp_negative(f32x16 x) {
    const f32x16 shifted = x * 1.44269504088896341f + 12582912.0f;  // round by 1.5 * 2^23
    const f32x16 n = shifted - 12582912.0f;
    const f32x16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    f32x16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const f32x16 y = p * (r * r) + r + 1.0f;
    const f32x16 scaled = bits_as<f32x16>(bits_as<i32x16>(y) + (bits_as<i32x16>(shifted) << 23));
    const f32x16 zero = {};
    return x >= -87.0f ? scaled : (x == x ? zero : x);
}

// The same in double, below -708: 0. Cephes' rational form, about 1 ulp.
LMLAB_INLINE f64x8 exp_negative(f64x8 x) {
    const f64x8 shifted = x * 1.4426950408889634074 + 6755399441055744.0;  // round by 1.5 * 2^52
    const f64x8 n = shifted - 6755399441055744.0;
    const f64x8 r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    const f64x8 rr = r * r;
    const f64x8 p =
        r * ((1.26177193074810590878e-4 * rr + 3.02994407707441961300e-2) * rr + 9.99999999999999999910e-1);
    const f64x8 q = ((3.00198505138664455042e-6 * rr + 2.52448340349684104192e-3) * rr +
                     2.27265548208155028766e-1) * rr + 2.00000000000000000005e0;
    const f64x8 y = 1.0 + 2.0 * (p / (q - p));
    const f64x8 scaled = bits_as<f64x8>(bits_as<i64x8>(y) + (bits_as<i64x8>(shifted) << 52));
    const f64x8 zero = {};
    return x >= -708.0 ? scaled : (x == x ? zero : x);
}

// Near 0, where 1 - e^{-2|x|} would cancel, tanh is an odd polynomial or rational function (Cephes).
LMLAB_INLINE f32x16 tanh_near_zero(f32x16 x) {
    const f32x16 s = x * x;
    f32x16 p = s * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    return p * s * x + x;
}
LMLAB_INLINE f64x8 tanh_near_zero(f64x8 x) {
    const f64x8 s = x * x;
    const f64x8 p = (s * -9.64399179425052238628e-1 - 9.92877231001918586564e1) * s - 1.61468768441708447952e3;
    const f64x8 q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3;
    return x * s * (p / q) + x;
}

template <class V>
LMLAB_INLINE V tanh_of(V x) {
    const V zero = {};
    const V size = x < zero ? -x : x;
    const V e = exp_negative(size * -2);
    const V far = (1 - e) / (1 + e);
    return size < zero + 0.625f ? tanh_near_zero(x) : (x < zero ? -far : far);
}

// 1 / (1 + e^-x), without cancellation on either side.
template <class V>
LMLAB_INLINE V sigmoid_of(V x) {
    const V zero = {};
    const V e = exp_negative(x < zero ? x : -x);
    return (x < zero ? e : zero + 1) / (1 + e);
}

}  // namespace lmlab::simd
