// A positive number with an exponent of its own: sums over all segmentations of a megabyte neither overflow nor
// underflow, whatever the weights, and keep the full precision that logarithms of such sums would lose.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace lmlab::tokenize {

struct Wide {  // mantissa * 2^exponent with mantissa in [1, 2), or mantissa 0
    double mantissa = 0.0;
    int64_t exponent = 0;

    static Wide of(double mantissa, int64_t exponent) {  // mantissa: 0 or a normal positive double
        if (mantissa == 0.0) return {};
        uint64_t bits;
        std::memcpy(&bits, &mantissa, sizeof bits);
        const int64_t shift = static_cast<int64_t>(bits >> 52) - 1023;
        bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u;
        std::memcpy(&mantissa, &bits, sizeof bits);
        return {mantissa, exponent + shift};
    }
    static Wide exp(double power) {
        if (std::fabs(power) <= 700.0) return of(std::exp(power), 0);
        const double exponent = std::floor(power * 1.4426950408889634074);
        const double rest = std::fma(-exponent, 2.3190468138462996e-17, std::fma(-exponent, 0.69314718055994528623, power));
        return of(std::exp(rest), static_cast<int64_t>(exponent));
    }
    double log() const {
        if (mantissa == 0.0) return -std::numeric_limits<double>::infinity();
        return std::log(mantissa) + static_cast<double>(exponent) * 0.69314718055994530942;
    }
    double value() const {  // underflows to 0 and overflows to inf like any double
        if (mantissa == 0.0 || exponent < -1100) return 0.0;
        return std::ldexp(mantissa, static_cast<int>(exponent > 1100 ? 1100 : exponent));
    }
};

inline Wide operator*(Wide a, Wide b) {
    if (a.mantissa == 0.0 || b.mantissa == 0.0) return {};
    return Wide::of(a.mantissa * b.mantissa, a.exponent + b.exponent);
}
inline Wide operator/(Wide a, Wide b) {
    if (a.mantissa == 0.0) return {};
    return Wide::of(a.mantissa / b.mantissa, a.exponent - b.exponent);
}
inline Wide operator+(Wide a, Wide b) {
    if (a.mantissa == 0.0) return b;
    if (b.mantissa == 0.0) return a;
    if (a.exponent < b.exponent) std::swap(a, b);
    const int64_t gap = a.exponent - b.exponent;
    if (gap > 64) return a;
    uint64_t bits = static_cast<uint64_t>(1023 - gap) << 52;  // 2^-gap
    double factor;
    std::memcpy(&factor, &bits, sizeof factor);
    return Wide::of(a.mantissa + b.mantissa * factor, a.exponent);
}

}  // namespace lmlab::tokenize
