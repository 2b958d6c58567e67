// SPDX-License-Identifier: MIT
#include <moe/losses/prediction_consistency.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "support/message.hpp"

namespace prediction_consistency_loss_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::testing::random_matrix;

template <class S>
class PredictionConsistencyLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PredictionConsistencyLoss, Scalars);

TYPED_TEST(PredictionConsistencyLoss, OfOneToOneAndThreeToOneIsWorkedOutByHand) {
    // p = (1/2, 1/2), q = (1/4, 3/4): 1/2 (1/4 log 2 + 1/4 log 3/2) = 1/8 log 3.
    // KL(p || q) = 1/2 log 4/3, so dfirst0 = 1/2 (1/2 (log 2 - 1/2 log 4/3) + 1/4)
    //            = 1/8 + 1/8 log 3; KL(q || p) = 3/4 log 3 - log 2, so
    // dsecond0 = 1/2 (1/4 (-log 2 - 3/4 log 3 + log 2) - 1/4) = -1/8 - 3/32 log 3
    using S = TypeParam;
    Matrix<S> first(1, 2), second(1, 2), dfirst = Matrix<S>::Zero(1, 2), dsecond = dfirst;
    first << S(5), S(5);
    second << S(0), S(std::log(3.0));
    const Loss loss = moe::prediction_consistency_loss(first, second, {}, 2.0, dfirst, dsecond);
    EXPECT_STREQ(loss.name, "prediction_consistency");
    EXPECT_NEAR(loss.value, std::log(3.0) / 8, 1e-6);
    EXPECT_NEAR(dfirst(0, 0), 2 * (0.125 + std::log(3.0) / 8), 1e-6);
    EXPECT_NEAR(dfirst(0, 1), -2 * (0.125 + std::log(3.0) / 8), 1e-6);
    EXPECT_NEAR(dsecond(0, 0), -2 * (0.125 + 3 * std::log(3.0) / 32), 1e-6);
    EXPECT_NEAR(dsecond(0, 1), 2 * (0.125 + 3 * std::log(3.0) / 32), 1e-6);
}

TYPED_TEST(PredictionConsistencyLoss, AgreesWithItsFormulaInDouble) {
    using S = TypeParam;
    const Matrix<S> first = random_matrix<S>(5, 19, 1, 3), second = random_matrix<S>(5, 19, 2, 3);
    double expected = 0;
    for (Index t = 0; t < 5; ++t) {
        double of_first = 0, of_second = 0;
        for (Index c = 0; c < 19; ++c) {
            of_first += std::exp(double(first(t, c)));
            of_second += std::exp(double(second(t, c)));
        }
        for (Index c = 0; c < 19; ++c) {
            const double p = std::exp(double(first(t, c))) / of_first;
            const double q = std::exp(double(second(t, c))) / of_second;
            expected += 0.5 * (p - q) * (std::log(p) - std::log(q)) / 5;
        }
    }
    Matrix<S> dfirst = Matrix<S>::Zero(5, 19), dsecond = dfirst;
    EXPECT_NEAR(
        moe::prediction_consistency_loss(first, second, {}, 1.0, dfirst, dsecond) / expected, 1,
        sizeof(S) == 4 ? 1e-6 : 1e-14);
}

TEST(PredictionConsistencyLoss, GradientsOfBothAreExactAndAdded) {
    Matrix<double> first = random_matrix<double>(4, 7, 1, 2);
    Matrix<double> second = random_matrix<double>(4, 7, 2, 2);
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Context context;
    context.padding = padding;
    const Matrix<double> before = random_matrix<double>(4, 7, 3);
    Matrix<double> dfirst = before, dsecond = 2 * before, unused = before;
    moe::prediction_consistency_loss(first, second, context, 0.7, dfirst, dsecond);
    dfirst -= before;
    dsecond -= 2 * before;
    EXPECT_TRUE((dfirst.row(2).array() == 0).all());
    EXPECT_TRUE((dsecond.row(2).array() == 0).all());
    const auto value = [&] {
        return 0.7 *
               moe::prediction_consistency_loss(first, second, context, 0.0, unused, unused).value;
    };
    EXPECT_TRUE(moe::testing::check_gradient(value, first, dfirst));
    EXPECT_TRUE(moe::testing::check_gradient(value, second, dsecond));
    EXPECT_EQ(unused, before);  // weight 0 touches nothing
}

TEST(PredictionConsistencyLoss, IsTheSameWithThePassesExchanged) {
    const Matrix<double> first = random_matrix<double>(3, 7, 1, 2);
    const Matrix<double> second = random_matrix<double>(3, 7, 2, 2);
    Matrix<double> da = Matrix<double>::Zero(3, 7), db = da, dc = da, dd = da;
    EXPECT_NEAR(moe::prediction_consistency_loss(first, second, {}, 1.0, da, db),
                moe::prediction_consistency_loss(second, first, {}, 1.0, dc, dd), 1e-15);
    EXPECT_TRUE(moe::testing::compare(da, dd, 1e-14));
    EXPECT_TRUE(moe::testing::compare(db, dc, 1e-14));
}

