// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_ANCHOR_HPP
#define MOE_LOSSES_ANCHOR_HPP

#include <cmath>
#include <span>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Where all tokens are drawn to: one expert, or shares of all.
struct Anchor {
    bool is_expert;
    Index expert = 0;
    std::span<const double> shares{};  // [L]

    double at(Index l) const {
        return is_expert ? (l == expert ? 1.0 : 0.0) : shares[detail::at(l)];
    }

    /// @throws std::invalid_argument unless it is one of `logits` experts or a distribution on them
    void check(Index logits) const {
        if (is_expert) {
            if (expert < 0 || expert >= logits)
                fail("moe::anchor_loss: expert is ", expert, ", it must be in [0, ", logits,
                     "), the logits of a token");
            return;
        }
        if (static_cast<Index>(shares.size()) != logits)
            fail("moe::anchor_loss: target has ", shares.size(), " entries, a token has ", logits,
                 " logits; give one share per expert");
        double sum = 0;
        for (const double share : shares) {
            if (!(share >= 0 && std::isfinite(share)))
                fail("moe::anchor_loss: an entry of target is ", share,
                     ", it must be finite and >= 0");
            sum += share;
        }
        if (!(std::abs(sum - 1) <= 1e-5))
            fail("moe::anchor_loss: target sums to ", sum, ", it must sum to 1; divide by the sum");
    }
};

template <class S>
Loss anchor_loss(const LossInput<S>& in, LossScratch<S>& scratch, const Anchor& anchor) {
    in.check("anchor_loss");
    const Index logits = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    anchor.check(logits);
    if (tokens == 0) return {"anchor", 0};
    const KernelTable<S>& table = kernels<S>();
    S* p = scratch.scores.resize(logits).data();
    S* slope = scratch.gradient.resize(logits).data();
    const S factor = static_cast<S>(2 * in.weight / static_cast<double>(tokens));
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        table.softmax(logits, in.row(t), p);
        for (Index l = 0; l < logits; ++l) slope[l] = p[l] - static_cast<S>(anchor.at(l));
        sum += static_cast<double>(table.dot(logits, slope, slope));
        if (in.weight == 0) continue;
        const S mean = table.dot(logits, p, slope);
        for (Index l = 0; l < logits; ++l) slope[l] = p[l] * (slope[l] - mean);
        table.axpy(logits, factor, slope, in.drow(t));
    }
    return {"anchor", sum / static_cast<double>(tokens)};
}

template <class X, class Y>
Loss anchor_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
                 const Anchor& anchor, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    const auto loss = [&anchor](const LossInput<S>& in, LossScratch<S>& scratch) {
        return anchor_loss(in, scratch, anchor);
    };
    return call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

template <class S>
Loss anchor_loss(Workspace<S>& ws, const Anchor& anchor, double weight) {
    const auto loss = [&anchor](const LossInput<S>& in, LossScratch<S>& scratch) {
        return anchor_loss(in, scratch, anchor);
    };
    return call_loss(loss, ws, weight);
}

}  // namespace detail

/// Holds the router where it is wanted while something else is trained: the squared distance of the
/// probabilities from one expert's, or from a given distribution. Unlearning trains one expert on
/// what it is to forget; without this the router would send such tokens elsewhere instead.
///
///     value = mean over tokens of sum_l (p(l) - a(l))^2,  p = softmax(z)
///     dz(l) = 2 weight / T * p(l) (p(l) - a(l) - sum_i p(i) (p(i) - a(i)))
///
/// a is 1 for the expert and 0 for others, or the target. The value lies in [0, 2]: 0 at the
/// anchor, (L - 1) / L for equal logits and one expert, 2 where another expert is certain. Unlike
/// label_loss() it has hardly a gradient there: it holds, it does not teach. An expert that is
/// masked (-inf) for a token has p = 0 there.
///
/// @param logits   [T, L]
/// @param routing  of the same tokens; its assignments are not read
/// @param expert   in [0, L)
/// @param weight   published: 1
/// @param dlogits  [T, L], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if there is no such expert; dlogits is as it was then
/// Source: SEUF, or UOE (arXiv:2411.18797), the anchor loss of the target expert.
template <class X, class Y>
Loss anchor_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
                 Index expert, double weight, Y&& dlogits) {
    return detail::anchor_loss(logits, routing, context, {true, expert}, weight,
                               std::forward<Y>(dlogits));
}

/// anchor_loss of the batch that `ws` holds.
template <class S>
Loss anchor_loss(Workspace<S>& ws, Index expert, double weight) {
    return detail::anchor_loss(ws, {true, expert}, weight);
}

/// The same with a target for all tokens.
/// @param target  [L] finite, >= 0, sums to 1
/// @throws std::invalid_argument if it is not that; dlogits is as it was then
template <class X, class Y>
Loss anchor_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
                 std::span<const double> target, double weight, Y&& dlogits) {
    return detail::anchor_loss(logits, routing, context, {false, 0, target}, weight,
                               std::forward<Y>(dlogits));
}

/// The same of the batch that `ws` holds.
template <class S>
Loss anchor_loss(Workspace<S>& ws, std::span<const double> target, double weight) {
    return detail::anchor_loss(ws, {false, 0, target}, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_ANCHOR_HPP
