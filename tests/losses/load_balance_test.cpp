// SPDX-License-Identifier: MIT
#include <moe/losses/load_balance.hpp>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "support/message.hpp"

namespace load_balance_test {
namespace {

using moe::Context;
using moe::Dropped;
using moe::Index;
using moe::LoadBalance;
using moe::Loss;
using moe::Matrix;
using moe::Routing;
using moe::Score;
using support::message;
using Norm = LoadBalance::Norm;
using Slots = LoadBalance::Slots;

double value_of(const Matrix<double>& logits, const Routing& plan, const LoadBalance& options = {},
                const Context& context = {}) {
    Matrix<double> unused(logits.rows(), logits.cols());
    return moe::load_balance_loss(logits, plan, context, 0.0, unused, options);
}

template <class S>
class LoadBalanceLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LoadBalanceLoss, Scalars);

TYPED_TEST(LoadBalanceLoss, HasThePublishedValues) {
    // counts 2 0 0 1 0 1 2 2, of first slots 1 0 0 1 0 1 0 1
    using S = TypeParam;
    const Matrix<S> logits = example::logits<S>();
    Matrix<S> dlogits = Matrix<S>::Zero(4, 8);
    const auto value = [&](const LoadBalance& options) {
        return moe::load_balance_loss(logits, example::two_best(), {}, 1.0, dlogits, options).value;
    };
    EXPECT_NEAR(value({.slots = Slots::first}), 1.4309298, 5e-7);  // Switch
    EXPECT_NEAR(value({.norm = Norm::gshard, .slots = Slots::first}), 1.4309298, 5e-7);
    EXPECT_NEAR(value({}), 2.6330284, 5e-7);                                      // Mixtral
    EXPECT_NEAR(value({.norm = Norm::per_assignment}), 1.3165142, 5e-7);          // Megatron
    EXPECT_NEAR(value({.norm = Norm::all_per_assignment}), 2.6330284 / 4, 5e-7);  // FastMoE
    EXPECT_NEAR(value({.norm = Norm::unscaled}), 2.6330284 / 8, 5e-7);            // MoE++
    EXPECT_STREQ(moe::load_balance_loss(logits, example::two_best(), {}, 0, dlogits).name,
                 "load_balance");
}

TEST(LoadBalanceLoss, AtBalanceIsWhatEachVariantSays) {
    // 4 tokens, 4 experts, 2 slots, equal logits: f(e) P(e) = 2/4 * 1/4 for each of 4 experts
    const Matrix<double> logits = Matrix<double>::Constant(4, 4, -1.5);
    const Routing plan = example::routing(4, {{0, 1}, {1, 2}, {2, 3}, {3, 0}});
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
        EXPECT_NEAR(value_of(logits, plan, {.score = score}), 2, 1e-12);
        EXPECT_NEAR(value_of(logits, plan, {.norm = Norm::gshard, .score = score}), 2, 1e-12);
        EXPECT_NEAR(value_of(logits, plan, {.score = score, .slots = Slots::first}), 1, 1e-12);
        EXPECT_NEAR(value_of(logits, plan, {.norm = Norm::per_assignment, .score = score}), 1,
                    1e-12);
        EXPECT_NEAR(value_of(logits, plan, {.norm = Norm::all_per_assignment, .score = score}), 0.5,
                    1e-12);
        EXPECT_NEAR(value_of(logits, plan, {.norm = Norm::unscaled, .score = score}), 0.5, 1e-12);
    }
}

