// SPDX-License-Identifier: MIT
#include <moe/stats/load_over_time.hpp>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/stats/load.hpp>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace load_over_time_test {
namespace {

using moe::Index;
using moe::load_over_time;
using moe::Matrix;
using moe::max_violation_over_time;
using moe::Trace;
using support::message;

Trace small() {
    Trace trace;
    trace.record(0, traces::routing(3, {{0}, {1}, {2}}));
    trace.record(1, traces::routing(2, {{0}, {0}, {0}}));
    trace.record(0, traces::routing(3, {{0, 1}, {0}, {0, 2}}));
    trace.record(0, traces::routing(3, {}));
    return trace;
}

TEST(LoadOverTime, OfThreeBatchesIsWorkedOutByHand) {
    Matrix<double> wanted(3, 3);
    wanted << 1, 1, 1, 3, 1, 1, 0, 0, 0;
    EXPECT_EQ(load_over_time(small(), 0), wanted);
    Matrix<double> pairs(2, 3);
    pairs << 4, 2, 2, 0, 0, 0;
    EXPECT_EQ(load_over_time(small(), 0, 2), pairs);
    EXPECT_EQ(load_over_time(small(), 0, 99), pairs.topRows(1));
    // 3 of a mean of 5/3; 4 of a mean of 8/3
    EXPECT_EQ(max_violation_over_time(small(), 0), (std::vector<double>{0, 3 / (5.0 / 3) - 1, 0}));
    EXPECT_EQ(max_violation_over_time(small(), 0, 3), (std::vector<double>{4 / (8.0 / 3) - 1}));
}

TEST(LoadOverTime, EqualsTheLoadOfEachBatch) {
    Trace trace;
    for (std::uint64_t b = 0; b < 5; ++b) {
        moe::Routing routing = traces::routing(6, traces::random_lists(20, 6, 2, b));
        for (Index a = 0; a < routing.num_assignments(); a += 3)
            routing.set_dropped(a, moe::Dropped::capacity);
        routing.group();
        trace.record(0, routing, {.step = b});
        const Matrix<double> load = load_over_time(trace, 0);
        const moe::LoadStats stats = moe::load_stats(routing);
        for (std::size_t e = 0; e < 6; ++e)
            EXPECT_EQ(load(static_cast<Index>(b), static_cast<Index>(e)),
                      static_cast<double>(stats.tokens_per_expert[e]));
        EXPECT_NEAR(max_violation_over_time(trace, 0).back(), stats.max_over_mean - 1, 1e-15);
    }
}

TEST(MaxViolationOverTime, OfTheWholeTraceIsLowWhereBatchesLeanToDifferentSides) {
    Trace trace;
    for (Index b = 0; b < 4; ++b) trace.record(0, traces::routing(4, traces::Lists(10, {b})));
    EXPECT_EQ(max_violation_over_time(trace, 0), (std::vector<double>{3, 3, 3, 3}));
    EXPECT_EQ(max_violation_over_time(trace, 0, 4), (std::vector<double>{0}));
}

TEST(LoadOverTime, IsEmptyWithoutBatchesAndRefusesBadSettings) {
    EXPECT_TRUE(load_over_time(Trace(small()), 1).rows() == 1);
    Trace later;
    later.record(3, traces::routing(2, {{1}}));
    EXPECT_EQ(load_over_time(later, 0).rows(), 0);  // a number that was not recorded
    EXPECT_TRUE(max_violation_over_time(later, 0).empty());
    EXPECT_THROW(load_over_time(small(), 2), std::invalid_argument);
    EXPECT_EQ(message([&] { load_over_time(small(), 0, 0); }),
              "moe::load_over_time: window is 0, it must be >= 1");
}

}  // namespace
}  // namespace load_over_time_test
