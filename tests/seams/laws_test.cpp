// SPDX-License-Identifier: MIT
// Laws that hold for every mixture of experts, whatever its numbers are.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace laws_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::compare;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 13, dim = 24, experts = 6;

template <class Gate>
auto make(const Gate& gate) {
    return moe::Layer{moe::Config{.model_dim = dim, .seed = 3}, moe::LinearRouter{}, gate,
                      moe::Swiglu{.count = experts, .ffn_dim = 10},
                      moe::Shared{moe::Swiglu{.ffn_dim = 8}, moe::SharedGate::sigmoid}};
}
const moe::TopK top2{.k = 2};
const moe::TopP half{.p = 0.5};

Matrix<float> batch(Index rows = tokens) { return random_matrix<float>(rows, dim, 1); }

std::vector<Index> shuffled(Index count) {
    std::vector<Index> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), Index{0});
    for (std::size_t i = order.size() - 1; i > 0; --i)
        std::swap(order[i], order[(7 * i + 3) % (i + 1)]);
    return order;
}

template <class Gate>
void expect_tokens_may_be_permuted(const Gate& gate) {
    const auto layer = make(gate);
    const Matrix<float> x = batch(), y = layer(x);
    const std::vector<Index> order = shuffled(tokens);
    EXPECT_TRUE(same_bits(layer(x(order, Eigen::all).eval()), y(order, Eigen::all)));
}
TEST(Laws, TokensMayBePermuted) {
    expect_tokens_may_be_permuted(top2);
    expect_tokens_may_be_permuted(half);
}

template <class Gate>
void expect_experts_may_be_relabelled(const Gate& gate) {
    const auto layer = make(gate);
    auto other = layer;
    const std::vector<Index> order = shuffled(experts);
    const auto& from = layer.bank().template group<0>();
    auto& to = other.bank().template group<0>();
    for (Index e = 0; e < experts; ++e) {
        const Index source = order[static_cast<std::size_t>(e)];
        to.gate.owned(e).view() = from.gate.owned(source).view();
        to.up.owned(e).view() = from.up.owned(source).view();
        to.down.owned(e).view() = from.down.owned(source).view();
        other.router().weight.view().row(e) = layer.router().weight.view().row(source);
    }
    // The order of the sum over experts is another, the terms are the same.
    EXPECT_TRUE(compare(other(batch()), layer(batch()), 1e-6));
}
TEST(Laws, ExpertsMayBeRelabelledWithTheirRouterRows) {
    expect_experts_may_be_relabelled(top2);
    expect_experts_may_be_relabelled(half);
}

TEST(Laws, CopyingExpertsWithNormalisedWeightsGiveBackTheTokens) {
    const moe::Config config{.model_dim = dim};
    const Matrix<float> x = batch();
    for (const Index k : {1, 2, 6}) {
        const moe::Layer layer{config, moe::LinearRouter{}, moe::TopK{.k = k},
                               moe::Copy{.count = experts}};
        EXPECT_TRUE(compare(layer(x), x, 1e-6)) << k;
    }
    const moe::Layer layer{config, moe::LinearRouter{},
                           moe::TopP{.p = 0.5, .normalize = moe::Normalize::plain},
                           moe::Copy{.count = experts}};
    EXPECT_TRUE(compare(layer(x), x, 1e-6));
}

TEST(Laws, NormalisedWeightsSumToOne) {
    for (const moe::Score score :
         {moe::Score::softmax, moe::Score::sigmoid, moe::Score::softmax_of_selected}) {
        Workspace<float> ws;
        make(moe::TopK{.k = 3, .score = score}).route(batch(), ws);
        for (Index t = 0; t < tokens; ++t) {
            double sum = 0;
            for (const auto& a : ws.routing().of(t)) {
                EXPECT_GE(a.weight, 0);
                sum += a.weight;
            }
            EXPECT_NEAR(sum, 1, 1e-6);
        }
    }
}

TEST(Laws, AllExpertsAreTheDenseMixture) {
    const auto layer = make(moe::TopK{.k = experts});
    const auto other = make(moe::TopP{.p = 1});
    Workspace<float> ws;
    Matrix<float> y(tokens, dim);
    layer.forward(batch(), y, ws);
    Matrix<double> softmax = Matrix<double>(ws.logits().cast<double>().array().exp());
    for (Index t = 0; t < tokens; ++t) softmax.row(t) /= softmax.row(t).sum();
    EXPECT_TRUE(compare(dense::weights_of(ws.routing()), softmax, 1e-6));
    EXPECT_TRUE(compare(other(batch()), y, 1e-6));
}

TEST(Laws, AnOffsetOfAllLogitsChangesNothing) {
    const auto layer = make(top2);
    const std::vector<double> offset(experts, 8);
    Workspace<float> ws, other;
    layer.route(batch(), ws);
    layer.route(batch(), other, {.logit_offset = offset});
    for (Index a = 0; a < ws.routing().num_assignments(); ++a) {
        const auto& x = ws.routing().assignments()[static_cast<std::size_t>(a)];
        const auto& y = other.routing().assignments()[static_cast<std::size_t>(a)];
        EXPECT_EQ(x.expert, y.expert);
        EXPECT_NEAR(x.weight, y.weight, 1e-5);
    }
}

