// SPDX-License-Identifier: MIT
#include <moe/gates/gshard_top_2.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"
#include "seams/check.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::routed;
using gates_test::rows;
using moe::Dropped;
using moe::GShardTop2;
using moe::Index;
using moe::Normalize;
using moe::Score;
using Second = GShardTop2::Second;

static_assert(moe::Recipe<GShardTop2>);
static_assert(moe::TrainableGate<moe::GShardTop2Module<float>, float>);
static_assert(moe::hooks::per_token<moe::GShardTop2Module<float>>);

using Experts = std::vector<Index>;
constexpr Second all_seconds[] = {Second::all, Second::none, Second::threshold, Second::random,
                                  Second::random_raw};
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();
constexpr moe::Context training{.training = true, .seed = 3};

template <class S>
class GShardGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(GShardGate, Scalars);

// ---- the formula ----

TYPED_TEST(GShardGate, GivesBothExpertsAtInference) {
    using S = TypeParam;
    auto tokens = batch<S>(GShardTop2{}, 8);
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.routing.num_kept(), 8);
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7, 6}));
    EXPECT_NEAR(tokens.weights_of(0)[0], .4348488 / (.4348488 + .1953901), 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[1], .1953901 / (.4348488 + .1953901), 1e-6);
}

TYPED_TEST(GShardGate, AgreesWithThePlainFormulaInTraining) {
    using S = TypeParam;
    constexpr Index tokens = 80, experts = 6;
    const auto z = moe::testing::random_matrix<S>(tokens, experts, 4, 2);
    for (const Second second : all_seconds)
        for (const bool gumbel : {false, true})
            for (const double threshold : {0.2, 0.5})
                for (const bool kept_only : {false, true}) {
                    auto drive = batch<S>(GShardTop2{.second = second,
                                                     .threshold = threshold,
                                                     .gumbel = gumbel,
                                                     .normalize = Normalize::add_epsilon,
                                                     .epsilon = 0.1,
                                                     .normalize_kept_only = kept_only,
                                                     .scale = 2},
                                          experts);
                    drive.context = training;
                    drive.route(z);
                    const moe::CounterRandom random = drive.call().random();
                    int pruned = 0;
                    for (Index t = 0; t < tokens; ++t) {
                        Index first = 0, other = -1;
                        double sum = 0, highest = -infinity<double>;
                        const auto value = [&](Index e) { return static_cast<double>(z(t, e)); };
                        for (Index e = 0; e < experts; ++e) {
                            sum += std::exp(value(e));
                            if (value(e) > value(first)) first = e;
                        }
                        for (Index e = 0; e < experts; ++e) {
                            const double key = value(e) + (gumbel ? random.gumbel(t, e) : 0);
                            if (e != first && key > highest) highest = key, other = e;
                        }
                        const double s1 = std::exp(value(first)) / sum;
                        const double s2 = std::exp(value(other)) / sum;
                        const double part = s2 / (s1 + s2);
                        const double u = random.uniform(t, other, gumbel ? 1 : 0);
                        const bool stays = second == Second::all ||
                                           (second == Second::threshold && part > threshold) ||
                                           (second == Second::random && u * threshold < part) ||
                                           (second == Second::random_raw && u * threshold < s2);
                        pruned += !stays;
                        ASSERT_EQ(drive.experts_of(t), (Experts{first, other}));
                        EXPECT_EQ(drive.routing.of(t)[0].dropped, Dropped::no);
                        EXPECT_EQ(drive.routing.of(t)[1].dropped,
                                  stays ? Dropped::no : Dropped::pruned);
                        const double q = 0.1 + s1 + (stays || !kept_only ? s2 : 0);
                        EXPECT_NEAR(drive.weights_of(t)[0], 2 * s1 / q, 1e-6);
                        const double second_weight = stays || !kept_only ? 2 * s2 / q : 0;
                        EXPECT_NEAR(drive.weights_of(t)[1], second_weight, 1e-6);
                    }
                    if (second == Second::random && threshold == 0.5) {
                        EXPECT_GT(pruned, 0);
                        EXPECT_LT(pruned, tokens);
                    }
                }
}

TYPED_TEST(GShardGate, GivesTheFirstAllOrItsPartWhereTheSecondIsPruned) {
    using S = TypeParam;
    for (const bool kept_only : {false, true}) {
        auto tokens =
            batch<S>(GShardTop2{.second = Second::none, .normalize_kept_only = kept_only}, 8);
        tokens.context = training;
        tokens.route(golden_logits<S>());
        EXPECT_EQ(tokens.routing.num_assignments(), 8);
        EXPECT_EQ(tokens.routing.num_kept(), 4);
        EXPECT_NEAR(tokens.weights_of(0)[0], kept_only ? 1 : .4348488 / (.4348488 + .1953901),
                    1e-6);
    }
}

