// SPDX-License-Identifier: MIT
#ifndef MOE_HEAD_HPP
#define MOE_HEAD_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/fingerprint.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/group.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/steering.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// A router and a gate: tokens to a Routing. The first half of a layer.
///
///     logits = router(x), steered by the context: offset, masked, forced; see core/steering.hpp
///     routing = gate(logits), without what crosses a mask: padding, experts not allowed
///
/// It works in a workspace node of its own, whose first two children are the router's and the
/// gate's. A Bank needs another node.
///
/// @tparam R, G  recipes or modules, as given to the constructor
template <class S, class R, class G>
class Head {
    using RouterModule = detail::built_t<R, S>;
    using GateModule = detail::built_t<G, S>;
    static_assert(is_scalar<S>, "moe::Head: the scalar must be float or double");
    static_assert(detail::HasForward<RouterModule, S>,
                  "moe: the router needs forward(x, logits) const with x: moe::In<S>, logits: "
                  "moe::Out<S>, S the scalar of the layer; or with a last argument const "
                  "moe::Call<S>&");
    static_assert(
        Router<RouterModule, S> || !detail::HasBackward<RouterModule>,
        "moe: the router's backward does not fit: it needs backward(x, dlogits, dx, grad) "
        "const with x, dlogits: moe::In<S>, dx: moe::Out<S>, grad: a reference to its own "
        "type; with a last argument const moe::Call<S>& if forward has one");
    static_assert(
        Gate<GateModule, S>,
        "moe: the gate needs select(logits, routing) const with logits: moe::In<S>, S the "
        "scalar of the layer, routing: moe::Routing&; or with a last argument const "
        "moe::Call<S>&");
    static_assert(std::default_initializable<RouterModule> &&
                      std::default_initializable<GateModule>,
                  "moe: a router and a gate need a default constructor");

public:
    using Scalar = S;
    /// Whether a token's choice is its own, whatever else is in the batch.
    static constexpr bool per_token =
        hooks::per_token<GateModule> && hooks::per_token<RouterModule>;

    /// Holds nothing; a gradient like this is not wanted.
    Head() = default;

    /// @param facts  one entry per routed expert, as Bank::facts() gives them
    /// @throws std::invalid_argument if a setting is out of range or the parts do not fit
    Head(const Config& config, const R& router, const G& gate, std::vector<ExpertFacts> facts)
        : facts_(std::move(facts)) {
        Shape shape = detail::shape_of(config, num_experts());
        Random random(config.seed, 1);
        Random router_random = random.child(0), gate_random = random.child(1);
        gate_ = detail::built<G, S>(gate, shape, gate_random);
        shape = with_logits(shape);
        router_ = detail::built<R, S>(router, shape, router_random);
        adopt(shape);
    }

    /// Of modules that exist already, for example a router with rows for more experts than before.
    /// @throws std::invalid_argument if they do not fit
    static Head of_modules(const Config& config, RouterModule router, GateModule gate,
                           std::vector<ExpertFacts> facts) {
        Head head;
        head.facts_ = std::move(facts);
        head.gate_ = std::move(gate);
        head.router_ = std::move(router);
        head.adopt(head.with_logits(detail::shape_of(config, head.num_experts())));
        return head;
    }

    Index num_experts() const { return static_cast<Index>(facts_.size()); }
    Index num_logits() const { return num_logits_; }
    const RouterModule& router() const { return router_; }
    RouterModule& router() { return router_; }
    const GateModule& gate() const { return gate_; }
    GateModule& gate() { return gate_; }
    const std::vector<ExpertFacts>& facts() const { return facts_; }
    /// How many of a token's logits, the first, are the experts' own, so that masks and forces are
    /// applied to them: all experts, or 0.
    Index expert_logits() const { return hooks::expert_logits(gate_, num_experts()); }
    /// Whether no token's choice depends on what comes after it in the batch: safe in a decoder.
    bool is_causal() const { return hooks::is_causal(gate_) && hooks::is_causal(router_); }
    /// Floating-point operations of the router per token, forward; 0 if it does not say.
    double flops_per_token() const {
        if constexpr (requires { router_.flops_per_token(); })
            return router_.flops_per_token();
        else
            return 0;
    }
    /// Whether the gate's weights scale what experts read instead of what they return.
    bool weighs_input() const { return hooks::weighs_input(gate_); }

