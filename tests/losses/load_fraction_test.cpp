// SPDX-License-Identifier: MIT
#include <moe/losses/load_fraction.hpp>

#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/balance/load_sum.hpp>
#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "support/message.hpp"

namespace load_fraction_test {
namespace {

using moe::Context;
using moe::Index;
using moe::LoadBalance;
using moe::LoadFraction;
using moe::Matrix;
using moe::Routing;
using moe::Workspace;
using moe::testing::random_matrix;
using Norm = LoadBalance::Norm;

std::vector<double> copy(std::span<const double> values) { return {values.begin(), values.end()}; }

/// A batch of 7 tokens and 5 experts: the two best of random logits.
struct Batch {
    Matrix<double> logits;
    Routing plan;

    explicit Batch(std::uint64_t seed) : logits(random_matrix<double>(7, 5, seed, 2)) {
        std::vector<std::vector<Index>> chosen;
        for (Index t = 0; t < 7; ++t) {
            Index first = 0, second = -1;
            logits.row(t).maxCoeff(&first);
            for (Index e = 0; e < 5; ++e)
                if (e != first && (second < 0 || logits(t, e) > logits(t, second))) second = e;
            chosen.push_back({first, second});
        }
        plan = example::routing(5, chosen);
    }
};

TEST(LoadFraction, IsWorkedOutByHand) {
    // counts 2 0 0 1 0 1 2 2 of 4 tokens, first slots 1 0 0 1 0 1 0 1
    LoadFraction load(8);
    load.add(example::logits<double>(), example::two_best(), {});
    EXPECT_EQ(copy(load.fraction()), (std::vector<double>{0.5, 0, 0, 0.25, 0, 0.25, 0.5, 0.5}));
    EXPECT_EQ(copy(load.fraction(Norm::per_assignment)),
              (std::vector<double>{0.25, 0, 0, 0.125, 0, 0.125, 0.25, 0.25}));
    EXPECT_EQ(copy(load.totals()), (std::vector<double>{2, 0, 0, 1, 0, 1, 2, 2, 4}));
    load.clear();
    load.add(example::logits<double>(), example::two_best(), {},
             {.slots = LoadBalance::Slots::first});
    EXPECT_EQ(copy(load.fraction(Norm::all_per_assignment)),
              (std::vector<double>{0.25, 0, 0, 0.25, 0, 0.25, 0, 0.25}));
}

TEST(LoadFraction, OfOneBatchIsWhatTheLossCounts) {
    const Batch batch(3);
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 0, 0};
    const std::vector<double> weights{1, 2, 5, 0, 0.5, 1, 3};
    Context context;
    context.padding = padding;
    Routing plan = batch.plan;
    plan.set_dropped(0, moe::Dropped::capacity);
    plan.group();
    for (const Norm norm : {Norm::per_token, Norm::gshard, Norm::per_assignment,
                            Norm::all_per_assignment, Norm::unscaled})
        for (const bool count_dropped : {false, true}) {
            LoadBalance options{
                .norm = norm, .count_dropped = count_dropped, .token_weights = weights};
            Matrix<double> dlogits = Matrix<double>::Zero(7, 5), expected = dlogits;
            const double value =
                moe::load_balance_loss(batch.logits, plan, context, 1.0, expected, options);
            LoadFraction load(5);
            load.add(batch.logits, plan, context, options);
            options.fraction = load.fraction(norm);
            EXPECT_EQ(
                moe::load_balance_loss(batch.logits, plan, context, 1.0, dlogits, options).value,
                value);
            EXPECT_EQ(dlogits, expected);
        }
}

/// sum_e (share of all layers' tokens) (mean score over all layers' tokens) E, as transformers has
/// it, from the formula.
TEST(LoadFraction, MakesTheJointLossOfSeveralLayers) {
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 1, 0};
    for (const bool is_masked : {false, true}) {
        Context context;
        if (is_masked) context.padding = padding;
        std::vector<Workspace<double>> layers(3);
        std::vector<double> f(5, 0.0), p(5, 0.0);
        double tokens = 0;
        for (std::size_t l = 0; l < 3; ++l) {
            const Batch batch(l + 1);
            example::fill(layers[l], batch.logits, batch.plan, context);
            for (Index t = 0; t < 7; ++t) {
                if (is_masked && padding[static_cast<std::size_t>(t)]) continue;
                tokens += 1;
                for (const moe::Assignment& a : batch.plan.of(t))
                    f[static_cast<std::size_t>(a.expert)] += 1;
                const double sum = batch.logits.row(t).array().exp().sum();
                for (std::size_t e = 0; e < 5; ++e)
                    p[e] += std::exp(batch.logits(t, static_cast<Index>(e))) / sum;
            }
        }
        double expected = 0;
        for (std::size_t e = 0; e < 5; ++e) expected += 5 * (f[e] / tokens) * (p[e] / tokens);

        LoadFraction load(5);
        for (auto& ws : layers) load.add(ws);
        double value = 0;
        for (auto& ws : layers)
            value += moe::load_balance_loss(ws, 0.7 / 3, {.fraction = load.fraction()}) / 3;
        EXPECT_NEAR(value, expected, 1e-14);
        // d/dz of the concatenation: E / tokens * s (f - sum s f), f over all layers
        const auto z = layers[1].logits();
        const double sum = z.row(0).array().exp().sum();
        double mean = 0;
        for (std::size_t e = 0; e < 5; ++e)
            mean += std::exp(z(0, static_cast<Index>(e))) / sum * f[e] / tokens;
        for (std::size_t e = 0; e < 5; ++e) {
            const double s = std::exp(z(0, static_cast<Index>(e))) / sum;
            EXPECT_NEAR(layers[1].dlogits()(0, static_cast<Index>(e)),
                        0.7 * 5 / tokens * s * (f[e] / tokens - mean), 1e-15);
        }
    }
}

