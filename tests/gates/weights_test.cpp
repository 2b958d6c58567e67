// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <moe/gates/weights.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/message.hpp"

namespace {

using gates_test::derivatives;
using gates_test::rows;
using moe::Index;
using moe::Normalize;
using moe::Placement;
using moe::Score;
using moe::detail::CombineRule;
using moe::testing::random_spaced;

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

constexpr Score all_scores[] = {Score::softmax, Score::sigmoid,       Score::softmax_of_selected,
                                Score::raw,     Score::sqrt_softplus, Score::relu};
constexpr const char* score_names[] = {"softmax", "sigmoid",       "softmax_of_selected",
                                       "raw",     "sqrt_softplus", "relu"};

/// A plan and what weighs it.
template <class S>
struct Weighed {
    CombineRule rule;
    moe::Context context{};
    moe::Workspace<S> ws{};
    moe::Routing routing{};
    bool normalizes = true;

    explicit Weighed(const CombineRule& r) : rule(r) {}

    void weigh(moe::In<S> z) {
        rule.weigh<S>(z, routing, {context, ws}, [this](Index, Index) { return normalizes; });
    }
    moe::Matrix<S> backward(moe::In<S> z, std::span<const S> c) {
        moe::Matrix<S> dz = moe::Matrix<S>::Zero(z.rows(), z.cols());
        const moe::WeightGradients<S> dweights = rule.placement == Placement::input
                                                     ? moe::WeightGradients<S>{{}, c}
                                                     : moe::WeightGradients<S>{c, {}};
        rule.backward<S>(z, routing, dweights, dz, {context, ws},
                         [this](Index, Index) { return normalizes; });
        return dz;
    }
    double weight(Index a) const {
        const moe::Assignment& assignment = routing.assignments()[static_cast<std::size_t>(a)];
        return rule.placement == Placement::input ? assignment.input_weight : assignment.weight;
    }
    double loss(moe::In<S> z, std::span<const S> c) {
        weigh(z);
        double sum = 0;
        for (Index a = 0; a < routing.num_assignments(); ++a)
            sum += static_cast<double>(c[static_cast<std::size_t>(a)]) * weight(a);
        return sum;
    }
};

/// Three tokens with 3, 0 and 4 of 6 experts.
void plan(moe::Routing& routing) {
    routing.reset(3, 6);
    for (const Index expert : {4, 0, 3}) routing.add(0, expert);
    for (const Index expert : {1, 5, 2, 0}) routing.add(2, expert);
    routing.group();
}

/// The weights of one token by the formulas, in double, with nothing shared with the library.
std::vector<double> reference(const CombineRule& rule, const std::vector<double>& z,
                              const std::vector<Index>& experts,
                              const std::vector<bool>& left_out) {
    std::vector<double> s;
    double over_all = 0, over_selected = 0;
    for (const double value : z) over_all += std::exp(value);
    for (std::size_t i = 0; i < experts.size(); ++i)
        if (!left_out[i]) over_selected += std::exp(z[static_cast<std::size_t>(experts[i])]);
    for (std::size_t i = 0; i < experts.size(); ++i) {
        const double value = z[static_cast<std::size_t>(experts[i])];
        double score = value;
        if (rule.score == Score::softmax) score = std::exp(value) / over_all;
        if (rule.score == Score::softmax_of_selected) score = std::exp(value) / over_selected;
        if (rule.score == Score::sigmoid) score = 1 / (1 + std::exp(-value));
        if (rule.score == Score::relu) score = std::max(value, 0.0);
        if (rule.score == Score::sqrt_softplus) score = std::sqrt(std::log(1 + std::exp(value)));
        s.push_back(left_out[i] ? 0 : score);
    }
    double d = 0;
    if (rule.norm_power == 1) {
        for (const double score : s) d += score;
    } else {
        for (const double score : s) d += std::pow(std::abs(score), rule.norm_power);
        d = std::pow(d, 1 / rule.norm_power);
    }
    double q = 1;
    if (rule.normalize == Normalize::plain) q = d;
    if (rule.normalize == Normalize::add_epsilon) q = d + rule.epsilon;
    if (rule.normalize == Normalize::clamp) q = d < rule.epsilon ? rule.epsilon : d;
    for (double& score : s) score = rule.scale * score / q;
    return s;
}

std::string describe(const CombineRule& rule, bool nulls) {
    return std::string(score_names[static_cast<int>(rule.score)]) + ", normalize " +
           std::to_string(static_cast<int>(rule.normalize)) + ", epsilon " +
           std::to_string(rule.epsilon) + ", p " + std::to_string(rule.norm_power) +
           (nulls ? ", null experts" : "");
}

/// f(rule) for every score, normalisation and norm; clamps on either side of the sum.
template <class F>
void for_each_rule(F&& f) {
    for (const Score score : all_scores)
        for (const Normalize normalize :
             {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
            for (const double epsilon : {0.25, 30.0})
                for (const double power : {1.0, 2.0, 3.5}) {
                    const bool ignores_epsilon =
                        normalize == Normalize::none || normalize == Normalize::plain;
                    if (ignores_epsilon && epsilon > 1) continue;
                    if (normalize == Normalize::none && power != 1) continue;
                    f(CombineRule{.score = score,
                                  .normalize = normalize,
                                  .epsilon = epsilon,
                                  .norm_power = power,
                                  .scale = 2.5});
                }
}

/// Expert 0 does nothing.
std::vector<moe::ExpertFacts> null_facts() {
    std::vector<moe::ExpertFacts> facts(6);
    facts[0].is_null = true;
    return facts;
}

template <class S>
class Weights : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Weights, Scalars);

TYPED_TEST(Weights, AreTheirFormulasForEveryScoreAndNormalisation) {
    using S = TypeParam;
    moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    z.array() += S(1.5);  // keeps sums of raw scores away from 0
    const auto facts = null_facts();
    for (const bool nulls : {false, true})
        for_each_rule([&](const CombineRule& rule) {
            Weighed<S> token(rule);
            if (nulls) token.context.experts = facts;
            plan(token.routing);
            token.weigh(z);
            for (Index t = 0; t < 3; ++t) {
                std::vector<double> logits;
                for (Index e = 0; e < 6; ++e) logits.push_back(static_cast<double>(z(t, e)));
                std::vector<Index> experts;
                std::vector<bool> left_out;
                std::vector<double> weights;
                for (const moe::Assignment& a : token.routing.of(t)) {
                    experts.push_back(a.expert);
                    left_out.push_back(nulls && a.expert == 0);
                    weights.push_back(a.weight);
                }
                const auto expected = reference(rule, logits, experts, left_out);
                if (expected.empty()) continue;
                EXPECT_TRUE(moe::testing::compare(weights, expected, sizeof(S) == 4 ? 1e-6 : 1e-14))
                    << describe(rule, nulls);
            }
        });
}

TEST(WeightGradients, AgreeWithDifferencesForEveryScoreAndNormalisation) {
    moe::Matrix<double> z = random_spaced<double>(3, 6, 5, 0.3);
    z.array() += 1.5;
    const auto facts = null_facts();
    const auto c = derivatives<double>(7);
    for (const bool nulls : {false, true})
        for (const Placement placement : {Placement::output, Placement::input})
            for_each_rule([&](CombineRule rule) {
                rule.placement = placement;
                Weighed<double> token(rule);
                if (nulls) token.context.experts = facts;
                plan(token.routing);
                const moe::Matrix<double> dz = token.backward(z, c);
                EXPECT_TRUE(moe::testing::check_gradient([&] { return token.loss(z, c); }, z, dz))
                    << describe(rule, nulls);
            });
}

TEST(WeightGradients, OfNormsAgreeWithDifferencesWhereScoresAreNegative) {
    moe::Matrix<double> z = random_spaced<double>(3, 6, 8, 0.3);
    const auto c = derivatives<double>(7);
    for (const double power : {1.5, 2.0, 3.0}) {
        Weighed<double> token({.score = Score::raw, .norm_power = power});
        plan(token.routing);
        const moe::Matrix<double> dz = token.backward(z, c);
        EXPECT_TRUE(moe::testing::check_gradient([&] { return token.loss(z, c); }, z, dz)) << power;
    }
}

TEST(WeightGradients, OfReluAgreeWithDifferencesOnBothSidesOfZero) {
    moe::Matrix<double> z = random_spaced<double>(3, 6, 8, 0.3);
    ASSERT_GT((z.array() < 0).count(), 3);
    const auto c = derivatives<double>(7);
    for (const Normalize normalize : {Normalize::none, Normalize::add_epsilon, Normalize::clamp}) {
        Weighed<double> token({.score = Score::relu, .normalize = normalize, .epsilon = 0.5});
        plan(token.routing);
        const moe::Matrix<double> dz = token.backward(z, c);
        EXPECT_TRUE(moe::testing::check_gradient([&] { return token.loss(z, c); }, z, dz));
    }
}

TEST(WeightGradients, AgreeWithDifferencesInFloat) {
    moe::Matrix<float> z = random_spaced<float>(3, 6, 5, 0.3);
    z.array() += 1.5f;
    const auto c = derivatives<float>(7);
    for (const Score score : all_scores) {
        Weighed<float> token(
            {.score = score, .normalize = Normalize::add_epsilon, .epsilon = 0.25});
        plan(token.routing);
        const moe::Matrix<float> dz = token.backward(z, c);
        EXPECT_TRUE(moe::testing::check_gradient([&] { return token.loss(z, c); }, z, dz))
            << score_names[static_cast<int>(score)];
    }
}

TEST(WeightGradients, AreAdded) {
    const moe::Matrix<double> z = random_spaced<double>(3, 6, 5, 0.3);
    const auto c = derivatives<double>(7);
    for (const Score score : all_scores) {
        Weighed<double> token({.score = score, .normalize = Normalize::none});
        plan(token.routing);
        const moe::Matrix<double> once = token.backward(z, c);
        moe::Matrix<double> dz = moe::Matrix<double>::Constant(3, 6, 7);
        token.rule.backward<double>(z, token.routing, {c, {}}, dz, {token.context, token.ws},
                                    [](Index, Index) { return true; });
        EXPECT_TRUE(moe::testing::compare((dz.array() - 7).matrix().eval(), once, 1e-14));
    }
}

TEST(WeightGradients, OfAPlainlyNormalisedSoftmaxAreExactlyZeroOutsideTheSelection) {
    const moe::Matrix<double> z = random_spaced<double>(3, 6, 5, 0.3);
    Weighed<double> token(CombineRule{});
    plan(token.routing);
    const moe::Matrix<double> dz = token.backward(z, derivatives<double>(7));
    for (const Index expert : {1, 2, 5}) EXPECT_EQ(dz(0, expert), 0);
    for (Index expert = 0; expert < 6; ++expert) EXPECT_EQ(dz(1, expert), 0);
    EXPECT_NE(dz(0, 4), 0);
}

TEST(WeightGradients, OfARawSoftmaxReachEveryLogit) {
    const moe::Matrix<double> z = random_spaced<double>(3, 6, 5, 0.3);
    Weighed<double> token({.normalize = Normalize::none});
    plan(token.routing);
    const moe::Matrix<double> dz = token.backward(z, derivatives<double>(7));
    for (Index expert = 0; expert < 6; ++expert) EXPECT_NE(dz(0, expert), 0);
}

TYPED_TEST(Weights, OnTheInputLeaveTheOutputAlone) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    Weighed<S> token(
        {.score = Score::sigmoid, .normalize = Normalize::none, .placement = Placement::input});
    plan(token.routing);
    token.weigh(z);
    for (const moe::Assignment& a : token.routing.assignments()) {
        EXPECT_EQ(a.weight, 1);
        EXPECT_GT(a.input_weight, 0);
        EXPECT_LT(a.input_weight, 1);
    }
}

TYPED_TEST(Weights, NeedOneGradientPerAssignmentOnTheirOwnSide) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    const auto c = derivatives<S>(7);
    const std::span<const S> all(c), few = all.first(6), none;
    moe::Matrix<S> dz = moe::Matrix<S>::Zero(3, 6), narrow(3, 5), low(2, 6);
    for (const Placement placement : {Placement::output, Placement::input}) {
        Weighed<S> token({.normalize = Normalize::none, .placement = placement});
        plan(token.routing);
        const auto run = [&](std::span<const S> output, std::span<const S> input, moe::Out<S> d) {
            token.rule.template backward<S>(z, token.routing, {output, input}, d,
                                            {token.context, token.ws},
                                            [](Index, Index) { return true; });
        };
        const bool on_input = placement == Placement::input;
        EXPECT_THROW(run(on_input ? all : few, on_input ? few : all, dz), std::logic_error);
        EXPECT_THROW(run(on_input ? all : none, on_input ? none : all, dz), std::logic_error);
        EXPECT_TRUE((dz.array() == 0).all());
        EXPECT_THROW(run(all, all, narrow), std::invalid_argument);
        EXPECT_THROW(run(all, all, low), std::invalid_argument);
        run(on_input ? none : all, on_input ? all : none, dz);
        EXPECT_FALSE((dz.array() == 0).all());
        dz.setZero();
    }
}

