// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_TOKEN_UNIFORMITY_HPP
#define MOE_LOSSES_TOKEN_UNIFORMITY_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <moe/core/sequences.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// Among which tokens token_uniformity_loss() has experts choose.
struct TokenUniformity {
    /// The mean of the values of the sequences (Mesh TensorFlow: of its groups), as experts choose
    /// with ExpertChoice::Scope::sequence; needs Context::sequence_offsets. Sequences without
    /// tokens that count are left out.
    bool per_sequence = false;
};

namespace detail {

/// Of the tokens [from, to), of which `tokens` count, at least one. Adds weight times its gradient.
template <class S>
double token_uniformity(const LossInput<S>& in, LossScratch<S>& scratch, Index from, Index to,
                        Index tokens, double weight) {
    const KernelTable<S>& table = kernels<S>();
    const Index experts = in.logits.cols();
    auto columns = scratch.scores.matrix(experts, tokens);  // of tokens that count
    double* served = scratch.load_sum.assign(tokens, 0).data();
    S* slope = scratch.gradient.resize(tokens).data();
    for (Index t = from, next = 0; t < to; ++t) {
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
    const auto all = static_cast<double>(tokens), choosing = static_cast<double>(live);
    double squares = 0;
    for (Index i = 0; i < tokens; ++i) {
        served[i] /= choosing;
        squares = std::fma(served[i], served[i], squares);
        slope[i] = static_cast<S>(2 * all / choosing * served[i]);
    }
    if (weight == 0) return all * squares;
    const auto factor = static_cast<S>(weight);
    for (Index e = 0; e < experts; ++e) {
        const S* p = row_data(columns, e);
        const S mean = table.dot(tokens, p, slope);
        for (Index t = from, next = 0; t < to; ++t) {
            if (!in.counts(t)) continue;
            S& dz = in.drow(t)[e];
            dz = std::fma(factor * p[next], slope[next] - mean, dz);
            ++next;
        }
    }
    return all * squares;
}

template <class S>
Loss token_uniformity_loss(const LossInput<S>& in, LossScratch<S>& scratch,
                           const TokenUniformity& options) {
    in.check("token_uniformity_loss");
    const Index rows = in.logits.rows();
    const Sequences runs = options.per_sequence
                               ? required_sequences("moe::TokenUniformity: per_sequence",
                                                    in.context.sequence_offsets, rows)
                               : Sequences{{}, rows};
    Index counted = 0;
    for (Index run = 0; run < runs.count(); ++run)
        counted += in.count(runs.first(run), runs.last(run)) > 0 ? 1 : 0;
    double sum = 0;
    for (Index run = 0; run < runs.count(); ++run)
        if (const Index tokens = in.count(runs.first(run), runs.last(run)); tokens > 0)
            sum += token_uniformity(in, scratch, runs.first(run), runs.last(run), tokens,
                                    in.weight / static_cast<double>(counted));
    return {"token_uniformity", counted == 0 ? 0 : sum / static_cast<double>(counted)};
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
/// Mesh TensorFlow writes it T mean(u^2 T_real) where T counts padding and T_real does not: the
/// same number. It is about the scores of ExpertChoice::Scores::softmax_over_tokens, whatever was
/// chosen.
///
/// @param logits   [T, E]
/// @param routing  of the same tokens; its assignments are not read
/// @param context  padding; sequence_offsets if options.per_sequence
/// @param weight   published: 1e-2
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if sequences are asked for and not given
/// Source: Mesh TensorFlow, expert selection gating; no paper describes it.
template <class X, class Y>
Loss token_uniformity_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                           const Context& context, double weight, Y&& dlogits,
                           const TokenUniformity& options = {}) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::token_uniformity_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// token_uniformity_loss of the batch that `ws` holds.
template <class S>
Loss token_uniformity_loss(Workspace<S>& ws, double weight, const TokenUniformity& options = {}) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::token_uniformity_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_TOKEN_UNIFORMITY_HPP
