// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include <moe/bank.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/ranks.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/token_laws.hpp"

namespace {

using gates_test::batch;
using gates_test::chosen;
using gates_test::Experts;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Index;
using moe::Matrix;
using moe::Normalize;
using moe::Placement;
using moe::Ranks;
using moe::Score;

static_assert(moe::Recipe<Ranks>);
static_assert(moe::TrainableGate<moe::RanksModule<float>, float>);

template <class S>
class RanksGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(RanksGate, Scalars);

TYPED_TEST(RanksGate, PicksTheExpertsOfItsRanks) {
    using S = TypeParam;
    const auto z = golden_logits<S>();
    EXPECT_EQ(chosen(Ranks{}, z), (std::vector<Experts>{{0}, {7}, {6}, {6}}));
    EXPECT_EQ(chosen(Ranks{.ranks = {2}}, z), (std::vector<Experts>{{2}, {1}, {2}, {5}}));
    EXPECT_EQ(chosen(Ranks{.ranks = {0, 2, 7}}, z)[0], (Experts{5, 2, 4}));
}

TYPED_TEST(RanksGate, IsASortOfThePlainLoop) {
    using S = TypeParam;
    const Matrix<S> z = moe::testing::random_matrix<S>(60, 50, 5, 3);
    for (const std::vector<Index>& ranks :
         {std::vector<Index>{0}, {3, 4}, {1, 31, 32}, {0, 7, 49}, {45, 46, 47}}) {
        auto tokens = batch<S>(Ranks{.ranks = ranks, .normalize = Normalize::none}, 50);
        tokens.route(z);
        for (Index t = 0; t < 60; ++t) {
            Experts order(50);
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(),
                             [&](Index a, Index b) { return z(t, a) > z(t, b); });
            double sum = 0;
            for (Index e = 0; e < 50; ++e) sum += std::exp(static_cast<double>(z(t, e)));
            ASSERT_EQ(tokens.experts_of(t).size(), ranks.size());
            for (std::size_t i = 0; i < ranks.size(); ++i) {
                const Index e = order[static_cast<std::size_t>(ranks[i])];
                EXPECT_EQ(tokens.experts_of(t)[i], e);
                EXPECT_NEAR(tokens.weights_of(t)[i], std::exp(static_cast<double>(z(t, e))) / sum,
                            sizeof(S) == 4 ? 1e-6 : 1e-14);
            }
        }
    }
}

TYPED_TEST(RanksGate, FromZeroOnIsTopK) {
    using S = TypeParam;
    const Matrix<S> z = moe::testing::random_matrix<S>(60, 40, 5, 3);
    for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected}) {
        auto ranks = batch<S>(Ranks{.ranks = {0, 1, 2}, .score = score}, 40);
        auto top_k = batch<S>(moe::TopK{.k = 3, .score = score}, 40);
        ranks.route(z);
        top_k.route(z);
        EXPECT_EQ(ranks.routing, top_k.routing);
        const auto c = gates_test::derivatives<S>(180);
        EXPECT_TRUE(moe::testing::same_bits(ranks.backward(z, c), top_k.backward(z, c),
                                            {.allow_zeros = true}));
    }
}

TYPED_TEST(RanksGate, OfAllRanksIsEveryExpertOnce) {
    using S = TypeParam;
    const Matrix<S> z = moe::testing::random_matrix<S>(60, 6, 5, 3);
    std::vector<Experts> all(60);
    for (const Index rank : {0, 1, 2, 3, 4, 5}) {
        const auto one = chosen(Ranks{.ranks = {rank}}, z);
        for (std::size_t t = 0; t < 60; ++t) all[t].push_back(one[t].at(0));
    }
    EXPECT_EQ(all, chosen(Ranks{.ranks = {0, 1, 2, 3, 4, 5}}, z));
}

TYPED_TEST(RanksGate, GivesOneExpertAloneAWeightOfOneAndSharesAmongMore) {
    using S = TypeParam;
    auto one = batch<S>(Ranks{}, 8), two = batch<S>(Ranks{.ranks = {1, 2}}, 8);
    one.route(golden_logits<S>());
    two.route(golden_logits<S>());
    for (Index t = 0; t < 4; ++t) {
        EXPECT_EQ(one.weights_of(t), (std::vector<double>{1}));
        EXPECT_NEAR(two.weights_of(t)[0] + two.weights_of(t)[1], 1, 1e-6);
    }
    EXPECT_NEAR(two.weights_of(0)[0], .1953901 / (.1953901 + .1309739), 1e-6);
}

TYPED_TEST(RanksGate, GivesTiesToTheLowerIndexAndIsBlindToAConstant) {
    using S = TypeParam;
    EXPECT_EQ(chosen(Ranks{.ranks = {0, 1, 3}}, rows<S>({{0, 0, 0, 0}, {1, 2, 2, 1}})),
              (std::vector<Experts>{{0, 1, 3}, {1, 2, 3}}));
    const Matrix<S> z = (moe::testing::random_matrix<S>(50, 24, 9, 2).array() * 8).round() / 8;
    const Matrix<S> shifted = z.array() + S(64);
    EXPECT_EQ(chosen(Ranks{.ranks = {1, 5}}, z), chosen(Ranks{.ranks = {1, 5}}, shifted));
}

