// SPDX-License-Identifier: MIT
#include <moe/stats/locality.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace locality_test {
namespace {

using moe::Index;
using moe::segment_activations;
using moe::segment_cache;
using moe::segment_routing;
using moe::SegmentActivations;
using moe::SegmentCache;
using moe::SegmentRouting;
using moe::Segments;
using moe::Trace;
using support::message;
using traces::Lists;

/// Tokens that keep to a few experts for a while: each replaces one of its k experts with the given
/// probability.
Lists wandering(Index tokens, Index experts, Index k, double change, std::uint64_t seed) {
    Lists lists = traces::random_lists(tokens, experts, k, seed);
    for (std::size_t t = 1; t < lists.size(); ++t) {
        const Index fresh = lists[t][0];
        lists[t] = lists[t - 1];
        const double u = (moe::testing::random_value(seed + 1, t) + 1) / 2;
        if (u < change && std::count(lists[t].begin(), lists[t].end(), fresh) == 0)
            lists[t][t % static_cast<std::size_t>(k)] = fresh;
    }
    return lists;
}

TEST(SegmentRouting, OfASmallSequenceIsWorkedOutByHand) {
    // Tokens 0 0 1 0 of 3 experts, m = 2: segments 00 01 10. Expert 0 is active 2 1 1 times,
    // expert 1 0 1 1 times, expert 2 never.
    const SegmentActivations activations =
        segment_activations(traces::trace(3, {{0}, {0}, {1}, {0}}), 0, {.length = 2});
    EXPECT_EQ(activations.length, 2);
    EXPECT_EQ(activations.num_segments, 3);
    moe::Matrix<double> wanted(3, 3);
    wanted << 0, 2, 1, 1, 2, 0, 3, 0, 0;
    EXPECT_EQ(activations.segments, wanted);
    // All: 6 activations. theta = 2: 2 * 2 / (2 * 1 + 6) = 1/2. theta = 1: 2 * 6 / (2 * 5 + 6) =
    // 3/4, predicted 10 of 6.
    const SegmentRouting all = segment_routing(activations);
    EXPECT_EQ(all.performance, 0.75);
    EXPECT_EQ(all.threshold, 1);
    EXPECT_NEAR(all.size_ratio, 10.0 / 6, 1e-15);
    // Expert 0: theta = 2: 4 / (2 + 4); theta = 1: 8 / (6 + 4) is better. Expert 2: nothing.
    const std::vector<Index> zero{0}, two{2};
    EXPECT_NEAR(segment_routing(activations, zero).performance, 0.8, 1e-15);
    EXPECT_NEAR(segment_routing(activations, zero).size_ratio, 1.5, 1e-15);
    EXPECT_EQ(segment_routing(activations, two).performance, 0);
    EXPECT_EQ(segment_routing(activations, two).threshold, 0);
    EXPECT_EQ(segment_routing(activations, two).size_ratio, 0);
}

TEST(SegmentRouting, CountsSegmentsAsALoopOverThemDoes) {
    for (const Index m : {1, 2, 3, 7}) {
        const Lists lists = wandering(40, 5, 2, 0.5, 4);
        const std::vector<Index> offsets{0, 13, 13, 15, 40};
        const SegmentActivations activations = segment_activations(
            traces::trace(5, lists, {.sequence_offsets = offsets}), 0, {.length = m});
        moe::Matrix<double> wanted = moe::Matrix<double>::Zero(5, m + 1);
        Index segments = 0;
        for (std::size_t b = 1; b < offsets.size(); ++b)
            for (Index s = offsets[b - 1]; s + m <= offsets[b]; ++s, ++segments)
                for (Index e = 0; e < 5; ++e) {
                    Index f = 0;
                    for (Index t = s; t < s + m; ++t) {
                        const auto& list = lists[static_cast<std::size_t>(t)];
                        f += std::count(list.begin(), list.end(), e);
                    }
                    wanted(e, f) += 1;
                }
        EXPECT_EQ(activations.num_segments, segments);
        EXPECT_EQ(activations.segments, wanted);
    }
}

TEST(SegmentRouting, IsTheBestOfAllSubsetsOfExpertsAndSegments) {
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
        // 3 experts, 6 tokens, m = 3: 4 segments, 12 pairs, 4096 subsets
        const Index m = 3;
        const Lists lists = traces::random_lists(6, 3, 1 + static_cast<Index>(seed % 2), seed);
        std::vector<double> active;
        for (Index s = 0; s + m <= 6; ++s)
            for (Index e = 0; e < 3; ++e) {
                double f = 0;
                for (Index t = s; t < s + m; ++t)
                    for (const Index chosen : lists[static_cast<std::size_t>(t)]) f += chosen == e;
                active.push_back(f);
            }
        double actual = 0, best = 0;
        for (const double f : active) actual += f;
        for (unsigned subset = 0; subset < 1U << active.size(); ++subset) {
            double hits = 0, predicted = 0;
            for (std::size_t i = 0; i < active.size(); ++i)
                if (subset >> i & 1) {
                    hits += active[i];
                    predicted += m;
                }
            best = std::max(best, 2 * hits / (predicted + actual));
        }
        const auto activations = segment_activations(traces::trace(3, lists), 0, {.length = m});
        EXPECT_NEAR(segment_routing(activations).performance, best, 1e-15) << "seed " << seed;
    }
}

