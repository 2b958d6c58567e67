// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_PUBLISHED_HPP
#define MOE_PRESETS_PUBLISHED_HPP

#include <moe/presets/dbrx.hpp>
#include <moe/presets/deepseek_moe.hpp>
#include <moe/presets/deepseek_v3.hpp>
#include <moe/presets/dynamic_moe.hpp>
#include <moe/presets/ernie4_5_moe.hpp>
#include <moe/presets/gpt_oss.hpp>
#include <moe/presets/granite_moe.hpp>
#include <moe/presets/hunyuan_moe.hpp>
#include <moe/presets/jamba.hpp>
#include <moe/presets/llama4.hpp>
#include <moe/presets/longcat_flash.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/presets/moe_plus_plus.hpp>
#include <moe/presets/nllb_moe.hpp>
#include <moe/presets/olmoe.hpp>
#include <moe/presets/phimoe.hpp>
#include <moe/presets/qwen_moe.hpp>
#include <moe/presets/switch_transformers.hpp>
#include <moe/presets/uni_moe.hpp>

namespace moe::inline MOE_ABI::presets {

/// f(name, preset) for every published model that has a preset.
///
/// A new one goes here, into moe/presets.hpp, the table of tests/presets/presets_test.cpp,
/// architectures.cpp of examples/run_layer (and its layers.cpp, if no other has such a layer) and
/// the page beside it, and into tests/golden/generate_models.py, whose folder models_test.cpp
/// lists. Tests find it missing in each of these.
template <class F>
void for_each_published(F&& f) {
    const auto each = [&f](const auto&... presets) { (f(presets.name, presets), ...); };
    each(Mixtral{}, MiniMax{}, MiniMaxM2{}, Qwen2Moe{}, Qwen3Moe{}, Qwen3Next{}, Qwen3VlMoe{},
         Olmoe{}, DeepseekMoe{}, DeepseekV2{}, DeepseekV3{});
    f("kimi_k2", kimi_k2);
    f("glm_4_5", glm_4_5);
    each(Dbrx{}, DynamicMoe{}, Ernie4_5Moe{}, GptOss{}, GraniteMoe{}, GraniteMoeShared{},
         HunyuanMoe{}, Jamba{}, Llama4{}, LongcatFlash{}, MoePlusPlus{}, NllbMoe{}, Phimoe{},
         SwitchTransformers{}, UniMoe{});
}

}  // namespace moe::inline MOE_ABI::presets

#endif  // MOE_PRESETS_PUBLISHED_HPP
