// SPDX-License-Identifier: MIT
#ifndef MOE_FROZEN_HPP
#define MOE_FROZEN_HPP

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include <moe/core/freeze.hpp>
#include <moe/core/views.hpp>
#include <moe/layer.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Sets a workspace to Keep::nothing, for as long as this lives.
template <class S>
class KeepNothing {
public:
    explicit KeepNothing(Workspace<S>& ws) : ws_(ws), before_(ws.keep()) {
        ws_.keep(Keep::nothing);
    }
    KeepNothing(const KeepNothing&) = delete;
    KeepNothing& operator=(const KeepNothing&) = delete;
    ~KeepNothing() { ws_.keep(before_); }

private:
    Workspace<S>& ws_;
    Keep before_;
};

/// The groups of a bank, each packed with its part of the options.
template <class Groups>
auto frozen_groups(const Groups& all, const FreezeOptions& options) {
    Index first = 0;
    const auto pack = [&](const auto& group) {
        return frozen(group, next_options(options, first, group.num_experts()));
    };
    return std::apply(
        [&](const auto&... groups) {
            return std::tuple<frozen_t<std::remove_cvref_t<decltype(groups)>>...>{
                pack(groups)...};  // braces: left to right
        },
        all);
}
/// The same of groups that are given up: each is released as it is packed.
template <class Groups>
auto consumed_groups(Groups& all, const FreezeOptions& options) {
    Index first = 0;
    const auto consume = [&](auto& group) {
        const auto own = next_options(options, first, group.num_experts());
        return frozen(std::exchange(group, {}), own);
    };
    return std::apply(
        [&](auto&... groups) {
            return std::tuple<frozen_t<std::remove_cvref_t<decltype(groups)>>...>{
                consume(groups)...};
        },
        all);
}

/// @throws std::invalid_argument if a group of the bank refuses its part of the options
template <class Bank>
void check_groups(const Bank& bank, const FreezeOptions& options) {
    Index first = 0;
    bank.for_each_group([&](std::size_t, const auto& group) {
        check_freeze(group, next_options(options, first, group.num_experts()));
    });
}

}  // namespace detail

/// A layer for inference: weights packed once for this machine's kernels. Made by freeze().
///
/// The same bits as the layer it came from, if its weights are stored as fp32 and no experts are
/// InBf16 (whose bits are those of Storage::bf16 with Compute::bf16); else, with Compute::exact,
/// those of a layer that holds the rounded weights. It keeps nothing for backward and has none.
/// Its type has a short name: moe::Frozen<L> for a layer L. It can be saved, and read where a file
/// has it: io/frozen.hpp.
/// @tparam R, G, Groups  modules
template <class S, class R, class G, class... Groups>
class FrozenLayer {
public:
    using Scalar = S;

    /// @param num_parameters  of the layer that was frozen
    FrozenLayer(const Config& config, const R& router, const G& gate, std::tuple<Groups...> groups,
                Index num_parameters)
        : bank_(config, std::move(groups)),
          head_(config, router, gate, bank_.facts()),
          num_parameters_(num_parameters) {}

    const Config& config() const { return bank_.config(); }
    Index model_dim() const { return config().model_dim; }
    Index output_dim() const { return bank_.output_dim(); }
    Index num_experts() const { return bank_.num_experts(); }
    /// Of the layer that was frozen.
    Index num_parameters() const { return num_parameters_; }
    /// Whether no token's choice depends on what later tokens of the batch hold: safe in a decoder.
    bool is_causal() const { return head_.is_causal(); }
    const Head<S, R, G>& head() const { return head_; }
    const Bank<S, Groups...>& bank() const { return bank_; }

    /// Allocates the result and a workspace.
    template <class X>
    Matrix<S> operator()(const X& x, const Context& context = {}) const {
        Workspace<S> ws;
        Matrix<S> y(x.rows(), output_dim());
        forward(x, y, ws, context);
        return y;
    }

