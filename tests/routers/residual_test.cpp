// SPDX-License-Identifier: MIT
#include <moe/routers/residual.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/load_balance.hpp>

#include "routers/three_layers.hpp"
#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::GatingResidual;
using moe::LinearRouter;
using moe::ResidualPlace;

constexpr Index tokens = 6, dim = 5, experts = 7;

/// Scaled as the formula says, over the finite entries of a row.
Matrix<double> scaled(Matrix<double> z, double target) {
    for (Index t = 0; t < z.rows(); ++t) {
        double sum = 0, squares = 0;
        int n = 0;
        for (Index l = 0; l < z.cols(); ++l)
            if (z(t, l) != -infinity) sum += z(t, l), ++n;
        for (Index l = 0; l < z.cols(); ++l)
            if (z(t, l) != -infinity) squares += (z(t, l) - sum / n) * (z(t, l) - sum / n);
        z.row(t) *= target / std::sqrt(squares / (n - 1));
    }
    return z;
}

/// Three layers with a residual from each to the next.
template <class S, class First, class Other>
struct Network
    : ThreeLayers<S, LayerOfThree<S, First>, LayerOfThree<S, Other>, LayerOfThree<S, Other>> {
    Network(const First& first, const Other& other)
        : Network::ThreeLayers(layer_of_three<S>(first, experts, 11),
                               layer_of_three<S>(other, experts, 12),
                               layer_of_three<S>(other, experts, 13)) {}

    void expect_exact() {
        Network::ThreeLayers::expect_exact();
        EXPECT_GT(this->grad2.router().residual().view().norm(), 1e-4);
        EXPECT_GT(this->grad3.router().residual().view().norm(), 1e-4);
    }
};
template <class S, class First, class Other>
auto network(const First& first, const Other& other) {
    return Network<S, First, Other>(first, other);
}

/// x W^T + r R^T of a layer, in double; without r that of the first.
template <class S, class Layer>
Matrix<double> logits_of(const Layer& layer, const Matrix<S>& x, const Matrix<double>& r = {}) {
    const auto& router = layer.router();
    Matrix<double> z =
        x.template cast<double>() * router.inner.weight.view().template cast<double>().transpose();
    if (r.size() != 0) z += r * router.residual().view().template cast<double>().transpose();
    return z;
}

template <class S>
class ResidualRouters : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ResidualRouters, Scalars);

TYPED_TEST(ResidualRouters, AddAMapOfTheLogitsOfTheLayerBefore) {
    using S = TypeParam;
    auto net = network<S>(LinearRouter{}, GatingResidual{LinearRouter{}});
    net.loss();
    const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
    const Matrix<double> second =
        logits_of<S>(net.layer2, net.h1, Matrix<S>(net.ws1.logits()).template cast<double>());
    EXPECT_TRUE(moe::testing::compare(net.ws2.logits(), second, tolerance));
    EXPECT_TRUE(moe::testing::compare(net.ws3.logits(), logits_of<S>(net.layer3, net.h2, second),
                                      tolerance));
}

TYPED_TEST(ResidualRouters, ScaleTheirLogitsAndPassThemOnUnscaled) {
    using S = TypeParam;
    auto net = network<S>(GatingResidual{LinearRouter{}, 0.5, ResidualPlace::first},
                          GatingResidual{LinearRouter{}, 0.7});
    net.loss();
    const double tolerance = std::is_same_v<S, float> ? 1e-5 : 1e-14;
    const Matrix<double> first = logits_of<S>(net.layer1, net.x);
    const Matrix<double> second = logits_of<S>(net.layer2, net.h1, first);
    const Matrix<double> third = logits_of<S>(net.layer3, net.h2, second);
    EXPECT_TRUE(moe::testing::compare(net.ws1.logits(), scaled(first, 0.5), tolerance));
    EXPECT_TRUE(moe::testing::compare(net.ws2.logits(), scaled(second, 0.7), tolerance));
    EXPECT_TRUE(moe::testing::compare(net.ws3.logits(), scaled(third, 0.7), tolerance));
}

