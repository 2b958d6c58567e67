// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_COST_HPP
#define MOE_LOSSES_COST_HPP

#include <cmath>
#include <span>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/scores.hpp>

namespace moe::inline MOE_ABI {

/// What cost_loss() holds down, and how.
struct CostBudget {
    enum class Form {
        linear,  ///< C / budget: cheaper is better, always
        hinge,   ///< max(0, C / budget - 1)^2: nothing to gain below the budget
    };

    double budget = 0;  ///< what one assignment may cost in the mean, in units of the costs; > 0
    Form form = Form::linear;
    Scored scored = Scored::all;  ///< which experts of a token share its probability
    /// [E] finite and >= 0; empty: ExpertFacts::flops_per_row of the context
    std::span<const double> expert_costs{};
};

namespace detail {

template <class S>
void check_cost_budget(const LossInput<S>& in, const CostBudget& options) {
    constexpr const char* name = "moe::CostBudget";
    if (!(options.budget > 0 && std::isfinite(options.budget)))
        fail(name, ": budget is ", options.budget,
             ", it must be finite and > 0: the cost of an assignment that is to be afforded");
    check_choice(name, "form", options.form, CostBudget::Form::hinge);
    check_choice(name, "scored", options.scored, Scored::selected);
    in.check_experts("cost_loss");
    const Index experts = in.routing.num_experts();
    check_weights(name, "expert_costs", options.expert_costs, experts, "experts");
    if (options.expert_costs.empty() && static_cast<Index>(in.context.experts.size()) != experts)
        fail(name, ": expert_costs is empty, and the context's experts has ",
             in.context.experts.size(), " entries, there are ", experts,
             " experts; set expert_costs, or call cost_loss on the workspace of a layer, which "
             "knows what its experts cost");
}

/// Shares p of a token, 0 for what is not selected if only that counts; sum p cost.
template <class S>
struct TokenCost {
    const LossInput<S>& in;
    const KernelTable<S>& table;
    const S* costs;  // [L] over the budget
    S* p;            // [L]
    S* chosen;       // [L] room

    S of(Index token, Scored scored) const {
        const Index n = in.logits.cols();
        const S* z = in.row(token);
        if (scored == Scored::selected) {
            mask_unselected(in.routing, token, true, n, z, chosen);
            z = chosen;
        }
        table.softmax(n, z, p);
        return table.dot(n, p, costs);
    }
};

template <class S>
Loss cost_loss(const LossInput<S>& in, LossScratch<S>& scratch, const CostBudget& options) {
    in.check("cost_loss");
    check_cost_budget(in, options);
    const Index logits = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    if (tokens == 0) return {"cost", 0};
    const KernelTable<S>& table = kernels<S>();
    S* costs = scratch.fraction.resize(logits).data();
    for (Index l = 0; l < logits; ++l) {
        const double cost = options.expert_costs.empty() ? in.context.experts[at(l)].flops_per_row
                                                         : options.expert_costs[at(l)];
        costs[l] = static_cast<S>(cost / options.budget);
    }
    S* p = scratch.scores.resize(logits).data();
    S* slope = scratch.gradient.resize(logits).data();
    const TokenCost<S> cost{in, table, costs, p, slope};
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t)
        if (in.counts(t)) sum += static_cast<double>(cost.of(t, options.scored));
    const double ratio = sum / static_cast<double>(tokens);
    const bool is_hinge = options.form == CostBudget::Form::hinge;
    const double over = ratio <= 1 ? 0 : ratio - 1;  // NaN stays
    const Loss loss{"cost", is_hinge ? over * over : ratio};
    const double outer = is_hinge ? 2 * over : 1;
    if (in.weight == 0 || outer == 0) return loss;
    const S factor = static_cast<S>(in.weight * outer / static_cast<double>(tokens));
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        cost.of(t, options.scored);
        add_softmax_gradient(table, logits, factor, p, costs, slope, in.drow(t));
    }
    return loss;
}

}  // namespace detail

/// Pulls tokens towards cheap experts until the layer costs what it may.
///
///     C     = mean over tokens of sum_e p(e) cost(e)
///     value = C / budget                                      Form::linear
///           = max(0, C / budget - 1)^2                        Form::hinge
///     dz(e) = weight / T * value'(C) p(e) (cost(e) - sum_i p(i) cost(i))
///
/// p is the softmax of all logits, or of those that the token selected, dropped ones too; a token
/// without any has cost 0. So C is the expected cost of one assignment: of a token with k slots
/// about C k. For equal probabilities it is the mean cost. The linear form lies between the
/// cheapest and the dearest expert over the budget, and shifts costs by a factor only; the hinge is
/// 0 and has no gradient within the budget; a NaN shows in all of its gradient. Without costs, they
/// are the floating-point operations of a row, 0 for zero, null and copy experts: so easy tokens
/// learn to take those.
///
///     moe::cost_loss(ws, 0.01, {.budget = 2e6, .form = moe::CostBudget::Form::hinge});
///
/// @param logits   [T, E] clean logits: no noise, no selection bias
/// @param routing  of the same tokens; read for Scored::selected
/// @param context  padding; experts, which a layer fills, unless options.expert_costs is given
/// @param weight   times the value
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if an option is out of range or costs are not known; dlogits is as
///         it was then
/// Source: no paper has this form. Costs of free and full experts are those that MoE++
/// (arXiv:2410.07348) balances, the budget is that of Composition of Experts (arXiv:2412.01868).
template <class X, class Y>
Loss cost_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
               double weight, Y&& dlogits, const CostBudget& options) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::cost_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// cost_loss of the batch that `ws` holds.
template <class S>
Loss cost_loss(Workspace<S>& ws, double weight, const CostBudget& options) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::cost_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_COST_HPP
