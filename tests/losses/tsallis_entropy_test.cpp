// SPDX-License-Identifier: MIT
#include <moe/losses/tsallis_entropy.hpp>

#include <cmath>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <moe/losses/entropy.hpp>

#include "losses/laws.hpp"
#include "support/message.hpp"

namespace tsallis_entropy_loss_test {
namespace {

using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::TsallisEntropy;

loss_laws::Forms forms(const TsallisEntropy& options) {
    return {[options](auto z, const auto& plan, const auto& context, double weight, auto dz) {
                return moe::tsallis_entropy_loss(z, plan, context, weight, dz, options);
            },
            [options](auto& ws, double weight) {
                return moe::tsallis_entropy_loss(ws, weight, options);
            }};
}

template <class S>
class TsallisEntropyLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TsallisEntropyLoss, Scalars);

TYPED_TEST(TsallisEntropyLoss, IsTheMeanOfTheGoldenEntropies) {
    // of the four tokens: .7869866 .9229029 .1603252 .9873304
    using S = TypeParam;
    Matrix<S> dlogits = Matrix<S>::Zero(4, 8);
    const Loss loss =
        moe::tsallis_entropy_loss(example::logits<S>(), example::two_best(), {}, 1.0, dlogits);
    EXPECT_STREQ(loss.name, "tsallis_entropy");
    EXPECT_NEAR(loss.value, (.7869866 + .9229029 + .1603252 + .9873304) / 4, 2e-6);
}

TYPED_TEST(TsallisEntropyLoss, OfThreeToOneIsWorkedOutByHand) {
    // q = 2: H = (1 - 1/16 - 9/16) / (1 - 1/2) = 3/4. a = -2 p / (1/2) = (-1, -3), its mean
    // -1/4 - 9/4 = -5/2: dz0 = 1/4 (-1 + 5/2) = 3/8, dz1 = 3/4 (-3 + 5/2) = -3/8
    using S = TypeParam;
    Matrix<S> logits(1, 2), dlogits = Matrix<S>::Zero(1, 2);
    logits << S(0), S(std::log(3.0));
    const double value = moe::tsallis_entropy_loss(logits, example::routing(2, {{1}}), {}, 2.0,
                                                   dlogits, {.index = 2, .epsilon = 0});
    EXPECT_NEAR(value, 0.75, 1e-6);
    EXPECT_NEAR(dlogits(0, 0), 2 * 0.375, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), -2 * 0.375, 1e-6);
}

TEST(TsallisEntropyLoss, AgreesWithItsFormulaForSeveralIndices) {
    const auto logits = moe::testing::random_matrix<double>(5, 9, 4, 2);
    const auto plan = example::routing(9, {{}, {}, {}, {}, {}});
    for (const double q : {0.5, 1.0, 1.1, 2.0, 3.0})
        for (const double epsilon : {0.0, 1e-5, 0.1}) {
            double sum = 0;
            for (Index t = 0; t < 5; ++t) {
                double total = 0, entropy = 0;
                for (Index e = 0; e < 9; ++e) total += std::exp(logits(t, e));
                for (Index e = 0; e < 9; ++e) {
                    const double p = std::exp(logits(t, e)) / total + epsilon;
                    entropy += q == 1 ? -p * std::log(p) / std::log(9.0) : std::pow(p, q);
                }
                if (q != 1)
                    entropy = (1 - entropy) / (q - 1) / ((1 - std::pow(9, 1 - q)) / (q - 1));
                sum += entropy;
            }
            Matrix<double> dlogits = Matrix<double>::Zero(5, 9);
            EXPECT_NEAR(moe::tsallis_entropy_loss(logits, plan, {}, 1.0, dlogits,
                                                  {.index = q, .epsilon = epsilon}),
                        sum / 5, 1e-12)
                << q << " " << epsilon;
            loss_laws::expect_exact_gradients(forms({.index = q, .epsilon = epsilon}));
        }
}

