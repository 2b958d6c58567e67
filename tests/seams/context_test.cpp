// SPDX-License-Identifier: MIT
// What a call is told besides its tokens: padding, masks, offsets, multipliers.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"

namespace context_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 6, dim = 5, experts = 4;
constexpr double infinity = std::numeric_limits<double>::infinity();

template <class Gate>
auto make(const Gate& gate, double input_scale = 1) {
    return moe::make_layer<double>(
        moe::Config{.model_dim = dim, .input_scale = input_scale, .seed = 4}, moe::LinearRouter{},
        gate, moe::Swiglu{.count = 2, .ffn_dim = 4}, moe::Copy{.count = 2},
        moe::Shared{moe::Swiglu{.ffn_dim = 3}, moe::SharedGate::sigmoid});
}
auto make() { return make(moe::TopK{.k = 2}); }
using Layer = decltype(make());

Matrix<double> batch() { return random_matrix<double>(tokens, dim, 1); }
Matrix<double> upstream() { return random_matrix<double>(tokens, dim, 2); }

struct Gradients {
    Matrix<double> y{tokens, dim}, dx{tokens, dim};
    std::vector<double> parameters;
};
template <class L>
Gradients run(const L& layer, const Matrix<double>& x, const Context& context,
              Workspace<double>& ws) {
    Gradients result;
    L grad = moe::zeros_like(layer);
    layer.forward(x, result.y, ws, context);
    layer.backward(x, upstream(), result.dx, grad, ws, context);
    result.parameters = seams::values_of<double>(grad);
    return result;
}

template <class L>
void expect_exact(const L& layer, const Context& context) {
    seams::expect_exact_layer(layer, batch(), context);
}

// ---- padding ------------------------------------------------------------------------------------

TEST(Padding, RoutesNowhereAndGivesZero) {
    const Layer layer = make();
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[1] = padding[5] = 1;
    Workspace<double> ws;
    const Gradients with = run(layer, batch(), {.padding = padding}, ws);
    for (const Index t : {1, 5}) {
        EXPECT_TRUE((with.y.row(t).array() == 0).all());
        EXPECT_TRUE((with.dx.row(t).array() == 0).all());
        EXPECT_TRUE(ws.routing().of(t).empty());
        EXPECT_TRUE((ws.logits().row(t).array() == -infinity).all());
    }
    const Matrix<double> without = layer(batch());
    for (const Index t : {0, 2, 3, 4}) EXPECT_TRUE(same_bits(with.y.row(t), without.row(t)));
    expect_exact(layer, {.padding = padding});
}

TEST(Padding, WhateverItHoldsChangesNothing) {
    const Layer layer = make();
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[1] = 1;
    Workspace<double> ws;
    const Gradients expected = run(layer, batch(), {.padding = padding}, ws);
    for (const double garbage : {1e300, infinity, std::nan("")}) {
        Matrix<double> x = batch();
        x.row(1).setConstant(garbage);
        const Gradients got = run(layer, x, {.padding = padding}, ws);
        EXPECT_TRUE(same_bits(got.y, expected.y)) << garbage;
        EXPECT_TRUE(same_bits(got.dx, expected.dx)) << garbage;
        EXPECT_TRUE(same_bits(got.parameters, expected.parameters)) << garbage;
    }
}

TEST(Padding, OfEveryTokenGivesZero) {
    const Layer layer = make();
    const std::vector<std::uint8_t> padding(tokens, 1);
    Workspace<double> ws;
    const Gradients got = run(layer, batch(), {.padding = padding}, ws);
    EXPECT_TRUE((got.y.array() == 0).all());
    EXPECT_TRUE((got.dx.array() == 0).all());
    for (const double value : got.parameters) EXPECT_EQ(value, 0);
    EXPECT_EQ(moe::load_balance_loss(ws, 1), 0);
    EXPECT_EQ(moe::z_loss(ws, 1), 0);
}

// ---- allowed experts ----------------------------------------------------------------------------

TEST(Allowed, ForbidsExpertsPerToken) {
    std::vector<std::uint8_t> allowed(tokens * experts, 1);
    for (Index t = 0; t < tokens; ++t)
        allowed[static_cast<std::size_t>(t * experts + t % experts)] = 0;
    for (const Index k : {2, 4}) {
        const auto layer = make(moe::TopK{.k = k});
        Workspace<double> ws;
        run(layer, batch(), {.allowed = allowed}, ws);
        for (const auto& a : ws.routing().assignments()) EXPECT_NE(a.expert, a.token % experts);
        for (Index t = 0; t < tokens; ++t)
            EXPECT_EQ(ws.routing().of(t).size(),
                      static_cast<std::size_t>(std::min(k, experts - 1)));
        expect_exact(layer, {.allowed = allowed});
    }
    expect_exact(make(moe::TopP{.p = 0.6}), {.allowed = allowed});
}

