// SPDX-License-Identifier: MIT
#include <moe/stats/layer_evidence.hpp>

#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "stats/traces.hpp"

namespace layer_evidence_test {
namespace {

using moe::Index;
using moe::Routing;
using moe::detail::layer_evidence;
using moe::detail::LayerEvidence;

// 6 tokens of 3 experts in sequences of 4 and 2; the last token is padding.
const std::vector<Index> offsets{0, 4, 6};
const std::vector<std::uint8_t> padding{0, 0, 0, 0, 0, 1};

Routing six() {
    Routing routing = traces::routing(3, {{0, 1}, {0, 2}, {2, 0}, {0, 1}, {1, 0}, {1, 0}});
    const double weights[] = {0.75, 0.25};
    for (Index a = 0; a < 12; ++a) routing.set_weights(a, weights[a % 2], a == 0 ? -2 : 1);
    routing.set_dropped(1, moe::Dropped::capacity);      // token 0: early
    routing.set_dropped(4, moe::Dropped::capacity);      // token 2: late in its sequence
    routing.set_dropped(5, moe::Dropped::pruned);        // token 2: nothing is left of it
    routing.set_dropped(7, moe::Dropped::pass_through);  // token 3: late in both
    routing.set_dropped(8, moe::Dropped::capacity);      // token 4: early in its sequence
    routing.group();
    return routing;
}

TEST(LayerEvidence, OfASmallBatchIsWorkedOutByHand) {
    const LayerEvidence e =
        layer_evidence(six(), {.padding = padding, .sequence_offsets = offsets});
    EXPECT_EQ(e.layer, -1);
    EXPECT_EQ(e.num_tokens, 5);
    EXPECT_EQ(e.chosen, (std::vector<Index>{5, 3, 2}));
    EXPECT_EQ(e.num_assignments(), 10);
    EXPECT_EQ(e.unrouted, 1);
    EXPECT_EQ(e.refused, 4);
    EXPECT_EQ(e.late_in_sequence, 2);  // tokens 2 and 3 of 0 to 3
    EXPECT_EQ(e.late_in_batch, 2);     // tokens 3 and 4 of 0 to 5
    // 0.75 * 2 and four times 0.75; five times 0.25
    EXPECT_EQ(e.slot_weights, (std::vector<double>{4.5, 1.25}));
    EXPECT_EQ(e.nan_tokens, 0);
    EXPECT_FALSE(e.router.has_value());
}

TEST(LayerEvidence, SumsTheBatchesOfALayer) {
    moe::Trace trace;
    const moe::Context context{.padding = padding, .sequence_offsets = offsets};
    trace.record(7, six(), context);
    trace.record(8, traces::routing(3, {{0}, {}, {}, {}, {}, {}}), context);
    trace.record(7, six(), context);
    const LayerEvidence e = layer_evidence(trace, 7);
    EXPECT_EQ(e.layer, 7);
    EXPECT_EQ(e.num_tokens, 10);
    EXPECT_EQ(e.chosen, (std::vector<Index>{10, 6, 4}));
    EXPECT_EQ(e.late_in_sequence, 4);
    EXPECT_EQ(e.slot_weights, (std::vector<double>{9, 2.5}));
}

TEST(LayerEvidence, KnowsSlotsOnlyWhereAllTokensHaveAsMany) {
    EXPECT_TRUE(layer_evidence(traces::routing(2, {{0, 1}, {0}, {0, 1}}), {}).slot_weights.empty());
    EXPECT_TRUE(layer_evidence(traces::routing(2, {{}, {0}}), {}).slot_weights.empty());
    // The first token is padding: what it has says nothing.
    const std::vector<std::uint8_t> first{1, 0};
    EXPECT_EQ(layer_evidence(traces::routing(2, {{}, {0, 1}}), {.padding = first}).slot_weights,
              (std::vector<double>{1, 1}));
}

TEST(LayerEvidence, CountsTokensWithANaNOnce) {
    Routing routing = traces::routing(2, {{0, 1}, {1, 0}, {0, 1}});
    const double nan = std::numeric_limits<double>::quiet_NaN();
    routing.set_weight(0, nan);
    routing.set_weight(1, nan);
    routing.set_weights(5, 1, nan);
    EXPECT_EQ(layer_evidence(routing, {}).nan_tokens, 2);
}

TEST(LayerEvidence, OfStatisticsHasWhatTheyHold) {
    const Routing routing = six();
    const moe::LoadStats load = moe::load_stats(routing);
    const LayerEvidence e = layer_evidence(load, {.nan_fraction = 0.1});
    EXPECT_EQ(e.num_tokens, 6);
    EXPECT_EQ(e.chosen, (std::vector<Index>{6, 4, 2}));
    EXPECT_EQ(e.refused, 5);  // of whatever reason
    EXPECT_EQ(e.unrouted, 1);
    EXPECT_EQ(e.nan_tokens, 1);  // of 0.6
    EXPECT_EQ(layer_evidence(load, {.nan_fraction = 0.01}).nan_tokens, 1);
    EXPECT_EQ(layer_evidence(load, {}).nan_tokens, 0);
    moe::LoadStats more = load;
    more.num_tokens = 25;  // 7 / 25 * 25 is above 7 in doubles
    EXPECT_EQ(layer_evidence(more, {.nan_fraction = 7.0 / 25}).nan_tokens, 7);
    EXPECT_EQ(e.num_logits, 3);
    EXPECT_TRUE(e.slot_weights.empty());
}

}  // namespace
}  // namespace layer_evidence_test
