// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/relu.hpp>
#include <moe/gates/threshold.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/token_laws.hpp"

namespace {

using gates_test::batch;
using gates_test::chosen;
using gates_test::Experts;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Index;
using moe::Normalize;
using moe::Placement;
using moe::Relu;

static_assert(moe::Recipe<Relu>);
static_assert(moe::TrainableGate<moe::ReluModule<float>, float>);

template <class S>
class ReluGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ReluGate, Scalars);

TYPED_TEST(ReluGate, TakesLogitsAboveZeroAndWeighsWithThem) {
    using S = TypeParam;
    auto tokens = batch<S>(Relu{}, 8);
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2, 6, 3}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7, 1, 5})) << "a logit of 0 is not above 0";
    EXPECT_EQ(tokens.weights_of(1), (std::vector<double>{1, 0.75, 0.5, 0.25}));
    EXPECT_EQ(tokens.weights_of(2), (std::vector<double>{3}));
}

TYPED_TEST(ReluGate, IsThePlainLoop) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 40, 5, 3);
    auto tokens =
        batch<S>(Relu{.normalize = Normalize::add_epsilon, .epsilon = 0.5, .scale = 2}, 40);
    tokens.route(z);
    for (Index t = 0; t < 60; ++t) {
        std::vector<std::pair<double, Index>> passing;
        double sum = 0.5;
        for (Index e = 0; e < 40; ++e)
            if (z(t, e) > 0) {
                passing.emplace_back(static_cast<double>(z(t, e)), e);
                sum += static_cast<double>(z(t, e));
            }
        std::sort(passing.begin(), passing.end(), std::greater<>());
        ASSERT_EQ(tokens.weights_of(t).size(), passing.size());
        for (std::size_t i = 0; i < passing.size(); ++i) {
            EXPECT_EQ(tokens.experts_of(t)[i], passing[i].second);
            EXPECT_NEAR(tokens.weights_of(t)[i], 2 * passing[i].first / sum,
                        sizeof(S) == 4 ? 1e-6 : 1e-14);
        }
    }
}

TYPED_TEST(ReluGate, IsAThresholdOfRawScoresAtZero) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 40, 5, 3);
    auto relu = batch<S>(Relu{.max_experts = 12}, 40);
    auto raw =
        batch<S>(moe::Threshold{.threshold = 0, .score = moe::Score::raw, .max_experts = 12}, 40);
    relu.route(z);
    raw.route(z);
    EXPECT_EQ(relu.routing, raw.routing);
    const auto c = gates_test::derivatives<S>(relu.routing.num_assignments());
    EXPECT_TRUE(
        moe::testing::same_bits(relu.backward(z, c), raw.backward(z, c), {.allow_zeros = true}));
}

TYPED_TEST(ReluGate, ScalesWithItsLogits) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 12, 6, 2);
    const moe::Matrix<S> doubled = 2 * z;
    auto one = batch<S>(Relu{}, 12), two = batch<S>(Relu{}, 12);
    auto normed = batch<S>(Relu{.normalize = Normalize::plain}, 12);
    one.route(z);
    two.route(doubled);
    ASSERT_TRUE(gates_test::same_choices(one.routing, two.routing));
    for (std::size_t a = 0; a < one.routing.assignments().size(); ++a)
        EXPECT_EQ(two.routing.assignments()[a].weight, 2 * one.routing.assignments()[a].weight);
    normed.route(z);
    const moe::Routing before = normed.routing;
    normed.route(doubled);
    EXPECT_EQ(normed.routing, before) << "normalised, the scale does not show";
}

/// The weights of both experts pass through 0 without a jump, and so does the sum of what is
/// routed; a fixed number of experts would jump.
TEST(ReluWeights, DoNotJumpWhereAnExpertLeaves) {
    auto tokens = batch<double>(Relu{}, 3);
    double before = 1;
    for (double moved = -0.01; moved < 0.01; moved += 1e-4) {
        tokens.route(rows<double>({{1, moved, -1}}));
        double sum = 0;
        for (const double weight : tokens.weights_of(0)) sum += weight;
        EXPECT_NEAR(sum, before, 1.01e-4);
        before = sum;
    }
}

TYPED_TEST(ReluGate, ReplaysWithZeroWhereTheLogitFell) {
    using S = TypeParam;
    auto tokens = batch<S>(Relu{}, 3);
    tokens.route(rows<S>({{1, 2, 3}}));
    const auto fallen = rows<S>({{1, -2, 3}});
    tokens.weigh(fallen);
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{3, 0, 1}));
    const std::vector<S> c{1, 10, 100};
    EXPECT_EQ(tokens.backward(fallen, c), rows<S>({{100, 0, 1}}));
}

TYPED_TEST(ReluGate, MayTakeNobodyOrFewOrAll) {
    using S = TypeParam;
    const auto z = rows<S>({{-1, 0, -2, -4}, {1, 2, 1, 3}});
    EXPECT_EQ(chosen(Relu{}, z), (std::vector<Experts>{{}, {3, 1, 0, 2}}))
        << "k = E, ties to the lower index";
    EXPECT_EQ(chosen(Relu{.max_experts = 2}, z), (std::vector<Experts>{{}, {3, 1}}));
}

TYPED_TEST(ReluGate, LeavesNullExpertsOutOfTheSum) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[3].is_null = true;
    auto tokens = batch<S>(Relu{.normalize = Normalize::plain}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(1),
              (std::vector<double>{0, 0.75 / 1.5, S(0.5) / S(1.5), S(0.25) / S(1.5)}));
}

TYPED_TEST(ReluGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const Relu& recipe : {Relu{}, Relu{.max_experts = 8, .normalize = Normalize::plain},
                               Relu{.normalize = Normalize::clamp, .epsilon = 1}}) {
        gates_test::expect_token_laws<S>(recipe);
        gates_test::expect_token_permutation<S>(recipe);
        gates_test::expect_bytes_as_said(recipe);
    }
    gates_test::expect_one_expert_works<S>(Relu{});
}

TEST(ReluGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_spaced<double>(6, 9, 12, 0.2);
    for (const Normalize normalize :
         {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
        for (const Placement placement : {Placement::output, Placement::input})
            gates_test::expect_gradient(Relu{.max_experts = 3,
                                             .normalize = normalize,
                                             .epsilon = 0.6,
                                             .scale = 1.5,
                                             .placement = placement},
                                        z);
}

TEST(ReluGradient, IsTheScaledDerivativeAtTheChosenAndZeroElsewhere) {
    auto tokens = batch<double>(Relu{.scale = 3}, 4);
    const auto z = rows<double>({{0.5, -1, 2, 0}});
    tokens.route(z);
    const std::vector<double> c{7, 5};  // of expert 2, then 0
    EXPECT_EQ(tokens.backward(z, c), rows<double>({{15, 0, 21, 0}}));
}

TEST(ReluLayer, HasTheGradientsOfDifferences) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4},
                                               moe::LinearRouter{.bias = true}, Relu{},
                                               moe::Swiglu{.count = 5, .ffn_dim = 4});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 7, .columns = 5}));
}

TEST(ReluSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(Relu{}), "");
    EXPECT_EQ(refusal(Relu{.max_experts = 9}),
              "moe::Relu: max_experts is 9, it must be in [1, 8], or 0 for all");
    EXPECT_NE(refusal(Relu{.max_experts = -1}), "");
    EXPECT_EQ(refusal(Relu{.epsilon = -1}), "moe::Relu: epsilon is -1, it must be finite and >= 0");
    EXPECT_NE(refusal(Relu{.scale = std::nan("")}), "");
}

}  // namespace
