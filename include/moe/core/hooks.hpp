// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_HOOKS_HPP
#define MOE_CORE_HOOKS_HPP

#include <moe/core/concepts.hpp>

/// Calls of a part's hooks in the form that the part offers, with or without the Call: what a part
/// that is made of other parts uses, a gate around a gate for example. The scalar is given first:
/// `hooks::select<S>(inner, logits, routing, call)`.

namespace moe::inline MOE_ABI::hooks {

/// part.forward(x, y): a router or an expert.
template <class S, class Part>
void forward(const Part& part, In<S> x, Out<S> y, const Call<S>& call) {
    if constexpr (requires { part.forward(x, y, call); })
        part.forward(x, y, call);
    else
        part.forward(x, y);
}

/// part.backward(x, dy, dx, grad): a router or an expert.
template <class S, class Part>
void backward(const Part& part, In<S> x, In<S> dy, Out<S> dx, Part& grad, const Call<S>& call) {
    if constexpr (requires { part.backward(x, dy, dx, grad, call); })
        part.backward(x, dy, dx, grad, call);
    else
        part.backward(x, dy, dx, grad);
}

template <class S, class G>
void select(const G& gate, In<S> logits, Routing& routing, const Call<S>& call) {
    if constexpr (requires { gate.select(logits, routing, call); })
        gate.select(logits, routing, call);
    else
        gate.select(logits, routing);
}

/// Nothing, if the gate has no weigh().
template <class S, class G>
void weigh(const G& gate, In<S> logits, Routing& routing, const Call<S>& call) {
    if constexpr (requires { gate.weigh(logits, routing, call); })
        gate.weigh(logits, routing, call);
    else if constexpr (requires { gate.weigh(logits, routing); })
        gate.weigh(logits, routing);
}

/// gate.backward(logits, routing, dweights, dlogits)
template <class S, class G>
void backward(const G& gate, In<S> logits, const Routing& routing,
              const WeightGradients<S>& dweights, Out<S> dlogits, G& grad, const Call<S>& call) {
    if constexpr (requires { gate.backward(logits, routing, dweights, dlogits, grad, call); })
        gate.backward(logits, routing, dweights, dlogits, grad, call);
    else
        gate.backward(logits, routing, dweights, dlogits);
}

/// Logits per token of a gate over `experts` experts.
template <class G>
Index num_logits(const G& gate, Index experts) {
    if constexpr (requires { gate.num_logits(experts); })
        return gate.num_logits(experts);
    else
        return experts;
}

/// Whether a gate wants the gradients at input weights: its weights scale what experts read, or are
/// taught by it.
template <class G>
bool weighs_input(const G& gate) {
    if constexpr (requires { gate.weighs_input(); })
        return gate.weighs_input();
    else
        return false;
}

/// Whether a token's choice is its own.
template <class G>
inline constexpr bool per_token = true;
template <class G>
    requires requires { G::per_token; }
inline constexpr bool per_token<G> = G::per_token;

/// Whether no token's choice depends on tokens after it in the batch, so that a decoder may use
/// the gate. One that is not per_token says with is_causal() whether it looks at earlier ones only.
template <class G>
bool is_causal(const G& gate) {
    if constexpr (requires { gate.is_causal(); })
        return gate.is_causal();
    else
        return per_token<G>;
}

/// Whether every token to which that many experts are open gets the same number of them, dropped
/// ones not counted.
template <class G>
inline constexpr bool fixed_count = requires {
    requires G::fixed_count;
};

/// Whether a gate weighs experts that a gate around it has added to its choice, too.
template <class G>
inline constexpr bool weighs_added_experts = true;
template <class G>
    requires requires { G::weighs_added_experts; }
inline constexpr bool weighs_added_experts<G> = G::weighs_added_experts;

/// Whether a gate reads Dial::k, or Dial::p. A call that sets what it does not read is refused.
template <class G>
inline constexpr bool reads_k = requires {
    requires G::reads_k;
};
template <class G>
inline constexpr bool reads_p = requires {
    requires G::reads_p;
};

/// Whether a gate's weights have the context's multipliers in them where the dial says so.
template <class G>
inline constexpr bool multiplies_scores = requires {
    requires G::multiplies_scores;
};

/// How many of a token's logits, the first ones, are the experts' own: what masks and forces are
/// applied to, and losses read. A gate that wants others besides says so with
/// expert_logits(experts); 0: none are.
template <class G>
Index expert_logits(const G& gate, Index experts) {
    if constexpr (requires { gate.expert_logits(experts); })
        return gate.expert_logits(experts);
    else
        return num_logits(gate, experts) == experts ? experts : 0;
}

}  // namespace moe::inline MOE_ABI::hooks

#endif  // MOE_CORE_HOOKS_HPP
