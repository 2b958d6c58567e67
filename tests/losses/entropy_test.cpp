// SPDX-License-Identifier: MIT
#include <moe/losses/entropy.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include "losses/example.hpp"

namespace entropy_test {
namespace {

using moe::Loss;
using moe::Matrix;

template <class S>
class EntropyLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(EntropyLoss, Scalars);

TYPED_TEST(EntropyLoss, IsTheMeanShannonEntropy) {
    using S = TypeParam;
    Matrix<S> dlogits = Matrix<S>::Zero(4, 8);
    const Loss loss =
        moe::entropy_loss(example::logits<S>(), example::two_best(), {}, 1.0, dlogits);
    EXPECT_STREQ(loss.name, "entropy");
    EXPECT_NEAR(loss.value, 1.4907830, 5e-7);
}

TYPED_TEST(EntropyLoss, OfThreeToOneIsWorkedOutByHand) {
    // p = (1/4, 3/4): H = log 4 - 3/4 log 3; dz0 = -1/4 (log 1/4 + H) = 3/16 log 3 = -dz1
    using S = TypeParam;
    Matrix<S> logits(1, 2), dlogits = Matrix<S>::Zero(1, 2);
    logits << S(0), S(std::log(3.0));
    const double value = moe::entropy_loss(logits, example::routing(2, {{1}}), {}, 2.0, dlogits);
    EXPECT_NEAR(value, std::log(4.0) - 0.75 * std::log(3.0), 1e-6);
    EXPECT_NEAR(dlogits(0, 0), 2 * 3.0 / 16 * std::log(3.0), 1e-6);
    EXPECT_NEAR(dlogits(0, 1), -2 * 3.0 / 16 * std::log(3.0), 1e-6);
}

TYPED_TEST(EntropyLoss, LiesBetweenZeroAndTheLogarithmOfTheExperts) {
    using S = TypeParam;
    Matrix<S> equal = Matrix<S>::Constant(2, 5, S(3)), dlogits = Matrix<S>::Zero(2, 5);
    const auto plan = example::routing(5, {{0}, {0}});
    EXPECT_NEAR(moe::entropy_loss(equal, plan, {}, 1.0, dlogits), std::log(5.0), 1e-6);
    EXPECT_NEAR(dlogits.cwiseAbs().maxCoeff(), 0, 1e-6);
    equal.col(2).setConstant(S(5000));  // the others underflow to probability 0
    dlogits.setZero();
    EXPECT_EQ(moe::entropy_loss(equal, plan, {}, 1.0, dlogits).value, 0);
    EXPECT_EQ(dlogits, (Matrix<S>::Zero(2, 5)));
}

TEST(EntropyLoss, GradientAgreesWithDifferences) {
    const auto loss = [](auto&&... arguments) { return moe::entropy_loss(arguments...); };
    EXPECT_TRUE(example::check(loss, example::logits<double>(), example::two_best()));
    const auto logits = moe::testing::random_matrix<double>(5, 33, 4, 2);
    EXPECT_TRUE(example::check(loss, logits, example::routing(33, {{}, {}, {}, {}, {}})));
}

TYPED_TEST(EntropyLoss, DoesNotCareForAConstantAddedToTheLogits) {
    // Sixteenths up to 4: exact in float with 4096 added.
    using S = TypeParam;
    Matrix<S> logits(3, 5), shifted;
    for (moe::Index i = 0; i < logits.size(); ++i)
        logits.data()[i] =
            S(std::round(64 * moe::testing::random_value(7, static_cast<std::uint64_t>(i)))) / 16;
    logits(1, 2) = -std::numeric_limits<S>::infinity();
    const auto plan = example::routing(5, {{0}, {1}, {2}});
    Matrix<S> dlogits = Matrix<S>::Zero(3, 5);
    const double value = moe::entropy_loss(logits, plan, {}, 1.0, dlogits);
    EXPECT_GT(value, 0.1);
    for (const S shift : {S(4096), S(-4096), S(256)}) {
        shifted = logits.array() + shift;
        Matrix<S> dshifted = Matrix<S>::Zero(3, 5);
        EXPECT_EQ(moe::entropy_loss(shifted, plan, {}, 1.0, dshifted).value, value);
        EXPECT_EQ(dshifted, dlogits);
    }
}

TEST(EntropyLoss, MaskedExpertsHaveNoPartAndNoGradient) {
    Matrix<double> masked(1, 3), plain(1, 2);
    masked << 0.5, example::minus_infinity, -1;
    plain << 0.5, -1;
    Matrix<double> dmasked = Matrix<double>::Zero(1, 3), dplain = Matrix<double>::Zero(1, 2);
    const double value = moe::entropy_loss(masked, example::routing(3, {{0}}), {}, 1.0, dmasked);
    EXPECT_NEAR(value, moe::entropy_loss(plain, example::routing(2, {{0}}), {}, 1.0, dplain),
                1e-15);
    EXPECT_EQ(dmasked(0, 1), 0);
    EXPECT_NEAR(dmasked(0, 0), dplain(0, 0), 1e-15);
}

}  // namespace
}  // namespace entropy_test
