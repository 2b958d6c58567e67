// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_TOKEN_UNIFORMITY_HPP
#define MOE_LOSSES_TOKEN_UNIFORMITY_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <moe/core/memory.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

template <class S>
Loss token_uniformity_loss(const LossInput<S>& in, LossScratch<S>& scratch) {
    in.check("token_uniformity_loss");
    const Index experts = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    if (tokens == 0) return {"token_uniformity", 0};
    const KernelTable<S>& table = kernels<S>();
    auto columns = scratch.scores.matrix(experts, tokens);       // of tokens that count
    double* served = scratch.load_sum.assign(tokens, 0).data();  // u(t)
    S* slope = scratch.gradient.resize(tokens).data();           // dvalue/dp, / weight
    for (Index t = 0, next = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        for (Index e = 0; e < experts; ++e) columns(e, next) = in.logits(t, e);
        ++next;
    }
    Index live = 0;
    for (Index e = 0; e < experts; ++e) {
        S* p = row_data(columns, e);
        bool is_live = false;
        for (Index i = 0; i < tokens; ++i)
            is_live = is_live || p[i] != -std::numeric_limits<S>::infinity();
        live += is_live ? 1 : 0;
        table.softmax(tokens, p, p);
        for (Index i = 0; i < tokens; ++i) served[i] += static_cast<double>(p[i]);
    }
    const auto all = static_cast<double>(tokens), chosen = static_cast<double>(live);
    double squares = 0;
    for (Index i = 0; i < tokens; ++i) {
        served[i] /= chosen;
        squares = std::fma(served[i], served[i], squares);
        slope[i] = static_cast<S>(2 * all / chosen * served[i]);
    }
    const Loss loss{"token_uniformity", all * squares};
    if (in.weight == 0) return loss;
    const auto weight = static_cast<S>(in.weight);
    for (Index e = 0; e < experts; ++e) {
        const S* p = row_data(columns, e);
        const S mean = table.dot(tokens, p, slope);
        for (Index t = 0, next = 0; t < in.logits.rows(); ++t) {
            if (!in.counts(t)) continue;
            S& dz = in.drow(t)[e];
            dz = std::fma(weight * p[next], slope[next] - mean, dz);
            ++next;
        }
    }
    return loss;
}

}  // namespace detail

/// Where experts choose tokens: has all tokens wanted equally, so that none is left without an
/// expert.
///
///     p(t, e) = softmax of z(., e) over the tokens,  u(t) = mean over experts of p(t, e)
///     value   = T sum_t u(t)^2
///     dz(t, e) = weight p(t, e) (g(t) - sum_s p(s, e) g(s)),  g = 2 T u / E
///
/// u sums to 1. The value is 1 where all tokens are served equally, u = 1 / T, and more otherwise:
/// T where one token is all that any expert wants. Tokens that do not count are left out of the
/// softmax and of T. A pair at -inf has p = 0; an expert that is masked for all tokens is left out
/// of the mean. Probabilities of all tokens depend on each other, so a NaN shows in all of them.
///
/// mesh-TensorFlow writes it T mean(u^2 T_real), per group, where T counts padding and T_real does
/// not: the same number. The value is about ExpertChoice::Scores::softmax_over_tokens with
/// Scope::batch, and depends on nothing that was chosen.
///
/// @param logits   [T, E]
/// @param routing  of the same tokens; its assignments are not read
/// @param weight   published: 1e-2
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// Source: mesh-TensorFlow, expert selection gating; no paper describes it.
template <class X, class Y>
Loss token_uniformity_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                           const Context& context, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    return detail::call_loss(detail::token_uniformity_loss<S>, logits, routing, context, weight,
                             std::forward<Y>(dlogits));
}

/// token_uniformity_loss of the batch that `ws` holds.
template <class S>
Loss token_uniformity_loss(Workspace<S>& ws, double weight) {
    return detail::call_loss(detail::token_uniformity_loss<S>, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_TOKEN_UNIFORMITY_HPP
