// SPDX-License-Identifier: MIT
#include <moe/experts/zero.hpp>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "support/expert_group.hpp"

namespace zero_test {
namespace {

using moe::Matrix;
using moe::Random;
using moe::Shape;

static_assert(moe::TrainableGroup<moe::ZeroModule<float>>);

template <class S>
moe::ZeroModule<S> make(moe::Index count) {
    Random random(1);
    return moe::Zero{.count = count}.build<S>(Shape{.model_dim = 19, .output_dim = 7}, random);
}

constexpr expert_group::Extents extents{.output_dim = 7};

TEST(Zero, IsFreeAndNotNull) {
    const auto group = make<float>(3);
    EXPECT_EQ(group.num_experts(), 3);
    EXPECT_TRUE(group.facts(2).is_free);
    EXPECT_FALSE(group.facts(2).is_null);
    EXPECT_EQ(group.facts(2).flops_per_row, 0);
}

TEST(Zero, AddsNothingAndHasZeroGradients) {
    const expert_group::Batch<float> batch(extents);
    const auto result = expert_group::run(make<float>(4), batch);
    EXPECT_TRUE((result.y.array() == 0).all());
    EXPECT_TRUE((result.dx.array() == 0).all());
    for (std::size_t r = 0; r < batch.weights.size(); ++r) {
        if (!batch.owns(r)) continue;
        EXPECT_EQ(result.dweights[r], 0);
        EXPECT_EQ(result.dinput_weights[r], 0);
    }
}

TEST(Zero, LeavesWhatOthersAddedAndRowsOfOthers) {
    expert_group::expect_adds<float>(make<float>(4), extents);
    expert_group::expect_adds<double>(make<double>(4), extents);
    expert_group::expect_same_bits_in_sub_ranges<float>(make<float>(4), extents);
}

TEST(Zero, ShowsAWeightThatIsNotANumber) {
    expert_group::Batch<float> batch(extents);
    const std::size_t row = batch.before + 1;
    batch.weights[row] = std::numeric_limits<float>::quiet_NaN();
    const auto y = expert_group::run(make<float>(4), batch).y;
    for (moe::Index t = 0; t < y.rows(); ++t)
        for (moe::Index o = 0; o < y.cols(); ++o)
            EXPECT_EQ(std::isnan(y(t, o)), t == batch.tokens[row]) << t;
}

TEST(Zero, WorksWithoutTokens) {
    const expert_group::Batch<double> batch({.tokens = 0, .output_dim = 7});
    EXPECT_EQ(expert_group::run(make<double>(4), batch).y.rows(), 0);
}

TEST(Zero, RefusesToBeNone) { EXPECT_THROW(make<float>(0), std::invalid_argument); }

}  // namespace
}  // namespace zero_test
