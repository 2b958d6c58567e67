// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_SWITCH_DIT_PRIOR_HPP
#define MOE_LOSSES_SWITCH_DIT_PRIOR_HPP

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <moe/core/assignment.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>

namespace moe::inline MOE_ABI {

/// Which experts a task of a diffusion model, a range of noise, is to use: a window that moves over
/// the C = layers * experts experts of all layers as tasks go on, slowly at first.
///
///     row i is 1 for k * layers columns from round((i / (tasks - 1))^exponent (C - k * layers))
///
/// and 0 elsewhere; halves are rounded to even. So neighbouring tasks share experts, and late ones
/// less than early ones. A single task has the first window.
/// @return [tasks, C]
/// @throws std::invalid_argument unless tasks and layers >= 1, k is in [1, experts], and exponent
///         is finite and > 0
/// Source: Switch-DiT (arXiv:2403.09176) and its released code, which has exponent 4.
inline Matrix<double> switch_dit_prior(Index tasks, Index layers, Index experts, Index k,
                                       double exponent = 4) {
    if (tasks < 1 || layers < 1)
        detail::fail("moe::switch_dit_prior: tasks is ", tasks, " and layers ", layers,
                     ", both must be >= 1");
    if (k < 1 || k > experts)
        detail::fail("moe::switch_dit_prior: k is ", k, ", it must be in [1, ", experts,
                     "], the experts of a layer");
    if (!(exponent > 0 && std::isfinite(exponent)))
        detail::fail("moe::switch_dit_prior: exponent is ", exponent,
                     ", it must be finite and > 0; 4 is usual");
    const Index columns = detail::checked_product(layers, experts), window = layers * k;
    detail::checked_product(tasks, columns);
    Matrix<double> prior(tasks, columns);
    std::fill_n(prior.data(), prior.size(), 0.0);
    for (Index task = 0; task < tasks; ++task) {
        const double position =
            tasks == 1 ? 0 : static_cast<double>(task) / static_cast<double>(tasks - 1);
        const auto first = static_cast<Index>(
            std::nearbyint(std::pow(position, exponent) * static_cast<double>(columns - window)));
        std::fill_n(row_data(prior, task) + first, window, 1.0);
    }
    return prior;
}

/// Writes 1 where a token selected an expert, dropped or not, and 0 elsewhere.
///
///     moe::selection_mask(ws.routing(), masks.middleCols(layer * experts, experts));
///
/// @param mask  [T, E]
/// @throws std::invalid_argument if it has other extents than the routing
template <class Y>
void selection_mask(const Routing& routing, Y&& mask) {
    Eigen::Ref<Matrix<double>> out = detail::writable<double>(std::forward<Y>(mask));
    if (out.rows() != routing.num_tokens() || out.cols() != routing.num_experts())
        detail::fail("moe::selection_mask: mask is [", out.rows(), ", ", out.cols(),
                     "], the routing is for ", routing.num_tokens(), " tokens and ",
                     routing.num_experts(), " experts");
    for (Index t = 0; t < out.rows(); ++t) {
        std::fill_n(row_data(out, t), out.cols(), 0.0);
        for (const Assignment& a : routing.of(t)) out(t, a.expert) = 1;
    }
}

/// Finds the column of a prior for each column of selection masks, each for one, so that the sum of
/// all |masks - matched prior| is the least there is: experts are interchangeable, and nobody need
/// learn another place in the prior than the one that he is nearest to.
///
/// O(rows C^2 + C^3). Where several matchings are as good, which one is returned depends on masks
/// and prior only; the released code shuffles the columns before, and so may a caller.
/// @param masks  [tasks, C] for every task what its token selects in every layer
/// @param prior  [tasks, C] switch_dit_prior()
/// @return       [C] column of prior for each column of masks
/// @throws std::invalid_argument if extents differ or an entry is not finite
/// Source: Switch-DiT (arXiv:2403.09176), the released code.
inline std::vector<Index> match_columns(In<double> masks, In<double> prior) {
    if (masks.rows() != prior.rows() || masks.cols() != prior.cols())
        detail::fail("moe::match_columns: masks is [", masks.rows(), ", ", masks.cols(),
                     "], prior is [", prior.rows(), ", ", prior.cols(),
                     "]; they must have a row for each task and a column for each expert");
    const Index columns = masks.cols();
    std::vector<double> cost(detail::at(detail::checked_product(columns, columns)), 0.0);
    for (Index task = 0; task < masks.rows(); ++task)
        for (Index i = 0; i < columns; ++i)
            for (Index j = 0; j < columns; ++j)
                cost[detail::at(i * columns + j)] += std::abs(masks(task, i) - prior(task, j));
    for (const double sum : cost)
        if (!std::isfinite(sum))
            detail::fail(
                "moe::match_columns: masks or prior has an entry that is not finite, or "
                "their sum is not; all must be, and masks are 0 or 1");
    std::vector<Index> match(detail::at(columns));
    detail::least_cost_assignment(columns, cost.data(), match.data());
    return match;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_SWITCH_DIT_PRIOR_HPP
