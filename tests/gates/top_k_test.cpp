// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/head.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::build;
using gates_test::derivatives;
using gates_test::golden_logits;
using gates_test::rows;
using moe::GroupMask;
using moe::GroupScore;
using moe::Index;
using moe::Normalize;
using moe::Placement;
using moe::Score;
using moe::TieBreak;
using moe::TopK;
using moe::testing::random_spaced;

static_assert(moe::Recipe<moe::TopK>);
static_assert(moe::TrainableGate<moe::TopKModule<float>, float>);

using Experts = std::vector<Index>;
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class TopKGate : public testing::Test {
protected:
    /// Four tokens' experts in order of selection, and their weights to seven decimals.
    struct Golden {
        std::array<Experts, 4> experts;
        std::array<std::vector<double>, 4> weights;
    };

    /// @param bias  factor of the golden bias; 0: the gate has none
    static void expect(TopK recipe, double bias, const Golden& golden) {
        recipe.selection_bias = bias != 0;
        auto tokens = batch<S>(recipe, 8);
        for (Index e = 0; e < tokens.gate.bias().size(); ++e)
            tokens.gate.bias()(0, e) = static_cast<S>(bias * gates_test::golden_bias[e]);
        tokens.route(golden_logits<S>());
        for (Index t = 0; t < 4; ++t) {
            const auto i = static_cast<std::size_t>(t);
            EXPECT_EQ(tokens.experts_of(t), golden.experts[i]) << "token " << t;
            std::vector<double> weights = tokens.weights_of(t);
            if (recipe.placement == Placement::input) {
                weights.clear();
                for (const moe::Assignment& a : tokens.routing.of(t)) {
                    EXPECT_EQ(a.weight, 1);
                    weights.push_back(a.input_weight);
                }
            }
            ASSERT_EQ(weights.size(), golden.weights[i].size()) << "token " << t;
            const double rounding = sizeof(S) == 4 ? 2e-7 * recipe.scale : 0;
            for (std::size_t s = 0; s < weights.size(); ++s)
                EXPECT_NEAR(weights[s], golden.weights[i][s], 5.1e-8 + rounding)
                    << "token " << t << ", slot " << s;
        }
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TopKGate, Scalars);

// ---- published gates on the golden logits ----

TYPED_TEST(TopKGate, WithRawSoftmaxWeights) {
    this->expect({.k = 3, .normalize = Normalize::none}, 0,
                 {{Experts{5, 0, 2}, {3, 7, 1}, {0, 6, 2}, {7, 6, 5}},
                  {std::vector<double>{.4348488, .1953901, .1309739},
                   {.2583614, .2012120, .1567041},
                   {.9312397, .0281210, .0170563},
                   {.1728120, .1563668, .1414865}}});
}

TYPED_TEST(TopKGate, WithRenormalisedSoftmaxWeightsInBothForms) {
    for (const Score score : {Score::softmax, Score::softmax_of_selected})
        this->expect({.k = 3, .score = score}, 0,
                     {{Experts{5, 0, 2}, {3, 7, 1}, {0, 6, 2}, {7, 6, 5}},
                      {std::vector<double>{.5712578, .2566827, .1720595},
                       {.4192290, .3264958, .2542752},
                       {.9537316, .0288002, .0174682},
                       {.3671654, .3322250, .3006096}}});
}

TYPED_TEST(TopKGate, WithASigmoidOnTheInputOfOneExpert) {
    this->expect({.k = 1,
                  .score = Score::sigmoid,
                  .normalize = Normalize::none,
                  .placement = Placement::input},
                 0,
                 {{Experts{5}, {3}, {0}, {7}},
                  {std::vector<double>{.8807971}, {.7310586}, {.9525741}, {.6899745}}});
}

TYPED_TEST(TopKGate, LimitedToTheGroupsWithTheBestExpert) {
    for (const GroupMask mask : {GroupMask::zero, GroupMask::minus_infinity})
        this->expect({.k = 3,
                      .normalize = Normalize::none,
                      .scale = 16,
                      .num_groups = 4,
                      .groups_kept = 2,
                      .group_mask = mask},
                     0,
                     {{Experts{5, 0, 1}, {3, 7, 6}, {0, 6, 1}, {7, 6, 5}},
                      {std::vector<double>{6.9575803, 3.1262424, .6975590},
                       {4.1337819, 3.2193926, 1.1843483},
                       {14.8998353, .4499360, .1003943},
                       {2.7649925, 2.5018687, 2.2637844}}});
}

TYPED_TEST(TopKGate, WithSigmoidsBiasAndTheGroupsOfTheTwoBest) {
    this->expect({.k = 3,
                  .score = Score::sigmoid,
                  .normalize = Normalize::add_epsilon,
                  .scale = 2.5,
                  .num_groups = 4,
                  .groups_kept = 2,
                  .group_score = GroupScore::top_two_sum},
                 1,
                 {{Experts{2, 5, 4}, {7, 3, 6}, {0, 6, 1}, {4, 7, 6}},
                  {std::vector<double>{.9838804, 1.2559870, .2601327},
                   {.9187721, .9889536, .5922742},
                   {1.6431423, .6512386, .2056190},
                   {.7856868, .8709065, .8434067}}});
}

TYPED_TEST(TopKGate, WithSoftmaxAndBias) {
    this->expect({.k = 3, .normalize = Normalize::none, .scale = 6}, 0.1,
                 {{Experts{5, 0, 2}, {3, 7, 1}, {0, 4, 6}, {7, 4, 6}},
                  {std::vector<double>{2.6090926, 1.1723409, .7858436},
                   {1.5501682, 1.2072722, .9402246},
                   {5.5874382, .0228346, .1687260},
                   {1.0368722, .7681338, .9382008}}});
}

// ---- selection ----

TYPED_TEST(TopKGate, GivesTiesToTheLowerIndex) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 3}, 6);
    tokens.route(rows<S>({{0, 0, 0, 0, 0, 0}, {0, 1, 0, 1, 0, 1}, {2, 0, 1, 1, 1, 0}}));
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 1, 2}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{1, 3, 5}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{0, 2, 3}));
}

