// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_DEEPSEEK_MOE_HPP
#define MOE_PRESETS_DEEPSEEK_MOE_HPP

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

/// DeepSeek-MoE-16B, DeepSeek-V2.
/// @param prefix  "model.layers.1.mlp"
inline Names deepseek_v2(const std::string& prefix) {
    return {prefix + ".", detail::joined({{{"router.weight", "gate.weight"}},
                                          detail::projections("experts.#", "experts.#"),
                                          detail::projections("shared.0", "shared_experts")})};
}

}  // namespace names

namespace presets {

/// DeepSeek-MoE-16B: 6 of 64 fine-grained experts, softmax scores as they are, and 2 shared ones,
/// which are one of twice the width (arXiv:2401.06066).
struct DeepseekMoe {
    static constexpr const char* name = "deepseek";

    Index model_dim = 2048;
    Index ffn_dim = 1408;
    Index num_experts = 64;
    Index k = 6;
    Index num_shared = 2;
    bool normalize = false;

    static DeepseekMoe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("moe_intermediate_size"),
                .num_experts = config.integer("n_routed_experts"),
                .k = config.integer("num_experts_per_tok"),
                .num_shared = config.integer("n_shared_experts"),
                .normalize = config.flag("norm_topk_prob", false)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          TopK{.k = k,
                               .normalize = normalize ? Normalize::add_epsilon : Normalize::none,
                               .normalize_single = false},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
                          Shared{Swiglu{.ffn_dim = num_shared * ffn_dim}}};
    }
    Names names(Index layer) const { return names::deepseek_v2(detail::layer_path(layer, "mlp")); }
};

/// DeepSeek-V2 and V2.5: 6 of 160 experts in the 3 best of 8 groups by their best score, softmax
/// scores times 16 (arXiv:2405.04434 section 2.2.2). Other groups get no weight: where the
/// published code has to choose from them, since scores of the kept ones are 0, it weighs them by
/// 0. V2-Lite is {2048, 1408, 64, 6, 2, 1, 1, 1}.
struct DeepseekV2 {
    static constexpr const char* name = "deepseek_v2";

    Index model_dim = 5120;
    Index ffn_dim = 1536;
    Index num_experts = 160;
    Index k = 6;
    Index num_shared = 2;
    Index num_groups = 8;  ///< 1: greedy
    Index groups_kept = 3;
    double scale = 16;  ///< not applied where weights are normalised
    bool normalize = false;

    static DeepseekV2 of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        const bool grouped = config.text("topk_method", "greedy") == "group_limited_greedy";
        if (!grouped) config.expect("topk_method", "greedy");
        config.expect("scoring_func", "softmax");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("moe_intermediate_size"),
                .num_experts = config.integer(config.first_of({"n_routed_experts", "num_experts"})),
                .k = config.integer("num_experts_per_tok"),
                .num_shared = config.integer("n_shared_experts"),
                .num_groups = grouped ? config.integer("n_group") : 1,
                .groups_kept = grouped ? config.integer("topk_group") : 1,
                .scale = config.number("routed_scaling_factor", 1),
                .normalize = config.flag("norm_topk_prob", false)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        const bool normalized = normalize && k > 1;
        return std::tuple{LinearRouter{},
                          TopK{.k = k,
                               .normalize = normalized ? Normalize::add_epsilon : Normalize::none,
                               .scale = normalized ? 1 : scale,
                               .num_groups = num_groups,
                               .groups_kept = groups_kept,
                               .group_score = GroupScore::max},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
                          Shared{Swiglu{.ffn_dim = num_shared * ffn_dim}}};
    }
    Names names(Index layer) const { return names::deepseek_v2(detail::layer_path(layer, "mlp")); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_DEEPSEEK_MOE_HPP
