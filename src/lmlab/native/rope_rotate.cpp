#include "rope_rotate.h"

#include <algorithm>

#include "dispatch.h"
#include "parallel.h"

namespace lmlab::rope {
namespace {

template <class T>
LMLAB_INLINE void rotate_rows(const Rotation<T>& all, int64_t begin, int64_t end) {
    const int64_t half = all.half;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t t = row % all.t, h = row / all.t % all.h, b = row / all.t / all.h;
        const T* __restrict x = all.x + b * all.by_b + h * all.by_h + t * all.by_t;
        const T* __restrict cos = all.cos + b * all.table_by_b + t * all.table_by_t;
        const T* __restrict sin = all.sin + b * all.table_by_b + t * all.table_by_t;
        T* __restrict out = all.out + row * all.d;
        if (all.interleaved) {
            for (int64_t m = 0; m < half; ++m) {
                out[2 * m] = x[2 * m] * cos[m] - x[2 * m + 1] * sin[m];
                out[2 * m + 1] = x[2 * m + 1] * cos[m] + x[2 * m] * sin[m];
            }
        } else {
            for (int64_t m = 0; m < half; ++m) {
                out[m] = x[m] * cos[m] - x[m + half] * sin[m];
                out[m + half] = x[m + half] * cos[m] + x[m] * sin[m];
            }
        }
        std::copy(x + 2 * half, x + all.d, out + 2 * half);
    }
}

LMLAB_MULTIVERSION void rows_f32(const Rotation<float>& all, int64_t begin, int64_t end) { rotate_rows(all, begin, end); }
LMLAB_MULTIVERSION void rows_f64(const Rotation<double>& all, int64_t begin, int64_t end) { rotate_rows(all, begin, end); }

int64_t grain(int64_t d) { return std::max<int64_t>(64, (int64_t{1} << 20) / std::max<int64_t>(1, d)); }  // rows worth a thread

}  // namespace

void rotate(const Rotation<float>& all, int threads) {
    parallel_for(threads, all.b * all.h * all.t, grain(all.d), [&](int64_t begin, int64_t end) { rows_f32(all, begin, end); });
}
void rotate(const Rotation<double>& all, int threads) {
    parallel_for(threads, all.b * all.h * all.t, grain(all.d), [&](int64_t begin, int64_t end) { rows_f64(all, begin, end); });
}

}  // namespace lmlab::rope
