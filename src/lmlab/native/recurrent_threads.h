// How many threads a call is worth: a thread that is started late, or not at all, costs more than a short call.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lmlab::recurrent {

constexpr double kShareOfAThread = 4e5;  // nanoseconds of work that pay for starting a thread and waiting for it

inline int useful_threads(double nanoseconds, int threads) {
    return std::max(1, static_cast<int>(std::min<double>(threads, nanoseconds / kShareOfAThread)));
}

// Estimates for one core with vectors of 64 bytes; what is slower is worth its threads all the more.
inline double product_time(int64_t rows, int64_t k, int64_t n) { return 0.02 * static_cast<double>(rows * k * n); }
inline double cell_time(int64_t batch, int64_t steps, int64_t gates, int64_t n, bool diagonal) {
    return static_cast<double>(batch * steps * gates * n) * (0.4 + (diagonal ? 0.0 : 0.03 * static_cast<double>(n)));
}
inline double scan_time(int64_t batch, int64_t steps, int64_t n, bool dense) {
    return static_cast<double>(batch * steps * n) * (dense ? 0.2 * static_cast<double>(n) : 0.25);
}

}  // namespace lmlab::recurrent
