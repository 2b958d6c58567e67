// SPDX-License-Identifier: MIT
#include <moe/experts/shared.hpp>

#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/freeze.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/layer.hpp>
#include <moe/testing/gradient_check.hpp>

#include "support/expert_group.hpp"

namespace shared_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Random;
using moe::Shape;
using moe::SharedGate;

constexpr Index dim = 19;

template <class S, class Recipe>
auto make(const Recipe& recipe) {
    Random random(5);
    auto group = recipe.template build<S>(Shape{.model_dim = dim, .output_dim = dim}, random);
    // A gate far from 1/2 for some tokens.
    for (Index i = 0; i < group.gate().size(); ++i) group.gate().data()[i] *= 30;
    return group;
}

template <class S>
auto swiglu(Index count, SharedGate gate = SharedGate::none) {
    return make<S>(moe::Shared{moe::Swiglu{.count = count, .ffn_dim = 13}, gate});
}

/// All tokens, one run of rows.
constexpr expert_group::Extents all_tokens{.experts = 0};

template <class S>
class SharedExperts : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SharedExperts, Scalars);

TYPED_TEST(SharedExperts, WorkOnEveryToken) {
    using S = TypeParam;
    for (const Index count : {1, 2, 3})
        for (const SharedGate gate : {SharedGate::none, SharedGate::sigmoid})
            for (const bool input_weights : {false, true}) {
                SCOPED_TRACE(count);
                const auto group = swiglu<S>(count, gate);
                expert_group::Extents extents = all_tokens;
                extents.input_weights = input_weights;
                const expert_group::Batch<S> batch(extents);

                std::vector<dense::Expert> experts;
                for (Index e = 0; e < count; ++e)
                    experts.push_back(dense::feed_forward_of(group.experts(), e));
                dense::Matrix weights(extents.tokens, count), factors(extents.tokens, count);
                batch.for_each_row([&](Index, std::size_t r) {
                    const Index t = batch.tokens[r];
                    const double factor = input_weights ? double{batch.input_weights[r]} : 1.0;
                    double logit = 0;
                    for (Index d = 0; d < dim && gate == SharedGate::sigmoid; ++d)
                        logit += factor * double{batch.x(t, d)} * double{group.gate()(0, d)};
                    const double g = gate == SharedGate::none ? 1 : 1 / (1 + std::exp(-logit));
                    for (Index e = 0; e < count; ++e) {
                        weights(t, e) = g * double{batch.weights[r]};
                        factors(t, e) = factor;
                    }
                });
                const dense::Matrix y =
                    dense::forward(experts, batch.x.template cast<double>(), weights, dim, factors);
                EXPECT_TRUE(moe::testing::compare(expert_group::run(group, batch).y, y,
                                                  std::is_same_v<S, float> ? 3e-6 : 1e-14));
            }
}

TYPED_TEST(SharedExperts, AddToWhatIsThere) {
    using S = TypeParam;
    for (const SharedGate gate : {SharedGate::none, SharedGate::sigmoid}) {
        expert_group::expect_adds<S>(swiglu<S>(2, gate), all_tokens);
        expert_group::expect_gradients_may_be_left_out<S>(swiglu<S>(2, gate), all_tokens);
    }
}

TYPED_TEST(SharedExperts, HaveTheSameBitsForAnyNumberOfThreads) {
    using S = TypeParam;
    Random random(2);
    const auto group = moe::Shared{moe::Copy{.count = 2}, SharedGate::sigmoid}.template build<S>(
        Shape{.model_dim = 900, .output_dim = 900}, random);
    expert_group::expect_same_bits_for_any_thread_count<S>(
        group, {.tokens = 700, .model_dim = 900, .output_dim = 900, .experts = 0});
}

TYPED_TEST(SharedExperts, AllocateNothingInTheSecondBatch) {
    using S = TypeParam;
    for (const SharedGate gate : {SharedGate::none, SharedGate::sigmoid})
        expert_group::expect_no_allocation_in_the_second_call<S>(swiglu<S>(2, gate), all_tokens);
}

TYPED_TEST(SharedExperts, DoNothingWithoutTokens) {
    const expert_group::Batch<TypeParam> batch({.tokens = 0, .experts = 0});
    const auto result = expert_group::run(swiglu<TypeParam>(2, SharedGate::sigmoid), batch);
    EXPECT_EQ(result.y.rows(), 0);
    for (const TypeParam g : result.gradient) EXPECT_EQ(g, 0);
}

TYPED_TEST(SharedExperts, HaveTheSameBitsWhenFrozen) {
    using S = TypeParam;
    const auto group = swiglu<S>(2, SharedGate::sigmoid);
    const auto frozen = group.freeze(moe::FreezeOptions{});
    static_assert(moe::ExpertGroup<std::remove_const_t<decltype(frozen)>, S>);
    static_assert(!moe::TrainableGroup<std::remove_const_t<decltype(frozen)>, S>);
    const expert_group::Batch<S> batch(all_tokens);
    const auto expected = expert_group::run(group, batch).y;
    EXPECT_TRUE(moe::testing::same_bits(expert_group::run(frozen, batch).y, expected));
    auto given_up = group;
    const auto rest = std::move(given_up).freeze(moe::FreezeOptions{});
    EXPECT_TRUE(moe::testing::same_bits(expert_group::run(rest, batch).y, expected));
    EXPECT_EQ(given_up.experts().up.count(), 0) << "released";
}

