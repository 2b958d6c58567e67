// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_HPP
#define MOE_GATES_HPP

/// Every gate, what moves biases between steps, and how published rules are written with them.
///
///     Mixtral, Qwen3, Hunyuan     TopK{.k = 2}
///     Qwen2, OLMoE, Jamba         TopK{.k = 8, .normalize = Normalize::none}
///     gpt-oss, Granite, JetMoE    TopK{.k = 4, .score = Score::softmax_of_selected}; gpt-oss with
///                                 LinearRouter{.bias = true}
///     LLaMA-MoE                   the same with .scale = E / k, MlpRouter and, in training, Noisy
///     DeepSeek-V2                 TopK{.k = 6, .normalize = Normalize::none, .scale = 16,
///                                      .num_groups = 8, .groups_kept = 3}
///       trained                   WithCapacity{the same, {.limit = CapacityLimit::megatron(1),
///                                 .inference_limit = CapacityLimit::none(),
///                                 .priority = Capacity::Priority::probability,
///                                 .experts_per_device = E / D, .exempt_fraction = 0.1}}
///     DeepSeek-V3, Kimi, GLM-4.5  TopK{.k = 8, .score = Score::sigmoid,
///                                      .normalize = Normalize::add_epsilon, .scale = 2.5,
///                                      .selection_bias = true, .num_groups = 8, .groups_kept = 4,
///                                      .group_score = GroupScore::top_two_sum}
///     LongCat, ERNIE-4.5          TopK with softmax scores and a selection bias; Normalize::none
///                                 and .scale = 6, or Normalize::clamp
///     Llama-4                     TopK{.k = 1, .score = Score::sigmoid,
///                                      .normalize = Normalize::none,
///                                      .placement = Placement::input}
///     DBRX                        TopK{.k = 4, .norm_power = 1}
///     Switch                      WithCapacity{TopK{.k = 1, .normalize = Normalize::none},
///                                              {.limit = CapacityLimit::gshard()}} and Jitter
///     GShard, NLLB, mesh-TF       WithCapacity{GShardTop2{...}, {...}}
///     no token left behind        WithCapacity{TopK{.k = 1, .normalize = Normalize::none}, {...,
///     (mesh-TF)                   .overflow = Capacity::Overflow::next_choice}}; its switch-max:
///                                 .priority = Capacity::Priority::probability instead
///     DeepSpeed top-k             WithCapacity{TopK{.k = 4, .normalize = Normalize::clamp,
///                                                   .normalize_kept_only = true},
///                                              {.limit = CapacityLimit::deepspeed(),
///                                               .priority = Capacity::Priority::score}}
///     V-MoE                       Noisy{WithCapacity{TopK{...}, {.limit = CapacityLimit::vmoe(),
///                                 .priority = Capacity::Priority::batch_prioritized}}, {...}}:
///                                 it ranks tokens by noisy scores
///     MoE++                       TopK{.k = 2} with Null for its zero expert, Config::input_scale
///                                 2 and GatingResidual{MlpRouter{}}; first an MlpRouter{} alone
///     SMoRA                       TopK{.k = 8, .score = Score::sigmoid, .scale = 8,
///                                      .selection_bias = true, .weighs_bias = true}
///     hash layers, THOR           TokenTable, HashRouter or RandomRouter with
///                                 TopK{.k = 1, .ones = true}
///     MMoE, CGC                   PerTask{LinearRouter{.bias = true}, tasks} with TopK{.k = E}, a
///                                 call per task; CGC with Context::allowed for the task's experts
///     quantile balancing          TopK{.selection_bias = true, .biases_logits = true} and
///                                 QuantileUpdate
///
/// Where published code is odd. An option gives the same result:
///
///     scores of groups that are not kept are 0, not -inf    GroupMask::zero (Hugging Face)
///     ties fall as torch.topk leaves them                   TieBreak::torch_cpu
///     a dropped token adds weight * x                       Capacity::Overflow::pass_through
///     weights that do not sum to 1, input times 2           as above
///     the expert's input has a gradient for its weight      Placement::straight_through (st-moe)
///
/// and this is not followed: jitter that reaches the experts (Mixtral) or stays at inference
/// (Switch in transformers 4.30); noise that stays at inference (EvoMoE; GateNoise::inference asks
/// for it); uniform noise around 1 that is added (fastmoe's Switch); 0 / 0 of weights that
/// underflow: the result is 0; no expert at all for rows whose probabilities round to less than p,
/// or that hold a NaN (Uni-MoE); a limit by position that cuts experts meant for every token
/// (Uni-MoE; see Capacity::unlimited_last), that ranks equal numbers (Megatron-LM), or in which an
/// expert's own tokens lose to those that did not choose it (DeepSpeed, while it compared logits,
/// with 0 for the latter); a raw weight that overwrites a normalised one (NLLB), its capacity of
/// evaluation that stays in training, and its outputs times 1 - dropout at inference although
/// dropout in training made up for it (Context::gate_multiplier asks for it); temperatures that
/// divide probabilities (Dynamic_MoE); exp without the maximum subtracted (Megatron-LM's Sinkhorn);
/// comparisons of vectors in different orders (CompeteSMoE).

#include <moe/balance/adaptive_experts.hpp>
#include <moe/balance/quantile.hpp>
#include <moe/balance/selection_bias.hpp>
#include <moe/gates/auction.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/capacity_limit.hpp>
#include <moe/gates/dense_to_sparse.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/hybrid_entropy.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/gates/min_p.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/online_pruning.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/gates/ranks.hpp>
#include <moe/gates/relu.hpp>
#include <moe/gates/schedule.hpp>
#include <moe/gates/sequence_budget.hpp>
#include <moe/gates/sinkhorn.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/threshold.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/losses/mask.hpp>

#endif  // MOE_GATES_HPP
