// SPDX-License-Identifier: MIT
#include <moe/balance/adaptive_experts.hpp>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/parameters.hpp>
#include <moe/core/random.hpp>
#include <moe/testing/compare.hpp>

namespace adaptive_experts_test {
namespace {

using moe::ActivationRecord;
using moe::Index;
using moe::Matrix;

moe::TopAnyModule<float> gate_of(Index experts) {
    return moe::TopAnyModule<float>(moe::TopAny{}, experts);
}

/// Tokens 0 and 3 go to experts 1 and 2, and to 2; 1, 2 and 4 to nobody.
moe::Routing plan() {
    moe::Routing routing;
    routing.reset(5, 4);
    routing.add(0, 1);
    routing.add(0, 2);
    routing.add(3, 2);
    routing.group();
    return routing;
}

Matrix<float> tokens() {
    Matrix<float> x(5, 2);
    x << 9, 9, 1, 2, 2, 2, 9, 9, 5, 1;
    return x;
}

std::vector<float> mask_of(const moe::TopAnyModule<float>& gate) {
    return {gate.mask.data(), gate.mask.data() + gate.mask.size()};
}

TEST(ActivationRecord, CountsChoicesAndSumsTokensThatNobodyWasChosenFor) {
    ActivationRecord record(4, 2);
    record.add(tokens(), plan());
    record.add(tokens(), plan());
    EXPECT_EQ((std::vector<Index>{record.counts().begin(), record.counts().end()}),
              (std::vector<Index>{0, 2, 4, 0}));
    EXPECT_EQ((std::vector<double>{record.unserved_sum().begin(), record.unserved_sum().end()}),
              (std::vector<double>{16, 10}));
    EXPECT_EQ(record.num_tokens(), 10);
    EXPECT_EQ(record.num_unserved(), 6);
    record.clear();
    EXPECT_EQ(record.num_tokens() + record.num_unserved(), 0);
    EXPECT_EQ(record.counts()[2], 0);
    EXPECT_EQ(record.unserved_sum()[0], 0);
}

TEST(ActivationRecord, LeavesPaddingOutAndRefusesOtherExtents) {
    ActivationRecord record(4, 2);
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 1};
    moe::Context context;
    context.padding = padding;
    record.add(tokens(), plan(), context);
    EXPECT_EQ(record.num_tokens(), 3);
    EXPECT_EQ(record.num_unserved(), 1);
    EXPECT_EQ(record.unserved_sum()[1], 2);
    EXPECT_THROW(ActivationRecord(3, 2).add(tokens(), plan()), std::invalid_argument);
    EXPECT_THROW(ActivationRecord(4, 3).add(tokens(), plan()), std::invalid_argument);
    EXPECT_THROW(record.add(Matrix<float>(4, 2), plan()), std::invalid_argument);
    EXPECT_THROW(ActivationRecord(-1, 2), std::invalid_argument);
}

TEST(UpdateExperts, RemovesWhomNobodyChoseAndAddsTheFirstThatIsMasked) {
    auto gate = gate_of(4);
    for (Index e = 0; e < 4; ++e) gate.threshold(0, e) = 0.5f;
    ActivationRecord record(4, 2);
    record.add(tokens(), plan());
    const auto changes = moe::update_experts(gate, record);
    EXPECT_EQ(changes.removed, (std::vector<Index>{0, 3}));
    EXPECT_EQ(changes.added, 0) << "starts anew";
    EXPECT_EQ(mask_of(gate), (std::vector<float>{1, 1, 1, 0}));
    EXPECT_EQ(gate.threshold(0, 0), 0);
    EXPECT_EQ(gate.threshold(0, 1), 0.5f) << "others keep theirs";
    ASSERT_EQ(changes.direction.size(), 2u);
    const double length = std::hypot(8, 5);
    EXPECT_NEAR(changes.direction[0], 8 / length, 1e-15);
    EXPECT_NEAR(changes.direction[1], 5 / length, 1e-15);
}

TEST(UpdateExperts, AddsNobodyWhereEveryTokenIsServed) {
    auto gate = gate_of(3);
    gate.mask(0, 0) = 0;
    moe::Routing routing;
    routing.reset(1, 3);
    routing.add(0, 1);
    routing.group();
    ActivationRecord record(3, 2);
    record.add(Matrix<float>::Ones(1, 2), routing);
    const auto changes = moe::update_experts(gate, record);
    EXPECT_EQ(changes.removed, (std::vector<Index>{2})) << "0 was not there";
    EXPECT_FALSE(changes.added.has_value());
    EXPECT_TRUE(changes.direction.empty());
    EXPECT_EQ(mask_of(gate), (std::vector<float>{0, 1, 0}));
}

TEST(UpdateExperts, AddsNobodyWhereAllAreThere) {
    auto gate = gate_of(2);
    moe::Routing routing;
    routing.reset(2, 2);
    routing.add(0, 0);
    routing.add(0, 1);
    routing.group();
    ActivationRecord record(2, 1);
    record.add(Matrix<double>::Ones(2, 1), routing);
    const auto changes = moe::update_experts(gate, record);
    EXPECT_TRUE(changes.removed.empty());
    EXPECT_FALSE(changes.added.has_value());
    EXPECT_EQ(mask_of(gate), (std::vector<float>{1, 1}));
}

TEST(UpdateExperts, ChangesNothingWithoutARecord) {
    auto gate = gate_of(2);
    const auto changes = moe::update_experts(gate, ActivationRecord(2, 3));
    EXPECT_TRUE(changes.removed.empty() && !changes.added && changes.direction.empty());
    EXPECT_EQ(mask_of(gate), (std::vector<float>{1, 1}));
    EXPECT_THROW(moe::update_experts(gate, ActivationRecord(3, 3)), std::invalid_argument);
}

TEST(UpdateExperts, StartsAgainWithOneExpertWhereNobodyWasEverChosen) {
    auto gate = gate_of(3);
    moe::Routing nobody;
    nobody.reset(2, 3);
    nobody.group();
    ActivationRecord record(3, 2);
    Matrix<float> opposite(2, 2);
    opposite << 1, -2, -1, 2;
    record.add(opposite, nobody);
    const auto changes = moe::update_experts(gate, record);
    EXPECT_EQ(changes.removed, (std::vector<Index>{0, 1, 2}));
    EXPECT_EQ(changes.added, 0);
    EXPECT_EQ(changes.direction, (std::vector<double>{0, 0})) << "tokens that sum to 0";
    EXPECT_EQ(mask_of(gate), (std::vector<float>{1, 0, 0}));
}

}  // namespace
}  // namespace adaptive_experts_test
