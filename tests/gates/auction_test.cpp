// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/auction.hpp>
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
using moe::Auction;
using moe::Index;
using Experts = std::vector<Index>;

static_assert(moe::Recipe<Auction>);
static_assert(moe::TrainableGate<moe::AuctionModule<float>, float>);
static_assert(!moe::hooks::per_token<moe::AuctionModule<float>>);

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class AuctionGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(AuctionGate, Scalars);

constexpr moe::Context training{.training = true};

TYPED_TEST(AuctionGate, SharesTheTokensEvenlyInTraining) {
    using S = TypeParam;
    for (const Index tokens : {1, 7, 64, 100, 701}) {
        moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, 8, 5, 2);
        z.col(3).array() += S(4);  // all want expert 3
        auto drive = batch<S>(Auction{}, 8);
        drive.context.training = true;
        drive.route(z);
        EXPECT_EQ(drive.routing.num_assignments(), tokens);
        for (Index e = 0; e < 8; ++e) {
            const auto count = static_cast<Index>(drive.routing.tokens_of(e).size());
            EXPECT_GE(count, tokens / 8);
            EXPECT_LE(count, (tokens + 7) / 8);
        }
        for (Index t = 0; t < tokens; ++t) {
            const Index e = drive.experts_of(t).at(0);
            EXPECT_NEAR(drive.weights_of(t)[0], 1 / (1 + std::exp(-double(z(t, e)))), 1e-6);
        }
    }
}

TYPED_TEST(AuctionGate, TakesTheBestExpertAtInference) {
    using S = TypeParam;
    auto tokens = batch<S>(Auction{}, 8);
    tokens.route(golden_logits<S>());
    const Index best[] = {5, 3, 0, 7};
    const double weight[] = {.8807971, .7310586, .9525741, .6899745};
    for (Index t = 0; t < 4; ++t) {
        EXPECT_EQ(tokens.experts_of(t), (Experts{best[t]}));
        EXPECT_NEAR(tokens.weights_of(t)[0], weight[t], 1e-6);
    }
    tokens.route(moe::Matrix<S>::Zero(2, 8));  // ties
    EXPECT_EQ(tokens.experts_of(1), (Experts{0}));
}

TYPED_TEST(AuctionGate, LeavesTheBestWhereTheyAreEvenAlready) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 5, 5, 1);
    for (Index t = 0; t < 40; ++t) z(t, t % 5) += S(10);
    auto tokens = batch<S>(Auction{}, 5);
    tokens.context.training = true;
    tokens.route(z);
    for (Index t = 0; t < 40; ++t) EXPECT_EQ(tokens.experts_of(t), (Experts{t % 5}));
}

TYPED_TEST(AuctionGate, WeighsWithOnesIfAsked) {
    using S = TypeParam;
    auto tokens = batch<S>(Auction{.ones = true}, 8);
    tokens.context.training = true;
    const moe::Matrix<S> z = golden_logits<S>();
    tokens.route(z);
    for (const moe::Assignment& a : tokens.routing.assignments()) EXPECT_EQ(a.weight, 1);
    EXPECT_TRUE((tokens.backward(z, gates_test::derivatives<S>(4)).array() == 0).all());
}

TYPED_TEST(AuctionGate, NeverCrossesAMaskNorCountsPadding) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(31, 6, 4, 3);
    for (Index t = 0; t < 31; ++t)
        for (Index e = 0; e < 6; ++e)
            if ((t + e) % 3 == 0 || t == 7) z(t, e) = -infinity<S>;
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(Auction{}, 6);
        tokens.context.training = trains;
        tokens.route(z);
        EXPECT_EQ(tokens.routing.num_assignments(), 30);
        EXPECT_TRUE(tokens.routing.of(7).empty());
        for (const moe::Assignment& a : tokens.routing.assignments())
            EXPECT_GT(z(a.token, a.expert), -infinity<S>);
        for (Index e = 0; e < 6 && trains; ++e) EXPECT_EQ(tokens.routing.tokens_of(e).size(), 5u);
        const auto dz = tokens.backward(z, gates_test::derivatives<S>(30));
        EXPECT_TRUE(dz.allFinite() && (dz.row(7).array() == 0).all());
    }
}

TYPED_TEST(AuctionGate, ShowsANaNInTheWeight) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    z(1, 3) = nan<S>;
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(Auction{}, 8);
        tokens.context.training = trains;
        tokens.route(z);
        for (Index t = 0; t < 4; ++t) EXPECT_EQ(std::isnan(tokens.weights_of(t).at(0)), t == 1);
        EXPECT_NE(tokens.experts_of(1), (Experts{3}));
    }
}

TYPED_TEST(AuctionGate, ServesOneExpertAndNoTokens) {
    using S = TypeParam;
    auto one = batch<S>(Auction{}, 1);
    one.context.training = true;
    one.route(moe::testing::random_matrix<S>(5, 1, 3));
    EXPECT_EQ(one.routing.num_assignments(), 5);
    gates_test::expect_no_tokens_route<double>(Auction{}, 4, 4);
}

TEST(AuctionGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_matrix<double>(10, 5, 12, 3);
    gates_test::expect_exact_gradient(Auction{}, z, z.cols(), training);
    gates_test::expect_exact_gradient(Auction{}, z, z.cols());
    EXPECT_TRUE(moe::testing::check_gradients(
        moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 3}, moe::LinearRouter{},
                                Auction{}, moe::Swiglu{.count = 3, .ffn_dim = 6}, moe::Zero{}),
        {.rows = 7, .columns = 5, .scale = 0.01}));
}

TEST(AuctionSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(Auction{.resolution = 1}, 8), "");
    EXPECT_EQ(refusal(Auction{.resolution = 0.5}, 8),
              "moe::Auction: resolution is 0.5, it must be in [1, 1e6]; 50 is usual");
    EXPECT_NE(refusal(Auction{.resolution = nan<double>}, 8), "");
    EXPECT_NE(refusal(Auction{}, 0), "");
}

TYPED_TEST(AuctionGate, GivesTheSameBitsForAnyThreadCountAndAllocatesNothingAgain) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(700, 37, 3, 4);
    gates_test::expect_same_bits_for_any_thread_count<S>(Auction{}, z, z.cols(), training);
    gates_test::expect_no_allocation<S>(Auction{}, z, z.cols(), training);
}

}  // namespace
