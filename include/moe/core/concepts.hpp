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

// Every hook below exists in two forms: as written, or with one more argument `const Call<S>&` at
// the end that carries the context and the part's own workspace node. A type offers either.

/// Tokens to logits.
template <class R, class S = float>
concept Router =
    requires(const R router, R& grad, In<S> x, In<S> dlogits, Out<S> logits, Out<S> dx) {
        router.forward(x, logits);  // x: [T, D], logits: [T, L], written
        router.backward(x, dlogits, dx, grad);  // dx: [T, D], written; adds to grad
    } || requires(const R router, R& grad, In<S> x, In<S> dlogits, Out<S> logits, Out<S> dx,
                  const Call<S>& call) {
        router.forward(x, logits, call);
        router.backward(x, dlogits, dx, grad, call);
    };

/// A map of single tokens to outputs.
template <class E, class S = float>
concept Expert = requires(const E expert, E& grad, In<S> x, In<S> dy, Out<S> y, Out<S> dx) {
    expert.forward(x, y);              // x: [n, D], y: [n, D], written
    expert.backward(x, dy, dx, grad);  // dx: [n, D], written; adds to grad
} || requires(const E expert, E& grad, In<S> x, In<S> dy, Out<S> y, Out<S> dx, const Call<S>& call) {
    expert.forward(x, y, call);
    expert.backward(x, dy, dx, grad, call);
};

/// Logits to assignments and weights. Optional:
///     weigh(logits, routing[, call])  sets the weights of the assignments that are there; all that
///                                     replay runs. Without it, select's weights stay.
///     num_logits(E)                   logits per token, E if absent
///     weighs_input()                  whether weights go to Assignment::input_weight: only then
///                                     are gradients at input weights computed
///     static constexpr bool per_token whether a token's choice is its own (true if absent)
template <class G, class S = float>
concept Gate = requires(const G gate, In<S> logits, Routing& routing) {
    gate.select(logits, routing);  // logits: [T, L]; adds assignments, slots in order per token
} || requires(const G gate, In<S> logits, Routing& routing, const Call<S>& call) {
    gate.select(logits, routing, call);
};

/// A gate through which gradients reach the logits. backward **adds** to dlogits.
template <class G, class S = float>
concept TrainableGate =
    Gate<G, S> &&
    (requires(const G gate, In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
              Out<S> dlogits) { gate.backward(logits, routing, dweights, dlogits); } ||
     requires(const G gate, In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
              Out<S> dlogits, G& grad, const Call<S>& call) {
         gate.backward(logits, routing, dweights, dlogits, grad, call);
     });

/// A run of consecutive experts served by one object; it **adds** to y. Optional:
///     facts(e)          ExpertFacts of local expert e
///     check(shape)      throws if the group does not fit the layer
///     freeze(options)   a group for inference only
///     flops_per_token() for a group without routed experts: what every token costs
template <class G, class S = float>
concept ExpertGroup =
    requires(const G group, In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) {
        { group.num_experts() } -> std::convertible_to<Index>;  // routed experts; 0: sees all tokens
        group.forward(x, rows, y, call);
    };

/// **Adds** to dx and grad, **writes** dweights (and not what it does not own; input weights only
/// if that span is not empty). A grad that is default-constructed means that no parameter gradient
/// is wanted.
template <class G, class S = float>
concept TrainableGroup =
    ExpertGroup<G, S> &&
    requires(const G group, In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
             const RowGradients<S>& dweights, G& grad, const Call<S>& call) {
        group.backward(x, rows, dy, dx, dweights, grad, call);
    };

namespace detail {

/// What a layer holds for an argument: the module a recipe builds, or the user's object itself.
template <class X, class S>
auto built(const X& part, const Shape& shape, Random& random) {
    if constexpr (Recipe<X, S>)
        return part.template build<S>(shape, random);
    else
        return part;
}
template <class X, class S>
using built_t =
    decltype(built<X, S>(std::declval<const X&>(), std::declval<const Shape&>(), std::declval<Random&>()));

/// part.forward(x, y) in the form that the part offers.
template <class Part, class S>
void forward(const Part& part, In<S> x, Out<S> y, const Call<S>& call) {
    if constexpr (requires { part.forward(x, y, call); })
        part.forward(x, y, call);
    else
        part.forward(x, y);
}

template <class Part, class S>
void backward(const Part& part, In<S> x, In<S> dy, Out<S> dx, Part& grad, const Call<S>& call) {
    if constexpr (requires { part.backward(x, dy, dx, grad, call); })
        part.backward(x, dy, dx, grad, call);
    else
        part.backward(x, dy, dx, grad);
}

template <class G, class S>
void select(const G& gate, In<S> logits, Routing& routing, const Call<S>& call) {
    if constexpr (requires { gate.select(logits, routing, call); })
        gate.select(logits, routing, call);
    else
        gate.select(logits, routing);
}

template <class G, class S>
void weigh(const G& gate, In<S> logits, Routing& routing, const Call<S>& call) {
    if constexpr (requires { gate.weigh(logits, routing, call); })
        gate.weigh(logits, routing, call);
    else if constexpr (requires { gate.weigh(logits, routing); })
        gate.weigh(logits, routing);
}

template <class G, class S>
void gate_backward(const G& gate, In<S> logits, const Routing& routing,
                   const WeightGradients<S>& dweights, Out<S> dlogits, G& grad, const Call<S>& call) {
    if constexpr (requires { gate.backward(logits, routing, dweights, dlogits, grad, call); })
        gate.backward(logits, routing, dweights, dlogits, grad, call);
    else
        gate.backward(logits, routing, dweights, dlogits);
}

template <class G>
Index num_logits(const G& gate, Index experts) {
    if constexpr (requires { gate.num_logits(experts); })
        return gate.num_logits(experts);
    else
        return experts;
}

/// x as the row-major view that the hooks take, without a copy.
///
/// A column-major matrix would be copied silently by Eigen; it is refused here.
template <class S, class Derived>
Eigen::Ref<const Matrix<S>> readable(const Eigen::DenseBase<Derived>& x) {
    static_assert(std::is_same_v<typename Derived::Scalar, S>,
                  "moe: the matrix has another scalar than the layer; use x.cast<...>() or "
                  "make_layer<double>");
    static_assert(Derived::IsRowMajor || Derived::ColsAtCompileTime == 1,
                  "moe: tokens are rows and matrices row-major; pass moe::Matrix, a Map of it, or "
                  "x.transpose() of a column-major matrix that holds one token per column");
    return Eigen::Ref<const Matrix<S>>(x.derived());
}

template <class S, class Y>
Eigen::Ref<Matrix<S>> writable(Y&& y) {
    using Plain = std::remove_cvref_t<Y>;
    static_assert(std::is_same_v<typename Plain::Scalar, S>,
                  "moe: the matrix has another scalar than the layer; use make_layer<double>");
    static_assert(Plain::IsRowMajor,
                  "moe: tokens are rows and matrices row-major; pass moe::Matrix, a Map of it, or "
                  "y.transpose() of a column-major matrix that holds one token per column");
    return Eigen::Ref<Matrix<S>>(std::forward<Y>(y));
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_CONCEPTS_HPP
