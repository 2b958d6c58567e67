// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_OLMOE_HPP
#define MOE_PRESETS_OLMOE_HPP

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/qwen_moe.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace presets {

/// OLMoE-1B-7B: 8 of 64, softmax scores as they are (arXiv:2409.02060). Named as Qwen3-MoE.
struct Olmoe {
    static constexpr const char* name = "olmoe";

    Index model_dim = 2048;
    Index ffn_dim = 1024;
    Index num_experts = 64;
    Index k = 8;
    bool normalize = false;

    static Olmoe of(const ModelConfig& config, Index = 0) {
        config.expect("hidden_act", "silu");
        return {
            .model_dim = config.integer("hidden_size"),
            .ffn_dim = config.integer("intermediate_size"),
            .num_experts = config.integer(config.first_of({"num_experts", "num_local_experts"})),
            .k = config.integer("num_experts_per_tok"),
            .normalize = config.flag("norm_topk_prob", false)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const { return Qwen3Moe{model_dim, ffn_dim, num_experts, k, normalize}.parts(); }
    Names names(Index layer) const { return Qwen3Moe{}.names(layer); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_OLMOE_HPP
