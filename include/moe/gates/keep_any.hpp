// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_KEEP_ANY_HPP
#define MOE_GATES_KEEP_ANY_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/temperature.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/weights.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class KeepAnyModule;

/// Recipe for a top-k gate that learns how many of a token's k experts it can do without.
///
///     moe::KeepAny{moe::TopK{.k = 4}, moe::TemperatureSchedule{.from = 4, .to = 0.1, .steps = 500}}
struct KeepAny {
    TopK inner;  ///< without normalize_kept_only: what is kept is normalised here
    /// Of the masks in training, at Context::step; > 0.
    TemperatureSchedule temperature{.from = 4, .to = 0.1};

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
/// logits of a token, its masks' included, makes all its weights NaN. Experts that a token may not
/// go to are masked here. Losses that want one logit per expert refuse such logits. The dial may
/// set a lower k. Context::noise: [1, T, k] Gumbel samples.
///
/// Source: MC# (arXiv:2510.10962), online top-any pruning. It reads x and g; here the router of the
/// layer is what reads x.
template <class S>
class KeepAnyModule : public GateWrapper<S, TopKModule<S>> {
    using Base = GateWrapper<S, TopKModule<S>>;

public:
    static constexpr bool skips_empty_gradients = true;

    using Base::inner;

    KeepAnyModule() = default;
    /// @param num_experts  of the layer
    /// @throws std::invalid_argument if a setting is out of range
    KeepAnyModule(TopKModule<S> gate, const TemperatureSchedule& temperature, Index num_experts)
        : Base{std::move(gate)}, temperature_(temperature), num_experts_(num_experts) {
        temperature.check(name);
        if (!(temperature.from > 0 && temperature.to > 0))
            detail::fail(name, ": temperature goes from ", temperature.from, " to ",
                         temperature.to, ", both must be > 0");
        if (inner.settings().normalize_kept_only)
            detail::fail(name,
                         ": normalize_kept_only of the gate inside is set, it must not be: what "
                         "is kept is normalised here");
        mask_weight = Parameter<S>(num_masks(), num_masks());
    }

    Parameter<S> mask_weight;  // [k, k] V

    const TemperatureSchedule& temperature() const { return temperature_; }
    Index num_experts() const { return num_experts_; }
    Index num_masks() const { return inner.settings().k; }
    Index num_logits(Index experts) const { return experts + num_masks(); }

    /// Adds the assignments of every token, at inference those beyond its mask as pruned.
    /// @param logits  [T, E + k]
    /// @throws std::invalid_argument if an extent or the dial is out of range
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        check_extents(logits, routing);
        check_dial(call.context);
        const In<S> z = of_experts(logits, call);
        inner.select(z, routing, call);
        if (call.context.training) return;
        routing.group();
        inner.weigh(z, routing, call);
        State& state = call.ws.template state<State>();
        auto* const kept = state.kept.resize(logits.rows()).data();
        auto* const masks = state.masks.matrix(logits.rows(), num_masks()).data();
        detail::for_tokens(call.ws.executor(), logits.rows(), cost(), [&](Index t, int) {
            kept[t] = 0;
            const Index n = static_cast<Index>(routing.of(t).size());
            S* a = masks + t * num_masks();
            score_masks(row_data(logits, t), n, [&](Index i) { return weight_of(routing.of(t)[at(i)]); }, a);
            for (Index j = 1; j < n; ++j)
                if (a[j] > a[kept[t]]) kept[t] = j;
        });
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index i = routing.first(t) + kept[t] + 1; i < first_of_next(routing, t); ++i)
                pruned...
    }
