// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_HUNYUAN_MOE_HPP
#define MOE_PRESETS_HUNYUAN_MOE_HPP

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

/// @param prefix  "model.layers.0.mlp"
inline Names hunyuan_moe(const std::string& prefix) {
    return {prefix + ".", detail::joined({{{"router.weight", "gate.wg.weight"}},
                                          detail::projections("experts.#", "experts.#"),
                                          detail::projections("shared.0", "shared_mlp")})};
}

}  // namespace names

namespace presets {

/// Hunyuan-A13B: 8 of 64, renormalised, and a shared expert. Without the capacity of Tencent's
/// code, CapacityLimit::hunyuan(8).
struct HunyuanMoe {
    static constexpr const char* name = "hunyuan_v1_moe";

    Index model_dim = 4096;
    Index ffn_dim = 3072;
    Index num_experts = 64;
    Index k = 8;
    Index shared_ffn_dim = 3072;

    static HunyuanMoe of(const ModelConfig& config, Index layer = 0) {
        config.expect("hidden_act", "silu");
        const Index wide = config.integer("intermediate_size");
        const Index narrow = config.has("moe_intermediate_size")
                                 ? config.integer_of_layer("moe_intermediate_size", layer)
                                 : wide;
        const Index shared = config.has("num_shared_expert")
                                 ? config.integer_of_layer("num_shared_expert", layer)
                                 : 1;
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = narrow,
                .num_experts = config.integer_of_layer(
                    config.first_of({"num_experts", "num_local_experts"}), layer),
                .k = config.integer_of_layer("moe_topk", layer),
                .shared_ffn_dim = shared * wide};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{}, TopK{.k = k},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim},
                          Shared{Swiglu{.ffn_dim = shared_ffn_dim}}};
    }
    Names names(Index layer) const { return names::hunyuan_moe(detail::layer_path(layer, "mlp")); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_HUNYUAN_MOE_HPP
