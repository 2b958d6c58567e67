// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_ROUTER_HPP
#define MOE_STATS_ROUTER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <Eigen/Core>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/entropy.hpp>

namespace moe::inline MOE_ABI {

/// How sure the router is. Means over no tokens are 0.
struct RouterStats {
    /// Mean of -sum p log p, p = softmax(logits), in nats: 0 to log L. Over tokens whose softmax is
    /// defined: no NaN, no +inf, not all -inf.
    double entropy = 0;
    /// Mean distance of the lowest selected logit to the highest that was not selected. Negative
    /// where something else than the logits decided: a selection bias, noise, groups. Over tokens
    /// where both are finite; 0 if logits are not one per expert.
    double margin = 0;
    /// Tokens with a NaN or +inf among their logits, whose softmax is NaN, of all.
    double nan_fraction = 0;
    /// Mean sum of weight * input_weight of assignments that are not dropped, over tokens with any;
    /// NaN if one of them is.
    double weight_sum = 0;
    /// Assignments to null experts, of those that are not dropped.
    double null_fraction = 0;
};

namespace detail {

/// The margin of one token; NaN or infinite if it has none.
/// @param is_selected  [E] all 0 on entry and on return
template <class S>
double selection_margin(const S* logits, std::span<const Assignment> slots,
                        std::vector<char>& is_selected) {
    S lowest = std::numeric_limits<S>::infinity(), highest = -lowest;
    for (const Assignment& a : slots) {
        is_selected[static_cast<std::size_t>(a.expert)] = 1;
        lowest = std::min(lowest, logits[a.expert]);
    }
    for (std::size_t e = 0; e < is_selected.size(); ++e)
        if (!is_selected[e]) highest = std::max(highest, logits[e]);
    for (const Assignment& a : slots) is_selected[static_cast<std::size_t>(a.expert)] = 0;
    return static_cast<double>(lowest) - static_cast<double>(highest);
}

inline double mean_or_zero(double sum, Index count) {
    return count == 0 ? 0 : sum / static_cast<double>(count);
}

}  // namespace detail

/// Measures one batch. Cost: a softmax of every row and O(T E + N).
///
/// @param logits   [T, L] of float or double, row-major
/// @param routing  of the same tokens; dropped assignments count as selected in the margin only
/// @param facts    [E] says which experts are null; empty: none is
/// @throws std::invalid_argument if extents differ
template <class X>
RouterStats router_stats(const Eigen::DenseBase<X>& logits, const Routing& routing,
                         std::span<const ExpertFacts> facts = {}) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> z = detail::readable<S>(logits);
    const Index tokens = z.rows(), cols = z.cols();
    if (routing.num_tokens() != tokens)
        detail::fail("moe::router_stats: the routing is for ", routing.num_tokens(),
                     " tokens, logits has ", tokens, " rows");
    if (!facts.empty() && static_cast<Index>(facts.size()) != routing.num_experts())
        detail::fail("moe::router_stats: facts has ", facts.size(), " entries, there are ",
                     routing.num_experts(), " experts");
    const bool is_per_expert = cols == routing.num_experts();

    Buffer<S> scratch;
    S* p = scratch.resize(detail::checked_product(2, cols)).data();
    std::vector<char> is_selected(static_cast<std::size_t>(routing.num_experts()));
    double entropy = 0, margin = 0, weights = 0;
    Index scored = 0, with_margin = 0, with_nan = 0, weighted = 0, null = 0;
    for (Index t = 0; t < tokens; ++t) {
        const S* row = row_data(z, t);
        const bool has_nan = std::any_of(row, row + cols, [](S x) { return std::isnan(x); });
        const bool is_undefined =
            has_nan || std::find(row, row + cols, std::numeric_limits<S>::infinity()) != row + cols;
        with_nan += is_undefined ? 1 : 0;
        const bool has_any = std::any_of(row, row + cols, [](S x) { return std::isfinite(x); });
        if (!is_undefined && has_any) {
            entropy +=
                static_cast<double>(detail::softmax_entropy(kernels<S>(), cols, row, p, p + cols));
            ++scored;
        }
        const auto slots = routing.of(t);
        if (!has_nan && is_per_expert) {
            const double distance = detail::selection_margin(row, slots, is_selected);
            if (std::isfinite(distance)) {
                margin += distance;
                ++with_margin;
            }
        }
        bool has_weight = false;
        for (const Assignment& a : slots) {
            if (a.dropped != Dropped::no) continue;
            has_weight = true;
            weights = std::fma(a.weight, a.input_weight, weights);
            null += !facts.empty() && facts[static_cast<std::size_t>(a.expert)].is_null ? 1 : 0;
        }
        weighted += has_weight ? 1 : 0;
    }
    return {.entropy = detail::mean_or_zero(entropy, scored),
            .margin = detail::mean_or_zero(margin, with_margin),
            .nan_fraction = detail::mean_or_zero(static_cast<double>(with_nan), tokens),
            .weight_sum = detail::mean_or_zero(weights, weighted),
            .null_fraction = detail::mean_or_zero(static_cast<double>(null), routing.num_kept())};
}

/// Of the batch that `ws` holds; of the experts' own logits, where they have some.
/// @throws std::logic_error if it holds none
template <class S>
RouterStats router_stats(const Workspace<S>& ws) {
    const auto own = ws.expert_logits();
    return router_stats(own.cols() > 0 ? own : ws.logits(), ws.routing(), ws.context().experts);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_ROUTER_HPP
