// SPDX-License-Identifier: MIT
// Two MoE++ layers (arXiv:2410.07348) with a gating residual: the router of the second reads the
// logits of the first through Context::previous and gives their gradient back.

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/losses/load_balance.hpp>

#include "seams/check.hpp"

namespace residual_router_test {
namespace {

using moe::Call;
using moe::Context;
using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Workspace;

/// logits = x W^T + r R^T, r the logits of the layer before, if there is one. Masked logits (-inf)
/// do not take part.
struct ResidualRouter {
    Matrix<double> weight;    // [L, D]
    Matrix<double> residual;  // [L, L]

    static Matrix<double> unmasked(In<double> logits) {
        return logits.unaryExpr([](double z) { return std::isinf(z) ? 0 : z; });
    }
    void forward(In<double> x, Out<double> logits, const Call<double>& call) const {
        logits = x * weight.transpose();
        if (call.context.previous != nullptr)
            logits += unmasked(call.previous().logits()) * residual.transpose();
    }
    void backward(In<double> x, In<double> dlogits, Out<double> dx, ResidualRouter& grad,
                  const Call<double>& call) const {
        dx = dlogits * weight;
        grad.weight += dlogits.transpose() * x;
        if (call.context.previous == nullptr) return;
        call.previous().dlogits() += dlogits * residual;
        grad.residual += dlogits.transpose() * unmasked(call.previous().logits());
    }
    void visit_parameters(auto&& visit) { visit("weight", weight), visit("residual", residual); }
};
static_assert(moe::Router<ResidualRouter, double>);

constexpr Index tokens = 6, dim = 5, experts = 7;

auto make(std::uint64_t seed) {
    const ResidualRouter router{moe::testing::random_matrix<double>(experts, dim, seed),
                                moe::testing::random_matrix<double>(experts, experts, seed + 1)};
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .input_scale = 2, .seed = seed},
                                   router, moe::TopK{.k = 2}, moe::Swiglu{.count = 3, .ffn_dim = 4},
                                   moe::Constant{.count = 2}, moe::Copy{}, moe::Null{});
}
using Layer = decltype(make(0));

/// y = layer2(h), h = x + layer1(x), and a loss on y and on both layers' routing.
struct Network {
    Layer layer1 = make(11), layer2 = make(21);
    Matrix<double> x = moe::testing::random_matrix<double>(tokens, dim, 31);
    Matrix<double> dy = moe::testing::random_matrix<double>(tokens, dim, 32);
    Matrix<double> h{tokens, dim}, y{tokens, dim}, dx{tokens, dim};
    Layer grad1 = moe::zeros_like(layer1), grad2 = moe::zeros_like(layer2);
    Workspace<double> ws1, ws2;
    Context context1, context2{.previous = &ws1};

    double loss() {
        layer1.forward(x, h, ws1, context1);
        h += x;
        layer2.forward(h, y, ws2, context2);
        return seams::weighted_sum(y, dy) + 0.5 * moe::load_balance_loss(ws1, 0) +
               0.25 * moe::load_balance_loss(ws2, 0);
    }
    void backward() {
        loss();
        moe::load_balance_loss(ws1, 0.5);
        moe::load_balance_loss(ws2, 0.25);
        Matrix<double> dh(tokens, dim);
        layer2.backward(h, dy, dh, grad2, ws2, context2);
        layer1.backward(x, dh, dx, grad1, ws1, context1);
        dx += dh;
    }
    moe::testing::GradientOptions options() {
        return seams::options([same1 = seams::SameChoices(ws1), same2 = seams::SameChoices(ws2)] {
            return same1() && same2();
        });
    }
    void expect_exact() {
        backward();
        const auto checked = options();
        const auto run = [this] { return loss(); };
        EXPECT_TRUE(moe::testing::check_gradient(run, x, dx, checked));
        seams::expect_parameter_gradients(run, layer1, grad1, checked);
        seams::expect_parameter_gradients(run, layer2, grad2, checked);
    }
};

TEST(ResidualRouter, ReadsTheLogitsOfTheLayerBefore) {
    Network net;
    net.loss();
    const Matrix<double> expected =
        net.h * net.layer2.router().weight.transpose() +
        Matrix<double>(net.ws1.logits()) * net.layer2.router().residual.transpose();
    EXPECT_TRUE(moe::testing::compare(net.ws2.logits(), expected, 1e-14));
}

TEST(ResidualRouter, GradientsThroughBothLayersAreExact) {
    Network net;
    net.expect_exact();
    EXPECT_GT(net.grad2.router().residual.norm(), 1e-3);
}

TEST(ResidualRouter, GradientsAreExactWithMaskedExpertsAndPadding) {
    Network net;
    std::vector<std::uint8_t> allowed(tokens * experts, 1), padding(tokens, 0);
    for (Index t = 0; t < tokens; ++t) allowed[static_cast<std::size_t>(t * experts + t)] = 0;
    padding[3] = 1;
    net.context1.allowed = allowed;
    net.context1.padding = padding;
    net.context2.padding = padding;
    net.expect_exact();
    EXPECT_TRUE(net.dx.allFinite());
}

TEST(ResidualRouter, TheFirstLayersGradientIsEmptiedByItsBackward) {
    Network net;
    net.backward();
    EXPECT_TRUE((net.ws1.dlogits().array() == 0).all());
    EXPECT_TRUE((net.ws2.dlogits().array() == 0).all());
}

}  // namespace
}  // namespace residual_router_test
