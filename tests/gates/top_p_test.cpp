// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moe/gates/top_p.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::build;
using gates_test::derivatives;
using gates_test::golden_logits;
using gates_test::rows;
using moe::Index;
using moe::Normalize;
using moe::Placement;
using moe::TopP;

static_assert(moe::Recipe<moe::TopP>);
static_assert(moe::TrainableGate<moe::TopPModule<float>, float>);

using Experts = std::vector<Index>;
using Rule = TopP::Rule;
constexpr Rule all_rules[] = {Rule::exceed, Rule::reach, Rule::below};
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class TopPGate : public testing::Test {
protected:
    static std::vector<Experts> chosen(const TopP& recipe, const moe::Matrix<S>& z) {
        auto tokens = batch<S>(recipe, z.cols());
        tokens.route(z);
        std::vector<Experts> experts;
        for (Index t = 0; t < z.rows(); ++t) experts.push_back(tokens.experts_of(t));
        return experts;
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TopPGate, Scalars);

// ---- published gates on the golden logits ----

TYPED_TEST(TopPGate, TakesTheExpertThatCrossesP) {
    const auto z = golden_logits<TypeParam>();
    const std::vector<Experts> at_04{{5}, {3, 7}, {0}, {7, 6, 5}};
    const std::vector<Experts> at_07{{5, 0, 2}, {3, 7, 1, 5}, {0}, {7, 6, 5, 4, 3}};
    for (const Rule rule : {Rule::exceed, Rule::reach}) {
        EXPECT_EQ(this->chosen({.p = 0.4, .rule = rule}, z), at_04);
        EXPECT_EQ(this->chosen({.p = 0.7, .rule = rule}, z), at_07);
    }
}

TYPED_TEST(TopPGate, BelowPLeavesTheExpertThatCrossesOut) {
    // With the entropy rule of the published gate this is what its sure tokens get.
    const auto chosen = this->chosen({.p = 0.75, .rule = Rule::below, .min_experts = 2},
                                     golden_logits<TypeParam>());
    EXPECT_EQ(chosen[0], (Experts{5, 0}));
    EXPECT_EQ(chosen[2], (Experts{0, 6}));
}

TYPED_TEST(TopPGate, WeighsWithRawProbabilitiesUnlessToldOtherwise) {
    using S = TypeParam;
    auto raw = batch<S>(TopP{.p = 0.7}, 8);
    raw.route(golden_logits<S>());
    const std::vector<double> first = raw.weights_of(0);
    ASSERT_EQ(first.size(), 3u);
    EXPECT_NEAR(first[0], .4348488, 1e-6);
    EXPECT_NEAR(first[1], .1953901, 1e-6);
    EXPECT_NEAR(first[2], .1309739, 1e-6);

    auto normalized = batch<S>(TopP{.p = 0.7, .normalize = Normalize::plain, .scale = 2}, 8);
    normalized.route(golden_logits<S>());
    EXPECT_NEAR(normalized.weights_of(0)[0], 2 * .5712578, 1e-6);
    EXPECT_EQ(normalized.weights_of(2), (std::vector<double>{2}));
}

// ---- where the rules differ ----

TYPED_TEST(TopPGate, RulesDifferWhereASumIsExactlyP) {
    using S = TypeParam;
    const moe::Matrix<S> even = moe::Matrix<S>::Zero(1, 4);  // sums 0.25, 0.5, 0.75, 1
    EXPECT_EQ(this->chosen({.p = 0.5, .rule = Rule::exceed}, even)[0], (Experts{0, 1, 2}));
    EXPECT_EQ(this->chosen({.p = 0.5, .rule = Rule::reach}, even)[0], (Experts{0, 1}));
    EXPECT_EQ(this->chosen({.p = 0.5, .rule = Rule::below}, even)[0], (Experts{0, 1}));
    EXPECT_EQ(this->chosen({.p = 0.6, .rule = Rule::exceed}, even)[0], (Experts{0, 1, 2}));
    EXPECT_EQ(this->chosen({.p = 0.6, .rule = Rule::reach}, even)[0], (Experts{0, 1, 2}));
    EXPECT_EQ(this->chosen({.p = 0.6, .rule = Rule::below}, even)[0], (Experts{0, 1}));
}

TEST(TopPThreshold, IsTheSameAsAFloatAndAsADouble) {
    const moe::Matrix<float> even = moe::Matrix<float>::Zero(1, 5);  // sums 0.2, 0.4, 0.6, ...
    for (const TopP& recipe :
         {TopP{.p = 0.6f, .rule = Rule::reach}, TopP{.p = 0.6, .rule = Rule::reach}}) {
        auto tokens = batch<float>(recipe, 5);
        tokens.route(even);
        EXPECT_EQ(tokens.experts_of(0), (Experts{0, 1, 2}));
    }
}

TYPED_TEST(TopPGate, AtOneTakesAllWithoutSummingAndAtZeroTheMinimum) {
    using S = TypeParam;
    // Probabilities that underflow do not end the sum early.
    const moe::Matrix<S> z = rows<S>({{5000, 0, -5000, 1, 2, 3, 4, 5}});
    for (const Rule rule : all_rules) {
        for (const double p : {1.0, 1.5, 1e300}) {
            EXPECT_EQ(this->chosen({.p = p, .rule = rule}, z)[0].size(), 8u);
            EXPECT_EQ(this->chosen({.p = p, .rule = rule, .max_experts = 3}, z)[0].size(), 3u);
        }
        for (const double p : {0.0, -1.0}) {
            EXPECT_EQ(this->chosen({.p = p, .rule = rule}, z)[0], (Experts{0}));
            EXPECT_EQ(this->chosen({.p = p, .rule = rule, .min_experts = 2}, z)[0],
                      (Experts{0, 7}));
        }
    }
}

TEST(TopPThreshold, ThatRoundsToOneTakesAll) {
    const double nearly = 1 - 1e-9;  // 1 as a float
    for (const Rule rule : all_rules) {
        auto narrow = batch<float>(TopP{.p = nearly, .rule = rule}, 4);
        narrow.route(rows<float>({{5000, 0, 1, 2}}));
        EXPECT_EQ(narrow.experts_of(0), (Experts{0, 3, 2, 1}));
    }
    auto wide = batch<double>(TopP{.p = nearly, .rule = Rule::reach}, 4);
    wide.route(rows<double>({{5000, 0, 1, 2}}));
    EXPECT_EQ(wide.experts_of(0), (Experts{0}));
}

TYPED_TEST(TopPGate, PassesEverySettingOnToItsWeights) {
    using S = TypeParam;
    const double s[] = {.4348488, .1953901, .1309739};
    auto on_input = batch<S>(TopP{.p = 0.7, .scale = 2, .placement = Placement::input}, 8);
    EXPECT_TRUE(on_input.gate.weighs_input());
    EXPECT_FALSE(batch<S>(TopP{}, 8).gate.weighs_input());
    on_input.route(golden_logits<S>());
    const auto first = on_input.routing.of(0);
    ASSERT_EQ(first.size(), 3u);
    for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(first[i].weight, 1);
        EXPECT_NEAR(first[i].input_weight, 2 * s[i], 1e-6);
    }
    auto kept =
        batch<S>(TopP{.p = 0.7, .normalize = Normalize::plain, .normalize_kept_only = true}, 8);
    kept.select(golden_logits<S>());
    kept.routing.set_dropped(1, moe::Dropped::capacity);
    kept.routing.group();
    kept.weigh(golden_logits<S>());
    EXPECT_EQ(kept.weights_of(0)[1], 0);
    EXPECT_NEAR(kept.weights_of(0)[0], s[0] / (s[0] + s[2]), 1e-6);
    for (const Normalize normalize : {Normalize::add_epsilon, Normalize::clamp}) {
        auto tokens = batch<S>(TopP{.p = 0.7, .normalize = normalize, .epsilon = 2}, 8);
        tokens.route(golden_logits<S>());
        const double q = normalize == Normalize::clamp ? 2 : 2 + s[0] + s[1] + s[2];
        EXPECT_NEAR(tokens.weights_of(0)[0], s[0] / q, 1e-6);
    }
}