template <class Gate>
void expect_parts_of_a_batch_equal_the_whole(const Gate& gate) {
    const auto layer = make(gate);
    constexpr Index many = 67;
    const Matrix<float> x = batch(many), dy = random_matrix<float>(many, dim, 2);
    Matrix<float> y(many, dim), dx(many, dim);
    Workspace<float> ws;
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, moe::no_gradient, ws);
    for (const Index split : {1, 33, 66}) {
        for (const auto& [first, count] :
             {std::pair{Index{0}, split}, std::pair{split, many - split}}) {
            Matrix<float> part_y(count, dim), part_dx(count, dim);
            const moe::Context context{.first_token = first};
            layer.forward(x.middleRows(first, count), part_y, ws, context);
            layer.backward(x.middleRows(first, count), dy.middleRows(first, count), part_dx,
                           moe::no_gradient, ws, context);
            EXPECT_TRUE(same_bits(part_y, y.middleRows(first, count))) << split;
            EXPECT_TRUE(same_bits(part_dx, dx.middleRows(first, count))) << split;
        }
    }
}
TEST(Laws, PartsOfABatchEqualTheWholeBitForBit) {
    expect_parts_of_a_batch_equal_the_whole(top2);
    expect_parts_of_a_batch_equal_the_whole(half);
}

TEST(Laws, SharedExpertsAddExactlyTheirOwnOutput) {
    const auto layer = make(top2);
    const moe::Layer routed{layer.config(), layer.router(), layer.gate(), layer.bank().group<0>()};
    const moe::Layer shared{layer.config(), moe::LinearRouter{}, moe::TopK{.k = 1}, moe::Zero{},
                            layer.bank().group<1>()};
    EXPECT_TRUE(compare(layer(batch()), Matrix<float>(routed(batch()) + shared(batch())), 1e-6));
    // Groups are summed in argument order: behind experts that output 0 nothing is rounded.
    EXPECT_TRUE(same_bits(shared(batch()),
                          moe::Layer(layer.config(), moe::LinearRouter{}, moe::TopK{.k = 2},
                                     moe::Zero{.count = 3}, layer.bank().group<1>())(batch())));
}

TEST(Laws, ANullExpertThatIsNeverChosenChangesNothing) {
    const auto layer = make(top2);
    auto router = layer.router();
    router.weight = moe::Parameter<float>(experts + 1, dim);
    router.weight.view().topRows(experts) = layer.router().weight.view();
    router.bias = moe::Parameter<float>(1, experts + 1);
    router.bias(0, experts) = -1000;  // its probability underflows
    const moe::Layer with{layer.config(),          router,      top2,
                          layer.bank().group<0>(), moe::Null{}, layer.bank().group<1>()};
    EXPECT_TRUE(same_bits(with(batch()), layer(batch())));
}

TEST(Laws, FreeExpertsAloneAreTrivial) {
    const moe::Config config{.model_dim = dim};
    const Matrix<float> x = batch();
    const auto expect_zero = [&](const auto& layer) {
        Workspace<float> ws;
        Matrix<float> y(tokens, dim), dx(tokens, dim);
        auto grad = moe::zeros_like(layer);
        layer.forward(x, y, ws);
        layer.backward(x, random_matrix<float>(tokens, dim, 2), dx, grad, ws);
        EXPECT_TRUE((y.array() == 0).all());
        EXPECT_TRUE((dx.array() == 0).all());
        for (const float value : seams::values_of<float>(grad)) EXPECT_EQ(value, 0);
    };
    expect_zero(moe::Layer{config, moe::LinearRouter{}, top2, moe::Zero{.count = 4}});
    expect_zero(moe::Layer{config, moe::LinearRouter{}, top2, moe::Null{.count = 4}});
    expect_zero(moe::Layer{config, moe::LinearRouter{}, half, moe::Null{.count = 2}, moe::Zero{}});
}

TEST(Laws, ASlotSpentOnANullExpertLeavesTheWeightToTheOther) {
    // k = 2 where one of the two is null: like k = 1 of the true experts.
    const moe::Swiglu swiglu{.count = 3, .ffn_dim = 10};
    const moe::Layer one{moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 1},
                         swiglu};
    auto router = one.router();
    router.weight = moe::Parameter<float>(4, dim);
    router.weight.view().topRows(3) = one.router().weight.view();
    router.bias = moe::Parameter<float>(1, 4);
    router.bias(0, 3) = 100;  // always first
    const moe::Layer two{moe::Config{.model_dim = dim}, router, top2, one.bank().group<0>(),
                         moe::Null{}};
    EXPECT_TRUE(compare(two(batch()), one(batch()), 1e-6));
    // A zero expert keeps its weight, which is nearly all here.
    const moe::Layer zero{moe::Config{.model_dim = dim}, router, top2, one.bank().group<0>(),
                          moe::Zero{}};
    EXPECT_LT(zero(batch()).norm(), 1e-6f * one(batch()).norm());
}

}  // namespace
}  // namespace laws_test
