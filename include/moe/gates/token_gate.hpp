// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOKEN_GATE_HPP
#define MOE_GATES_TOKEN_GATE_HPP

#include <algorithm>

#include <moe/core/concepts.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

/// What gates share whose tokens choose for themselves and are weighed by scores of what they
/// chose. A gate of this kind says whom a token chooses:
///
///     template <class S>
///     class FirstModule : public TokenGate<S, FirstModule<S>> {
///         friend class TokenGate<S, FirstModule<S>>;
///         static constexpr const char* name = "moe::First";          // for messages
///         Index most_experts() const { return 1; }                   // that a token can get
///         const detail::CombineRule& rule() const { return rule_; }  // scores to weights, or
///                                                                    // what has its members
///         auto choice(const Call<S>& call, Index tokens) const {     // checks the dial
///             return [](Index t, const S* z, S* values, detail::Ranked<S>* ranked) {
///                 ranked[0].index = 0;  // in slot order; z [L] logits, values [3 L] scratch
///                 return Index(1);      // how many; never an expert whose logit is -inf
///             };
///         }
///         ...
///     };
///
/// A gate that looks at the whole batch before any token is served (`per_token = false`) takes the
/// logits instead: `auto choice(const Call<S>& call, In<S> logits) const`.
///
/// Optional: `auto normalizes(const Context&, Index tokens) const`, a function of a token and the
/// number of its assignments that says whether its weights are normalised; always.
template <class S, class Gate>
class TokenGate {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true, multiplies_scores = true;

    /// Whether weights scale what experts read, or are given a gradient from there.
    bool weighs_input() const { return gate().rule().placement != Placement::output; }

    /// @throws std::invalid_argument if the layer has another number of experts
    void check(const Shape& shape) const { detail::check_gate(Gate::name, num_experts_, shape); }

    /// Adds the assignments of every token.
    /// @param logits  [T, L]
    /// @throws std::invalid_argument if an extent or the dial is out of range
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_extents(Gate::name, logits.rows(), logits.cols(), routing, num_experts_,
                                   call.context);
        if constexpr (requires { gate().choice(call, logits); })
            detail::select_each<S>(logits, routing, call, gate().most_experts(),
                                   gate().choice(call, logits));
        else
            detail::select_each<S>(logits, routing, call, gate().most_experts(),
                                   gate().choice(call, logits.rows()));
    }

    /// Sets the weights of the assignments that are there, whoever chose them.
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_extents(Gate::name, logits.rows(), logits.cols(), routing, num_experts_,
                                   call.context);
        gate().rule().weigh(logits, routing, call, gate().normalizes(call.context, logits.rows()));
    }

    /// Adds d(loss)/d(logits) to dlogits [T, L]; the set of experts counts as constant.
    /// @param dweights  by assignment number; `input` is read instead of `output` for
    ///                  Placement::input, beside it for straight_through
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, Gate&, const Call<S>& call) const {
        detail::check_gate_extents(Gate::name, logits.rows(), logits.cols(), routing, num_experts_,
                                   call.context);
        gate().rule().backward(logits, routing, dweights, dlogits, call,
                               gate().normalizes(call.context, logits.rows()));
    }

    /// Whatever the dial says.
    void reserve(Index tokens, Index, Workspace<S>& ws) const {
        detail::reserve_selection<S>(ws, tokens, num_experts_, gate().most_experts());
        gate().rule().template reserve<S>(ws, num_experts_, longest_list());
    }
    /// Bytes of workspace.
    Index workspace_bytes(Index tokens, Index, Keep, int workers) const {
        return detail::selection_bytes<S>(tokens, num_experts_, gate().most_experts(), workers) +
               gate().rule().template bytes<S>(num_experts_, longest_list(), workers);
    }

    Index num_experts() const { return num_experts_; }

protected:
    /// Of a token, where a capacity around the gate finds another expert for each that is full.
    Index longest_list() const { return std::min(2 * gate().most_experts(), num_experts_); }

    TokenGate() = default;
    /// @throws std::invalid_argument if there are no experts
    explicit TokenGate(Index num_experts) : num_experts_(num_experts) {
        detail::check_experts(Gate::name, num_experts);
    }

    static auto normalizes(const Context&, Index) {
        return [](Index, Index) { return true; };
    }

private:
    const Gate& gate() const { return static_cast<const Gate&>(*this); }

    Index num_experts_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOKEN_GATE_HPP
