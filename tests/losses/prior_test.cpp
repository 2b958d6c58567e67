// SPDX-License-Identifier: MIT
#include <moe/losses/prior.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/switch_dit_prior.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "losses/example.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace prior_loss_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::testing::random_matrix;

template <class S>
using Layers = std::vector<moe::LayerLogits<S>>;

/// Two layers of 3 and 2 experts, 4 tokens of 3 tasks.
struct Batch {
    Matrix<double> first = random_matrix<double>(4, 3, 1, 2);
    Matrix<double> second = random_matrix<double>(4, 2, 2, 2);
    Matrix<double> dfirst = Matrix<double>::Zero(4, 3), dsecond = Matrix<double>::Zero(4, 2);
    Matrix<double> prior{3, 5};
    std::vector<Index> match{4, 0, 2, 1, 3};
    std::vector<std::int32_t> tasks{2, 0, -1, 1};
    Context context{};
    double epsilon = 1e-6;

    Batch() { prior << 1, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 1, 1; }

    double operator()(double weight) {
        return moe::prior_loss(Layers<double>{{first, dfirst}, {second, dsecond}}, context, prior,
                               match, tasks, weight, epsilon);
    }
    std::string message() {
        const Matrix<double> before = dfirst, after = dsecond;
        const std::string found = support::message([&] { (*this)(1.0); });
        EXPECT_EQ(dfirst, before);
        EXPECT_EQ(dsecond, after);
        return found;
    }
};

template <class S>
class PriorLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PriorLoss, Scalars);

TYPED_TEST(PriorLoss, OfOneLayerIsWorkedOutByHand) {
    // m = (1/2, 1/2), r = (1, 0), their mean (3/4, 1/4): 3/4 log 4/3, as in jensen_shannon.
    // d/dm = 1/2 log(m / mean) = 1/2 (log 2/3, log 2), so dz0 = 1/2 1/2 (1/2) (log 2/3 - log 2)
    //      = -1/8 log 3 = -dz1
    using S = TypeParam;
    Matrix<S> logits = Matrix<S>::Constant(1, 2, S(7)), dlogits = Matrix<S>::Zero(1, 2);
    Matrix<double> prior(1, 2);
    prior << 0, 1;
    const std::vector<Index> match{1, 0};
    const std::vector<std::int32_t> tasks{0};
    const Loss loss =
        moe::prior_loss(Layers<S>{{logits, dlogits}}, {}, prior, match, tasks, 2.0, 0.0);
    EXPECT_STREQ(loss.name, "prior");
    EXPECT_NEAR(loss.value, 0.75 * std::log(4.0 / 3), 1e-6);
    EXPECT_NEAR(dlogits(0, 0), -2 * std::log(3.0) / 8, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), 2 * std::log(3.0) / 8, 1e-6);
}

TEST(PriorLoss, IsTheMeanDivergenceOfConcatenatedProbabilities) {
    Batch batch;
    double expected = 0;
    for (const Index t : {0, 1, 3}) {
        std::vector<double> mix, target;
        double sum = 0;
        for (const auto* z : {&batch.first, &batch.second}) {
            double total = 0;
            for (Index e = 0; e < z->cols(); ++e) total += std::exp((*z)(t, e));
            for (Index e = 0; e < z->cols(); ++e) mix.push_back(std::exp((*z)(t, e)) / total / 2);
        }
        for (const Index column : batch.match) {
            target.push_back(batch.prior(batch.tasks[static_cast<std::size_t>(t)], column));
            sum += target.back();
        }
        for (double& share : target) share /= sum;
        expected += moe::jensen_shannon(mix, target, 1e-6) / 3;
    }
    EXPECT_NEAR(batch(1.0), expected, 1e-15);
}

TEST(PriorLoss, ViewsNoMatrixThatIsGoneBeforeItIsRead) {
    using Layer = moe::LayerLogits<double>;
    using Logits = Matrix<double>;
    using Columns = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic>;
    static_assert(std::is_constructible_v<Layer, const Logits&, Logits&>);
    static_assert(std::is_constructible_v<Layer, moe::View<double>, moe::View<double>>);
    static_assert(!std::is_constructible_v<Layer, Logits, Logits&>);
    static_assert(!std::is_constructible_v<Layer, decltype(2 * Logits()), Logits&>);
    static_assert(!std::is_constructible_v<Layer, Columns&, Logits&>);
    // columns of a wide matrix are viewed where they are
    Batch batch;
    const Matrix<double> wide = random_matrix<double>(4, 7, 1, 2);
    Matrix<double> dwide = Matrix<double>::Zero(4, 7);
    batch.first = wide.middleCols(2, 3);
    const double expected = batch(1.0);
    EXPECT_EQ(moe::prior_loss(Layers<double>{{wide.middleCols(2, 3), dwide.middleCols(2, 3)},
                                             {batch.second, batch.dsecond}},
                              batch.context, batch.prior, batch.match, batch.tasks, 1.0),
              expected);
    EXPECT_EQ(Matrix<double>(dwide.middleCols(2, 3)), batch.dfirst);
}

