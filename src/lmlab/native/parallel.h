// Work shared between threads that are started for the call: nothing to configure, nothing that a fork breaks.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace lmlab {

// Calls work(begin, end) on pieces of [0, count), `grain` long, handed out in order by a counter.
// The first exception of any piece is thrown again here, when no piece runs any more.
//
// Helpers are not joined: on a busy machine one may get a processor long after the pieces are gone, and would then
// be waited for in vain. It finds the counter spent, and touches nothing but the state that it shares the holding of.
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
    struct Shared {
        std::atomic<int64_t> next{0}, done{0};
        std::atomic<bool> failed{false};
        std::exception_ptr failure;
        std::mutex lock;
        std::condition_variable all_done;
    };
    const auto shared = std::make_shared<Shared>();
    auto* const body = &work;  // alive until every piece is done
    const auto run = [shared, body, pieces, count, grain] {
        for (int64_t piece; (piece = shared->next.fetch_add(1)) < pieces;) {
            if (!shared->failed.load()) {
                try {
                    (*body)(piece * grain, std::min(count, (piece + 1) * grain));
                } catch (...) {
                    std::lock_guard<std::mutex> guard(shared->lock);
                    if (!shared->failed.exchange(true)) shared->failure = std::current_exception();
                }
            }
            if (shared->done.fetch_add(1) + 1 == pieces) {
                std::lock_guard<std::mutex> guard(shared->lock);
                shared->all_done.notify_all();
            }
        }
    };
    for (int i = 1; i < threads; ++i) {
        try {
            std::thread(run).detach();
        } catch (const std::system_error&) {
            break;  // no more threads to be had: those that run do the work
        }
    }
    run();
    std::unique_lock<std::mutex> guard(shared->lock);
    shared->all_done.wait(guard, [&] { return shared->done.load() == pieces; });
    if (!shared->failed.load()) return;
    const std::exception_ptr failure = std::move(shared->failure);  // a late helper must not be the one to end it
    std::rethrow_exception(failure);
}

}  // namespace lmlab
