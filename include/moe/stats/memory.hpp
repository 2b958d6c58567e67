// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_MEMORY_HPP
#define MOE_STATS_MEMORY_HPP

#include <string>

#include <moe/core/parameters.hpp>
#include <moe/core/workspace.hpp>
#include <moe/stats/format.hpp>

namespace moe::inline MOE_ABI {

/// Bytes a layer needs, known before they are spent.
struct MemoryBudget {
    Index parameters = 0;  ///< the layer's own
    Index packed = 0;      ///< panels of a frozen layer
    Index routing = 0;     ///< workspace: logits, plan, row lists; O(T L + N)
    Index experts = 0;     ///< workspace: what expert groups keep and use as scratch; O(N F)

    Index workspace() const { return routing + experts; }
    Index total() const { return parameters + packed + workspace(); }
};

/// What one call with `tokens` tokens and `assignments` assignments in all takes: forward, or
/// forward and backward if `keep` is Keep::everything. Inputs, outputs, parameter gradients and what
/// users' own parts allocate are not in it.
///
/// Groups answer through an optional `workspace_bytes(tokens, rows, keep, workers)`; one that does
/// not counts as 0.
/// @param workers  threads of the call
template <class Layer>
MemoryBudget memory_budget(const Layer& layer, Index tokens, Index assignments,
                           Keep keep = Keep::everything, int workers = 1) {
    using S = typename Layer::Scalar;
    const auto scalar = static_cast<Index>(sizeof(S));
    MemoryBudget budget;
    visit_parameters(layer.head(), [&](std::string_view, const auto& matrix, Role) {
        budget.parameters += matrix.size() * scalar;
    });
    visit_parameters(layer.bank(), [&](std::string_view, const auto& matrix, Role) {
        budget.parameters += matrix.size() * scalar;
    });
    const bool kept = keep == Keep::everything;
    const Index per_assignment = 2 * static_cast<Index>(sizeof(Assignment)) + 2 * 8 + 4 + 2 * 8 +
                                 (kept ? 6 : 2) * scalar;
    const Index per_token = 8 + 4 + 8 + 2 * scalar + (kept ? layer.model_dim() + 1 : 0) * scalar;
    budget.routing = tokens * (2 * layer.head().num_logits() * scalar + per_token) +
                     assignments * per_assignment;
    if constexpr (requires { layer.head().router().workspace_bytes(workers); })
        if (tokens > 0) budget.routing += layer.head().router().workspace_bytes(workers);
    layer.bank().for_each_group([&](std::size_t, const auto& group) {
        const Index rows = group.num_experts() > 0 ? assignments : tokens;
        if constexpr (requires { group.bytes(); }) budget.packed += group.bytes();
        if constexpr (requires { group.workspace_bytes(tokens, rows, keep, workers); })
            budget.experts += group.workspace_bytes(tokens, rows, keep, workers);
    });
    return budget;
}

/// One line: "parameters 12.6 MB + packed 0 B + workspace 1.2 MB = 13.8 MB".
inline std::string report(const MemoryBudget& budget) {
    const auto bytes = [](Index count) {
        const char* units[] = {" B", " kB", " MB", " GB", " TB"};
        auto value = static_cast<double>(count);
        std::size_t unit = 0;
        for (; value >= 1000 && unit < 4; ++unit) value /= 1000;
        return (unit == 0 ? std::to_string(count) : detail::fixed(value, 1)) + units[unit];
    };
    return "parameters " + bytes(budget.parameters) + " + packed " + bytes(budget.packed) +
           " + workspace " + bytes(budget.workspace()) + " = " + bytes(budget.total());
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_MEMORY_HPP
