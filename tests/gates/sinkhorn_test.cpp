// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/sinkhorn.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "gates/laws.hpp"

namespace {

using gates_test::batch;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Index;
using moe::Sinkhorn;
using Experts = std::vector<Index>;

static_assert(moe::Recipe<Sinkhorn>);
static_assert(moe::TrainableGate<moe::SinkhornModule<float>, float>);
static_assert(!moe::hooks::per_token<moe::SinkhornModule<float>>);

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class SinkhornGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SinkhornGate, Scalars);

constexpr moe::Context training{.training = true};

/// The published iteration: exp of the logits as they are.
struct Plain {
    moe::Matrix<double> plan;  // [T, E]
    Index iterations = 0;

    explicit Plain(const moe::Matrix<double>& z, double tolerance = 1e-4, Index most = 100000) {
        const auto tokens = static_cast<double>(z.rows()), experts = static_cast<double>(z.cols());
        const moe::Matrix<double> c = z.array().exp();
        Eigen::VectorXd d0 = Eigen::VectorXd::Ones(z.rows());
        Eigen::RowVectorXd d1 = Eigen::RowVectorXd::Ones(z.cols());
        for (double error = 1e9; error > tolerance && iterations < most; ++iterations) {
            for (Index t = 0; t < z.rows(); ++t)
                d0(t) = 1 / tokens / ((c.row(t).array() * d1.array()).sum() + 1e-8);
            const Eigen::RowVectorXd old = d1;
            for (Index e = 0; e < z.cols(); ++e)
                d1(e) = 1 / experts / ((c.col(e).array() * d0.array()).sum() + 1e-8);
            error = (d1 - old).array().abs().mean();
        }
        plan = c;
        for (Index t = 0; t < z.rows(); ++t)
            for (Index e = 0; e < z.cols(); ++e) plan(t, e) *= d0(t) * d1(e);
    }
    Experts best(Index t, Index k) const {
        Eigen::RowVectorXd row = plan.row(t);
        Experts experts;
        for (Index i = 0; i < k; ++i) {
            Index at = 0;
            row.maxCoeff(&at);
            experts.push_back(at);
            row(at) = -1;
        }
        return experts;
    }
};

template <class S>
moe::Matrix<double> plan_of(const moe::detail::SinkhornScales<S>& scales, Index tokens,
                            Index experts) {
    moe::Matrix<double> plan(tokens, experts);
    for (Index t = 0; t < tokens; ++t)
        for (Index e = 0; e < experts; ++e)
            plan(t, e) = scales.rows[t] * scales.columns[e] *
                         static_cast<double>(scales.shares[t * experts + e]);
    return plan;
}

template <class S>
moe::detail::SinkhornScales<S> scales_of(const moe::Matrix<S>& z, double tolerance = 1e-4,
                                         Index most = 1000) {
    moe::SerialExecutor serial;
    moe::detail::SinkhornScales<S> scales;
    moe::detail::sinkhorn<S>(z, tolerance, most, serial, scales);
    return scales;
}

// ---- the iteration ----

TYPED_TEST(SinkhornGate, FindsThePublishedPlanOfTheGoldenLogits) {
    using S = TypeParam;
    const moe::Matrix<S> z = golden_logits<S>();
    const auto scales = scales_of<S>(z);
    EXPECT_EQ(scales.iterations, 13);
    const moe::Matrix<double> plan = plan_of(scales, 4, 8);
    EXPECT_NEAR(plan(0, 5), .0844564, 1e-6);
    EXPECT_NEAR(plan(3, 4), .0722933, 1e-6);
    auto tokens = batch<S>(Sinkhorn{.k = 2}, 8);
    tokens.context.training = true;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 2}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{0, 6}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{4, 7}));
    EXPECT_NEAR(tokens.weights_of(0)[0], .4348488, 1e-6);  // softmax over all experts
    EXPECT_NEAR(tokens.weights_of(3)[0], .1280223, 1e-6);
}

TYPED_TEST(SinkhornGate, IsThePlainIterationAlthoughItTakesTheMaximumOff) {
    using S = TypeParam;
    for (const double scale : {0.3, 1.0, 3.0}) {
        const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 7, 5, scale);
        const Plain plain(z.template cast<double>());
        const auto scales = scales_of<S>(z);
        EXPECT_EQ(scales.iterations, plain.iterations);
        EXPECT_TRUE(moe::testing::compare(plan_of(scales, 50, 7), plain.plan, 1e-5));
        for (const Index k : {1, 3}) {
            auto tokens = batch<S>(Sinkhorn{.k = k}, 7);
            tokens.context.training = true;
            tokens.route(z);
            for (Index t = 0; t < 50; ++t) EXPECT_EQ(tokens.experts_of(t), plain.best(t, k));
        }
    }
}

