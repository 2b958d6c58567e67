// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_NLLB_MOE_HPP
#define MOE_PRESETS_NLLB_MOE_HPP

#include <string>
#include <tuple>

#include <moe/experts/mlp.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// @param prefix  "model.encoder.layers.3.ffn"
inline Names nllb_moe(const std::string& prefix) {
    constexpr Layout vector{.orientation = Orientation::vector};
    return {prefix + ".",
            {{"router.weight", "router.classifier.weight"},
             {"experts.#.up", "experts.expert_#.fc1.weight"},
             {"experts.#.up_bias", "experts.expert_#.fc1.bias", vector},
             {"experts.#.down", "experts.expert_#.fc2.weight"},
             {"experts.#.down_bias", "experts.expert_#.fc2.bias", vector}}};
}

}  // namespace names

namespace presets {

/// NLLB-MoE-54B as in inference: the 2 best of 128, renormalised, outputs times 1 -
/// moe_token_dropout, ReLU with biases, no capacity (arXiv:2207.04672). For training put
/// WithCapacity{..., {.limit = CapacityLimit::nllb()}} around the gate.
///
/// Layers count those of the encoder, then the decoder's.
struct NllbMoe {
    static constexpr const char* name = "nllb_moe";

    Index model_dim = 2048;
    Index ffn_dim = 8192;
    Index num_experts = 128;
    double token_dropout = 0.2;
    Index encoder_layers = 24;

    static NllbMoe of(const ModelConfig& config, Index layer = 0) {
        config.expect("activation_function", "relu");
        config.expect("router_bias", false);
        config.expect("second_expert_policy", "all");
        const Index encoder = config.integer("encoder_layers");
        return {.model_dim = config.integer("d_model"),
                .ffn_dim = config.integer(layer < encoder ? "encoder_ffn_dim" : "decoder_ffn_dim"),
                .num_experts = config.integer("num_experts"),
                .token_dropout = config.number("moe_token_dropout", 0.2),
                .encoder_layers = encoder};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          GShardTop2{.second = GShardTop2::Second::all,
                                     .normalize = Normalize::clamp,
                                     .epsilon = 1.1920928955078125e-7,  // of float
                                     .scale = 1 - token_dropout},
                          Mlp{.count = num_experts, .ffn_dim = ffn_dim, .bias = true}};
    }
    Names names(Index layer) const {
        const bool decoder = layer >= encoder_layers;
        return names::nllb_moe(detail::layer_path(decoder ? layer - encoder_layers : layer, "ffn",
                                                  decoder ? "model.decoder" : "model.encoder"));
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_NLLB_MOE_HPP