TYPED_TEST(TopPGate, StaysBetweenMinimumAndMaximum) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(50, 40, 5, 4);
    for (const Rule rule : all_rules)
        for (const Index least : {1, 3, 20})
            for (const Index most : {20, 25, 40})
                for (const double p : {0.01, 0.3, 0.9, 0.999})
                    for (const Experts& experts : this->chosen(
                             {.p = p, .rule = rule, .min_experts = least, .max_experts = most},
                             z)) {
                        EXPECT_GE(static_cast<Index>(experts.size()), least);
                        EXPECT_LE(static_cast<Index>(experts.size()), most);
                    }
}

// ---- laws ----

TYPED_TEST(TopPGate, TakesNoMoreExpertsThanItNeeds) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(200, 33, 6, 4);
    for (const double p : {0.05, 0.3, 0.5, 0.8, 0.97})
        for (const Rule rule : all_rules) {
            auto tokens = batch<S>(TopP{.p = p, .rule = rule}, 33);
            tokens.route(z);
            auto all = batch<S>(TopP{.p = 1}, 33);
            all.route(z);
            for (Index t = 0; t < 200; ++t) {
                const auto experts = tokens.experts_of(t);
                const auto weights = all.weights_of(t);  // every expert's, in falling order
                const auto order = all.experts_of(t);
                double sum = 0;
                std::size_t needed = 0;
                while (needed < weights.size()) {
                    sum += weights[needed++];
                    const S c = static_cast<S>(sum), limit = static_cast<S>(p);
                    if (rule == Rule::reach ? c >= limit : c > limit) break;
                }
                if (rule == Rule::below) needed = std::max<std::size_t>(needed - 1, 1);
                EXPECT_EQ(experts, Experts(order.begin(),
                                           order.begin() + static_cast<std::ptrdiff_t>(needed)));
            }
        }
}

