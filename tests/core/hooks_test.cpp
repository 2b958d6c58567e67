// SPDX-License-Identifier: MIT
#include <moe/core/hooks.hpp>

#include <gtest/gtest.h>

#include "core/example_parts.hpp"

namespace hooks_test {
namespace {

using namespace core_test;

TEST(Hooks, ForwardAndBackwardAreCalledInTheFormThatIsThere) {
    moe::Workspace<float> ws;
    const moe::Context context{.step = 10};
    const Call call{context, ws};
    const moe::Matrix<float> x = moe::Matrix<float>::Ones(2, 3);
    moe::Matrix<float> y(2, 3);
    moe::hooks::forward<float>(Short{}, x, y, call);
    EXPECT_EQ(y(1, 2), 2.0f);
    moe::hooks::forward<float>(Long{}, x, y, call);
    EXPECT_EQ(y(1, 2), 11.0f);
    moe::hooks::forward<float>(Both{}, x, y, call);  // the long form if there are two
    EXPECT_EQ(y(1, 2), -1.0f);
    Short grad;
    moe::hooks::backward<float>(Short{}, x, x, y, grad, call);
    EXPECT_EQ(y(0, 0), 2.0f);
    EXPECT_EQ(grad.factor, 3.0f);
    Long none;
    moe::hooks::backward<float>(Long{}, x, x, y, none, call);
    EXPECT_EQ(y(0, 0), 11.0f);
}

TEST(Hooks, GatesAreCalledInTheFormThatIsThere) {
    moe::Workspace<float> ws;
    const moe::Context context{.step = 2};
    const Call call{context, ws};
    const moe::Matrix<float> logits = moe::Matrix<float>::Zero(1, 3);
    moe::Matrix<float> dlogits = moe::Matrix<float>::Ones(1, 3);
    const float dweight = 4;
    const WeightGradients dweights{.output = {&dweight, 1}};
    const auto routed = [&](const auto& gate) {
        moe::Routing routing;
        routing.reset(1, 3);
        moe::hooks::select<float>(gate, logits, routing, call);
        moe::hooks::weigh<float>(gate, logits, routing, call);
        routing.group();
        return routing;
    };
    EXPECT_EQ(routed(Selects{}).of(0)[0].weight, 0.5);  // nothing weighs: what select gave
    EXPECT_EQ(routed(Trains{}).of(0)[0].weight, 9);
    EXPECT_EQ(routed(SelectsByCall{}).of(0)[0].expert, 2);
    EXPECT_EQ(routed(SelectsByCall{}).of(0)[0].weight, 7);

    const moe::Routing routing = routed(Trains{});
    Trains grad;
    moe::hooks::backward<float>(Trains{}, logits, routing, dweights, dlogits, grad, call);
    EXPECT_EQ(dlogits(0, 0), 5.0f);
    TrainsByCall grad_by_call;
    moe::hooks::backward<float>(TrainsByCall{}, logits, routing, dweights, dlogits, grad_by_call,
                                call);
    EXPECT_EQ(dlogits(0, 0), 8.0f);
    EXPECT_EQ(grad_by_call.seen, 1);

    EXPECT_EQ(moe::hooks::num_logits(Selects{}, 3), 3);
    EXPECT_EQ(moe::hooks::num_logits(SelectsByCall{}, 3), 6);
}

struct OfTheBatch : Selects {
    static constexpr bool per_token = false;
    static constexpr bool fixed_count = true;
    bool weighs_input() const { return true; }
};

TEST(Hooks, WhatAGateDoesNotSayHasADefault) {
    static_assert(moe::hooks::per_token<Selects> && !moe::hooks::per_token<OfTheBatch>);
    static_assert(!moe::hooks::fixed_count<Selects> && moe::hooks::fixed_count<OfTheBatch>);
    EXPECT_FALSE(moe::hooks::weighs_input(Selects{}));
    EXPECT_TRUE(moe::hooks::weighs_input(OfTheBatch{}));
}

}  // namespace
}  // namespace hooks_test
