// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/compose/competition.hpp>
#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/dense_layer.hpp"
#include "support/message.hpp"

namespace {

using moe::CompetitionRule;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::compare;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index dim = 6, out = 5, experts = 5;
constexpr moe::Config config{.model_dim = dim, .output_dim = out, .seed = 3};
const moe::LinearRouter router{.bias = true};
const moe::TopK top2{.k = 2};
const moe::Swiglu swiglu{.count = 3, .ffn_dim = 4};
const moe::Mlp mlp{
    .count = 2, .ffn_dim = 4, .activation = moe::Activation::gelu_tanh, .bias = true};
const moe::Shared<moe::Swiglu> shared{moe::Swiglu{.count = 1, .ffn_dim = 3},
                                      moe::SharedGate::sigmoid};
const Context training{.training = true};
const CompetitionRule always{.k = 2, .frequency = 1};

template <class S>
auto make(const CompetitionRule& rule, moe::Config with = config) {
    auto layer = moe::make_competition<S>(with, rule, router, top2, swiglu, mlp);
    std::uint64_t draw = 0;
    moe::for_each_parameter(layer, [&](std::string_view, std::span<S> values) {
        for (S& value : values)
            value += static_cast<S>(0.3 * moe::testing::random_value(99, draw++));
    });
    return layer;
}

/// The formula in double, one loop after the other.
struct Reference {
    Matrix<double> scores, weights, y;  // [T, E], [T, E], [T, O]