    /// Routes a batch: fills ws.logits() and ws.routing(), clears ws.dlogits().
    /// @param x  [T, D]
    /// @throws std::invalid_argument if an extent of x or of the context is wrong
    void route(In<S> x, Workspace<S>& ws, const Context& context = {}) const {
        Routed<S>& routed = score(x, ws, context);
        routed.routing.reset(x.rows(), num_experts());
        hooks::select<S>(gate_, ws.logits(), routed.routing,
                         {routed.context, ws.child(detail::gate_node)});
        weigh(x, routed, ws);
    }

    /// Replays a routing: its experts, slots and drops, weights from this batch's logits (those
    /// of the given one if the gate has no weigh()).
    /// @param routing  may be ws.routing() itself
    /// @throws std::invalid_argument if the routing is for other extents
    void reweigh(In<S> x, const Routing& routing, Workspace<S>& ws,
                 const Context& context = {}) const {
        if (routing.num_tokens() != x.rows() || routing.num_experts() != num_experts())
            detail::fail("moe::Head::reweigh: the routing is for ", routing.num_tokens(),
                         " tokens and ", routing.num_experts(), " experts, the batch has ",
                         x.rows(), " and the layer ", num_experts());
        Routed<S>& routed = score(x, ws, context);
        if (&routing != &routed.routing) routed.routing = routing;
        weigh(x, routed, ws);
    }

    /// The way back: from d(loss)/d(weight) and what losses added to ws.dlogits().
    /// @param dweights  by assignment number; see Bank::apply_backward
    /// @param dx        [T, D], **added** to
    /// @throws std::logic_error if ws was not last routed by this head with this batch and context
    /// @throws std::invalid_argument if an extent is wrong or grad is of another layer
    void route_backward(In<S> x, const WeightGradients<S>& dweights, Out<S> dx, Head& grad,
                        Workspace<S>& ws, const Context& context = {}) const {
        static_assert(
            TrainableGate<GateModule, S>,
            "moe: the gate needs backward(logits, routing, dweights, dlogits) const to be "
            "trained through, or backward(logits, routing, dweights, dlogits, grad, call) "
            "const");
        static_assert(
            Router<RouterModule, S>,
            "moe: the router needs backward(x, dlogits, dx, grad) const to be trained, or "
            "with a last argument const moe::Call<S>&");
        if (&grad == this)
            detail::fail(
                "moe::Layer::backward: grad is the layer itself; make a gradient with "
                "zeros_like(layer)");
        Routed<S>* routed = ws.template find<Routed<S>>();
        if (routed == nullptr || routed->fingerprint != fingerprint(x, context))
            detail::fail_without_batch(ws);
        const auto assignments = static_cast<std::size_t>(routed->routing.num_assignments());
        if (dweights.output.size() != assignments ||
            (!dweights.input.empty() && dweights.input.size() != assignments))
            detail::fail<std::logic_error>(
                "moe::Head::route_backward: dweights has ", dweights.output.size(), " entries and ",
                dweights.input.size(), " for input weights, the routing has ", assignments,
                " assignments; call apply_backward() first");
        if (dx.rows() != x.rows() || dx.cols() != x.cols())
            detail::fail("moe::Head::route_backward: dx is [", dx.rows(), ", ", dx.cols(),
                         "], it must be [", x.rows(), ", ", x.cols(), "] like x");
        detail::check_context(context, x.rows(), num_experts(), num_logits_, expert_logits() > 0);
        take(context, *routed);  // its gradients may be others than those that forward saw
        const auto logits = ws.logits();
        auto dlogits = ws.dlogits();
        Workspace<S>& of_router = ws.child(detail::router_node);
        Workspace<S>& of_gate = ws.child(detail::gate_node);
        detail::lend_gradient(gate_, grad.gate_, of_gate, [&](GateModule& gate_grad) {
            hooks::backward<S>(gate_, logits, routed->routing, dweights, dlogits, gate_grad,
                               {routed->context, of_gate});
        });
        detail::steer_backward<S>(dlogits, logits, routed->context, expert_logits(),
                                  routed->raw_logits);

        auto router_dx = routed->dx.matrix(x.rows(), x.cols());
        const Eigen::Ref<const Matrix<S>> tokens = without_padding(x, *routed);
        detail::lend_gradient(router_, grad.router_, of_router, [&](RouterModule& router_grad) {
            hooks::backward<S>(router_, tokens, dlogits, router_dx, router_grad,
                               {routed->context, of_router});
        });
        detail::for_row_runs(ws.executor(), x.rows(), static_cast<double>(x.size()),
                             [&](Index first, Index last, int) {
                                 for (Index t = first; t < last; ++t)
                                     kernels<S>().axpy(x.cols(), S(1), row_data(router_dx, t),
                                                       row_data(dx, t));
                             });
        routed->dlogits.assign(routed->dlogits.size(), S(0));
    }

