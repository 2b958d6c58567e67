// SPDX-License-Identifier: MIT
#include <moe/losses/load.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>

#include "losses/example.hpp"
#include "losses/head_of_logits.hpp"
#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace load_test {
namespace {

using moe::Context;
using moe::GateNoise;
using moe::Index;
using moe::Matrix;
using moe::SmoothLoad;
using moe::Variance;
using moe::testing::random_matrix;
using Threshold = SmoothLoad::Threshold;

constexpr Context training{.training = true, .seed = 6};

double normal_cdf(double u) { return 0.5 * std::erfc(-u / std::sqrt(2.0)); }

/// The papers' formulas, expert by expert.
double expected(const Matrix<double>& z, const Matrix<double>& h, const Matrix<double>& sigma,
                std::function<Index(Index)> k, const SmoothLoad& options,
                const Context& context = {}) {
    const Index experts = z.cols();
    std::vector<double> v(static_cast<std::size_t>(experts), 0.0);
    for (Index t = 0; t < z.rows(); ++t) {
        if (context.is_padding(t)) continue;
        for (Index e = 0; e < experts; ++e) {
            std::vector<double> others;
            for (Index j = 0; j < experts; ++j)
                if ((options.threshold == Threshold::kth || j != e) &&
                    h(t, j) != example::minus_infinity)
                    others.push_back(h(t, j));
            std::sort(others.begin(), others.end(), std::greater<>());
            if (h(t, e) == example::minus_infinity) continue;
            const auto rank = static_cast<std::size_t>(k(t) - 1);
            v[static_cast<std::size_t>(e)] +=
                rank < others.size() ? normal_cdf((z(t, e) - others[rank]) / sigma(t, e)) : 1;
        }
    }
    double mean = 0, variance = 0;
    const auto n = static_cast<double>(experts);
    for (std::size_t e = 0; e < v.size(); ++e) {
        if (!options.expert_costs.empty()) v[e] *= options.expert_costs[e];
        mean += v[e] / n;
    }
    const bool is_sample = options.variance == Variance::sample;
    for (const double load : v) variance += (load - mean) * (load - mean) / (is_sample ? n - 1 : n);
    return experts == 1 ? 0 : variance / (mean * mean + (is_sample ? 1e-10 : 0));
}

/// Matrices of a batch, h not made of the others, and gradients.
struct Batch {
    Matrix<double> z = random_matrix<double>(7, 5, 1), h = z + random_matrix<double>(7, 5, 2),
                   sigma = random_matrix<double>(7, 5, 3).array().abs() + 0.3;
    Matrix<double> dz = Matrix<double>::Zero(7, 5), dh = dz, dsigma = dz;

