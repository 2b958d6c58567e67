// SPDX-License-Identifier: MIT
#ifndef MOE_LAYER_HPP
#define MOE_LAYER_HPP

#include <utility>

#include <moe/bank.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/views.hpp>
#include <moe/head.hpp>

namespace moe::inline MOE_ABI {

/// Says that the gradients of parameters are not wanted: only d(loss)/dx is computed.
struct NoGradient {};
inline constexpr NoGradient no_gradient{};

/// A Mixture-of-Experts layer: a Head (router and gate) and a Bank (groups of experts).
///
///     logits = router(x);  routing = gate(logits);  y[t] = sum of weight * expert(x[t])
///
/// Build it from recipes or from your own objects:
///
///     moe::Layer layer{moe::Config{.model_dim = 256}, moe::LinearRouter{}, moe::TopK{.k = 2},
///                      moe::Swiglu{.count = 8, .ffn_dim = 512}};
///
/// The layer is const in every call; what a call leaves behind is in the caller's Workspace.
/// Matrices may be any row-major Eigen object of the layer's scalar, or the transpose of a
/// column-major one; nothing is copied. x, y, dy and dx must not overlap.
template <class S, class R, class G, class... Groups>
class Layer {
public:
    using Scalar = S;
    using RouterModule = detail::built_t<R, S>;
    using GateModule = detail::built_t<G, S>;
    using HeadType = Head<S, R, G>;
    using BankType = Bank<S, Groups...>;

    /// Holds nothing; a gradient like this is not wanted.
    Layer() = default;

    /// @throws std::invalid_argument if a setting is out of range or the parts do not fit
    explicit Layer(const Config& config, const R& router, const G& gate, const Groups&... groups)
        : bank_(config, groups...), head_(config, router, gate, bank_.facts()) {}

    /// A layer whose matrices of experts have no memory yet; see moe::deferred.
    Layer(Deferred, const Config& config, const R& router, const G& gate, const Groups&... groups)
        : bank_(deferred, config, groups...), head_(config, router, gate, bank_.facts()) {}

    /// A layer of this type from modules that exist already: experts added or removed, say.
    ///
    ///     auto groups = layer.bank().groups();      // change them, the router, the gate; then
    ///     layer = layer.of_modules(layer.config(), router, gate, std::move(groups));
    ///
    /// @throws std::invalid_argument if they do not fit each other or the config
    static Layer of_modules(const Config& config, RouterModule router, GateModule gate,
                            typename BankType::GroupTuple groups) {
        Layer layer;
        layer.bank_ = BankType(config, std::move(groups));
        layer.head_ =
            HeadType::of_modules(config, std::move(router), std::move(gate), layer.bank_.facts());
        return layer;
    }

    const Config& config() const { return bank_.config(); }
    Index model_dim() const { return config().model_dim; }
    Index output_dim() const { return bank_.output_dim(); }
    Index num_experts() const { return bank_.num_experts(); }
    /// Whether no token's choice depends on what later tokens of the batch hold: safe in a decoder.
    bool is_causal() const { return head_.is_causal(); }
    const HeadType& head() const { return head_; }
    HeadType& head() { return head_; }
    const BankType& bank() const { return bank_; }
    BankType& bank() { return bank_; }
    const auto& router() const { return head_.router(); }
    auto& router() { return head_.router(); }
    const auto& gate() const { return head_.gate(); }
    auto& gate() { return head_.gate(); }

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
    /// @param x  [T, D]; T may be 0   @param y  [T, O], overwritten
    /// @throws std::invalid_argument if an extent is wrong; y and ws are then unspecified
    template <class X, class Y>
    void forward(const X& x, Y&& y, Workspace<S>& ws, const Context& context = {}) const {
        route(x, ws, context);
        apply(x, std::forward<Y>(y), ws, context);
    }

    /// The gradients of forward() and of the losses added to ws.dlogits() since. A second backward
    /// after one forward is without the losses, whose gradients the first one consumed.
    /// @param dy    [T, O] d(loss)/dy
    /// @param dx    [T, D], overwritten with d(loss)/dx
    /// @param grad  made by zeros_like(layer); **added** to
    /// @throws std::logic_error if ws does not hold what forward() of this layer, x and context
    ///         left
    /// @throws std::invalid_argument if an extent is wrong or grad is of another layer
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, Layer& grad, Workspace<S>& ws,
                  const Context& context = {}) const {
        const auto dx_ref = detail::writable<S>(std::forward<DX>(dx));
        apply_backward(x, dy, dx_ref, grad, ws, context);
        route_backward(x, dx_ref, grad, ws, context);
    }

