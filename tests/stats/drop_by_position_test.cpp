// SPDX-License-Identifier: MIT
#include <moe/stats/drop_by_position.hpp>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/capacity.hpp>
#include <moe/gates/top_k.hpp>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace drop_by_position_test {
namespace {

using moe::drop_by_position;
using moe::DropByPosition;
using moe::Dropped;
using moe::Index;
using support::message;

TEST(DropByPosition, OfASmallBatchIsWorkedOutByHand) {
    // Sequences of 3 and 2 tokens, two experts each but for the last, which has one.
    moe::Routing routing = traces::routing(2, {{0, 1}, {0, 1}, {1, 0}, {0, 1}, {1}});
    for (const Index a : {3, 4, 5}) routing.set_dropped(a, Dropped::capacity);  // tokens 1, 2, 2
    routing.set_dropped(8, Dropped::pruned);                                    // token 4
    routing.group();
    const std::vector<Index> offsets{0, 3, 5};
    moe::Trace trace;
    trace.record(0, routing, {.sequence_offsets = offsets});
    const DropByPosition drops = drop_by_position(trace, 0);
    EXPECT_EQ(drops.assignments, (std::vector<Index>{4, 3, 2}));
    EXPECT_EQ(drops.dropped, (std::vector<Index>{0, 2, 2}));
    EXPECT_EQ(drops.rate, (std::vector<double>{0, 2.0 / 3, 1}));
    const DropByPosition binned = drop_by_position(trace, 0, 2);
    EXPECT_EQ(binned.bin, 2);
    EXPECT_EQ(binned.assignments, (std::vector<Index>{7, 2}));
    EXPECT_EQ(binned.rate, (std::vector<double>{2.0 / 7, 1}));
}

TEST(DropByPosition, CountsBatchesTogetherAndNoPadding) {
    moe::Routing routing = traces::routing(2, {{0}, {1}, {0}});
    routing.set_dropped(0, Dropped::capacity);
    routing.set_dropped(1, Dropped::pass_through);
    routing.group();
    const std::vector<std::uint8_t> padding{1, 0, 0};
    moe::Trace trace;
    trace.record(0, routing, {.padding = padding});
    trace.record(0, traces::routing(2, {{0}, {0}, {}, {}, {1}}));
    const DropByPosition drops = drop_by_position(trace, 0);
    EXPECT_EQ(drops.assignments, (std::vector<Index>{1, 2, 1, 0, 1}));
    EXPECT_EQ(drops.rate, (std::vector<double>{0, 0.5, 0, 0, 0}));
}

TEST(DropByPosition, RisesTowardsTheEndWithACapacityThatIsFirstComeFirstServed) {
    moe::Random random(1);
    const auto gate = moe::WithCapacity{moe::TopK{.k = 1},
                                        {.limit = moe::CapacityLimit::megatron(0.8),
                                         .scope = moe::Capacity::Scope::sequence}}
                          .build<double>({.model_dim = 1, .num_experts = 4}, random);
    const std::vector<Index> offsets{0, 64, 128, 192, 256};
    const moe::Matrix<double> logits = moe::testing::random_spaced<double>(256, 4, 3);
    moe::Workspace<double> ws;
    const std::vector<moe::ExpertFacts> facts(4);
    const moe::Context context{.training = true, .sequence_offsets = offsets, .experts = facts};
    moe::Routing routing;
    routing.reset(256, 4);
    gate.select(logits, routing, moe::Call<double>{context, ws});
    routing.group();
    moe::Trace trace;
    trace.record(0, routing, context);
    const DropByPosition drops = drop_by_position(trace, 0, 16);
    ASSERT_EQ(drops.rate.size(), 4U);
    EXPECT_EQ(drops.rate[0], 0);
    EXPECT_GT(drops.rate[3], 0.4);
    EXPECT_GT(drops.rate[3], drops.rate[2]);
}

TEST(DropByPosition, IsEmptyWithoutTokensAndRefusesBadSettings) {
    EXPECT_TRUE(drop_by_position(traces::trace(2, {}), 0).rate.empty());
    const moe::Trace trace = traces::trace(2, {{0}});
    EXPECT_THROW(drop_by_position(trace, 1), std::invalid_argument);
    EXPECT_EQ(message([&] { drop_by_position(trace, 0, 0); }),
              "moe::drop_by_position: bin is 0, it must be >= 1");
}

}  // namespace
}  // namespace drop_by_position_test
