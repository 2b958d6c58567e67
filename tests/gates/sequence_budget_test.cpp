// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/sequence_budget.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "gates/laws.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Index;
using moe::Normalize;
using moe::Score;
using moe::SequenceBudget;
using support::message;
using Experts = std::vector<Index>;

static_assert(moe::Recipe<SequenceBudget>);
static_assert(moe::TrainableGate<moe::SequenceBudgetModule<float>, float>);
static_assert(!moe::hooks::per_token<moe::SequenceBudgetModule<float>>);
static_assert(moe::hooks::reads_k<moe::SequenceBudgetModule<float>>);

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class SequenceBudgetGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SequenceBudgetGate, Scalars);

/// One sequence, by sorting all its pairs and taking them one after the other.
std::vector<Experts> plain(const moe::Matrix<double>& s, Index budget, Index least, Index most) {
    std::vector<std::tuple<double, Index, Index>> pairs;
    for (Index t = 0; t < s.rows(); ++t)
        for (Index e = 0; e < s.cols(); ++e) pairs.emplace_back(-s(t, e), t, e);
    std::sort(pairs.begin(), pairs.end());
    std::vector<Experts> chosen(static_cast<std::size_t>(s.rows()));
    Index spent = 0;
    for (const bool is_minimum : {true, false})
        for (const auto& [key, t, e] : pairs) {
            Experts& own = chosen[static_cast<std::size_t>(t)];
            const bool has = std::find(own.begin(), own.end(), e) != own.end();
            const auto limit = static_cast<std::size_t>(is_minimum ? least : most);
            if (has || own.size() >= limit || (!is_minimum && spent >= budget)) continue;
            own.push_back(e);
            ++spent;
        }
    return chosen;
}

TYPED_TEST(SequenceBudgetGate, IsThePlainLoop) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(23, 7, 5, 3);
    for (const Score score : {Score::softmax, Score::sigmoid, Score::raw}) {
        moe::Matrix<double> s = z.template cast<double>();
        for (Index t = 0; t < 23; ++t)
            for (Index e = 0; e < 7; ++e) {
                const double wide = static_cast<double>(z(t, e));
                if (score == Score::sigmoid) s(t, e) = 1 / (1 + std::exp(-wide));
                if (score == Score::softmax)
                    s(t, e) = std::exp(wide) / z.row(t).template cast<double>().array().exp().sum();
            }
        for (const double k : {1.0, 1.3, 2.5, 4.0})
            for (const Index least : {0, 1})
                for (const Index most : {4, 7}) {
                    auto tokens = batch<S>(SequenceBudget{.k = k,
                                                          .min_experts = least,
                                                          .max_experts = most,
                                                          .score = score,
                                                          .normalize = Normalize::none},
                                           7);
                    tokens.route(z);
                    const auto budget = static_cast<Index>(std::floor(23 * k + 0.5));
                    const auto expected = plain(s, budget, least, most);
                    EXPECT_EQ(tokens.routing.num_assignments(), budget);
                    for (Index t = 0; t < 23; ++t) {
                        const Experts& own = expected[static_cast<std::size_t>(t)];
                        EXPECT_EQ(tokens.experts_of(t), own);
                        for (std::size_t i = 0; i < own.size(); ++i)
                            EXPECT_NEAR(tokens.weights_of(t)[i], s(t, own[i]), 1e-5);
                    }
                }
    }
}

TYPED_TEST(SequenceBudgetGate, GivesTheUnsureMoreThanTheSure) {
    using S = TypeParam;
    auto tokens = batch<S>(SequenceBudget{.k = 2}, 8);
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.routing.num_assignments(), 8);
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7, 1}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{0}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7, 6}));
    EXPECT_NEAR(tokens.weights_of(0)[0], .4348488 / (.4348488 + .1953901), 1e-6);
}

// ---- laws ----

TYPED_TEST(SequenceBudgetGate, IsTopKWhereEveryTokenMayHaveKOnly) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 9, 5, 3);
    for (const Index k : {1, 3, 9}) {
        auto budget = batch<S>(
            SequenceBudget{.k = static_cast<double>(k), .min_experts = 0, .max_experts = k}, 9);
        auto top = batch<S>(moe::TopK{.k = k}, 9);
        budget.route(z);
        top.route(z);
        EXPECT_EQ(budget.routing, top.routing);
    }
}

