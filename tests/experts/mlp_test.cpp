// SPDX-License-Identifier: MIT
#include <moe/experts/mlp.hpp>

#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expert_group.hpp"

namespace mlp_test {
namespace {

using moe::Activation;
using moe::Index;
using moe::Random;
using moe::Shape;

constexpr Index dim = 19, out = 7, count = 4;
constexpr expert_group::Extents extents{.output_dim = out};

/// Biases are not 0, as they are after training.
template <class S>
moe::FeedForwardModule<S> make(Activation activation, bool bias) {
    Random random(3);
    auto group =
        moe::Mlp{.count = count, .ffn_dim = 23, .activation = activation, .bias = bias}.build<S>(
            Shape{.model_dim = dim, .output_dim = out}, random);
    group.up_bias.fill_normal(random, 0.5);
    group.down_bias.fill_normal(random, 0.5);
    return group;
}

template <class S>
class Mlp : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Mlp, Scalars);

TYPED_TEST(Mlp, GivesTheDenseResultAndItsGradients) {
    for (const Activation activation : moe::all_activations)
        for (const bool bias : {false, true}) {
            SCOPED_TRACE(static_cast<int>(activation));
            SCOPED_TRACE(bias);
            const auto group = make<TypeParam>(activation, bias);
            std::vector<dense::Expert> experts;
            for (Index e = 0; e < count; ++e) experts.push_back(dense::feed_forward_of(group, e));
            expert_group::expect_like_dense(group, experts,
                                            expert_group::Batch<TypeParam>(extents));
        }
}

TYPED_TEST(Mlp, AddsAndLeavesRowsOfOthersAlone) {
    expert_group::expect_adds<TypeParam>(make<TypeParam>(Activation::relu, true), extents);
}

TYPED_TEST(Mlp, LeavesOutGradientsThatAreNotWanted) {
    expert_group::expect_gradients_may_be_left_out<TypeParam>(
        make<TypeParam>(Activation::gelu, true), extents);
}

TYPED_TEST(Mlp, GivesTheSameBitsInSubRangesOfExperts) {
    expert_group::expect_same_bits_in_sub_ranges<TypeParam>(make<TypeParam>(Activation::silu, true),
                                                            extents);
}

TYPED_TEST(Mlp, AllocatesNothingInTheSecondCall) {
    expert_group::expect_no_allocation_in_the_second_call<TypeParam>(
        make<TypeParam>(Activation::gelu_tanh, true), extents);
}

TEST(MlpExperts, GradientsAreExact) {
    for (const Activation activation : moe::all_activations) {
        SCOPED_TRACE(static_cast<int>(activation));
        expert_group::expect_exact_gradients(make<double>(activation, true),
                                             {.tokens = 4, .output_dim = out});
    }
}

TEST(MlpExperts, GiveTheSameBitsForAnyThreadCount) {
    expert_group::expect_same_bits_for_any_thread_count<float>(make<float>(Activation::gelu, true),
                                                               {.tokens = 200, .output_dim = out});
}

TEST(MlpExperts, BiasesStartAtZero) {
    Random random(1);
    const auto group = moe::Mlp{.count = 2, .ffn_dim = 5, .bias = true}.build<float>(
        {.model_dim = 3, .output_dim = 4}, random);
    std::vector<std::string> names;
    moe::visit_parameters(group, [&](std::string_view name, const auto& matrix, moe::Role) {
        names.push_back(std::string(name) + " " + std::to_string(matrix.rows()) + "x" +
                        std::to_string(matrix.cols()));
    });
    EXPECT_EQ(names, (std::vector<std::string>{"0.up 5x3", "0.down 4x5", "0.up_bias 1x5",
                                               "0.down_bias 1x4", "1.up 5x3", "1.down 4x5",
                                               "1.up_bias 1x5", "1.down_bias 1x4"}));
    EXPECT_TRUE((group.up_bias.owned(1).view().array() == 0).all());
    EXPECT_TRUE((group.down_bias.owned(1).view().array() == 0).all());
    EXPECT_GT(group.up.owned(1).view().norm(), 0);
}

TEST(MlpExperts, RefuseSettingsThatAreOutOfRange) {
    Random random(1);
    const Shape shape{.model_dim = 3, .output_dim = 3};
    EXPECT_THROW((moe::Mlp{.count = 0, .ffn_dim = 5}.build<float>(shape, random)),
                 std::invalid_argument);
    EXPECT_THROW((moe::Mlp{.count = 2, .ffn_dim = -1}.build<float>(shape, random)),
                 std::invalid_argument);
}

}  // namespace
}  // namespace mlp_test