TEST(SegmentRouting, OfConstantRoutingIsOneForEveryLength) {
    const Trace trace = traces::trace(8, Lists(70, {6, 1}));
    for (const Index m : {1, 4, 16, 64}) {
        const SegmentRouting routing =
            segment_routing(segment_activations(trace, 0, {.length = m}));
        EXPECT_EQ(routing.performance, 1);
        EXPECT_EQ(routing.size_ratio, 1);
    }
}

TEST(SegmentRouting, FindsPlantedConsistency) {
    const auto performance = [](double change) {
        const Trace trace = traces::trace(16, wandering(2000, 16, 2, change, 7));
        return segment_routing(segment_activations(trace, 0, {.length = 16})).performance;
    };
    EXPECT_GT(performance(0.02), 0.85);
    EXPECT_GT(performance(0.02), performance(0.2) + 0.1);
    EXPECT_GT(performance(0.2), performance(1) + 0.05);
}

TEST(SegmentRouting, PoolsGroupsOfExpertsUnderOneThreshold) {
    const auto activations =
        segment_activations(traces::trace(6, wandering(60, 6, 2, 0.4, 3)), 0, {.length = 4});
    const std::vector<Index> group{1, 4}, all{5, 4, 3, 2, 1, 0};
    SegmentActivations pooled{.length = 4, .num_segments = activations.num_segments};
    pooled.segments = activations.segments.row(1) + activations.segments.row(4);
    EXPECT_EQ(segment_routing(activations, group).performance, segment_routing(pooled).performance);
    EXPECT_EQ(segment_routing(activations, all).performance,
              segment_routing(activations).performance);
}

TEST(SegmentRouting, HasNoSegmentsInSequencesThatAreTooShort) {
    const std::vector<Index> offsets{0, 2, 4};
    const Trace trace = traces::trace(2, {{0}, {0}, {1}, {1}}, {.sequence_offsets = offsets});
    const auto activations = segment_activations(trace, 0, {.length = 3});
    EXPECT_EQ(activations.num_segments, 0);
    EXPECT_EQ(activations.segments.size(), 0);  // for whatever length
    EXPECT_EQ(segment_routing(activations).performance, 0);
}

