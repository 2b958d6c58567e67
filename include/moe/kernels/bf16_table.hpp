// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_BF16_TABLE_HPP
#define MOE_KERNELS_BF16_TABLE_HPP

#include <cstddef>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Products of floats that are rounded to bf16 for them, as training makes them: one table per
/// instruction set, the same bits from each. Sums are those of StorageTable::product_bf16, and B
/// lies in panels of Storage::bf16. Apart from StorageTable, so that programs that only train do
/// not compile kernels of stored integers.
///
/// Rounding is to nearest even: what is above the largest bf16 becomes an infinity, NaN stays NaN.
/// No function checks its arguments; pointers may be unaligned; counts may be 0. Nothing is read
/// outside the stated extents.
///
/// A new kernel goes here, into bf16_pack.inl and the initialisers in storage_portable.hpp,
/// storage_body.inl and x86/storage_amx.hpp, and into tests/kernels/bf16_table_test.cpp.
struct Bf16Table {
    const char* name;   ///< "scalar", "avx2", "avx512", "amx"
    Index panel_width;  ///< columns of a panel of B, a divisor of 64
    Index row_bytes;    ///< of one element in a row of A: 2 or 4

    /// A row of A: x rounded, then zeros up to a multiple of 64 elements.
    void (*encode)(Index n, const float* x, std::byte* to);
    /// Rows of A from columns: row i is what encode() makes of x(0, i) to x(k - 1, i).
    /// @param x  x(p, i) = x[p * x_row + i] for i < rows
    /// @param to  row i begins at to + i * to_row bytes, a multiple of 4
    void (*encode_columns)(Index rows, Index k, const float* x, Index x_row, std::byte* to,
                           Index to_row);
    /// Some records of a panel: B(p, j) rounded for p < k and j < cols, else 0.
    /// @param records  of 32 rows each, all of them written
    /// @param k        at most 32 records
    /// @param b        B(p, j) = b[p * b_row + j * b_col]; quick when b_col or b_row is 1
    void (*pack)(Index records, Index k, Index cols, const float* b, Index b_row, Index b_col,
                 std::byte* to);
    /// C = A B for panels of any number of records that begin PanelLayout::bytes(32 records) apart,
    /// room for an even number; otherwise as StorageTable::product_bf16.
    void (*product)(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                    const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                    Index tile_rows);
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_BF16_TABLE_HPP
