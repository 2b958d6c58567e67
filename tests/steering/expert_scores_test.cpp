// SPDX-License-Identifier: MIT
#include <moe/steering/expert_scores.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace expert_scores_test {
namespace {

using moe::experts_above;
using moe::ExpertScore;
using moe::Index;
using moe::top_experts;
using Matrix = moe::Matrix<double>;
using Scores = std::vector<ExpertScore>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

Matrix two_layers(const std::vector<double>& first, const std::vector<double>& second) {
    Matrix scores(2, static_cast<Index>(first.size()));
    for (Index e = 0; e < scores.cols(); ++e) {
        scores(0, e) = first[static_cast<std::size_t>(e)];
        scores(1, e) = second[static_cast<std::size_t>(e)];
    }
    return scores;
}

TEST(ExpertScores, TheTopOnesAreTheLargestInFallingOrder) {
    const Matrix scores = two_layers({0.25, -1, 0.5}, {0.75, 0, -2});
    EXPECT_EQ(top_experts(scores, 3), (Scores{{1, 0, 0.75}, {0, 2, 0.5}, {0, 0, 0.25}}));
    EXPECT_EQ(top_experts(scores, 0), Scores{});
    EXPECT_EQ(top_experts(scores, 6).back(), (ExpertScore{1, 2, -2}));
    EXPECT_EQ(top_experts(scores, 99).size(), 6u);
}

TEST(ExpertScores, TiesGoToTheLowerLayerThenToTheLowerExpert) {
    const Matrix scores = two_layers({0, 1, 1}, {1, 1, 2});
    EXPECT_EQ(top_experts(scores, 4), (Scores{{1, 2, 2}, {0, 1, 1}, {0, 2, 1}, {1, 0, 1}}));
    EXPECT_EQ(top_experts(Matrix::Zero(2, 2), 3), (Scores{{0, 0, 0}, {0, 1, 0}, {1, 0, 0}}));
}

TEST(ExpertScores, NaNAndMinusInfinityAreNeverAmongThem) {
    const Matrix scores = two_layers({nan, 1, -infinity}, {infinity, nan, nan});
    EXPECT_EQ(top_experts(scores, 6), (Scores{{1, 0, infinity}, {0, 1, 1}}));
    EXPECT_EQ(experts_above(scores, -5, 6), top_experts(scores, 6));
}

TEST(ExpertScores, AreCutAtAThresholdThatTheyMustPass) {
    const Matrix scores = two_layers({0.25, 0.3, 0.5}, {0.75, 0, 0.25});
    EXPECT_EQ(experts_above(scores, 0.25, 9), (Scores{{1, 0, 0.75}, {0, 2, 0.5}, {0, 1, 0.3}}));
    EXPECT_EQ(experts_above(scores, 0.25, 2), (Scores{{1, 0, 0.75}, {0, 2, 0.5}}));
    EXPECT_EQ(experts_above(scores, 0.75, 9), Scores{});
}

TEST(ExpertScores, OfManyAreThoseOfASortOfAll) {
    for (const Index n : {1, 7, 40}) {
        const Matrix scores = moe::testing::random_matrix<double>(5, 8, 3);
        std::vector<double> all(scores.data(), scores.data() + scores.size());
        std::sort(all.rbegin(), all.rend());
        const Scores top = top_experts(scores, n);
        ASSERT_EQ(static_cast<Index>(top.size()), n);
        for (std::size_t i = 0; i < top.size(); ++i) {
            EXPECT_EQ(top[i].value, all[i]);
            EXPECT_EQ(top[i].value, scores(top[i].layer, top[i].expert));
        }
    }
}

TEST(ExpertScores, OfNoLayersOrExpertsAreNone) {
    EXPECT_EQ(top_experts(Matrix(0, 4), 2), Scores{});
    EXPECT_EQ(top_experts(Matrix(3, 0), 2), Scores{});
}

TEST(ExpertScoreErrors, AreSentences) {
    using support::message;
    const Matrix scores = Matrix::Zero(2, 2);
    EXPECT_EQ(message([&] { top_experts(scores, -1); }),
              "moe::experts_above: n is -1, it must be >= 0");
    EXPECT_EQ(message([&] { experts_above(scores, nan, 1); }),
              "moe::experts_above: threshold is nan, it must be a number");
}

}  // namespace
}  // namespace expert_scores_test
