// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_PRE_GATED_HPP
#define MOE_ROUTERS_PRE_GATED_HPP

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/passed_logits.hpp>
#include <moe/routers/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// Where a layer stands among those that decide for the next.
enum class PreGatePlace {
    first,   ///< decides for itself and for the next
    middle,  ///< the layer before has decided; decides for the next
    last,    ///< the layer before has decided
};

namespace detail {

/// What a pre-gate leaves for the next layer.
template <class S>
class PreGateLogits : public PassedLogits<S> {};

template <class S>
PreGateLogits<S>& pre_gate_logits(Workspace<S>& ws) {
    auto* const passed = ws.child(router_node).template find<PreGateLogits<S>>();
    if (passed == nullptr)
        fail<std::logic_error>(
            "moe::PreGated: the layer before has left no logits: its router must be moe::PreGated, "
            "outermost, with place first or middle, and its forward() called with this workspace");
    return *passed;
}

}  // namespace detail

/// The logits of the **next** layer, [T, L of that layer], as soon as this layer has routed: what
/// experts to fetch while its own are computed. Masks of the next layer are not in them.
/// @param ws  of a layer or head whose router is PreGated{}, place first or middle
/// @throws std::logic_error if it has left none
template <class S>
ConstView<S> next_logits(Workspace<S>& ws) {
    const View<S> logits = detail::pre_gate_logits(ws).logits();
    return ConstView<S>(logits.data(), logits.rows(), logits.cols(),
                        Eigen::OuterStride<>(logits.outerStride()));
}

