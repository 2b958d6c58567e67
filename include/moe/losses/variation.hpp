// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_VARIATION_HPP
#define MOE_LOSSES_VARIATION_HPP

#include <cmath>
#include <cstddef>
#include <span>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// How the variance of numbers per expert is taken in their squared coefficient of variation,
///
///     CV^2(v) = var(v) / (mean(v)^2 + epsilon)
///
/// which is 0 if all are equal. A single expert, and v = 0, have CV^2 = 0.
enum class Variance {
    /// Divided by E; epsilon 0. At most E - 1, and the same for any multiple of v (V-MoE).
    population,
    /// Divided by E - 1; epsilon 1e-10. At most E (fastmoe, LLaMA-MoE, Tutel, ShiftAddViT).
    sample,
};

namespace detail {

/// CV^2 of costs v, and its slope at v.
///
///     d(CV^2)/dv(i) = cost(i) (2 (u(i) - m) / (d D) - 2 m V / (n D^2)),
///     u = cost v, m = mean(u), V = var(u) divided by d, D = m^2 + epsilon
///
/// @param costs  [n], or empty: 1
/// @param v      [n] becomes u
/// @param slope  [n] written
inline double squared_variation(Variance variance, std::span<const double> costs, Index n,
                                double* v, double* slope) {
    double sum = 0, squares = 0;
    for (Index i = 0; i < n; ++i) {
        if (!costs.empty()) v[i] *= costs[static_cast<std::size_t>(i)];
        sum += v[i];
        slope[i] = 0;
    }
    if (n < 2) return 0;
    const double count = static_cast<double>(n), mean = sum / count;
    const bool is_sample = variance == Variance::sample;
    const double divisor = is_sample ? count - 1 : count;
    const double denominator = std::fma(mean, mean, is_sample ? 1e-10 : 0.0);
    if (denominator == 0) return 0;
    for (Index i = 0; i < n; ++i) squares = std::fma(v[i] - mean, v[i] - mean, squares);
    const double value = squares / divisor / denominator;
    const double common = 2 * mean * value / (count * denominator);
    for (Index i = 0; i < n; ++i) {
        slope[i] = std::fma(2 / (divisor * denominator), v[i] - mean, -common);
        if (!costs.empty()) slope[i] *= costs[static_cast<std::size_t>(i)];
    }
    return value;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_VARIATION_HPP
