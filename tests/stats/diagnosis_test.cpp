// SPDX-License-Identifier: MIT
#include <moe/stats/diagnosis.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "losses/example.hpp"
#include "stats/traces.hpp"
#include "support/message.hpp"

namespace diagnosis_test {
namespace {

using moe::diagnose;
using moe::Finding;
using moe::FindingKind;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Trace;
using support::message;
using traces::Lists;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

std::vector<FindingKind> kinds(const std::vector<Finding>& findings) {
    std::vector<FindingKind> list;
    for (const Finding& finding : findings) list.push_back(finding.kind);
    return list;
}
using Kinds = std::vector<FindingKind>;

/// One expert per token, in turn: `counts` tokens each.
Lists in_turn(const std::vector<Index>& counts) {
    std::vector<Index> left = counts;
    Lists lists;
    for (bool any = true; any;) {
        any = false;
        for (std::size_t e = 0; e < left.size(); ++e)
            if (left[e] > 0) {
                lists.push_back({static_cast<Index>(e)});
                --left[e];
                any = true;
            }
    }
    return lists;
}

/// The same with k experts per token: e, e + 1, ... in turn, so that loads are equal.
Lists balanced(Index tokens, Index experts, Index k) {
    Lists lists(static_cast<std::size_t>(tokens));
    for (Index t = 0; t < tokens; ++t)
        for (Index i = 0; i < k; ++i)
            lists[static_cast<std::size_t>(t)].push_back((t + i) % experts);
    return lists;
}

TEST(Diagnosis, OfEqualLoadsIsThatTheyAreBalanced) {
    const auto findings = diagnose(traces::routing(8, balanced(256, 8, 1)));
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::balanced});
    EXPECT_EQ(findings[0].text, "balanced: the busiest expert has 1.00 times the mean load");
    EXPECT_EQ(findings[0].remedy, "");
    EXPECT_EQ(findings[0].severity, 0);
    EXPECT_EQ(findings[0].layer, -1);
    EXPECT_EQ(findings[0].figure("max_over_mean"), 1);
}

TEST(Diagnosis, FindsACollapseAndDeadExperts) {
    // 1000 tokens, 941 to expert 3: 1 and 6 have none. Way: (0.941 - 1/8) / (7/8).
    const auto findings = diagnose(traces::routing(8, in_turn({12, 0, 12, 941, 12, 12, 0, 11})));
    ASSERT_EQ(kinds(findings), (Kinds{FindingKind::collapsed, FindingKind::dead_experts}));
    EXPECT_EQ(findings[0].text, "collapsed: expert 3 gets 94.1 % of the tokens (mean 12.5 %)");
    EXPECT_NEAR(findings[0].severity, (0.941 - 0.125) / 0.875, 1e-12);
    EXPECT_EQ(findings[0].figure("share"), 0.941);
    EXPECT_EQ(findings[0].figure("mean"), 0.125);
    EXPECT_EQ(findings[1].text, "two dead experts: 1, 6");
    EXPECT_EQ(findings[1].severity, 0.25);
    EXPECT_EQ(findings[1].figure("experts"), 2);
    EXPECT_NE(findings[0].remedy.find("load_balance_loss"), std::string::npos);
    EXPECT_NE(findings[1].remedy.find("SignUpdate"), std::string::npos);
}

TEST(Diagnosis, CountsDeadExpertsInWordsBelowTenAndListsEight) {
    std::vector<Index> counts(20, 100);
    counts[7] = 0;
    EXPECT_EQ(diagnose(traces::routing(20, in_turn(counts)))[0].text, "one dead expert: 7");
    for (std::size_t e = 0; e < 9; ++e) counts[e] = 0;
    EXPECT_EQ(diagnose(traces::routing(20, in_turn(counts)))[0].text,
              "nine dead experts: 0, 1, 2, 3, 4, 5, 6, 7, ...");
    counts[9] = 0;
    EXPECT_EQ(diagnose(traces::routing(20, in_turn(counts)))[0].text,
              "10 dead experts: 0, 1, 2, 3, 4, 5, 6, 7, ...");
}

