// SPDX-License-Identifier: MIT
#include <moe/kernels/panel_turns.hpp>

#include <vector>

#include <gtest/gtest.h>

#include "scoped_fetcher.hpp"

namespace {

using moe::Index;

TEST(PanelTurns, AreRunsOfAllPanelsAndWhatComesAfterEach) {
    constexpr Index bytes = 7, width = 4;
    const std::vector<std::byte> memory(20 * bytes);
    const std::byte* const first = memory.data();
    const std::byte* const ahead = first + 19 * bytes;
    for (const Index together : {1, 3, 8})
        for (Index cols = 0; cols <= 9 * width; ++cols) {
            const Index all = (cols + width - 1) / width;
            Index seen = 0;
            for (moe::detail::PanelTurns turn(first, bytes, width, cols, together, ahead);
                 turn.panels > 0; turn.next()) {
                EXPECT_EQ(turn.at, first + seen * bytes);
                EXPECT_EQ(turn.column, seen * width);
                EXPECT_EQ(turn.panels, all - seen < together ? all - seen : together);
                seen += turn.panels;
                EXPECT_EQ(turn.then, seen < all ? first + seen * bytes : ahead);
            }
            EXPECT_EQ(seen, all) << cols << " columns, " << together << " together";
        }
}

TEST(Fetcher, IsAskedOfTheProcessorOnceAndMayBeSet) {
    const kernel_test::ScopedFetcher scoped(moe::detail::Fetcher::unknown);
#if defined(__x86_64__)
    static_assert(moe::cpu_family(0x00800F11) == 0x17 && moe::cpu_family(0x00A20F12) == 0x19 &&
                  moe::cpu_family(0x00B40F40) == 0x1A && moe::cpu_family(0x000806F8) == 6);
    const bool expected = moe::detail::machine().zen3;
#else
    const bool expected = false;
#endif
    EXPECT_EQ(moe::detail::processor_fetches(), expected);
    EXPECT_NE(moe::detail::fetcher_in_use, moe::detail::Fetcher::unknown);
    for (const moe::detail::Fetcher fetcher : kernel_test::fetchers) {
        const kernel_test::ScopedFetcher other(fetcher);
        EXPECT_EQ(moe::detail::processor_fetches(), fetcher == moe::detail::Fetcher::processor);
    }
}

}  // namespace
