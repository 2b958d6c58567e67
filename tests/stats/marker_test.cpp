// SPDX-License-Identifier: MIT
#include <moe/stats/marker.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "stats/example_trace.hpp"
#include "support/message.hpp"

namespace marker_test {
namespace {

using example_trace::random_trace;
using example_trace::routing;
using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::Trace;
using moe::detail::normalized_information;
using Ids = std::vector<std::int64_t>;

Matrix<double> scores(const Trace& trace, const Ids& markers) {
    return moe::marker_scores(trace, std::span<const std::int64_t>(markers));
}

TEST(NormalizedInformation, IsWorkedOutByHand) {
    // p(a) = 1/2, p(b) = 1/2, p(a, b) = 3/8: log(3/2) / log(8/3)
    EXPECT_NEAR(normalized_information(4, 4, 3, 8), std::log(1.5) / std::log(8.0 / 3), 1e-15);
    // p(a, b) = 1/8 is half of what chance would give: -log 2 / log 8
    EXPECT_NEAR(normalized_information(4, 4, 1, 8), -1.0 / 3, 1e-15);
}

TEST(NormalizedInformation, IsExactAtItsEndsAndAtNought) {
    for (const double all : {2.0, 3.0, 7.0, 49.0, 1e6 + 3})
        for (const double some : {1.0, 2.0, 3.0, 5.0, 1e6 + 2}) {
            if (some >= all) continue;
            EXPECT_EQ(normalized_information(some, some, some, all), 1);
            EXPECT_EQ(normalized_information(all, some, some, all), 0);
            EXPECT_EQ(normalized_information(some, all, some, all), 0);
            EXPECT_EQ(normalized_information(some, 1, 0, all), -1);
            EXPECT_EQ(normalized_information(0, some, 0, all), -1);
        }
    EXPECT_EQ(normalized_information(3, 3, 3, 3), 1);
    EXPECT_EQ(normalized_information(6, 4, 2, 12), 0);  // independent: 1/2 * 1/3 = 1/6
}

TEST(MarkerScores, OfASmallTraceAreWorkedOutByHand) {
    // token   7        7        8        9    7, padding
    // experts 0 and 3  3 and 0  1 and 3  3    2
    // Of the 4 tokens that count, half are 7. Expert 0 takes those and no other, 1 and 2 (which
    // was dropped) none of them, 3 takes every token. Of 8, which is one token, expert 1 takes it
    // and no other, 0 and 2 do not.
    const Ids ids{7, 7, 8, 9, 7};
    const std::vector<std::uint8_t> padding{0, 0, 0, 0, 1};
    Trace trace;
    trace.record(
        0,
        routing(4, {{{0}, {3}, {2, 1, Dropped::capacity}}, {{3}, {0}}, {{1}, {3}}, {{3}}, {{2}}}),
        {.token_ids = ids, .padding = padding});
    const Matrix<double> of_7 = scores(trace, {7}), of_8 = scores(trace, {8}),
                         of_both = scores(trace, {8, 7});
    const double expected_7[] = {1, -1, -1, 0}, expected_8[] = {-1, 1, -1, 0};
    for (Index e = 0; e < 4; ++e) {
        EXPECT_EQ(of_7(0, e), expected_7[e]) << e;
        EXPECT_EQ(of_8(0, e), expected_8[e]) << e;
        EXPECT_EQ(of_both(0, e), (expected_7[e] + expected_8[e]) / 2) << e;
    }
}

TEST(MarkerScores, LeaveOutMarkersThatDoNotOccur) {
    const Ids ids{1, 2};
    Trace trace;
    trace.record(0, routing(2, {{{0}}, {{1}}}), {.token_ids = ids});
    EXPECT_EQ(scores(trace, {1, 5})(0, 0), 1);
    EXPECT_EQ(scores(trace, {1, 5})(0, 1), -1);
    EXPECT_EQ(scores(trace, {5})(0, 0), 0);
    EXPECT_EQ(scores(trace, {-1})(0, 1), 0);
}

TEST(MarkerScores, AreDefinedWhereEverythingIsTheMarker) {
    const Ids ids{1, 1};
    Trace trace;
    trace.record(0, routing(3, {{{0}, {1}}, {{0}}}), {.token_ids = ids});
    const Matrix<double> of_1 = scores(trace, {1});
    EXPECT_EQ(of_1(0, 0), 1);   // all tokens, and all of its tokens
    EXPECT_EQ(of_1(0, 1), 0);   // half of them: the marker says nothing
    EXPECT_EQ(of_1(0, 2), -1);  // never
}

TEST(MarkerScores, AreNaNWhereThereIsNoExpertAndDefinedWithoutTokens) {
    EXPECT_EQ(scores(Trace(), {1}).size(), 0);
    Trace trace;
    trace.record(1, routing(2, {}));
    trace.record(2, routing(3, {}));
    const Matrix<double> none = scores(trace, {1});
    EXPECT_TRUE(std::isnan(none(0, 0)));
    EXPECT_EQ(none(1, 1), 0);
    EXPECT_TRUE(std::isnan(none(1, 2)));
    EXPECT_EQ(none(2, 2), 0);
}

/// From probabilities, as the formula is printed.
TEST(MarkerScores, EqualBruteForce) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
        const Trace trace = random_trace(seed);
        const Ids markers{2, 0, 3};
        const Matrix<double> actual = scores(trace, markers);
        for (const Index layer : {0, 2})
            for (Index e = 0; e < trace.num_experts(layer); ++e) {
                double sum = 0, occurring = 0;
                for (const std::int64_t marker : markers) {
                    double all = 0, of_e = 0, of_m = 0, of_both = 0;
                    for (const moe::TraceRecord& record : trace.records()) {
                        if (record.layer != layer) continue;
                        const moe::TraceBatch& batch = trace.batch_of(record);
                        const moe::Routing plan = record.routing();
                        for (Index t = 0; t < batch.num_tokens; ++t) {
                            if (batch.is_padding(t)) continue;
                            bool is_e = false;
                            for (const moe::Assignment& a : plan.of(t))
                                is_e |= a.expert == e && a.dropped == Dropped::no;
                            const bool is_m =
                                batch.token_ids[static_cast<std::size_t>(t)] == marker;
                            all += 1, of_e += is_e, of_m += is_m, of_both += is_e && is_m;
                        }
                    }
                    if (of_m == 0) continue;
                    occurring += 1;
                    const double p = of_both / all;
                    sum += of_both == 0 ? -1
                                        : std::log(p / (of_e / all * (of_m / all))) / -std::log(p);
                }
                ASSERT_GT(occurring, 0);
                EXPECT_NEAR(actual(layer, e), sum / occurring, 1e-14);
            }
    }
}

TEST(MarkerScores, RefuseWhatTheyCannotLookUp) {
    Trace trace;
    const Ids ids{1};
    trace.record(0, routing(2, {{{0}}}), {.token_ids = ids});
    trace.record(0, routing(2, {{{0}}}));
    EXPECT_EQ(support::message([&] { scores(trace, {}); }),
              "moe::marker_scores: markers is empty; give the ids of the tokens to look at");
    EXPECT_EQ(support::message([&] {
                  scores(trace, {3, 1, 3});
              }),
              "moe::marker_scores: markers has 3 twice; give each id once");
    EXPECT_EQ(support::message([&] { scores(trace, {1}); }),
              "moe::marker_scores: batch 1 of the trace has no token_ids, which markers are looked "
              "up in; set Context::token_ids in the calls that are recorded");
}

}  // namespace
}  // namespace marker_test