TYPED_TEST(TopKGate, RanksLogitsWhereScoresTieUnlessItRanksAsTorch) {
    using S = TypeParam;
    // Logits that fall while every score is that of 0.
    const moe::Matrix<S> z = rows<S>({{8e-20, 7e-20, 6e-20, 5e-20, 4e-20, 3e-20, 2e-20, 1e-20}});
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus, Score::raw,
                              Score::softmax_of_selected})
        for (const Index groups : {1, 4}) {
            TopK recipe{
                .k = 4, .score = score, .num_groups = groups, .groups_kept = groups == 1 ? 1 : 2};
            auto tokens = batch<S>(recipe, 8);
            tokens.route(z);
            EXPECT_EQ(tokens.experts_of(0), (Experts{0, 1, 2, 3}));
#if defined(__GLIBCXX__)
            recipe.tie_break = TieBreak::torch_cpu;
            auto as_torch = batch<S>(recipe, 8);
            as_torch.route(z);
            Experts experts = as_torch.experts_of(0);
            if (score == Score::raw || score == Score::softmax_of_selected) {
                EXPECT_EQ(experts, (Experts{0, 1, 2, 3}));
            } else if (groups == 1) {
                EXPECT_EQ(experts, (Experts{6, 5, 4, 7}));  // torch.topk of eight equal numbers
            } else {
                std::sort(experts.begin(), experts.end());
                EXPECT_EQ(experts, (Experts{4, 5, 6, 7}));  // of its groups 2 and 3 of four
            }
#endif
        }
}

#if defined(__GLIBCXX__)
TYPED_TEST(TopKGate, ANaNTiesASoftmaxRowAndComesFirstAmongSigmoidsAsInTorch) {
    using S = TypeParam;
    moe::Matrix<S> z = rows<S>({{8, 7, 6, 5, 4, 3, 2, 1}});
    z(0, 2) = nan<S>;
    auto softmax = batch<S>(TopK{.k = 4, .tie_break = TieBreak::torch_cpu}, 8);
    softmax.route(z);
    EXPECT_EQ(softmax.experts_of(0), (Experts{6, 5, 4, 7}));
    for (const Score score : {Score::sigmoid, Score::sqrt_softplus, Score::raw}) {
        auto tokens = batch<S>(TopK{.k = 2, .score = score, .tie_break = TieBreak::torch_cpu}, 8);
        tokens.route(z);
        EXPECT_EQ(tokens.experts_of(0), (Experts{2, 0}));
    }
    // A masked expert is not selected even then.
    for (Index e = 3; e < 8; ++e) z(0, e) = -infinity<S>;
    softmax.route(z);
    Experts experts = softmax.experts_of(0);
    std::sort(experts.begin(), experts.end());
    EXPECT_EQ(experts, (Experts{0, 1, 2}));
}
#endif

TYPED_TEST(TopKGate, RanksNaNLastAndShowsItInTheWeights) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 2}, 4);
    moe::Matrix<S> z = rows<S>({{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}});
    z(0, 3) = nan<S>;
    z.row(1).fill(nan<S>);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{2, 1}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{0, 1}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{3, 2}));
    for (const double weight : tokens.weights_of(0)) EXPECT_TRUE(std::isnan(weight));
    for (const double weight : tokens.weights_of(1)) EXPECT_TRUE(std::isnan(weight));
    for (const double weight : tokens.weights_of(2)) EXPECT_TRUE(std::isfinite(weight));
}

TYPED_TEST(TopKGate, NeverSelectsMinusInfinity) {
    using S = TypeParam;
    const S dead = -infinity<S>;
    moe::Matrix<S> z = rows<S>({{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}});
    z(0, 3) = z(0, 1) = z(0, 0) = dead;
    z.row(1).fill(dead);
    for (const bool bias : {false, true})
        for (const GroupMask mask : {GroupMask::minus_infinity, GroupMask::zero})
            for (const Index groups_kept : {1, 2})
                for (const Score score : {Score::softmax, Score::sigmoid, Score::raw}) {
                    auto tokens = batch<S>(TopK{.k = 2,
                                                .score = score,
                                                .selection_bias = bias,
                                                .num_groups = 2,
                                                .groups_kept = groups_kept,
                                                .group_mask = mask},
                                           4);
                    tokens.route(z);
                    EXPECT_EQ(tokens.experts_of(0), (Experts{2}));
                    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{1}));
                    EXPECT_TRUE(tokens.experts_of(1).empty());
                    EXPECT_EQ(tokens.experts_of(2), (Experts{3, 2}));
                    const auto c = derivatives<S>(3);
                    const moe::Matrix<S> dz = tokens.backward(z, c);
                    EXPECT_TRUE(dz.allFinite());
                    EXPECT_TRUE((dz.row(1).array() == 0).all());
                    EXPECT_EQ(dz(0, 3), 0);
                }
}

TYPED_TEST(TopKGate, SelectsPlusInfinityFirst) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 2, .score = Score::sigmoid, .normalize = Normalize::none}, 4);
    moe::Matrix<S> z = rows<S>({{0, 1, 2, 3}});
    z(0, 1) = infinity<S>;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{1, 3}));
    EXPECT_EQ(tokens.weights_of(0)[0], 1);
}

