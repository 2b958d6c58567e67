// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_HPP
#define MOE_ROUTERS_HPP

/// Every router.

#include <moe/routers/attention.hpp>
#include <moe/routers/balanced.hpp>
#include <moe/routers/conditioned.hpp>
#include <moe/routers/cosine.hpp>
#include <moe/routers/external.hpp>
#include <moe/routers/hash.hpp>
#include <moe/routers/jitter.hpp>
#include <moe/routers/k_means.hpp>
#include <moe/routers/label.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/modality.hpp>
#include <moe/routers/pooled.hpp>
#include <moe/routers/pre_gated.hpp>
#include <moe/routers/random.hpp>
#include <moe/routers/residual.hpp>
#include <moe/routers/task.hpp>
#include <moe/routers/token_table.hpp>
#include <moe/routers/wrapper.hpp>

#endif  // MOE_ROUTERS_HPP
