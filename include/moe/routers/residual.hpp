// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_RESIDUAL_HPP
#define MOE_ROUTERS_RESIDUAL_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/decide.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/passed_logits.hpp>
#include <moe/routers/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// Where a layer stands among those that hear each other.
enum class ResidualPlace {
    later,  ///< after another one, which it hears; needs Context::previous
    first,  ///< hears none, and has no R
};

namespace detail {

/// What scaling would hide: the logits before it, which the next layer's residual is made of.
template <class S>
class UnscaledLogits : public PassedLogits<S> {};

}  // namespace detail

/// A router that also hears what the layer before has decided.
///
///     z      = inner(x) + r R^T                      R: [L, L]
///     logits = z, or  target_std z / std(z)          std over the L logits, with L - 1 below
///
/// r [T, L] is the z of the layer before, from Context::previous; a router of ResidualPlace::first
/// does not look there and has no such term. Logits that were masked (-inf) count as 0 and get no
/// gradient. Those of a layer with another kind of router are read as they are. The gradient at r
/// is added to what that layer's backward starts from, so that one runs after this one's:
///
///     dr = dz R,  dR += dz^T r
///     dz = a (dlogits - <dlogits, z> (z - mean z) / ((L - 1) std^2)),  a = target_std / std
///
/// Logits of -inf take no part in mean and std. Where fewer than two are left, or all are equal,
/// logits are not scaled.
///
/// Source: MoE++ (arXiv:2410.07348) section 3.3, gating residuals; scaling is that of its code.
template <class S, class Inner>
class GatingResidualModule : public RouterWrapper<S, Inner> {
    using Base = RouterWrapper<S, Inner>;

public:
    /// Holds nothing; a gradient like this is not wanted.
    GatingResidualModule() = default;
    /// @param residual    its weight is R; holds nothing for ResidualPlace::first
    /// @param target_std  0: no scaling
    GatingResidualModule(Inner router, LinearRouterModule<S> residual, double target_std,
                         ResidualPlace place, Index num_logits)
        : Base{std::move(router)},
          residual_(std::move(residual)),
          target_std_(target_std),
          place_(place),
          num_logits_(num_logits) {}

    ResidualPlace place() const { return place_; }
    /// [L, L] R above; [0, 0] of ResidualPlace::first
    const Parameter<S>& residual() const { return residual_.weight; }
    Parameter<S>& residual() { return residual_.weight; }

    void check(const Shape& shape) const {
        Base::check(shape);
        detail::check_router(who, num_logits_, shape);
        const Index wanted = hears() ? num_logits_ : 0;
        if (residual().rows() != wanted || residual().cols() != wanted)
            detail::fail(who, ": residual is [", residual().rows(), ", ", residual().cols(),
                         "], it must be [", wanted, ", ", wanted, "]");
    }

    /// @throws std::invalid_argument if Context::previous is needed and not there, or does not fit
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        Base::forward(x, logits, call);
        if (hears()) {
            State& state = call.ws.template state<State>();
            const View<S> earlier = read(logits, state, call);
            auto product = state.product.matrix(logits.rows(), logits.cols());
            residual_.forward(earlier, product, call.child(residual_node));
            for (Index t = 0; t < logits.rows(); ++t)
                kernels<S>().axpy(logits.cols(), S(1), row_data(product, t), row_data(logits, t));
        }
        if (is_scaled()) scale(logits, call);
    }

    void backward(In<S> x, In<S> dlogits, Out<S> dx, GatingResidualModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        if (is_scaled())
            through(x, scale_backward(dlogits, call), dx, grad, call);
        else
            through(x, dlogits, dx, grad, call);
    }

    double flops_per_token() const { return Base::flops_per_token() + residual_.flops_per_token(); }

    auto freeze(const FreezeOptions& options) const {
        auto frozen = detail::frozen(this->inner, options);
        return GatingResidualModule<S, decltype(frozen)>(
            std::move(frozen), hears() ? residual_.freeze(options) : LinearRouterModule<S>{},
            target_std_, place_, num_logits_);
    }
    Index bytes() const { return Base::bytes() + residual_.bytes(); }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        State& state = ws.template state<State>();
        if (hears()) {
            residual_.reserve(tokens, assignments, ws.child(residual_node));
            state.earlier.matrix(tokens, num_logits_);
            state.product.matrix(tokens, num_logits_);
        }
        if (is_scaled()) {
            ws.template state<detail::UnscaledLogits<S>>().reserve(tokens, num_logits_);
            if (ws.keeps()) state.dz.matrix(tokens, num_logits_);
        }
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index copies = (hears() ? 2 : 0) + (is_scaled() ? 2 : 0) +
                             (is_scaled() && keep != Keep::nothing ? 1 : 0);
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               (hears() ? residual_.workspace_bytes(tokens, assignments, keep, workers) : 0) +
               detail::checked_product(detail::checked_product(tokens, num_logits_),
                                       copies * static_cast<Index>(sizeof(S)));
    }

    /// Those of the inner router, and "residual" unless of ResidualPlace::first
    void visit_parameters(auto&& visit) {
        Base::visit_parameters(visit);
        if (hears()) visit("residual", residual_.weight);
    }

