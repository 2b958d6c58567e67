// SPDX-License-Identifier: MIT
#include <moe/balance/inverse_step.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/balance/load_sum.hpp>
#include <moe/core/random.hpp>

#include "support/message.hpp"

namespace inverse_step_test {
namespace {

using moe::InverseStepUpdate;
using Bias = std::vector<double>;
using Load = std::vector<double>;

static_assert(moe::BalanceController<InverseStepUpdate>);
static_assert(moe::BalanceController<InverseStepUpdate, double>);
static_assert(!moe::BalanceController<const InverseStepUpdate>, "it counts its updates");

TEST(InverseStep, DividesTheRateByTheNumberOfTheUpdate) {
    // mean 2, deviations 2 - 4, 2 - 2, 2 - 0 over 2 are -1 0 1, times 0.75 (1 + 1/2) = 1.125
    Bias bias(3, 1.0);
    InverseStepUpdate controller{.rate = 0.75};
    controller.update(std::span(bias), Load{4, 2, 0});
    EXPECT_EQ(bias, (Bias{0.25, 1, 1.75}));
    controller.update(std::span(bias), Load{4, 2, 0});
    EXPECT_EQ(bias, (Bias{-0.125, 1, 2.125}));
    EXPECT_EQ(controller.updates, 2u);
}

TEST(InverseStep, GoesOnWhereASavedOneStopped) {
    Bias whole(3, 0.0), parts(3, 0.0);
    InverseStepUpdate first{.rate = 0.3};
    InverseStepUpdate all = first;
    for (int i = 0; i < 5; ++i) all.update(std::span(whole), Load{1.0 * i, 2, 3});
    for (int i = 0; i < 3; ++i) first.update(std::span(parts), Load{1.0 * i, 2, 3});
    InverseStepUpdate second{.rate = 0.3, .updates = first.updates};
    for (int i = 3; i < 5; ++i) second.update(std::span(parts), Load{1.0 * i, 2, 3});
    EXPECT_EQ(parts, whole);
}

TEST(InverseStep, DoesNotCountUpdatesWithoutLoad) {
    std::vector<float> bias{1, 2};
    InverseStepUpdate controller;
    controller.update(std::span(bias), Load{0, 0});
    EXPECT_EQ(controller.updates, 0u);
    EXPECT_EQ(bias, (std::vector<float>{1, 2}));
}

TEST(InverseStep, RefusesWhatIsNoLoadOrRateAndChangesNothing) {
    std::vector<float> bias{1, 2};
    const double nan = std::numeric_limits<double>::quiet_NaN();
    InverseStepUpdate controller;
    for (const Load& load : {Load{1}, Load{1, -1}, Load{1, nan}})
        EXPECT_THROW(controller.update(std::span(bias), load), std::invalid_argument);
    controller.rate = nan;
    EXPECT_EQ(support::message([&] {
                  controller.update(std::span(bias), Load{1, 2});
              }),
              "moe::InverseStepUpdate: rate is nan, it must be finite");
    EXPECT_EQ(controller.updates, 0u);
    EXPECT_EQ(bias, (std::vector<float>{1, 2}));
}

/// Steps of an expert's bias that are left after a stream of fixed scores, 40 updates of batches.
struct Rest {
    double violation = 0;  // MaxVio of the last 20 updates
    double travel = 0;     // sum of |steps| of the biases during them
};

template <class Controller>
Rest rest_after(Controller controller) {
    constexpr std::size_t experts = 5, tokens = 400, updates = 40;
    const moe::CounterRandom random(4, 0, 0);
    Bias bias(experts, 0.0);
    moe::LoadSum last(static_cast<moe::Index>(experts));
    Rest rest;
    for (std::size_t update = 0; update < updates; ++update) {
        Load load(experts, 0.0);
        for (std::size_t t = 0; t < tokens; ++t) {  // top-1 of uniform scores, expert 0 favoured
            std::size_t best = 0;
            double most = -1e9;
            for (std::size_t e = 0; e < experts; ++e) {
                const double score = random.uniform(static_cast<std::int64_t>(update * tokens + t),
                                                    static_cast<moe::Index>(e)) +
                                     0.4 / static_cast<double>(1 + e);
                if (score + bias[e] > most) most = score + bias[e], best = e;
            }
            load[best] += 1;
        }
        const Bias before = bias;
        controller.update(std::span(bias), std::span<const double>(load));
        if (update < updates / 2) continue;
        last.add(load);
        for (std::size_t e = 0; e < experts; ++e) rest.travel += std::abs(bias[e] - before[e]);
    }
    rest.violation = moe::max_violation(last.counts());
    return rest;
}

TEST(InverseStep, BalancesAStreamAndComesToRestThere) {
    EXPECT_GT(rest_after(moe::ProportionalUpdate{.rate = 0}).violation, 0.8);
    const Rest falling = rest_after(InverseStepUpdate{.rate = 0.2});
    const Rest constant = rest_after(moe::ProportionalUpdate{.rate = 0.2});
    EXPECT_LT(falling.violation, 0.1);
    EXPECT_LT(falling.travel, constant.travel / 5);
    RecordProperty("violation", std::to_string(falling.violation));
    RecordProperty("travel", std::to_string(falling.travel));
    RecordProperty("travel_of_constant_rate", std::to_string(constant.travel));
    EXPECT_GT(rest_after(InverseStepUpdate{.rate = -0.2}).violation, 1.5);
}

}  // namespace
}  // namespace inverse_step_test
