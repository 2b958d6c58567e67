// SPDX-License-Identifier: MIT
#include <moe/losses/contrastive.hpp>

#include <cmath>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace contrastive_loss_test {
namespace {

using moe::Contrastive;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::testing::random_matrix;

double cosine(const Matrix<double>& a, Index i, const Matrix<double>& b, Index j) {
    return a.row(i).dot(b.row(j)) / (a.row(i).norm() * b.row(j).norm());
}

double reference(const Matrix<double>& g, const Matrix<double>& plus, double tau) {
    double sum = 0;
    for (Index i = 0; i < g.rows(); ++i) {
        const double own = std::exp(cosine(g, i, plus, i) / tau);
        double all = own;
        for (Index j = 0; j < g.rows(); ++j)
            if (j != i) all += std::exp(cosine(g, i, g, j) / tau);
        sum -= std::log(own / all);
    }
    return sum / static_cast<double>(g.rows());
}

template <class S>
class ContrastiveLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ContrastiveLoss, Scalars);

TYPED_TEST(ContrastiveLoss, OfTwoUsersIsWorkedOutByHand) {
    // Each is its own positive and at a right angle to the other: s = 1 / tau against 0, with
    // tau = 1 / log 3 that is log(1 + 1/3). Share of the other 1/4: of dg_0, in units of 1 / tau,
    // 1/4 u_1 as anchor and 1/4 u_1 as the other's negative, over |g_0| = 2 and two rows: 1/8
    using S = TypeParam;
    Matrix<S> g(2, 2), dg = Matrix<S>::Zero(2, 2), dplus = dg;
    g << 2, 0, 0, 1;
    const double tau = 1 / std::log(3.0);
    const Loss loss = moe::contrastive_loss(g, g, 4 * tau, dg, dplus, {.temperature = tau});
    EXPECT_STREQ(loss.name, "contrastive");
    EXPECT_NEAR(loss.value, std::log(4.0 / 3), 1e-6);
    EXPECT_NEAR(dg(0, 0), 0, 1e-6);
    EXPECT_NEAR(dg(0, 1), 4 * 0.125, 1e-6);
    EXPECT_NEAR(dg(1, 0), 4 * 0.25, 1e-6);  // |g_1| = 1
    EXPECT_NEAR(dplus.cwiseAbs().maxCoeff(), 0, 1e-6);
}

TEST(ContrastiveLoss, AgreesWithItsFormulaAndDifferences) {
    for (const double tau : {0.1, 1.0, 5.0}) {
        Matrix<double> g = random_matrix<double>(5, 4, 1, 2), plus = random_matrix<double>(5, 4, 2);
        const Matrix<double> before = random_matrix<double>(5, 4, 3);
        Matrix<double> dg = before, dplus = -before, unused = before;
        const Contrastive options{.temperature = tau};
        EXPECT_NEAR(moe::contrastive_loss(g, plus, 0.7, dg, dplus, options),
                    reference(g, plus, tau), 1e-13);
        dg -= before;
        dplus += before;
        const auto value = [&] {
            return 0.7 * moe::contrastive_loss(g, plus, 0.0, unused, unused, options).value;
        };
        EXPECT_TRUE(moe::testing::check_gradient(value, g, dg));
        EXPECT_TRUE(moe::testing::check_gradient(value, plus, dplus));
        EXPECT_EQ(unused, before);
    }
}

TYPED_TEST(ContrastiveLoss, HasTheValuesThatItsCommentNames) {
    using S = TypeParam;
    Matrix<S> same = Matrix<S>::Constant(4, 3, S(2)), dg = Matrix<S>::Zero(4, 3), dplus = dg;
    EXPECT_NEAR(moe::contrastive_loss(same, same, 1.0, dg, dplus), std::log(4.0), 1e-5);
    const Contrastive options{.temperature = 0.5};
    const Matrix<S> opposite = -same;
    EXPECT_NEAR(moe::contrastive_loss(same, opposite, 1.0, dg, dplus, options),
                std::log(1 + 3 * std::exp(4.0)), 1e-4);
    Matrix<S> two(2, 1), dtwo = Matrix<S>::Zero(2, 1);
    two << 1, -1;
    EXPECT_NEAR(moe::contrastive_loss(two, two, 1.0, dtwo, dtwo, options),
                std::log(1 + std::exp(-4.0)), 1e-6);
}

