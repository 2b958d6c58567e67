// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <moe/balance/selection_bias.hpp>
#include <moe/gates/schedule.hpp>

#include "support/message.hpp"

namespace {

using moe::Schedule;
using Kind = Schedule::Kind;

TEST(Schedule, BeginsAndEndsExactly) {
    for (const Kind kind : {Kind::linear, Kind::exponential}) {
        const Schedule schedule{.from = 2, .to = 0.3, .steps = 7, .kind = kind};
        EXPECT_EQ(schedule.at(0), 2);
        EXPECT_EQ(schedule.at(7), 0.3);
        EXPECT_EQ(schedule.at(8), 0.3);
        EXPECT_EQ(schedule.at(std::numeric_limits<std::uint64_t>::max()), 0.3);
    }
}

TEST(Schedule, FallsInEqualStepsOrInEqualRatios) {
    const Schedule linear{.from = 2, .to = 0.3, .steps = 10};
    const Schedule exponential{.from = 2, .to = 0.3, .steps = 10, .kind = Kind::exponential};
    for (std::uint64_t step = 1; step <= 10; ++step) {
        EXPECT_NEAR(linear.at(step) - linear.at(step - 1), -0.17, 1e-14);
        EXPECT_NEAR(exponential.at(step) / exponential.at(step - 1), std::pow(0.15, 0.1), 1e-14);
    }
}

TEST(Schedule, MayRiseAndMayCrossZeroInAStraightLine) {
    const Schedule rising{.from = 1, .to = 3, .steps = 4};
    EXPECT_EQ(rising.at(2), 2);
    const Schedule crossing{.from = 1, .to = -1, .steps = 4};
    EXPECT_EQ(crossing.at(2), 0);
    EXPECT_EQ(crossing.at(3), -0.5);
    EXPECT_NO_THROW(crossing.check("moe::X", "warmth"));
}

TEST(Schedule, IsConstantWithoutSteps) {
    const auto schedule = Schedule::constant(0.7);
    for (const std::uint64_t step : {0u, 1u, 100u}) EXPECT_EQ(schedule.at(step), 0.7);
}

TEST(Schedule, IsCheckedWithASentence) {
    const auto message = [](const Schedule& schedule) {
        return support::message([&] { schedule.check("moe::X", "warmth"); });
    };
    EXPECT_EQ(message({}), "");
    EXPECT_EQ(message(Schedule::constant(0.3)), "");
    EXPECT_EQ(message({.from = 2, .to = 0.3, .steps = 1}), "");
    EXPECT_EQ(message({.from = 2, .to = 0.3}),
              "moe::X: warmth goes from 2 to 0.3 in 0 steps; set warmth.steps, or take "
              "Schedule::constant(0.3)");
    EXPECT_EQ(message({.to = std::numeric_limits<double>::infinity()}),
              "moe::X: warmth.to is inf, it must be finite");
    EXPECT_NE(message({.from = std::nan("")}), "");
    EXPECT_EQ(message({.to = 0, .kind = Kind::exponential}),
              "moe::X: warmth.to is 0, it must be > 0 where the schedule is exponential");
    EXPECT_NE(message({.from = -1, .kind = Kind::exponential}), "");
    EXPECT_EQ(message({.kind = Kind(2)}),
              "moe::X: warmth.kind is number 2 of its choices, they are 0 to 1");
}

TEST(Schedule, OfNothingButDefaultsIsOne) {
    for (const std::uint64_t step : {0u, 1u, 100u}) EXPECT_EQ(Schedule{}.at(step), 1);
}

TEST(Schedule, GivesAControllerItsRate) {
    const Schedule rate{.from = 0.5, .to = 0.125, .steps = 2, .kind = Kind::exponential};
    std::vector<double> bias(2, 0.0);
    for (const std::uint64_t step : {0u, 1u, 2u, 3u})  // 0.5 + 0.25 + 0.125 + 0.125
        moe::SignUpdate{.rate = rate.at(step)}.update(std::span(bias), std::vector<double>{1, 3});
    EXPECT_EQ(bias, (std::vector<double>{1, -1}));
}

}  // namespace
