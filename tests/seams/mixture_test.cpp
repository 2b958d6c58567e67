// SPDX-License-Identifier: MIT
// Whole layers of mixed experts: equal to the mixture in double in which every expert sees every
// token, and exact gradients, auxiliary losses included.

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace mixture_test {
namespace {

using moe::Activation;
using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 9, dim = 7;

template <class S>
Matrix<double> wide(const moe::Parameter<S>& parameter) {
    return parameter.view().template cast<double>();
}

// The experts of a group for the reference, in order.
template <class S>
void add(std::vector<dense::Expert>& all, const moe::FeedForwardModule<S>& group) {
    for (Index e = 0; e < group.num_experts(); ++e) all.push_back(dense::feed_forward_of(group, e));
}
template <class S>
void add(std::vector<dense::Expert>& all, const moe::ConstantModule<S>& group) {
    for (std::size_t e = 0; e < group.mix.size(); ++e)
        all.push_back(dense::constant(wide(group.mix[e]), wide(group.value[e])));
}
template <class S>
void add(std::vector<dense::Expert>& all, const moe::CopyModule<S>& group) {
    for (Index e = 0; e < group.num_experts(); ++e) all.push_back(dense::copy());
}
template <class S>
void add(std::vector<dense::Expert>& all, const moe::ZeroModule<S>& group) {
    for (Index e = 0; e < group.num_experts(); ++e) all.push_back(dense::zero());
}
template <class S>
void add(std::vector<dense::Expert>& all, const moe::NullModule<S>& group) {
    for (Index e = 0; e < group.num_experts(); ++e) all.push_back(dense::zero());
}
template <class S, class Group>
void add(std::vector<dense::Expert>& all, const moe::SharedModule<S, Group>& group) {
    add(all, group.experts());
}

/// [T] what the outputs of a group are multiplied by, besides the plan's weights.
template <class Group>
Matrix<double> factors(const Group&, const Matrix<double>& x, double) {
    return Matrix<double>::Ones(x.rows(), 1);
}
template <class S, class Group>
Matrix<double> factors(const moe::SharedModule<S, Group>& group, const Matrix<double>& x,
                       double scale) {
    Matrix<double> result = Matrix<double>::Ones(x.rows(), 1);
    if (group.gate().empty()) return result;
    for (Index t = 0; t < x.rows(); ++t)
        result(t, 0) = 1 / (1 + std::exp(-scale * x.row(t).dot(wide(group.gate()).row(0))));
    return result;
}

/// y of the reference for the plan that the layer made.
template <class Layer, class S = typename Layer::Scalar>
Matrix<double> dense_output(const Layer& layer, const Matrix<double>& x,
                            const moe::Routing& routing) {
    const double scale = layer.config().input_scale;
    std::vector<dense::Expert> all;
    Matrix<double> weights(x.rows(), 64), inputs = Matrix<double>::Constant(x.rows(), 64, scale);
    weights.leftCols(routing.num_experts()) = dense::weights_of(routing);
    inputs.leftCols(routing.num_experts()) = dense::input_weights_of(routing, scale);
    layer.bank().for_each_group([&](std::size_t, const auto& group) {
        const auto first = static_cast<Index>(all.size());
        add(all, group);
        if (group.num_experts() > 0) return;
        const Matrix<double> factor = factors(group, x, scale);
        for (Index e = first; e < static_cast<Index>(all.size()); ++e) weights.col(e) = factor;
    });
    const auto count = static_cast<Index>(all.size());
    return dense::forward(all, x, weights.leftCols(count), layer.output_dim(),
                          inputs.leftCols(count));
}

/// Gives biases and shared gates values as after training.
template <class Layer>
void stir(Layer& layer) {
    std::uint64_t seed = 100;
    moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, moe::Role) {
        if (name.find("bias") == name.npos && name.find("shared_gate") == name.npos) return;
        for (Index i = 0; i < matrix.size(); ++i)
            matrix.data()[i] =
                static_cast<typename Layer::Scalar>(moe::testing::random_value(seed++, 0));
    });
}

template <class Layer>
void expect_dense(Layer layer) {
    using S = typename Layer::Scalar;
    const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
    stir(layer);
    const auto x = moe::testing::random_matrix<S>(tokens, dim, 1);
    Workspace<S> ws;
    Matrix<S> y(tokens, layer.output_dim());
    layer.forward(x, y, ws);
    const Matrix<double> expected = dense_output(layer, x.template cast<double>(), ws.routing());
    EXPECT_TRUE(moe::testing::compare(y, expected, tolerance));
    const auto frozen = moe::freeze(layer);
    EXPECT_TRUE(moe::testing::same_bits(frozen(x), y));
}