TEST(Allowed, IsLikeALayerWithoutThatExpert) {
    // Expert 3 for nobody, and its logit can be anything.
    std::vector<std::uint8_t> allowed(tokens * experts, 1);
    for (Index t = 0; t < tokens; ++t) allowed[static_cast<std::size_t>(t * experts + 3)] = 0;
    Layer layer = make();
    const Matrix<double> expected = layer(batch(), {.allowed = allowed});
    layer.router().weight.view().row(3).setConstant(100);
    EXPECT_TRUE(same_bits(layer(batch(), {.allowed = allowed}), expected));
    EXPECT_FALSE(same_bits(layer(batch()), expected));
}

TEST(Allowed, NothingAtAllGivesTheSharedExpertsOnly) {
    std::vector<std::uint8_t> allowed(tokens * experts, 1);
    for (Index e = 0; e < experts; ++e) allowed[static_cast<std::size_t>(2 * experts + e)] = 0;
    const Layer layer = make();
    Workspace<double> ws;
    const Gradients got = run(layer, batch(), {.allowed = allowed}, ws);
    EXPECT_TRUE(ws.routing().of(2).empty());
    EXPECT_TRUE(got.y.allFinite() && got.dx.allFinite());
    EXPECT_GT(got.y.row(2).norm(), 0);
    moe::Routing nothing;
    nothing.reset(tokens, experts);
    nothing.group();
    Matrix<double> shared(tokens, dim);
    Workspace<double> other;
    layer.bank().apply(batch(), nothing, shared, other);
    EXPECT_TRUE(same_bits(got.y.row(2), shared.row(2)));
    expect_exact(layer, {.allowed = allowed});
}

TEST(Allowed, NothingAtAllWithoutSharedExpertsGivesZero) {
    const std::vector<std::uint8_t> allowed(tokens * experts, 0);
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, moe::LinearRouter{},
                                moe::TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = 4});
    Workspace<double> ws;
    const Gradients got = run(layer, batch(), {.allowed = allowed}, ws);
    EXPECT_TRUE((got.y.array() == 0).all());
    EXPECT_TRUE((got.dx.array() == 0).all());
    for (const double value : got.parameters) EXPECT_EQ(value, 0);
}

// ---- offsets and multipliers --------------------------------------------------------------------

TEST(LogitOffset, IsAddedForEveryTokenAndHasAGradient) {
    Layer layer = make(moe::TopK{.k = 2, .normalize = moe::Normalize::none});
    std::vector<double> offset{0.3, -0.2, 0.5, 0.1}, doffset(experts, 0);
    moe::ContextGradients gradients{.logit_offset = doffset};
    const Context context{.logit_offset = offset, .gradients = &gradients};
    Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, upstream()) + 0.5 * moe::z_loss(ws, 0);
    };
    loss();
    const Matrix<double> plain = x * layer.router().weight.view().transpose();
    for (Index e = 0; e < experts; ++e)
        for (Index t = 0; t < tokens; ++t)
            EXPECT_NEAR(ws.logits()(t, e), plain(t, e) + offset[static_cast<std::size_t>(e)],
                        1e-14);
    const auto options = seams::options(seams::SameChoices(ws));
    moe::z_loss(ws, 0.5);
    Layer grad = moe::zeros_like(layer);
    layer.backward(x, upstream(), dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::check_gradient(loss, offset, doffset, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
}

TEST(GateMultiplier, ScalesWhatExpertsReturnAndHasAGradient) {
    for (const moe::Normalize normalize : {moe::Normalize::plain, moe::Normalize::none}) {
        Layer layer = make(moe::TopK{.k = 2, .normalize = normalize});
        std::vector<double> multiplier{0.5, 2, -1, 0}, dmultiplier(experts, 0);
        moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
        const Context context{.gate_multiplier = multiplier, .gradients = &gradients};
        Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
        Workspace<double> ws, plain;
        const auto loss = [&] {
            layer.forward(x, y, ws, context);
            return seams::weighted_sum(y, upstream());
        };
        loss();
        layer.route(x, plain);
        for (Index a = 0; a < plain.routing().num_assignments(); ++a) {
            const auto& without = plain.routing().assignments()[static_cast<std::size_t>(a)];
            const auto& with = ws.routing().assignments()[static_cast<std::size_t>(a)];
            EXPECT_EQ(with, without);  // the routing keeps the gate's own weights
        }
        Matrix<double> expected(tokens, dim);
        for (Index a = 0; a < plain.routing().num_assignments(); ++a) {
            const auto& own = plain.routing().assignments()[static_cast<std::size_t>(a)];
            plain.edit_routing().set_weight(
                a, own.weight * multiplier[static_cast<std::size_t>(own.expert)]);
        }
        layer.apply(x, expected, plain);
        EXPECT_TRUE(moe::testing::same_bits(y, expected));
        const auto options = seams::options(seams::SameChoices(ws));
        Layer grad = moe::zeros_like(layer);
        layer.backward(x, upstream(), dx, grad, ws, context);
        EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, dmultiplier, options));
        EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
        seams::expect_parameter_gradients(loss, layer, grad, options);
    }
}

