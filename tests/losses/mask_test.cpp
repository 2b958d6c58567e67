// SPDX-License-Identifier: MIT
#include <moe/losses/mask.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace mask_test {
namespace {

using moe::Context;
using moe::Index;
using moe::KeepAny;
using moe::Matrix;
using moe::TopK;
using moe::testing::random_matrix;

constexpr Context training{.training = true, .seed = 6};

template <class S>
auto make(const TopK& inner = {
              .k = 3, .score = moe::Score::sigmoid, .normalize = moe::Normalize::none}) {
    auto layer = moe::make_layer<S>(moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
                                    KeepAny{inner, moe::Schedule{.from = 2, .to = 0.5, .steps = 4}},
                                    moe::Swiglu{.count = 4, .ffn_dim = 3});
    layer.gate().mask_weight.view() = random_matrix<S>(inner.k, inner.k, 91, 1).eval();
    return layer;
}

TEST(MaskLoss, IsTheMeanOfTheSlotsKeptInTraining) {
    const auto layer = make<double>();
    const Matrix<double> x = random_matrix<double>(9, 5, 2, 2);
    std::vector<std::uint8_t> padding(9, 0);
    padding[4] = 1;
    Context context = training;
    context.padding = padding;
    context.step = 2;
    moe::Workspace<double> ws;
    layer.head().route(x, ws, context);
    auto grad = moe::zeros_like(layer);

    const TopK inner = layer.gate().inner.settings();
    const moe::CounterRandom random =
        moe::Call<double>{context, ws.child(1)}.random();  // the gate's
    double sum = 0;
    for (Index t = 0; t < 9; ++t) {
        if (t == 4) continue;
        double g[3], p[3], total = 0;
        for (Index i = 0; i < 3; ++i) {
            const Index e = ws.routing().of(t)[static_cast<std::size_t>(i)].expert;
            g[i] = 1 / (1 + std::exp(-ws.logits()(t, e)));
        }
        for (Index j = 0; j < 3; ++j) {
            double a = ws.logits()(t, 4 + j);
            for (Index i = 0; i < 3; ++i) a += layer.gate().mask_weight(j, i) * g[i];
            total += p[j] = std::exp((a + random.gumbel(t, j)) / 1.25);
        }
        for (Index j = 0; j < 3; ++j) sum += static_cast<double>(j + 1) * p[j] / total;
    }
    const moe::Loss loss = moe::mask_loss(layer.gate(), ws, 0.0, grad.gate());
    EXPECT_STREQ(loss.name, "mask");
    EXPECT_NEAR(loss.value, sum / 8, 1e-12);
    EXPECT_EQ(inner.k, 3);
    EXPECT_TRUE((ws.dlogits().array() == 0).all());
}

TEST(MaskLoss, IsTheNumberOfExpertsAtInferenceWithoutAGradient) {
    const auto layer = make<double>();
    const Matrix<double> x = random_matrix<double>(9, 5, 2, 2);
    moe::Workspace<double> ws;
    layer.head().route(x, ws);
    auto grad = moe::zeros_like(layer);
    EXPECT_NEAR(moe::mask_loss(layer.gate(), ws, 1.0, grad.gate()),
                static_cast<double>(ws.routing().num_kept()) / 9, 1e-14);
    EXPECT_TRUE((ws.dlogits().array() == 0).all());
    EXPECT_TRUE((grad.gate().mask_weight.view().array() == 0).all());
}

TEST(MaskLoss, GradientsAreExactBesideThoseOfTheLayer) {
    auto layer = make<double>();
    Matrix<double> x = random_matrix<double>(7, 5, 1);
    const auto dy = random_matrix<double>(7, 5, 2);
    Matrix<double> y(7, 5), dx(7, 5);
    std::vector<std::uint8_t> padding(7, 0);
    padding[3] = 1;
    Context context = training;
    context.padding = padding;
    context.step = 1;
    moe::Workspace<double> ws, other;
    auto grad = moe::zeros_like(layer), nothing = moe::zeros_like(layer);
    layer.forward(x, y, ws, context);
    moe::mask_loss(layer.gate(), ws, 0.7, grad.gate());
    layer.backward(x, dy, dx, grad, ws, context);
    const auto loss = [&] {
        layer.forward(x, y, other, context);
        return seams::weighted_sum(y, dy) +
               0.7 * moe::mask_loss(layer.gate(), other, 0.0, nothing.gate());
    };
    loss();
    const auto options = seams::options(seams::SameChoices(other));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
}

/// Where the context's gradients are named, and whether mask_loss is told.
struct Wanted {
    bool in_forward, in_loss;
};

TEST(MaskLoss, GradientsAtMultipliersAreExactWhereItKnowsWhereTheyGo) {
    auto layer = make<double>();
    const Matrix<double> x = random_matrix<double>(7, 5, 1);
    const auto dy = random_matrix<double>(7, 5, 2);
    std::vector<double> multiplier{0.5, 2, 1.5, 0.75};
    Context context = training;
    context.gate_multiplier = multiplier;
    context.dial.multiplier_order = moe::MultiplierOrder::before_normalization;
    const auto claim_of = [&](const Wanted& named) {
        std::vector<double> claim(4, 0.0);
        moe::ContextGradients gradients{.gate_multiplier = claim};
        Matrix<double> y(7, 5), dx(7, 5);
        moe::Workspace<double> ws;
        auto grad = moe::zeros_like(layer);
        Context given = context;
        if (named.in_forward) given.gradients = &gradients;
        layer.forward(x, y, ws, given);
        moe::mask_loss(layer.gate(), ws, 0.7, grad.gate(), named.in_loss ? &gradients : nullptr);
        given.gradients = &gradients;
        layer.backward(x, dy, dx, grad, ws, given);
        return claim;
    };
    Matrix<double> y(7, 5);
    moe::Workspace<double> other;
    auto nothing = moe::zeros_like(layer);
    const auto loss = [&] {
        layer.forward(x, y, other, context);
        return seams::weighted_sum(y, dy) +
               0.7 * moe::mask_loss(layer.gate(), other, 0.0, nothing.gate());
    };
    loss();
    const auto options = seams::options(seams::SameChoices(other));
    for (const Wanted& named : {Wanted{true, false}, Wanted{false, true}, Wanted{true, true}})
        EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, claim_of(named), options));
    // Named to backward alone they lack the share of the masks.
    EXPECT_FALSE(moe::testing::check_gradient(loss, multiplier, claim_of({false, false}), options));
}

