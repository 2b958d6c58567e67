// SPDX-License-Identifier: MIT
#include <moe/stats/expert_mean.hpp>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/context.hpp>

#include "stats/example_trace.hpp"
#include "support/message.hpp"

namespace expert_mean_test {
namespace {

using example_trace::routing;
using moe::Context;
using moe::Index;
using moe::MeanOver;
using moe::detail::ExpertMean;

/// 6 tokens whose number for expert 0 is 1, 2, ... 6 and for expert 1 ten times as much.
void add(ExpertMean& mean, const Context& context, Index tokens = 6) {
    mean.add(
        "somebody", context, tokens, [&](Index t) { return !context.is_padding(t); },
        [](Index t, double* run) {
            run[0] += static_cast<double>(t + 1);
            run[1] += static_cast<double>(10 * (t + 1));
        });
}

TEST(ExpertMean, OverTokensIsTheSumOverTheirNumber) {
    const std::vector<std::uint8_t> padding{0, 0, 0, 0, 0, 1};
    ExpertMean mean(2, MeanOver::tokens);
    EXPECT_EQ(mean.mean(0), 0);
    add(mean, {.padding = padding});
    EXPECT_EQ(mean.sum(0), 15);
    EXPECT_EQ(mean.mean(0), 3);
    EXPECT_EQ(mean.mean(1), 30);
    EXPECT_EQ(mean.count(), 5);
    add(mean, {}, 1);  // one more token, of 1 and 10
    EXPECT_EQ(mean.count(), 6);
    EXPECT_EQ(mean.mean(0), 16.0 / 6);
    mean.clear();
    EXPECT_EQ(mean.count(), 0);
    EXPECT_EQ(mean.sum(1), 0);
    EXPECT_EQ(mean.num_experts(), 2);
}

TEST(ExpertMean, OverSequencesIsTheMeanOfTheirMeans) {
    // (1) has a mean of 1, (2 3) of 2.5, () and (6), which is padding, are left out, (4 5) of 4.5
    const std::vector<Index> offsets{0, 1, 3, 3, 5, 6};
    const std::vector<std::uint8_t> padding{0, 0, 0, 0, 0, 1};
    const Context context{.padding = padding, .sequence_offsets = offsets};
    ExpertMean mean(2, MeanOver::sequences);
    add(mean, context);
    EXPECT_EQ(mean.count(), 3);
    EXPECT_EQ(mean.mean(0), 8.0 / 3);
    EXPECT_EQ(mean.mean(1), 80.0 / 3);
    add(mean, {}, 0);  // no tokens, no sequences
    EXPECT_EQ(mean.count(), 3);
    const std::vector<Index> one{0, 1};
    add(mean, {.sequence_offsets = one}, 1);
    EXPECT_EQ(mean.mean(0), 9.0 / 4);
}

TEST(ExpertMean, AsksForSequencesIfItIsOverThem) {
    ExpertMean over_sequences(2, MeanOver::sequences), over_tokens(2, MeanOver::tokens);
    EXPECT_EQ(support::message([&] { add(over_sequences, {}); }),
              "somebody: sequence_offsets is empty, a mean over sequences wants it; set "
              "Context::sequence_offsets, or take MeanOver::tokens");
    const std::vector<Index> offsets{0, 5};
    EXPECT_THROW(add(over_sequences, {.sequence_offsets = offsets}), std::invalid_argument);
    EXPECT_EQ(over_sequences.count(), 0);
    add(over_tokens, {});
    EXPECT_EQ(over_tokens.count(), 6);
}

TEST(ExpertMean, OfATraceHasARowPerLayerAndNaNWhereThereIsNoExpert) {
    moe::Trace trace;
    trace.record(0, routing(1, {{{0, 0.5}}, {}}));
    trace.record(2, routing(3, {{{2, 0.25}}, {{0, 1}, {2, 4}}}));
    const moe::Matrix<double> weights = moe::detail::per_expert(
        "somebody", trace, MeanOver::tokens,
        [](const moe::TraceRecord& record, Index a, double* run) {
            run[record.expert(a)] += record.weight(a);
        },
        [](const ExpertMean& mean, Index e) { return mean.sum(e); });
    ASSERT_EQ(weights.rows(), 3);
    ASSERT_EQ(weights.cols(), 3);
    EXPECT_EQ(weights(0, 0), 0.5);
    EXPECT_EQ(weights(2, 0), 1);
    EXPECT_EQ(weights(2, 1), 0);
    EXPECT_EQ(weights(2, 2), 4.25);
    for (const Index e : {1, 2}) EXPECT_TRUE(std::isnan(weights(0, e)));
    for (const Index e : {0, 1, 2}) EXPECT_TRUE(std::isnan(weights(1, e)));
}

}  // namespace
}  // namespace expert_mean_test
