// SPDX-License-Identifier: MIT
#include <moe/testing/random.hpp>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace random_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::testing::random_matrix;
using moe::testing::random_spaced;
using moe::testing::random_value;

TEST(TestingRandom, ValuesAreTheSameEverywhere) {
    EXPECT_EQ(random_value(1, 0), -0.49157214164733887);
    EXPECT_EQ(random_value(1, 1), 0.7894465923309326);
    EXPECT_EQ(random_value(12345678901234567u, 1000000), -0.5167229175567627);
}

TEST(TestingRandom, ValuesLieBetweenMinusOneAndOneAndAreNeverZero) {
    double sum = 0, squares = 0;
    for (std::uint64_t i = 0; i < 10000; ++i) {
        const double value = random_value(3, i);
        ASSERT_LT(std::abs(value), 1);
        ASSERT_NE(value, 0);
        ASSERT_EQ(static_cast<double>(static_cast<float>(value)), value);
        sum += value;
        squares += value * value;
    }
    EXPECT_LT(std::abs(sum / 10000), 0.03);                 // five deviations of the mean
    EXPECT_LT(std::abs(squares / 10000 - 1.0 / 3), 0.015);  // of the second moment
}

TEST(TestingRandom, SeedsAndIndicesGiveDifferentNumbers) {
    std::set<double> seen;
    for (std::uint64_t seed = 0; seed < 20; ++seed)
        for (std::uint64_t i = 0; i < 20; ++i) seen.insert(random_value(seed, i));
    EXPECT_EQ(seen.size(), 400u);
}

TEST(TestingRandom, FloatAndDoubleMatricesHoldTheSameNumbers) {
    const Matrix<float> single = random_matrix<float>(7, 9, 4, 0.25);
    const Matrix<double> wide = random_matrix<double>(7, 9, 4, 0.25);
    EXPECT_EQ(single.cast<double>(), wide);
    EXPECT_EQ(wide(2, 3), 0.25 * random_value(4, 2 * 9 + 3));
    EXPECT_EQ(random_matrix<float>(0, 9, 4).size(), 0);
}

TEST(TestingRandom, SpacedRowsHaveNoNearTies) {
    const double gap = 0.125;
    const Matrix<double> spaced = random_spaced<double>(20, 17, 5, gap);
    std::set<Index> places;
    for (Index row = 0; row < spaced.rows(); ++row) {
        std::vector<double> sorted(17);
        for (Index j = 0; j < 17; ++j) sorted[static_cast<std::size_t>(j)] = spaced(row, j);
        places.insert(std::max_element(sorted.begin(), sorted.end()) - sorted.begin());
        std::sort(sorted.begin(), sorted.end());
        for (std::size_t j = 1; j < 17; ++j) EXPECT_GE(sorted[j] - sorted[j - 1], gap);
    }
    EXPECT_GT(places.size(), 6u);  // rows are in different orders
}

}  // namespace
}  // namespace random_test
