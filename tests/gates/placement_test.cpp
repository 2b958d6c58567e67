// SPDX-License-Identifier: MIT
#include <moe/gates/placement.hpp>

#include <span>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/ranks.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "gates/laws.hpp"
#include "seams/check.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using moe::Index;
using moe::Matrix;
using moe::Normalize;
using moe::Placement;
using moe::Score;
using moe::TopK;
using moe::detail::gradients_at;
using moe::testing::random_matrix;

class GradientsAt : public testing::Test {
protected:
    GradientsAt() {
        routing.reset(2, 3);
        routing.add(0, 1);
        routing.add(1, 2);
    }
    auto at(Placement placement, const moe::WeightGradients<double>& dweights,
            moe::Index cols = 3) {
        moe::Matrix<double> dlogits(2, cols);
        return gradients_at<double>(placement, dweights, routing, logits, dlogits);
    }

    moe::Routing routing;
    const moe::Matrix<double> logits{2, 3};
    const std::vector<double> two{1, 2}, three{1, 2, 3};
};

TEST_F(GradientsAt, AreThoseOfTheSideThatIsWeighed) {
    EXPECT_EQ(at(Placement::output, {two, {}}).data(), two.data());
    EXPECT_EQ(at(Placement::output, {two, three}).data(), two.data());
    EXPECT_EQ(at(Placement::input, {{}, two}).data(), two.data());
}

TEST_F(GradientsAt, AreOnePerAssignment) {
    EXPECT_EQ(support::message<std::logic_error>([&] {
                  at(Placement::output, {{}, two});
              }),
              "moe: a gate that weighs outputs got 0 gradients for 2 assignments; a gate around it "
              "must say weighs_input() as it does");
    EXPECT_EQ(support::message<std::logic_error>([&] {
                  at(Placement::input, {two, three});
              }),
              "moe: a gate that weighs inputs got 3 gradients for 2 assignments; a gate around it "
              "must say weighs_input() as it does");
}

TEST_F(GradientsAt, GoToLogitsOfTheSameExtent) {
    EXPECT_EQ(support::message([&] {
                  at(Placement::output, {two, {}}, 2);
              }),
              "moe: a gate's dlogits is [2, 2], its logits are [2, 3]");
}

template <class S>
class StraightThrough : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(StraightThrough, Scalars);

TYPED_TEST(StraightThrough, WeighsOutputsAndTakesTheGradientsOfBothSides) {
    using S = TypeParam;
    const Matrix<S> z = random_matrix<S>(300, 6, 2, 2);
    for (const Score score : {Score::softmax, Score::sigmoid}) {
        TopK recipe{.k = 2, .score = score, .normalize = Normalize::none};
        auto plain = batch<S>(recipe, 6);
        recipe.placement = Placement::straight_through;
        auto tokens = batch<S>(recipe, 6);
        plain.route(z);
        tokens.route(z);
        EXPECT_EQ(tokens.routing, plain.routing);
        for (const moe::Assignment& a : tokens.routing.assignments()) EXPECT_EQ(a.input_weight, 1);

        const auto output = derivatives<S>(600, 3), input = derivatives<S>(600, 4);
        std::vector<S> sum;
        for (std::size_t a = 0; a < 600; ++a) sum.push_back(output[a] + input[a]);
        EXPECT_TRUE(
            moe::testing::same_bits(tokens.backward(z, output, input), plain.backward(z, sum)));
        const std::span<const S> all(output), few = all.first(599);
        EXPECT_THROW(tokens.backward(z, all), std::logic_error);
        EXPECT_THROW(tokens.backward(z, all, few), std::logic_error);
        EXPECT_THROW(tokens.backward(z, few, all), std::logic_error);
    }
}

/// Central differences of y = w expert((1 + w - w') x), w' the weights before anything was moved.
template <class Gate>
void expect_gradients(const Gate& gate) {
    auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = 4, .seed = 3}, moe::LinearRouter{}, gate,
                                moe::Swiglu{.count = 3, .ffn_dim = 5}, moe::Copy{});
    Matrix<double> x = random_matrix<double>(6, 4, 1, 2);
    const Matrix<double> dy = random_matrix<double>(6, 4, 2);
    Matrix<double> y(6, 4), dx(6, 4);
    moe::Workspace<double> ws, other;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
    const moe::Routing before = ws.routing();
    const auto loss = [&] {
        layer.head().route(x, other);
        moe::Routing plan = other.routing();
        for (Index a = 0; a < plan.num_assignments(); ++a) {
            const auto number = static_cast<std::size_t>(a);
            plan.set_input_weight(
                a, 1 + plan.assignments()[number].weight - before.assignments()[number].weight);
        }
        layer.bank().apply(x, plan, y, other.child(2));
        return seams::weighted_sum(y, dy);
    };
    loss();
    const auto options = seams::options(seams::SameChoices(other));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
}

TEST(StraightThroughGradient, InALayerIsThatOfAnInputThatIsWeighedAroundOne) {
    const Placement placement = Placement::straight_through;
    expect_gradients(TopK{.k = 2, .placement = placement});
    expect_gradients(TopK{.k = 2,
                          .score = Score::sigmoid,
                          .normalize = Normalize::add_epsilon,
                          .epsilon = 0.1,
                          .placement = placement});
    expect_gradients(moe::Ranks{.ranks = {0, 2}, .placement = placement});
    expect_gradients(moe::TopP{.p = 0.6, .placement = placement});
    expect_gradients(
        moe::WithCapacity{TopK{.k = 2, .normalize_kept_only = true, .placement = placement},
                          moe::Capacity{.limit = moe::CapacityLimit::constant(2)}});
}

TYPED_TEST(StraightThrough, AllocatesNothingTwiceAndGivesTheSameBitsForAnyThreadCount) {
    using S = TypeParam;
    const TopK recipe{.k = 2, .placement = Placement::straight_through};
    const Matrix<S> z = random_matrix<S>(700, 6, 2, 2);
    const auto output = derivatives<S>(1400, 3), input = derivatives<S>(1400, 4);
    auto serial = batch<S>(recipe, 6);
    moe::SerialExecutor one;
    serial.ws.use(one);
    serial.route(z);
    const Matrix<S> dz = serial.backward(z, output, input);
    for (const int threads : {2, 3}) {
        moe::ThreadPool pool(threads);
        auto tokens = batch<S>(recipe, 6);
        tokens.ws.use(pool);
        tokens.route(z);
        EXPECT_TRUE(moe::testing::same_bits(tokens.backward(z, output, input), dz));
    }
    Matrix<S> sum = dz;
    auto& grad = serial.gate;
    const auto again = [&] {
        serial.gate.backward(z, serial.routing, {output, input}, sum, grad, serial.call());
    };
    EXPECT_EQ(allocations::in(again), 0);
}

}  // namespace