TYPED_TEST(TopKGate, WithKEqualToEIsTheFullSoftmax) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 8}, 8);
    tokens.route(golden_logits<S>());
    auto raw = batch<S>(TopK{.k = 8, .normalize = Normalize::none}, 8);
    raw.route(golden_logits<S>());
    for (Index t = 0; t < 4; ++t) {
        Experts sorted = tokens.experts_of(t);
        std::sort(sorted.begin(), sorted.end());
        EXPECT_EQ(sorted, (Experts{0, 1, 2, 3, 4, 5, 6, 7}));
        EXPECT_TRUE(moe::testing::compare(tokens.weights_of(t), raw.weights_of(t),
                                          sizeof(S) == 4 ? 5e-7 : 1e-15));
    }
}

TYPED_TEST(TopKGate, DoesNotCareForAConstantAddedToTheLogits) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(20, 16, 4, 0.25);
    const moe::Matrix<S> shifted = z.array() + S(32);
    for (const Score score : {Score::softmax, Score::softmax_of_selected}) {
        auto tokens = batch<S>(TopK{.k = 4, .score = score, .normalize = Normalize::none}, 16);
        tokens.route(z);
        auto again = batch<S>(TopK{.k = 4, .score = score, .normalize = Normalize::none}, 16);
        again.route(shifted);
        const auto c = derivatives<S>(80);
        const moe::Matrix<S> dz = tokens.backward(z, c), dshifted = again.backward(shifted, c);
        for (Index t = 0; t < 20; ++t) {
            EXPECT_EQ(tokens.experts_of(t), again.experts_of(t));
            EXPECT_TRUE(moe::testing::compare(again.weights_of(t), tokens.weights_of(t),
                                              sizeof(S) == 4 ? 2e-5 : 1e-13));
            EXPECT_NEAR(static_cast<double>(dz.row(t).sum()), 0, sizeof(S) == 4 ? 1e-6 : 1e-15);
        }
        EXPECT_TRUE(moe::testing::compare(dshifted, dz, sizeof(S) == 4 ? 2e-4 : 1e-12));
    }
}

TYPED_TEST(TopKGate, NormalisesASingleExpertOnlyIfTold) {
    using S = TypeParam;
    auto one = batch<S>(TopK{.k = 1}, 8);
    auto raw = batch<S>(TopK{.k = 1, .normalize_single = false}, 8);
    auto two = batch<S>(TopK{.k = 2, .normalize_single = false}, 8);
    const auto z = golden_logits<S>();
    one.route(z), raw.route(z), two.route(z);
    EXPECT_EQ(one.weights_of(0), (std::vector<double>{1}));
    EXPECT_NEAR(raw.weights_of(0)[0], .4348488, 1e-6);
    EXPECT_NEAR(two.weights_of(0)[0] + two.weights_of(0)[1], 1, 1e-6);

    const auto c = derivatives<S>(4);
    EXPECT_TRUE((one.backward(z, c).array() == 0).all());
    EXPECT_NE(raw.backward(z, c)(0, 7), 0);

    // What counts is k, not how many experts were alive.
    moe::Matrix<S> masked = z;
    for (Index e = 1; e < 8; ++e) masked(0, e) = -infinity<S>;
    two.route(masked);
    EXPECT_EQ(two.weights_of(0), (std::vector<double>{1}));
    two.context.dial.k = 1;
    two.route(z);
    EXPECT_NEAR(two.weights_of(0)[0], .4348488, 1e-6);
}

TYPED_TEST(TopKGate, NormalisesATokenThatAPlanGaveSeveralExperts) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 1, .normalize_single = false}, 8);
    const auto z = golden_logits<S>();
    tokens.routing.reset(4, 8);
    for (const Index expert : {5, 0}) tokens.routing.add(0, expert);
    tokens.routing.add(1, 3);
    tokens.routing.group();
    tokens.weigh(z);
    EXPECT_NEAR(tokens.weights_of(0)[0], .4348488 / (.4348488 + .1953901), 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[0] + tokens.weights_of(0)[1], 1, 1e-6);
    EXPECT_NEAR(tokens.weights_of(1)[0], .2583614, 1e-6);
    // A normalised softmax moves its own logits only, a raw one all of them.
    const auto dz = tokens.backward(z, derivatives<S>(3));
    EXPECT_EQ(dz(0, 7), 0);
    EXPECT_NE(dz(0, 5), 0);
    EXPECT_NE(dz(1, 7), 0);
}

TYPED_TEST(TopKGate, PassesEverySettingOnToItsWeights) {
    using S = TypeParam;
    const double s[] = {.4348488, .1953901, .1309739}, sum = s[0] + s[1] + s[2];
    const auto expect = [&](const TopK& recipe, const std::vector<double>& weights) {
        auto tokens = batch<S>(recipe, 8);
        tokens.route(golden_logits<S>());
        ASSERT_EQ(tokens.experts_of(0), (Experts{5, 0, 2}));
        for (std::size_t i = 0; i < 3; ++i)
            EXPECT_NEAR(tokens.weights_of(0)[i], weights[i], 1e-6) << i;
    };
    const double norm = std::sqrt(s[0] * s[0] + s[1] * s[1] + s[2] * s[2]);
    expect({.k = 3, .norm_power = 2}, {s[0] / norm, s[1] / norm, s[2] / norm});
    expect({.k = 3, .scale = 2.5, .ones = true}, {2.5, 2.5, 2.5});
    expect({.k = 3, .normalize = Normalize::add_epsilon, .epsilon = 0.5},
           {s[0] / (sum + 0.5), s[1] / (sum + 0.5), s[2] / (sum + 0.5)});
    expect({.k = 3, .normalize = Normalize::clamp, .epsilon = 2}, {s[0] / 2, s[1] / 2, s[2] / 2});

    auto dropped = batch<S>(TopK{.k = 3, .normalize_kept_only = true}, 8);
    dropped.select(golden_logits<S>());
    dropped.routing.set_dropped(1, moe::Dropped::capacity);
    dropped.routing.group();
    dropped.weigh(golden_logits<S>());
    EXPECT_EQ(dropped.weights_of(0)[1], 0);
    EXPECT_NEAR(dropped.weights_of(0)[0], s[0] / (s[0] + s[2]), 1e-6);
}

