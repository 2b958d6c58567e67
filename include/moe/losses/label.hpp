// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_LABEL_HPP
#define MOE_LOSSES_LABEL_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Labels of tokens, checked against the logits.
struct Labels {
    std::span<const std::int32_t> values;  // [T]

    Index of(Index token) const { return values[static_cast<std::size_t>(token)]; }
    template <class S>
    bool counts(const LossInput<S>& in, Index token) const {
        return of(token) >= 0 && in.counts(token);
    }

    /// @return tokens that count
    template <class S>
    Index count(const LossInput<S>& in) const {
        const Index tokens = in.logits.rows(), logits = in.logits.cols();
        if (static_cast<Index>(values.size()) != tokens)
            fail("moe::label_loss: labels has ", values.size(), " entries, logits has ", tokens,
                 " rows; give -1 to a token without a label");
        Index count = 0;
        for (Index t = 0; t < tokens; ++t) {
            if (!counts(in, t)) continue;
            if (of(t) >= logits)
                fail("moe::label_loss: labels[", t, "] is ", of(t), ", it must be below the ",
                     logits, " logits of a token, or negative for none");
            if (in.logits(t, of(t)) == -std::numeric_limits<S>::infinity())
                fail("moe::label_loss: labels[", t, "] is ", of(t),
                     ", but that expert is masked for the token (its logit is -inf), so the loss "
                     "is infinite; allow the expert, or give the token -1");
            ++count;
        }
        return count;
    }
};

template <class S>
Loss label_loss(const LossInput<S>& in, LossScratch<S>& scratch, const Labels& labels) {
    in.check("label_loss");
    const Index logits = in.logits.cols(), tokens = labels.count(in);
    if (tokens == 0) return {"label", 0};
    const KernelTable<S>& table = kernels<S>();
    S* p = scratch.scores.resize(logits).data();
    S* shifted = scratch.gradient.resize(logits).data();
    const S factor = static_cast<S>(in.weight / static_cast<double>(tokens));
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!labels.counts(in, t)) continue;
        const S* z = in.row(t);
        const Index label = labels.of(t);
        S most = -std::numeric_limits<S>::infinity();
        for (Index l = 0; l < logits; ++l) most = std::max(most, z[l]);
        for (Index l = 0; l < logits; ++l) shifted[l] = z[l] - most;
        sum += static_cast<double>(table.log_sum_exp(logits, shifted) - shifted[label]);
        if (in.weight == 0) continue;
        table.softmax(logits, z, p);
        p[label] -= S(1);
        table.axpy(logits, factor, p, in.drow(t));
    }
    return {"label", sum / static_cast<double>(tokens)};
}

}  // namespace detail

/// Teaches the router where tokens of a known kind belong: cross-entropy to given experts.
///
///     value = mean over labelled tokens of -log softmax(z_t)(label_t)
///     dz_t(l) = weight / n * (softmax(z_t)(l) - [l = label_t])      n: labelled tokens
///
/// The value is log L for equal logits and 0 where the label has all the probability. A token
/// without a label, padding, and a row of -inf have no part in it and do not count in n.
///
/// @param logits   [T, L]
/// @param routing  of the same tokens; its assignments are not read
/// @param labels   [T] the expert of each token; negative: it has none
/// @param weight   times the value
/// @param dlogits  [T, L], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if a label is not below L, or its expert is masked (-inf) in a row
///         where another is not: no gradient leads there. dlogits is as it was then
template <class X, class Y>
Loss label_loss(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
                std::span<const std::int32_t> labels, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    const auto loss = [labels](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::label_loss(in, scratch, {labels});
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// label_loss of the batch that `ws` holds.
template <class S>
Loss label_loss(Workspace<S>& ws, std::span<const std::int32_t> labels, double weight) {
    const auto loss = [labels](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::label_loss(in, scratch, {labels});
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_LABEL_HPP