    template <class Layer>
    Reference(const Layer& layer, const Matrix<double>& x, Index k, double logit_share = 0,
              const std::vector<double>& multiplier = std::vector<double>(experts, 1.0)) {
        const auto& bank = layer.layer().bank();
        const auto& head = layer.layer().router();
        scores = weights = Matrix<double>::Zero(x.rows(), experts);
        y = Matrix<double>::Zero(x.rows(), out);
        for (Index t = 0; t < x.rows(); ++t) {
            std::vector<std::vector<double>> outputs_of(experts);
            for (Index e = 0; e < experts; ++e) {
                const auto expert = e < 3 ? dense::feed_forward_of(bank.template group<0>(), e)
                                          : dense::feed_forward_of(bank.template group<1>(), e - 3);
                auto& output = outputs_of[static_cast<std::size_t>(e)];
                output = dense::detail::expert_forward(
                    expert, dense::detail::row(x, t, layer.config().input_scale), out);
                double square = 0, logit = double{head.bias(0, e)};
                for (const double value : output) square += value * value;
                for (Index d = 0; d < dim; ++d) logit += double{head.weight(e, d)} * x(t, d);
                scores(t, e) = (1 - logit_share) * std::sqrt(square) + logit_share * logit;
            }
            double sum = 0;
            for (Index e = 0; e < experts; ++e) {
                Index better = 0;
                for (Index i = 0; i < experts; ++i) better += scores(t, i) > scores(t, e) ? 1 : 0;
                if (better < k) sum += weights(t, e) = std::exp(scores(t, e));
            }
            for (Index e = 0; e < experts; ++e) {
                weights(t, e) /= sum;
                for (Index o = 0; o < out; ++o)
                    y(t, o) += multiplier[static_cast<std::size_t>(e)] * weights(t, e) *
                               outputs_of[static_cast<std::size_t>(e)][static_cast<std::size_t>(o)];
            }
        }
    }
};

template <class S>
Matrix<double> weights_of(const Workspace<S>& ws) {
    Matrix<double> weights =
        Matrix<double>::Zero(ws.routing().num_tokens(), ws.routing().num_experts());
    for (const moe::Assignment& a : ws.routing().assignments())
        weights(a.token, a.expert) = a.weight;
    return weights;
}

template <class S>
class Competition : public testing::Test {
protected:
    static constexpr double tolerance = std::is_same_v<S, double> ? 1e-13 : 3e-6;
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Competition, Scalars);

TYPED_TEST(Competition, IsWonByTheExpertsWithTheLargestOutputs) {
    using S = TypeParam;
    moe::Config scaled = config;
    scaled.input_scale = 1.5;
    for (const moe::Config& with : {config, scaled})
        for (const double share : {0.0, 0.5})
            for (const Index k : {1, 2, 5}) {
                const auto layer = make<S>({.k = k, .frequency = 1, .logit_share = share}, with);
                const Matrix<S> x = random_matrix<S>(11, dim, 1);
                const Reference wanted(layer, x.template cast<double>(), k, share);
                Matrix<S> y(11, out);
                Workspace<S> ws;
                layer.forward(x, y, ws, training);
                EXPECT_TRUE(compare(y, wanted.y, this->tolerance));
                EXPECT_TRUE(compare(weights_of(ws), wanted.weights, this->tolerance));
                for (Index t = 0; t < 11; ++t)
                    for (std::size_t slot = 1; slot < static_cast<std::size_t>(k); ++slot)
                        EXPECT_GE(wanted.scores(t, ws.routing().of(t)[slot - 1].expert),
                                  wanted.scores(t, ws.routing().of(t)[slot].expert));
            }
}

TYPED_TEST(Competition, IsTheLayerToTheBitWhenItIsNotHeld) {
    using S = TypeParam;
    const auto never = make<S>({.k = 2});
    const auto often = make<S>(always);
    const Matrix<S> x = random_matrix<S>(11, dim, 1), dy = random_matrix<S>(11, out, 2);
    const auto expect_plain = [&](const auto& competition, const Context& context) {
        const auto& layer = competition.layer();
        Matrix<S> y(11, out), dx(11, dim), wanted(11, out), wanted_dx(11, dim);
        Workspace<S> ws, ws_layer;
        auto grad = moe::zeros_like(competition);
        auto grad_layer = moe::zeros_like(layer);
        competition.forward(x, y, ws, context);
        layer.forward(x, wanted, ws_layer, context);
        EXPECT_EQ(moe::competition_loss(ws, 1).value, 0);
        moe::z_loss(ws, 0.1), moe::z_loss(ws_layer, 0.1);
        competition.backward(x, dy, dx, grad, ws, context);
        layer.backward(x, dy, wanted_dx, grad_layer, ws_layer, context);
        EXPECT_TRUE(same_bits(y, wanted));
        EXPECT_TRUE(same_bits(dx, wanted_dx));
        EXPECT_TRUE(same_bits(seams::values_of<S>(grad), seams::values_of<S>(grad_layer)));
        EXPECT_TRUE(ws.routing() == ws_layer.routing());
    };
    expect_plain(never, training);
    expect_plain(never, {});
    expect_plain(often, {});
    EXPECT_TRUE(same_bits(often(x), often.layer()(x)));
}

TYPED_TEST(Competition, IsHeldInItsShareOfTheSteps) {
    using S = TypeParam;
    const auto layer = make<S>({.k = 2, .frequency = 0.25});
    Workspace<S> ws;
    int held = 0;
    for (std::uint64_t step = 0; step < 1000; ++step) {
        const Context here{.training = true, .step = step};
        held += layer.competes(ws, here) ? 1 : 0;
        const Context later{.training = true, .step = step, .first_token = 700};
        EXPECT_EQ(layer.competes(ws, here), layer.competes(ws, later));
        EXPECT_FALSE(layer.competes(ws, {.step = step}));
    }
    EXPECT_GT(held, 200);
    EXPECT_LT(held, 300);
}

TYPED_TEST(Competition, GivesPermutedTokensPermutedOutputs) {
    using S = TypeParam;
    const auto layer = make<S>(always);
    const Matrix<S> x = random_matrix<S>(7, dim, 1);
    const Matrix<S> y = layer(x, training);
    const Matrix<S> reversed = layer(x.colwise().reverse().eval(), training);
    EXPECT_TRUE(same_bits(Matrix<S>(reversed.colwise().reverse()), y));
    const Matrix<S> rest = layer(x.bottomRows(3), training);
    EXPECT_TRUE(same_bits(rest, Matrix<S>(y.bottomRows(3))));
}

TYPED_TEST(Competition, BlocksOfManyTokensDoNotShow) {
    using S = TypeParam;
    const auto layer = make<S>(always);
    const Matrix<S> x = random_matrix<S>(2100, dim, 1);  // one expert, then two at a time
    const Matrix<S> y = layer(x, training);
    for (const Index first : {0, 1000, 2090})
        EXPECT_TRUE(same_bits(layer(x.middleRows(first, 10), training),
                              Matrix<S>(y.middleRows(first, 10))));
}

TYPED_TEST(Competition, KeepsPaddingAndMaskedExpertsOut) {
    using S = TypeParam;
    for (const double share : {0.0, 0.5}) {
        const auto layer = make<S>({.k = 5, .frequency = 1, .logit_share = share});
        Matrix<S> x = random_matrix<S>(4, dim, 1), dy = random_matrix<S>(4, out, 2), y(4, out),
                  dx(4, dim);
        x.row(1).setConstant(std::numeric_limits<S>::quiet_NaN());
        dy.row(1).setConstant(std::numeric_limits<S>::quiet_NaN());
        const std::vector<std::uint8_t> padding{0, 1, 0, 0};
        std::vector<std::uint8_t> allowed(20, 1);
        allowed[2] = allowed[10 + 4] = 0;
        std::fill(allowed.begin() + 15, allowed.end(), std::uint8_t{0});
        const Context context{.training = true, .padding = padding, .allowed = allowed};
        Workspace<S> ws;
        layer.forward(x, y, ws, context);
        EXPECT_EQ(ws.routing().of(0).size(), 4u);
        EXPECT_EQ(ws.routing().of(1).size(), 0u);
        EXPECT_EQ(ws.routing().of(2).size(), 4u);
        EXPECT_EQ(ws.routing().of(3).size(), 0u);
        EXPECT_EQ(weights_of(ws)(0, 2), 0);
        EXPECT_EQ(weights_of(ws)(2, 4), 0);
        EXPECT_TRUE((y.row(1).array() == S(0)).all());
        moe::competition_loss(ws, 1);
        auto grad = moe::zeros_like(layer);
        layer.backward(x, dy, dx, grad, ws, context);
        EXPECT_TRUE(dx.allFinite());
        EXPECT_TRUE((dx.row(1).array() == S(0)).all());
        for (const S value : seams::values_of<S>(grad)) EXPECT_TRUE(std::isfinite(value));
    }
}

TYPED_TEST(Competition, TiesGoToTheLowerExpertAndNaNWinsNothingElse) {
    using S = TypeParam;
    const auto same = moe::make_competition<S>({.model_dim = dim}, always, router, top2,
                                               moe::Zero{.count = 3}, moe::Copy{.count = 2});
    Matrix<S> x = random_matrix<S>(3, dim, 1), y(3, dim);
    x.row(1).setZero();  // all outputs are 0
    Workspace<S> ws;
    same.forward(x, y, ws, training);
    EXPECT_EQ(ws.routing().of(0)[0].expert, 3);
    EXPECT_EQ(ws.routing().of(0)[1].expert, 4);
    EXPECT_EQ(ws.routing().of(1)[0].expert, 0);
    EXPECT_EQ(ws.routing().of(1)[1].expert, 1);
    EXPECT_TRUE(compare(y, x, this->tolerance));
    x(2, 0) = std::numeric_limits<S>::quiet_NaN();
    same.forward(x, y, ws, training);
    EXPECT_TRUE(y.row(2).array().isNaN().any());
    EXPECT_TRUE(y.topRows(2).allFinite());
}

TYPED_TEST(Competition, ANullExpertWinsWithoutWeight) {
    using S = TypeParam;
    const auto layer = moe::make_competition<S>({.model_dim = dim}, always, router, top2,
                                                moe::Null{}, moe::Copy{});
    const Matrix<S> x = random_matrix<S>(3, dim, 1);
    EXPECT_TRUE(same_bits(layer(x, training), x));
}

TYPED_TEST(Competition, OfOneExpertOrOfNoTokensIsDefined) {
    using S = TypeParam;
    const auto layer = moe::make_competition<S>(config, {.k = 1, .frequency = 1}, router,
                                                moe::TopK{.k = 1}, moe::Swiglu{.ffn_dim = 4});
    const Matrix<S> x = random_matrix<S>(3, dim, 1);
    EXPECT_TRUE(same_bits(layer(x, training), layer(x)));
    EXPECT_EQ(layer(Matrix<S>(0, dim), training).rows(), 0);
    Workspace<S> ws;
    Matrix<S> y(0, out);
    layer.forward(Matrix<S>(0, dim), y, ws, training);
    EXPECT_EQ(moe::competition_loss(ws, 1).value, 0);
}

TYPED_TEST(Competition, HasTheSameBitsForAnyNumberOfThreads) {
    using S = TypeParam;
    const auto layer = moe::make_competition<S>(
        {.model_dim = 90}, {.k = 3, .frequency = 1, .logit_share = 0.5}, router, top2,
        moe::Swiglu{.count = 5, .ffn_dim = 24}, shared, moe::Constant{.count = 2});
    const Matrix<S> x = random_matrix<S>(190, 90, 1), dy = random_matrix<S>(190, 90, 2);
    Matrix<S> first_y, first_dx;
    std::vector<S> first_gradient;
    for (const int threads : {1, 2, 3}) {
        Workspace<S> ws;
        ws.threads(threads);
        Matrix<S> y(190, 90), dx(190, 90);
        auto grad = moe::zeros_like(layer);
        layer.forward(x, y, ws, training);
        moe::competition_loss(ws, 10);
        layer.backward(x, dy, dx, grad, ws, training);
        const std::vector<S> gradient = seams::values_of<S>(grad);
        if (threads == 1) first_y = y, first_dx = dx, first_gradient = gradient;
        EXPECT_TRUE(same_bits(y, first_y));
        EXPECT_TRUE(same_bits(dx, first_dx));
        EXPECT_TRUE(same_bits(gradient, first_gradient));
    }
}

TYPED_TEST(Competition, AllocatesNothingTheSecondTime) {
    using S = TypeParam;
    const auto layer = make<S>({.k = 2, .frequency = 1, .logit_share = 0.5});
    const Matrix<S> x = random_matrix<S>(40, dim, 1), dy = random_matrix<S>(40, out, 2);
    const std::vector<std::uint8_t> padding(40, 0);
    const Context context{.training = true, .padding = padding};
    Matrix<S> y(40, out), dx(40, dim);
    auto grad = moe::zeros_like(layer);
    moe::SerialExecutor serial;
    const auto once = [&](Workspace<S>& ws) {
        layer.forward(x, y, ws, context);
        layer.backward(x, dy, dx, grad, ws, context);
        layer.backward(x, dy, dx, moe::no_gradient, ws, context);
    };
    Workspace<S> ws(serial);
    EXPECT_EQ(allocations::in([&] { once(ws); }) > 0, allocations::are_counted);
    EXPECT_EQ(allocations::in([&] { once(ws), moe::competition_loss(ws, 1), once(ws); }) > 0,
              allocations::are_counted);  // the loss has scratch of its own
    EXPECT_EQ(allocations::in([&] { once(ws), moe::competition_loss(ws, 1), once(ws); }), 0);
    Workspace<S> reserved(serial);
    reserved.reserve(layer, 40, 80);
    EXPECT_EQ(allocations::in([&] { once(reserved); }), 0);
}

TYPED_TEST(Competition, SaysHowManyBytesItReserves) {
    using S = TypeParam;
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    moe::Config scaled = config;
    scaled.input_scale = 1.5;
    for (const moe::Config& with : {config, scaled})
        for (const double frequency : {0.0, 1.0}) {
            const auto layer = make<S>({.k = 2, .frequency = frequency}, with);
            for (const moe::Keep keep : {moe::Keep::nothing, moe::Keep::everything})
                for (const int workers : {1, 3}) {
                    Workspace<S> ws;
                    ws.threads(workers).keep(keep);
                    const long before = allocations::bytes_asked_for.load();
                    ws.reserve(layer, 900, 1800);
                    const long spent = allocations::bytes_asked_for.load() - before;
                    const Index said = layer.workspace_bytes(900, 1800, keep, workers);
                    EXPECT_GE(spent, said) << frequency << workers;
                    EXPECT_LE(spent, said + 24576) << frequency << workers;  // nodes
                }
        }
}

TYPED_TEST(Competition, IsItsLayerWhenItIsFrozen) {
    using S = TypeParam;
    auto layer = make<S>(always);
    const Matrix<S> x = random_matrix<S>(11, dim, 1);
    const Matrix<S> y = layer(x);
    const auto frozen = moe::freeze(layer);
    static_assert(std::is_same_v<std::remove_const_t<decltype(frozen)>,
                                 moe::Frozen<typename decltype(layer)::LayerType>>);
    static_assert(
        std::is_same_v<std::remove_const_t<decltype(frozen)>, moe::Frozen<decltype(layer)>>);
    EXPECT_TRUE(same_bits(frozen(x), y));
    EXPECT_TRUE(same_bits(frozen(x, training), y)) << "experts do not compete";
    if constexpr (std::is_same_v<S, float>) {
        const moe::FreezeOptions small{.storage = moe::Storage::int8};
        EXPECT_TRUE(same_bits(moe::freeze(layer, small)(x), moe::freeze(layer.layer(), small)(x)));
    }
    EXPECT_TRUE(same_bits(moe::freeze(std::move(layer))(x), y));
    EXPECT_EQ(layer.layer().bank().template group<0>().up.count(), 0) << "released";
}

TYPED_TEST(Competition, AllocatesNothingForFewerTokensThanBefore) {
    using S = TypeParam;
    const auto layer = make<S>(always);
    const Matrix<S> x = random_matrix<S>(2500, dim, 1);
    Matrix<S> y(2500, out);
    moe::SerialExecutor serial;
    Workspace<S> ws(serial);
    layer.forward(x, y, ws, training);  // an expert at a time
    EXPECT_EQ(allocations::in([&] {
                  layer.forward(x.topRows(1500), y.topRows(1500), ws, training);  // two
                  layer.forward(x.topRows(9), y.topRows(9), ws, training);        // all
              }),
              0);
}

/// d(loss)/d(everything) of one contest, with a loss of the router.
template <class Layer>
void expect_exact(Layer layer, Context context, Index columns) {
    auto x = random_matrix<double>(6, dim, 1);
    const auto dy = random_matrix<double>(6, columns, 2);
    std::vector<double> multiplier(static_cast<std::size_t>(layer.num_experts()), 1.0);
    for (std::size_t e = 0; e < multiplier.size(); ++e)
        multiplier[e] = 1 + 0.25 * static_cast<double>(e);
    std::vector<double> dmultiplier(multiplier.size(), 0.0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    context.gate_multiplier = multiplier;
    Matrix<double> y(6, columns), dx(6, dim);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy) + 0.3 * moe::z_loss(ws, 0).value;
    };
    loss();
    moe::z_loss(ws, 0.3);
    auto grad = moe::zeros_like(layer);
    context.gradients = &gradients;
    layer.backward(x, dy, dx, grad, ws, context);
    context.gradients = nullptr;
    const auto options = seams::options(seams::SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, dmultiplier, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
    Matrix<double> dx_alone(6, dim);
    loss();
    moe::z_loss(ws, 0.3);
    layer.backward(x, dy, dx_alone, moe::no_gradient, ws, context);
    EXPECT_TRUE(same_bits(dx_alone, dx));
}

/// y = scale * x, of a user.
struct Scale {
    moe::Parameter<double> scale{1, dim};
    explicit Scale(std::uint64_t seed = 1) { scale.view() = random_matrix<double>(1, dim, seed); }
    void forward(moe::In<double> x, moe::Out<double> y) const {
        y = x * scale.view().row(0).asDiagonal();
    }
    void backward(moe::In<double> x, moe::In<double> dy, moe::Out<double> dx, Scale& grad) const {
        dx = dy * scale.view().row(0).asDiagonal();
        grad.scale.view() += x.cwiseProduct(dy).colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("scale", scale); }
};

TEST(CompetitionGradients, AreExact) {
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 0};
    for (const double share : {0.0, 0.5, 1.0})
        for (const Index k : {1, 3, 5}) {
            const CompetitionRule rule{.k = k, .frequency = 1, .logit_share = share};
            expect_exact(make<double>(rule), training, out);
            expect_exact(make<double>(rule), {.training = true, .padding = padding}, out);
        }
}

