// SPDX-License-Identifier: MIT
#include <moe/routers/k_means.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <Eigen/Dense>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "seams/check.hpp"
#include "support/message.hpp"

namespace {

using moe::fit_by_k_means;
using moe::Index;
using moe::KMeansFit;
using moe::LinearRouterModule;
using moe::Matrix;
using moe::testing::compare;
using moe::testing::random_matrix;
using moe::testing::same_bits;
using support::message;

template <class S>
LinearRouterModule<S> make(Index dim, Index experts, bool bias = true) {
    moe::Random random(1);
    return moe::LinearRouter{.bias = bias}.build<S>(
        {.model_dim = dim, .num_experts = experts, .output_dim = dim, .num_logits = experts},
        random);
}

/// Environment m is of kind m % kinds, around a centre of its own; expert permutation[kind] has the
/// least loss there.
template <class S>
struct Planted {
    static constexpr Index kinds = 4, environments = 37, dim = 6;
    std::vector<Index> permutation{2, 0, 3, 1};
    Matrix<S> contexts{environments, dim}, losses{environments, kinds};

    explicit Planted(std::uint64_t seed) {
        const auto centers = random_matrix<S>(kinds, dim, seed, 4);
        const auto noise = random_matrix<S>(environments, dim, seed + 1, 0.125);
        losses = random_matrix<S>(environments, kinds, seed + 2, 0.125).array() + S(1);
        for (Index m = 0; m < environments; ++m) {
            contexts.row(m) = centers.row(kind(m)) + noise.row(m);
            losses(m, best(m)) -= S(0.5);
        }
    }
    static Index kind(Index m) { return m % kinds; }
    Index best(Index m) const { return permutation[static_cast<std::size_t>(kind(m))]; }
};

template <class S>
Matrix<S> logits_of(const LinearRouterModule<S>& router, const Matrix<S>& contexts) {
    moe::Workspace<S> ws;
    const moe::Context context;
    Matrix<S> logits(contexts.rows(), router.weight.rows());
    router.forward(contexts, logits, moe::Call<S>{context, ws});
    return logits;
}

template <class S>
class KMeans : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(KMeans, Scalars);

TYPED_TEST(KMeans, FindsPlantedClustersAndTheirExperts) {
    using S = TypeParam;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const Planted<S> planted(100 * seed);
        auto router = make<S>(Planted<S>::dim, Planted<S>::kinds);
        const KMeansFit fit =
            fit_by_k_means(router, planted.contexts, planted.losses, {.seed = seed});
        ASSERT_TRUE(fit.updated) << seed;
        EXPECT_LE(fit.iterations, 20);
        const Matrix<S> logits = logits_of(router, planted.contexts);
        for (Index m = 0; m < Planted<S>::environments; ++m) {
            Index chosen = -1;
            logits.row(m).maxCoeff(&chosen);
            EXPECT_EQ(chosen, planted.best(m)) << seed;
            const auto cluster =
                static_cast<std::size_t>(fit.clusters[static_cast<std::size_t>(m)]);
            EXPECT_EQ(fit.experts[cluster], planted.best(m)) << seed;
        }
    }
}

TYPED_TEST(KMeans, EveryExpertIsUsedOnce) {
    using S = TypeParam;
    Planted<S> planted(3);
    planted.losses.col(1).setConstant(-7);  // best everywhere
    auto router = make<S>(Planted<S>::dim, Planted<S>::kinds);
    const KMeansFit fit = fit_by_k_means(router, planted.contexts, planted.losses);
    ASSERT_TRUE(fit.updated);
    EXPECT_EQ(std::set<Index>(fit.experts.begin(), fit.experts.end()).size(), 4u);
    EXPECT_EQ(fit.experts[0], 1);  // the first cluster comes first
}

TYPED_TEST(KMeans, WeightsAreTheLeastSquaresSolution) {
    using S = TypeParam;
    for (const bool is_deficient : {false, true}) {
        Planted<S> planted(5);
        if (is_deficient) planted.contexts.col(3) = planted.contexts.col(0);
        auto router = make<S>(Planted<S>::dim, Planted<S>::kinds);
        ASSERT_TRUE(fit_by_k_means(router, planted.contexts, planted.losses).updated);
        Matrix<double> a(Planted<S>::environments, Planted<S>::dim + 1);
        a << planted.contexts.template cast<double>(),
            Matrix<double>::Ones(Planted<S>::environments, 1);
        Matrix<double> targets = Matrix<double>::Zero(Planted<S>::environments, Planted<S>::kinds);
        for (Index m = 0; m < targets.rows(); ++m) targets(m, planted.best(m)) = 1;
        const Matrix<double> expected =
            is_deficient
                ? Matrix<double>(a.completeOrthogonalDecomposition().solve(targets))
                : Matrix<double>((a.transpose() * a).ldlt().solve(a.transpose() * targets));
        const double tolerance = std::is_same_v<S, float> ? 2e-7 : 1e-11;
        EXPECT_TRUE(compare(router.weight.view(),
                            expected.topRows(Planted<S>::dim).transpose().template cast<S>(),
                            tolerance));
        EXPECT_TRUE(
            compare(router.bias.view(), expected.bottomRows(1).template cast<S>(), tolerance));
    }
}

