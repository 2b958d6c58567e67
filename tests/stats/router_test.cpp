// SPDX-License-Identifier: MIT
#include <moe/stats/router.hpp>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace router_test {
namespace {

using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::RouterStats;
using moe::Routing;

template <class S>
class RouterStatsOf : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(RouterStatsOf, Scalars);

TYPED_TEST(RouterStatsOf, ASmallBatchAreWorkedOutByHand) {
    using S = TypeParam;
    const S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
    Matrix<S> logits(6, 3);
    logits << S(0), S(0), S(0),  // entropy log 3; selected 0 and 2: margin 0
        S(5), S(1), -inf,        // selected 0: margin 4 to the finite one
        S(1), nan, S(2),         // counts as NaN only
        -inf, -inf, -inf,        // nothing
        S(1), S(2), S(4),        // selected 1, by a bias: margin 2 - 4
        S(0), S(0), -inf;        // both finite ones selected: no margin; entropy log 2
    Routing routing;
    routing.reset(6, 3);
    routing.add(0, 0, 0.5);
    routing.add(0, 2, 0.25);
    routing.add(1, 0, 1);
    routing.add(2, 2, 0.75);
    routing.add(4, 1, 0.5);
    routing.add(5, 0, 0.5);
    routing.add(5, 1, 0.5);
    routing.group();
    routing.set_dropped(6, Dropped::capacity);  // token 5, expert 1
    routing.group();
    std::vector<moe::ExpertFacts> facts(3);
    facts[2].is_null = true;

    const RouterStats stats = moe::router_stats(logits, routing, facts);
    const auto entropy = [](std::vector<double> z) {
        double sum = 0, h = 0;
        for (const double v : z) sum += std::exp(v);
        for (const double v : z) h -= std::exp(v) / sum * (v - std::log(sum));
        return h;
    };
    const double all = std::log(3.0) + entropy({5, 1}) + entropy({1, 2, 4}) + std::log(2.0);
    EXPECT_NEAR(stats.entropy, all / 4, 1e-6);
    EXPECT_NEAR(stats.margin, (0.0 + 4 - 2) / 3, 1e-6);
    EXPECT_NEAR(stats.nan_fraction, 1.0 / 6, 1e-15);
    EXPECT_NEAR(stats.weight_sum, (0.75 + 1 + 0.75 + 0.5 + 0.5) / 5, 1e-15);
    EXPECT_NEAR(stats.null_fraction, 2.0 / 6, 1e-15);
    EXPECT_EQ(moe::router_stats(logits, routing).null_fraction, 0);
}

TYPED_TEST(RouterStatsOf, ARowWithPlusInfinityHasNoEntropyAndCountsAsNaN) {
    using S = TypeParam;
    const S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
    Matrix<S> logits(4, 3);
    logits << S(0), S(0), S(0),  //
        S(1), inf, S(2),         // softmax is inf / inf
        S(1), nan, S(2),         //
        -inf, S(0), S(0);
    Routing routing;
    routing.reset(4, 3);
    routing.group();
    const RouterStats stats = moe::router_stats(logits, routing);
    EXPECT_NEAR(stats.entropy, (std::log(3.0) + std::log(2.0)) / 2, 1e-6);
    EXPECT_EQ(stats.nan_fraction, 0.5);
}

TYPED_TEST(RouterStatsOf, LogitsWithAConstantAddedAreThoseOfTheLogits) {
    using S = TypeParam;
    Matrix<S> logits(2, 4);
    logits << S(0), S(1.25), S(-0.5), S(2), S(3), S(3.5), S(0.75), S(-1);
    Routing routing;
    routing.reset(2, 4);
    routing.add(0, 1);
    routing.group();
    const RouterStats stats = moe::router_stats(logits, routing);
    const RouterStats shifted =
        moe::router_stats((logits.array() + S(8192)).matrix().eval(), routing);
    EXPECT_EQ(shifted.entropy, stats.entropy);
    EXPECT_EQ(shifted.margin, stats.margin);
    EXPECT_GT(stats.entropy, 0.5);
}

TEST(RouterStats, WeighOnTheSideOnWhichTheGateWeighs) {
    const Matrix<float> logits = Matrix<float>::Zero(2, 2);
    Routing routing;
    routing.reset(2, 2);
    routing.add(0, 0, 1, 0.25);
    routing.add(0, 1, 0.5, 0.5);
    routing.add(1, 1, 1, 0.75);
    routing.group();
    EXPECT_EQ(moe::router_stats(logits, routing).weight_sum, (0.25 + 0.25 + 0.75) / 2);
}

TEST(RouterStats, AreZeroWithoutTokens) {
    const Matrix<float> logits(0, 3);
    Routing routing;
    routing.reset(0, 3);
    routing.group();
    const RouterStats stats = moe::router_stats(logits, routing);
    EXPECT_EQ(stats.entropy, 0);
    EXPECT_EQ(stats.margin, 0);
    EXPECT_EQ(stats.nan_fraction, 0);
    EXPECT_EQ(stats.weight_sum, 0);
    EXPECT_EQ(stats.null_fraction, 0);
}

TEST(RouterStats, LeaveRowsWithoutASoftmaxOutOfTheEntropy) {
    Matrix<float> logits = Matrix<float>::Zero(3, 2);
    logits(0, 1) = std::numeric_limits<float>::infinity();
    logits.row(1).setConstant(-std::numeric_limits<float>::infinity());
    Routing routing;
    routing.reset(3, 2);
    routing.group();
    EXPECT_NEAR(moe::router_stats(logits, routing).entropy, std::log(2.0), 1e-6);
}

TEST(RouterStats, HaveNoMarginWhereLogitsAreNotExperts) {
    const Matrix<float> logits = Matrix<float>::Zero(2, 5);
    Routing routing;
    routing.reset(2, 3);
    routing.add(0, 2);
    routing.group();
    const RouterStats stats = moe::router_stats(logits, routing);
    EXPECT_EQ(stats.margin, 0);
    EXPECT_NEAR(stats.entropy, std::log(5.0), 1e-6);
}

TEST(RouterStats, ReadTheWorkspace) {
    moe::Workspace<double> ws;
    auto& routed = ws.state<moe::Routed<double>>();
    routed.num_logits = 2;
    routed.logits.matrix(1, 2) << 3, 1;
    routed.dlogits.assign(2, 0.0);
    routed.routing.reset(1, 2);
    routed.routing.add(0, 0, 0.5);
    routed.routing.group();
    std::vector<moe::ExpertFacts> facts(2);
    facts[0].is_null = true;
    routed.context.experts = facts;
    const RouterStats stats = moe::router_stats(ws);
    EXPECT_EQ(stats.margin, 2);
    EXPECT_EQ(stats.weight_sum, 0.5);
    EXPECT_EQ(stats.null_fraction, 1);
}

TEST(RouterStats, RefuseWhatDoesNotFit) {
    Routing routing;
    routing.reset(1, 2);
    routing.group();
    EXPECT_THROW(moe::router_stats(Matrix<float>(2, 2), routing), std::invalid_argument);
    EXPECT_THROW(moe::router_stats(Matrix<float>(1, 2), routing, std::vector<moe::ExpertFacts>(3)),
                 std::invalid_argument);
}

}  // namespace
}  // namespace router_test
