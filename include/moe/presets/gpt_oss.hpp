// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_GPT_OSS_HPP
#define MOE_PRESETS_GPT_OSS_HPP

#include <string>
#include <tuple>

#include <moe/experts/glu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/names.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/projections.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {
namespace names {

/// gpt-oss as Hugging Face has it: MXFP4 [out, in], or [in, out] in other dtypes; rows, or columns,
/// of gate and up take turns.
/// @param prefix  "model.layers.0.mlp"
inline Names gpt_oss(const std::string& prefix) {
    const auto stacked = [](Orientation orientation, Part part, Coding coding = Coding::plain) {
        return Layout{.orientation = orientation,
                      .stacking = Stacking::leading,
                      .part = part,
                      .coding = coding};
    };
    using enum Orientation;
    using enum Part;
    const auto mxfp4 = Coding::mxfp4;
    const std::string in = "experts.gate_up_proj", out = "experts.down_proj";
    return {prefix + ".",
            {{"router.weight", "router.weight"},
             {"router.bias", "router.bias", {.orientation = vector}},
             {"experts.#.gate", in, stacked(in_out, even)},
             {"experts.#.up", in, stacked(in_out, odd)},
             {"experts.#.down", out, stacked(in_out, whole)},
             {"experts.#.gate", in + "_blocks", stacked(out_in, even, mxfp4), in + "_scales"},
             {"experts.#.up", in + "_blocks", stacked(out_in, odd, mxfp4), in + "_scales"},
             {"experts.#.down", out + "_blocks", stacked(out_in, whole, mxfp4), out + "_scales"},
             {"experts.#.gate_bias", in + "_bias", stacked(vector, even)},
             {"experts.#.up_bias", in + "_bias", stacked(vector, odd)},
             {"experts.#.down_bias", out + "_bias", stacked(vector, whole)}}};
}

}  // namespace names

namespace presets {

/// gpt-oss-120b: softmax over the logits of the 4 best, biases everywhere, a clamped gate
/// (arXiv:2508.10925). 20b is {.num_experts = 32}.
struct GptOss {
    static constexpr const char* name = "gpt_oss";

    Index model_dim = 2880;
    Index ffn_dim = 2880;
    Index num_experts = 128;
    Index k = 4;
    double limit = 7;

    static GptOss of(const ModelConfig& config, Index = 0) {
        config.expect("swiglu_alpha", 1.702);
        return {.model_dim = config.integer("hidden_size"),
                .ffn_dim = config.integer("intermediate_size"),
                .num_experts = config.integer("num_local_experts"),
                .k = config.integer(config.first_of({"num_experts_per_tok", "experts_per_token"})),
                .limit = config.number("swiglu_limit", 7)};
    }
    Config config() const { return {.model_dim = model_dim}; }
    auto parts() const {
        return std::tuple{LinearRouter{.bias = true},
                          TopK{.k = k, .score = Score::softmax_of_selected},
                          Glu{.count = num_experts,
                              .ffn_dim = ffn_dim,
                              .activation = Activation::quick_gelu,
                              .bias = true,
                              .limit = limit,
                              .up_offset = 1}};
    }
    Names names(Index layer) const { return names::gpt_oss(detail::layer_path(layer, "mlp")); }
};

}  // namespace presets
}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_GPT_OSS_HPP
