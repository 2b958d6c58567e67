// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOP_K_HPP
#define MOE_GATES_TOP_K_HPP

#include <algorithm>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class TopKModule;

/// Recipe for a gate that gives every token its k best experts. The defaults are Mixtral's
/// (arXiv:2401.04088): softmax over all experts, the k best renormalised to sum 1.
struct TopK {
    Index k = 0;  ///< experts per token, 1 to E; required

    Score score = Score::softmax;
    Normalize normalize = Normalize::plain;
    /// For add_epsilon and clamp: 1e-20 in DeepSeek-V3, 1e-6 in LFM2 and XVERSE, 1e-12 in
    /// ERNIE-4.5.
    double epsilon = 1e-20;
    /// p of the norm that weights are divided by (DBRX), >= 1; 1: their sum.
    double norm_power = 1;
    /// Whether the weight is normalised where k = 1. Hugging Face's Qwen and Mixtral do (it becomes
    /// 1 and the router learns nothing from it), DeepSeek's code does not.
    bool normalize_single = true;
    /// Whether dropped assignments are left out of the sum and weigh 0 (DeepSpeed, NLLB) or keep
    /// their share of it (GShard).
    bool normalize_kept_only = false;
    /// Multiplies the weights at last: 2.5 in DeepSeek-V3, 16 in V2, 6 in LongCat.
    double scale = 1;
    bool ones = false;  ///< every weight is `scale`, whatever the scores (hash layers)
    /// With ones: backward takes the weights for those of the scores, so that the router learns
    /// although they are constant. Score::raw and Normalize::none: d(loss)/dz = d(loss)/dw
    /// (AdvMoE, arXiv:2308.10110); softmax: through it (FactorLLM, arXiv:2408.11855).
    bool straight_through = false;
    Placement placement = Placement::output;

    /// Whether the module has a bias [1, E] that is added to the scores for selection and does not
    /// weigh (DeepSeek-V3, arXiv:2408.15664). It starts at 0 and no gradient reaches it.
    bool selection_bias = false;
    /// Whether that bias is added to the logits instead of the scores (Megatron-LM's quantile
    /// balancing); the weights are scores as ever.
    bool biases_logits = false;

    /// Whether weights are made of score + bias, too, instead of the scores (SMoRA, with
    /// Score::sigmoid and scale = k: arXiv:2501.15103). Not for softmax_of_selected and
    /// biases_logits.
    bool weighs_bias = false;

    Index num_groups = 1;   ///< groups of consecutive experts; divides E (DeepSeek-V3: 8)
    Index groups_kept = 1;  ///< groups that a token may choose from (DeepSeek-V3: 4)
    GroupScore group_score = GroupScore::max;
    GroupMask group_mask = GroupMask::minus_infinity;

    TieBreak tie_break = TieBreak::lower_index;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    TopKModule<S> build(const Shape& shape, Random&) const {
        return TopKModule<S>(*this, shape.num_experts);
    }
};

/// The gate that TopK describes.
///
///     S_t = the k best of z_t                     [L] logits of token t
///         = the k best of score(z_t) + bias       with a selection bias, or as torch ranks
///         = the k best of z_t + bias              with TopK::biases_logits
///     w_t = scale * score(z_t)[S_t] / normaliser
///         = scale * (score(z_t) + bias)[S_t] / normaliser     with TopK::weighs_bias
///
/// Slots are in falling order of what was ranked. Experts at -inf are never selected: a row with
/// fewer than k others gets fewer, a row of -inf none. A row that holds a NaN gets NaN weights.
/// Null experts are selected, left out of normalisation, and weigh 0. Weights of Score::softmax
/// send a gradient to all L logits unless normalised plainly; others to the selected ones only.
///
/// TieBreak::torch_cpu ranks the scores of softmax, sigmoid and sqrt_softplus, as published code
/// does, where lower_index ranks logits: scores tie where logits do not, and a NaN makes a softmax
/// row one tie. What is selected is then torch's as far as its scores are rounded like ours.
///
/// context.dial.k and k_per_sequence replace k for a call. The group limit compares groups by
/// score + bias; where scores depend on the selection, logits stand for them.
template <class S>
class TopKModule : public TokenGate<S, TopKModule<S>> {
    using Base = TokenGate<S, TopKModule>;
    friend Base;

public:
    using Base::num_experts;
    static constexpr bool reads_k = true, fixed_count = true;

    TopKModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    TopKModule(const TopK& settings, Index experts)
        : Base(experts),
          settings_(settings),
          groups_{settings.num_groups, settings.groups_kept, settings.group_score,
                  settings.group_mask},
          rule_(detail::combine_rule(settings, settings.score)) {
        check_settings();
        if (settings.selection_bias) bias_ = Parameter<S>(1, experts);
    }

    const TopK& settings() const { return settings_; }
    /// [1, L] what selection adds to the scores; empty without TopK::selection_bias.
    const Parameter<S>& bias() const { return bias_; }
    Parameter<S>& bias() { return bias_; }

    /// bias, state, if there is one
    void visit_parameters(auto&& visit) {
        if (settings_.selection_bias) visit("bias", bias_, Role::state);
    }

private:
    static constexpr const char* name = "moe::TopK";

