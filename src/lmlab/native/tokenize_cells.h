// The free cells of a double array while it is built, as a list that leads through them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace lmlab::tokenize {

class Cells {
public:
    // limit: the greatest number of cells that the array may have.
    explicit Cells(size_t limit) : limit_(limit) { grow(1024); }

    size_t size() const { return next_.size(); }
    size_t end() const { return end_; }  // all cells from here on are free
    bool free(int32_t cell) const { return next_[cell] != TAKEN; }

    void take(int32_t cell) {
        const int32_t before = previous_[cell], after = next_[cell];
        (before >= 0 ? next_[before] : first_) = after;
        (after >= 0 ? previous_[after] : last_) = before;
        next_[cell] = TAKEN;
        end_ = std::max(end_, static_cast<size_t>(cell) + 1);
    }

    // A base >= 1 that `accept` takes and at which the cells of all children (base + byte) are free. An only
    // child fills the first gap, so gaps don't last. Cells 0 .. 255 must be taken.
    template <class Children, class Accept>
    int32_t place(const Children& children, Accept&& accept) {
        int32_t at = first_;
        for (int attempt = 0; at >= 0 && attempt < ATTEMPTS; ++attempt, at = next_[at]) {
            const int32_t base = at - children[0];
            if (base < 1) continue;
            if (static_cast<size_t>(base) + 256 > size()) break;
            bool fits = accept(base);
            for (uint8_t child : children) fits = fits && free(base + child);
            if (fits) return base;
        }
        int32_t base = static_cast<int32_t>(end_) - children[0];
        while (!accept(base)) ++base;
        if (static_cast<size_t>(base) + 256 > size()) grow(static_cast<size_t>(base) + 256);
        return base;
    }

private:
    static constexpr int ATTEMPTS = 48;  // free cells tried for a family of children before it goes to the end
    static constexpr int32_t NONE = -1, TAKEN = -2;

    void grow(size_t least) {
        const size_t old = next_.size(), size = std::max(least, std::min(limit_, least + 256 + old / 2));
        if (size > limit_)
            throw std::length_error("the pieces are too many or too long: an array of " + std::to_string(limit_) +
                                    " cells has no room for them");
        next_.resize(size, NONE);
        previous_.resize(size, NONE);
        for (size_t i = old; i < size; ++i) {
            previous_[i] = last_;
            (last_ >= 0 ? next_[last_] : first_) = static_cast<int32_t>(i);
            last_ = static_cast<int32_t>(i);
        }
    }

    std::vector<int32_t> next_, previous_;
    int32_t first_ = NONE, last_ = NONE;
    size_t end_ = 0, limit_;
};

}  // namespace lmlab::tokenize