TYPED_TEST(LoadBalanceLoss, GradientOfOneTokenIsWorkedOutByHand) {
    // softmax s = (1/4, 3/4), f = (0, 1): value 2 * 3/4, dz1 = 2 * 3/4 (1 - 3/4) = 3/8 = -dz0
    using S = TypeParam;
    Matrix<S> logits(1, 2), dlogits(1, 2);
    logits << S(0), S(std::log(3.0));
    dlogits << S(10), S(20);
    const Routing plan = example::routing(2, {{1}});
    EXPECT_NEAR(moe::load_balance_loss(logits, plan, {}, 4.0, dlogits), 1.5, 1e-6);
    EXPECT_NEAR(dlogits(0, 0), 10 - 4 * 0.375, 1e-5);
    EXPECT_NEAR(dlogits(0, 1), 20 + 4 * 0.375, 1e-5);
    // sigmoid g = (1/2, 3/4), s = (0.4, 0.6): value 2 * 0.6
    // dz0 = 2 * 0.4 (0 - 0.6) (1 - 1/2) = -0.24, dz1 = 2 * 0.6 (1 - 0.6) (1 - 3/4) = 0.12
    dlogits.setZero();
    EXPECT_NEAR(moe::load_balance_loss(logits, plan, {}, 1.0, dlogits, {.score = Score::sigmoid}),
                1.2, 1e-6);
    EXPECT_NEAR(dlogits(0, 0), -0.24, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), 0.12, 1e-6);
}

TEST(LoadBalanceLoss, GradientAgreesWithDifferencesInEveryVariant) {
    const Routing plan = example::two_best();
    const std::vector<Index> sequences{0, 1, 4};
    const std::vector<double> fraction{0.1, 0.2, 0, 0.05, 0.05, 0.3, 0.2, 0.1};
    const std::vector<double> weights{1, 1, 1, 1, 0.75, 0.75, 0.75, 0.5};
    Context context;
    context.sequence_offsets = sequences;
    for (const Norm norm : {Norm::per_token, Norm::gshard, Norm::per_assignment,
                            Norm::all_per_assignment, Norm::unscaled})
        for (const Score score :
             {Score::softmax, Score::sigmoid, Score::sqrt_softplus, Score::softmax_of_selected})
            for (const bool per_sequence : {false, true})
                for (const Slots slots : {Slots::first, Slots::all}) {
                    LoadBalance options{
                        .norm = norm, .score = score, .slots = slots, .per_sequence = per_sequence};
                    const auto loss = [&](auto&&... arguments) {
                        return moe::load_balance_loss(arguments..., options);
                    };
                    EXPECT_TRUE(example::check(loss, example::logits<double>(), plan, context));
                    options.expert_weights = weights;
                    EXPECT_TRUE(example::check(loss, example::logits<double>(), plan, context));
                    options.fraction = fraction;
                    EXPECT_TRUE(example::check(loss, example::logits<double>(), plan, context));
                }
}

TEST(LoadBalanceLoss, CountsDroppedAssignmentsUnlessToldNotTo) {
    const Matrix<double> logits = example::logits<double>();
    Routing dropped = example::two_best();
    const double before = value_of(logits, dropped);
    dropped.set_dropped(0, Dropped::capacity);  // token 0, slot 0, expert 5
    dropped.group();
    EXPECT_EQ(value_of(logits, dropped), before);
    // without it, as if token 0 had chosen expert 0 only
    const Routing kept = example::routing(8, {{0}, {3, 7}, {0, 6}, {7, 6}});
    EXPECT_EQ(value_of(logits, dropped, {.count_dropped = false}), value_of(logits, kept));
    // and its first slot is still expert 5, which is not there
    const Routing first = example::routing(8, {{}, {3, 7}, {0, 6}, {7, 6}});
    EXPECT_EQ(value_of(logits, dropped, {.slots = Slots::first, .count_dropped = false}),
              value_of(logits, first, {.slots = Slots::first}));
}

TEST(LoadBalanceLoss, TokensThatRouteNowhereCountInTheMeanOfTheScores) {
    // equal scores 1/2; two tokens, one assignment: E sum f P = 2 (1/2 * 1/2)
    const Matrix<double> logits = Matrix<double>::Zero(2, 2);
    EXPECT_NEAR(value_of(logits, example::routing(2, {{0}, {}})), 0.5, 1e-15);
    EXPECT_NEAR(value_of(logits, example::routing(2, {{0}, {}}), {.norm = Norm::per_assignment}), 1,
                1e-15);
    for (const Norm norm : {Norm::per_token, Norm::per_assignment, Norm::all_per_assignment})
        EXPECT_EQ(value_of(logits, example::routing(2, {{}, {}}), {.norm = norm}), 0);
}

