// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_GSHARD_TOP_2_HPP
#define MOE_GATES_GSHARD_TOP_2_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include <moe/core/concepts.hpp>
#include <moe/core/memory.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class GShardTop2Module;

/// Recipe for a gate that gives every token its best expert and, if it matters enough, the second:
/// the less a second expert would weigh, the more often it is spared.
///
/// Source: GShard (arXiv:2006.16668) algorithm 1, whose choices are the defaults.
struct GShardTop2 {
    /// Which second experts stay, with p the second's part of the softmax of the two logits.
    enum class Second {
        all,         ///< every one
        none,        ///< no one: top-1 that may weigh like top-2
        threshold,   ///< p > threshold
        random,      ///< U(0, 1) < p / threshold
        random_raw,  ///< the same with p the second's part of the softmax of all logits (NLLB)
    };

    Second second = Second::random;  ///< in training
    Second second_at_inference = Second::all;
    double threshold = 0.5;  ///< above 0; 0.5: stays if U(0, 1) < 2 p (GShard); 0.2 in mesh-TF
    /// Whether training chooses the second by logits + Gumbel samples (DeepSpeed; "sampling" in
    /// NLLB).
    bool gumbel = false;

    Score score = Score::softmax;  ///< softmax_of_selected in fastmoe
    Normalize normalize = Normalize::plain;
    double epsilon = 1e-9;             ///< for add_epsilon and clamp
    bool normalize_kept_only = false;  ///< whether the first alone weighs 1 (DeepSpeed) or s_1
    double scale = 1;                  ///< multiplies the weights at last
    /// Whether tokens with a Context::token_importance below 1 get their best expert only, those
    /// with 0 or less none (mesh-TF).
    bool by_importance = false;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    GShardTop2Module<S> build(const Shape& shape, Random&) const {
        return GShardTop2Module<S>(*this, shape.num_experts);
    }
};

/// The gate that GShardTop2 describes.
///
///     e_1 = argmax z                  [E] logits of a token
///     e_2 = argmax of z without e_1   in training by z + Gumbel samples, if told
///     s   = softmax(z), or of the two alone
///     w_i = scale * s_i / normaliser
///
/// A second expert that does not stay is Dropped::pruned: it keeps its slot in the token's list and
/// reaches no expert. It is no longer counted for capacity. With normalize_kept_only the first then
/// weighs 1, as if alone; without, s_1 / (s_1 + s_2). Weights come from the logits, without noise.
///
///     published gate           second (threshold)  gumbel  weights
///     GShard, algorithm 1      random (0.5)        no      plain
///     mesh-TF, lucidrains      random (0.2) (*)    no      add_epsilon 1e-9
///     DeepSpeed top2           all                 yes     clamp 1.2e-7, normalize_kept_only
///     NLLB (arXiv:2207.04672)  all, none, or       as set  clamp 1.2e-7, normalize_kept_only
///                              random_raw (0.5)            if so set
///     OpenMoE                  all                 no      none
///     fastmoe                  random (0.5)        no      softmax_of_selected
///
/// (*) and at inference. The first has the larger logit, so that p is at most 1/2.
///
/// Where NLLB's code normalises before it drops, its random rule overwrites the second's weight by
/// the raw score; here it stays normalised. Tokens of lower importance take the second slot in
/// mesh-TF and the first here.
///
/// Ties go to the lower index; -inf is never chosen, so that a row may get one expert or none. A
/// row that holds a NaN gets NaN weights. Null experts are left out of normalisation and weigh 0.
/// Context::noise: [1 or 2, T, E], Gumbel samples if `gumbel`, then uniform ones, read in the
/// column of the second, if the second is random.
template <class S>
class GShardTop2Module : public TokenGate<S, GShardTop2Module<S>> {
    using Base = TokenGate<S, GShardTop2Module>;
    friend Base;
    using Second = GShardTop2::Second;

public:
    using Base::num_experts;

