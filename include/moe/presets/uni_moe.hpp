// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_UNI_MOE_HPP
#define MOE_PRESETS_UNI_MOE_HPP

#include <string>
#include <tuple>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// @param prefix  "model.layers.0.mlp"
/// @param first_fixed  the number of the first fixed expert: experts that compute, then null ones
inline Names uni_moe(const std::string& prefix, Index num_experts, Index first_fixed) {
    const char* const dynamic = "dynamic_real_moe.deepspeed_moe.experts.deepspeed_experts.#";
    auto computing = detail::projections("experts.#", dynamic);
    auto fixed = detail::projections("experts.#", "fixed_real_moe.#");
    for (TensorName& entry : computing) entry.count = num_experts;
    for (TensorName& entry : fixed) entry.first = first_fixed;
    return {prefix + ".", detail::joined({{{"router.weight", "gate.weight"}}, computing, fixed})};
}

}  // namespace names

namespace presets {

/// Uni-MoE-2.0's language model: as many experts as reach p, nearly equal shares among those near
/// the best; null experts keep their share (Zero here), fixed ones get theirs from every token
/// (arXiv:2511.12609). For token_drop put WithCapacity{..., {.limit = CapacityLimit::uni_moe()}}
/// around the gate. UniMoE-Audio is {2048, 2752, 8, 1, 2, 1376}.
struct UniMoe {
    static constexpr const char* name = "uni_moe_2";

    Index model_dim = 1536;
    Index ffn_dim = 2240;
    Index num_experts = 4;
    Index num_null = 1;
    Index num_fixed = 2;
    Index fixed_ffn_dim = 1120;
    double p = 0.7;  ///< 0: k dynamic experts for every token
    Index k = 2;
    double jitter = 0.01;  ///< router_jitter_noise, in inference, too

    static UniMoe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer(
                    config.first_of({"dynamic_intermediate_size", "moe_intermediate_size"})),
                .num_experts = config.integer("mlp_dynamic_expert_num"),
                .num_null = config.integer("mlp_dynamic_null_expert_num"),
                .num_fixed = config.integer("mlp_fixed_expert_num"),
                .fixed_ffn_dim = config.integer("shared_intermediate_size"),
                .p = config.number("mlp_dynamic_top_p"),
                .k = config.integer("mlp_dynamic_top_k", 2),
                .jitter = config.number("router_jitter_noise", 0.01)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          DynamicCapacity{.p = p, .num_fixed = num_fixed, .k = k, .jitter = jitter},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}, Zero{.count = num_null},
                          Swiglu{.count = num_fixed, .ffn_dim = fixed_ffn_dim}};
    }
    Names names(Index layer) const {
        return names::uni_moe(detail::layer_path(layer, "mlp"), num_experts,
                              num_experts + num_null);
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_UNI_MOE_HPP
