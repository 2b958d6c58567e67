// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <moe/core/sequences.hpp>

#include "support/message.hpp"

namespace sequences_test {
namespace {

using moe::Index;

/// What a function of sequences says to these offsets.
template <class F>
std::string said(F&& f, const std::vector<Index>& offsets, Index tokens) {
    return support::message([&] { f("moe::Part", offsets, tokens); });
}

TEST(Sequences, AreThoseOfTheOffsetsOrTheWholeBatch) {
    const std::array<Index, 4> offsets{0, 2, 2, 7};
    const auto whole = moe::detail::sequences("moe::Part", {}, 7);
    EXPECT_EQ(whole.count(), 1);
    EXPECT_EQ(whole.first(0), 0);
    EXPECT_EQ(whole.last(0), 7);
    EXPECT_EQ(whole.of(6), 0);
    for (const auto& runs : {moe::detail::sequences("moe::Part", offsets, 7),
                             moe::detail::required_sequences("moe::Part", offsets, 7)}) {
        std::vector<Index> ends, of;
        for (Index run = 0; run < runs.count(); ++run) {
            ends.push_back(runs.first(run));
            ends.push_back(runs.last(run));
        }
        for (Index t = 0; t < 7; ++t) of.push_back(runs.of(t));
        EXPECT_EQ(ends, (std::vector<Index>{0, 2, 2, 2, 2, 7}));
        EXPECT_EQ(of, (std::vector<Index>{0, 0, 2, 2, 2, 2, 2})) << "an empty sequence has none";
        EXPECT_EQ(runs.size(1), 0);
        EXPECT_EQ(runs.size(2), 5);
    }
}

TEST(Sequences, AscendFromZeroToTheTokensWhoeverAsks) {
    const std::string must =
        "moe::Part: sequence_offsets must ascend from 0 to the 7 tokens of the batch, ";
    const auto expect = [&](const std::vector<Index>& wrong, const std::string& why) {
        EXPECT_EQ(said(moe::detail::check_sequences, wrong, 7), must + why);
        EXPECT_EQ(said(moe::detail::sequences, wrong, 7), must + why);
        EXPECT_EQ(said(moe::detail::required_sequences, wrong, 7), must + why);
    };
    expect({0}, "its last entry is 0");
    expect({7}, "its first entry is 7");
    expect({1, 7}, "its first entry is 1");
    expect({0, 8}, "its last entry is 8");
    expect({0, 9, 7}, "its entry 2 is 7 after 9");
    expect({0, -1, 7}, "its entry 1 is -1 after 0");
}

TEST(Sequences, WithoutOffsetsAreRefusedWhereTheyAreRequiredForTokens) {
    const std::string empty =
        "moe::Part: sequence_offsets must ascend from 0 to the 7 tokens of the batch, it is empty; "
        "set Context::sequence_offsets to the first row of each sequence and, at last, the number "
        "of tokens";
    EXPECT_EQ(said(moe::detail::required_sequences, {}, 7), empty);
    EXPECT_EQ(said(moe::detail::check_sequences, {}, 7), empty);
    EXPECT_EQ(said(moe::detail::sequences, {}, 7), "");
    EXPECT_EQ(said(moe::detail::required_sequences, {}, 0), "") << "none are missing";
}

TEST(Sequences, OfNoTokensMayBeGivenTheWholeBatchOrNone) {
    const std::array<Index, 1> none{0};
    const std::array<Index, 3> two{0, 0, 0};
    EXPECT_EQ(moe::detail::required_sequences("moe::Part", none, 0).count(), 0);
    EXPECT_EQ(moe::detail::required_sequences("moe::Part", two, 0).count(), 2);
    EXPECT_EQ(moe::detail::required_sequences("moe::Part", {}, 0).size(0), 0);
    EXPECT_EQ(said(moe::detail::required_sequences, {0, 1}, 0),
              "moe::Part: sequence_offsets must ascend from 0 to the 0 tokens of the batch, its "
              "last entry is 1");
}

TEST(Sequences, WhatThereIsPerSequenceHasARowForEach) {
    const auto check = [](const std::vector<Index>& offsets, std::size_t given) {
        return support::message(
            [&] { moe::detail::check_per_sequence("moe::Part", offsets, "dial.x", given, 4); });
    };
    EXPECT_EQ(check({0, 2, 7}, 8), "");
    EXPECT_EQ(check({0, 2, 7}, 0), "");
    EXPECT_EQ(check({}, 0), "");
    EXPECT_EQ(check({0, 2, 7}, 4),
              "moe::Part: dial.x has 4 entries, it wants 4 for each of the 2 sequences of "
              "sequence_offsets");
    EXPECT_EQ(check({}, 4),
              "moe::Part: dial.x has 4 entries, it wants 4 per sequence, and sequence_offsets is "
              "empty; set Context::sequence_offsets");
    EXPECT_EQ(check({0}, 4),
              "moe::Part: dial.x has 4 entries, it wants 4 for each of the 0 sequences of "
              "sequence_offsets");
}

TEST(Sequences, ARowIsLiveIfOneLogitIs) {
    constexpr double dead = -std::numeric_limits<double>::infinity();
    const std::array<double, 3> none{dead, dead, dead}, one{dead, dead, 0},
        fault{dead, std::numeric_limits<double>::quiet_NaN(), dead};
    EXPECT_FALSE(moe::detail::is_live(3, none.data()));
    EXPECT_TRUE(moe::detail::is_live(3, one.data()));
    EXPECT_TRUE(moe::detail::is_live(3, fault.data()));
    EXPECT_FALSE(moe::detail::is_live(0, one.data()));
}

}  // namespace
}  // namespace sequences_test