TEST(GatingResidual, IsTheInnerRouterToTheBitInTheFirstLayer) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    const auto dlogits = random_matrix<double>(tokens, experts, 2);
    const auto router =
        build<double>(GatingResidual{LinearRouter{}, 0, ResidualPlace::first}, dim, experts);
    EXPECT_EQ(router.place(), ResidualPlace::first);
    EXPECT_EQ(moe::num_parameters(router), moe::num_parameters(router.inner));
    EXPECT_EQ(router.flops_per_token(), router.inner.flops_per_token());
    Workspace<double> ws, other, unread;
    const auto expected = run<double>(router.inner, x, dlogits, {}, other);
    for (const Context& context : {Context{}, Context{.previous = &unread}}) {
        const auto got = run<double>(router, x, dlogits, context, ws);
        EXPECT_TRUE(same_bits(got.logits, expected.logits));
        EXPECT_TRUE(same_bits(got.dx, expected.dx));
        EXPECT_EQ(got.gradient, expected.gradient);
    }
}

TEST(GatingResidual, OfALaterLayerNeedsTheOneBefore) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    for (const double target : {0.0, 0.5}) {
        const auto router = build<double>(GatingResidual{LinearRouter{}, target}, dim, experts);
        Workspace<double> ws, before;
        expect_message<std::invalid_argument>(
            [&] { forward<double>(router, x, experts, {}, ws); },
            {"moe::GatingResidual: Context::previous is empty, it must be the workspace of the "
             "layer before",
             "place moe::ResidualPlace::first"});
    }
}

TEST(GatingResidual, OfTheFirstLayerFreezesAsTheOthersDo) {
    const auto layer = moe::make_layer<float>(
        moe::Config{.model_dim = dim}, GatingResidual{LinearRouter{}, 0.5, ResidualPlace::first},
        moe::TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = 2});
    const auto frozen = moe::freeze(layer);
    const auto x = random_matrix<float>(tokens, dim, 1);
    Workspace<float> ws, other;
    layer.route(x, ws);
    frozen.route(x, other);
    EXPECT_TRUE(same_bits(other.logits(), Matrix<float>(ws.logits())));
}

TEST(GatingResidual, HasExactGradientsThroughThreeLayers) {
    network<double>(LinearRouter{}, GatingResidual{LinearRouter{}}).expect_exact();
    network<double>(GatingResidual{own(dim, experts), 0, ResidualPlace::first},
                    GatingResidual{own(dim, experts)})
        .expect_exact();
    network<double>(GatingResidual{LinearRouter{}, 0.5, ResidualPlace::first},
                    GatingResidual{LinearRouter{}, 0.7})
        .expect_exact();
    network<double>(LinearRouter{}, GatingResidual{LinearRouter{}, 0.7}).expect_exact();
}

TEST(GatingResidual, HasExactGradientsWithMaskedExpertsAndPadding) {
    std::vector<std::uint8_t> allowed(tokens * experts, 1), padding(tokens, 0);
    for (Index t = 0; t < tokens; ++t) allowed[static_cast<std::size_t>(t * experts + t)] = 0;
    padding[3] = 1;
    const auto check = [&](auto net) {
        net.context1.allowed = allowed;
        net.context1.padding = padding;
        net.context2.padding = padding;
        net.context3.padding = padding;
        net.expect_exact();
        // What a masked logit would have been is nobody's business.
        const Matrix<double> r = net.ws1.logits();
        EXPECT_EQ(r(0, 0), -infinity);
        net.x.row(3).setConstant(not_a_number);
        net.grad1 = moe::zeros_like(net.layer1);
        net.grad2 = moe::zeros_like(net.layer2);
        net.grad3 = moe::zeros_like(net.layer3);
        net.loss();
        net.backward();
        EXPECT_TRUE(net.dx.allFinite());
        for (const double value : seams::values_of<double>(net.grad1))
            EXPECT_TRUE(std::isfinite(value));
        for (const double value : seams::values_of<double>(net.grad2))
            EXPECT_TRUE(std::isfinite(value));
    };
    check(network<double>(LinearRouter{}, GatingResidual{LinearRouter{}}));
    check(network<double>(GatingResidual{LinearRouter{}, 0.5, ResidualPlace::first},
                          GatingResidual{LinearRouter{}, 0.7}));
}

TEST(GatingResidual, LeavesTheLogitsOutThatWereMasked) {
    auto net = network<double>(GatingResidual{LinearRouter{}, 0.5, ResidualPlace::first},
                               GatingResidual{LinearRouter{}});
    std::vector<std::uint8_t> allowed(tokens * experts, 1);
    allowed[2] = 0;
    net.context1.allowed = allowed;
    net.loss();
    Matrix<double> r = logits_of<double>(net.layer1, net.x);
    r(0, 2) = 0;
    EXPECT_TRUE(
        moe::testing::compare(net.ws2.logits(), logits_of<double>(net.layer2, net.h1, r), 1e-14));
}

