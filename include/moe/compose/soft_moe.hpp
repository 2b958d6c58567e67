// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_SOFT_MOE_HPP
#define MOE_COMPOSE_SOFT_MOE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <moe/bank.hpp>
#include <moe/compose/soft_slots.hpp>
#include <moe/core/fingerprint.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/layer.hpp>

namespace moe::inline MOE_ABI {

/// A Soft Mixture of Experts: an expert works on slots, which are mixtures of all tokens of a
/// sequence, and a token gets a mixture of what all slots become. Every token reaches every expert
/// for the price of a few rows, nothing is dropped, nothing is a hard choice.
///
///     slot_p = sum over t of D(t, p) x_t          D: softmax over the tokens of the sequence
///     out_p  = expert_{p / slots_per_expert}(input_scale * slot_p)
///     y_t    = sum over p of C(t, p) out_p        C: softmax over all slots
///
/// with D and C of the same logits, see SoftSlotsModule. For encoders of whole sequences, images
/// above all; it is not causal.
///
///     moe::SoftMoe layer{moe::Config{.model_dim = 64}, moe::SoftSlots{.slots_per_expert = 2},
///                        moe::Swiglu{.count = 8, .ffn_dim = 128}};
///
/// It is called and trained as a Layer is. The sequences are those of Context::sequence_offsets;
/// without them the batch is one. A sequence's results do not depend on the rest of the batch.
/// Padding is in no slot, gets y = 0 and dx = 0; a sequence of padding only has no slots. A token
/// is in no slot of an expert that Context::allowed denies it, and gets nothing from there. A NaN
/// in a token is in all slots of its sequence. Experts take slots for tokens: what they draw is
/// keyed by first_token + the slot's number within the batch. There is no routing, so no losses of
/// it.
///
/// Source: Puigcerver et al., "From Sparse to Soft Mixtures of Experts" (arXiv:2308.00951),
/// section 2.1 and algorithm 1.
template <class S, class... Groups>
class SoftMoe {
public:
    using Scalar = S;
    using SlotsType = SoftSlotsModule<S>;
    using BankType = Bank<S, Groups...>;

    /// Holds nothing; a gradient like this is not wanted.
    SoftMoe() = default;

    /// @throws std::invalid_argument if a setting is out of range or a group has no routed experts
    explicit SoftMoe(const Config& config, const SoftSlots& slots, const Groups&... groups)
        : bank_(config, groups...) {
        static_assert(sizeof...(Groups) > 0, "moe: a SoftMoe needs experts");
        check_groups();
        Random random = Random(config.seed, 1).child(0);
        slots_ = slots.build<S>(detail::shape_of(config, num_experts()), random);
    }

    /// A layer of this type from modules that exist already, e.g. frozen groups.
    /// @throws std::invalid_argument if they do not fit each other or the config
    static SoftMoe of_modules(const Config& config, SlotsType slots,
                              typename BankType::GroupTuple groups) {
        SoftMoe layer;
        layer.bank_ = BankType(config, std::move(groups));
        layer.check_groups();
        layer.slots_ = std::move(slots);
        const Index fit = layer.num_experts() * layer.slots_.settings().slots_per_expert;
        if (layer.num_slots() != fit || layer.slots_.phi.cols() != config.model_dim)
            detail::fail("moe::SoftMoe: the slots are ", layer.num_slots(), " of ",
                         layer.slots_.phi.cols(), " columns, it must be ", fit, " of ",
                         config.model_dim, ", slots_per_expert for each expert of the groups");
        return layer;
    }

    const Config& config() const { return bank_.config(); }
    Index model_dim() const { return config().model_dim; }
    Index output_dim() const { return bank_.output_dim(); }
    Index num_experts() const { return bank_.num_experts(); }
    /// P, slots per sequence of all experts together.
    Index num_slots() const { return slots_.num_slots(); }
    const SlotsType& slots() const { return slots_; }
    SlotsType& slots() { return slots_; }
    const BankType& bank() const { return bank_; }
    BankType& bank() { return bank_; }

