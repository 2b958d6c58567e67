// SPDX-License-Identifier: MIT
#include <moe/losses/diversity.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/parameters.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace diversity_loss_test {
namespace {

using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::testing::random_matrix;

/// The formula, with all of C - I.
double reference(const Matrix<double>& w, const std::vector<std::uint8_t>& active) {
    double sum = 0;
    for (Index e = 0; e < w.rows(); ++e)
        for (Index f = 0; f < w.rows(); ++f) {
            if (active[static_cast<std::size_t>(e)] == 0 ||
                active[static_cast<std::size_t>(f)] == 0)
                continue;
            const double c = w.row(e).dot(w.row(f)) / (w.row(e).norm() * w.row(f).norm());
            sum += std::pow(c - (e == f ? 1 : 0), 2);
        }
    return std::sqrt(sum);
}

template <class S>
class DiversityLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(DiversityLoss, Scalars);

TYPED_TEST(DiversityLoss, OfThreeVectorsIsWorkedOutByHand) {
    // (3, 4), (1, 0), (0, 2): cosines 3/5, 4/5 and 0, so sqrt(2 (9 + 16) / 25) = sqrt 2.
    // dw_1 = 2 / sqrt 2 (I - u u^T) (3/5 (3/5, 4/5)) = sqrt 2 (0, 12/25)
    // dw_2 = sqrt 2 / 2 (I - u u^T) (4/5 (3/5, 4/5)) = sqrt 2 (6/25, 0)
    // dw_0 = sqrt 2 / 5 (I - u u^T) (3/5, 4/5) = 0
    using S = TypeParam;
    Matrix<S> w(3, 2), dw = Matrix<S>::Zero(3, 2);
    w << 3, 4, 1, 0, 0, 2;
    const Loss loss = moe::diversity_loss(w, {}, 2.0, dw);
    EXPECT_STREQ(loss.name, "diversity");
    const double root = std::sqrt(2.0);
    EXPECT_NEAR(loss.value, root, 1e-6);
    Matrix<double> expected(3, 2);
    expected << 0, 0, 0, 2 * root * 12 / 25, 2 * root * 6 / 25, 0;
    EXPECT_NEAR((dw.template cast<double>() - expected).cwiseAbs().maxCoeff(), 0, 1e-6);
}

TEST(DiversityLoss, AgreesWithItsFormulaAndDifferences) {
    Matrix<double> w = random_matrix<double>(5, 7, 1, 2);
    const Matrix<double> before = random_matrix<double>(5, 7, 2);
    for (const std::vector<std::uint8_t>& active :
         {std::vector<std::uint8_t>{1, 1, 1, 1, 1}, std::vector<std::uint8_t>{1, 0, 1, 7, 0}}) {
        Matrix<double> dw = before, unused = before;
        EXPECT_NEAR(moe::diversity_loss(w, active, 0.7, dw), reference(w, active), 1e-14);
        dw -= before;
        const auto value = [&] { return 0.7 * moe::diversity_loss(w, active, 0.0, unused).value; };
        EXPECT_TRUE(moe::testing::check_gradient(value, w, dw));
        EXPECT_EQ(unused, before);
        EXPECT_EQ((dw.row(1).array() == 0).all(), active[1] == 0);
    }
}

TEST(DiversityLoss, DoesNotCareForLengthsOrOrder) {
    const Matrix<double> w = random_matrix<double>(4, 6, 1, 2);
    Matrix<double> dw = Matrix<double>::Zero(4, 6), dlong = dw, dturned = dw;
    Matrix<double> longer = w, turned = w.colwise().reverse();
    longer.row(2) *= 8;
    const double value = moe::diversity_loss(w, {}, 1.0, dw);
    EXPECT_EQ(moe::diversity_loss(longer, {}, 1.0, dlong).value, value);
    EXPECT_NEAR((8 * dlong.row(2) - dw.row(2)).norm(), 0, 1e-15);
    EXPECT_NEAR(w.row(2).dot(dw.row(2)), 0, 1e-15);  // no gradient along the vector
    EXPECT_NEAR(moe::diversity_loss(turned, {}, 1.0, dturned), value, 1e-14);
    EXPECT_TRUE(moe::testing::compare(dturned, dw.colwise().reverse(), 1e-13));
}

TYPED_TEST(DiversityLoss, LiesBetweenRightAnglesAndParallels) {
    using S = TypeParam;
    Matrix<S> right = Matrix<S>::Zero(3, 3), dw = Matrix<S>::Zero(3, 3);
    right(0, 2) = S(3);
    right(1, 0) = S(-2);  // the third is a vector of zeros
    EXPECT_EQ(moe::diversity_loss(right, {}, 1.0, dw).value, 0);
    EXPECT_TRUE((dw.array() == 0).all());
    const Matrix<S> parallel = Matrix<S>::Constant(3, 3, S(2));
    EXPECT_NEAR(moe::diversity_loss(parallel, {}, 1.0, dw), std::sqrt(6.0), 1e-6);
    EXPECT_NEAR(dw.cwiseAbs().maxCoeff(), 0, 1e-6);
}

TYPED_TEST(DiversityLoss, IsDefinedForVectorsWhoseSquaresAreNot) {
    using S = TypeParam;
    const S large = std::numeric_limits<S>::max() / 4, small = std::numeric_limits<S>::min();
    Matrix<S> w(2, 2), dw = Matrix<S>::Zero(2, 2);
    w << large, large, small, S(0);
    EXPECT_NEAR(moe::diversity_loss(w, {}, 0.0, dw), 1, 1e-6);  // sqrt(2 / 2)
    EXPECT_NEAR(moe::simplicity_loss(w, 0.0, dw) / double{large}, 1 / std::sqrt(2.0), 1e-6);
}

TEST(DiversityLoss, OfFewExpertsIsZero) {
    Matrix<double> none(0, 4), one = Matrix<double>::Constant(1, 4, 2);
    Matrix<double> dnone(0, 4), done = Matrix<double>::Zero(1, 4);
    EXPECT_EQ(moe::diversity_loss(none, {}, 1.0, dnone).value, 0);
    EXPECT_EQ(moe::simplicity_loss(none, 1.0, dnone).value, 0);
    EXPECT_EQ(moe::diversity_loss(one, {}, 1.0, done).value, 0);
    EXPECT_TRUE((done.array() == 0).all());
}

TEST(DiversityLoss, ShowsNaN) {
    Matrix<double> w = random_matrix<double>(3, 4, 1), dw = Matrix<double>::Zero(3, 4);
    w(1, 2) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(moe::diversity_loss(w, {}, 1.0, dw).value));
    EXPECT_TRUE(dw.array().isNaN().all());
    dw.setZero();
    EXPECT_TRUE(std::isnan(moe::simplicity_loss(w, 1.0, dw).value));
    EXPECT_TRUE(dw.row(1).array().isNaN().all());
    EXPECT_TRUE(dw.row(0).allFinite());
    const std::vector<std::uint8_t> without{1, 0, 1};
    dw.setZero();
    EXPECT_GT(moe::diversity_loss(w, without, 1.0, dw).value, 0);
    EXPECT_TRUE(dw.allFinite());
}

