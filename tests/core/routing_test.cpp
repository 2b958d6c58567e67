// SPDX-License-Identifier: MIT
#include <moe/core/routing.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace routing_test {
namespace {

using moe::Assignment;
using moe::Dropped;
using moe::Index;
using moe::Routing;
using support::message;

constexpr auto ungrouped = "moe::Routing: read before group(); call group() after the last add()";

template <class T>
std::vector<T> list(std::span<const T> values) {
    return {values.begin(), values.end()};
}
using Ids = std::vector<std::int32_t>;
using Numbers = std::vector<Index>;

// Token 0: experts 2, 0.  Token 1: none.  Token 2: experts 1, 2, 0.  Added out of order.
Routing example() {
    Routing routing;
    routing.reset(3, 4);
    routing.add(2, 1, 0.5);
    routing.add(0, 2, 0.25);
    routing.add(2, 2, 0.125, 3);
    routing.add(0, 0);
    routing.add(2, 0, -1);
    routing.group();
    return routing;
}

TEST(Routing, ListsEachTokensAssignmentsInTheOrderTheyWereAdded) {
    const Routing routing = example();
    EXPECT_EQ(routing.num_tokens(), 3);
    EXPECT_EQ(routing.num_experts(), 4);
    EXPECT_EQ(routing.num_assignments(), 5);
    EXPECT_EQ(routing.num_kept(), 5);
    const std::vector<Assignment> expected{
        {.token = 0, .expert = 2, .slot = 0, .weight = 0.25},
        {.token = 0, .expert = 0, .slot = 1},
        {.token = 2, .expert = 1, .slot = 0, .weight = 0.5},
        {.token = 2, .expert = 2, .slot = 1, .weight = 0.125, .input_weight = 3},
        {.token = 2, .expert = 0, .slot = 2, .weight = -1}};
    EXPECT_EQ(list(routing.assignments()), expected);
    EXPECT_EQ(routing.first(0), 0);
    EXPECT_EQ(routing.first(1), 2);
    EXPECT_EQ(routing.first(2), 2);
    EXPECT_EQ(routing.first(3), 5);
    EXPECT_EQ(routing.of(0).size(), 2u);
    EXPECT_TRUE(routing.of(1).empty());
    EXPECT_EQ(routing.of(2)[1], expected[3]);
}

TEST(Routing, ListsEachExpertsTokensAscending) {
    const Routing routing = example();
    EXPECT_EQ(list(routing.tokens_of(0)), (Ids{0, 2}));
    EXPECT_EQ(list(routing.tokens_of(1)), (Ids{2}));
    EXPECT_EQ(list(routing.tokens_of(2)), (Ids{0, 2}));
    EXPECT_TRUE(routing.tokens_of(3).empty());
    EXPECT_EQ(list(routing.assignments_of(0)), (Numbers{1, 4}));
    EXPECT_EQ(list(routing.assignments_of(2)), (Numbers{0, 3}));
    EXPECT_EQ(list(routing.expert_offsets()), (Numbers{0, 2, 3, 5, 5}));
    EXPECT_EQ(list(routing.expert_tokens()), (Ids{0, 2, 2, 0, 2}));
    EXPECT_EQ(list(routing.expert_assignments()), (Numbers{1, 4, 2, 0, 3}));
}

TEST(Routing, WeightsAreReadInTheScalarOfTheLayer) {
    Routing routing;
    routing.reset(1, 2);
    routing.add(0, 0, static_cast<double>(0.1f));
    routing.add(0, 1, 0.1);
    routing.group();
    EXPECT_EQ(routing.weight<float>(0), 0.1f);  // a double holds a float exactly
    EXPECT_EQ(routing.weight<double>(1), 0.1);
    EXPECT_EQ(routing.weight<float>(1), 0.1f);
}

TEST(Routing, TheExpertMajorOrderIsStable) {
    Routing routing;
    routing.reset(40, 3);
    for (Index i = 0; i < 40; ++i) {
        const Index t = i * 7 % 40;
        routing.add(t, (t + 1) % 3);
        if (t % 2 == 0) routing.add(t, t % 3);
    }
    routing.group();
    Index row = 0;
    for (Index e = 0; e < 3; ++e) {
        const auto tokens = routing.tokens_of(e);
        const auto numbers = routing.assignments_of(e);
        for (std::size_t i = 0; i < tokens.size(); ++i, ++row) {
            if (i > 0) {
                EXPECT_LT(numbers[i - 1], numbers[i]);
            }
            const Assignment& a = routing.assignments()[static_cast<std::size_t>(numbers[i])];
            EXPECT_EQ(a.expert, e);
            EXPECT_EQ(a.token, tokens[i]);
        }
    }
    EXPECT_EQ(row, routing.num_kept());
    EXPECT_EQ(row, 60);
}

struct Pair {
    Index token, expert;
    bool is_dropped = false;
};

/// What group() promises, from the words: a stable sort by token, then for each expert the kept
/// assignments in that order.
void expect_grouped(const Routing& routing, std::vector<Pair> added) {
    std::stable_sort(added.begin(), added.end(),
                     [](const Pair& a, const Pair& b) { return a.token < b.token; });
    ASSERT_EQ(routing.num_assignments(), static_cast<Index>(added.size()));
    for (std::size_t i = 0, first = 0; i < added.size(); ++i) {
        if (added[i].token != added[first].token) first = i;
        const Assignment& a = routing.assignments()[i];
        EXPECT_EQ(a.token, added[i].token) << i;
        EXPECT_EQ(a.expert, added[i].expert) << i;
        EXPECT_EQ(a.slot, static_cast<std::int32_t>(i - first)) << i;
        EXPECT_EQ(a.dropped != Dropped::no, added[i].is_dropped) << i;
    }
    for (Index t = 0; t <= routing.num_tokens(); ++t)
        EXPECT_EQ(routing.first(t),
                  std::count_if(added.begin(), added.end(),
                                [&](const Pair& pair) { return pair.token < t; }));
    for (Index e = 0; e < routing.num_experts(); ++e) {
        Numbers numbers;
        Ids tokens;
        for (std::size_t i = 0; i < added.size(); ++i)
            if (added[i].expert == e && !added[i].is_dropped) {
                numbers.push_back(static_cast<Index>(i));
                tokens.push_back(static_cast<std::int32_t>(added[i].token));
            }
        EXPECT_EQ(list(routing.assignments_of(e)), numbers) << e;
        EXPECT_EQ(list(routing.tokens_of(e)), tokens) << e;
    }
}

/// Random choices of 0 to 4 of 5 experts for each of 23 tokens, in order.
std::vector<Pair> random_pairs(std::mt19937& random) {
    std::vector<Pair> pairs;
    for (Index t = 0; t < 23; ++t) {
        std::vector<Index> experts{0, 1, 2, 3, 4};
        std::shuffle(experts.begin(), experts.end(), random);
        experts.resize(random() % 5);
        for (const Index e : experts) pairs.push_back({t, e});
    }
    return pairs;
}

TEST(Routing, AnyOrderOfTokensIsGroupedLikeAStableSort) {
    std::mt19937 random(1);
    Routing routing;
    for (int turn = 0; turn < 60; ++turn) {
        std::vector<Pair> pairs = random_pairs(random);
        if (turn % 3 == 1 && pairs.size() > 1)  // one token too late
            std::swap(pairs.front(), pairs.back());
        if (turn % 3 == 2) std::shuffle(pairs.begin(), pairs.end(), random);
        routing.reset(23, 5);
        for (const Pair& pair : pairs) routing.add(pair.token, pair.expert);
        routing.group();
        expect_grouped(routing, pairs);

        std::stable_sort(pairs.begin(), pairs.end(),
                         [](const Pair& a, const Pair& b) { return a.token < b.token; });
        for (std::size_t i = 0; i < pairs.size(); ++i)
            if (random() % 3 == 0) {
                pairs[i].is_dropped = true;
                routing.set_dropped(static_cast<Index>(i), Dropped::pruned);
            }
        routing.group();
        expect_grouped(routing, pairs);

        // What is left after erasing has new slots; and what is added to it comes behind.
        std::erase_if(pairs, [](const Pair& pair) { return pair.is_dropped; });
        routing.erase_if([](const Assignment& a) { return a.dropped != Dropped::no; });
        std::erase_if(pairs, [](const Pair& pair) { return pair.token == 7; });
        routing.erase_if([](const Assignment& a) { return a.token == 7; });
        routing.group();
        expect_grouped(routing, pairs);
        for (const Pair& pair : {Pair{7, 2}, Pair{7, 0}}) {
            pairs.push_back(pair);
            routing.add(pair.token, pair.expert);
        }
        routing.group();
        expect_grouped(routing, pairs);
    }
}

TEST(Routing, ListsAreAddedAsOneByOne) {
    std::mt19937 random(2);
    constexpr Index stride = 4;
    Routing by_lists, one_by_one;
    for (int turn = 0; turn < 30; ++turn) {
        const std::vector<Pair> pairs = random_pairs(random);
        Ids counts(23), experts(23 * stride, -1);
        one_by_one.reset(23, 5);
        for (const Pair& pair : pairs) {
            const auto t = static_cast<std::size_t>(pair.token);
            experts[t * stride + static_cast<std::size_t>(counts[t]++)] =
                static_cast<std::int32_t>(pair.expert);
            one_by_one.add(pair.token, pair.expert);
        }
        one_by_one.group();
        // In two pieces, the second one first every other time.
        const std::size_t cut = random() % 24;
        by_lists.reset(23, 5);
        for (const bool second : {turn % 2 == 0, turn % 2 != 0}) {
            const std::size_t from = second ? cut : 0, to = second ? 23 : cut;
            by_lists.add_lists(static_cast<Index>(from),
                               std::span<const std::int32_t>(counts).subspan(from, to - from),
                               experts.data() + from * stride, stride);
        }
        by_lists.group();
        EXPECT_EQ(by_lists, one_by_one) << "cut at " << cut;
        expect_grouped(by_lists, pairs);
    }
}

TEST(Routing, ListsMustBeInRange) {
    Routing routing;
    routing.reset(3, 4);
    const Ids counts{1, 1}, experts{3, 0}, wrong{0, 4};
    EXPECT_EQ(message([&] { routing.add_lists(-1, counts, experts.data(), 1); }),
              "moe::Routing::add_lists: token is -1, there are 3");
    EXPECT_EQ(message([&] { routing.add_lists(2, counts, experts.data(), 1); }),
              "moe::Routing::add_lists: token is 3, there are 3");
    EXPECT_EQ(message([&] { routing.add_lists(4, {}, experts.data(), 1); }),
              "moe::Routing::add_lists: token is 4, there are 3");
    EXPECT_EQ(message([&] { routing.add_lists(0, counts, wrong.data(), 1); }),
              "moe::Routing::add_lists: expert is 4, there are 4");
    routing.reset(3, 4);
    routing.add_lists(1, counts, experts.data(), 1);
    routing.add_lists(3, {}, experts.data(), 1);
    routing.group();
    EXPECT_EQ(list(routing.expert_tokens()), (Ids{2, 1}));
}

TEST(Routing, ATokenGoesToAnExpertOnceInAnyOrder) {
    std::mt19937 random(3);
    Routing routing;
    for (int turn = 0; turn < 40; ++turn) {
        std::vector<Pair> pairs = random_pairs(random);
        if (pairs.empty()) continue;
        pairs.insert(pairs.begin() + static_cast<std::ptrdiff_t>(random() % pairs.size()),
                     pairs[random() % pairs.size()]);
        const bool in_order = turn % 2 == 0;
        std::stable_sort(pairs.begin(), pairs.end(),
                         [](const Pair& a, const Pair& b) { return a.token < b.token; });
        if (!in_order) std::shuffle(pairs.begin(), pairs.end(), random);
        routing.reset(23, 5);
        for (const Pair& pair : pairs) routing.add(pair.token, pair.expert);
        EXPECT_THROW(routing.group(), std::invalid_argument);
    }
}

TEST(Routing, DroppedAssignmentsLeaveOnlyTheExpertMajorOrder) {
    Routing routing = example();
    routing.set_dropped(0, Dropped::capacity);
    routing.set_dropped(4, Dropped::pruned);
    routing.group();
    EXPECT_EQ(routing.num_assignments(), 5);
    EXPECT_EQ(routing.num_kept(), 3);
    EXPECT_EQ(routing.of(0)[0].dropped, Dropped::capacity);
    EXPECT_EQ(routing.of(2)[2].dropped, Dropped::pruned);
    EXPECT_EQ(routing.of(2)[2].slot, 2);
    EXPECT_EQ(list(routing.tokens_of(0)), (Ids{0}));
    EXPECT_EQ(list(routing.tokens_of(2)), (Ids{2}));
    EXPECT_EQ(list(routing.assignments_of(2)), (Numbers{3}));
    EXPECT_EQ(list(routing.expert_offsets()), (Numbers{0, 1, 2, 3, 3}));

    routing.set_dropped(0, Dropped::no);
    routing.set_dropped(4, Dropped::no);
    routing.group();
    EXPECT_EQ(routing, example());
    EXPECT_EQ(list(routing.expert_tokens()), list(example().expert_tokens()));
}

TEST(Routing, ATokenMayLoseAllItsAssignments) {
    Routing routing = example();
    for (Index a = 0; a < 5; ++a) routing.set_dropped(a, Dropped::capacity);
    routing.group();
    EXPECT_EQ(routing.num_kept(), 0);
    EXPECT_EQ(routing.of(2).size(), 3u);
    EXPECT_EQ(list(routing.expert_offsets()), (Numbers{0, 0, 0, 0, 0}));
}

TEST(Routing, BothWeightsMayBeSetAtOnce) {
    Routing routing = example();
    routing.set_weights(3, 4, 5);
    EXPECT_EQ(routing.weight<float>(3), 4.0f);
    EXPECT_EQ(routing.input_weight<float>(3), 5.0f);
    EXPECT_THROW(routing.set_weights(5, 1, 1), std::invalid_argument);
}

TEST(Routing, WeightsMayBeEditedInPlace) {
    Routing routing = example();
    routing.set_weight(3, 0.75);
    routing.set_input_weight(0, -2);
    EXPECT_EQ(routing.of(2)[1].weight, 0.75);  // no group() in between
    EXPECT_EQ(routing.of(0)[0].input_weight, -2);
    EXPECT_NE(routing, example());
}

TEST(Routing, AssignmentsMayBeAddedAfterwards) {
    Routing routing = example();
    routing.add(1, 3, 0.5);
    routing.add(0, 3);
    routing.group();
    EXPECT_EQ(routing.num_assignments(), 7);
    EXPECT_EQ(routing.of(0)[2].expert, 3);
    EXPECT_EQ(routing.of(0)[2].slot, 2);
    EXPECT_EQ(routing.of(1)[0].weight, 0.5);
    EXPECT_EQ(list(routing.tokens_of(3)), (Ids{0, 1}));
    EXPECT_EQ(routing.of(0)[0].expert, 2);  // what was there keeps its slot
}

TEST(Routing, GroupingTwiceChangesNothing) {
    Routing routing = example();
    const Assignment* const data = routing.assignments().data();
    routing.group();
    EXPECT_EQ(routing.assignments().data(), data);
    EXPECT_EQ(routing, example());
}

TEST(Routing, IsNotReadBeforeItIsGrouped) {
    for (const int what : {0, 1, 2}) {
        Routing routing = example();
        if (what == 0) routing.reset(3, 4);
        if (what == 1) routing.add(1, 1);
        if (what == 2) routing.set_dropped(0, Dropped::pruned);
        const auto text = [](auto&& f) { return message<std::logic_error>(f); };
        EXPECT_EQ(text([&] { routing.assignments(); }), ungrouped);
        EXPECT_EQ(text([&] { routing.num_kept(); }), ungrouped);
        EXPECT_EQ(text([&] { routing.first(0); }), ungrouped);
        EXPECT_EQ(text([&] { routing.of(0); }), ungrouped);
        EXPECT_EQ(text([&] { routing.tokens_of(0); }), ungrouped);
        EXPECT_EQ(text([&] { routing.assignments_of(0); }), ungrouped);
        EXPECT_EQ(text([&] { routing.expert_offsets(); }), ungrouped);
        EXPECT_EQ(text([&] { routing.expert_tokens(); }), ungrouped);
        EXPECT_EQ(text([&] { routing.expert_assignments(); }), ungrouped);
    }
    EXPECT_EQ(message<std::logic_error>([] { Routing().assignments(); }), ungrouped);
}

TEST(Routing, TokensAndExpertsMustBeInRange) {
    Routing routing;
    routing.reset(3, 4);
    EXPECT_EQ(message([&] { routing.add(3, 0); }), "moe::Routing::add: token is 3, there are 3");
    EXPECT_EQ(message([&] { routing.add(-1, 0); }), "moe::Routing::add: token is -1, there are 3");
    EXPECT_EQ(message([&] { routing.add(0, 4); }), "moe::Routing::add: expert is 4, there are 4");
    EXPECT_EQ(message([&] { routing.add(0, -1); }), "moe::Routing::add: expert is -1, there are 4");
    EXPECT_EQ(routing.num_assignments(), 0);
    EXPECT_EQ(message([&] { routing.add(Index{1} << 32, 0); }),
              "moe::Routing::add: token is 4294967296, there are 3");

    const Routing grouped = example();
    EXPECT_EQ(message([&] { grouped.of(3); }), "moe::Routing::of: token is 3, there are 3");
    EXPECT_EQ(message([&] { grouped.of(-1); }), "moe::Routing::of: token is -1, there are 3");
    EXPECT_EQ(message([&] { grouped.first(4); }), "moe::Routing::first: token is 4, there are 3");
    EXPECT_EQ(message([&] { grouped.first(-1); }), "moe::Routing::first: token is -1, there are 3");
    EXPECT_EQ(message([&] { grouped.tokens_of(4); }), "moe::Routing: expert is 4, there are 4");
    EXPECT_EQ(message([&] { grouped.assignments_of(-1); }),
              "moe::Routing: expert is -1, there are 4");
}

TEST(Routing, AssignmentsMustExist) {
    Routing routing = example();
    const auto text = "moe::Routing: assignment is 5, there are 5";
    EXPECT_EQ(message([&] { routing.set_weight(5, 1); }), text);
    EXPECT_EQ(message([&] { routing.set_input_weight(5, 1); }), text);
    EXPECT_EQ(message([&] { routing.set_dropped(5, Dropped::no); }), text);
    EXPECT_EQ(message([&] { routing.weight<float>(5); }), text);
    EXPECT_EQ(message([&] { routing.weight<float>(-1); }),
              "moe::Routing: assignment is -1, there are 5");
    EXPECT_EQ(routing, example());
}

TEST(Routing, ExtentsFit31Bits) {
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    Routing routing = example();
    EXPECT_EQ(message([&] { routing.reset(most + 1, 2); }),
              "moe::Routing: 2147483648 tokens and 2 experts, both must lie in [0, 2147483647]");
    EXPECT_EQ(message([&] { routing.reset(2, most + 1); }),
              "moe::Routing: 2 tokens and 2147483648 experts, both must lie in [0, 2147483647]");
    EXPECT_EQ(message([&] { routing.reset(-1, 2); }),
              "moe::Routing: -1 tokens and 2 experts, both must lie in [0, 2147483647]");
    EXPECT_THROW(routing.reset(2, -1), std::invalid_argument);
    EXPECT_EQ(routing, example());  // a refusal changes nothing

    routing.reset(most, most);  // allocates nothing
    routing.add(most - 1, most - 1);
    EXPECT_THROW(routing.add(most, 0), std::invalid_argument);
    EXPECT_EQ(routing.num_assignments(), 1);
}

TEST(Routing, MayBeEmpty) {
    for (const Index tokens : {0, 1, 5})
        for (const Index experts : {0, 1, 3}) {
            Routing routing;
            routing.reset(tokens, experts);
            routing.group();
            EXPECT_EQ(routing.num_kept(), 0);
            EXPECT_TRUE(routing.assignments().empty());
            EXPECT_EQ(routing.first(tokens), 0);
            EXPECT_EQ(routing.expert_offsets().size(), static_cast<std::size_t>(experts) + 1);
            for (Index t = 0; t < tokens; ++t) EXPECT_TRUE(routing.of(t).empty());
            for (Index e = 0; e < experts; ++e) EXPECT_TRUE(routing.tokens_of(e).empty());
        }
    Routing fresh;
    fresh.group();
    EXPECT_EQ(fresh.num_kept(), 0);
}

TEST(Routing, ResetForgetsThePlan) {
    Routing routing = example();
    routing.reset(2, 2);
    routing.add(1, 1);
    routing.group();
    EXPECT_EQ(routing.num_assignments(), 1);
    EXPECT_EQ(routing.expert_offsets().size(), 3u);
    EXPECT_EQ(list(routing.tokens_of(1)), (Ids{1}));
    EXPECT_THROW(routing.of(2), std::invalid_argument);
}

TEST(Routing, CopiesAreIndependent) {
    const Routing original = example();
    Routing copy = original;
    EXPECT_EQ(copy, original);
    copy.set_weight(0, 9);
    EXPECT_EQ(original.of(0)[0].weight, 0.25);
    EXPECT_EQ(list(original.tokens_of(2)), list(copy.tokens_of(2)));
}

TEST(Routing, EqualPlansHaveEqualPartsAndExtents) {
    Routing wider = example(), longer = example();
    EXPECT_EQ(example(), example());
    wider.reset(3, 5);
    longer.reset(4, 4);
    const Routing reference = example();
    for (const Assignment& a : reference.assignments())
        for (Routing* routing : {&wider, &longer})
            routing->add(a.token, a.expert, a.weight, a.input_weight);
    wider.group(), longer.group();
    EXPECT_NE(wider, example());
    EXPECT_NE(longer, example());

    Routing other_order;
    other_order.reset(1, 2);
    other_order.add(0, 1), other_order.add(0, 0);
    other_order.group();
    Routing order;
    order.reset(1, 2);
    order.add(0, 0), order.add(0, 1);
    order.group();
    EXPECT_NE(order, other_order);  // slots count
    Routing dropped = order;
    dropped.set_dropped(1, Dropped::pruned);
    dropped.group();
    EXPECT_NE(dropped, order);
}

TEST(Routing, NotANumberIsAWeightLikeAnyOther) {
    Routing routing;
    routing.reset(1, 1);
    routing.add(0, 0, std::numeric_limits<double>::quiet_NaN());
    routing.group();
    EXPECT_TRUE(std::isnan(routing.weight<float>(0)));
    EXPECT_EQ(routing.num_kept(), 1);
    EXPECT_NE(routing, Routing(routing));  // as floating-point numbers compare
}

TEST(Routing, WhatWasReservedIsNotAllocatedAgain) {
    Routing routing;
    routing.reserve(50, 7, 100);
    const auto fill = [&] {
        routing.reset(50, 7);
        for (Index t = 0; t < 50; ++t) routing.add(t, t % 7), routing.add(t, (t + 3) % 7);
        routing.group();
        routing.set_dropped(99, Dropped::capacity);
        routing.group();
    };
    EXPECT_EQ(allocations::in(fill), 0);
    EXPECT_EQ(allocations::in(fill), 0);
    EXPECT_EQ(routing.num_kept(), 99);
}

TEST(Routing, SaysHowManyBytesItReserves) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    for (const Index tokens : {0, 1, 1000})
        for (const Index experts : {1, 2000})
            for (const Index assignments : {0, 7000}) {
                Routing routing;
                const long before = allocations::bytes_asked_for.load();
                routing.reserve(tokens, experts, assignments);
                EXPECT_EQ(allocations::bytes_asked_for.load() - before,
                          Routing::bytes(tokens, experts, assignments))
                    << tokens << ' ' << experts << ' ' << assignments;
            }
}