TYPED_TEST(RanksGate, HasFewerExpertsWhereFewerHaveARank) {
    using S = TypeParam;
    auto z = rows<S>({{1, 2, 3, 4}, {1, 2, 3, 4}});
    z(0, 3) = z(0, 1) = z(0, 0) = -std::numeric_limits<S>::infinity();
    EXPECT_EQ(chosen(Ranks{.ranks = {0, 2}}, z), (std::vector<Experts>{{2}, {3, 1}}));
    EXPECT_EQ(chosen(Ranks{.ranks = {1}}, z), (std::vector<Experts>{{}, {2}}));
}

TYPED_TEST(RanksGate, LeavesNullExpertsOutOfTheSum) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[0].is_null = true;
    auto tokens = batch<S>(Ranks{.ranks = {1, 2}}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 1}));
}

TYPED_TEST(RanksGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const Ranks& recipe : {Ranks{.score = Score::sigmoid, .normalize = Normalize::none},
                                Ranks{.ranks = {0, 1, 4}, .score = Score::sigmoid},
                                Ranks{.ranks = {2, 3}, .normalize = Normalize::none}}) {
        gates_test::expect_token_laws<S>(recipe);
        gates_test::expect_token_permutation<S>(recipe);
        gates_test::expect_bytes_as_said(recipe);
    }
    gates_test::expect_one_expert_works<S>(Ranks{.ranks = {0}});
}

TEST(RanksGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_spaced<double>(6, 9, 12, 0.2);
    for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected})
        for (const Normalize normalize :
             {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
            for (const Placement placement : {Placement::output, Placement::input})
                gates_test::expect_gradient(Ranks{.ranks = {1, 2, 5},
                                                  .score = score,
                                                  .normalize = normalize,
                                                  .epsilon = 0.6,
                                                  .scale = 1.5,
                                                  .placement = placement},
                                            z);
}

TEST(RanksLayer, HasTheGradientsOfDifferences) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{.bias = true},
        Ranks{.ranks = {1, 3}}, moe::Swiglu{.count = 5, .ffn_dim = 4});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 20, .columns = 5, .scale = 0.01}));
}

// A strong and a weak pass through one layer: one router, one bank, two gates.
TEST(RanksPair, ContrastsTwoPassesThroughTheExpertsOfOneLayer) {
    constexpr Index tokens = 6, dim = 4;
    const moe::Config config{.model_dim = dim, .seed = 3};
    const moe::LinearRouter router;
    const moe::Bank<double, moe::Swiglu> bank(config, moe::Swiglu{.count = 5, .ffn_dim = 3});
    const moe::Head<double, moe::LinearRouter, moe::TopK> strong(config, router, moe::TopK{.k = 2},
                                                                 bank.facts());
    const auto weak = moe::Head<double, moe::LinearRouter, Ranks>::of_modules(
        config, strong.router(), gates_test::build<double>(Ranks{.ranks = {2}}, 5), bank.facts());

    const auto x = moe::testing::random_matrix<double>(tokens, dim, 7);
    moe::Workspace<double> strong_ws, weak_ws, bank_ws, single_ws;
    strong.route(x, strong_ws);
    weak.route(x, weak_ws);
    EXPECT_TRUE(moe::testing::same_bits(Matrix<double>(strong_ws.logits()),
                                        Matrix<double>(weak_ws.logits())));
    Matrix<double> strong_y(tokens, dim), weak_y(tokens, dim), expected(tokens, dim);
    bank.apply(x, strong_ws.routing(), strong_y, bank_ws);
    bank.apply(x, weak_ws.routing(), weak_y, bank_ws);
    EXPECT_FALSE(moe::testing::compare(weak_y, strong_y, 1e-3));

    moe::Routing third;  // by hand: the expert that two logits exceed, with weight 1
    third.reset(tokens, 5);
    for (Index t = 0; t < tokens; ++t)
        for (Index e = 0; e < 5; ++e)
            if ((strong_ws.logits().row(t).array() > strong_ws.logits()(t, e)).count() == 2)
                third.add(t, e);
    third.group();
    EXPECT_EQ(weak_ws.routing(), third);
    bank.apply(x, third, expected, single_ws);
    EXPECT_TRUE(moe::testing::same_bits(weak_y, expected));
}

TEST(RanksSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(Ranks{}), "");
    EXPECT_EQ(refusal(Ranks{.ranks = {0, 1, 2, 3, 4, 5, 6, 7}}), "");
    EXPECT_EQ(refusal(Ranks{.ranks = {}}),
              "moe::Ranks: ranks is empty; name at least one: moe::Ranks{.ranks = {1}}");
    EXPECT_EQ(refusal(Ranks{.ranks = {8}}),
              "moe::Ranks: a rank is 8, it must be in [0, 8), the experts of the layer");
    EXPECT_NE(refusal(Ranks{.ranks = {-1}}), "");
    EXPECT_EQ(refusal(Ranks{.ranks = {2, 1}}),
              "moe::Ranks: rank 1 follows rank 2, they must ascend; slots are in falling order of "
              "the logits");
    EXPECT_NE(refusal(Ranks{.ranks = {1, 1}}), "");
    EXPECT_NE(refusal(Ranks{.epsilon = -1}), "");
}

}  // namespace
