// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_KEEP_ANY_HPP
#define MOE_GATES_KEEP_ANY_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/steering.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/schedule.hpp>
#include <moe/gates/slot_masks.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/weights.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class KeepAnyModule;

/// Recipe for a top-k gate that learns how many of a token's k experts it can do without.
///
///     moe::KeepAny{moe::TopK{.k = 4}, {.from = 4, .to = 0.1, .steps = 500}}
struct KeepAny {
    TopK inner;  ///< without normalize_kept_only: what is kept is normalised here
    /// Of the masks in training, at Context::step; > 0. Set one that falls, as above.
    Schedule temperature = Schedule::constant(0.1);

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    KeepAnyModule<S> build(const Shape& shape, Random& random) const {
        return KeepAnyModule<S>(inner.template build<S>(shape, random), temperature,
                                shape.num_experts);
    }
};

/// The gate that KeepAny describes: k masks, of which mask j keeps the first j slots, and a choice
/// of one mask for every token.
///
///     g_i  = the inner gate's weight of slot i          i = 1 .. k, in slot order
///     a    = m + V g                                    [k] m: the last k of the E + k logits
///     pi   = softmax((a + Gumbel samples) / tau(step))  in training
///     pi   = 1 at the largest a, else 0                 at inference; the lower index of equals
///     c_i  = sum of pi_j over j >= i                    so c_1 = 1
///     w_i  = g_i c_i (sum of g) / (sum of g c)
///
/// In training all k experts run. At inference slots with c_i = 0 are Dropped::pruned and cost no
/// product; what is left weighs what all did. A token that has fewer experts has as many masks.
/// V [k, k] is trainable and starts at 0.
///
/// Backward is exact with the samples as constants: to all E + k logits and V in training, through
/// g alone at inference. Make mask_loss() part of the loss, or masks learn to keep everything.
///
/// Weights are those on the inner gate's side of the expert. What anyone has pruned has c_i = 0:
/// so a replay keeps the masks that were chosen. A sum of 0 makes weights of 0. A NaN among the
/// logits of a token, its masks' included, makes all its weights NaN. Steering and losses are about
/// the first E logits. The dial may set a lower k. Context::noise: [1, T, k] Gumbel samples.
///
/// Source: MC# (arXiv:2510.10962), online top-any pruning. It reads x and g; here the router of the
/// layer is what reads x.
template <class S>
class KeepAnyModule : public GateWrapper<S, TopKModule<S>> {
    using Base = GateWrapper<S, TopKModule<S>>;

public:
    static constexpr bool skips_empty_gradients = true;
    static constexpr bool weighs_added_experts = false;  // it has a mask for each of k

    using Base::inner;

    KeepAnyModule() = default;
    /// @param num_experts  of the layer
    /// @throws std::invalid_argument if a setting is out of range
    KeepAnyModule(TopKModule<S> gate, const Schedule& temperature, Index num_experts)
        : Base{std::move(gate)}, temperature_(temperature), num_experts_(num_experts) {
        temperature.check(name, "temperature");
        if (!(temperature.from > 0 && temperature.to > 0))
            detail::fail(name, ": temperature goes from ", temperature.from, " to ", temperature.to,
                         ", both must be > 0");
        if (inner.settings().normalize_kept_only)
            detail::fail(name,
                         ": normalize_kept_only of the gate inside is set, it must not be: what "
                         "is kept is normalised here");
        if (inner.settings().placement == Placement::straight_through)
            detail::fail(name,
                         ": placement of the gate inside is straight_through, it must be output or "
                         "input");
        mask_weight = Parameter<S>(num_masks(), num_masks());
    }

    Parameter<S> mask_weight;  // [k, k] V

    const Schedule& temperature() const { return temperature_; }
    Index num_experts() const { return num_experts_; }
    Index num_masks() const { return inner.settings().k; }
    Index num_logits(Index experts) const { return experts + num_masks(); }

