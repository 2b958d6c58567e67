// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/hybrid_entropy.hpp>
#include <moe/gates/top_p.hpp>
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
using moe::HybridEntropy;
using moe::Index;
using moe::Normalize;
using moe::Placement;

static_assert(moe::Recipe<HybridEntropy>);
static_assert(moe::TrainableGate<moe::HybridEntropyModule<float>, float>);
static_assert(moe::hooks::reads_p<moe::HybridEntropyModule<float>>);

template <class S>
class HybridEntropyGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(HybridEntropyGate, Scalars);

TYPED_TEST(HybridEntropyGate, IsThePublishedOneOnTheGoldenLogits) {
    using S = TypeParam;
    auto tokens = batch<S>(HybridEntropy{}, 8);
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7, 1, 5, 0, 6, 2, 4}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{0, 6}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7, 6, 5, 4, 3, 2, 1, 0}));
    EXPECT_TRUE(
        moe::testing::compare(tokens.weights_of(0), std::vector<double>{.4348488, .1953901}, 5e-7));
    EXPECT_TRUE(moe::testing::compare(tokens.weights_of(1),
                                      std::vector<double>{.2583614, .2012120, .1567041, .1220413,
                                                          .0950458, .0740218, .0576482, .0349654},
                                      5e-7));
    // Entropies are .7869866 .9229029 .1603252 .9873304.
    const auto sizes = [&](double threshold) {
        std::array<std::size_t, 4> count{};
        const auto all = chosen(HybridEntropy{.threshold = threshold}, golden_logits<S>());
        for (std::size_t t = 0; t < 4; ++t) count[t] = all[t].size();
        return count;
    };
    EXPECT_EQ(sizes(.16032)[2], 8u);
    EXPECT_EQ(sizes(.16033)[2], 2u);
    EXPECT_EQ(sizes(.78698)[0], 8u);
    EXPECT_EQ(sizes(.78699)[0], 2u);
    EXPECT_EQ(sizes(.92290)[1], 8u);
    EXPECT_EQ(sizes(.92291)[1], 4u) << "their sum is .738, with the next .833";
}

TYPED_TEST(HybridEntropyGate, IsThePlainLoop) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(200, 12, 5, 6);
    int undecided = 0;
    for (const double q : {1.0, 1.1, 2.0})
        for (const double threshold : {0.31, 0.62, 0.88}) {
            const auto actual = chosen(
                HybridEntropy{
                    .p = 0.6, .keep_top_k = 1, .threshold = threshold, .entropy_index = q},
                z);
            for (Index t = 0; t < 200; ++t) {
                Experts order(12);
                std::iota(order.begin(), order.end(), 0);
                std::stable_sort(order.begin(), order.end(),
                                 [&](Index a, Index b) { return z(t, a) > z(t, b); });
                double over = 0, sum = 0;
                std::vector<double> p;
                for (Index e = 0; e < 12; ++e) over += std::exp(static_cast<double>(z(t, e)));
                for (const Index e : order)
                    p.push_back(std::exp(static_cast<double>(z(t, e))) / over);
                for (const double value : p)
                    sum += q == 1 ? -(value + 1e-5) * std::log(value + 1e-5)
                                  : std::pow(value + 1e-5, q);
                const double entropy =
                    q == 1 ? sum / std::log(12.) : (1 - sum) / (1 - std::pow(12., 1 - q));
                ASSERT_GT(std::abs(entropy - threshold), 2e-6) << "choose other numbers";
                std::size_t kept = 0;
                if (entropy > threshold) {
                    kept = 12;
                    ++undecided;
                } else {
                    for (double c = p[0]; c <= 0.6; c += p[kept]) ++kept;
                    kept = std::max<std::size_t>(kept, 1);
                }
                order.resize(kept);
                EXPECT_EQ(actual[static_cast<std::size_t>(t)], order);
            }
        }
    EXPECT_GT(undecided, 200);
    EXPECT_LT(undecided, 1600);
}

TYPED_TEST(HybridEntropyGate, IsTopPBelowTheThresholdOfEveryEntropy) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 24, 9, 2);
    EXPECT_EQ(chosen(HybridEntropy{.threshold = 2}, z),
              chosen(moe::TopP{.p = 0.75, .rule = moe::TopP::Rule::below, .min_experts = 2}, z));
    for (const Experts& experts : chosen(HybridEntropy{.threshold = -1}, z))
        EXPECT_EQ(experts.size(), 24u);
}

TYPED_TEST(HybridEntropyGate, AsksAllWhereLogitsAreEqual) {
    using S = TypeParam;
    const auto z = rows<S>({{1, 1, 1, 1}, {9, 1, 1, 1}});
    EXPECT_EQ(chosen(HybridEntropy{}, z), (std::vector<Experts>{{0, 1, 2, 3}, {0, 1}}))
        << "ties go to the lower index";
}

