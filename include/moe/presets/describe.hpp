// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_DESCRIBE_HPP
#define MOE_PRESETS_DESCRIBE_HPP

#include <string>

#include <moe/core/error.hpp>
#include <moe/core/shape.hpp>
#include <moe/core/types.hpp>
#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/glu.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/presets/description.hpp>
#include <moe/presets/words.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/residual.hpp>

// describe() of the recipes that published models are made of. Each takes its recipe apart with a
// structured binding of exactly its members: a recipe that gets another one does not compile here
// until that is described, too.

namespace moe::inline MOE_ABI {
namespace detail {

/// What is described of a part that has no describe() of its own.
/// @param role  "router"
template <class Part>
void describe_part(const Part& part, const char* role, Description& to) {
    if constexpr (requires { describe(part, to); })
        describe(part, to);
    else
        to.name = std::string("your ") + role;
}

/// Normalize, its epsilon and the power of its norm, in one phrase.
inline void describe_normalize(Description& to, Normalize normalize, double epsilon,
                               double norm_power = 1) {
    const bool any = normalize != Normalize::none, adds = normalize == Normalize::add_epsilon;
    std::string phrase = "normalize ";
    phrase += !any              ? std::string("none")
              : norm_power == 1 ? std::string("sum")
                                : "norm of power " + text(norm_power);
    if (adds) phrase += " + " + text(epsilon);
    if (normalize == Normalize::clamp) phrase += ", at least " + text(epsilon);
    to.rule("normalize", word(normalize)).phrase = phrase;
    to.rule("epsilon", epsilon, false, adds || normalize == Normalize::clamp);
    to.rule("norm_power", norm_power, false, any);
}

/// @param name  of the limit: "limit"
inline void describe_limit(Description& to, const std::string& name, const CapacityLimit& limit,
                           bool given = true) {
    const auto& [factor, k, per_expert, divides_last, rounding, whole_share, minimum, multiple_of,
                 computing_share] = limit;
    const CapacityLimit usual;
    const bool constant = factor == 0;
    const auto of = [&name](const char* setting) { return name + "." + setting; };
    to.rule(of("factor"), factor, !constant, given);
    to.rule(of("k"), k, k != usual.k, given && !constant);
    to.rule(of("per_expert"), per_expert, per_expert != usual.per_expert, given && !constant);
    to.rule(of("divides_last"), divides_last, divides_last != usual.divides_last,
            given && !constant);
    to.rule(of("rounding"), word(rounding), rounding != usual.rounding, given && !constant);
    to.rule(of("whole_share"), whole_share, whole_share != usual.whole_share, given && !constant);
    Description::Setting& least =
        to.rule(of("minimum"), minimum, constant || minimum != usual.minimum, given);
    if (constant && given) least.phrase = name + " " + text(minimum);
    to.rule(of("multiple_of"), multiple_of, multiple_of != usual.multiple_of, given);
    to.rule(of("computing_share"), computing_share, computing_share != usual.computing_share,
            given && !constant);
}

/// That of experts that have no rules.
inline void describe_count(Description& to, const char* name, Index count) {
    to.name = name;
    to.dimension("count", count);
}

}  // namespace detail

inline void describe(const Config& config, Description& to) {
    const auto& [model_dim, output_dim, input_scale, seed] = config;
    static_cast<void>(seed);  // keys random numbers
    to.rule("input_scale", input_scale, input_scale != Config{}.input_scale);
    to.dimension("model_dim", model_dim);
    to.dimension("output_dim", output_dim, output_dim != 0);
}

// Routers

inline void describe(const LinearRouter& recipe, Description& to) {
    const auto& [bias] = recipe;
    to.name = "LinearRouter";
    to.rule("bias", bias, bias);
}

inline void describe(const MlpRouter& recipe, Description& to) {
    const auto& [hidden_dim, activation, bias] = recipe;
    to.name = "MlpRouter";
    to.rule("activation", detail::word(activation));
    to.rule("bias", bias, bias);
    to.dimension("hidden_dim", hidden_dim, hidden_dim != 0);
}

template <class Inner>
void describe(const GatingResidual<Inner>& recipe, Description& to) {
    const auto& [inner, target_std, place] = recipe;
    detail::describe_part(inner, "router", to);
    to.name = "GatingResidual{" + to.name + "}";
    to.rule("target_std", target_std, target_std != 0);
    to.rule("place", detail::word(place));
}

// Gates

inline void describe(const TopK& recipe, Description& to) {
    const auto& [k, score, normalize, epsilon, norm_power, normalize_single, normalize_kept_only,
                 scale, ones, straight_through, placement, selection_bias, biases_logits,
                 weighs_bias, num_groups, groups_kept, group_score, group_mask, tie_break] = recipe;
    const TopK usual;
    const bool normalized = normalize != Normalize::none, grouped = num_groups > 1;
    to.name = "TopK";
    to.rule("k", k);
    to.rule("score", detail::word(score));
    detail::describe_normalize(to, normalize, epsilon, norm_power);
    to.rule("normalize_single", normalize_single, normalize_single != usual.normalize_single,
            normalized && k == 1);
    to.rule("normalize_kept_only", normalize_kept_only,
            normalize_kept_only != usual.normalize_kept_only, normalized);
    to.rule("scale", scale, scale != usual.scale);
    to.rule("ones", ones, ones);
    to.rule("straight_through", straight_through, straight_through, ones);
    to.rule("placement", detail::word(placement), placement != usual.placement);
    Description::Setting& biased = to.rule("selection_bias", selection_bias, selection_bias);
    if (selection_bias) biased.phrase = "selection bias";
    to.rule("biases_logits", biases_logits, biases_logits, selection_bias);
    to.rule("weighs_bias", weighs_bias, weighs_bias, selection_bias);
    Description::Setting& groups = to.rule("num_groups", num_groups, grouped);
    if (grouped) {
        const char* const by = group_score == GroupScore::max           ? "best"
                               : group_score == GroupScore::top_two_sum ? "top two"
                                                                        : "top sum";
        groups.phrase = detail::text(groups_kept) + " of " + detail::text(num_groups) +
                        " groups by their " + by;
    }
    to.rule("groups_kept", groups_kept, false, grouped);
    to.rule("group_score", detail::word(group_score), false, grouped);
    to.rule("group_mask", detail::word(group_mask), group_mask != usual.group_mask, grouped);
    to.rule("tie_break", detail::word(tie_break), tie_break != usual.tie_break);
}

inline void describe(const TopP& recipe, Description& to) {
    const auto& [p, rule, min_experts, max_experts, normalize, epsilon, normalize_kept_only, scale,
                 placement] = recipe;
    const TopP usual;
    to.name = "TopP";
    to.rule("p", p);
    to.rule("rule", detail::word(rule));
    to.rule("min_experts", min_experts, min_experts != usual.min_experts);
    to.rule("max_experts", max_experts, max_experts != usual.max_experts);
    detail::describe_normalize(to, normalize, epsilon);
    to.rule("normalize_kept_only", normalize_kept_only,
            normalize_kept_only != usual.normalize_kept_only, normalize != Normalize::none);
    to.rule("scale", scale, scale != usual.scale);
    to.rule("placement", detail::word(placement), placement != usual.placement);
}

inline void describe(const SparseMixer& recipe, Description& to) {
    const auto& [k, epsilon, sample] = recipe;
    to.name = "SparseMixer";
    to.rule("k", k);
    to.rule("epsilon", epsilon);
    to.rule("sample", sample, sample != SparseMixer{}.sample);
}

inline void describe(const DynamicCapacity& recipe, Description& to) {
    const auto& [p, num_fixed, k, jitter, sample] = recipe;
    to.name = "DynamicCapacity";
    to.rule("p", p);
    to.rule("k", k, true, !(p > 0));
    to.rule("jitter", jitter);
    to.rule("sample", sample, sample);
    to.dimension("num_fixed", num_fixed);
}

inline void describe(const GShardTop2& recipe, Description& to) {
    const auto& [second, second_at_inference, threshold, gumbel, score, normalize, epsilon,
                 normalize_kept_only, scale, by_importance] = recipe;
    const GShardTop2 usual;
    const auto compares = [](GShardTop2::Second rule) {
        return rule != GShardTop2::Second::all && rule != GShardTop2::Second::none;
    };
    to.name = "GShardTop2";
    to.rule("second", detail::word(second));
    to.rule("second_at_inference", detail::word(second_at_inference),
            second_at_inference != usual.second_at_inference);
    to.rule("threshold", threshold, true, compares(second) || compares(second_at_inference));
    to.rule("gumbel", gumbel, gumbel);
    to.rule("score", detail::word(score));
    detail::describe_normalize(to, normalize, epsilon);
    to.rule("normalize_kept_only", normalize_kept_only,
            normalize_kept_only != usual.normalize_kept_only, normalize != Normalize::none);
    to.rule("scale", scale, scale != usual.scale);
    to.rule("by_importance", by_importance, by_importance);
}

inline void describe(const Capacity& settings, Description& to) {
    const auto& [limit, inference_limit, scope, group_size, priority, overflow, next_choices,
                 unlimited_last, experts_per_device, exempt_fraction] = settings;
    const Capacity usual;
    const bool tries = overflow == Capacity::Overflow::next_choice;
    detail::describe_limit(to, "limit", limit);
    detail::describe_limit(to, "inference_limit", inference_limit.value_or(limit),
                           inference_limit.has_value());
    to.rule("scope", detail::word(scope), scope != usual.scope);
    to.rule("group_size", group_size, true, scope == Capacity::Scope::group);
    to.rule("priority", detail::word(priority), priority != usual.priority);
    to.rule("overflow", detail::word(overflow), overflow != usual.overflow);
    to.rule("next_choices", next_choices, next_choices != usual.next_choices, tries);
    to.rule("exempt_fraction", exempt_fraction, exempt_fraction != usual.exempt_fraction);
    to.dimension("unlimited_last", unlimited_last, unlimited_last != usual.unlimited_last);
    to.dimension("experts_per_device", experts_per_device,
                 experts_per_device != usual.experts_per_device);
}

template <class Inner>
void describe(const WithCapacity<Inner>& recipe, Description& to) {
    const auto& [inner, capacity] = recipe;
    detail::describe_part(inner, "gate", to);
    to.name = "WithCapacity{" + to.name + "}";
    describe(capacity, to);
}

// Experts

inline void describe(const Swiglu& recipe, Description& to) {
    const auto& [count, ffn_dim] = recipe;
    detail::describe_count(to, "Swiglu", count);
    to.dimension("ffn_dim", ffn_dim);
}

inline void describe(const Glu& recipe, Description& to) {
    const auto& [count, ffn_dim, activation, bias, limit, up_offset] = recipe;
    const Glu usual;
    detail::describe_count(to, "Glu", count);
    to.dimension("ffn_dim", ffn_dim);
    to.rule("activation", detail::word(activation));
    to.rule("bias", bias, bias);
    to.rule("limit", limit, limit != usual.limit);
    to.rule("up_offset", up_offset, up_offset != usual.up_offset);
}

inline void describe(const Mlp& recipe, Description& to) {
    const auto& [count, ffn_dim, activation, bias] = recipe;
    detail::describe_count(to, "Mlp", count);
    to.dimension("ffn_dim", ffn_dim);
    to.rule("activation", detail::word(activation));
    to.rule("bias", bias, bias);
}

template <class Experts>
void describe(const Shared<Experts>& recipe, Description& to) {
    const auto& [experts, gate] = recipe;
    detail::describe_part(experts, "experts", to);
    to.name = "Shared{" + to.name + "}";
    to.rule("gate", detail::word(gate), gate != SharedGate::none);
}

inline void describe(const Constant& recipe, Description& to) {
    const auto& [count] = recipe;
    detail::describe_count(to, "Constant", count);
}
inline void describe(const Copy& recipe, Description& to) {
    const auto& [count] = recipe;
    detail::describe_count(to, "Copy", count);
}
inline void describe(const Zero& recipe, Description& to) {
    const auto& [count] = recipe;
    detail::describe_count(to, "Zero", count);
}
inline void describe(const Null& recipe, Description& to) {
    const auto& [count] = recipe;
    detail::describe_count(to, "Null", count);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_DESCRIBE_HPP
