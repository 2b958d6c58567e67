// SPDX-License-Identifier: MIT
#include <moe/core/assignment.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/random.hpp>

namespace assignment_test {
namespace {

using moe::Index;

struct Solution {
    double sum;
    std::vector<Index> column;
};

Solution solve(Index n, const std::vector<double>& cost) {
    Solution solution{0, std::vector<Index>(static_cast<std::size_t>(n), -1)};
    solution.sum = moe::detail::least_cost_assignment(n, cost.data(), solution.column.data());
    return solution;
}

double sum_of(const std::vector<double>& cost, const std::vector<Index>& column) {
    double sum = 0;
    for (std::size_t i = 0; i < column.size(); ++i)
        sum += cost[i * column.size() + static_cast<std::size_t>(column[i])];
    return sum;
}

double least_of_all(Index n, const std::vector<double>& cost) {
    std::vector<Index> column(static_cast<std::size_t>(n));
    std::iota(column.begin(), column.end(), Index(0));
    double least = std::numeric_limits<double>::infinity();
    do least = std::min(least, sum_of(cost, column));
    while (std::next_permutation(column.begin(), column.end()));
    return least;
}

void expect_permutation(std::vector<Index> column) {
    std::sort(column.begin(), column.end());
    for (std::size_t i = 0; i < column.size(); ++i) EXPECT_EQ(column[i], static_cast<Index>(i));
}

TEST(Assignment, OfThreeRowsIsWorkedOutByHand) {
    // Each row's cheapest is column 0; 1 + 3 + 2 is less than any other
    const Solution solution = solve(3, {1, 4, 5, 2, 3, 7, 0, 4, 2});
    EXPECT_EQ(solution.column, (std::vector<Index>{0, 1, 2}));
    EXPECT_EQ(solution.sum, 6);
}

TEST(Assignment, IsTheLeastOfAllPermutations) {
    for (Index n = 0; n <= 7; ++n)
        for (std::uint64_t seed = 0; seed < 40; ++seed) {
            std::vector<double> cost;
            for (Index i = 0; i < n * n; ++i) {
                const double value =
                    moe::testing::random_value(seed, static_cast<std::uint64_t>(i));
                // whole numbers with many ties, and any, of both signs
                cost.push_back(seed % 2 == 0 ? std::round(3 * value) : 1e3 * value);
            }
            const Solution solution = solve(n, cost);
            expect_permutation(solution.column);
            EXPECT_NEAR(solution.sum, sum_of(cost, solution.column), 1e-9);
            EXPECT_NEAR(solution.sum, least_of_all(n, cost), 1e-9) << n << " " << seed;
        }
}

TEST(Assignment, OfEqualCostsGivesTheLowerColumnToTheLowerRow) {
    EXPECT_EQ(solve(4, std::vector<double>(16, 2.5)).column, (std::vector<Index>{0, 1, 2, 3}));
}

TEST(Assignment, DoesNotCareForAConstantOfARowOrAColumn) {
    constexpr Index n = 6;
    std::vector<double> cost, moved;
    for (Index i = 0; i < n * n; ++i) {
        cost.push_back(moe::testing::random_value(5, static_cast<std::uint64_t>(i)));
        moved.push_back(cost.back() + static_cast<double>(i / n) * 8 -
                        static_cast<double>(i % n) * 3);
    }
    EXPECT_EQ(solve(n, moved).column, solve(n, cost).column);
}

TEST(Assignment, FindsAHiddenPermutationAmongMany) {
    constexpr Index n = 90;
    std::vector<double> cost;
    for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < n; ++j)
            cost.push_back(j == (37 * i + 5) % n ? 0.0 : 1.0 + static_cast<double>((i * j) % 7));
    const Solution solution = solve(n, cost);
    EXPECT_EQ(solution.sum, 0);
    for (Index i = 0; i < n; ++i)
        EXPECT_EQ(solution.column[static_cast<std::size_t>(i)], (37 * i + 5) % n);
}

}  // namespace
}  // namespace assignment_test
