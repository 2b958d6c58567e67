// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_MEMORY_HPP
#define MOE_STATS_MEMORY_HPP

#include <cstddef>
#include <string>
#include <string_view>

#include <moe/core/parameters.hpp>
#include <moe/core/workspace.hpp>
#include <moe/stats/format.hpp>

namespace moe::inline MOE_ABI {

/// Bytes a layer needs, known before they are spent.
struct MemoryBudget {
    Index parameters = 0;  ///< the layer's own
    Index packed = 0;      ///< what a frozen layer has packed
    Index routing = 0;     ///< workspace of the head: logits, plan; O(T (L + D) + N)
    Index experts = 0;     ///< workspace of the bank: row lists, and what groups keep; O(N F) with
                           ///< Keep::everything, else O(N) and a part of the rows at a time

    Index workspace() const { return routing + experts; }
    Index total() const { return parameters + packed + workspace(); }
};

/// What one call with `tokens` tokens and `assignments` assignments in all takes: forward, or
/// forward and backward unless `keep` is Keep::nothing. Inputs, outputs, parameter gradients and
/// what users' own parts allocate are not in it.
///
/// It adds up what the head and the bank say, who ask their parts for
/// `workspace_bytes(tokens, rows, keep, workers)`, and `bytes()` of what a router or a group has
/// packed. A part that does not say counts as 0.
/// @param workers  threads of the call
template <class Layer>
MemoryBudget memory_budget(const Layer& layer, Index tokens, Index assignments,
                           Keep keep = Keep::everything, int workers = 1) {
    const auto scalar = static_cast<Index>(sizeof(typename Layer::Scalar));
    MemoryBudget budget;
    const auto add = [&](std::string_view, const auto& matrix, Role) {
        budget.parameters += matrix.size() * scalar;
    };
    visit_parameters(layer.head(), add);
    visit_parameters(layer.bank(), add);
    const auto add_packed = [&budget](const auto& part) {
        if constexpr (requires { part.bytes(); }) budget.packed += part.bytes();
    };
    add_packed(layer.head().router());
    layer.bank().for_each_group([&](std::size_t, const auto& group) { add_packed(group); });

    budget.routing = layer.head().workspace_bytes(tokens, assignments, keep, workers);
    if (keep != Keep::nothing)
        budget.routing += (layer.head().weighs_input() ? 2 : 1) * assignments * scalar;
    budget.experts = layer.bank().workspace_bytes(tokens, assignments, keep, workers);
    return budget;
}

namespace detail {

/// "12.6 MB"
inline std::string bytes_text(Index count) {
    const char* units[] = {" B", " kB", " MB", " GB", " TB"};
    auto value = static_cast<double>(count);
    std::size_t unit = 0;
    for (; value >= 1000 && unit < 4; ++unit) value /= 1000;
    return (unit == 0 ? std::to_string(count) : fixed(value, 1)) + units[unit];
}

}  // namespace detail

/// One line: "parameters 12.6 MB + packed 0 B + workspace 1.2 MB = 13.8 MB".
inline std::string report(const MemoryBudget& budget) {
    return "parameters " + detail::bytes_text(budget.parameters) + " + packed " +
           detail::bytes_text(budget.packed) + " + workspace " +
           detail::bytes_text(budget.workspace()) + " = " + detail::bytes_text(budget.total());
}

/// One line, the workspace for each Keep: "everything 293 MB, recompute 96 MB, nothing 11 MB".
template <class Layer>
std::string report_keeps(const Layer& layer, Index tokens, Index assignments, int workers = 1) {
    const auto bytes = [&](Keep keep) {
        return detail::bytes_text(
            memory_budget(layer, tokens, assignments, keep, workers).workspace());
    };
    return "everything " + bytes(Keep::everything) + ", recompute " + bytes(Keep::recompute) +
           ", nothing " + bytes(Keep::nothing);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_MEMORY_HPP
