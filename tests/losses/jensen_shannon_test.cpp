// SPDX-License-Identifier: MIT
#include <moe/losses/jensen_shannon.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/finite_difference.hpp>

#include "support/message.hpp"

namespace jensen_shannon_test {
namespace {

using Shares = std::vector<double>;

TEST(JensenShannon, OfHalvesAgainstOneIsWorkedOutByHand) {
    // m = (3/4, 1/4): 1/2 (1/2 log 2/3 + 1/2 log 2) + 1/2 log 4/3 = 3/4 log 4/3 = 0.2157616
    const Shares a{0.5, 0.5}, b{1, 0};
    EXPECT_NEAR(moe::jensen_shannon(a, b, 0), 0.75 * std::log(4.0 / 3), 1e-15);
    EXPECT_NEAR(moe::jensen_shannon(b, a, 0), 0.75 * std::log(4.0 / 3), 1e-15);
}

TEST(JensenShannon, IsThePublishedFormulaWithEpsilon) {
    const Shares a{0.5, 0.25, 0, 0.25}, b{0.125, 0, 0.75, 0.125};
    for (const double epsilon : {1e-6, 0.01}) {
        double expected = 0;
        for (std::size_t i = 0; i < 4; ++i) {
            const double m = (a[i] + b[i]) / 2;
            expected += 0.5 * a[i] * (std::log(a[i] + epsilon) - std::log(m + epsilon));
            expected += 0.5 * b[i] * (std::log(b[i] + epsilon) - std::log(m + epsilon));
        }
        EXPECT_NEAR(moe::jensen_shannon(a, b, epsilon), expected, 1e-15);
    }
}

TEST(JensenShannon, LiesBetweenZeroAndLogTwo) {
    const Shares a{0.5, 0.5, 0, 0}, b{0, 0, 0.25, 0.75}, nothing;
    EXPECT_EQ(moe::jensen_shannon(a, a, 0), 0);
    EXPECT_EQ(moe::jensen_shannon(a, a), 0);
    EXPECT_NEAR(moe::jensen_shannon(a, b, 0), std::log(2.0), 1e-15);
    EXPECT_NEAR(moe::jensen_shannon(a, b), std::log(2.0), 1e-5);
    EXPECT_EQ(moe::jensen_shannon(nothing, nothing), 0);
}

TEST(JensenShannon, SlopeAgreesWithDifferences) {
    Shares a{0.5, 0.2, 0.1, 0.2}, slope(4);
    const Shares b{0.1, 0.2, 0, 0.7};
    for (const double epsilon : {0.0, 1e-6, 0.01}) {
        const auto value = [&] { return moe::jensen_shannon(a, b, epsilon); };
        EXPECT_EQ(moe::detail::jensen_shannon(4, a.data(), b.data(), epsilon, slope.data()),
                  value());
        EXPECT_TRUE(moe::testing::check_gradient(value, a, slope));
    }
    Shares without{0, 1};
    moe::detail::jensen_shannon(2, without.data(), b.data(), 0, slope.data());
    EXPECT_EQ(slope[0], 0);
}

TEST(JensenShannon, ShowsNaNAndRefusesOtherExtents) {
    const Shares a{0.5, std::numeric_limits<double>::quiet_NaN()}, b{0.5, 0.5}, c{1};
    EXPECT_TRUE(std::isnan(moe::jensen_shannon(a, b)));
    EXPECT_EQ(support::message([&] { moe::jensen_shannon(b, c); }),
              "moe::jensen_shannon: a has 2 entries and b 1, they must have as many");
    EXPECT_EQ(support::message([&] { moe::jensen_shannon(b, b, -1); }),
              "moe::jensen_shannon: epsilon is -1, it must be finite and >= 0; 1e-6 is usual");
}

}  // namespace
}  // namespace jensen_shannon_test
