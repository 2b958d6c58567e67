// SPDX-License-Identifier: MIT
#include <moe/losses/mass_balance.hpp>

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "support/message.hpp"

namespace mass_balance_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Routing;

template <class S>
double value_of(const Matrix<S>& logits, const Routing& plan) {
    Matrix<S> unused(logits.rows(), logits.cols());
    return moe::mass_balance_loss(logits, plan, {}, 0.0, unused);
}

TEST(MassBalanceLoss, IsWorkedOutByHand) {
    // s = (1/4, 3/4), of which expert 1 is selected: F = (0, 3/4), P = s: 2 * 9/16.
    // g = (0, 3/4 + 3/4), sum s g = 9/8: dz1 = 2 * 3/4 (3/2 - 9/8) = 9/16 = -dz0
    Matrix<double> logits(1, 2), dlogits(1, 2);
    logits << 0, std::log(3.0);
    dlogits << 1, 2;
    const Routing plan = example::routing(2, {{1}});
    const moe::Loss loss = moe::mass_balance_loss(logits, plan, {}, 2.0, dlogits);
    EXPECT_STREQ(loss.name, "mass_balance");
    EXPECT_NEAR(loss.value, 1.125, 1e-15);
    EXPECT_NEAR(dlogits(0, 0), 1 - 2 * 9.0 / 16, 1e-15);
    EXPECT_NEAR(dlogits(0, 1), 2 + 2 * 9.0 / 16, 1e-15);
    EXPECT_NEAR(value_of(Matrix<float>(logits.cast<float>()), plan), 1.125, 1e-6);
}

TEST(MassBalanceLoss, AtBalanceIsTheMassThatIsSelected) {
    const Matrix<double> equal = Matrix<double>::Zero(4, 4);
    EXPECT_NEAR(value_of(equal, example::routing(4, {{0, 1}, {1, 2}, {2, 3}, {3, 0}})), 0.5, 1e-15);
    const std::vector<Index> every{0, 1, 2, 3};
    EXPECT_NEAR(value_of(equal, example::routing(4, {every, every, every, every})), 1, 1e-15);
    Matrix<double> sure = Matrix<double>::Zero(4, 4);
    sure.diagonal().setConstant(800);
    EXPECT_NEAR(value_of(sure, example::routing(4, {{0}, {1}, {2}, {3}})), 1, 1e-15);
    sure.setZero();
    sure.col(2).setConstant(800);
    EXPECT_NEAR(value_of(sure, example::routing(4, {{2}, {2}, {2}, {2}})), 4, 1e-15);
    EXPECT_EQ(value_of(equal, example::routing(4, {{}, {}, {}, {}})), 0);
}

TEST(MassBalanceLoss, TakesAnExpertThatATokenSelectedTwiceOnce) {
    // as replayed routings may, if all but one are dropped
    Routing twice = example::routing(3, {{1, 2}, {0}});
    twice.add(0, 1);
    twice.set_dropped(0, moe::Dropped::capacity);
    twice.group();
    const auto logits = moe::testing::random_matrix<double>(2, 3, 3);
    Matrix<double> dlogits = Matrix<double>::Zero(2, 3), expected = dlogits;
    const double value =
        moe::mass_balance_loss(logits, example::routing(3, {{1, 2}, {0}}), {}, 1.0, expected);
    EXPECT_EQ(moe::mass_balance_loss(logits, twice, {}, 1.0, dlogits), value);
    EXPECT_EQ(dlogits, expected);
}

TEST(MassBalanceLoss, AgreesWithTheFormulaAndBothFactorsHaveAGradient) {
    const auto logits = moe::testing::random_matrix<double>(6, 5, 3, 1.5);
    Routing plan = example::routing(5, {{0, 2}, {1, 2, 3}, {}, {4, 0}, {2}, {3, 1}});
    plan.set_dropped(0, moe::Dropped::capacity);  // counts all the same
    plan.group();
    double f[5] = {}, p[5] = {}, expected = 0;
    for (Index t = 0; t < 6; ++t) {
        const double sum = logits.row(t).array().exp().sum();
        for (Index e = 0; e < 5; ++e) p[e] += std::exp(logits(t, e)) / sum / 6;
        for (const moe::Assignment& a : plan.of(t))
            f[a.expert] += std::exp(logits(t, a.expert)) / sum / 6;
    }
    for (Index e = 0; e < 5; ++e) expected += 5 * f[e] * p[e];
    EXPECT_NEAR(value_of(logits, plan), expected, 1e-14);
    const auto loss = [](auto&&... a) { return moe::mass_balance_loss(a...); };
    EXPECT_TRUE(example::check(loss, logits, plan));
}

TEST(MassBalanceLoss, RefusesOtherNumbersOfExperts) {
    Matrix<double> logits = example::logits<double>();
    EXPECT_EQ(
        support::message([&] {
            moe::mass_balance_loss(logits, example::routing(9, {{}, {}, {}, {}}), {}, 1.0, logits);
        }),
        "moe::mass_balance_loss: there are 8 logits per token and 9 experts; it needs one "
        "logit per expert");
}

}  // namespace
}  // namespace mass_balance_test
