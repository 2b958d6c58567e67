// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_LOAD_BALANCE_HPP
#define MOE_LOSSES_LOAD_BALANCE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

#include <moe/gates/score.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/scores.hpp>

namespace moe::inline MOE_ABI {

/// Which load-balance loss. With T tokens that count, n(e) counted assignments of expert e, N their
/// sum, k = N / T, and s the scores:
struct LoadBalance {
    /// The value; then what it is at perfect balance (n and the summed scores equal for all e), and
    /// whose it is.
    enum class Norm {
        /// E sum_e f(e) P(e), f = n / T, P = mean over tokens of s. k: the number of slots, and 1
        /// with Slots::first. First slot: Switch, V-MoE, Tutel. All slots: Mixtral, Qwen, OLMoE,
        /// DBRX and gpt-oss in transformers, flaxformer, Hunyuan, Dynamic_MoE; Uni-MoE with
        /// Scored::selected.
        per_token,
        /// E^2 mean_e f(e) P(e): GShard's way to write per_token, the same number.
        gshard,
        /// E sum_e f(e) P(e), f = n / N, P as above. 1. Megatron, DeepSeek, DeepSpeed's top-k.
        per_assignment,
        /// E sum_e f(e) P(e), f = n / N, P = summed scores / N. 1 / k. FastMoE.
        all_per_assignment,
        /// sum_e f(e) P(e), f = n / T, P as in per_token. k / E. MoE++ (see expert_weights).
        unscaled,
    };
    /// Which assignments n(e) counts. A first slot that was dropped is still the first.
    enum class Slots { first, all };

    Norm norm = Norm::per_token;
    /// softmax (softmax_of_selected is the same: `scored` says of which), or sigmoid or
    /// sqrt_softplus divided by their sum (DeepSeek-V3, Megatron; 0 if that sum is 0). Not raw.
    Score score = Score::softmax;
    /// selected: Uni-MoE, whose gradient then goes to the selected experts only. A token that has
    /// selected none scores 0 for all.
    Scored scored = Scored::all;
    Slots slots = Slots::all;
    /// Count what was selected, and score it with Scored::selected; false: only what reaches its
    /// expert.
    bool count_dropped = true;
    /// The mean of the values of the sequences (DeepSeek-V2 and -V3, Megatron); needs
    /// Context::sequence_offsets. Sequences without tokens that count are left out.
    bool per_sequence = false;
    /// [E] instead of counting, f(e) is this: the fraction over all layers, ranks or accumulated
    /// batches, which LoadFraction adds up. Empty: count. Entries are finite and >= 0.
    std::span<const double> fraction{};
    /// [E] multiplies f(e), e.g. tau < 1 for zero-computation experts (MoE++). Empty: 1.
    /// Entries are finite and >= 0.
    std::span<const double> expert_weights{};
    /// [T] how much a token counts: the means over tokens are weighted means, T is the sum of the
    /// weights (Uni-MoE: 10 for tokens of answers). Empty: 1. Entries are finite and >= 0; if those
    /// of all tokens that count are 0, the value is.
    std::span<const double> token_weights{};

