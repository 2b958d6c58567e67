// SPDX-License-Identifier: MIT
#include <moe/core/softplus.hpp>

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace softplus_test {
namespace {

using moe::detail::softplus;
using moe::detail::softplus_slope;

TEST(Softplus, IsExactInBothTails) {
    EXPECT_EQ(softplus(1000), 1000);
    EXPECT_NEAR(softplus(0), std::log(2.0), 1e-16);
    EXPECT_NEAR(softplus(-40) / std::exp(-40.0), 1, 1e-15);
    EXPECT_EQ(softplus(-1000), 0);
    const double infinity = std::numeric_limits<double>::infinity();
    EXPECT_EQ(softplus(infinity), infinity);
    EXPECT_EQ(softplus(-infinity), 0);
    EXPECT_TRUE(std::isnan(softplus(std::nan(""))));
}

TEST(Softplus, RisesAsItsSlopeSays) {
    for (const double z : {-30.0, -2.0, -0.1, 0.0, 0.7, 5.0, 30.0}) {
        EXPECT_NEAR(softplus_slope(z), (softplus(z + 1e-5) - softplus(z - 1e-5)) / 2e-5, 1e-9);
        EXPECT_NEAR(softplus_slope(z) + softplus_slope(-z), 1, 1e-15);
    }
    EXPECT_EQ(softplus_slope(1000), 1);
    EXPECT_EQ(softplus_slope(-1000), 0);
    EXPECT_NEAR(softplus_slope(-40) / std::exp(-40.0), 1, 1e-15);
    EXPECT_TRUE(std::isnan(softplus_slope(std::nan(""))));
}

}  // namespace
}  // namespace softplus_test