private:
    struct State {
        Buffer<S> earlier;  // [T, L] r, masked logits as 0
        Buffer<S> product;  // [T, L] r R^T; in backward dr
        Buffer<S> dz;       // [T, L]
    };
    struct Spread {
        double mean, factor;  // factor: target_std / std, or 1 where nothing is scaled
        Index count;          // logits above -inf; 0 where nothing is scaled
    };
    static constexpr const char* who = "moe::GatingResidual";
    static constexpr S masked = -std::numeric_limits<S>::infinity();
    static constexpr std::size_t residual_node = Base::inner_node + 1;

    bool hears() const { return place_ == ResidualPlace::later; }
    bool is_scaled() const { return target_std_ > 0; }

    /// What the layer before has left unscaled, or null.
    static detail::UnscaledLogits<S>* unscaled(const Call<S>& call) {
        return call.previous()
            .child(detail::router_node)
            .template find<detail::UnscaledLogits<S>>();
    }

    /// r, masked logits as 0.
    View<S> read(In<S> logits, State& state, const Call<S>& call) const {
        if (call.context.previous == nullptr)
            detail::fail(who,
                         ": Context::previous is empty, it must be the workspace of the layer "
                         "before; the first layer of a network takes place "
                         "moe::ResidualPlace::first, or the inner router alone");
        const View<S> seen = call.previous().logits();
        if (seen.rows() != logits.rows() || seen.cols() != logits.cols())
            detail::fail("moe::Context: previous holds [", seen.rows(), ", ", seen.cols(),
                         "] logits, moe::GatingResidual wants [", logits.rows(), ", ",
                         logits.cols(), "] as in its own layer");
        if (detail::overlap<S>(seen, logits))
            detail::fail(
                "moe::Context: previous is the workspace of this layer itself; each layer "
                "needs one of its own");
        auto* const passed = unscaled(call);
        if (passed != nullptr) passed->check(who, logits.rows(), logits.cols(), call.context);
        const View<S> values = passed != nullptr ? passed->logits() : seen;
        auto earlier = state.earlier.matrix(logits.rows(), logits.cols());
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index l = 0; l < logits.cols(); ++l)
                earlier(t, l) = seen(t, l) == masked ? S(0) : values(t, l);
        return earlier;
    }

    void through(In<S> x, In<S> dz, Out<S> dx, GatingResidualModule& grad,
                 const Call<S>& call) const {
        Base::backward(x, dz, dx, grad, call);
        if (!hears()) return;
        State& state = call.ws.template state<State>();
        const View<S> earlier = read(dz, state, call);
        auto dr = state.product.matrix(dz.rows(), dz.cols());
        residual_.backward(earlier, dz, dr, grad.residual_, call.child(residual_node));
        const View<S> seen = call.previous().logits();
        auto* const passed = unscaled(call);
        View<S> target = passed != nullptr ? passed->gradient() : call.previous().dlogits();
        for (Index t = 0; t < dz.rows(); ++t)
            for (Index l = 0; l < dz.cols(); ++l)
                if (seen(t, l) != masked) target(t, l) += dr(t, l);
    }

    /// Mean and factor of a row: plain sums in double, rows are short.
    Spread spread(const S* z, Index count) const {
        double sum = 0, squares = 0;
        Index n = 0;
        for (Index l = 0; l < count; ++l)
            if (z[l] != masked) sum += static_cast<double>(z[l]), ++n;
        if (n < 2) return {0, 1, 0};
        const double mean = sum / static_cast<double>(n);
        for (Index l = 0; l < count; ++l) {
            const double apart = static_cast<double>(z[l]) - mean;
            if (z[l] != masked) squares = std::fma(apart, apart, squares);
        }
        if (squares == 0) return {0, 1, 0};
        return {mean, target_std_ / std::sqrt(squares / static_cast<double>(n - 1)), n};
    }

    void scale(Out<S> logits, const Call<S>& call) const {
        auto z = call.ws.template state<detail::UnscaledLogits<S>>().write(
            logits.rows(), logits.cols(), call.context);
        for (Index t = 0; t < logits.rows(); ++t) {
            const double factor = spread(row_data(logits, t), logits.cols()).factor;
            for (Index l = 0; l < logits.cols(); ++l) {
                z(t, l) = logits(t, l);
                logits(t, l) = static_cast<S>(factor * static_cast<double>(z(t, l)));
            }
        }
    }

    /// dz: through the scaling, and what the layer after has added.
    View<S> scale_backward(In<S> dlogits, const Call<S>& call) const {
        auto& passed = call.ws.template state<detail::UnscaledLogits<S>>();
        passed.check_extents(who, dlogits.rows(), dlogits.cols());
        const View<S> z = passed.logits(), added = passed.gradient();
        const Index width = dlogits.cols();
        auto dz = call.ws.template state<State>().dz.matrix(dlogits.rows(), width);
        for (Index t = 0; t < dlogits.rows(); ++t) {
            if (call.context.is_padding(t)) {  // its z may be NaN
                std::fill_n(row_data(dz, t), width, S(0));
                continue;
            }
            const Spread row = spread(row_data(z, t), width);
            double along = 0;  // <dlogits, z>
            for (Index l = 0; l < width && row.count > 0; ++l)
                if (z(t, l) != masked)
                    along = std::fma(static_cast<double>(dlogits(t, l)),
                                     static_cast<double>(z(t, l)), along);
            const double per_apart = row.count == 0 ? 0
                                                    : along * row.factor * row.factor /
                                                          (target_std_ * target_std_) /
                                                          static_cast<double>(row.count - 1);
            for (Index l = 0; l < width; ++l) {
                if (z(t, l) == masked) {
                    dz(t, l) = added(t, l);
                    continue;
                }
                const double apart = static_cast<double>(z(t, l)) - row.mean;
                const double inside =
                    std::fma(-per_apart, apart, static_cast<double>(dlogits(t, l)));
                dz(t, l) = static_cast<S>(row.factor * inside) + added(t, l);
            }
        }
        passed.finish();
        return dz;
    }

    LinearRouterModule<S> residual_;
    double target_std_ = 0;
    ResidualPlace place_ = ResidualPlace::later;
    Index num_logits_ = 0;
};

