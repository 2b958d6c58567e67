// SPDX-License-Identifier: MIT
#include <moe/experts/constant.hpp>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expert_group.hpp"

namespace constant_test {
namespace {

using moe::Index;
using moe::Random;
using moe::Shape;

static_assert(moe::TrainableGroup<moe::ConstantModule<float>>);

/// Weights large enough for the softmax to matter.
template <class S>
moe::ConstantModule<S> make(Index count, Index dim = 19) {
    Random random(7);
    auto group =
        moe::Constant{.count = count}.build<S>(Shape{.model_dim = dim, .output_dim = dim}, random);
    for (auto& mix : group.mix)
        for (Index i = 0; i < mix.size(); ++i) mix.data()[i] *= 20;
    return group;
}

template <class S>
std::vector<dense::Expert> dense_of(const moe::ConstantModule<S>& group) {
    std::vector<dense::Expert> experts;
    for (std::size_t e = 0; e < group.mix.size(); ++e)
        experts.push_back(dense::constant(group.mix[e].view().template cast<double>(),
                                          group.value[e].view().template cast<double>()));
    return experts;
}

template <class S>
class ConstantExpert : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ConstantExpert, Scalars);

TYPED_TEST(ConstantExpert, BlendsLikeTheFormulaInEveryWidth) {
    using S = TypeParam;
    for (const Index dim : {1, 15, 16, 17, 19, 255, 256, 257})
        for (const bool input_weights : {false, true}) {
            SCOPED_TRACE(dim);
            const auto group = make<S>(4, dim);
            const expert_group::Extents extents{
                .model_dim = dim, .output_dim = dim, .input_weights = input_weights};
            expert_group::expect_like_dense(group, dense_of(group),
                                            expert_group::Batch<S>(extents));
        }
}

TYPED_TEST(ConstantExpert, DoesNothingWithoutTokens) {
    const expert_group::Batch<TypeParam> batch({.tokens = 0});
    const auto result = expert_group::run(make<TypeParam>(4), batch);
    EXPECT_EQ(result.y.rows(), 0);
    for (const TypeParam g : result.gradient) EXPECT_EQ(g, 0);
}

TYPED_TEST(ConstantExpert, AddsInOrderOfExperts) {
    using S = TypeParam;
    expert_group::expect_adds<S>(make<S>(4), {});
    expert_group::expect_same_bits_in_sub_ranges<S>(make<S>(4), {});
    expert_group::expect_gradients_may_be_left_out<S>(make<S>(4), {});
}

TYPED_TEST(ConstantExpert, HasTheSameBitsForAnyNumberOfThreads) {
    using S = TypeParam;
    expert_group::expect_same_bits_for_any_thread_count<S>(
        make<S>(3, 520), {.tokens = 700, .model_dim = 520, .output_dim = 520, .experts = 3});
}

TYPED_TEST(ConstantExpert, AllocatesNothingInTheSecondBatch) {
    expert_group::expect_no_allocation_in_the_second_call<TypeParam>(make<TypeParam>(4), {});
}

TEST(Constant, HasExactGradients) {
    expert_group::expect_exact_gradients(make<double>(4), {.tokens = 6});
    expert_group::expect_exact_gradients(make<double>(4), {.tokens = 6, .input_weights = false});
}

TEST(Constant, SharesRowsItReadsWithOtherRows) {
    // Two experts and rows of one expert that read the same token: dx is a sum over all of them.
    expert_group::Batch<double> batch({.tokens = 4, .experts = 2});
    const std::vector<std::int32_t> from(batch.tokens.size(), 2);
    auto rows = batch.rows();
    rows.from = from;
    moe::Workspace<double> ws;
    const moe::Context context;
    const moe::Call<double> call{context, ws};
    const auto group = make<double>(2);
    const auto loss = [&] {
        moe::Matrix<double> y = moe::Matrix<double>::Zero(4, 19);
        group.forward(batch.x, rows, y, call);
        double sum = 0;
        for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * batch.dy.data()[i];
        return sum;
    };
    loss();
    moe::Matrix<double> dx = moe::Matrix<double>::Zero(4, 19);
    std::vector<double> dweights(batch.weights.size());
    auto grad = moe::zeros_like(group);
    group.backward(batch.x, rows, batch.dy, dx, {.weights = dweights}, grad, call);
    EXPECT_TRUE(moe::testing::check_gradient(loss, batch.x, dx));
}

TEST(Constant, TakesTheLargerLogitWhenTheyAreFarApart) {
    auto group = make<float>(1, 2);
    group.mix[0](0, 0) = 500, group.mix[0](0, 1) = 0;
    group.mix[0](1, 0) = -500, group.mix[0](1, 1) = 0;
    expert_group::Batch<float> batch(
        {.tokens = 2, .model_dim = 2, .output_dim = 2, .experts = 1, .input_weights = false});
    batch.x << 1, 2, -1, 2;
    batch.tokens = {0, 0, 0, 0, 1, 0, 0};
    batch.offsets = {3, 5};
    batch.weights.assign(7, 1.0f);
    const auto result = expert_group::run(group, batch);
    EXPECT_EQ(result.y(0, 1), 2.0f);                  // a = 1: the token
    EXPECT_EQ(result.y(1, 1), group.value[0](0, 1));  // b = 1: the vector
    EXPECT_EQ(result.dx(1, 1), 0);
}

TEST(Constant, NamesItsParametersByExpertAndRole) {
    const auto group = make<float>(2, 5);
    std::vector<std::string> names;
    moe::for_each_parameter(group, [&](std::string_view name, std::span<const float> values) {
        names.push_back(std::string(name) + " " + std::to_string(values.size()));
    });
    EXPECT_EQ(names, (std::vector<std::string>{"0.mix 10", "0.value 5", "1.mix 10", "1.value 5"}));
}

TEST(Constant, StartsWithStandardNormalVectorsAndSmallMixes) {
    Random random(3);
    const auto group =
        moe::Constant{}.build<double>(Shape{.model_dim = 4000, .output_dim = 4000}, random);
    const auto deviation = [](const moe::Parameter<double>& p) {
        return std::sqrt(p.view().squaredNorm() / static_cast<double>(p.size()));
    };
    EXPECT_NEAR(deviation(group.value[0]), 1, 0.05);
    EXPECT_NEAR(deviation(group.mix[0]), 0.02, 0.001);
}

TEST(Constant, RefusesOutputsOfAnotherWidth) {
    EXPECT_THROW(make<float>(1).check({.model_dim = 8, .output_dim = 4}), std::invalid_argument);
    EXPECT_THROW(make<float>(0), std::invalid_argument);
}

TEST(Constant, IsNeitherFreeNorNull) {
    const auto facts = make<float>(1).facts(0);
    EXPECT_FALSE(facts.is_free);
    EXPECT_FALSE(facts.is_null);
    EXPECT_EQ(facts.flops_per_row, 9 * 19);
}

}  // namespace
}  // namespace constant_test
