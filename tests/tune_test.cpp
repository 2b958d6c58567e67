// SPDX-License-Identifier: MIT
#include <moe/tune.hpp>

#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/message.hpp"

namespace tune_test {
namespace {

using moe::Index;
using moe::Plan;
using support::message;

constexpr double infinity = std::numeric_limits<double>::infinity();

using Times = std::vector<double>;

TEST(Crossover, IsTheStepFromWhichTheSecondWayIsQuicker) {
    const Times before{1, 2, 3, 4, 5, 6}, after{3.5, 3.5, 3.5, 3.5, 3.5, 3.5};
    for (const std::size_t standard : {0u, 1u, 2u, 3u, 4u, 5u, 6u})
        EXPECT_EQ(moe::detail::crossover(before, after, standard), 3u) << standard;
}

TEST(Crossover, IsNeverOrAlwaysWhereOneWayIsQuickerEverywhere) {
    const Times slow{2, 2, 2}, quick{1, 1, 1};
    for (const std::size_t standard : {0u, 1u, 2u, 3u}) {
        EXPECT_EQ(moe::detail::crossover(slow, quick, standard), 0u);
        EXPECT_EQ(moe::detail::crossover(quick, slow, standard), 3u);
    }
}

TEST(Crossover, StaysWhereItIsForLessThanAGainOfFivePercent) {
    const Times even{1, 1, 1, 1}, less{0.96, 0.96, 0.96, 0.96}, more{0.94, 0.94, 0.94, 0.94};
    for (const std::size_t standard : {0u, 2u, 4u}) {
        EXPECT_EQ(moe::detail::crossover(even, even, standard), standard);
        EXPECT_EQ(moe::detail::crossover(even, less, standard), standard);
        EXPECT_EQ(moe::detail::crossover(less, even, standard), standard);
        EXPECT_EQ(moe::detail::crossover(even, more, standard), 0u);
        EXPECT_EQ(moe::detail::crossover(more, even, standard), 4u);
    }
}

TEST(Crossover, IsNotMovedByOneStepThatWasDisturbed) {
    const Times before{1, 2, 3, 4, 5, 6}, disturbed{3.5, 1.9, 3.5, 3.5, 5.3, 3.5};
    EXPECT_EQ(moe::detail::crossover(before, disturbed, 3), 3u);
}

TEST(TimedCrossover, CallsBothWaysAtEachStepInTurn) {
    std::vector<int> calls;
    const auto note = [&](std::size_t step, int way) {
        calls.push_back(2 * static_cast<int>(step) + way);
        for (const auto start = moe::detail::Clock::now();
             moe::detail::seconds_since(start) < 1e-3;) {
        }
    };
    moe::detail::timed_crossover(
        3, 2, 0.2, [&](std::size_t step) { note(step, 0); },
        [&](std::size_t step) { note(step, 1); });
    // A hundred pairs fit the time; one round is left even if other programs take nearly all of it.
    ASSERT_GE(calls.size(), 6u);
    EXPECT_EQ(calls.size() % 2, 0u);
    for (std::size_t i = 0; i < calls.size(); ++i) EXPECT_EQ(calls[i], static_cast<int>(i % 6));
}

TEST(TimedCrossover, WithoutTimeThereIsNothingToDecideBy) {
    int calls = 0;
    const auto call = [&](std::size_t) { ++calls; };
    EXPECT_EQ(moe::detail::timed_crossover(3, 2, 0, call, call), 2u);
    EXPECT_EQ(calls, 0);
}

void expect_in_range(const Plan& plan) {
    EXPECT_GE(plan.column_rows, 0);
    EXPECT_LE(plan.column_rows, Plan{}.column_rows);
    for (const Index rows :
         {plan.bf16_tile_rows, plan.int8_tile_rows, plan.block_tile_rows, plan.ternary_tile_rows}) {
        EXPECT_GE(rows, 1);
        EXPECT_LE(rows, 33);
    }
    EXPECT_GT(plan.serial_flops, 0);
    EXPECT_LE(plan.serial_flops, 4e7);
}

TEST(Tune, GivesAPlanOnEveryInstructionSet) {
    for (const moe::Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const moe::ScopedIsa forced(isa);
        for (const double seconds : {0.0, 0.02, 0.2})
            for (const Index dim : {1, 70}) {
                const Plan plan =
                    moe::tune({.model_dim = dim, .ffn_dim = 2 * dim + 3, .seconds = seconds});
                expect_in_range(plan);
                EXPECT_NO_THROW(moe::Workspace<float>().plan(plan));
                if (moe::storage_kernels().name == std::string("amx")) continue;
                for (const auto storage : {moe::Storage::bf16, moe::Storage::int8,
                                           moe::Storage::int4, moe::Storage::ternary})
                    EXPECT_EQ(plan.tile_rows(storage), Plan{}.tile_rows(storage));
            }
    }
}

TEST(Tune, WithoutTimeTheDefaultsStay) {
    moe::SerialExecutor serial;
    EXPECT_EQ(moe::tune({.model_dim = 40, .ffn_dim = 40, .seconds = 0, .executor = &serial}),
              Plan{});
}

TEST(Tune, OneWorkerIsNotMeasuredAgainstItself) {
    struct One final : moe::Executor {
        int runs = 0;
        int concurrency() const override { return 1; }
        void run(Index, moe::TaskRef) override { ++runs; }
    } one;
    EXPECT_EQ(
        moe::tune({.model_dim = 8, .ffn_dim = 8, .seconds = 0.02, .executor = &one}).serial_flops,
        Plan{}.serial_flops);
    EXPECT_EQ(one.runs, 0);
}

TEST(Tune, MeasuresTheExecutorThatItIsGiven) {
    struct Slow final : moe::Executor {  // and no quicker than one thread
        int runs = 0;
        int concurrency() const override { return 2; }
        void run(Index tasks, moe::TaskRef task) override {
            ++runs;
            const auto start = moe::detail::Clock::now();
            while (moe::detail::seconds_since(start) < 2e-3) {
            }
            for (Index i = 0; i < tasks; ++i) task(i, 0);
        }
    } slow;
    const auto weights = moe::detail::tuning_numbers(8192);
    EXPECT_GE(moe::detail::tuned_serial_flops(slow, weights, 0.3), Plan{}.serial_flops);
    EXPECT_GT(slow.runs, 0);
}

TEST(Tune, LeavesTheInstructionSetAndItsExecutorAsTheyWere) {
    const moe::Isa before = moe::isa();
    moe::ThreadPool pool(2);
    moe::tune({.model_dim = 8, .ffn_dim = 8, .seconds = 0.01, .executor = &pool});
    EXPECT_EQ(moe::isa(), before);
    EXPECT_EQ(pool.serial_flops(), Plan{}.serial_flops);
}

TEST(Tune, RefusesOptionsThatMeanNothing) {
    const auto refusal = [](const moe::TuneOptions& options) {
        return message([&] { moe::tune(options); });
    };
    EXPECT_EQ(refusal({.model_dim = 0}), "moe::tune: model_dim is 0, it must be >= 1");
    EXPECT_EQ(refusal({.ffn_dim = -2}), "moe::tune: ffn_dim is -2, it must be >= 1");
    EXPECT_EQ(refusal({.seconds = -1}), "moe::tune: seconds is -1, it must be >= 0 and finite");
    EXPECT_EQ(refusal({.seconds = infinity}),
              "moe::tune: seconds is inf, it must be >= 0 and finite");
    EXPECT_EQ(refusal({.seconds = std::numeric_limits<double>::quiet_NaN()}),
              "moe::tune: seconds is nan, it must be >= 0 and finite");
}

}  // namespace
}  // namespace tune_test
