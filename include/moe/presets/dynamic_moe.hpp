// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_DYNAMIC_MOE_HPP
#define MOE_PRESETS_DYNAMIC_MOE_HPP

#include <tuple>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/jamba.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace presets {

/// Dynamic_MoE: the fewest experts whose softmax scores exceed p, scores as weights
/// (arXiv:2403.07652).
struct DynamicMoe {
    static constexpr const char* name = "dynamic_moe";

    Index model_dim = 4096;
    Index ffn_dim = 11008;
    Index num_experts = 16;
    double p = 0.4;

    static DynamicMoe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = config.integer("num_experts"),
                .p = config.number("top_p_threshold", 0.4)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{}, TopP{.p = p},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const { return names::jamba(detail::layer_path(layer, "mlp")); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_DYNAMIC_MOE_HPP
