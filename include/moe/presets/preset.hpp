// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_PRESET_HPP
#define MOE_PRESETS_PRESET_HPP

#include <tuple>
#include <type_traits>

#include <moe/core/types.hpp>
#include <moe/io/bind.hpp>
#include <moe/io/frozen.hpp>
#include <moe/presets/model_config.hpp>

namespace moe::inline MOE_ABI {

/// A published model's layers as recipes: what they are made of, and where a checkpoint has them.
///
///     struct MyModel {
///         Index model_dim = 4096, ffn_dim = 14336, num_experts = 8, k = 2;     // as published
///
///         Config config() const { return {.model_dim = model_dim}; }
///         auto parts() const {                                          // router, gate, experts
///             return std::tuple{LinearRouter{}, TopK{.k = k},
///                               Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
///         }
///         Names names(Index layer) const {
///             return {"model.layers." + std::to_string(layer) + ".moe.", {...}};
///         }
///     };
///
/// explain() calls it by its `name` if it has one; those of the library also have
/// of(ModelConfig, layer). See for_each_published() to add one to them.
template <class P>
concept Preset = requires(const P& preset) {
    preset.config();
    preset.parts();
    preset.names(Index{});
};

/// A layer as the preset describes it, with random weights.
/// @throws std::invalid_argument if its extents and settings do not fit each other
template <class S = float, Preset P>
auto make_layer(const P& preset) {
    return std::apply(
        [&](const auto&... parts) { return make_layer<S>(preset.config(), parts...); },
        preset.parts());
}

/// The same without memory for the experts; see moe::deferred.
template <class S = float, Preset P>
auto make_deferred(const P& preset) {
    return std::apply(
        [&](const auto&... parts) {
            return Layer<S, std::remove_cvref_t<decltype(parts)>...>(deferred, preset.config(),
                                                                     parts...);
        },
        preset.parts());
}

/// Layer number `layer` of a model, as moe::bind() of the preset's recipes and names.
/// @throws as that
template <class S = float, class Checkpoint, Preset P>
auto bind(const Checkpoint& checkpoint, const P& preset, Index layer) {
    return std::apply(
        [&](const auto&... parts) {
            return bind<S>(checkpoint, preset.names(layer), preset.config(), parts...);
        },
        preset.parts());
}

/// The same as a layer that owns its weights, whatever the checkpoint stores.
/// @throws as moe::load()
template <class S = float, class Checkpoint, Preset P>
auto load(const Checkpoint& checkpoint, const P& preset, Index layer) {
    auto loaded = make_deferred<S>(preset);
    load(checkpoint, preset.names(layer), loaded);
    return loaded;
}

/// A frozen layer as the preset describes it, from a file that save_frozen() filled.
/// @throws as moe::open_frozen()
template <class S = float, class Checkpoint, Preset P>
auto open_frozen(const Checkpoint& checkpoint, const P& preset) {
    return std::apply(
        [&](const auto&... parts) { return open_frozen<S>(checkpoint, preset.config(), parts...); },
        preset.parts());
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_PRESET_HPP