/// Recipe: adds a linear map of the logits of the layer before to those of a router.
///
///     moe::GatingResidual{moe::LinearRouter{}}
///     moe::GatingResidual{moe::LinearRouter{}, 1.0}    logits scaled to standard deviation 1
///     moe::GatingResidual{moe::LinearRouter{}, 1.0, moe::ResidualPlace::first}
///
/// Every layer but the first of a network takes the workspace of the layer before as
/// Context::previous; all have equally many experts. The first has nothing to hear: it takes the
/// inner router alone or, if logits are scaled, ResidualPlace::first. It steadies routing where
/// layers have experts of very different cost, as in MoE++ itself. R starts as N(0, 1 / (3 L)), so
/// that what is handed on from layer to layer stays bounded.
template <class Inner = LinearRouter>
struct GatingResidual {
    Inner inner{};
    double target_std = 0;  ///< 0: logits are not scaled
    ResidualPlace place = ResidualPlace::later;

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (!(target_std >= 0 && std::isfinite(target_std)))
            detail::fail("moe::GatingResidual: target_std is ", target_std,
                         ", it must be finite and >= 0; 0 leaves logits as they are");
        if (place != ResidualPlace::later && place != ResidualPlace::first)
            detail::fail("moe::GatingResidual: place is ", static_cast<int>(place),
                         ", which is none of moe::ResidualPlace");
        Random of_inner = random.child(0), of_residual = random.child(1);
        auto router = detail::built_router<Inner, S>(inner, shape, of_inner);
        LinearRouterModule<S> residual;
        if (place == ResidualPlace::later) {
            residual.weight = Parameter<S>(shape.num_logits, shape.num_logits);
            of_residual.fill_normal(residual.weight,
                                    1 / std::sqrt(3 * static_cast<double>(shape.num_logits)));
        }
        return GatingResidualModule<S, decltype(router)>(std::move(router), std::move(residual),
                                                         target_std, place, shape.num_logits);
    }
};

GatingResidual()->GatingResidual<>;
template <class Inner>
GatingResidual(Inner) -> GatingResidual<Inner>;
template <class Inner>
GatingResidual(Inner, double) -> GatingResidual<Inner>;
template <class Inner>
GatingResidual(Inner, double, ResidualPlace) -> GatingResidual<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_RESIDUAL_HPP
