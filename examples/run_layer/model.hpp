// SPDX-License-Identifier: MIT
#ifndef RUN_LAYER_MODEL_HPP
#define RUN_LAYER_MODEL_HPP

#include <optional>
#include <string>

#include <moe/any_layer.hpp>
#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/model_config.hpp>

namespace run_layer {

/// What config.json says: members of members by dots, "text_config.hidden_size".
/// @throws std::runtime_error if there is no such file or it is no JSON object
moe::ModelConfig read_config(const std::string& path);

/// A layer of a published model, and what the checkpoint calls its tensors.
struct ModelLayer {
    moe::AnyLayer<float> layer;
    moe::Names names;
};

/// Layer number `layer` of the model that `config` describes.
/// @param storage  packs the experts for inference; none: they are views of the checkpoint, or
///                 floats if it has them in FP8 or MXFP4
/// @throws std::runtime_error for an architecture that is not known, or a layer without experts;
///         else as moe::bind()
ModelLayer read_layer(const moe::ModelConfig& config, const moe::Checkpoint& checkpoint,
                      moe::Index layer, std::optional<moe::Storage> storage);

}  // namespace run_layer

#endif  // RUN_LAYER_MODEL_HPP