TEST(MaskLoss, TeachesToSpareExperts) {
    auto layer = make<double>({.k = 3});
    const Matrix<double> x = random_matrix<double>(30, 5, 2, 2);
    Matrix<double> y(30, 5), dx(30, 5);
    moe::Workspace<double> ws;
    const auto experts = [&] {
        layer.forward(x, y, ws);
        return static_cast<double>(ws.routing().num_kept()) / 30;
    };
    layer.gate().mask_weight.view().row(2).setConstant(3);
    EXPECT_GT(experts(), 2.5);
    for (std::uint64_t step = 0; step < 60; ++step) {
        auto grad = moe::zeros_like(layer);
        const Context context{.training = true, .step = step, .seed = 1};
        layer.forward(x, y, ws, context);
        moe::mask_loss(layer.gate(), ws, 1.0, grad.gate());
        layer.backward(x, Matrix<double>::Zero(30, 5), dx, grad, ws, context);
        layer.gate().mask_weight.view() -= grad.gate().mask_weight.view();
    }
    EXPECT_LT(experts(), 1.5);
}

TEST(MaskLoss, RefusesTheBatchAndTheGradientOfAnotherGate) {
    const auto layer = make<double>();  // 4 experts, 3 masks
    const Matrix<double> x = random_matrix<double>(9, 5, 2, 2);
    auto grad = moe::zeros_like(layer);
    // as many logits, of as many experts
    const auto other = moe::make_layer<double>(moe::Config{.model_dim = 5}, moe::LinearRouter{},
                                               TopK{.k = 2}, moe::Swiglu{.count = 7, .ffn_dim = 3});
    moe::Workspace<double> ws;
    other.head().route(x, ws, training);
    EXPECT_EQ(support::message([&] { moe::mask_loss(layer.gate(), ws, 1.0, grad.gate()); }),
              "moe::mask_loss: the workspace holds the batch of another gate; give it the gate of "
              "the layer that filled the workspace");
    layer.head().route(x, ws, training);
    auto fewer = moe::zeros_like(make<double>(TopK{.k = 2}));
    EXPECT_EQ(support::message([&] { moe::mask_loss(layer.gate(), ws, 1.0, fewer.gate()); }),
              "moe::mask_loss: grad is for 2 masks, the gate has 3; make grad with zeros_like() of "
              "the gate's layer");
    EXPECT_TRUE((ws.dlogits().array() == 0).all());
}

TEST(MaskLoss, OfNoTokensIsZero) {
    const auto layer = make<float>();
    moe::Workspace<float> ws;
    layer.head().route(Matrix<float>(0, 5), ws, training);
    auto grad = moe::zeros_like(layer);
    EXPECT_EQ(moe::mask_loss(layer.gate(), ws, 1.0, grad.gate()), 0.0);
}

TEST(MaskLoss, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    const auto layer = make<float>();
    const Matrix<float> x = random_matrix<float>(700, 5, 2, 2);
    Matrix<float> dlogits, dmask;
    for (const int threads : {1, 2, 3}) {
        moe::ThreadPool pool(threads);
        moe::Workspace<float> ws(pool);
        auto grad = moe::zeros_like(layer);
        layer.head().route(x, ws, training);
        moe::mask_loss(layer.gate(), ws, 1.0, grad.gate());
        if (threads == 1) {
            dlogits = ws.dlogits();
            dmask = grad.gate().mask_weight.view();
        }
        EXPECT_TRUE(moe::testing::same_bits(ws.dlogits(), dlogits, {.allow_zeros = true}));
        EXPECT_TRUE(moe::testing::same_bits(grad.gate().mask_weight.view(), dmask));
        if (threads > 1 || !allocations::are_counted) continue;
        EXPECT_EQ(allocations::in([&] {
                      layer.head().route(x, ws, training);
                      moe::mask_loss(layer.gate(), ws, 1.0, grad.gate());
                  }),
                  0);
    }
}

}  // namespace
}  // namespace mask_test