    /// Rooms for `tokens` tokens and `assignments` assignments, whatever the context of a call.
    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Routed<S>& routed = ws.template state<Routed<S>>();
        routed.num_logits = num_logits_;
        routed.logits.matrix(tokens, num_logits_);
        routed.dlogits.matrix(tokens, num_logits_);
        routed.logits.resize(0);  // room is not a batch
        routed.dlogits.resize(0);
        routed.facts = facts_;
        routed.routing.reserve(tokens, num_experts(), assignments);
        if (ws.keeps()) {
            routed.raw_logits.matrix(tokens, num_logits_);
            routed.raw_logits.resize(0);
            routed.dx.matrix(tokens, model_dim_);
            routed.tokens.matrix(tokens, model_dim_);
            detail::reserve_gradient(gate_, ws.child(detail::gate_node));
            detail::reserve_gradient(router_, ws.child(detail::router_node));
        }
        Workspace<S>& of_router = ws.child(detail::router_node);
        Workspace<S>& of_gate = ws.child(detail::gate_node);
        if constexpr (requires { router_.reserve(tokens, assignments, of_router); })
            router_.reserve(tokens, assignments, of_router);
        if constexpr (requires { gate_.reserve(tokens, assignments, of_gate); })
            gate_.reserve(tokens, assignments, of_gate);
    }

    /// Bytes of those rooms, for a call by `workers` threads. A part that does not say counts as 0.
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const auto size = [](Index count, std::size_t each) {
            return detail::checked_product(count, static_cast<Index>(each));
        };
        Index bytes = size(detail::checked_product(tokens, num_logits_), 2 * sizeof(S)) +
                      size(num_experts(), sizeof(ExpertFacts)) +
                      Routing::bytes(tokens, num_experts(), assignments);
        if (keep != Keep::nothing)  // dx and tokens, raw_logits
            bytes +=
                size(detail::checked_product(tokens, 2 * model_dim_ + num_logits_), sizeof(S)) +
                detail::gradient_bytes(router_) + detail::gradient_bytes(gate_);
        if constexpr (requires { router_.workspace_bytes(tokens, assignments, keep, workers); })
            bytes += router_.workspace_bytes(tokens, assignments, keep, workers);
        if constexpr (requires { gate_.workspace_bytes(tokens, assignments, keep, workers); })
            bytes += gate_.workspace_bytes(tokens, assignments, keep, workers);
        return bytes;
    }

    /// router.*, gate.*
    void visit_parameters(auto&& visit) {
        const auto prefixed = [&visit](const char* prefix) {
            return [&visit, prefix](std::string_view name, auto& matrix, Role role) {
                visit(prefix + std::string(name), matrix, role);
            };
        };
        moe::visit_parameters(router_, prefixed("router."));
        moe::visit_parameters(gate_, prefixed("gate."));
    }

    void own_gradients() {
        if constexpr (requires { router_.own_gradients(); }) router_.own_gradients();
        if constexpr (requires { gate_.own_gradients(); }) gate_.own_gradients();
    }

