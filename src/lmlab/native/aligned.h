// Buffers that begin at a cache line: a vector of 64 bytes that straddles two lines costs two loads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace lmlab {

template <class T>
struct LineAllocator {
    using value_type = T;
    static constexpr size_t kLine = 64;

    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) noexcept {}
    // By the plain operator new and a step forward: the aligned one leaves holes in the heap, and large tensors
    // that are made and freed beside them then cost a page fault a page, every time.
    T* allocate(size_t n) {
        if (n > (static_cast<size_t>(-1) - kLine) / sizeof(T)) throw std::bad_alloc();
        auto* const whole = static_cast<unsigned char*>(::operator new(n * sizeof(T) + kLine));
        const size_t step = kLine - reinterpret_cast<uintptr_t>(whole) % kLine;  // 1 … 64
        whole[step - 1] = static_cast<unsigned char>(step);
        return reinterpret_cast<T*>(whole + step);
    }
    void deallocate(T* from, size_t) noexcept {
        auto* const bytes = reinterpret_cast<unsigned char*>(from);
        ::operator delete(bytes - bytes[-1]);
    }
    template <class U>
    bool operator==(const LineAllocator<U>&) const noexcept { return true; }
    template <class U>
    bool operator!=(const LineAllocator<U>&) const noexcept { return false; }
};

template <class T>
using aligned_vector = std::vector<T, LineAllocator<T>>;

}  // namespace lmlab
