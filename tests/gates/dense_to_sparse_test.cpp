// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/dense_to_sparse.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/token_laws.hpp"
#include "seams/check.hpp"

namespace {

using gates_test::batch;
using gates_test::chosen;
using gates_test::Experts;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Context;
using moe::DenseToSparse;
using moe::Index;
using moe::Schedule;

static_assert(moe::Recipe<DenseToSparse>);
static_assert(moe::TrainableGate<moe::DenseToSparseModule<float>, float>);

constexpr Context training{.training = true, .step = 5, .seed = 9};

/// Gumbel noise of an example, [tokens, experts].
std::vector<double> gumbel(Index tokens, Index experts, std::uint64_t seed = 2) {
    std::vector<double> noise;
    for (Index i = 0; i < tokens * experts; ++i) {
        const double u =
            (moe::testing::random_value(seed, static_cast<std::uint64_t>(i)) + 1.0001) / 2.0002;
        noise.push_back(-std::log(-std::log(u)));
    }
    return noise;
}

DenseToSparse at(double temperature, double threshold = 0.001) {
    return {.temperature = Schedule::constant(temperature), .threshold = threshold};
}

template <class S>
class DenseToSparseGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(DenseToSparseGate, Scalars);

TYPED_TEST(DenseToSparseGate, IsThePlainLoopWithGivenNoise) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 9, 5, 2);
    const auto noise = gumbel(50, 9);
    for (const double tau : {2.0, 0.7, 0.2})
        for (const double threshold : {0.001, 0.0831, 0.97})
            for (const bool noisy_weights : {true, false})
                for (const bool hard : {false, true}) {
                    DenseToSparse recipe = at(tau, threshold);
                    recipe.noisy_weights = noisy_weights;
                    recipe.hard_from = hard ? 5 : 6;
                    recipe.scale = 1.5;
                    auto tokens = batch<S>(recipe, 9);
                    tokens.context = training;
                    tokens.context.noise = noise;
                    tokens.route(z);
                    for (Index t = 0; t < 50; ++t) {
                        double over = 0, plain_over = 0;
                        std::vector<double> p, plain;
                        for (Index e = 0; e < 9; ++e) {
                            const auto value = static_cast<double>(z(t, e));
                            const double g = noise[static_cast<std::size_t>(t * 9 + e)];
                            p.push_back(std::exp((value + g) / tau));
                            plain.push_back(std::exp(value));
                            over += p.back();
                            plain_over += plain.back();
                        }
                        std::vector<std::pair<double, Index>> active;
                        const double most = *std::max_element(p.begin(), p.end());
                        for (std::size_t e = 0; e < 9; ++e)
                            if (p[e] == most || (!hard && p[e] / over > threshold))
                                active.emplace_back(-p[e], static_cast<Index>(e));
                        std::sort(active.begin(), active.end());
                        ASSERT_EQ(tokens.experts_of(t).size(), active.size());
                        for (std::size_t i = 0; i < active.size(); ++i) {
                            const Index e = active[i].second;
                            EXPECT_EQ(tokens.experts_of(t)[i], e);
                            EXPECT_NEAR(tokens.weights_of(t)[i],
                                        1.5 * (noisy_weights ? -active[i].first / over
                                                             : plain[static_cast<std::size_t>(e)] /
                                                                   plain_over),
                                        sizeof(S) == 4 ? 1e-5 : 1e-13);
                        }
                    }
                }
}

TYPED_TEST(DenseToSparseGate, AtInferenceIsTheBestExpertWithoutNoise) {
    using S = TypeParam;
    for (const double tau : {2.0, 0.1, -1.0}) {
        auto tokens = batch<S>(at(tau), 8);
        tokens.context.seed = 9;
        tokens.route(golden_logits<S>());
        const double weights[] = {.4348488, .2583614, .9312397, .1728120};
        const Index experts[] = {5, 3, 0, 7};
        for (Index t = 0; t < 4; ++t) {
            EXPECT_EQ(tokens.experts_of(t), (Experts{experts[t]}));
            EXPECT_NEAR(tokens.weights_of(t)[0], weights[t], 1e-6);
        }
    }
}

