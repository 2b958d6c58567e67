// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_CONCEPTS_HPP
#define MOE_CORE_CONCEPTS_HPP

#include <concepts>
#include <type_traits>

#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/shape.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI {

/// A plain aggregate of settings from which a layer makes a module:
/// `template <class S> auto build(const Shape&, Random&) const`.
template <class X, class S = float>
concept Recipe = requires(const X recipe, const Shape& shape, Random& random) {
    recipe.template build<S>(shape, random);
};

// The hooks of routers, gates and single experts exist in two forms: as written, or with one more
// argument `const Call<S>&` at the end that carries the context and the part's own workspace node
// (backward of a gate: two more, its gradient and the call). forward and backward of a router or an
// expert have the same form. Expert groups always take the call. Who calls a part of a part uses
// moe::hooks, which finds the form.
//
// A part that is to come with the library, gates/mine.hpp, is also included by gates.hpp
// (routers.hpp, compose.hpp; experts by moe.hpp), declared in fwd.hpp, listed in README.md and in
// examples/08_gates.cpp (07_routers.cpp), and has its tests in tests/gates/mine_test.cpp. Gates are
// listed in tests/gates/dial_test.cpp, too.
//
// A router, gate or group has a default constructor: it makes a part that holds nothing, a gradient
// that is not wanted.
//
// What any part may offer besides, and what holds if it does not:
//
//     visit_parameters(visit)           visit("name", matrix[, Role]) for each; no parameters
//     skips_empty_gradients             static constexpr bool: backward looks for itself which
//                                       matrices of grad are wanted, those that are not are empty.
//                                       false: grad has all of them, a scratch object where one is
//                                       not wanted
//     check(shape) const                throws if the part does not fit the layer
//     check_gradient(grad) const        throws if grad is of another layer; names and extents are
//                                       compared
//     own_gradients()                   in a copy that is to become a gradient: views of memory are
//                                       replaced by memory of its own; nothing
//
// and of a router, a gate or a group, but not of a single expert:
//
//     reserve(tokens, rows, ws) const   room for calls up to that size (rows: assignments); the
//                                       first call allocates
//     workspace_bytes(tokens, rows, keep, workers) const
//                                       what such a call takes, for memory_budget(); 0
//     freeze(options) const             routers and groups: the part for inference only; a copy
//     check_freeze(options) const       routers and groups: throws what freeze would; all parts of
//                                       a layer that is given up are asked first
//     bytes() const                     routers and groups: of packed weights that are not visited
//                                       as parameters; 0

// Version 14 of the formatter makes nothing of concepts.
// clang-format off

/// Tokens to logits. A router without any backward is good for inference. Optional:
///     flops_per_token() const           for statistics; 0
///     per_token, is_causal() const      as of a gate: whether a token's logits are its own, or
///                                       depend on no later token
template <class R, class S = float>
concept Router =
    requires(const R router, R& grad, In<S> x, In<S> dlogits, Out<S> logits, Out<S> dx) {
        router.forward(x, logits);              // x: [T, D], logits: [T, L], written
        router.backward(x, dlogits, dx, grad);  // dx: [T, D], written; adds to grad
    } || requires(const R router, R& grad, In<S> x, In<S> dlogits, Out<S> logits, Out<S> dx,
                  const Call<S>& call) {
        router.forward(x, logits, call);
        router.backward(x, dlogits, dx, grad, call);
    };

/// A map of single tokens to outputs; each() and experts() make groups of them. An expert without
/// any backward is good for inference. Optional:
///     flops_per_row() const             for statistics; 2 per parameter
template <class E, class S = float>
concept Expert =
    requires(const E expert, E& grad, In<S> x, In<S> dy, Out<S> y, Out<S> dx) {
        expert.forward(x, y);              // x: [n, D], y: [n, O], written
        expert.backward(x, dy, dx, grad);  // dx: [n, D], written; adds to grad
    } || requires(const E expert, E& grad, In<S> x, In<S> dy, Out<S> y, Out<S> dx,
                  const Call<S>& call) {
        expert.forward(x, y, call);
        expert.backward(x, dy, dx, grad, call);
    };

namespace detail {

/// Converts to a view of scalar S. (Eigen's own views convert to one of any scalar, as far as the
/// type system can see.)
template <class S>
struct Exactly {
    operator const Eigen::Ref<const Matrix<S>>&() const;
};
template <class G, class S>
concept SelectsFor = requires(const G gate, const Exactly<S> logits, Routing& routing) {
    gate.select(logits, routing);
} || requires(const G gate, const Exactly<S> logits, Routing& routing, const Call<S>& call) {
    gate.select(logits, routing, call);
};
template <class S>
using other_scalar = std::conditional_t<std::is_same_v<S, float>, double, float>;

}  // namespace detail

