// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_ROUTING_BYTES_HPP
#define MOE_COMPOSE_ROUTING_BYTES_HPP

#include <algorithm>
#include <cstdint>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// Bytes of what Routing::reserve() makes: assignments twice, by expert once; offsets and a cursor.
inline Index routing_bytes(Index tokens, Index experts, Index assignments) {
    constexpr Index of_assignment =
        2 * sizeof(Assignment) + sizeof(std::int32_t) + static_cast<Index>(sizeof(Index));
    return checked_product(assignments, of_assignment) +
           (tokens + experts + std::max(tokens, experts) + 3) * static_cast<Index>(sizeof(Index));
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_COMPOSE_ROUTING_BYTES_HPP
