// SPDX-License-Identifier: MIT
#include <moe/balance/selection_bias.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace selection_bias_test {
namespace {

using moe::Index;
using moe::LoadSum;
using moe::Matrix;
using moe::ProportionalUpdate;
using moe::Role;
using moe::SignUpdate;

template <class S>
class SelectionBias : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SelectionBias, Scalars);

TYPED_TEST(SelectionBias, SignUpdateIsOneStepAwayFromTheMean) {
    // mean of 2 0 0 1 0 1 2 2 is 1; the experts with 1 stay
    using S = TypeParam;
    const std::vector<double> load{2, 0, 0, 1, 0, 1, 2, 2};
    std::vector<S> bias(8, S(0));
    SignUpdate{}.update(std::span(bias), load);
    const S u = S(1e-3);
    EXPECT_EQ(bias, (std::vector<S>{-u, u, u, 0, u, 0, -u, -u}));
    SignUpdate{}.update(std::span(bias), load);
    EXPECT_NEAR(bias[0], -2e-3, 1e-9);
    EXPECT_EQ(bias[3], 0);
}

TYPED_TEST(SelectionBias, CentredStepsKeepTheMeanOfTheBias) {
    // mean of 4 0 0 0 is 1: signs -1 1 1 1, their mean 1/2: steps -3/2 1/2 1/2 1/2
    using S = TypeParam;
    std::vector<S> bias{S(0.25), S(-0.5), S(0), S(0.25)};
    SignUpdate{.rate = 0.5, .centre = true}.update(std::span(bias),
                                                   std::vector<double>{4, 0, 0, 0});
    EXPECT_EQ(bias, (std::vector<S>{S(-0.5), S(-0.25), S(0.25), S(0.5)}));
}

TYPED_TEST(SelectionBias, ProportionalUpdateMovesByTheDeviation) {
    // mean 2: deviations 2 - 4, 2 - 2, 2 - 0 over 2 are -1 0 1
    using S = TypeParam;
    std::vector<S> bias(3, S(1));
    ProportionalUpdate{.rate = 0.25}.update(std::span(bias), std::vector<double>{4, 2, 0});
    EXPECT_EQ(bias, (std::vector<S>{S(0.75), S(1), S(1.25)}));
    ProportionalUpdate{}.update(std::span(bias), std::vector<double>{0, 0, 0});
    EXPECT_EQ(bias, (std::vector<S>{S(0.75), S(1), S(1.25)}));
}

TEST(SelectionBias, BalanceAndNoLoadMoveNothing) {
    for (const double each : {0.0, 7.0, 1e15 / 3}) {
        std::vector<float> bias{1, 2, 3};
        SignUpdate{.rate = 1}.update(std::span(bias), std::vector<double>(3, each));
        SignUpdate{.rate = 1, .centre = true}.update(std::span(bias), std::vector<double>(3, each));
        ProportionalUpdate{.rate = 1}.update(std::span(bias), std::vector<double>(3, each));
        EXPECT_EQ(bias, (std::vector<float>{1, 2, 3}));
    }
    SignUpdate{}.update(std::span<float>(), std::span<const double>());
}

TEST(SelectionBias, RefusesWhatIsNoLoad) {
    std::vector<float> bias(2);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const std::vector<double>& load : {std::vector<double>{1}, {1, -1}, {1, nan}, {1, 2, 3}}) {
        EXPECT_THROW(SignUpdate{}.update(std::span(bias), load), std::invalid_argument);
        EXPECT_THROW(ProportionalUpdate{}.update(std::span(bias), load), std::invalid_argument);
    }
    EXPECT_EQ(bias, (std::vector<float>{0, 0}));
    bias.assign(3, 0.0F);
    const std::vector<double> huge(3, 1e308);
    EXPECT_EQ(support::message([&] { ProportionalUpdate{}.update(std::span(bias), huge); }),
              "moe::ProportionalUpdate: the loads sum to inf, that must be finite");
    EXPECT_EQ(bias, std::vector<float>(3, 0.0F));
}