TEST(Segments, ContinueThroughBatchesOfDecoding) {
    // Two sequences, token by token, as one batch with both, or batch after batch.
    const Lists one = wandering(12, 4, 1, 0.4, 1), two = wandering(12, 4, 1, 0.4, 2);
    Lists both = one;
    both.insert(both.end(), two.begin(), two.end());
    const std::vector<Index> offsets{0, 12, 24}, each{0, 1, 2};
    const Trace whole = traces::trace(4, both, {.sequence_offsets = offsets});
    Trace decoding;
    for (std::size_t t = 0; t < 12; ++t)
        decoding.record(0, traces::routing(4, {one[t], two[t]}), {.sequence_offsets = each});
    EXPECT_EQ(segment_activations(decoding, 0, {.length = 4, .continued = true}).segments,
              segment_activations(whole, 0, {.length = 4}).segments);
    EXPECT_EQ(segment_activations(decoding, 0, {.length = 4}).num_segments, 0);
    const SegmentCache cache{.segments = {.length = 4}},
        continued{.segments = {.length = 4, .continued = true}};
    EXPECT_EQ(segment_cache(decoding, 0, continued).hit_rate,
              segment_cache(whole, 0, cache).hit_rate);
    decoding.record(0, traces::routing(4, {one[0]}));
    EXPECT_EQ(message([&] { segment_activations(decoding, 0, {.continued = true}); }),
              "moe::segment_activations: continued is true and batch 12 has 1 sequences, the one "
              "before has 2; record batches with the same sequences, or set continued to false");
}

TEST(Segments, LeaveOutPaddingAndDroppedAssignments) {
    moe::Routing routing = traces::routing(3, {{2}, {0, 1}, {2}, {0}});
    routing.set_dropped(2, moe::Dropped::capacity);  // token 1, expert 1
    routing.group();
    const std::vector<std::uint8_t> padding{1, 0, 1, 0};
    Trace trace;
    trace.record(0, routing, {.padding = padding});
    const auto activations = segment_activations(trace, 0, {.length = 2});
    EXPECT_EQ(activations.num_segments, 1);
    EXPECT_EQ(activations.segments(0, 2), 1);
    EXPECT_EQ(activations.segments(1, 0), 1);
    EXPECT_EQ(segment_cache(trace, 0).hit_rate, 1);
}

bool has(const std::vector<Index>& list, Index e) {
    return std::find(list.begin(), list.end(), e) != list.end();
}

/// The hit rate of a cache for one sequence. As long as there is room, what is fetched counts as a
/// hit. serve(held, t) brings `held` to what it is after token t, at most `capacity` experts.
template <class F>
double simulate(const Lists& lists, Index capacity, F&& serve) {
    std::vector<Index> held;
    double hits = 0, requests = 0;
    for (std::size_t t = 0; t < lists.size(); ++t) {
        Index room = capacity - static_cast<Index>(held.size());
        for (const Index e : lists[t]) {
            requests += 1;
            hits += has(held, e) || room-- > 0;
        }
        serve(held, t);
    }
    return hits / requests;
}

/// How many tokens away the next (step 1) or last (step -1) use of an expert is.
Index distance(const Lists& lists, Index expert, std::size_t from, Index step) {
    for (Index t = static_cast<Index>(from) + step, d = 1;; t += step, ++d) {
        if (t < 0 || t >= static_cast<Index>(lists.size())) return 1'000'000;
        if (has(lists[static_cast<std::size_t>(t)], expert)) return d;
    }
}

/// The best there is: of what was held and used, that which is needed soonest.
double belady(const Lists& lists, Index capacity) {
    return simulate(lists, capacity, [&](std::vector<Index>& held, std::size_t t) {
        for (const Index e : lists[t])
            if (!has(held, e)) held.push_back(e);
        while (static_cast<Index>(held.size()) > capacity)
            held.erase(std::max_element(held.begin(), held.end(), [&](Index a, Index b) {
                return distance(lists, a, t, 1) < distance(lists, b, t, 1);
            }));
    });
}

double lru(const Lists& lists, Index capacity) {
    return simulate(lists, capacity, [&](std::vector<Index>& held, std::size_t t) {
        // Those that the token uses go to the back, the ones at the front are evicted.
        for (const Index e : lists[t]) std::erase(held, e);
        held.insert(held.end(), lists[t].begin(), lists[t].end());
        while (static_cast<Index>(held.size()) > capacity) held.erase(held.begin());
    });
}