TEST(LoadBalanceLoss, PerSequenceIsTheMeanOverSequencesWithTokens) {
    const Matrix<double> logits = example::logits<double>();
    const Routing plan = example::two_best();
    const std::vector<Index> sequences{0, 1, 1, 4};  // the second has none
    Context context;
    context.sequence_offsets = sequences;
    const double first = value_of(logits.topRows(1), example::routing(8, {{5, 0}}));
    const double last =
        value_of(logits.bottomRows(3), example::routing(8, {{3, 7}, {0, 6}, {7, 6}}));
    EXPECT_NEAR(value_of(logits, plan, {.per_sequence = true}, context), (first + last) / 2, 1e-14);
}

TEST(LoadBalanceLoss, TakesTheLoadFromElsewhere) {
    const Matrix<double> logits = example::logits<double>();
    const std::vector<double> same{0.5, 0, 0, 0.25, 0, 0.25, 0.5, 0.5};
    const std::vector<double> twice(8, 2.0);
    const double value = value_of(logits, example::two_best());
    const Routing other = example::routing(8, {{1}, {1}, {1}, {1}});
    EXPECT_NEAR(value_of(logits, other, {.fraction = same}), value, 1e-14);
    EXPECT_NEAR(value_of(logits, other, {.fraction = same, .expert_weights = twice}), 2 * value,
                1e-14);
}

TEST(LoadBalanceLoss, OfTheSelectedIsWorkedOutByHand) {
    // Two tokens, four experts. Token 0 selects 0 and 1, softmax (1/4, 3/4) of them; token 1
    // selects 1 alone, (0, 1). f = (1/2, 1, 0, 0), P = (1/8, 7/8, 0, 0): 4 (1/16 + 14/16) = 15/4.
    Matrix<double> logits(2, 4), dlogits = Matrix<double>::Zero(2, 4);
    logits << 0, std::log(3.0), 5, -2, 1, 2, 3, 4;
    const Routing plan = example::routing(4, {{1, 0}, {1}});
    const LoadBalance options{.scored = moe::Scored::selected};
    EXPECT_NEAR(moe::load_balance_loss(logits, plan, {}, 1.0, dlogits, options), 3.75, 1e-14);
    // sum_j s f = 7/8 for token 0: dz0 = 4/2 * 1/4 (1/2 - 7/8) = -3/16 = -dz1, and nothing else
    Matrix<double> expected = Matrix<double>::Zero(2, 4);
    expected(0, 0) = -3.0 / 16, expected(0, 1) = 3.0 / 16;
    EXPECT_TRUE(moe::testing::compare(dlogits, expected, 1e-14));
    // At balance: the mean number of selections.
    const Routing even = example::routing(4, {{0, 1}, {2, 3}});
    EXPECT_NEAR(value_of(Matrix<double>::Zero(2, 4), even, options), 2, 1e-15);
    // Who has selected nothing scores 0 and counts in T.
    EXPECT_NEAR(value_of(logits, example::routing(4, {{1}, {}}), options), 4 * 0.25, 1e-15);
}

TEST(LoadBalanceLoss, OfTheSelectedHasExactGradientsForEveryScore) {
    Routing plan = example::routing(8, {{5, 0, 2}, {3, 7}, {}, {7, 6, 1, 0}});
    plan.set_dropped(1, Dropped::capacity);
    plan.group();
    const std::vector<double> weights{1, 0.25, 3, 2};
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus})
        for (const bool count_dropped : {false, true}) {
            const LoadBalance options{.score = score,
                                      .scored = moe::Scored::selected,
                                      .count_dropped = count_dropped,
                                      .token_weights = weights};
            const auto loss = [&](auto&&... arguments) {
                return moe::load_balance_loss(arguments..., options);
            };
            EXPECT_TRUE(example::check(loss, example::logits<double>(), plan));
            // What is not selected has no part in it.
            Matrix<double> moved = example::logits<double>();
            moved(1, 0) = 7, moved(3, 2) = 9;
            EXPECT_EQ(value_of(moved, plan, options),
                      value_of(example::logits<double>(), plan, options));
            moved(0, 0) += 1;  // selected, and dropped
            EXPECT_EQ(value_of(moved, plan, options) ==
                          value_of(example::logits<double>(), plan, options),
                      !count_dropped);
        }
}

