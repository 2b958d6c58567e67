// SPDX-License-Identifier: MIT
#include <moe/stats/activation.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "stats/example_trace.hpp"
#include "support/message.hpp"

namespace activation_test {
namespace {

using example_trace::random_trace;
using example_trace::routing;
using moe::Context;
using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::MeanOver;
using moe::Trace;

const std::vector<Index> sequences{0, 1, 5};
const std::vector<std::uint8_t> padding{0, 0, 0, 0, 1};

/// Sequences of one token and of four, the last of which is padding; 3 experts.
Trace small() {
    Trace trace;
    trace.record(0,
                 routing(3, {{{0, 0.75}, {1, 0.25}},                         //
                             {{1, 0.5}, {2, 0.5, Dropped::capacity}},        //
                             {{1, 1}},                                       //
                             {{2, 0.125}, {1, 0.5, Dropped::pass_through}},  //
                             {{0, 8}}}),
                 {.padding = padding, .sequence_offsets = sequences});
    return trace;
}

void expect_row(const Matrix<double>& actual, const std::vector<double>& expected, Index row = 0) {
    ASSERT_EQ(actual.cols(), static_cast<Index>(expected.size()));
    for (Index e = 0; e < actual.cols(); ++e)
        EXPECT_DOUBLE_EQ(actual(row, e), expected[static_cast<std::size_t>(e)]) << e;
}

TEST(Activation, OfASmallTraceIsWorkedOutByHand) {
    // Of 4 tokens, 1 goes to expert 0, 3 to 1 and 1 to 2; with those dropped 1, 4 and 2.
    expect_row(moe::activation_counts(small()), {1, 3, 1});
    expect_row(moe::activation_counts(small(), true), {1, 4, 2});
    expect_row(moe::activation_frequency(small()), {0.25, 0.75, 0.25});
    expect_row(moe::activation_frequency(small(), {.count_dropped = true}), {0.25, 1, 0.5});
    // The first sequence has frequencies of 1 1 0, the second of 0 2/3 1/3.
    expect_row(moe::activation_frequency(small(), {.over = MeanOver::sequences}),
               {0.5, 5.0 / 6, 1.0 / 6});
}

TEST(Activation, MeanWeightsAreWorkedOutByHand) {
    // The first sequence has means of 3/4 1/4 0, the second of 0, (1/2 + 1) / 3, (1/8) / 3.
    expect_row(moe::mean_weight(small(), MeanOver::sequences), {0.375, 0.375, 1.0 / 48});
    // Of all 4 tokens: 3/4, 1/4 + 1/2 + 1, 1/8.
    expect_row(moe::mean_weight(small()), {0.1875, 0.4375, 0.03125});
}

TEST(Activation, MeanWeightsCountInputWeights) {
    moe::Routing plan;
    plan.reset(1, 2);
    plan.add(0, 0, 0.5, 0.25);
    plan.add(0, 1, std::numeric_limits<double>::quiet_NaN());
    plan.group();
    Trace trace;
    trace.record(0, plan);
    const Matrix<double> mean = moe::mean_weight(trace, MeanOver::tokens);
    EXPECT_EQ(mean(0, 0), 0.125);
    EXPECT_TRUE(std::isnan(mean(0, 1)));
}

TEST(Activation, FrequenciesSumToTheExpertsPerToken) {
    Trace trace;
    for (const Index k : {1, 2, 4}) {
        moe::Routing plan;
        plan.reset(8, 4);
        for (Index t = 0; t < 8; ++t)
            for (Index s = 0; s < k; ++s) plan.add(t, (3 * t + s) % 4);
        plan.group();
        trace.record(k, plan, {.first_token = k});
    }
    const Matrix<double> frequency = moe::activation_frequency(trace);
    for (const Index k : {1, 2, 4}) {
        double sum = 0;
        for (Index e = 0; e < 4; ++e) sum += frequency(k, e);
        EXPECT_DOUBLE_EQ(sum, static_cast<double>(k));
    }
    EXPECT_TRUE(std::isnan(frequency(0, 0)));  // was not recorded
    EXPECT_TRUE(std::isnan(frequency(3, 3)));
}

TEST(Activation, IsDefinedWithoutTokens) {
    EXPECT_EQ(moe::activation_frequency(Trace()).size(), 0);
    Trace trace;
    trace.record(0, routing(2, {}));
    expect_row(moe::activation_frequency(trace), {0, 0});
    expect_row(moe::activation_frequency(trace, {.over = MeanOver::sequences}), {0, 0});
    expect_row(moe::mean_weight(trace), {0, 0});
    const std::vector<std::uint8_t> all{1};
    trace.record(0, routing(2, {{{1}}}), {.padding = all});
    expect_row(moe::activation_frequency(trace), {0, 0});
    Trace no_experts;
    no_experts.record(0, routing(0, {{}}));
    EXPECT_EQ(moe::activation_frequency(no_experts).rows(), 1);
    EXPECT_EQ(moe::activation_frequency(no_experts).cols(), 0);
}

/// A token at a time, with the divisor of its own sequence or of all.
TEST(Activation, EqualsBruteForce) {
    for (std::uint64_t seed = 0; seed < 5; ++seed)
        for (const MeanOver over : {MeanOver::tokens, MeanOver::sequences}) {
            const Trace trace = random_trace(seed);
            const Matrix<double> frequency = moe::activation_frequency(trace, {.over = over});
            const Matrix<double> counts = moe::activation_counts(trace);
            const Matrix<double> weights = moe::mean_weight(trace, over);
            for (const Index layer : {0, 2})
                for (Index e = 0; e < trace.num_experts(layer); ++e) {
                    double activations = 0, share = 0, weight = 0, units = 0;
                    for (const moe::TraceRecord& record : trace.records()) {
                        if (record.layer != layer) continue;
                        const moe::TraceBatch& batch = trace.batch_of(record);
                        const moe::Routing plan = record.routing();
                        for (std::size_t s = 0; s + 1 < batch.sequence_offsets.size(); ++s) {
                            double length = 0, here = 0, weight_here = 0;
                            for (Index t = batch.sequence_offsets[s];
                                 t < batch.sequence_offsets[s + 1]; ++t) {
                                if (batch.is_padding(t)) continue;
                                length += 1;
                                for (const moe::Assignment& a : plan.of(t))
                                    if (a.expert == e && a.dropped == Dropped::no)
                                        here += 1, weight_here += a.weight;
                            }
                            if (length == 0) continue;
                            const double divisor = over == MeanOver::tokens ? 1 : length;
                            activations += here;
                            share += here / divisor;
                            weight += weight_here / divisor;
                            units += over == MeanOver::tokens ? length : 1;
                        }
                    }
                    EXPECT_EQ(counts(layer, e), activations);
                    EXPECT_DOUBLE_EQ(frequency(layer, e), share / units);
                    EXPECT_NEAR(weights(layer, e), weight / units, 1e-15);
                }
            EXPECT_TRUE(std::isnan(counts(2, 3)));  // layer 2 has 3 experts
            EXPECT_TRUE(std::isnan(counts(1, 0)));
        }
}

TEST(Activation, ContrastIsTheDifferenceOfFrequencies) {
    Trace task, general;
    task.record(0, routing(3, {{{0}, {1}}, {{0}, {2}}}));
    general.record(0, routing(3, {{{1}, {2}}, {{1}, {2}}, {{0}, {1}}, {{2}, {1}}}));
    // frequencies: 1 1/2 1/2 and 1/4 1 3/4
    expect_row(moe::activation_contrast(task, general), {0.75, -0.5, -0.25});
    expect_row(moe::activation_contrast(general, task), {-0.75, 0.5, 0.25});
    expect_row(moe::activation_contrast(task, task), {0, 0, 0});
    const Trace a = random_trace(1), b = random_trace(2);
    const moe::ActivationOptions options{.over = MeanOver::sequences, .count_dropped = true};
    const Matrix<double> contrast = moe::activation_contrast(a, b, options);
    EXPECT_EQ(contrast(2, 1), moe::activation_frequency(a, options)(2, 1) -
                                  moe::activation_frequency(b, options)(2, 1));
    EXPECT_TRUE(std::isnan(contrast(2, 3)));
}

TEST(Activation, RefusesOtherLayersAndMissingSequences) {
    Trace a, b, c;
    a.record(0, routing(3, {{{0}}}));
    b.record(0, routing(4, {{{0}}}));
    c.record(0, routing(3, {{{0}}}));
    c.record(1, routing(2, {{{0}}}));
    EXPECT_EQ(support::message([&] { moe::activation_contrast(a, b); }),
              "moe::activation_contrast: layer 0 has 3 experts in one trace and 4 in the other; "
              "record the same layers");
    EXPECT_EQ(support::message([&] { moe::activation_contrast(c, a); }),
              "moe::activation_contrast: layer 1 has 2 experts in one trace and 0 in the other; "
              "record the same layers");
    EXPECT_THROW(moe::activation_contrast(a, c), std::invalid_argument);
    EXPECT_EQ(support::message([&] { moe::mean_weight(a, MeanOver::sequences); }),
              "moe::mean_weight: sequence_offsets is empty, a mean over sequences wants it; set "
              "Context::sequence_offsets, or take MeanOver::tokens");
    EXPECT_THROW(moe::activation_frequency(a, {.over = MeanOver::sequences}),
                 std::invalid_argument);
}

}  // namespace
}  // namespace activation_test
