// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_FROZEN_SOFT_MOE_HPP
#define MOE_COMPOSE_FROZEN_SOFT_MOE_HPP

#include <tuple>
#include <utility>

#include <moe/compose/soft_moe.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/views.hpp>
#include <moe/frozen.hpp>

namespace moe::inline MOE_ABI {

/// A SoftMoe for inference: the weights of its experts packed once. Made by freeze(). What is said
/// of the bits of a FrozenLayer holds here; slots and their mixtures are those of the SoftMoe.
/// @tparam Groups  modules
template <class S, class... Groups>
class FrozenSoftMoe {
public:
    using Scalar = S;

    /// @param num_parameters  of the layer that was frozen
    FrozenSoftMoe(const Config& config, SoftSlotsModule<S> slots, std::tuple<Groups...> groups,
                  Index num_parameters)
        : layer_(SoftMoe<S, Groups...>::of_modules(config, std::move(slots), std::move(groups))),
          num_parameters_(num_parameters) {}

    const Config& config() const { return layer_.config(); }
    Index model_dim() const { return layer_.model_dim(); }
    Index output_dim() const { return layer_.output_dim(); }
    Index num_experts() const { return layer_.num_experts(); }
    Index num_slots() const { return layer_.num_slots(); }
    /// Of the layer that was frozen.
    Index num_parameters() const { return num_parameters_; }
    const SoftSlotsModule<S>& slots() const { return layer_.slots(); }
    const Bank<S, Groups...>& bank() const { return layer_.bank(); }

    /// [P, T] and [T, P] of the last batch; see SoftMoe.
    ConstView<S> dispatch(Workspace<S>& ws) const { return layer_.dispatch(ws); }
    ConstView<S> combine(Workspace<S>& ws) const { return layer_.combine(ws); }

    /// Allocates the result and a workspace.
    template <class X>
    Matrix<S> operator()(const X& x, const Context& context = {}) const {
        return layer_(x, context);
    }

    /// y = layer(x); see SoftMoe::forward.
    template <class X, class Y>
    void forward(const X& x, Y&& y, Workspace<S>& ws, const Context& context = {}) const {
        const detail::KeepNothing<S> guard(ws);
        layer_.forward(x, std::forward<Y>(y), ws, context);
    }

    void reserve(Index tokens, Index slots, Workspace<S>& ws) const {
        const detail::KeepNothing<S> guard(ws);
        layer_.reserve(tokens, slots, ws);
    }
    /// Bytes of those rooms, for a call by `workers` threads. There is nothing to keep.
    Index workspace_bytes(Index tokens, Index slots, Keep, int workers) const {
        return layer_.workspace_bytes(tokens, slots, Keep::nothing, workers);
    }

private:
    SoftMoe<S, Groups...> layer_;
    Index num_parameters_;
};

template <class S, class... Groups>
Index num_parameters(const FrozenSoftMoe<S, Groups...>& layer) {
    return layer.num_parameters();
}

namespace detail {

template <class S, class... Groups>
FrozenSoftMoe<S, Groups...> make_frozen_soft_moe(const Config& config, SoftSlotsModule<S> slots,
                                                 std::tuple<Groups...> groups,
                                                 Index num_parameters) {
    return {config, std::move(slots), std::move(groups), num_parameters};
}

}  // namespace detail

/// Packs the weights of a layer for inference; the layer stays as it is.
/// @throws std::invalid_argument if the options do not fit each other, the layer or its weights
template <class S, class... Groups>
auto freeze(const SoftMoe<S, Groups...>& layer, const FreezeOptions& options = {}) {
    detail::check_experts(options, "the layer", layer.num_experts());
    return detail::make_frozen_soft_moe<S>(layer.config(), layer.slots(),
                                           detail::frozen_groups(layer.bank().groups(), options),
                                           num_parameters(layer));
}

/// Packs the weights of a layer that is not needed any more, and releases them one by one.
/// @throws std::invalid_argument as the other; the layer is unchanged then
template <class S, class... Groups>
auto freeze(SoftMoe<S, Groups...>&& layer, const FreezeOptions& options = {}) {
    detail::check_experts(options, "the layer", layer.num_experts());
    detail::check_groups(layer.bank(), options);
    const Config config = layer.config();
    const Index count = num_parameters(layer);
    auto packed = detail::consumed_groups(layer.bank().groups(), options);
    return detail::make_frozen_soft_moe<S>(config, std::move(layer.slots()), std::move(packed),
                                           count);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_COMPOSE_FROZEN_SOFT_MOE_HPP