/// The rule of segment_cache, from its words.
double least_used_next(const Lists& lists, Index capacity, Index m) {
    std::vector<Index> served;  // all requests in order
    return simulate(lists, capacity, [&](std::vector<Index>& held, std::size_t t) {
        if (t == 0) served.clear();
        for (std::size_t slot = 0; slot < lists[t].size(); ++slot) {
            const Index e = lists[t][slot];
            const auto rank = [&](Index expert) {
                Index uses = 0;
                for (std::size_t i = t; i < std::min(lists.size(), t + static_cast<std::size_t>(m));
                     ++i)
                    for (std::size_t s = i == t ? slot : 0; s < lists[i].size(); ++s)
                        uses += lists[i][s] == expert;
                std::size_t last = served.size();
                while (served[last - 1] != expert) --last;
                return std::pair(uses, last);
            };
            if (!has(held, e)) {
                if (static_cast<Index>(held.size()) == capacity)
                    held.erase(std::min_element(held.begin(), held.end(), [&](Index a, Index b) {
                        return rank(a) < rank(b);
                    }));
                held.push_back(e);
            }
            served.push_back(e);
        }
    });
}

TEST(SegmentCache, OfASmallSequenceIsWorkedOutByHand) {
    // Experts 0 1 2 0 2 1 one by one, a cache of 2, m = 3: 0 and 1 fill it (hits). 2 misses; then
    // come 0 2, so 1 goes. 0 hit, 2 hit. 1 misses. 4 of 6.
    const Trace trace = traces::trace(3, {{0}, {1}, {2}, {0}, {2}, {1}});
    const auto hits = segment_cache(trace, 0, {.size_ratio = 2, .segments = {.length = 3}});
    EXPECT_EQ(hits.capacity, 2);
    EXPECT_NEAR(hits.hit_rate, 4.0 / 6, 1e-15);
    // LRU evicts 0 for 2, 1 for 0; 2 is a hit, 1 is not: 3 of 6.
    EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = 2, .segments = {.length = 1}}).hit_rate, 0.5);
    EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = 0}).hit_rate, 0);
    EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = 1e9}).capacity, 3);
    EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = 1e9}).hit_rate, 1);
}

TEST(SegmentCache, OfConstantRoutingHitsAlways) {
    const Trace trace = traces::trace(8, Lists(50, {6, 1}));
    for (const double ratio : {1.0, 1.5, 4.0})
        EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = ratio}).hit_rate, 1);
    // Half of it: the second expert of a token stays, the first misses each time but once.
    EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = 0.5}).capacity, 1);
    EXPECT_EQ(segment_cache(trace, 0, {.size_ratio = 0.5}).hit_rate, 0.5);
}

TEST(SegmentCache, EqualsASimulationWrittenFromItsWords) {
    for (std::uint64_t seed = 0; seed < 8; ++seed)
        for (const Index m : {1, 2, 5, 200}) {
            // Unrelated tokens have experts that were last used together.
            const Lists lists = seed % 2 == 0 ? wandering(60, 9, 2, 0.7, seed)
                                              : traces::random_lists(60, 9, 2, seed);
            for (const Index capacity : {1, 2, 3, 5, 8})
                EXPECT_EQ(segment_cache(traces::trace(9, lists), 0,
                                        {.size_ratio = static_cast<double>(capacity) / 2,
                                         .segments = {.length = m}})
                              .hit_rate,
                          least_used_next(lists, capacity, m))
                    << seed << " " << m << " " << capacity;
        }
}