TYPED_TEST(SinkhornGate, BalancesRowsAndColumns) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 9, 5, 2);
    const moe::Matrix<double> plan = plan_of(scales_of<S>(z, 1e-12), 60, 9);
    for (Index t = 0; t < 60; ++t) EXPECT_NEAR(plan.row(t).sum(), 1.0 / 60, 1e-6 / 60);
    for (Index e = 0; e < 9; ++e) EXPECT_NEAR(plan.col(e).sum(), 1.0 / 9, 1e-6 / 9);
}

TYPED_TEST(SinkhornGate, StopsAtTheLimit) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 9, 5, 4);
    const auto scales = scales_of<S>(z, 0, 3);
    EXPECT_EQ(scales.iterations, 3);
    EXPECT_TRUE(moe::testing::compare(plan_of(scales, 60, 9),
                                      Plain(z.template cast<double>(), 0, 3).plan, 1e-5));
}

TYPED_TEST(SinkhornGate, DoesNotOverflow) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 6, 5, 2);
    auto small = batch<S>(Sinkhorn{.k = 2}, 6);
    small.context.training = true;
    small.route(z);
    const moe::Routing plan = small.routing;
    for (Index t = 0; t < 40; ++t)  // a constant per row changes no choice
        z.row(t).array() += static_cast<S>(t % 2 == 0 ? 1024 : -1024);
    small.route(z);
    for (Index t = 0; t < 40; ++t)
        for (std::size_t i = 0; i < 2; ++i)
            EXPECT_EQ(small.routing.of(t)[i].expert, plan.of(t)[i].expert);
    z = moe::testing::random_matrix<S>(40, 6, 5, 20000);
    small.route(z);
    for (const moe::Assignment& a : small.routing.assignments())
        EXPECT_TRUE(std::isfinite(a.weight));
}

// ---- laws ----

TYPED_TEST(SinkhornGate, EvensOutTheLoadOfTraining) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(400, 8, 5, 1);
    z.col(2).array() += S(3);  // all want expert 2
    auto tokens = batch<S>(Sinkhorn{}, 8);
    tokens.route(z);
    EXPECT_GT(tokens.routing.tokens_of(2).size(), 300u);
    tokens.context.training = true;
    tokens.route(z);
    for (Index e = 0; e < 8; ++e) {
        EXPECT_GT(tokens.routing.tokens_of(e).size(), 25u);
        EXPECT_LT(tokens.routing.tokens_of(e).size(), 100u);
    }
}

TYPED_TEST(SinkhornGate, DoesNotCareInWhichOrderTokensCome) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 6, 9, 4);
    const moe::Matrix<S> reversed = z.colwise().reverse();
    auto one = batch<S>(Sinkhorn{.k = 2}, 6), other = batch<S>(Sinkhorn{.k = 2}, 6);
    one.context.training = other.context.training = true;
    one.route(z);
    other.route(reversed);
    for (Index t = 0; t < 40; ++t) EXPECT_EQ(one.experts_of(t), other.experts_of(39 - t));
}

TYPED_TEST(SinkhornGate, TakesTheBestLogitsAtInference) {
    using S = TypeParam;
    auto tokens = batch<S>(Sinkhorn{}, 8);
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7}));
    EXPECT_NEAR(tokens.weights_of(0)[0], .8807971, 1e-6);  // sigmoid
    EXPECT_NEAR(tokens.weights_of(3)[0], .6899745, 1e-6);
}

TYPED_TEST(SinkhornGate, GivesTiesToTheLowerIndex) {
    using S = TypeParam;
    auto tokens = batch<S>(Sinkhorn{.k = 2}, 5);
    tokens.context.training = true;
    tokens.route(moe::Matrix<S>::Zero(7, 5));
    for (Index t = 0; t < 7; ++t) EXPECT_EQ(tokens.experts_of(t), (Experts{0, 1}));
}

