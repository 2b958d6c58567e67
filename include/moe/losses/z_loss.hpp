// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_Z_LOSS_HPP
#define MOE_LOSSES_Z_LOSS_HPP

#include <cmath>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

template <class S>
Loss z_loss(const LossInput<S>& in, LossScratch<S>& scratch) {
    in.check("z_loss");
    const Index logits = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    if (tokens == 0) return {"z_loss", 0};
    const KernelTable<S>& table = kernels<S>();
    S* scores = scratch.scores.resize(logits).data();
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        const double lse = static_cast<double>(table.log_sum_exp(logits, in.row(t)));
        sum = std::fma(lse, lse, sum);
        if (in.weight == 0) continue;
        table.softmax(logits, in.row(t), scores);
        const double factor = 2 * in.weight * lse / static_cast<double>(tokens);
        table.axpy(logits, static_cast<S>(factor), scores, in.drow(t));
    }
    return {"z_loss", sum / static_cast<double>(tokens)};
}

}  // namespace detail

/// Keeps router logits small.
///
///     value = mean over tokens of lse(z)^2,  lse(z) = log sum_l exp z(l)
///     dz(l) = 2 weight / T * lse(z) softmax(z)(l)
///
/// @param logits   [T, L] clean logits: no noise, no selection bias
/// @param routing  of the same tokens; its assignments are not read
/// @param weight   published: 1e-3 (ST-MoE, NLLB, Switch), 1e-4 (OpenMoE)
/// @param dlogits  [T, L], **added** to
/// @return the value without `weight`; see Loss
/// Source: ST-MoE (arXiv:2202.08906), the router z-loss.
template <class X, class Y>
Loss z_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
            double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    return detail::call_loss(detail::z_loss<S>, logits, routing, context, weight,
                             std::forward<Y>(dlogits));
}

/// z_loss of the batch that `ws` holds.
template <class S>
Loss z_loss(Workspace<S>& ws, double weight) {
    return detail::call_loss(detail::z_loss<S>, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_Z_LOSS_HPP
