// SPDX-License-Identifier: MIT
#include <moe/routers/mlp.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/testing/gradient_check.hpp>

#include "routers/laws.hpp"
#include "support/message.hpp"

namespace {

using moe::Call;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::MlpRouterModule;
using moe::RouterActivation;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;
using support::message;

static_assert(moe::Recipe<moe::MlpRouter>);
static_assert(moe::Router<MlpRouterModule<float>>);
static_assert(moe::Router<MlpRouterModule<double>, double>);

constexpr RouterActivation all[] = {RouterActivation::tanh, RouterActivation::relu,
                                    RouterActivation::gelu, RouterActivation::silu};

template <class S>
MlpRouterModule<S> make(const moe::MlpRouter& recipe, Index dim, Index logits) {
    moe::Random random(1);
    auto router = recipe.build<S>(
        {.model_dim = dim, .num_experts = logits, .output_dim = dim, .num_logits = logits}, random);
    std::uint64_t draw = 0;
    for (moe::Parameter<S>* bias : {&router.hidden.bias, &router.output.bias})
        for (Index i = 0; i < bias->size(); ++i)
            bias->data()[i] = static_cast<S>(moe::testing::random_value(7, draw++));
    return router;
}

double act(RouterActivation activation, double a) {
    switch (activation) {
        case RouterActivation::tanh:
            return std::tanh(a);
        case RouterActivation::relu:
            return a > 0 ? a : 0;
        case RouterActivation::gelu:
            return 0.5 * a * (1 + std::erf(a / std::sqrt(2.0)));
        default:
            return a / (1 + std::exp(-a));
    }
}

/// logits = W2 act(W1 x + b1) + b2, one element after the other
template <class S>
Matrix<double> reference(const MlpRouterModule<S>& router, const Matrix<S>& x) {
    const auto& w1 = router.hidden.weight;
    const auto& w2 = router.output.weight;
    Matrix<double> logits(x.rows(), w2.rows());
    for (Index t = 0; t < x.rows(); ++t)
        for (Index l = 0; l < w2.rows(); ++l) {
            double z = router.output.bias.empty() ? 0 : double{router.output.bias(0, l)};
            for (Index i = 0; i < w1.rows(); ++i) {
                double a = router.hidden.bias.empty() ? 0 : double{router.hidden.bias(0, i)};
                for (Index d = 0; d < x.cols(); ++d) a += double{w1(i, d)} * double{x(t, d)};
                z += double{w2(l, i)} * act(router.activation(), a);
            }
            logits(t, l) = z;
        }
    return logits;
}

template <class S>
routers_test::Result<S> run(const MlpRouterModule<S>& router, Index tokens, Workspace<S>& ws) {
    return routers_test::run<S>(router, random_matrix<S>(tokens, router.hidden.weight.cols(), 1, 2),
                                random_matrix<S>(tokens, router.output.weight.rows(), 2), Context{},
                                ws);
}

template <class S>
class MlpRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(MlpRouter, Scalars);

TYPED_TEST(MlpRouter, IsTwoProductsWithANonlinearityBetween) {
    using S = TypeParam;
    const Index extents[][4] = {{1, 1, 1, 1}, {3, 5, 7, 2}, {65, 33, 17, 8}, {0, 4, 6, 3}};
    for (const auto& [tokens, dim, hidden, logits] : extents)
        for (const RouterActivation activation : all)
            for (const bool bias : {false, true}) {
                SCOPED_TRACE(std::to_string(tokens) + " " + std::to_string(hidden));
                SCOPED_TRACE(static_cast<int>(activation));
                const auto router = make<S>(
                    {.hidden_dim = hidden, .activation = activation, .bias = bias}, dim, logits);
                Workspace<S> ws;
                const auto got = run(router, tokens, ws);
                EXPECT_TRUE(moe::testing::compare(
                    got.logits, reference<S>(router, random_matrix<S>(tokens, dim, 1, 2)),
                    std::is_same_v<S, float> ? 2e-6 : 1e-14, {.allow_zeros = tokens == 1}));
            }
}

TYPED_TEST(MlpRouter, GivesTheSameBitsHoweverItIsComputed) {
    using S = TypeParam;
    for (const RouterActivation activation : all)
        routers_test::expect_same_bits_on_every_isa<S>(
            make<S>({.hidden_dim = 37, .activation = activation, .bias = true}, 67, 19), 400, 67,
            19);
}

TYPED_TEST(MlpRouter, TreatsEveryTokenOnItsOwn) {
    using S = TypeParam;
    const auto router = make<S>({.bias = true}, 9, 4);
    const auto x = random_matrix<S>(70, 9, 3);
    const Matrix<S> reversed = x.colwise().reverse();
    Workspace<S> ws;
    const Context context;
    Matrix<S> logits(70, 4), of_reversed(70, 4);
    router.forward(x, logits, Call<S>{context, ws});
    router.forward(reversed, of_reversed, Call<S>{context, ws});
    EXPECT_TRUE(same_bits(Matrix<S>(of_reversed.colwise().reverse()), logits));
}

TYPED_TEST(MlpRouter, ATokenThatHoldsANaNSpoilsItsOwnLogitsOnly) {
    using S = TypeParam;
    const auto router = make<S>({}, 5, 3);
    auto x = random_matrix<S>(3, 5, 3);
    Workspace<S> ws;
    const Context context;
    Matrix<S> logits(3, 3), with_nan(3, 3);
    router.forward(x, logits, Call<S>{context, ws});
    x(1, 2) = std::numeric_limits<S>::quiet_NaN();
    router.forward(x, with_nan, Call<S>{context, ws});
    EXPECT_TRUE(with_nan.row(1).array().isNaN().all());
    EXPECT_TRUE(same_bits(Matrix<S>(with_nan.row(0)), Matrix<S>(logits.row(0))));
    EXPECT_TRUE(same_bits(Matrix<S>(with_nan.row(2)), Matrix<S>(logits.row(2))));
}

TEST(Tanh, IsWithinTwoUlpAndRoundedOnceUpToOne) {
    std::vector<float> a, expected;
    for (double x = 1e-30; x < 20; x *= 1.003)
        for (const double sign : {-1.0, 1.0}) a.push_back(static_cast<float>(sign * x));
    for (float x = 0.99f; x < 1.01f; x += 1e-4f) a.push_back(x);
    std::vector<float> h(a.size());
    moe::detail::tanh(static_cast<Index>(a.size()), a.data(), h.data());
    double worst = 0, near = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double exact = std::tanh(double{a[i]});
        const double error = std::abs(double{h[i]} - exact) / std::abs(exact);
        worst = std::max(worst, error);
        if (std::abs(a[i]) < 1) near = std::max(near, error);
    }
    EXPECT_LT(worst, 2 * 1.2e-7);
    EXPECT_LT(near, 6e-8);  // rounded once
    EXPECT_GT(near, 1e-9);

