// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_HYBRID_ENTROPY_HPP
#define MOE_GATES_HYBRID_ENTROPY_HPP

#include <cmath>

#include <moe/core/concepts.hpp>
#include <moe/gates/mass_rule.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/tsallis_entropy.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class HybridEntropyModule;

/// Recipe for a gate that asks every expert where the router is at a loss, and is a top-p gate with
/// a floor of top-k elsewhere. Meant for many small experts, such as LoRA adapters, all of which a
/// token can afford now and then.
///
/// Source: DynMoLE (arXiv:2504.00661), whose code has these defaults. Its text normalises the
/// weights, its code does not: Normalize::plain for the former.
struct HybridEntropy {
    double p = 0.75;         ///< experts with a sum of probabilities up to p, see MassRule::below
    Index keep_top_k = 2;    ///< selected whatever the sum, 1 to E
    double threshold = 0.9;  ///< finite; a token whose normalised entropy exceeds it goes to all
    double entropy_index = 1.1;     ///< q of the Tsallis entropy, > 0; 1: Shannon's
    double entropy_epsilon = 1e-5;  ///< added to each probability for the entropy, >= 0

    Normalize normalize = Normalize::none;
    double epsilon = 1e-20;            ///< for add_epsilon and clamp
    bool normalize_kept_only = false;  ///< as in TopK
    double scale = 1;                  ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    HybridEntropyModule<S> build(const Shape& shape, Random&) const {
        return HybridEntropyModule<S>(*this, shape.num_experts);
    }
};

/// The gate that HybridEntropy describes.
///
///     s_t = softmax(z_t)                                              [L], z the logits
///     H_t = (1 - sum (s_t + eps)^q) / (1 - L^(1 - q))                 q = 1: Shannon's over log L
///     S_t = all experts                                               if H_t > threshold
///         = experts with a running sum <= p, and the keep_top_k best  else
///     w_t = scale * s_t[S_t] / normaliser
///
/// Slots are in falling order of z_t, ties go to the lower index; H is compared as a number of type
/// S. Experts at -inf are never selected, and L in H is the number of the others; a row of -inf
/// routes nowhere. A row that holds a NaN goes to all experts with NaN weights. Null experts count
/// towards entropy and sum, are left out of normalisation, and weigh 0.
///
/// context.dial.p and p_per_sequence replace p for a call.
template <class S>
class HybridEntropyModule : public TokenGate<S, HybridEntropyModule<S>> {
    using Base = TokenGate<S, HybridEntropyModule>;
    friend Base;

public:
    using Base::num_experts;
    static constexpr bool reads_p = true;

    HybridEntropyModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    HybridEntropyModule(const HybridEntropy& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_(detail::combine_rule(settings, Score::softmax)) {
        const HybridEntropy& s = settings_;
        detail::check_mass(name, "p", s.p);
        if (s.keep_top_k < 1 || s.keep_top_k > experts)
            detail::fail(name, ": keep_top_k is ", s.keep_top_k, ", it must be in [1, ", experts,
                         "], the experts of the layer");
        if (!std::isfinite(s.threshold))
            detail::fail(name, ": threshold is ", s.threshold, ", it must be finite");
        if (!(s.entropy_index > 0 && std::isfinite(s.entropy_index)))
            detail::fail(name, ": entropy_index is ", s.entropy_index,
                         ", it must be finite and > 0; 1 is Shannon's entropy");
        if (!(s.entropy_epsilon >= 0 && std::isfinite(s.entropy_epsilon)))
            detail::fail(name, ": entropy_epsilon is ", s.entropy_epsilon,
                         ", it must be finite and >= 0");
        rule_.check(name);
    }

    const HybridEntropy& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::HybridEntropy";

    Index most_experts() const { return num_experts(); }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, Index tokens) const {
        return [this, p = detail::dialled_mass(name, settings_.p, call.context, tokens)](
                   Index t, const S* z, S* values, detail::Ranked<S>* ranked) {
            const Index n = num_experts();
            kernels<S>().softmax(n, z, values);
            const auto entropy = static_cast<S>(detail::tsallis_entropy(
                n, z, values, settings_.entropy_index, settings_.entropy_epsilon));
            if (!(entropy <= static_cast<S>(settings_.threshold)))
                return detail::rank_by_index(n, z, n, ranked);
            return detail::rank_mass(n, z, p(t), MassRule::below, settings_.keep_top_k, n, values,
                                     ranked);
        };
    }

    HybridEntropy settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_HYBRID_ENTROPY_HPP
