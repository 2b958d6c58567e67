// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_SOFT_SLOTS_HPP
#define MOE_COMPOSE_SOFT_SLOTS_HPP

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <moe/compose/product_tiles.hpp>
#include <moe/compose/slot_shares.hpp>
#include <moe/compose/unit_rows.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/group.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class SoftSlotsModule;

/// What tokens and slot parameters are divided by before they are compared.
enum class SlotNorm {
    length,  ///< sqrt(<v, v> + epsilon), and the logits have a learned scale (V-MoE)
    rms,     ///< that over sqrt(D), and each side has a learned gain per column (soft-moe-pytorch)
};

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
///     L(t, p) = scale <x_t / |x_t|, phi_p / |phi_p|>       |v| = sqrt(<v, v> + epsilon)
///     D(t, p) = softmax of L over the tokens t of the sequence
///     C(t, p) = softmax of L over the slots p
///     slot_p  = sum over t of D(t, p) x_t                  dispatch()
///     y_t     = sum over p of C(t, p) out_p                combine()
///
/// With SlotNorm::rms the logits are <sqrt(D) g * x_t / |x_t|, sqrt(D) h * phi_p / |phi_p|>. Sums
/// are chains in the order of tokens, or of slots. What a call leaves behind is in its workspace:
/// dispatch, combine, combine_backward and dispatch_backward are called in this order.
template <class S>
class SoftSlotsModule {
public:
    using Scalar = S;

    /// Holds nothing; a gradient like this is not wanted.
    SoftSlotsModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    SoftSlotsModule(const SoftSlots& settings, const Shape& shape, Random& random)
        : settings_(settings), num_experts_(shape.num_experts) {
        check();
        phi = Parameter<S>(num_slots(), shape.model_dim);
        random.fill_normal(phi, 1 / std::sqrt(static_cast<double>(shape.model_dim)));
        if (has_gains()) {
            token_gain = slot_gain = Parameter<S>(1, shape.model_dim);
            std::fill_n(token_gain.data(), token_gain.size(), S(1));
            std::fill_n(slot_gain.data(), slot_gain.size(), S(1));
        } else {
            scale = Parameter<S>(1, 1);
            scale(0, 0) = static_cast<S>(settings.scale);
        }
    }

    Parameter<S> phi;                    // [P, D], the slots of an expert next to each other
    Parameter<S> scale;                  // [1, 1] or empty
    Parameter<S> token_gain, slot_gain;  // [1, D] or empty

    const SoftSlots& settings() const { return settings_; }
    /// P, slots per sequence of all experts together.
    Index num_slots() const {
        return detail::checked_product(num_experts_, settings_.slots_per_expert);
    }
    Index expert_of(Index slot) const { return slot / settings_.slots_per_expert; }

    /// What the last call left in its workspace.
    struct State {
        detail::SlotShares<S> shares;
        Buffer<S> units, inverse;            // [T, D], [T] normalised tokens, 1 / |x|
        Buffer<S> slot_units, slot_inverse;  // [P, D], [P] normalised phi, 1 / |phi|
        Buffer<S> dunits, dslot_units;       // [T, D], [P, D]
        detail::ProductTiles<S> products;
    };

    /// Writes what experts read.
    /// @param x       [T, D] padding as 0
    /// @param inputs  [B P, D], slot p of sequence b in row b P + p
    void dispatch(In<S> x, Out<S> inputs, const Call<S>& call) const {
        State& s = call.ws.template state<State>();
        Executor& executor = call.ws.executor();
        const Index columns = x.cols(), slots = num_slots();
        normalize(x, s, executor);
        s.shares.resize(x.rows(), slots);
        s.products.run(
            executor, {x.rows(), slots, columns, rows_of(s.units, columns),
                       rows_of(s.slot_units, columns).transpose(), s.shares.combine.data(), slots});
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
        s.products.run(executor,
                       {tokens, columns, slots, rows_of(s.shares.dcombine, slots),
                        rows_of(s.slot_units, columns), dunits.data(), columns, mixes_units});
        slots_backward(s, grad, executor);
        tokens_backward(x, dx, s, grad, executor, call.context);
    }

