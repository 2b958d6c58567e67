// SPDX-License-Identifier: MIT
// What tests of Competition do not show: the contest by itself, on a head and a bank.
#include <moe/compose/contest.hpp>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using support::message;

constexpr Index dim = 6, tokens = 9, experts = 5;

auto make() {
    return moe::make_layer<double>({.model_dim = dim, .seed = 3}, moe::LinearRouter{.bias = true},
                                   moe::TopK{.k = 2}, moe::Swiglu{.count = 4, .ffn_dim = 4},
                                   moe::Copy{});
}

/// A routed batch and the contest's own node.
struct Batch {
    decltype(make()) layer = make();
    Matrix<double> x = random_matrix<double>(tokens, dim, 1), y{tokens, dim};
    Workspace<double> ws, node;

    void forward(const moe::detail::Contest<double>& contest, const Context& context = {}) {
        layer.route(x, ws, context);
        contest.forward(layer.bank(), x, y, ws, node, context);
    }
};

TEST(Contest, WithAllOfTheScoreFromLogitsIsTheLayersOwnChoice) {
    Batch batch;
    batch.layer.route(batch.x, batch.ws);
    const moe::Routing chosen = batch.ws.routing();
    batch.forward({2, 1, experts});
    ASSERT_EQ(batch.ws.routing().num_assignments(), chosen.num_assignments());
    for (Index a = 0; a < chosen.num_assignments(); ++a) {
        const auto& won = batch.ws.routing().assignments()[static_cast<std::size_t>(a)];
        const auto& was = chosen.assignments()[static_cast<std::size_t>(a)];
        EXPECT_EQ(won.expert, was.expert);
        EXPECT_NEAR(won.weight, was.weight, 1e-14);  // a softmax of the selected either way
    }
}

TEST(Contest, TheDialCountsWinners) {
    Batch batch;
    const std::vector<Index> offsets{0, 4, tokens}, k{1, 3};
    batch.forward({2, 0, experts}, {.dial = {.k = 4}});
    EXPECT_EQ(batch.ws.routing().num_kept(), 4 * tokens);
    batch.forward({2, 0, experts}, {.sequence_offsets = offsets, .dial = {.k_per_sequence = k}});
    EXPECT_EQ(batch.ws.routing().num_kept(), 1 * 4 + 3 * 5);
}

TEST(Contest, AnInfiniteAnswerWinsAndBreaksItsOwnTokenOnly) {
    Batch batch;
    const moe::detail::Contest<double> contest(2, 0, experts);
    batch.forward(contest);
    const Matrix<double> before = batch.y;
    batch.x(3, 1) = std::numeric_limits<double>::infinity();
    batch.forward(contest);
    EXPECT_FALSE(batch.y.row(3).allFinite());
    for (const Index t : {0, 1, 2, 4, 5, 6, 7, 8})
        EXPECT_TRUE(
            moe::testing::same_bits(Matrix<double>(batch.y.row(t)), Matrix<double>(before.row(t))))
            << t;
}

TEST(Contest, LeavesNothingForBackwardAfterItThrew) {
    Batch batch;
    const moe::detail::Contest<double> contest(2, 0, experts);
    batch.forward(contest);
    const std::vector<std::uint8_t> forced(experts, 1);
    batch.layer.route(batch.x, batch.ws, {});
    Matrix<double> dx(tokens, dim), narrow(tokens, dim - 1);
    auto grad = moe::zeros_like(batch.layer);
    const auto backward = [&](Matrix<double>& into, decltype(grad)& gradient) {
        contest.backward(batch.layer.bank(), batch.x, batch.y, into, gradient.bank(), batch.ws,
                         batch.node, {});
    };
    EXPECT_THROW(backward(dx, grad), std::logic_error) << "another routing";
    batch.forward(contest);
    backward(dx, grad);
    EXPECT_NE(message([&] {
                  contest.forward(batch.layer.bank(), batch.x, narrow, batch.ws, batch.node, {});
              }).find("y is [9, 5], it must be [9, 6]"),
              std::string::npos);
    EXPECT_NE(message([&] {
                  contest.forward(batch.layer.bank(), batch.x, batch.x, batch.ws, batch.node, {});
              }).find("y shares memory with x"),
              std::string::npos);
    EXPECT_NE(message([&] {
                  contest.forward(batch.layer.bank(), batch.x, batch.y, batch.ws, batch.node,
                                  {.forced = forced});
              }).find("forced is set"),
              std::string::npos);
}

TEST(Contest, RefusesGradientsThatAreNoneOfTheBank) {
    Batch batch;
    const moe::detail::Contest<double> contest(2, 0, experts);
    batch.forward(contest);
    const Matrix<double> dy = batch.y;
    Matrix<double> dx(tokens, dim);
    const auto refusal = [&](auto& bank) {
        return message([&] {
            contest.backward(batch.layer.bank(), batch.x, dy, dx, bank, batch.ws, batch.node, {});
        });
    };
    EXPECT_NE(refusal(batch.layer.bank()).find("grad is the layer itself"), std::string::npos);
    auto other = moe::zeros_like(moe::make_layer<double>(
        {.model_dim = dim}, moe::LinearRouter{.bias = true}, moe::TopK{.k = 2},
        moe::Swiglu{.count = 6, .ffn_dim = 4}, moe::Copy{}));
    EXPECT_NE(refusal(other.bank()).find("it has 7 experts, the layer has 5"), std::string::npos);
}

}  // namespace