TYPED_TEST(Weights, OfNullExpertsAreZeroOnBothSides) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    const auto facts = null_facts();
    for (const Placement placement : {Placement::output, Placement::input}) {
        Weighed<S> token({.score = Score::sigmoid, .placement = placement});
        token.context.experts = facts;
        plan(token.routing);
        token.weigh(z);
        for (const moe::Assignment& a : token.routing.assignments()) {
            EXPECT_EQ(a.weight == 0, a.expert == 0);
            EXPECT_EQ(a.input_weight == 0, a.expert == 0 && placement == Placement::input);
        }
    }
}

TYPED_TEST(Weights, ThatAreOnesTakeNoGradient) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    Weighed<S> token({.scale = 0.5, .ones = true});
    plan(token.routing);
    token.weigh(z);
    for (const moe::Assignment& a : token.routing.assignments()) EXPECT_EQ(a.weight, 0.5);
    EXPECT_TRUE((token.backward(z, derivatives<S>(7)).array() == 0).all());
}

TYPED_TEST(Weights, OfNothingButNullExpertsAreZeroAndSoIsTheGradient) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    std::vector<moe::ExpertFacts> facts(6);
    for (auto& fact : facts) fact.is_null = true;
    const auto c = derivatives<S>(7);
    for_each_rule([&](const CombineRule& rule) {
        Weighed<S> token(rule);
        token.context.experts = facts;
        plan(token.routing);
        token.weigh(z);
        for (const moe::Assignment& a : token.routing.assignments())
            EXPECT_EQ(a.weight, 0) << describe(rule, true);
        EXPECT_TRUE((token.backward(z, c).array() == 0).all()) << describe(rule, true);
    });
}