TEST(CompetitionGradients, AreExactForEveryKindOfExpert) {
    expect_exact(moe::make_competition<double>(
                     {.model_dim = dim, .input_scale = 1.5}, {.k = 4, .frequency = 1}, router, top2,
                     swiglu, shared, moe::Constant{.count = 2}, moe::Zero{}, moe::Copy{},
                     moe::each(std::vector<Scale>{Scale(1), Scale(2)})),
                 training, dim);
}

TEST(CompetitionGradients, AreExactWhereTheRouterDecides) {
    EXPECT_TRUE(moe::testing::check_gradients(
        make<double>(always), {.columns = dim, .output_columns = out, .scale = 0.01}));
    expect_exact(make<double>(always), {}, out);
}

TEST(CompetitionGradients, GiveTheGateNothing) {
    auto layer = make<double>(always);
    const auto x = random_matrix<double>(6, dim, 1), dy = random_matrix<double>(6, out, 2);
    Matrix<double> y(6, out), dx(6, dim);
    Workspace<double> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws, training);
    const moe::Routing winners = ws.routing();
    layer.backward(x, dy, dx, grad, ws, training);
    EXPECT_TRUE((grad.layer().router().weight.view().array() == 0).all());
    EXPECT_TRUE(ws.routing() == winners) << "backward puts the winners back";
}

