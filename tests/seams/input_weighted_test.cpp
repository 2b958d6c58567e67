// SPDX-License-Identifier: MIT
// Llama-4: the sigmoid of the logit scales what the expert reads, not what it returns.

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 6, dim = 5;

auto make(Index k, double input_scale = 1) {
    return moe::make_layer<double>(
        moe::Config{.model_dim = dim, .input_scale = input_scale, .seed = 5}, moe::LinearRouter{},
        moe::TopK{.k = k,
                  .score = moe::Score::sigmoid,
                  .normalize = moe::Normalize::none,
                  .placement = moe::Placement::input},
        moe::Swiglu{.count = 3, .ffn_dim = 4},
        moe::Mlp{.count = 2, .ffn_dim = 4, .activation = moe::Activation::gelu, .bias = true},
        moe::Constant{}, moe::Copy{}, moe::Shared{moe::Swiglu{.ffn_dim = 6}});
}

TEST(InputWeighted, ExpertsReadTheTokenTimesItsWeight) {
    for (const Index k : {1, 3}) {
        const auto layer = make(k, 0.5);
        const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
        Workspace<double> ws;
        Matrix<double> y(tokens, dim);
        layer.forward(x, y, ws);
        const moe::Routing& routing = ws.routing();
        for (const moe::Assignment& a : routing.assignments()) {
            EXPECT_EQ(a.weight, 1);
            EXPECT_NEAR(a.input_weight, 1 / (1 + std::exp(-ws.logits()(a.token, a.expert))), 1e-15);
        }
        const auto& bank = layer.bank();
        std::vector<dense::Expert> all;
        for (Index e = 0; e < 3; ++e) all.push_back(dense::feed_forward_of(bank.group<0>(), e));
        for (Index e = 0; e < 2; ++e) all.push_back(dense::feed_forward_of(bank.group<1>(), e));
        all.push_back(
            dense::constant(bank.group<2>().mix[0].view(), bank.group<2>().value[0].view()));
        all.push_back(dense::copy());
        all.push_back(dense::feed_forward_of(bank.group<4>().experts(), 0));
        Matrix<double> weights = Matrix<double>::Ones(tokens, 8);
        Matrix<double> input_weights = Matrix<double>::Constant(tokens, 8, 0.5);
        weights.leftCols(7) = dense::weights_of(routing);
        input_weights.leftCols(7) = dense::input_weights_of(routing, 0.5);
        EXPECT_TRUE(
            moe::testing::compare(y, dense::forward(all, x, weights, dim, input_weights), 1e-14));
        EXPECT_TRUE(moe::testing::same_bits(moe::freeze(layer)(x), y));
    }
}

TEST(InputWeighted, GradientsAreExact) {
    for (const Index k : {1, 3}) {
        const moe::testing::ModuleOptions options{
            .rows = tokens, .columns = dim, .seed = 4, .scale = 0.01};
        EXPECT_TRUE(moe::testing::check_gradients(make(k), options)) << k;
        EXPECT_TRUE(moe::testing::check_gradients(make(k, 2), options)) << k;
    }
}

TEST(InputWeighted, TheGateMultiplierScalesOutputsNevertheless) {
    const auto layer = make(2);
    auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 2);
    std::vector<double> multiplier{0.5, 2, -1, 0.25, 3, 1.5, 0.75};
    std::vector<double> dmultiplier(multiplier.size(), 0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    const moe::Context context{.gate_multiplier = multiplier, .gradients = &gradients};
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy);
    };
    loss();
    const auto checked = seams::options(seams::SameChoices(ws));
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, checked));
    EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, dmultiplier, checked));
}

}  // namespace
