// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_LOG_SOFTMAX_HPP
#define MOE_LOSSES_LOG_SOFTMAX_HPP

#include <algorithm>
#include <limits>

#include <moe/core/types.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI::detail {

/// p = softmax(z) and its logarithm, as (z - max z) - log sum exp(z - max z): so a constant added
/// to z changes nothing, and log p is right where p has vanished. -inf where z is; NaN everywhere
/// where the softmax is not defined.
/// @param z      [n] not -inf throughout
/// @param p      [n] written
/// @param log_p  [n] written
template <class S>
void log_softmax(const KernelTable<S>& table, Index n, const S* z, S* p, S* log_p) {
    table.softmax(n, z, p);
    S most = -std::numeric_limits<S>::infinity();
    for (Index i = 0; i < n; ++i) most = std::max(most, z[i]);
    for (Index i = 0; i < n; ++i) log_p[i] = z[i] - most;
    const S lse = table.log_sum_exp(n, log_p);
    for (Index i = 0; i < n; ++i) log_p[i] -= lse;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_LOSSES_LOG_SOFTMAX_HPP
