// SPDX-License-Identifier: MIT
#include <moe/losses/noise.hpp>

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/capacity.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/losses/importance.hpp>
#include <moe/losses/load.hpp>

#include "losses/head_of_logits.hpp"
#include "support/message.hpp"

namespace noise_test {
namespace {

using moe::Context;
using moe::GateNoise;
using moe::Matrix;

constexpr Context training{.training = true, .seed = 6};

TEST(LossesOnNoise, FindTheGateInGatesAroundIt) {
    const moe::Noisy inner{moe::TopK{.k = 2}, GateNoise{}};
    const moe::Capacity capacity{.limit = moe::CapacityLimit::constant(1)};
    example::HeadOfLogits<double, moe::WithCapacity<moe::Noisy<moe::TopK>>> around(
        moe::WithCapacity{inner, capacity}, 6, 5, 10);
    example::HeadOfLogits<double, moe::Noisy<moe::WithCapacity<moe::TopK>>> within(
        moe::Noisy{moe::WithCapacity{moe::TopK{.k = 2}, capacity}, GateNoise{}}, 6, 5, 10);
    example::HeadOfLogits<double, moe::Noisy<moe::TopK>> alone(inner, 6, 5, 10);
    const Matrix<double> matrix = moe::testing::random_matrix<double>(6, 5, 8, 1.5);
    const std::vector<double> samples(matrix.data(), matrix.data() + 30);
    Context context = training;
    context.noise = samples;
    around.route(context), within.route(context), alone.route(context);
    const auto losses = [](auto& head) {
        return moe::load_loss(head.gate(), head.ws, 1.0).value +
               moe::importance_loss(head.gate(), head.ws, 1.0).value;
    };
    const double value = losses(alone);
    EXPECT_EQ(losses(around), value);
    EXPECT_EQ(losses(within), value);
    EXPECT_EQ(Matrix<double>(around.ws.dlogits()), Matrix<double>(alone.ws.dlogits()));
    EXPECT_EQ(Matrix<double>(within.ws.dlogits()), Matrix<double>(alone.ws.dlogits()));
}

TEST(LossesOnNoise, RefuseABatchThatWentToOtherExperts) {
    // Its logits are as many as the gate reads, or more.
    for (const moe::Index experts : {10, 12}) {
        example::HeadOfLogits<double, moe::Noisy<moe::TopK>> noisy(
            moe::Noisy{moe::TopK{.k = 2}, GateNoise{}}, 6, 5, 10);
        example::HeadOfLogits<double, moe::TopK> other(moe::TopK{.k = 2}, 6, experts, experts);
        other.route(training);
        const std::string wanted =
            ": the gate is for 5 experts, the workspace holds a routing to " +
            std::to_string(experts) + "; give it the gate of the layer that filled the workspace";
        EXPECT_EQ(support::message([&] { moe::load_loss(noisy.gate(), other.ws, 1.0); }),
                  "moe::load_loss" + wanted);
        EXPECT_EQ(support::message([&] { moe::importance_loss(noisy.gate(), other.ws, 1.0); }),
                  "moe::importance_loss" + wanted);
        EXPECT_TRUE((other.ws.dlogits().array() == 0).all());
    }
}

TEST(LossesOnNoise, LeaveAloneTheLogitsOfGatesInside) {
    // KeepAny reads two logits of its own, which are noisy, too.
    for (const auto kind : {GateNoise::Kind::learned, GateNoise::Kind::fixed}) {
        const moe::Index per_logit = kind == GateNoise::Kind::learned ? 2 : 1;
        const GateNoise noise{.kind = kind};
        example::HeadOfLogits<double, moe::Noisy<moe::KeepAny>> masks(
            moe::Noisy{moe::KeepAny{moe::TopK{.k = 2}}, noise}, 6, 5, 7 * per_logit);
        example::HeadOfLogits<double, moe::Noisy<moe::TopK>> alone(
            moe::Noisy{moe::TopK{.k = 2}, noise}, 6, 5, 5 * per_logit);
        const Matrix<double> all = moe::testing::random_matrix<double>(6, 7, 8, 1.5);
        const Matrix<double> own = all.leftCols(5);
        const std::vector<double> samples(all.data(), all.data() + 42),
            own_samples(own.data(), own.data() + 30);
        alone.logits.leftCols(5) = masks.logits.leftCols(5);
        if (per_logit == 2) alone.logits.rightCols(5) = masks.logits.middleCols(7, 5);
        Context context = training;
        context.noise = samples;
        masks.route(context);
        context.noise = own_samples;
        alone.route(context);
        EXPECT_EQ(moe::load_loss(masks.gate(), masks.ws, 1.0),
                  moe::load_loss(alone.gate(), alone.ws, 1.0));
        EXPECT_EQ(moe::importance_loss(masks.gate(), masks.ws, 1.0),
                  moe::importance_loss(alone.gate(), alone.ws, 1.0));
        Matrix<double> expected = Matrix<double>::Zero(6, 7 * per_logit);
        expected.leftCols(5) = alone.ws.dlogits().leftCols(5);
        if (per_logit == 2) expected.middleCols(7, 5) = alone.ws.dlogits().rightCols(5);
        EXPECT_EQ(Matrix<double>(masks.ws.dlogits()), expected);
        EXPECT_GT(expected.cwiseAbs().maxCoeff(), 0.01);
    }
}

}  // namespace
}  // namespace noise_test
