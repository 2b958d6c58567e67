// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_DBRX_HPP
#define MOE_PRESETS_DBRX_HPP

#include <string>
#include <tuple>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// DBRX: rows of all experts in one tensor, those of w2 [in, out].
/// @param prefix  "transformer.blocks.0.ffn"
inline Names dbrx(const std::string& prefix) {
    constexpr Layout rows{.stacking = Stacking::rows};
    constexpr Layout down{.orientation = Orientation::in_out, .stacking = Stacking::rows};
    return {prefix + ".",
            {{"router.weight", "router.layer.weight"},
             {"experts.#.gate", "experts.mlp.w1", rows},
             {"experts.#.up", "experts.mlp.v1", rows},
             {"experts.#.down", "experts.mlp.w2", down}}};
}

}  // namespace names

namespace presets {

/// DBRX: 4 of 16, softmax scores divided by their L1 norm.
struct Dbrx {
    static constexpr const char* name = "dbrx";

    Index model_dim = 6144;
    Index ffn_dim = 10752;
    Index num_experts = 16;
    Index k = 4;
    double norm_power = 1;  ///< moe_normalize_expert_weights; 0: null, not normalised

    static Dbrx of(const ModelConfig& config, Index = 0) {
        constexpr const char* norm = "ffn_config.moe_normalize_expert_weights";
        config.expect("ffn_config.ffn_act_fn.name", "silu");
        return {.model_dim = config.integer("d_model"),
                .ffn_dim = config.integer("ffn_config.ffn_hidden_size"),
                .num_experts = config.integer("ffn_config.moe_num_experts"),
                .k = config.integer("ffn_config.moe_top_k"),
                .norm_power = config.is_null(norm) ? 0 : config.number(norm, 1)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          TopK{.k = k,
                               .normalize = norm_power > 0 ? Normalize::plain : Normalize::none,
                               .norm_power = norm_power > 0 ? norm_power : 1},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const {
        return names::dbrx("transformer.blocks." + std::to_string(layer) + ".ffn");
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_DBRX_HPP