TEST(SelectionBias, RefusesARateThatIsNotFinite) {
    std::vector<float> bias(2);
    const std::vector<double> load{1, 3};
    const double nan = std::numeric_limits<double>::quiet_NaN(),
                 infinity = std::numeric_limits<double>::infinity();
    for (const double rate : {nan, infinity, -infinity}) {
        EXPECT_THROW(SignUpdate{.rate = rate}.update(std::span(bias), load), std::invalid_argument);
        EXPECT_THROW(ProportionalUpdate{.rate = rate}.update(std::span(bias), load),
                     std::invalid_argument);
    }
    EXPECT_EQ(bias, (std::vector<float>{0, 0}));
    EXPECT_EQ(support::message([&] { SignUpdate{.rate = infinity}.update(std::span(bias), load); }),
              "moe::SignUpdate: rate is inf, it must be finite");
}

/// Hands its input on as logits, so that a test says what they are.
struct GivenLogits {
    void forward(moe::In<float> x, moe::Out<float> logits) const { logits = x; }
    void backward(moe::In<float>, moe::In<float> dlogits, moe::Out<float> dx, GivenLogits&) const {
        dx = dlogits;
    }
};

using Balanced = moe::Head<float, GivenLogits, moe::TopK>;

constexpr Index experts = 8;

Balanced balanced_head(bool with_bias = true) {
    return Balanced(moe::Config{.model_dim = experts}, GivenLogits{},
                    moe::TopK{.k = 2, .score = moe::Score::sigmoid, .selection_bias = with_bias},
                    std::vector<moe::ExpertFacts>(experts));
}

/// MaxVio over the last 10 of `steps` fresh batches of logits that favour the first experts.
template <class Controller>
double violation_after(int steps, Controller controller, Balanced head = balanced_head()) {
    moe::Workspace<float> ws;
    LoadSum last(experts);
    for (int step = 0; step < steps; ++step) {
        const auto seed = static_cast<std::uint64_t>(100 + step);
        Matrix<float> logits = moe::testing::random_matrix<float>(512, experts, seed);
        for (Index e = 0; e < experts; ++e) logits.col(e).array() -= 0.15F * static_cast<float>(e);
        head.route(logits, ws);
        if (step >= steps - 10) last.add(ws.routing());
        moe::update_bias(head, ws.routing(), controller);
    }
    return moe::max_violation(last.counts());
}

TEST(SelectionBias, DrivesASkewedStreamToBalance) {
    const double before = violation_after(10, SignUpdate{.rate = 0});
    EXPECT_GT(before, 1);
    const double sign = violation_after(150, SignUpdate{.rate = 4e-3});
    EXPECT_LT(sign, 0.1) << "was " << before;
    const double centred = violation_after(150, SignUpdate{.rate = 4e-3, .centre = true});
    EXPECT_LT(centred, 0.1);
    const double proportional = violation_after(150, ProportionalUpdate{.rate = 1e-2});
    EXPECT_LT(proportional, 0.1);
    RecordProperty("max_violation_before", std::to_string(before));
    RecordProperty("max_violation_sign", std::to_string(sign));
    RecordProperty("max_violation_centred", std::to_string(centred));
    RecordProperty("max_violation_proportional", std::to_string(proportional));
}

TEST(SelectionBias, WithTheSignSwappedBalanceGetsWorse) {
    EXPECT_GT(violation_after(60, SignUpdate{.rate = -4e-3}),
              violation_after(10, SignUpdate{.rate = 0}) + 0.5);
}

TEST(SelectionBias, IsFoundInALayerAndInAGate) {
    Balanced head = balanced_head();
    const std::span<float> bias = moe::selection_bias<float>(head);
    ASSERT_EQ(bias.size(), 8u);
    EXPECT_EQ(bias.data(), head.gate().bias().data());
    EXPECT_EQ(moe::selection_bias<float>(head.gate()).data(), bias.data());
}

