// SPDX-License-Identifier: MIT
#include <moe/balance/quantile.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/balance/load_sum.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "gates/laws.hpp"
#include "support/message.hpp"

namespace quantile_test {
namespace {

using gates_test::batch;
using gates_test::golden_logits;
using moe::Index;
using moe::QuantileUpdate;
using moe::Score;
using moe::TopK;
using support::message;

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();

template <class S>
class Quantile : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Quantile, Scalars);

/// The published update of one batch, sorting everything; T k divides by E.
template <class S>
std::vector<double> plain_beta(const moe::Matrix<S>& z, const std::vector<S>& bias, Index k) {
    const Index tokens = z.rows(), experts = z.cols();
    std::vector<double> next, beta;
    for (Index t = 0; t < tokens; ++t) {
        std::vector<double> row;
        for (Index e = 0; e < experts; ++e)
            row.push_back(double(z(t, e)) + double(bias[static_cast<std::size_t>(e)]));
        std::sort(row.begin(), row.end(), std::greater<>());
        next.push_back(row[static_cast<std::size_t>(k)]);
    }
    for (Index e = 0; e < experts; ++e) {
        std::vector<double> column;
        for (Index t = 0; t < tokens; ++t)
            column.push_back(double(z(t, e)) - next[static_cast<std::size_t>(t)]);
        std::sort(column.begin(), column.end(), std::greater<>());
        beta.push_back(column[static_cast<std::size_t>(tokens * k / experts)]);
    }
    return beta;
}

// ---- the bias on logits ----

TYPED_TEST(Quantile, ABiasOnLogitsChoosesByLogitsAndWeighsByScores) {
    using S = TypeParam;
    for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected}) {
        const auto build = [&](bool has_bias) {
            return batch<S>(TopK{.k = 3,
                                 .score = score,
                                 .normalize = moe::Normalize::none,
                                 .selection_bias = has_bias,
                                 .biases_logits = has_bias},
                            8);
        };
        auto biased = build(true), plain = build(false);
        for (Index e = 0; e < 8; ++e)
            biased.gate.bias()(0, e) = static_cast<S>(2 * gates_test::golden_bias[e]);
        const moe::Matrix<S> z = golden_logits<S>();
        moe::Matrix<S> sum = z;
        for (Index t = 0; t < 4; ++t)
            for (Index e = 0; e < 8; ++e) sum(t, e) += biased.gate.bias()(0, e);
        biased.route(z);
        plain.route(sum);  // chooses what the bias makes best ...
        bool moved = false;
        for (Index t = 0; t < 4; ++t) {
            EXPECT_EQ(biased.experts_of(t), plain.experts_of(t));
            moved |= biased.experts_of(t) != [&] {
                auto other = build(false);
                other.route(z);
                return other.experts_of(t);
            }();
        }
        EXPECT_TRUE(moved) << "the bias should matter";
        plain.weigh(z);  // ... and weighs without it
        EXPECT_EQ(biased.routing, plain.routing);
    }
}

TYPED_TEST(Quantile, ABiasOnLogitsKeepsToMasksAndGroups) {
    using S = TypeParam;
    auto tokens = batch<S>(TopK{.k = 2,
                                .score = Score::sigmoid,
                                .selection_bias = true,
                                .biases_logits = true,
                                .num_groups = 4,
                                .groups_kept = 1},
                           8);
    tokens.gate.bias()(0, 4) = 100;
    moe::Matrix<S> z = golden_logits<S>();
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(2), (std::vector<Index>{4, 5}));
    z.col(4).setConstant(-infinity<S>);
    tokens.route(z);
    for (const moe::Assignment& a : tokens.routing.assignments()) EXPECT_NE(a.expert, 4);
    EXPECT_EQ(gates_test::refusal(TopK{.k = 1, .biases_logits = true}, 8),
              "moe::TopK: biases_logits is set but there is no bias; set selection_bias too");
}

// ---- the update ----

