// SPDX-License-Identifier: MIT
#include <moe/group_list.hpp>

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/bank.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>

#include "support/allocations.hpp"

namespace group_list_test {
namespace {

using moe::Index;
using moe::Keep;

constexpr moe::Config config{.model_dim = 48, .seed = 3};
const moe::Shared shared{moe::Swiglu{.count = 2, .ffn_dim = 8}, moe::SharedGate::sigmoid};

/// A bank is a list of groups.
auto make() {
    return moe::Bank{config, moe::Swiglu{.count = 2, .ffn_dim = 32}, moe::Null{}, shared,
                     moe::Copy{}};
}

TEST(GroupList, TellsGroupsWhatItKnowsOfTheExperts) {
    const auto bank = make();
    const std::vector<std::uint8_t> padding{0, 1};
    const moe::Context known = bank.with_facts({.step = 7, .padding = padding});
    ASSERT_EQ(known.experts.size(), 4u) << "of the shared group there are none";
    EXPECT_EQ(known.experts.data(), bank.facts().data());
    EXPECT_FALSE(known.experts[1].is_null);
    EXPECT_GT(known.experts[1].flops_per_row, 0);
    EXPECT_TRUE(known.experts[2].is_null);
    EXPECT_TRUE(known.experts[3].is_free);
    EXPECT_EQ(known.step, 7u);
    EXPECT_TRUE(known.is_padding(1)) << "the rest is the caller's";
    EXPECT_DOUBLE_EQ(bank.shared_flops_per_token(), bank.group<2>().flops_per_token());
}

TEST(GroupList, PairsEveryGroupWithItsGradientInOrder) {
    const auto bank = make();
    auto grad = moe::zeros_like(bank);
    std::vector<std::size_t> numbers;
    std::vector<const void*> gradients;
    const auto note = [&](std::size_t i, const auto& group, auto& gradient) {
        numbers.push_back(i);
        EXPECT_EQ(gradient.num_experts(), group.num_experts()) << i;
        EXPECT_NE(static_cast<const void*>(&gradient), static_cast<const void*>(&group)) << i;
        gradients.push_back(&gradient);
    };
    bank.for_each_pair(grad, note);
    EXPECT_EQ(numbers, (std::vector<std::size_t>{0, 1, 2, 3}));
    EXPECT_EQ(gradients, (std::vector<const void*>{&grad.group<0>(), &grad.group<1>(),
                                                   &grad.group<2>(), &grad.group<3>()}));
}

TEST(GroupList, SaysHowManyBytesItsGroupsReserve) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const auto bank = make();
    for (const Keep keep : {Keep::nothing, Keep::everything})
        for (const int workers : {1, 3}) {
            moe::Workspace<float> ws;
            ws.threads(workers).keep(keep);
            const long before = allocations::bytes_asked_for.load();
            bank.reserve_groups(900, 1800, ws);
            const long spent = allocations::bytes_asked_for.load() - before;
            const Index said = bank.group_bytes(900, 1800, keep, workers);
            EXPECT_GE(spent, said) << workers;
            EXPECT_LE(spent, said + 8192) << workers;  // nodes
        }
}

}  // namespace
}  // namespace group_list_test