TYPED_TEST(HybridEntropyGate, IsBlindToAConstantAndToMaskedExperts) {
    using S = TypeParam;
    const moe::Matrix<S> z =  // multiples of 1/8, so that the sums are exact
        (moe::testing::random_matrix<S>(80, 6, 9, 2).array() * 8).round() / 8;
    const moe::Matrix<S> shifted = z.array() + S(64);
    const HybridEntropy recipe{.p = 0.6, .threshold = 0.7};
    const auto expected = chosen(recipe, z);
    EXPECT_EQ(chosen(recipe, shifted), expected);
    moe::Matrix<S> masked = moe::Matrix<S>::Constant(80, 11, -std::numeric_limits<S>::infinity());
    masked.leftCols(6) = z;
    EXPECT_EQ(chosen(recipe, masked), expected);
}

TYPED_TEST(HybridEntropyGate, TakesPFromTheCallAndFromTheSequence) {
    using S = TypeParam;
    const HybridEntropy recipe{.keep_top_k = 1, .threshold = 2};
    const auto z = golden_logits<S>();
    moe::Context context;
    context.dial.p = 0.0;
    for (const Experts& experts : chosen(recipe, z, context)) EXPECT_EQ(experts.size(), 1u);
    const std::array<Index, 3> offsets{0, 2, 4};
    const std::array<double, 2> p{0.77, 1};
    context.dial.p_per_sequence = p;
    context.sequence_offsets = offsets;
    EXPECT_EQ(chosen(recipe, z, context)[0], (Experts{5, 0, 2}));
    EXPECT_EQ(chosen(recipe, z, context)[2].size(), 8u);
    context.dial.p_per_sequence = {};
    context.dial.p = std::nan("");
    EXPECT_THROW(chosen(recipe, z, context), std::invalid_argument);
}

TYPED_TEST(HybridEntropyGate, LeavesNullExpertsOutOfTheSum) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    auto tokens = batch<S>(HybridEntropy{.normalize = Normalize::plain}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 1}));
}

TYPED_TEST(HybridEntropyGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const HybridEntropy& recipe :
         {HybridEntropy{}, HybridEntropy{.threshold = 0.6, .entropy_index = 1},
          HybridEntropy{.p = 0.3, .keep_top_k = 1, .normalize = Normalize::plain}}) {
        gates_test::expect_token_laws<S>(recipe);
        gates_test::expect_token_permutation<S>(recipe);
        gates_test::expect_bytes_as_said(recipe);
    }
    gates_test::expect_one_expert_works<S>(HybridEntropy{.keep_top_k = 1});
}

TEST(HybridEntropyGradient, AgreesWithDifferences) {
    const auto z = moe::testing::random_spaced<double>(8, 9, 12, 0.2);
    for (const double threshold : {0.1, 0.92, 1.5})
        for (const Normalize normalize :
             {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
            for (const Placement placement : {Placement::output, Placement::input})
                gates_test::expect_gradient(HybridEntropy{.threshold = threshold,
                                                          .normalize = normalize,
                                                          .epsilon = 0.6,
                                                          .scale = 1.5,
                                                          .placement = placement},
                                            z);
}

TEST(HybridEntropyLayer, HasTheGradientsOfDifferences) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4},
                                               moe::LinearRouter{.bias = true}, HybridEntropy{},
                                               moe::Swiglu{.count = 5, .ffn_dim = 4});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 12, .columns = 5, .scale = 0.01}));
}

TEST(HybridEntropySettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(HybridEntropy{}), "");
    EXPECT_EQ(refusal(HybridEntropy{.p = std::nan("")}), "moe::HybridEntropy: p is not a number");
    EXPECT_EQ(refusal(HybridEntropy{.keep_top_k = 9}),
              "moe::HybridEntropy: keep_top_k is 9, it must be in [1, 8], the experts of the "
              "layer");
    EXPECT_NE(refusal(HybridEntropy{.keep_top_k = 0}), "");
    EXPECT_EQ(refusal(HybridEntropy{.entropy_index = 0}),
              "moe::HybridEntropy: entropy_index is 0, it must be finite and > 0; 1 is Shannon's "
              "entropy");
    EXPECT_EQ(refusal(HybridEntropy{.entropy_epsilon = -1}),
              "moe::HybridEntropy: entropy_epsilon is -1, it must be finite and >= 0");
    EXPECT_NE(refusal(HybridEntropy{.threshold = std::nan("")}), "");
    EXPECT_NE(refusal(HybridEntropy{.epsilon = -1}), "");
}

}  // namespace
