// SPDX-License-Identifier: MIT
#include <moe/stats/load.hpp>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/random.hpp>

namespace load_test {
namespace {

using moe::Assignment;
using moe::Dropped;
using moe::Index;
using moe::LoadStats;
using moe::Routing;

/// 4 tokens, 4 experts. Token 0: 1 and 0; token 1: 1; token 2: 1, dropped; token 3: nothing.
Routing small() {
    Routing routing;
    routing.reset(4, 4);
    routing.add(0, 1);
    routing.add(0, 0);
    routing.add(1, 1);
    routing.add(2, 1);
    routing.group();
    routing.set_dropped(3, Dropped::capacity);
    routing.group();
    return routing;
}

TEST(LoadStats, OfASmallRoutingAreWorkedOutByHand) {
    // loads 1 2 0 0: mean 3/4, max/mean 8/3, variance (1/16 + 25/16 + 9/16 + 9/16) / 4 = 11/16
    const LoadStats load = moe::load_stats(small());
    EXPECT_EQ(load.num_tokens, 4);
    EXPECT_EQ(load.tokens_per_expert, (std::vector<Index>{1, 2, 0, 0}));
    EXPECT_EQ(load.dropped_per_expert, (std::vector<Index>{0, 1, 0, 0}));
    EXPECT_EQ(load.busiest_expert, 1);
    EXPECT_EQ(load.dead_experts, 2);
    EXPECT_EQ(load.unrouted_tokens, 2);
    EXPECT_NEAR(load.max_over_mean, 8.0 / 3, 1e-15);
    EXPECT_NEAR(load.coefficient_of_variation, std::sqrt(11.0) / 3, 1e-15);
    // shares 1/3, 2/3: log 3 - 2/3 log 2, over log 4
    EXPECT_NEAR(load.normalized_entropy, (std::log(3.0) - std::log(4.0) / 3) / std::log(4.0),
                1e-15);
    EXPECT_EQ(load.experts_per_token, 0.75);
    EXPECT_EQ(load.dropped_fraction, 0.25);
}

TEST(LoadStats, AtBalanceAreOneAndZero) {
    Routing routing;
    routing.reset(6, 3);
    for (Index t = 0; t < 6; ++t) routing.add(t, t % 3);
    routing.group();
    const LoadStats load = moe::load_stats(routing);
    EXPECT_EQ(load.max_over_mean, 1);
    EXPECT_EQ(load.coefficient_of_variation, 0);
    EXPECT_NEAR(load.normalized_entropy, 1, 1e-15);
    EXPECT_EQ(load.busiest_expert, 0);
    EXPECT_EQ(load.dead_experts, 0);
    EXPECT_EQ(load.unrouted_tokens, 0);
}

TEST(LoadStats, AreDefinedWithoutTokensAndWithoutExperts) {
    for (const auto& [tokens, experts] : {std::pair<Index, Index>{0, 3}, {5, 3}, {5, 0}, {0, 0}}) {
        Routing routing;
        routing.reset(tokens, experts);
        routing.group();
        const LoadStats load = moe::load_stats(routing);
        EXPECT_EQ(load.num_tokens, tokens);
        EXPECT_EQ(load.tokens_per_expert.size(), static_cast<std::size_t>(experts));
        EXPECT_EQ(load.busiest_expert, -1);
        EXPECT_EQ(load.dead_experts, experts);
        EXPECT_EQ(load.unrouted_tokens, tokens);
        EXPECT_EQ(load.max_over_mean, 0);
        EXPECT_EQ(load.coefficient_of_variation, 0);
        EXPECT_EQ(load.normalized_entropy, 0);
        EXPECT_EQ(load.experts_per_token, 0);
        EXPECT_EQ(load.dropped_fraction, 0);
    }
    Routing one;
    one.reset(1, 1);
    one.add(0, 0);
    one.group();
    EXPECT_EQ(moe::load_stats(one).normalized_entropy, 1);
}

TEST(LoadStats, DoNotCountPadding) {
    const std::vector<std::uint8_t> padding{0, 0, 0, 1};
    const moe::Context context{.padding = padding};
    const LoadStats load = moe::load_stats(small(), context);
    EXPECT_EQ(load.num_tokens, 3);
    EXPECT_EQ(load.unrouted_tokens, 1);  // token 2, whose only expert was full
    EXPECT_EQ(load.experts_per_token, 1);
    EXPECT_EQ(load.dropped_fraction, 0.25);
    EXPECT_EQ(load.tokens_per_expert, (std::vector<Index>{1, 2, 0, 0}));
    Routing nothing;
    nothing.reset(2, 3);
    nothing.group();
    const std::vector<std::uint8_t> all{1, 1};
    const LoadStats none = moe::load_stats(nothing, {.padding = all});
    EXPECT_EQ(none.num_tokens, 0);
    EXPECT_EQ(none.unrouted_tokens, 0);
    EXPECT_EQ(none.experts_per_token, 0);
    EXPECT_THROW(moe::load_stats(nothing, context), std::invalid_argument);
}

TEST(LoadStats, EqualBruteForceOnRandomRoutings) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const auto tokens = static_cast<Index>(seed % 7),
                   experts = static_cast<Index>(2 + seed % 5);
        Routing routing;
        routing.reset(tokens, experts);
        std::uint64_t draw = 0;
        for (Index t = 0; t < tokens; ++t)
            for (Index e = 0; e < experts; ++e)
                if (moe::testing::random_value(seed, draw++) > 0) routing.add(t, e);
        routing.group();
        for (Index a = 0; a < routing.num_assignments(); a += 3)
            routing.set_dropped(a, a % 2 ? Dropped::pruned : Dropped::capacity);
        routing.group();