TYPED_TEST(TopPGate, TakesMoreExpertsAsPGrows) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(60, 24, 7, 4);
    for (const Rule rule : all_rules) {
        std::vector<Experts> before(60);
        for (double p = -0.1; p < 1.15; p += 0.05) {
            const auto now = this->chosen({.p = p, .rule = rule}, z);
            for (std::size_t t = 0; t < 60; ++t) {
                ASSERT_GE(now[t].size(), before[t].size());
                EXPECT_TRUE(std::equal(before[t].begin(), before[t].end(), now[t].begin()));
            }
            before = now;
        }
        for (const Experts& experts : before) EXPECT_EQ(experts.size(), 24u);
    }
}

TYPED_TEST(TopPGate, RanksAllExpertsWhenAFewAreNotEnough) {
    using S = TypeParam;
    const moe::Matrix<S> even = moe::Matrix<S>::Zero(1, 256);
    for (const Index count : {15, 16, 17, 32, 33, 200})
        EXPECT_EQ(
            this->chosen({.p = static_cast<double>(count) / 256, .rule = Rule::reach}, even)[0]
                .size(),
            static_cast<std::size_t>(count));
}

// ---- degenerate rows ----

TYPED_TEST(TopPGate, GivesTiesToTheLowerIndex) {
    using S = TypeParam;
    EXPECT_EQ(this->chosen({.p = 0.4}, rows<S>({{0, 1, 0, 1, 1, 0}}))[0], (Experts{1, 3}));
}

