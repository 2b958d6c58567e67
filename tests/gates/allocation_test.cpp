// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cstddef>
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
        drive.gate.backward(logits, drive.routing, {c, {}}, dz.topRows(logits.rows()), grad,
                            drive.call());
    };
    moe::SerialExecutor serial;
    drive.ws.use(serial);
    EXPECT_GT(allocations::in([&] { once(z); }), 0);
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

TEST(Allocations, OfASecondCallToTopPAreNone) {
    expect_no_allocation<float>(moe::TopP{.p = 0.6f, .max_experts = 8});
    expect_no_allocation<double>(moe::TopP{.p = 0.99, .rule = moe::TopP::Rule::below});
}

}  // namespace