TEST(PriorLoss, GradientsOfAllLayersAreExactAndAdded) {
    for (const double epsilon : {0.0, 1e-6, 0.01}) {
        Batch batch;
        batch.epsilon = epsilon;
        const Matrix<double> before = random_matrix<double>(4, 3, 7);
        batch.dfirst = before;
        batch(0.7);
        const Matrix<double> dfirst = batch.dfirst - before, dsecond = batch.dsecond;
        EXPECT_TRUE((dsecond.row(2).array() == 0).all());  // has no task
        const auto value = [&] { return 0.7 * batch(0.0); };
        EXPECT_TRUE(moe::testing::check_gradient(value, batch.first, dfirst));
        EXPECT_TRUE(moe::testing::check_gradient(value, batch.second, dsecond));
        EXPECT_EQ(batch.dsecond, dsecond);  // weight 0 touches nothing
    }
}

TEST(PriorLoss, LiesBetweenZeroAtThePriorAndLogTwo) {
    Batch batch;
    batch.epsilon = 0;
    batch.tasks = {0, 0, 0, 0};
    // task 0 wants columns 0 and 1, which are expert 1 of the first layer and 0 of the second
    batch.first.setZero();
    batch.second.setZero();
    batch.first.col(1).setConstant(5000);
    batch.second.col(0).setConstant(5000);
    EXPECT_EQ(batch(1.0), 0);
    EXPECT_TRUE((batch.dfirst.array() == 0).all());
    batch.first.col(0).setConstant(10000);
    batch.second.col(1).setConstant(10000);
    EXPECT_NEAR(batch(1.0), std::log(2.0), 1e-15);
}

TEST(PriorLoss, DoesNotSeePaddingOrRowsThatAreMaskedInALayer) {
    Batch batch, few;
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    batch.context.padding = padding;
    batch.second.row(0).setConstant(example::minus_infinity);
    few.tasks = {-1, -1, -1, 1};
    EXPECT_EQ(batch(0.3), few(0.3));
    EXPECT_EQ(batch.dfirst, few.dfirst);
    EXPECT_EQ(batch.dsecond, few.dsecond);
    EXPECT_TRUE((batch.dfirst.topRows(3).array() == 0).all());
    batch.tasks = {0, 0, -1, -1};
    EXPECT_EQ(batch(0.3), 0);
}

TEST(PriorLoss, MaskedExpertsHaveNoGradient) {
    Batch batch;
    batch.first(0, 2) = example::minus_infinity;
    EXPECT_TRUE(std::isfinite(batch(1.0)));
    EXPECT_EQ(batch.dfirst(0, 2), 0);
    EXPECT_NE(batch.dfirst(0, 1), 0);
}

TEST(PriorLoss, ShowsNaNInTheRowsOfItsLayer) {
    Batch batch;
    batch.first(1, 0) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(batch(1.0)));
    EXPECT_TRUE(batch.dfirst.row(1).array().isNaN().all());
    EXPECT_TRUE(batch.dfirst.row(0).allFinite());
    EXPECT_TRUE(batch.dsecond.allFinite());
}

TEST(PriorLoss, OnWorkspacesIsTheLongFormAndAllocatesNothing) {
    Batch batch;
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    batch.context.padding = padding;
    moe::Workspace<double> first, second;
    example::fill(first, batch.first, example::routing(3, {{}, {}, {}, {}}), batch.context);
    example::fill(second, batch.second, example::routing(2, {{}, {}, {}, {}}), batch.context);
    const std::vector<moe::Workspace<double>*> layers{&first, &second};
    const double value = batch(0.3);
    const auto call = [&] {
        return moe::prior_loss(layers, batch.prior, batch.match, batch.tasks, 0.3);
    };
    EXPECT_EQ(call().value, value);
    EXPECT_EQ(Matrix<double>(first.dlogits()), batch.dfirst);
    EXPECT_EQ(Matrix<double>(second.dlogits()), batch.dsecond);
    EXPECT_EQ(allocations::in([&] { call(); }), 0);
}

