// SPDX-License-Identifier: MIT
#include <moe/stats/routing_divergence.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/routing.hpp>
#include <moe/stats/trace.hpp>

#include "support/message.hpp"

namespace routing_divergence_test {
namespace {

using moe::Index;
using moe::routing_divergence;
using moe::Trace;

/// One token per list of (expert, weight).
struct Choice {
    Index expert;
    double weight;
};
moe::Routing routing(Index experts, const std::vector<std::vector<Choice>>& tokens) {
    moe::Routing plan;
    plan.reset(static_cast<Index>(tokens.size()), experts);
    for (std::size_t t = 0; t < tokens.size(); ++t)
        for (const Choice& c : tokens[t]) plan.add(static_cast<Index>(t), c.expert, c.weight);
    plan.group();
    return plan;
}
Trace trace_of(const moe::Routing& plan, Index layer = 0) {
    Trace trace;
    trace.record(layer, plan);
    return trace;
}

TEST(RoutingDivergence, IsWorkedOutByHand) {
    // p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4):
    // JSD = 1/2 log(4/3) + 1/2 (1/2 log(2/3) + 1/2 log 2) = 1/2 log(4/3) + 1/4 log(4/3)
    //     = 3/4 log(4/3) = 0.2157616, over log 2: 0.3112781. H(p) = 0, H(q) = log 2.
    const auto found = routing_divergence(trace_of(routing(2, {{{0, 0.5}}, {{0, 0.25}}})),
                                          trace_of(routing(2, {{{0, 0.5}, {1, 0.5}}})));
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].layer, 0);
    EXPECT_NEAR(found[0].jensen_shannon, 0.75 * std::log(4.0 / 3) / std::log(2.0), 1e-12);
    EXPECT_NEAR(found[0].entropy_difference, -1, 1e-12);
}

TEST(RoutingDivergence, IsZeroForOneTraceAndOneForDisjointExperts) {
    const Trace a = trace_of(routing(4, {{{0, 0.7}, {1, 0.3}}, {{1, 1}}}), 2);
    const auto same = routing_divergence(a, a);
    ASSERT_EQ(same.size(), 1u);  // layers 0 and 1 were not recorded
    EXPECT_EQ(same[0].layer, 2);
    EXPECT_EQ(same[0].jensen_shannon, 0);
    EXPECT_EQ(same[0].entropy_difference, 0);
    const auto apart =
        routing_divergence(a, trace_of(routing(4, {{{2, 0.7}, {3, 0.3}}, {{3, 1}}}), 2));
    EXPECT_NEAR(apart[0].jensen_shannon, 1, 1e-12);
    EXPECT_NEAR(apart[0].entropy_difference, 0, 1e-12);
}

TEST(RoutingDivergence, IsSymmetricButForTheSignOfTheEntropies) {
    const Trace a = trace_of(routing(3, {{{0, 0.6}, {1, 0.4}}, {{2, 0.9}}}));
    const Trace b = trace_of(routing(3, {{{0, 0.1}, {2, 0.4}}, {{2, 0.9}}}));
    const auto ab = routing_divergence(a, b), ba = routing_divergence(b, a);
    EXPECT_NEAR(ab[0].jensen_shannon, ba[0].jensen_shannon, 1e-15);
    EXPECT_EQ(ab[0].entropy_difference, -ba[0].entropy_difference);
    EXPECT_GT(ab[0].jensen_shannon, 0.01);
}

TEST(RoutingDivergence, OfNothingIsNaNAndOfOneExpertZero) {
    const Trace one = trace_of(routing(1, {{{0, 0.5}}})), none = trace_of(routing(1, {{}}));
    EXPECT_EQ(routing_divergence(one, one)[0].jensen_shannon, 0);
    EXPECT_EQ(routing_divergence(one, one)[0].entropy_difference, 0);
    EXPECT_TRUE(std::isnan(routing_divergence(one, none)[0].jensen_shannon));
    EXPECT_TRUE(std::isnan(routing_divergence(one, none)[0].entropy_difference));
    const Trace negative = trace_of(routing(2, {{{0, -0.5}, {1, 1}}}));
    EXPECT_TRUE(std::isnan(routing_divergence(negative, negative)[0].jensen_shannon));
    EXPECT_TRUE(routing_divergence(Trace(), Trace()).empty());
}

TEST(RoutingDivergence, OfOtherLayersIsRefused) {
    EXPECT_EQ(support::message([] {
                  routing_divergence(trace_of(routing(2, {{}})), trace_of(routing(3, {{}})));
              }),
              "moe::routing_divergence: layer 0 has 2 experts in one trace and 3 in the other; "
              "record the same layers");
}

}  // namespace
}  // namespace routing_divergence_test
