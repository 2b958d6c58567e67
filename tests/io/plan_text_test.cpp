// SPDX-License-Identifier: MIT
#include <moe/io/plan_text.hpp>

#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace plan_text_test {
namespace {

using moe::Index;
using moe::Plan;
using support::message;

constexpr double infinity = std::numeric_limits<double>::infinity();

std::string title() { return std::string("moe-plan 1 ") + moe::name(moe::isa()) + "\n"; }

TEST(PlanText, IsAKeyAndAValueInEachLine) {
    EXPECT_EQ(moe::to_text({1, 2, 3, 4, 5, 6.5}), title() +
                                                      "column_rows = 1\n"
                                                      "bf16_tile_rows = 2\n"
                                                      "int8_tile_rows = 3\n"
                                                      "block_tile_rows = 4\n"
                                                      "ternary_tile_rows = 5\n"
                                                      "serial_flops = 6.5\n");
}

TEST(PlanText, ComesBack) {
    constexpr Index most = std::numeric_limits<Index>::max();
    for (const Plan& plan :
         {Plan{}, Plan{0, 1, 1, 1, 1, 0}, Plan{most, most, most, most, most, infinity},
          Plan{1, 2, 3, 4, 5, 0.1}, Plan{.serial_flops = 1.0 / 3 * 1e300}})
        EXPECT_EQ(moe::plan_from_text(moe::to_text(plan)), plan) << moe::to_text(plan);
}

TEST(PlanText, MayBeInAnyOrderWithBlanksAndGaps) {
    EXPECT_EQ(moe::plan_from_text(title()), Plan{});
    EXPECT_EQ(moe::plan_from_text("  moe-plan  1   " + std::string(moe::name(moe::isa())) +
                                  " \r\n\r\n \t serial_flops=2e3 \r\n\ncolumn_rows  =  3"),
              (Plan{.column_rows = 3, .serial_flops = 2000}));
}

TEST(PlanText, IsRefusedIfItIsNoPlan) {
    const auto refusal = [](const std::string& text) {
        return message<moe::FormatError>([&] { moe::plan_from_text(text); });
    };
    const std::string wanted =
        ", it must be a title like \"moe-plan 1 avx512\"; write the text with moe::to_text";
    EXPECT_EQ(refusal(""), "moe::plan_from_text: the first line is \"\"" + wanted);
    EXPECT_EQ(refusal("column_rows = 1\n"),
              "moe::plan_from_text: the first line is \"column_rows = 1\"" + wanted);
    EXPECT_EQ(refusal("moe-plan one avx2"),
              "moe::plan_from_text: the first line is \"moe-plan one avx2\"" + wanted);
    EXPECT_EQ(refusal("moe-plan 1\n"),
              "moe::plan_from_text: the first line is \"moe-plan 1\"" + wanted);
    EXPECT_EQ(refusal(std::string(50, 'a')), "moe::plan_from_text: the first line is \"" +
                                                 std::string(40, 'a') + "...\"" + wanted);
    EXPECT_EQ(refusal("moe-plan 2 avx2\n"),
              "moe::plan_from_text: the plan has version 2, this library reads version 1; measure "
              "again with moe::tune");
    EXPECT_EQ(refusal(title() + "column_rows 1\n"),
              "moe::plan_from_text: a line is \"column_rows 1\", it must be \"key = value\"");
    EXPECT_EQ(refusal(title() + "rows = 1\n"),
              "moe::plan_from_text: the key \"rows\" is unknown; measure again with moe::tune");
    EXPECT_EQ(refusal(title() + "column_rows = 1\ncolumn_rows = 1\n"),
              "moe::plan_from_text: the key \"column_rows\" is there twice, remove one");
    for (const char* bad : {"", "1.5", "x", "1 2", "99999999999999999999", "+1", "0x10"})
        EXPECT_EQ(refusal(title() + "int8_tile_rows = " + bad + "\n"),
                  std::string("moe::plan_from_text: int8_tile_rows is \"") + bad +
                      "\", it must be a whole number of 64 bits; measure again with moe::tune");
    EXPECT_EQ(refusal(title() + "serial_flops = 1,5\n"),
              "moe::plan_from_text: serial_flops is \"1,5\", it must be a number; measure again "
              "with moe::tune");
}

TEST(PlanText, IsRefusedOutsideItsRangeAsByAWorkspace) {
    const auto refusal = [](const std::string& text) {
        return message([&] { moe::plan_from_text(text); });
    };
    EXPECT_EQ(refusal(title() + "bf16_tile_rows = 0\n"),
              "moe::plan_from_text: plan.bf16_tile_rows is 0, it must be >= 1; "
              "moe::Plan{}.bf16_tile_rows is a good one");
    EXPECT_EQ(refusal(title() + "serial_flops = nan\n"),
              "moe::plan_from_text: plan.serial_flops is nan, it must be >= 0; "
              "moe::Plan{}.serial_flops is a good one");
}

TEST(PlanText, IsRefusedIfItWasMeasuredWithAnotherInstructionSet) {
    const std::string here = moe::name(moe::isa());
    const std::string other = here == "scalar" ? "avx2" : "scalar";
    EXPECT_EQ(message([&] { moe::plan_from_text("moe-plan 1 " + other + "\n"); }),
              "moe::plan_from_text: the plan was measured with \"" + other +
                  "\", the instruction set in use is \"" + here +
                  "\"; measure again with moe::tune");
}

}  // namespace
}  // namespace plan_text_test