    void reserve(Index tokens, Workspace<S>& ws) const {
        State& s = ws.template state<State>();
        const Index slots = num_slots(), columns = phi.cols();
        s.shares.resize(tokens, slots);
        s.units.matrix(tokens, columns), s.inverse.resize(tokens);
        s.slot_units.matrix(slots, columns), s.slot_inverse.resize(slots);
        s.products.reserve(ws.executor());
        if (!ws.keeps()) return;
        s.shares.resize_gradients();
        s.dunits.matrix(tokens, columns), s.dslot_units.matrix(slots, columns);
    }

    /// @throws std::invalid_argument unless each matrix of grad is empty or like the module's
    void check_gradient(const SoftSlotsModule& grad) const {
        const auto fits = [](const char* name, const Parameter<S>& found,
                             const Parameter<S>& ours) {
            if (!found.empty() && (found.rows() != ours.rows() || found.cols() != ours.cols()))
                detail::fail("moe::SoftMoe::backward: grad is of another layer: its ", name,
                             " is [", found.rows(), ", ", found.cols(), "], the layer's is [",
                             ours.rows(), ", ", ours.cols(), "]; make it with zeros_like(layer)");
        };
        fits("phi", grad.phi, phi), fits("scale", grad.scale, scale);
        fits("token_gain", grad.token_gain, token_gain),
            fits("slot_gain", grad.slot_gain, slot_gain);
    }

    /// phi, then scale or token_gain and slot_gain
    void visit_parameters(auto&& visit) {
        visit("phi", phi);
        if (has_gains())
            visit("token_gain", token_gain), visit("slot_gain", slot_gain);
        else
            visit("scale", scale);
    }

private:
    void check() const {
        const char* const who = "moe::SoftSlots";
        const SoftSlots& s = settings_;
        if (s.slots_per_expert < 1)
            detail::fail(who, ": slots_per_expert is ", s.slots_per_expert,
                         ", it must be >= 1; the paper uses 1 or 2");
        detail::check_choice(who, "norm", s.norm, SlotNorm::rms);
        if (!std::isfinite(s.scale))
            detail::fail(who, ": scale is ", s.scale, ", it must be finite; it starts as 1");
        if (has_gains() && s.scale != 1)
            detail::fail(who, ": scale is ", s.scale,
                         ", it must be 1 with SlotNorm::rms, whose gains take its place");
        if (!(s.noise >= 0) || !std::isfinite(s.noise))
            detail::fail(who, ": noise is ", s.noise, ", it must be finite and >= 0; 0: none");
        if (!(s.epsilon > 0) || !std::isfinite(s.epsilon))
            detail::fail(who, ": epsilon is ", s.epsilon, ", it must be > 0, e.g. 1e-6");
    }

    bool has_gains() const { return settings_.norm == SlotNorm::rms; }
    detail::UnitRows<S> token_norm() const {
        return has_gains() ? gained(token_gain)
                           : detail::UnitRows<S>{phi.cols(), settings_.epsilon};
    }
    detail::UnitRows<S> slot_norm() const {
        return has_gains() ? gained(slot_gain)
                           : detail::UnitRows<S>{phi.cols(), settings_.epsilon, scale(0, 0)};
    }
    detail::UnitRows<S> gained(const Parameter<S>& gain) const {
        const auto root = static_cast<S>(std::sqrt(static_cast<double>(gain.cols())));
        return {gain.cols(), settings_.epsilon, root, gain.data()};
    }

