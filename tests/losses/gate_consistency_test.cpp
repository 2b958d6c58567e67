// SPDX-License-Identifier: MIT
#include <moe/losses/gate_consistency.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "losses/laws.hpp"
#include "support/message.hpp"

namespace gate_consistency_loss_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::TokenPair;

const std::vector<TokenPair> some{{0, 1, 0.5}, {2, 3}, {3, 0, 2}, {1, 1, 7}};

loss_laws::Forms forms(const std::vector<TokenPair>& pairs) {
    return {
        [pairs](auto z, const auto& plan, const auto& context, double weight, auto dz) {
            return moe::gate_consistency_loss(z, plan, context, pairs, weight, dz);
        },
        [pairs](auto& ws, double weight) { return moe::gate_consistency_loss(ws, pairs, weight); }};
}

/// sum q log(q / p) of the softmax of two rows.
double divergence(const Matrix<double>& logits, Index a, Index b) {
    double of_a = 0, of_b = 0, sum = 0;
    for (Index e = 0; e < logits.cols(); ++e) {
        of_a += std::exp(logits(a, e));
        of_b += std::exp(logits(b, e));
    }
    for (Index e = 0; e < logits.cols(); ++e) {
        const double p = std::exp(logits(a, e)) / of_a, q = std::exp(logits(b, e)) / of_b;
        if (q > 0) sum += q * std::log(q / p);
    }
    return sum;
}

template <class S>
class GateConsistencyLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(GateConsistencyLoss, Scalars);

TYPED_TEST(GateConsistencyLoss, OfOneToOneAndThreeToOneIsWorkedOutByHand) {
    // p = (1/2, 1/2), q = (1/4, 3/4): D = 1/4 log 1/2 + 3/4 log 3/2 = 3/4 log 3 - log 2.
    // dz_a = p - q = (1/4, -1/4), dz_b0 = 1/4 (log 1/2 - D) = -3/16 log 3 = -dz_b1
    using S = TypeParam;
    Matrix<S> logits(2, 2), dlogits = Matrix<S>::Zero(2, 2);
    logits << S(1), S(1), S(0), S(std::log(3.0));
    const std::vector<TokenPair> pair{{0, 1, 0.5}};
    const Loss loss =
        moe::gate_consistency_loss(logits, example::routing(2, {{0}, {1}}), {}, pair, 4.0, dlogits);
    EXPECT_STREQ(loss.name, "gate_consistency");
    EXPECT_NEAR(loss.value, 0.5 * (0.75 * std::log(3.0) - std::log(2.0)), 1e-6);
    EXPECT_NEAR(dlogits(0, 0), 2 * 0.25, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), -2 * 0.25, 1e-6);
    EXPECT_NEAR(dlogits(1, 0), -2 * 3.0 / 16 * std::log(3.0), 1e-6);
    EXPECT_NEAR(dlogits(1, 1), 2 * 3.0 / 16 * std::log(3.0), 1e-6);
}

TEST(GateConsistencyLoss, IsTheMeanOfWeightedDivergences) {
    const Matrix<double> z = example::logits<double>();
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    EXPECT_NEAR(forms(some)(z, example::two_best(), {}, 1.0, dlogits),
                (0.5 * divergence(z, 0, 1) + divergence(z, 2, 3) + 2 * divergence(z, 3, 0)) / 4,
                1e-14);
}

TEST(GateConsistencyLoss, KeepsTheLawsOfLosses) {
    const auto loss = forms(some);
    loss_laws::expect_weight_times_the_gradient(loss);
    loss_laws::expect_the_short_form(loss);
    loss_laws::expect_wider_rows(loss);
    loss_laws::expect_no_care_for_a_constant(loss);
    loss_laws::expect_nothing_of_no_tokens(forms({}));
    const auto exact = [&loss](auto&&... arguments) { return loss.long_form(arguments...); };
    EXPECT_TRUE(example::check(exact, example::logits<double>(), example::two_best()));
    // of tokens 1 and 3 alone experts are masked, so they are the b of a pair
    loss_laws::expect_exact_gradients(forms({{0, 1}, {2, 3, 0.25}, {0, 3, 2}}));
}

TEST(GateConsistencyLoss, OfTokensThatAreRoutedAlikeIsZero) {
    Matrix<double> logits(2, 3), dlogits = Matrix<double>::Zero(2, 3);
    logits << 1, 2, 4, 3, 4, 6;  // the same but for a constant
    EXPECT_EQ(
        forms({{0, 1}, {1, 0}, {1, 1}})(logits, example::routing(3, {{0}, {0}}), {}, 1.0, dlogits),
        0);
    EXPECT_TRUE((dlogits.array() == 0).all());
}

