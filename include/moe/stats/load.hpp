// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_LOAD_HPP
#define MOE_STATS_LOAD_HPP

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Who did the work. n(e) is the load of expert e: the assignments that reach it.
///
/// Every member is defined for every routing: what would be 0 / 0 (no tokens, no experts, nothing
/// routed) is 0, and busiest_expert is then -1.
struct LoadStats {
    Index num_tokens = 0;                   ///< that are not padding
    std::vector<Index> tokens_per_expert;   ///< [E] n(e)
    std::vector<Index> dropped_per_expert;  ///< [E] assignments to e that were dropped
    Index busiest_expert = -1;              ///< of the largest load, the lowest index
    Index dead_experts = 0;                 ///< without any token
    Index unrouted_tokens = 0;  ///< that no expert works on: nothing selected, or all of it dropped
    double max_over_mean = 0;   ///< largest load over the mean load: 1 at balance, at most E
    double coefficient_of_variation = 0;  ///< standard deviation (over E) of the load over its mean
    double normalized_entropy = 0;  ///< of n / sum n, over log E: 1 at balance, 0 for one expert
    double experts_per_token = 0;   ///< sum n / T
    double dropped_fraction = 0;    ///< of all assignments
};

/// Counts one batch. Cost: O(T + N + E). To sum batches first, see LoadSum.
/// @param context  of the batch: its padding is not counted as tokens
/// @throws std::invalid_argument if the padding is of another number of tokens
inline LoadStats load_stats(const Routing& routing, const Context& context = {}) {
    detail::check_extent("padding", context.padding.size(), routing.num_tokens(), "one per token");
    const Index experts = routing.num_experts();
    const auto at = [](auto i) { return static_cast<std::size_t>(i); };
    LoadStats stats;
    stats.tokens_per_expert.resize(at(experts));
    stats.dropped_per_expert.resize(at(experts));
    for (Index t = 0; t < routing.num_tokens(); ++t) {
        bool is_routed = false;
        for (const Assignment& a : routing.of(t)) {
            const bool is_kept = a.dropped == Dropped::no;
            ++(is_kept ? stats.tokens_per_expert : stats.dropped_per_expert)[at(a.expert)];
            is_routed = is_routed || is_kept;
        }
        if (context.is_padding(t)) continue;
        ++stats.num_tokens;
        stats.unrouted_tokens += is_routed ? 0 : 1;
    }

    const Index kept = routing.num_kept(), all = routing.num_assignments();
    for (const Index load : stats.tokens_per_expert) stats.dead_experts += load == 0 ? 1 : 0;
    if (stats.num_tokens > 0)
        stats.experts_per_token = static_cast<double>(kept) / static_cast<double>(stats.num_tokens);
    if (all > 0)
        stats.dropped_fraction = static_cast<double>(all - kept) / static_cast<double>(all);
    if (kept == 0) return stats;

    const double mean = static_cast<double>(kept) / static_cast<double>(experts);
    double squares = 0, entropy = 0;
    Index most = 0;
    for (Index e = 0; e < experts; ++e) {
        const Index load = stats.tokens_per_expert[at(e)];
        if (load > most) {
            most = load;
            stats.busiest_expert = e;
        }
        const double difference = static_cast<double>(load) - mean;
        squares = std::fma(difference, difference, squares);
        const double share = static_cast<double>(load) / static_cast<double>(kept);
        if (load > 0) entropy = std::fma(-share, std::log(share), entropy);
    }
    stats.max_over_mean = static_cast<double>(most) / mean;
    stats.coefficient_of_variation = std::sqrt(squares / static_cast<double>(experts)) / mean;
    stats.normalized_entropy = experts == 1 ? 1 : entropy / std::log(static_cast<double>(experts));
    return stats;
}

/// Floating-point operations per token that this routing spends in routed experts, forward: the
/// mean over the tokens of the batch, 0 for an empty one. Dropped assignments cost nothing; shared
/// experts and the router are not in it.
/// @param facts  [E] Head::facts(), Bank::facts() or Context::experts as a gate sees it
/// @throws std::invalid_argument if there is not one entry per expert
inline double active_flops(const Routing& routing, std::span<const ExpertFacts> facts) {
    if (static_cast<Index>(facts.size()) != routing.num_experts())
        detail::fail("moe::active_flops: facts has ", facts.size(), " entries, there are ",
                     routing.num_experts(), " experts");
    double flops = 0;
    for (Index e = 0; e < routing.num_experts(); ++e)
        flops = std::fma(static_cast<double>(routing.tokens_of(e).size()),
                         facts[static_cast<std::size_t>(e)].flops_per_row, flops);
    return routing.num_tokens() == 0 ? 0 : flops / static_cast<double>(routing.num_tokens());
}

/// The same for a whole layer: router, routed experts and groups that see every token.
template <class Layer>
double active_flops(const Layer& layer, const Routing& routing) {
    return layer.head().flops_per_token() + layer.bank().shared_flops_per_token() +
           active_flops(routing, detail::elements(layer.head().facts()));
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_LOAD_HPP