TEST(LoadBalanceLoss, WithWeightsOfTokensIsThatOfAsManyCopies) {
    // Weights 2 0 1 3: tokens 0 0, 2, 3 3 3.
    const Matrix<double> z = example::logits<double>();
    Matrix<double> copies(6, 8);
    copies << z.row(0), z.row(0), z.row(2), z.row(3), z.row(3), z.row(3);
    const Routing plan = example::routing(8, {{5, 0}, {5, 0}, {0, 6}, {7, 6}, {7, 6}, {7, 6}});
    const std::vector<double> weights{2, 0, 1, 3};
    const std::vector<Index> sequences{0, 1, 2, 4}, of_copies{0, 2, 2, 6};
    for (const Norm norm : {Norm::per_token, Norm::gshard, Norm::per_assignment,
                            Norm::all_per_assignment, Norm::unscaled})
        for (const moe::Scored scored : {moe::Scored::all, moe::Scored::selected})
            for (const bool per_sequence : {false, true}) {
                LoadBalance options{.norm = norm, .scored = scored, .per_sequence = per_sequence};
                Context context, context_of_copies;
                context.sequence_offsets = sequences;
                context_of_copies.sequence_offsets = of_copies;
                Matrix<double> expected = Matrix<double>::Zero(6, 8),
                               dlogits = Matrix<double>::Zero(4, 8);
                const double value =
                    moe::load_balance_loss(copies, plan, context_of_copies, 1.0, expected, options);
                options.token_weights = weights;
                EXPECT_NEAR(
                    moe::load_balance_loss(z, example::two_best(), context, 1.0, dlogits, options),
                    value, 1e-14);
                Matrix<double> summed = Matrix<double>::Zero(4, 8);
                summed.row(0) = expected.topRows(2).colwise().sum();
                summed.row(2) = expected.row(2);
                summed.row(3) = expected.bottomRows(3).colwise().sum();
                EXPECT_TRUE(moe::testing::compare(dlogits, summed, 1e-13, {.allow_zeros = true}));
            }
    const std::vector<double> zeros(4, 0.0);
    Matrix<double> untouched = Matrix<double>::Constant(4, 8, 3);
    EXPECT_EQ(moe::load_balance_loss(z, example::two_best(), {}, 1.0, untouched,
                                     {.token_weights = zeros}),
              0);
    EXPECT_EQ(untouched, (Matrix<double>::Constant(4, 8, 3)));
}

TEST(LoadBalanceLoss, MaskedExpertsHaveNoPartAndNoGradient) {
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
        const LoadBalance options{.norm = Norm::unscaled, .score = score};
        Matrix<double> masked(2, 3), plain(2, 2);
        masked << 0.5, example::minus_infinity, -1, 2, example::minus_infinity, 1;
        plain << 0.5, -1, 2, 1;
        Matrix<double> dmasked = Matrix<double>::Zero(2, 3), dplain = Matrix<double>::Zero(2, 2);
        const double value = moe::load_balance_loss(masked, example::routing(3, {{0}, {2}}), {},
                                                    1.0, dmasked, options);
        EXPECT_NEAR(value,
                    moe::load_balance_loss(plain, example::routing(2, {{0}, {1}}), {}, 1.0, dplain,
                                           options),
                    1e-15);
        for (Index t = 0; t < 2; ++t) {
            EXPECT_EQ(dmasked(t, 1), 0);
            EXPECT_NEAR(dmasked(t, 0), dplain(t, 0), 1e-15);
            EXPECT_NEAR(dmasked(t, 2), dplain(t, 1), 1e-15);
        }
    }
}

TEST(LoadBalanceLoss, ScoresThatAllUnderflowAreZero) {
    const Matrix<float> logits = Matrix<float>::Constant(1, 3, -2000);
    for (const Score score : {Score::sigmoid, Score::sqrt_softplus}) {
        Matrix<float> dlogits = Matrix<float>::Zero(1, 3);
        EXPECT_EQ(moe::load_balance_loss(logits, example::routing(3, {{0}}), {}, 1.0, dlogits,
                                         {.score = score})
                      .value,
                  0);
        EXPECT_EQ(dlogits, (Matrix<float>::Zero(1, 3)));
    }
}

