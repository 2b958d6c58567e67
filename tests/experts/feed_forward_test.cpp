// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward.hpp>

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>

#include "support/expert_group.hpp"

namespace {

using moe::Index;
using moe::Isa;
using moe::Matrix;
using moe::Random;
using moe::Rows;
using moe::ScopedIsa;
using moe::Shape;
using moe::WeightView;
using moe::Workspace;

template <class S>
moe::FeedForwardModule<S> swiglu(Index experts, Index ffn, const expert_group::Extents& e) {
    Random random(3);
    return moe::Swiglu{.count = experts, .ffn_dim = ffn}.build<S>(
        Shape{.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
}

template <class S>
moe::FeedForwardModule<S> mlp(Index experts, Index ffn, const expert_group::Extents& e) {
    Random random(4);
    auto group =
        moe::Mlp{
            .count = experts, .ffn_dim = ffn, .activation = moe::Activation::gelu, .bias = true}
            .build<S>(Shape{.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
    group.up_bias.fill_normal(random, 1);
    group.down_bias.fill_normal(random, 1);
    return group;
}

template <class S>
std::vector<dense::Expert> dense_experts(const moe::FeedForwardModule<S>& group) {
    std::vector<dense::Expert> experts;
    for (Index e = 0; e < group.num_experts(); ++e)
        experts.push_back(dense::feed_forward_of(group, e));
    return experts;
}

template <class S>
class FeedForward : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(FeedForward, Scalars);

TYPED_TEST(FeedForward, IsRightForExtentsAroundTheWidthsOfVectors) {
    using S = TypeParam;
    const Index extents[][3] = {{1, 1, 1},   {2, 1, 3},    {7, 5, 1},    {8, 15, 16},
                                {16, 17, 9}, {31, 16, 33}, {33, 31, 15}, {65, 47, 64}};
    for (const auto& [dim, ffn, out] : extents) {
        SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(ffn) + " " + std::to_string(out));
        const expert_group::Extents e{.model_dim = dim, .output_dim = out, .experts = 3};
        const auto group = swiglu<S>(3, ffn, e);
        expert_group::expect_like_dense(group, dense_experts(group), expert_group::Batch<S>(e, 2));
        const auto biased = mlp<S>(3, ffn, e);
        expert_group::expect_like_dense(biased, dense_experts(biased),
                                        expert_group::Batch<S>(e, 3));
    }
}

TYPED_TEST(FeedForward, IsRightWithMoreRowsThanABlockHolds) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 600, .model_dim = 9, .output_dim = 6, .experts = 2};
    const auto group = swiglu<S>(2, 7, e);
    expert_group::expect_like_dense(group, dense_experts(group), expert_group::Batch<S>(e));
}

TYPED_TEST(FeedForward, WorksWithoutRows) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 0, .experts = 3};
    const auto result = expert_group::run(mlp<S>(3, 5, e), expert_group::Batch<S>(e));
    EXPECT_EQ(result.y.rows(), 0);
    for (const S value : result.gradient) EXPECT_EQ(value, 0);
}

TYPED_TEST(FeedForward, GivesTheSameBitsOnEveryInstructionSet) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 40, .model_dim = 37, .output_dim = 29};
    const expert_group::Batch<S> batch(e);
    for (const auto& group : {swiglu<S>(4, 41, e), mlp<S>(4, 41, e)}) {
        ScopedIsa scalar(Isa::scalar);
        const auto expected = expert_group::run(group, batch);
        for (const Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            ScopedIsa forced(isa);
            expert_group::expect_same_bits(expert_group::run(group, batch), expected);
        }
    }
}

TYPED_TEST(FeedForward, PackedWeightsGiveTheSameBits) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 40, .model_dim = 37, .output_dim = 29};
    const expert_group::Batch<S> batch(e);
    for (const auto& group : {swiglu<S>(4, 41, e), mlp<S>(4, 41, e)}) {
        const auto expected = expert_group::run(group, batch, {.forward_only = true}).y;
        for (const Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            ScopedIsa forced(isa);
            const auto packed = group.freeze({});
            EXPECT_TRUE(moe::testing::same_bits(expert_group::run(packed, batch).y, expected));
            EXPECT_TRUE(moe::testing::same_bits(expert_group::run(packed, batch, {.split = 2}).y,
                                                expected));
            // Read by the kernels that they were packed for, whatever is in use now.
            ScopedIsa other(Isa::scalar);
            EXPECT_TRUE(moe::testing::same_bits(expert_group::run(packed, batch).y, expected));
        }
    }
}

