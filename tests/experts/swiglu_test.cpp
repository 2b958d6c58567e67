// SPDX-License-Identifier: MIT
#include <moe/experts/swiglu.hpp>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expert_group.hpp"
#include "support/message.hpp"

namespace swiglu_test {
namespace {

using moe::Index;
using moe::Random;
using moe::Shape;

constexpr Index dim = 19, out = 7, ffn = 23, count = 4;
constexpr expert_group::Extents extents{.output_dim = out};

template <class S>
moe::FeedForwardModule<S> make(const moe::Swiglu& recipe = {.count = count, .ffn_dim = ffn}) {
    Random random(3);
    return recipe.build<S>(Shape{.model_dim = dim, .output_dim = out}, random);
}

template <class S>
std::vector<dense::Expert> dense_experts(const moe::FeedForwardModule<S>& group) {
    std::vector<dense::Expert> experts;
    for (Index e = 0; e < count; ++e) experts.push_back(dense::feed_forward_of(group, e));
    return experts;
}

template <class S>
class Swiglu : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Swiglu, Scalars);

TYPED_TEST(Swiglu, GivesTheDenseResultAndItsGradients) {
    const auto group = make<TypeParam>();
    const expert_group::Batch<TypeParam> batch(extents);
    expert_group::expect_like_dense(group, dense_experts(group), batch);
}

TYPED_TEST(Swiglu, AddsAndLeavesRowsOfOthersAlone) {
    expert_group::expect_adds<TypeParam>(make<TypeParam>(), extents);
}

TYPED_TEST(Swiglu, LeavesOutGradientsThatAreNotWanted) {
    expert_group::expect_gradients_may_be_left_out<TypeParam>(make<TypeParam>(), extents);
}

TYPED_TEST(Swiglu, GivesTheSameBitsInSubRangesOfExperts) {
    expert_group::expect_same_bits_in_sub_ranges<TypeParam>(make<TypeParam>(), extents);
}

TYPED_TEST(Swiglu, AllocatesNothingInTheSecondCall) {
    expert_group::expect_no_allocation_in_the_second_call<TypeParam>(make<TypeParam>(), extents);
}

TEST(SwigluExperts, GradientsAreExact) {
    expert_group::expect_exact_gradients(make<double>(), {.tokens = 5, .output_dim = out});
}

TEST(SwigluExperts, GiveTheSameBitsForAnyThreadCount) {
    expert_group::expect_same_bits_for_any_thread_count<float>(make<float>(),
                                                               {.tokens = 200, .output_dim = out});
}

TEST(SwigluExperts, WorkedByHand) {
    Random random(1);
    auto group = moe::Swiglu{.ffn_dim = 2}.build<double>({.model_dim = 2, .output_dim = 1}, random);
    group.gate.owned(0).view() << 1, 0, 0, 1;
    group.up.owned(0).view() << 1, 1, 1, -1;
    group.down.owned(0).view() << 2, 10;
    expert_group::Batch<double> batch(
        {.tokens = 1, .model_dim = 2, .output_dim = 1, .experts = 1, .input_weights = false});
    batch.x << 3, -1;
    batch.offsets = {0, 1};
    batch.tokens = {0};
    batch.weights = {0.5};
    // silu(3) (3 - 1) and silu(-1) (3 + 1)
    const double silu3 = 3 / (1 + std::exp(-3.0)), silu1 = -1 / (1 + std::exp(1.0));
    const double expected = 0.5 * (2 * silu3 * 2 + 10 * silu1 * 4);
    const auto y = expert_group::run(group, batch, {.forward_only = true}).y;
    EXPECT_NEAR(y(0, 0), expected, 1e-14);
}

TEST(SwigluExperts, StartWithTheDocumentedVariance) {
    Random random(1);
    const auto group = moe::Swiglu{.count = 2, .ffn_dim = 200}.build<float>(
        {.model_dim = 100, .output_dim = 50}, random);
    const auto variance = [](const auto& weights) {
        return weights.owned(1).view().squaredNorm() / static_cast<float>(weights.owned(1).size());
    };
    EXPECT_NEAR(variance(group.gate), 1.0 / 100, 0.001);
    EXPECT_NEAR(variance(group.up), 1.0 / 100, 0.001);
    EXPECT_NEAR(variance(group.down), 1.0 / 200, 0.0005);
    EXPECT_EQ(group.up_bias.count(), 0);
}

TEST(SwigluExperts, HaveThreeMatricesEach) {
    std::vector<std::string> names;
    const auto group = make<float>({.count = 2, .ffn_dim = 3});
    moe::visit_parameters(group, [&](std::string_view name, const auto& matrix, moe::Role role) {
        EXPECT_EQ(role, moe::Role::trainable);
        names.push_back(std::string(name) + " " + std::to_string(matrix.rows()) + "x" +
                        std::to_string(matrix.cols()));
    });
    EXPECT_EQ(names, (std::vector<std::string>{"0.gate 3x19", "0.up 3x19", "0.down 7x3",
                                               "1.gate 3x19", "1.up 3x19", "1.down 7x3"}));
    EXPECT_EQ(group.facts(1).flops_per_row, 2 * 3 * (2 * 19 + 7));
    EXPECT_FALSE(group.facts(1).is_free);
}

std::string message(const moe::Swiglu& recipe) {
    return support::message([&] { make<float>(recipe); });
}

TEST(SwigluExperts, RefuseSettingsThatAreOutOfRange) {
    EXPECT_EQ(message({.count = 0, .ffn_dim = 4}), "moe::Swiglu: count is 0, it must be >= 1");
    EXPECT_EQ(message({.count = 2}),
              "moe::Swiglu: ffn_dim is 0, it must be >= 1; it has no default");
    EXPECT_THROW(make<float>().check({.model_dim = dim + 1, .output_dim = out}),
                 std::invalid_argument);
    EXPECT_THROW(make<float>().check({.model_dim = dim, .output_dim = out + 1}),
                 std::invalid_argument);
}

}  // namespace
}  // namespace swiglu_test
