// SPDX-License-Identifier: MIT
#include <moe/head.hpp>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/bank.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace head_test {
namespace {

using moe::ExpertFacts;
using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Routing;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 6, dim = 5, experts = 4;
constexpr moe::Config config{.model_dim = dim, .seed = 3};

using Head = moe::Head<double, moe::LinearRouter, moe::TopK>;
Head make(const moe::TopK& gate = {.k = 2, .normalize = moe::Normalize::none}) {
    return Head(config, moe::LinearRouter{.bias = true}, gate, std::vector<ExpertFacts>(experts));
}

TEST(Head, RoutesWithoutExperts) {
    const Head head = make();
    const auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    head.route(x, ws);
    EXPECT_EQ(ws.routing().num_tokens(), tokens);
    EXPECT_EQ(ws.routing().num_experts(), experts);
    EXPECT_EQ(ws.routing().num_assignments(), 2 * tokens);
    const Matrix<double> logits = x * head.router().weight.view().transpose();
    EXPECT_TRUE(moe::testing::compare(ws.logits(), logits, 1e-14));
    EXPECT_TRUE((ws.dlogits().array() == 0).all());
    EXPECT_EQ(head.flops_per_token(), 2 * dim * experts);
    EXPECT_FALSE(head.weighs_input());
    EXPECT_EQ(head.num_logits(), experts);
}

TEST(Head, GradientsAreExactForAnyGradientAtTheWeights) {
    Head head = make();
    auto x = random_matrix<double>(tokens, dim, 1);
    const auto dweights = random_matrix<double>(1, 2 * tokens, 2);
    Workspace<double> ws;
    const auto loss = [&] {
        head.route(x, ws);
        double sum = 0;
        for (Index a = 0; a < 2 * tokens; ++a)
            sum += dweights(0, a) * ws.routing().weight<double>(a);
        return sum;
    };
    loss();
    const auto options = seams::options(seams::SameChoices(ws));
    Matrix<double> dx = Matrix<double>::Constant(tokens, dim, 10);
    Head grad = moe::zeros_like(head);
    head.route_backward(x, {.output = {dweights.data(), 2 * tokens}}, dx, grad, ws);
    dx.array() -= 10;  // added to
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, head, grad, options);
}

/// A gate with a trainable temperature: weights are softmax(logits / temperature), all experts.
struct Tempered {
    Matrix<double> temperature = Matrix<double>::Constant(1, 1, 1);

    static Eigen::ArrayXd softmax(const Eigen::ArrayXd& z) {
        const Eigen::ArrayXd e = (z - z.maxCoeff()).exp();
        return e / e.sum();
    }
    void select(In<double> logits, Routing& routing, const moe::Call<double>&) const {
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index e = 0; e < logits.cols(); ++e) routing.add(t, e);
    }
    void weigh(In<double> logits, Routing& routing, const moe::Call<double>&) const {
        for (Index t = 0; t < logits.rows(); ++t) {
            const Eigen::ArrayXd w = softmax(logits.row(t).transpose().array() / temperature(0, 0));
            for (Index e = 0; e < logits.cols(); ++e)
                routing.set_weight(routing.first(t) + e, w(e));
        }
    }
    void backward(In<double> logits, const Routing& routing,
                  const moe::WeightGradients<double>& dweights, Out<double> dlogits, Tempered& grad,
                  const moe::Call<double>&) const {
        const double tau = temperature(0, 0);
        for (Index t = 0; t < logits.rows(); ++t) {
            const Eigen::ArrayXd z = logits.row(t).transpose().array(), w = softmax(z / tau);
            Eigen::ArrayXd dw(w.size());
            for (Index e = 0; e < w.size(); ++e) dw(e) = dweights[routing.first(t) + e];
            const Eigen::ArrayXd dz = w * (dw - (w * dw).sum());
            dlogits.row(t).array() += (dz / tau).transpose();
            grad.temperature(0, 0) -= (dz * z).sum() / (tau * tau);
        }
    }
    void visit_parameters(auto&& visit) { visit("temperature", temperature); }
};
static_assert(moe::TrainableGate<Tempered, double>);

