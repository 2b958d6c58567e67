// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_MIN_P_HPP
#define MOE_GATES_MIN_P_HPP

#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/random.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class MinPModule;

/// Recipe for a gate that gives every token the experts that are at least so probable, compared
/// with its best one. Like TopP it takes few where the router is sure and many where it is not,
/// but whether an expert is taken depends on its distance from the best alone: how many others
/// there are, and how good, does not matter.
///
/// Source: the rule by which language models sample words (arXiv:2407.01082), here for experts; as
/// there, what is left is normalised.
struct MinP {
    double min_p = 0.1;     ///< 0 to 1; 0: all experts; 1: the best, and those equal to it
    Index max_experts = 0;  ///< most experts per token, 1 to E; 0: E

    Normalize normalize = Normalize::plain;
    double epsilon = 1e-20;            ///< for add_epsilon and clamp
    bool normalize_kept_only = false;  ///< as in TopK
    double scale = 1;                  ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    MinPModule<S> build(const Shape& shape, Random&) const {
        return MinPModule<S>(*this, shape.num_experts);
    }
};

/// The gate that MinP describes.
///
///     S_t = experts with p >= min_p * max p, in falling order of z_t     p_t = softmax(z_t)
///         = experts with z - max z >= log(min_p)                         z [L], the logits
///     w_t = scale * p_t[S_t] / normaliser
///
/// Decided in the second form, which needs no softmax, is right where probabilities underflow, and
/// does not notice a constant that is added to all logits; as numbers of type S.
///
/// Ties go to the lower index. Every token gets an expert, unless all are at -inf: those are never
/// selected. A logit that is NaN counts as chosen, so that its weights, all NaN, show in the
/// output; a logit of +inf, whose softmax is not defined, does that too. Null experts may be the
/// best, are left out of normalisation, and weigh 0.
template <class S>
class MinPModule : public TokenGate<S, MinPModule<S>> {
    using Base = TokenGate<S, MinPModule>;
    friend Base;

public:
    using Base::num_experts;

    MinPModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    MinPModule(const MinP& settings, Index experts)
        : Base(experts),
          settings_(settings),
          most_(detail::checked_most(name, settings.max_experts, 1, experts)),
          rule_(detail::combine_rule(settings, Score::softmax)) {
        if (!(settings.min_p >= 0 && settings.min_p <= 1))
            detail::fail(name, ": min_p is ", settings.min_p, ", it must be in [0, 1]");
        rule_.check(name);
        if (settings.min_p > 0) distance_ = static_cast<S>(detail::portable_log(settings.min_p));
    }

    const MinP& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::MinP";

    Index most_experts() const { return most_; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>&, Index) const {
        return [this](Index, const S* z, S* values, detail::Ranked<S>* ranked) {
            S best = -std::numeric_limits<S>::infinity();
            for (Index e = 0; e < num_experts(); ++e)
                if (z[e] > best) best = z[e];
            return detail::rank_where(
                num_experts(), z, most_, [&](Index e) { return !(z[e] - best < distance_); },
                values, ranked);
        };
    }

    MinP settings_;
    Index most_ = 0;
    S distance_ = -std::numeric_limits<S>::infinity();  // log(min_p)
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_MIN_P_HPP