    /// Only dx: parameter gradients are not computed.
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, NoGradient, Workspace<S>& ws,
                  const Context& context = {}) const {
        backward(x, dy, std::forward<DX>(dx), ws.template state<Layer>(), ws, context);
    }

    /// Does not compile: a const gradient or a temporary cannot be added to.
    template <class X, class DY, class DX>
    void backward(const X&, const DY&, DX&&, const Layer&, Workspace<S>&,
                  const Context& = {}) const {
        static_assert(sizeof(X) == 0,
                      "moe: grad is added to: it must be a variable that is not const; auto grad = "
                      "moe::zeros_like(layer); or pass moe::no_gradient");
    }

    // The halves of forward and backward, to be used alone, changed in between, or recombined.

    /// Fills ws.routing() and ws.logits().
    template <class X>
    void route(const X& x, Workspace<S>& ws, const Context& context = {}) const {
        head_.route(detail::readable<S>(x), ws, context);
    }

    /// Replays `routing` with weights from this batch's logits; see Head::reweigh.
    template <class X>
    void reweigh(const X& x, const Routing& routing, Workspace<S>& ws,
                 const Context& context = {}) const {
        head_.reweigh(detail::readable<S>(x), routing, ws, context);
    }

    /// y from ws.routing(), as routed or as edited; with the context it was routed with, if none is
    /// given.
    template <class X, class Y>
    void apply(const X& x, Y&& y, Workspace<S>& ws, const Context& context) const {
        bank_.apply(detail::readable<S>(x), ws.routing(), detail::writable<S>(std::forward<Y>(y)),
                    ws.child(detail::bank_node), context);
    }
    template <class X, class Y>
    void apply(const X& x, Y&& y, Workspace<S>& ws) const {
        apply(x, std::forward<Y>(y), ws, ws.context());
    }

    /// Writes the experts' share of dx; the gradients at the weights stay in ws.
    template <class X, class DY, class DX>
    void apply_backward(const X& x, const DY& dy, DX&& dx, Layer& grad, Workspace<S>& ws) const {
        apply_backward(x, dy, std::forward<DX>(dx), grad, ws, ws.context());
    }
    template <class X, class DY, class DX>
    void apply_backward(const X& x, const DY& dy, DX&& dx, Layer& grad, Workspace<S>& ws,
                        const Context& context) const {
        WeightScratch& scratch = ws.template state<WeightScratch>();
        const Index count = ws.routing().num_assignments();
        bank_.apply_backward(detail::readable<S>(x), ws.routing(), detail::readable<S>(dy),
                             detail::writable<S>(std::forward<DX>(dx)),
                             scratch.output.resize(count),
                             scratch.input.resize(head_.weighs_input() ? count : 0), grad.bank_,
                             ws.child(detail::bank_node), context);
    }

    /// Adds the router's share to dx; consumes ws.dlogits().
    template <class X, class DX>
    void route_backward(const X& x, DX&& dx, Layer& grad, Workspace<S>& ws) const {
        route_backward(x, std::forward<DX>(dx), grad, ws, ws.context());
    }
    template <class X, class DX>
    void route_backward(const X& x, DX&& dx, Layer& grad, Workspace<S>& ws,
                        const Context& context) const {
        const WeightScratch& scratch = ws.template state<WeightScratch>();
        head_.route_backward(detail::readable<S>(x),
                             {.output = scratch.output.span(), .input = scratch.input.span()},
                             detail::writable<S>(std::forward<DX>(dx)), grad.head_, ws, context);
    }

    /// Rooms for `tokens` tokens and `assignments` assignments; see Workspace::reserve.
    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        head_.reserve(tokens, assignments, ws);
        bank_.reserve(tokens, assignments, ws.child(detail::bank_node));
        if (!ws.keeps()) return;
        ws.template state<Layer>();  // for no_gradient
        WeightScratch& scratch = ws.template state<WeightScratch>();
        scratch.output.resize(assignments);
        scratch.input.resize(head_.weighs_input() ? assignments : 0);
    }

    /// router.*, gate.*, experts.<e>.*, shared.<i>.*
    void visit_parameters(auto&& visit) {
        head_.visit_parameters(visit);
        bank_.visit_parameters(visit);
    }
    void own_gradients() {
        head_.own_gradients();
        bank_.own_gradients();
    }

private:
    struct WeightScratch {
        Buffer<S> output, input;
    };

    BankType bank_;
    HeadType head_;
};

template <class R, class G, class... Groups>
Layer(Config, R, G, Groups...) -> Layer<float, R, G, Groups...>;
template <class R, class G, class... Groups>
Layer(Deferred, Config, R, G, Groups...) -> Layer<float, R, G, Groups...>;

/// A layer of another scalar: make_layer<double>(config, router, gate, experts).
template <class S, class R, class G, class... Groups>
Layer<S, R, G, Groups...> make_layer(const Config& config, const R& router, const G& gate,
                                     const Groups&... groups) {
    return Layer<S, R, G, Groups...>(config, router, gate, groups...);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LAYER_HPP