/// A router that computes the logits of the layer after its own from the tokens of its own.
///
///     first    logits = own(x),              next = pre_gate(x)
///     middle   logits = next of the layer before,  next = pre_gate(x)
///     last     logits = next of the layer before
///
/// The layer before is Context::previous; its router is PreGated too, and outermost there: others
/// go inside. In backward the gradient at logits is added to what that layer's pre-gate starts
/// from, so that its backward runs after this one's.
///
/// Source: Pre-gated MoE (arXiv:2308.12066) section 4.
template <class S, class Inner>
class PreGatedModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;  // it lends each router a whole one

    /// Holds nothing; a gradient like this is not wanted.
    PreGatedModule() = default;
    /// @param own       of place first only
    /// @param pre_gate  not of place last
    PreGatedModule(Inner own, Inner pre_gate, PreGatePlace place, const Shape& shape,
                   Index num_next_logits)
        : own_(std::move(own)),
          pre_gate_(std::move(pre_gate)),
          place_(place),
          shape_(shape),
          num_next_logits_(num_next_logits) {}

    PreGatePlace place() const { return place_; }
    const Inner& own() const { return own_; }
    Inner& own() { return own_; }
    const Inner& pre_gate() const { return pre_gate_; }
    Inner& pre_gate() { return pre_gate_; }

    void check(const Shape& shape) const {
        if (shape.num_logits != shape_.num_logits || shape.model_dim != shape_.model_dim)
            detail::fail("moe::PreGated: the router was built for model_dim ", shape_.model_dim,
                         " and ", shape_.num_logits, " logits per token, the layer has ",
                         shape.model_dim, " and ", shape.num_logits,
                         "; build it again from its recipe");
        Shape next = shape;
        next.num_experts = next.num_logits = num_next_logits_;
        if constexpr (requires { own_.check(shape); }) {
            if (decides_for_itself()) own_.check(shape);
            if (decides_for_next()) pre_gate_.check(next);
        }
    }
    void check_gradient(const PreGatedModule& grad) const {
        if (grad.shape_.num_logits != 0 && grad.place_ != place_)
            detail::fail(
                "moe::Layer::backward: grad is of another layer: it is of another place "
                "than the layer; make it with zeros_like(layer)");
    }

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        if (decides_for_itself()) {
            hooks::forward<S>(own_, x, logits, call.child(own_node));
        } else {
            const View<S> decided = earlier(logits, call).logits();
            for (Index t = 0; t < logits.rows(); ++t)
                std::copy_n(row_data(decided, t), logits.cols(), row_data(logits, t));
        }
        if (decides_for_next()) {
            auto& passed = call.ws.template state<detail::PreGateLogits<S>>();
            const View<S> next = passed.write(x.rows(), num_next_logits_, call.context);
            hooks::forward<S>(pre_gate_, x, next, call.child(pre_gate_node));
        }
    }

    void backward(In<S> x, In<S> dlogits, Out<S> dx, PreGatedModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        if (decides_for_itself()) {
            through(own_, x, dlogits, dx, grad.own_, call.child(own_node));
        } else {
            View<S> target = earlier(dlogits, call).gradient();
            for (Index t = 0; t < dlogits.rows(); ++t)
                kernels<S>().axpy(dlogits.cols(), S(1), row_data(dlogits, t), row_data(target, t));
            for (Index t = 0; t < dx.rows(); ++t) std::fill_n(row_data(dx, t), dx.cols(), S(0));
        }
        if (!decides_for_next()) return;
        auto& passed = call.ws.template state<detail::PreGateLogits<S>>();
        passed.check_extents(who, x.rows(), num_next_logits_);
        auto dx_of_next = call.ws.template state<State>().dx.matrix(x.rows(), x.cols());
        through(pre_gate_, x, passed.gradient(), dx_of_next, grad.pre_gate_,
                call.child(pre_gate_node));
        for (Index t = 0; t < dx.rows(); ++t)
            kernels<S>().axpy(dx.cols(), S(1), row_data(dx_of_next, t), row_data(dx, t));
        passed.finish();
    }

    double flops_per_token() const {
        double flops = 0;
        if constexpr (requires { own_.flops_per_token(); }) {
            if (decides_for_itself()) flops += own_.flops_per_token();
            if (decides_for_next()) flops += pre_gate_.flops_per_token();
        }
        return flops;
    }

    void check_freeze(const FreezeOptions& options) const {
        if (decides_for_itself()) detail::check_freeze(own_, options);
        if (decides_for_next()) detail::check_freeze(pre_gate_, options);
    }
    auto freeze(const FreezeOptions& options) const {
        using Frozen = detail::frozen_t<Inner>;
        return PreGatedModule<S, Frozen>(
            decides_for_itself() ? detail::frozen(own_, options) : Frozen{},
            decides_for_next() ? detail::frozen(pre_gate_, options) : Frozen{}, place_, shape_,
            num_next_logits_);
    }
    Index bytes() const {
        if constexpr (requires { own_.bytes(); })
            return own_.bytes() + pre_gate_.bytes();
        else
            return 0;
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        const auto of_part = [&](const Inner& part, Workspace<S>& within) {
            if (ws.keeps()) detail::reserve_gradient(part, within);
            if constexpr (requires { part.reserve(tokens, assignments, within); })
                part.reserve(tokens, assignments, within);
        };
        if (decides_for_itself()) of_part(own_, ws.child(own_node));
        if (!decides_for_next()) return;
        of_part(pre_gate_, ws.child(pre_gate_node));
        ws.template state<detail::PreGateLogits<S>>().reserve(tokens, num_next_logits_);
        if (ws.keeps()) ws.template state<State>().dx.matrix(tokens, shape_.model_dim);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index keeps = keep == Keep::nothing ? 0 : 1;
        const auto of_part = [&](const Inner& part) {
            Index bytes = keeps * detail::gradient_bytes(part);
            if constexpr (requires { part.workspace_bytes(tokens, assignments, keep, workers); })
                bytes += part.workspace_bytes(tokens, assignments, keep, workers);
            return bytes;
        };
        Index bytes = decides_for_itself() ? of_part(own_) : 0;
        if (decides_for_next())
            bytes +=
                of_part(pre_gate_) +
                detail::checked_product(tokens, 2 * num_next_logits_ + keeps * shape_.model_dim) *
                    static_cast<Index>(sizeof(S));
        return bytes;
    }

    /// Those of the layer's own router, and those of the pre-gate with "next." before them
    void visit_parameters(auto&& visit) {
        if (decides_for_itself()) moe::visit_parameters(own_, visit);
        if (decides_for_next())
            moe::visit_parameters(
                pre_gate_, [&visit](std::string_view name, auto& matrix, Role role) {
                    detail::with_prefix(
                        "next.", name, [&](std::string_view whole) { visit(whole, matrix, role); });
                });
    }
    void own_gradients() {
        if constexpr (requires { own_.own_gradients(); })
            own_.own_gradients(), pre_gate_.own_gradients();
    }