TYPED_TEST(GShardGate, ExpressesThePublishedWeights) {
    using S = TypeParam;
    const double s1 = .4348488, s2 = .1953901;
    const auto first = [](const GShardTop2& recipe) {
        return routed<S>(recipe, golden_logits<S>(), 8, training).of(0)[0].weight;
    };
    EXPECT_NEAR(first({.second = Second::all, .normalize = Normalize::none}), s1, 1e-6);  // OpenMoE
    EXPECT_NEAR(first({.second = Second::all, .score = Score::softmax_of_selected}), s1 / (s1 + s2),
                1e-6);  // fastmoe
    EXPECT_NEAR(first({.second = Second::none,
                       .normalize = Normalize::clamp,
                       .epsilon = 1.2e-7,
                       .normalize_kept_only = true}),
                1, 1e-6);  // DeepSpeed
}

TYPED_TEST(GShardGate, KeepsTheSecondAsOftenAsItsPartSays) {
    using S = TypeParam;
    moe::Matrix<S> z(6000, 3);
    for (Index t = 0; t < z.rows(); ++t) z.row(t) << S(0), S(std::log(9.0)), S(-20);  // part 0.1
    const auto kept = [&](const GShardTop2& recipe) {
        return static_cast<double>(routed<S>(recipe, z, 3, training).num_kept() - 6000) / 6000;
    };
    EXPECT_NEAR(kept({}), 0.2, 0.02);
    EXPECT_NEAR(kept({.threshold = 0.2}), 0.5, 0.02);
    EXPECT_EQ(kept({.threshold = 0.05}), 1);
    EXPECT_EQ(kept({.second = Second::threshold, .threshold = 0.09}), 1);
    EXPECT_EQ(kept({.second = Second::threshold, .threshold = 0.11}), 0);
}

TYPED_TEST(GShardGate, TakesSamplesThatAreGiven) {
    using S = TypeParam;
    const auto z = rows<S>({{1, 0, 0, -1}});
    std::array<double, 8> noise{50, 0, 1, 2.5, 0, 0, 0, 0};
    auto tokens = batch<S>(GShardTop2{.gumbel = true}, 4);
    tokens.context = {.training = true, .noise = noise};
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 3}));  // the first has no noise
    EXPECT_EQ(tokens.routing.num_kept(), 2);
    noise[7] = 0.9;  // in the column of the second, whose part is 0.12
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_kept(), 1);
    tokens.context.noise = std::span(noise).first(4);
    EXPECT_THROW(tokens.route(z), std::invalid_argument);
    auto plain = batch<S>(GShardTop2{}, 4);
    plain.context = tokens.context;
    noise = {0, 0.9, 0, 0};
    plain.route(z);
    EXPECT_EQ(plain.routing.num_kept(), 1);
    plain.context.training = false;  // samples that are not needed
    plain.context.noise = std::span(noise).first(3);
    plain.route(z);
    EXPECT_EQ(plain.routing.num_kept(), 2);
}

TYPED_TEST(GShardGate, DrawsByAddressAndOnlyWhereTold) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(60, 8, 5, 2);
    gates_test::expect_noise_by_address<S>(GShardTop2{}, z, 8);
    gates_test::expect_noise_by_address<S>(GShardTop2{.second = Second::all, .gumbel = true}, z, 8);
    gates_test::expect_no_noise<S>(GShardTop2{.gumbel = true}, z, 8);
    gates_test::expect_no_noise<S>(GShardTop2{.second = Second::threshold}, z, 8, training);
    gates_test::expect_noise_by_address<S>(GShardTop2{.second_at_inference = Second::random}, z, 8,
                                           {.seed = 4});
}

TYPED_TEST(GShardGate, GivesTokensOfLittleImportanceOneExpertOrNone) {
    using S = TypeParam;
    const std::array<double, 4> importance{1, 0.5, 0, -1};
    auto tokens = batch<S>(GShardTop2{.by_importance = true}, 8);
    tokens.context.token_importance = importance;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3}));
    EXPECT_EQ(tokens.weights_of(1), (std::vector<double>{1}));
    EXPECT_TRUE(tokens.experts_of(2).empty() && tokens.experts_of(3).empty());
    tokens.context.token_importance = {};
    EXPECT_EQ(support::message([&] { tokens.route(golden_logits<S>()); }),
              "moe::GShardTop2: token_importance is empty, by_importance wants one per token");
}

TYPED_TEST(GShardGate, PrunesTheRightTokenAmongSomeWithFewerExperts) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::Matrix<S>::Constant(4, 3, -infinity<S>);
    z(1, 2) = 1;
    z.row(2) << S(0), S(-9), S(-9);
    z.row(3) << S(0), S(0), S(0);
    auto tokens = batch<S>(GShardTop2{.second = Second::threshold, .threshold = 0.4}, 3);
    tokens.context = training;
    tokens.routing.reset(4, 3);
    tokens.route(z);
    EXPECT_TRUE(tokens.experts_of(0).empty());
    EXPECT_EQ(tokens.experts_of(1), (Experts{2}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{0, 1}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{0, 1}));
    EXPECT_EQ(tokens.routing.of(2)[1].dropped, Dropped::pruned);
    EXPECT_EQ(tokens.routing.of(3)[1].dropped, Dropped::no);
    EXPECT_EQ(tokens.routing.num_kept(), 4);
}

