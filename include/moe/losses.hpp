// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_HPP
#define MOE_LOSSES_HPP

/// Every loss and every balance controller. Those that most programs want are in moe.hpp.
#include <moe/balance/adaptive_experts.hpp>
#include <moe/balance/load_sum.hpp>
#include <moe/balance/quantile.hpp>
#include <moe/balance/selection_bias.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/label.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/mask.hpp>
#include <moe/losses/z_loss.hpp>

#endif  // MOE_LOSSES_HPP
