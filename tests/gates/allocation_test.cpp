// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <vector>

#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/allocations.hpp"

namespace {

using gates_test::batch;
using moe::Index;

template <class S, class Recipe>
void expect_no_allocation(const Recipe& recipe) {
    constexpr Index tokens = 300, experts = 64;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, experts, 3, 4);
    const moe::Matrix<S> fewer = z.topRows(100);
    moe::Matrix<S> dz = moe::Matrix<S>::Zero(tokens, experts);
    auto drive = batch<S>(recipe, experts);
    auto grad = drive.gate;
    std::vector<S> c(static_cast<std::size_t>(tokens * experts), S(1));
    const auto once = [&](const moe::Matrix<S>& logits) {
        drive.route(logits);
        const auto count = static_cast<std::size_t>(drive.routing.num_assignments());
        drive.gate.backward(logits, drive.routing, {std::span(c).first(count), {}},
                            dz.topRows(logits.rows()), grad, drive.call());
    };
    moe::SerialExecutor serial;
    drive.ws.use(serial);
    const long first = allocations::in([&] { once(z); });
    EXPECT_EQ(first > 0, allocations::are_counted);
    EXPECT_EQ(allocations::in([&] { once(z), once(fewer); }), 0);
}

TEST(Allocations, OfASecondCallToTopKAreNone) {
    expect_no_allocation<float>(moe::TopK{.k = 8});
    expect_no_allocation<double>(moe::TopK{.k = 40, .normalize = moe::Normalize::none});
    expect_no_allocation<float>(moe::TopK{.k = 8,
                                          .score = moe::Score::sigmoid,
                                          .normalize = moe::Normalize::add_epsilon,
                                          .selection_bias = true,
                                          .num_groups = 8,
                                          .groups_kept = 4,
                                          .group_score = moe::GroupScore::top_two_sum});
    expect_no_allocation<float>(moe::TopK{.k = 8, .tie_break = moe::TieBreak::torch_cpu});
}

template <class S, class Recipe, class Turn>
void expect_no_first_allocation(const Recipe& recipe, Turn&& turn) {
    constexpr Index tokens = 300, experts = 64;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, experts, 3, 4);
    moe::Matrix<S> dz = moe::Matrix<S>::Zero(tokens, experts);
    auto drive = batch<S>(recipe, experts);
    auto grad = drive.gate;
    moe::SerialExecutor serial;
    drive.ws.use(serial);
    turn(drive.context.dial);
    drive.routing.reserve(tokens, experts, tokens * experts);
    drive.gate.reserve(tokens, tokens * experts, drive.ws);
    const std::vector<S> c(static_cast<std::size_t>(tokens * experts), S(1));
    EXPECT_EQ(allocations::in([&] {
                  drive.route(z);
                  const auto count = static_cast<std::size_t>(drive.routing.num_assignments());
                  drive.gate.backward(z, drive.routing, {std::span(c).first(count), {}}, dz, grad,
                                      drive.call());
              }),
              0);
}

TEST(Allocations, OfAFirstCallAfterReserveAreNoneWhateverTheDialSays) {
    expect_no_first_allocation<float>(moe::TopK{.k = 2}, [](auto& dial) { dial.k = 64; });
    expect_no_first_allocation<float>(moe::TopK{.k = 2}, [](auto& dial) { dial.k = 1; });
    expect_no_first_allocation<double>(
        moe::TopK{.k = 2, .selection_bias = true, .num_groups = 8, .groups_kept = 4},
        [](auto& dial) { dial.k = 32; });
    expect_no_first_allocation<float>(moe::TopP{}, [](auto& dial) { dial.p = 1; });
}

TEST(Allocations, AreAsManyBytesAsTheGateSays) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const auto check = [](const auto& recipe) {
        auto drive = batch<float>(recipe, 64);
        moe::ThreadPool pool(3);
        drive.ws.use(pool);
        const long before = allocations::bytes_asked_for.load();
        drive.gate.reserve(3000, 6000, drive.ws);
        const long spent = allocations::bytes_asked_for.load() - before;
        const Index said = drive.gate.workspace_bytes(3000, 6000, moe::Keep::everything, 3);
        EXPECT_GE(spent, said);
        EXPECT_LE(spent, said + 1024);  // the nodes of the workspace
    };
    check(moe::TopK{.k = 2});
    check(moe::TopP{.max_experts = 5});
}

TEST(Allocations, OfASecondCallToTopPAreNone) {
    expect_no_allocation<float>(moe::TopP{.p = 0.6f, .max_experts = 8});
    expect_no_allocation<double>(moe::TopP{.p = 0.99, .rule = moe::TopP::Rule::below});
}

}  // namespace
