// SPDX-License-Identifier: MIT
// A plan is a value: saved, edited by hand, weighed again, applied, and gone back through.

#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace replay_test {
namespace {

using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Workspace;

constexpr Index tokens = 6, dim = 5, experts = 5;

template <class Gate>
auto make(const Gate& gate) {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 8}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = experts - 1, .ffn_dim = 4},
                                   moe::Constant{});
}

template <class Layer>
Matrix<double> dense_output(const Layer& layer, const Matrix<double>& x, const Routing& routing) {
    std::vector<dense::Expert> all;
    for (Index e = 0; e < experts - 1; ++e)
        all.push_back(dense::feed_forward_of(layer.bank().template group<0>(), e));
    const auto& constant = layer.bank().template group<1>();
    all.push_back(dense::constant(constant.mix[0].view(), constant.value[0].view()));
    return dense::forward(all, x, dense::weights_of(routing), dim);
}

/// Expert 1 is off for everybody, expert 3 on for tokens that did not choose it.
Routing edited(Routing plan) {
    for (Index a = 0; a < plan.num_assignments(); ++a)
        if (plan.assignments()[static_cast<std::size_t>(a)].expert == 1)
            plan.set_dropped(a, Dropped::pruned), plan.group();
    for (const Index t : {0, 2, 5}) {
        const auto own = plan.of(t);
        if (std::none_of(own.begin(), own.end(), [](const auto& a) { return a.expert == 3; })) {
            plan.add(t, 3);
            plan.group();
        }
    }
    return plan;
}

template <class Gate>
void expect_exact_through_an_edited_plan(const Gate& gate) {
    auto layer = make(gate);
    auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 2);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    layer.route(x, ws);
    const Routing plan = edited(ws.routing());
    ASSERT_FALSE(plan == ws.routing());
    const auto loss = [&] {
        layer.reweigh(x, plan, ws);
        layer.apply(x, y, ws);
        return seams::weighted_sum(y, dy);
    };
    loss();
    EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, x, ws.routing()), 1e-14));
    EXPECT_TRUE(ws.routing().tokens_of(1).empty());
    EXPECT_GE(ws.routing().tokens_of(3).size(), 3u);

    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws);
    // The plan is fixed: no choice can change next to these values.
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, seams::options()));
    seams::expect_parameter_gradients(loss, layer, grad, seams::options());
}

TEST(Replay, GradientsThroughAnEditedPlanAreExact) {
    expect_exact_through_an_edited_plan(moe::TopK{.k = 2});
    expect_exact_through_an_edited_plan(moe::TopK{.k = 2, .normalize_kept_only = true});
    expect_exact_through_an_edited_plan(
        moe::TopK{.k = 2, .score = moe::Score::sigmoid, .normalize = moe::Normalize::none});
    expect_exact_through_an_edited_plan(
        moe::TopK{.k = 2, .score = moe::Score::softmax_of_selected});
    expect_exact_through_an_edited_plan(moe::TopP{.p = 0.6});
}

TEST(Replay, OfAnUneditedPlanGivesTheSameBits) {
    const auto layer = make(moe::TopK{.k = 2});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws, other;
    Matrix<double> y(tokens, dim), again(tokens, dim);
    layer.forward(x, y, ws);
    const Routing saved = ws.routing();
    layer.reweigh(x, saved, other);
    layer.apply(x, again, other);
    EXPECT_EQ(other.routing(), saved);
    EXPECT_TRUE(moe::testing::same_bits(again, y));
    layer.reweigh(x, ws.routing(), ws);  // the plan that lies in the workspace itself
    EXPECT_EQ(ws.routing(), saved);
}

TEST(Replay, WeighsTheSameExpertsForOtherTokens) {
    const auto layer = make(moe::TopK{.k = 2});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto other = moe::testing::random_matrix<double>(tokens, dim, 3);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    layer.route(x, ws);
    const Routing saved = ws.routing();
    layer.reweigh(other, saved, ws);
    layer.apply(other, y, ws);
    for (Index a = 0; a < saved.num_assignments(); ++a) {
        const auto& before = saved.assignments()[static_cast<std::size_t>(a)];
        const auto& now = ws.routing().assignments()[static_cast<std::size_t>(a)];
        EXPECT_EQ(now.expert, before.expert);
        EXPECT_EQ(now.slot, before.slot);
        EXPECT_NE(now.weight, before.weight);
    }
    EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, other, ws.routing()), 1e-14));
}

TEST(Replay, WeightsSetByHandAreUsedAsTheyAre) {
    const auto layer = make(moe::TopK{.k = 2});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    layer.route(x, ws);
    for (Index a = 0; a < ws.routing().num_assignments(); ++a)
        ws.edit_routing().set_weight(a, 0.25 * static_cast<double>(a));
    layer.apply(x, y, ws);
    EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, x, ws.routing()), 1e-14));
}

TEST(Replay, APlanMadeByHandRunsWithoutARouter) {
    const auto layer = make(moe::TopK{.k = 2});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Routing plan;
    plan.reset(tokens, experts);
    for (Index e = 0; e < experts; ++e) plan.add((e + 3) % tokens, e, 0.5);
    plan.add(4, 0, 2), plan.add(4, 2, -1);
    plan.group();
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    layer.bank().apply(x, plan, y, ws);
    EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, x, plan), 1e-14));
}

TEST(Replay, RefusesAPlanForAnotherBatch) {
    const auto layer = make(moe::TopK{.k = 2});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    Routing plan;
    plan.reset(tokens - 1, experts);
    plan.group();
    EXPECT_THROW(layer.reweigh(x, plan, ws), std::invalid_argument);
    plan.reset(tokens, experts + 1);
    plan.group();
    EXPECT_THROW(layer.reweigh(x, plan, ws), std::invalid_argument);
    EXPECT_THROW(layer.bank().apply(x, plan, y, ws), std::invalid_argument);
}

}  // namespace
}  // namespace replay_test