TYPED_TEST(KMeans, AnEmptyClusterLeavesTheRouterAsItWas) {
    using S = TypeParam;
    const auto before = make<S>(3, 4);
    const auto losses = random_matrix<S>(9, 4, 2);
    Matrix<S> three(9, 3);  // different contexts, for four experts
    for (Index m = 0; m < 9; ++m) three.row(m).setConstant(static_cast<S>(m % 3));
    Matrix<double> centers = random_matrix<double>(4, 3, 7);
    centers.row(2).setConstant(1000);  // nobody's
    const auto spread = random_matrix<S>(9, 3, 4);
    const auto expect_unchanged = [&](const Matrix<S>& contexts, Index rows,
                                      const Matrix<double>& start) {
        auto router = before;
        const KMeansFit fit =
            fit_by_k_means(router, contexts.topRows(rows), losses.topRows(rows), {}, start);
        EXPECT_FALSE(fit.updated);
        EXPECT_TRUE(fit.experts.empty());
        EXPECT_EQ(fit.clusters.size(), static_cast<std::size_t>(rows));
        EXPECT_EQ(fit.centers.rows(), 4);
        EXPECT_TRUE(same_bits(router.weight, before.weight));
        EXPECT_TRUE(same_bits(router.bias, before.bias, {.allow_zeros = true}));
    };
    expect_unchanged(three, 9, {});
    expect_unchanged(spread, 9, centers);
    expect_unchanged(spread, 3, {});  // fewer environments than experts
    expect_unchanged(spread, 0, {});
}

TYPED_TEST(KMeans, GoesOnFromCentersThatAreGiven) {
    using S = TypeParam;
    const Planted<S> planted(8);
    auto router = make<S>(Planted<S>::dim, Planted<S>::kinds), again = router;
    const KMeansFit first = fit_by_k_means(router, planted.contexts, planted.losses);
    const KMeansFit second =
        fit_by_k_means(again, planted.contexts, planted.losses, {}, first.centers);
    EXPECT_EQ(second.iterations, 1);
    EXPECT_EQ(second.clusters, first.clusters);
    EXPECT_TRUE(same_bits(second.centers, first.centers));
    EXPECT_TRUE(same_bits(again.weight, router.weight));

    Matrix<double> swapped = first.centers;
    swapped.row(0).swap(swapped.row(3));
    const KMeansFit third = fit_by_k_means(again, planted.contexts, planted.losses, {}, swapped);
    EXPECT_EQ(third.experts[0], first.experts[3]);
    EXPECT_EQ(third.experts[3], first.experts[0]);
}

TYPED_TEST(KMeans, TheOrderOfEnvironmentsDoesNotMatterFromGivenCenters) {
    using S = TypeParam;
    const Planted<S> planted(8);
    auto router = make<S>(Planted<S>::dim, Planted<S>::kinds), reversed = router;
    const Matrix<double> start = random_matrix<double>(4, Planted<S>::dim, 4, 4);
    const KMeansFit fit = fit_by_k_means(router, planted.contexts, planted.losses, {}, start);
    KMeansFit other = fit_by_k_means(reversed, Matrix<S>(planted.contexts.colwise().reverse()),
                                     Matrix<S>(planted.losses.colwise().reverse()), {}, start);
    std::reverse(other.clusters.begin(), other.clusters.end());
    EXPECT_EQ(other.clusters, fit.clusters);
    EXPECT_EQ(other.experts, fit.experts);
    ASSERT_EQ(fit.updated, other.updated);
    EXPECT_TRUE(compare(reversed.weight, router.weight, 1e-5));
}

