// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_DEEPSEEK_V3_HPP
#define MOE_PRESETS_DEEPSEEK_V3_HPP

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

/// DeepSeek-V3 and R1, Kimi-K2, GLM-4.5, as Hugging Face has them; FP8 releases, too.
/// @param prefix  "model.layers.3.mlp"
inline Names deepseek_v3(const std::string& prefix) {
    return {
        prefix + ".",
        detail::joined(
            {{{"router.weight", "gate.weight"},
              {"gate.bias", "gate.e_score_correction_bias", {.orientation = Orientation::vector}}},
             detail::projections("experts.#", "experts.#"),
             detail::projections("shared.0", "shared_experts")})};
}

/// The same for DeepSeek's own inference code.
/// @param prefix  "layers.3.ffn"
inline Names deepseek_v3_inference(const std::string& prefix) {
    return {prefix + ".",
            {{"router.weight", "gate.weight"},
             {"gate.bias", "gate.bias", {.orientation = Orientation::vector}},
             {"experts.#.gate", "experts.#.w1.weight", {}, "experts.#.w1.scale"},
             {"experts.#.up", "experts.#.w3.weight", {}, "experts.#.w3.scale"},
             {"experts.#.down", "experts.#.w2.weight", {}, "experts.#.w2.scale"},
             {"shared.0.gate", "shared_experts.w1.weight", {}, "shared_experts.w1.scale"},
             {"shared.0.up", "shared_experts.w3.weight", {}, "shared_experts.w3.scale"},
             {"shared.0.down", "shared_experts.w2.weight", {}, "shared_experts.w2.scale"}}};
}

}  // namespace names

namespace presets {

/// DeepSeek-V3 and R1: sigmoid scores; a bias chooses and does not weigh; 8 of 256 experts in the 4
/// best of 8 groups by their two best; renormalised, times 2.5 (arXiv:2412.19437 eq. 12-16).
struct DeepseekV3 {
    static constexpr const char* name = "deepseek_v3";

    Index model_dim = 7168;
    Index ffn_dim = 2048;
    Index num_experts = 256;
    Index k = 8;
    Index num_shared = 1;
    Index num_groups = 8;
    Index groups_kept = 4;
    double scale = 2.5;
    bool normalize = true;

    static DeepseekV3 of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        config.expect("scoring_func", "sigmoid");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("moe_intermediate_size"),
                .num_experts = config.integer(config.first_of({"n_routed_experts", "num_experts"})),
                .k = config.integer("num_experts_per_tok"),
                .num_shared = config.integer("n_shared_experts"),
                .num_groups = config.integer("n_group"),
                .groups_kept = config.integer("topk_group"),
                .scale = config.number("routed_scaling_factor"),
                .normalize = config.flag("norm_topk_prob", true)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          TopK{.k = k,
                               .score = Score::sigmoid,
                               .normalize = normalize ? Normalize::add_epsilon : Normalize::none,
                               .scale = scale,
                               .selection_bias = true,
                               .num_groups = num_groups,
                               .groups_kept = groups_kept,
                               .group_score = GroupScore::top_two_sum},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
                          Shared{Swiglu{.ffn_dim = num_shared * ffn_dim}}};
    }
    Names names(Index layer) const { return names::deepseek_v3(detail::layer_path(layer, "mlp")); }
};

/// Kimi-K2: DeepSeek-V3's layer without groups (arXiv:2507.20534).
inline constexpr DeepseekV3 kimi_k2{
    .num_experts = 384, .num_groups = 1, .groups_kept = 1, .scale = 2.827};

/// GLM-4.5, 355B: the same (arXiv:2508.06471). Air is {4096, 1408, 128, 8, 1, 1, 1, 1}.
inline constexpr DeepseekV3 glm_4_5{
    .model_dim = 5120, .ffn_dim = 1536, .num_experts = 160, .num_groups = 1, .groups_kept = 1};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_DEEPSEEK_V3_HPP