    static Strided<S> rows_of(const Buffer<S>& matrix, Index columns) {
        return {matrix.data(), columns, 1};
    }
    static Strided<S> rows_of(In<S> matrix) { return {matrix.data(), matrix.outerStride(), 1}; }
    /// [T, D] what slots are mixtures of.
    Strided<S> mixed_of(In<S> x, const State& s) const {
        return settings_.mix_normalized ? rows_of(s.units, x.cols()) : rows_of(x);
    }
    static detail::Sequences sequences_of(const Call<S>& call, const State& s) {
        return {call.context.sequence_offsets, s.shares.tokens};
    }

    void normalize(In<S> x, State& s, Executor& executor) const {
        const KernelTable<S>& kernel = kernels<S>();
        const detail::UnitRows<S> of_tokens = token_norm(), of_slots = slot_norm();
        View<S> units = s.units.matrix(x.rows(), x.cols());
        s.inverse.resize(x.rows());
        detail::for_rows(executor, x.rows(), 4 * x.cols(), [&](Index t) {
            s.inverse[t] = of_tokens.forward(kernel, row_data(x, t), row_data(units, t));
        });
        View<S> slot_units = s.slot_units.matrix(num_slots(), x.cols());
        s.slot_inverse.resize(num_slots());
        detail::for_rows(executor, num_slots(), 4 * x.cols(), [&](Index p) {
            s.slot_inverse[p] = of_slots.forward(kernel, phi.row(p), row_data(slot_units, p));
        });
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

    /// From d(loss)/d(logits) to phi, and to the scale or the gain of slots.
    void slots_backward(State& s, SoftSlotsModule& grad, Executor& executor) const {
        if (grad.phi.empty() && grad.scale.empty() && grad.slot_gain.empty()) return;
        const KernelTable<S>& kernel = kernels<S>();
        const detail::UnitRows<S> norm = slot_norm();
        const Index slots = num_slots(), columns = phi.cols();
        View<S> dunits = s.dslot_units.matrix(slots, columns);
        s.products.run(executor, {slots, columns, s.shares.tokens,
                                  rows_of(s.shares.dcombine, slots).transpose(),
                                  rows_of(s.units, columns), dunits.data(), columns});
        for (Index p = 0; p < slots && !grad.scale.empty(); ++p)
            grad.scale(0, 0) =
                std::fma(s.slot_inverse[p], kernel.dot(columns, phi.row(p), row_data(dunits, p)),
                         grad.scale(0, 0));
        for (Index p = 0; p < slots && !grad.slot_gain.empty(); ++p)
            norm.backward_gain(0, columns, phi.row(p), s.slot_inverse[p], row_data(dunits, p),
                               grad.slot_gain.data());
        detail::for_rows(executor, grad.phi.rows(), 6 * columns, [&](Index p) {
            norm.backward(kernel, phi.row(p), s.slot_inverse[p], row_data(dunits, p),
                          grad.phi.row(p));
        });
    }

    /// From d(loss)/d(normalised tokens) to dx, and to the gain of tokens.
    void tokens_backward(In<S> x, Out<S> dx, State& s, SoftSlotsModule& grad, Executor& executor,
                         const Context& context) const {
        const KernelTable<S>& kernel = kernels<S>();
        const detail::UnitRows<S> norm = token_norm();
        const Index columns = x.cols();
        if (!grad.token_gain.empty())
            detail::for_column_runs(
                executor, columns, 4 * static_cast<double>(x.size()), [&](Index at, Index width) {
                    for (Index t = 0; t < x.rows(); ++t)
                        if (!context.is_padding(t))
                            norm.backward_gain(at, width, row_data(x, t), s.inverse[t],
                                               s.dunits.data() + t * columns,
                                               grad.token_gain.data());
                });
        detail::for_rows(executor, x.rows(), 6 * columns, [&](Index t) {
            if (context.is_padding(t))
                std::fill_n(row_data(dx, t), columns, S(0));
            else
                norm.backward(kernel, row_data(x, t), s.inverse[t], s.dunits.data() + t * columns,
                              row_data(dx, t));
        });
    }

    SoftSlots settings_;
    Index num_experts_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_COMPOSE_SOFT_SLOTS_HPP