TEST(Shared, HasExactGradients) {
    for (const bool input_weights : {false, true}) {
        const expert_group::Extents extents{
            .tokens = 4, .experts = 0, .input_weights = input_weights};
        expert_group::expect_exact_gradients(swiglu<double>(1), extents);
        expert_group::expect_exact_gradients(swiglu<double>(2), extents);
        expert_group::expect_exact_gradients(swiglu<double>(1, SharedGate::sigmoid), extents);
        expert_group::expect_exact_gradients(swiglu<double>(2, SharedGate::sigmoid), extents);
    }
}

TEST(Shared, OwnsNoRoutedExpert) {
    EXPECT_EQ(swiglu<float>(3).num_experts(), 0);
    EXPECT_EQ(swiglu<float>(3).experts().num_experts(), 3);
}

TEST(Shared, IsDeducedFromTheRecipeInside) {
    static_assert(std::is_same_v<decltype(moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 8}}),
                                 moe::Shared<moe::Swiglu>>);
    static_assert(std::is_same_v<decltype(moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 8},
                                                      moe::SharedGate::sigmoid}),
                                 moe::Shared<moe::Swiglu>>);
    EXPECT_TRUE(moe::Recipe<moe::Shared<moe::Swiglu>>);
}

TEST(Shared, HandsOnWhatTheGroupInsideRefuses) {
    Random random(1);
    const auto group =
        moe::Shared{moe::Copy{}}.build<float>(Shape{.model_dim = 4, .output_dim = 6}, random);
    EXPECT_THROW(group.check({.model_dim = 4, .output_dim = 6}), std::invalid_argument);
}

// Whole layers: a router and a gate that send token t to expert t mod E.

struct RoundRobin {
    void forward(moe::In<double>, moe::Out<double> logits) const {
        logits.setZero();
        for (Index t = 0; t < logits.rows() && logits.cols() > 0; ++t)
            logits(t, t % logits.cols()) = 1;
    }
    void backward(moe::In<double>, moe::In<double>, moe::Out<double> dx, RoundRobin&) const {
        dx.setZero();
    }
};
struct Largest {
    void select(moe::In<double> logits, moe::Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index e = 0; e < logits.cols(); ++e)
                if (logits(t, e) == 1) routing.add(t, e, 0.75);
    }
    void backward(moe::In<double>, const moe::Routing&, const moe::WeightGradients<double>&,
                  moe::Out<double>) const {}
};

auto layer_with(const auto&... groups) {
    return moe::make_layer<double>(moe::Config{.model_dim = 6, .input_scale = 2, .seed = 3},
                                   RoundRobin{}, Largest{}, groups...);
}

TEST(Shared, IsNamedAfterTheSharedGroupsOfALayer) {
    const auto layer =
        layer_with(moe::Copy{.count = 2}, moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 3}},
                   moe::Shared{moe::Swiglu{.ffn_dim = 3}, SharedGate::sigmoid});
    std::vector<std::string> names;
    moe::visit_parameters(
        layer, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names, (std::vector<std::string>{"shared.0.gate", "shared.0.up", "shared.0.down",
                                               "shared.1.gate", "shared.1.up", "shared.1.down",
                                               "shared.2.gate", "shared.2.up", "shared.2.down",
                                               "shared.2.shared_gate"}));
}

TEST(Shared, AddsToRoutedExpertsInALayer) {
    const moe::Swiglu inside{.count = 2, .ffn_dim = 3};
    EXPECT_TRUE(moe::testing::check_gradients(
        layer_with(moe::Copy{.count = 2}, moe::Shared{inside, SharedGate::sigmoid}),
        {.rows = 4, .columns = 6}));

    const Matrix<double> x = moe::testing::random_matrix<double>(5, 6, 1);
    const Matrix<double> alone = layer_with(moe::Shared{inside})(x);
    const Matrix<double> both = layer_with(moe::Shared{inside}, moe::Copy{.count = 2})(x);
    EXPECT_TRUE(moe::testing::compare(both, Matrix<double>(alone + 1.5 * x), 1e-14));
}

TEST(Shared, LeavesPaddingAlone) {
    const auto layer = layer_with(moe::Shared{moe::Swiglu{.ffn_dim = 3}, SharedGate::sigmoid});
    const Matrix<double> x = moe::testing::random_matrix<double>(3, 6, 1);
    const std::vector<std::uint8_t> padding{0, 1, 0};
    const Matrix<double> y = layer(x, {.padding = padding});
    EXPECT_TRUE((y.row(1).array() == 0).all());
    EXPECT_TRUE((y.row(0).array() != 0).all());
    EXPECT_TRUE(moe::testing::same_bits(y.row(2), layer(x).row(2)));
}

}  // namespace
}  // namespace shared_test
