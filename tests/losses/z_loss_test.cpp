// SPDX-License-Identifier: MIT
#include <moe/losses/z_loss.hpp>

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "losses/example.hpp"

namespace z_loss_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::Routing;

template <class S>
class ZLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ZLoss, Scalars);

TYPED_TEST(ZLoss, IsTheMeanSquaredLogSumExp) {
    // lse of the rows: 2.8327570 2.3533960 3.0712386 2.5555508
    using S = TypeParam;
    const Matrix<S> logits = example::logits<S>();
    Matrix<S> dlogits = Matrix<S>::Zero(4, 8);
    const Loss loss = moe::z_loss(logits, example::two_best(), {}, 1.0, dlogits);
    EXPECT_STREQ(loss.name, "z_loss");
    EXPECT_NEAR(loss.value, 7.3815827, 2e-6);
    EXPECT_EQ(static_cast<double>(loss), loss.value);
    // 2 / T lse softmax: 2/4 * 3.0712386 * .9312397
    EXPECT_NEAR(dlogits(2, 0), 1.4300292, 1e-6);
}

TYPED_TEST(ZLoss, OfTwoEqualLogitsIsLogTwoSquared) {
    // lse(0, 0) = log 2; dz = 2 * 3 * log 2 * 1/2 with weight 3, added to 1
    using S = TypeParam;
    const Matrix<S> logits = Matrix<S>::Zero(1, 2);
    Matrix<S> dlogits = Matrix<S>::Ones(1, 2);
    const double two = std::log(2.0);
    EXPECT_NEAR(moe::z_loss(logits, example::routing(2, {{0}}), {}, 3.0, dlogits), two * two, 1e-6);
    EXPECT_NEAR(dlogits(0, 0), 1 + 3 * two, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), 1 + 3 * two, 1e-6);
}

TEST(ZLoss, GradientAgreesWithDifferences) {
    const auto loss = [](auto&&... arguments) { return moe::z_loss(arguments...); };
    EXPECT_TRUE(example::check(loss, example::logits<double>(), example::two_best()));
    const auto logits = moe::testing::random_matrix<double>(7, 17, 3, 4);
    EXPECT_TRUE(example::check(loss, logits, example::routing(17, {{}, {}, {}, {}, {}, {}, {}})));
}

TEST(ZLoss, MaskedExpertsHaveNoPartAndNoGradient) {
    Matrix<double> masked(1, 4), plain(1, 2);
    masked << 0.5, example::minus_infinity, -1, example::minus_infinity;
    plain << 0.5, -1;
    Matrix<double> dmasked = Matrix<double>::Zero(1, 4), dplain = Matrix<double>::Zero(1, 2);
    const double value = moe::z_loss(masked, example::routing(4, {{0}}), {}, 1.0, dmasked);
    EXPECT_EQ(value, moe::z_loss(plain, example::routing(2, {{0}}), {}, 1.0, dplain).value);
    EXPECT_EQ(dmasked(0, 1), 0);
    EXPECT_EQ(dmasked(0, 3), 0);
    EXPECT_NEAR(dmasked(0, 0), dplain(0, 0), 1e-15);
    EXPECT_NEAR(dmasked(0, 2), dplain(0, 1), 1e-15);
}

}  // namespace
}  // namespace z_loss_test