TYPED_TEST(Weights, OfATokenWithNothingButNullExpertsDoNotTouchTheOtherTokens) {
    using S = TypeParam;
    moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    z.array() += S(1.5);
    std::vector<moe::ExpertFacts> facts(6);
    for (const std::size_t expert : {std::size_t{0}, std::size_t{3}, std::size_t{4}})
        facts[expert].is_null = true;  // all that token 0 has
    const auto c = derivatives<S>(7);
    for_each_rule([&](const CombineRule& rule) {
        Weighed<S> token(rule);
        token.context.experts = facts;
        plan(token.routing);
        token.weigh(z);
        std::vector<double> logits, weights;
        for (Index e = 0; e < 6; ++e) logits.push_back(static_cast<double>(z(2, e)));
        for (Index a = 0; a < 3; ++a) EXPECT_EQ(token.weight(a), 0) << describe(rule, true);
        for (Index a = 3; a < 7; ++a) weights.push_back(token.weight(a));
        EXPECT_TRUE(moe::testing::compare(
            weights, reference(rule, logits, {1, 5, 2, 0}, {false, false, false, true}),
            sizeof(S) == 4 ? 1e-6 : 1e-14))
            << describe(rule, true);
        const moe::Matrix<S> dz = token.backward(z, c);
        EXPECT_TRUE((dz.row(0).array() == 0).all()) << describe(rule, true);
        EXPECT_TRUE(dz.allFinite()) << describe(rule, true);
        EXPECT_NE(dz(2, 1), 0) << describe(rule, true);
    });
}

