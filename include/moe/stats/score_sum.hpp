// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_SCORE_SUM_HPP
#define MOE_STATS_SCORE_SUM_HPP

#include <vector>

#include <Eigen/Core>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/score.hpp>
#include <moe/losses/loss.hpp>
#include <moe/stats/expert_mean.hpp>

namespace moe::inline MOE_ABI {

/// The mean score of each expert over many batches of one layer, of all experts and not only of
/// those that were selected.
///
///     mean(e) = mean over tokens (or, as published, sequences) of s(e),  s = softmax(logits) by
///     default
///
///     ScoreSum scores(layer.num_experts());
///     for (...) { layer.forward(x, y, ws, context);  scores.add(ws); }
///     scores.mean();   // [E]
///
/// A softmax has means that sum to 1. Padding, and tokens whose logits are all -inf, have no part
/// in it; a NaN among the logits shows in the means. Unlike mean_weight() it needs no trace.
///
/// Source: SEUF (arXiv:2411.18797), expert attribution.
class ScoreSum {
public:
    /// @param score  of each logit; not softmax_of_selected, which depends on a selection
    /// @param over   MeanOver::sequences needs Context::sequence_offsets in every batch
    /// @throws std::invalid_argument if num_experts is negative, or for another choice
    explicit ScoreSum(Index num_experts, Score score = Score::softmax,
                      MeanOver over = MeanOver::tokens)
        : score_(score), sum_(checked(num_experts), over) {
        detail::check_choice("moe::ScoreSum", "score", score, Score::relu);
        detail::check_choice("moe::ScoreSum", "over", over, MeanOver::sequences);
        if (score == Score::softmax_of_selected)
            detail::fail(
                "moe::ScoreSum: score is softmax_of_selected, which scores what was selected; take "
                "softmax, or mean_weight() of a trace");
    }

    /// Adds the tokens of a batch.
    /// @param logits  [T, E] of float or double
    /// @throws std::invalid_argument if they are not of E experts, or the context is not of them;
    ///         nothing is added then
    template <class X>
    void add(const Eigen::DenseBase<X>& logits, const Context& context = {}) {
        using S = typename X::Scalar;
        const Eigen::Ref<const Matrix<S>> z = detail::readable<S>(logits);
        const Index experts = num_experts();
        if (z.cols() != experts)
            detail::fail("moe::ScoreSum::add: logits are of ", z.cols(), " experts, the sum is of ",
                         experts);
        detail::check_extent("padding", context.padding.size(), z.rows(), "one per token");
        Buffer<S> buffer;
        S* scores = buffer.resize(experts).data();
        sum_.add(
            "moe::ScoreSum::add", context, z.rows(),
            [&](Index t) { return counts_in_losses(context, z, t); },
            [&](Index t, double* run) {
                detail::selection_scores(score_, experts, row_data(z, t), scores);
                for (Index e = 0; e < experts; ++e) run[e] += static_cast<double>(scores[e]);
            });
    }
    /// The batch that a workspace holds.
    /// @throws std::logic_error also if it holds none
    template <class S>
    void add(const Workspace<S>& ws) {
        add(ws.expert_logits(), ws.context());
    }

    /// [E]; 0 if nothing was added.
    std::vector<double> mean() const {
        std::vector<double> means;
        means.reserve(detail::at(num_experts()));
        for (Index e = 0; e < num_experts(); ++e) means.push_back(sum_.mean(e));
        return means;
    }
    /// Sequences or tokens that were added.
    Index count() const { return static_cast<Index>(sum_.count()); }
    Index num_experts() const { return sum_.num_experts(); }
    void clear() { sum_.clear(); }

private:
    static Index checked(Index num_experts) {
        if (num_experts < 0)
            detail::fail("moe::ScoreSum: num_experts is ", num_experts, ", it must be >= 0");
        return num_experts;
    }

    Score score_;
    detail::ExpertMean sum_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_SCORE_SUM_HPP
