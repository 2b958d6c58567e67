// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <moe/gates/tokens.hpp>

#include "support/message.hpp"

namespace {

using moe::Index;

TEST(Tokens, TheDialOfASequenceHoldsForItsTokensAndEmptySequencesForNone) {
    const std::array<Index, 5> offsets{0, 2, 2, 5, 6};
    const std::array<Index, 4> k{1, 9, 3, 4};
    moe::Context context;
    context.sequence_offsets = offsets;
    const auto dial =
        moe::detail::dialled<Index>("moe::Gate", "dial.k_per_sequence", 7, k, context, 6);
    std::vector<Index> got;
    for (Index t = 0; t < 6; ++t) got.push_back(dial(t));
    EXPECT_EQ(got, (std::vector<Index>{1, 1, 3, 3, 3, 4}));
}

TEST(Tokens, WithoutSequencesTheDialIsTheSameForAllTokens) {
    const auto dial = moe::detail::dialled<Index>("moe::Gate", "dial.k_per_sequence", 7, {}, {}, 6);
    EXPECT_EQ(dial(0), 7);
    EXPECT_EQ(dial(5), 7);
}

TEST(Tokens, ADialPerSequenceNeedsTheSequences) {
    const std::array<Index, 2> k{1, 2};
    const std::array<Index, 3> short_of_tokens{0, 2, 4};
    moe::Context context;
    const auto message = [&] {
        return support::message([&] {
            moe::detail::dialled<Index>("moe::Gate", "dial.k_per_sequence", 7, k, context, 5);
        });
    };
    EXPECT_EQ(message(),
              "moe::Gate: dial.k_per_sequence has 2 entries, it wants 1 per sequence, and "
              "sequence_offsets is empty; set Context::sequence_offsets");
    context.sequence_offsets = short_of_tokens;
    EXPECT_EQ(
        message(),
        "moe::Gate: sequence_offsets must ascend from 0 to the 5 tokens of the batch, its last "
        "entry is 4");
}

TEST(Tokens, ExtentsThatDisagreeAreNamed) {
    moe::Routing routing;
    routing.reset(4, 8);
    EXPECT_NO_THROW(moe::detail::check_gate_extents("moe::Gate", 4, 8, routing, 8, {}));
    EXPECT_THROW(moe::detail::check_gate_extents("moe::Gate", 5, 8, routing, 8, {}),
                 std::invalid_argument);
    EXPECT_THROW(moe::detail::check_gate_extents("moe::Gate", 4, 7, routing, 8, {}),
                 std::invalid_argument);
    EXPECT_THROW(moe::detail::check_gate_extents("moe::Gate", 4, 7, routing, 7, {}),
                 std::invalid_argument);
    const std::array<std::uint8_t, 3> padding{};
    EXPECT_THROW(
        moe::detail::check_gate_extents("moe::Gate", 4, 8, routing, 8, {.padding = padding}),
        std::invalid_argument);
}

TEST(Tokens, TheMostExpertsOfATokenAreAllOrAsManyAsSaid) {
    EXPECT_EQ(moe::detail::checked_most("moe::X", 0, 2, 8), 8);
    EXPECT_EQ(moe::detail::checked_most("moe::X", 2, 2, 8), 2);
    EXPECT_EQ(moe::detail::checked_most("moe::X", 8, 0, 8), 8);
    for (const auto& [most, least, range] :
         {std::tuple{1, 2, "[2, 8]"}, {9, 2, "[2, 8]"}, {-1, 0, "[1, 8]"}})
        EXPECT_EQ(support::message([&] { moe::detail::checked_most("moe::X", most, least, 8); }),
                  "moe::X: max_experts is " + std::to_string(most) + ", it must be in " + range +
                      ", or 0 for all");
}

}  // namespace
