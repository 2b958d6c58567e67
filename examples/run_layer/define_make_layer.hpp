// SPDX-License-Identifier: MIT
#ifndef RUN_LAYER_DEFINE_MAKE_LAYER_HPP
#define RUN_LAYER_DEFINE_MAKE_LAYER_HPP

#include <utility>

#include <moe/core/weights.hpp>
#include <moe/frozen.hpp>
#include <moe/io/bind.hpp>
#include <moe/layer.hpp>

#include "make_layer.hpp"

namespace run_layer {

/// Whether a layer's weights are codes with block scales, which are decoded before they multiply.
template <class Layer>
bool is_coded(Layer& layer) {
    bool coded = false;
    layer.bank().visit_weights([&](const auto&, const moe::Weights<float>& weights, moe::Index) {
        coded = coded || weights.is_coded();
    });
    return coded;
}

template <class... Parts>
moe::AnyLayer<float> make_layer(const moe::Checkpoint& checkpoint, const moe::Names& names,
                                const moe::Config& config, std::optional<moe::Storage> storage,
                                const Parts&... parts) {
    auto layer = moe::bind(checkpoint, names, config, parts...);
    if (storage) return moe::freeze(std::move(layer), {.storage = *storage});
    if (!is_coded(layer)) return layer;
    moe::Layer decoded{moe::deferred, config, parts...};
    moe::load(checkpoint, names, decoded);
    return decoded;
}

/// Instantiates it for the types of recipes.
#define RUN_LAYER_MAKE_LAYER(...)                                                             \
    template moe::AnyLayer<float> make_layer(const moe::Checkpoint&, const moe::Names&,       \
                                             const moe::Config&, std::optional<moe::Storage>, \
                                             __VA_ARGS__)

}  // namespace run_layer

#endif  // RUN_LAYER_DEFINE_MAKE_LAYER_HPP
