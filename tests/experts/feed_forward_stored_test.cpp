// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_stored.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/storage_dispatch.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/allocations.hpp"

namespace feed_forward_stored_test {
namespace {

using moe::Compute;
using moe::Index;
using moe::Matrix;
using moe::Rows;
using moe::detail::FeedForwardStoredState;
using moe::detail::RowEncoding;

RowEncoding encoding_of(Compute compute, Index n) { return {&moe::storage_kernels(), compute, n}; }

TEST(FeedForwardStored, EncodesWhatIsFewer) {
    const std::vector<Index> offsets{2, 5, 9};  // 7 rows
    const std::vector<float> weights(9, 1);
    Rows<float> rows{.offsets = offsets, .from = {}, .to = {}, .weights = weights};
    EXPECT_FALSE(moe::detail::encodes_by_row(6, rows));
    EXPECT_TRUE(moe::detail::encodes_by_row(7, rows));
    rows.input_weights = weights;
    EXPECT_TRUE(moe::detail::encodes_by_row(1, rows));
}

TEST(FeedForwardStored, EncodesRowsOfXOrOfExperts) {
    const auto x = moe::testing::random_matrix<float>(3, 100, 1);
    const std::vector<Index> offsets{1, 3, 5};
    const std::vector<std::int32_t> from{0, 2, 0, 1, 2, 0};
    const std::vector<float> weights(6, 1), factors{9, 1, .5f, 2, -1, 9};
    for (const Compute compute : {Compute::bf16, Compute::int8}) {
        const RowEncoding encoding = encoding_of(compute, 100);
        FeedForwardStoredState state, expected;
        for (FeedForwardStoredState* each : {&state, &expected})
            each->resize({.model_dim = 100, .ffn_dim = 1, .output_dim = 1}, encoding,
                         encoding_of(compute, 1), 4, 4, 4, 2, 1);
        const auto expect_row = [&](Index i, Index token, float factor) {
            const Matrix<float> row = factor * x.row(token);
            encoding.encode(row.data(), expected.x());
            const std::size_t size = static_cast<std::size_t>(encoding.stride()) - 64;
            EXPECT_EQ(std::memcmp(state.x().from(i, encoding.stride()).data, expected.x().data,
                                  compute == Compute::bf16
                                      ? size
                                      : static_cast<std::size_t>(encoding.padded() * 9 / 8)),
                      0)
                << i;
            if (compute == Compute::int8) {
                EXPECT_EQ(state.x_scales[i], expected.x_scales[0]);
            }
        };
        std::vector<float> scaled(100);
        Rows<float> rows{.offsets = offsets, .from = from, .to = from, .weights = weights};
        const auto encode = [&](bool by_row, Index count) {
            moe::detail::encode_inputs<float>(encoding, moe::kernels<float>(), x, rows, by_row, 0,
                                              count, state, scaled.data());
        };
        encode(false, 3);
        for (const Index i : {0, 1, 2}) expect_row(i, i, 1);
        encode(true, 4);
        for (const Index i : {0, 1, 2, 3}) expect_row(i, from[static_cast<std::size_t>(i + 1)], 1);
        rows.input_weights = factors;
        encode(true, 4);
        for (const Index i : {0, 1, 2, 3})
            expect_row(i, from[static_cast<std::size_t>(i + 1)],
                       factors[static_cast<std::size_t>(i + 1)]);
    }
}

TEST(FeedForwardStored, SaysHowManyBytesItTakes) {
    if (!allocations::are_counted) GTEST_SKIP();
    const moe::FeedForwardShape shape{.model_dim = 200, .ffn_dim = 300, .output_dim = 100};
    for (const Compute compute : {Compute::bf16, Compute::int8})
        for (const int workers : {1, 3}) {
            const RowEncoding x = encoding_of(compute, 200), h = encoding_of(compute, 300);
            const long before = allocations::bytes_asked_for.load();
            FeedForwardStoredState state;
            state.reserve(shape, x, h, 500, 700, 4, workers);
            const long used = allocations::bytes_asked_for.load() - before;
            const long said = FeedForwardStoredState::bytes(shape, x, h, 500, 700, workers);
            EXPECT_LE(used, said + 4096);
            EXPECT_GE(used, said - workers * 4 * 200);
        }
}

}  // namespace
}  // namespace feed_forward_stored_test