TYPED_TEST(FeedForward, PackedWeightsTakeAboutTheSameRoom) {
    using S = TypeParam;
    const expert_group::Extents e{.model_dim = 64, .output_dim = 64};
    const auto packed = swiglu<S>(4, 96, e).freeze({});
    EXPECT_EQ(packed.bytes(), Index{4 * 3 * 64 * 96 * sizeof(S)});
    EXPECT_EQ(packed.num_experts(), 4);
    EXPECT_EQ(packed.facts(0).flops_per_row, 2 * 3 * 64 * 96);
}

TYPED_TEST(FeedForward, BoundWeightsAreReadWhereTheyLie) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 12, .model_dim = 9, .output_dim = 6, .experts = 3};
    const expert_group::Batch<S> batch(e);
    const auto owned = swiglu<S>(3, 7, e);
    // gate and up of an expert interleaved row by row, down transposed
    std::vector<Matrix<S>> fused, downs;
    std::vector<WeightView> gates, ups, down_views;
    for (Index i = 0; i < 3; ++i) {
        Matrix<S>& both = fused.emplace_back(14, 9);
        for (Index f = 0; f < 7; ++f) {
            both.row(2 * f) = owned.gate.owned(i).view().row(f);
            both.row(2 * f + 1) = owned.up.owned(i).view().row(f);
        }
        downs.push_back(owned.down.owned(i).view().transpose());
    }
    for (std::size_t i = 0; i < 3; ++i) {
        WeightView view{.data = fused[i].data(),
                        .dtype = moe::dtype_of<S>,
                        .rows = 7,
                        .cols = 9,
                        .row_stride = 18};
        gates.push_back(view);
        view.data = fused[i].data() + 9;
        ups.push_back(view);
        down_views.push_back({.data = downs[i].data(),
                              .dtype = moe::dtype_of<S>,
                              .rows = 6,
                              .cols = 7,
                              .row_stride = 1,
                              .col_stride = 6});
    }
    auto bound = owned;
    bound.gate = moe::Weights<S>(gates);
    bound.up = moe::Weights<S>(ups);
    bound.down = moe::Weights<S>(down_views);
    expert_group::expect_same_bits(expert_group::run(bound, batch),
                                   expert_group::run(owned, batch));
    EXPECT_TRUE(moe::testing::same_bits(expert_group::run(bound.freeze({}), batch).y,
                                        expert_group::run(owned, batch).y));
    EXPECT_EQ(moe::num_parameters(bound), 0) << "the memory is the caller's";
    EXPECT_EQ(moe::num_parameters(moe::zeros_like(bound)), moe::num_parameters(owned));
}

TEST(FeedForwardExperts, GiveTheSameBitsForAnyThreadCountInDouble) {
    const expert_group::Extents e{.tokens = 120, .model_dim = 33, .output_dim = 18};
    expert_group::expect_same_bits_for_any_thread_count<double>(mlp<double>(4, 40, e), e);
}

TEST(FeedForwardExperts, DoNotDependOnWhatTheWorkspaceHeld) {
    const expert_group::Extents e{.tokens = 12, .model_dim = 9, .output_dim = 6};
    const auto group = mlp<float>(4, 7, e);
    expert_group::Extents larger = e;
    larger.tokens = 50;
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    const expert_group::Batch<float> batch(e), other(larger, 4);
    const auto expected = expert_group::run(group, batch);
    expert_group::run(group, other, ws);
    expert_group::expect_same_bits(expert_group::run(group, batch, ws), expected);
    ws.keep(moe::Keep::nothing);
    const auto y = expert_group::run(group, batch, ws, {.forward_only = true}).y;
    EXPECT_TRUE(moe::testing::same_bits(y, expected.y));
}

}  // namespace
