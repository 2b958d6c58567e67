// SPDX-License-Identifier: MIT
#include <moe/stats/trace_record.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace trace_record_test {
namespace {

using moe::Index;
using moe::TraceBatch;
using moe::TraceRecord;
using moe::detail::fault_of;

/// Token 0 to experts 2 and 0, token 1 to none, token 2 to 1 and, but for its capacity, to 1.
TraceRecord sound() {
    return {.layer = 1,
            .num_experts = 3,
            .offsets = {0, 2, 2, 4},
            .experts = {2, 0, 1, 1},
            .weights = {0.5, 0.25, 1, 2},
            .dropped = {0, 0, 0, 1}};
}

std::string spoilt(auto&& spoil) {
    TraceRecord record = sound();
    spoil(record);
    return fault_of(record, 3);
}

TEST(TraceRecord, IsARoutingWithoutItsExpertMajorHalf) {
    const TraceRecord record = sound();
    EXPECT_EQ(record.num_tokens(), 3);
    EXPECT_EQ(record.num_assignments(), 4);
    const moe::Routing routing = record.routing();
    EXPECT_EQ(routing.of(0)[0].expert, 2);
    EXPECT_EQ(routing.of(0)[1].slot, 1);
    EXPECT_EQ(routing.of(1).size(), 0u);
    EXPECT_EQ(routing.of(2)[1].dropped, moe::Dropped::capacity);
    EXPECT_EQ(routing.tokens_of(1).size(), 1u);
    EXPECT_EQ(TraceRecord().num_tokens(), 0);
    EXPECT_EQ(TraceRecord().routing().num_assignments(), 0);
}

TEST(TraceRecord, EqualsWhatHasTheSameBits) {
    const auto changed = [](auto&& change) {
        TraceRecord record = sound();
        change(record);
        return !(record == sound());
    };
    EXPECT_FALSE(changed([](TraceRecord&) {}));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.batch = 1; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.layer = 0; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.num_experts = 4; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.offsets[1] = 1; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.experts[1] = 1; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.weights[1] = 1; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.weights.pop_back(); }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.input_weights = {1, 1, 1, 1}; }));
    EXPECT_TRUE(changed([](TraceRecord& r) { r.dropped.clear(); }));
}

TEST(TraceRecord, SaysWhatContradictsItself) {
    EXPECT_EQ(fault_of(sound(), 3), "");
    EXPECT_EQ(fault_of(sound(), 4),
              "has offsets that do not ascend from 0 to its 4 assignments in 4 steps, one per "
              "token");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.layer = -1; }),
              "is of layer -1, it must lie in [0, 999999]");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.experts[3] = 3; }), "names expert 3, there are 3");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.experts[3] = -1; }), "names expert -1, there are 3");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.dropped[0] = 4; }),
              "has an unknown reason 4 for a dropped assignment");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.dropped[3] = 0; }), "sends token 2 to expert 1 twice");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.dropped.clear(); }), "sends token 2 to expert 1 twice");
    EXPECT_EQ(spoilt([](TraceRecord& r) { r.weights.pop_back(); }),
              "has 4 experts, 3 weights, 0 input_weights and 4 entries of dropped");
    const Index huge = Index{1} << 31;
    EXPECT_NE(spoilt([](TraceRecord& r) { r.layer = 1'000'000; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.num_experts = -1; }), "");
    EXPECT_NE(spoilt([&](TraceRecord& r) { r.num_experts = huge; }), "");
    EXPECT_EQ(spoilt([&](TraceRecord& r) { r.num_experts = huge - 1; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.offsets = {0, 2, 1, 4}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.offsets = {1, 2, 2, 4}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.offsets = {0, 2, 2, 3}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.offsets = {0, 5, 5, 4}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.offsets = {0, -1, 2, 4}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.offsets = {}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.input_weights = {1}; }), "");
    EXPECT_NE(spoilt([](TraceRecord& r) { r.dropped = {1}; }), "");
}

TEST(TraceBatch, SaysWhatContradictsItself) {
    const TraceBatch sound{.num_tokens = 2,
                           .token_ids = {-1, std::numeric_limits<std::int64_t>::max()},
                           .token_groups = {0, 1},
                           .padding = {0, 1},
                           .sequence_offsets = {0, 0, 2}};
    const auto spoilt = [&](auto&& spoil) {
        TraceBatch batch = sound;
        spoil(batch);
        EXPECT_FALSE(batch == sound);
        return fault_of(batch);
    };
    EXPECT_EQ(fault_of(sound), "");
    EXPECT_EQ(fault_of(TraceBatch{}), "");
    EXPECT_EQ(fault_of(TraceBatch{.num_tokens = 5}), "");
    EXPECT_EQ(spoilt([](TraceBatch& b) { b.num_tokens = -1; }),
              "is of -1 tokens, it may be of 0 to 2147483647");
    EXPECT_EQ(spoilt([](TraceBatch& b) { b.token_ids = {1}; }), "has 1 token_ids, it has 2 tokens");
    EXPECT_EQ(spoilt([](TraceBatch& b) { b.token_groups = {1}; }),
              "has 1 token_groups, it has 2 tokens");
    EXPECT_EQ(spoilt([](TraceBatch& b) {
                  b.padding = {1, 0, 0};
              }),
              "has 3 entries of padding, it has 2 tokens");
    for (const std::vector<Index>& offsets :
         {std::vector<Index>{0}, {1, 2}, {0, 1}, {0, 3}, {0, 2, 1, 2}, {0, -1, 2}})
        EXPECT_EQ(spoilt([&](TraceBatch& b) { b.sequence_offsets = offsets; }),
                  "has sequence_offsets that do not ascend from 0 to its 2 tokens");
    EXPECT_EQ(spoilt([](TraceBatch& b) { b.padding = {}, b.token_ids = {}; }), "");
}

}  // namespace
}  // namespace trace_record_test