TYPED_TEST(TopKGate, RanksABiasOfNaNLastAndOneOfInfinityFirst) {
    using S = TypeParam;
    TopK recipe{.k = 2, .score = Score::sigmoid, .selection_bias = true};
    const moe::Matrix<S> z = rows<S>({{4, 3, 2, 1}});
    const auto chosen = [&](Index expert, S bias) {
        auto tokens = batch<S>(recipe, 4);
        tokens.gate.bias()(0, expert) = bias;
        tokens.route(z);
        for (const double weight : tokens.weights_of(0)) EXPECT_TRUE(std::isfinite(weight));
        EXPECT_NEAR(tokens.weights_of(0)[0] + tokens.weights_of(0)[1], 1, 1e-6);
        return tokens.experts_of(0);
    };
    EXPECT_EQ(chosen(0, nan<S>), (Experts{1, 2}));
    EXPECT_EQ(chosen(3, infinity<S>), (Experts{3, 0}));
    recipe.num_groups = 2;
    for (const GroupScore score : {GroupScore::max, GroupScore::top_two_sum})
        for (const GroupMask mask : {GroupMask::minus_infinity, GroupMask::zero}) {
            recipe.group_score = score;
            recipe.group_mask = mask;
            const bool is_pair = score == GroupScore::top_two_sum;
            // The best of the first group is then its other expert; a sum with NaN is NaN.
            if (mask == GroupMask::minus_infinity) {
                EXPECT_EQ(chosen(0, nan<S>), is_pair ? (Experts{2, 3}) : (Experts{1, 0}));
            }
            EXPECT_EQ(chosen(3, infinity<S>), (Experts{3, 2}));
        }
}

TYPED_TEST(TopKGate, MovesTheSelectionWithItsBiasButNotTheWeights) {
    using S = TypeParam;
    const TopK recipe{
        .k = 2, .score = Score::sigmoid, .normalize = Normalize::none, .selection_bias = true};
    auto tokens = batch<S>(recipe, 4);
    const moe::Matrix<S> z = rows<S>({{0.1, 0.2, 0.3, 0.4}});
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{3, 2}));
    const double before = tokens.weights_of(0)[0];
    tokens.gate.bias()(0, 0) = 5;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 3}));
    EXPECT_EQ(tokens.weights_of(0)[1], before);
    EXPECT_NEAR(tokens.weights_of(0)[0], 1 / (1 + std::exp(-0.1)), 1e-6);
    tokens.gate.bias()(0, 3) = -infinity<S>;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 2}));
}

// SMoRA: the best of s + b, weights k (s + b) / (their sum).
TYPED_TEST(TopKGate, WeighsScoresWithTheirBiasIfTold) {
    using S = TypeParam;
    for (const Score score : {Score::sigmoid, Score::softmax, Score::raw, Score::sqrt_softplus})
        for (const Normalize normalize : {Normalize::none, Normalize::plain}) {
            const moe::Matrix<S> z = golden_logits<S>();
            auto tokens = batch<S>(TopK{.k = 3,
                                        .score = score,
                                        .normalize = normalize,
                                        .scale = 3,
                                        .selection_bias = true,
                                        .weighs_bias = true},
                                   8);
            for (Index e = 0; e < 8; ++e)
                tokens.gate.bias()(0, e) = static_cast<S>(gates_test::golden_bias[e]);
            tokens.route(z);
            for (Index t = 0; t < 4; ++t) {
                double total = 0, sum = 0;
                std::vector<std::pair<double, Index>> biased;
                for (Index e = 0; e < 8; ++e) total += std::exp(static_cast<double>(z(t, e)));
                for (Index e = 0; e < 8; ++e) {
                    const auto value = static_cast<double>(z(t, e));
                    double s = value;
                    if (score == Score::sigmoid) s = 1 / (1 + std::exp(-value));
                    if (score == Score::softmax) s = std::exp(value) / total;
                    if (score == Score::sqrt_softplus) s = std::sqrt(std::log(1 + std::exp(value)));
                    biased.push_back({-(s + gates_test::golden_bias[e]), e});
                }
                std::sort(biased.begin(), biased.end());
                for (std::size_t i = 0; i < 3; ++i) sum -= biased[i].first;
                if (normalize == Normalize::none) sum = 1;
                for (std::size_t i = 0; i < 3; ++i) {
                    EXPECT_EQ(tokens.experts_of(t)[i], biased[i].second);
                    EXPECT_NEAR(tokens.weights_of(t)[i], 3 * -biased[i].first / sum,
                                sizeof(S) == 4 ? 2e-6 : 1e-14);
                }
            }
        }
}