TYPED_TEST(Quantile, IsThePublishedUpdate) {
    using S = TypeParam;
    for (const double ema : {0.0, 0.75})
        for (const Index k : {1, 2, 4}) {
            std::vector<S> bias(6);
            for (std::size_t e = 0; e < 6; ++e) bias[e] = static_cast<S>(0.1 * double(e) - 0.3);
            std::vector<double> expected(6, 0.0);
            const std::vector<S> before = bias;
            QuantileUpdate quantile{.ema = ema};
            for (unsigned micro = 0; micro < 3; ++micro) {
                const auto z = moe::testing::random_matrix<S>(18, 6, 4 + micro, 3);
                quantile.add<S>(z, std::span<const S>(bias), k);
                const auto beta = plain_beta(z, before, k);
                for (std::size_t e = 0; e < 6; ++e) expected[e] += beta[e] / 3;
            }
            double mean = 0;
            for (std::size_t e = 0; e < 6; ++e) {
                expected[e] = ema * -double(before[e]) + (1 - ema) * expected[e];
                mean += expected[e] / 6;
            }
            for (double& value : expected) value = mean - value;
            quantile.update(std::span(bias));
            EXPECT_TRUE(moe::testing::compare(bias, expected, 1e-5));
            EXPECT_NEAR(bias[0] + bias[1] + bias[2] + bias[3] + bias[4] + bias[5], 0, 1e-5);
            EXPECT_EQ(quantile.batches, 0);
            const std::vector<S> after = bias;
            quantile.update(std::span(bias));  // nothing was added since
            EXPECT_EQ(bias, after);
        }
}

TYPED_TEST(Quantile, BalancesALayerInAFewSteps) {
    using S = TypeParam;
    auto layer = moe::make_layer<S>(
        moe::Config{.model_dim = 16, .seed = 3}, moe::LinearRouter{.bias = true},
        TopK{.k = 2, .score = Score::sigmoid, .selection_bias = true, .biases_logits = true},
        moe::Swiglu{.count = 8, .ffn_dim = 4});
    layer.head().router().bias(0, 3) = 2;
    layer.head().router().bias(0, 5) = -2;
    const auto x = moe::testing::random_matrix<S>(400, 16, 5);
    moe::Workspace<S> ws;
    QuantileUpdate quantile;
    const auto violation = [&] {
        layer.route(x, ws);
        moe::LoadSum load(8);
        load.add(ws.routing());
        return moe::max_violation(load.counts());
    };
    EXPECT_GT(violation(), 1);
    for (int step = 0; step < 20; ++step) {
        quantile.add(layer, ws, 2);
        quantile.update(layer);
        violation();
    }
    EXPECT_LT(violation(), 0.05);
}

TYPED_TEST(Quantile, OfALayerReadsTheLogitsThatAreTheExpertsOwn) {
    // Noisy's router gives 6 more of every token, for the noise.
    using S = TypeParam;
    auto layer =
        moe::make_layer<S>(moe::Config{.model_dim = 5, .seed = 3}, moe::LinearRouter{},
                           moe::Noisy{TopK{.k = 2, .selection_bias = true, .biases_logits = true}},
                           moe::Copy{.count = 6});
    const auto x = moe::testing::random_matrix<S>(18, 5, 5);
    moe::Workspace<S> ws;
    layer.route(x, ws);
    ASSERT_EQ(ws.logits().cols(), 12);
    const moe::Matrix<S> own = ws.logits().leftCols(6);
    QuantileUpdate quantile;
    quantile.add(layer, ws, 2);
    EXPECT_TRUE(
        moe::testing::compare(quantile.sum, plain_beta(own, std::vector<S>(6, S(0)), 2), 1e-6));
    quantile.update(layer);
    EXPECT_NE(layer.gate().inner.bias()(0, 0), 0);
}

