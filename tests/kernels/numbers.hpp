// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_KERNELS_NUMBERS_HPP
#define MOE_TESTS_KERNELS_NUMBERS_HPP

#include <cstdint>
#include <type_traits>

#include <moe/core/types.hpp>

namespace kernel_test {

using moe::Index;

template <class S>
using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;

/// A small generator, the same numbers everywhere.
class Numbers {
public:
    explicit Numbers(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}

    std::uint64_t bits() {  // splitmix64
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31);
    }
    /// Uniform in [low, high).
    double uniform(double low, double high) {
        return low + (high - low) * (static_cast<double>(bits() >> 11) * 0x1p-53);
    }
    template <class S>
    void fill(Index n, S* to, double low = -2, double high = 2) {
        for (Index i = 0; i < n; ++i) to[i] = static_cast<S>(uniform(low, high));
    }

private:
    std::uint64_t state_;
};

}  // namespace kernel_test

#endif  // MOE_TESTS_KERNELS_NUMBERS_HPP
