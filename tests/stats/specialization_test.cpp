// SPDX-License-Identifier: MIT
#include <moe/stats/specialization.hpp>

#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace specialization_test {
namespace {

using moe::ByBatch;
using moe::ByGroup;
using moe::ByPosition;
using moe::ByStep;
using moe::ByTokenId;
using moe::Index;
using moe::Specialization;
using moe::specialization;
using moe::SpecializationSlots;
using moe::Trace;
using support::message;
using traces::Lists;

TEST(Specialization, OfASmallBatchIsWorkedOutByHand) {
    // Id 10 gets experts 0 0 1 1, id 20 expert 1 four times. H(e): 2 of 8 and 6 of 8:
    // 2 log 2 - 3/4 log 3. H(e | id) = 1/2 log 2 + 1/2 0.
    const std::vector<std::int64_t> ids{10, 20, 10, 20, 10, 20, 10, 20};
    const Trace trace =
        traces::trace(3, {{0}, {1}, {0}, {1}, {1}, {1}, {1}, {1}}, {.token_ids = ids});
    const Specialization s = specialization(trace, 0, ByTokenId{});
    EXPECT_EQ(s.num_keys, 2);
    EXPECT_EQ(s.num_assignments, 8);
    const double entropy = 2 * std::log(2.0) - 0.75 * std::log(3.0);
    EXPECT_NEAR(s.entropy, entropy, 1e-15);
    EXPECT_NEAR(s.conditional_entropy, std::log(2.0) / 2, 1e-15);
    EXPECT_NEAR(s.explained, 1 - std::log(2.0) / 2 / entropy, 1e-15);

    const moe::ExpertsByKey table = moe::experts_by(trace, 0, ByTokenId{});
    EXPECT_EQ(table.keys, (std::vector<std::int64_t>{10, 20}));
    moe::Matrix<double> counts(2, 3);
    counts << 2, 2, 0, 0, 4, 0;
    EXPECT_EQ(table.counts, counts);
}

TEST(Specialization, EqualsBruteForceOverKeys) {
    std::vector<std::int64_t> ids;
    for (std::uint64_t t = 0; t < 60; ++t) ids.push_back(traces::draw(9, t, 7) * 1'000'003 - 5);
    const Lists lists = traces::random_lists(60, 5, 2, 4);
    Trace trace;
    trace.record(2, traces::routing(5, lists), {.token_ids = ids});
    trace.record(2, traces::routing(5, Lists(60, {1})), {.token_ids = ids});
    std::map<std::int64_t, std::map<Index, double>> of_key;
    std::map<Index, double> load;
    double all = 0;
    for (std::size_t t = 0; t < 60; ++t) {
        std::vector<Index> chosen = lists[t];
        chosen.push_back(1);
        for (const Index e : chosen) ++of_key[ids[t]][e], ++load[e], ++all;
    }
    const auto entropy = [](const std::map<Index, double>& counts) {
        double n = 0, h = 0;
        for (const auto& [e, count] : counts) n += count;
        for (const auto& [e, count] : counts) h -= count / n * std::log(count / n);
        return std::pair(n, h);
    };
    double conditional = 0;
    for (const auto& [key, counts] : of_key) {
        const auto [n, h] = entropy(counts);
        conditional += n / all * h;
    }
    const Specialization s = specialization(trace, 2, ByTokenId{});
    EXPECT_EQ(s.num_keys, static_cast<Index>(of_key.size()));
    EXPECT_EQ(s.num_assignments, 180);
    EXPECT_NEAR(s.entropy, entropy(load).second, 1e-13);
    EXPECT_NEAR(s.conditional_entropy, conditional, 1e-13);
    EXPECT_NEAR(s.explained, 1 - conditional / entropy(load).second, 1e-13);
}

TEST(Specialization, OfRoutingThatIdsDecideIsOne) {
    std::vector<std::int64_t> ids;
    Lists one, two;
    for (std::uint64_t t = 0; t < 500; ++t) {
        ids.push_back(traces::draw(1, t, 40));
        one.push_back({(ids.back() * 7) % 8});
        two.push_back({(ids.back() * 7) % 8, (ids.back() * 7 + 1) % 8});
    }
    const auto explained = [&](const Lists& lists, SpecializationSlots slots) {
        return specialization(traces::trace(8, lists, {.token_ids = ids}), 0, ByTokenId{}, slots);
    };
    EXPECT_NEAR(explained(one, SpecializationSlots::all).explained, 1, 1e-12);
    EXPECT_NEAR(explained(two, SpecializationSlots::first).explained, 1, 1e-12);
    // Which of its two experts a token's assignment goes to, the id does not say.
    EXPECT_NEAR(explained(two, SpecializationSlots::all).conditional_entropy, std::log(2.0), 1e-12);
}

TEST(Specialization, OfChanceIsNearZero) {
    std::vector<std::int64_t> ids;
    for (std::uint64_t t = 0; t < 8000; ++t) ids.push_back(traces::draw(3, t, 10));
    const Trace trace = traces::trace(8, traces::random_lists(8000, 8, 1, 5), {.token_ids = ids});
    // By chance about 9 * 7 / (2 * 8000) of log 8 nats: 0.0019.
    EXPECT_LT(specialization(trace, 0, ByTokenId{}).explained, 0.004);
}

TEST(Specialization, GroupsTokensByPositionGroupBatchStepAndWhateverElse) {
    // Two sequences of 4; the expert is that of the position: 0 0 1 1.
    const std::vector<Index> offsets{0, 4, 8};
    const std::vector<std::int32_t> groups{0, 0, 0, 0, 1, 1, 1, 1};
    Trace trace;
    trace.record(0, traces::routing(2, {{0}, {0}, {1}, {1}, {0}, {0}, {1}, {1}}),
                 {.step = 5, .token_groups = groups, .sequence_offsets = offsets});
    EXPECT_EQ(specialization(trace, 0, ByPosition{}).num_keys, 4);
    EXPECT_NEAR(specialization(trace, 0, ByPosition{}).explained, 1, 1e-15);
    EXPECT_EQ(specialization(trace, 0, ByPosition{.bin = 2}).num_keys, 2);
    EXPECT_NEAR(specialization(trace, 0, ByPosition{.bin = 2}).explained, 1, 1e-15);
    EXPECT_NEAR(specialization(trace, 0, ByPosition{.bin = 4}).explained, 0, 1e-15);
    EXPECT_EQ(specialization(trace, 0, ByGroup{}).num_keys, 2);
    EXPECT_NEAR(specialization(trace, 0, ByGroup{}).explained, 0, 1e-15);
    const auto odd = [](const moe::TraceRecord&, const moe::TraceBatch&, Index t) { return t % 2; };
    EXPECT_NEAR(specialization(trace, 0, odd).explained, 0, 1e-15);

    // By group it is the expert now, by step and batch, too: 0 or 1 in the first one, 2 then.
    trace.clear();
    trace.record(0, traces::routing(3, {{0}, {0}, {0}, {0}, {1}, {1}, {1}, {1}}),
                 {.step = 5, .token_groups = groups});
    EXPECT_NEAR(specialization(trace, 0, ByGroup{}).explained, 1, 1e-15);
    trace.record(0, traces::routing(3, Lists(8, {2})), {.step = 5, .token_groups = groups});
    EXPECT_EQ(specialization(trace, 0, ByBatch{}).num_keys, 2);
    EXPECT_NEAR(specialization(trace, 0, ByBatch{}).conditional_entropy, std::log(2.0) / 2, 1e-15);
    EXPECT_EQ(specialization(trace, 0, ByStep{}).num_keys, 1);
    trace.record(0, traces::routing(3, Lists(8, {2})), {.step = 6, .token_groups = groups});
    EXPECT_EQ(moe::experts_by(trace, 0, ByStep{}).keys, (std::vector<std::int64_t>{5, 6}));
}

TEST(Specialization, LeavesOutPaddingAndDroppedAssignments) {
    moe::Routing routing = traces::routing(4, {{0, 1}, {3}, {2}, {2, 3}});
    routing.set_dropped(0, moe::Dropped::capacity);  // token 0, expert 0
    routing.set_dropped(3, moe::Dropped::capacity);  // token 2, all it has
    routing.group();
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    Trace trace;
    trace.record(0, routing, {.padding = padding});
    const moe::ExpertsByKey all = moe::experts_by(trace, 0, ByPosition{}),
                            first =
                                moe::experts_by(trace, 0, ByPosition{}, SpecializationSlots::first);
    moe::Matrix<double> counts(2, 4);
    counts << 0, 1, 0, 0, 0, 0, 1, 1;
    EXPECT_EQ(all.keys, (std::vector<std::int64_t>{0, 3}));
    EXPECT_EQ(all.counts, counts);
    counts(1, 3) = 0;
    EXPECT_EQ(first.counts, counts);
}

TEST(Specialization, IsZeroOfNothingAndOfOneExpert) {
    const Specialization none = specialization(traces::trace(3, {{}, {}}), 0, ByPosition{});
    EXPECT_EQ(none.num_keys, 0);
    EXPECT_EQ(none.entropy, 0);
    EXPECT_EQ(none.explained, 0);
    EXPECT_EQ(moe::experts_by(traces::trace(3, {}), 0, ByPosition{}).counts.rows(), 0);
    EXPECT_EQ(specialization(traces::trace(3, Lists(9, {2})), 0, ByPosition{}).explained, 0);
}

TEST(Specialization, RefusesWhatThereIsNot) {
    const Trace trace = traces::trace(2, {{0}, {1}});
    EXPECT_THROW(specialization(trace, 1, ByPosition{}), std::invalid_argument);
    EXPECT_EQ(message([&] { specialization(trace, 0, ByTokenId{}); }),
              "moe::ByTokenId: a batch has no token_ids; record it with a context that has "
              "Context::token_ids");
    EXPECT_EQ(message([&] { specialization(trace, 0, ByGroup{}); }),
              "moe::ByGroup: a batch has no token_groups; record it with a context that has "
              "Context::token_groups");
    EXPECT_EQ(message([&] { specialization(trace, 0, ByPosition{.bin = 0}); }),
              "moe::ByPosition: bin is 0, it must be >= 1");
    EXPECT_THROW(specialization(trace, 0, ByPosition{}, static_cast<SpecializationSlots>(2)),
                 std::invalid_argument);
}

}  // namespace
}  // namespace specialization_test
