// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_HPP
#define MOE_COMPOSE_HPP

/// Every composition: what stands in a layer's place.

#include <moe/compose/competition.hpp>
#include <moe/compose/frozen_soft_moe.hpp>
#include <moe/compose/soft_moe.hpp>

#endif  // MOE_COMPOSE_HPP
