// SPDX-License-Identifier: MIT
#ifndef MOE_HEAD_HPP
#define MOE_HEAD_HPP

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/fingerprint.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/parameters.hpp>

namespace moe::inline MOE_ABI {

/// A router and a gate: tokens to a Routing. The first half of a layer.
///
///     logits = router(x) + offset,  -inf where a token is padding or an expert is not allowed
///     plan   = gate(logits)
///     weight = gate's weight * multiplier[expert]
///
/// @tparam R, G  recipes or modules, as given to the constructor
template <class S, class R, class G>
class Head {
    using RouterModule = detail::built_t<R, S>;
    using GateModule = detail::built_t<G, S>;
    static_assert(is_scalar<S>, "moe::Head: the scalar must be float or double");
    static_assert(Router<RouterModule, S>,
                  "moe: the router needs forward(x, logits) const and backward(x, dlogits, dx, grad) "
                  "const, or both with a last argument const moe::Call<S>&");
    static_assert(Gate<GateModule, S>,
                  "moe: the gate needs select(logits, routing) const, or with a last argument const "
                  "moe::Call<S>&");
    static_assert(std::default_initializable<RouterModule> && std::default_initializable<GateModule>,
                  "moe: a router and a gate need a default constructor");

public:
    using Scalar = S;

    /// Holds nothing; a gradient like this is not wanted.
    Head() = default;

    /// @param facts  one entry per routed expert, as Bank::facts() gives them
    Head(const Config& config, const R& router, const G& gate, std::vector<ExpertFacts> facts)
        : facts_(std::move(facts)) {
        Shape shape = detail::shape_of(config, num_experts());
        model_dim_ = shape.model_dim;
        num_logits_ = shape.num_logits = detail::num_logits(gate, num_experts());
        Random random(config.seed, 1);
        Random router_random = random.child(0), gate_random = random.child(1);
        gate_ = detail::built<G, S>(gate, shape, gate_random);
        router_ = detail::built<R, S>(router, shape, router_random);
    }

    Index num_experts() const { return static_cast<Index>(facts_.size()); }
    Index num_logits() const { return num_logits_; }
    const RouterModule& router() const { return router_; }
    RouterModule& router() { return router_; }
    const GateModule& gate() const { return gate_; }
    GateModule& gate() { return gate_; }
    const std::vector<ExpertFacts>& facts() const { return facts_; }
    /// Floating-point operations of the router per token, forward; 0 if it does not say.
    double flops_per_token() const {
        if constexpr (requires { router_.flops_per_token(); })
            return router_.flops_per_token();
        else
            return 0;
    }
    /// Whether the gate's weights scale what experts read instead of what they return.
    bool weighs_input() const {
        if constexpr (requires { gate_.weighs_input(); })
            return gate_.weighs_input();
        else
            return false;
    }

    /// Routes a batch: fills ws.logits() and ws.routing(), clears ws.dlogits().
    /// @param x  [T, D]
    /// @throws std::invalid_argument if an extent of x or of the context is wrong
    void route(In<S> x, Workspace<S>& ws, const Context& context = {}) const {
        Routed<S>& routed = score(x, ws, context);
        const auto logits = ws.logits();
        const Call<S> call{routed.context, ws.child(1)};
        routed.routing.reset(x.rows(), num_experts());
        detail::select<GateModule, S>(gate_, logits, routed.routing, call);
        routed.routing.group();
        finish(logits, routed, call);
    }

    /// Replays a plan: experts, slots and drops of `plan`, weights from this batch's logits.
    /// @throws std::invalid_argument if the plan is for other extents
    void reweigh(In<S> x, const Routing& plan, Workspace<S>& ws, const Context& context = {}) const {
        if (plan.num_tokens() != x.rows() || plan.num_experts() != num_experts())
            detail::fail("moe::Head::reweigh: the routing is for ", plan.num_tokens(), " tokens and ",
                         plan.num_experts(), " experts, the batch has ", x.rows(), " and the layer ",
                         num_experts());
        Routed<S>& routed = score(x, ws, context);
        if (&plan != &routed.routing) routed.routing = plan;
        routed.routing.group();
        finish(ws.logits(), routed, Call<S>{routed.context, ws.child(1)});
    }

