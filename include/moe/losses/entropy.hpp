// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_ENTROPY_HPP
#define MOE_LOSSES_ENTROPY_HPP

#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/log_softmax.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// -sum p log p of p = softmax(z), in nats; 0 log 0 is 0. NaN where the softmax is not defined.
/// @param z      [n] not -inf throughout
/// @param p      [n] written
/// @param log_p  [n] written; 0 where p is 0
template <class S>
S softmax_entropy(const KernelTable<S>& table, Index n, const S* z, S* p, S* log_p) {
    log_softmax(table, n, z, p, log_p);
    for (Index i = 0; i < n; ++i)
        if (p[i] == S(0)) log_p[i] = S(0);
    return -table.dot(n, p, log_p);
}

template <class S>
Loss entropy_loss(const LossInput<S>& in, LossScratch<S>& scratch) {
    in.check("entropy_loss");
    const Index logits = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    if (tokens == 0) return {"entropy", 0};
    const KernelTable<S>& table = kernels<S>();
    S* p = scratch.scores.resize(logits).data();
    S* slope = scratch.gradient.resize(logits).data();
    const S factor = static_cast<S>(-in.weight / static_cast<double>(tokens));
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        const S entropy = softmax_entropy(table, logits, in.row(t), p, slope);
        sum += static_cast<double>(entropy);
        if (in.weight == 0) continue;
        for (Index l = 0; l < logits; ++l) slope[l] = p[l] * (slope[l] + entropy);
        table.axpy(logits, factor, slope, in.drow(t));
    }
    return {"entropy", sum / static_cast<double>(tokens)};
}

}  // namespace detail

/// Makes the router decide: its Shannon entropy. A top-p gate under a balance loss alone learns
/// flat probabilities and takes many experts; this term keeps them few.
///
///     value = mean over tokens of H,  H = -sum_l p(l) log p(l),  p = softmax(z)
///     dz(l) = -weight / T * p(l) (log p(l) + H)
///
/// The value lies in [0, log L]: log L for equal logits, 0 for one expert.
///
/// @param logits   [T, L]
/// @param routing  of the same tokens; its assignments are not read
/// @param weight   published: 1e-4; a negative weight spreads the probabilities instead
/// @param dlogits  [T, L], **added** to
/// @return the value without `weight`; see Loss
/// Source: "Harder Tasks Need More Experts" (arXiv:2403.07652), section 3.
template <class X, class Y>
Loss entropy_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
                  double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    return detail::call_loss(detail::entropy_loss<S>, logits, routing, context, weight,
                             std::forward<Y>(dlogits));
}

/// entropy_loss of the batch that `ws` holds.
template <class S>
Loss entropy_loss(Workspace<S>& ws, double weight) {
    return detail::call_loss(detail::entropy_loss<S>, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_ENTROPY_HPP
