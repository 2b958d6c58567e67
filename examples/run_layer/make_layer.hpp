// SPDX-License-Identifier: MIT
#ifndef RUN_LAYER_MAKE_LAYER_HPP
#define RUN_LAYER_MAKE_LAYER_HPP

#include <optional>

#include <moe/any_layer.hpp>
#include <moe/config.hpp>
#include <moe/core/storage.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/names.hpp>

namespace run_layer {

/// A layer of a checkpoint, of these recipes. What compiles long is a layer's type, and many models
/// share one: each type is instantiated once, in a file layers_*.cpp, which defines this function.
template <class... Parts>
moe::AnyLayer<float> make_layer(const moe::Checkpoint& checkpoint, const moe::Names& names,
                                const moe::Config& config, std::optional<moe::Storage> storage,
                                const Parts&... parts);

}  // namespace run_layer

#endif  // RUN_LAYER_MAKE_LAYER_HPP
