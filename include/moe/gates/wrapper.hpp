// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_WRAPPER_HPP
#define MOE_GATES_WRAPPER_HPP

#include <moe/core/concepts.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/parameters.hpp>

namespace moe::inline MOE_ABI {

/// A gate around a gate that hands every hook on. Derive from it and write the hooks that differ:
/// a capacity limit, for example, selects as the inner gate does and then drops what is too much.
///
///     template <class S, class Inner>
///     struct FirstCome : moe::GateWrapper<S, Inner> {
///         using Base = moe::GateWrapper<S, Inner>;
///         static constexpr bool per_token = false;  // a choice depends on those of other tokens
///         moe::Index capacity = 0;
///
///         void select(moe::In<S> logits, moe::Routing& routing, const moe::Call<S>& call) const {
///             Base::select(logits, routing, call);
///             routing.group();  // by expert
///             std::vector<moe::Index> refused;  // set_dropped ends the lists
///             for (moe::Index e = 0; e < routing.num_experts(); ++e)
///                 for (auto i = std::size_t(capacity); i < routing.assignments_of(e).size(); ++i)
///                     refused.push_back(routing.assignments_of(e)[i]);
///             for (const moe::Index a : refused) routing.set_dropped(a, moe::Dropped::capacity);
///         }
///     };
///     struct FirstComeTopK {  // the recipe that goes into a layer
///         moe::TopK inner;
///         moe::Index capacity = 0;
///
///         template <class S>
///         auto build(const moe::Shape& shape, moe::Random& random) const {
///             auto gate = inner.build<S>(shape, random);
///             return FirstCome<S, decltype(gate)>{{gate}, capacity};
///         }
///     };
///
/// The inner gate works in the first child of the wrapper's node, so that a wrapper may be wrapped
/// in its own kind: neither state nor random numbers are shared. Reach it through the hooks of the
/// base, as above, or with call.child(0). Its parameters keep their names.
///
/// A wrapper that makes choices depend on other tokens says so with per_token. What its own choices
/// decide is not handed on: is_causal(), which is false around a gate that looks at other tokens
/// unless the wrapper says hooks::is_causal(inner), and fixed_count, for one that leaves every
/// token the number of experts it has. One that changes the logits for the inner gate sets
/// changes_logits, for losses that compute its gradients.
template <class S, class Inner>
struct GateWrapper {
    using Scalar = S;
    static constexpr bool per_token = hooks::per_token<Inner>;
    static constexpr bool changes_logits = false;
    static constexpr bool weighs_added_experts = hooks::weighs_added_experts<Inner>;
    static constexpr bool reads_k = hooks::reads_k<Inner>;
    static constexpr bool reads_p = hooks::reads_p<Inner>;
    static constexpr bool multiplies_scores = hooks::multiplies_scores<Inner>;
    /// Of the inner gate. A wrapper without parameters of its own, or one that looks which of their
    /// gradients are wanted, says skips_empty_gradients = this; others are lent a whole gradient.
    static constexpr bool inner_skips_empty_gradients = requires {
        requires Inner::skips_empty_gradients;
    };

    Inner inner;

    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        hooks::select<S>(inner, logits, routing, call.child(0));
    }
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        hooks::weigh<S>(inner, logits, routing, call.child(0));
    }
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, GateWrapper& grad,
                  const Call<S>& call) const requires TrainableGate<Inner, S> {
        hooks::backward<S>(inner, logits, routing, dweights, dlogits, grad.inner, call.child(0));
    }

    Index num_logits(Index experts) const { return hooks::num_logits(inner, experts); }
    /// What a wrapper wants besides the inner gate's logits comes after them.
    Index expert_logits(Index experts) const { return hooks::expert_logits(inner, experts); }
    bool weighs_input() const { return hooks::weighs_input(inner); }
    void check(const Shape& shape) const {
        if constexpr (requires { inner.check(shape); }) inner.check(shape);
    }
    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Workspace<S>& within = ws.child(0);
        if constexpr (requires { inner.reserve(tokens, assignments, within); })
            inner.reserve(tokens, assignments, within);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        if constexpr (requires { inner.workspace_bytes(tokens, assignments, keep, workers); })
            return inner.workspace_bytes(tokens, assignments, keep, workers);
        else
            return 0;
    }
    void visit_parameters(auto&& visit) { moe::visit_parameters(inner, visit); }
    void own_gradients() {
        if constexpr (requires { inner.own_gradients(); }) inner.own_gradients();
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_WRAPPER_HPP
