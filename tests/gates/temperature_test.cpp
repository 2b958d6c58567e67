// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include <moe/gates/temperature.hpp>

#include "support/message.hpp"

namespace {

using moe::TemperatureSchedule;
using Kind = TemperatureSchedule::Kind;

TEST(Temperature, BeginsAndEndsExactly) {
    for (const Kind kind : {Kind::linear, Kind::exponential}) {
        const TemperatureSchedule schedule{.from = 2, .to = 0.3, .steps = 7, .kind = kind};
        EXPECT_EQ(schedule.at(0), 2);
        EXPECT_EQ(schedule.at(7), 0.3);
        EXPECT_EQ(schedule.at(8), 0.3);
        EXPECT_EQ(schedule.at(std::numeric_limits<std::uint64_t>::max()), 0.3);
    }
}

TEST(Temperature, FallsInEqualStepsOrInEqualRatios) {
    const TemperatureSchedule linear{.from = 2, .to = 0.3, .steps = 10};
    const TemperatureSchedule exponential{
        .from = 2, .to = 0.3, .steps = 10, .kind = Kind::exponential};
    for (std::uint64_t step = 1; step <= 10; ++step) {
        EXPECT_NEAR(linear.at(step) - linear.at(step - 1), -0.17, 1e-14);
        EXPECT_NEAR(exponential.at(step) / exponential.at(step - 1), std::pow(0.15, 0.1), 1e-14);
    }
}

TEST(Temperature, MayRiseAndMayCrossZeroInAStraightLine) {
    const TemperatureSchedule rising{.from = 1, .to = 3, .steps = 4};
    EXPECT_EQ(rising.at(2), 2);
    const TemperatureSchedule crossing{.from = 1, .to = -1, .steps = 4};
    EXPECT_EQ(crossing.at(2), 0);
    EXPECT_EQ(crossing.at(3), -0.5);
    EXPECT_NO_THROW(crossing.check("moe::X"));
}

TEST(Temperature, IsConstantWithoutSteps) {
    const auto schedule = TemperatureSchedule::constant(0.7);
    for (const std::uint64_t step : {0u, 1u, 100u}) EXPECT_EQ(schedule.at(step), 0.7);
}

TEST(Temperature, IsCheckedWithASentence) {
    const auto message = [](const TemperatureSchedule& schedule) {
        return support::message([&] { schedule.check("moe::X"); });
    };
    EXPECT_EQ(message(TemperatureSchedule::constant(0.3)), "");
    EXPECT_EQ(message({.steps = 1}), "");
    EXPECT_EQ(message({}),
              "moe::X: temperature goes from 2 to 0.3 in 0 steps; set temperature.steps, or take "
              "TemperatureSchedule::constant(0.3)");
    EXPECT_EQ(message({.to = std::numeric_limits<double>::infinity()}),
              "moe::X: temperature.to is inf, it must be finite");
    EXPECT_NE(message({.from = std::nan("")}), "");
    EXPECT_EQ(message({.to = 0, .kind = Kind::exponential}),
              "moe::X: temperature.to is 0, it must be > 0 where the schedule is exponential");
    EXPECT_NE(message({.from = -1, .kind = Kind::exponential}), "");
    EXPECT_EQ(message({.kind = Kind(2)}),
              "moe::X: temperature.kind is number 2 of its choices, they are 0 to 1");
}

}  // namespace
