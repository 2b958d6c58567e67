// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_JITTER_HPP
#define MOE_ROUTERS_JITTER_HPP

#include <cmath>
#include <utility>

#include <moe/core/group.hpp>
#include <moe/core/views.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// A router that reads tokens with multiplicative noise while the context says `training`.
///
///     logits = inner(x * u)        u: [T, D], u(t, d) uniform in [1 - epsilon, 1 + epsilon]
///     dx     = u * d(x * u)
///
/// u(t, d) is keyed by (token, column), so it depends neither on threads nor on how a batch is
/// split. Where the context does not say `training`, the bits are the inner router's.
///
/// The noise is on a copy: experts read x, and so does whatever comes after the layer. Some
/// implementations multiply the hidden states in place, so that in training (and with a float32
/// input also by accident) experts are trained on noisy tokens; that is not reproduced.
///
/// Source: Switch Transformers (arXiv:2101.03961) section 2.4, input jitter.
template <class S, class Inner>
class JitterModule : public RouterWrapper<S, Inner> {
    using Base = RouterWrapper<S, Inner>;

public:
    /// Holds nothing; a gradient like this is not wanted.
    JitterModule() = default;
    /// @param epsilon  in [0, 1)
    JitterModule(Inner router, Index model_dim, double epsilon)
        : Base{std::move(router)}, model_dim_(model_dim), epsilon_(epsilon) {}

    double epsilon() const { return epsilon_; }

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        if (!is_noisy(call)) return Base::forward(x, logits, call);
        draw(x, call);
        Base::forward(jittered(x, call), logits, call);
    }

    void backward(In<S> x, In<S> dlogits, Out<S> dx, JitterModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        if (!is_noisy(call)) return Base::backward(x, dlogits, dx, grad, call);
        // From x again and not as forward left it: there, padding may be anything.
        Base::backward(jittered(x, call), dlogits, dx, grad, call);
        const State& state = call.ws.template state<State>();
        over_rows(x, call, static_cast<double>(x.size()), [&](Index t) {
            const S* const u = state.factors.data() + t * x.cols();
            for (Index d = 0; d < x.cols(); ++d) dx(t, d) *= u[d];
        });
    }

    auto freeze(const FreezeOptions& options) const {
        auto frozen = detail::frozen(this->inner, options);
        return JitterModule<S, decltype(frozen)>(std::move(frozen), model_dim_, epsilon_);
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        if (epsilon_ == 0) return;
        State& state = ws.template state<State>();
        state.factors.matrix(tokens, model_dim_);
        state.tokens.matrix(tokens, model_dim_);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index copies = epsilon_ == 0 ? 0 : 2 * static_cast<Index>(sizeof(S));
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::checked_product(tokens, model_dim_ * copies);
    }

private:
    struct State {
        Buffer<S> factors;  // [T, D] u
        Buffer<S> tokens;   // [T, D] x * u
    };

    bool is_noisy(const Call<S>& call) const { return call.context.training && epsilon_ > 0; }

    template <class F>
    static void over_rows(In<S> x, const Call<S>& call, double flops, F&& f) {
        detail::for_row_runs(call.ws.executor(), x.rows(), flops,
                             [&](Index first, Index last, int) {
                                 for (Index t = first; t < last; ++t) f(t);
                             });
    }

    void draw(In<S> x, const Call<S>& call) const {
        auto factors = call.ws.template state<State>().factors.matrix(x.rows(), x.cols());
        const CounterRandom random = call.random();
        constexpr double flops_per_draw = 100;
        over_rows(x, call, flops_per_draw * static_cast<double>(x.size()), [&](Index t) {
            for (Index d = 0; d < x.cols(); ++d) {
                const double centred = std::fma(2, random.uniform(call.token(t), d), -1);
                factors(t, d) = static_cast<S>(std::fma(epsilon_, centred, 1));
            }
        });
    }

    View<S> jittered(In<S> x, const Call<S>& call) const {
        State& state = call.ws.template state<State>();
        auto tokens = state.tokens.matrix(x.rows(), x.cols());
        over_rows(x, call, static_cast<double>(x.size()), [&](Index t) {
            const S* const u = state.factors.data() + t * x.cols();
            for (Index d = 0; d < x.cols(); ++d) tokens(t, d) = x(t, d) * u[d];
        });
        return tokens;
    }

    Index model_dim_ = 0;
    double epsilon_ = 0;
};

/// Recipe: noise on what a router reads, in training only.
///
///     moe::Jitter{moe::LinearRouter{}, 0.01}
///     moe::Jitter<>{.epsilon = 0.1}
///
/// It keeps a router from settling before experts differ, at no cost in inference. The default is
/// that of Switch Transformers.
template <class Inner = LinearRouter>
struct Jitter {
    Inner inner{};
    double epsilon = 0.01;  ///< in [0, 1); 0: no noise

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (!(epsilon >= 0 && epsilon < 1))
            detail::fail("moe::Jitter: epsilon is ", epsilon,
                         ", it must be in [0, 1); Switch Transformers use 0.01");
        auto router = detail::built_router<Inner, S>(inner, shape, random);
        return JitterModule<S, decltype(router)>(std::move(router), shape.model_dim, epsilon);
    }
};

Jitter()->Jitter<>;
template <class Inner>
Jitter(Inner) -> Jitter<Inner>;
template <class Inner>
Jitter(Inner, double) -> Jitter<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_JITTER_HPP