TEST(GatingResidual, ScalesAllLogitsOfATokenByOneFactor) {
    // Scale invariance: what the router's weights are multiplied by does not show.
    auto router =
        build<double>(GatingResidual{LinearRouter{}, 1.5, ResidualPlace::first}, dim, experts);
    const auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    const auto first = forward<double>(router, x, experts, {}, ws);
    for (Index i = 0; i < router.inner.weight.size(); ++i) router.inner.weight.data()[i] *= 8;
    EXPECT_TRUE(moe::testing::compare(forward<double>(router, x, experts, {}, ws), first, 1e-14));
    for (Index t = 0; t < tokens; ++t) {
        const double mean = first.row(t).mean();
        EXPECT_NEAR((first.row(t).array() - mean).square().sum() / (experts - 1), 1.5 * 1.5, 1e-12);
    }
}

/// Logits given: a router whose weight is the identity.
struct Given {
    void forward(In<double> x, Out<double> logits) const { logits = x; }
    void backward(In<double>, In<double> dlogits, Out<double> dx, Given&) const { dx = dlogits; }
};

TEST(GatingResidual, DoesNotScaleWhatHasNoSpread) {
    const auto router = build<double>(GatingResidual{Given{}, 2.0, ResidualPlace::first}, 3, 3);
    Matrix<double> z(4, 3);
    z << 1, 1, 1, -infinity, 5, -infinity, -infinity, 3, 5, 1, not_a_number, 2;
    Workspace<double> ws;
    const auto got = run<double>(router, z, random_matrix<double>(4, 3, 2), {}, ws);
    EXPECT_EQ(got.logits.row(0), z.row(0));  // all equal
    EXPECT_EQ(got.logits(1, 1), 5);          // one alone
    EXPECT_EQ(got.logits(1, 0), -infinity);
    EXPECT_EQ(got.logits(2, 0), -infinity);  // std of {3, 5} is sqrt 2
    EXPECT_NEAR(got.logits(2, 1), 3 * std::sqrt(2.0), 1e-14);
    EXPECT_TRUE(std::isnan(got.logits(3, 0)));
    EXPECT_TRUE(got.dx.topRows(3).allFinite());
    EXPECT_TRUE(same_bits(got.dx.row(0), random_matrix<double>(4, 3, 2).row(0)));
    EXPECT_EQ(got.dx(2, 0), 0);
}

TEST(GatingResidual, WorksWithOneExpertAndWithNoTokens) {
    Workspace<double> ws;
    for (const double target : {0.0, 1.0}) {
        const auto router =
            build<double>(GatingResidual{LinearRouter{}, target, ResidualPlace::first}, dim, 1);
        const auto got = run<double>(router, random_matrix<double>(3, dim, 1),
                                     random_matrix<double>(3, 1, 2), {}, ws);
        EXPECT_TRUE(got.logits.allFinite() && got.dx.allFinite());
        const auto none = run<double>(router, Matrix<double>(0, dim), Matrix<double>(0, 1), {}, ws);
        EXPECT_EQ(none.logits.rows(), 0);
    }
}

/// A layer of a network whose logits are scaled.
auto layer_of(Index width, Index count, double target, ResidualPlace place) {
    return moe::make_layer<float>(moe::Config{.model_dim = width},
                                  GatingResidual{LinearRouter{}, target, place}, moe::TopK{.k = 2},
                                  moe::Swiglu{.count = count, .ffn_dim = 2});
}

TEST(GatingResidual, HasTheSameBitsOnAnyNumberOfThreads) {
    for (const double target : {0.0, 0.5}) {
        const auto first = layer_of(67, 19, target, ResidualPlace::first);
        const auto layer = layer_of(67, 19, target, ResidualPlace::later);
        const auto x = random_matrix<float>(400, 67, 1), dlogits = random_matrix<float>(400, 19, 2);
        std::vector<Result<float>> results;
        std::vector<Matrix<float>> given_back;
        for (const int threads : {1, 2, 3}) {
            Workspace<float> before, ws;
            before.threads(threads);
            ws.threads(threads);
            first.route(x, before);
            results.push_back(
                run<float>(layer.router(), x, dlogits, Context{.previous = &before}, ws));
            given_back.push_back(before.dlogits());
            EXPECT_TRUE(same_bits(results.back().logits, results.front().logits));
            EXPECT_TRUE(same_bits(results.back().dx, results.front().dx));
            EXPECT_TRUE(same_bits(results.back().gradient, results.front().gradient));
            EXPECT_TRUE(
                same_bits(given_back.back(), given_back.front(), {.allow_zeros = target > 0}));
        }
    }
}