TEST(CompetitionLoss, ComparesExpertByExpert) {
    const auto logits = random_matrix<double>(4, 3, 1, 2);
    moe::Routing routing;
    routing.reset(4, 3);
    routing.add(0, 2, 0.75), routing.add(0, 0, 0.25), routing.add(1, 1, 1), routing.add(3, 2, 0.6);
    routing.group();
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Matrix<double> z = logits, dz = Matrix<double>::Zero(4, 3), none = dz;
    const Context context{.padding = padding};
    double expected = 0;
    const double weights[4][3] = {{0.25, 0, 0.75}, {0, 1, 0}, {0, 0, 0}, {0, 0, 0.6}};
    for (const Index t : {0, 1, 3}) {
        double sum = 0;
        for (Index e = 0; e < 3; ++e) sum += std::exp(z(t, e));
        for (Index e = 0; e < 3; ++e)
            expected += std::pow(std::exp(z(t, e)) / sum - weights[t][e], 2) / 9;
    }
    const moe::Loss loss = moe::competition_loss(z, routing, context, 0.5, dz);
    EXPECT_NEAR(loss.value, expected, 1e-15);
    const auto value = [&] {
        return 0.5 * moe::competition_loss(z, routing, context, 0, none).value;
    };
    EXPECT_TRUE(moe::testing::check_gradient(value, z, dz));
    EXPECT_TRUE((none.array() == 0).all());
    EXPECT_TRUE((dz.row(2).array() == 0).all());
}

