// SPDX-License-Identifier: MIT
#include <moe/stats/affinity.hpp>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace affinity_test {
namespace {

using moe::Affinity;
using moe::affinity_strength;
using moe::crossing_fraction;
using moe::expert_affinity;
using moe::Index;
using moe::Matrix;
using moe::Trace;
using support::message;

Matrix<double> matrix(Index columns, std::initializer_list<double> values) {
    Matrix<double> m(static_cast<Index>(values.size()) / columns, columns);
    std::copy(values.begin(), values.end(), m.data());
    return m;
}

/// 3 tokens: {0}, {0, 1}, {1} of 2 experts, then {2}, {0, 2}, {0} of 3.
Trace small() {
    Trace trace;
    trace.record(0, traces::routing(2, {{0}, {0, 1}, {1}}));
    trace.record(1, traces::routing(3, {{2}, {0, 2}, {0}}));
    return trace;
}

TEST(ExpertAffinity, OfASmallBatchIsWorkedOutByHand) {
    // token 0: 0-2; token 1: 0-0 0-2 1-0 1-2; token 2: 1-0
    EXPECT_EQ(expert_affinity(small(), 0, 1), matrix(3, {1, 0, 2, 2, 0, 1}));
    EXPECT_EQ(expert_affinity(small(), 0, 1, Affinity::conditional),
              matrix(3, {1. / 3, 0, 2. / 3, 2. / 3, 0, 1. / 3}));
    EXPECT_EQ(expert_affinity(small(), 1, 0), matrix(2, {1, 2, 0, 0, 2, 1}));
    EXPECT_EQ(expert_affinity(small(), 1, 0, Affinity::conditional),
              matrix(2, {1. / 3, 2. / 3, 0, 0, 2. / 3, 1. / 3}));
}

TEST(ExpertAffinity, EqualsBruteForceOverBatches) {
    Trace trace;
    std::vector<traces::Lists> here, there;
    for (std::uint64_t b = 0; b < 3; ++b) {
        here.push_back(traces::random_lists(11, 4, 2, 2 * b));
        there.push_back(traces::random_lists(11, 5, 3, 2 * b + 1));
        trace.record(3, traces::routing(5, there.back()));  // layers in any order
        trace.record(1, traces::routing(4, here.back()));
    }
    const Matrix<double> counts = expert_affinity(trace, 1, 3);
    for (Index a = 0; a < 4; ++a)
        for (Index b = 0; b < 5; ++b) {
            double n = 0;
            for (std::size_t i = 0; i < 3; ++i)
                for (std::size_t t = 0; t < 11; ++t)
                    n += static_cast<double>(std::count(here[i][t].begin(), here[i][t].end(), a) *
                                             std::count(there[i][t].begin(), there[i][t].end(), b));
            EXPECT_EQ(counts(a, b), n);
        }
}

TEST(ExpertAffinity, LeavesOutPaddingDroppedAssignmentsAndBatchesOfOneLayer) {
    const std::vector<std::uint8_t> padding{1, 0, 0};
    moe::Routing second = traces::routing(3, {{2}, {0, 2}, {0}});
    second.set_dropped(1, moe::Dropped::capacity);  // token 1, expert 0
    second.group();
    Trace trace;
    trace.record(0, traces::routing(2, {{0}, {0, 1}, {1}}), {.padding = padding});
    trace.record(1, second, {.padding = padding});
    trace.record(0, traces::routing(2, {{0}, {0}, {0}}));  // a batch that never gets to layer 1
    // token 1: 0-2 1-2; token 2: 1-0
    EXPECT_EQ(expert_affinity(trace, 0, 1), matrix(3, {0, 0, 1, 1, 0, 1}));
}

TEST(AffinityStrength, IsOneForAPlantedPermutationAndNearZeroForChance) {
    const traces::Lists first = traces::random_lists(4000, 8, 1, 1);
    traces::Lists moved = first;
    for (auto& list : moved) list[0] = (3 * list[0] + 5) % 8;
    Trace trace;
    trace.record(0, traces::routing(8, first));
    trace.record(1, traces::routing(8, moved));
    trace.record(2, traces::routing(8, traces::random_lists(4000, 8, 1, 2)));
    EXPECT_NEAR(affinity_strength(trace, 0, 1), 1, 1e-12);
    // By chance about 7 * 7 / (2 * 4000) nats of log 8: 0.0029.
    EXPECT_LT(affinity_strength(trace, 1, 2), 0.006);
    const Matrix<double> given = expert_affinity(trace, 0, 1, Affinity::conditional);
    for (Index a = 0; a < 8; ++a) EXPECT_EQ(given(a, (3 * a + 5) % 8), 1);
}

TEST(AffinityStrength, GrowsWithTheShareOfTokensThatFollow) {
    double before = 0;
    for (const Index followers : {250, 500, 750, 1000}) {
        const traces::Lists first = traces::random_lists(1000, 8, 1, 1);
        traces::Lists second = traces::random_lists(1000, 8, 1, 2);
        for (Index t = 0; t < followers; ++t)
            second[static_cast<std::size_t>(t)] = first[static_cast<std::size_t>(t)];
        Trace trace;
        trace.record(0, traces::routing(8, first));
        trace.record(1, traces::routing(8, second));
        const double strength = affinity_strength(trace, 0, 1);
        EXPECT_GT(strength, before + 0.05);
        before = strength;
    }
    EXPECT_NEAR(before, 1, 1e-12);
}

TEST(CrossingFraction, OfASmallBatchIsWorkedOutByHand) {
    // Experts 0 and 1 on device 7, 2 on 8: of the 6 transitions, the 3 to expert 2 cross.
    const std::vector<std::int32_t> devices{7, 7, 8};
    EXPECT_EQ(crossing_fraction(small(), devices), 0.5);
    // Placed by layer: 0 | 1 and 0 | 1 2. Crossing: 0-2 0-2 1-0 1-0.
    EXPECT_NEAR(crossing_fraction(small(),
                                  [](Index layer, Index expert) {
                                      return layer == 0 ? expert : expert == 0 ? 0 : 1;
                                  }),
                4.0 / 6, 1e-15);
    EXPECT_EQ(crossing_fraction(small(), [](Index, Index) { return 0; }), 0);
    EXPECT_EQ(crossing_fraction(small(), [](Index layer, Index) { return layer; }), 1);
}

TEST(CrossingFraction, OfAPlantedPlacementIsZeroAndOfARandomOneNearOneMinusOneOverG) {
    // A token stays in its group of two experts, through three layers.
    const traces::Lists groups = traces::random_lists(2000, 4, 1, 1);
    Trace trace;
    for (Index layer = 0; layer < 3; ++layer) {
        traces::Lists lists =
            traces::random_lists(2000, 2, 1, 10 + static_cast<std::uint64_t>(layer));
        for (std::size_t t = 0; t < lists.size(); ++t) lists[t][0] += 2 * groups[t][0];
        trace.record(layer, traces::routing(8, lists));
    }
    const std::vector<std::int32_t> planted{0, 0, 1, 1, 2, 2, 3, 3};
    EXPECT_EQ(crossing_fraction(trace, planted), 0);

    Trace random;
    for (Index layer = 0; layer < 3; ++layer)
        random.record(layer,
                      traces::routing(8, traces::random_lists(
                                             2000, 8, 1, 20 + static_cast<std::uint64_t>(layer))));
    // 4000 transitions: standard deviation 0.007
    EXPECT_NEAR(crossing_fraction(random, planted), 1 - 1.0 / 4, 0.03);
}

TEST(CrossingFraction, GoesFromEachLayerToTheNextOneOfItsBatch) {
    Trace trace;
    trace.record(4, traces::routing(2, {{1}}));
    trace.record(0, traces::routing(2, {{0}}));
    trace.record(9, traces::routing(2, {{1}}));  // 0-4 crosses, 4-9 does not
    trace.record(0, traces::routing(2, {{0}}));  // a new batch with one layer
    const std::vector<std::int32_t> devices{0, 1};
    EXPECT_EQ(crossing_fraction(trace, devices), 0.5);
    EXPECT_EQ(crossing_fraction(Trace(), devices), 0);
}

TEST(ExpertAffinity, RefusesWhatThereIsNot) {
    const Trace trace = small();
    EXPECT_THROW(expert_affinity(trace, 0, 2), std::invalid_argument);
    EXPECT_THROW(expert_affinity(trace, -1, 1), std::invalid_argument);
    EXPECT_THROW(expert_affinity(trace, 0, 1, static_cast<Affinity>(2)), std::invalid_argument);
    EXPECT_EQ(message([&] {
                  crossing_fraction(trace, std::vector<std::int32_t>{0, 1});
              }),
              "moe::crossing_fraction: device_of_expert has 2 entries, a layer of the trace has 3 "
              "experts; give one for each");
}

}  // namespace
}  // namespace affinity_test