    double loss(Index k, double weight, const SmoothLoad& options, const Context& context = {}) {
        return moe::load_loss(z, h, sigma, k, context, weight, dz, dh, dsigma, options);
    }
};

TEST(LoadLoss, IsWorkedOutByHand) {
    // One token, three experts, k = 1, sigma 1; h = 2 1 0. Chances: Phi(0 - 1) for the first, which
    // has to beat the second; Phi(3 - 2) and Phi(1 - 2) for the others, which have to beat it.
    Matrix<double> z(1, 3), h(1, 3), dz = Matrix<double>::Zero(1, 3), dh = dz, dsigma = dz;
    z << 0, 3, 1;
    h << 2, 1, 0;
    const Matrix<double> sigma = Matrix<double>::Ones(1, 3);
    const double low = 0.15865525393145707, high = 1 - low;  // Phi(-1), Phi(1)
    const double mean = (low + high + low) / 3;
    const double variance = (2 * (low - mean) * (low - mean) + (high - mean) * (high - mean)) / 3;
    const moe::Loss loss = moe::load_loss(z, h, sigma, 1, {}, 1.0, dz, dh, dsigma);
    EXPECT_STREQ(loss.name, "load");
    EXPECT_NEAR(loss.value, variance / (mean * mean), 1e-15);
    // phi(1) = phi(-1): dz(e) = g(e) phi, dh(1) = -dz(0), dh(0) = -dz(1) - dz(2),
    // dsigma = -u dz, u = -1 1 -1
    const auto g = [&](double chance) {
        return 2.0 / 3 * ((chance - mean) - loss.value * mean) / (mean * mean);
    };
    const double phi = 0.24197072451914337;
    EXPECT_NEAR(dz(0, 0), g(low) * phi, 1e-15);
    EXPECT_NEAR(dz(0, 1), g(high) * phi, 1e-15);
    EXPECT_NEAR(dz(0, 2), dz(0, 0), 1e-15);
    EXPECT_NEAR(dh(0, 0), -dz(0, 1) - dz(0, 2), 1e-15);
    EXPECT_NEAR(dh(0, 1), -dz(0, 0), 1e-15);
    EXPECT_EQ(dh(0, 2), 0);
    EXPECT_NEAR(dsigma(0, 0), dz(0, 0), 1e-15);
    EXPECT_NEAR(dsigma(0, 1), -dz(0, 1), 1e-15);
    // V-MoE's threshold is h(0) for all: Phi(-2), Phi(1), Phi(-1)
    const double lowest = 0.022750131948179195, sum = lowest + high + low;
    const double squares = lowest * lowest + high * high + low * low;
    EXPECT_NEAR(
        moe::load_loss(z, h, sigma, 1, {}, 0.0, dz, dh, dsigma, {.threshold = Threshold::kth}),
        3 * squares / (sum * sum) - 1, 1e-14);
}

TEST(LoadLoss, AgreesWithTheFormulaAndWithDifferencesInEveryVariant) {
    const std::vector<double> costs{6, 4, 1, 0, 2.5};
    std::vector<std::uint8_t> padding(7, 0);
    padding[2] = 1;
    Context context;
    context.padding = padding;
    for (const Threshold threshold : {Threshold::of_others, Threshold::kth})
        for (const Variance variance : {Variance::population, Variance::sample})
            for (const bool has_costs : {false, true})
                for (const Index k : {1, 2, 4, 5}) {
                    SmoothLoad options{.threshold = threshold, .variance = variance};
                    if (has_costs) options.expert_costs = costs;
                    Batch batch;
                    batch.z(4, 1) = batch.h(4, 1) = example::minus_infinity;
                    const auto value = [&] { return 0.7 * batch.loss(k, 0, options, context); };
                    EXPECT_NEAR(batch.loss(k, 0.7, options, context),
                                expected(
                                    batch.z, batch.h, batch.sigma, [k](Index) { return k; },
                                    options, context),
                                1e-13);
                    EXPECT_EQ(batch.dz(4, 1), 0);
                    EXPECT_EQ(batch.dh(4, 1), 0);
                    batch.z(4, 1) = batch.h(4, 1) = -1e300;  // differences need numbers
                    if (k >= 4) continue;                    // and then it is an expert like others
                    Batch claims = batch;
                    EXPECT_TRUE(moe::testing::check_gradient(value, batch.z, claims.dz));
                    EXPECT_TRUE(moe::testing::check_gradient(value, batch.h, claims.dh));
                    EXPECT_TRUE(moe::testing::check_gradient(value, batch.sigma, claims.dsigma));
                }
}

TEST(LoadLoss, AddsToWhatIsThere) {
    Batch once, more;
    more.dz.setConstant(3), more.dh.setConstant(4), more.dsigma.setConstant(5);
    const double value = once.loss(2, 1, {});
    EXPECT_EQ(more.loss(2, 2, {}), value);
    EXPECT_TRUE(moe::testing::compare((more.dz.array() - 3) / 2, once.dz, 1e-13));
    EXPECT_TRUE(moe::testing::compare((more.dh.array() - 4) / 2, once.dh, 1e-13));
    EXPECT_TRUE(moe::testing::compare((more.dsigma.array() - 5) / 2, once.dsigma, 1e-13));
}

TEST(LoadLoss, OfAsManyExpertsAsThereAreIsZero) {
    // All are selected always: what is counted is T for each.
    Batch batch;
    EXPECT_EQ(batch.loss(5, 1, {}), 0);
    EXPECT_EQ(batch.loss(5, 1, {.variance = Variance::sample}), 0);
    EXPECT_EQ(batch.dz, (Matrix<double>::Zero(7, 5)));
    // V-MoE compares all the same
    EXPECT_GT(batch.loss(5, 0, {.threshold = Threshold::kth}), 0);
    Matrix<double> one(2, 1), zero = Matrix<double>::Zero(2, 1);
    one << 1, 2;
    EXPECT_EQ(moe::load_loss(one, one, one, 1, {}, 1.0, zero, zero, zero), 0);
    Matrix<double> none(0, 5);
    EXPECT_EQ(moe::load_loss(none, none, none, 2, {}, 1.0, none, none, none), 0);
}

TEST(LoadLoss, IsSmoothWhereTheRanksChange) {
    // At a tie of the k-th and the next, both thresholds are the same number.
    Batch below, above;
    std::vector<double> row(5);
    std::copy_n(below.h.data(), 5, row.data());
    std::sort(row.begin(), row.end());
    Index third = 0;
    for (Index e = 0; e < 5; ++e)
        if (below.h(0, e) == row[2]) third = e;
    below.h(0, third) = row[3] - 1e-9;
    above.h(0, third) = row[3] + 1e-9;
    EXPECT_NEAR(below.loss(2, 0, {}), above.loss(2, 0, {}), 1e-8);
    above.h(0, third) = row[3];
    EXPECT_NEAR(below.loss(2, 0, {}), above.loss(2, 0, {}), 1e-8);
}

TEST(LoadLoss, WithoutNoiseOfAnExpertIsAStep) {
    Batch batch;
    batch.sigma.setZero();
    const double value = batch.loss(2, 1, {});
    batch.sigma.setConstant(1e-30);
    EXPECT_EQ(batch.loss(2, 0, {}), value);
    EXPECT_GT(value, 0);
    EXPECT_EQ(batch.dz, (Matrix<double>::Zero(7, 5)));
    EXPECT_EQ(batch.dsigma, (Matrix<double>::Zero(7, 5)));
    batch.h = batch.z = Matrix<double>::Zero(7, 5);  // 0 / 0: Phi(0)
    batch.sigma.setZero();
    EXPECT_EQ(batch.loss(2, 0, {}), 0);
}

TEST(LoadLoss, ShowsNaN) {
    Batch batch;
    batch.z(3, 1) = batch.h(3, 1) = std::numeric_limits<double>::quiet_NaN();
    for (const Index k : {2, 5}) {
        EXPECT_TRUE(std::isnan(batch.loss(k, 1, {})));
        EXPECT_TRUE(std::isnan(batch.loss(k, 1, {.threshold = Threshold::kth})));
    }
}

TEST(LoadLoss, RefusesMatricesThatDoNotFit) {
    using support::message;
    Batch batch;
    const auto refusal = [&](Index k, const SmoothLoad& options) {
        return message([&] { batch.loss(k, 1, options); });
    };
    EXPECT_EQ(refusal(0, {}),
              "moe::load_loss: k is 0, it must be in [1, 5], the experts that "
              "there are");
    EXPECT_NE(refusal(6, {}), "");
    const std::vector<double> few(4, 1.0);
    EXPECT_EQ(refusal(2, {.expert_costs = few}),
              "moe::SmoothLoad: expert_costs has 4 entries, there are 5 experts");
    EXPECT_NE(refusal(2, {.threshold = Threshold(2)}), "");
    EXPECT_NE(refusal(2, {.variance = Variance(-1)}), "");
    batch.sigma(1, 1) = -0.5;
    EXPECT_EQ(refusal(2, {}), "moe::load_loss: an entry of sigma is -0.5, it must be >= 0");
    batch.sigma.resize(7, 4);
    EXPECT_EQ(refusal(2, {}), "moe::load_loss: sigma is [7, 4], clean is [7, 5]");
    batch.sigma = batch.z;
    batch.dh.resize(6, 5);
    EXPECT_EQ(refusal(2, {}), "moe::load_loss: dnoisy is [6, 5], clean is [7, 5]");
    EXPECT_EQ(batch.dz, (Matrix<double>::Zero(7, 5)));
}

/// A Noisy gate of 5 experts, and 6 tokens.
template <class S>
struct Noise : example::HeadOfLogits<S, moe::Noisy<moe::TopK>> {
    explicit Noise(const GateNoise& noise, const moe::TopK& top_k = {.k = 2})
        : example::HeadOfLogits<S, moe::Noisy<moe::TopK>>(
              moe::Noisy{top_k, noise}, 6, 5, noise.kind == GateNoise::Kind::learned ? 10 : 5) {}
};

const GateNoise kinds[] = {{},
                           {.weighs = false},
                           {.kind = GateNoise::Kind::fixed, .std = 0.7},
                           {.kind = GateNoise::Kind::fixed_over_experts, .std = 3}};

/// h and sigma of the gate, from its samples.
struct Expected {
    Matrix<double> z, h, sigma;