TEST(SimplicityLoss, IsTheMeanLengthWorkedOutByHand) {
    // (3, 4), (0, 0), (0, 2): (5 + 0 + 2) / 3, gradients (3/5, 4/5) / 3, 0, (0, 1) / 3
    Matrix<double> w(3, 2), dw = Matrix<double>::Constant(3, 2, 10), expected(3, 2);
    w << 3, 4, 0, 0, 0, 2;
    expected << 13, 14, 10, 10, 10, 15;
    const Loss loss = moe::simplicity_loss(w, 15.0, dw);
    EXPECT_STREQ(loss.name, "simplicity");
    EXPECT_NEAR(loss.value, 7.0 / 3, 1e-15);
    EXPECT_TRUE(moe::testing::compare(dw, expected, 1e-15));
}

TEST(SimplicityLoss, GradientAgreesWithDifferences) {
    Matrix<double> w = random_matrix<double>(5, 7, 1, 2), dw = Matrix<double>::Zero(5, 7);
    Matrix<double> unused = dw;
    moe::simplicity_loss(w, 0.7, dw);
    const auto value = [&] { return 0.7 * moe::simplicity_loss(w, 0.0, unused).value; };
    EXPECT_TRUE(moe::testing::check_gradient(value, w, dw));
    EXPECT_TRUE((unused.array() == 0).all());
}

