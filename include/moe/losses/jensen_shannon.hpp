// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_JENSEN_SHANNON_HPP
#define MOE_LOSSES_JENSEN_SHANNON_HPP

#include <cmath>
#include <span>

#include <moe/core/error.hpp>
#include <moe/core/random.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// @param a, b   [n] >= 0
/// @param slope  [n] written: d/da, and 0 where a is 0; or null
inline double jensen_shannon(Index n, const double* a, const double* b, double epsilon,
                             double* slope) {
    double sum = 0;
    for (Index i = 0; i < n; ++i) {
        const double middle = (a[i] + b[i]) / 2;
        const double log_middle = middle == 0 ? 0 : portable_log(middle + epsilon);
        const double of_a = a[i] == 0 ? 0 : portable_log(a[i] + epsilon) - log_middle;
        const double of_b = b[i] == 0 ? 0 : portable_log(b[i] + epsilon) - log_middle;
        sum = std::fma(a[i], of_a, std::fma(b[i], of_b, sum));
        if (slope != nullptr)
            slope[i] =
                a[i] == 0 ? 0 : (of_a + a[i] / (a[i] + epsilon) - middle / (middle + epsilon)) / 2;
    }
    return sum / 2;
}

inline void check_epsilon(const char* who, double epsilon) {
    if (!(epsilon >= 0 && std::isfinite(epsilon)))
        fail(who, ": epsilon is ", epsilon, ", it must be finite and >= 0; 1e-6 is usual");
}

}  // namespace detail

/// How far two distributions are apart:
///
///     1/2 sum a (log a' - log m') + 1/2 sum b (log b' - log m'),  m = (a + b) / 2
///
/// where x' = x + epsilon. For epsilon 0 it lies between 0, for equal ones, and log 2, for such
/// that share nothing; 0 log 0 is 0. It is 0 for equal ones with any epsilon.
/// @param a, b     [n] finite and >= 0, sum 1
/// @param epsilon  finite and >= 0
/// @throws std::invalid_argument if extents differ or epsilon is out of range
inline double jensen_shannon(std::span<const double> a, std::span<const double> b,
                             double epsilon = 1e-6) {
    if (a.size() != b.size())
        detail::fail("moe::jensen_shannon: a has ", a.size(), " entries and b ", b.size(),
                     ", they must have as many");
    detail::check_epsilon("moe::jensen_shannon", epsilon);
    return detail::jensen_shannon(static_cast<Index>(a.size()), a.data(), b.data(), epsilon,
                                  nullptr);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_JENSEN_SHANNON_HPP