TYPED_TEST(DenseToSparseGate, AtTemperatureZeroAsksAllExpertsWithoutNoise) {
    using S = TypeParam;
    for (const double tau : {0.0, -1.0}) {
        auto tokens = batch<S>(at(tau, 0.5), 8);
        tokens.context = training;
        tokens.route(golden_logits<S>());
        EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2, 6, 3, 1, 7, 4}));
        EXPECT_TRUE(
            moe::testing::compare(tokens.weights_of(0),
                                  std::vector<double>{.4348488, .1953901, .1309739, .0877945,
                                                      .0650397, .0435974, .0292242, .0131313},
                                  5e-7));
        DenseToSparse hard = at(tau);
        hard.hard_from = 5;
        EXPECT_EQ(chosen(hard, golden_logits<S>(), training)[0], (Experts{5}));
    }
}

TYPED_TEST(DenseToSparseGate, FollowsTheTemperatureOfTheStep) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 9, 5, 2);
    const DenseToSparse recipe{
        .temperature = {.from = 4, .to = 0.25, .steps = 100}, .threshold = 0.05, .hard_from = 200};
    const auto noise = gumbel(50, 9);
    for (const std::uint64_t step : {0u, 40u, 100u, 150u}) {
        Context context = training;
        context.step = step;
        context.noise = noise;
        EXPECT_EQ(chosen(recipe, z, context),
                  chosen(at(recipe.temperature.at(step), 0.05), z, context));
    }
    Context context = training;
    context.step = 200;
    for (const Experts& experts : chosen(recipe, z, context)) EXPECT_EQ(experts.size(), 1u);
}

TEST(DenseToSparseLaw, FixedNoiseNeverGivesMoreExpertsAsTheTemperatureFalls) {
    constexpr Index tokens = 200, experts = 12;
    const auto z = moe::testing::random_matrix<double>(tokens, experts, 5, 2);
    const auto noise = gumbel(tokens, experts);
    Context context = training;
    context.noise = noise;
    for (const double threshold : {1.0 / experts, 0.05, 0.001}) {
        std::vector<std::size_t> before(tokens, experts);
        std::size_t first = 0, last = 0;
        for (double tau = 8; tau > 0.02; tau *= 0.8) {
            const auto now = chosen(at(tau, threshold), z, context);
            last = 0;
            for (std::size_t t = 0; t < before.size(); ++t) {
                ASSERT_LE(now[t].size(), before[t]) << tau;
                before[t] = now[t].size();
                last += before[t];
            }
            if (first == 0) first = last;
        }
        EXPECT_GT(first, 2 * last) << "nothing was tried";
        EXPECT_LT(last, tokens + tokens / 5);
    }
}

TYPED_TEST(DenseToSparseGate, DrawsNoiseByTokenAndExpert) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::Matrix<S>::Zero(40, 6);
    const auto all = chosen(at(0.5, 0.1), z, training);
    EXPECT_EQ(all, chosen(at(0.5, 0.1), z, training)) << "the same call, the same noise";
    Context later = training;
    later.first_token = 15;
    const moe::Matrix<S> tail = z.bottomRows(25);
    const auto part = chosen(at(0.5, 0.1), tail, later);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 15)) << "a split batch";
    Context next = training;
    ++next.step;
    EXPECT_NE(chosen(at(0.5, 0.1), z, next), all);
    next = training;
    ++next.seed;
    EXPECT_NE(chosen(at(0.5, 0.1), z, next), all);
    std::vector<int> best(6);
    for (const Experts& experts : all) ++best[static_cast<std::size_t>(experts[0])];
    for (const int count : best) EXPECT_GT(count, 0) << "equal logits: anyone may be best";
}

/// The first of a Gumbel race is a sample of the softmax.
TEST(DenseToSparseNoise, MakesTheBestExpertASampleOfTheSoftmax) {
    constexpr Index tokens = 20000;
    const moe::Matrix<double> z = rows<double>({{1, 0, 0.5, -1}}).replicate(tokens, 1);
    DenseToSparse recipe = at(1);
    recipe.hard_from = 0;
    std::vector<double> share(4);
    for (const Experts& experts : chosen(recipe, z, training))
        share[static_cast<std::size_t>(experts.at(0))] += 1.0 / tokens;
    const double over = std::exp(1) + 1 + std::exp(0.5) + std::exp(-1);
    for (Index e = 0; e < 4; ++e)
        EXPECT_NEAR(share[static_cast<std::size_t>(e)], std::exp(z(0, e)) / over, 0.015);
}