TYPED_TEST(Weights, TakeNoGradientWhereMaskedEvenFromNaNAndInfinity) {
    using S = TypeParam;
    moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    for (const Index expert : {1, 4}) z(0, expert) = -infinity<S>;  // one selected, one not
    for (const S fault : {nan<S>, infinity<S>, -infinity<S>})
        for_each_rule([&](const CombineRule& rule) {
            auto c = derivatives<S>(7);
            c[1] = fault;  // token 0, expert 0
            Weighed<S> token(rule);
            plan(token.routing);
            const moe::Matrix<S> dz = token.backward(z, c);
            for (const Index expert : {1, 4}) EXPECT_EQ(dz(0, expert), 0) << describe(rule, false);
            EXPECT_FALSE(std::isfinite(dz(0, 0))) << describe(rule, false);
            EXPECT_TRUE(dz.row(2).allFinite()) << describe(rule, false);
        });
}

TYPED_TEST(Weights, OfMaskedExpertsInAReplayedPlanAreZeroAndSoIsTheirGradient) {
    using S = TypeParam;
    const S dead = -infinity<S>;
    const moe::Matrix<S> z =
        rows<S>({{1, 2, -1, 0.5, -1, 1}, {0, 1, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}});
    const auto c = derivatives<S>(7);
    for_each_rule([&](const CombineRule& rule) {
        moe::Matrix<S> masked = z;
        masked(0, 4) = dead;       // one of the token's three
        masked.row(2).fill(dead);  // all of the token's four
        Weighed<S> token(rule);
        plan(token.routing);
        token.weigh(masked);
        EXPECT_EQ(token.weight(0), 0) << describe(rule, false);
        EXPECT_GT(token.weight(1), 0) << describe(rule, false);
        for (Index a = 3; a < 7; ++a) EXPECT_EQ(token.weight(a), 0) << describe(rule, false);
        const moe::Matrix<S> dz = token.backward(masked, c);
        EXPECT_TRUE(dz.allFinite()) << describe(rule, false);
        EXPECT_EQ(dz(0, 4), 0) << describe(rule, false);
        EXPECT_TRUE((dz.row(2).array() == 0).all()) << describe(rule, false);
    });
}

