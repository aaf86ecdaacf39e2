// Lets Ctrl-C end long work: the thread that Python called asks now and then whether a signal came.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace lmlab::tokenize {

class Interrupt {
public:
    // check: throws if the work should end; only ever called from the thread that made this object.
    explicit Interrupt(std::function<void()> check) : check_(std::move(check)), owner_(std::this_thread::get_id()) {}

    void poll() const {
        if (std::this_thread::get_id() == owner_) check_();
    }

private:
    std::function<void()> check_;
    std::thread::id owner_;
};

}  // namespace lmlab::tokenize
