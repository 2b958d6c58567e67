// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/threshold.hpp>
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
using moe::Normalize;
using moe::Placement;
using moe::Score;
using moe::Threshold;

static_assert(moe::Recipe<Threshold>);
static_assert(moe::TrainableGate<moe::ThresholdModule<float>, float>);

template <class S>
class ThresholdGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ThresholdGate, Scalars);

TYPED_TEST(ThresholdGate, TakesTheExpertsWhoseSigmoidIsAboveOneHalf) {
    using S = TypeParam;
    const auto z = golden_logits<S>();
    EXPECT_EQ(chosen(Threshold{}, z),
              (std::vector<Experts>{{5, 0, 2, 6, 3}, {3, 7, 1, 5}, {0}, {7, 6, 5, 4, 3, 2, 1, 0}}));
    auto tokens = batch<S>(Threshold{}, 8);
    tokens.route(z);
    EXPECT_NEAR(tokens.weights_of(0)[0], .8807971, 1e-6);
    EXPECT_NEAR(tokens.weights_of(2)[0], .9525741, 1e-6);
}

TYPED_TEST(ThresholdGate, IsThePlainLoopForEveryScoreAndThreshold) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 40, 5, 3);
    for (const Score score : {Score::softmax, Score::sigmoid, Score::raw, Score::sqrt_softplus})
        for (const double threshold : {-1.0, 0.013, 0.2, 0.71, 2.0}) {
            auto tokens = batch<S>(Threshold{.threshold = threshold, .score = score}, 40);
            tokens.route(z);
            for (Index t = 0; t < 60; ++t) {
                std::vector<std::pair<double, Index>> passing;
                double sum = 0;
                for (Index e = 0; e < 40; ++e) sum += std::exp(static_cast<double>(z(t, e)));
                for (Index e = 0; e < 40; ++e) {
                    const auto value = static_cast<double>(z(t, e));
                    const double s = score == Score::softmax   ? std::exp(value) / sum
                                     : score == Score::sigmoid ? 1 / (1 + std::exp(-value))
                                     : score == Score::raw     ? value
                                                           : std::sqrt(std::log1p(std::exp(value)));
                    ASSERT_GT(std::abs(s - threshold), 1e-7) << "choose other numbers";
                    if (s > threshold) passing.emplace_back(s, e);
                }
                std::sort(passing.begin(), passing.end(),
                          [](const auto& a, const auto& b) { return a.first > b.first; });
                const auto weights = tokens.weights_of(t);
                ASSERT_EQ(weights.size(), passing.size());
                for (std::size_t i = 0; i < passing.size(); ++i) {
                    EXPECT_EQ(tokens.experts_of(t)[i], passing[i].second);
                    EXPECT_NEAR(weights[i], passing[i].first, sizeof(S) == 4 ? 1e-6 : 1e-14);
                }
            }
        }
}

TYPED_TEST(ThresholdGate, LeavesAScoreThatIsTheThresholdOut) {
    using S = TypeParam;
    const auto z = rows<S>({{0, 0, 1, -1}});
    EXPECT_EQ(chosen(Threshold{.threshold = 0.5}, z)[0], (Experts{2}));
    const moe::Matrix<S> even = moe::Matrix<S>::Zero(1, 5);
    for (const double fifth : {0.2, static_cast<double>(0.2f)}) {
        const Threshold recipe{.threshold = fifth, .score = Score::softmax};
        EXPECT_EQ(chosen(recipe, even)[0].empty(), sizeof(S) == 4 || fifth >= 0.2);
    }
    EXPECT_EQ(chosen(Threshold{.threshold = 0.19, .score = Score::softmax}, even)[0],
              (Experts{0, 1, 2, 3, 4}))
        << "ties go to the lower index";
}

TYPED_TEST(ThresholdGate, TakesNobodyOrAsManyAsItMust) {
    using S = TypeParam;
    const auto z = rows<S>({{-1, -3, -2, -4}, {-1, 2, 1, 3}});
    EXPECT_EQ(chosen(Threshold{}, z), (std::vector<Experts>{{}, {3, 1, 2}}));
    EXPECT_EQ(chosen(Threshold{.min_experts = 1}, z), (std::vector<Experts>{{0}, {3, 1, 2}}));
    EXPECT_EQ(chosen(Threshold{.min_experts = 2}, z), (std::vector<Experts>{{0, 2}, {3, 1, 2}}));
    EXPECT_EQ(chosen(Threshold{.max_experts = 2}, z), (std::vector<Experts>{{}, {3, 1}}));
    EXPECT_EQ(chosen(Threshold{.min_experts = 4}, z)[1], (Experts{3, 1, 2, 0})) << "k = E";
}