TEST(CompetitionLoss, LeadsTheRouterToTheWinners) {
    auto layer = make<double>({.k = 1, .frequency = 1});
    const auto x = random_matrix<double>(30, dim, 1);
    const Matrix<double> dy = Matrix<double>::Zero(30, out);
    Matrix<double> y(30, out), dx(30, dim);
    Workspace<double> ws;
    double first = 0, last = 0;
    for (int step = 0; step < 400; ++step) {
        auto grad = moe::zeros_like(layer);
        layer.forward(x, y, ws, training);
        last = moe::competition_loss(ws, 100);
        if (step == 0) first = last;
        layer.backward(x, dy, dx, grad, ws, training);
        moe::for_each_parameter(layer, grad, [](std::string_view, auto values, auto gradient) {
            for (std::size_t i = 0; i < values.size(); ++i) values[i] -= 0.05 * gradient[i];
        });
    }
    EXPECT_LT(last, 0.3 * first);
    layer.forward(x, y, ws, training);
    const Matrix<double> winners = weights_of(ws);
    layer.forward(x, y, ws);
    int agreed = 0;
    for (Index t = 0; t < 30; ++t) agreed += winners(t, ws.routing().of(t)[0].expert) == 1 ? 1 : 0;
    EXPECT_GE(agreed, 24);
}

