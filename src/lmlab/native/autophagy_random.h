// Normal and gamma numbers for eight trials at a time.
//
// Eight xoshiro256++ generators run side by side in vectors. Ziggurat normals and Marsaglia-Tsang gammas are
// accepted at the first try for nearly every lane; the lane that isn't is finished by plain code, which draws
// from a ninth generator, so that the vectors never wait for one lane.
// Sources: Blackman and Vigna, arXiv:1805.01407; Marsaglia and Tsang (2000), doi:10.18637/jss.v005.i08 and
// doi:10.1145/358407.358414.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd.h"

// What is rarely needed stays out of the loops.
#if defined(__GNUC__) || defined(__clang__)
#define LMLAB_NOINLINE __attribute__((noinline))
#else
#define LMLAB_NOINLINE
#endif

namespace lmlab::autophagy {

using simd::bits_as;
using simd::f64x8;
using simd::i64x8;
using u64x8 = uint64_t __attribute__((vector_size(64)));
using i8x8 = int8_t __attribute__((vector_size(8)));

constexpr int LANES = 8;
constexpr int SEED_WORDS = 4 * (LANES + 1);

// The ziggurat's 256 layers under exp(-x^2/2): layer i is edge[i] wide and lies between height[i] and
// height[i + 1]. Layer 0 is the base strip with the tail, as wide as its area asks.
struct Ziggurat {
    double edge[257], height[257];

    Ziggurat() {
        constexpr double tail = 3.6541528853610088, area = 0.00492867323399;
        edge[1] = tail;
        height[0] = 0.0;
        height[1] = std::exp(-0.5 * tail * tail);
        edge[0] = area / height[1];
        for (int i = 2; i < 256; ++i) {
            height[i] = area / edge[i - 1] + height[i - 1];
            edge[i] = std::sqrt(-2.0 * std::log(height[i]));
        }
        edge[256] = 0.0;
        height[256] = 1.0;
    }
};

inline const Ziggurat& ziggurat() {
    static const Ziggurat layers;
    return layers;
}

template <class Word>
struct Xoshiro {
    Word s0, s1, s2, s3;

    static LMLAB_INLINE Word rotated(Word x, int by) { return (x << by) | (x >> (64 - by)); }

    LMLAB_INLINE Word next() {
        const Word result = rotated(s0 + s3, 23) + s0;
        const Word shifted = s1 << 17;
        s2 ^= s0;
        s3 ^= s1;
        s1 ^= s2;
        s0 ^= s3;
        s2 ^= shifted;
        s3 = rotated(s3, 45);
        return result;
    }
};

// 52 random bits as the fraction of a double in [1, 2) or [2, 4): no conversion from integers is needed.
constexpr uint64_t ONE = 0x3ff0000000000000u, TWO = 0x4000000000000000u;

// One number at a time: finishes what the vectors left open.
struct Single {
    Xoshiro<uint64_t> bits;
    const Ziggurat& z;

    double uniform() { return bits_as<double>((bits.next() >> 12) | ONE) - 1.0; }

    double normal() {
        for (;;) {
            const uint64_t drawn = bits.next();
            const int layer = static_cast<int>(drawn & 255);
            const double x = (bits_as<double>((drawn >> 12) | TWO) - 3.0) * z.edge[layer];
            double found;
            if (std::fabs(x) < z.edge[layer + 1]) return x;
            if (beyond(layer, x, found)) return found;
        }
    }

    // x of `layer` beside the rectangle that lies wholly under the curve: in the tail, or in the wedge.
    bool beyond(int layer, double x, double& found) {
        if (layer == 0) {
            double past, depth;
            do {
                past = -std::log(1.0 - uniform()) / z.edge[1];
                depth = -std::log(1.0 - uniform());
            } while (depth + depth < past * past);
            found = x > 0 ? z.edge[1] + past : -z.edge[1] - past;
            return true;
        }
        found = x;
        return z.height[layer] + uniform() * (z.height[layer + 1] - z.height[layer]) < std::exp(-0.5 * x * x);
    }

