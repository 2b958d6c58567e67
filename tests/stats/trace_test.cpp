// SPDX-License-Identifier: MIT
#include <moe/stats/trace.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace trace_test {
namespace {

using moe::Context;
using moe::Dropped;
using moe::Index;
using moe::Routing;
using moe::Trace;
using moe::TraceBatch;
using moe::TraceRecord;
using support::message;

const double odd_nan = std::bit_cast<double>(std::uint64_t{0x7ff8dead'beef1234});

/// 4 tokens with 3, 0, 1 and 2 slots for 5 experts, every kind of drop, odd weights. Token 0 goes
/// to expert 2 once, and a second time but for its capacity.
Routing ragged() {
    Routing routing;
    routing.reset(4, 5);
    routing.add(0, 2, 0.1F);
    routing.add(0, 1, -0.0);
    routing.add(0, 2, 5e-324, 0.3);
    routing.add(2, 1, std::numeric_limits<double>::infinity(), odd_nan);
    routing.add(3, 0, odd_nan, 2);
    routing.add(3, 4, 1.0 / 3);
    routing.set_dropped(0, Dropped::capacity);
    routing.set_dropped(1, Dropped::pruned);
    routing.set_dropped(5, Dropped::pass_through);
    routing.group();
    return routing;
}

/// `slots` experts for each of `tokens` tokens.
Routing plain(Index tokens, Index experts, Index slots) {
    Routing routing;
    routing.reset(tokens, experts);
    for (Index t = 0; t < tokens; ++t)
        for (Index s = 0; s < slots; ++s) routing.add(t, (t + s) % experts, 0.5);
    routing.group();
    return routing;
}

/// Bit for bit: == of routings has NaN differ and -0 equal 0.
void expect_same_bits(const Routing& actual, const Routing& expected) {
    const auto bits = [](double x) { return std::bit_cast<std::uint64_t>(x); };
    EXPECT_EQ(actual.num_tokens(), expected.num_tokens());
    EXPECT_EQ(actual.num_experts(), expected.num_experts());
    ASSERT_EQ(actual.num_assignments(), expected.num_assignments());
    for (std::size_t i = 0; i < expected.assignments().size(); ++i) {
        const moe::Assignment a = actual.assignments()[i], b = expected.assignments()[i];
        EXPECT_EQ(a.token, b.token);
        EXPECT_EQ(a.expert, b.expert);
        EXPECT_EQ(a.slot, b.slot);
        EXPECT_EQ(a.dropped, b.dropped);
        EXPECT_EQ(bits(a.weight), bits(b.weight)) << i;
        EXPECT_EQ(bits(a.input_weight), bits(b.input_weight)) << i;
    }
    for (Index e = 0; e < expected.num_experts(); ++e) {
        const auto a = actual.tokens_of(e), b = expected.tokens_of(e);
        EXPECT_EQ((std::vector<std::int32_t>{a.begin(), a.end()}),
                  (std::vector<std::int32_t>{b.begin(), b.end()}));
    }
}

TEST(Trace, GivesRoutingsBackBitForBit) {
    for (const Routing& routing : {ragged(), plain(0, 3, 2), plain(0, 0, 0), plain(3, 0, 0),
                                   plain(3, 1, 1), plain(1, 8, 2), plain(5, 4, 0)}) {
        Trace trace;
        trace.record(0, routing);
        ASSERT_EQ(trace.records().size(), 1u);
        expect_same_bits(trace.records()[0].routing(), routing);
        EXPECT_EQ(trace.records()[0].num_tokens(), routing.num_tokens());
        EXPECT_EQ(trace.records()[0].num_assignments(), routing.num_assignments());
        EXPECT_EQ(trace.batches()[0].num_tokens, routing.num_tokens());
        EXPECT_EQ(trace.num_experts(0), routing.num_experts());
    }
}

TEST(Trace, KeepsNoInputWeightsOfOneAndNoDropsWhereNothingWasDropped) {
    Trace trace;
    trace.record(0, plain(2, 3, 2));
    EXPECT_TRUE(trace.records()[0].input_weights.empty());
    EXPECT_TRUE(trace.records()[0].dropped.empty());
    EXPECT_EQ(trace.records()[0].input_weight(1), 1);
    EXPECT_TRUE(trace.records()[0].is_kept(1));
    trace.record(1, ragged());
    EXPECT_EQ(trace.records()[1].input_weights.size(), 6u);
    EXPECT_EQ(trace.records()[1].input_weight(2), 0.3);
    EXPECT_EQ(trace.records()[1].dropped, (std::vector<std::uint8_t>{1, 2, 0, 0, 0, 3}));
}

TEST(Trace, VisitsWhatReachesItsExpert) {
    Trace trace;
    trace.record(0, ragged());
    std::vector<std::pair<Index, Index>> seen;
    trace.records()[0].for_each_kept([&](Index t, Index e, double) { seen.emplace_back(t, e); });
    EXPECT_EQ(seen, (std::vector<std::pair<Index, Index>>{{0, 2}, {2, 1}, {3, 0}}));
}

TEST(Trace, BeginsABatchWithALayerThatTheLastOneHas) {
    Trace trace;
    for (int step = 0; step < 3; ++step)  // decode: one token at a time
        for (const Index layer : {0, 1, 4}) trace.record(layer, plain(1, 4, 2));
    ASSERT_EQ(trace.num_batches(), 3);
    ASSERT_EQ(trace.records().size(), 9u);
    for (Index r = 0; r < 9; ++r) {
        EXPECT_EQ(trace.records()[static_cast<std::size_t>(r)].batch, r / 3);
        EXPECT_EQ(&trace.batch_of(trace.records()[static_cast<std::size_t>(r)]),
                  &trace.batches()[static_cast<std::size_t>(r / 3)]);
    }
}

TEST(Trace, BeginsABatchWithOtherTokensStepOrFirstToken) {
    Trace trace;
    trace.record(0, plain(2, 4, 1));
    trace.record(1, plain(3, 4, 1));  // another number of tokens
    trace.record(2, plain(3, 4, 1), {.step = 1});
    trace.record(3, plain(3, 4, 1), {.step = 1, .first_token = 3});
    trace.record(4, plain(3, 4, 1), {.step = 1, .first_token = 3});  // the same
    trace.next_batch();
    trace.record(5, plain(3, 4, 1), {.step = 1, .first_token = 3});
    std::vector<Index> batches;
    for (const TraceRecord& record : trace.records()) batches.push_back(record.batch);
    EXPECT_EQ(batches, (std::vector<Index>{0, 1, 2, 3, 3, 4}));
    EXPECT_EQ(trace.batches()[3].step, 1u);
    EXPECT_EQ(trace.batches()[3].first_token, 3);
}

TEST(Trace, TakesWhatTheFirstLayerOfABatchSays) {
    std::vector<std::int64_t> ids{7, 8};
    std::vector<std::int32_t> groups{1, 0};
    std::vector<std::uint8_t> padding{0, 1};
    std::vector<Index> offsets{0, 1, 2};
    const Context context{
        .token_ids = ids, .token_groups = groups, .padding = padding, .sequence_offsets = offsets};
    Trace trace;
    trace.record(0, plain(2, 4, 1), context);
    ids = {0, 0}, groups = {0, 0}, padding = {0, 0}, offsets = {0, 0, 2};  // not its memory
    trace.record(1, plain(2, 4, 1), context);
    ASSERT_EQ(trace.num_batches(), 1);
    const TraceBatch& batch = trace.batches()[0];
    EXPECT_EQ(batch.token_ids, (std::vector<std::int64_t>{7, 8}));
    EXPECT_EQ(batch.token_groups, (std::vector<std::int32_t>{1, 0}));
    EXPECT_EQ(batch.padding, (std::vector<std::uint8_t>{0, 1}));
    EXPECT_EQ(batch.sequence_offsets, (std::vector<Index>{0, 1, 2}));
    EXPECT_FALSE(batch.is_padding(0));
    EXPECT_TRUE(batch.is_padding(1));
}

TEST(Trace, KnowsItsLayers) {
    Trace trace;
    EXPECT_EQ(trace.num_layers(), 0);
    EXPECT_EQ(trace.num_experts(), 0);
    EXPECT_EQ(message([&] { trace.num_experts(0); }),
              "moe::Trace: layer is 0, it must be in [0, 0), the layers of the trace");
    trace.record(3, plain(2, 7, 1));
    trace.record(1, plain(2, 5, 1));
    trace.record(1, plain(2, 5, 1));
    EXPECT_EQ(trace.num_layers(), 4);
    EXPECT_EQ(trace.num_experts(), 7);
    EXPECT_EQ(trace.num_experts(1), 5);
    EXPECT_EQ(trace.num_experts(2), 0);
    EXPECT_THROW(trace.num_experts(4), std::invalid_argument);
    EXPECT_THROW(trace.num_experts(-1), std::invalid_argument);
    std::vector<Index> batches;
    trace.for_each_of(1, [&](const TraceRecord& record, const TraceBatch& batch) {
        EXPECT_EQ(record.layer, 1);
        EXPECT_EQ(&batch, &trace.batch_of(record));
        batches.push_back(record.batch);
    });
    EXPECT_EQ(batches, (std::vector<Index>{0, 1}));
    trace.clear();
    EXPECT_EQ(trace, Trace());
    EXPECT_EQ(trace.num_layers(), 0);
}

TEST(Trace, IsUnchangedByWhatItRefuses) {
    Trace trace;
    trace.record(2, plain(2, 4, 1));
    const Trace before = trace;
    Routing ungrouped;
    ungrouped.reset(2, 4);
    EXPECT_THROW(trace.record(0, ungrouped), std::logic_error);
    EXPECT_EQ(message([&] { trace.record(-1, plain(2, 4, 1)); }),
              "moe::Trace::record: layer is -1, it must lie in [0, 999999]");
    EXPECT_THROW(trace.record(1'000'000, plain(2, 4, 1)), std::invalid_argument);
    EXPECT_EQ(message([&] { trace.record(2, plain(2, 5, 1)); }),
              "moe::Trace::record: layer 2 has 5 experts, it had 4 before; record another layer "
              "under another number, or begin a new trace");
    const std::vector<std::int64_t> ids{1, 2, 3};
    const std::vector<std::int32_t> groups{1};
    const std::vector<std::uint8_t> padding{0, 0, 0};
    const std::vector<Index> offsets{0, 1};
    EXPECT_EQ(message([&] { trace.record(0, plain(2, 4, 1), {.token_ids = ids}); }),
              "moe::Context: token_ids has 3 entries, it wants 2, one per token");
    EXPECT_THROW(trace.record(0, plain(2, 4, 1), {.token_groups = groups}), std::invalid_argument);
    EXPECT_THROW(trace.record(0, plain(2, 4, 1), {.padding = padding}), std::invalid_argument);
    EXPECT_THROW(trace.record(0, plain(2, 4, 1), {.sequence_offsets = offsets}),
                 std::invalid_argument);
    moe::Workspace<float> empty;
    EXPECT_THROW(trace.record(0, empty), std::logic_error);
    EXPECT_EQ(trace, before);
    EXPECT_EQ(trace.num_layers(), 3);
    trace.record(0, plain(2, 4, 1));  // and still in the same batch
    EXPECT_EQ(trace.num_batches(), 1);
}

TEST(Trace, IsUnchangedWhenMemoryRunsOut) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const std::vector<std::uint8_t> padding{0, 0, 0, 1};
    for (const Index layer : {1, 5}) {  // the next batch; another layer
        long n = 0;
        for (bool has_failed = true; has_failed; ++n) {
            Trace trace;
            for (int i = 0; i < 8; ++i) trace.record(1, ragged(), {.padding = padding});
            const Trace before = trace;
            const Routing routing = ragged();
            has_failed = allocations::fails_at(
                n, [&] { trace.record(layer, routing, {.padding = padding}); });
            if (!has_failed) break;
            EXPECT_EQ(trace, before) << n;
            EXPECT_EQ(trace.num_layers(), 2);
        }
        EXPECT_GE(n, 6);
    }
}

TEST(Trace, EqualsItsCopyAndNothingElse) {
    const auto with = [](double weight, double input_weight, Index layer = 0,
                         Context context = {}) {
        Routing routing;
        routing.reset(1, 2);
        routing.add(0, 1, weight, input_weight);
        routing.group();
        Trace trace;
        trace.record(layer, routing, context);
        return trace;
    };
    EXPECT_EQ(with(odd_nan, odd_nan), with(odd_nan, odd_nan));
    EXPECT_FALSE(with(odd_nan, 1) == with(std::numeric_limits<double>::quiet_NaN(), 1));
    EXPECT_FALSE(with(0.0, 1) == with(-0.0, 1));
    EXPECT_FALSE(with(1, 0.0) == with(1, -0.0));
    EXPECT_FALSE(with(1, 1) == with(1, 2));
    EXPECT_FALSE(with(1, 1, 0) == with(1, 1, 1));
    EXPECT_FALSE(with(1, 1) == with(1, 1, 0, {.step = 1}));
    EXPECT_FALSE(with(1, 1) == Trace());
}

TEST(Trace, RecordsWhatAWorkspaceHolds) {
    const std::vector<std::int64_t> ids{1, 2, 3, 4};
    moe::Workspace<float> ws;
    auto& routed = ws.state<moe::Routed<float>>();
    routed.routing = ragged();
    routed.context = {.step = 9, .token_ids = ids};
    Trace trace;
    trace.record(0, ws);
    expect_same_bits(trace.records()[0].routing(), ragged());
    EXPECT_EQ(trace.batches()[0].token_ids, ids);
    EXPECT_EQ(trace.batches()[0].step, 9u);
}

TEST(Trace, IsMadeOfParts) {
    Trace trace;
    trace.record(0, ragged());
    trace.record(2, plain(4, 3, 2));
    trace.record(0, ragged());
    const std::vector<TraceBatch> batches(trace.batches().begin(), trace.batches().end());
    std::vector<TraceRecord> records(trace.records().begin(), trace.records().end());
    Trace made(batches, records);
    EXPECT_EQ(made, trace);
    EXPECT_EQ(made.num_layers(), 3);
    EXPECT_EQ(made.num_experts(0), 5);
    EXPECT_EQ(made.num_experts(1), 0);
    records[1].input_weights.assign(8, 1.0);  // what is said by leaving it out
    records[1].dropped.assign(8, 0);
    EXPECT_EQ(Trace(batches, records), trace);
    made.record(2, plain(4, 3, 2));  // begins a batch, though layer 2 has no record in the last
    EXPECT_EQ(made.num_batches(), 3);
    EXPECT_EQ(Trace({}, {}), Trace());
}

TEST(Trace, RefusesPartsThatContradictThemselves) {
    Trace trace;
    trace.record(0, plain(2, 3, 2));
    trace.record(1, plain(2, 4, 1));
    trace.record(0, plain(2, 3, 1));
    using Batches = std::vector<TraceBatch>;
    using Records = std::vector<TraceRecord>;
    const auto fault = [&](auto&& spoil) {
        Batches batches(trace.batches().begin(), trace.batches().end());
        Records records(trace.records().begin(), trace.records().end());
        spoil(batches, records);
        return message([&] { Trace(batches, records); });
    };
    EXPECT_EQ(fault([](Batches&, Records&) {}), "");
    EXPECT_EQ(fault([](Batches& b, Records&) { b[1].token_ids = {1}; }),
              "moe::Trace: batch 1 has 1 token_ids, it has 2 tokens");
    EXPECT_EQ(fault([](Batches&, Records& r) { r[2].experts[1] = 3; }),
              "moe::Trace: record 2 names expert 3, there are 3");
    EXPECT_EQ(fault([](Batches&, Records& r) { r[1].layer = 0; }),
              "moe::Trace: record 1 is the second of layer 0 in batch 0");
    EXPECT_EQ(fault([](Batches&, Records& r) { r[2].num_experts = 4; }),
              "moe::Trace: record 2 is for 4 experts, its layer 0 had 3");
    EXPECT_EQ(fault([](Batches&, Records& r) { r.pop_back(); }),
              "moe::Trace: batch 1 has no records");
    EXPECT_EQ(fault([](Batches& b, Records&) { b.pop_back(); }),
              "moe::Trace: record 2 is of batch 1 after 0, there are 1, each must have records, in "
              "their order");
    EXPECT_EQ(
        fault([](Batches&, Records& r) { r[0].batch = -1; }),
        "moe::Trace: record 0 is of batch -1 after -1, there are 2, each must have records, in "
        "their order");
    for (const Index batch : {-1, 1, 2})
        EXPECT_NE(fault([=](Batches&, Records& r) { r[0].batch = batch; }), "") << batch;
    EXPECT_NE(fault([](Batches&, Records& r) { std::swap(r[0], r[2]); }), "");
}

}  // namespace
}  // namespace trace_test
