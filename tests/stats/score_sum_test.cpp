// SPDX-License-Identifier: MIT
#include <moe/stats/score_sum.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace score_sum_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::MeanOver;
using moe::Score;
using moe::ScoreSum;
using support::message;

constexpr double infinity = std::numeric_limits<double>::infinity();

template <class S>
class ScoreSumOf : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ScoreSumOf, Scalars);

TYPED_TEST(ScoreSumOf, IsWorkedOutByHand) {
    // softmax of log 1, log 3 and of equal logits: 1/4 3/4 and 1/2 1/2 twice; sequences (0) (1 2)
    using S = TypeParam;
    Matrix<S> logits(3, 2);
    logits << S(0), std::log(S(3)), S(7), S(7), S(-2), S(-2);
    const std::vector<Index> offsets{0, 1, 3};
    ScoreSum sum(2, Score::softmax, MeanOver::sequences);
    sum.add(logits, {.sequence_offsets = offsets});
    EXPECT_NEAR(sum.mean()[0], 0.375, 1e-7);
    EXPECT_NEAR(sum.mean()[1], 0.625, 1e-7);
    EXPECT_EQ(sum.count(), 2);
    ScoreSum over_tokens(2);
    over_tokens.add(logits);
    EXPECT_NEAR(over_tokens.mean()[0], 1.25 / 3, 1e-7);
    EXPECT_EQ(over_tokens.count(), 3);
}

TEST(ScoreSum, EqualsADirectSumOverBatches) {
    const auto softmax = [](double z, const Matrix<double>& logits, Index t) {
        double all = 0;
        for (Index e = 0; e < logits.cols(); ++e) all += std::exp(logits(t, e));
        return std::exp(z) / all;
    };
    const auto sigmoid = [](double z, const Matrix<double>&, Index) {
        return 1 / (1 + std::exp(-z));
    };
    const auto raw = [](double z, const Matrix<double>&, Index) { return z; };
    const auto expect = [](Score score, auto&& reference) {
        ScoreSum sum(5, score, MeanOver::tokens);
        std::vector<double> expected(5, 0.0);
        for (const Index tokens : {3, 0, 4}) {
            const auto z = moe::testing::random_matrix<double>(
                tokens, 5, static_cast<std::uint64_t>(tokens), 2);
            sum.add(z);
            for (Index t = 0; t < tokens; ++t)
                for (Index e = 0; e < 5; ++e)
                    expected[static_cast<std::size_t>(e)] += reference(z(t, e), z, t) / 7;
        }
        for (std::size_t e = 0; e < 5; ++e) EXPECT_NEAR(sum.mean()[e], expected[e], 1e-14);
        EXPECT_EQ(sum.count(), 7);
    };
    expect(Score::softmax, softmax);
    expect(Score::sigmoid, sigmoid);
    expect(Score::raw, raw);
}

TEST(ScoreSum, LeavesOutPaddingAndTokensThatAreMaskedThroughout) {
    Matrix<double> logits(3, 2);
    logits << 1, 1, -infinity, -infinity, 5, -infinity;
    const std::vector<std::uint8_t> padding{0, 0, 1};
    ScoreSum sum(2, Score::softmax, MeanOver::tokens);
    sum.add(logits, {.padding = padding});
    EXPECT_EQ(sum.count(), 1);
    EXPECT_EQ(sum.mean()[0], 0.5);
    sum.add(logits);
    EXPECT_EQ(sum.count(), 3);
    EXPECT_EQ(sum.mean()[0], 2.0 / 3);  // 1/2, 1/2 and 1
}

TEST(ScoreSum, ShowsNaN) {
    Matrix<double> logits(1, 2);
    logits << 1, std::numeric_limits<double>::quiet_NaN();
    ScoreSum sum(2, Score::softmax, MeanOver::tokens);
    sum.add(logits);
    EXPECT_TRUE(std::isnan(sum.mean()[0]));
    sum.clear();
    EXPECT_EQ(sum.count(), 0);
    EXPECT_EQ(sum.mean(), (std::vector<double>{0, 0}));
}

TEST(ScoreSum, ReadsAWorkspaceWithoutLogitsThatAreNotTheExperts) {
    moe::Workspace<float> ws;
    EXPECT_THROW(ScoreSum(2).add(ws), std::logic_error);
    auto& routed = ws.state<moe::Routed<float>>();
    routed.num_logits = 3;
    routed.other_logits = 1;
    routed.logits.matrix(2, 3) << 0, 0, 9, 1, 1, 9;
    const std::vector<Index> offsets{0, 2};
    routed.context = {.sequence_offsets = offsets};
    ScoreSum sum(2, Score::softmax, MeanOver::sequences);
    sum.add(ws);
    EXPECT_EQ(sum.mean(), (std::vector<double>{0.5, 0.5}));
    EXPECT_EQ(sum.count(), 1);
}

TEST(ScoreSum, RefusesWhatItCannotAdd) {
    EXPECT_EQ(message([] { ScoreSum(-1); }), "moe::ScoreSum: num_experts is -1, it must be >= 0");
    EXPECT_EQ(message([] { ScoreSum(2, Score::softmax_of_selected); }),
              "moe::ScoreSum: score is softmax_of_selected, which scores what was selected; take "
              "softmax, or mean_weight() of a trace");
    EXPECT_THROW(ScoreSum(2, static_cast<Score>(9)), std::invalid_argument);
    EXPECT_THROW(ScoreSum(2, Score::raw, static_cast<MeanOver>(2)), std::invalid_argument);
    ScoreSum sum(2, Score::softmax, MeanOver::sequences);
    const Matrix<double> logits = Matrix<double>::Zero(3, 2);
    const std::vector<std::uint8_t> padding{0};
    const std::vector<Index> offsets{0, 2};
    EXPECT_EQ(message([&] { sum.add(Matrix<double>::Zero(3, 4)); }),
              "moe::ScoreSum::add: logits are of 4 experts, the sum is of 2");
    EXPECT_THROW(sum.add(logits, {.padding = padding}), std::invalid_argument);
    EXPECT_EQ(message([&] { sum.add(logits); }),
              "moe::ScoreSum::add: sequence_offsets is empty, a mean over sequences wants it; set "
              "Context::sequence_offsets, or take MeanOver::tokens");
    EXPECT_THROW(sum.add(logits, {.sequence_offsets = offsets}), std::invalid_argument);
    EXPECT_EQ(sum.count(), 0);
    EXPECT_EQ(sum.mean(), (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace score_sum_test
