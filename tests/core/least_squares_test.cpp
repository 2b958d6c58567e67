// SPDX-License-Identifier: MIT
#include <moe/core/least_squares.hpp>

#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <Eigen/Dense>

#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace least_squares_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::detail::least_squares;
using moe::testing::compare;
using moe::testing::random_matrix;

constexpr Index extents[][2] = {{1, 1},   {2, 2},  {5, 3},  {3, 5},
                                {17, 16}, {40, 9}, {9, 40}, {60, 33}};

TEST(LeastSquares, SolvesTheNormalEquationsOfTallMatrices) {
    for (const auto& [rows, cols] : extents) {
        if (rows < cols) continue;
        const auto a = random_matrix<double>(rows, cols, 1), b = random_matrix<double>(rows, 4, 2);
        const Matrix<double> expected = (a.transpose() * a).ldlt().solve(a.transpose() * b);
        EXPECT_TRUE(compare(least_squares(a, b), expected, 1e-8)) << rows << " " << cols;
    }
}

TEST(LeastSquares, IsTheSolutionOfLeastNormForAnyShapeAndRank) {
    for (const auto& [rows, cols] : extents)
        for (const Index rank : {Index{1}, Index{2}, std::min(rows, cols)}) {
            if (rank > std::min(rows, cols)) continue;
            const Matrix<double> a =
                random_matrix<double>(rows, rank, 1) * random_matrix<double>(rank, cols, 2);
            const auto b = random_matrix<double>(rows, 3, 3);
            const Matrix<double> expected = a.completeOrthogonalDecomposition().solve(b);
            EXPECT_TRUE(compare(least_squares(a, b), expected, 1e-8))
                << rows << " " << cols << " rank " << rank;
        }
}

TEST(LeastSquares, TreatsEqualAndEmptyColumnsAlike) {
    Matrix<double> a = random_matrix<double>(12, 6, 1);
    a.col(3) = a.col(1);
    a.col(4).setZero();
    const auto b = random_matrix<double>(12, 2, 2);
    const Matrix<double> x = least_squares(a, b);
    EXPECT_TRUE(compare(x, Matrix<double>(a.completeOrthogonalDecomposition().solve(b)), 1e-12));
    EXPECT_TRUE(compare(Matrix<double>(x.row(3)), Matrix<double>(x.row(1)), 1e-13));
    EXPECT_LT(x.row(4).norm(), 1e-14);
}

TEST(LeastSquares, LeavesAResidualAcrossTheColumns) {
    const auto a = random_matrix<double>(30, 7, 1), b = random_matrix<double>(30, 3, 2);
    const Matrix<double> across = a.transpose() * (a * least_squares(a, b) - b);
    EXPECT_LT(across.norm(), 1e-13);
}

TEST(LeastSquares, DoesNotDependOnTheUnit) {
    const auto a = random_matrix<double>(20, 8, 1), b = random_matrix<double>(20, 3, 2);
    const Matrix<double> expected = least_squares(a, b);
    for (const double unit : {0x1p-100, 0x1p100})
        EXPECT_TRUE(compare(Matrix<double>(unit * least_squares(a * unit, b)), expected, 1e-12));
}

TEST(LeastSquares, KeepsSmallSingularValuesThatAreNotRounding) {
    Matrix<double> a = random_matrix<double>(10, 4, 1);
    a.col(2) *= 1e-10;
    const auto x = random_matrix<double>(4, 2, 2);
    EXPECT_TRUE(compare(least_squares(a, a * x), x, 1e-5));
}

TEST(LeastSquares, OfNothingIsZero) {
    EXPECT_TRUE(
        least_squares(Matrix<double>::Zero(4, 3), random_matrix<double>(4, 2, 1)).isZero(0));
    const Matrix<double> without_rows = least_squares(Matrix<double>(0, 3), Matrix<double>(0, 2));
    EXPECT_EQ(without_rows.rows(), 3);
    EXPECT_TRUE(without_rows.isZero(0));
    EXPECT_EQ(least_squares(Matrix<double>(3, 0), Matrix<double>(3, 2)).size(), 0);
    EXPECT_THROW(least_squares(Matrix<double>(3, 2), Matrix<double>(2, 2)), std::invalid_argument);
}

}  // namespace
}  // namespace least_squares_test
