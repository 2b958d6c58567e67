// SPDX-License-Identifier: MIT
#include <moe/core/batch_rows.hpp>

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "support/allocations.hpp"

namespace batch_rows_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Rows;
using BatchRows = moe::detail::BatchRows<float>;

moe::Routing plan() {
    moe::Routing routing;
    routing.reset(4, 3);
    routing.add(3, 1, 0.5), routing.add(0, 2, 0.25), routing.add(0, 1, 2), routing.add(2, 0, 4);
    routing.group();
    return routing;
}
template <class T>
std::vector<T> list(std::span<const T> values) {
    return {values.begin(), values.end()};
}

TEST(BatchRows, OfExpertsAreInTheOrderOfTheRouting) {
    const moe::Routing routing = plan();
    BatchRows rows;
    rows.fill(routing, Context{.first_token = 10}, 1);
    const Rows<float> all = rows.of_experts(0, 3);
    EXPECT_EQ(list(all.offsets), (std::vector<Index>{0, 1, 3, 4}));
    EXPECT_EQ(list(all.from), (std::vector<std::int32_t>{2, 0, 3, 0}));
    EXPECT_EQ(all.to.data(), all.from.data());
    EXPECT_EQ(list(all.weights), (std::vector<float>{4, 2, 0.5f, 0.25f}));
    EXPECT_EQ(list(all.ids), (std::vector<std::int64_t>{12, 10, 13, 10}));
    EXPECT_TRUE(all.input_weights.empty()) << "all are 1";

    const Rows<float> last = rows.of_experts(1, 3);  // numbered from 0 within their group
    EXPECT_EQ(last.first_expert, 0);
    EXPECT_EQ(last.num_experts(), 2);
    EXPECT_EQ(last.begin(0), 1);
    EXPECT_EQ(last.end(1), 4);
}

TEST(BatchRows, FactorsOfOutputsAndInputsAreMultipliedIn) {
    moe::Routing routing = plan();
    const std::vector<double> multiplier{10, 1, -2};
    BatchRows rows;
    rows.fill(routing, Context{.gate_multiplier = multiplier}, 3);
    EXPECT_EQ(list(rows.of_experts(0, 3).weights), (std::vector<float>{40, 2, 0.5f, -0.5f}));
    EXPECT_EQ(list(rows.of_experts(0, 3).input_weights), (std::vector<float>{3, 3, 3, 3}));
    EXPECT_EQ(list(rows.of_tokens().input_weights), (std::vector<float>{3, 3, 3, 3}));
    routing.set_input_weight(3, 0.5);
    rows.fill(routing, {}, 1);
    EXPECT_EQ(list(rows.of_experts(0, 3).input_weights), (std::vector<float>{1, 1, 0.5f, 1}));
    EXPECT_TRUE(rows.of_tokens().input_weights.empty());
}

TEST(BatchRows, OfTokensLeavePaddingOut) {
    const moe::Routing routing = plan();
    const std::vector<std::uint8_t> padding{0, 1, 0, 1};
    BatchRows rows;
    rows.fill(routing, Context{.first_token = 5, .padding = padding}, 1);
    const Rows<float> tokens = rows.of_tokens();
    EXPECT_EQ(tokens.num_experts(), 1);
    EXPECT_EQ(list(tokens.from), (std::vector<std::int32_t>{0, 2}));
    EXPECT_EQ(list(tokens.ids), (std::vector<std::int64_t>{5, 7}));
    EXPECT_EQ(list(tokens.weights), (std::vector<float>{1, 1}));
}

TEST(BatchRows, AllocateNothingInRoomThatWasReserved) {
    moe::Routing routing = plan();
    routing.set_input_weight(0, 2);
    BatchRows rows;
    rows.reserve(4, 4);
    EXPECT_EQ(allocations::in([&] { rows.fill(routing, {}, 2); }), 0);
    const long before = allocations::bytes_asked_for;
    BatchRows other;
    other.reserve(100, 300);
    EXPECT_LE(allocations::bytes_asked_for - before, BatchRows::bytes(100, 300) + 7 * 128);
    if (allocations::are_counted) {
        EXPECT_GE(allocations::bytes_asked_for - before, BatchRows::bytes(100, 300));
    }
}

}  // namespace
}  // namespace batch_rows_test
