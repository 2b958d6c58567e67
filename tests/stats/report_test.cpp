// SPDX-License-Identifier: MIT
#include <moe/stats/report.hpp>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace report_test {
namespace {

using moe::Dropped;
using moe::Index;
using moe::Routing;

/// Loads 4 2 0 1 of 8 assignments, one of expert 1 dropped.
Routing plan() {
    Routing routing;
    routing.reset(6, 4);
    for (const Index t : {0, 1, 2, 3}) routing.add(t, 0);
    for (const Index t : {0, 1, 4}) routing.add(t, 1);
    routing.add(2, 3);
    routing.group();
    for (Index a = 0; a < routing.num_assignments(); ++a)
        if (routing.assignments()[static_cast<std::size_t>(a)].token == 4) {
            routing.set_dropped(a, Dropped::capacity);
            break;
        }
    routing.group();
    return routing;
}

std::vector<std::string> lines(const std::string& text) {
    std::istringstream in(text);
    std::vector<std::string> all;
    for (std::string line; std::getline(in, line);) all.push_back(line);
    return all;
}

TEST(Report, ShowsOneLinePerExpert) {
    // 40 columns leave 15 for the bar; 4 tokens fill 14, the mean of 7/4 falls into column 6
    EXPECT_EQ(
        moe::report(plan(), {.width = 40, .ascii = true}),
        "6 tokens, 4 experts, 1.17 experts per token, 12.5 % dropped, 2 tokens routed nowhere\n"
        "busiest/mean 2.29, variation 0.85, entropy 0.689, busiest expert 0, 1 dead\n"
        "expert  tokens    share\n"
        "     0       4   57.1 %  ##############\n"
        "     1       2   28.6 %  #######----\n"
        "     2       0    0.0 %        |\n"
        "     3       1   14.3 %  ####  |\n");
}

TEST(Report, DrawsBlocksInEighths) {
    EXPECT_EQ(moe::detail::bar(2.26, false), "██▎");
    EXPECT_EQ(moe::detail::bar(3, false), "███");
    EXPECT_EQ(moe::detail::bar(0.01, false), "");
    EXPECT_EQ(moe::detail::bar(2.6, true), "###");
    EXPECT_EQ(moe::detail::bar(-1, true), "");
    const auto all = lines(moe::report(plan(), {.width = 40}));
    EXPECT_EQ(all[3], "     0       4   57.1 %  ██████████████");
    EXPECT_EQ(all[4], "     1       2   28.6 %  ███████░░░░");
}

TEST(Report, KeepsToItsWidth) {
    Routing routing;
    routing.reset(3000, 12);
    for (Index t = 0; t < 3000; ++t) routing.add(t, (t * t) % 12);
    routing.group();
    const std::vector<std::string> names{
        "a", "a rather long name", "日本語", "", "e", "f", "g", "h", "i", "j", "k", "l"};
    for (const Index width : {60, 80, 200})
        for (const bool ascii : {false, true}) {
            const auto all =
                lines(moe::report(routing, {.width = width, .ascii = ascii, .names = names}));
            ASSERT_EQ(all.size(), 3u + 12u);
            Index longest = 0;
            for (std::size_t i = 3; i < all.size(); ++i)
                longest = std::max(longest, moe::detail::columns_of(all[i]));
            EXPECT_LE(longest, width);
            EXPECT_GE(longest, width - 3);
            EXPECT_NE(all[4].find("a rather long name"), std::string::npos);
        }
}

TEST(Report, OfNothingIsStillAReport) {
    Routing routing;
    routing.reset(0, 2);
    routing.group();
    EXPECT_EQ(moe::report(routing),
              "0 tokens, 2 experts, 0.00 experts per token\n"
              "expert  tokens    share\n"
              "     0       0    0.0 %\n"
              "     1       0    0.0 %\n");
    routing.reset(0, 0);
    routing.group();
    EXPECT_EQ(lines(moe::report(routing)).size(), 2u);
}

TEST(Report, StreamsLoadsAndRoutings) {
    std::ostringstream out;
    out << plan();
    EXPECT_EQ(
        out.str(),
        "6 tokens, 4 experts, 1.17 experts per token, 12.5 % dropped, 2 tokens routed nowhere");
    out.str("");
    out << moe::load_stats(plan());
    EXPECT_EQ(out.str(), moe::report(plan()));
}

TEST(Report, SaysWhatTheRouterThought) {
    EXPECT_EQ(moe::report(moe::RouterStats{.entropy = 1.25, .margin = 0.3333, .weight_sum = 1}),
              "router entropy 1.250 nats, margin 0.333, weight sum 1.000\n");
    EXPECT_EQ(
        moe::report(moe::RouterStats{.nan_fraction = 0.25, .null_fraction = 0.5}),
        "router entropy 0.000 nats, margin 0, weight sum 0.000, 50.0 % null, NaN in 25.0 % of "
        "the tokens\n");
}

TEST(Report, OfAWorkspaceDoesNotCountPadding) {
    moe::Workspace<float> ws;
    auto& routed = ws.state<moe::Routed<float>>();
    routed.routing = plan();  // tokens 4 and 5 go nowhere
    routed.num_logits = 4;
    routed.logits.assign(24, 0.0F);
    const std::vector<std::uint8_t> padding{0, 0, 0, 0, 0, 1};
    routed.context.padding = padding;
    EXPECT_EQ(
        lines(moe::report(ws))[0],
        "5 tokens, 4 experts, 1.40 experts per token, 12.5 % dropped, 1 token routed nowhere");
}

TEST(Report, TakesLoadsMadeByHand) {
    moe::LoadStats load;
    load.tokens_per_expert = {4, 2};
    EXPECT_EQ(lines(moe::report(load)).size(), 4u);  // no drops
    load.dropped_per_expert = {1, 0};
    EXPECT_EQ(lines(moe::report(load)).size(), 4u);
    for (const std::size_t size : {1u, 3u}) {
        load.dropped_per_expert.assign(size, 0);
        EXPECT_EQ(support::message([&] { moe::report(load); }),
                  "moe::report: dropped_per_expert has " + std::to_string(size) +
                      " entries, tokens_per_expert has 2; it must have as many, "
                      "or none");
    }
}

TEST(Report, RefusesWrongNamesAndWidths) {
    EXPECT_THROW(moe::report(plan(), {.names = {"a"}}), std::invalid_argument);
    EXPECT_THROW(moe::report(plan(), {.width = 39}), std::invalid_argument);
}

}  // namespace
}  // namespace report_test