TEST(PredictionConsistencyLoss, OfEqualPredictionsIsZeroWithoutGradient) {
    Matrix<double> first = random_matrix<double>(3, 7, 1, 2);
    first = (16 * first).array().round() / 16;
    const Matrix<double> second = first.array() + 64;
    Matrix<double> dfirst = Matrix<double>::Zero(3, 7), dsecond = dfirst;
    EXPECT_EQ(moe::prediction_consistency_loss(first, second, {}, 1.0, dfirst, dsecond).value, 0);
    EXPECT_TRUE((dfirst.array() == 0).all());
    EXPECT_TRUE((dsecond.array() == 0).all());
}

TYPED_TEST(PredictionConsistencyLoss, IsFiniteWhereProbabilitiesVanish) {
    using S = TypeParam;
    Matrix<S> first(1, 2), second(1, 2), dfirst = Matrix<S>::Zero(1, 2), dsecond = dfirst;
    first << S(5000), S(0);
    second << S(0), S(5000);
    EXPECT_EQ(moe::prediction_consistency_loss(first, second, {}, 1.0, dfirst, dsecond).value,
              5000);
    EXPECT_EQ(dfirst(0, 0), S(0.5));
    EXPECT_EQ(dsecond(0, 0), S(-0.5));
}

TEST(PredictionConsistencyLoss, ClassesThatAreMaskedInBothHaveNoPart) {
    Matrix<double> first(1, 3), second(1, 3), d = Matrix<double>::Zero(1, 3), dd = d;
    first << 1, example::minus_infinity, 2;
    second << 0, example::minus_infinity, 3;
    Matrix<double> few(1, 2), others(1, 2), e = Matrix<double>::Zero(1, 2), ee = e;
    few << 1, 2;
    others << 0, 3;
    EXPECT_EQ(moe::prediction_consistency_loss(first, second, {}, 1.0, d, dd).value,
              moe::prediction_consistency_loss(few, others, {}, 1.0, e, ee).value);
    EXPECT_EQ(d(0, 1), 0);
    EXPECT_EQ(dd(0, 1), 0);
    EXPECT_EQ(d(0, 2), e(0, 1));
    EXPECT_EQ(dd(0, 2), ee(0, 1));
}

TEST(PredictionConsistencyLoss, OfNothingIsZero) {
    Matrix<double> none(0, 3), classless(2, 0);
    EXPECT_EQ(moe::prediction_consistency_loss(none, none, {}, 1.0, none, none).value, 0);
    EXPECT_EQ(
        moe::prediction_consistency_loss(classless, classless, {}, 1.0, classless, classless).value,
        0);
    const Matrix<double> dead = Matrix<double>::Constant(2, 3, example::minus_infinity);
    Matrix<double> d = Matrix<double>::Constant(2, 3, 4), dd = d;
    EXPECT_EQ(moe::prediction_consistency_loss(dead, dead, {}, 1.0, d, dd).value, 0);
    EXPECT_EQ(d, (Matrix<double>::Constant(2, 3, 4)));
}

TEST(PredictionConsistencyLoss, ShowsNaNInItsRow) {
    Matrix<double> first = random_matrix<double>(3, 4, 1), second = random_matrix<double>(3, 4, 2);
    second(1, 2) = std::numeric_limits<double>::quiet_NaN();
    Matrix<double> d = Matrix<double>::Zero(3, 4), dd = d;
    EXPECT_TRUE(std::isnan(moe::prediction_consistency_loss(first, second, {}, 1.0, d, dd).value));
    EXPECT_TRUE(d.row(1).array().isNaN().all());
    EXPECT_TRUE(dd.row(1).array().isNaN().all());
    EXPECT_TRUE(d.row(0).allFinite());
    EXPECT_TRUE(dd.row(2).allFinite());
}

TEST(PredictionConsistencyLoss, RefusesPredictionsThatDoNotMatch) {
    const Matrix<double> first = random_matrix<double>(3, 4, 1);
    Matrix<double> second = first, d = first, narrow(3, 2);
    EXPECT_EQ(
        support::message([&] { moe::prediction_consistency_loss(first, narrow, {}, 1.0, d, d); }),
        "moe::prediction_consistency_loss: second is [3, 2], first is [3, 4]");
    EXPECT_EQ(support::message(
                  [&] { moe::prediction_consistency_loss(first, second, {}, 1.0, narrow, d); }),
              "moe::prediction_consistency_loss: dfirst is [3, 2], first is [3, 4]");
    EXPECT_EQ(support::message(
                  [&] { moe::prediction_consistency_loss(first, second, {}, 1.0, d, narrow); }),
              "moe::prediction_consistency_loss: dsecond is [3, 2], first is [3, 4]");
    second(2, 1) = example::minus_infinity;
    EXPECT_EQ(
        support::message([&] { moe::prediction_consistency_loss(first, second, {}, 1.0, d, d); }),
        "moe::prediction_consistency_loss: class 1 of token 2 is masked (-inf) in one pass "
        "only, so the loss is infinite; mask it in both or in neither");
    const std::vector<std::uint8_t> padding(2, 0);
    Context context;
    context.padding = padding;
    EXPECT_EQ(support::message(
                  [&] { moe::prediction_consistency_loss(first, first, context, 1.0, d, d); }),
              "moe::Context: padding has 2 entries, it wants 3, one per token");
    EXPECT_EQ(d, first);
}

}  // namespace
}  // namespace prediction_consistency_loss_test
