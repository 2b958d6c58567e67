// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_HPP
#define MOE_LOSSES_HPP

/// Every loss and every balance controller. Those that most programs want are in moe.hpp.
#include <moe/balance/adaptive_experts.hpp>
#include <moe/balance/inverse_step.hpp>
#include <moe/balance/load_sum.hpp>
#include <moe/balance/quantile.hpp>
#include <moe/balance/selection_bias.hpp>
#include <moe/balance/target_share.hpp>
#include <moe/losses/anchor.hpp>
#include <moe/losses/contrastive.hpp>
#include <moe/losses/cost.hpp>
#include <moe/losses/device_balance.hpp>
#include <moe/losses/diversity.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/gate_consistency.hpp>
#include <moe/losses/importance.hpp>
#include <moe/losses/jensen_shannon.hpp>
#include <moe/losses/label.hpp>
#include <moe/losses/load.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/load_fraction.hpp>
#include <moe/losses/log_softmax.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/mask.hpp>
#include <moe/losses/mass_balance.hpp>
#include <moe/losses/noise.hpp>
#include <moe/losses/prediction_consistency.hpp>
#include <moe/losses/prior.hpp>
#include <moe/losses/scores.hpp>
#include <moe/losses/second_place.hpp>
#include <moe/losses/switch_dit_prior.hpp>
#include <moe/losses/token_uniformity.hpp>
#include <moe/losses/top_any.hpp>
#include <moe/losses/tsallis_entropy.hpp>
#include <moe/losses/variation.hpp>
#include <moe/losses/z_loss.hpp>

#endif  // MOE_LOSSES_HPP
