// SPDX-License-Identifier: MIT
#ifndef MOE_ANY_LAYER_HPP
#define MOE_ANY_LAYER_HPP

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <moe/core/concepts.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/function_ref.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/core/weights.hpp>
#include <moe/layer.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

/// Whether gradients go through a layer. Asking a Layer for backward when they do not is an error
/// at compile time, so that it cannot be found out by trying.
template <class L, class S>
constexpr bool is_trainable() {
    if constexpr (requires { L::BankType::is_trainable; })
        return L::BankType::is_trainable &&
               TrainableGate<std::remove_cvref_t<decltype(std::declval<const L&>().gate())>, S>;
    else
        return requires(const L& layer, In<S> x, Out<S> dx, L& grad, Workspace<S>& ws,
                        const Context& context) {
            layer.backward(x, x, dx, grad, ws, context);
        };
}

}  // namespace detail

/// A layer of any composition behind one type, for architectures that are chosen at run time.
///
///     std::vector<moe::AnyLayer<float>> network;
///     network.push_back(moe::Layer{moe::Config{.model_dim = 256, .seed = 1}, moe::LinearRouter{},
///                                  moe::TopK{.k = 2}, experts});
///     network.push_back(moe::Layer{moe::Config{.model_dim = 256, .seed = 2}, moe::LinearRouter{},
///                                  moe::TopP{.p = 0.6}, experts});
///
/// A value: a copy has parameters of its own. It has the calls of Layer, each at the price of one
/// virtual call, and zeros_like, for_each_parameter, copy_parameters and their like take it. Frozen
/// layers (freeze a layer before it goes in), and other types with forward(x, y, ws, context), fit
/// too; what the layer inside cannot do throws std::logic_error.
template <class S>
class AnyLayer {
    static_assert(is_scalar<S>, "moe::AnyLayer: the scalar must be float or double");
    using Visit = FunctionRef<void(std::string_view, View<S>, Role)>;
    using VisitWeights = FunctionRef<void(const std::string&, Weights<S>&, Index)>;
    using Wanted = FunctionRef<bool(std::string_view)>;

public:
    using Scalar = S;

    /// Holds nothing; a gradient like this is not wanted.
    AnyLayer() = default;
    /// Holds `layer`.
    template <class L>
        requires(!std::is_same_v<L, AnyLayer> && std::is_same_v<typename L::Scalar, S>)
    AnyLayer(L layer)  // NOLINT(google-explicit-constructor)
        : model_(std::make_unique<Model<L>>(std::move(layer))) {}
    AnyLayer(const AnyLayer& other) : model_(other.model_ ? other.model_->clone() : nullptr) {}
    AnyLayer(AnyLayer&&) noexcept = default;
    AnyLayer& operator=(AnyLayer other) noexcept {
        model_ = std::move(other.model_);
        return *this;
    }
    ~AnyLayer() = default;

    /// The layer inside if it is an L, else null.
    template <class L>
    L* get() {
        return model_ && model_->type() == &type_tag<L> ? &static_cast<Model<L>&>(*model_).layer
                                                        : nullptr;
    }
    template <class L>
    const L* get() const {
        return const_cast<AnyLayer&>(*this).template get<L>();
    }
    bool has_value() const { return model_ != nullptr; }
    /// Whether backward() works.
    bool is_trainable() const { return model().is_trainable(); }

    Index model_dim() const { return model().model_dim(); }
    Index output_dim() const { return model().output_dim(); }
    Index num_experts() const { return model().num_experts(); }

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
    template <class X, class Y>
    void forward(const X& x, Y&& y, Workspace<S>& ws, const Context& context = {}) const {
        model().forward(detail::readable<S>(x), detail::writable<S>(std::forward<Y>(y)), ws,
                        context);
    }