TEST(Diagnosis, FindsACollapseOntoAsManyExpertsAsATokenHas) {
    // 2 of 8: 900 tokens have 1 and 4, 100 have all others in turn. 1800 of 2000; mean 2 / 8.
    Lists lists(900, {4, 1});
    for (Index t = 0; t < 100; ++t) lists.push_back({t % 2 == 0 ? 0 : 5, t % 2 == 0 ? 2 : 6});
    for (std::size_t t = 900; t < 1000; t += 5) lists[t] = {3, 7};
    const auto findings = diagnose(traces::routing(8, lists));
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::collapsed});
    EXPECT_EQ(findings[0].text,
              "collapsed: two of eight experts (1, 4) have 90.0 % of the load (mean 25.0 %)");
    // Half of the way from 1/4 to 1 is 0.625: the same with 550 and 450 tokens is not it.
    Lists half(550, {4, 1});
    const Lists others{{0, 2}, {3, 5}, {6, 7}};
    for (std::size_t t = 0; t < 450; ++t) half.push_back(others[t % 3]);
    for (const Finding& finding : diagnose(traces::routing(8, half)))
        EXPECT_NE(finding.kind, FindingKind::collapsed) << finding.text;
}

TEST(Diagnosis, FindsTheBusiestExpertWhereLoadsAreUnbalanced) {
    // 8 experts, 800 tokens: 240 of a mean of 100
    std::vector<Index> counts(8, 80);
    counts[5] = 240;
    const auto findings = diagnose(traces::routing(8, in_turn(counts)));
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::unbalanced});
    EXPECT_EQ(findings[0].text, "unbalanced: expert 5 gets 2.4 times the mean load");
    EXPECT_NEAR(findings[0].severity, (1 - 1 / 2.4) / 2, 1e-12);
    EXPECT_EQ(findings[0].figure("expert"), 5);
    counts[5] = 140;  // of a mean of 87.5: 1.6
    EXPECT_EQ(kinds(diagnose(traces::routing(8, in_turn(counts)))), Kinds{FindingKind::balanced});
}

/// 400 tokens in sequences of 100, one expert of four each; of 100 tokens the first `kept` reach
/// it.
Routing with_drops(Index kept, moe::Dropped reason = moe::Dropped::capacity) {
    Routing routing = traces::routing(4, balanced(400, 4, 1));
    for (Index t = 0; t < 400; ++t)
        if (t % 100 >= kept) routing.set_dropped(t, reason);
    routing.group();
    return routing;
}

TEST(Diagnosis, SaysWhatIsDroppedAndWhere) {
    const std::vector<Index> offsets{0, 100, 200, 300, 400};
    const auto findings = diagnose(with_drops(69), {.sequence_offsets = offsets});
    ASSERT_EQ(kinds(findings), (Kinds{FindingKind::dropped, FindingKind::unrouted}));
    EXPECT_EQ(findings[0].text, "drops 31.0 % of assignments, most of them late in the sequence");
    EXPECT_EQ(findings[0].figure("share"), 0.31);
    EXPECT_EQ(findings[0].figure("late"), 1);
    EXPECT_NE(findings[0].remedy.find("probability"), std::string::npos);
    EXPECT_EQ(findings[1].text, "31.0 % of the tokens reach no expert");
    EXPECT_NE(findings[1].remedy.find("next_choice"), std::string::npos);
    // Without sequences the batch is one, and drops are all over it.
    EXPECT_EQ(diagnose(with_drops(69))[0].text, "drops 31.0 % of assignments");

    Routing at_end = traces::routing(4, balanced(400, 4, 1));
    for (Index t = 380; t < 400; ++t) at_end.set_dropped(t, moe::Dropped::pass_through);
    at_end.group();
    const std::vector<Index> tokens = [] {
        std::vector<Index> each(401);
        for (Index t = 0; t <= 400; ++t) each[static_cast<std::size_t>(t)] = t;
        return each;
    }();
    EXPECT_EQ(diagnose(at_end, {.sequence_offsets = tokens})[0].text,
              "drops 5.0 % of assignments, most of them late in the batch");
    // One in a hundred is not worth a finding, and what is pruned was meant to be.
    EXPECT_EQ(kinds(diagnose(with_drops(99))), Kinds{FindingKind::balanced});
    EXPECT_EQ(kinds(diagnose(with_drops(69, moe::Dropped::pruned))), Kinds{FindingKind::unrouted});
}

