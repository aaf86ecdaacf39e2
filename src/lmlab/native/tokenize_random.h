// xoshiro256** (Blackman and Vigna), one generator a text: stream k of a seed depends on (seed, k) alone.
#pragma once

#include <cstdint>

namespace lmlab::tokenize {

class Random {
public:
    Random(uint64_t seed, uint64_t stream) {
        uint64_t x = mix(seed + 0x9E3779B97F4A7C15u) ^ stream;
        x = mix(x + 0x9E3779B97F4A7C15u);
        for (uint64_t& word : state_) word = mix(x += 0x9E3779B97F4A7C15u);
    }

    uint64_t next() {
        const uint64_t result = rotate(state_[1] * 5, 7) * 9, t = state_[1] << 17;
        state_[2] ^= state_[0];
        state_[3] ^= state_[1];
        state_[1] ^= state_[2];
        state_[0] ^= state_[3];
        state_[2] ^= t;
        state_[3] = rotate(state_[3], 45);
        return result;
    }

    double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }  // in [0, 1)

private:
    static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
    static uint64_t mix(uint64_t z) {  // the output function of SplitMix64: a bijection
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    uint64_t state_[4];
};

}  // namespace lmlab::tokenize
