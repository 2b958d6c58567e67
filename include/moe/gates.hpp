// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_HPP
#define MOE_GATES_HPP

/// Every gate, and what moves their biases between steps.

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
#include <moe/gates/sequence_budget.hpp>
#include <moe/gates/sinkhorn.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/temperature.hpp>
#include <moe/gates/threshold.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/losses/mask.hpp>

#endif  // MOE_GATES_HPP
