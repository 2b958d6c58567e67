// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_MLP_HPP
#define MOE_ROUTERS_MLP_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>

#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/group.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {

/// Nonlinearity between the two products of an MlpRouter. tanh is a matter of routers, for which
/// experts have no kernel; the others are those of Activation.
enum class RouterActivation { tanh, relu, gelu, silu };

namespace detail {

/// h = tanh a, to 2 ulp, also near 0, where 2 sigmoid(2a) - 1 cancels: there it is Lambert's
/// continued fraction, a / (1 + a^2 / (3 + a^2 / (5 + ...))), to 4e-10 up to |a| = 1. Its square is
/// exact in double, and no product feeds a sum: the bits are the same everywhere.
/// @param h  must not be a
template <class S>
void tanh(Index n, const S* a, S* h) {
    if constexpr (std::is_same_v<S, double>) {
        for (Index i = 0; i < n; ++i) h[i] = std::tanh(a[i]);
    } else {
        for (Index i = 0; i < n; ++i) h[i] = -2 * std::abs(a[i]);
        kernels<S>().sigmoid(n, h, h);
        for (Index i = 0; i < n; ++i) {
            const double x = a[i], square = x * x;
            double fraction = 11;
            for (int odd = 9; odd > 0; odd -= 2) fraction = odd + square / fraction;
            h[i] =
                std::abs(x) < 1 ? static_cast<S>(x / fraction) : std::copysign(1 - 2 * h[i], a[i]);
        }
    }
}

/// da = dh tanh' a = dh 4 s (1 - s), s = sigmoid(-2 |a|): nothing cancels where tanh saturates.
/// @param da  must not be a or dh
template <class S>
void tanh_backward(Index n, const S* a, const S* dh, S* da) {
    for (Index i = 0; i < n; ++i) da[i] = -2 * std::abs(a[i]);
    kernels<S>().sigmoid(n, da, da);
    for (Index i = 0; i < n; ++i) da[i] = dh[i] * (4 * da[i] * (1 - da[i]));
}

/// That of experts which is the same function; not for tanh.
inline Activation activation_of(RouterActivation activation) {
    if (activation == RouterActivation::relu) return Activation::relu;
    return activation == RouterActivation::gelu ? Activation::gelu : Activation::silu;
}

}  // namespace detail

/// logits = W2 act(W1 x + b1) + b2        W1: [H, D], b1: [H], W2: [L, H], b2: [L]
///
/// Two linear routers with a nonlinearity between. The hidden vector of a token that is padding is
/// 0, whatever the token holds.
template <class S>
class MlpRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    MlpRouterModule() = default;

    LinearRouterModule<S> hidden;  // weight [H, D], bias [1, H] or empty
    LinearRouterModule<S> output;  // weight [L, H], bias [1, L] or empty

    RouterActivation activation() const { return activation_; }

    /// @param x  [T, D]   @param logits  [T, L], overwritten
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        auto& state = call.ws.template state<State>();
        auto a = state.a.matrix(x.rows(), hidden_dim());
        auto h = state.h.matrix(x.rows(), hidden_dim());
        hidden.forward(x, a, call.child(hidden_node));
        over_rows(call, a, [&](Index t) {
            if (call.context.is_padding(t)) std::fill_n(row_data(a, t), hidden_dim(), S(0));
            activate(row_data(a, t), row_data(h, t));
        });
        output.forward(h, logits, call.child(output_node));
    }

    /// @throws std::invalid_argument unless W1 is [H, model_dim] and W2 [num_logits, H]
    void check(const Shape& shape) const {
        const Parameter<S>&w1 = hidden.weight, &w2 = output.weight;
        if (w1.cols() != shape.model_dim || w2.rows() != shape.num_logits || w2.cols() != w1.rows())
            detail::fail("moe::MlpRouter: hidden.weight is [", w1.rows(), ", ", w1.cols(),
                         "] and output.weight [", w2.rows(), ", ", w2.cols(),
                         "], the layer wants [hidden_dim, ", shape.model_dim, "] and [",
                         shape.num_logits, ", hidden_dim]: model_dim, logits per token");
    }

    /// dh = dlogits W2, da = dh act'(a), dx = da W1, and the gradients of both routers.
    void backward(In<S> x, In<S> dlogits, Out<S> dx, MlpRouterModule& grad,
                  const Call<S>& call) const {
        auto& state = call.ws.template state<State>();
        const auto a = state.a.matrix(x.rows(), hidden_dim());
        auto h = state.h.matrix(x.rows(), hidden_dim());
        auto dh = state.dh.matrix(x.rows(), hidden_dim());
        over_rows(call, a, [&](Index t) { activate(row_data(a, t), row_data(h, t)); });
        output.backward(h, dlogits, dh, grad.output, call.child(output_node));
        over_rows(call, a, [&](Index t) {
            activate_backward(row_data(a, t), row_data(dh, t), row_data(h, t));
        });
        hidden.backward(x, h, dx, grad.hidden, call.child(hidden_node));
    }

    Index hidden_dim() const { return hidden.weight.rows(); }
    double flops_per_token() const { return hidden.flops_per_token() + output.flops_per_token(); }

    /// Of what freeze() packed.
    Index bytes() const { return hidden.bytes() + output.bytes(); }

    /// The same router with both matrices packed once, for inference.
    MlpRouterModule freeze(const FreezeOptions& options) const {
        MlpRouterModule frozen = *this;
        frozen.hidden = hidden.freeze(options);
        frozen.output = output.freeze(options);
        return frozen;
    }

    void reserve(Index tokens, Index rows, Workspace<S>& ws) const {
        auto& state = ws.template state<State>();
        state.a.matrix(tokens, hidden_dim());
        state.h.matrix(tokens, hidden_dim());
        if (ws.keeps()) state.dh.matrix(tokens, hidden_dim());
        hidden.reserve(tokens, rows, ws.child(hidden_node));
        output.reserve(tokens, rows, ws.child(output_node));
    }
    Index workspace_bytes(Index tokens, Index rows, Keep keep, int workers) const {
        const Index matrices = keep == Keep::nothing ? 2 : 3, size = static_cast<Index>(sizeof(S));
        return detail::checked_product(detail::checked_product(tokens, hidden_dim()),
                                       matrices * size) +
               hidden.workspace_bytes(tokens, rows, keep, workers) +
               output.workspace_bytes(tokens, rows, keep, workers);
    }

    /// hidden.weight, hidden.bias, output.weight, output.bias
    void visit_parameters(auto&& visit) {
        hidden.visit_parameters([&visit](std::string_view name, auto& matrix) {
            visit("hidden." + std::string(name), matrix);
        });
        output.visit_parameters([&visit](std::string_view name, auto& matrix) {
            visit("output." + std::string(name), matrix);
        });
    }