TEST(CompetitionMisuse, IsASentence) {
    using support::message;
    const auto expect = [](const std::string& found, const char* wanted) {
        EXPECT_NE(found.find(wanted), std::string::npos) << found;
    };
    const auto build = [](const CompetitionRule& rule) {
        return message([&] { make<float>(rule); });
    };
    expect(build({}), "moe::CompetitionRule: k is 0, it must be in [1, 5]");
    expect(build({.k = 6}), "moe::CompetitionRule: k is 6, it must be in [1, 5]");
    expect(build({.k = 2, .frequency = 1.5}), "frequency is 1.5, it must be in [0, 1]");
    expect(build({.k = 2, .frequency = std::numeric_limits<double>::quiet_NaN()}),
           "frequency is nan, it must be in [0, 1]");
    expect(build({.k = 2, .logit_share = -1}), "logit_share is -1, it must be in [0, 1]");

    const auto gate = [](const auto& of_16) {
        return message([&] {
            moe::Competition(moe::Config{.model_dim = dim}, CompetitionRule{.k = 2},
                             moe::LinearRouter{}, of_16, moe::Swiglu{.count = 16, .ffn_dim = 4});
        });
    };
    expect(gate(moe::ProductKeyTopK{.k = 2, .heads = 2}),
           "moe::Competition: the gate takes 16 logits per token, of which 0 are experts' own; it "
           "must take one for each of the 16 experts and no other");
    expect(gate(moe::Noisy{top2}), "takes 32 logits per token, of which 16 are experts' own");
    EXPECT_EQ(gate(top2), "");

    const auto layer = make<double>(always);
    auto grad = moe::zeros_like(layer);
    const auto x = random_matrix<double>(4, dim, 1), dy = random_matrix<double>(4, out, 2);
    Matrix<double> y(4, out), dx(4, dim), wide(4, dim + 1);
    Workspace<double> ws;
    expect(message([&] { layer.forward(wide, y, ws, training); }), "x has 7 columns");
    expect(message([&] { layer.forward(x, wide, ws, training); }),
           "y is [4, 7], it must be [4, 5]");
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws, training), std::logic_error);
    layer.forward(x, y, ws, training);
    expect(message([&] { layer.backward(x, wide, dx, grad, ws, training); }), "dy is [4, 7]");
    expect(message([&] { layer.backward(x, dy, wide, grad, ws, training); }), "dx is [4, 7]");
    expect(message([&] {
               auto same = x;
               layer.backward(same, dy, same, grad, ws, training);
           }),
           "dx shares memory with x");
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws), std::logic_error);
    EXPECT_THROW(make<double>(always).backward(x, dy, dx, grad, ws, training), std::logic_error);
    ws.keep(moe::Keep::nothing);
    layer.forward(x, y, ws, training);
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws, training), std::logic_error);
}

