// SPDX-License-Identifier: MIT
#include <moe/stats/trace_diff.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "stats/example_trace.hpp"
#include "support/message.hpp"

namespace trace_diff_test {
namespace {

using example_trace::routing;
using example_trace::Slot;
using moe::Index;
using moe::LayerDiff;
using moe::Trace;
using moe::TraceDiff;
using Slots = std::vector<std::vector<Slot>>;

const double nan = std::numeric_limits<double>::quiet_NaN();
const double infinity = std::numeric_limits<double>::infinity();

Trace trace_of(const Slots& tokens, Index experts = 4, const moe::Context& context = {}) {
    Trace trace;
    trace.record(0, routing(experts, tokens), context);
    return trace;
}

TEST(TraceDiff, OfFourTokensIsWorkedOutByHand) {
    // token  experts        others         overlap  largest  same?  weights differ by
    // 0      0 3/4, 1 1/4   1 1/2, 0 1/2   1        0, 1     no     1/4
    // 1      1 1/2, 2 1/2   1 7/8, 3 1/8   1/3      1, 1     yes    3/8
    // 2      3              2              0        3, 2     no
    // 3      none           none           1                 yes
    const Trace a = trace_of({{{0, 0.75}, {1, 0.25}}, {{1, 0.5}, {2, 0.5}}, {{3}}, {}});
    const Trace b = trace_of({{{1, 0.5}, {0, 0.5}}, {{1, 0.875}, {3, 0.125}}, {{2}}, {}});
    const TraceDiff diff = moe::trace_diff(a, b);
    ASSERT_EQ(diff.layers.size(), 1u);
    const LayerDiff& layer = diff.layers[0];
    EXPECT_EQ(layer.layer, 0);
    EXPECT_EQ(layer.num_tokens, 4);
    EXPECT_EQ(layer.same_experts, 0.5);
    EXPECT_NEAR(layer.overlap, 7.0 / 12, 1e-15);
    EXPECT_EQ(layer.same_first, 0.5);
    EXPECT_EQ(layer.weight_difference, 0.375);
    EXPECT_EQ(layer.first_batch, 0);
    EXPECT_EQ(layer.first_token, 1);
    EXPECT_EQ(diff.all.layer, -1);
    EXPECT_EQ(diff.all.num_tokens, 4);
    EXPECT_EQ(diff.all.overlap, layer.overlap);
}

void expect_no_difference(const TraceDiff& diff) {
    EXPECT_EQ(diff.all.same_experts, 1);
    EXPECT_EQ(diff.all.overlap, 1);
    EXPECT_EQ(diff.all.same_first, 1);
    EXPECT_EQ(diff.all.weight_difference, 0);
    EXPECT_EQ(diff.all.first_batch, -1);
    EXPECT_EQ(diff.all.first_token, -1);
}

TEST(TraceDiff, OfATraceAndItselfIsNothing) {
    for (std::uint64_t seed = 1; seed < 4; ++seed) {
        const Trace trace = example_trace::random_trace(seed);
        expect_no_difference(moe::trace_diff(trace, trace));
        EXPECT_EQ(moe::trace_diff(trace, trace).layers.size(), 2u);
    }
    expect_no_difference(moe::trace_diff(Trace(), Trace()));
    expect_no_difference(moe::trace_diff(trace_of({}), trace_of({})));
    const Trace odd = trace_of({{{0, nan}, {1, infinity}}});
    expect_no_difference(moe::trace_diff(odd, odd));
}

TEST(TraceDiff, DoesNotSeeTheOrderOfSlots) {
    const TraceDiff diff =
        moe::trace_diff(trace_of({{{0, 0.25}, {1, 0.75}}}), trace_of({{{1, 0.75}, {0, 0.25}}}));
    expect_no_difference(diff);
}

TEST(TraceDiff, CountsWhatReachesItsExpertAndNoPadding) {
    const auto dropped = moe::Dropped::capacity;
    const std::vector<std::uint8_t> padding{0, 1};
    const Trace a = trace_of({{{0}, {1}}, {{2}}}, 4, {.padding = padding});
    const Trace b = trace_of({{{0}, {1, 1, dropped}}, {{3}}}, 4, {.padding = padding});
    const TraceDiff diff = moe::trace_diff(a, b);
    EXPECT_EQ(diff.all.num_tokens, 1);
    EXPECT_EQ(diff.all.overlap, 0.5);
    EXPECT_EQ(diff.all.first_token, 0);
}

TEST(TraceDiff, IsDefinedForWeightsThatAreNaNOrInfinite) {
    const auto difference = [](double x, double y) {
        return moe::trace_diff(trace_of({{{0, x}}, {{0, 1}}}), trace_of({{{0, y}}, {{0, 2}}}))
            .all.weight_difference;
    };
    EXPECT_EQ(difference(nan, nan), 1);
    EXPECT_TRUE(std::isnan(difference(nan, 1)));
    EXPECT_TRUE(std::isnan(difference(1, nan)));
    EXPECT_EQ(difference(infinity, infinity), 1);
    EXPECT_EQ(difference(infinity, -infinity), infinity);
    EXPECT_EQ(difference(infinity, 3), infinity);
    // NaN is below every number when the largest weight is looked for, wherever it stands.
    const Trace number = trace_of({{{0, -3}, {1, -2}}});
    for (const Slots& slots : {Slots{{{0, nan}, {1, -2}}}, Slots{{{1, -2}, {0, nan}}}})
        EXPECT_EQ(moe::trace_diff(trace_of(slots), number).all.same_first, 1);
}

TEST(TraceDiff, SeesInputWeights) {
    const auto trace = [](double input_weight) {
        moe::Routing plan;
        plan.reset(1, 2);
        plan.add(0, 0, 1, input_weight);
        plan.add(0, 1, 1, 0.5);
        plan.group();
        Trace made;
        made.record(0, plan);
        return made;
    };
    const TraceDiff diff = moe::trace_diff(trace(1), trace(0.25));
    EXPECT_EQ(diff.all.weight_difference, 0.75);
    EXPECT_EQ(diff.all.same_first, 0);  // 1 and 1/2, 1/4 and 1/2
    EXPECT_EQ(diff.all.same_experts, 1);
}

/// Sets and maps, a token at a time.
TEST(TraceDiff, EqualsBruteForce) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
        const Trace a = example_trace::random_trace(seed);
        const Trace b = example_trace::random_trace(seed + 100);
        const TraceDiff diff = moe::trace_diff(a, b);
        ASSERT_EQ(diff.layers.size(), 2u);
        double all_same = 0, all_tokens = 0, all_largest = 0;
        for (const LayerDiff& layer : diff.layers) {
            double tokens = 0, same = 0, overlap = 0, largest = 0, same_first = 0;
            Index first_batch = -1, first_token = -1;
            for (std::size_t r = 0; r < a.records().size(); ++r) {
                const moe::TraceRecord& record = a.records()[r];
                if (record.layer != layer.layer) continue;
                const moe::Routing of_a = record.routing(), of_b = b.records()[r].routing();
                for (Index t = 0; t < record.num_tokens(); ++t) {
                    if (a.batch_of(record).is_padding(t)) continue;
                    std::map<Index, double> x, y;
                    for (const moe::Assignment& s : of_a.of(t))
                        if (s.dropped == moe::Dropped::no) x[s.expert] = s.weight;
                    for (const moe::Assignment& s : of_b.of(t))
                        if (s.dropped == moe::Dropped::no) y[s.expert] = s.weight;
                    double both = 0, either = 0;
                    Index top_x = -1, top_y = -1;
                    for (Index e = 0; e < 5; ++e) {
                        both += x.count(e) && y.count(e);
                        either += x.count(e) || y.count(e);
                        if (x.count(e) && y.count(e))
                            largest = std::max(largest, std::abs(x[e] - y[e]));
                        if (x.count(e) && (top_x < 0 || x[e] > x[top_x])) top_x = e;
                        if (y.count(e) && (top_y < 0 || y[e] > y[top_y])) top_y = e;
                    }
                    tokens += 1;
                    same += both == either;
                    same_first += top_x == top_y;
                    overlap += either == 0 ? 1 : both / either;
                    if (both != either && first_batch < 0)
                        first_batch = record.batch, first_token = t;
                }
            }
            EXPECT_EQ(layer.num_tokens, 17);
            EXPECT_DOUBLE_EQ(layer.same_experts, same / tokens);
            EXPECT_DOUBLE_EQ(layer.same_first, same_first / tokens);
            EXPECT_DOUBLE_EQ(layer.overlap, overlap / tokens);
            EXPECT_EQ(layer.weight_difference, largest);
            EXPECT_EQ(layer.first_batch, first_batch);
            EXPECT_EQ(layer.first_token, first_token);
            all_same += same, all_tokens += tokens, all_largest = std::max(all_largest, largest);
        }
        EXPECT_EQ(diff.all.num_tokens, 34);
        EXPECT_DOUBLE_EQ(diff.all.same_experts, all_same / all_tokens);
        EXPECT_EQ(diff.all.weight_difference, all_largest);
        EXPECT_EQ(diff.all.first_batch, diff.layers[0].first_batch);
    }
}