TEST(LoadFraction, OfPartsIsThatOfTheWhole) {
    // Three processes with two, two and three tokens, of which each adds its totals.
    const Batch batch(4);
    LoadFraction whole(5), sum(5), from_load_sum(5);
    whole.add(batch.logits, batch.plan, {});
    moe::LoadSum counts(5);
    counts.add(batch.plan);
    from_load_sum.add(counts.counts(), 7);
    const Index firsts[] = {0, 2, 4, 7};
    for (int i = 0; i < 3; ++i) {
        const Index from = firsts[i], to = firsts[i + 1];
        std::vector<std::vector<Index>> chosen;
        for (Index t = from; t < to; ++t) {
            chosen.emplace_back();
            for (const moe::Assignment& a : batch.plan.of(t)) chosen.back().push_back(a.expert);
        }
        LoadFraction part(5);
        part.add(batch.logits.middleRows(from, to - from), example::routing(5, chosen), {});
        for (std::size_t e = 0; e < 6; ++e) sum.totals()[e] += part.totals()[e];
    }
    for (const Norm norm : {Norm::per_token, Norm::per_assignment}) {
        EXPECT_EQ(copy(sum.fraction(norm)), copy(whole.fraction(norm)));
        EXPECT_EQ(copy(from_load_sum.fraction(norm)), copy(whole.fraction(norm)));
    }
}

TEST(LoadFraction, OfNothingIsZero) {
    LoadFraction load(3);
    EXPECT_EQ(copy(load.fraction()), (std::vector<double>{0, 0, 0}));
    load.add(Matrix<float>(0, 3), example::routing(3, {}), {});
    load.add(Matrix<float>::Zero(2, 3), example::routing(3, {{}, {}}), {});
    EXPECT_EQ(copy(load.fraction(Norm::per_assignment)), (std::vector<double>{0, 0, 0}));
    EXPECT_EQ(copy(load.totals()), (std::vector<double>{0, 0, 0, 2}));
    EXPECT_EQ(LoadFraction(0).fraction().size(), 0u);
}

TEST(LoadFraction, RefusesWhatDoesNotFitAndAddsNothingThen) {
    using support::message;
    LoadFraction load(8);
    EXPECT_EQ(message([] { LoadFraction(-1); }),
              "moe::LoadFraction: num_experts is -1, it must be >= 0");
    const Matrix<double> logits = example::logits<double>();
    EXPECT_EQ(message([&] {
                  load.add(logits, example::routing(9, {{}, {}, {}, {}}), {});
              }),
              "moe::LoadFraction::add: the load is of 9 experts, the sum of 8; make "
              "one for each number of experts");
    EXPECT_EQ(message([&] { load.add(logits.leftCols(7), example::two_best(), {}); }),
              "moe::LoadFraction::add: the load is of 7 experts, the sum of 8; make "
              "one for each number of experts");
    EXPECT_EQ(message([&] { load.add(logits.leftCols(0), example::two_best(), {}); }),
              "moe::LoadFraction::add: the gate of this layer has no logits of experts, which say "
              "what tokens count (ProductKeyTopK has those of half keys); add its counts and "
              "tokens");
    EXPECT_EQ(message([&] { load.add(logits, example::routing(8, {{0}}), {}); }),
              "moe::LoadFraction::add: the routing is for 1 tokens, logits has 4 rows");
    const std::vector<double> few(3, 1.0), bad{1, 1, 1, 1, 1, 1, 1, -2};
    EXPECT_EQ(message([&] { load.add(logits, example::two_best(), {}, {.token_weights = few}); }),
              "moe::LoadBalance: token_weights has 3 entries, there are 4 tokens");
    EXPECT_EQ(message([&] { load.add(bad, 4); }),
              "moe::LoadFraction::add: an entry of counts is -2, it must be finite and >= 0");
    const std::vector<double> good(8, 1.0);
    EXPECT_EQ(message([&] { load.add(good, std::numeric_limits<double>::infinity()); }),
              "moe::LoadFraction::add: an entry of tokens is inf, it must be finite and >= 0");
    EXPECT_EQ(message([&] { load.add(few, 4); }),
              "moe::LoadFraction::add: the load is of 3 experts, the sum of 8; make "
              "one for each number of experts");
    EXPECT_EQ(copy(load.totals()), std::vector<double>(9, 0.0));
}

}  // namespace
}  // namespace load_fraction_test