TEST(Head, TrainsAGateOfYourOwn) {
    Tempered gate;
    gate.temperature(0, 0) = 0.7;
    auto layer = moe::make_layer<double>(config, moe::LinearRouter{}, gate,
                                         moe::Swiglu{.count = experts, .ffn_dim = 4});
    auto x = random_matrix<double>(tokens, dim, 1);
    const auto dy = random_matrix<double>(tokens, dim, 2);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim), only(tokens, dim);
    const auto loss = [&] {
        layer.forward(x, y, ws);
        return seams::weighted_sum(y, dy);
    };
    loss();
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws);
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx));
    seams::expect_parameter_gradients(loss, layer, grad, seams::options());
    EXPECT_NE(grad.gate().temperature(0, 0), 0);
    // Where its gradient is not wanted, it gets one all the same.
    loss();
    layer.backward(x, dy, only, moe::no_gradient, ws);
    EXPECT_TRUE(same_bits(only, dx));
}

/// A gate that selects and weighs at once, has no way back, and wants one logit more than experts:
/// the last one is the threshold.
struct AboveThreshold {
    Index num_logits(Index count) const { return count + 1; }
    void select(In<float> logits, Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index e = 0; e + 1 < logits.cols(); ++e)
                if (logits(t, e) > logits(t, logits.cols() - 1)) routing.add(t, e, 0.5);
    }
};
static_assert(moe::Gate<AboveThreshold> && !moe::TrainableGate<AboveThreshold>);

TEST(Head, TakesAGateThatOnlySelectsAndAsksForMoreLogits) {
    const moe::Layer layer{config, moe::LinearRouter{}, AboveThreshold{},
                           moe::Swiglu{.count = 2, .ffn_dim = 4}, moe::Zero{}};
    EXPECT_EQ(layer.head().num_logits(), 4);
    EXPECT_EQ(layer.router().weight.rows(), 4);
    const auto x = random_matrix<float>(tokens, dim, 1);
    Workspace<float> ws;
    Matrix<float> y(tokens, dim);
    layer.forward(x, y, ws);
    EXPECT_EQ(ws.logits().cols(), 4);
    for (Index t = 0; t < tokens; ++t) {
        const auto own = ws.routing().of(t);
        std::size_t expected = 0;
        for (Index e = 0; e < 3; ++e) expected += ws.logits()(t, e) > ws.logits()(t, 3) ? 1 : 0;
        EXPECT_EQ(own.size(), expected);
        for (const auto& a : own) EXPECT_EQ(a.weight, 0.5);
    }
    // Replay keeps its weights.
    Workspace<float> other;
    layer.reweigh(x, ws.routing(), other);
    EXPECT_TRUE(other.routing() == ws.routing());
}

/// What a gate is told about the experts.
struct Inquisitive {
    void select(In<float> logits, Routing& routing, const moe::Call<float>& call) const {
        const auto facts = call.context.experts;
        ASSERT_EQ(static_cast<Index>(facts.size()), logits.cols());
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index e = 0; e < logits.cols(); ++e)
                if (facts[static_cast<std::size_t>(e)].is_free) routing.add(t, e);
    }
};

TEST(Head, TellsTheGateAboutTheExperts) {
    const moe::Layer layer{config, moe::LinearRouter{}, Inquisitive{},
                           moe::Swiglu{.count = 2, .ffn_dim = 4}, moe::Zero{.count = 2}};
    Workspace<float> ws;
    layer.route(random_matrix<float>(tokens, dim, 1), ws);
    EXPECT_EQ(ws.routing().num_assignments(), 2 * tokens);
    EXPECT_EQ(ws.context().experts.size(), 4u);
    EXPECT_EQ(ws.context().experts[0].flops_per_row, 2 * 3 * dim * 4);
}

TEST(Head, RefusesGradientsOfAnotherBatch) {
    const Head head = make();
    const auto x = random_matrix<double>(tokens, dim, 1);
    const std::vector<double> dweights(2 * tokens, 1);
    Matrix<double> dx = Matrix<double>::Zero(tokens, dim);
    Head grad = moe::zeros_like(head);
    Workspace<double> ws;
    EXPECT_THROW(head.route_backward(x, {.output = dweights}, dx, grad, ws), std::logic_error);
    head.route(x, ws);
    EXPECT_THROW(head.route_backward(x, {.output = std::span(dweights).first(3)}, dx, grad, ws),
                 std::logic_error);
    Matrix<double> narrow(tokens, dim - 1);
    EXPECT_THROW(head.route_backward(x, {.output = dweights}, narrow, grad, ws),
                 std::invalid_argument);
    head.route_backward(x, {.output = dweights}, dx, grad, ws);
    const Head other = head;
    EXPECT_THROW(other.route_backward(x, {.output = dweights}, dx, grad, ws), std::logic_error);
}

}  // namespace
}  // namespace head_test