    void check_settings() const {
        const TopK& s = settings_;
        if (s.k < 1)
            detail::fail(name, ": k is ", s.k, ", it must be >= 1; set it: moe::TopK{.k = 2}");
        if (s.k > num_experts())
            detail::fail(
                name, ": k is ", s.k, " but the layer has ", num_experts(),
                num_experts() == 1 ? " expert" : " experts",
                "; give the experts a count, e.g. moe::Swiglu{.count = 8, ...}; shared experts "
                "do not count");
        if (s.biases_logits && !s.selection_bias)
            detail::fail(name,
                         ": biases_logits is set but there is no bias; set selection_bias too");
        if (s.weighs_bias && !s.selection_bias)
            detail::fail(name, ": weighs_bias is set but there is no bias; set selection_bias too");
        if (s.weighs_bias && (s.biases_logits || s.score == Score::softmax_of_selected))
            detail::fail(name,
                         ": weighs_bias is set, but the bias is one of logits; take a score that "
                         "does not depend on the selection, and not biases_logits");
        if (s.straight_through && !s.ones)
            detail::fail(name,
                         ": straight_through is set, but the weights are not ones; it is how "
                         "constant weights let a router learn: set ones, too");
        detail::check_choice(name, "group_score", s.group_score, GroupScore::top_sum);
        detail::check_choice(name, "group_mask", s.group_mask, GroupMask::zero);
        detail::check_choice(name, "tie_break", s.tie_break, TieBreak::torch_cpu_unsorted);
        if (s.num_groups < 1 || num_experts() % s.num_groups != 0)
            detail::fail(name, ": num_groups is ", s.num_groups, ", it must divide the ",
                         num_experts(), " experts of the layer");
        if (s.groups_kept < 1 || s.groups_kept > s.num_groups)
            detail::fail(name, ": groups_kept is ", s.groups_kept, ", it must be in [1, ",
                         s.num_groups, "]");
        if (s.k > most_experts())
            detail::fail(name, ": k is ", s.k, " but ", s.groups_kept, " of ", s.num_groups,
                         " groups hold ", most_experts(), " experts; keep more groups");
        rule_.check(name);
    }

    /// Experts that one token can get.
    Index most_experts() const {
        if (!groups_.is_active() || groups_.mask == GroupMask::zero) return num_experts();
        return num_experts() / groups_.num_groups * groups_.groups_kept;
    }

    detail::Dialled<Index> dialled_k(const Context& context, Index tokens) const {
        const auto k = detail::dialled<Index>(name, "dial.k_per_sequence",
                                              context.dial.k.value_or(settings_.k),
                                              context.dial.k_per_sequence, context, tokens);
        k.for_each("dial.k", "dial.k_per_sequence", [&](const char* field, Index value) {
            if (value < 1 || value > most_experts())
                detail::fail(name, ": ", field, " is ", value, ", it must be in [1, ",
                             most_experts(), "]");
        });
        return k;
    }

    detail::BiasedRule<S> rule() const {
        return {rule_, settings_.weighs_bias ? bias_.data() : nullptr};
    }

    auto choice(const Call<S>& call, Index tokens) const {
        return [this, &context = call.context, k = dialled_k(call.context, tokens)](
                   Index t, const S* z, S* values, detail::Ranked<S>* ranked) {
            const Index n = num_experts(), wanted = k(t);
            if (ranks_logits()) return detail::rank(n, z, wanted, settings_.tie_break, ranked);
            fill_scores(t, z, context, values);
            if (!groups_.is_active())
                return detail::rank(n, values, wanted, settings_.tie_break, ranked);
            const S* keys = ranks_logits_of_groups() ? z : values;
            return groups_.rank(n, wanted, values, keys, settings_.tie_break, values + n, ranked);
        };
    }

    /// Whether a token with `count` assignments is normalised.
    auto normalizes(const Context& context, Index tokens) const {
        return [k = dialled_k(context, tokens), single = settings_.normalize_single](
                   Index t, Index count) { return single || count > 1 || k(t) > 1; };
    }

    bool has_bias() const { return !bias_.empty(); }
    /// Scores rise with logits, so that the logits, which have fewer ties, can stand for them;
    /// not where torch's ties are wanted.
    bool scores_matter() const {
        const bool are_logits =
            settings_.score == Score::raw || settings_.score == Score::softmax_of_selected;
        return has_bias() || (settings_.tie_break != TieBreak::lower_index && !are_logits);
    }
    bool ranks_logits() const { return !scores_matter() && !groups_.is_active(); }
    /// Whether scores only say which groups are kept.
    bool ranks_logits_of_groups() const {
        return !scores_matter() && groups_.mask == GroupMask::minus_infinity;
    }

    /// [L] what groups are compared by, and experts if not by the logits.
    void fill_scores(Index t, const S* z, const Context& context, S* scores) const {
        constexpr S dead = -std::numeric_limits<S>::infinity();
        const Index n = num_experts();
        if (settings_.biases_logits ||
            (ranks_logits_of_groups() && groups_.score == GroupScore::max))
            std::copy_n(z, n, scores);
        else
            detail::selection_scores(settings_.score, n, z, scores);
        if (has_bias()) kernels<S>().axpy(n, S(1), bias_.data(), scores);
        if (!kernels<S>().is_finite(n, z))
            for (Index e = 0; e < n; ++e)
                if (z[e] == dead) scores[e] = dead;
        for (Index e = 0; e < n && context.forces(); ++e)
            if (scores[e] != dead && context.is_forced(t, e)) scores[e] = -dead;
    }

    TopK settings_;
    detail::GroupLimit groups_;
    detail::CombineRule rule_;
    Parameter<S> bias_;  // [1, L]
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOP_K_HPP