TYPED_TEST(Quantile, DoesNotMoveABalancedBatchMuchNorCareForAShift) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(24, 6, 9, 3);
    moe::Matrix<S> shifted = z;
    for (Index t = 0; t < 24; ++t) shifted.row(t).array() += static_cast<S>(t);
    std::vector<S> bias(6, S(0)), other(6, S(0));
    QuantileUpdate quantile;
    quantile.add<S>(z, std::span<const S>(bias), 2);
    quantile.update(std::span(bias));
    quantile.add<S>(shifted, std::span<const S>(other), 2);
    quantile.update(std::span(other));
    EXPECT_TRUE(moe::testing::compare(bias, other, 1e-5));
}

TYPED_TEST(Quantile, LeavesOutWhoHasNoChoiceAndRoundsTheShareDown) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(15, 6, 9, 3);  // share 15 * 2 / 6 = 5
    moe::Matrix<S> more(20, 6);
    more.topRows(15) = z;
    more.bottomRows(5).setConstant(-infinity<S>);
    more(16, 2) = more(16, 4) = S(9);  // goes there in any case
    more.row(17).setZero();
    more(17, 0) = std::numeric_limits<S>::quiet_NaN();
    std::vector<S> bias(6, S(0)), other(6, S(0));
    QuantileUpdate quantile;
    quantile.add<S>(z, std::span<const S>(bias), 2);
    quantile.update(std::span(bias));
    quantile.add<S>(more, std::span<const S>(other), 2);
    quantile.update(std::span(other));
    EXPECT_EQ(bias, other);

    quantile.add<S>(more.bottomRows(5), std::span<const S>(other), 2);
    EXPECT_EQ(quantile.batches, 0);
    const moe::Matrix<S> sixteen = moe::testing::random_matrix<S>(16, 6, 9, 3);  // 5.33
    quantile.add<S>(sixteen, std::span<const S>(std::vector<S>(6, S(0))), 2);
    const auto beta = plain_beta(sixteen, std::vector<S>(6, S(0)), 2);
    EXPECT_TRUE(moe::testing::compare(quantile.sum, beta, 1e-6));
}

TYPED_TEST(Quantile, TakesTheLeastOfAnExpertThatFewMayHave) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(12, 4, 9, 3);
    z.col(1).setConstant(-infinity<S>);
    z.col(3).setConstant(-infinity<S>);
    z(5, 3) = 1;
    const std::vector<S> bias{0, S(0.5), 0, 0};
    QuantileUpdate quantile;
    quantile.add<S>(z, std::span<const S>(bias), 1);
    std::vector<double> row{double(z(5, 0)), double(z(5, 2)), 1};
    std::sort(row.begin(), row.end(), std::greater<>());
    EXPECT_EQ(quantile.sum[3], 1 - row[1]);
    EXPECT_EQ(quantile.sum[1], -0.5);
}

TEST(QuantileErrors, AreSentencesAndChangeNothing) {
    const auto z = moe::testing::random_matrix<double>(6, 3, 9, 3);
    const std::vector<double> bias(3, 0.0), short_bias(2, 0.0);
    QuantileUpdate quantile;
    EXPECT_EQ(message([&] { quantile.add<double>(z, std::span(bias), 3); }),
              "moe::QuantileUpdate: k is 3, it must be in [1, 2]: with all 3 experts for every "
              "token there is nothing to balance");
    EXPECT_NE(message([&] { quantile.add<double>(z, std::span(bias), 0); }), "");
    EXPECT_EQ(message([&] { quantile.add<double>(z, std::span(short_bias), 1); }),
              "moe::QuantileUpdate: the logits are of 3 experts, the bias of 2, what was added "
              "before of 0");
    EXPECT_EQ(quantile.batches, 0);
    quantile.add<double>(z, std::span(bias), 1);
    std::vector<double> wrong(2, 0.0);
    EXPECT_EQ(message([&] { quantile.update(std::span(wrong)); }),
              "moe::QuantileUpdate: the bias has 2 entries, what was added 3");
    quantile.ema = 1;
    EXPECT_EQ(message([&] { quantile.update(std::span(wrong)); }),
              "moe::QuantileUpdate: ema is 1, it must be in [0, 1)");
    EXPECT_EQ(quantile.batches, 1);
}

}  // namespace
}  // namespace quantile_test
