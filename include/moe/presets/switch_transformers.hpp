// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_SWITCH_TRANSFORMERS_HPP
#define MOE_PRESETS_SWITCH_TRANSFORMERS_HPP

#include <string>
#include <tuple>

#include <moe/experts/mlp.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// @param prefix  "encoder.block.1.layer.1.mlp", "decoder.block.1.layer.2.mlp"
inline Names switch_transformers(const std::string& prefix) {
    return {prefix + ".",
            {{"router.weight", "router.classifier.weight"},
             {"experts.#.up", "experts.expert_#.wi.weight"},
             {"experts.#.down", "experts.expert_#.wo.weight"}}};
}

}  // namespace names

namespace presets {

/// Switch-base-8: the best expert, its softmax score as the weight, ReLU, at most 64 tokens of a
/// sequence per expert, in inference, too (arXiv:2101.03961). base-128 is {.num_experts = 128}.
///
/// What is more is dropped, as in the paper and in version 5 of transformers. In version 4 it
/// passes through, weighed: Capacity::Overflow::pass_through.
///
/// Calls want Context::sequence_offsets. Layers count those of the encoder, then the decoder's.
struct SwitchTransformers {
    static constexpr const char* name = "switch_transformers";

    Index model_dim = 768;
    Index ffn_dim = 3072;
    Index num_experts = 8;
    Index capacity = 64;
    Index encoder_layers = 12;

    static SwitchTransformers of(const ModelConfig& config, Index = 0) {
        config.expect("dense_act_fn", "relu");
        config.expect("router_bias", false);
        return {.model_dim = config.integer("d_model"),
                .ffn_dim = config.integer("d_ff"),
                .num_experts = config.integer("num_experts"),
                .capacity = config.integer("expert_capacity"),
                .encoder_layers = config.integer("num_layers")};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          WithCapacity{TopK{.k = 1, .normalize = Normalize::none},
                                       Capacity{.limit = CapacityLimit::constant(capacity),
                                                .scope = Capacity::Scope::sequence}},
                          Mlp{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const {
        const bool decoder = layer >= encoder_layers;
        return names::switch_transformers(
            decoder ? "decoder.block." + std::to_string(layer - encoder_layers) + ".layer.2.mlp"
                    : "encoder.block." + std::to_string(layer) + ".layer.1.mlp");
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_SWITCH_TRANSFORMERS_HPP