TYPED_TEST(KMeans, OneExpertGetsEverything) {
    using S = TypeParam;
    auto router = make<S>(3, 1);
    const auto contexts = random_matrix<S>(9, 3, 1);
    const KMeansFit fit = fit_by_k_means(router, contexts, random_matrix<S>(9, 1, 2));
    EXPECT_TRUE(fit.updated);
    EXPECT_EQ(fit.experts, std::vector<Index>{0});
    EXPECT_TRUE(compare(logits_of(router, contexts), Matrix<S>(Matrix<S>::Ones(9, 1)), 1e-6));
}

TYPED_TEST(KMeans, TakesTheMedianOfLossesAndRanksNaNLast) {
    using S = TypeParam;
    constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    Matrix<S> contexts(8, 1), losses(8, 2);
    contexts << 0, 0, 0, 0, 9, 9, 9, 9;
    auto router = make<S>(1, 2);
    const auto experts = [&] {
        Matrix<double> centers(2, 1);
        centers << 0, 9;
        return fit_by_k_means(router, contexts, losses, {}, centers).experts;
    };
    losses.col(0) << 2, 2, 2, 2, 0, 0, 0, 0;
    losses.col(1) << 1, 1, 1, 1000, 9, 9, 9, 9;  // the mean would take expert 0
    EXPECT_EQ(experts(), (std::vector<Index>{1, 0}));
    losses.col(1) << 1, 1, 4, 4, 9, 9, 9, 9;  // 2.5 is between the two in the middle
    EXPECT_EQ(experts(), (std::vector<Index>{0, 1}));
    losses.col(1) << 1, 1, 2.5, 4, 9, 9, 9, 9;  // 1.75
    EXPECT_EQ(experts(), (std::vector<Index>{1, 0}));
    losses.col(1) << 2, 2, 2, 2, 9, 9, 9, 9;  // the lower of two
    EXPECT_EQ(experts(), (std::vector<Index>{0, 1}));
    losses.col(0) << nan, nan, nan, 2, 0, 0, 0, 0;
    EXPECT_EQ(experts(), (std::vector<Index>{1, 0}));
    losses.setConstant(nan);
    EXPECT_EQ(experts(), (std::vector<Index>{0, 1}));
}

TYPED_TEST(KMeans, DependsOnItsArgumentsOnly) {
    using S = TypeParam;
    const auto contexts = random_matrix<S>(50, 3, 1);
    const auto losses = random_matrix<S>(50, 5, 2);
    std::set<std::vector<Index>> results;
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
        auto once = make<S>(3, 5), twice = once;
        const KMeansFit fit = fit_by_k_means(once, contexts, losses, {.seed = seed});
        EXPECT_EQ(fit_by_k_means(twice, contexts, losses, {.seed = seed}).clusters, fit.clusters);
        EXPECT_TRUE(same_bits(once.weight, twice.weight));
        for (const moe::Isa isa : moe::supported_isas()) {
            moe::ScopedIsa forced(isa);
            twice = make<S>(3, 5);
            fit_by_k_means(twice, contexts, losses, {.seed = seed});
            EXPECT_TRUE(same_bits(once.weight, twice.weight));
        }
        results.insert(fit.clusters);
    }
    EXPECT_GT(results.size(), 1u);
}

TYPED_TEST(KMeans, ClustersAreThoseOfTheNearestCentersAndCentersTheirMeans) {
    using S = TypeParam;
    const auto contexts = random_matrix<S>(60, 3, 1);
    auto router = make<S>(3, 5);
    const KMeansFit fit = fit_by_k_means(router, contexts, random_matrix<S>(60, 5, 2),
                                         {.max_iterations = 1000, .tolerance = 0});
    Matrix<double> means = Matrix<double>::Zero(5, 3), sizes = Matrix<double>::Zero(5, 1);
    for (Index m = 0; m < 60; ++m) {
        const Matrix<double> c = contexts.row(m).template cast<double>();
        Index nearest = -1;
        (fit.centers.rowwise() - c.row(0)).rowwise().squaredNorm().minCoeff(&nearest);
        EXPECT_EQ(fit.clusters[static_cast<std::size_t>(m)], nearest);
        means.row(nearest) += c;
        sizes(nearest, 0) += 1;
    }
    for (Index e = 0; e < 5; ++e) means.row(e) /= sizes(e, 0);
    EXPECT_TRUE(compare(fit.centers, means, 1e-14));
    EXPECT_GT(fit.iterations, 1);
    auto short_run = make<S>(3, 5);
    EXPECT_EQ(fit_by_k_means(short_run, contexts, random_matrix<S>(60, 5, 2), {.max_iterations = 1})
                  .iterations,
              1);
}