TEST(Routing, ASecondPlanOfTheSameSizeAllocatesNothing) {
    Routing routing;
    const auto fill = [&](Index shift) {
        routing.reset(30, 5);
        for (Index t = 0; t < 30; ++t) routing.add(t, (t + shift) % 5);
        routing.group();
    };
    fill(0);
    EXPECT_EQ(allocations::in([&] { fill(3); }), 0);
}

TEST(WeightGradients, AreReadByAssignment) {
    const std::vector<float> output{1, 2, 3};
    const moe::WeightGradients<float> gradients{.output = output};
    EXPECT_EQ(gradients[2], 3.0f);
    EXPECT_TRUE(gradients.input.empty());
}

TEST(Routing, ATokenGoesToAnExpertOnce) {
    Routing routing;
    routing.reset(3, 4);
    routing.add(1, 2), routing.add(0, 2), routing.add(1, 0), routing.add(1, 2);
    EXPECT_EQ(
        message([&] { routing.group(); }),
        "moe::Routing::group: token 1 goes to expert 2 twice; add it once, with the sum of the "
        "weights");
    routing.reset(3, 4);
    routing.add(1, 2), routing.add(1, 0), routing.add(1, 2);
    routing.set_dropped(2, Dropped::capacity);  // what is dropped goes nowhere
    EXPECT_NO_THROW(routing.group());
    EXPECT_EQ(routing.of(1).size(), 3u);
}

TEST(Routing, ErasesWhatAConditionNames) {
    Routing routing;
    routing.reset(3, 4);
    routing.add(0, 2, 0.5), routing.add(0, 1, 0.25), routing.add(2, 2, 1);
    routing.group();
    routing.erase_if([](const moe::Assignment&) { return false; });
    EXPECT_EQ(routing.num_kept(), 3);  // nothing went, so it is still sorted
    routing.erase_if([](const moe::Assignment& a) { return a.expert == 2; });
    routing.group();
    ASSERT_EQ(routing.num_assignments(), 1);
    EXPECT_EQ(routing.of(0)[0].expert, 1);
    EXPECT_EQ(routing.of(0)[0].slot, 0);
    EXPECT_TRUE(routing.tokens_of(2).empty());
}

}  // namespace
}  // namespace routing_test
