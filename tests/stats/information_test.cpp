// SPDX-License-Identifier: MIT
#include <moe/stats/information.hpp>

#include <cmath>

#include <gtest/gtest.h>

namespace information_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::normalized_mutual_information;

TEST(NormalizedMutualInformation, OfASmallTableIsWorkedOutByHand) {
    // n = 4: 2 0 / 1 1. Rows 1/2 1/2, columns 3/4 1/4, cells 1/2 1/4 1/4.
    // H(a) = log 2, H(b) = 2 log 2 - 3/4 log 3, H(a, b) = 3/2 log 2.
    // I = 3/2 log 2 - 3/4 log 3
    Matrix<double> counts(2, 2);
    counts << 2, 0, 1, 1;
    const double log2 = std::log(2.0), log3 = std::log(3.0);
    EXPECT_NEAR(normalized_mutual_information(counts),
                2 * (1.5 * log2 - 0.75 * log3) / (3 * log2 - 0.75 * log3), 1e-15);
}

TEST(NormalizedMutualInformation, IsZeroForIndependentAndOneForABijection) {
    Matrix<double> independent(2, 3), bijection = Matrix<double>::Zero(4, 3);
    independent << 1, 2, 3, 10, 20, 30;
    bijection(3, 0) = 5, bijection(0, 2) = 7, bijection(1, 1) = 1;  // row 2 never occurs
    EXPECT_NEAR(normalized_mutual_information(independent), 0, 1e-15);
    EXPECT_NEAR(normalized_mutual_information(bijection), 1, 1e-15);
    EXPECT_NEAR(normalized_mutual_information(Matrix<double>(bijection.transpose())), 1, 1e-15);
}

TEST(NormalizedMutualInformation, IsZeroWhereNothingVaries) {
    EXPECT_EQ(normalized_mutual_information(Matrix<double>(0, 0)), 0);
    EXPECT_EQ(normalized_mutual_information(Matrix<double>::Zero(2, 3)), 0);
    Matrix<double> one = Matrix<double>::Zero(2, 2);
    one(1, 0) = 9;
    EXPECT_EQ(normalized_mutual_information(one), 0);
}

TEST(NormalizedMutualInformation, IsLessThanOneForAFunctionThatCannotBeInverted) {
    // Two rows to one column: I = H(b) = log 2, H(a) = log 4: 2 log 2 / (3 log 2).
    Matrix<double> counts = Matrix<double>::Zero(4, 2);
    for (Index a = 0; a < 4; ++a) counts(a, a / 2) = 3;
    EXPECT_NEAR(normalized_mutual_information(counts), 2.0 / 3, 1e-15);
}

}  // namespace
}  // namespace information_test
