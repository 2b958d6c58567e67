// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>

#include "gates/token_laws.hpp"

namespace {

using gates_test::expect_bytes_as_said;
using gates_test::expect_no_allocation;
using moe::TopK;
using moe::TopP;

TEST(Allocations, OfASecondCallToTopKAreNone) {
    expect_no_allocation<float>(TopK{.k = 8});
    expect_no_allocation<double>(TopK{.k = 40, .normalize = moe::Normalize::none});
    expect_no_allocation<float>(TopK{.k = 8,
                                     .score = moe::Score::sigmoid,
                                     .normalize = moe::Normalize::add_epsilon,
                                     .selection_bias = true,
                                     .num_groups = 8,
                                     .groups_kept = 4,
                                     .group_score = moe::GroupScore::top_two_sum});
    expect_no_allocation<float>(TopK{.k = 8, .tie_break = moe::TieBreak::torch_cpu});
}

TEST(Allocations, OfASecondCallToTopPAreNone) {
    expect_no_allocation<float>(TopP{.p = 0.6f, .max_experts = 8});
    expect_no_allocation<double>(TopP{.p = 0.99, .rule = TopP::Rule::below});
}

TEST(Allocations, AreAsFewWhateverTheDialSays) {
    expect_no_allocation<float>(TopK{.k = 2}, {.dial = {.k = 64}});
    expect_no_allocation<float>(TopK{.k = 2}, {.dial = {.k = 1}});
    expect_no_allocation<double>(
        TopK{.k = 2, .selection_bias = true, .num_groups = 8, .groups_kept = 4},
        {.dial = {.k = 32}});
    expect_no_allocation<float>(TopP{}, {.dial = {.p = 1}});
}

TEST(Allocations, AreAsManyBytesAsTheGateSays) {
    expect_bytes_as_said(TopK{.k = 2});
    expect_bytes_as_said(TopP{.max_experts = 5});
}

}  // namespace
