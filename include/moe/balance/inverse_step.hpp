// SPDX-License-Identifier: MIT
#ifndef MOE_BALANCE_INVERSE_STEP_HPP
#define MOE_BALANCE_INVERSE_STEP_HPP

#include <cstdint>
#include <span>

#include <moe/balance/selection_bias.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// ProportionalUpdate with a rate that falls as one over the number of updates: large steps while
/// the bias is wrong, then steps so small that it comes to rest. On a stream of batches that does
/// not change, the regret grows as the logarithm of t; one of constant rate goes on trembling.
///
///     b(e) += rate / t * (mean load - load(e)) / mean load,   t = 1, 2, 3, ...
///
/// An update without load moves nothing and does not count. While the router still learns, balance
/// drifts away faster than small steps can follow: then take a larger rate, a controller of
/// constant rate, or begin anew with updates = 0.
///
/// Source: arXiv:2512.03915, online setting.
struct InverseStepUpdate {
    double rate = 0.1;  ///< of the first step; about the spread of the scores or logits

    std::uint64_t updates = 0;  ///< t of the last update; save it with the bias

    /// As SignUpdate::update.
    template <class S>
    void update(std::span<S> bias, std::span<const double> load) {
        detail::check_rate("InverseStepUpdate", rate);
        if (detail::mean_load("InverseStepUpdate", bias.size(), load) == 0) return;
        ++updates;
        ProportionalUpdate{.rate = rate / static_cast<double>(updates)}.update(bias, load);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BALANCE_INVERSE_STEP_HPP