    /// The weight of one token.
    double token_weight(Index token) const {
        return token_weights.empty() ? 1 : token_weights[static_cast<std::size_t>(token)];
    }
};

namespace detail {

/// The factor in front of sum_e f(e) P(e), with f and P over the tokens of one segment.
struct BalanceScale {
    double per_load;   // f(e) = n(e) * per_load
    double per_score;  // P(e) = summed scores * per_score
    double total;      // value = total * sum_e f(e) P(e)
};

inline BalanceScale balance_scale(LoadBalance::Norm norm, Index experts, double tokens,
                                  double assignments) {
    using Norm = LoadBalance::Norm;
    const double e = static_cast<double>(experts), per_token = tokens == 0 ? 0 : 1 / tokens;
    const double per_assignment = assignments == 0 ? 0 : 1 / assignments;
    if (norm == Norm::per_assignment) return {per_assignment, per_token, e};
    if (norm == Norm::all_per_assignment) return {per_assignment, per_assignment, e};
    if (norm == Norm::unscaled) return {per_token, per_token, 1};
    return {per_token, per_token, e};  // gshard's E^2 / E is exact
}

/// n(e), N and T of the tokens [from, to).
/// @param counts  whether a token does
/// @param load    [E] added to
/// @return        T
template <class F>
double count_load(const Routing& routing, const LoadBalance& options, Index from, Index to,
                  F&& counts, double* load) {
    double tokens = 0;
    for (Index t = from; t < to; ++t) {
        if (!counts(t)) continue;
        const double weight = options.token_weight(t);
        tokens += weight;
        auto slots = routing.of(t);
        if (options.slots == LoadBalance::Slots::first)
            slots = slots.first(std::min<std::size_t>(slots.size(), 1));
        for (const Assignment& a : slots)
            if (a.dropped == Dropped::no || options.count_dropped) load[a.expert] += weight;
    }
    return tokens;
}

/// T of the tokens [from, to).
template <class S>
double count_tokens(const LossInput<S>& in, const LoadBalance& options, Index from, Index to) {
    double tokens = 0;
    for (Index t = from; t < to; ++t)
        if (in.counts(t)) tokens += options.token_weight(t);
    return tokens;
}

/// value_before + the value over the tokens [from, to), not all of weight 0; adds
/// share * d(value) to the gradient.
template <class S>
double load_balance(const LossInput<S>& in, LossScratch<S>& scratch, const LoadBalance& options,
                    Index from, Index to, double share, double value_before) {
    const KernelTable<S>& table = kernels<S>();
    const Index experts = in.logits.cols();
    const auto at = [](Index e) { return static_cast<std::size_t>(e); };

    double* load = scratch.load_sum.assign(2 * experts, 0.0).data();  // n(e), then f(e)
    double* score_sum = load + experts;
    const double tokens = count_load(
        in.routing, options, from, to, [&](Index t) { return in.counts(t); }, load);
    double assignments = 0;
    for (Index e = 0; e < experts; ++e) assignments += load[e];
    const BalanceScale scale = balance_scale(options.norm, experts, tokens, assignments);
    S* fraction = scratch.fraction.resize(experts).data();
    for (Index e = 0; e < experts; ++e) {
        load[e] = options.fraction.empty() ? load[e] * scale.per_load : options.fraction[at(e)];
        if (!options.expert_weights.empty()) load[e] *= options.expert_weights[at(e)];
        fraction[e] = static_cast<S>(load[e]);
    }

    S* s = scratch.scores.resize(2 * experts).data();
    S* slope = s + experts;
    S* gradient = scratch.gradient.resize(experts).data();
    const double factor = share * in.weight * scale.total * scale.per_score;
    for (Index t = from; t < to; ++t) {
        if (!in.counts(t)) continue;
        const S* z = in.row(t);
        if (options.scored == Scored::selected) {
            mask_unselected(in.routing, t, options.count_dropped, experts, z, slope);
            z = slope;
        }
        normalized_scores(table, options.score, experts, z, s, slope);
        const double weight = options.token_weight(t);
        for (Index e = 0; e < experts; ++e)
            score_sum[e] = std::fma(weight, static_cast<double>(s[e]), score_sum[e]);
        if (in.weight == 0) continue;
        const S mean = table.dot(experts, s, fraction);
        for (Index e = 0; e < experts; ++e) gradient[e] = s[e] * (fraction[e] - mean);
        if (!is_softmax(options.score))
            for (Index e = 0; e < experts; ++e) gradient[e] *= slope[e];
        table.axpy(experts, static_cast<S>(factor * weight), gradient, in.drow(t));
    }
    double sum = 0;
    for (Index e = 0; e < experts; ++e) sum = std::fma(load[e], score_sum[e], sum);
    return std::fma(scale.total * scale.per_score, sum, value_before);
}

/// What counting reads of the options.
inline void check_counting(const LoadBalance& options, Index tokens) {
    check_choice("moe::LoadBalance", "norm", options.norm, LoadBalance::Norm::unscaled);
    check_choice("moe::LoadBalance", "slots", options.slots, LoadBalance::Slots::all);
    check_weights("moe::LoadBalance", "token_weights", options.token_weights, tokens, "tokens");
}

template <class S>
void check_load_balance(const LossInput<S>& in, const LoadBalance& options) {
    in.check("load_balance_loss");
    const Index experts = in.routing.num_experts();
    in.check_experts("load_balance_loss");
    check_counting(options, in.logits.rows());
    check_choice("moe::LoadBalance", "score", options.score, Score::sqrt_softplus);
    check_choice("moe::LoadBalance", "scored", options.scored, Scored::selected);
    if (options.score == Score::raw)
        fail("moe::LoadBalance: score is raw, it must be softmax, sigmoid or sqrt_softplus");
    check_weights("moe::LoadBalance", "fraction", options.fraction, experts, "experts");
    check_weights("moe::LoadBalance", "expert_weights", options.expert_weights, experts, "experts");
    if (!options.per_sequence) return;
    required_sequences("moe::LoadBalance: per_sequence", in.context.sequence_offsets,
                       in.logits.rows());
    check_extent("padding", in.context.padding.size(), in.logits.rows(), "one per token");
}

template <class S>
Loss load_balance_loss(const LossInput<S>& in, LossScratch<S>& scratch,
                       const LoadBalance& options) {
    check_load_balance(in, options);
    const Index rows = in.logits.rows();
    if (!options.per_sequence) {
        if (count_tokens(in, options, 0, rows) == 0) return {"load_balance", 0};
        return {"load_balance", load_balance(in, scratch, options, 0, rows, 1, 0)};
    }
    const auto offsets = in.context.sequence_offsets;
    Index sequences = 0;
    for (std::size_t b = 1; b < offsets.size(); ++b)
        sequences += count_tokens(in, options, offsets[b - 1], offsets[b]) > 0 ? 1 : 0;
    double sum = 0;
    for (std::size_t b = 1; b < offsets.size(); ++b)
        if (count_tokens(in, options, offsets[b - 1], offsets[b]) > 0)
            sum = load_balance(in, scratch, options, offsets[b - 1], offsets[b],
                               1 / static_cast<double>(sequences), sum);
    return {"load_balance", sequences == 0 ? 0 : sum / static_cast<double>(sequences)};
}

}  // namespace detail

/// Pulls the router towards equal loads: the loss of Switch, GShard and most models since.
///
///     value = E sum_e f(e) P(e)
///     dz(e) = weight E / T * s(e) (f(e) - sum_j s(j) f(j)) * slope(e)
///
/// f is the share of the load, P the mean score; LoadBalance has the variants. slope is 1 for the
/// softmax and g'/g for s = g / sum g (1 - g for the sigmoid). f is a count and constant in the
/// gradient. The value may fall below its value at balance: it is small wherever the load and the
/// scores disagree.
///
///     load_balance_loss(ws, 0.01);                                         // Mixtral, all slots
///     load_balance_loss(ws, 0.01, {.slots = LoadBalance::Slots::first});   // Switch
///
/// transformers joins the layers of a model: f and P are means over the tokens of all of them. That
/// is a mean over layers of this loss with their common f, see LoadFraction.
///
/// @param logits   [T, E] clean logits: no noise, no selection bias
/// @param routing  of the same tokens: what was selected, e.g. before a bias or capacity if f is to
///                 be free of them (Megatron counts a plain top-k of the scores)
/// @param context  padding; sequence_offsets if options.per_sequence
/// @param weight   published: 1e-2 (Switch, OLMoE), 2e-2 (Mixtral), 1e-3 (Qwen), 1e-4 (DeepSeek-V3)
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// Source: Switch (arXiv:2101.03961), equations 4 to 6; GShard (arXiv:2006.16668), algorithm 1.
template <class X, class Y>
Loss load_balance_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                       const Context& context, double weight, Y&& dlogits,
                       const LoadBalance& options = {}) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::load_balance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// load_balance_loss of the batch that `ws` holds.
template <class S>
Loss load_balance_loss(Workspace<S>& ws, double weight, const LoadBalance& options = {}) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::load_balance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_LOAD_BALANCE_HPP