    /// y = layer(x); see Layer::forward.
    template <class X, class Y>
    void forward(const X& x, Y&& y, Workspace<S>& ws, const Context& context = {}) const {
        route(x, ws, context);
        apply(x, std::forward<Y>(y), ws, context);
    }

    template <class X>
    void route(const X& x, Workspace<S>& ws, const Context& context = {}) const {
        const detail::KeepNothing<S> guard(ws);
        head_.route(detail::readable<S>(x), ws, context);
    }
    template <class X>
    void reweigh(const X& x, const Routing& routing, Workspace<S>& ws,
                 const Context& context = {}) const {
        const detail::KeepNothing<S> guard(ws);
        head_.reweigh(detail::readable<S>(x), routing, ws, context);
    }
    template <class X, class Y>
    void apply(const X& x, Y&& y, Workspace<S>& ws, const Context& context) const {
        const detail::KeepNothing<S> guard(ws);
        bank_.apply(detail::readable<S>(x), ws.routing(), detail::writable<S>(std::forward<Y>(y)),
                    ws.child(detail::bank_node), context);
    }
    template <class X, class Y>
    void apply(const X& x, Y&& y, Workspace<S>& ws) const {
        apply(x, std::forward<Y>(y), ws, ws.context());
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        const detail::KeepNothing<S> guard(ws);
        head_.reserve(tokens, assignments, ws);
        bank_.reserve(tokens, assignments, ws.child(detail::bank_node));
    }

private:
    Bank<S, Groups...> bank_;
    Head<S, R, G> head_;
    Index num_parameters_;
};

template <class S, class R, class G, class... Groups>
Index num_parameters(const FrozenLayer<S, R, G, Groups...>& layer) {
    return layer.num_parameters();
}

namespace detail {

template <class S, class R, class G, class... Groups>
FrozenLayer<S, R, G, Groups...> make_frozen(const Config& config, const R& router, const G& gate,
                                            std::tuple<Groups...> groups, Index num_parameters) {
    return FrozenLayer<S, R, G, Groups...>(config, router, gate, std::move(groups), num_parameters);
}

}  // namespace detail

/// Packs the weights of a layer for inference; the layer stays as it is.
///
///     const auto frozen = moe::freeze(layer);
///     const auto small = moe::freeze(layer, {.storage = moe::Storage::int8});
///
/// @throws std::invalid_argument if the options do not fit each other, the layer or its weights
template <class S, class R, class G, class... Groups>
auto freeze(const Layer<S, R, G, Groups...>& layer, const FreezeOptions& options = {}) {
    detail::check_experts(options, "the layer", layer.num_experts());
    return detail::make_frozen<S>(
        layer.config(), detail::frozen(layer.router(), options), layer.gate(),
        detail::frozen_groups(layer.bank().groups(), options), num_parameters(layer));
}

/// What freeze() makes of a layer of type L.
template <class L>
using Frozen = decltype(freeze(std::declval<const L&>()));

/// Packs the weights of a layer that is not needed any more: originals are released as soon as they
/// are packed, gate and up of a group together and then down, so that both copies never exist as a
/// whole.
/// @throws std::invalid_argument as the other; the layer is unchanged then
template <class S, class R, class G, class... Groups>
auto freeze(Layer<S, R, G, Groups...>&& layer, const FreezeOptions& options = {}) {
    detail::check_experts(options, "the layer", layer.num_experts());
    detail::check_freeze(layer.router(), options);
    detail::check_groups(layer.bank(), options);
    const Config config = layer.config();
    const Index count = num_parameters(layer);
    auto router = detail::frozen(layer.router(), options);
    auto gate = std::move(layer.gate());
    auto packed = detail::consumed_groups(layer.bank().groups(), options);
    return detail::make_frozen<S>(config, router, gate, std::move(packed), count);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_FROZEN_HPP
