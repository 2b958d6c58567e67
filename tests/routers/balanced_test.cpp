// SPDX-License-Identifier: MIT
#include <moe/routers/balanced.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/top_p.hpp>
#include <moe/stats/load.hpp>
#include <moe/testing/gradient_check.hpp>

#include "routers/decided.hpp"
#include "support/message.hpp"

namespace {

using decided::Chosen;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using support::message;

template <class S>
class BalancedRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BalancedRouter, Scalars);

Chosen turns(Index tokens, Index k, Index taken, Index experts) {
    Chosen chosen(static_cast<std::size_t>(tokens));
    for (Index t = 0; t < tokens; ++t)
        for (Index j = 0; j < taken; ++j)
            chosen[static_cast<std::size_t>(t)].push_back((t * k + j) % experts);
    return chosen;
}

TYPED_TEST(BalancedRouter, PrefersExpertsInTurn) {
    using S = TypeParam;
    Matrix<S> expected(4, 5);
    expected << 0, -1, -2, -3, -4,  //
        -3, -4, 0, -1, -2,          //
        -1, -2, -3, -4, 0,          //
        -4, 0, -1, -2, -3;
    const auto router = decided::build<S>(moe::BalancedRouter{.k = 2}, 5);
    EXPECT_TRUE(moe::testing::same_bits(decided::logits_of<S>(router, 4, 5), expected));
}

TYPED_TEST(BalancedRouter, MakesALayerOfJustThoseExperts) {
    using S = TypeParam;
    for (const Index experts : {1, 4, 7})
        for (Index k = 1; k <= experts; ++k) {
            SCOPED_TRACE(std::to_string(experts) + " " + std::to_string(k));
            decided::expect_layer_takes<S>(moe::BalancedRouter{.k = k}, experts, k, {},
                                           turns(9, k, k, experts));
        }
    // a gate that takes another number of experts
    decided::expect_layer_takes<S>(moe::BalancedRouter{.k = 2}, 5, 4, {}, turns(9, 2, 4, 5));
}

TEST(BalancedRouterModule, BalancesPerfectlyWhereThatIsPossible) {
    for (const Index experts : {1, 2, 6, 8, 64})
        for (const Index k : {1, 2, 3, 8})
            for (const Index tokens : {1, 7, 48, 192}) {
                if (k > experts) continue;
                SCOPED_TRACE(std::to_string(experts) + " " + std::to_string(k) + " " +
                             std::to_string(tokens));
                const auto layer =
                    decided::layer_of<float>(moe::BalancedRouter{.k = k}, experts, k);
                Workspace<float> ws;
                const auto x = moe::testing::random_matrix<float>(tokens, decided::dim, 1);
                layer.route(x, ws, {.first_token = 1000003});
                const moe::LoadStats stats = moe::load_stats(ws.routing());
                const auto [least, most] = std::minmax_element(stats.tokens_per_expert.begin(),
                                                               stats.tokens_per_expert.end());
                EXPECT_LE(*most - *least, tokens * k % experts == 0 ? 0 : 1);
                EXPECT_EQ(stats.experts_per_token, static_cast<double>(k));
                if (tokens * k % experts == 0) {
                    EXPECT_EQ(stats.max_over_mean, 1);
                    EXPECT_EQ(stats.coefficient_of_variation, 0);
                }
            }
}

TYPED_TEST(BalancedRouter, GivesPartsOfABatchTheTurnsOfTheWhole) {
    using S = TypeParam;
    const auto router = decided::build<S>(moe::BalancedRouter{.k = 3}, 7);
    const Matrix<S> whole = decided::logits_of<S>(router, 20, 7, {.first_token = 5});
    for (Index cut = 1; cut < 20; ++cut) {
        EXPECT_EQ(decided::logits_of<S>(router, cut, 7, {.first_token = 5}), whole.topRows(cut));
        EXPECT_EQ(decided::logits_of<S>(router, 20 - cut, 7, {.first_token = 5 + cut}),
                  whole.bottomRows(20 - cut));
    }
}

TYPED_TEST(BalancedRouter, HasNoTokenNumberThatIsTooLarge) {
    using S = TypeParam;
    const auto router = decided::build<S>(moe::BalancedRouter{.k = 3}, 4);
    const std::int64_t most = std::numeric_limits<std::int64_t>::max();  // 2^63 - 1 = 3 mod 4
    EXPECT_EQ(decided::logits_of<S>(router, 1, 4, {.first_token = most})(0, 1), S(0));
    EXPECT_EQ(decided::logits_of<S>(router, 1, 4, {.first_token = -1})(0, 1), S(0));
}

TEST(BalancedRouterModule, GivesEveryTokenTheSameWeights) {
    // softmax of 0, -1 and of 0 .. -3, of which 0.9 takes the first two and a third
    const auto x = moe::testing::random_matrix<double>(8, decided::dim, 1);
    const auto weights = [&](const auto& gate) {
        const auto layer = moe::make_layer<double>(moe::Config{.model_dim = decided::dim},
                                                   moe::BalancedRouter{.k = 2}, gate,
                                                   moe::Swiglu{.count = 4, .ffn_dim = 3});
        Workspace<double> ws;
        layer.route(x, ws);
        std::vector<double> all;
        for (const moe::Assignment& a : ws.routing().assignments()) all.push_back(a.weight);
        return all;
    };
    const double first = 1 / (1 + std::exp(-1.0));
    const auto two = weights(moe::TopK{.k = 2});
    ASSERT_EQ(two.size(), 16u);
    for (std::size_t i = 0; i < 16; ++i)
        EXPECT_NEAR(two[i], i % 2 == 0 ? first : 1 - first, 1e-15) << i;
    EXPECT_EQ(weights(moe::TopP{.p = 0.9}).size(), 24u);
}

TEST(BalancedRouterModule, GradientsAreExact) {
    EXPECT_TRUE(moe::testing::check_gradients(
        decided::build<double>(moe::BalancedRouter{.k = 2}, 3),
        {.rows = 4, .columns = decided::dim, .output_columns = 3, .scale = 1}));
    EXPECT_TRUE(
        moe::testing::check_gradients(decided::layer_of<double>(moe::BalancedRouter{.k = 2}, 3, 2),
                                      {.rows = 5, .columns = decided::dim}));
}

TEST(BalancedRouterModule, LeavesPaddingUnroutedThoughItTakesItsTurn) {
    const std::vector<std::uint8_t> padding{0, 1, 0};
    decided::expect_layer_takes<double>(moe::BalancedRouter{.k = 1}, 3, 1, {.padding = padding},
                                        {{0}, {}, {2}});
}

TEST(BalancedRouterModule, RefusesKOutOfRange) {
    const auto build = [](Index k) {
        return message([&] { decided::build<float>(moe::BalancedRouter{.k = k}, 4); });
    };
    EXPECT_EQ(build(0),
              "moe::BalancedRouter: k is 0, it must be in [1, 4], the experts of the layer");
    EXPECT_EQ(build(5),
              "moe::BalancedRouter: k is 5, it must be in [1, 4], the experts of the layer");
}

}  // namespace
