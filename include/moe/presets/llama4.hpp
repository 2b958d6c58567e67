// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_LLAMA4_HPP
#define MOE_PRESETS_LLAMA4_HPP

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// Llama-4: all experts in one tensor, [in, out], the columns of gate before those of up.
/// @param prefixes  "language_model.model.layers.0.feed_forward", or without a vision model
///                  "model.layers.0.feed_forward"
inline Names llama4(std::vector<std::string> prefixes) {
    for (std::string& prefix : prefixes) prefix += ".";
    constexpr Layout stacked{.orientation = Orientation::in_out, .stacking = Stacking::leading};
    Layout gate = stacked, up = stacked;
    gate.part = Part::first_half;
    up.part = Part::second_half;
    return {std::move(prefixes),
            detail::joined({{{"router.weight", "router.weight"},
                             {"experts.#.gate", "experts.gate_up_proj", gate},
                             {"experts.#.up", "experts.gate_up_proj", up},
                             {"experts.#.down", "experts.down_proj", stacked}},
                            detail::projections("shared.0", "shared_expert")})};
}

}  // namespace names

namespace presets {

/// Llama-4-Scout: one expert whose input is scaled by the sigmoid of its logit, and a shared one.
/// Maverick is {.num_experts = 128}.
struct Llama4 {
    static constexpr const char* name = "llama4";

    Index model_dim = 5120;
    Index ffn_dim = 8192;  ///< of the shared expert, too
    Index num_experts = 16;
    Index k = 1;

    static Llama4 of(const ModelConfig& whole, Index = 0) {
        const ModelConfig config = whole.inside("text_config");
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = config.integer("num_local_experts"),
                .k = config.integer("num_experts_per_tok", 1)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{},
                          TopK{.k = k,
                               .score = Score::sigmoid,
                               .normalize = Normalize::none,
                               .placement = Placement::input},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
                          Shared{Swiglu{.ffn_dim = ffn_dim}}};
    }
    Names names(Index layer) const {
        return names::llama4({detail::layer_path(layer, "feed_forward", "language_model.model"),
                              detail::layer_path(layer, "feed_forward")});
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_LLAMA4_HPP