TEST(Diagnosis, SeesACollapseThatACapacityHides) {
    // All choose expert 0, which has room for a quarter.
    Routing routing = traces::routing(4, Lists(400, {0}));
    for (Index t = 100; t < 400; ++t) routing.set_dropped(t, moe::Dropped::capacity);
    routing.group();
    const auto findings = diagnose(routing);
    EXPECT_EQ(findings[0].text,
              "collapsed: expert 0 is chosen by 100.0 % of the tokens (mean 25.0 %)");
    EXPECT_EQ(findings[0].severity, 1);
}

/// Weights of the slots of every token.
Routing weighted(const std::vector<double>& weights) {
    const auto k = static_cast<Index>(weights.size());
    Routing routing = traces::routing(8, balanced(400, 8, k));
    for (Index a = 0; a < routing.num_assignments(); ++a)
        routing.set_weight(a, weights[static_cast<std::size_t>(a % k)]);
    return routing;
}

TEST(Diagnosis, SaysWhenKIsLargerThanItNeedsToBe) {
    auto findings = diagnose(weighted({0.6, 0.3, 0.087, 0.013}));
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::wide_selection});
    EXPECT_EQ(findings[0].text,
              "k is larger than it needs to be: the last of 4 slots carries 1.3 % of the weight");
    EXPECT_NE(findings[0].remedy.find("TopK{.k = 3}"), std::string::npos);
    EXPECT_NEAR(findings[0].figure("share"), 0.013, 1e-12);
    findings = diagnose(weighted({1.9, 0.06, -0.03, 0.01}));  // a tenth of a mean slot is 0.05
    EXPECT_EQ(findings[0].text,
              "k is larger than it needs to be: the last two of 4 slots carry 2.0 % of the weight");
    EXPECT_EQ(findings[0].figure("slots"), 2);
    EXPECT_EQ(kinds(diagnose(weighted({0.5, 0.3, 0.2}))), Kinds{FindingKind::balanced});
    EXPECT_EQ(kinds(diagnose(weighted({1}))), Kinds{FindingKind::balanced});
    EXPECT_EQ(kinds(diagnose(weighted({0, 0}))), Kinds{FindingKind::balanced});
    // One token with fewer: slots are not to be compared, a gate decides how many there are.
    Routing ragged = weighted({0.99, 0.01});
    ragged.erase_if([](const moe::Assignment& a) { return a.token == 9 && a.slot == 1; });
    ragged.group();
    EXPECT_EQ(kinds(diagnose(ragged)), Kinds{FindingKind::balanced});
}

/// A workspace with a batch of `tokens` tokens, 8 experts in turn, and these logits in every row.
std::vector<Finding> of_logits(const std::vector<double>& row, Index tokens = 320,
                               Index rows_with_nan = 0) {
    Matrix<double> logits(tokens, 8);
    for (Index t = 0; t < tokens; ++t)
        for (Index e = 0; e < 8; ++e) logits(t, e) = row[static_cast<std::size_t>((t + e) % 8)];
    for (Index t = 0; t < rows_with_nan; ++t) logits(t, 2) = nan;
    moe::Workspace<double> ws;
    example::fill(ws, logits, traces::routing(8, balanced(tokens, 8, 1)));
    return diagnose(ws);
}

TEST(Diagnosis, SaysWhetherTheRouterDecides) {
    // p = (2, 1, ..., 1) / 9: entropy log 9 - 2/9 log 2 = 2.043 of 2.079
    const double two = std::log(2.0);
    auto findings = of_logits({two, 0, 0, 0, 0, 0, 0, 0});
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::undecided});
    EXPECT_EQ(findings[0].text, "router undecided: entropy 2.04 of 2.08 nats");
    EXPECT_NEAR(findings[0].figure("entropy"), std::log(9.0) - 2.0 / 9 * two, 1e-12);
    EXPECT_NE(findings[0].remedy.find("entropy_loss"), std::string::npos);
    EXPECT_EQ(kinds(of_logits({2, 0, 0, 0, 0, 0, 0, 0})), Kinds{FindingKind::balanced});

    findings = of_logits({12, 0, 0, 0, 0, 0, 0, 0});
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::saturated});
    EXPECT_NE(findings[0].remedy.find("z_loss"), std::string::npos);
    const double out = -std::numeric_limits<double>::infinity();
    EXPECT_EQ(kinds(of_logits({0, out, out, out, out, out, out, out})),
              Kinds{FindingKind::balanced});  // a rule
}

