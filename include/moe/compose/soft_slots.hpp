// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_SOFT_SLOTS_HPP
#define MOE_COMPOSE_SOFT_SLOTS_HPP

#include <cmath>
#include <limits>

#include <moe/compose/product_tiles.hpp>
#include <moe/compose/slot_logits.hpp>
#include <moe/compose/slot_shares.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/views.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class SoftSlotsModule;

/// Recipe for the slots of SoftMoe. The defaults are those of the paper and of its code in V-MoE.
///
/// The package soft-moe-pytorch is {.slots_per_expert = tokens / experts, .norm = SlotNorm::rms,
/// .mix_normalized = true, .epsilon = 1e-24} with moe::Mlp{.activation = Activation::gelu, .bias =
/// true}; where it adds noise, that is Gumbel's.
///
/// Source: Puigcerver et al., "From Sparse to Soft Mixtures of Experts" (arXiv:2308.00951),
/// sections 2.1 and 2.3; google-research/vmoe, projects/soft_moe/router.py.
struct SoftSlots {
    /// 1 or more. The paper finds that, for one number of slots in all, many experts with 1 or 2
    /// slots each are best; published code has as many slots in all as a sequence has tokens.
    Index slots_per_expert = 1;
    SlotNorm norm = SlotNorm::length;
    bool mix_normalized = false;  ///< slots are mixtures of normalised tokens, not of tokens
    double scale = 1;             ///< what the learned scale starts as; of SlotNorm::length
    double noise = 0;             ///< standard deviation of noise on the logits, in training
    double epsilon = 1e-6;        ///< under the root of a length, > 0

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    SoftSlotsModule<S> build(const Shape& shape, Random& random) const {
        return SoftSlotsModule<S>(*this, shape, random);
    }
};

/// Mixes tokens into slots, and what experts make of the slots into outputs:
///
///     L(t, p) = scale <x_t / |x_t|, phi_p / |phi_p|>       detail::SlotLogits, and noise
///     D(t, p) = softmax of L over the tokens t of the sequence
///     C(t, p) = softmax of L over the slots p
///     slot_p  = sum over t of D(t, p) x_t                  dispatch()
///     y_t     = sum over p of C(t, p) out_p                combine()
///
/// Sums are chains in the order of tokens, or of slots. What a call leaves behind is in its
/// workspace: dispatch, combine, combine_backward and dispatch_backward are called in this order.
template <class S>
class SoftSlotsModule : public detail::SlotLogits<S> {
    using Logits = detail::SlotLogits<S>;

public:
    using Scalar = S;
    using Logits::phi, Logits::scale, Logits::token_gain, Logits::slot_gain;

    /// Holds nothing; a gradient like this is not wanted.
    SoftSlotsModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    SoftSlotsModule(const SoftSlots& settings, const Shape& shape, Random& random)
        : Logits(checked(settings).norm, settings.epsilon, settings.scale,
                 detail::checked_product(shape.num_experts, settings.slots_per_expert),
                 shape.model_dim, random),
          settings_(settings),
          num_experts_(shape.num_experts) {}

    const SoftSlots& settings() const { return settings_; }
    /// P, slots per sequence of all experts together.
    Index num_slots() const {
        return detail::checked_product(num_experts_, settings_.slots_per_expert);
    }
    Index expert_of(Index slot) const { return slot / settings_.slots_per_expert; }

    /// What the last call left in its workspace.
    struct State : Logits::LogitState {
        detail::SlotShares<S> shares;
    };

    /// Writes what experts read.
    /// @param x       [T, D] padding as 0
    /// @param inputs  [B P, D], slot p of sequence b in row b P + p
    void dispatch(In<S> x, Out<S> inputs, const Call<S>& call) const {
        State& s = call.ws.template state<State>();
        Executor& executor = call.ws.executor();
        const Index columns = x.cols(), slots = num_slots();
        s.shares.resize(x.rows(), slots);
        Logits::logits(x, s.shares.combine.data(), s, executor);
        s.shares.forward(sequences_of(call, s), executor,
                         [&, random = call.random()](Index t, Index p, S logit) {
                             return noised_and_masked(t, p, logit, random, call);
                         });
        const Strided<S> mixed = mixed_of(x, s), shares = rows_of(s.shares.dispatch, x.rows());
        const auto sequences = sequences_of(call, s);
        s.products.run(executor, sequences.count(), [&](Index b) {
            const Index t = sequences.first(b), n = sequences.size(b);
            return detail::MatrixProduct<S>{slots,
                                            columns,
                                            n,
                                            shares.from(0, t),
                                            mixed.from(t, 0),
                                            row_data(inputs, b * slots),
                                            inputs.outerStride()};
        });
    }

    /// Writes y [T, O] from outputs [B P, O].
    void combine(In<S> outputs, Out<S> y, const Call<S>& call) const {
        State& s = call.ws.template state<State>();
        const Index slots = num_slots();
        const Strided<S> shares = rows_of(s.shares.combine, slots);
        const auto sequences = sequences_of(call, s);
        s.products.run(call.ws.executor(), sequences.count(), [&](Index b) {
            const Index t = sequences.first(b), n = sequences.size(b);
            return detail::MatrixProduct<S>{n,
                                            y.cols(),
                                            slots,
                                            shares.from(t, 0),
                                            rows_of(outputs).from(b * slots, 0),
                                            row_data(y, t),
                                            y.outerStride()};
        });
    }