TEST(TopKBias, ThatWeighsLeavesMaskedAndNullExpertsAtZero) {
    auto tokens = batch<double>(TopK{.k = 2,
                                     .score = Score::sigmoid,
                                     .normalize = Normalize::none,
                                     .selection_bias = true,
                                     .weighs_bias = true},
                                4);
    for (Index e = 0; e < 4; ++e) tokens.gate.bias()(0, e) = 0.5;
    std::vector<moe::ExpertFacts> facts(4);
    facts[1].is_null = true;
    tokens.context.experts = facts;
    moe::Matrix<double> z = rows<double>({{1, 2, -infinity<double>, 0}});
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{1, 0}));
    EXPECT_EQ(tokens.weights_of(0)[0], 0);
    EXPECT_GT(tokens.weights_of(0)[1], 1.2);
    tokens.routing.reset(1, 4);
    tokens.routing.add(0, 2);  // a plan that was made without the mask
    tokens.routing.group();
    tokens.weigh(z);
    EXPECT_EQ(tokens.weights_of(0)[0], 0);
    EXPECT_TRUE(tokens.backward(z, derivatives<double>(1)).isZero(0));
}

TEST(TopKBias, IsStateThatNoGradientReaches) {
    auto gate = build<double>(TopK{.k = 2, .selection_bias = true}, 8);
    std::vector<std::string> names;
    moe::visit_parameters(gate, [&](std::string_view name, auto& matrix, moe::Role role) {
        names.emplace_back(name);
        EXPECT_EQ(role, moe::Role::state);
        EXPECT_EQ(matrix.rows(), 1);
        EXPECT_EQ(matrix.cols(), 8);
    });
    EXPECT_EQ(names, (std::vector<std::string>{"bias"}));
    EXPECT_EQ(moe::num_parameters(gate), 0);
    EXPECT_TRUE(moe::zeros_like(gate).bias().empty());

    auto without = build<double>(TopK{.k = 2}, 8);
    moe::visit_parameters(without, [](std::string_view, auto&, moe::Role) { ADD_FAILURE(); });
}

// ---- the dial ----

TYPED_TEST(TopKGate, TakesKFromTheCall) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 3}, 8);
    tokens.context.dial.k = 1;
    tokens.route(golden_logits<S>());
    for (Index t = 0; t < 4; ++t) EXPECT_EQ(tokens.experts_of(t).size(), 1u);
    tokens.context.dial.k = 8;
    tokens.route(golden_logits<S>());
    for (Index t = 0; t < 4; ++t) EXPECT_EQ(tokens.experts_of(t).size(), 8u);
}

TYPED_TEST(TopKGate, TakesKFromTheSequence) {
    using S = TypeParam;
    const std::array<Index, 4> offsets{0, 1, 1, 4};
    const std::array<Index, 3> k{5, 8, 2};
    auto tokens = batch<S>(TopK{.k = 3}, 8);
    tokens.context.dial.k = 7;
    tokens.context.dial.k_per_sequence = k;
    tokens.context.sequence_offsets = offsets;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2, 6, 3}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7, 6}));
}

TEST(TopKDial, IsChecked) {
    auto tokens = batch<double>(TopK{.k = 3}, 8);
    const auto z = golden_logits<double>();
    const auto message = [&] { return support::message([&] { tokens.select(z); }); };
    tokens.context.dial.k = 0;
    EXPECT_EQ(message(), "moe::TopK: dial.k is 0, it must be in [1, 8]");
    tokens.context.dial.k = 9;
    EXPECT_EQ(message(), "moe::TopK: dial.k is 9, it must be in [1, 8]");
    const std::array<Index, 2> k{1, 9};
    const std::array<Index, 3> offsets{0, 2, 4};
    tokens.context.dial.k = {};
    tokens.context.dial.k_per_sequence = k;
    EXPECT_NE(message(), "");
    tokens.context.sequence_offsets = offsets;
    EXPECT_EQ(message(), "moe::TopK: dial.k_per_sequence is 9, it must be in [1, 8]");
}

// ---- group limits ----

TYPED_TEST(TopKGate, WithAZeroMaskPrefersAMaskedExpertToANegativeScore) {
    using S = TypeParam;
    TopK recipe{
        .k = 2, .score = Score::sigmoid, .selection_bias = true, .num_groups = 2, .groups_kept = 1};
    const moe::Matrix<S> z = rows<S>({{3, -3, 0, 0}});
    for (const GroupMask mask : {GroupMask::minus_infinity, GroupMask::zero}) {
        recipe.group_mask = mask;
        auto tokens = batch<S>(recipe, 4);
        tokens.gate.bias()(0, 1) = -1;
        tokens.route(z);
        EXPECT_EQ(tokens.experts_of(0),
                  mask == GroupMask::zero ? (Experts{0, 2}) : (Experts{0, 1}));
    }
}

TYPED_TEST(TopKGate, ComparesGroupsByScoresNotByLogits) {
    using S = TypeParam;
    // Sums of logits prefer the second group, sums of sigmoids the first.
    const moe::Matrix<S> z = rows<S>({{2, 2, 9, -3.5}});
    auto tokens = batch<S>(TopK{.k = 1,
                                .score = Score::sigmoid,
                                .num_groups = 2,
                                .groups_kept = 1,
                                .group_score = GroupScore::top_two_sum},
                           4);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0}));
}

TYPED_TEST(TopKGate, TakesTheSumOfKPerGroupFromTheK) {
    using S = TypeParam;
    const moe::Matrix<S> z = rows<S>({{9, 0, 0, 2, 2, 2}});
    auto tokens = batch<S>(TopK{.k = 1,
                                .score = Score::sigmoid,
                                .num_groups = 2,
                                .groups_kept = 1,
                                .group_score = GroupScore::top_sum},
                           6);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0}));
    tokens.context.dial.k = 3;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{3, 4, 5}));
    tokens.context.dial.k = 4;
    EXPECT_THROW(tokens.route(z), std::invalid_argument);
}

