// SPDX-License-Identifier: MIT
#include <moe/routers/pre_gated.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/load_balance.hpp>
#include <moe/routers/jitter.hpp>

#include "routers/three_layers.hpp"
#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::LinearRouter;
using moe::PreGated;
using moe::PreGatePlace;

constexpr Index tokens = 6, dim = 5;
constexpr Index experts1 = 4, experts2 = 6, experts3 = 3;

/// Three layers of different numbers of experts.
template <class S, class Inner>
struct Network : ThreeLayers<S, LayerOfThree<S, PreGated<Inner>>, LayerOfThree<S, PreGated<Inner>>,
                             LayerOfThree<S, PreGated<Inner>>> {
    explicit Network(const Inner& inner = {})
        : Network::ThreeLayers(
              layer_of_three<S>(PreGated{inner, PreGatePlace::first, experts2}, experts1, 11),
              layer_of_three<S>(PreGated{inner, PreGatePlace::middle, experts3}, experts2, 12),
              layer_of_three<S>(PreGated{inner, PreGatePlace::last}, experts3, 13)) {}
};

template <class S>
class PreGatedRouters : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PreGatedRouters, Scalars);

TYPED_TEST(PreGatedRouters, DecideFromTheTokensOfTheLayerBefore) {
    using S = TypeParam;
    Network<S, LinearRouter> net;
    net.loss();
    const auto product = [](const Matrix<S>& x, const auto& router) {
        const Matrix<double> w = router.weight.view().template cast<double>();
        return Matrix<double>(x.template cast<double>() * w.transpose());
    };
    const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
    EXPECT_TRUE(moe::testing::compare(net.ws1.logits(), product(net.x, net.layer1.router().own()),
                                      tolerance));
    EXPECT_TRUE(moe::testing::compare(net.ws2.logits(),
                                      product(net.x, net.layer1.router().pre_gate()), tolerance));
    EXPECT_TRUE(moe::testing::compare(net.ws3.logits(),
                                      product(net.h1, net.layer2.router().pre_gate()), tolerance));
}

TYPED_TEST(PreGatedRouters, TellTheNextLayersLogitsBeforeTheirOwnExpertsHaveRun) {
    using S = TypeParam;
    Network<S, LinearRouter> net;
    net.layer1.route(net.x, net.ws1);
    const Matrix<S> early = moe::next_logits(net.ws1);
    ASSERT_EQ(early.cols(), experts2);
    net.layer1.apply(net.x, net.h1, net.ws1);
    net.h1 += net.x;
    net.layer2.route(net.h1, net.ws2, net.context2);
    EXPECT_TRUE(same_bits(net.ws2.logits(), early));
    // A choice made of them is the one that the next layer makes.
    for (Index t = 0; t < tokens; ++t) {
        Index best = 0;
        early.row(t).maxCoeff(&best);
        EXPECT_EQ(net.ws2.routing().of(t)[0].expert, best);
    }
}

TEST(PreGated, HasExactGradientsThroughThreeLayers) {
    Network<double, LinearRouter>(LinearRouter{.bias = true}).expect_exact();
    Network<double, moe::Jitter<>> noisy(moe::Jitter<>{.epsilon = 0.2});
    for (Context* const context : {&noisy.context1, &noisy.context2, &noisy.context3})
        context->training = true;
    noisy.expect_exact();
}