    /// [P, T] D of the last batch, slots in rows: how much of its slots each token is.
    ConstView<S> dispatch(Workspace<S>& ws) const {
        const auto& shares = last(ws).shares;
        return {shares.dispatch.data(), shares.slots, shares.tokens,
                Eigen::OuterStride<>(shares.tokens)};
    }
    /// [T, P] C of the last batch: how much of its output each token gets from which slot.
    ConstView<S> combine(Workspace<S>& ws) const {
        const auto& shares = last(ws).shares;
        return {shares.combine.data(), shares.tokens, shares.slots,
                Eigen::OuterStride<>(shares.slots)};
    }

    /// Inference in one line; allocates the result and a workspace.
    template <class X>
    Matrix<S> operator()(const X& x, const Context& context = {}) const {
        Workspace<S> ws;
        ws.keep(Keep::nothing);
        Matrix<S> y(x.rows(), output_dim());
        forward(x, y, ws, context);
        return y;
    }

    /// y = layer(x).
    /// @param x  [T, D]; T may be 0   @param y  [T, O], overwritten; must not overlap x
    /// @throws std::invalid_argument if an extent is wrong, or the context steers by anything but
    ///         allowed and gate_multiplier, or wants gradients of it; y and ws are then unspecified
    template <class X, class Y>
    void forward(const X& x, Y&& y, Workspace<S>& ws, const Context& context = {}) const {
        run(detail::readable<S>(x), detail::writable<S>(std::forward<Y>(y)), ws, context);
    }

    /// The gradients of forward().
    /// @param dy    [T, O] d(loss)/dy
    /// @param dx    [T, D], overwritten with d(loss)/dx
    /// @param grad  made by zeros_like(layer); **added** to
    /// @throws std::logic_error if ws does not hold what forward() of this layer, x and context
    ///         left
    /// @throws std::invalid_argument if an extent is wrong, grad is of another layer, or forward()
    ///         refuses the context
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, SoftMoe& grad, Workspace<S>& ws,
                  const Context& context = {}) const {
        run_backward(detail::readable<S>(x), detail::readable<S>(dy),
                     detail::writable<S>(std::forward<DX>(dx)), grad, ws, context);
    }
    /// Only dx: parameter gradients are not computed.
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, NoGradient, Workspace<S>& ws,
                  const Context& context = {}) const {
        backward(x, dy, std::forward<DX>(dx), ws.template state<SoftMoe>(), ws, context);
    }

    /// Rooms for `tokens` tokens in sequences that have `slots` slots together, num_slots() each;
    /// see Workspace::reserve.
    void reserve(Index tokens, Index slots, Workspace<S>& ws) const {
        State& state = ws.template state<State>();
        const Index all = std::max(slots, num_slots());
        state.tokens.matrix(tokens, model_dim());
        state.inputs.matrix(all, model_dim()), state.outputs.matrix(all, output_dim());
        state.routing.reserve(all, num_experts(), all);
        slots_.reserve(tokens, ws.child(slots_node));
        bank_.reserve(all, all, ws.child(detail::bank_node));
        if (!ws.keeps()) return;
        ws.template state<SoftMoe>();  // for no_gradient
        state.dy.matrix(tokens, output_dim());
        state.dinputs.matrix(all, model_dim()), state.doutputs.matrix(all, output_dim());
        state.dweights.resize(all);
    }

    /// Bytes of those rooms, for a call by `workers` threads. A group that does not say counts as
    /// 0.
    Index workspace_bytes(Index tokens, Index slots, Keep keep, int workers) const {
        const Index all = std::max(slots, num_slots()), wide = model_dim() + output_dim();
        Index scalars =
            detail::checked_product(tokens, model_dim()) + detail::checked_product(all, wide);
        if (keep != Keep::nothing)
            scalars += detail::checked_product(tokens, output_dim()) +
                       detail::checked_product(all, wide + 1);
        return detail::checked_product(scalars, static_cast<Index>(sizeof(S))) +
               Routing::bytes(all, num_experts(), all) +
               slots_.workspace_bytes(tokens, keep, workers) +
               bank_.workspace_bytes(all, all, keep, workers);
    }

    /// slots.*, experts.<e>.*
    void visit_parameters(auto&& visit) {
        moe::visit_parameters(slots_, [&visit](std::string_view name, auto& matrix, Role role) {
            visit("slots." + std::string(name), matrix, role);
        });
        bank_.visit_parameters(visit);
    }
    void own_gradients() { bank_.own_gradients(); }

