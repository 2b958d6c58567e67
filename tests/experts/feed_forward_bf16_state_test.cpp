// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_bf16_state.hpp>

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "support/allocations.hpp"

namespace feed_forward_bf16_state_test {
namespace {

using moe::Index;
using moe::Keep;
using State = moe::detail::FeedForwardBf16State<float>;

TEST(FeedForwardBf16State, CutsPartsWhereSumsEnd) {
    for (const Index ffn : {1, 100, 300, 1024, 4000})
        for (const int workers : {1, 7, 8, 100}) {
            const Index part = State::part_rows({.ffn_dim = ffn}, 1000000, workers);
            EXPECT_EQ(part % moe::detail::bf16_sum_rows, 0) << ffn;
            EXPECT_GT(part, 0);
            EXPECT_EQ(State::part_rows({.ffn_dim = ffn}, 17, workers), 17);
        }
}

TEST(FeedForwardBf16State, PacksRowsAndColumnsAlike) {
    for (const moe::Isa isa : moe::supported_isas()) {
        const moe::Bf16Table& table = moe::bf16_kernels(isa);
        const Index k = 70, cols = 2 * table.panel_width + 5;
        std::vector<float> b(static_cast<std::size_t>(k * cols)), transposed(b.size());
        for (Index p = 0; p < k; ++p)
            for (Index j = 0; j < cols; ++j)
                b[static_cast<std::size_t>(p * cols + j)] =
                    transposed[static_cast<std::size_t>(j * k + p)] =
                        static_cast<float>(p + 1) / static_cast<float>(j + 3);
        const Index bytes = moe::detail::bf16_panel_bytes(table, moe::PanelLayout::records(k), 1);
        std::vector<std::byte> by_rows(static_cast<std::size_t>(3 * bytes)), by_columns = by_rows;
        EXPECT_EQ(moe::detail::bf16_panel_bytes(table, moe::PanelLayout::records(k), cols),
                  3 * bytes);
        moe::detail::pack_bf16(table, moe::Strided<float>{b.data(), cols, 1}, k, cols,
                               by_rows.data(), bytes);
        moe::detail::pack_bf16(table, moe::Strided<float>{transposed.data(), 1, k}, k, cols,
                               by_columns.data(), bytes);
        EXPECT_EQ(by_rows, by_columns) << table.name;
        EXPECT_TRUE(std::any_of(by_rows.begin() + bytes, by_rows.end(),
                                [](std::byte byte) { return byte != std::byte{0}; }));
    }
}

TEST(FeedForwardBf16State, SaysHowManyBytesItTakes) {
    if (!allocations::are_counted) GTEST_SKIP();
    for (const bool gated : {false, true})
        for (const Keep keep : {Keep::everything, Keep::recompute, Keep::nothing})
            for (const int workers : {1, 3})
                for (const Index rows : {1, 700, 5000}) {
                    const moe::FeedForwardShape shape{
                        .model_dim = 200, .ffn_dim = 300, .output_dim = 100, .gated = gated};
                    const Index said = State::bytes(shape, 5, rows, keep, workers);
                    const long before = allocations::bytes_asked_for.load();
                    State state;
                    state.reserve(shape, 5, rows, keep, workers);
                    const long used = allocations::bytes_asked_for.load() - before;
                    EXPECT_LE(used, said + 8192) << rows;
                    EXPECT_GE(used, said) << rows;
                    const long again = allocations::count.load();
                    state.reserve(shape, 5, rows, keep, workers);
                    EXPECT_EQ(allocations::count.load(), again);
                }
}

}  // namespace
}  // namespace feed_forward_bf16_state_test