TYPED_TEST(Weights, OfScoresThatUnderflowAreFinite) {
    using S = TypeParam;
    const S low = sizeof(S) == 4 ? S(-200) : S(-2000);
    moe::Matrix<S> z = moe::Matrix<S>::Zero(3, 6);
    for (const Index expert : {0, 3, 4}) z(0, expert) = low;  // all that token 0 has
    const auto c = derivatives<S>(7);
    for_each_rule([&](const CombineRule& rule) {
        if (rule.score == Score::raw || rule.score == Score::relu) return;
        Weighed<S> token(rule);
        plan(token.routing);
        token.weigh(z);
        const moe::Matrix<S> dz = token.backward(z, c);
        for (Index a = 0; a < 7; ++a)
            EXPECT_TRUE(std::isfinite(token.weight(a))) << describe(rule, false);
        EXPECT_TRUE(dz.allFinite()) << describe(rule, false);
    });
}

TYPED_TEST(Weights, OfARowWithANaNAreNaNWhateverTheScore) {
    using S = TypeParam;
    moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    z(0, 1) = nan<S>;  // not an expert of the token's
    z(0, 2) = -infinity<S>;
    const auto c = derivatives<S>(7);
    for_each_rule([&](const CombineRule& rule) {
        Weighed<S> token(rule);
        plan(token.routing);
        token.weigh(z);
        for (Index a = 0; a < 3; ++a) EXPECT_TRUE(std::isnan(token.weight(a)));
        for (Index a = 3; a < 7; ++a) EXPECT_FALSE(std::isnan(token.weight(a)));
        const moe::Matrix<S> dz = token.backward(z, c);
        EXPECT_TRUE(std::isnan(dz(0, 4)));
        EXPECT_EQ(dz(0, 2), 0);
        EXPECT_TRUE(dz.row(2).allFinite());
    });
}