TEST(TsallisEntropyLoss, OfIndexOneIsShannonsOverTheLargest) {
    const Matrix<double> logits = example::logits<double>();
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8), shannon = dlogits;
    const double value = moe::tsallis_entropy_loss(logits, example::two_best(), {}, 1.0, dlogits,
                                                   {.index = 1, .epsilon = 0});
    const double expected =
        moe::entropy_loss(logits, example::two_best(), {}, 1 / std::log(8.0), shannon) /
        std::log(8.0);
    EXPECT_NEAR(value, expected, 1e-14);
    EXPECT_TRUE(moe::testing::compare(dlogits, shannon, 1e-13));
    // and indices near it come near it
    Matrix<double> near = Matrix<double>::Zero(4, 8);
    EXPECT_NEAR(moe::tsallis_entropy_loss(logits, example::two_best(), {}, 1.0, near,
                                          {.index = 1 + 1e-6, .epsilon = 0}),
                expected, 1e-5);
    EXPECT_TRUE(moe::testing::compare(near, shannon, 1e-5));
}

TYPED_TEST(TsallisEntropyLoss, LiesBetweenZeroAndOne) {
    using S = TypeParam;
    for (const double q : {0.5, 1.0, 1.1, 2.0}) {
        const TsallisEntropy options{.index = q, .epsilon = 0};
        Matrix<S> equal = Matrix<S>::Constant(2, 5, S(3)), dlogits = Matrix<S>::Zero(2, 5);
        const auto plan = example::routing(5, {{0}, {0}});
        EXPECT_NEAR(moe::tsallis_entropy_loss(equal, plan, {}, 1.0, dlogits, options), 1, 2e-6);
        EXPECT_NEAR(dlogits.cwiseAbs().maxCoeff(), 0, 1e-6);
        equal.col(2).setConstant(S(5000));  // the others underflow to probability 0
        dlogits.setZero();
        EXPECT_EQ(moe::tsallis_entropy_loss(equal, plan, {}, 1.0, dlogits, options).value, 0);
        EXPECT_EQ(dlogits, (Matrix<S>::Zero(2, 5)));
    }
}

TEST(TsallisEntropyLoss, HasNoGradientWhereThereIsOneExpert) {
    Matrix<double> one(1, 3), dlogits = Matrix<double>::Zero(1, 3);
    one << example::minus_infinity, 0.5, example::minus_infinity;
    EXPECT_EQ(moe::tsallis_entropy_loss(one, example::routing(3, {{1}}), {}, 1.0, dlogits).value,
              0);
    EXPECT_TRUE((dlogits.array() == 0).all());
    one(0, 1) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(
        moe::tsallis_entropy_loss(one, example::routing(3, {{1}}), {}, 1.0, dlogits).value));
    EXPECT_TRUE(dlogits.array().isNaN().all());
}

TEST(TsallisEntropyLoss, KeepsTheLawsOfLosses) {
    loss_laws::expect_all(forms({}));
    loss_laws::expect_all(forms({.index = 1, .epsilon = 0}));
}

TEST(TsallisEntropyLoss, RefusesOptionsOutOfRange) {
    const auto message = [](const TsallisEntropy& options) {
        Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
        const std::string found = support::message([&] {
            moe::tsallis_entropy_loss(example::logits<double>(), example::two_best(), {}, 1.0,
                                      dlogits, options);
        });
        EXPECT_EQ((dlogits.array() == 0).all(), !found.empty());
        return found;
    };
    EXPECT_EQ(message({.index = 0}),
              "moe::TsallisEntropy: index is 0, it must be finite and > 0; 1 is Shannon's entropy");
    EXPECT_EQ(message({.epsilon = -1}),
              "moe::TsallisEntropy: epsilon is -1, it must be finite and >= 0; 0 adds nothing");
    EXPECT_NE(message({.index = example::minus_infinity}), "");
    EXPECT_NE(message({.epsilon = std::numeric_limits<double>::quiet_NaN()}), "");
    EXPECT_EQ(message({.index = 2, .epsilon = 0}), "");
}

}  // namespace
}  // namespace tsallis_entropy_loss_test
