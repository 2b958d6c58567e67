// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_LONGCAT_FLASH_HPP
#define MOE_PRESETS_LONGCAT_FLASH_HPP

#include <string>
#include <tuple>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// The experts that return the token have no tensors as published; transformers saves gate_proj and
/// up_proj for them, which nothing reads.
/// @param prefix  "model.layers.0.mlp"
inline Names longcat_flash(const std::string& prefix) {
    constexpr Layout vector{.orientation = Orientation::vector};
    return {
        prefix + ".",
        detail::joined({{{"router.weight", "router.classifier.weight"},
                         {"gate.bias", "router.e_score_correction_bias", vector}},
                        detail::projections("experts.#", "experts.#"),
                        {{"", "experts.#.gate_proj.weight"}, {"", "experts.#.up_proj.weight"}}})};
}

}  // namespace names

namespace presets {

/// LongCat-Flash: 12 of 512 experts and 256 that return the token ("zero-computation" experts), a
/// bias chooses, softmax scores times 6 (arXiv:2509.01322).
struct LongcatFlash {
    static constexpr const char* name = "longcat_flash";

    Index model_dim = 6144;
    Index ffn_dim = 2048;
    Index num_experts = 512;
    Index num_copies = 256;
    Index k = 12;
    double scale = 6;

    static LongcatFlash of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("expert_ffn_hidden_size"),
                .num_experts = config.integer("n_routed_experts"),
                .num_copies = config.integer("zero_expert_num", 0),
                .k = config.integer(config.first_of({"moe_topk", "num_experts_per_tok"})),
                .scale = config.number("routed_scaling_factor")};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{
            LinearRouter{},
            TopK{.k = k, .normalize = Normalize::none, .scale = scale, .selection_bias = true},
            Swiglu{.count = num_experts, .ffn_dim = ffn_dim}, Copy{.count = num_copies}};
    }
    Names names(Index layer) const {
        return names::longcat_flash(detail::layer_path(layer, "mlp"));
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_LONGCAT_FLASH_HPP