TEST(TraceDiff, IsSymmetricButForNothing) {
    const Trace a = example_trace::random_trace(1), b = example_trace::random_trace(2);
    EXPECT_EQ(moe::report(moe::trace_diff(a, b)), moe::report(moe::trace_diff(b, a)));
}

TEST(TraceDiff, MatchesLayersWhateverTheirOrder) {
    Trace a, b;
    a.record(0, routing(3, {{{0}}}));
    a.record(1, routing(2, {{{1}}}));
    b.record(1, routing(2, {{{1}}}));
    b.record(0, routing(3, {{{0}}}));
    expect_no_difference(moe::trace_diff(a, b));
}

TEST(TraceDiff, RefusesTracesOfOtherBatches) {
    const auto fault = [](const Trace& a, const Trace& b) {
        const std::string one = support::message([&] { moe::trace_diff(a, b); });
        EXPECT_NE(support::message([&] { moe::trace_diff(b, a); }), "");
        return one;
    };
    const Trace trace = trace_of({{{0}}, {{1}}});
    EXPECT_EQ(fault(trace, Trace()),
              "moe::trace_diff: the traces have 1 and 0 batches; record the same ones");
    EXPECT_EQ(fault(trace, trace_of({{{0}}})),
              "moe::trace_diff: batch 0 is of 2 tokens in one trace and 1 in the other; record the "
              "same batches");
    const std::vector<std::uint8_t> padding{0, 1};
    EXPECT_EQ(fault(trace, trace_of({{{0}}, {}}, 4, {.padding = padding})),
              "moe::trace_diff: token 1 of batch 0 is padding in one trace only; record the same "
              "batches");
    const std::vector<std::int64_t> ids{1, 2}, others{1, 3};
    EXPECT_EQ(
        fault(trace_of({{}, {}}, 4, {.token_ids = ids}),
              trace_of({{}, {}}, 4, {.token_ids = others})),
        "moe::trace_diff: batch 0 has other token_ids in each trace; record the same batches");
    expect_no_difference(moe::trace_diff(trace, trace_of({{{0}}, {{1}}}, 4, {.token_ids = ids})));
    EXPECT_EQ(fault(trace, trace_of({{{0}}, {{1}}}, 5)),
              "moe::trace_diff: layer 0 has 4 and 5 experts, there must be as many");
    Trace two = trace;
    two.record(1, routing(4, {{}, {}}));
    EXPECT_EQ(fault(trace, two),
              "moe::trace_diff: layer 1 is in 0 and 1 batches, not the same; record the same "
              "layers");
}

TEST(TraceDiff, IsReportedAsATable) {
    Trace a, b;
    a.record(0, routing(3, {{{0, 0.5}}, {{1}}}));
    a.record(10, routing(3, {{{0}}, {{1}, {2}}}));
    b.record(0, routing(3, {{{0, 0.75}}, {{1}}}));
    b.record(10, routing(3, {{{0}}, {{1}}}));
    EXPECT_EQ(moe::report(moe::trace_diff(a, b)),
              "layer  tokens  same experts  overlap  same first  weights differ  other experts "
              "from\n"
              "    0       2       100.0 %    1.000     100.0 %            0.25  -\n"
              "   10       2        50.0 %    0.750     100.0 %               0  batch 0, token 1\n"
              "  all       4        75.0 %    0.875     100.0 %            0.25  batch 0, token "
              "1\n");
}

}  // namespace
}  // namespace trace_diff_test