private:
    friend struct MlpRouter;
    static constexpr std::size_t hidden_node = 0, output_node = 1;
    struct State {
        Buffer<S> a;   // [T, H] what forward leaves: before the nonlinearity
        Buffer<S> h;   // [T, H] after it; backward makes it again and then needs the room for da
        Buffer<S> dh;  // [T, H]
    };

    void activate(const S* a, S* h) const {
        if (activation_ == RouterActivation::tanh)
            detail::tanh(hidden_dim(), a, h);
        else
            kernels<S>().activate(detail::activation_of(activation_), hidden_dim(), a, h);
    }
    void activate_backward(const S* a, const S* dh, S* da) const {
        if (activation_ == RouterActivation::tanh)
            detail::tanh_backward(hidden_dim(), a, dh, da);
        else
            kernels<S>().activate_backward(detail::activation_of(activation_), hidden_dim(), a, dh,
                                           da);
    }

    /// f(token) for all rows of a, in parallel; some 20 operations per element.
    template <class F>
    static void over_rows(const Call<S>& call, View<S> a, F&& f) {
        detail::for_row_runs(call.ws.executor(), a.rows(), 20 * static_cast<double>(a.size()),
                             [&](Index first, Index last, int) {
                                 for (Index t = first; t < last; ++t) f(t);
                             });
    }

    RouterActivation activation_ = RouterActivation::tanh;
};

/// Recipe of a router with one hidden layer, for choices that are not linear in the token. Weights
/// start as N(0, 1 / columns), biases at 0.
///
/// Source: MoE++ (arXiv:2410.07348), released code: tanh, 8 E hidden, no biases. LLaMA-MoE
/// (arXiv:2406.16554), released code: tanh, E hidden.
struct MlpRouter {
    Index hidden_dim = 0;  ///< H; 0: 8 * experts
    RouterActivation activation = RouterActivation::tanh;
    bool bias = false;  ///< of both layers

    template <class S>
    MlpRouterModule<S> build(const Shape& shape, Random& random) const {
        if (hidden_dim < 0)
            detail::fail("moe::MlpRouter: hidden_dim is ", hidden_dim,
                         ", it must be >= 0 (0: 8 * num_experts)");
        detail::check_choice("moe::MlpRouter", "activation", activation, RouterActivation::silu);
        Shape inner = shape, outer = shape;
        inner.num_logits = outer.model_dim =
            hidden_dim > 0 ? hidden_dim : detail::checked_product(8, shape.num_experts);
        MlpRouterModule<S> router;
        router.hidden = LinearRouter{.bias = bias}.build<S>(inner, random);
        router.output = LinearRouter{.bias = bias}.build<S>(outer, random);
        router.activation_ = activation;
        return router;
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_MLP_HPP