TEST(SelectionBias, MovesByLoadsOfEveryKind) {
    Balanced head = balanced_head();
    const float u = 0.5F;
    const SignUpdate controller{.rate = u};
    moe::update_bias(head, std::vector<double>{9, 1, 1, 1, 1, 1, 1, 1}, controller);
    EXPECT_EQ(head.gate().bias()(0, 0), -u);
    EXPECT_EQ(head.gate().bias()(0, 1), u);
    const std::vector<Index> counts{9, 1, 1, 1, 1, 1, 1, 1};
    moe::update_bias(head, counts, controller);
    EXPECT_EQ(head.gate().bias()(0, 0), -2 * u);
    LoadSum load(8);
    load.add(counts);
    moe::update_bias(head.gate(), load, controller);
    EXPECT_EQ(head.gate().bias()(0, 0), -3 * u);
}

TEST(SelectionBias, MovesInAWholeLayer) {
    moe::Layer layer{moe::Config{.model_dim = 6}, moe::LinearRouter{.bias = true},
                     moe::TopK{.k = 1, .score = moe::Score::sigmoid, .selection_bias = true},
                     moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Mlp{.ffn_dim = 4, .bias = true}};
    // The router's bias and the experts' are not taken for it.
    EXPECT_EQ(moe::selection_bias<float>(layer).data(), layer.gate().bias().data());
    const Matrix<float> x = moe::testing::random_matrix<float>(20, 6, 1);
    moe::Workspace<float> ws;
    Matrix<float> y(20, 6);
    layer.router().bias.view()(0, 2) = 9;  // all go there
    layer.forward(x, y, ws);
    ASSERT_EQ(ws.routing().tokens_of(2).size(), 20u);
    moe::update_bias(layer, ws.routing(), SignUpdate{.rate = 0.5});
    for (Index e = 0; e < 4; ++e) EXPECT_EQ(layer.gate().bias()(0, e), e == 2 ? -0.5F : 0.5F);
    moe::update_bias(layer, ws.routing(), SignUpdate{.rate = 0.5});
    layer.forward(x, y, ws);
    EXPECT_TRUE(ws.routing().tokens_of(2).empty());
    EXPECT_EQ(layer.router().bias.view()(0, 2), 9);
}

/// A controller of one's own: with state, and taking turns.
struct EveryOther {
    int calls = 0;
    void update(std::span<float> bias, std::span<const double>) {
        if (++calls % 2 == 0) bias[0] += 1;
    }
};
static_assert(moe::BalanceController<const moe::SignUpdate>);
static_assert(moe::BalanceController<const moe::SignUpdate, double>);
static_assert(moe::BalanceController<const moe::ProportionalUpdate>);
static_assert(moe::BalanceController<EveryOther>);
static_assert(!moe::BalanceController<const EveryOther>);
static_assert(!moe::BalanceController<int>);

TEST(SelectionBias, TakesControllersOfOnesOwn) {
    Balanced head = balanced_head();
    EveryOther controller;
    const LoadSum load(8);
    for (int i = 0; i < 4; ++i) moe::update_bias(head, load, controller);
    EXPECT_EQ(head.gate().bias()(0, 0), 2);
}

struct TwoGates {
    using Scalar = float;
    moe::Parameter<float> a{1, 2}, b{1, 2}, trained{1, 2};
    void visit_parameters(auto&& visit) {
        visit("trained.bias", trained, Role::trainable);
        visit("a.bias", a, Role::state);
        visit("b.bias", b, Role::state);
    }
};

TEST(SelectionBias, SaysWhenThereIsNoneOrSeveral) {
    Balanced without = balanced_head(false);
    EXPECT_EQ(support::message([&] { moe::update_bias(without, LoadSum(8), SignUpdate{}); }),
              "moe::selection_bias: the gate has none; build it with one, e.g. "
              "moe::TopK{.k = 2, .selection_bias = true}");
    TwoGates two;
    EXPECT_EQ(support::message([&] { moe::update_bias(two, LoadSum(2), SignUpdate{}); }),
              "moe::selection_bias: there are two, a.bias and b.bias; pass the gate whose bias "
              "you mean");
    Balanced head = balanced_head();
    EXPECT_THROW(moe::update_bias(head, LoadSum(7), SignUpdate{}), std::invalid_argument);
}

}  // namespace
}  // namespace selection_bias_test