// ---- gradients ----

TEST(TopKGradient, AgreesWithDifferencesForPublishedGates) {
    const TopK recipes[] = {
        {.k = 2},
        {.k = 3, .normalize = Normalize::none},
        {.k = 1, .normalize_single = false},
        {.k = 1,
         .score = Score::sigmoid,
         .normalize = Normalize::none,
         .placement = Placement::input},
        {.k = 4, .score = Score::softmax_of_selected, .scale = 4},
        {.k = 3, .normalize = Normalize::clamp, .epsilon = 1e-12, .selection_bias = true},
        {.k = 3, .norm_power = 2},
        {.k = 3, .score = Score::sqrt_softplus, .normalize = Normalize::add_epsilon},
        {.k = 3, .normalize = Normalize::none, .scale = 16, .num_groups = 4, .groups_kept = 2},
        {.k = 3,
         .score = Score::sigmoid,
         .normalize = Normalize::add_epsilon,
         .scale = 2.5,
         .selection_bias = true,
         .num_groups = 4,
         .groups_kept = 2,
         .group_score = GroupScore::top_two_sum},
        {.k = 8, .score = Score::sigmoid, .normalize = Normalize::add_epsilon, .epsilon = 1e-6},
        {.k = 3, .score = Score::sigmoid, .scale = 3, .selection_bias = true, .weighs_bias = true},
        {.k = 3, .selection_bias = true, .weighs_bias = true},
        {.k = 3, .normalize = Normalize::none, .selection_bias = true, .weighs_bias = true},
        {.k = 3,
         .normalize = Normalize::add_epsilon,
         .epsilon = 0.1,
         .norm_power = 2,
         .selection_bias = true,
         .weighs_bias = true},
        {.k = 3, .score = Score::raw, .selection_bias = true, .weighs_bias = true},
        {.k = 3,
         .score = Score::sqrt_softplus,
         .normalize = Normalize::clamp,
         .epsilon = 100,
         .selection_bias = true,
         .weighs_bias = true},
    };
    for (const TopK& recipe : recipes) {
        moe::Matrix<double> z = random_spaced<double>(5, 8, 11, 0.2);
        auto tokens = batch<double>(recipe, 8);
        for (Index e = 0; e < tokens.gate.bias().size(); ++e)
            tokens.gate.bias()(0, e) = gates_test::golden_bias[e];
        tokens.route(z);
        const moe::Routing plan = tokens.routing;
        const auto c = derivatives<double>(plan.num_assignments());
        const bool on_input = recipe.placement == Placement::input;
        const std::span<const double> none;
        const moe::Matrix<double> dz =
            tokens.backward(z, on_input ? none : std::span<const double>(c),
                            on_input ? std::span<const double>(c) : none);
        const auto loss = [&] {
            tokens.route(z);
            double sum = 0;
            for (std::size_t a = 0; a < c.size(); ++a) {
                const moe::Assignment& assignment = tokens.routing.assignments()[a];
                sum += c[a] * (on_input ? assignment.input_weight : assignment.weight);
            }
            return sum;
        };
        const auto same_branch = [&] {
            for (Index t = 0; t < 5; ++t)
                for (Index s = 0; s < recipe.k; ++s)
                    if (plan.of(t)[static_cast<std::size_t>(s)].expert !=
                        tokens.routing.of(t)[static_cast<std::size_t>(s)].expert)
                        return false;
            return true;
        };
        EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}))
            << "recipe " << &recipe - recipes;
    }
}

// ---- the same bits, whoever computes ----

TYPED_TEST(TopKGate, GivesTheSameBitsForAnyThreadCountAndBatch) {
    using S = TypeParam;
    constexpr Index tokens = 2500, experts = 67;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, experts, 3, 4);
    const TopK recipe{.k = 5,
                      .score = Score::sigmoid,
                      .normalize = Normalize::add_epsilon,
                      .scale = 2.5,
                      .selection_bias = true};
    const auto c = derivatives<S>(5 * tokens);
    auto reference = batch<S>(recipe, experts);
    moe::SerialExecutor serial;
    reference.ws.use(serial);
    reference.route(z);
    const moe::Matrix<S> dz = reference.backward(z, c);
    for (const int threads : {2, 3, 7}) {
        auto other = batch<S>(recipe, experts);
        moe::ThreadPool pool(threads);
        other.ws.use(pool);
        other.route(z);
        EXPECT_EQ(other.routing, reference.routing) << threads;
        EXPECT_TRUE(moe::testing::same_bits(other.backward(z, c), dz, {.allow_zeros = true}));
    }
    auto part = batch<S>(recipe, experts);
    part.route(z.middleRows(1000, 7));
    for (Index t = 0; t < 7; ++t) {
        EXPECT_EQ(part.experts_of(t), reference.experts_of(1000 + t));
        EXPECT_EQ(part.weights_of(t), reference.weights_of(1000 + t));
    }
}