private:
    static constexpr std::size_t slots_node = detail::router_node;  // where a Layer has its logits

    struct State {
        Routing routing;              // each slot to its expert, with weight 1
        Buffer<S> tokens, dy;         // [T, D], [T, O] padding as 0; only if there is some
        Buffer<S> inputs, outputs;    // [B P, D], [B P, O] of the experts
        Buffer<S> dinputs, doutputs;  // the same of backward
        Buffer<S> dweights;           // [B P] of the weights 1; nobody asks
        std::uint64_t fingerprint = 0;
    };

    void run(In<S> x, Out<S> y, Workspace<S>& ws, const Context& context) const {
        check("forward", x, y, "y", context);
        State& state = ws.template state<State>();
        state.fingerprint = 0;  // until all is there
        const Context known = bank_.with_facts(context);
        const Call<S> call{known, ws.child(slots_node)};
        send(x.rows(), context, state.routing);
        const Index all = state.routing.num_tokens();
        View<S> inputs = state.inputs.matrix(all, model_dim());
        View<S> outputs = state.outputs.matrix(all, output_dim());
        slots_.dispatch(without_padding(x, context, state.tokens), inputs, call);
        bank_.apply(inputs, state.routing, outputs, ws.child(detail::bank_node),
                    context.without_tokens());
        slots_.combine(outputs, y, call);
        state.fingerprint = ws.keeps() ? fingerprint(x, context) : 0;
    }

    void run_backward(In<S> x, In<S> dy, Out<S> dx, SoftMoe& grad, Workspace<S>& ws,
                      const Context& context) const {
        check("backward", x, dy, "dy", context);
        check_gradient(x, dy, dx, grad);
        State* const state = ws.template find<State>();
        if (state == nullptr || state->fingerprint != fingerprint(x, context))
            detail::fail_without_batch(ws);
        const Context known = bank_.with_facts(context);
        const Call<S> call{known, ws.child(slots_node)};
        const Index all = state->routing.num_tokens();
        View<S> inputs = state->inputs.matrix(all, model_dim());  // as forward left them
        View<S> outputs = state->outputs.matrix(all, output_dim());
        View<S> dinputs = state->dinputs.matrix(all, model_dim());
        View<S> doutputs = state->doutputs.matrix(all, output_dim());
        slots_.combine_backward(outputs, without_padding(dy, context, state->dy), doutputs, call);
        bank_.apply_backward(inputs, state->routing, doutputs, dinputs,
                             state->dweights.resize(state->routing.num_assignments()), {},
                             grad.bank_, ws.child(detail::bank_node), context.without_tokens());
        slots_.dispatch_backward(without_padding(x, context, state->tokens), dinputs, dx,
                                 grad.slots_, call);
    }

    void check_groups() const {
        bank_.for_each_group([](std::size_t i, const auto& group) {
            if (group.num_experts() == 0)
                detail::fail("moe::SoftMoe: group ", i,
                             " has no routed experts (Shared), it must have some; what it gives "
                             "for x, and not for slots, can be added to y outside");
        });
    }

    /// Slot p of sequence b is row b P + p. A sequence without tokens sends nothing.
    void send(Index tokens, const Context& context, Routing& routing) const {
        const detail::Sequences sequences{context.sequence_offsets, tokens};
        routing.reset(sequences.count() * num_slots(), num_experts());
        for (Index b = 0; b < sequences.count(); ++b) {
            bool has_tokens = false;
            for (Index t = sequences.first(b); t < sequences.last(b); ++t)
                has_tokens |= !context.is_padding(t);
            for (Index p = 0; p < num_slots() && has_tokens; ++p)
                routing.add(b * num_slots() + p, slots_.expert_of(p));
        }
        routing.group();
    }

    /// What the matrix holds for padding, be it NaN, reaches nobody.
    static Eigen::Ref<const Matrix<S>> without_padding(In<S> matrix, const Context& context,
                                                       Buffer<S>& room) {
        if (context.padding.empty()) return matrix;
        View<S> copy = room.matrix(matrix.rows(), matrix.cols());
        for (Index t = 0; t < matrix.rows(); ++t)
            if (context.is_padding(t))
                std::fill_n(row_data(copy, t), copy.cols(), S(0));
            else
                std::copy_n(row_data(matrix, t), copy.cols(), row_data(copy, t));
        return copy;
    }

    const typename SlotsType::State& last(Workspace<S>& ws) const {
        const auto* const mixing = ws.child(slots_node).template find<typename SlotsType::State>();
        if (mixing == nullptr)
            detail::fail<std::logic_error>(
                "moe::SoftMoe: no batch was here; call forward() with this workspace first");
        return *mixing;
    }
    std::uint64_t fingerprint(In<S> x, const Context& context) const {
        return detail::Fingerprint(identity_).template batch<S>(x).context(context).value();
    }

    /// @param y  y or dy, as `what` says
    void check(const char* call, In<S> x, In<S> y, const char* what, const Context& context) const {
        if (x.cols() != model_dim())
            detail::fail("moe::SoftMoe::", call, ": x has ", x.cols(), " columns, model_dim is ",
                         model_dim(), "; a token is a row of x");
        if (y.rows() != x.rows() || y.cols() != output_dim())
            detail::fail("moe::SoftMoe::", call, ": ", what, " is [", y.rows(), ", ", y.cols(),
                         "], it must be [", x.rows(), ", ", output_dim(), "]");
        if (*what == 'y' && detail::overlap<S>(x, y))
            detail::fail("moe::SoftMoe::", call,
                         ": y shares memory with x, which is read while y is written; give it a "
                         "matrix of its own");
        check_steering(context);
        detail::check_context(context, x.rows(), num_experts(), num_slots(), false);
    }
    /// What it does not do is refused, before it is looked at.
    static void check_steering(const Context& context) {
        const Dial& dial = context.dial;
        const bool steers = !context.logit_offset.empty() || context.forces() || dial.k || dial.p ||
                            !dial.k_per_sequence.empty() || !dial.p_per_sequence.empty() ||
                            !dial.logit_offset_per_sequence.empty() ||
                            !dial.gate_multiplier_per_sequence.empty() ||
                            dial.multiplier_order != MultiplierOrder::after_normalization;
        if (steers)
            detail::fail(
                "moe::Context: moe::SoftMoe chooses no experts: k, p, forced, logit_offset and "
                "multipliers per sequence or before normalization cannot be set; of what steers a "
                "call it takes allowed and gate_multiplier");
        const ContextGradients none, &wanted = context.gradients ? *context.gradients : none;
        if (!wanted.logit_offset.empty() || !wanted.logit_offset_per_sequence.empty() ||
            !wanted.gate_multiplier_per_sequence.empty())
            detail::fail(
                "moe::Context: moe::SoftMoe has no gradients->logit_offset and nothing per "
                "sequence: of gradients it gives gate_multiplier");
    }
    void check_gradient(In<S> x, In<S> dy, Out<S> dx, const SoftMoe& grad) const {
        if (&grad == this)
            detail::fail(
                "moe::SoftMoe::backward: grad is the layer itself; make a gradient with "
                "zeros_like(layer)");
        if (dx.rows() != x.rows() || dx.cols() != x.cols())
            detail::fail("moe::SoftMoe::backward: dx is [", dx.rows(), ", ", dx.cols(),
                         "], it must be [", x.rows(), ", ", x.cols(), "]");
        if (detail::overlap<S>(x, dx) || detail::overlap<S>(dy, dx))
            detail::fail("moe::SoftMoe::backward: dx shares memory with ",
                         detail::overlap<S>(x, dx) ? "x" : "dy",
                         ", which is read while dx is written; give it a matrix of its own");
        slots_.check_gradient(grad.slots_);
    }

    detail::Identity identity_;
    BankType bank_;
    SlotsType slots_;
};

template <class... Groups>
explicit SoftMoe(Config, SoftSlots, Groups...) -> SoftMoe<float, Groups...>;

/// A layer of another scalar: make_soft_moe<double>(config, slots, experts).
template <class S, class... Groups>
SoftMoe<S, Groups...> make_soft_moe(const Config& config, const SoftSlots& slots,
                                    const Groups&... groups) {
    return SoftMoe<S, Groups...>(config, slots, groups...);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_COMPOSE_SOFT_MOE_HPP
