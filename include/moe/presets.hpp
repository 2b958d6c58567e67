// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_HPP
#define MOE_PRESETS_HPP

/// Published models, one header for each family, and what reads and writes their checkpoints.

#include <moe/io/bind.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/save.hpp>
#include <moe/presets/dbrx.hpp>
#include <moe/presets/deepseek_moe.hpp>
#include <moe/presets/deepseek_v3.hpp>
#include <moe/presets/describe.hpp>
#include <moe/presets/description.hpp>
#include <moe/presets/dynamic_moe.hpp>
#include <moe/presets/ernie4_5_moe.hpp>
#include <moe/presets/explain.hpp>
#include <moe/presets/gpt_oss.hpp>
#include <moe/presets/granite_moe.hpp>
#include <moe/presets/hunyuan_moe.hpp>
#include <moe/presets/jamba.hpp>
#include <moe/presets/llama4.hpp>
#include <moe/presets/longcat_flash.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/presets/model_config.hpp>
#include <moe/presets/moe_plus_plus.hpp>
#include <moe/presets/nllb_moe.hpp>
#include <moe/presets/olmoe.hpp>
#include <moe/presets/phimoe.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/published.hpp>
#include <moe/presets/qwen_moe.hpp>
#include <moe/presets/switch_transformers.hpp>
#include <moe/presets/uni_moe.hpp>

#endif  // MOE_PRESETS_HPP
