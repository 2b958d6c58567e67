// SPDX-License-Identifier: MIT
#ifndef MOE_MOE_HPP
#define MOE_MOE_HPP

/// Everything to build, run, train, freeze and count a layer of the usual parts. What fewer
/// programs want is included by name, since parsing it takes time: routers and gates besides those
/// here (moe/routers/mlp.hpp, moe/gates/expert_choice.hpp, ...; all of them: moe/routers.hpp,
/// moe/gates.hpp), compositions of layers (moe/compose), files (moe/io), text reports and pictures
/// (moe/stats/report.hpp, moe/stats/svg.hpp), measurements of a machine (moe/tune.hpp), tools for
/// tests (moe/testing).

#include <moe/any_layer.hpp>
#include <moe/balance/load_sum.hpp>
#include <moe/balance/selection_bias.hpp>
#include <moe/bank.hpp>
#include <moe/config.hpp>
#include <moe/core/block_codes.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/context.hpp>
#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/function_ref.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/plan.hpp>
#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/shape.hpp>
#include <moe/core/side_vectors.hpp>
#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/weights.hpp>
#include <moe/core/workspace.hpp>
#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/experts/glu.hpp>
#include <moe/experts/in_bf16.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/head.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/layer.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/label.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/load.hpp>
#include <moe/stats/memory.hpp>
#include <moe/stats/router.hpp>

#endif  // MOE_MOE_HPP
