// SPDX-License-Identifier: MIT
#include <moe/experts/copy.hpp>

#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expert_group.hpp"
#include "support/message.hpp"

namespace copy_test {
namespace {

using moe::Index;
using moe::Random;
using moe::Shape;

static_assert(moe::TrainableGroup<moe::CopyModule<float>>);

template <class S>
moe::CopyModule<S> make(Index count, Index dim = 19) {
    Random random(1);
    return moe::Copy{.count = count}.build<S>(Shape{.model_dim = dim, .output_dim = dim}, random);
}

const std::vector<dense::Expert> copies(4, dense::copy());

template <class S>
class CopyExpert : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CopyExpert, Scalars);

TYPED_TEST(CopyExpert, GivesBackItsTokens) {
    using S = TypeParam;
    for (const Index dim : {1, 15, 16, 17, 19, 64})
        for (const bool input_weights : {false, true}) {
            SCOPED_TRACE(dim);
            expert_group::expect_like_dense(
                make<S>(4, dim), copies,
                expert_group::Batch<S>(
                    {.model_dim = dim, .output_dim = dim, .input_weights = input_weights}));
        }
}

TYPED_TEST(CopyExpert, DoesNothingWithoutTokens) {
    const expert_group::Batch<TypeParam> batch({.tokens = 0});
    EXPECT_EQ(expert_group::run(make<TypeParam>(4), batch).y.rows(), 0);
}

TYPED_TEST(CopyExpert, AddsInOrderOfExpertsWithAnyNumberOfThreads) {
    using S = TypeParam;
    expert_group::expect_adds<S>(make<S>(4), {});
    expert_group::expect_same_bits_in_sub_ranges<S>(make<S>(4), {});
    expert_group::expect_gradients_may_be_left_out<S>(make<S>(4), {});
    const expert_group::Extents large{.tokens = 700, .model_dim = 1030, .output_dim = 1030};
    expert_group::expect_same_bits_for_any_thread_count<S>(make<S>(4, 1030), large);
}

TYPED_TEST(CopyExpert, AllocatesNothingInTheSecondBatch) {
    expert_group::expect_no_allocation_in_the_second_call<TypeParam>(make<TypeParam>(4), {});
}

TEST(Copy, HasExactGradients) {
    expert_group::expect_exact_gradients(make<double>(4), {.tokens = 5});
    expert_group::expect_exact_gradients(make<double>(4), {.tokens = 5, .input_weights = false});
}

TEST(Copy, ReadsOneTokenForManyRows) {
    // Rows of one expert may share what they read; they never share what they add to.
    expert_group::Batch<double> batch({.tokens = 3, .experts = 1, .input_weights = false});
    const std::vector<std::int32_t> from(batch.tokens.size(), 1);
    auto rows = batch.rows();
    rows.from = from;
    moe::Workspace<double> ws;
    const moe::Context context;
    const moe::Call<double> call{context, ws};
    moe::Matrix<double> y = moe::Matrix<double>::Zero(3, 19), dx = y, expected = y;
    std::vector<double> dweights(batch.weights.size());
    auto group = make<double>(1);
    auto grad = group;
    group.forward(batch.x, rows, y, call);
    group.backward(batch.x, rows, batch.dy, dx, {.weights = dweights}, grad, call);
    batch.for_each_row([&](Index, std::size_t r) {
        EXPECT_TRUE(moe::testing::compare(y.row(batch.tokens[r]), batch.weights[r] * batch.x.row(1),
                                          1e-15));
        expected.row(1) += batch.weights[r] * batch.dy.row(batch.tokens[r]);
    });
    EXPECT_TRUE(moe::testing::compare(dx, expected, 1e-15, {.allow_zeros = true}));
}

TEST(Copy, IsFree) {
    EXPECT_TRUE(make<float>(1).facts(0).is_free);
    EXPECT_FALSE(make<float>(1).facts(0).is_null);
    EXPECT_EQ(make<float>(1).facts(0).flops_per_row, 38);
}

TEST(Copy, RefusesOutputsOfAnotherWidth) {
    EXPECT_NO_THROW(make<float>(1).check({.model_dim = 8, .output_dim = 8}));
    EXPECT_EQ(support::message([&] { make<float>(1).check({.model_dim = 8, .output_dim = 4}); }),
              "moe::Copy: output_dim is 4, model_dim is 8; a token can only be copied if "
              "they are equal");
    EXPECT_THROW(make<float>(0), std::invalid_argument);
}

}  // namespace
}  // namespace copy_test