    GShardTop2Module() = default;
    /// @throws std::invalid_argument if a setting is out of range
    GShardTop2Module(const GShardTop2& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_{.score = settings.score,
                .normalize = settings.normalize,
                .epsilon = settings.epsilon,
                .scale = settings.scale,
                .kept_only = settings.normalize_kept_only} {
        detail::check_choice(name, "second", settings.second, Second::random_raw);
        detail::check_choice(name, "second_at_inference", settings.second_at_inference,
                             Second::random_raw);
        if (!(settings.threshold > 0 && std::isfinite(settings.threshold)))
            detail::fail(name, ": threshold is ", settings.threshold,
                         ", it must be finite and > 0");
        rule_.check(name);
    }

    const GShardTop2& settings() const { return settings_; }

    /// Adds the assignments of every token, second experts that do not stay as pruned.
    /// @param logits  [T, E]
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        const Index before = routing.num_assignments();
        Base::select(logits, routing, call);
        const auto& chosen = call.ws.template state<State>().chosen;
        Index number = before;
        for (Index t = 0; t < logits.rows(); ++t) {
            if (chosen[t].is_pruned) routing.set_dropped(number + 1, Dropped::pruned);
            number += chosen[t].count;
        }
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        ws.template state<State>().chosen.resize(tokens);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               tokens * static_cast<Index>(sizeof(Chosen));
    }

private:
    static constexpr const char* name = "moe::GShardTop2";

    struct Chosen {
        std::int8_t count = 0;
        bool is_pruned = false;  ///< the second of two
    };
    struct State {
        Buffer<Chosen> chosen;  // [T]
    };

    Index most_experts() const { return std::min(num_experts(), Index(2)); }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, Index tokens) const {
        const Context& context = call.context;
        const Second second = context.training ? settings_.second : settings_.second_at_inference;
        const bool has_gumbel = context.training && settings_.gumbel;
        const bool has_uniform = second == Second::random || second == Second::random_raw;
        if (settings_.by_importance && tokens > 0 && context.token_importance.empty())
            detail::fail(name, ": token_importance is empty, by_importance wants one per token");
        std::optional<detail::Samples> samples;
        if (has_gumbel || has_uniform)
            samples.emplace(name, call, tokens, num_experts(), has_gumbel + has_uniform);
        Chosen* chosen = call.ws.template state<State>().chosen.resize(tokens).data();
        return [=, this, importance = context.token_importance](Index t, const S* z, S* values,
                                                                detail::Ranked<S>* ranked) {
            Index count = detail::rank_by_index(num_experts(), z, most(importance, t), ranked);
            if (count == 2 && has_gumbel) add_gumbel(z, *samples, t, values, ranked);
            const bool is_pruned =
                count == 2 && !stays(second, z, samples, t, has_gumbel, values, ranked);
            chosen[t] = {static_cast<std::int8_t>(count), is_pruned};
            return count;
        };
    }

    /// Experts that a token of this importance may get.
    Index most(std::span<const double> importance, Index t) const {
        if (!settings_.by_importance) return most_experts();
        const double value = importance[detail::at(t)];
        return value >= 1 ? most_experts() : value > 0 ? 1 : 0;
    }

    /// Replaces the second by the best of the others with noise.
    void add_gumbel(const S* z, const detail::Samples& samples, Index t, S* keys,
                    detail::Ranked<S>* ranked) const {
        constexpr S dead = -std::numeric_limits<S>::infinity();
        const detail::Ranked<S> first = ranked[0];
        for (Index e = 0; e < num_experts(); ++e)
            keys[e] = z[e] == dead || e == first.index
                          ? dead
                          : z[e] + static_cast<S>(samples.gumbel(t, e));
        detail::rank_by_index(num_experts(), keys, 1, ranked);
        ranked[1] = ranked[0];
        ranked[0] = first;
    }

    /// @param draw  of the uniform samples
    bool stays(Second second, const S* z, const std::optional<detail::Samples>& samples, Index t,
               std::uint32_t draw, S* values, const detail::Ranked<S>* ranked) const {
        if (second == Second::all || second == Second::none) return second == Second::all;
        const Index e = ranked[1].index;
        S part;
        if (second == Second::random_raw) {
            kernels<S>().softmax(num_experts(), z, values);
            part = values[e];
        } else {
            values[0] = z[ranked[0].index];
            values[1] = z[e];
            kernels<S>().softmax(2, values, values);
            part = values[1];
        }
        if (second == Second::threshold) return part > static_cast<S>(settings_.threshold);
        return samples->uniform(t, e, draw) < static_cast<double>(part) / settings_.threshold;
    }

    GShardTop2 settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_GSHARD_TOP_2_HPP
