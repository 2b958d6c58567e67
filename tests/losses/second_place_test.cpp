// SPDX-License-Identifier: MIT
#include <moe/losses/second_place.hpp>

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "losses/example.hpp"

namespace second_place_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Routing;

template <class S>
double value_of(const Matrix<S>& logits) {
    Matrix<S> unused(logits.rows(), logits.cols());
    const Routing nowhere = example::routing(
        logits.cols(), std::vector<std::vector<Index>>(static_cast<std::size_t>(logits.rows())));
    return moe::second_place_loss(logits, nowhere, {}, 0.0, unused);
}

TEST(SecondPlaceLoss, IsWorkedOutByHand) {
    // The best is expert 1, the second 2; without the best the softmax is (1/4, 0, 3/4):
    // 3 * 1 * 3/4; dz2 = 3 * 3/4 (1 - 3/4) = 9/16 = -dz0.
    Matrix<double> logits(1, 3), dlogits(1, 3);
    logits << 0, 7, std::log(3.0);
    dlogits << 1, 2, 3;
    const moe::Loss loss =
        moe::second_place_loss(logits, example::routing(3, {{0}}), {}, 2.0, dlogits);
    EXPECT_STREQ(loss.name, "second_place");
    EXPECT_NEAR(loss.value, 2.25, 1e-15);
    EXPECT_NEAR(dlogits(0, 0), 1 - 2 * 9.0 / 16, 1e-15);
    EXPECT_EQ(dlogits(0, 1), 2);
    EXPECT_NEAR(dlogits(0, 2), 3 + 2 * 9.0 / 16, 1e-15);
    EXPECT_NEAR(value_of(Matrix<float>(logits.cast<float>())), 2.25, 1e-6);
}

TEST(SecondPlaceLoss, HasTheRangeThatItSays) {
    Matrix<double> even(3, 3), one(2, 3);
    even << 2, 1, 0, 0, 2, 1, 1, 0, 2;  // each is second once
    EXPECT_NEAR(value_of(even), 1, 1e-15);
    one << 90, 0, -90, 90, 0, -90;
    EXPECT_NEAR(value_of(one), 3, 1e-15);
    EXPECT_EQ(value_of(Matrix<double>(Matrix<double>::Zero(2, 1))), 0);
}

/// mesh's formula: probabilities without the best, divided by their sum.
TEST(SecondPlaceLoss, AgreesWithTheFormulaAndWithDifferences) {
    const auto logits = moe::testing::random_matrix<double>(9, 6, 3, 2);
    std::vector<double> f(6, 0.0), p(6, 0.0);
    for (Index t = 0; t < 9; ++t) {
        Matrix<double> gates = logits.row(t).array().exp();
        gates /= gates.sum();
        Index best = 0, second = 0;
        gates.row(0).maxCoeff(&best);
        gates(0, best) = 0;
        gates.row(0).maxCoeff(&second);
        gates /= gates.sum();
        f[static_cast<std::size_t>(second)] += 1.0 / 9;
        for (std::size_t e = 0; e < 6; ++e) p[e] += gates(0, static_cast<Index>(e)) / 9;
    }
    double mean = 0;
    for (std::size_t e = 0; e < 6; ++e) mean += f[e] * p[e] / 6;
    EXPECT_NEAR(value_of(logits), 36 * mean, 1e-14);
    const auto loss = [](auto&&... a) { return moe::second_place_loss(a...); };
    const Routing plan = example::routing(6, std::vector<std::vector<Index>>(9));
    EXPECT_TRUE(example::check(loss, logits, plan));
}

TEST(SecondPlaceLoss, OfEqualLogitsIsTheLowerIndex) {
    // Best 0, second 1: (0, 1/2, 1/2) each: 3 * 1/2
    EXPECT_NEAR(value_of(Matrix<double>(Matrix<double>::Zero(4, 3))), 1.5, 1e-15);
}

TEST(SecondPlaceLoss, OfATokenWithOneOpenExpertCountsInTheMean) {
    Matrix<double> logits(2, 3), dlogits = Matrix<double>::Zero(2, 3);
    logits << 0, 7, std::log(3.0), example::minus_infinity, 2, example::minus_infinity;
    EXPECT_NEAR(moe::second_place_loss(logits, example::routing(3, {{}, {}}), {}, 1.0, dlogits),
                2.25 / 4, 1e-15);  // f2 and P2 are halved
    EXPECT_EQ(dlogits.row(1), (Matrix<double>::Zero(1, 3)));
}

}  // namespace
}  // namespace second_place_test
