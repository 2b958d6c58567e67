// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_ERNIE4_5_MOE_HPP
#define MOE_PRESETS_ERNIE4_5_MOE_HPP

#include <string>
#include <tuple>

#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// @param prefix  "model.layers.1.mlp"
inline Names ernie4_5_moe(const std::string& prefix) {
    constexpr Layout vector{.orientation = Orientation::vector};
    return {prefix + ".",
            detail::joined({{{"router.weight", "gate.weight"},
                             {"gate.bias", "moe_statics.e_score_correction_bias", vector}},
                            detail::projections("experts.#", "experts.#"),
                            detail::projections("shared.0", "shared_experts")})};
}

}  // namespace names

namespace presets {

/// ERNIE-4.5-21B-A3B: softmax scores, a bias chooses, the sum that divides is 1e-12 at least, and
/// shared experts.
struct Ernie4_5Moe {
    static constexpr const char* name = "ernie4_5_moe";

    Index model_dim = 2560;
    Index ffn_dim = 1536;
    Index num_experts = 64;
    Index k = 6;
    Index num_shared = 2;
    double epsilon = 1e-12;  ///< moe_norm_min

    static Ernie4_5Moe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("moe_intermediate_size"),
                .num_experts = config.integer(config.first_of({"moe_num_experts", "num_experts"})),
                .k = config.integer(config.first_of({"moe_k", "num_experts_per_tok"})),
                .num_shared = config.integer("moe_num_shared_experts"),
                .epsilon = config.number("moe_norm_min", 1e-12)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{
            LinearRouter{},
            TopK{.k = k, .normalize = Normalize::clamp, .epsilon = epsilon, .selection_bias = true},
            Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
            Shared{Swiglu{.ffn_dim = num_shared * ffn_dim}}};
    }
    Names names(Index layer) const { return names::ernie4_5_moe(detail::layer_path(layer, "mlp")); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_ERNIE4_5_MOE_HPP