TEST(PreGated, HasExactGradientsAroundAUsersRouter) {
    // Built as it is, so layers have one number of experts.
    const auto layer_of = [](PreGatePlace place, std::uint64_t seed) {
        return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = seed},
                                       PreGated{own(dim, 4), place}, moe::TopK{.k = 2},
                                       moe::Swiglu{.count = 4, .ffn_dim = 3});
    };
    auto layer1 = layer_of(PreGatePlace::first, 1), layer2 = layer_of(PreGatePlace::last, 2);
    Matrix<double> x = random_matrix<double>(tokens, dim, 31), h(tokens, dim), y(tokens, dim);
    const auto dy = random_matrix<double>(tokens, dim, 32);
    Workspace<double> ws1, ws2;
    const Context second{.previous = &ws1};
    const auto loss = [&] {
        layer1.forward(x, h, ws1);
        h += x;
        layer2.forward(h, y, ws2, second);
        return seams::weighted_sum(y, dy);
    };
    loss();
    auto grad1 = moe::zeros_like(layer1), grad2 = moe::zeros_like(layer2);
    Matrix<double> dh(tokens, dim), dx(tokens, dim);
    layer2.backward(h, dy, dh, grad2, ws2, second);
    layer1.backward(x, dh, dx, grad1, ws1);
    dx += dh;
    const auto options =
        seams::options([same1 = seams::SameChoices(ws1), same2 = seams::SameChoices(ws2)] {
            return same1() && same2();
        });
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer1, grad1, options);
    seams::expect_parameter_gradients(loss, layer2, grad2, options);
    EXPECT_GT(grad1.router().pre_gate().weight.norm(), 1e-4);
}

TEST(PreGated, HasExactGradientsWithMaskedExpertsAndPadding) {
    std::vector<std::uint8_t> allowed(tokens * experts2, 1), padding(tokens, 0);
    for (Index t = 0; t < tokens; ++t) allowed[static_cast<std::size_t>(t * experts2 + t)] = 0;
    padding[3] = 1;
    Network<double, LinearRouter> net;
    net.context2.allowed = allowed;
    for (Context* const context : {&net.context1, &net.context2, &net.context3})
        context->padding = padding;
    net.expect_exact();
    net.x.row(3).setConstant(not_a_number);
    net.grad1 = moe::zeros_like(net.layer1);
    net.loss();
    net.backward();
    EXPECT_TRUE(net.dx.allFinite());
    for (const double value : seams::values_of<double>(net.grad1))
        EXPECT_TRUE(std::isfinite(value));
}

TEST(PreGated, ComputesOnlyTheGradientsThatAreWanted) {
    Network<double, LinearRouter> net, other;
    net.loss();
    net.backward();
    const auto only_next = [](std::string_view name) { return name == "router.next.weight"; };
    other.grad1 = moe::zeros_like(other.layer1, only_next);
    other.grad2 = moe::zeros_like(other.layer2, only_next);
    other.loss();
    other.backward();
    EXPECT_TRUE(same_bits(other.dx, net.dx));
    EXPECT_TRUE(
        same_bits(other.grad1.router().pre_gate().weight, net.grad1.router().pre_gate().weight));
    EXPECT_TRUE(other.grad1.router().own().weight.empty());
    Network<double, LinearRouter> none;
    none.loss();
    Matrix<double> dh1(tokens, dim), dh2(tokens, dim);
    none.layer3.backward(none.h2, none.dy, dh2, moe::no_gradient, none.ws3, none.context3);
    none.layer2.backward(none.h1, dh2, dh1, moe::no_gradient, none.ws2, none.context2);
    EXPECT_TRUE(dh1.allFinite());
}

TEST(PreGated, HasTheSameBitsOnAnyNumberOfThreadsAndFrozen) {
    std::vector<Matrix<float>> outputs;
    std::vector<std::vector<float>> gradients;
    for (const int threads : {1, 2, 3}) {
        Network<float, LinearRouter> net;
        net.x = random_matrix<float>(tokens, dim, 5);
        for (auto* const ws : {&net.ws1, &net.ws2, &net.ws3}) {
            ws->threads(threads);
            ws->plan(moe::Plan{.serial_flops = 0});
        }
        net.loss();
        Workspace<float> ws1, ws2;
        Matrix<float> h(tokens, dim), y(tokens, dim), expected(tokens, dim);
        moe::freeze(net.layer1).forward(net.x, h, ws1);
        moe::freeze(net.layer2).forward(net.h1, y, ws2, {.previous = &ws1});
        net.layer2.forward(net.h1, expected, net.ws2, net.context2);
        EXPECT_TRUE(same_bits(y, expected));

        net.loss();
        net.backward();
        outputs.push_back(net.dx);
        gradients.push_back(seams::values_of<float>(net.grad1));
        EXPECT_TRUE(same_bits(outputs.back(), outputs.front()));
        EXPECT_TRUE(same_bits(gradients.back(), gradients.front()));
    }
}

