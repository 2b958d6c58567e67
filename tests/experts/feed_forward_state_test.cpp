// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_state.hpp>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace {

using moe::Index;
using moe::detail::FeedForwardItem;

moe::Rows<float> rows_of(const std::vector<Index>& offsets) {
    return {.offsets = offsets, .from = {}, .to = {}, .weights = {}};
}

TEST(SplitExperts, CoversEveryColumnOfEveryExpertThatHasRowsOnce) {
    const std::vector<Index> offsets{5, 5, 6, 106, 106, 110};  // 0, 1, 100, 0 and 4 rows
    for (const Index extent : {1, 31, 32, 33, 200})
        for (const int workers : {1, 2, 16}) {
            std::vector<FeedForwardItem> items;
            moe::detail::split_experts(rows_of(offsets), extent, 32, workers, items);
            std::vector<std::vector<int>> covered(
                5, std::vector<int>(static_cast<std::size_t>(extent)));
            for (const FeedForwardItem& item : items) {
                EXPECT_EQ(item.begin % 32, 0);
                EXPECT_LT(item.begin, item.end);
                for (Index j = item.begin; j < item.end; ++j)
                    ++covered[static_cast<std::size_t>(item.expert)][static_cast<std::size_t>(j)];
            }
            for (std::size_t e = 0; e < 5; ++e)
                for (const int times : covered[e])
                    EXPECT_EQ(times, offsets[e + 1] > offsets[e] ? 1 : 0);
        }
}

TEST(SplitExperts, GivesAHotExpertSeveralPieces) {
    const std::vector<Index> offsets{0, 1000, 1001, 1002};
    std::vector<FeedForwardItem> items;
    moe::detail::split_experts(rows_of(offsets), 32 * 64, 32, 2, items);
    const auto pieces = std::count_if(items.begin(), items.end(),
                                      [](const FeedForwardItem& item) { return item.expert == 0; });
    EXPECT_GE(pieces, 8);
    EXPECT_EQ(static_cast<long>(items.size()) - pieces, 2);
}

TEST(ColumnChunk, IsWholePanelsAndAtMostWhatFits) {
    EXPECT_EQ(moe::detail::column_chunk(2048, 32, 2, 4, 128), 128);
    EXPECT_EQ(moe::detail::column_chunk(256, 32, 2, 4, 128), 32);
    EXPECT_EQ(moe::detail::column_chunk(1, 32, 7, 4, 128), 32);
    EXPECT_EQ(moe::detail::column_chunk(2048, 32, 1, 2, 1024), 1024);
}

TEST(FeedForwardShape, SaysWhatItCostsAndWhereItFits) {
    const moe::FeedForwardShape gated{.model_dim = 3, .ffn_dim = 5, .output_dim = 2};
    EXPECT_EQ(gated.flops_per_row(), 2.0 * 5 * (2 * 3 + 2));
    const moe::FeedForwardShape plain{
        .model_dim = 3, .ffn_dim = 5, .output_dim = 2, .gated = false};
    EXPECT_EQ(plain.flops_per_row(), 2.0 * 5 * (3 + 2));
    EXPECT_NO_THROW(gated.check({.model_dim = 3, .output_dim = 2}));
    try {
        gated.check({.model_dim = 3, .output_dim = 3});
        ADD_FAILURE() << "another output_dim was accepted";
    } catch (const std::invalid_argument& error) {
        EXPECT_STREQ(error.what(), "moe: these experts map 3 to 2 columns, the layer 3 to 3");
    }
}

}  // namespace
