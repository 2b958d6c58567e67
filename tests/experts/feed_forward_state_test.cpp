// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_state.hpp>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace feed_forward_state_test {
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

TEST(SplitExperts, CountsExpertsOfFewRowsLikeThoseOfSome) {
    // 100 experts of one row cost as much as one of 1200: each of two workers has 8 pieces.
    std::vector<Index> offsets{0};
    for (Index e = 0; e < 100; ++e) offsets.push_back(offsets.back() + 1);
    offsets.push_back(offsets.back() + 1200);
    const auto rows = rows_of(offsets);
    EXPECT_EQ(moe::detail::part_cost(rows), 100 * moe::detail::feed_forward_least_rows + 1200);
    EXPECT_EQ(moe::detail::item_cost(rows, {3, 32, 96}), 64 * moe::detail::feed_forward_least_rows);
    EXPECT_EQ(moe::detail::item_cost(rows, {100, 0, 32}), 32 * 1200);
    std::vector<FeedForwardItem> items;
    moe::detail::split_experts(rows, 32 * 64, 32, 2, items);
    EXPECT_EQ(items.size(), 100u + 8u);
    double most = 0, total = 0;
    for (const FeedForwardItem& item : items) {
        most = std::max(most, moe::detail::item_cost(rows, item));
        total += moe::detail::item_cost(rows, item);
    }
    EXPECT_EQ(total, moe::detail::part_cost(rows) * 32 * 64);
    EXPECT_LE(most, total / 16);
}

TEST(ForEachPart, CoversEveryRowOnceWholeExpertsTogether) {
    for (const std::vector<Index>& offsets :
         {std::vector<Index>{0, 5, 5, 9, 12}, {3, 3, 4}, {0, 25, 27}, {2, 9, 31, 31, 32}, {4, 4}})
        for (const Index most : {1, 4, 7, 10, 100}) {
            const auto rows = rows_of(offsets);
            std::vector<Index> memory;
            Index next = offsets.front();
            moe::detail::for_each_part(rows, most, memory, [&](const moe::Rows<float>& part) {
                ASSERT_EQ(part.num_experts(), rows.num_experts());
                EXPECT_LE(part.num_rows(), most);
                EXPECT_EQ(part.offsets.front(), next);
                for (Index e = 0; e < rows.num_experts(); ++e) {
                    EXPECT_EQ(part.begin(e), std::clamp(rows.begin(e), next, part.offsets.back()));
                    EXPECT_EQ(part.end(e), std::clamp(rows.end(e), next, part.offsets.back()));
                    // Who fits is not cut.
                    if (rows.size(e) <= most && part.size(e) > 0) {
                        EXPECT_EQ(part.size(e), rows.size(e)) << most;
                    }
                }
                next = part.offsets.back();
            });
            EXPECT_EQ(next, offsets.back());
        }
}

TEST(ForEachPart, TakesAsManyExpertsAsFit) {
    const std::vector<Index> offsets{0, 3, 6, 9, 30, 33};
    std::vector<Index> memory, ends;
    moe::detail::for_each_part(rows_of(offsets), 8, memory, [&](const moe::Rows<float>& part) {
        ends.push_back(part.offsets.back());
    });
    EXPECT_EQ(ends, (std::vector<Index>{6, 9, 17, 25, 33}));
}

TEST(FeedForwardState, NeedsWhatEachKeepSays) {
    // Keeping gate and up of 4096 tokens and 8 experts each takes what the paper count says, and
    // no more than a part of that lasts where they are not kept.
    const moe::FeedForwardShape shape{.model_dim = 2048, .ffn_dim = 768, .output_dim = 2048};
    const auto megabytes = [&](moe::Keep keep) {
        return static_cast<double>(
                   moe::detail::FeedForwardState<float>::bytes(shape, 8 * 4096, keep, 1)) /
               1e6;
    };
    const double kept = 2.0 * 4096 * 8 * 768 * 4 / 1e6;  // 201
    EXPECT_GE(megabytes(moe::Keep::everything), kept);
    EXPECT_LE(megabytes(moe::Keep::everything), 1.1 * kept + 10);
    EXPECT_LE(megabytes(moe::Keep::recompute), 34);
    EXPECT_LE(megabytes(moe::Keep::nothing), 10);
    // Longer batches need no more.
    EXPECT_EQ(moe::detail::FeedForwardState<float>::bytes(shape, 9999999, moe::Keep::recompute, 1),
              moe::detail::FeedForwardState<float>::bytes(shape, 99999, moe::Keep::recompute, 1));
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
    EXPECT_EQ(support::message([&] { gated.check({.model_dim = 3, .output_dim = 3}); }),
              "moe: these experts map 3 to 2 columns, the layer 3 to 3");
}

}  // namespace
}  // namespace feed_forward_state_test
