// SPDX-License-Identifier: MIT
#include <moe/losses/switch_dit_prior.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/random.hpp>

#include "losses/example.hpp"
#include "support/message.hpp"

namespace switch_dit_prior_test {
namespace {

using moe::Index;
using moe::Matrix;

TEST(SwitchDitPrior, OfFiveTasksIsWorkedOutByHand) {
    // C = 6, a window of 2, so at (i / 4)^4 * 4 = 0, 1/64, 1/4, 81/64, 4, rounded 0 0 0 1 4
    const Matrix<double> prior = moe::switch_dit_prior(5, 2, 3, 1);
    Matrix<double> expected(5, 6);
    expected << 1, 1, 0, 0, 0, 0,  //
        1, 1, 0, 0, 0, 0,          //
        1, 1, 0, 0, 0, 0,          //
        0, 1, 1, 0, 0, 0,          //
        0, 0, 0, 0, 1, 1;
    EXPECT_EQ(prior, expected);
    // evenly, with halves to the even one: 0, 1, 2, 3, 4 and, of 3 columns to go, 0 1.5 3
    EXPECT_EQ(moe::switch_dit_prior(5, 2, 3, 1, 1)(2, 2), 1);
    const Matrix<double> halves = moe::switch_dit_prior(3, 1, 4, 1, 1);
    EXPECT_EQ(halves(1, 2), 1);
    EXPECT_EQ(moe::switch_dit_prior(3, 1, 2, 1, 1)(1, 0), 1);  // 1/2
}

TEST(SwitchDitPrior, RowsAreWindowsFromTheFirstColumnToTheLast) {
    for (const Index tasks : {1, 2, 7, 100})
        for (const Index k : {1, 2, 3}) {
            const Matrix<double> prior = moe::switch_dit_prior(tasks, 4, 3, k);
            Index last = 0;
            for (Index task = 0; task < tasks; ++task) {
                EXPECT_EQ(prior.row(task).sum(), 4.0 * static_cast<double>(k));
                Index first = 0;
                while (prior(task, first) == 0) ++first;
                EXPECT_TRUE((prior.block(task, first, 1, 4 * k).array() == 1).all());
                EXPECT_GE(first, last);
                last = first;
            }
            EXPECT_EQ(prior(0, 0), 1);
            EXPECT_EQ(last, tasks > 1 ? 12 - 4 * k : 0);
        }
}

TEST(SwitchDitPrior, RefusesSettingsOutOfRange) {
    const auto message = [](Index tasks, Index layers, Index k, double exponent) {
        return support::message([&] { moe::switch_dit_prior(tasks, layers, 3, k, exponent); });
    };
    EXPECT_EQ(message(0, 2, 1, 4),
              "moe::switch_dit_prior: tasks is 0 and layers 2, both must be >= 1");
    EXPECT_EQ(message(5, 2, 4, 4),
              "moe::switch_dit_prior: k is 4, it must be in [1, 3], the experts of a layer");
    EXPECT_NE(message(5, 2, 0, 4), "");
    EXPECT_EQ(message(5, 2, 1, 0),
              "moe::switch_dit_prior: exponent is 0, it must be finite and > 0; 4 is usual");
}

TEST(SelectionMask, IsOneWhereATokenSelectedAnExpert) {
    moe::Routing plan = example::routing(3, {{2, 0}, {}, {1}});
    plan.set_dropped(0, moe::Dropped::capacity);
    plan.group();
    Matrix<double> masks = Matrix<double>::Constant(3, 7, 5), expected(3, 3);
    moe::selection_mask(plan, masks.middleCols(2, 3));
    expected << 1, 0, 1, 0, 0, 0, 0, 1, 0;
    EXPECT_EQ(Matrix<double>(masks.middleCols(2, 3)), expected);
    EXPECT_TRUE((masks.leftCols(2).array() == 5).all());
    EXPECT_TRUE((masks.rightCols(2).array() == 5).all());
    EXPECT_EQ(support::message([&] { moe::selection_mask(plan, masks); }),
              "moe::selection_mask: mask is [3, 7], the routing is for 3 tokens and 3 experts");
}

TEST(MatchColumns, FindsTheColumnsOfAPriorThatWereShuffled) {
    const Matrix<double> prior = moe::switch_dit_prior(40, 2, 4, 1, 1);  // all columns differ
    const std::vector<Index> shuffle{3, 7, 0, 5, 1, 6, 2, 4};
    Matrix<double> masks(40, 8);
    for (Index c = 0; c < 8; ++c) masks.col(c) = prior.col(shuffle[static_cast<std::size_t>(c)]);
    EXPECT_EQ(moe::match_columns(masks, prior), shuffle);
}

TEST(MatchColumns, LeavesTheLeastDifferenceOfAllMatchings) {
    Matrix<double> masks = moe::testing::random_matrix<double>(11, 6, 1).array().round().abs();
    const Matrix<double> prior = moe::switch_dit_prior(11, 2, 3, 1);
    const auto difference = [&](const std::vector<Index>& match) {
        double sum = 0;
        for (Index c = 0; c < 6; ++c)
            sum += (masks.col(c) - prior.col(match[static_cast<std::size_t>(c)])).cwiseAbs().sum();
        return sum;
    };
    std::vector<Index> match{0, 1, 2, 3, 4, 5};
    double least = difference(match), most = least;
    while (std::next_permutation(match.begin(), match.end())) {
        least = std::min(least, difference(match));
        most = std::max(most, difference(match));
    }
    EXPECT_LT(least, most);
    EXPECT_EQ(difference(moe::match_columns(masks, prior)), least);
}

TEST(MatchColumns, OfNothingIsNothingAndWhatDoesNotMatchIsRefused) {
    const Matrix<double> none(3, 0), prior = moe::switch_dit_prior(3, 1, 2, 1);
    EXPECT_TRUE(moe::match_columns(none, none).empty());
    EXPECT_EQ(support::message([&] { moe::match_columns(none, prior); }),
              "moe::match_columns: masks is [3, 0], prior is [3, 2]; they must have a row for each "
              "task and a column for each expert");
    Matrix<double> masks = prior;
    masks(1, 1) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(support::message([&] { moe::match_columns(masks, prior); }),
              "moe::match_columns: masks or prior has an entry that is not finite, or their sum is "
              "not; all must be, and masks are 0 or 1");
}

}  // namespace
}  // namespace switch_dit_prior_test
