// SPDX-License-Identifier: MIT
// Every table for products in bf16 that this machine can run, against the layouts and roundings as
// storage_reference.hpp has them, bit for bit.

#include <moe/kernels/bf16_table.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/storage_reference.hpp>
#include <moe/kernels/stored_matrix.hpp>

#include "bf16_operands.hpp"
#include "guarded.hpp"

namespace {

using kernel_test::Guarded;
using kernel_test::Numbers;
using kernel_test::same;
using moe::Bf16Table;
using moe::Index;
using moe::Storage;

constexpr std::byte sentinel{0xA5};

std::vector<const Bf16Table*> tables() {
    std::vector<const Bf16Table*> all;
    for (const moe::Isa isa : moe::supported_isas())
        if (const Bf16Table* table = &moe::bf16_kernels(isa); all.empty() || all.back() != table)
            all.push_back(table);
    return all;
}

TEST(Bf16Table, IsThatOfTheInstructionSet) {
    EXPECT_EQ(std::string(moe::bf16_kernels(moe::Isa::scalar).name), "scalar");
    for (const Bf16Table* t : tables()) {
        EXPECT_EQ(64 % t->panel_width, 0) << t->name;
        EXPECT_TRUE(t->row_bytes == 2 || t->row_bytes == 4) << t->name;
    }
    for (const moe::Isa isa : moe::supported_isas()) {
        const moe::StorageTable& stored = moe::storage_kernels(isa);
        EXPECT_EQ(moe::bf16_kernels(isa).panel_width, stored.panel_width);
        EXPECT_EQ(moe::bf16_kernels(isa).row_bytes, stored.bf16_bytes);
        EXPECT_EQ(moe::bf16_kernels(isa).encode, stored.encode_bf16);
        EXPECT_EQ(moe::bf16_kernels(isa).product, stored.product_bf16);
    }
}

/// Packs B [k, cols] with these strides, from memory that ends, or begins, with it.
void check_pack(const Bf16Table& t, Index k, Index cols, Index b_row, Index b_col, bool at_end,
                Numbers& random) {
    const Index size = k == 0 || cols == 0 ? 0 : (k - 1) * b_row + (cols - 1) * b_col + 1;
    const Index records = (k + moe::record_rows - 1) / moe::record_rows + k % 2;
    const Index bytes = records * moe::panel_layout(Storage::bf16, t.panel_width).record_bytes;
    Guarded<float> from(size);
    Guarded<std::byte> to(bytes);
    float* const b = at_end ? from.last(size) : from.first(size);
    kernel_test::fill_with_special(size, b, random);
    std::byte* const panel = to.last(bytes);
    std::fill(panel, panel + bytes, sentinel);
    t.pack(records, k, cols, b, b_row, b_col, panel);
    for (Index p = 0; p < records * moe::record_rows; ++p)
        for (Index j = 0; j < t.panel_width; ++j) {
            const float want =
                p < k && j < cols ? moe::exact::round_to_bf16(b[p * b_row + j * b_col]) : 0;
            const float got = moe::exact::weight(Storage::bf16, t.panel_width, panel, p, j);
            ASSERT_TRUE(same(got, want))
                << t.name << ": B(" << p << ", " << j << ") of " << k << " x " << cols << " is "
                << got << ", should be " << want << "; strides " << b_row << " and " << b_col;
        }
}

TEST(Bf16Table, PacksPanelsFromAnyStrides) {
    for (const Bf16Table* t : tables()) {
        Numbers random(1);
        for (const Index k : {0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 100})
            for (Index cols = 0; cols <= t->panel_width; cols += cols < 2 ? 1 : 5)
                for (const bool at_end : {false, true}) {
                    check_pack(*t, k, cols, cols + 3, 1, at_end, random);  // contiguous rows
                    check_pack(*t, k, cols, 1, k + 3, at_end, random);     // contiguous columns
                    check_pack(*t, k, cols, 2, 2 * k + 1, at_end, random);
                    if (HasFatalFailure()) return;
                }
        check_pack(*t, 64, t->panel_width, t->panel_width, 1, true, random);
        check_pack(*t, 64, t->panel_width, 1, 64, true, random);
    }
}

TEST(Bf16Table, PacksWhatStoredMatricesHold) {
    for (const moe::Isa isa : moe::supported_isas()) {
        const Bf16Table& t = moe::bf16_kernels(isa);
        const Index k = 100, cols = t.panel_width;
        std::vector<float> b(static_cast<std::size_t>(k * cols));
        Numbers random(2);
        random.fill(k * cols, b.data());
        moe::StoredMatrix stored;
        stored.pack(Storage::bf16, moe::storage_kernels(isa), {b.data(), cols, 1}, k, cols);
        std::vector<std::byte> panel(static_cast<std::size_t>(stored.panel_bytes()));
        t.pack(stored.records(), k, cols, b.data(), cols, 1, panel.data());
        EXPECT_TRUE(std::equal(panel.begin(), panel.end(), stored.panel(0))) << t.name;
    }
}

TEST(Bf16Table, EncodesColumnsAsItDoesRows) {
    for (const Bf16Table* t : tables()) kernel_test::expect_encoded_columns(*t);
}

TEST(Bf16Table, ProductsAreThoseOfTilesForAnyNumberOfRecords) {
    for (const Bf16Table* t : tables()) kernel_test::expect_bf16_products(*t);
}

}  // namespace
