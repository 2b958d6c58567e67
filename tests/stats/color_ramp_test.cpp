// SPDX-License-Identifier: MIT
#include <moe/stats/color_ramp.hpp>

#include <gtest/gtest.h>

namespace color_ramp_test {
namespace {

using moe::Color;

TEST(ColorRamp, GetsDarkerAllTheWay) {
    double before = 2;
    for (int i = 0; i <= 100; ++i) {
        const double luminance = moe::ramp_color(i / 100.0).luminance();
        EXPECT_LT(luminance, before) << "at " << i;
        before = luminance;
    }
    EXPECT_GT(moe::ramp_color(0).luminance(), 0.9);
    EXPECT_LT(moe::ramp_color(1).luminance(), 0.03);
}

TEST(ColorRamp, ClampsAndMeetsItsStops) {
    EXPECT_EQ(moe::ramp_color(-5), moe::ramp_stops.front());
    EXPECT_EQ(moe::ramp_color(0.5), moe::ramp_stops[5]);
    EXPECT_EQ(moe::ramp_color(7), moe::ramp_stops.back());
    EXPECT_EQ((Color{0xf5, 0x0a, 0xde}.hex()), "#f50ade");
    EXPECT_NEAR((Color{255, 255, 255}.luminance()), 1, 1e-12);
    EXPECT_EQ((Color{0, 0, 0}.luminance()), 0);
}

}  // namespace
}  // namespace color_ramp_test
