// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_SECOND_PLACE_HPP
#define MOE_LOSSES_SECOND_PLACE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/scores.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

template <class S>
Loss second_place_loss(const LossInput<S>& in, LossScratch<S>& scratch) {
    in.check("second_place_loss");
    const Index experts = in.logits.cols(), rows = in.logits.rows(), tokens = in.count(0, rows);
    if (tokens == 0) return {"second_place", 0};
    const KernelTable<S>& table = kernels<S>();
    double *fraction = scratch.load_sum.assign(2 * experts, 0.0).data(),
           *score_sum = fraction + experts;
    const double share = 1 / static_cast<double>(tokens);
    std::int32_t best[2];
    for (Index t = 0; t < rows; ++t)
        if (in.counts(t) && table.top_k(experts, in.row(t), 2, best) == 2)
            fraction[best[1]] += share;

    S* f = scratch.fraction.resize(experts).data();
    for (Index e = 0; e < experts; ++e) f[e] = static_cast<S>(fraction[e]);
    S *s = scratch.scores.resize(experts).data(),
      *gradient = scratch.gradient.resize(experts).data();
    const double scale = static_cast<double>(experts) * share;
    const auto factor = static_cast<S>(in.weight * scale);
    for (Index t = 0; t < rows; ++t) {
        if (!in.counts(t)) continue;
        table.top_k(experts, in.row(t), 1, best);
        std::copy_n(in.row(t), experts, s);
        if (!std::isnan(s[best[0]])) s[best[0]] = -std::numeric_limits<S>::infinity();
        table.softmax(experts, s, s);
        for (Index e = 0; e < experts; ++e) score_sum[e] += static_cast<double>(s[e]);
        if (in.weight != 0)
            add_softmax_gradient(table, experts, factor, s, f, gradient, in.drow(t));
    }
    double sum = 0;
    for (Index e = 0; e < experts; ++e) sum = std::fma(fraction[e], score_sum[e], sum);
    return {"second_place", scale * sum};
}

}  // namespace detail

/// Balances second places, beside load_balance_loss on first ones: for gates that take two experts
/// per token, the second perhaps by chance, so that its loads do not say what was wanted.
///
///     value = E^2 mean over experts of f2(e) P2(e)
///     f2(e) = share of the tokens whose second-best logit is e's (of equal ones, the lower index)
///     P2    = mean over tokens of s2, the softmax over all logits but the best
///     dz(e) = weight E / T * s2(e) (f2(e) - sum_j s2(j) f2(j))
///
/// The value is 1 at perfect balance, E if one expert always comes second and has all of P2, and 0
/// with one expert. f2 is a count and constant in the gradient; the best logit has none. Mesh
/// TensorFlow adds 1e-9 to the sum that s2 is divided by. A token with one expert that is not
/// masked has no second place and counts in T. Padding does not count; the routing is not read, so
/// it does not matter what was dropped.
///
/// @param logits   [T, E]
/// @param routing  of the same tokens; its assignments are not read
/// @param weight   published: half that of the loss on first places
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// Source: Mesh TensorFlow, top-2 gating (GShard's, arXiv:2006.16668) with its second-place loss.
template <class X, class Y>
Loss second_place_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                       const Context& context, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    return detail::call_loss(detail::second_place_loss<S>, logits, routing, context, weight,
                             std::forward<Y>(dlogits));
}

/// second_place_loss of the batch that `ws` holds.
template <class S>
Loss second_place_loss(Workspace<S>& ws, double weight) {
    return detail::call_loss(detail::second_place_loss<S>, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_SECOND_PLACE_HPP