/// dx and every parameter's gradient of sum(dy y) and three losses on the routing.
template <class Layer>
void expect_exact(Layer layer) {
    stir(layer);
    auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<double>(tokens, layer.output_dim(), 2);
    Matrix<double> y(tokens, layer.output_dim()), dx(tokens, dim);
    Workspace<double> ws;
    const auto losses = [&](double on) {
        return 0.3 * moe::load_balance_loss(ws, 0.3 * on) + 0.05 * moe::z_loss(ws, 0.05 * on) +
               0.2 * moe::entropy_loss(ws, 0.2 * on);
    };
    const auto loss = [&] {
        layer.forward(x, y, ws);
        return seams::weighted_sum(y, dy) + losses(0);
    };
    loss();
    const auto options = seams::options(seams::SameChoices(ws));
    Layer grad = moe::zeros_like(layer);
    losses(1);
    layer.backward(x, dy, dx, grad, ws);
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
}

const moe::Swiglu swiglu{.count = 3, .ffn_dim = 5};
moe::Mlp mlp(Activation activation, bool bias) {
    return {.count = 2, .ffn_dim = 5, .activation = activation, .bias = bias};
}

template <class S, class Gate>
auto everything(const Gate& gate, double input_scale = 1) {
    return moe::make_layer<S>(
        moe::Config{.model_dim = dim, .input_scale = input_scale, .seed = 9},
        moe::LinearRouter{.bias = true}, gate, swiglu, moe::Zero{}, mlp(Activation::gelu, true),
        moe::Null{}, moe::Copy{}, moe::Constant{.count = 2},
        moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 4}, moe::SharedGate::sigmoid},
        moe::Shared{moe::Mlp{.ffn_dim = 3, .activation = Activation::silu, .bias = true}});
}

const moe::TopK top3{.k = 3};
const moe::TopK deepseek{
    .k = 3, .score = moe::Score::sigmoid, .scale = 2.5, .selection_bias = true};
const moe::TopP most{.p = 0.9};

TEST(Mixture, OfEverythingIsTheDenseMixture) {
    expect_dense(everything<float>(top3));
    expect_dense(everything<float>(deepseek));
    expect_dense(everything<float>(most, 2));
    expect_dense(everything<double>(top3, 0.5));
    expect_dense(everything<double>(moe::TopK{.k = 10}));
}

TEST(Mixture, OfEverythingHasExactGradients) {
    expect_exact(everything<double>(top3));
    expect_exact(everything<double>(most, 2));
}

TEST(Mixture, WithSigmoidScoresHasExactGradients) { expect_exact(everything<double>(deepseek)); }

/// Gradients at the weights there are; none of them may reach the router.
void expect_router_learns_nothing(const moe::TopK& gate) {
    const auto layer = everything<double>(gate);
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 2);
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    Workspace<double> ws;
    layer.forward(x, y, ws);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws);
    EXPECT_TRUE((grad.router().weight.view().array() == 0).all());
    EXPECT_TRUE((grad.router().bias.view().array() == 0).all());
    EXPECT_FALSE((dx.array() == 0).all());
}

TEST(Mixture, OfOneExpertRenormalisedTeachesTheRouterNothing) {
    expect_router_learns_nothing({.k = 1});
    expect_router_learns_nothing({.k = 1, .score = moe::Score::softmax_of_selected});
    expect_router_learns_nothing({.k = 1, .score = moe::Score::sigmoid});
}

TEST(Mixture, WithWeightsThatAreOnesTeachesTheRouterNothing) {
    const moe::TopK ones{.k = 3, .scale = 0.5, .ones = true};
    expect_router_learns_nothing(ones);
    expect_dense(everything<double>(ones));
    expect_exact(everything<double>(ones));
}

template <class S>
auto plain(Activation activation, bool bias) {
    return moe::make_layer<S>(moe::Config{.model_dim = dim, .output_dim = 4, .seed = 2},
                              moe::LinearRouter{}, moe::TopK{.k = 2}, mlp(activation, bias),
                              moe::Zero{}, swiglu,
                              moe::Shared{mlp(activation, !bias), moe::SharedGate::sigmoid});
}

TEST(Mixture, OfEveryActivationIsTheDenseMixture) {
    for (const Activation activation : moe::all_activations)
        for (const bool bias : {false, true}) {
            SCOPED_TRACE(static_cast<int>(activation));
            expect_dense(plain<float>(activation, bias));
            expect_dense(plain<double>(activation, bias));
        }
}

TEST(Mixture, OfEveryActivationHasExactGradients) {
    for (const Activation activation : moe::all_activations) {
        SCOPED_TRACE(static_cast<int>(activation));
        expect_exact(plain<double>(activation, true));
    }
}

}  // namespace
}  // namespace mixture_test
