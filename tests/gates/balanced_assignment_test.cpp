// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <moe/gates/balanced_assignment.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Index;

constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<std::int32_t> assign(const moe::Matrix<double>& z, double resolution = 50) {
    moe::detail::BalancedAssignment assignment;
    std::vector<std::int32_t> expert(static_cast<std::size_t>(z.rows()), 99);
    assignment.run<double>(z, resolution, expert.data());
    return expert;
}

double total(const moe::Matrix<double>& z, const std::vector<std::int32_t>& expert) {
    double sum = 0;
    for (std::size_t t = 0; t < expert.size(); ++t) sum += z(static_cast<Index>(t), expert[t]);
    return sum;
}

std::vector<Index> load(const std::vector<std::int32_t>& expert, Index experts) {
    std::vector<Index> count(static_cast<std::size_t>(experts), 0);
    for (const std::int32_t e : expert)
        if (e >= 0) ++count[static_cast<std::size_t>(e)];
    return count;
}

/// The largest sum of all assignments whose loads are floor(T / E) or ceil(T / E): all are tried.
double brute_force(const moe::Matrix<double>& z) {
    const Index tokens = z.rows(), experts = z.cols();
    std::vector<std::int32_t> expert(static_cast<std::size_t>(tokens), 0);
    double best = -infinity;
    while (true) {
        const auto count = load(expert, experts);
        const auto [least, most] = std::minmax_element(count.begin(), count.end());
        if (*most - *least <= 1) best = std::max(best, total(z, expert));
        std::size_t t = 0;
        while (t < expert.size() && ++expert[t] == experts) expert[t++] = 0;
        if (t == expert.size()) return best;
    }
}

double step(const moe::Matrix<double>& z, double resolution) {
    return std::max((z.maxCoeff() - z.minCoeff()) / resolution, 1e-4);
}

TEST(BalancedAssignment, IsWithinItsStepOfTheBest) {
    for (const double resolution : {1.0, 50.0, 1e5})
        for (const Index experts : {1, 2, 3, 4})
            for (Index tokens = 1; tokens <= (experts == 4 ? 8 : 9); ++tokens)
                for (unsigned seed = 0; seed < 4; ++seed) {
                    const auto z = moe::testing::random_matrix<double>(tokens, experts, seed, 3);
                    const auto expert = assign(z, resolution);
                    const auto count = load(expert, experts);
                    const auto [least, most] = std::minmax_element(count.begin(), count.end());
                    EXPECT_LE(*most - *least, 1) << tokens << " " << experts;
                    const double best = brute_force(z),
                                 places = std::ceil(static_cast<double>(tokens) /
                                                    static_cast<double>(experts)) *
                                          static_cast<double>(experts);
                    EXPECT_LE(total(z, expert), best + 1e-12);
                    EXPECT_GE(total(z, expert), best - places * step(z, resolution) - 1e-12);
                }
}

TEST(BalancedAssignment, IsTheBestWhereStepsAreFineEnough) {
    for (unsigned seed = 0; seed < 20; ++seed) {
        moe::Matrix<double> z = moe::testing::random_matrix<double>(8, 4, seed, 1);
        for (Index i = 0; i < z.size(); ++i) z.data()[i] = std::round(z.data()[i] * 20);
        // sums are whole numbers, and all steps together are less than 1
        EXPECT_EQ(total(z, assign(z, 1e4)), brute_force(z)) << seed;
    }
}

TEST(BalancedAssignment, SharesWhatAllWantAlike) {
    for (const Index tokens : {1, 5, 12, 13, 100}) {
        const auto count = load(assign(moe::Matrix<double>::Constant(tokens, 4, 1e12)), 4);
        EXPECT_EQ(*std::max_element(count.begin(), count.end()), (tokens + 3) / 4);
        EXPECT_EQ(*std::min_element(count.begin(), count.end()), tokens / 4);
    }
    moe::Matrix<double> z = moe::Matrix<double>::Zero(40, 4);
    z.col(1).setConstant(7);
    EXPECT_EQ(load(assign(z), 4), (std::vector<Index>{10, 10, 10, 10}));
}