TEST(Diagnosis, ReportsNaNHoweverFewTokensThereAre) {
    auto findings = of_logits({2, 0, 0, 0, 0, 0, 0, 0}, 5, 3);
    ASSERT_EQ(kinds(findings), (Kinds{FindingKind::not_a_number, FindingKind::too_few_tokens}));
    EXPECT_EQ(findings[0].text, "NaN in 3 tokens of 5");
    EXPECT_EQ(findings[0].severity, 1);
    EXPECT_EQ(findings[1].text, "too few tokens to tell: 5 of at least 256");

    Routing routing = traces::routing(8, balanced(320, 8, 2));
    routing.set_weight(7, nan);
    routing.set_weights(8, 1, nan);
    routing.set_weights(9, nan, 1);
    EXPECT_EQ(diagnose(routing)[0].text, "NaN in 2 tokens of 320");  // tokens 3 and 4
    EXPECT_EQ(kinds(diagnose(routing)), Kinds{FindingKind::not_a_number});
}

TEST(Diagnosis, SaysNothingOfLoadsWhileTokensAreTooFew) {
    // 8 experts, one per token: 256 tokens for 32 each; with two per token 128.
    EXPECT_EQ(kinds(diagnose(traces::routing(8, Lists(255, {0})))),
              Kinds{FindingKind::too_few_tokens});
    EXPECT_EQ(diagnose(traces::routing(8, Lists(256, {0})))[0].kind, FindingKind::collapsed);
    EXPECT_EQ(diagnose(traces::routing(8, Lists(127, {0, 1})))[0].text,
              "too few tokens to tell: 127 of at least 128");
    EXPECT_EQ(diagnose(traces::routing(8, Lists(128, {0, 1})))[0].kind, FindingKind::collapsed);
    const auto findings = diagnose(traces::routing(8, Lists(10, {0})), {}, {.least_load = 1});
    EXPECT_EQ(findings[0].kind, FindingKind::collapsed);
    // Padding is no token.
    const std::vector<std::uint8_t> padding(300, 1);
    EXPECT_EQ(
        diagnose(traces::routing(2, Lists(300, std::vector<Index>{})), {.padding = padding})[0]
            .text,
        "too few tokens to tell: 0 of at least 64");
}

TEST(Diagnosis, OfTokensThatGoNowhereIsThat) {
    const auto findings = diagnose(traces::routing(2, Lists(100, std::vector<Index>{})));
    ASSERT_EQ(kinds(findings), Kinds{FindingKind::unrouted});
    EXPECT_EQ(findings[0].text, "100.0 % of the tokens reach no expert");
    EXPECT_EQ(findings[0].severity, 1);
}

TEST(Diagnosis, OfARandomRouterIsBalancedAtTheLeastNumberOfTokens) {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const auto findings = diagnose(traces::routing(32, traces::random_lists(512, 32, 2, seed)));
        EXPECT_EQ(kinds(findings), Kinds{FindingKind::balanced}) << moe::report(findings);
    }
}

