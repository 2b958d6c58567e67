// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOP_P_HPP
#define MOE_GATES_TOP_P_HPP

#include <cmath>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/gates/mass_rule.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class TopPModule;

/// Recipe for a gate that gives every token as many experts as it takes to gather the probability
/// p: few where the router is sure, many where it is not.
///
/// Source: "Harder Tasks Need More Experts" (arXiv:2403.07652), whose code has these defaults.
struct TopP {
    using Rule = MassRule;  ///< exceed, reach or below

    /// 1 or more, rounded to the layer's scalar: all experts, without summing. 0 or less:
    /// min_experts.
    double p = 0.4;
    Rule rule = Rule::exceed;
    Index min_experts = 1;  ///< selected whatever the sum, 1 to E (DynMoLE: 2)
    Index max_experts = 0;  ///< most experts per token, min_experts to E; 0: E

    Normalize normalize = Normalize::none;
    double epsilon = 1e-20;            ///< for add_epsilon and clamp
    bool normalize_kept_only = false;  ///< as in TopK
    double scale = 1;                  ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    TopPModule<S> build(const Shape& shape, Random&) const {
        return TopPModule<S>(*this, shape.num_experts);
    }
};

/// The gate that TopP describes.
///
///     s_t = softmax(z_t)                            [L], z the logits
///     S_t = experts in falling order of z_t, as far as the rule goes
///     w_t = scale * s_t[S_t] / normaliser
///
/// Ties go to the lower index. Sums are compared with p as numbers of type S, so that 0.6 and 0.6f
/// are the same. If no sum gets over p, because of rounding, all experts are taken. Experts at -inf
/// are never selected; a row of -inf routes nowhere. A row that holds a NaN gets NaN weights and,
/// since no sum passes p, max_experts experts (min_experts with Rule::below). Null experts count
/// towards the sum, are left out of normalisation, and weigh 0.
///
/// context.dial.p and p_per_sequence replace p for a call.
template <class S>
class TopPModule : public TokenGate<S, TopPModule<S>> {
    using Base = TokenGate<S, TopPModule>;
    friend Base;

public:
    using Base::num_experts;
    static constexpr bool reads_p = true;

    TopPModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    TopPModule(const TopP& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_(detail::combine_rule(settings, Score::softmax)) {
        check_settings();
        most_ = detail::checked_most(name, settings.max_experts, settings.min_experts, experts);
    }

    const TopP& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::TopP";

    Index most_experts() const { return most_; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, Index tokens) const {
        return [this, p = detail::dialled_mass(name, settings_.p, call.context, tokens)](
                   Index t, const S* z, S* values, detail::Ranked<S>* ranked) {
            return detail::rank_mass(num_experts(), z, p(t), settings_.rule, settings_.min_experts,
                                     most_, values, ranked);
        };
    }

    void check_settings() const {
        const TopP& s = settings_;
        detail::check_mass(name, "p", s.p);
        detail::check_choice(name, "rule", s.rule, TopP::Rule::below);
        if (s.min_experts < 1 || s.min_experts > num_experts())
            detail::fail(name, ": min_experts is ", s.min_experts, ", it must be in [1, ",
                         num_experts(), "], the experts of the layer");
        rule_.check(name);
    }

    TopP settings_;
    Index most_ = 0;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOP_P_HPP
