// SPDX-License-Identifier: MIT
#include <moe/core/group.hpp>

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace group_test {
namespace {

using moe::Index;
constexpr double worth_threads = 1e9;

TEST(Group, RunsOfRowsCoverEveryRowOnce) {
    moe::ThreadPool pool(3);
    for (const Index count : {0, 1, 2, 11, 12, 13, 100})
        for (const double flops : {0.0, worth_threads}) {
            std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
            moe::detail::for_row_runs(pool, count, flops, [&](Index first, Index last, int) {
                EXPECT_LT(first, last);
                for (Index i = first; i < last; ++i) ++seen[static_cast<std::size_t>(i)];
            });
            for (const auto& times : seen) EXPECT_EQ(times, 1) << count;
        }
}

TEST(Group, RunsOfColumnsCoverEveryColumnOnce) {
    moe::ThreadPool pool(3);
    for (const Index count : {0, 1, 127, 128, 129, 1000}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
        moe::detail::for_column_runs(pool, count, worth_threads, [&](Index at, Index width) {
            for (Index i = at; i < at + width; ++i) ++seen[static_cast<std::size_t>(i)];
        });
        for (const auto& times : seen) EXPECT_EQ(times, 1) << count;
    }
}

TEST(Group, ScatterKeepsTheOrderOfRowsForEveryTarget) {
    const std::vector<Index> offsets{2, 5, 5, 9};
    const std::vector<std::int32_t> target{9, 9, 3, 1, 3, 0, 3, 1, 1};
    const moe::Rows<float> rows{
        .offsets = offsets, .from = target, .to = target, .weights = {}, .first_expert = 4};
    for (const int threads : {1, 2, 5}) {
        moe::ThreadPool pool(threads);
        std::vector<std::vector<std::pair<Index, Index>>> seen(4);
        moe::detail::scatter_rows(pool, rows, rows.to, 4, worth_threads, [&](Index e, Index r) {
            seen[static_cast<std::size_t>(target[static_cast<std::size_t>(r)])].push_back({e, r});
        });
        using Pairs = std::vector<std::pair<Index, Index>>;
        EXPECT_EQ(seen[0], (Pairs{{6, 5}}));
        EXPECT_EQ(seen[1], (Pairs{{4, 3}, {6, 7}, {6, 8}}));
        EXPECT_TRUE(seen[2].empty());
        EXPECT_EQ(seen[3], (Pairs{{4, 2}, {4, 4}, {6, 6}}));
    }
}

TEST(Group, RefusesAGroupOfNone) {
    EXPECT_NO_THROW(moe::detail::check_count("moe::Zero", 1));
    EXPECT_EQ(support::message([&] { moe::detail::check_count("moe::Zero", 0); }),
              "moe::Zero: count is 0, it must be >= 1");
}

}  // namespace
}  // namespace group_test
