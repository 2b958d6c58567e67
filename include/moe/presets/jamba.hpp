// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_JAMBA_HPP
#define MOE_PRESETS_JAMBA_HPP

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

/// @param prefix  "model.layers.1.feed_forward"
inline Names jamba(const std::string& prefix) {
    return {prefix + ".", detail::joined({{{"router.weight", "router.weight"}},
                                          detail::projections("experts.#", "experts.#")})};
}

}  // namespace names

namespace presets {

/// Jamba-v0.1 and 1.5-mini: 2 of 16, softmax scores as they are (arXiv:2403.19887). 1.5-large is
/// {8192, 24576}.
struct Jamba {
    static constexpr const char* name = "jamba";

    Index model_dim = 4096;
    Index ffn_dim = 14336;
    Index num_experts = 16;
    Index k = 2;

    static Jamba of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {
            .model_dim = config.integer("hidden_size"),
            .ffn_dim = config.integer("intermediate_size"),
            .num_experts = config.integer(config.first_of({"num_experts", "num_local_experts"})),
            .k = config.integer("num_experts_per_tok")};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{}, TopK{.k = k, .normalize = Normalize::none},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const {
        return names::jamba(detail::layer_path(layer, "feed_forward"));
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_JAMBA_HPP
