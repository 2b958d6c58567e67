// SPDX-License-Identifier: MIT
#ifndef MOE_BALANCE_LOAD_SUM_HPP
#define MOE_BALANCE_LOAD_SUM_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Tokens per expert, summed over the micro-batches and processes of one step.
///
///     LoadSum load(layer.num_experts());
///     for (...) { layer.forward(x, y, ws);  load.add(ws.routing()); }
///     load.add(counts_of_other_processes);
///     update_bias(layer, load, SignUpdate{});
///     load.clear();
///
/// Counts are doubles, which are exact up to 2^53 tokens.
class LoadSum {
public:
    explicit LoadSum(Index num_experts) {
        if (num_experts < 0)
            detail::fail("moe::LoadSum: num_experts is ", num_experts, ", it must be >= 0");
        counts_.assign(static_cast<std::size_t>(num_experts), 0.0);
    }

    /// Adds the load of one batch: the assignments that reach their experts.
    /// @param count_dropped  count those that were dropped as well
    /// @throws std::invalid_argument if the routing is for another number of experts
    void add(const Routing& routing, bool count_dropped = false) {
        check_extent(routing.num_experts());
        for (const Assignment& a : routing.assignments())
            if (count_dropped || a.dropped == Dropped::no)
                counts_[static_cast<std::size_t>(a.expert)] += 1;
    }

    /// Adds counts from elsewhere. They may be fractions: halves where a batch was routed twice.
    /// @param counts  [E] integers or floating-point numbers
    /// @throws std::invalid_argument if there are not E, or one is negative or not finite; nothing
    ///         is added then
    template <class Number, std::size_t n>
        requires std::is_arithmetic_v<Number>
    void add(std::span<Number, n> counts) {
        check_extent(static_cast<Index>(counts.size()));
        for (const auto count : counts)
            if (const double c = static_cast<double>(count); !(c >= 0) || !std::isfinite(c))
                detail::fail("moe::LoadSum::add: a count is ", c, ", it must be finite and >= 0");
        for (std::size_t e = 0; e < counts.size(); ++e)
            counts_[e] += static_cast<double>(counts[e]);
    }
    template <class Number>
        requires std::is_arithmetic_v<Number>
    void add(const std::vector<Number>& counts) { add(detail::elements(counts)); }
    void add(const LoadSum& other) { add(other.counts()); }

    void clear() { std::fill(counts_.begin(), counts_.end(), 0.0); }

    Index num_experts() const { return static_cast<Index>(counts_.size()); }
    std::span<const double> counts() const { return detail::elements(counts_); }

private:
    void check_extent(Index given) const {
        if (given != num_experts())
            detail::fail("moe::LoadSum::add: the load is of ", given, " experts, the sum of ",
                         num_experts(), "; make one for each number of experts");
    }

    std::vector<double> counts_;
};

/// How far the busiest expert is above the mean: max / mean - 1. 0 at perfect balance, E - 1 when
/// one expert gets everything, 0 without any load. Called MaxVio in arXiv:2408.15664.
inline double max_violation(std::span<const double> counts) {
    double most = 0, all = 0;
    for (const double count : counts) {
        most = std::max(most, count);
        all += count;
    }
    return all == 0 ? 0 : most / (all / static_cast<double>(counts.size())) - 1;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BALANCE_LOAD_SUM_HPP
