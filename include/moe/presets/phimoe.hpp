// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_PHIMOE_HPP
#define MOE_PRESETS_PHIMOE_HPP

#include <tuple>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/presets/preset.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace presets {

/// Phi-3.5-MoE and GRIN-MoE: two experts one after the other, each weighed among those near the
/// best that is left, so that weights do not sum to 1 (arXiv:2409.12136). Named as Mixtral.
struct Phimoe {
    static constexpr const char* name = "phimoe";

    Index model_dim = 4096;
    Index ffn_dim = 6400;
    Index num_experts = 16;
    Index k = 2;
    double epsilon = 0.01;  ///< router_jitter_noise, in inference, too

    static Phimoe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = config.integer("num_local_experts"),
                .k = config.integer("num_experts_per_tok", 2),
                .epsilon = config.number("router_jitter_noise", 0.01)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{}, SparseMixer{.k = k, .epsilon = epsilon},
                          Swiglu{.count = num_experts, .ffn_dim = ffn_dim}};
    }
    Names names(Index layer) const { return Mixtral{}.names(layer); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_PHIMOE_HPP
