// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOKENS_HPP
#define MOE_GATES_TOKENS_HPP

#include <algorithm>
#include <span>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/shape.hpp>
#include <moe/core/types.hpp>

/// What gates that treat one token at a time share: the dial, and checks.

namespace moe::inline MOE_ABI {
namespace detail {

/// One setting of the dial: of the token's sequence if there is one per sequence, else of the call
/// if it has one, else the gate's own.
template <class V>
struct Dialled {
    V own;
    std::span<const V> per_sequence;
    Sequences sequences;

    V operator()(Index token) const {
        return per_sequence.empty() ? own : per_sequence[at(sequences.of(token))];
    }

    /// check(field, value) for every value that a token can get.
    template <class Check>
    void for_each(const char* whole, const char* each, Check&& check) const {
        if (per_sequence.empty()) check(whole, own);
        for (const V& value : per_sequence) check(each, value);
    }
};

/// @param gate   who asks, for the message
/// @param field  name of the dial's per-sequence field
/// @throws std::invalid_argument if there is one per sequence and the sequences are not known
template <class V>
Dialled<V> dialled(const char* gate, const char* field, V own, std::span<const V> per_sequence,
                   const Context& context, Index tokens) {
    if (per_sequence.empty()) return {own, {}, {}};
    const auto offsets = context.sequence_offsets;
    check_per_sequence(gate, offsets, field, per_sequence.size(), 1);
    return {own, per_sequence, sequences(gate, offsets, tokens)};
}

/// @throws std::invalid_argument if a gate that was built for another layer comes into this one
inline void check_gate(const char* gate, Index num_experts, const Shape& shape) {
    if (num_experts != shape.num_experts)
        fail(gate, ": the gate was built for ", num_experts, " experts, the layer has ",
             shape.num_experts, "; build it again from its recipe");
}

/// @throws std::invalid_argument if there are no experts
inline void check_experts(const char* gate, Index num_experts) {
    if (num_experts < 1)
        fail(gate,
             ": the layer has no experts to choose from; give the experts a count, e.g. "
             "moe::Swiglu{.count = 8, ...}; shared experts do not count");
}

/// A setting max_experts, 0 standing for all.
/// @param least  experts that every token gets
/// @throws std::invalid_argument if it is below that, or more than there are
inline Index checked_most(const char* gate, Index max_experts, Index least, Index num_experts) {
    if (max_experts == 0) return num_experts;
    if (max_experts < std::max(least, Index(1)) || max_experts > num_experts)
        fail(gate, ": max_experts is ", max_experts, ", it must be in [", std::max(least, Index(1)),
             ", ", num_experts, "], or 0 for all");
    return max_experts;
}

/// @throws std::invalid_argument unless a batch has one row per token and one logit per expert, and
///         the context is about it
inline void check_gate_extents(const char* gate, Index rows, Index columns, const Routing& routing,
                               Index num_experts, const Context& context) {
    if (rows != routing.num_tokens() || columns != num_experts ||
        routing.num_experts() != num_experts)
        fail(gate, ": logits is [", rows, ", ", columns, "], the routing is for ",
             routing.num_tokens(), " tokens and ", routing.num_experts(),
             " experts, the gate was built for ", num_experts, " experts");
    check_gate_context(context, rows, num_experts);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOKENS_HPP
