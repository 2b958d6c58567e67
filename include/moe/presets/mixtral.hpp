// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_MIXTRAL_HPP
#define MOE_PRESETS_MIXTRAL_HPP

#include <string>
#include <tuple>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// Mixtral, Phi-3.5-MoE, MiniMax; FP8 releases, too.
/// @param prefix  "model.layers.0.block_sparse_moe"
inline Names mixtral(const std::string& prefix) {
    return {prefix + ".",
            {{"router.weight", "gate.weight"},
             {"experts.#.gate", "experts.#.w1.weight", {}, "experts.#.w1.weight_scale_inv"},
             {"experts.#.up", "experts.#.w3.weight", {}, "experts.#.w3.weight_scale_inv"},
             {"experts.#.down", "experts.#.w2.weight", {}, "experts.#.w2.weight_scale_inv"}}};
}

/// MiniMax-M2, which is published in FP8.
inline Names minimax_m2(const std::string& prefix) {
    constexpr Layout vector{.orientation = Orientation::vector};
    return {prefix + ".", detail::joined({mixtral(prefix).table(),
                                          {{"gate.bias", "e_score_correction_bias", vector}}})};
}

}  // namespace names

namespace presets {

/// Mixtral 8x7B: the 2 best of 8 experts, their softmax scores renormalised (arXiv:2401.04088).
/// 8x22B is {.model_dim = 6144, .ffn_dim = 16384}.
struct Mixtral {
    static constexpr const char* name = "mixtral";

    Index model_dim = 4096;
    Index ffn_dim = 14336;
    Index num_experts = 8;
    Index k = 2;

    static Mixtral of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = config.integer("num_local_experts"),
                .k = config.integer("num_experts_per_tok")};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{}, TopK{.k = k},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const {
        return names::mixtral(detail::layer_path(layer, "block_sparse_moe"));
    }
};

/// MiniMax-Text-01: as Mixtral. The factors that its block gives the residual stream and the
/// layer's output (mlp_alpha_factor, mlp_beta_factor) are the block's.
struct MiniMax {
    static constexpr const char* name = "minimax";

    Index model_dim = 6144;
    Index ffn_dim = 9216;
    Index num_experts = 32;
    Index k = 2;

    static MiniMax of(const ModelConfig& config, Index = 0) {
        const Mixtral same = Mixtral::of(config);
        return {same.model_dim, same.ffn_dim, same.num_experts, same.k};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const { return Mixtral{model_dim, ffn_dim, num_experts, k}.parts(); }
    Names names(Index layer) const { return Mixtral{}.names(layer); }
};

/// MiniMax-M2: sigmoid scores, a bias chooses 8 of 256, renormalised.
struct MiniMaxM2 {
    static constexpr const char* name = "minimax_m2";

    Index model_dim = 3072;
    Index ffn_dim = 1536;
    Index num_experts = 256;
    Index k = 8;

    static MiniMaxM2 of(const ModelConfig& config, Index = 0) {
        const Mixtral same = Mixtral::of(config);
        return {same.model_dim, same.ffn_dim, same.num_experts, same.k};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          TopK{.k = k, .score = Score::sigmoid, .selection_bias = true},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const {
        return names::minimax_m2(detail::layer_path(layer, "block_sparse_moe"));
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_MIXTRAL_HPP