    /// The way back: from d(loss)/d(weight) and what losses added to ws.dlogits().
    /// @param dweights  by assignment number; see Bank::apply_backward
    /// @param dx        [T, D], **added** to
    /// @throws std::logic_error if ws was not last routed by this head with this batch and context
    void route_backward(In<S> x, const WeightGradients<S>& dweights, Out<S> dx, Head& grad,
                        Workspace<S>& ws, const Context& context = {}) const {
        static_assert(TrainableGate<GateModule, S>,
                      "moe: the gate needs backward(logits, routing, dweights, dlogits) const to be "
                      "trained through");
        Routed<S>* routed = ws.template find<Routed<S>>();
        if (routed == nullptr || routed->fingerprint != fingerprint(x, context))
            detail::fail<std::logic_error>(
                "moe::Layer::backward: the workspace does not hold this batch: call forward() of the "
                "same layer with the same x and context first, with Keep::everything");
        if (static_cast<Index>(dweights.output.size()) != routed->routing.num_assignments())
            detail::fail<std::logic_error>("moe::Head::route_backward: dweights has ",
                                           dweights.output.size(), " entries, the routing has ",
                                           routed->routing.num_assignments(),
                                           " assignments; call apply_backward() first");
        if (dx.rows() != x.rows() || dx.cols() != x.cols())
            detail::fail("moe::Head::route_backward: dx is [", dx.rows(), ", ", dx.cols(),
                         "], it must be [", x.rows(), ", ", x.cols(), "] like x");
        const auto logits = ws.logits();
        auto dlogits = ws.dlogits();
        const WeightGradients<S> dgate = through_multiplier(dweights, *routed);
        const Call<S> call{routed->context, ws.child(1)};
        detail::lend_gradient(gate_, grad.gate_, ws, [&](GateModule& gate_grad) {
            detail::gate_backward<GateModule, S>(gate_, logits, routed->routing, dgate, dlogits,
                                                 gate_grad, call);
        });
        mask(dlogits, routed->context, S(0));
        offset_gradient(dlogits, routed->context);

        auto router_dx = routed->dx.matrix(x.rows(), x.cols());
        const Eigen::Ref<const Matrix<S>> tokens = without_padding(x, *routed);
        detail::lend_gradient(router_, grad.router_, ws, [&](RouterModule& router_grad) {
            detail::backward<RouterModule, S>(router_, tokens, dlogits, router_dx, router_grad,
                                              {routed->context, ws.child(0)});
        });
        for (Index t = 0; t < x.rows(); ++t)
            for (Index d = 0; d < x.cols(); ++d) dx(t, d) += router_dx(t, d);
        for (Index t = 0; t < dlogits.rows(); ++t)
            for (Index l = 0; l < num_logits_; ++l) dlogits(t, l) = 0;
    }

    /// Rooms for `tokens` tokens and `assignments` assignments.
    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Routed<S>& routed = ws.template state<Routed<S>>();
        routed.num_logits = num_logits_;
        routed.logits.matrix(tokens, num_logits_);
        routed.dlogits.matrix(tokens, num_logits_);
        routed.logits.resize(0);  // room is not a batch
        routed.dlogits.resize(0);
        routed.gate_weights.resize(assignments);
        routed.routing.reserve(tokens, num_experts(), assignments);
        if (ws.keeps()) {
            routed.dgate.resize(assignments);
            routed.dx.matrix(tokens, model_dim_);
        }
        Workspace<S>& of_router = ws.child(0);
        Workspace<S>& of_gate = ws.child(1);
        if constexpr (requires { router_.reserve(tokens, assignments, of_router); })
            router_.reserve(tokens, assignments, of_router);
        if constexpr (requires { gate_.reserve(tokens, assignments, of_gate); })
            gate_.reserve(tokens, assignments, of_gate);
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
    std::uint64_t fingerprint(In<S> x, const Context& context) const {
        return detail::Fingerprint(this).batch<S>(x).context(context).value();
    }

