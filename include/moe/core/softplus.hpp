// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_SOFTPLUS_HPP
#define MOE_CORE_SOFTPLUS_HPP

#include <algorithm>
#include <cmath>

#include <moe/config.hpp>

namespace moe::inline MOE_ABI::detail {

/// log(1 + exp z) without overflow.
inline double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); }

/// Its derivative, 1 / (1 + exp(-z)).
inline double softplus_slope(double z) {
    const double small = std::exp(-std::abs(z));
    return (z < 0 ? small : 1) / (1 + small);
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_SOFTPLUS_HPP
