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

/// @param prefix  "model.layers.0.mlp.moe"
inline Names moe_plus_plus(const std::string& prefix) {
    constexpr Layout gate{.part = Part::first_half}, up{.part = Part::second_half};
    constexpr Layout vector{.orientation = Orientation::vector};
    return {prefix + ".",
            {{"router.hidden.weight", "gate.wg.0.weight"},
             {"router.output.weight", "gate.wg.2.weight"},
             {"router.residual", "gate.gate_map.weight"},
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
    bool is_first = false;  ///< the first layer hears none

    static MoePlusPlus of(const ModelConfig& config, Index layer = 0) {
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = config.integer("num_ffn_experts"),
                .num_constants = config.integer("num_constant_experts", 2),
                .is_first = layer == 0};
    }
    Config config() const { return {.model_dim = model_dim, .input_scale = 2}; }
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
        return names::moe_plus_plus(detail::layer_path(layer, "mlp.moe"));
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_MOE_PLUS_PLUS_HPP