TEST(CompetitionMisuse, AWorkspaceThatTheLayerUsedAloneIsRefused) {
    const auto layer = make<double>(always);
    auto grad = moe::zeros_like(layer);
    const auto x = random_matrix<double>(4, dim, 1), dy = random_matrix<double>(4, out, 2);
    Matrix<double> y(4, out), dx(4, dim);
    Workspace<double> ws;
    layer.forward(x, y, ws, training);
    layer.layer().forward(x, y, ws, training);
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws, training), std::logic_error);
}

TEST(Competition, IsAsCausalAsItsLayer) {
    EXPECT_TRUE(make<float>(always).is_causal());
    const moe::Competition layer{moe::Config{.model_dim = 8}, CompetitionRule{.k = 1},
                                 moe::LinearRouter{}, moe::ExpertChoice{.capacity_factor = 1},
                                 swiglu};
    EXPECT_FALSE(layer.is_causal());
}

TEST(Competition, HasTheNamesOfItsLayer) {
    const moe::Competition layer{moe::Config{.model_dim = 8}, CompetitionRule{.k = 1},
                                 moe::LinearRouter{}, top2, swiglu};
    static_assert(
        std::is_same_v<std::remove_const_t<decltype(layer)>,
                       moe::Competition<float, moe::LinearRouter, moe::TopK, moe::Swiglu>>);
    std::vector<std::string> names;
    moe::visit_parameters(
        layer, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names.front(), "router.weight");
    EXPECT_EQ(names.back(), "experts.2.down");
}

}  // namespace