private:
    struct State {
        Buffer<S> dx;  // [T, D] the pre-gate's share
    };
    static constexpr const char* who = "moe::PreGated";
    static constexpr std::size_t own_node = 0, pre_gate_node = 1;

    bool decides_for_itself() const { return place_ == PreGatePlace::first; }
    bool decides_for_next() const { return place_ != PreGatePlace::last; }

    /// What the layer before has decided for this one.
    static detail::PreGateLogits<S>& earlier(In<S> logits, const Call<S>& call) {
        if (&call.previous().child(detail::router_node) == &call.ws)
            detail::fail(
                "moe::Context: previous is the workspace of this layer itself; each layer "
                "needs one of its own");
        auto& passed = detail::pre_gate_logits(call.previous());
        passed.check(who, logits.rows(), logits.cols(), call.context);
        return passed;
    }

    static void through(const Inner& router, In<S> x, In<S> dlogits, Out<S> dx, Inner& grad,
                        const Call<S>& within) {
        detail::lend_gradient(router, grad, within.ws, [&](Inner& whole) {
            hooks::backward<S>(router, x, dlogits, dx, whole, within);
        });
    }

    Inner own_{}, pre_gate_{};
    PreGatePlace place_ = PreGatePlace::last;
    Shape shape_{};
    Index num_next_logits_ = 0;
};

/// Recipe: a layer decides what the next one will do, one layer ahead.
///
///     moe::PreGated{moe::LinearRouter{}, moe::PreGatePlace::first}
///     moe::PreGated{moe::LinearRouter{}, moe::PreGatePlace::middle, 16}    16 experts in the next
///     moe::PreGated{moe::LinearRouter{}, moe::PreGatePlace::last}
///
/// For experts that do not all lie in quick memory: those of the next layer are known, from
/// next_logits(ws), before those of this one have run, so that fetching hides behind computing. A
/// trained model needs a little training more. All layers but the first take the workspace of the
/// layer before as Context::previous.
template <class Inner = LinearRouter>
struct PreGated {
    Inner inner{};
    PreGatePlace place = PreGatePlace::first;
    Index num_next_logits = 0;  ///< logits per token of the next layer; 0: as many as this one's

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (place != PreGatePlace::first && place != PreGatePlace::middle &&
            place != PreGatePlace::last)
            detail::fail("moe::PreGated: place is ", static_cast<int>(place),
                         ", which is none of moe::PreGatePlace");
        if (num_next_logits < 0 || (place == PreGatePlace::last && num_next_logits != 0))
            detail::fail("moe::PreGated: num_next_logits is ", num_next_logits, ", it must be ",
                         place == PreGatePlace::last ? "0 in the last layer"
                                                     : ">= 0 (0: as many as this layer's)");
        using Router = detail::built_t<Inner, S>;
        Random of_own = random.child(0), of_next = random.child(1);
        Shape next = shape;
        if (num_next_logits > 0) next.num_experts = next.num_logits = num_next_logits;
        Router own{}, pre_gate{};
        if (place == PreGatePlace::first)
            own = detail::built_router<Inner, S>(inner, shape, of_own);
        if (place != PreGatePlace::last)
            pre_gate = detail::built_router<Inner, S>(inner, next, of_next);
        return PreGatedModule<S, Router>(std::move(own), std::move(pre_gate), place, shape,
                                         place == PreGatePlace::last ? 0 : next.num_logits);
    }
};

PreGated()->PreGated<>;
template <class Inner>
PreGated(Inner) -> PreGated<Inner>;
template <class Inner>
PreGated(Inner, PreGatePlace) -> PreGated<Inner>;
template <class Inner>
PreGated(Inner, PreGatePlace, Index) -> PreGated<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_PRE_GATED_HPP