TYPED_TEST(SinkhornGate, DoesNotCountPaddingNorRowsWithANaN) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(20, 5, 9, 3);
    moe::Matrix<S> padded = moe::Matrix<S>::Constant(30, 5, -infinity<S>);
    padded.middleRows(4, 20) = z;
    padded.row(28).setZero();
    padded(28, 0) = nan<S>;
    auto whole = batch<S>(Sinkhorn{.k = 2}, 5), with = batch<S>(Sinkhorn{.k = 2}, 5);
    whole.context.training = with.context.training = true;
    whole.route(z);
    with.route(padded);
    for (Index t = 0; t < 20; ++t) EXPECT_EQ(with.experts_of(t + 4), whole.experts_of(t));
    EXPECT_EQ(with.routing.num_assignments(), 42);
    for (const double weight : with.weights_of(28)) EXPECT_TRUE(std::isnan(weight));
    EXPECT_EQ(with.experts_of(28).size(), 2u);
    const auto c = gates_test::derivatives<S>(42);
    const moe::Matrix<S> dz = with.backward(padded, c);
    EXPECT_TRUE((dz.topRows(4).array() == 0).all() && dz.middleRows(4, 20).allFinite());
    with.route(padded.topRows(3));
    EXPECT_EQ(with.routing.num_assignments(), 0);
}

TYPED_TEST(SinkhornGate, NeverCrossesAMaskAndLeavesOutExpertsThatNoneMayHave) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 6, 4, 3);
    const moe::Matrix<S> five = z.leftCols(5);
    z.col(5).setConstant(-infinity<S>);
    const auto all = scales_of<S>(z), fewer = scales_of<S>(five);
    EXPECT_EQ(all.iterations, fewer.iterations);
    for (Index e = 0; e < 5; ++e) EXPECT_NEAR(all.columns[e], fewer.columns[e], 1e-6);
    EXPECT_EQ(all.columns[5], 1);
    for (Index t = 0; t < 30; ++t)
        for (Index e = 0; e < 5; ++e)
            if ((t + e) % 3 == 0) z(t, e) = -infinity<S>;
    for (const Index k : {1, 4}) {
        auto tokens = batch<S>(Sinkhorn{.k = k}, 6);
        tokens.context.training = true;
        tokens.route(z);
        for (const moe::Assignment& a : tokens.routing.assignments())
            EXPECT_GT(z(a.token, a.expert), -infinity<S>);
    }
}

TYPED_TEST(SinkhornGate, ServesOneExpertAndAllExperts) {
    using S = TypeParam;
    auto one = batch<S>(Sinkhorn{}, 1);
    one.context.training = true;
    one.route(moe::testing::random_matrix<S>(5, 1, 3));
    EXPECT_EQ(one.routing.num_assignments(), 5);
    auto all = batch<S>(Sinkhorn{.k = 4}, 4);
    all.context.training = true;
    all.route(moe::testing::random_matrix<S>(5, 4, 3));
    EXPECT_EQ(all.routing.num_assignments(), 20);
    gates_test::expect_no_tokens_route<double>(Sinkhorn{}, 4, 4);
}

// ---- gradients, settings, threads, memory ----

TEST(SinkhornGradient, AgreesWithDifferences) {
    for (const Index k : {1, 3}) {
        const auto z = moe::testing::random_matrix<double>(9, 5, 12, 3);
        gates_test::expect_exact_gradient(Sinkhorn{.k = k}, z, z.cols(), training);
        gates_test::expect_exact_gradient(Sinkhorn{.k = k}, z, z.cols());
        EXPECT_TRUE(moe::testing::check_gradients(
            moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 3}, moe::LinearRouter{},
                                    Sinkhorn{.k = k}, moe::Swiglu{.count = 3, .ffn_dim = 6},
                                    moe::Zero{}),
            {.rows = 7, .columns = 5, .scale = 0.01}));
    }
}

TEST(SinkhornSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(Sinkhorn{.k = 8}, 8), "");
    EXPECT_EQ(refusal(Sinkhorn{.k = 0}, 8),
              "moe::Sinkhorn: k is 0, it must be in [1, 8], the experts of the layer");
    EXPECT_NE(refusal(Sinkhorn{.k = 9}, 8), "");
    EXPECT_EQ(refusal(Sinkhorn{.tolerance = -1}, 8),
              "moe::Sinkhorn: tolerance is -1, it must be finite and >= 0");
    EXPECT_EQ(refusal(Sinkhorn{.max_iterations = 0}, 8),
              "moe::Sinkhorn: max_iterations is 0, it must be >= 1");
    EXPECT_NE(refusal(Sinkhorn{}, 0), "");
}

TYPED_TEST(SinkhornGate, GivesTheSameBitsForAnyThreadCountAndAllocatesNothingAgain) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(700, 37, 3, 4);
    gates_test::expect_same_bits_for_any_thread_count<S>(Sinkhorn{.k = 2}, z, z.cols(), training);
    gates_test::expect_no_allocation<S>(Sinkhorn{.k = 2}, z, z.cols(), training);
}

}  // namespace