TEST(LoadBalanceLoss, KeepsTheGradientOfSureSigmoids) {
    // g'/g of sigmoid(20) is 2e-9, below what 1 - g can tell in float.
    const auto gradient = [](auto scalar) {
        using S = decltype(scalar);
        Matrix<S> logits(1, 2), dlogits = Matrix<S>::Zero(1, 2);
        logits << S(20), S(-1);
        moe::load_balance_loss(logits, example::routing(2, {{1}}), {}, 1.0, dlogits,
                               {.score = Score::sigmoid});
        return static_cast<double>(dlogits(0, 0));
    };
    // s = (1, g1) / (1 + g1), f = (0, 1), E = 2: dz0 = 2 s0 (0 - s1) sigmoid(-20)
    const double g1 = 1 / (1 + std::exp(1.0)), s1 = g1 / (1 + g1);
    const double expected = -2 * (1 - s1) * s1 * std::exp(-20.0);
    EXPECT_NEAR(gradient(0.0F) / expected, 1, 1e-5);
    EXPECT_NEAR(gradient(0.0) / expected, 1, 1e-7);
}

TEST(LoadBalanceLoss, RefusesWhatDoesNotFit) {
    const Matrix<double> logits = example::logits<double>();
    Matrix<double> dlogits(4, 8), narrow(4, 7);
    const std::vector<double> few(7, 1.0);
    EXPECT_EQ(
        message([&] { moe::load_balance_loss(logits, example::two_best(), {}, 1.0, narrow); }),
        "moe::load_balance_loss: dlogits is [4, 7], logits is [4, 8]");
    EXPECT_EQ(message([&] {
                  moe::load_balance_loss(logits, example::routing(8, {{0}}), {}, 1.0, dlogits);
              }),
              "moe::load_balance_loss: the routing is for 1 tokens, logits has 4 rows");
    EXPECT_EQ(
        message([&] {
            moe::load_balance_loss(logits, example::routing(9, {{}, {}, {}, {}}), {}, 1.0, dlogits);
        }),
        "moe::load_balance_loss: there are 8 logits per token and 9 experts; it needs one logit "
        "per expert");
    EXPECT_NE(message([&] { value_of(logits, example::two_best(), {.score = Score::raw}); }), "");
    EXPECT_NE(message([&] { value_of(logits, example::two_best(), {.per_sequence = true}); }), "");
    const auto refusal = [&](const LoadBalance& options) {
        return message([&] { value_of(logits, example::two_best(), options); });
    };
    EXPECT_EQ(refusal({.fraction = few}),
              "moe::LoadBalance: fraction has 7 entries, there are 8 experts");
    EXPECT_EQ(refusal({.expert_weights = few}),
              "moe::LoadBalance: expert_weights has 7 entries, there are 8 experts");
    for (const double bad : {-0.5, std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity()}) {
        std::vector<double> values(8, 1.0);
        values[3] = bad;
        EXPECT_NE(refusal({.fraction = values}), "");
        EXPECT_NE(refusal({.expert_weights = values}), "");
    }
    EXPECT_EQ(refusal({.token_weights = few}),
              "moe::LoadBalance: token_weights has 7 entries, there are 4 tokens");
    const std::vector<double> endless{1, 1, std::numeric_limits<double>::infinity(), 1};
    EXPECT_EQ(refusal({.token_weights = endless}),
              "moe::LoadBalance: an entry of token_weights is inf, it must be finite and >= 0");
    EXPECT_NE(refusal({.scored = moe::Scored(2)}), "");
    std::vector<double> negative(8, 1.0);
    negative[7] = -0.5;
    EXPECT_EQ(refusal({.fraction = negative}),
              "moe::LoadBalance: an entry of fraction is -0.5, it must be finite and >= 0");
    EXPECT_EQ(refusal({.norm = Norm(5)}),
              "moe::LoadBalance: norm is number 5 of its choices, they are 0 to 4");
    EXPECT_NE(refusal({.score = Score(42)}), "");
    EXPECT_NE(refusal({.slots = Slots(2)}), "");
}

}  // namespace
}  // namespace load_balance_test