    constexpr float infinity = std::numeric_limits<float>::infinity();
    const float edges[] = {0.0f, -0.0f, infinity, -infinity, std::nanf("")};
    float limits[5];
    moe::detail::tanh(5, edges, limits);
    EXPECT_TRUE(same_bits(std::span(limits, 4), std::vector<float>{0.0f, -0.0f, 1.0f, -1.0f}));
    EXPECT_TRUE(std::isnan(limits[4]));
}

TEST(Tanh, HasAnExactSlopeWhereItSaturates) {
    std::vector<float> a, dh, da;
    for (float x = -40; x <= 40; x += 0.37f) a.push_back(x), dh.push_back(1.5f);
    da.resize(a.size());
    moe::detail::tanh_backward(static_cast<Index>(a.size()), a.data(), dh.data(), da.data());
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double cosh = std::cosh(double{a[i]}), expected = 1.5 / (cosh * cosh);
        EXPECT_NEAR(double{da[i]}, expected, 1e-6 * expected) << a[i];
    }
}

TEST(MlpRouterModule, GradientsAreExact) {
    for (const RouterActivation activation : all)
        for (const bool bias : {false, true})
            EXPECT_TRUE(moe::testing::check_gradients(
                make<double>({.hidden_dim = 6, .activation = activation, .bias = bias}, 5, 4),
                {.rows = 6, .columns = 5, .output_columns = 4}));
}

TEST(MlpRouterModule, GradientsInsideALayerAreExact) {
    for (const RouterActivation activation : all)
        EXPECT_TRUE(moe::testing::check_gradients(
            moe::make_layer<double>(
                moe::Config{.model_dim = 5}, moe::MlpRouter{.activation = activation, .bias = true},
                moe::TopK{.k = 2}, moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Copy{}),
            {.rows = 6, .columns = 5, .scale = 0.01}));
}

TEST(MlpRouterModule, BackwardMayFollowTwice) {
    const auto router = make<double>({.bias = true}, 5, 4);
    const Context context;
    Workspace<double> ws;
    const auto expected = run(router, 6, ws);
    const auto x = random_matrix<double>(6, 5, 1, 2), dlogits = random_matrix<double>(6, 4, 2);
    auto grad = moe::zeros_like(router);
    Matrix<double> dx(6, 5);
    router.backward(x, dlogits, dx, grad, Call<double>{context, ws});
    EXPECT_TRUE(same_bits(dx, expected.dx));
    EXPECT_TRUE(same_bits(seams::values_of<double>(grad), expected.gradient));
}