TYPED_TEST(ThresholdGate, OfSoftmaxIsBlindToAConstant) {
    using S = TypeParam;
    const moe::Matrix<S> z =  // multiples of 1/8, so that the sums are exact
        (moe::testing::random_matrix<S>(50, 24, 9, 2).array() * 8).round() / 8;
    const moe::Matrix<S> shifted = z.array() + S(64);
    const Threshold recipe{.threshold = 0.05, .score = Score::softmax};
    EXPECT_EQ(chosen(recipe, z), chosen(recipe, shifted));
}

TYPED_TEST(ThresholdGate, TakesFewerAsTheThresholdRises) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 24, 9, 2);
    for (const Score score : {Score::softmax, Score::sigmoid}) {
        std::vector<Experts> before(50, Experts(24));
        for (double threshold = -0.05; threshold < 1.1; threshold += 0.05) {
            auto now = chosen(Threshold{.threshold = threshold, .score = score}, z);
            if (threshold > 0)
                for (std::size_t t = 0; t < 50; ++t) {
                    ASSERT_LE(now[t].size(), before[t].size());
                    EXPECT_TRUE(std::equal(now[t].begin(), now[t].end(), before[t].begin()));
                }
            before = std::move(now);
        }
        for (const Experts& experts : before) EXPECT_TRUE(experts.empty());
    }
}

TYPED_TEST(ThresholdGate, LeavesNullExpertsOutOfTheSum) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[3].is_null = true;
    auto tokens = batch<S>(Threshold{.normalize = Normalize::plain}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    const auto weights = tokens.weights_of(1);  // 3, 7, 1, 5
    EXPECT_EQ(weights[0], 0);
    EXPECT_NEAR(weights[1] + weights[2] + weights[3], 1, 1e-6);
}

TYPED_TEST(ThresholdGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const Threshold& recipe :
         {Threshold{}, Threshold{.threshold = 0.1, .score = Score::softmax, .max_experts = 8},
          Threshold{.threshold = 0.9, .min_experts = 2, .normalize = Normalize::plain}}) {
        gates_test::expect_token_laws<S>(recipe);
        gates_test::expect_token_permutation<S>(recipe);
        gates_test::expect_bytes_as_said(recipe);
    }
    gates_test::expect_one_expert_works<S>(Threshold{});
}

TYPED_TEST(ThresholdGate, TakesPlusInfinity) {
    using S = TypeParam;
    auto z = rows<S>({{1, 0, -1}});
    z(0, 2) = std::numeric_limits<S>::infinity();
    auto tokens = batch<S>(Threshold{}, 3);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{2, 0}));
    EXPECT_EQ(tokens.weights_of(0)[0], 1);
}

TEST(ThresholdGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_spaced<double>(6, 9, 12, 0.2);
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus})
        for (const Normalize normalize :
             {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
            for (const Placement placement : {Placement::output, Placement::input})
                gates_test::expect_gradient(
                    Threshold{.threshold = score == Score::softmax ? 0.08 : 0.45,
                              .score = score,
                              .min_experts = 2,
                              .normalize = normalize,
                              .epsilon = 0.6,
                              .scale = 1.5,
                              .placement = placement},
                    z);
}

TEST(ThresholdLayer, HasTheGradientsOfDifferences) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4},
                                               moe::LinearRouter{.bias = true}, Threshold{},
                                               moe::Swiglu{.count = 5, .ffn_dim = 4});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 7, .columns = 5}));
}

TEST(ThresholdSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(Threshold{}), "");
    EXPECT_EQ(refusal(Threshold{.threshold = std::numeric_limits<double>::infinity()}),
              "moe::Threshold: threshold is inf, it must be finite");
    EXPECT_NE(refusal(Threshold{.threshold = std::nan("")}), "");
    EXPECT_EQ(refusal(Threshold{.min_experts = 9}),
              "moe::Threshold: min_experts is 9, it must be in [0, 8], the experts of the layer");
    EXPECT_NE(refusal(Threshold{.min_experts = -1}), "");
    EXPECT_EQ(refusal(Threshold{.min_experts = 3, .max_experts = 2}),
              "moe::Threshold: max_experts is 2, it must be in [3, 8], or 0 for all");
    EXPECT_NE(refusal(Threshold{.max_experts = 9}), "");
    EXPECT_EQ(refusal(Threshold{.score = Score::softmax_of_selected}),
              "moe::Threshold: score is softmax_of_selected, which is not known before the "
              "selection; use softmax with Normalize::plain, the weights are the same");
    EXPECT_NE(refusal(Threshold{.epsilon = -1}), "");
}

}  // namespace