private:
    /// With the logits that the gate wants.
    Shape with_logits(Shape shape) const {
        shape.num_logits = hooks::num_logits(gate_, num_experts());
        shape.has_expert_logits = expert_logits() > 0;
        return shape;
    }
    /// The parts are made; they must fit the layer.
    void adopt(const Shape& shape) {
        model_dim_ = shape.model_dim;
        num_logits_ = shape.num_logits;
        if constexpr (requires { gate_.check(shape); }) gate_.check(shape);
        if constexpr (requires { router_.check(shape); }) router_.check(shape);
    }

    std::uint64_t fingerprint(In<S> x, const Context& context) const {
        return detail::Fingerprint(identity_).batch<S>(x).context(context).value();
    }

    void take(const Context& context, Routed<S>& routed) const {
        routed.facts = facts_;
        routed.context = context;
        routed.context.experts = detail::elements(routed.facts);
    }

    /// Fills the logits, offset and masks applied.
    Routed<S>& score(In<S> x, Workspace<S>& ws, const Context& context) const {
        if (x.cols() != model_dim_)
            detail::fail("moe::Layer::forward: x has ", x.cols(), " columns, model_dim is ",
                         model_dim_, "; a token is a row of x");
        detail::check_context(context, x.rows(), num_experts(), num_logits_, expert_logits() > 0);
        check_dial(context);
        Routed<S>& routed = ws.template state<Routed<S>>();
        routed.fingerprint = 0;  // until all is there
        take(context, routed);
        routed.num_logits = num_logits_;
        routed.other_logits = num_logits_ - expert_logits();
        auto logits = routed.logits.matrix(x.rows(), num_logits_);
        routed.dlogits.assign(logits.size(), S(0));
        hooks::forward<S>(router_, x, logits, {routed.context, ws.child(detail::router_node)});
        detail::steer<S>(logits, routed.context, expert_logits(),
                         ws.keeps() ? &routed.raw_logits : nullptr);
        return routed;
    }

    /// @throws std::invalid_argument if the dial sets what the gate does not read
    static void check_dial(const Context& context) {
        const Dial& dial = context.dial;
        if (!hooks::reads_k<GateModule> && (dial.k || !dial.k_per_sequence.empty()))
            detail::fail("moe::Context: dial.", dial.k ? "k" : "k_per_sequence",
                         " is set, but the gate of this layer has no k that a call can change; "
                         "leave it unset for this layer");
        if (!hooks::reads_p<GateModule> && (dial.p || !dial.p_per_sequence.empty()))
            detail::fail("moe::Context: dial.", dial.p ? "p" : "p_per_sequence",
                         " is set, but the gate of this layer has no p that a call can change; "
                         "leave it unset for this layer");
        if (!hooks::multiplies_scores<GateModule> && context.multiplies() &&
            dial.multiplier_order == MultiplierOrder::before_normalization)
            detail::fail(
                "moe::Context: dial.multiplier_order is before_normalization, which the gate of "
                "this layer cannot do; take after_normalization");
    }

    /// x, padding as 0: what it holds, be it NaN, must not reach the router's gradient.
    Eigen::Ref<const Matrix<S>> without_padding(In<S> x, Routed<S>& routed) const {
        if (routed.context.padding.empty()) return x;
        auto tokens = routed.tokens.matrix(x.rows(), x.cols());
        for (Index t = 0; t < x.rows(); ++t)
            for (Index d = 0; d < x.cols(); ++d)
                tokens(t, d) = routed.context.is_padding(t) ? S(0) : x(t, d);
        return tokens;
    }

    /// Sets the weights of the routing that is there. What a gate chose without looking at the
    /// logits, or what was chosen for another batch, may cross a mask: it is taken out.
    void weigh(In<S> x, Routed<S>& routed, Workspace<S>& ws) const {
        const Context& context = routed.context;
        if (!context.padding.empty() || context.restricts())
            routed.routing.erase_if([&context](const Assignment& a) {
                return context.is_padding(a.token) || !context.is_allowed(a.token, a.expert);
            });
        routed.routing.group();
        hooks::weigh<S>(gate_, ws.logits(), routed.routing, {context, ws.child(detail::gate_node)});
        routed.routing.group();
        routed.fingerprint = ws.keeps() ? fingerprint(x, context) : 0;
    }

    detail::Identity identity_;
    std::vector<ExpertFacts> facts_;
    RouterModule router_{};
    GateModule gate_{};
    Index model_dim_ = 0, num_logits_ = 0;
};

template <class R, class G>
Head(Config, R, G, std::vector<ExpertFacts>) -> Head<float, R, G>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_HEAD_HPP