TYPED_TEST(TopPGate, NeverSelectsMinusInfinity) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::Matrix<S>::Constant(2, 20, -infinity<S>);
    z(0, 7) = 1;
    z(0, 9) = 2;
    for (const Rule rule : all_rules)
        for (const double p : {0.0, 0.5, 0.99999, 1.0}) {
            auto tokens = batch<S>(TopP{.p = p, .rule = rule, .min_experts = 4}, 20);
            tokens.route(z);
            EXPECT_EQ(tokens.experts_of(0), (Experts{9, 7}));
            EXPECT_TRUE(tokens.experts_of(1).empty());
            const moe::Matrix<S> dz = tokens.backward(z, derivatives<S>(2));
            EXPECT_TRUE(dz.allFinite());
            EXPECT_TRUE((dz.row(1).array() == 0).all());
        }
}

TYPED_TEST(TopPGate, ShowsANaNInTheWeights) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    z(0, 5) = nan<S>;
    auto tokens = batch<S>(TopP{.p = 0.4}, 8);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 2, 6, 3, 1, 7, 4, 5}));
    for (const double weight : tokens.weights_of(0)) EXPECT_TRUE(std::isnan(weight));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7}));
    for (const double weight : tokens.weights_of(1)) EXPECT_TRUE(std::isfinite(weight));
    EXPECT_EQ(this->chosen({.p = 0.4, .max_experts = 2}, z)[0], (Experts{0, 2}));
    EXPECT_EQ(this->chosen({.p = 0.4, .rule = Rule::below}, z)[0], (Experts{0}));
}

TYPED_TEST(TopPGate, LeavesNullExpertsOutOfTheSumOfWeightsOnly) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    auto tokens = batch<S>(TopP{.p = 0.7, .normalize = Normalize::plain}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2}));
    EXPECT_EQ(tokens.weights_of(0)[0], 0);
    EXPECT_NEAR(tokens.weights_of(0)[1], .1953901 / (.1953901 + .1309739), 1e-6);
}

// ---- the dial ----

TYPED_TEST(TopPGate, TakesPFromTheCallAndFromTheSequence) {
    using S = TypeParam;
    auto tokens = batch<S>(TopP{.p = 0.0}, 8);
    tokens.context.dial.p = 0.4;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7, 6, 5}));

    const std::array<Index, 3> offsets{0, 2, 4};
    const std::array<double, 2> p{0.7, 0.0};
    tokens.context.dial.p_per_sequence = p;
    tokens.context.sequence_offsets = offsets;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7, 1, 5}));
    EXPECT_EQ(tokens.experts_of(3), (Experts{7}));
}

TEST(TopPDial, IsChecked) {
    auto tokens = batch<double>(TopP{}, 8);
    const auto z = golden_logits<double>();
    tokens.context.dial.p = nan<double>;
    EXPECT_THROW(tokens.select(z), std::invalid_argument);
    const std::array<double, 1> p{0.5};
    tokens.context.dial.p = {};
    tokens.context.dial.p_per_sequence = p;
    EXPECT_THROW(tokens.select(z), std::invalid_argument);
}

// ---- gradients ----