TEST(PriorLoss, FollowedDownhillTeachesTheMatchedPrior) {
    const Matrix<double> prior = moe::switch_dit_prior(3, 2, 3, 1);
    Matrix<double> z = random_matrix<double>(3, 6, 1, 0.1);
    const std::vector<std::int32_t> tasks{0, 1, 2};
    double value = 0;
    for (int step = 0; step < 400; ++step) {
        Matrix<double> masks = Matrix<double>::Zero(3, 6), dz = masks;
        for (Index t = 0; t < 3; ++t)
            for (Index first : {0, 3}) {
                Index best = 0;
                z.row(t).segment(first, 3).maxCoeff(&best);
                masks(t, first + best) = 1;
            }
        const std::vector<Index> match = moe::match_columns(masks, prior);
        value = moe::prior_loss(
            Layers<double>{{z.leftCols(3), dz.leftCols(3)}, {z.rightCols(3), dz.rightCols(3)}}, {},
            prior, match, tasks, 30.0);
        z -= dz;
    }
    EXPECT_LT(value, 0.01);
}

TEST(PriorLoss, RefusesWhatDoesNotFit) {
    const auto with = [](auto change) {
        Batch batch;
        change(batch);
        return batch.message();
    };
    EXPECT_EQ(
        with([](Batch& b) { b.match.pop_back(); }),
        "moe::prior_loss: prior has 5 columns and match 4 entries, the layers have 5 experts; "
        "there must be one for each");
    EXPECT_EQ(
        with([](Batch& b) { b.match[1] = 5; }),
        "moe::prior_loss: an entry of match is 5, it must be in [0, 5), the columns of prior");
    EXPECT_EQ(with([](Batch& b) { b.tasks.pop_back(); }),
              "moe::prior_loss: tasks has 3 entries, logits has 4 rows; give -1 to a token without "
              "a task");
    EXPECT_EQ(with([](Batch& b) { b.tasks[3] = 3; }),
              "moe::prior_loss: tasks[3] is 3, it must be below the 3 rows of prior, or negative "
              "for none");
    EXPECT_EQ(with([](Batch& b) { b.prior(1, 2) = -1; }),
              "moe::prior_loss: prior has an entry -1, it must be finite and >= 0");
    EXPECT_EQ(with([](Batch& b) { b.prior.row(1).setZero(); }),
              "moe::prior_loss: row 1 of prior sums to 0, it must be > 0 and finite: a task wants "
              "some expert");
    EXPECT_EQ(with([](Batch& b) { b.dsecond.resize(4, 3); }),
              "moe::prior_loss: dlogits is [4, 3], logits is [4, 2]");
    EXPECT_EQ(with([](Batch& b) {
                  b.second.resize(3, 2);
                  b.dsecond.resize(3, 2);
              }),
              "moe::prior_loss: layers have 4 and 3 tokens; give layers of the same batch");
    EXPECT_EQ(with([](Batch& b) {
                  b.second.resize(4, 0);
                  b.dsecond.resize(4, 0);
              }).substr(0, 66),
              "moe::prior_loss: the gate of a layer has no logits of experts, whi");
    EXPECT_EQ(with([](Batch& b) { b.epsilon = -1; }),
              "moe::prior_loss: epsilon is -1, it must be finite and >= 0; 1e-6 is usual");
    const Batch batch;
    EXPECT_EQ(support::message([&] {
                  moe::prior_loss(Layers<double>{}, {}, batch.prior, batch.match, batch.tasks, 1.0);
              }),
              "moe::prior_loss: there are no layers; give those whose gates share the prior");
    EXPECT_EQ(support::message([&] {
                  moe::prior_loss(std::vector<moe::Workspace<double>*>{}, batch.prior, batch.match,
                                  batch.tasks, 1.0);
              }),
              "moe::prior_loss: there are no layers; give those whose gates share the prior");
}

TEST(PriorLoss, OfNoTokensIsZero) {
    Batch batch;
    batch.first.resize(0, 3);
    batch.dfirst.resize(0, 3);
    batch.second.resize(0, 2);
    batch.dsecond.resize(0, 2);
    batch.tasks.clear();
    EXPECT_EQ(batch(1.0), 0);
}

}  // namespace
}  // namespace prior_loss_test