TEST(Diagnosis, OfATraceSumsBatchesAndPutsTheWorstLayerFirst) {
    Trace trace;
    for (Index b = 0; b < 4; ++b) {
        trace.record(0, traces::routing(4, balanced(64, 4, 1)));
        trace.record(1, traces::routing(4, Lists(64, {b})));  // each batch to another: balanced
        trace.record(3, traces::routing(4, Lists(64, {2})));
        trace.record(4, traces::routing(4, balanced(64, 3, 1)));
        trace.record(5, traces::routing(64, balanced(64, 64, 1)));
    }
    const auto findings = diagnose(trace);
    ASSERT_EQ(kinds(findings),
              (Kinds{FindingKind::collapsed, FindingKind::dead_experts, FindingKind::dead_experts,
                     FindingKind::too_few_tokens, FindingKind::balanced}));
    EXPECT_EQ(findings[0].layer, 3);
    EXPECT_EQ(findings[1].layer, 3);
    EXPECT_EQ(findings[1].text, "three dead experts: 0, 1, 3");
    EXPECT_EQ(findings[2].layer, 4);
    EXPECT_EQ(findings[2].text, "one dead expert: 3");
    EXPECT_EQ(findings[3].text, "too few tokens to tell in 1 of 5 layers: 256 of at least 2048");
    EXPECT_EQ(findings[4].text,
              "balanced in 2 of 5 layers: the busiest expert has at most 1.00 times the mean load");
    EXPECT_EQ(findings[4].layer, -1);
    for (std::size_t i = 1; i < findings.size(); ++i)
        EXPECT_GE(findings[i - 1].severity, findings[i].severity);
    EXPECT_EQ(diagnose(Trace())[0].text, "nothing to tell: the trace is empty");
}

TEST(Diagnosis, IsWrittenInLinesOfEightyColumns) {
    Trace trace;
    trace.record(2, traces::routing(8, in_turn({12, 0, 12, 941, 12, 12, 0, 11})));
    EXPECT_EQ(moe::report(diagnose(trace)),
              "layer 2: collapsed: expert 3 gets 94.1 % of the tokens (mean 12.5 %); pull the\n"
              "    loads together with load_balance_loss, or with update_bias and SignUpdate\n"
              "layer 2: two dead experts: 1, 6; revive with update_bias and SignUpdate, or with\n"
              "    QuantileUpdate\n");
}

TEST(Diagnosis, OfStatisticsFindsWhatTheyHold) {
    const Routing routing = with_drops(69);
    const moe::LoadStats load = moe::load_stats(routing);
    const auto findings = diagnose(load, {.entropy = 1.38, .nan_fraction = 0.004});
    ASSERT_EQ(kinds(findings), (Kinds{FindingKind::not_a_number, FindingKind::dropped,
                                      FindingKind::unrouted, FindingKind::undecided}));
    EXPECT_EQ(findings[0].text, "NaN in 2 tokens of 400");
    EXPECT_EQ(findings[1].text, "drops 31.0 % of assignments");
    EXPECT_EQ(findings[3].text, "router undecided: entropy 1.38 of 1.39 nats");
    moe::LoadStats counts;  // from elsewhere: without drops
    counts.num_tokens = 1000;
    counts.tokens_per_expert = {1000, 0};
    EXPECT_EQ(diagnose(counts, {})[0].kind, FindingKind::collapsed);
}

TEST(Diagnosis, OfOneExpertOrAsManyAsThereAreIsBalanced) {
    EXPECT_EQ(kinds(diagnose(traces::routing(1, Lists(99, {0})))), Kinds{FindingKind::balanced});
    EXPECT_EQ(kinds(diagnose(traces::routing(3, balanced(99, 3, 3)))),
              Kinds{FindingKind::balanced});
    EXPECT_EQ(diagnose(traces::routing(0, Lists{}))[0].kind, FindingKind::balanced);
}

TEST(Diagnosis, RefusesOptionsOutOfRange) {
    const Routing routing = traces::routing(2, Lists(9, {0}));
    EXPECT_EQ(message([&] { diagnose(routing, {}, {.least_load = 0}); }),
              "moe::DiagnosisOptions: least_load is 0, it must lie in [1, 1e+09]");
    EXPECT_EQ(message([&] { diagnose(routing, {}, {.dropped = -0.1}); }),
              "moe::DiagnosisOptions: dropped is -0.1, it must lie in [0, 1]");
    EXPECT_EQ(message([&] { diagnose(routing, {}, {.undecided = nan}); }),
              "moe::DiagnosisOptions: undecided is nan, it must lie in [0, 1]");
}

}  // namespace
}  // namespace diagnosis_test
