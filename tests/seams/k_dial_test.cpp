// SPDX-License-Identifier: MIT
// The number of experts per token changes from call to call.

#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace k_dial_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 7, dim = 5;

template <class Gate>
auto make(const Gate& gate) {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 6}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = 4, .ffn_dim = 4}, moe::Zero{});
}
Matrix<double> batch() { return moe::testing::random_matrix<double>(tokens, dim, 1); }

TEST(Dial, KOfACallIsLikeALayerWithThatK) {
    const auto layer = make(moe::TopK{.k = 2});
    const auto frozen = moe::freeze(layer);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    for (const Index k : {1, 5, 2, 3}) {
        const Context context{.dial = {.k = k}};
        layer.forward(batch(), y, ws, context);
        EXPECT_EQ(ws.routing().num_assignments(), tokens * k);
        EXPECT_TRUE(moe::testing::same_bits(y, make(moe::TopK{.k = k})(batch()))) << k;
        EXPECT_TRUE(moe::testing::same_bits(y, frozen(batch(), context))) << k;
    }
    layer.forward(batch(), y, ws);
    EXPECT_EQ(ws.routing().num_assignments(), tokens * 2) << "no dial: what it was built with";
}

TEST(Dial, POfACallIsLikeALayerWithThatP) {
    const auto layer = make(moe::TopP{.p = 0.4});
    for (const double p : {0.1, 0.9, 1.0}) {
        const Context context{.dial = {.p = p}};
        EXPECT_TRUE(
            moe::testing::same_bits(layer(batch(), context), make(moe::TopP{.p = p})(batch())));
    }
}

TEST(Dial, EverySequenceMayHaveItsOwn) {
    const auto layer = make(moe::TopK{.k = 2});
    const std::vector<Index> offsets{0, 3, 3, 7}, k{4, 1, 2};
    const Context context{.sequence_offsets = offsets, .dial = {.k_per_sequence = k}};
    const Matrix<double> y = layer(batch(), context);
    EXPECT_TRUE(moe::testing::same_bits(y.topRows(3), make(moe::TopK{.k = 4})(batch().topRows(3))));
    EXPECT_TRUE(
        moe::testing::same_bits(y.bottomRows(4), make(moe::TopK{.k = 2})(batch().bottomRows(4))));
}

template <class Gate>
void expect_exact(const Gate& gate, const Context& context) {
    auto layer = make(gate);
    auto x = batch();
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 2);
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
    seams::expect_parameter_gradients(loss, layer, grad, checked);
}

TEST(Dial, GradientsAreExact) {
    const std::vector<Index> offsets{0, 3, 3, 7}, k{4, 1, 1};
    expect_exact(moe::TopK{.k = 2}, {.dial = {.k = 3}});
    expect_exact(moe::TopK{.k = 2, .normalize_single = false},
                 {.sequence_offsets = offsets, .dial = {.k_per_sequence = k}});
    expect_exact(moe::TopP{.p = 0.2}, {.dial = {.p = 0.8}});
}

TEST(Dial, BackwardTakesTheSameContext) {
    const auto layer = make(moe::TopK{.k = 2});
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    auto grad = moe::zeros_like(layer);
    layer.forward(batch(), y, ws, {.dial = {.k = 3}});
    EXPECT_THROW(layer.backward(batch(), y, dx, grad, ws), std::logic_error);
    EXPECT_THROW(layer.backward(batch(), y, dx, grad, ws, {.dial = {.k = 2}}), std::logic_error);
    layer.backward(batch(), y, dx, grad, ws, {.dial = {.k = 3}});
}

}  // namespace
}  // namespace k_dial_test
