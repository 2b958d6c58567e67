// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/min_p.hpp>
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
using moe::MinP;
using moe::Normalize;
using moe::Placement;

static_assert(moe::Recipe<MinP>);
static_assert(moe::TrainableGate<moe::MinPModule<float>, float>);

template <class S>
class MinPGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(MinPGate, Scalars);

TYPED_TEST(MinPGate, ComparesWithTheBestExpert) {
    using S = TypeParam;
    const auto z = golden_logits<S>();  // best probabilities .4348, .2584, .9312, .1728
    EXPECT_EQ(chosen(MinP{}, z),
              (std::vector<Experts>{
                  {5, 0, 2, 6, 3, 1}, {3, 7, 1, 5, 0, 6, 2, 4}, {0}, {7, 6, 5, 4, 3, 2, 1, 0}}));
    EXPECT_EQ(chosen(MinP{.min_p = 0.4}, z)[0], (Experts{5, 0}));
    EXPECT_EQ(chosen(MinP{.min_p = 0.6}, z)[1], (Experts{3, 7, 1}));
    auto tokens = batch<S>(MinP{.min_p = 0.4}, 8);
    tokens.route(z);
    EXPECT_NEAR(tokens.weights_of(0)[0], .4348488 / (.4348488 + .1953901), 1e-6);
    EXPECT_EQ(tokens.weights_of(2), (std::vector<double>{1}));
}

TYPED_TEST(MinPGate, IsThePlainLoopOverProbabilities) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 40, 5, 3);
    for (const double min_p : {0.003, 0.0517, 0.3, 0.84}) {
        auto tokens = batch<S>(MinP{.min_p = min_p, .normalize = Normalize::none}, 40);
        tokens.route(z);
        for (Index t = 0; t < 60; ++t) {
            double sum = 0, best = 0;
            for (Index e = 0; e < 40; ++e) sum += std::exp(static_cast<double>(z(t, e)));
            for (Index e = 0; e < 40; ++e)
                best = std::max(best, std::exp(static_cast<double>(z(t, e))) / sum);
            std::vector<std::pair<double, Index>> passing;
            for (Index e = 0; e < 40; ++e) {
                const double p = std::exp(static_cast<double>(z(t, e))) / sum;
                ASSERT_GT(std::abs(p / best - min_p), 1e-7) << "choose other numbers";
                if (p >= min_p * best) passing.emplace_back(-p, e);
            }
            std::sort(passing.begin(), passing.end());
            ASSERT_EQ(tokens.weights_of(t).size(), passing.size());
            for (std::size_t i = 0; i < passing.size(); ++i) {
                EXPECT_EQ(tokens.experts_of(t)[i], passing[i].second);
                EXPECT_NEAR(tokens.weights_of(t)[i], -passing[i].first,
                            sizeof(S) == 4 ? 1e-6 : 1e-14);
            }
        }
    }
}

TYPED_TEST(MinPGate, IsBlindToAConstant) {
    using S = TypeParam;
    const moe::Matrix<S> z =  // multiples of 1/8, so that the sums are exact
        (moe::testing::random_matrix<S>(50, 24, 9, 2).array() * 8).round() / 8;
    const moe::Matrix<S> shifted = z.array() - S(4096);
    EXPECT_EQ(chosen(MinP{}, z), chosen(MinP{}, shifted));
}

TYPED_TEST(MinPGate, DoesNotMindTheOtherExperts) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 12, 9, 2);
    moe::Matrix<S> wide(30, 20);  // eight more, none better than the best
    for (Index t = 0; t < 30; ++t) {
        wide.row(t).head(12) = z.row(t);
        wide.row(t).tail(8).fill(z.row(t).maxCoeff());
    }
    const auto few = chosen(MinP{}, z), many = chosen(MinP{}, wide);
    for (std::size_t t = 0; t < 30; ++t) {
        Experts old;
        for (const Index e : many[t])
            if (e < 12) old.push_back(e);
        EXPECT_EQ(old, few[t]);
    }
}