    /// Writes doutputs [B P, O].
    /// @param dy  [T, O] padding as 0
    void combine_backward(In<S> outputs, In<S> dy, Out<S> doutputs, const Call<S>& call) const {
        State& s = call.ws.template state<State>();
        const Index slots = num_slots(), columns = dy.cols();
        const Strided<S> shares = rows_of(s.shares.combine, slots);
        const auto sequences = sequences_of(call, s);
        s.shares.resize_gradients();
        s.products.run(call.ws.executor(), sequences.count(), [&](Index b) {
            const Index t = sequences.first(b), n = sequences.size(b);
            return detail::MatrixProduct<S>{n,
                                            slots,
                                            columns,
                                            rows_of(dy).from(t, 0),
                                            rows_of(outputs).from(b * slots, 0).transpose(),
                                            s.shares.dcombine.data() + t * slots,
                                            slots};
        });
        s.products.run(call.ws.executor(), sequences.count(), [&](Index b) {
            const Index t = sequences.first(b), n = sequences.size(b);
            return detail::MatrixProduct<S>{slots,
                                            columns,
                                            n,
                                            shares.from(t, 0).transpose(),
                                            rows_of(dy).from(t, 0),
                                            row_data(doutputs, b * slots),
                                            doutputs.outerStride()};
        });
    }

    /// Writes dx [T, D], 0 for padding; adds to grad.
    /// @param x        [T, D] padding as 0
    /// @param dinputs  [B P, D]
    void dispatch_backward(In<S> x, In<S> dinputs, Out<S> dx, SoftSlotsModule& grad,
                           const Call<S>& call) const {
        State& s = call.ws.template state<State>();
        Executor& executor = call.ws.executor();
        const Index tokens = x.rows(), columns = x.cols(), slots = num_slots();
        const Strided<S> mixed = mixed_of(x, s), shares = rows_of(s.shares.dispatch, tokens);
        const auto sequences = sequences_of(call, s);
        s.products.run(executor, sequences.count(), [&](Index b) {
            const Index t = sequences.first(b), n = sequences.size(b);
            return detail::MatrixProduct<S>{slots,
                                            n,
                                            columns,
                                            rows_of(dinputs).from(b * slots, 0),
                                            mixed.from(t, 0).transpose(),
                                            s.shares.ddispatch.data() + t,
                                            tokens};
        });
        // What is mixed are the tokens or the normalised tokens.
        View<S> dunits = s.dunits.matrix(tokens, columns);
        const bool mixes_units = settings_.mix_normalized;
        if (mixes_units) dx.setZero();
        S* const dmixed = mixes_units ? dunits.data() : dx.data();
        const Index stride = mixes_units ? columns : dx.outerStride();
        s.products.run(executor, sequences.count(), [&](Index b) {
            const Index t = sequences.first(b), n = sequences.size(b);
            return detail::MatrixProduct<S>{n,
                                            columns,
                                            slots,
                                            shares.from(0, t).transpose(),
                                            rows_of(dinputs).from(b * slots, 0),
                                            dmixed + t * stride,
                                            stride};
        });
        s.shares.backward(sequences, executor);
        Logits::logits_backward(x, s.shares.dcombine, mixes_units, dx, grad, s, executor,
                                call.context);
    }

    void reserve(Index tokens, Workspace<S>& ws) const {
        State& s = ws.template state<State>();
        s.reserve(tokens, num_slots(), phi.cols(), ws);
        s.shares.resize(tokens, num_slots());
        if (ws.keeps()) s.shares.resize_gradients();
    }
    /// Bytes of that room, for a call by `workers` threads.
    Index workspace_bytes(Index tokens, Keep keep, int workers) const {
        const Index matrices = keep == Keep::nothing ? 2 : 4;
        return detail::checked_product(tokens, matrices * num_slots()) *
                   static_cast<Index>(sizeof(S)) +
               Logits::LogitState::bytes(tokens, num_slots(), phi.cols(), keep, workers);
    }

private:
    using Logits::rows_of;

    static const SoftSlots& checked(const SoftSlots& s) {
        const char* const who = "moe::SoftSlots";
        if (s.slots_per_expert < 1)
            detail::fail(who, ": slots_per_expert is ", s.slots_per_expert,
                         ", it must be >= 1; the paper uses 1 or 2");
        detail::check_choice(who, "norm", s.norm, SlotNorm::rms);
        if (!std::isfinite(s.scale))
            detail::fail(who, ": scale is ", s.scale, ", it must be finite; it starts as 1");
        if (s.norm == SlotNorm::rms && s.scale != 1)
            detail::fail(who, ": scale is ", s.scale,
                         ", it must be 1 with SlotNorm::rms, whose gains take its place");
        if (!(s.noise >= 0) || !std::isfinite(s.noise))
            detail::fail(who, ": noise is ", s.noise, ", it must be finite and >= 0; 0: none");
        if (!(s.epsilon > 0) || !std::isfinite(s.epsilon))
            detail::fail(who, ": epsilon is ", s.epsilon, ", it must be > 0, e.g. 1e-6");
        return s;
    }

    /// [T, D] what slots are mixtures of.
    Strided<S> mixed_of(In<S> x, const State& s) const {
        return settings_.mix_normalized ? rows_of(s.units, x.cols()) : rows_of(x);
    }
    static detail::Sequences sequences_of(const Call<S>& call, const State& s) {
        return {call.context.sequence_offsets, s.shares.tokens};
    }

    S noised_and_masked(Index t, Index p, S logit, const CounterRandom& random,
                        const Call<S>& call) const {
        const Context& context = call.context;
        if (context.is_padding(t) || !context.is_allowed(t, expert_of(p)))
            return -std::numeric_limits<S>::infinity();
        if (!context.training || settings_.noise == 0) return logit;
        return static_cast<S>(
            std::fma(settings_.noise, random.normal(call.token(t), p), static_cast<double>(logit)));
    }

    SoftSlots settings_;
    Index num_experts_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_COMPOSE_SOFT_SLOTS_HPP