TEST(ContrastiveLoss, DoesNotCareForLengthsOrTheOrderOfUsers) {
    const Matrix<double> g = random_matrix<double>(5, 4, 1), plus = random_matrix<double>(5, 4, 2);
    Matrix<double> dg = Matrix<double>::Zero(5, 4), dplus = dg, other = dg, dother = dg;
    const double value = moe::contrastive_loss(g, plus, 1.0, dg, dplus);
    Matrix<double> longer = g;
    longer.row(3) *= 4;
    EXPECT_EQ(moe::contrastive_loss(longer, plus, 1.0, other, dother).value, value);
    EXPECT_TRUE(moe::testing::compare(4 * other.row(3), dg.row(3), 1e-14));
    for (Index i = 0; i < 5; ++i) EXPECT_NEAR(g.row(i).dot(dg.row(i)), 0, 1e-14);
    other.setZero();
    dother.setZero();
    const Matrix<double> turned = g.colwise().reverse(), also = plus.colwise().reverse();
    EXPECT_NEAR(moe::contrastive_loss(turned, also, 1.0, other, dother), value, 1e-13);
    EXPECT_TRUE(moe::testing::compare(other, dg.colwise().reverse(), 1e-12));
    EXPECT_TRUE(moe::testing::compare(dother, dplus.colwise().reverse(), 1e-12));
}

TEST(ContrastiveLoss, OfNoOthersIsZero) {
    Matrix<double> none(0, 3), one = random_matrix<double>(1, 3, 1);
    Matrix<double> dg = Matrix<double>::Zero(1, 3), dplus = dg;
    EXPECT_EQ(moe::contrastive_loss(none, none, 1.0, none, none).value, 0);
    EXPECT_EQ(moe::contrastive_loss(one, random_matrix<double>(1, 3, 2), 1.0, dg, dplus).value, 0);
    EXPECT_TRUE((dg.array() == 0).all());
    EXPECT_TRUE((dplus.array() == 0).all());
}

TEST(ContrastiveLoss, VectorsOfZerosHaveNoGradient) {
    Matrix<double> g = random_matrix<double>(3, 4, 1), plus = random_matrix<double>(3, 4, 2);
    g.row(1).setZero();
    plus.row(2).setZero();
    Matrix<double> dg = Matrix<double>::Zero(3, 4), dplus = dg;
    const double value = moe::contrastive_loss(g, plus, 1.0, dg, dplus, {.temperature = 1});
    const double zero = std::exp(0.0), near = std::exp(cosine(g, 0, g, 2));
    EXPECT_NEAR(value,
                (std::log(1 + (zero + near) / std::exp(cosine(g, 0, plus, 0))) + std::log(3.0) +
                 std::log(1 + (zero + near) / zero)) /
                    3,
                1e-14);
    EXPECT_TRUE((dg.row(1).array() == 0).all());
    EXPECT_TRUE((dplus.row(2).array() == 0).all());
    EXPECT_GT(dg.row(2).norm(), 0);
}

TEST(ContrastiveLoss, ShowsNaN) {
    Matrix<double> g = random_matrix<double>(3, 4, 1), dg = Matrix<double>::Zero(3, 4), dplus = dg;
    const Matrix<double> plus = random_matrix<double>(3, 4, 2);
    g(1, 0) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(moe::contrastive_loss(g, plus, 1.0, dg, dplus).value));
    EXPECT_TRUE(dg.array().isNaN().all());
}

TEST(ContrastiveLoss, FollowedDownhillFindsEveryoneHimself) {
    Matrix<double> g = random_matrix<double>(4, 4, 1), plus = random_matrix<double>(4, 4, 2);
    Matrix<double> dg(4, 4), dplus(4, 4);
    const double before = moe::contrastive_loss(g, plus, 0.0, dg, dplus);
    for (int step = 0; step < 300; ++step) {
        dg.setZero();
        dplus.setZero();
        moe::contrastive_loss(g, plus, 0.1, dg, dplus);
        g -= dg;
        plus -= dplus;
    }
    EXPECT_GT(before, 1);
    EXPECT_LT(moe::contrastive_loss(g, plus, 0.0, dg, dplus), 0.01);
}

TEST(ContrastiveLoss, RefusesWhatDoesNotMatch) {
    const Matrix<double> g = random_matrix<double>(3, 4, 1), few(2, 4);
    Matrix<double> dg = g, narrow(3, 2);
    EXPECT_EQ(support::message([&] { moe::contrastive_loss(g, few, 1.0, dg, dg); }),
              "moe::contrastive_loss: positives is [2, 4], anchors is [3, 4]");
    EXPECT_EQ(support::message([&] { moe::contrastive_loss(g, g, 1.0, narrow, dg); }),
              "moe::contrastive_loss: danchors is [3, 2], anchors is [3, 4]");
    EXPECT_EQ(support::message([&] { moe::contrastive_loss(g, g, 1.0, dg, narrow); }),
              "moe::contrastive_loss: dpositives is [3, 2], anchors is [3, 4]");
    EXPECT_EQ(
        support::message([&] { moe::contrastive_loss(g, g, 1.0, dg, dg, {.temperature = 0}); }),
        "moe::Contrastive: temperature is 0, it must be finite and > 0; 0.1 is usual");
    EXPECT_EQ(dg, g);
}

}  // namespace
}  // namespace contrastive_loss_test