/// A router and a gate of DynMoE for 4 experts, one of them taken out.
struct Parts {
    moe::Random random{3};
    moe::Shape shape{.model_dim = 6, .num_experts = 4, .num_logits = 4};
    moe::CosineRouterModule<double> router =
        moe::CosineRouter{.projection_dim = 0}.build<double>(shape, random);
    moe::TopAnyModule<double> gate = moe::TopAny{}.build<double>(shape, random);
    Parts() { gate.mask(0, 1) = 0; }
};

TEST(DiversityLoss, OfARouterIsThatOfItsEmbeddingsWithoutMaskedExperts) {
    Parts parts;
    auto grad = moe::zeros_like(parts.router);
    moe::Workspace<double> ws;
    const std::vector<std::uint8_t> active{1, 0, 1, 1};
    Matrix<double> expected = Matrix<double>::Zero(4, 6), short_ones = expected;
    const auto w = parts.router.embeddings.view();
    const double value = moe::diversity_loss(w, active, 0.7, expected);
    EXPECT_EQ(moe::diversity_loss(parts.router, parts.gate, ws, 0.7, grad).value, value);
    EXPECT_EQ(Matrix<double>(grad.embeddings.view()), expected);
    EXPECT_EQ(allocations::in([&] {
                  moe::diversity_loss(parts.router, parts.gate, ws, 0.7, grad);
                  moe::simplicity_loss(parts.router, 0.7, grad);
              }),
              0);
    auto of_lengths = moe::zeros_like(parts.router);
    EXPECT_EQ(moe::simplicity_loss(parts.router, 0.7, of_lengths).value,
              moe::simplicity_loss(w, 0.7, short_ones).value);
    EXPECT_EQ(Matrix<double>(of_lengths.embeddings.view()), short_ones);

    moe::CosineRouterModule<double> not_wanted;
    EXPECT_EQ(moe::diversity_loss(parts.router, parts.gate, ws, 0.7, not_wanted).value, value);
    EXPECT_GT(moe::simplicity_loss(parts.router, 0.7, not_wanted).value, 0);
}

TEST(DiversityLoss, FollowedDownhillTurnsVectorsApart) {
    Matrix<double> w = random_matrix<double>(3, 5, 1).cwiseAbs();
    Matrix<double> dw(3, 5);
    const double before = moe::diversity_loss(w, {}, 0.0, dw);
    for (int step = 0; step < 200; ++step) {
        dw.setZero();
        moe::diversity_loss(w, {}, 0.01, dw);
        w -= dw;
    }
    EXPECT_GT(before, 1);
    EXPECT_LT(moe::diversity_loss(w, {}, 0.0, dw), 0.05);
}

TEST(DiversityLoss, RefusesExtentsThatDiffer) {
    const Matrix<double> w = random_matrix<double>(3, 4, 1);
    Matrix<double> dw = w, narrow(3, 2);
    const std::vector<std::uint8_t> active{1, 1};
    EXPECT_EQ(support::message([&] { moe::diversity_loss(w, {}, 1.0, narrow); }),
              "moe::diversity_loss: dvectors is [3, 2], vectors is [3, 4]");
    EXPECT_EQ(support::message([&] { moe::simplicity_loss(w, 1.0, narrow); }),
              "moe::simplicity_loss: dvectors is [3, 2], vectors is [3, 4]");
    EXPECT_EQ(support::message([&] { moe::diversity_loss(w, active, 1.0, dw); }),
              "moe::diversity_loss: active has 2 entries, vectors has 3 rows; give one per expert, "
              "or none");
    EXPECT_EQ(dw, w);
    Parts parts;
    auto grad = moe::zeros_like(parts.router);
    moe::Workspace<double> ws;
    const moe::TopAnyModule<double> other({}, 3);
    EXPECT_EQ(support::message([&] { moe::diversity_loss(parts.router, other, ws, 1.0, grad); }),
              "moe::diversity_loss: the router has 4 embeddings, the gate is for 3 experts; give "
              "those of one layer");
}

}  // namespace
}  // namespace diversity_loss_test
