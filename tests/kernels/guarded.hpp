// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_KERNELS_GUARDED_HPP
#define MOE_TESTS_KERNELS_GUARDED_HPP

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <moe/core/types.hpp>

#include "numbers.hpp"

/// What the kernel tests share.
namespace kernel_test {

using moe::Index;

/// Memory between two pages that nobody may touch: one element too far is a crash. As arrays end
/// where the page does, odd lengths are misaligned.
template <class S>
class Guarded {
public:
    explicit Guarded(Index capacity) {
        page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t wanted = static_cast<std::size_t>(capacity) * sizeof(S);
        inside_ = (wanted / page_ + 1) * page_;
        all_ = mmap(nullptr, inside_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all_ == MAP_FAILED) throw std::bad_alloc();
        if (mprotect(begin(), inside_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    }
    ~Guarded() { munmap(all_, inside_ + 2 * page_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    /// The first n elements: reading before them is a crash.
    S* first(Index) { return static_cast<S*>(begin()); }
    /// The last n elements: reading after them is a crash.
    S* last(Index n) { return static_cast<S*>(begin()) + inside_ / sizeof(S) - n; }

private:
    void* begin() { return static_cast<std::byte*>(all_) + page_; }

    std::size_t page_ = 0;
    std::size_t inside_ = 0;
    void* all_ = nullptr;
};

/// Same bits; any NaN equals any NaN, as their sign and payload depend on the instruction.
template <class S>
bool same(S a, S b) {
    return std::bit_cast<Bits<S>>(a) == std::bit_cast<Bits<S>>(b) || (a != a && b != b);
}

template <class S>
::testing::AssertionResult same(Index n, const S* got, const S* want) {
    for (Index i = 0; i < n; ++i)
        if (!same(got[i], want[i]))
            return ::testing::AssertionFailure() << "element " << i << " of " << n << " is "
                                                 << got[i] << ", should be " << want[i];
    return ::testing::AssertionSuccess();
}

/// Distance in units of the last place of a float near `want`; inf if one is NaN and not the other.
inline double ulps(float got, double want) {
    if (std::isnan(got) || std::isnan(want))
        return std::isnan(got) && std::isnan(want) ? 0 : HUGE_VAL;
    if (std::isinf(got) || std::isinf(want))
        return double(got) == double(float(want)) ? 0 : HUGE_VAL;
    int exponent = 0;
    std::frexp(want, &exponent);
    return std::fabs(double(got) - want) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

}  // namespace kernel_test

#endif  // MOE_TESTS_KERNELS_GUARDED_HPP
