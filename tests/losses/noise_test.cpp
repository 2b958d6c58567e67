// SPDX-License-Identifier: MIT
#include <moe/losses/noise.hpp>

#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/capacity.hpp>
#include <moe/losses/importance.hpp>
#include <moe/losses/load.hpp>

#include "losses/head_of_logits.hpp"

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

}  // namespace
}  // namespace noise_test