TEST(SegmentCache, LiesBetweenLruAndBelady) {
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
        const Lists lists = wandering(300, 12, 2, 0.8, seed);
        for (const Index capacity : {3, 4, 6, 9}) {
            const auto hit_rate = [&](Index m) {
                return segment_cache(traces::trace(12, lists), 0,
                                     {.size_ratio = static_cast<double>(capacity) / 2,
                                      .segments = {.length = m}})
                    .hit_rate;
            };
            EXPECT_EQ(hit_rate(1), lru(lists, capacity));
            EXPECT_GE(hit_rate(8), lru(lists, capacity));
            for (const Index m : {1, 2, 8, 64, 400})
                EXPECT_LE(hit_rate(m), belady(lists, capacity) + 1e-15);
        }
    }
}

TEST(SegmentCache, DoesNotFallAsItGrows) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
        Lists lists = wandering(120, 10, 3, 0.6, seed);
        for (std::size_t t = 0; t < lists.size(); t += 4) lists[t].resize(1 + t % 3);
        const Trace trace = traces::trace(10, lists);
        for (const Index m : {1, 4, 16}) {
            double before = 0;
            for (double ratio = 0; ratio <= 5; ratio += 0.2) {
                const double now =
                    segment_cache(trace, 0, {.size_ratio = ratio, .segments = {.length = m}})
                        .hit_rate;
                EXPECT_GE(now, before);
                before = now;
            }
            EXPECT_EQ(before, 1);
        }
    }
}

TEST(SegmentCache, StartsAnewInEachSequence) {
    const Lists one = wandering(40, 8, 2, 0.8, 1), two = wandering(40, 8, 2, 0.8, 2);
    Lists both = one;
    both.insert(both.end(), two.begin(), two.end());
    const std::vector<Index> offsets{0, 40, 80};
    const double hit_rate =
        segment_cache(traces::trace(8, both, {.sequence_offsets = offsets}), 0).hit_rate;
    EXPECT_NEAR(hit_rate, (least_used_next(one, 4, 16) + least_used_next(two, 4, 16)) / 2, 1e-15);
}

TEST(Locality, IsDefinedWithoutTokens) {
    for (const Trace& trace :
         {traces::trace(4, {}), traces::trace(4, {{}, {}}), traces::trace(0, {})}) {
        EXPECT_EQ(segment_routing(segment_activations(trace, 0, {.length = 1})).performance, 0);
        EXPECT_EQ(segment_cache(trace, 0).hit_rate, 0);
        EXPECT_EQ(segment_cache(trace, 0).capacity, 0);
    }
}

TEST(Locality, RefusesBadSettings) {
    const Trace trace = traces::trace(2, {{0}, {1}});
    EXPECT_THROW(segment_activations(trace, 1), std::invalid_argument);
    EXPECT_THROW(segment_cache(trace, 1), std::invalid_argument);
    EXPECT_EQ(message([&] { segment_activations(trace, 0, {.length = 0}); }),
              "moe::segment_activations: length is 0, it must lie in [1, 2147483647]");
    EXPECT_EQ(message([&] { segment_cache(trace, 0, {.segments = {.length = -1}}); }),
              "moe::segment_cache: length is -1, it must lie in [1, 2147483647]");
    EXPECT_EQ(message([&] { segment_cache(trace, 0, {.size_ratio = -0.5}); }),
              "moe::segment_cache: size_ratio is -0.5, it must be finite and >= 0");
    const double nan = std::numeric_limits<double>::quiet_NaN();
    EXPECT_THROW(segment_cache(trace, 0, {.size_ratio = nan}), std::invalid_argument);
    const std::vector<Index> none{2};
    EXPECT_EQ(message([&] { segment_routing(segment_activations(trace, 0, {.length = 1}), none); }),
              "moe::segment_routing: expert is 2, there are 2");
    const moe::SegmentActivations broken{
        .length = 3, .num_segments = 1, .segments = moe::Matrix<double>::Zero(2, 3)};
    EXPECT_EQ(message([&] { segment_routing(broken); }),
              "moe::segment_routing: segments is [2, 3] for segments of 3 tokens, it must have one "
              "column more than that; take what segment_activations() returns");
}

}  // namespace
}  // namespace locality_test