TEST(GatingResidual, AllocatesWhatItSaysAndNothingTwice) {
    for (const double target : {0.0, 0.5}) {
        const auto first = layer_of(33, 9, target, ResidualPlace::first);
        const auto later = layer_of(33, 9, target, ResidualPlace::later);
        expect_no_allocations<float>(first.router(), 300, 33, 9, {});
        Workspace<float> before;
        first.route(random_matrix<float>(300, 33, 1), before);
        expect_no_allocations<float>(later.router(), 300, 33, 9, {.previous = &before});
    }
}

TEST(GatingResidual, SaysWhatIsWrongWithTheLayerBefore) {
    auto net = network<double>(LinearRouter{}, GatingResidual{LinearRouter{}});
    const auto route2 = [&](const Matrix<double>& x, const Context& context) {
        return [&net, x, context] { net.layer2.route(x, net.ws2, context); };
    };
    const auto x = random_matrix<double>(tokens, dim, 1);
    expect_message<std::logic_error>(route2(x, net.context2), {"no batch has been routed here"});
    net.layer1.route(x, net.ws1);
    expect_message<std::invalid_argument>(
        route2(x.topRows(4), net.context2),
        {"moe::Context: previous holds [6, 7] logits, moe::GatingResidual wants [4, 7]"});
    Workspace<float> other;
    expect_message<std::invalid_argument>(route2(x, {.previous = &other}),
                                          {"previous is of another scalar"});
    expect_message<std::invalid_argument>(route2(x, {.previous = &net.ws2}),
                                          {"previous is the workspace of this layer itself"});
}

TEST(GatingResidual, SaysThatTheLayerBeforeHasGoneBackTooEarly) {
    auto net = network<double>(GatingResidual{LinearRouter{}, 0.5, ResidualPlace::first},
                               GatingResidual{LinearRouter{}});
    net.loss();
    Matrix<double> dh(tokens, dim);
    net.layer1.backward(net.x, net.dy, dh, net.grad1, net.ws1, net.context1);
    expect_message<std::logic_error>(
        [&] { net.layer2.backward(net.h1, net.dy, dh, net.grad2, net.ws2, net.context2); },
        {"moe::GatingResidual: the logits that the layer before has left", "backward() after"});
}

TEST(GatingResidual, RefusesBadSettings) {
    for (const double target : {-1.0, infinity, not_a_number})
        expect_message<std::invalid_argument>(
            [&] {
                build<double>(GatingResidual{LinearRouter{}, target}, dim, experts);
            },
            {"moe::GatingResidual: target_std is ", "it must be finite and >= 0"});
    expect_message<std::invalid_argument>(
        [] {
            build<double>(GatingResidual{LinearRouter{}, 0, static_cast<ResidualPlace>(2)}, dim,
                          experts);
        },
        {"moe::GatingResidual: place is 2, which is none of moe::ResidualPlace"});
    const auto router = build<double>(GatingResidual{}, dim, experts);
    expect_message<std::invalid_argument>(
        [&] {
            auto fits_not = router;
            fits_not.inner = build<double>(LinearRouter{}, dim, 3);
            fits_not.check({.model_dim = dim, .num_experts = 3, .num_logits = 3});
        },
        {"moe::GatingResidual: the router was built for 7 logits per token, the layer wants 3"});
    expect_message<std::invalid_argument>(
        [&] {
            auto without = router;
            without.residual() = {};
            without.check({.model_dim = dim, .num_experts = experts, .num_logits = experts});
        },
        {"moe::GatingResidual: residual is [0, 0], it must be [7, 7]"});
}

TEST(GatingResidual, NamesItsMatrixAndStartsItSmall) {
    const auto router = build<double>(GatingResidual{}, 4, 200);
    bool found = false;
    moe::visit_parameters(router, [&](std::string_view name, const auto& matrix, moe::Role) {
        if (name != "residual") return;
        found = true;
        EXPECT_NEAR(moe::ConstView<double>(matrix.data(), 200, 200, Eigen::OuterStride<>(200))
                            .squaredNorm() /
                        (200 * 200),
                    1.0 / 600, 5e-5);
    });
    EXPECT_TRUE(found);
    EXPECT_EQ(router.flops_per_token(), 2 * 4 * 200 + 2 * 200 * 200);
}

}  // namespace