TYPED_TEST(DenseToSparseGate, IsBlindToAConstant) {
    using S = TypeParam;
    const auto noise = std::vector<double>(50 * 12, 0.25);
    const moe::Matrix<S> z = (moe::testing::random_matrix<S>(50, 12, 9, 2).array() * 8).round() / 8;
    const moe::Matrix<S> shifted = z.array() + S(64);
    Context context = training;
    context.noise = noise;
    EXPECT_EQ(chosen(at(0.5, 0.05), z, context), chosen(at(0.5, 0.05), shifted, context));
}

TYPED_TEST(DenseToSparseGate, GivesTiesToTheLowerIndexAndNullExpertsNoWeight) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::Matrix<S>::Zero(1, 4);
    const std::vector<double> noise(4, 1.0);
    std::vector<moe::ExpertFacts> facts(4);
    facts[2].is_null = true;
    auto tokens = batch<S>(at(0.5), 4);
    tokens.context = training;
    tokens.context.noise = noise;
    tokens.context.experts = facts;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 1, 2, 3}));
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0.25, 0.25, 0, 0.25}));
    EXPECT_EQ(chosen(at(0.5, 0.25), z, tokens.context)[0], (Experts{0})) << "the best always";
}

TYPED_TEST(DenseToSparseGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const DenseToSparse& recipe :
         {at(1), at(0.5, 0.1), at(0),
          DenseToSparse{.temperature = Schedule::constant(0.7), .noisy_weights = false}})
        gates_test::expect_token_laws<S>(recipe, training);
    gates_test::expect_token_laws<S>(at(1));
    gates_test::expect_token_permutation<S>(DenseToSparse{});
    gates_test::expect_bytes_as_said(DenseToSparse{});
    gates_test::expect_bytes_as_said(DenseToSparse{.noisy_weights = false});
    gates_test::expect_one_expert_works<S>(at(1));
    gates_test::expect_one_expert_works<S>(at(1), training);
}

TEST(DenseToSparseGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_spaced<double>(6, 9, 12, 0.2);
    for (const double tau : {1.7, 0.4, 0.0})
        for (const bool noisy_weights : {true, false})
            for (const bool hard : {false, true})
                for (const bool is_training : {true, false}) {
                    DenseToSparse recipe = at(tau, 0.06);
                    recipe.noisy_weights = noisy_weights;
                    recipe.hard_from = hard ? 0 : 100;
                    recipe.scale = 1.5;
                    Context context = training;
                    context.training = is_training;
                    gates_test::expect_gradient(recipe, z, context);
                }
}

TEST(DenseToSparseLayer, HasTheGradientsOfDifferencesWithItsNoise) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4},
                                               moe::LinearRouter{.bias = true}, at(0.8, 0.05),
                                               moe::Swiglu{.count = 4, .ffn_dim = 4});
    seams::expect_exact_layer(layer, moe::testing::random_matrix<double>(6, 5, 7), training);
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 9, .columns = 5, .scale = 0.01}))
        << "at inference";
}

TEST(DenseToSparseSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(DenseToSparse{}), "");
    EXPECT_EQ(refusal(DenseToSparse{.temperature = {.from = std::nan("")}}),
              "moe::DenseToSparse: temperature.from is nan, it must be finite");
    EXPECT_EQ(refusal(DenseToSparse{.threshold = std::nan("")}),
              "moe::DenseToSparse: threshold is nan, it must be finite");
    EXPECT_NE(refusal(DenseToSparse{.scale = std::nan("")}), "");
}

TEST(DenseToSparseSettings, NoiseOfAnotherExtentIsRefused) {
    auto tokens = batch<double>(at(1), 8);
    const std::vector<double> noise(31);
    tokens.context = training;
    tokens.context.noise = noise;
    EXPECT_THROW(tokens.select(golden_logits<double>()), std::invalid_argument);
}

}  // namespace