TEST(PreGated, AllocatesWhatItSaysAndNothingTwice) {
    const auto router = build<float>(PreGated{LinearRouter{}, PreGatePlace::first, 12}, 33, 9);
    expect_no_allocations<float>(router, 300, 33, 9, {});
    expect_same_bits<float>(router, 300, 33, 9, {});
    // The middle one, with a layer before it.
    const auto middle = build<float>(PreGated{LinearRouter{}, PreGatePlace::middle}, 33, 12);
    Workspace<float> before, ws;
    const auto x = random_matrix<float>(300, 33, 1), dlogits = random_matrix<float>(300, 12, 2);
    Matrix<float> z(300, 9), logits(300, 12), dx(300, 33);
    auto grad = moe::zeros_like(middle);
    const Context none, context{.previous = &before};
    const auto both = [&] {
        router.forward(x, z, Call<float>{none, before.child(0)});
        middle.forward(x, logits, Call<float>{context, ws});
        middle.backward(x, dlogits, dx, grad, Call<float>{context, ws});
    };
    both();
    EXPECT_EQ(allocations::in(both), 0);
}

TEST(PreGated, SaysThatTheLayerBeforeHasLeftNothing) {
    Network<double, LinearRouter> net;
    const auto route2 = [&] { net.layer2.route(net.h1, net.ws2, net.context2); };
    net.h1 = net.x;
    expect_message<std::logic_error>(route2, {"moe::PreGated: the layer before has left no logits",
                                              "outermost, with place first or middle"});
    expect_message<std::invalid_argument>([&] { net.layer2.route(net.h1, net.ws2); },
                                          {"moe::Context: previous is empty"});
    expect_message<std::logic_error>([&] { moe::next_logits(net.ws1); }, {"has left no logits"});
    const auto plain =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, LinearRouter{}, moe::TopK{.k = 2},
                                moe::Swiglu{.count = experts1, .ffn_dim = 3});
    Workspace<double> ws;
    plain.route(net.x, ws);
    expect_message<std::logic_error>([&] { net.layer2.route(net.h1, net.ws2, {.previous = &ws}); },
                                     {"its router must be moe::PreGated"});
}

TEST(PreGated, RefusesLogitsOfAnotherBatch) {
    Network<double, LinearRouter> net;
    net.loss();
    const auto route2 = [&](Index rows, Context context) {
        context.previous = &net.ws1;
        return [&net, rows, context] { net.layer2.route(net.h1.topRows(rows), net.ws2, context); };
    };
    EXPECT_NO_THROW(route2(tokens, {})());  // again, as recomputation does
    expect_message<std::invalid_argument>(
        route2(4, {}), {"moe::PreGated: the logits that were left are [6, 6], wanted are [4, 6]"});
    expect_message<std::logic_error>(route2(tokens, {.step = 1}),
                                     {"are of step 0 and of tokens from 0 on, this call is of "
                                      "step 1"});
    expect_message<std::logic_error>(route2(tokens, {.first_token = 6}), {"from 6 on"});
    // Layers of other numbers of experts than was said.
    expect_message<std::invalid_argument>(
        [&] { net.layer3.route(net.h2, net.ws3, {.previous = &net.ws1}); },
        {"the logits that were left are [6, 6], wanted are [6, 3]"});
    // Once the layer before has gone back, its batch is over.
    Matrix<double> dh(tokens, dim);
    net.loss();
    net.layer1.backward(net.x, net.dy, dh, net.grad1, net.ws1, net.context1);
    expect_message<std::logic_error>(
        [&] { net.layer2.backward(net.h1, net.dy, dh, net.grad2, net.ws2, net.context2); },
        {"moe::PreGated: the logits that the layer before has left are not those of this batch",
         "its backward() after the one here"});
    expect_message<std::logic_error>(route2(tokens, {}), {"are not those of this batch"});
}

