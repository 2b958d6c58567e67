// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_QWEN_MOE_HPP
#define MOE_PRESETS_QWEN_MOE_HPP

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

/// Qwen3-MoE, OLMoE.
/// @param prefix  "model.layers.0.mlp"
inline Names qwen3_moe(const std::string& prefix) {
    return {prefix + ".", detail::joined({{{"router.weight", "gate.weight"}},
                                          detail::projections("experts.#", "experts.#")})};
}

/// Qwen1.5-MoE, Qwen2-MoE, Qwen3-Next: with one shared expert behind a sigmoid.
inline Names qwen2_moe(const std::string& prefix) {
    return {prefix + ".", detail::joined({{{"router.weight", "gate.weight"},
                                           {"shared.0.shared_gate", "shared_expert_gate.weight"}},
                                          detail::projections("experts.#", "experts.#"),
                                          detail::projections("shared.0", "shared_expert")})};
}

/// Qwen3-VL-MoE: all experts in one tensor, gate before up.
/// @param prefix       "model.language_model.layers.0.mlp"
/// @param orientation  in_out as published, out_in as version 5 of transformers saves it
inline Names qwen3_vl_moe(const std::string& prefix,
                          Orientation orientation = Orientation::in_out) {
    const Layout stacked{.orientation = orientation, .stacking = Stacking::leading};
    Layout gate = stacked, up = stacked;
    gate.part = Part::first_half;
    up.part = Part::second_half;
    return {prefix + ".",
            {{"router.weight", "gate.weight"},
             {"experts.#.gate", "experts.gate_up_proj", gate},
             {"experts.#.up", "experts.gate_up_proj", up},
             {"experts.#.down", "experts.down_proj", stacked}}};
}

}  // namespace names

namespace presets {

/// Qwen3-30B-A3B: 8 of 128, renormalised, no shared expert. 235B-A22B is {4096, 1536}
/// (arXiv:2505.09388).
struct Qwen3Moe {
    static constexpr const char* name = "qwen3_moe";

    Index model_dim = 2048;
    Index ffn_dim = 768;
    Index num_experts = 128;
    Index k = 8;
    bool normalize = true;

    /// The released files say norm_topk_prob; where it is missing it is false, as in transformers.
    static Qwen3Moe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {
            .model_dim = config.integer("hidden_size"),
            .ffn_dim = config.integer("moe_intermediate_size"),
            .num_experts = config.integer(config.first_of({"num_experts", "num_local_experts"})),
            .k = config.integer("num_experts_per_tok"),
            .normalize = config.flag("norm_topk_prob", false)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          TopK{.k = k, .normalize = normalize ? Normalize::plain : Normalize::none},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const { return names::qwen3_moe(detail::layer_path(layer, "mlp")); }
};

/// Qwen1.5-MoE-A2.7B: softmax scores as they are, and a shared expert behind a sigmoid. 57B-A14B is
/// {3584, 2560, 64, 8, 20480} (arXiv:2407.10671 section 2.2.2).
struct Qwen2Moe {
    static constexpr const char* name = "qwen2_moe";

    Index model_dim = 2048;
    Index ffn_dim = 1408;
    Index num_experts = 60;
    Index k = 4;
    Index shared_ffn_dim = 5632;
    bool normalize = false;

    static Qwen2Moe of(const ModelConfig& config, Index layer = 0) {
        const Qwen3Moe same = Qwen3Moe::of(config, layer);
        return {same.model_dim,
                same.ffn_dim,
                same.num_experts,
                same.k,
                config.integer("shared_expert_intermediate_size"),
                same.normalize};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple_cat(
            Qwen3Moe{model_dim, ffn_dim, num_experts, k, normalize}.parts(),
            std::tuple{Shared{Swiglu{.ffn_dim = shared_ffn_dim}, SharedGate::sigmoid}});
    }
    Names names(Index layer) const { return names::qwen2_moe(detail::layer_path(layer, "mlp")); }
};

/// Qwen3-Next-80B-A3B: as Qwen2-MoE with 512 experts, renormalised.
struct Qwen3Next {
    static constexpr const char* name = "qwen3_next";

    Index model_dim = 2048;
    Index ffn_dim = 512;
    Index num_experts = 512;
    Index k = 10;
    Index shared_ffn_dim = 512;
    bool normalize = true;

    static Qwen3Next of(const ModelConfig& config, Index layer = 0) {
        const Qwen2Moe same = Qwen2Moe::of(config, layer);
        return {same.model_dim, same.ffn_dim,        same.num_experts,
                same.k,         same.shared_ffn_dim, config.flag("norm_topk_prob", true)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return Qwen2Moe{model_dim, ffn_dim, num_experts, k, shared_ffn_dim, normalize}.parts();
    }
    Names names(Index layer) const { return Qwen2Moe{}.names(layer); }
};

/// The language model of Qwen3-VL-30B-A3B: Qwen3-MoE, always renormalised, in a packed layout.
struct Qwen3VlMoe {
    static constexpr const char* name = "qwen3_vl_moe";

    Index model_dim = 2048;
    Index ffn_dim = 768;
    Index num_experts = 128;
    Index k = 8;
    Orientation orientation = Orientation::in_out;  ///< see names::qwen3_vl_moe

    /// The layout goes by transformers_version, which every config.json has.
    static Qwen3VlMoe of(const ModelConfig& whole, Index layer = 0) {
        const Qwen3Moe same = Qwen3Moe::of(whole.inside("text_config"), layer);
        const bool published = whole.text("transformers_version", "4.").starts_with("4.");
        return {same.model_dim, same.ffn_dim, same.num_experts, same.k,
                published ? Orientation::in_out : Orientation::out_in};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const { return Qwen3Moe{model_dim, ffn_dim, num_experts, k}.parts(); }
    Names names(Index layer) const {
        return names::qwen3_vl_moe(detail::layer_path(layer, "mlp", "model.language_model"),
                                   orientation);
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_QWEN_MOE_HPP
