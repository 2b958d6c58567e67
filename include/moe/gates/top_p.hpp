// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOP_P_HPP
#define MOE_GATES_TOP_P_HPP

#include <algorithm>
#include <cmath>

#include <moe/core/concepts.hpp>
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
    /// When to stop; c_j is the sum of the j largest probabilities of softmax(logits).
    enum class Rule {
        exceed,  ///< the fewest experts with c_j > p (Dynamic_MoE, arXiv:2403.07652)
        reach,   ///< the fewest experts with c_j >= p (Uni-MoE 2.0, arXiv:2511.12609)
        below,   ///< all experts with c_j <= p, the one that crosses p excluded (DynMoLE,
                 ///< arXiv:2504.00661)
    };

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
          most_(settings.max_experts == 0 ? experts : settings.max_experts),
          rule_{.score = Score::softmax,
                .normalize = settings.normalize,
                .epsilon = settings.epsilon,
                .scale = settings.scale,
                .kept_only = settings.normalize_kept_only,
                .placement = settings.placement} {
        check_settings();
    }

    const TopP& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::TopP";

    Index most_experts() const { return most_; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, Index tokens) const {
        return [this, p = dialled_p(call.context, tokens)](Index t, const S* z, S* values,
                                                           detail::Ranked<S>* ranked) {
            return choose(p(t), z, values, ranked);
        };
    }

    void check_settings() const {
        const TopP& s = settings_;
        check_p("p", s.p);
        detail::check_choice(name, "rule", s.rule, TopP::Rule::below);
        if (s.min_experts < 1 || s.min_experts > num_experts())
            detail::fail(name, ": min_experts is ", s.min_experts, ", it must be in [1, ",
                         num_experts(), "], the experts of the layer");
        if (s.max_experts != 0 && (s.max_experts < s.min_experts || s.max_experts > num_experts()))
            detail::fail(name, ": max_experts is ", s.max_experts, ", it must be in [",
                         s.min_experts, ", ", num_experts(), "], or 0 for all");
        rule_.check(name);
    }

    static void check_p(const char* field, double p) {
        if (std::isnan(p)) detail::fail(name, ": ", field, " is not a number");
    }

    detail::Dialled<double> dialled_p(const Context& context, Index tokens) const {
        const auto p = detail::dialled<double>(name, "dial.p_per_sequence",
                                               context.dial.p.value_or(settings_.p),
                                               context.dial.p_per_sequence, context, tokens);
        p.for_each("dial.p", "dial.p_per_sequence", check_p);
        return p;
    }

    Index choose(double p, const S* z, S* probabilities, detail::Ranked<S>* ranked) const {
        constexpr Index few = 16;  // most tokens stop early; ranking few is cheap
        const Index least = settings_.min_experts;
        // The first comparison keeps what no float can hold from the conversion.
        if (p >= 1 || static_cast<S>(p) >= 1)
            return detail::rank_by_index(num_experts(), z, most_, ranked);
        if (p <= 0) return detail::rank_by_index(num_experts(), z, least, ranked);
        kernels<S>().softmax(num_experts(), z, probabilities);
        for (Index tried = std::min(std::max(few, least), most_);;
             tried = std::min(4 * tried, most_)) {
            const Index found = detail::rank_by_index(num_experts(), z, tried, ranked);
            const Index count = prefix(found, static_cast<S>(p), probabilities, ranked);
            if (count < found || found < tried || tried == most_)
                return std::min(found, std::max(count, least));
        }
    }

    /// How many of the ranked experts the rule takes.
    Index prefix(Index found, S p, const S* probabilities, const detail::Ranked<S>* ranked) const {
        double sum = 0;
        for (Index j = 0; j < found; ++j) {
            sum += static_cast<double>(probabilities[ranked[j].index]);
            const auto c = static_cast<S>(sum);
            if (settings_.rule == TopP::Rule::exceed && c > p) return j + 1;
            if (settings_.rule == TopP::Rule::reach && c >= p) return j + 1;
            if (settings_.rule == TopP::Rule::below && !(c <= p)) return j;
        }
        return found;
    }

    TopP settings_;
    Index most_ = 0;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOP_P_HPP