TEST(PreGated, StartsEachBackwardFromNothing) {
    // What was handed back for one batch does not stay for the next.
    Network<double, LinearRouter> net;
    net.loss();
    net.backward();
    const auto once = seams::values_of<double>(net.grad1);
    net.grad1 = moe::zeros_like(net.layer1);
    net.loss();
    net.backward();
    EXPECT_TRUE(same_bits(seams::values_of<double>(net.grad1), once));
    // Neither where the batch was left before it came back.
    net.grad1 = moe::zeros_like(net.layer1);
    net.loss();
    Matrix<double> dh(tokens, dim);
    net.layer2.backward(net.h1, net.dy, dh, net.grad2, net.ws2, net.context2);
    net.loss();
    net.backward();
    EXPECT_TRUE(same_bits(seams::values_of<double>(net.grad1), once));
}

TEST(PreGated, HasTheRoutersOfItsPlace) {
    const auto names_of = [](PreGatePlace place, double flops) {
        const auto router = build<double>(PreGated{LinearRouter{}, place}, dim, 4);
        EXPECT_EQ(router.flops_per_token(), flops);
        EXPECT_EQ(router.place(), place);
        std::string names;
        moe::visit_parameters(router, [&](std::string_view name, const auto&, moe::Role) {
            names += std::string(name) + " ";
        });
        return names;
    };
    EXPECT_EQ(names_of(PreGatePlace::first, 2 * 2 * dim * 4), "weight next.weight ");
    EXPECT_EQ(names_of(PreGatePlace::middle, 2 * dim * 4), "next.weight ");
    EXPECT_EQ(names_of(PreGatePlace::last, 0), "");
    const auto router = build<double>(PreGated{}, dim, 4);
    EXPECT_FALSE(same_bits(router.own().weight, router.pre_gate().weight));
    EXPECT_GT(router.freeze({}).bytes(), 0);
}

TEST(PreGated, WorksOnNoTokens) {
    const auto router = build<double>(PreGated{}, dim, 4);
    Workspace<double> ws;
    const auto got = run<double>(router, Matrix<double>(0, dim), Matrix<double>(0, 4), {}, ws);
    EXPECT_EQ(got.logits.rows(), 0);
    for (const double value : got.gradient) EXPECT_EQ(value, 0);
}

TEST(PreGated, RefusesBadSettings) {
    const auto build_of = [](PreGatePlace place, Index next) {
        return [place, next] { build<double>(PreGated{LinearRouter{}, place, next}, dim, 4); };
    };
    expect_message<std::invalid_argument>(
        build_of(PreGatePlace::first, -1),
        {"moe::PreGated: num_next_logits is -1, it must be >= 0"});
    expect_message<std::invalid_argument>(
        build_of(PreGatePlace::last, 4),
        {"moe::PreGated: num_next_logits is 4, it must be 0 in the last layer"});
    expect_message<std::invalid_argument>(
        build_of(static_cast<PreGatePlace>(5), 0),
        {"moe::PreGated: place is 5, which is none of moe::PreGatePlace"});
    const auto router = build<double>(PreGated{}, dim, 4);
    expect_message<std::invalid_argument>(
        [&] { router.check({.model_dim = dim, .num_experts = 5, .num_logits = 5}); },
        {"moe::PreGated: the router was built for model_dim 5 and 4 logits per token, the layer "
         "has 5 and 5"});
    const auto last = build<double>(PreGated{LinearRouter{}, PreGatePlace::last}, dim, 4);
    expect_message<std::invalid_argument>([&] { router.check_gradient(last); },
                                          {"grad is of another layer: it is of another place"});
}

}  // namespace