        const LoadStats load = moe::load_stats(routing);
        Index kept = 0, dropped = 0, unrouted = 0, dead = 0;
        for (Index e = 0; e < experts; ++e) {
            Index n = 0, lost = 0;
            for (const Assignment& a : routing.assignments()) {
                n += a.expert == e && a.dropped == Dropped::no;
                lost += a.expert == e && a.dropped != Dropped::no;
            }
            EXPECT_EQ(load.tokens_per_expert[static_cast<std::size_t>(e)], n);
            EXPECT_EQ(load.dropped_per_expert[static_cast<std::size_t>(e)], lost);
            kept += n;
            dropped += lost;
            dead += n == 0;
        }
        for (Index t = 0; t < tokens; ++t) {
            bool is_routed = false;
            for (const Assignment& a : routing.of(t)) is_routed |= a.dropped == Dropped::no;
            unrouted += !is_routed;
        }
        EXPECT_EQ(load.unrouted_tokens, unrouted);
        EXPECT_EQ(load.dead_experts, dead);
        if (tokens > 0) {
            EXPECT_DOUBLE_EQ(load.experts_per_token,
                             static_cast<double>(kept) / static_cast<double>(tokens));
        }
        if (kept + dropped > 0) {
            EXPECT_DOUBLE_EQ(load.dropped_fraction,
                             static_cast<double>(dropped) / static_cast<double>(kept + dropped));
        }
    }
}

TEST(ActiveFlops, AreTheMeanOverTokensOfWhatReachesExperts) {
    // loads 1 2 0 0 of 100, 10, 1000, 0 operations, 4 tokens: 120 / 4
    std::vector<moe::ExpertFacts> facts(4);
    facts[0].flops_per_row = 100;
    facts[1].flops_per_row = 10;
    facts[2].flops_per_row = 1000;
    EXPECT_EQ(moe::active_flops(small(), facts), 30);
    Routing empty;
    empty.reset(0, 4);
    empty.group();
    EXPECT_EQ(moe::active_flops(empty, facts), 0);
    facts.pop_back();
    EXPECT_THROW(moe::active_flops(small(), facts), std::invalid_argument);
}

}  // namespace
}  // namespace load_test
