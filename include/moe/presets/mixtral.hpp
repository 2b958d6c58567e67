// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_MIXTRAL_HPP
#define MOE_PRESETS_MIXTRAL_HPP

#include <string>
#include <tuple>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// @param prefix  "model.layers.0.block_sparse_moe"
inline Names mixtral(const std::string& prefix) {
    return {prefix + ".",
            {{"router.weight", "gate.weight"},
             {"experts.#.gate", "experts.#.w1.weight"},
             {"experts.#.up", "experts.#.w3.weight"},
             {"experts.#.down", "experts.#.w2.weight"}}};
}

}  // namespace names

namespace presets {

/// Mixtral 8x7B: the two best of 8 SwiGLU experts, their softmax scores renormalised.
///
/// 8x22B is {.model_dim = 6144, .ffn_dim = 16384}. Source: arXiv:2401.04088.
struct Mixtral {
    static constexpr const char* name = "mixtral";

    Index model_dim = 4096;
    Index ffn_dim = 14336;
    Index num_experts = 8;
    Index k = 2;

    static Mixtral of(const ModelConfig& config) {
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
        return names::mixtral("model.layers." + std::to_string(layer) + ".block_sparse_moe");
    }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_MIXTRAL_HPP
