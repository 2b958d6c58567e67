// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_KERNELS_BF16_OPERANDS_HPP
#define MOE_TESTS_KERNELS_BF16_OPERANDS_HPP

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/plan.hpp>
#include <moe/kernels/bf16_table.hpp>
#include <moe/kernels/storage_reference.hpp>

#include "guarded.hpp"

/// What a table for products in bf16 must do with rows of A, and its products: apart from
/// bf16_table_test.cpp for amx_emulated_test.cpp, whose table is none of this machine.
namespace kernel_test {

using moe::Bf16Table;
using moe::Storage;

/// Numbers with ties, NaN, infinities and subnormals among them.
inline void fill_with_special(Index n, float* x, Numbers& random) {
    const float special[] = {std::numeric_limits<float>::quiet_NaN(),
                             std::bit_cast<float>(0x7F800001U),
                             std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::max(),
                             std::numeric_limits<float>::denorm_min(),
                             -0.0f,
                             1 + 0x1p-8f,
                             1 + 0x3p-8f};
    random.fill(n, x);
    for (Index i = 0; i < n; ++i)
        if (const std::uint64_t pick = random.bits() % 64; pick < 8) x[i] = special[pick];
}

/// Element p of a row of A.
inline float element(const Bf16Table& t, const std::byte* row, Index p) {
    std::uint32_t bits = 0;
    std::memcpy(reinterpret_cast<std::byte*>(&bits) + (4 - t.row_bytes), row + p * t.row_bytes,
                static_cast<std::size_t>(t.row_bytes));
    return std::bit_cast<float>(bits);
}

inline void expect_encoded_columns(const Bf16Table& t) {
    constexpr std::byte sentinel{0xA5};
    Numbers random(3);
    for (const Index k : {0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130})
        for (const Index rows : {0, 1, 2, 15, 16, 17, 33, 48}) {
            const Index x_row = rows + k % 3, size = k == 0 ? 0 : (k - 1) * x_row + rows;
            const Index row = moe::padded_length(k) * t.row_bytes, to_row = row + 64;
            const Index bytes = rows == 0 ? 0 : (rows - 1) * to_row + row;
            Guarded<float> from(size);
            Guarded<std::byte> to(bytes);
            float* const x = from.last(size);
            fill_with_special(size, x, random);
            std::byte* const a = to.last(bytes);
            std::fill(a, a + bytes, sentinel);
            t.encode_columns(rows, k, x, x_row, a, to_row);
            for (Index i = 0; i < rows; ++i) {
                for (Index p = 0; p < moe::padded_length(k); ++p) {
                    const float want = p < k ? moe::exact::round_to_bf16(x[p * x_row + i]) : 0;
                    ASSERT_TRUE(same(element(t, a + i * to_row, p), want))
                        << t.name << " k " << k << " rows " << rows << ": (" << i << ", " << p
                        << ")";
                }
                for (Index p = row; i + 1 < rows && p < to_row; ++p)
                    ASSERT_EQ(a[i * to_row + p], sentinel) << "between the rows";
            }
        }
}

/// Products with panels of any number of records, which lie an even number of records apart, as
/// those of stored matrices do: so the sums over the rows of an expert call it. Behind an odd
/// number of records there are NaN, and behind the last panel a guard page.
inline void expect_bf16_products(const Bf16Table& t) {
    constexpr float untouched = -12345.5f;
    constexpr Index different_rows = 33;                 // taller A repeat them
    const Index width = t.panel_width, most_panels = 9;  // more than take turns
    const Index most_cols = most_panels * width;
    const auto at = [](Index i) { return static_cast<std::size_t>(i); };
    Numbers random(4);
    for (const Index records : {1, 2, 3, 5}) {
        const Index depth = records * moe::record_rows, k = depth - 3;
        const moe::PanelLayout layout = moe::panel_layout(Storage::bf16, width);
        const Index apart = layout.bytes(depth), last = records * layout.record_bytes;

        std::vector<float> x(at(different_rows * k)), rounded(at(different_rows * depth));
        random.fill(different_rows * k, x.data());
        for (Index i = 0; i < different_rows; ++i)
            for (Index p = 0; p < k; ++p)
                rounded[at(i * depth + p)] = moe::exact::round_to_bf16(x[at(i * k + p)]);

        std::vector<float> b(at(k * most_cols));
        random.fill(k * most_cols, b.data());
        Guarded<std::byte> panel_memory((most_panels - 1) * apart + last);
        std::byte* const all = panel_memory.last((most_panels - 1) * apart + last);
        std::fill_n(all, (most_panels - 1) * apart + last, std::byte{0xFF});
        std::vector<float> product(at(different_rows * most_cols));
        for (Index j = 0; j < most_panels; ++j) {
            std::byte* const panel = all + j * apart;
            t.pack(records, k, width, b.data() + j * width, most_cols, 1, panel);
            moe::exact::product_bf16(different_rows, width, records, rounded.data(), depth, width,
                                     panel, product.data() + j * width, most_cols);
        }

        for (const Index rows : {0, 1, 2, 3, 5, 6, 7, 17, 33, 100}) {
            const Index row = moe::padded_length(k) * t.row_bytes, a_row = row + 64;
            const Index a_size = rows == 0 ? 0 : (rows - 1) * a_row + row;
            Guarded<std::byte> a_memory(a_size);
            std::byte* const a = a_memory.last(a_size);
            std::fill_n(a, a_size, std::byte{0xFF});
            for (Index i = 0; i < rows; ++i)
                t.encode(k, x.data() + i % different_rows * k, a + i * a_row);
            for (const Index panels : {Index{1}, Index{3}, most_panels})
                for (const Index cols : {panels * width - 5, panels * width}) {
                    const Index from = most_panels - panels, c_row = cols + 3;
                    const Index c_size = rows == 0 ? 0 : (rows - 1) * c_row + cols;
                    std::vector<float> want(at(c_size), untouched);
                    for (Index i = 0; i < rows; ++i)
                        std::copy_n(&product[at(i % different_rows * most_cols + from * width)],
                                    cols, &want[at(i * c_row)]);
                    Guarded<float> c_memory(c_size);
                    float* const c = c_memory.last(c_size);
                    const std::byte* const panel = all + from * apart;
                    // All rows in tiles, and as a plan says; both ways to say what comes next.
                    for (const Index tile_rows : {Index{1}, moe::Plan{}.bf16_tile_rows}) {
                        std::fill_n(c, c_size, untouched);
                        t.product(rows, cols, records, a, a_row, panel, c, c_row,
                                  tile_rows == 1 ? nullptr : panel, tile_rows);
                        ASSERT_TRUE(same(c_size, c, want.data()))
                            << t.name << " rows " << rows << " cols " << cols << " records "
                            << records << " tiles from " << tile_rows;
                    }
                }
        }
    }
}

}  // namespace kernel_test

#endif  // MOE_TESTS_KERNELS_BF16_OPERANDS_HPP
