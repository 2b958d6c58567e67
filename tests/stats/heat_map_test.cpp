// SPDX-License-Identifier: MIT
#include <moe/stats/heat_map.hpp>

#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace heat_map_test {
namespace {

using moe::HeatMapOptions;
using moe::HeatMapPanel;
using moe::Matrix;
using Scale = moe::detail::HeatMapScale;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

std::vector<HeatMapPanel> one(std::vector<double> values) {
    return {
        {"", Eigen::Map<Matrix<double>>(values.data(), 1, static_cast<moe::Index>(values.size()))}};
}

TEST(HeatMapScale, SpansTheFiniteValuesOfAllPanels) {
    std::vector<HeatMapPanel> panels = one({2, nan_value, 3});
    panels.push_back(one({-1, infinity, 2.5}).front());
    const Scale scale(panels, {});
    EXPECT_EQ(scale.low, -1);
    EXPECT_EQ(scale.high, 3);
    EXPECT_TRUE(scale.has_nan);
    EXPECT_EQ(scale.place(-1), 0);
    EXPECT_EQ(scale.place(1), 0.5);
    EXPECT_EQ(scale.place(3), 1);
    EXPECT_EQ(scale.place(infinity), 1);
    EXPECT_EQ(scale.place(-infinity), 0);
}

TEST(HeatMapScale, TakesItsEndsFromTheOptions) {
    const Scale scale(one({2, 3}), {.low = 0.0, .high = 10.0});
    EXPECT_EQ(scale.place(2), 0.2);
    EXPECT_THROW(Scale(one({2, 3}), {.low = 4.0}), std::invalid_argument);
    EXPECT_THROW(Scale(one({2, 3}), {.high = nan_value}), std::invalid_argument);
    EXPECT_THROW(Scale(one({2, 3}), {.low = -infinity}), std::invalid_argument);
}

TEST(HeatMapScale, OfOneValueIsInTheMiddle) {
    const Scale scale(one({7, 7}), {});
    EXPECT_EQ(scale.place(7), 0.5);
    EXPECT_EQ(scale.ticks(), (std::vector<double>{7}));
    const Scale nothing(one({nan_value}), {});
    EXPECT_EQ(nothing.low, 0);
    EXPECT_EQ(nothing.high, 1);
}

TEST(HeatMapScale, HasRoundTicks) {
    EXPECT_EQ(Scale(one({0, 60}), {}).ticks(), (std::vector<double>{0, 20, 40, 60}));
    EXPECT_EQ(Scale(one({3, 98}), {}).ticks(), (std::vector<double>{25, 50, 75}));
    EXPECT_EQ(Scale(one({-1, 1}), {}).ticks(), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
    for (const double high : {1e-300, 3e-5, 0.7, 1.0, 1234.5, 9.9e20, 1e308}) {
        const auto ticks = Scale(one({0, high}), {}).ticks();
        EXPECT_GE(ticks.size(), 3u) << high;
        EXPECT_LE(ticks.size(), 6u) << high;
    }
    const Scale whole(one({-1.7e308, 1.7e308}), {});  // the range itself overflows
    EXPECT_EQ(whole.place(0), 0.5);
    EXPECT_GE(whole.ticks().size(), 2u);
}

TEST(HeatMapScale, ChoosesDigitsByTheLargestValue) {
    EXPECT_EQ(Scale(one({1, 250}), {}).places, 0);
    EXPECT_EQ(Scale(one({1, 2.5}), {}).places, 1);
    EXPECT_EQ(Scale(one({0, 0.43}), {}).places, 2);
    EXPECT_EQ(Scale(one({0, 1e-9}), {}).places, 4);
    EXPECT_EQ(Scale(one({0.5, 1e9}), {}).places, 0);
}

}  // namespace
}  // namespace heat_map_test