    /// Adds the assignments of every token; at inference those beyond its mask are pruned.
    /// @param logits  [T, E + k]
    /// @throws std::invalid_argument if an extent or the dial is out of range
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits);
        check_dial(call.context, logits.rows());
        const Eigen::Ref<const Matrix<S>> z = logits.leftCols(num_experts_);
        Base::select(z, routing, call);
        if (call.context.training) return;
        routing.group();
        State& state = take_weights(z, routing, call);
        state.pruned.clear();
        for (Index t = 0; t < logits.rows(); ++t) {
            const Index first = routing.first(t), n = routing.first(t + 1) - first;
            S* const a = row(state.masks, t);
            masks().score(n, logits_of_masks(logits, t), state.weights.data() + first, a);
            for (Index i = masks().best(n, a); i < n; ++i) state.pruned.push_back(first + i);
        }
        for (const Index a : state.pruned) routing.set_dropped(a, Dropped::pruned);
        routing.group();
    }

    /// Sets the weights of the assignments that are there, whoever chose them.
    /// @throws std::invalid_argument if an extent is wrong or a token has more than k of them
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits);
        for (Index t = 0; t < logits.rows(); ++t)
            if (routing.first(t + 1) - routing.first(t) > num_masks())
                detail::fail(name, ": token ", t, " has ", routing.of(t).size(),
                             " experts, there are ", num_masks(), " masks");
        State& state = take_weights(logits.leftCols(num_experts_), routing, call);
        std::optional<detail::Samples> samples;
        if (call.context.training) samples.emplace(name, call, logits.rows(), num_masks());
        const double tau = temperature_.at(call.context.step);
        const bool on_input = inner.weighs_input();
        state.kept.resize(routing.num_assignments());
        detail::for_tokens(call.ws.executor(), logits.rows(), flops(), [&](Index t, int) {
            const Index first = routing.first(t), n = routing.first(t + 1) - first;
            const S* const g = state.weights.data() + first;
            S* const c = state.kept.data() + first;
            const S* const m = logits_of_masks(logits, t);
            if (samples) {
                S* const pi = row(state.masks, t);
                masks().score(n, m, g, pi);
                masks().keep_soft(
                    n, tau, [&](Index j) { return samples->gumbel(t, j); }, pi, c);
            } else {
                masks().keep_hard(n, m, c);
            }
            for (Index i = 0; i < n; ++i)
                if (is_pruned(routing, first + i)) c[i] = 0;
            const detail::KeptShares<S> shares(n, g, c);
            for (Index i = 0; i < n; ++i) {
                const auto w = static_cast<double>(shares.weight(i));
                on_input ? routing.set_input_weight(first + i, w)
                         : routing.set_weight(first + i, w);
            }
        });
    }

    /// Adds to dlogits [T, E + k] and to grad. Follows weigh() of the same batch.
    /// @throws std::logic_error unless there is one gradient per assignment
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, KeepAnyModule& grad, const Call<S>& call) const {
        check_extents(logits);
        const auto given =
            detail::gradients_at<S>(inner.settings().placement, dweights, routing, logits, dlogits);
        const State& state = call.ws.template state<State>();
        through(logits, routing, dlogits, grad, call, [&](Index first, Index n, S* dg, S* dc) {
            detail::KeptShares<S>(n, state.weights.data() + first, state.kept.data() + first)
                .backward(given.data() + first, dg, dc);
        });
    }

    /// The mean over tokens of (sum of c_i); see losses/mask.hpp. Follows weigh() of the same
    /// batch.
    /// @throws std::invalid_argument if it does not, or grad has other masks
    Loss mask_loss(In<S> logits, const Routing& routing, double weight, Out<S> dlogits,
                   KeepAnyModule& grad, const Call<S>& call) const {
        check_extents(logits);
        const State& state = call.ws.template state<State>();
        check_of_this_gate(routing, state, grad);
        double sum = 0;
        Index tokens = 0;
        for (Index t = 0; t < logits.rows(); ++t) {
            if (routing.of(t).empty()) continue;
            ++tokens;
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a)
                sum += static_cast<double>(state.kept[a]);
        }
        if (tokens == 0) return {"mask", 0};
        const auto slope = static_cast<S>(weight / static_cast<double>(tokens));
        if (slope != 0 && call.context.training)
            through(logits, routing, dlogits, grad, call, [&](Index, Index n, S* dg, S* dc) {
                std::fill_n(dg, n, S(0));
                std::fill_n(dc, n, slope);
            });
        return {"mask", sum / static_cast<double>(tokens)};
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        State& state = ws.template state<State>();
        state.masks.matrix(tokens, num_masks());
        state.weights.resize(assignments);
        state.kept.resize(assignments);
        state.pruned.reserve(detail::at(assignments));
        if (!ws.keeps()) return;
        state.dmasks.matrix(tokens, num_masks());
        state.dweights.resize(assignments);
        state.dkept.resize(assignments);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index times = keep == Keep::nothing ? 1 : 2;
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               times * (detail::checked_product(tokens, num_masks()) + 2 * assignments) *
                   static_cast<Index>(sizeof(S)) +
               assignments * static_cast<Index>(sizeof(Index));
    }

    /// what the inner gate has; mask_weight
    void visit_parameters(auto&& visit) {
        Base::visit_parameters(visit);
        visit("mask_weight", mask_weight);
    }

