// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_WRAPPER_HPP
#define MOE_ROUTERS_WRAPPER_HPP

#include <cstddef>

#include <moe/core/concepts.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/parameters.hpp>

namespace moe::inline MOE_ABI {

/// A router around a router that hands every hook on. Derive from it and write the hooks that
/// differ: a temperature, for example, divides what the inner router returns.
///
///     template <class S, class Inner>
///     struct Cooled : moe::RouterWrapper<S, Inner> {
///         using Base = moe::RouterWrapper<S, Inner>;
///         S factor = 1;
///
///         void forward(moe::In<S> x, moe::Out<S> logits, const moe::Call<S>& call) const {
///             Base::forward(x, logits, call);
///             logits *= factor;
///         }
///         void backward(moe::In<S> x, moe::In<S> dlogits, moe::Out<S> dx, Cooled& grad,
///                       const moe::Call<S>& call) const {
///             Base::backward(x, factor * dlogits, dx, grad, call);
///         }
///     };
///
/// The inner router works in the first child of the wrapper's node, so that a wrapper may be
/// wrapped in its own kind. Its parameters keep their names. A gradient of the inner router that is
/// not wanted is dealt with here; those of parameters of its own are for the wrapper to look at.
///
/// freeze() is not handed on, for it returns another type: a wrapper of Inner that is frozen. A
/// wrapper that does not write it is copied as it is into a frozen layer.
template <class S, class Inner>
struct RouterWrapper {
    using Scalar = S;
    static constexpr bool per_token = hooks::per_token<Inner>;
    static constexpr bool skips_empty_gradients = true;  // it lends the inner router a whole one

    Inner inner{};

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        hooks::forward<S>(inner, x, logits, call.child(inner_node));
    }
    void backward(In<S> x, In<S> dlogits, Out<S> dx, RouterWrapper& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        const Call<S> within = call.child(inner_node);
        detail::lend_gradient(inner, grad.inner, within.ws, [&](Inner& inner_grad) {
            hooks::backward<S>(inner, x, dlogits, dx, inner_grad, within);
        });
    }

    void check(const Shape& shape) const {
        if constexpr (requires { inner.check(shape); }) inner.check(shape);
    }
    double flops_per_token() const {
        if constexpr (requires { inner.flops_per_token(); })
            return inner.flops_per_token();
        else
            return 0;
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Workspace<S>& within = ws.child(inner_node);
        if (ws.keeps()) detail::reserve_gradient(inner, within);
        if constexpr (requires { inner.reserve(tokens, assignments, within); })
            inner.reserve(tokens, assignments, within);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        Index bytes = keep == Keep::nothing ? 0 : detail::gradient_bytes(inner);
        if constexpr (requires { inner.workspace_bytes(tokens, assignments, keep, workers); })
            bytes += inner.workspace_bytes(tokens, assignments, keep, workers);
        return bytes;
    }

    void check_freeze(const FreezeOptions& options) const { detail::check_freeze(inner, options); }
    /// Of what freeze() packed in the inner router.
    Index bytes() const {
        if constexpr (requires { inner.bytes(); })
            return inner.bytes();
        else
            return 0;
    }

    void visit_parameters(auto&& visit) { moe::visit_parameters(inner, visit); }
    void own_gradients() {
        if constexpr (requires { inner.own_gradients(); }) inner.own_gradients();
    }

protected:
    static constexpr std::size_t inner_node = 0;
};

namespace detail {

/// The router inside another, from its recipe or the user's object.
template <class Inner, class S>
auto built_router(const Inner& inner, const Shape& shape, Random& random) {
    static_assert(HasForward<built_t<Inner, S>, S>,
                  "moe: a router around a router takes that one first, its own settings after it: "
                  "moe::Jitter{moe::LinearRouter{}, 0.01}; the router inside needs forward(x, "
                  "logits) const, with or without a last argument const moe::Call<S>&");
    return built<Inner, S>(inner, shape, random);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_WRAPPER_HPP