TYPED_TEST(GateConsistencyLoss, IsFiniteWhereProbabilitiesVanish) {
    // p = (1, 0), q = (0, 1): log p is -5000 all the same
    using S = TypeParam;
    Matrix<S> logits(2, 2), dlogits = Matrix<S>::Zero(2, 2);
    logits << S(5000), S(0), S(0), S(5000);
    const std::vector<TokenPair> pair{{0, 1}};
    const auto plan = example::routing(2, {{0}, {1}});
    EXPECT_EQ(moe::gate_consistency_loss(logits, plan, {}, pair, 1.0, dlogits).value, 5000);
    EXPECT_EQ(dlogits(0, 0), S(1));
    EXPECT_EQ(dlogits(0, 1), S(-1));
    EXPECT_EQ(dlogits(1, 0), S(0));
    EXPECT_EQ(dlogits(1, 1), S(0));
}

TEST(GateConsistencyLoss, LeavesOutPairsWithATokenThatDoesNotCount) {
    Matrix<double> logits = example::logits<double>();
    logits.row(2).setConstant(example::minus_infinity);
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    Context context;
    context.padding = padding;
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8), expected = dlogits;
    const double value = forms(some)(logits, example::two_best(), context, 0.3, dlogits);
    EXPECT_EQ(value, forms({{3, 0, 2}})(logits, example::two_best(), {}, 0.3, expected));
    EXPECT_GT(value, 0);
    EXPECT_EQ(dlogits, expected);
    EXPECT_EQ(forms({{0, 1}, {2, 3}})(logits, example::two_best(), context, 0.3, expected), 0);
    EXPECT_EQ(dlogits, expected);
}

TEST(GateConsistencyLoss, ShowsNaNInTheRowsOfItsPairs) {
    Matrix<double> logits = example::logits<double>(), dlogits = Matrix<double>::Zero(4, 8);
    logits(1, 3) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(forms({{0, 1}, {2, 3}})(logits, example::two_best(), {}, 1.0, dlogits)));
    EXPECT_TRUE(dlogits.topRows(2).array().isNaN().all());
    EXPECT_TRUE(dlogits.bottomRows(2).allFinite());
}

TEST(GateConsistencyLoss, RefusesPairsThatLeadNowhere) {
    Matrix<double> logits = example::logits<double>();
    logits(1, 3) = example::minus_infinity;
    const Matrix<double> before = moe::testing::random_matrix<double>(4, 8, 1);
    const auto message = [&](const TokenPair& pair) {
        Matrix<double> dlogits = before;
        const std::string found = support::message([&] {
            forms({{2, 3}, pair})(logits, example::two_best(), {}, 1.0, dlogits);
        });
        EXPECT_EQ(dlogits, before);
        return found;
    };
    EXPECT_EQ(message({0, 4}),
              "moe::gate_consistency_loss: a pair is of tokens 0 and 4, both must be in [0, 4), "
              "the tokens of the batch");
    EXPECT_NE(message({-1, 2}), "");
    EXPECT_EQ(message({0, 2, -1}),
              "moe::gate_consistency_loss: the weight of a pair is -1, it must be finite and >= 0");
    EXPECT_EQ(message({1, 2}),
              "moe::gate_consistency_loss: expert 3 is masked for token 1 (its logit is -inf) and "
              "not for token 2 of a pair, so the loss is infinite; pair tokens that may go to the "
              "same experts");
}

TEST(DistanceWeights, AreASoftmaxOfClampedDistances) {
    // exp(-0.01), exp(-1), exp(-1.5) over their sum; what is far or unknown has none of it
    const std::vector<double> distances{0, 1, 1.5, 1e9, std::numeric_limits<double>::quiet_NaN()};
    std::vector<double> weights(5, 7.0);
    moe::distance_weights(distances, weights);
    const double total = std::exp(-0.01) + std::exp(-1) + std::exp(-1.5);
    EXPECT_NEAR(weights[0], std::exp(-0.01) / total, 1e-15);
    EXPECT_NEAR(weights[1], std::exp(-1) / total, 1e-15);
    EXPECT_NEAR(weights[2], std::exp(-1.5) / total, 1e-15);
    EXPECT_EQ(weights[3], 0);
    EXPECT_EQ(weights[4], 0);
    std::vector<double> lost(2, std::numeric_limits<double>::quiet_NaN()), nothing;
    moe::distance_weights(lost, lost);
    EXPECT_EQ(lost, (std::vector<double>{0.5, 0.5}));
    moe::distance_weights(nothing, nothing);
}

TEST(DistanceWeights, RefuseWhatTheyCannotBeMadeOf) {
    const std::vector<double> distances(3, 1.0);
    std::vector<double> weights(2), right(3);
    EXPECT_EQ(support::message([&] { moe::distance_weights(distances, weights); }),
              "moe::distance_weights: weights has 2 entries, distances has 3; give one for each");
    EXPECT_EQ(support::message([&] { moe::distance_weights(distances, right, 2, 1); }),
              "moe::distance_weights: nearest is 2 and farthest 1, they must be finite, and 0 <= "
              "nearest <= farthest");
}

}  // namespace
}  // namespace gate_consistency_loss_test