TEST(ContextGradients, AreAddedTo) {
    Layer layer = make(moe::TopK{.k = 2, .normalize = moe::Normalize::none});
    const std::vector<double> zeros(experts, 0), ones(experts, 1);
    std::vector<double> doffset(experts, 0), dmultiplier(experts, 0);
    moe::ContextGradients gradients{.logit_offset = doffset, .gate_multiplier = dmultiplier};
    const Context context{.logit_offset = zeros, .gate_multiplier = ones, .gradients = &gradients};
    Workspace<double> ws;
    run(layer, batch(), context, ws);
    const std::vector<double> once = doffset, once_more = dmultiplier;
    run(layer, batch(), context, ws);
    for (std::size_t e = 0; e < experts; ++e) {
        EXPECT_DOUBLE_EQ(doffset[e], 2 * once[e]);
        EXPECT_DOUBLE_EQ(dmultiplier[e], 2 * once_more[e]);
        EXPECT_NE(once[e], 0);
    }
}

TEST(InputScale, MultipliesWhatExpertsSeeAndNotTheRouter) {
    const auto scaled = make(moe::TopK{.k = 2}, 2);
    const Layer plain = make();
    Workspace<double> ws, other;
    Matrix<double> y(tokens, dim), expected(tokens, dim);
    scaled.forward(batch(), y, ws);
    plain.route(batch(), other);
    EXPECT_TRUE(same_bits(ws.logits(), other.logits()));
    const Matrix<double> doubled = 2 * batch();
    plain.bank().apply(doubled, other.routing(), expected, other.child(2));
    EXPECT_TRUE(moe::testing::compare(y, expected, 1e-14));
    expect_exact(scaled, {});
}

// ---- numbers that are none ----------------------------------------------------------------------

TEST(NotANumber, InATokenStaysInItsRow) {
    const auto check = [](const auto& layer) {
        Matrix<double> x = batch();
        x(3, 1) = std::nan("");
        Workspace<double> ws;
        const Gradients got = run(layer, x, {}, ws);
        const Matrix<double> clean = layer(batch());
        EXPECT_TRUE(got.y.row(3).array().isNaN().all());
        EXPECT_TRUE(got.dx.row(3).array().isNaN().any());
        for (const Index t : {0, 1, 2, 4, 5}) {
            EXPECT_TRUE(same_bits(got.y.row(t), clean.row(t))) << t;
            EXPECT_TRUE(got.dx.row(t).allFinite()) << t;
        }
        for (const auto& a : ws.routing().of(3)) EXPECT_TRUE(std::isnan(a.weight));
    };
    check(make());
    check(make(moe::TopP{.p = 0.5}));
}

TEST(NotANumber, InALogitShowsInTheOutput) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 2},
        moe::Swiglu{.count = 2, .ffn_dim = 4}, moe::Null{.count = 2});
    std::vector<double> offset(4, 0);
    offset[1] = std::nan("");
    const Matrix<double> y = layer(batch(), {.logit_offset = offset});
    EXPECT_TRUE(y.array().isNaN().any());
    EXPECT_TRUE(
        same_bits(moe::freeze(layer)(batch(), {.logit_offset = offset}), y, {.allow_zeros = true}));
}

TEST(Infinity, InALogitTakesAllTheWeightOrIsReported) {
    const Layer layer = make();
    std::vector<double> offset(experts, 0);
    offset[2] = -infinity;  // masks expert 2 for every token
    Workspace<double> ws;
    const Gradients got = run(layer, batch(), {.logit_offset = offset}, ws);
    EXPECT_TRUE(got.y.allFinite() && got.dx.allFinite());
    for (const auto& a : ws.routing().assignments()) EXPECT_NE(a.expert, 2);
    for (const double value : got.parameters) EXPECT_TRUE(std::isfinite(value));
    offset[2] = infinity;  // inf / inf: the softmax is not defined
    EXPECT_TRUE(layer(batch(), {.logit_offset = offset}).array().isNaN().all());
}

}  // namespace
}  // namespace context_test