TEST(SpreadCenters, AreDifferentPointsWhereThereAreEnough) {
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        Matrix<double> points(8, 1);
        points << 0, 0, 0, 0, 0, 1, 2, 3;
        const Matrix<double> centers = moe::detail::spread_centers(points, 4, seed);
        EXPECT_EQ(std::set<double>(centers.data(), centers.data() + 4).size(), 4u) << seed;
    }
}

TEST(SpreadCenters, AreTheBestOfDrawsInProportionToSquaredDistances) {
    // From 0 the others are drawn with 9 and 4 in 13, and -3 is best: it is missed by all four
    // draws in (4 / 13)^4 of the cases.
    Matrix<double> points(3, 1);
    points << 0, 2, -3;
    int first[3] = {}, near = 0;
    constexpr int seeds = 6000;
    for (std::uint64_t seed = 0; seed < seeds; ++seed) {
        const Matrix<double> centers = moe::detail::spread_centers(points, 2, seed);
        ++first[centers(0, 0) == 0 ? 0 : centers(0, 0) == 2 ? 1 : 2];
        near += centers(0, 0) == 0 && centers(1, 0) == 2;
    }
    for (const int count : first) EXPECT_NEAR(count, seeds / 3, 150);
    EXPECT_NEAR(static_cast<double>(near) / first[0], 0.00896, 0.006);
    EXPECT_GT(near, 4);
}

TEST(KMeansFit, OfARouterInsideALayerRoutesItsEnvironments) {
    const Planted<float> planted(11);
    auto layer = moe::make_layer<float>(moe::Config{.model_dim = Planted<float>::dim},
                                        moe::LinearRouter{.bias = true}, moe::TopK{.k = 1},
                                        moe::Swiglu{.count = Planted<float>::kinds, .ffn_dim = 4});
    ASSERT_TRUE(fit_by_k_means(layer.head().router(), planted.contexts, planted.losses).updated);
    moe::Workspace<float> ws;
    Matrix<float> y(Planted<float>::environments, Planted<float>::dim);
    layer.forward(planted.contexts, y, ws);
    for (const moe::Assignment& a : ws.routing().assignments())
        EXPECT_EQ(a.expert, planted.best(a.token));
}

TEST(KMeansFit, RefusesWhatDoesNotFitAndChangesNothing) {
    const auto contexts = random_matrix<float>(9, 3, 1), losses = random_matrix<float>(9, 4, 2);
    auto router = make<float>(3, 4);
    const auto before = router;
    const auto refused = [&](const Matrix<float>& c, const Matrix<float>& l,
                             const moe::KMeans& settings = {}, const Matrix<double>& centers = {}) {
        return message([&] { fit_by_k_means(router, c, l, settings, centers); });
    };
    const std::string who = "moe::fit_by_k_means: ";
    EXPECT_EQ(refused(random_matrix<float>(9, 2, 1), losses),
              who + "contexts has 2 columns, the router reads 3");
    EXPECT_EQ(refused(contexts, random_matrix<float>(8, 4, 2)),
              who + "losses is [8, 4], it must be [9, 4]: rows of contexts, logits of the router");
    EXPECT_NE(refused(contexts, random_matrix<float>(9, 3, 2)).find("losses is [9, 3]"),
              std::string::npos);
    EXPECT_EQ(refused(contexts, losses, {}, Matrix<double>::Zero(3, 3)),
              who + "centers is [3, 3], it must be [4, 3], or empty");
    EXPECT_EQ(refused(contexts, losses, {.max_iterations = 0}),
              "moe::KMeans: max_iterations is 0, it must be >= 1");
    for (const double tolerance : {-1.0, std::numeric_limits<double>::quiet_NaN()})
        EXPECT_NE(refused(contexts, losses, {.tolerance = tolerance}).find("it must be >= 0"),
                  std::string::npos);
    auto bad = contexts;
    bad(4, 1) = std::numeric_limits<float>::infinity();
    EXPECT_EQ(refused(bad, losses), who + "contexts(4, 1) is inf, it must be finite");
    Matrix<double> centers = Matrix<double>::Zero(4, 3);
    centers(0, 0) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(refused(contexts, losses, {}, centers),
              who + "centers(0, 0) is nan, it must be finite");
    EXPECT_TRUE(same_bits(router.weight, before.weight));

    auto unbiased = make<float>(3, 4, false);
    EXPECT_NE(message([&] { fit_by_k_means(unbiased, contexts, losses); }).find("has no bias"),
              std::string::npos);
    auto frozen = router.freeze({});
    EXPECT_NE(message([&] { fit_by_k_means(frozen, contexts, losses); }).find("is frozen"),
              std::string::npos);
}

}  // namespace