TEST(BalancedAssignment, GivesTheExtraPlacesToWhomTheyAreWorthMost) {
    moe::Matrix<double> z = moe::Matrix<double>::Zero(1, 5);
    z(0, 3) = 1;
    EXPECT_EQ(assign(z)[0], 3);  // fewer tokens than experts
    z = moe::Matrix<double>::Zero(6, 4);
    z.col(2).setConstant(1);
    EXPECT_EQ(load(assign(z), 4)[2], 2);
}

TEST(BalancedAssignment, IsTheSameIfAllScoresAreShifted) {
    const auto z = moe::testing::random_matrix<double>(30, 5, 3, 4);
    const moe::Matrix<double> shifted = z.array() + 1024;
    EXPECT_EQ(assign(z), assign(shifted));
    moe::Matrix<double> by_token = z;  // what one token gains everywhere changes no choice
    for (Index t = 0; t < 30; ++t) by_token.row(t).array() += static_cast<double>(t % 3);
    EXPECT_NEAR(total(z, assign(by_token, 1e5)), total(z, assign(z, 1e5)), 0.01);
}

TEST(BalancedAssignment, LeavesRowsOfMinusInfinityOut) {
    moe::Matrix<double> z = moe::testing::random_matrix<double>(12, 3, 3, 4);
    const auto alone = assign(z);
    moe::Matrix<double> padded = moe::Matrix<double>::Constant(16, 3, -infinity);
    padded.middleRows(2, 12) = z;
    const auto with = assign(padded);
    for (std::size_t t = 0; t < 16; ++t) EXPECT_EQ(with[t], t < 2 || t >= 14 ? -1 : alone[t - 2]);
    EXPECT_EQ(assign(moe::Matrix<double>::Constant(3, 2, -infinity)),
              (std::vector<std::int32_t>{-1, -1, -1}));
}

TEST(BalancedAssignment, KeepsToAMaskAndFindsAPlaceWhereThereIsOne) {
    for (unsigned seed = 0; seed < 20; ++seed) {
        // tokens of two kinds, experts of two kinds; and there is a token for one expert alone
        moe::Matrix<double> z = moe::testing::random_matrix<double>(20, 4, seed, 3);
        for (Index t = 0; t < 20; ++t)
            for (Index e = 0; e < 4; ++e)
                if ((t < 10) != (e < 2)) z(t, e) = -infinity;
        z(0, 0) = -infinity;
        const auto expert = assign(z);
        EXPECT_EQ(load(expert, 4), (std::vector<Index>{5, 5, 5, 5}));
        EXPECT_TRUE(std::isfinite(total(z, expert)));
    }
    moe::Matrix<double> narrow = moe::Matrix<double>::Constant(8, 4, -infinity);
    narrow.col(1).setZero();  // two places for eight
    const auto expert = assign(narrow);
    EXPECT_EQ(load(expert, 4), (std::vector<Index>{0, 2, 0, 0}));
}

TEST(BalancedAssignment, TakesWhatIsNotFiniteForTheSmallest) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    moe::Matrix<double> z = moe::testing::random_matrix<double>(12, 3, 3, 4);
    moe::Matrix<double> smallest = z;
    z(2, 1) = nan;
    z(7, 0) = infinity;
    z.row(4).setConstant(nan);
    smallest(2, 1) = smallest(7, 0) = 1e9;
    smallest.row(4).setConstant(1e9);
    const double low = smallest.minCoeff();
    smallest(2, 1) = smallest(7, 0) = low;
    smallest.row(4).setConstant(low);
    EXPECT_EQ(assign(z), assign(smallest));
    EXPECT_EQ(load(assign(moe::Matrix<double>::Constant(6, 3, nan)), 3),
              (std::vector<Index>{2, 2, 2}));
    moe::Matrix<double> huge = moe::testing::random_matrix<double>(6, 3, 3, 1);
    huge(0, 0) = 1e308;
    huge(1, 1) = -1e308;
    assign(huge);  // ends
}

}  // namespace
