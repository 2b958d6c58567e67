// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_WORDS_HPP
#define MOE_PRESETS_WORDS_HPP

#include <moe/core/activation.hpp>
#include <moe/experts/shared.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/capacity_limit.hpp>
#include <moe/gates/capacity_order.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/mass_rule.hpp>
#include <moe/gates/placement.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_weights.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/residual.hpp>

namespace moe::inline MOE_ABI::detail {

// The words for choices are their enumerators. No default: a new enumerator is a warning here.

inline const char* word(Score score) {
    switch (score) {
        case Score::softmax:
            return "softmax";
        case Score::sigmoid:
            return "sigmoid";
        case Score::softmax_of_selected:
            return "softmax_of_selected";
        case Score::raw:
            return "raw";
        case Score::sqrt_softplus:
            return "sqrt_softplus";
        case Score::relu:
            return "relu";
    }
    return "?";
}
inline const char* word(Normalize normalize) {
    switch (normalize) {
        case Normalize::none:
            return "none";
        case Normalize::plain:
            return "plain";
        case Normalize::add_epsilon:
            return "add_epsilon";
        case Normalize::clamp:
            return "clamp";
    }
    return "?";
}
inline const char* word(Placement placement) {
    switch (placement) {
        case Placement::output:
            return "output";
        case Placement::input:
            return "input";
        case Placement::straight_through:
            return "straight_through";
    }
    return "?";
}
inline const char* word(TieBreak tie_break) {
    switch (tie_break) {
        case TieBreak::lower_index:
            return "lower_index";
        case TieBreak::torch_cpu:
            return "torch_cpu";
        case TieBreak::torch_cpu_unsorted:
            return "torch_cpu_unsorted";
    }
    return "?";
}
inline const char* word(GroupScore score) {
    switch (score) {
        case GroupScore::max:
            return "max";
        case GroupScore::top_two_sum:
            return "top_two_sum";
        case GroupScore::top_sum:
            return "top_sum";
    }
    return "?";
}
inline const char* word(GroupMask mask) {
    switch (mask) {
        case GroupMask::minus_infinity:
            return "minus_infinity";
        case GroupMask::zero:
            return "zero";
    }
    return "?";
}
inline const char* word(MassRule rule) {
    switch (rule) {
        case MassRule::exceed:
            return "exceed";
        case MassRule::reach:
            return "reach";
        case MassRule::below:
            return "below";
    }
    return "?";
}
inline const char* word(GShardTop2::Second second) {
    switch (second) {
        case GShardTop2::Second::all:
            return "all";
        case GShardTop2::Second::none:
            return "none";
        case GShardTop2::Second::threshold:
            return "threshold";
        case GShardTop2::Second::random:
            return "random";
        case GShardTop2::Second::random_raw:
            return "random_raw";
    }
    return "?";
}
inline const char* word(Capacity::Scope scope) {
    switch (scope) {
        case Capacity::Scope::batch:
            return "batch";
        case Capacity::Scope::sequence:
            return "sequence";
        case Capacity::Scope::group:
            return "group";
    }
    return "?";
}
inline const char* word(Capacity::Overflow overflow) {
    switch (overflow) {
        case Capacity::Overflow::drop:
            return "drop";
        case Capacity::Overflow::pass_through:
            return "pass_through";
        case Capacity::Overflow::next_choice:
            return "next_choice";
    }
    return "?";
}
inline const char* word(CapacityPriority priority) {
    switch (priority) {
        case CapacityPriority::k_major:
            return "k_major";
        case CapacityPriority::token_major:
            return "token_major";
        case CapacityPriority::probability:
            return "probability";
        case CapacityPriority::logit:
            return "logit";
        case CapacityPriority::score:
            return "score";
        case CapacityPriority::batch_prioritized:
            return "batch_prioritized";
        case CapacityPriority::random:
            return "random";
    }
    return "?";
}
inline const char* word(CapacityLimit::Rounding rounding) {
    switch (rounding) {
        case CapacityLimit::Rounding::floor:
            return "floor";
        case CapacityLimit::Rounding::ceil:
            return "ceil";
        case CapacityLimit::Rounding::nearest_even:
            return "nearest_even";
    }
    return "?";
}
inline const char* word(RouterActivation activation) {
    switch (activation) {
        case RouterActivation::tanh:
            return "tanh";
        case RouterActivation::relu:
            return "relu";
        case RouterActivation::gelu:
            return "gelu";
        case RouterActivation::silu:
            return "silu";
    }
    return "?";
}
inline const char* word(ResidualPlace place) {
    switch (place) {
        case ResidualPlace::later:
            return "later";
        case ResidualPlace::first:
            return "first";
    }
    return "?";
}
inline const char* word(Activation activation) {
    const char* const known = name(activation);
    return known == nullptr ? "?" : known;
}
inline const char* word(SharedGate gate) {
    switch (gate) {
        case SharedGate::none:
            return "none";
        case SharedGate::sigmoid:
            return "sigmoid";
    }
    return "?";
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_PRESETS_WORDS_HPP