    /// Fills the logits, offset and masks applied.
    Routed<S>& score(In<S> x, Workspace<S>& ws, const Context& context) const {
        if (x.cols() != model_dim_)
            detail::fail("moe::Layer::forward: x has ", x.cols(), " columns, model_dim is ", model_dim_);
        detail::check_context(context, x.rows(), num_experts(), num_logits_);
        Routed<S>& routed = ws.template state<Routed<S>>();
        routed.fingerprint = ws.keeps() ? fingerprint(x, context) : 0;
        routed.context = context;
        routed.context.experts = facts_;
        routed.num_logits = num_logits_;
        auto logits = routed.logits.matrix(x.rows(), num_logits_);
        routed.dlogits.assign(logits.size(), S(0));
        detail::forward<RouterModule, S>(router_, x, logits, {routed.context, ws.child(0)});
        for (Index t = 0; t < logits.rows() && !context.logit_offset.empty(); ++t)
            for (Index l = 0; l < num_logits_; ++l)
                logits(t, l) += static_cast<S>(context.logit_offset[static_cast<std::size_t>(l)]);
        mask(logits, context, -std::numeric_limits<S>::infinity());
        return routed;
    }

    /// Writes `value` where a token is padding or an expert is not allowed.
    void mask(View<S> matrix, const Context& context, S value) const {
        const bool per_expert = !context.allowed.empty() && num_logits_ == num_experts();
        for (Index t = 0; t < matrix.rows(); ++t) {
            const bool padding = detail::is_padding(context, t);
            if (!padding && !per_expert) continue;
            for (Index l = 0; l < num_logits_; ++l)
                if (padding || !context.allowed[static_cast<std::size_t>(t * num_logits_ + l)])
                    matrix(t, l) = value;
        }
    }

    /// x, padding as 0: what it holds, be it NaN, must not reach the router's gradient.
    Eigen::Ref<const Matrix<S>> without_padding(In<S> x, Routed<S>& routed) const {
        if (routed.context.padding.empty()) return x;
        auto tokens = routed.tokens.matrix(x.rows(), x.cols());
        for (Index t = 0; t < x.rows(); ++t)
            for (Index d = 0; d < x.cols(); ++d)
                tokens(t, d) = detail::is_padding(routed.context, t) ? S(0) : x(t, d);
        return tokens;
    }

    void finish(In<S> logits, Routed<S>& routed, const Call<S>& call) const {
        Routing& routing = routed.routing;
        detail::weigh<GateModule, S>(gate_, logits, routing, call);
        routing.group();
        const auto multiplier = routed.context.gate_multiplier;
        if (multiplier.empty()) return;
        routed.gate_weights.resize(routing.num_assignments());
        for (Index a = 0; a < routing.num_assignments(); ++a) {
            const Assignment& assignment = routing.assignments()[static_cast<std::size_t>(a)];
            const double factor = multiplier[static_cast<std::size_t>(assignment.expert)];
            routed.gate_weights[a] = assignment.weight;
            routing.set_weight(a, static_cast<double>(static_cast<S>(assignment.weight * factor)));
        }
    }

    WeightGradients<S> through_multiplier(const WeightGradients<S>& dweights, Routed<S>& routed) const {
        const auto multiplier = routed.context.gate_multiplier;
        if (multiplier.empty()) return dweights;
        const auto assignments = routed.routing.assignments();
        const auto dgate = routed.dgate.resize(static_cast<Index>(assignments.size()));
        ContextGradients* gradients = routed.context.gradients;
        for (std::size_t a = 0; a < assignments.size(); ++a) {
            const auto expert = static_cast<std::size_t>(assignments[a].expert);
            dgate[a] = static_cast<S>(multiplier[expert]) * dweights.output[a];
            if (gradients != nullptr && !gradients->gate_multiplier.empty())
                gradients->gate_multiplier[expert] =
                    std::fma(static_cast<double>(dweights.output[a]),
                             routed.gate_weights[static_cast<Index>(a)], gradients->gate_multiplier[expert]);
        }
        return {.output = dgate, .input = dweights.input};
    }

    void offset_gradient(View<S> dlogits, const Context& context) const {
        if (context.gradients == nullptr || context.gradients->logit_offset.empty()) return;
        for (Index t = 0; t < dlogits.rows(); ++t)
            for (Index l = 0; l < num_logits_; ++l)
                context.gradients->logit_offset[static_cast<std::size_t>(l)] +=
                    static_cast<double>(dlogits(t, l));
    }

    std::vector<ExpertFacts> facts_;
    RouterModule router_{};
    GateModule gate_{};
    Index model_dim_ = 0, num_logits_ = 0;
};

template <class R, class G>
Head(Config, R, G, std::vector<ExpertFacts>) -> Head<float, R, G>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_HEAD_HPP