    Expected(const Noise<double>& noise, const std::vector<double>& samples) {
        z = noise.logits.leftCols(5);
        sigma = h = z;
        const GateNoise& settings = noise.gate().noise();
        for (Index i = 0; i < 30; ++i) {
            double& s = sigma.data()[i];
            s = settings.kind == GateNoise::Kind::fixed ? settings.std : settings.std / 5;
            if (settings.kind == GateNoise::Kind::learned)
                s = std::log1p(std::exp(noise.logits(i / 5, 5 + i % 5))) + settings.epsilon;
            h.data()[i] += s * samples[static_cast<std::size_t>(i)];
        }
    }
};

std::vector<double> normal_samples(int seed) {
    const auto matrix = random_matrix<double>(6, 5, static_cast<std::uint64_t>(seed), 1.5);
    return {matrix.data(), matrix.data() + 30};
}

TEST(LoadLoss, OnAGateIsThatOfItsLogitsAndNoise) {
    const std::vector<double> samples = normal_samples(8);
    const std::vector<Index> sequences{0, 2, 6}, ks{1, 3};
    for (const GateNoise& kind : kinds) {
        Noise<double> noise(kind);
        Context context = training;
        context.noise = samples;
        noise.route(context);
        const Expected batch(noise, samples);
        for (const Threshold threshold : {Threshold::of_others, Threshold::kth})
            EXPECT_NEAR(moe::load_loss(noise.gate(), noise.ws, 0.0, {.threshold = threshold}),
                        expected(batch.z, batch.h, batch.sigma, [](Index) { return 2; },
                                 {.threshold = threshold}),
                        1e-13);
        EXPECT_TRUE((noise.ws.dlogits().array() == 0).all());
        context.dial.k = 4;
        noise.route(context);
        EXPECT_NEAR(moe::load_loss(noise.gate(), noise.ws, 0.0),
                    expected(batch.z, batch.h, batch.sigma, [](Index) { return 4; }, {}), 1e-13);
        context.dial.k = {};
        context.dial.k_per_sequence = ks;
        context.sequence_offsets = sequences;
        noise.route(context);
        EXPECT_NEAR(
            moe::load_loss(noise.gate(), noise.ws, 0.0),
            expected(batch.z, batch.h, batch.sigma, [](Index t) { return t < 2 ? 1 : 3; }, {}),
            1e-13);
    }
}

TEST(LoadLoss, OnAGateHasExactGradientsWithTheSamplesHeld) {
    std::vector<std::uint8_t> padding(6, 0), allowed(5, 1);
    padding[3] = 1, allowed[1] = 0;
    for (const GateNoise& kind : kinds)
        for (const Threshold threshold : {Threshold::of_others, Threshold::kth})
            for (const bool restricts : {false, true}) {
                Noise<double> noise(kind);
                Context context = training;
                if (restricts) context.padding = padding, context.allowed = allowed;
                const auto loss = [&](double weight) {
                    noise.route(context);
                    return moe::load_loss(noise.gate(), noise.ws, weight, {.threshold = threshold})
                        .value;
                };
                loss(0.7);
                const Matrix<double> gradient = noise.ws.dlogits() / 0.7;
                const auto same = seams::options(seams::SameChoices(noise.ws));
                EXPECT_TRUE(moe::testing::check_gradient([&] { return loss(0); }, noise.logits,
                                                         gradient, same));
                EXPECT_GT(gradient.leftCols(5).cwiseAbs().maxCoeff(), 1e-3);
            }
}

TEST(LoadLoss, RefusesCallsThatItSaysNothingOf) {
    const auto refusal = [](const GateNoise& noise, const moe::TopK& top_k,
                            const Context& context = training) {
        Noise<double> head(noise, top_k);
        head.route(context);
        const std::string found =
            support::message([&] { moe::load_loss(head.gate(), head.ws, 1.0); });
        EXPECT_EQ((head.ws.dlogits().array() == 0).all(), !found.empty());
        return found;
    };
    EXPECT_EQ(refusal({}, {.k = 2}, {}),
              "moe::load_loss: there is no noise in this call, and without it no chance of being "
              "selected; set Context::training, or leave the loss out at inference");
    EXPECT_EQ(refusal({.kind = GateNoise::Kind::fixed, .std = 0}, {.k = 2}),
              "moe::load_loss: there is no noise in this call, and without it no chance of being "
              "selected; give the gate a GateNoise::std > 0");
    Context late = training;
    late.step = 9;
    EXPECT_EQ(
        refusal({.kind = GateNoise::Kind::fixed, .factor = {.to = 0, .steps = 9}}, {.k = 2}, late),
        "moe::load_loss: there is no noise in this call, and without it no chance of being "
        "selected; GateNoise::factor is 0 at this step: leave the loss out from here on");
    EXPECT_EQ(refusal({.inference = true}, {.k = 2}, {}), "");
    EXPECT_EQ(refusal({.kind = GateNoise::Kind::gumbel}, {.k = 2}),
              "moe::load_loss: the noise of the gate is Gumbel's, it must be normal; take another "
              "GateNoise::kind");
    EXPECT_EQ(refusal({}, {.k = 2, .selection_bias = true}),
              "moe::load_loss: the gate has a selection_bias, but the loss is about a choice by "
              "logits alone; balance it by one of them");
    EXPECT_EQ(refusal({}, {.k = 1, .num_groups = 5, .groups_kept = 2}),
              "moe::load_loss: the gate keeps 2 of 5 groups, but the loss is about a choice among "
              "all experts");
    EXPECT_EQ(refusal({}, {.k = 1, .num_groups = 5, .groups_kept = 5}), "");
    Noise<double> narrow({.kind = GateNoise::Kind::fixed}), other({});
    narrow.route(training);
    EXPECT_EQ(support::message([&] { moe::load_loss(other.gate(), narrow.ws, 1.0); }),
              "moe::load_loss: the gate reads 10 logits per token, the workspace holds 5; give it "
              "the gate of the layer that filled the workspace");
}

TEST(LoadLoss, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    example::HeadOfLogits<double, moe::Noisy<moe::TopK>> noise(
        moe::Noisy{moe::TopK{.k = 2}, GateNoise{}}, 700, 5, 10);
    Matrix<double> dlogits;
    for (const int threads : {1, 2, 3}) {
        noise.ws.threads(threads);
        noise.route(training);
        const auto loss = [&] { moe::load_loss(noise.gate(), noise.ws, 1.0); };
        loss();
        if (threads == 1) dlogits = noise.ws.dlogits();
        EXPECT_TRUE(moe::testing::same_bits(noise.ws.dlogits(), dlogits));
        if (threads > 1 || !allocations::are_counted) continue;
        EXPECT_EQ(allocations::in(loss), 0);
    }
}

TEST(LoadLoss, InFloatIsThatInDoubleRounded) {
    Batch wide;
    const Matrix<float> z = wide.z.cast<float>(), h = wide.h.cast<float>(),
                        sigma = wide.sigma.cast<float>();
    Matrix<float> dz = Matrix<float>::Zero(7, 5), dh = dz, dsigma = dz;
    EXPECT_NEAR(moe::load_loss(z, h, sigma, 2, {}, 1.0, dz, dh, dsigma), wide.loss(2, 1.0, {}),
                1e-6);
    EXPECT_TRUE(moe::testing::compare(dz, wide.dz, 1e-5));
    EXPECT_TRUE(moe::testing::compare(dh, wide.dh, 1e-5));
    EXPECT_TRUE(moe::testing::compare(dsigma, wide.dsigma, 1e-5));
}

}  // namespace
}  // namespace load_test
