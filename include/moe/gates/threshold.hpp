// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_THRESHOLD_HPP
#define MOE_GATES_THRESHOLD_HPP

#include <cmath>

#include <moe/core/concepts.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class ThresholdModule;

/// Recipe for a gate that gives every token the experts whose scores exceed a threshold: as many as
/// there are, none included.
///
/// Source: the causal inference of MoMa (arXiv:2407.21770), whose small routers say of each expert
/// on its own, with a sigmoid, whether it is to work on a token; the defaults are those.
struct Threshold {
    double threshold = 0.5;  ///< finite; scores of exactly this do not exceed it
    Score score = Score::sigmoid;
    Index min_experts = 0;  ///< selected whatever their scores, 0 to E; 1: never nobody
    Index max_experts = 0;  ///< most experts per token, min_experts to E; 0: E

    Normalize normalize = Normalize::none;
    double epsilon = 1e-20;            ///< for add_epsilon and clamp
    bool normalize_kept_only = false;  ///< as in TopK
    double scale = 1;                  ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    ThresholdModule<S> build(const Shape& shape, Random&) const {
        return ThresholdModule<S>(*this, shape.num_experts);
    }
};

/// The gate that Threshold describes.
///
///     s_t = score(z_t)                              [L], z the logits
///     S_t = experts with s > threshold, in falling order of z_t, max_experts at most
///     w_t = scale * s_t[S_t] / normaliser
///
/// Ties go to the lower index. Scores are compared as numbers of type S, so that 0.6 and 0.6f are
/// the same. If fewer than min_experts exceed it, the best of z_t are taken. A token that nobody is
/// chosen for gets an output of 0 and sends no gradient. Experts at -inf are never
/// selected; a row of -inf routes nowhere. A score that is NaN counts as chosen, so that its
/// weights, all NaN, show in the output. Null experts may be chosen, are left out of normalisation,
/// and weigh 0.
template <class S>
class ThresholdModule : public TokenGate<S, ThresholdModule<S>> {
    using Base = TokenGate<S, ThresholdModule>;
    friend Base;

public:
    using Base::num_experts;

    ThresholdModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    ThresholdModule(const Threshold& settings, Index experts)
        : Base(experts),
          settings_(settings),
          most_(detail::checked_most(name, settings.max_experts, settings.min_experts, experts)),
          rule_(detail::combine_rule(settings, settings.score)) {
        if (!std::isfinite(settings.threshold))
            detail::fail(name, ": threshold is ", settings.threshold, ", it must be finite");
        rule_.check(name);
        if (settings.score == Score::softmax_of_selected)
            detail::fail(name,
                         ": score is softmax_of_selected, which is not known before the selection; "
                         "use softmax with Normalize::plain, the weights are the same");
        if (settings.min_experts < 0 || settings.min_experts > experts)
            detail::fail(name, ": min_experts is ", settings.min_experts, ", it must be in [0, ",
                         experts, "], the experts of the layer");
    }

    const Threshold& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::Threshold";

    Index most_experts() const { return most_; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>&, Index) const {
        return [this](Index, const S* z, S* values, detail::Ranked<S>* ranked) {
            const Index n = num_experts(), least = settings_.min_experts;
            const S* scores = values;
            detail::selection_scores(settings_.score, n, z, values);
            const auto limit = static_cast<S>(settings_.threshold);
            const Index found = detail::rank_where(
                n, z, most_, [&](Index e) { return !(scores[e] <= limit); }, values + n, ranked);
            return found >= least ? found : detail::rank_by_index(n, z, least, ranked);
        };
    }

    Threshold settings_;
    Index most_ = 0;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_THRESHOLD_HPP
