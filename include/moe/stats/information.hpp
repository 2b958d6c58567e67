// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_INFORMATION_HPP
#define MOE_STATS_INFORMATION_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// -sum p log p of p = n / sum n, in nats; 0 without counts.
inline double count_entropy(std::span<const double> counts) {
    double all = 0, entropy = 0;
    for (const double n : counts) all += n;
    for (const double n : counts)
        if (n > 0) entropy = std::fma(-n / all, std::log(n / all), entropy);
    return entropy;
}

}  // namespace detail

/// How much two things tell of one another that were counted together:
///
///     2 I(a; b) / (H(a) + H(b)),  I(a; b) = H(a) + H(b) - H(a, b)
///
/// 0 if they are independent, 1 if each determines the other, 0 if neither varies. The value of few
/// counts is too high: independent ones in [A, B] cells have I of about (A - 1) (B - 1) / (2 n).
///
/// @param counts  [A, B] how often a and b came together, >= 0
inline double normalized_mutual_information(const Matrix<double>& counts) {
    std::vector<double> rows(detail::at(counts.rows())), columns(detail::at(counts.cols()));
    for (Index a = 0; a < counts.rows(); ++a)
        for (Index b = 0; b < counts.cols(); ++b) {
            rows[detail::at(a)] += counts(a, b);
            columns[detail::at(b)] += counts(a, b);
        }
    const double each = detail::count_entropy(detail::elements(rows)) +
                        detail::count_entropy(detail::elements(columns));
    const double both =
        detail::count_entropy({counts.data(), static_cast<std::size_t>(counts.size())});
    return each <= 0 ? 0 : std::clamp(2 * (each - both) / each, 0.0, 1.0);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_INFORMATION_HPP
