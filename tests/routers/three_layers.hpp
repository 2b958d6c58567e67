// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ROUTERS_THREE_LAYERS_HPP
#define MOE_TESTS_ROUTERS_THREE_LAYERS_HPP

#include <cstdint>
#include <utility>

#include <gtest/gtest.h>

#include <moe/losses/load_balance.hpp>

#include "routers/laws.hpp"

namespace routers_test {

/// Three layers whose routers read the layer before. Each is added to what it reads; the loss is on
/// y and on the routing of all.
template <class S, class Layer1, class Layer2, class Layer3>
struct ThreeLayers {
    static constexpr Index tokens = 6, dim = 5;

    ThreeLayers(Layer1 first, Layer2 second, Layer3 third)
        : layer1(std::move(first)), layer2(std::move(second)), layer3(std::move(third)) {}

    Layer1 layer1;
    Layer2 layer2;
    Layer3 layer3;
    Matrix<S> x = random_matrix<S>(tokens, dim, 31), dy = random_matrix<S>(tokens, dim, 32);
    Matrix<S> h1{tokens, dim}, h2{tokens, dim}, y{tokens, dim}, dx{tokens, dim};
    Layer1 grad1 = moe::zeros_like(layer1);
    Layer2 grad2 = moe::zeros_like(layer2);
    Layer3 grad3 = moe::zeros_like(layer3);
    Workspace<S> ws1, ws2, ws3;
    Context context1{}, context2{.previous = &ws1}, context3{.previous = &ws2};

    double loss() {
        layer1.forward(x, h1, ws1, context1);
        h1 += x;
        layer2.forward(h1, h2, ws2, context2);
        h2 += h1;
        layer3.forward(h2, y, ws3, context3);
        return seams::weighted_sum(y, dy) + 0.5 * moe::load_balance_loss(ws1, 0) +
               0.25 * moe::load_balance_loss(ws2, 0) + moe::load_balance_loss(ws3, 0);
    }
    /// After loss().
    void backward() {
        moe::load_balance_loss(ws1, 0.5);
        moe::load_balance_loss(ws2, 0.25);
        moe::load_balance_loss(ws3, 1);
        Matrix<S> dh1(tokens, dim), dh2(tokens, dim);
        layer3.backward(h2, dy, dh2, grad3, ws3, context3);
        layer2.backward(h1, dh2, dh1, grad2, ws2, context2);
        dh1 += dh2;
        layer1.backward(x, dh1, dx, grad1, ws1, context1);
        dx += dh1;
    }
    /// Central differences at x and at the parameters of all three.
    void expect_exact() {
        loss();
        backward();
        const auto checked = seams::options(
            [same1 = seams::SameChoices(ws1), same2 = seams::SameChoices(ws2),
             same3 = seams::SameChoices(ws3)] { return same1() && same2() && same3(); });
        const auto run = [this] { return loss(); };
        EXPECT_TRUE(moe::testing::check_gradient(run, x, dx, checked));
        seams::expect_parameter_gradients(run, layer1, grad1, checked);
        seams::expect_parameter_gradients(run, layer2, grad2, checked);
        seams::expect_parameter_gradients(run, layer3, grad3, checked);
    }
};

/// Two experts per token.
template <class S, class Router>
auto layer_of_three(const Router& router, Index experts, std::uint64_t seed) {
    return moe::make_layer<S>(moe::Config{.model_dim = 5, .seed = seed}, router, moe::TopK{.k = 2},
                              moe::Swiglu{.count = experts, .ffn_dim = 3});
}
template <class S, class Router>
using LayerOfThree = decltype(layer_of_three<S>(std::declval<Router>(), 1, 1));

}  // namespace routers_test

#endif  // MOE_TESTS_ROUTERS_THREE_LAYERS_HPP
