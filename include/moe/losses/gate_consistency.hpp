// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_GATE_CONSISTENCY_HPP
#define MOE_LOSSES_GATE_CONSISTENCY_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/log_softmax.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// Two tokens of a batch that ought to be routed alike.
struct TokenPair {
    std::int32_t a = 0, b = 0;
    double weight = 1;  ///< finite and >= 0; see distance_weights()
};

/// Weights of pairs by how far their tokens are apart: softmax(-d) of d clamped to
/// [nearest, farthest], over pairs that compete, such as those of one ray in GNT-MOVE. They sum to
/// 1. A distance that is NaN counts as farthest.
/// @param distances  [n]
/// @param weights    [n] written; may be distances
/// @throws std::invalid_argument if extents differ or not 0 <= nearest <= farthest < infinity
inline void distance_weights(std::span<const double> distances, std::span<double> weights,
                             double nearest = 1e-2, double farthest = 1e4) {
    if (distances.size() != weights.size())
        detail::fail("moe::distance_weights: weights has ", weights.size(),
                     " entries, distances has ", distances.size(), "; give one for each");
    if (!(0 <= nearest && nearest <= farthest && std::isfinite(farthest)))
        detail::fail("moe::distance_weights: nearest is ", nearest, " and farthest ", farthest,
                     ", they must be finite, and 0 <= nearest <= farthest");
    double least = farthest, sum = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        weights[i] =
            std::isnan(distances[i]) ? farthest : std::clamp(distances[i], nearest, farthest);
        least = std::min(least, weights[i]);
    }
    for (double& weight : weights) sum += weight = std::exp(least - weight);
    for (double& weight : weights) weight /= sum;
}

namespace detail {

/// Pairs of tokens, checked against the logits.
struct TokenPairs {
    std::span<const TokenPair> values;

    template <class S>
    static bool counts(const LossInput<S>& in, const TokenPair& pair) {
        return in.counts(pair.a) && in.counts(pair.b);
    }

    /// @return pairs of which both tokens count
    template <class S>
    Index count(const LossInput<S>& in) const {
        constexpr S masked = -std::numeric_limits<S>::infinity();
        const Index tokens = in.logits.rows();
        Index count = 0;
        for (const TokenPair& pair : values) {
            if (pair.a < 0 || pair.a >= tokens || pair.b < 0 || pair.b >= tokens)
                fail("moe::gate_consistency_loss: a pair is of tokens ", pair.a, " and ", pair.b,
                     ", both must be in [0, ", tokens, "), the tokens of the batch");
            if (!(pair.weight >= 0 && std::isfinite(pair.weight)))
                fail("moe::gate_consistency_loss: the weight of a pair is ", pair.weight,
                     ", it must be finite and >= 0");
            if (!counts(in, pair)) continue;
            const S *za = in.row(pair.a), *zb = in.row(pair.b);
            for (Index l = 0; l < in.logits.cols(); ++l)
                if (za[l] == masked && zb[l] != masked)
                    fail("moe::gate_consistency_loss: expert ", l, " is masked for token ", pair.a,
                         " (its logit is -inf) and not for token ", pair.b,
                         " of a pair, so the loss is infinite; pair tokens that may go to the "
                         "same experts");
            ++count;
        }
        return count;
    }
};

template <class S>
Loss gate_consistency_loss(const LossInput<S>& in, LossScratch<S>& scratch,
                           const TokenPairs& pairs) {
    in.check("gate_consistency_loss");
    const Index logits = in.logits.cols(), count = pairs.count(in);
    if (count == 0) return {"gate_consistency", 0};
    const KernelTable<S>& table = kernels<S>();
    S* p = scratch.scores.resize(2 * logits).data();
    S* log_p = scratch.gradient.resize(2 * logits).data();
    S *q = p + logits, *log_q = log_p + logits;
    double sum = 0;
    for (const TokenPair& pair : pairs.values) {
        if (!TokenPairs::counts(in, pair)) continue;
        log_softmax(table, logits, in.row(pair.a), p, log_p);
        log_softmax(table, logits, in.row(pair.b), q, log_q);
        S* log_ratio = log_q;
        for (Index l = 0; l < logits; ++l) log_ratio[l] = q[l] == S(0) ? S(0) : log_q[l] - log_p[l];
        const S divergence = table.dot(logits, q, log_ratio);
        sum = std::fma(pair.weight, static_cast<double>(divergence), sum);
        const double factor = in.weight * pair.weight / static_cast<double>(count);
        if (factor == 0) continue;
        for (Index l = 0; l < logits; ++l) {
            p[l] -= q[l];
            q[l] *= log_ratio[l] - divergence;
        }
        table.axpy(logits, static_cast<S>(factor), p, in.drow(pair.a));
        table.axpy(logits, static_cast<S>(factor), q, in.drow(pair.b));
    }
    return {"gate_consistency", sum / static_cast<double>(count)};
}

}  // namespace detail

/// Routes tokens that belong together alike: in a renderer, neighbouring points of neighbouring
/// rays.
///
///     value   = mean over pairs of w D,  D = sum_l q(l) log(q(l) / p(l))
///     dz_a(l) = weight / n * w (p(l) - q(l))                       n: pairs that count
///     dz_b(l) = weight / n * w q(l) (log(q(l) / p(l)) - D)
///
/// p = softmax(z_a) and q = softmax(z_b) of each pair (a, b, w); D is KL(q || p). The value is 0
/// where both tokens of every pair have the same probabilities, and has no upper limit. Both sides
/// have a gradient, as in the released code; that takes the mean over experts as well, and 1e5
/// times it: weight = 1e5 / L. Pairs with a token that does not count (padding, a row of -inf) are
/// left out. An expert that is masked (-inf) for both or for b alone adds nothing to D.
///
/// @param logits   [T, L]
/// @param routing  of the same tokens; its assignments are not read
/// @param pairs    of tokens of the batch; may repeat tokens
/// @param weight   times the value
/// @param dlogits  [T, L], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if there is no such token, a weight is not finite and >= 0, or an
///         expert is masked for a and not for b. dlogits is as it was then
/// Source: GNT-MOVE (arXiv:2308.11793), consistency of routing, and its released code.
template <class X, class Y>
Loss gate_consistency_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                           const Context& context, std::span<const TokenPair> pairs, double weight,
                           Y&& dlogits) {
    using S = typename X::Scalar;
    const auto loss = [pairs](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::gate_consistency_loss(in, scratch, {pairs});
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// gate_consistency_loss of the batch that `ws` holds.
template <class S>
Loss gate_consistency_loss(Workspace<S>& ws, std::span<const TokenPair> pairs, double weight) {
    const auto loss = [pairs](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::gate_consistency_loss(in, scratch, {pairs});
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_GATE_CONSISTENCY_HPP
