// SPDX-License-Identifier: MIT
#include <moe/losses/scores.hpp>

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "losses/example.hpp"

namespace scores_test {
namespace {

using moe::Index;
using moe::Matrix;

constexpr double dead = example::minus_infinity;

TEST(MaskUnselected, LeavesWhatTheTokenHasSelected) {
    moe::Routing plan = example::routing(5, {{0}, {3, 1}});
    const double z[5] = {1, 2, 3, dead, std::numeric_limits<double>::quiet_NaN()};
    double masked[5];
    moe::detail::mask_unselected(plan, 1, true, 5, z, masked);
    EXPECT_EQ(masked[0], dead);
    EXPECT_EQ(masked[1], 2);
    EXPECT_EQ(masked[2], dead);
    EXPECT_EQ(masked[3], dead);
    EXPECT_TRUE(std::isnan(masked[4]));           // so that it shows
    plan.set_dropped(2, moe::Dropped::capacity);  // token 1, expert 1
    plan.group();
    moe::detail::mask_unselected(plan, 1, true, 5, z, masked);
    EXPECT_EQ(masked[1], 2);
    moe::detail::mask_unselected(plan, 1, false, 5, z, masked);
    EXPECT_EQ(masked[1], dead);
}

TEST(NormalizedScores, SumToOneAndHaveTheSlopeOfTheirLogarithm) {
    const auto& table = moe::kernels<double>();
    const Matrix<double> z = example::logits<double>();
    for (const moe::Score score :
         {moe::Score::softmax, moe::Score::sigmoid, moe::Score::sqrt_softplus}) {
        double s[8], slope[8], above[8], below[8], unused[8];
        moe::detail::normalized_scores(table, score, 8, z.data(), s, slope);
        double sum = 0;
        for (const double value : s) sum += value;
        EXPECT_NEAR(sum, 1, 1e-14);
        if (moe::detail::is_softmax(score)) continue;
        for (Index e = 0; e < 8; ++e) {
            // d(log s(e))/dz(e) = slope (1 - s)
            Matrix<double> moved = z.topRows(1);
            moved(0, e) += 1e-5;
            moe::detail::normalized_scores(table, score, 8, moved.data(), above, unused);
            moved(0, e) -= 2e-5;
            moe::detail::normalized_scores(table, score, 8, moved.data(), below, unused);
            EXPECT_NEAR((std::log(above[e]) - std::log(below[e])) / 2e-5, slope[e] * (1 - s[e]),
                        1e-9);
        }
    }
}

TEST(AddSoftmaxGradient, IsTheJacobianTimesTheGradient) {
    // s = 1/4 1/4 1/2, g = 4 0 2: mean 2, dz = 3 * (1/2, -1/2, 0)
    const double s[3] = {0.25, 0.25, 0.5}, g[3] = {4, 0, 2};
    double scratch[3], dz[3] = {10, 20, 30};
    moe::detail::add_softmax_gradient(moe::kernels<double>(), 3, 3.0, s, g, scratch, dz);
    EXPECT_EQ(dz[0], 11.5);
    EXPECT_EQ(dz[1], 18.5);
    EXPECT_EQ(dz[2], 30);
}

}  // namespace
}  // namespace scores_test