private:
    static constexpr const char* name = "moe::KeepAny";

    struct State {
        Buffer<S> masks;            // [T, k] pi; a while masks are chosen
        Buffer<S> weights, kept;    // [N] g, c
        Buffer<S> dmasks;           // [T, k] d(loss)/da
        Buffer<S> dweights, dkept;  // [N] d(loss)/dg, d(loss)/dc
        std::vector<Index> pruned;  // assignments
    };

    detail::SlotMasks<S> masks() const { return {mask_weight}; }
    /// m of a token.
    const S* logits_of_masks(In<S> logits, Index t) const {
        return row_data(logits, t) + num_experts_;
    }
    S* row(Buffer<S>& of_masks, Index t) const { return of_masks.data() + t * num_masks(); }
    double flops() const { return 40.0 * static_cast<double>(num_masks() * num_masks()); }
    static bool is_pruned(const Routing& routing, Index a) {
        return routing.assignments()[detail::at(a)].dropped == Dropped::pruned;
    }

    void check_extents(In<S> logits) const {
        if (logits.cols() != num_logits(num_experts_))
            detail::fail(name, ": logits is [", logits.rows(), ", ", logits.cols(),
                         "], the gate wants ", num_logits(num_experts_), " logits per token");
    }
    void check_of_this_gate(const Routing& routing, const State& state,
                            const KeepAnyModule& grad) const {
        if (routing.num_experts() != num_experts_ || state.kept.size() != routing.num_assignments())
            detail::fail(
                "moe::mask_loss: the workspace holds the batch of another gate; give it the gate "
                "of the layer that filled the workspace");
        if (!grad.mask_weight.empty() && grad.mask_weight.cols() != num_masks())
            detail::fail("moe::mask_loss: grad is for ", grad.mask_weight.cols(),
                         " masks, the gate has ", num_masks(),
                         "; make grad with zeros_like() of the gate's layer");
    }
    void check_dial(const Context& context, Index tokens) const {
        const Dial& dial = context.dial;
        detail::dialled<Index>(name, "dial.k_per_sequence", dial.k.value_or(1), dial.k_per_sequence,
                               context, tokens)
            .for_each("dial.k", "dial.k_per_sequence", [&](const char* field, Index k) {
                if (k > num_masks())
                    detail::fail(name, ": ", field, " is ", k, ", there are ", num_masks(),
                                 " masks; it must be at most that");
            });
    }

    /// Weighs as the inner gate does; leaves g in the state and room for the masks.
    State& take_weights(In<S> z, Routing& routing, const Call<S>& call) const {
        Base::weigh(z, routing, call);
        State& state = call.ws.template state<State>();
        state.masks.matrix(z.rows(), num_masks());
        state.weights.resize(routing.num_assignments());
        for (Index a = 0; a < routing.num_assignments(); ++a)
            state.weights[a] = inner.weighs_input() ? routing.template input_weight<S>(a)
                                                    : routing.template weight<S>(a);
        return state;
    }

    /// From the slots back: slots(first assignment, n, dg, dc) writes what reaches the weights of
    /// the inner gate directly, and c, for each token.
    template <class F>
    void through(In<S> logits, const Routing& routing, Out<S> dlogits, KeepAnyModule& grad,
                 const Call<S>& call, F&& slots) const {
        State& state = call.ws.template state<State>();
        const bool trains = call.context.training, on_input = inner.weighs_input();
        const auto tau = static_cast<S>(temperature_.at(call.context.step));
        state.dweights.resize(routing.num_assignments());
        state.dkept.resize(routing.num_assignments());
        state.dmasks.matrix(logits.rows(), num_masks());
        detail::for_tokens(call.ws.executor(), logits.rows(), flops(), [&](Index t, int) {
            const Index first = routing.first(t), n = routing.first(t + 1) - first;
            S *dg = state.dweights.data() + first, *dc = state.dkept.data() + first;
            slots(first, n, dg, dc);
            if (!trains) return;
            for (Index i = 0; i < n; ++i)
                if (is_pruned(routing, first + i)) dc[i] = 0;
            S* const da = row(state.dmasks, t);
            masks().backward(n, tau, row(state.masks, t), dc, da, dg);
            S* const dm = row_data(dlogits, t) + num_experts_;
            for (Index j = 0; j < n; ++j) dm[j] += da[j];
        });
        if (trains && !grad.mask_weight.empty()) add_mask_gradient(routing, state, grad);
        const auto count = detail::at(routing.num_assignments());
        const std::span<const S> given(state.dweights.data(), count), none;
        const WeightGradients<S> of_inner{on_input ? none : given, on_input ? given : none};
        Base::backward(logits.leftCols(num_experts_), routing, of_inner,
                       dlogits.leftCols(num_experts_), grad, call);
    }

    /// dV_ji += da_j g_i, tokens in order.
    void add_mask_gradient(const Routing& routing, State& state, KeepAnyModule& grad) const {
        for (Index t = 0; t < routing.num_tokens(); ++t) {
            const Index first = routing.first(t), n = routing.first(t + 1) - first;
            const S* const da = row(state.dmasks, t);
            for (Index j = 0; j < n; ++j)
                for (Index i = 0; i < n; ++i)
                    grad.mask_weight(j, i) =
                        std::fma(da[j], state.weights[first + i], grad.mask_weight(j, i));
        }
    }

    Schedule temperature_{};
    Index num_experts_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_KEEP_ANY_HPP