    /// The gradients of forward() and of the losses added to ws.dlogits() since.
    /// @param dy    [T, O] d(loss)/dy
    /// @param dx    [T, D], overwritten with d(loss)/dx
    /// @param grad  made by zeros_like(layer), **added** to; if it holds nothing, only dx is
    ///              computed
    /// @throws std::logic_error if ws does not hold what forward() of this layer, x and context
    ///         left
    /// @throws std::invalid_argument if grad holds another type of layer
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, AnyLayer& grad, Workspace<S>& ws,
                  const Context& context = {}) const {
        model().backward(detail::readable<S>(x), detail::readable<S>(dy),
                         detail::writable<S>(std::forward<DX>(dx)), grad.model_.get(), ws, context);
    }
    /// Only dx: parameter gradients are not computed.
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, NoGradient, Workspace<S>& ws,
                  const Context& context = {}) const {
        model().backward(detail::readable<S>(x), detail::readable<S>(dy),
                         detail::writable<S>(std::forward<DX>(dx)), nullptr, ws, context);
    }

    // The halves of forward and backward; see Layer.

    template <class X>
    void route(const X& x, Workspace<S>& ws, const Context& context = {}) const {
        model().route(detail::readable<S>(x), ws, context);
    }
    template <class X>
    void reweigh(const X& x, const Routing& routing, Workspace<S>& ws,
                 const Context& context = {}) const {
        model().reweigh(detail::readable<S>(x), routing, ws, context);
    }
    template <class X, class Y>
    void apply(const X& x, Y&& y, Workspace<S>& ws) const {
        apply(x, std::forward<Y>(y), ws, ws.context());
    }
    template <class X, class Y>
    void apply(const X& x, Y&& y, Workspace<S>& ws, const Context& context) const {
        model().apply(detail::readable<S>(x), detail::writable<S>(std::forward<Y>(y)), ws, context);
    }
    template <class X, class DY, class DX>
    void apply_backward(const X& x, const DY& dy, DX&& dx, AnyLayer& grad, Workspace<S>& ws) const {
        apply_backward(x, dy, std::forward<DX>(dx), grad, ws, ws.context());
    }
    template <class X, class DY, class DX>
    void apply_backward(const X& x, const DY& dy, DX&& dx, AnyLayer& grad, Workspace<S>& ws,
                        const Context& context) const {
        model().apply_backward(detail::readable<S>(x), detail::readable<S>(dy),
                               detail::writable<S>(std::forward<DX>(dx)), grad.model_.get(), ws,
                               context);
    }
    template <class X, class DX>
    void route_backward(const X& x, DX&& dx, AnyLayer& grad, Workspace<S>& ws) const {
        route_backward(x, std::forward<DX>(dx), grad, ws, ws.context());
    }
    template <class X, class DX>
    void route_backward(const X& x, DX&& dx, AnyLayer& grad, Workspace<S>& ws,
                        const Context& context) const {
        model().route_backward(detail::readable<S>(x), detail::writable<S>(std::forward<DX>(dx)),
                               grad.model_.get(), ws, context);
    }
    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        model().reserve(tokens, assignments, ws);
    }

    /// As the layer inside names them; matrices arrive as View<S>.
    void visit_parameters(auto&& visit) {
        auto pass = [&](std::string_view name, View<S> matrix, Role role) {
            visit(name, matrix, role);
        };
        if (model_) model_->visit(pass);
    }

    /// The matrices of experts of the layer inside, with views and those without memory.
    void visit_weights(auto&& visit) {
        auto pass = [&](const std::string& pattern, Weights<S>& weights, Index first) {
            visit(pattern, weights, first);
        };
        if (model_) model_->visit_weights(pass);
    }
    /// See moe::num_parameters; 0 if it holds nothing.
    Index num_parameters() const { return model_ ? model_->num_parameters() : 0; }

    /// An object of the same type that holds d(loss)/d(parameter), all zero; empty where a
    /// parameter is not trainable or wanted(name) is false.
    template <class F>
    AnyLayer zeros_like(F&& wanted) const {
        auto ask = [&](std::string_view name) -> bool { return wanted(name); };
        AnyLayer zeros;
        if (model_) zeros.model_ = model_->zeros_like(ask);
        return zeros;
    }
    AnyLayer zeros_like() const {
        return zeros_like([](std::string_view) { return true; });
    }
    /// See moe::flatten.
    std::span<S> flatten(std::span<S> memory, const std::shared_ptr<S>& owner = nullptr) {
        return model().flatten(memory, owner);
    }