TEST(MlpRouterModule, LeavesOutGradientsThatAreNotWanted) {
    routers_test::expect_only_wanted_gradients(
        make<double>({.hidden_dim = 7, .bias = true}, 5, 4), 5, 4,
        {"hidden.weight", "hidden.bias", "output.weight", "output.bias"});
}

TEST(MlpRouterModule, PaddingDoesNotReachTheGradient) {
    routers_test::expect_padding_does_not_reach_the_gradient(moe::MlpRouter{});
}

TEST(MlpRouterModule, FrozenInALayerGivesTheSameBits) {
    routers_test::expect_same_bits_frozen(moe::MlpRouter{.bias = true});
    EXPECT_GE(make<float>({}, 8, 4).freeze({}).bytes(), 4 * 32 * (8 + 4));
}

TEST(MlpRouterModule, StartsAsDocumented) {
    const auto router = make<float>({}, 400, 10);
    EXPECT_EQ(router.hidden_dim(), 80);
    EXPECT_EQ(router.activation(), RouterActivation::tanh);
    EXPECT_NEAR(router.hidden.weight.view().squaredNorm() / (400 * 80), 1.0 / 400, 2e-4);
    EXPECT_NEAR(router.output.weight.view().squaredNorm() / (10 * 80), 1.0 / 80, 2e-3);
    EXPECT_TRUE(router.hidden.bias.empty() && router.output.bias.empty());
    EXPECT_EQ(router.flops_per_token(), 2 * 80 * (400 + 10));
    EXPECT_EQ(make<float>({.hidden_dim = 3}, 7, 1).hidden_dim(), 3);
}

TEST(MlpRouterModule, NamesItsParameters) {
    const auto router = make<float>({.bias = true}, 7, 2);
    std::vector<std::string> names;
    moe::visit_parameters(
        router, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names, (std::vector<std::string>{"hidden.weight", "hidden.bias", "output.weight",
                                               "output.bias"}));
}

TEST(MlpRouterModule, RefusesBadSettingsAndOtherShapes) {
    EXPECT_EQ(message([] { make<float>({.hidden_dim = -1}, 4, 2); }),
              "moe::MlpRouter: hidden_dim is -1, it must be >= 0 (0: 8 * num_experts)");
    EXPECT_EQ(message([] { make<float>({.activation = RouterActivation{9}}, 4, 2); }),
              "moe::MlpRouter: activation is number 9 of its choices, they are 0 to 3");
    const auto router = make<float>({.hidden_dim = 3}, 4, 2);
    const moe::Shape shape{.model_dim = 4, .num_experts = 2, .output_dim = 4, .num_logits = 2};
    EXPECT_NO_THROW(router.check(shape));
    for (int wrong = 0; wrong < 3; ++wrong) {
        auto other = router;
        if (wrong == 0) other.hidden.weight = moe::Parameter<float>(3, 5);
        if (wrong == 1) other.output.weight = moe::Parameter<float>(2, 4);
        if (wrong == 2) other.output.weight = moe::Parameter<float>(3, 3);
        EXPECT_NE(message([&] { other.check(shape); }).find("[hidden_dim, 4] and [2, hidden_dim]"),
                  std::string::npos);
    }
}

TEST(MlpRouterModule, AllocatesNothingInTheSecondCall) {
    const auto router = make<float>({.bias = true}, 33, 9);
    moe::ThreadPool pool(2);
    Workspace<float> ws(pool);
    const Context context;
    const auto x = random_matrix<float>(500, 33, 1), dlogits = random_matrix<float>(500, 9, 2);
    Matrix<float> logits(500, 9), dx(500, 33);
    auto grad = moe::zeros_like(router);
    const auto both = [&] {
        router.forward(x, logits, Call<float>{context, ws});
        router.backward(x, dlogits, dx, grad, Call<float>{context, ws});
    };
    both();
    EXPECT_EQ(allocations::in(both), 0);

    Workspace<float> reserved(pool);
    const long before = allocations::bytes_asked_for.load();
    router.reserve(500, 0, reserved);
    const long spent = allocations::bytes_asked_for.load() - before;
    EXPECT_EQ(allocations::in([&] {
                  router.forward(x, logits, Call<float>{context, reserved});
                  router.backward(x, dlogits, dx, grad, Call<float>{context, reserved});
              }),
              0);
    if (!allocations::are_counted) return;
    const Index said = router.workspace_bytes(500, 0, moe::Keep::everything, 2);
    EXPECT_GE(spent, said);
    EXPECT_LE(spent, said + 2048);  // the nodes of the workspace
}

}  // namespace