TYPED_TEST(Weights, OfDroppedAssignmentsKeepTheirShareUnlessToldOtherwise) {
    using S = TypeParam;
    const moe::Matrix<S> z = random_spaced<S>(3, 6, 5, 0.3);
    Weighed<S> all(CombineRule{}), kept({.kept_only = true});
    for (Weighed<S>* token : {&all, &kept}) {
        plan(token->routing);
        token->routing.set_dropped(1, moe::Dropped::capacity);
        token->routing.group();
        token->weigh(z);
    }
    const double tolerance = 1e-6;
    EXPECT_GT(all.weight(1), 0);
    EXPECT_NEAR(all.weight(0) + all.weight(1) + all.weight(2), 1, tolerance);
    EXPECT_EQ(kept.weight(1), 0);
    EXPECT_NEAR(kept.weight(0) + kept.weight(2), 1, tolerance);
    EXPECT_NEAR(kept.weight(0) / kept.weight(2), all.weight(0) / all.weight(2), 10 * tolerance);
}

TEST(WeightGradients, OfKeptAssignmentsAgreeWithDifferences) {
    moe::Matrix<double> z = random_spaced<double>(3, 6, 5, 0.3);
    const auto c = derivatives<double>(7);
    for (const Score score : all_scores) {
        Weighed<double> token({.score = score,
                               .normalize = Normalize::add_epsilon,
                               .epsilon = 0.1,
                               .norm_power = 2,
                               .kept_only = true});
        plan(token.routing);
        token.routing.set_dropped(1, moe::Dropped::capacity);
        token.routing.set_dropped(4, moe::Dropped::pruned);
        token.routing.group();
        const moe::Matrix<double> dz = token.backward(z, c);
        EXPECT_TRUE(moe::testing::check_gradient([&] { return token.loss(z, c); }, z, dz))
            << score_names[static_cast<int>(score)];
    }
}

TEST(WeightGradients, OfAnExpertNamedTwiceAndDroppedOnceAgreeWithDifferences) {
    moe::Matrix<double> z = random_spaced<double>(1, 6, 5, 0.3);
    z.array() += 1.5;
    const auto c = derivatives<double>(3);
    for (const Score score : all_scores) {
        Weighed<double> token({.score = score, .normalize = Normalize::clamp, .epsilon = 1e-12});
        token.routing.reset(1, 6);
        for (const Index expert : {2, 4, 2}) token.routing.add(0, expert);
        token.routing.set_dropped(2, moe::Dropped::pruned);
        token.routing.group();
        const moe::Matrix<double> dz = token.backward(z, c);
        EXPECT_TRUE(moe::testing::check_gradient([&] { return token.loss(z, c); }, z, dz))
            << score_names[static_cast<int>(score)];
    }
}

TEST(CombineRule, RefusesSettingsThatMeanNothing) {
    const auto message = [](const CombineRule& rule) {
        return support::message([&] { rule.check("moe::Gate"); });
    };
    EXPECT_EQ(message({}), "");
    EXPECT_EQ(message({.epsilon = -1}), "moe::Gate: epsilon is -1, it must be finite and >= 0");
    EXPECT_EQ(message({.norm_power = 0.5}),
              "moe::Gate: norm_power is 0.5, it must be finite and >= 1");
    EXPECT_EQ(message({.scale = infinity<double>}), "moe::Gate: scale is inf, it must be finite");
    EXPECT_NE(message({.epsilon = nan<double>}), "");
    EXPECT_NE(message({.norm_power = nan<double>}), "");
    EXPECT_NE(message({.scale = nan<double>}), "");
    EXPECT_EQ(message({.score = Score(42)}),
              "moe::Gate: score is number 42 of its choices, they are 0 to 5");
    EXPECT_NE(message({.score = Score(-1)}), "");
    EXPECT_NE(message({.score = Score(6)}), "");
    EXPECT_EQ(message({.normalize = Normalize(4)}),
              "moe::Gate: normalize is number 4 of its choices, they are 0 to 3");
    EXPECT_EQ(message({.placement = Placement(3)}),
              "moe::Gate: placement is number 3 of its choices, they are 0 to 2");
}

}  // namespace
