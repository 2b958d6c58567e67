// SPDX-License-Identifier: MIT
#include <moe/stats/finding.hpp>

#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/stats/report.hpp>

#include "support/message.hpp"

namespace finding_test {
namespace {

using moe::Finding;
using moe::FindingKind;
using moe::report;
using support::message;

TEST(Finding, NamesItsFigures) {
    const Finding finding{.figures = {{"share", 0.25}, {"mean", 2}}};
    EXPECT_EQ(finding.figure("mean"), 2);
    EXPECT_EQ(finding.figure(std::string("share")), 0.25);
    EXPECT_TRUE(std::isnan(finding.figure("late")));
}

TEST(FindingReportOptions, HasAParagraphForEachInTheirOrder) {
    const std::vector<Finding> findings{{.layer = 2, .text = "dead", .remedy = "revive it"},
                                        {.text = "balanced"}};
    EXPECT_EQ(report(findings), "layer 2: dead; revive it\nbalanced\n");
    EXPECT_EQ(report(std::vector<Finding>{}), "");
}

TEST(FindingReportOptions, BreaksLinesAtBlanksAndNeverTooLate) {
    Finding finding{.layer = 10};
    for (std::size_t i = 0; i < 40; ++i)
        finding.text += (i == 0 ? "" : " ") + std::string(i % 9 + 1, 'x');
    for (const moe::Index width : {40, 41, 57, 80}) {
        const std::string text = report(std::vector{finding}, {.width = width});
        std::string joined;
        std::size_t begin = 0, lines = 0;
        for (std::size_t end = text.find('\n'); end != text.npos; end = text.find('\n', begin)) {
            const std::string line = text.substr(begin, end - begin);
            EXPECT_LE(line.size(), static_cast<std::size_t>(width));
            // Another word would not have fitted: no line but the last is short by 10 or more.
            if (end + 1 < text.size()) {
                EXPECT_GT(line.size() + 10, static_cast<std::size_t>(width));
            }
            EXPECT_EQ(line.substr(0, 4), lines == 0 ? "laye" : "    ");
            joined += lines == 0 ? line : " " + line.substr(4);
            begin = end + 1;
            ++lines;
        }
        EXPECT_EQ(begin, text.size());
        EXPECT_EQ(joined, "layer 10: " + finding.text);
    }
}

TEST(FindingReportOptions, FillsALineToItsLastColumn) {
    Finding finding;
    finding.text = std::string(19, 'a') + " " + std::string(20, 'b') + " c";
    EXPECT_EQ(report(std::vector{finding}, {.width = 40}),
              std::string(19, 'a') + " " + std::string(20, 'b') + "\n    c\n");
    EXPECT_EQ(report(std::vector{finding}, {.width = 42}), finding.text + "\n");
    finding.text = std::string(90, 'w') + " end";  // no blank to break at
    EXPECT_EQ(report(std::vector{finding}), std::string(90, 'w') + "\n    end\n");
}

TEST(FindingReportOptions, SaysHowManyItLeavesOut) {
    std::vector<Finding> findings(5);
    for (Finding& finding : findings) finding.text = "x";
    EXPECT_EQ(report(findings, {.most = 2}), "x\nx\nand 3 more\n");
    EXPECT_EQ(report(findings, {.most = 5}), "x\nx\nx\nx\nx\n");
    EXPECT_EQ(message([&] { report(findings, {.most = 0}); }),
              "moe::report: most is 0, it must be >= 1");
    EXPECT_EQ(message([&] { report(findings, {.width = 39}); }),
              "moe::report: width is 39, it must be >= 40");
}

}  // namespace
}  // namespace finding_test
