// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_backward.hpp>

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "many_rows.hpp"
#include "support/message.hpp"

namespace feed_forward_backward_test {
namespace {

using moe::Index;
using moe::Matrix;

/// Two experts on 3 and 4 rows of 5 tokens, with weights on inputs too.
struct Problem {
    moe::FeedForwardModule<double> group;
    Matrix<double> x = moe::testing::random_matrix<double>(5, 9, 1),
                   dy = moe::testing::random_matrix<double>(5, 9, 2);
    std::vector<Index> offsets{0, 3, 7};
    std::vector<std::int32_t> tokens{0, 2, 4, 0, 1, 2, 3};
    std::vector<double> weights{.5, -.25, 1, 2, .125, .75, -1}, inputs{1, 2, .5, -1, .25, 1.5, 3};
    moe::Context context;
    moe::Workspace<double> ws;

    Problem() {
        moe::Random random(3);
        group = moe::Swiglu{.count = 2, .ffn_dim = 37}.build<double>(
            {.model_dim = 9, .output_dim = 9}, random);
    }
    moe::Rows<double> rows() const {
        return {.offsets = offsets,
                .from = tokens,
                .to = tokens,
                .weights = weights,
                .input_weights = inputs};
    }
    Matrix<double> forward() {
        Matrix<double> y = Matrix<double>::Zero(5, 9);
        group.forward(x, rows(), y, {context, ws});
        return y;
    }
};

TEST(FeedForwardBackward, MayRunTwiceOnOneForwardPass) {
    Problem p;
    p.forward();
    Matrix<double> dx[2];
    std::vector<double> dweights[2];
    for (int run = 0; run < 2; ++run) {
        auto grad = moe::zeros_like(p.group);
        dx[run] = Matrix<double>::Zero(5, 9);
        dweights[run].assign(7, 0);
        p.group.backward(p.x, p.rows(), p.dy, dx[run], {.weights = dweights[run]}, grad,
                         {p.context, p.ws});
    }
    EXPECT_TRUE(moe::testing::same_bits(dx[0], dx[1]));
    EXPECT_TRUE(moe::testing::same_bits(dweights[0], dweights[1]));
}

TEST(FeedForwardBackward, HasTheSameBitsHoweverRowsAreCutAndWhateverIsKept) {
    if (moe::isa() == moe::Isa::scalar)
        GTEST_SKIP() << "no other cuts with scalar kernels, which take ten times as long";
    ASSERT_LT(moe::detail::FeedForwardState<float>::part_rows({.ffn_dim = 1100}, 9999, 7), 1500);
    many_rows::expect_the_same_bits<float>(moe::Swiglu{.count = 5, .ffn_dim = 1100}, {2, 7});
    many_rows::expect_the_same_bits<float>(moe::Mlp{.count = 5, .ffn_dim = 1100}, {2});
    many_rows::expect_the_same_bits<double>(moe::Swiglu{.count = 5, .ffn_dim = 1100}, {2});
}

TEST(FeedForwardBackward, KeepsNoRowsBesidesAPartIfItRecomputes) {
    Problem p;
    p.ws.keep(moe::Keep::recompute);
    p.forward();
    const auto& state = p.ws.state<moe::detail::FeedForwardState<double>>();
    EXPECT_EQ(state.gate.bytes() + state.up.bytes(), 0);
    Matrix<double> dx = Matrix<double>::Zero(5, 9);
    std::vector<double> dweights(7);
    auto grad = moe::zeros_like(p.group);
    for (int run = 0; run < 2; ++run)  // as often as you like
        p.group.backward(p.x, p.rows(), p.dy, dx, {.weights = dweights}, grad, {p.context, p.ws});
    EXPECT_GT(state.gate.bytes(), 0);
    EXPECT_TRUE(dx.allFinite() && dx.norm() > 0);
}

TEST(FeedForwardBackward, GivesTheGradientOfInputWeightsToWhoWantsIt) {
    Problem p;
    p.forward();
    auto grad = moe::zeros_like(p.group);
    Matrix<double> dx = Matrix<double>::Zero(5, 9);
    std::vector<double> dweights(7), dinputs(7);
    p.group.backward(p.x, p.rows(), p.dy, dx, {.weights = dweights, .input_weights = dinputs}, grad,
                     {p.context, p.ws});
    const auto loss = [&] { return p.forward().cwiseProduct(p.dy).sum(); };
    const auto difference = [&](double& value) {
        const double kept = value, step = 1e-5;
        value = kept + step;
        const double above = loss();
        value = kept - step;
        const double below = loss();
        value = kept;
        return (above - below) / (2 * step);
    };
    for (std::size_t r = 0; r < 7; ++r) {
        EXPECT_NEAR(dinputs[r], difference(p.inputs[r]), 1e-8) << "row " << r;
        EXPECT_NEAR(dweights[r], difference(p.weights[r]), 1e-8) << "row " << r;
    }
}

TEST(FeedForwardBackward, SkipsGradientsThatAreEmpty) {
    Problem p;
    p.forward();
    auto all = moe::zeros_like(p.group);
    auto some = moe::zeros_like(
        p.group, [](std::string_view name) { return name != "1.up" && name != "0.down"; });
    moe::FeedForwardModule<double> none;
    std::vector<double> dweights(7);
    Matrix<double> dx[3];
    int i = 0;
    for (auto* grad : {&all, &some, &none}) {
        dx[i] = Matrix<double>::Zero(5, 9);
        p.group.backward(p.x, p.rows(), p.dy, dx[i++], {.weights = dweights}, *grad,
                         {p.context, p.ws});
    }
    EXPECT_TRUE(moe::testing::same_bits(dx[0], dx[1]));
    EXPECT_TRUE(moe::testing::same_bits(dx[0], dx[2]));
    EXPECT_EQ(some.up.gradient(1), nullptr);
    EXPECT_TRUE(moe::testing::same_bits(some.up.owned(0).view(), all.up.owned(0).view()));
    EXPECT_TRUE(moe::testing::same_bits(some.down.owned(1).view(), all.down.owned(1).view()));
}

TEST(FeedForwardBackward, RefusesGradientsOfOtherExtents) {
    Problem p;
    p.forward();
    auto grad = moe::zeros_like(p.group);
    std::vector<double> dweights(7);
    Matrix<double> dx = Matrix<double>::Zero(5, 9);
    const auto refusal = [&] {
        return support::message([&] {
            p.group.backward(p.x, p.rows(), p.dy, dx, {.weights = dweights}, grad,
                             {p.context, p.ws});
        });
    };
    EXPECT_EQ(refusal(), "");
    grad.up = moe::Weights<double>(2, 9, 37);
    EXPECT_EQ(refusal(),
              "moe::FeedForwardModule::backward: up of the gradient holds 2 matrices [9, 37], "
              "the experts have 2 of [37, 9]; make it with zeros_like(layer)");
    grad.up = moe::Weights<double>(1, 37, 9);
    EXPECT_NE(refusal(), "");
    grad.up = {};
    EXPECT_EQ(refusal(), "") << "not wanted";
    grad.down_bias = moe::Weights<double>(2, 1, 9);
    EXPECT_EQ(refusal(),
              "moe::FeedForwardModule::backward: down_bias of the gradient holds 2 matrices "
              "[1, 9], the experts have 0 of [0, 0]; make it with zeros_like(layer)");
    grad.down_bias = {};
    grad.gate_bias = moe::Weights<double>(2, 1, 37);
    EXPECT_EQ(refusal(),
              "moe::FeedForwardModule::backward: gate_bias of the gradient holds 2 matrices "
              "[1, 37], the experts have 0 of [0, 0]; make it with zeros_like(layer)");
}

}  // namespace
}  // namespace feed_forward_backward_test