TYPED_TEST(SequenceBudgetGate, SpendsExactlyTheBudgetOfEachSequence) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 6, 5, 3);
    const std::array<Index, 5> offsets{0, 11, 11, 12, 30};
    const SequenceBudget recipe{.k = 2.5};
    auto together = batch<S>(recipe, 6);
    together.context.sequence_offsets = offsets;
    together.route(z);
    for (std::size_t b = 0; b < 4; ++b) {
        const Index first = offsets[b], count = offsets[b + 1] - first;
        EXPECT_EQ(together.routing.first(offsets[b + 1]) - together.routing.first(first),
                  static_cast<Index>(std::floor(2.5 * double(count) + 0.5)));
        auto alone = batch<S>(recipe, 6);
        alone.route(z.middleRows(first, count));
        for (Index t = 0; t < count; ++t)
            EXPECT_EQ(together.experts_of(first + t), alone.experts_of(t));
    }
    const std::array<Index, 4> k{1, 6, 2, 3};
    together.context.dial.k_per_sequence = k;
    together.route(z);
    EXPECT_EQ(together.routing.first(11), 11);
    EXPECT_EQ(together.routing.of(11).size(), 2u);
    EXPECT_EQ(together.routing.num_assignments(), 11 + 2 + 3 * 18);
}

TYPED_TEST(SequenceBudgetGate, GivesMoreToNobodyLessAsKGrows) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 6, 5, 3);
    std::vector<Experts> before(30);
    for (double k = 1; k <= 6; k += 0.25) {
        auto tokens = batch<S>(SequenceBudget{.k = k}, 6);
        tokens.route(z);
        for (Index t = 0; t < 30; ++t) {
            const Experts now = tokens.experts_of(t);
            const Experts& was = before[static_cast<std::size_t>(t)];
            ASSERT_GE(now.size(), was.size());
            EXPECT_TRUE(std::equal(was.begin(), was.end(), now.begin()));
            before[static_cast<std::size_t>(t)] = now;
        }
    }
}

TYPED_TEST(SequenceBudgetGate, DoesNotCareInWhichOrderTokensCome) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 6, 9, 4);
    const moe::Matrix<S> reversed = z.colwise().reverse();
    auto one = batch<S>(SequenceBudget{}, 6), other = batch<S>(SequenceBudget{}, 6);
    one.route(z);
    other.route(reversed);
    for (Index t = 0; t < 40; ++t) EXPECT_EQ(one.experts_of(t), other.experts_of(39 - t));
}

TYPED_TEST(SequenceBudgetGate, GivesTiesToTheLowerTokenThenToTheLowerExpert) {
    using S = TypeParam;
    auto tokens = batch<S>(SequenceBudget{.k = 2, .min_experts = 1, .max_experts = 3}, 4);
    tokens.route(moe::Matrix<S>::Zero(5, 4));  // 10: one each, then two more for 0 and 1
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 1, 2}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{0, 1, 2}));
    EXPECT_EQ(tokens.experts_of(2), (Experts{0, 1}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{0}));
    EXPECT_EQ(tokens.experts_of(4), (Experts{0}));
    tokens.route(moe::Matrix<S>::Zero(50, 4));  // more than are ranked one by one
    EXPECT_EQ(tokens.routing.num_assignments(), 100);
    EXPECT_EQ(tokens.experts_of(24), (Experts{0, 1, 2}));
    EXPECT_EQ(tokens.experts_of(25), (Experts{0}));
}

// ---- masks and degenerate rows ----

TYPED_TEST(SequenceBudgetGate, DoesNotCountPaddingNorCrossMasks) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(12, 5, 4, 3);
    z.row(3).setConstant(-infinity<S>);
    z.row(11).setConstant(-infinity<S>);
    z.row(5).setConstant(-infinity<S>);
    z(5, 2) = 1;
    for (const Index least : {1, 2}) {
        auto tokens = batch<S>(SequenceBudget{.k = 2, .min_experts = least}, 5);
        tokens.route(z);
        EXPECT_EQ(tokens.routing.num_assignments(), 20);
        EXPECT_TRUE(tokens.routing.of(3).empty() && tokens.routing.of(11).empty());
        EXPECT_EQ(tokens.experts_of(5), (Experts{2}));
        const auto dz = tokens.backward(z, gates_test::derivatives<S>(20));
        EXPECT_TRUE(dz.allFinite() && (dz.row(3).array() == 0).all());
    }
    auto all = batch<S>(SequenceBudget{.k = 5}, 5);
    all.route(z);
    EXPECT_EQ(all.routing.num_assignments(), 9 * 5 + 1);  // there are no more
}

TYPED_TEST(SequenceBudgetGate, RanksANaNLastAndShowsIt) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    z(3, 2) = nan<S>;
    auto tokens = batch<S>(SequenceBudget{.k = 2}, 8);
    tokens.route(z);
    EXPECT_EQ(tokens.routing.of(3).size(), 1u);
    EXPECT_TRUE(std::isnan(tokens.weights_of(3)[0]));
    EXPECT_EQ(tokens.routing.num_assignments(), 8);
    for (Index t = 0; t < 3; ++t)
        for (const double weight : tokens.weights_of(t)) EXPECT_TRUE(std::isfinite(weight));
}

