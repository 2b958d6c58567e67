// SPDX-License-Identifier: MIT
#include <moe/losses/importance.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "losses/example.hpp"
#include "losses/head_of_logits.hpp"
#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace importance_test {
namespace {

using moe::Context;
using moe::GateNoise;
using moe::Importance;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Scored;
using moe::Variance;
using moe::testing::random_matrix;

template <class S>
double value_of(const Matrix<S>& logits, const Routing& plan, const Importance& options = {},
                const Context& context = {}) {
    Matrix<S> unused(logits.rows(), logits.cols());
    return moe::importance_loss(logits, plan, context, 0.0, unused, options);
}

TEST(ImportanceLoss, HasThePublishedValues) {
    const Matrix<double> logits = example::logits<double>();
    EXPECT_NEAR(value_of(logits, example::two_best()), 0.4548197, 5e-8);
    EXPECT_NEAR(value_of(logits, example::two_best(), {.variance = Variance::sample}), 0.5197939,
                5e-8);
    EXPECT_NEAR(value_of(example::logits<float>(), example::two_best()), 0.4548197, 5e-7);
    Matrix<double> dlogits(4, 8);
    EXPECT_STREQ(moe::importance_loss(logits, example::two_best(), {}, 0, dlogits).name,
                 "importance");
}

TEST(ImportanceLoss, IsWorkedOutByHand) {
    // Scores (1/4, 3/4) and (3/4, 1/4) add up to (1, 1): 0. Two times the first: (1/2, 3/2),
    // mean 1, variance 1/4 (population), 1/2 (sample).
    Matrix<double> even(2, 2), odd(2, 2);
    even << 0, std::log(3.0), std::log(3.0), 0;
    odd << 0, std::log(3.0), 0, std::log(3.0);
    const Routing plan = example::routing(2, {{1}, {1}});
    EXPECT_NEAR(value_of(even, plan), 0, 1e-30);
    EXPECT_NEAR(value_of(odd, plan), 0.25, 1e-15);
    EXPECT_NEAR(value_of(odd, plan, {.variance = Variance::sample}), 0.5 / (1 + 1e-10), 1e-15);
    // costs (3, 1): (3/2, 3/2)
    const std::vector<double> costs{3, 1};
    EXPECT_NEAR(value_of(odd, plan, {.expert_costs = costs}), 0, 1e-30);
    // g = (v - 1) - 1/4 = (-3/4, 1/4); dz0 = 1/4 (-3/4 - 0), dz1 = 3/4 (1/4 - 0)
    Matrix<double> dlogits = Matrix<double>::Zero(2, 2);
    moe::importance_loss(odd, plan, {}, 2.0, dlogits);
    EXPECT_NEAR(dlogits(0, 0), -2 * 3.0 / 16, 1e-15);
    EXPECT_NEAR(dlogits(1, 1), 2 * 3.0 / 16, 1e-15);
    // of the selected only: both give all to expert 1, (0, 2), and nothing can change that
    dlogits.setZero();
    EXPECT_EQ(moe::importance_loss(odd, plan, {}, 2.0, dlogits, {.scored = Scored::selected}), 1);
    EXPECT_EQ(dlogits, (Matrix<double>::Zero(2, 2)));
}

TEST(ImportanceLoss, GradientAgreesWithDifferencesInEveryVariant) {
    const auto logits = random_matrix<double>(6, 5, 3, 1.5);
    const Routing plan = example::routing(5, {{0, 2}, {1, 2, 3}, {}, {4, 0}, {2}, {3, 1}});
    const std::vector<double> costs{6, 4, 1, 0, 2.5};
    for (const Variance variance : {Variance::population, Variance::sample})
        for (const Scored scored : {Scored::all, Scored::selected})
            for (const bool has_costs : {false, true}) {
                Importance options{.variance = variance, .scored = scored};
                if (has_costs) options.expert_costs = costs;
                const auto loss = [&](auto&&... a) { return moe::importance_loss(a..., options); };
                EXPECT_TRUE(example::check(loss, logits, plan));
            }
}

TEST(ImportanceLoss, OfTheSelectedIsThatOfTheirNormalisedWeights) {
    const Matrix<double> z = example::logits<double>();
    Routing plan = example::two_best();
    double v[8] = {};
    const auto sums_of = [&](bool count_dropped) {
        std::fill(v, v + 8, 0.0);
        for (Index t = 0; t < 4; ++t) {
            double sum = 0;
            for (const moe::Assignment& a : plan.of(t))
                if (count_dropped || a.dropped == moe::Dropped::no) sum += std::exp(z(t, a.expert));
            for (const moe::Assignment& a : plan.of(t))
                if (count_dropped || a.dropped == moe::Dropped::no)
                    v[a.expert] += std::exp(z(t, a.expert)) / sum;
        }
        double mean = 0, variance = 0;
        for (const double value : v) mean += value / 8;
        for (const double value : v) variance += (value - mean) * (value - mean) / 7;
        return variance / (mean * mean + 1e-10);
    };
    plan.set_dropped(0, moe::Dropped::capacity);
    plan.group();
    for (const bool count_dropped : {false, true})
        EXPECT_NEAR(value_of(z, plan,
                             {.variance = Variance::sample,
                              .scored = Scored::selected,
                              .count_dropped = count_dropped}),
                    sums_of(count_dropped), 1e-14);
}

TEST(ImportanceLoss, OfOneExpertIsZero) {
    Matrix<double> logits = Matrix<double>::Constant(3, 1, 2), dlogits = logits;
    for (const Variance variance : {Variance::population, Variance::sample})
        EXPECT_EQ(moe::importance_loss(logits, example::routing(1, {{0}, {0}, {0}}), {}, 1.0,
                                       dlogits, {.variance = variance}),
                  0);
    EXPECT_EQ(dlogits, logits);
}

TEST(ImportanceLoss, RefusesWhatDoesNotFit) {
    const Matrix<double> logits = example::logits<double>();
    const auto refusal = [&](const Importance& options) {
        return support::message([&] { value_of(logits, example::two_best(), options); });
    };
    const std::vector<double> few(7, 1.0);
    std::vector<double> bad(8, 1.0);
    bad[2] = std::numeric_limits<double>::infinity();
    EXPECT_EQ(refusal({.expert_costs = few}),
              "moe::Importance: expert_costs has 7 entries, there are 8 experts");
    EXPECT_EQ(refusal({.expert_costs = bad}),
              "moe::Importance: an entry of expert_costs is inf, it must be finite and >= 0");
    EXPECT_EQ(refusal({.variance = Variance(2)}),
              "moe::Importance: variance is number 2 of its choices, they are 0 to 1");
    EXPECT_NE(refusal({.scored = Scored(2)}), "");
}

constexpr Context training{.training = true, .seed = 6};

/// A Noisy gate of 5 experts, and 6 tokens.
template <class S>
struct Noise : example::HeadOfLogits<S, moe::Noisy<moe::TopK>> {
    explicit Noise(const GateNoise& noise)
        : example::HeadOfLogits<S, moe::Noisy<moe::TopK>>(
              moe::Noisy{moe::TopK{.k = 2}, noise}, 6, 5,
              noise.kind == GateNoise::Kind::learned ? 10 : 5) {}
};

TEST(ImportanceLoss, OnAGateIsThatOfTheNoisyLogits) {
    Noise<double> noise({});
    moe::Workspace<double>& ws = noise.ws;
    noise.route(training);
    const Importance options{.variance = Variance::sample, .scored = Scored::selected};
    const double value = moe::importance_loss(noise.gate(), ws, 0.0, options);
    EXPECT_NE(value, moe::importance_loss(ws, 0.0, options).value);
    // TopK's weights are the softmax of the selected noisy logits.
    double v[5] = {}, mean = 0, variance = 0;
    for (const moe::Assignment& a : ws.routing().assignments()) v[a.expert] += a.weight;
    for (const double sum : v) mean += sum / 5;
    for (const double sum : v) variance += (sum - mean) * (sum - mean) / 4;
    EXPECT_NEAR(value, variance / (mean * mean + 1e-10), 1e-13);
    EXPECT_TRUE((ws.dlogits().array() == 0).all());
    // Without noise in the weights it is the form on the workspace.
    noise.route({});
    EXPECT_EQ(moe::importance_loss(noise.gate(), ws, 0.0, options).value,
              moe::importance_loss(ws, 0.0, options).value);
    Noise<double> rsample({.weighs = false});
    rsample.route(training);
    EXPECT_EQ(moe::importance_loss(rsample.gate(), rsample.ws, 0.0, options).value,
              moe::importance_loss(rsample.ws, 0.0, options).value);
}

TEST(ImportanceLoss, OnAGateHasExactGradients) {
    for (const GateNoise& kind :
         {GateNoise{}, GateNoise{.kind = GateNoise::Kind::fixed, .std = 0.7},
          GateNoise{.kind = GateNoise::Kind::gumbel}})
        for (const Scored scored : {Scored::all, Scored::selected}) {
            Noise<double> noise(kind);
            const auto loss = [&](double weight) {
                noise.route(training);
                return moe::importance_loss(noise.gate(), noise.ws, weight, {.scored = scored})
                    .value;
            };
            loss(0.7);
            const Matrix<double> gradient = noise.ws.dlogits() / 0.7;
            const auto same = seams::options(seams::SameChoices(noise.ws));
            EXPECT_TRUE(moe::testing::check_gradient([&] { return loss(0); }, noise.logits,
                                                     gradient, same));
        }
}

TEST(ImportanceLoss, OnAGateRefusesAWorkspaceOfAnother) {
    Noise<double> narrow({.kind = GateNoise::Kind::fixed}), other({});
    narrow.route(training);
    EXPECT_EQ(support::message([&] { moe::importance_loss(other.gate(), narrow.ws, 1.0); }),
              "moe::importance_loss: the gate reads 10 logits per token, the workspace holds 5; "
              "give it the gate of the layer that filled the workspace");
}

TEST(ImportanceLoss, OnAGateAllocatesNothingTheSecondTime) {
    Noise<float> noise({});
    noise.route(training);
    moe::importance_loss(noise.gate(), noise.ws, 1.0);
    EXPECT_EQ(allocations::in([&] { moe::importance_loss(noise.gate(), noise.ws, 1.0); }), 0);
}

}  // namespace
}  // namespace importance_test
