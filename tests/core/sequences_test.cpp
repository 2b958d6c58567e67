// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <stdexcept>
#include <vector>

#include <moe/core/sequences.hpp>

#include "support/message.hpp"

namespace {

using moe::Index;

TEST(Sequences, AreThoseOfTheContextOrTheWholeBatch) {
    const std::array<Index, 4> offsets{0, 2, 2, 7};
    moe::Context context;
    const auto whole = moe::detail::sequences("moe::Gate", context, 7);
    EXPECT_EQ(whole.count(), 1);
    EXPECT_EQ(whole.first(0), 0);
    EXPECT_EQ(whole.last(0), 7);
    context.sequence_offsets = offsets;
    const auto runs = moe::detail::sequences("moe::Gate", context, 7);
    std::vector<Index> ends;
    for (Index run = 0; run < runs.count(); ++run) {
        ends.push_back(runs.first(run));
        ends.push_back(runs.last(run));
    }
    EXPECT_EQ(ends, (std::vector<Index>{0, 2, 2, 2, 2, 7}));
    EXPECT_EQ(support::message([&] { moe::detail::sequences("moe::Gate", context, 8); }),
              "moe::Gate: sequence_offsets run from 0 to 7, the batch has tokens 0 to 8");
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