TYPED_TEST(MinPGate, TakesFewerAsMinPRisesFromAllToTheBest) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 24, 9, 2);
    auto before = chosen(MinP{.min_p = 0}, z);
    for (const Experts& experts : before) EXPECT_EQ(experts.size(), 24u);
    for (const double min_p : {1e-300, 0.01, 0.1, 0.3, 0.7, 0.95, 1.0}) {
        const auto now = chosen(MinP{.min_p = min_p}, z);
        for (std::size_t t = 0; t < 50; ++t) {
            ASSERT_LE(now[t].size(), before[t].size());
            EXPECT_TRUE(std::equal(now[t].begin(), now[t].end(), before[t].begin()));
        }
        before = now;
    }
    for (const Experts& experts : before) EXPECT_EQ(experts.size(), 1u);
}

TYPED_TEST(MinPGate, AtOneTakesTheBestAndItsEquals) {
    using S = TypeParam;
    const auto z = rows<S>({{1, 2, 2, 0}, {0, 0, 0, 0}, {1, 0, 0, 0}});
    EXPECT_EQ(chosen(MinP{.min_p = 1}, z), (std::vector<Experts>{{1, 2}, {0, 1, 2, 3}, {0}}));
    EXPECT_EQ(chosen(MinP{.min_p = 1, .max_experts = 2}, z)[1], (Experts{0, 1}));
}

TYPED_TEST(MinPGate, DecidesWhereProbabilitiesUnderflow) {
    using S = TypeParam;
    const auto z = rows<S>({{0, -690, -691, -3000}});  // log(1e-300) = -690.8
    EXPECT_EQ(chosen(MinP{.min_p = 1e-300}, z)[0], (Experts{0, 1}));
    EXPECT_EQ(chosen(MinP{.min_p = 0}, z)[0], (Experts{0, 1, 2, 3}));
}

TYPED_TEST(MinPGate, LeavesNullExpertsOutOfTheSum) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    auto tokens = batch<S>(MinP{.min_p = 0.3}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2}));
    EXPECT_EQ(tokens.weights_of(0)[0], 0);
    EXPECT_NEAR(tokens.weights_of(0)[1], .1953901 / (.1953901 + .1309739), 1e-6);
}

TYPED_TEST(MinPGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const MinP& recipe : {MinP{}, MinP{.min_p = 0.01, .max_experts = 8},
                               MinP{.min_p = 0, .normalize = Normalize::none}}) {
        gates_test::expect_token_laws<S>(recipe);
        gates_test::expect_token_permutation<S>(recipe);
        gates_test::expect_bytes_as_said(recipe);
    }
    gates_test::expect_one_expert_works<S>(MinP{});
}

TYPED_TEST(MinPGate, ShowsPlusInfinityAsANaN) {
    using S = TypeParam;
    auto z = rows<S>({{1, 0, -1}});
    z(0, 2) = std::numeric_limits<S>::infinity();
    auto tokens = batch<S>(MinP{}, 3);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{2}));
    EXPECT_TRUE(std::isnan(tokens.weights_of(0)[0]));
}

TEST(MinPGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_spaced<double>(6, 9, 12, 0.2);
    for (const Normalize normalize :
         {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
        for (const Placement placement : {Placement::output, Placement::input})
            gates_test::expect_gradient(MinP{.min_p = 0.3,
                                             .normalize = normalize,
                                             .epsilon = 0.6,
                                             .scale = 1.5,
                                             .placement = placement},
                                        z);
}

TEST(MinPLayer, HasTheGradientsOfDifferences) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4},
                                               moe::LinearRouter{.bias = true}, MinP{.min_p = 0.3},
                                               moe::Swiglu{.count = 5, .ffn_dim = 4});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 7, .columns = 5}));
}

TEST(MinPSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(MinP{}), "");
    EXPECT_EQ(refusal(MinP{.min_p = 0}), "");
    EXPECT_EQ(refusal(MinP{.min_p = 1.5}), "moe::MinP: min_p is 1.5, it must be in [0, 1]");
    EXPECT_NE(refusal(MinP{.min_p = -0.1}), "");
    EXPECT_NE(refusal(MinP{.min_p = std::nan("")}), "");
    EXPECT_EQ(refusal(MinP{.max_experts = 9}),
              "moe::MinP: max_experts is 9, it must be in [1, 8], or 0 for all");
    EXPECT_NE(refusal(MinP{.epsilon = -1}), "");
}

}  // namespace
