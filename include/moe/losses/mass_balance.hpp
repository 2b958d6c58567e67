// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_MASS_BALANCE_HPP
#define MOE_LOSSES_MASS_BALANCE_HPP

#include <algorithm>
#include <cmath>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/scores.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

template <class S>
Loss mass_balance_loss(const LossInput<S>& in, LossScratch<S>& scratch) {
    in.check("mass_balance_loss");
    in.check_experts("mass_balance_loss");
    const Index experts = in.logits.cols(), rows = in.logits.rows(), tokens = in.count(0, rows);
    if (tokens == 0) return {"mass_balance", 0};
    const KernelTable<S>& table = kernels<S>();
    double *mass = scratch.load_sum.assign(2 * experts, 0.0).data(), *score_sum = mass + experts;
    S *s = scratch.scores.resize(2 * experts).data(), *g = s + experts;
    for (Index t = 0; t < rows; ++t) {
        if (!in.counts(t)) continue;
        table.softmax(experts, in.row(t), s);
        for (Index e = 0; e < experts; ++e) score_sum[e] += static_cast<double>(s[e]);
        std::fill_n(g, experts, S(0));  // m
        for (const Assignment& a : in.routing.of(t)) g[a.expert] = S(1);
        for (Index e = 0; e < experts; ++e)
            if (g[e] != S(0)) mass[e] += static_cast<double>(s[e]);
    }
    const double share = 1 / static_cast<double>(tokens);
    double sum = 0;
    for (Index e = 0; e < experts; ++e) {
        mass[e] *= share;
        score_sum[e] *= share;
        sum = std::fma(mass[e], score_sum[e], sum);
    }
    const Loss loss{"mass_balance", static_cast<double>(experts) * sum};
    if (in.weight == 0) return loss;

    S* gradient = scratch.gradient.resize(experts).data();
    const auto factor = static_cast<S>(in.weight * static_cast<double>(experts) * share);
    for (Index t = 0; t < rows; ++t) {
        if (!in.counts(t)) continue;
        table.softmax(experts, in.row(t), s);
        for (Index e = 0; e < experts; ++e) g[e] = static_cast<S>(mass[e]);
        for (const Assignment& a : in.routing.of(t))
            g[a.expert] = static_cast<S>(mass[a.expert] + score_sum[a.expert]);
        add_softmax_gradient(table, experts, factor, s, g, gradient, in.drow(t));
    }
    return loss;
}

}  // namespace detail

/// Load balance whose load is the probability that goes to the selected experts, not their number:
/// it has a gradient of its own, so that the router can lower a load as well as a score.
///
///     value = E sum_e F(e) P(e),  s = softmax(z), m_t(e) = 1 if token t has selected e, else 0
///     F     = mean over tokens of m s,  P = mean over tokens of s
///     dz(e) = weight E / T * s(e) (g(e) - sum_j s(j) g(j)),  g(e) = F(e) + m(e) P(e)
///
/// At perfect balance the value is the mean probability of what a token selects: k / E for equal
/// logits, 1 if all are selected or the choice is sure. E if one expert gets everything. Padding
/// does not count; dropped assignments do. m is constant in the gradient. A NaN shows in the
/// gradients of other tokens, too, as all share F and P.
///
/// @param logits   [T, E]
/// @param routing  of the same tokens: what was selected
/// @param weight   published: 1e-3
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// Source: DynMoLE (arXiv:2504.00661), the auxiliary loss as released. Its other term, on the
/// Tsallis entropy, is not in it.
template <class X, class Y>
Loss mass_balance_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                       const Context& context, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    return detail::call_loss(detail::mass_balance_loss<S>, logits, routing, context, weight,
                             std::forward<Y>(dlogits));
}

/// mass_balance_loss of the batch that `ws` holds.
template <class S>
Loss mass_balance_loss(Workspace<S>& ws, double weight) {
    return detail::call_loss(detail::mass_balance_loss<S>, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_MASS_BALANCE_HPP