TYPED_TEST(TopKGate, ReadsAndWritesRowsOfWiderMatrices) {
    using S = TypeParam;
    const auto z = golden_logits<S>();
    moe::Matrix<S> wide = moe::Matrix<S>::Constant(4, 11, nan<S>);
    wide.leftCols(8) = z;
    auto dense = batch<S>(TopK{.k = 3, .normalize = Normalize::none}, 8);
    auto strided = batch<S>(TopK{.k = 3, .normalize = Normalize::none}, 8);
    dense.route(z);
    strided.route(wide.leftCols(8));
    EXPECT_EQ(strided.routing, dense.routing);
    const auto c = derivatives<S>(12);
    moe::Matrix<S> dwide = moe::Matrix<S>::Zero(4, 11);
    auto grad = strided.gate;
    strided.gate.backward(wide.leftCols(8), strided.routing, {c, {}}, dwide.leftCols(8), grad,
                          strided.call());
    EXPECT_TRUE(moe::testing::same_bits(dwide.leftCols(8), dense.backward(z, c)));
    EXPECT_TRUE((dwide.rightCols(3).array() == 0).all());
}

TYPED_TEST(TopKGate, RoutesNoTokens) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 3}, 8);
    const moe::Matrix<S> z(0, 8);
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 0);
    EXPECT_EQ(tokens.backward(z, {}).rows(), 0);
}

// ---- settings ----

TEST(TopKStraightThrough, WeighsOnesAndLearnsAsIfTheScoresWeighed) {
    const moe::Matrix<double> z = golden_logits<double>();
    for (const Score score : {Score::raw, Score::softmax, Score::sigmoid})
        for (const Normalize normalize : {Normalize::none, Normalize::plain}) {
            const TopK soft{.k = 3, .score = score, .normalize = normalize, .scale = 2};
            TopK hard = soft;
            hard.ones = hard.straight_through = true;
            auto weighed = batch<double>(soft, 8), ones = batch<double>(hard, 8);
            weighed.route(z), ones.route(z);
            for (const moe::Assignment& a : ones.routing.assignments()) EXPECT_EQ(a.weight, 2);
            const auto c = derivatives<double>(ones.routing.num_assignments());
            EXPECT_TRUE(moe::testing::same_bits(ones.backward(z, c), weighed.backward(z, c)));
        }
    auto raw = batch<double>(TopK{.k = 1,
                                  .score = Score::raw,
                                  .normalize = Normalize::none,
                                  .ones = true,
                                  .straight_through = true},
                             8);
    raw.route(z);
    const auto c = derivatives<double>(4);
    const moe::Matrix<double> dz = raw.backward(z, c);
    for (Index t = 0; t < 4; ++t) {
        EXPECT_EQ(dz(t, raw.experts_of(t)[0]), c[static_cast<std::size_t>(t)]) << "the identity";
        EXPECT_EQ((dz.row(t).array() != 0).count(), 1);
    }
    EXPECT_THROW(batch<double>(TopK{.k = 1, .straight_through = true}, 8), std::invalid_argument);
}

TEST(TopKSettings, AreCheckedOnceWithASentence) {
    const auto message = [](const TopK& recipe, Index experts = 8) {
        return support::message([&] { build<float>(recipe, experts); });
    };
    EXPECT_EQ(message({.k = 8}), "");
    EXPECT_EQ(message({}), "moe::TopK: k is 0, it must be >= 1; set it: moe::TopK{.k = 2}");
    EXPECT_EQ(message({.k = -1}), "moe::TopK: k is -1, it must be >= 1; set it: moe::TopK{.k = 2}");
    const std::string remedy =
        "; give the experts a count, e.g. moe::Swiglu{.count = 8, ...}; shared experts do not "
        "count";
    EXPECT_EQ(message({.k = 9}), "moe::TopK: k is 9 but the layer has 8 experts" + remedy);
    EXPECT_EQ(message({.k = 2}, 1), "moe::TopK: k is 2 but the layer has 1 expert" + remedy);
    EXPECT_EQ(message({.k = 1}, 0), "moe::TopK: the layer has no experts to choose from" + remedy);
    EXPECT_EQ(message({.k = 1, .num_groups = 3}),
              "moe::TopK: num_groups is 3, it must divide the 8 experts of the layer");
    EXPECT_EQ(message({.k = 1, .num_groups = 4, .groups_kept = 5}),
              "moe::TopK: groups_kept is 5, it must be in [1, 4]");
    EXPECT_EQ(message({.k = 5, .num_groups = 4, .groups_kept = 2}),
              "moe::TopK: k is 5 but 2 of 4 groups hold 4 experts; keep more groups");
    EXPECT_EQ(message({.k = 5, .num_groups = 4, .groups_kept = 2, .group_mask = GroupMask::zero}),
              "");
    EXPECT_EQ(message({.k = 5, .epsilon = -1}),
              "moe::TopK: epsilon is -1, it must be finite and >= 0");
    EXPECT_EQ(message({.k = 2, .score = Score(42)}),
              "moe::TopK: score is number 42 of its choices, they are 0 to 5");
    EXPECT_EQ(message({.k = 2, .weighs_bias = true}),
              "moe::TopK: weighs_bias is set but there is no bias; set selection_bias too");
    EXPECT_EQ(
        message({.k = 2,
                 .score = Score::softmax_of_selected,
                 .selection_bias = true,
                 .weighs_bias = true}),
        "moe::TopK: weighs_bias is set, but the bias is one of logits; take a score that does "
        "not depend on the selection, and not biases_logits");
    EXPECT_NE(message({.k = 2, .selection_bias = true, .biases_logits = true, .weighs_bias = true}),
              "");
    EXPECT_NE(message({.k = 2, .normalize = Normalize(4)}), "");
    EXPECT_NE(message({.k = 2, .placement = Placement(-1)}), "");
    EXPECT_EQ(message({.k = 2, .group_score = GroupScore(3)}),
              "moe::TopK: group_score is number 3 of its choices, they are 0 to 2");
    EXPECT_EQ(message({.k = 2, .group_mask = GroupMask(2)}),
              "moe::TopK: group_mask is number 2 of its choices, they are 0 to 1");
    EXPECT_EQ(message({.k = 2, .tie_break = TieBreak(3)}),
              "moe::TopK: tie_break is number 3 of its choices, they are 0 to 2");
    EXPECT_EQ(message({.k = 2,
                       .group_score = GroupScore::top_sum,
                       .group_mask = GroupMask::zero,
                       .tie_break = TieBreak::torch_cpu_unsorted}),
              "");
}