/// Logits to assignments and weights.
///
/// select gets a routing that is reset to the batch, and adds; the layer groups it by expert
/// afterwards, so a select that looks at experts' lists calls routing.group() itself. -inf is a
/// logit that must not be chosen (the layer masks so, and drops what was chosen nevertheless). Null
/// experts, call.context.experts[e].is_null, are for the gate to leave out of normalisation. To
/// change another gate's choice, see GateWrapper. Optional:
///     weigh(logits, routing[, call]) const
///                                       sets the weights of the assignments that are there; all
///                                       that replay runs. Without it, select's weights stay
///     num_logits(E) const               logits per token; E
///     expert_logits(E) const            how many of those, the first, are the experts' own; E if
///                                       num_logits is E, else 0
///     changes_logits                    static constexpr bool, of a gate around another: whether
///                                       that one sees other logits; GateWrapper's is false
///     weighs_input() const              whether weights go to Assignment::input_weight, or backward
///                                       reads gradients there: only then are they computed; false
///     per_token                         static constexpr bool: a token's choice is its own, not a
///                                       matter of the others in the batch; true
///     is_causal() const                 whether no choice depends on later tokens; per_token
///     fixed_count                       static constexpr bool: all tokens get equally many experts,
///                                       as far as that many are open to them; false
///     weighs_added_experts              static constexpr bool: whether weigh() takes experts that a
///                                       gate around it added; true
///     reads_k, reads_p                  static constexpr bool: context.dial.k or p is read here;
///                                       false: a call that sets it is refused
///     multiplies_scores                 static constexpr bool: weights have context.multiplier()
///                                       in them with MultiplierOrder::before_normalization; false
template <class G, class S = float>
concept Gate =
    (requires(const G gate, In<S> logits, Routing& routing) {
        gate.select(logits, routing);  // logits: [T, L]; adds assignments, slots in order per token
    } || requires(const G gate, In<S> logits, Routing& routing, const Call<S>& call) {
        gate.select(logits, routing, call);
    }) && (detail::SelectsFor<G, S> || !detail::SelectsFor<G, detail::other_scalar<S>>);

/// A gate through which gradients reach the logits. backward **adds** to dlogits, and to grad if
/// the gate has parameters.
template <class G, class S = float>
concept TrainableGate =
    Gate<G, S> &&
    (requires(const G gate, In<S> logits, const Routing& routing,
              const WeightGradients<S>& dweights, Out<S> dlogits) {
         gate.backward(logits, routing, dweights, dlogits);
     } ||
     requires(const G gate, In<S> logits, const Routing& routing,
              const WeightGradients<S>& dweights, Out<S> dlogits, G& grad, const Call<S>& call) {
         gate.backward(logits, routing, dweights, dlogits, grad, call);
     });

/// A run of consecutive experts served by one object; it **adds** to y.
///
/// Experts are numbered from 0 within the group (rows.first_expert is the first that `rows` is
/// about), and the names of their parameters start with that number: "2.gate". A call may be about
/// some of the rows only: what is kept for backward is as long as rows.weights, not num_rows(), and
/// row r of it belongs to row r. Optional:
///     facts(e) const                    ExpertFacts of local expert e; all defaults
///     flops_per_token() const           of a group without routed experts: what every token costs
template <class G, class S = float>
concept ExpertGroup =
    requires(const G group, In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) {
        { group.num_experts() } -> std::convertible_to<Index>;  // routed; 0: it sees all tokens
        group.forward(x, rows, y, call);
    };

/// **Adds** to dx and grad, **writes** dweights (and not what it does not own; input weights only
/// if that span is not empty).
template <class G, class S = float>
concept TrainableGroup =
    ExpertGroup<G, S> &&
    requires(const G group, In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
             const RowGradients<S>& dweights, G& grad, const Call<S>& call) {
        group.backward(x, rows, dy, dx, dweights, grad, call);
    };

// clang-format on

namespace detail {

/// Has a member that is called backward, whatever it takes. Overloads and templates are not seen.
template <class X>
concept HasBackward = requires {
    &X::backward;
};
template <class X, class S>
concept HasForward = requires(const X part, In<S> x, Out<S> y) {
    part.forward(x, y);
}
|| requires(const X part, In<S> x, Out<S> y, const Call<S>& call) { part.forward(x, y, call); };

/// What a layer holds for an argument: the module a recipe builds, or the user's object itself.
template <class X, class S>
auto built(const X& part, const Shape& shape, Random& random) {
    if constexpr (Recipe<X, S>)
        return part.template build<S>(shape, random);
    else
        return part;
}
template <class X, class S>
using built_t = decltype(built<X, S>(std::declval<const X&>(), std::declval<const Shape&>(),
                                     std::declval<Random&>()));

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_CONCEPTS_HPP