TYPED_TEST(SequenceBudgetGate, ServesOneExpertAllExpertsAndNoTokens) {
    using S = TypeParam;
    auto one = batch<S>(SequenceBudget{.k = 1}, 1);
    one.route(moe::testing::random_matrix<S>(5, 1, 3));
    EXPECT_EQ(one.routing.num_assignments(), 5);
    auto all = batch<S>(SequenceBudget{.k = 4}, 4);
    all.route(moe::testing::random_matrix<S>(5, 4, 3));
    EXPECT_EQ(all.routing.num_assignments(), 20);
    gates_test::expect_no_tokens_route<double>(SequenceBudget{}, 4, 4);
}

// ---- the dial ----

TEST(SequenceBudgetDial, IsChecked) {
    auto tokens = batch<double>(SequenceBudget{.k = 2, .max_experts = 4}, 8);
    const auto z = golden_logits<double>();
    tokens.context.dial.k = 4;
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 16);
    tokens.context.dial.k = 5;
    EXPECT_EQ(
        message([&] { tokens.select(z); }),
        "moe::SequenceBudget: dial.k is 5, it must be in [1, 4], the experts that a token can "
        "get");
    tokens.context.dial.k = {};
    const std::array<Index, 2> k{1, 3};
    tokens.context.dial.k_per_sequence = k;
    EXPECT_EQ(message([&] { tokens.select(z); }),
              "moe::SequenceBudget: dial.k_per_sequence has 2 entries, it wants 1 per sequence, "
              "and sequence_offsets is empty; set Context::sequence_offsets");
    const std::array<Index, 3> offsets{0, 2, 4}, wrong{0, 2, 5};
    tokens.context.sequence_offsets = wrong;
    EXPECT_NE(message([&] { tokens.select(z); }).find("its last entry is 5"), std::string::npos);
    tokens.context.sequence_offsets = offsets;
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 8);
    const std::array<Index, 2> zero{0, 3};
    tokens.context.dial.k_per_sequence = zero;
    EXPECT_NE(message([&] { tokens.select(z); }), "");
}

// ---- gradients, settings, threads, memory ----

TEST(SequenceBudgetGradient, AgreesWithDifferences) {
    const std::array<Index, 3> offsets{0, 4, 9};
    for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected,
                              Score::raw, Score::sqrt_softplus})
        for (const Normalize normalize : {Normalize::none, Normalize::add_epsilon}) {
            const SequenceBudget recipe{
                .k = 2.5, .score = score, .normalize = normalize, .epsilon = 0.3, .scale = 1.5};
            gates_test::expect_exact_gradient(recipe,
                                              moe::testing::random_matrix<double>(9, 5, 12, 2), 5,
                                              {.sequence_offsets = offsets});
        }
    EXPECT_TRUE(moe::testing::check_gradients(
        moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 3}, moe::LinearRouter{},
                                SequenceBudget{}, moe::Swiglu{.count = 3, .ffn_dim = 6},
                                moe::Zero{}),
        {.rows = 7, .columns = 5, .scale = 0.01}));
}

TEST(SequenceBudgetSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(SequenceBudget{.k = 1.5}, 8), "");
    EXPECT_EQ(refusal(SequenceBudget{.k = 0.5}, 8),
              "moe::SequenceBudget: k is 0.5, it must be in [1, 8], the experts that a token can "
              "get");
    EXPECT_EQ(refusal(SequenceBudget{.k = 0.5, .min_experts = 0}, 8), "");
    EXPECT_NE(refusal(SequenceBudget{.k = nan<double>}, 8), "");
    EXPECT_NE(refusal(SequenceBudget{.k = 4, .max_experts = 3}, 8), "");
    EXPECT_EQ(refusal(SequenceBudget{.min_experts = 9}, 8),
              "moe::SequenceBudget: min_experts is 9, it must be in [0, 8], the experts of the "
              "layer");
    EXPECT_EQ(refusal(SequenceBudget{.min_experts = 2, .max_experts = 1}, 8),
              "moe::SequenceBudget: max_experts is 1, it must be in [2, 8], or 0 for all");
    EXPECT_NE(refusal(SequenceBudget{.max_experts = 9}, 8), "");
    EXPECT_NE(refusal(SequenceBudget{.epsilon = -1}, 8), "");
    EXPECT_NE(refusal(SequenceBudget{.score = Score(9)}, 8), "");
    EXPECT_NE(refusal(SequenceBudget{}, 0), "");
}

TYPED_TEST(SequenceBudgetGate, GivesTheSameBitsForAnyThreadCountAndAllocatesNothingAgain) {
    using S = TypeParam;
    const std::array<Index, 4> offsets{0, 300, 301, 700};
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(700, 37, 3, 4);
    const moe::Context context{.sequence_offsets = offsets};
    gates_test::expect_same_bits_for_any_thread_count<S>(SequenceBudget{.k = 3}, z, 37, context);
    gates_test::expect_no_allocation<S>(SequenceBudget{.k = 3}, z, 37, context);
}

}  // namespace
