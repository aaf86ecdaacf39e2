// Work shared between threads that live only for the call: nothing to configure, nothing that a fork breaks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lmlab {

// Calls work(begin, end) on pieces of [0, count), `grain` long, handed out in order by a counter.
// The first exception of any piece is thrown again here, after all threads have ended.
template <class Work>
void parallel_for(int threads, int64_t count, int64_t grain, Work&& work) {
    if (count <= 0) return;
    grain = std::max<int64_t>(1, grain);
    const int64_t pieces = (count + grain - 1) / grain;
    threads = static_cast<int>(std::min<int64_t>(std::max(1, threads), pieces));
    if (threads == 1) {
        work(int64_t{0}, count);
        return;
    }
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    auto run = [&] {
        try {
            for (int64_t piece; (piece = next.fetch_add(1)) < pieces;)
                work(piece * grain, std::min(count, (piece + 1) * grain));
        } catch (...) {
            std::lock_guard<std::mutex> guard(failure_lock);
            if (!failure) failure = std::current_exception();
            next.store(pieces);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads - 1);
    for (int i = 1; i < threads; ++i) helpers.emplace_back(run);
    run();
    for (auto& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace lmlab