private:
    template <class L>
    static inline char type_tag = 0;

    struct Base {
        virtual ~Base() = default;
        virtual const void* type() const = 0;
        virtual std::unique_ptr<Base> clone() const = 0;
        virtual bool is_trainable() const = 0;
        virtual Index model_dim() const = 0;
        virtual Index output_dim() const = 0;
        virtual Index num_experts() const = 0;
        virtual void forward(In<S> x, Out<S> y, Workspace<S>& ws, const Context& c) const = 0;
        virtual void backward(In<S> x, In<S> dy, Out<S> dx, Base* grad, Workspace<S>& ws,
                              const Context& c) const = 0;
        virtual void route(In<S> x, Workspace<S>& ws, const Context& c) const = 0;
        virtual void reweigh(In<S> x, const Routing& routing, Workspace<S>& ws,
                             const Context& c) const = 0;
        virtual void apply(In<S> x, Out<S> y, Workspace<S>& ws, const Context& c) const = 0;
        virtual void apply_backward(In<S> x, In<S> dy, Out<S> dx, Base* grad, Workspace<S>& ws,
                                    const Context& c) const = 0;
        virtual void route_backward(In<S> x, Out<S> dx, Base* grad, Workspace<S>& ws,
                                    const Context& c) const = 0;
        virtual void reserve(Index tokens, Index assignments, Workspace<S>& ws) const = 0;
        virtual void visit(Visit visit) = 0;
        virtual void visit_weights(VisitWeights visit) = 0;
        virtual Index num_parameters() const = 0;
        virtual std::unique_ptr<Base> zeros_like(Wanted wanted) const = 0;
        virtual std::span<S> flatten(std::span<S> memory, const std::shared_ptr<S>& owner) = 0;
    };

    template <class L>
    struct Model final : Base {
        static constexpr bool trainable = detail::is_trainable<L, S>();

        explicit Model(L l) : layer(std::move(l)) {}

        const void* type() const override { return &type_tag<L>; }
        std::unique_ptr<Base> clone() const override { return std::make_unique<Model>(layer); }
        bool is_trainable() const override { return trainable; }
        Index model_dim() const override { return layer.model_dim(); }
        Index output_dim() const override { return layer.output_dim(); }
        Index num_experts() const override { return layer.num_experts(); }

        void forward(In<S> x, Out<S> y, Workspace<S>& ws, const Context& c) const override {
            layer.forward(x, y, ws, c);
        }
        void backward(In<S> x, In<S> dy, Out<S> dx, Base* grad, Workspace<S>& ws,
                      const Context& c) const override {
            if constexpr (trainable)
                layer.backward(x, dy, dx, gradient(grad, ws), ws, c);
            else
                missing("backward");
        }
        void route(In<S> x, Workspace<S>& ws, const Context& c) const override {
            if constexpr (requires { layer.route(x, ws, c); })
                layer.route(x, ws, c);
            else
                missing("route");
        }
        void reweigh(In<S> x, const Routing& routing, Workspace<S>& ws,
                     const Context& c) const override {
            if constexpr (requires { layer.reweigh(x, routing, ws, c); })
                layer.reweigh(x, routing, ws, c);
            else
                missing("reweigh");
        }
        void apply(In<S> x, Out<S> y, Workspace<S>& ws, const Context& c) const override {
            if constexpr (requires { layer.apply(x, y, ws, c); })
                layer.apply(x, y, ws, c);
            else
                missing("apply");
        }
        void apply_backward(In<S> x, In<S> dy, Out<S> dx, Base* grad, Workspace<S>& ws,
                            const Context& c) const override {
            if constexpr (trainable &&
                          requires(L & g) { layer.apply_backward(x, dy, dx, g, ws, c); })
                layer.apply_backward(x, dy, dx, gradient(grad, ws), ws, c);
            else
                missing("apply_backward");
        }
        void route_backward(In<S> x, Out<S> dx, Base* grad, Workspace<S>& ws,
                            const Context& c) const override {
            if constexpr (trainable && requires(L & g) { layer.route_backward(x, dx, g, ws, c); })
                layer.route_backward(x, dx, gradient(grad, ws), ws, c);
            else
                missing("route_backward");
        }
        void reserve(Index tokens, Index assignments, Workspace<S>& ws) const override {
            if constexpr (requires { layer.reserve(tokens, assignments, ws); })
                layer.reserve(tokens, assignments, ws);
        }

        void visit(Visit visit) override {
            moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
                using Given = typename std::remove_cvref_t<decltype(matrix)>::Scalar;
                if constexpr (std::is_same_v<Given, S>)
                    visit(name,
                          View<S>(matrix.data(), matrix.rows(), matrix.cols(),
                                  Eigen::OuterStride<>(matrix.cols())),
                          role);
                else if (role == Role::trainable)
                    detail::fail<std::logic_error>("moe::AnyLayer: parameter ", std::string(name),
                                                   " is of another scalar than the layer");
            });
        }
        void visit_weights(VisitWeights visit) override {
            detail::visit_weights(layer, [&](const std::string& pattern, Weights<S>& weights,
                                             Index first) { visit(pattern, weights, first); });
        }
        Index num_parameters() const override {
            using moe::num_parameters;  // and those of frozen layers
            return num_parameters(layer);
        }
        std::unique_ptr<Base> zeros_like(Wanted wanted) const override {
            return std::make_unique<Model>(moe::zeros_like(layer, wanted));
        }
        std::span<S> flatten(std::span<S> memory, const std::shared_ptr<S>& owner) override {
            return moe::flatten(layer, memory, owner);
        }

        /// The layer in `grad`; one that is not wanted, if grad is null.
        static L& gradient(Base* grad, Workspace<S>& ws) {
            if (grad == nullptr) return ws.template state<L>();
            if (grad->type() != &type_tag<L>)
                detail::fail(
                    "moe::AnyLayer::backward: grad holds another type of layer; make it "
                    "with zeros_like(layer)");
            return static_cast<Model&>(*grad).layer;
        }
        [[noreturn]] static void missing(const char* call) {
            detail::fail<std::logic_error>("moe::AnyLayer: the layer inside has no ", call, "()",
                                           trainable ? "" : "; it is for inference only");
        }

        L layer;
    };

    const Base& model() const { return const_cast<AnyLayer&>(*this).model(); }
    Base& model() {
        if (!model_) detail::fail<std::logic_error>("moe::AnyLayer: it holds no layer");
        return *model_;
    }

    std::unique_ptr<Base> model_;
};

template <class S>
Index num_parameters(const AnyLayer<S>& layer) {
    return layer.num_parameters();
}

template <class S, class Wanted>
AnyLayer<S> zeros_like(const AnyLayer<S>& layer, Wanted&& wanted) {
    return layer.zeros_like(wanted);
}
template <class S>
AnyLayer<S> zeros_like(const AnyLayer<S>& layer) {
    return layer.zeros_like();
}

template <class S>
std::span<S> flatten(AnyLayer<S>& layer, std::span<S> memory,
                     const std::shared_ptr<S>& owner = nullptr) {
    return layer.flatten(memory, owner);
}

/// Does not compile.
template <class S>
void freeze(const AnyLayer<S>&, const FreezeOptions& = {}) {
    static_assert(sizeof(S) == 0,
                  "moe: freeze a layer before it goes into an AnyLayer, or the one inside: "
                  "moe::freeze(*any.get<L>())");
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ANY_LAYER_HPP
