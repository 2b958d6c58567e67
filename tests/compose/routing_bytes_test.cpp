// SPDX-License-Identifier: MIT
#include <moe/compose/routing_bytes.hpp>

#include <gtest/gtest.h>

#include "support/allocations.hpp"

namespace {

TEST(RoutingBytes, AreWhatARoutingReserves) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    for (const moe::Index tokens : {0, 1, 1000})
        for (const moe::Index experts : {1, 2000})
            for (const moe::Index assignments : {0, 7000}) {
                moe::Routing routing;
                const long before = allocations::bytes_asked_for.load();
                routing.reserve(tokens, experts, assignments);
                EXPECT_EQ(allocations::bytes_asked_for.load() - before,
                          moe::detail::routing_bytes(tokens, experts, assignments))
                    << tokens << ' ' << experts << ' ' << assignments;
            }
}

}  // namespace