TEST(TopPGradient, AgreesWithDifferencesForEveryRuleAndNormalisation) {
    for (const Rule rule : all_rules)
        for (const auto& [normalize, placement] : {std::pair{Normalize::none, Placement::output},
                                                   {Normalize::none, Placement::input},
                                                   {Normalize::plain, Placement::output},
                                                   {Normalize::add_epsilon, Placement::input},
                                                   {Normalize::clamp, Placement::output}}) {
            const bool on_input = placement == Placement::input;
            moe::Matrix<double> z = moe::testing::random_spaced<double>(6, 9, 12, 0.2);
            auto tokens = batch<double>(TopP{.p = 0.6,
                                             .rule = rule,
                                             .min_experts = 2,
                                             .normalize = normalize,
                                             .epsilon = 0.6,
                                             .scale = 1.5,
                                             .placement = placement},
                                        9);
            tokens.route(z);
            const moe::Routing plan = tokens.routing;
            const auto c = derivatives<double>(plan.num_assignments());
            const std::span<const double> given(c), none;
            const moe::Matrix<double> dz =
                tokens.backward(z, on_input ? none : given, on_input ? given : none);
            const auto loss = [&] {
                tokens.route(z);
                double sum = 0;
                for (std::size_t a = 0; a < std::min(c.size(), tokens.routing.assignments().size());
                     ++a)
                    sum += c[a] * (on_input ? tokens.routing.assignments()[a].input_weight
                                            : tokens.routing.assignments()[a].weight);
                return sum;
            };
            const auto same_branch = [&] {
                for (Index t = 0; t < 6; ++t) {
                    const auto was = plan.of(t), is = tokens.routing.of(t);
                    const auto same = [](const moe::Assignment& a, const moe::Assignment& b) {
                        return a.expert == b.expert;
                    };
                    if (!std::equal(was.begin(), was.end(), is.begin(), is.end(), same))
                        return false;
                }
                return true;
            };
            EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}))
                << static_cast<int>(rule) << static_cast<int>(normalize);
        }
}

// ---- settings and threads ----

TEST(TopPSettings, AreCheckedOnceWithASentence) {
    const auto message = [](const TopP& recipe) {
        return support::message([&] { build<float>(recipe, 8); });
    };
    EXPECT_EQ(message({}), "");
    EXPECT_EQ(message(TopP{.p = 0.6f, .max_experts = 3}), "");
    EXPECT_EQ(message({.p = nan<double>}), "moe::TopP: p is not a number");
    EXPECT_EQ(message({.min_experts = 0}),
              "moe::TopP: min_experts is 0, it must be in [1, 8], the experts of the layer");
    EXPECT_EQ(message({.min_experts = 9}),
              "moe::TopP: min_experts is 9, it must be in [1, 8], the experts of the layer");
    EXPECT_EQ(message({.min_experts = 3, .max_experts = 2}),
              "moe::TopP: max_experts is 2, it must be in [3, 8], or 0 for all");
    EXPECT_EQ(message({.max_experts = 9}),
              "moe::TopP: max_experts is 9, it must be in [1, 8], or 0 for all");
    EXPECT_EQ(message({.epsilon = -1}), "moe::TopP: epsilon is -1, it must be finite and >= 0");
    EXPECT_THROW(build<float>(TopP{}, 0), std::invalid_argument);
    EXPECT_EQ(message({.rule = Rule(3)}),
              "moe::TopP: rule is number 3 of its choices, they are 0 to 2");
    EXPECT_NE(message({.normalize = Normalize(-1)}), "");
    EXPECT_NE(message({.placement = Placement(3)}), "");
}

TYPED_TEST(TopPGate, GivesTheSameBitsForAnyThreadCount) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(2500, 67, 3, 4);
    auto serial = batch<S>(TopP{.p = 0.6}, 67);
    moe::SerialExecutor one;
    serial.ws.use(one);
    serial.route(z);
    const auto c = derivatives<S>(serial.routing.num_assignments());
    const moe::Matrix<S> dz = serial.backward(z, c);
    for (const int threads : {2, 3, 7}) {
        moe::ThreadPool pool(threads);
        auto other = batch<S>(TopP{.p = 0.6}, 67);
        other.ws.use(pool);
        other.route(z);
        EXPECT_EQ(other.routing, serial.routing) << threads;
        EXPECT_TRUE(moe::testing::same_bits(other.backward(z, c), dz));
    }
}

TYPED_TEST(TopPGate, RoutesNoTokens) {
    using S = TypeParam;
    auto tokens = batch<S>(TopP{}, 8);
    const moe::Matrix<S> z(0, 8);
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 0);
    EXPECT_EQ(tokens.backward(z, {}).rows(), 0);
}

}  // namespace
