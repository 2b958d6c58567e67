// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_GRANITE_MOE_HPP
#define MOE_PRESETS_GRANITE_MOE_HPP

#include <string>
#include <tuple>

#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// GraniteMoE: all experts in one tensor, the rows of gate before those of up.
/// @param prefix  "model.layers.0.block_sparse_moe"
inline Names granite_moe(const std::string& prefix) {
    constexpr Layout gate{.stacking = Stacking::leading, .part = Part::first_half};
    constexpr Layout up{.stacking = Stacking::leading, .part = Part::second_half};
    constexpr Layout down{.stacking = Stacking::leading};
    return {prefix + ".",
            {{"router.weight", "router.layer.weight"},
             {"experts.#.gate", "input_linear.weight", gate},
             {"experts.#.up", "input_linear.weight", up},
             {"experts.#.down", "output_linear.weight", down}}};
}

/// The same with a shared expert, which is beside the prefix: "model.layers.0.shared_mlp".
inline Names granite_moe_shared(const std::string& prefix) {
    return {
        prefix + ".",
        detail::joined(
            {granite_moe(prefix).table(),
             {{"shared.0.gate", "../shared_mlp.input_linear.weight", {.part = Part::first_half}},
              {"shared.0.up", "../shared_mlp.input_linear.weight", {.part = Part::second_half}},
              {"shared.0.down", "../shared_mlp.output_linear.weight"}}})};
}

}  // namespace names

namespace presets {

/// Granite-3.0-3B-A800M and PowerMoE-3B: softmax over the logits of the 8 best of 40
/// (arXiv:2408.13359). 1B-A400M is {1024, 512, 32}. The block's residual_multiplier is the block's.
struct GraniteMoe {
    static constexpr const char* name = "granitemoe";

    Index model_dim = 1536;
    Index ffn_dim = 512;
    Index num_experts = 40;
    Index k = 8;

    static GraniteMoe of(const ModelConfig& config, Index = 0) {
        const Mixtral same = Mixtral::of(config);
        return {same.model_dim, same.ffn_dim, same.num_experts, same.k};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{}, TopK{.k = k, .score = Score::softmax_of_selected},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const {
        return names::granite_moe(detail::layer_path(layer, "block_sparse_moe"));
    }
};

/// The same with a shared expert, which the block adds to the layer's output.
struct GraniteMoeShared {
    static constexpr const char* name = "granitemoeshared";

    Index model_dim = 1536;
    Index ffn_dim = 512;
    Index num_experts = 40;
    Index k = 8;
    Index shared_ffn_dim = 1024;

    static GraniteMoeShared of(const ModelConfig& config, Index layer = 0) {
        const GraniteMoe same = GraniteMoe::of(config, layer);
        return {same.model_dim, same.ffn_dim, same.num_experts, same.k,
                config.integer("shared_intermediate_size")};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple_cat(GraniteMoe{model_dim, ffn_dim, num_experts, k}.parts(),
                              std::tuple{Shared{Swiglu{.ffn_dim = shared_ffn_dim}}});
    }
    Names names(Index layer) const {
        return names::granite_moe_shared(detail::layer_path(layer, "block_sparse_moe"));
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_GRANITE_MOE_HPP