    LMLAB_NOINLINE double finish_normal(int layer, double x) {
        double found;
        return beyond(layer, x, found) ? found : normal();
    }

    // Marsaglia and Tsang's test for shape d + 1/3, begun with the proposal (x, u).
    LMLAB_NOINLINE double finish_gamma(double d, double c, double x, double u) {
        for (;;) {
            const double root = 1.0 + c * x, v = root * root * root;
            if (root > 0 && std::log(u) < 0.5 * x * x + d * (1.0 - v + std::log(v))) return d * v;
            x = normal();
            u = uniform();
        }
    }
};

LMLAB_INLINE bool all(i64x8 mask) {
    return bits_as<uint64_t>(__builtin_convertvector(mask, i8x8)) == ~uint64_t{0};
}

LMLAB_INLINE f64x8 absolute(f64x8 x) {
    return bits_as<f64x8>(bits_as<u64x8>(x) & ~(uint64_t{1} << 63));
}

LMLAB_INLINE f64x8 square_root(f64x8 x) {
    double roots[LANES];
    simd::store(roots, x);
#pragma omp simd
    for (int lane = 0; lane < LANES; ++lane) roots[lane] = std::sqrt(roots[lane]);
    return simd::load(roots);
}

// A gamma law of shape d + 1/3 >= 1, with what its proposals need.
struct Gamma {
    double d, c, squeeze;

    explicit Gamma(double shape) : d(shape - 1.0 / 3.0), c(1.0 / std::sqrt(9.0 * d)), squeeze(c * c / 6.0) {}
};

struct Eight {
    Xoshiro<u64x8> bits;
    Single single;

    explicit Eight(const uint64_t* seed) : single{{}, ziggurat()} {
        std::memcpy(&bits, seed, sizeof bits);
        std::memcpy(&single.bits, seed + 4 * LANES, sizeof single.bits);
    }

    LMLAB_INLINE f64x8 uniform() { return bits_as<f64x8>((bits.next() >> 12) | ONE) - 1.0; }

    LMLAB_INLINE f64x8 normal() {
        const double* edge = single.z.edge;
        const u64x8 drawn = bits.next();
        const u64x8 layer = drawn & 255;
        uint64_t layers[LANES];
        double wide[LANES], next[LANES];
        std::memcpy(layers, &layer, sizeof layers);
        for (int lane = 0; lane < LANES; ++lane) {
            wide[lane] = edge[layers[lane]];
            next[lane] = edge[layers[lane] + 1];
        }
        f64x8 x = (bits_as<f64x8>((drawn >> 12) | TWO) - 3.0) * simd::load(wide);
        const i64x8 inside = absolute(x) < simd::load(next);
        if (!all(inside))
            for (int lane = 0; lane < LANES; ++lane)
                if (!inside[lane]) x[lane] = single.finish_normal(static_cast<int>(layers[lane]), x[lane]);
        return x;
    }

    // The exact test is u < exp(h), h = x^2/2 + d(1 - v + log v) with v = (1 + y)^3, y = cx. Because
    // h = -(1/3c^2) * integral_0^y t^3/(1 + t) dt >= -c^2 x^4/6 where y >= -1/2, and exp(h) >= 1 + h, a
    // proposal with u < 1 - c^2 x^4/6 is accepted without a logarithm: all but one in 18d.
    LMLAB_INLINE f64x8 gamma(const Gamma& law) {
        const f64x8 x = normal(), u = uniform();
        const f64x8 y = law.c * x, root = 1.0 + y, square = x * x;
        f64x8 result = law.d * root * root * root;
        const i64x8 accepted = (u < 1.0 - law.squeeze * square * square) & (y > -0.5);
        if (!all(accepted))
            for (int lane = 0; lane < LANES; ++lane)
                if (!accepted[lane]) result[lane] = single.finish_gamma(law.d, law.c, x[lane], u[lane]);
        return result;
    }
};

}  // namespace lmlab::autophagy
