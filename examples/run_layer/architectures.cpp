// SPDX-License-Identifier: MIT
// Which preset describes a model, by the model_type of its config.json.
#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include <moe/presets.hpp>

#include "make_layer.hpp"
#include "model.hpp"

namespace run_layer {
namespace {

using moe::Checkpoint, moe::Index, moe::ModelConfig, moe::Names;
using Storage = std::optional<moe::Storage>;

struct Architecture {
    std::string_view model_type;
    /// A layer's names; by config.json alone, whether the layer exists or not.
    Names (*names)(const ModelConfig& config, Index layer);
    moe::AnyLayer<float> (*make)(const ModelConfig& config, Index layer, const Checkpoint&,
                                 const Names&, Storage);
};

template <moe::Preset P>
constexpr Architecture is(std::string_view model_type) {
    return {model_type,
            [](const ModelConfig& config, Index layer) { return P::of(config).names(layer); },
            [](const ModelConfig& config, Index layer, const Checkpoint& checkpoint,
               const Names& names, Storage storage) {
                const P preset = P::of(config, layer);
                return std::apply(
                    [&](const auto&... parts) {
                        return make_layer(checkpoint, names, preset.config(), storage, parts...);
                    },
                    preset.parts());
            }};
}

namespace presets = moe::presets;

constexpr Architecture architectures[] = {
    is<presets::MoePlusPlus>("MoE++"),
    is<presets::UniMoe>("UniMoEV2_qwen2_vl"),
    is<presets::Dbrx>("dbrx"),
    is<presets::DeepseekMoe>("deepseek"),
    is<presets::DeepseekV2>("deepseek_v2"),
    is<presets::DeepseekV3>("deepseek_v3"),
    is<presets::Ernie4_5Moe>("ernie4_5_moe"),
    is<presets::DeepseekV3>("glm4_moe"),
    is<presets::GptOss>("gpt_oss"),
    is<presets::GraniteMoe>("granitemoe"),
    is<presets::GraniteMoeShared>("granitemoeshared"),
    is<presets::HunyuanMoe>("hunyuan_v1_moe"),
    is<presets::Jamba>("jamba"),
    is<presets::DeepseekV3>("kimi_k2"),
    is<presets::DynamicMoe>("llama"),  // so Dynamic_MoE calls itself; other llamas have no experts
    is<presets::Llama4>("llama4"),
    is<presets::Llama4>("llama4_text"),
    is<presets::LongcatFlash>("longcat_flash"),
    is<presets::MiniMax>("minimax"),
    is<presets::MiniMaxM2>("minimax_m2"),
    is<presets::Mixtral>("mixtral"),
    is<presets::NllbMoe>("nllb-moe"),
    is<presets::Olmoe>("olmoe"),
    is<presets::Phimoe>("phimoe"),
    is<presets::Qwen2Moe>("qwen2_moe"),
    is<presets::Qwen3Moe>("qwen3_moe"),
    is<presets::Qwen3Next>("qwen3_next"),
    is<presets::Qwen3VlMoe>("qwen3_vl_moe"),
    is<presets::SwitchTransformers>("switch_transformers"),
};

const Architecture& find_architecture(const std::string& model_type) {
    std::string known;
    for (const Architecture& one : architectures) {
        if (one.model_type == model_type) return one;
        known += (known.empty() ? "" : ", ") + std::string(one.model_type);
    }
    throw std::runtime_error("the architecture \"" + model_type + "\" is not known; known are " +
                             known);
}

/// The names with the prefix under which the checkpoint has the layer's router, so that what is
/// written is called the same; none if it has none.
std::optional<Names> find_layer(const Checkpoint& checkpoint, const Names& names) {
    const std::string router = Names::with_number(names.table().front().parameter, 0);
    for (std::size_t i = 0; i < names.prefixes().size(); ++i)
        for (const moe::TensorPlace& place : names.places(router, i))
            if (checkpoint.find(place.tensor) != nullptr)
                return Names(names.prefixes()[i], names.table());
    return {};
}

/// The largest number in a tensor's name, which is that of a layer or is larger.
Index largest_number(const Checkpoint& checkpoint) {
    Index largest = 0;
    for (const moe::TensorView& tensor : checkpoint) {
        Index number = 0;
        for (const char c : tensor.name) {
            const bool is_digit = c >= '0' && c <= '9';
            number = is_digit && number < 10'000 ? 10 * number + (c - '0') : 0;
            largest = std::max(largest, number);
        }
    }
    return largest;
}

/// "1 to 60", "1, 3 and 5"
std::string layers_with_experts(const Architecture& architecture, const ModelConfig& config,
                                const Checkpoint& checkpoint) {
    std::string text;
    const Index end = 2 * (largest_number(checkpoint) + 1);  // an encoder's and a decoder's
    const auto has = [&](Index layer) {
        return layer < end && find_layer(checkpoint, architecture.names(config, layer));
    };
    for (Index layer = 0; layer < end; ++layer) {
        if (!has(layer)) continue;
        const Index first = layer;
        while (has(layer + 1)) ++layer;
        text += (text.empty() ? "" : ", ") + std::to_string(first);
        if (layer > first) text += " to " + std::to_string(layer);
    }
    return text;
}

}  // namespace

ModelLayer read_layer(const ModelConfig& config, const Checkpoint& checkpoint, Index layer,
                      Storage storage) {
    const Architecture& architecture = find_architecture(config.text("model_type"));
    const auto names = find_layer(checkpoint, architecture.names(config, layer));
    if (!names) {
        const std::string others = layers_with_experts(architecture, config, checkpoint);
        throw std::runtime_error(
            "layer " + std::to_string(layer) + " has no experts in this model" +
            (others.empty() ? ", nor has any other" : "; layers that have some: " + others));
    }
    return {architecture.make(config, layer, checkpoint, *names, storage), *names};
}

}  // namespace run_layer
