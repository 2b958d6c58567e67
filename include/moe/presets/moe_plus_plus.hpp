// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_MOE_PLUS_PLUS_HPP
#define MOE_PRESETS_MOE_PLUS_PLUS_HPP

#include <string>
#include <tuple>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/residual.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// @param prefix    "model.layers.0.mlp.moe"
/// @param is_first  whether the layer hears none: checkpoints have the matrix for it all the same
inline Names moe_plus_plus(const std::string& prefix, bool is_first = false) {
    constexpr Layout gate{.part = Part::first_half}, up{.part = Part::second_half};
    constexpr Layout vector{.orientation = Orientation::vector};
    return {prefix + ".",
            {{"router.hidden.weight", "gate.wg.0.weight"},
             {"router.output.weight", "gate.wg.2.weight"},
             {is_first ? "" : "router.residual", "gate.gate_map.weight"},
             {"experts.#.gate", "experts.experts.#.up_proj.weight", gate},
             {"experts.#.up", "experts.experts.#.up_proj.weight", up},
             {"experts.#.down", "experts.experts.#.down_proj.weight"},
             {"experts.#.mix", "experts.experts.#.wg.weight"},
             {"experts.#.value", "experts.experts.#.constant", vector}}};
}

}  // namespace names

namespace presets {

/// MoE++ 7B: 2 of experts that compute, constants, a copy and a null expert (its "zero"); a router
/// of two layers that hears the logits of the layer before (Context::previous); experts see 2 x
/// (arXiv:2410.07348).
struct MoePlusPlus {
    static constexpr const char* name = "moe_plus_plus";

    Index model_dim = 1536;
    Index ffn_dim = 4096;
    Index num_experts = 16;  ///< that compute
    Index num_constants = 2;
    bool is_first = false;   ///< the first layer hears none
    double input_scale = 2;  ///< of what experts see; 1 with moe_feature_no_mul_topk

    /// num_experts counts all experts, those that do not compute included; the code has a list.
    static MoePlusPlus of(const ModelConfig& config, Index layer = 0) {
        config.expect("hidden_act", "silu");
        config.expect("moe_use_mixtral_gating", false);
        config.expect("moe_2layer_gate", true);
        config.expect("moe_use_logits_norm", false);
        constexpr Index constants = 2, others = constants + 2;
        const Index experts = config.integer_of_layer("num_experts", 0);
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = experts < others ? 0 : experts - others,
                .num_constants = constants,
                .is_first = layer < config.integer("moe_expert_interval", 1),
                .input_scale = config.flag("moe_feature_no_mul_topk", false) ? 1.0 : 2.0};
    }
    Config config() const { return {.model_dim = model_dim, .input_scale = input_scale}; }
    auto parts() const {
        return std::tuple{GatingResidual<MlpRouter>{.place = is_first ? ResidualPlace::first
                                                                      : ResidualPlace::later},
                          TopK{.k = 2},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
                          Constant{.count = num_constants},
                          Copy{},
                          Null{}};
    }
    Names names(Index layer) const {
        return names::moe_plus_plus(detail::layer_path(layer, "mlp.moe"), is_first);
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_MOE_PLUS_PLUS_HPP