TEST(TopKSettings, MustFitTheLogits) {
    auto tokens = batch<float>(TopK{.k = 2}, 8);
    EXPECT_THROW(tokens.select(moe::Matrix<float>::Zero(3, 7)), std::invalid_argument);
}

// ---- in a head ----

/// The tokens are the logits.
struct Identity {
    void forward(moe::In<double> x, moe::Out<double> logits) const { logits = x; }
    void backward(moe::In<double>, moe::In<double> dlogits, moe::Out<double> dx, Identity&) const {
        dx = dlogits;
    }
};

TEST(TopKInALayer, HasExactGradientsWhereTheBiasWeighs) {
    for (const Score score : {Score::sigmoid, Score::softmax}) {
        auto layer = moe::make_layer<double>(
            moe::Config{.model_dim = 4, .seed = 3}, moe::LinearRouter{},
            TopK{.k = 2, .score = score, .scale = 2, .selection_bias = true, .weighs_bias = true},
            moe::Swiglu{.count = 4, .ffn_dim = 5});
        for (Index e = 0; e < 4; ++e) layer.gate().bias()(0, e) = gates_test::golden_bias[e + 1];
        EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 6, .columns = 4, .scale = 0.01}));
    }
}

TEST(TopKInALayer, HasExactGradientsAtMultipliersWhereTheBiasWeighs) {
    // d(loss)/d(multiplier) and d(loss)/dz of weights m (s + b) / (sum of m (s + b)).
    std::vector<double> multiplier{0.5, 2, 1.5, 0.7, 1, 1.2, 0.9, 3}, dmultiplier(8, 0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    for (const Score score : {Score::sigmoid, Score::softmax}) {
        auto tokens = batch<double>(
            TopK{.k = 3, .score = score, .selection_bias = true, .weighs_bias = true}, 8);
        for (Index e = 0; e < 8; ++e) tokens.gate.bias()(0, e) = gates_test::golden_bias[e];
        std::vector<moe::ExpertFacts> facts(8);
        tokens.context = {.gate_multiplier = multiplier,
                          .dial = {.multiplier_order = moe::MultiplierOrder::before_normalization},
                          .gradients = &gradients,
                          .experts = facts};
        moe::Matrix<double> z = golden_logits<double>();
        tokens.route(z);
        const auto c = derivatives<double>(12);
        std::fill(dmultiplier.begin(), dmultiplier.end(), 0);
        const moe::Matrix<double> dz = tokens.backward(z, c);
        const auto loss = [&] {
            tokens.route(z);
            double sum = 0;
            for (std::size_t a = 0; a < 12; ++a)
                sum += c[a] * tokens.routing.assignments()[a].weight;
            return sum;
        };
        EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz));
        EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, dmultiplier));
    }
}

TEST(TopKInAHead, RoutesNoPaddingAndNoForbiddenExpert) {
    moe::Head<double, Identity, TopK> head({.model_dim = 8}, {}, {.k = 2},
                                           std::vector<moe::ExpertFacts>(8));
    moe::Workspace<double> ws;
    const std::array<std::uint8_t, 4> padding{0, 1, 0, 0};
    std::vector<std::uint8_t> allowed(32, 1);
    allowed[2 * 8 + 0] = 0;  // token 2's best
    moe::Context context;
    context.padding = padding;
    context.allowed = allowed;
    head.route(golden_logits<double>(), ws, context);
    EXPECT_EQ(ws.routing().of(0).size(), 2u);
    EXPECT_TRUE(ws.routing().of(1).empty());
    EXPECT_EQ(ws.routing().of(2)[0].expert, 6);
    EXPECT_EQ(ws.routing().of(2)[1].expert, 2);
}

TEST(TopKInAHead, ReplaysAPlanWithWeightsOfTheNewLogits) {
    moe::Head<double, Identity, TopK> head({.model_dim = 8}, {}, {.k = 2},
                                           std::vector<moe::ExpertFacts>(8));
    moe::Workspace<double> ws, again;
    head.route(golden_logits<double>(), ws);
    const moe::Matrix<double> other = -golden_logits<double>();
    head.reweigh(other, ws.routing(), again);
    const auto& replayed = again.routing().of(0);
    ASSERT_EQ(replayed.size(), 2u);
    EXPECT_EQ(replayed[0].expert, 5);
    EXPECT_EQ(replayed[1].expert, 0);
    EXPECT_NEAR(replayed[0].weight, 1 / (1 + std::exp(0.8)), 1e-15);
}

TEST(TopKInAHead, LeavesNullExpertsOutOfTheSum) {
    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    moe::Head<double, Identity, TopK> head({.model_dim = 8}, {}, {.k = 3}, facts);
    moe::Workspace<double> ws;
    head.route(golden_logits<double>(), ws);
    const auto& first = ws.routing().of(0);  // 5 0 2
    EXPECT_EQ(first[0].weight, 0);
    EXPECT_NEAR(first[1].weight, .1953901 / (.1953901 + .1309739), 1e-6);
    EXPECT_NEAR(first[1].weight + first[2].weight, 1, 1e-15);
}

}  // namespace
