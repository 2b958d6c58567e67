// SPDX-License-Identifier: MIT
#include <moe/balance/load_sum.hpp>

#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace load_sum_test {
namespace {

using moe::Dropped;
using moe::Index;
using moe::LoadSum;
using moe::Routing;

std::vector<double> counts(const LoadSum& load) {
    return {load.counts().begin(), load.counts().end()};
}

/// 3 tokens for 4 experts; the assignment of token 1 to expert 3 is dropped.
Routing three_tokens() {
    Routing routing;
    routing.reset(3, 4);
    routing.add(0, 2);
    routing.add(0, 0);
    routing.add(1, 2);
    routing.add(1, 3);
    routing.group();
    routing.set_dropped(3, Dropped::capacity);
    routing.group();
    return routing;
}

TEST(LoadSum, AddsMicroBatches) {
    LoadSum load(4);
    EXPECT_EQ(counts(load), (std::vector<double>{0, 0, 0, 0}));
    load.add(three_tokens());
    load.add(three_tokens());
    EXPECT_EQ(counts(load), (std::vector<double>{2, 0, 4, 0}));
    load.add(three_tokens(), true);
    EXPECT_EQ(counts(load), (std::vector<double>{3, 0, 6, 1}));
    load.clear();
    EXPECT_EQ(counts(load), (std::vector<double>{0, 0, 0, 0}));
    EXPECT_EQ(load.num_experts(), 4);
}

TEST(LoadSum, AddsCountsOfOtherProcesses) {
    LoadSum load(3), other(3);
    load.add(std::vector<Index>{1, 2, 3});
    load.add(std::vector<float>{0.5F, 0, 0.25F});
    other.add(std::vector<int>{0, 10, 0});
    load.add(other);
    std::vector<double> more{1, 1, 1};
    load.add(std::span(more));
    EXPECT_EQ(counts(load), (std::vector<double>{2.5, 13, 4.25}));
}

TEST(LoadSum, RefusesWhatIsNoLoadAndStaysAsItWas) {
    LoadSum load(2);
    load.add(std::vector<int>{1, 2});
    EXPECT_THROW(load.add(std::vector<int>{1, 2, 3}), std::invalid_argument);
    EXPECT_THROW(load.add(std::vector<int>{5, -1}), std::invalid_argument);
    EXPECT_THROW(load.add(std::vector<double>{5, std::numeric_limits<double>::quiet_NaN()}),
                 std::invalid_argument);
    EXPECT_THROW(load.add(std::vector<double>{5, std::numeric_limits<double>::infinity()}),
                 std::invalid_argument);
    EXPECT_THROW(load.add(three_tokens()), std::invalid_argument);
    EXPECT_THROW(LoadSum(-1), std::invalid_argument);
    EXPECT_EQ(counts(load), (std::vector<double>{1, 2}));
}

TEST(MaxViolation, IsTheBusiestOverTheMeanMinusOne) {
    EXPECT_EQ(moe::max_violation(std::vector<double>{3, 3, 3}), 0);
    EXPECT_EQ(moe::max_violation(std::vector<double>{0, 8, 0, 0}), 3);
    EXPECT_EQ(moe::max_violation(std::vector<double>{1, 3}), 0.5);  // mean 2
    EXPECT_EQ(moe::max_violation(std::vector<double>{0, 0}), 0);
    EXPECT_EQ(moe::max_violation({}), 0);
}

}  // namespace
}  // namespace load_sum_test