// ---- degenerate rows ----

TYPED_TEST(GShardGate, NeverSelectsMinusInfinityAndShowsANaN) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    for (Index e = 0; e < 8; ++e)
        if (e != 2 && e != 4) z(0, e) = -infinity<S>;
    z(1, 0) = nan<S>;
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(GShardTop2{.second = Second::all, .gumbel = true}, 8);
        tokens.context = {.training = trains};
        tokens.route(z);
        EXPECT_EQ(tokens.experts_of(0), (Experts{2, 4}));
        EXPECT_EQ(tokens.routing.of(1).size(), 2u);
        EXPECT_NE(tokens.experts_of(1)[1], 0);
        for (const double w : tokens.weights_of(1)) EXPECT_TRUE(std::isnan(w));
        const auto dz = tokens.backward(z, derivatives<S>(8));
        EXPECT_TRUE(std::isnan(dz(1, 3)));
        EXPECT_TRUE(dz.row(0).allFinite() && dz(0, 3) == 0);
    }
}

TYPED_TEST(GShardGate, GivesTiesToTheLowerIndexAndRoutesOneExpertAndNoTokens) {
    using S = TypeParam;
    EXPECT_EQ(routed<S>(GShardTop2{}, moe::Matrix<S>::Zero(1, 5), 5, {}).of(0)[1].expert, 1);
    const auto one = routed<S>(GShardTop2{.gumbel = true}, rows<S>({{3}}), 1, training);
    ASSERT_EQ(one.num_kept(), 1);
    EXPECT_EQ(one.of(0)[0].weight, 1);
    gates_test::expect_no_tokens_route<S>(GShardTop2{}, 4, 4, training);
    gates_test::expect_no_tokens_route<S>(GShardTop2{.by_importance = true}, 4, 4, training);
}

TYPED_TEST(GShardGate, LeavesNullExpertsOutOfNormalisation) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    auto tokens = batch<S>(GShardTop2{}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 1}));
}

// ---- gradients ----

TEST(GShardGradient, IsExactForEveryRuleAndNormalisation) {
    for (const Second second : all_seconds)
        for (const Normalize normalize :
             {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
            for (const Score score : {Score::softmax, Score::softmax_of_selected})
                for (const bool kept_only : {false, true})
                    gates_test::expect_exact_gradient(
                        GShardTop2{.second = second,
                                   .gumbel = true,
                                   .score = score,
                                   .normalize = normalize,
                                   .epsilon = 0.2,
                                   .normalize_kept_only = kept_only},
                        moe::testing::random_spaced<double>(8, 5, 8, 0.3), 5, training, 0.01);
}

TEST(GShardGradient, InsideALayerIsExactInTrainingAndAtInference) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
                                GShardTop2{}, moe::Swiglu{.count = 4, .ffn_dim = 5});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.columns = 5, .scale = 0.01}));
    const auto x = moe::testing::random_matrix<double>(9, 5, 1);
    moe::Workspace<double> ws;
    layer.route(x, ws, training);
    EXPECT_LT(ws.routing().num_kept(), 18);
    seams::expect_exact_layer(layer, x, training);
}

// ---- settings, threads, memory ----

TEST(GShardSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(GShardTop2{}, 8), "");
    EXPECT_EQ(refusal(GShardTop2{.threshold = 0}, 8),
              "moe::GShardTop2: threshold is 0, it must be finite and > 0");
    EXPECT_EQ(refusal(GShardTop2{.second = Second(5)}, 8),
              "moe::GShardTop2: second is number 5 of its choices, they are 0 to 4");
    EXPECT_EQ(refusal(GShardTop2{.second_at_inference = Second(-1)}, 8),
              "moe::GShardTop2: second_at_inference is number -1 of its choices, they are 0 to 4");
    EXPECT_EQ(refusal(GShardTop2{.epsilon = -1}, 8),
              "moe::GShardTop2: epsilon is -1, it must be finite and >= 0");
    EXPECT_NE(refusal(GShardTop2{.scale = nan<double>}, 8), "");
    EXPECT_NE(refusal(GShardTop2{}, 0), "");
}

TYPED_TEST(GShardGate, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(2500, 67, 4, 2);
    for (const bool trains : {false, true}) {
        const moe::Context context{.training = trains, .seed = 5};
        const GShardTop2 recipe{.gumbel = true};
        gates_test::expect_same_bits_for_any_thread_count<S>(recipe, z, 67, context);
        gates_test::expect_no_allocation<S>(recipe, z, 67, context);
    }
}

}  // namespace
