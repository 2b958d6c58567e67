// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PRODUCT_HPP
#define MOE_KERNELS_PRODUCT_HPP

#include <algorithm>

#include <moe/config.hpp>
#include <moe/core/plan.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/product_walks.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// C = A B, or C += A B if `add`; B is packed.
///
///     C(i, j) = fma(A(i, k-1), B(k-1, j), ... fma(A(i, 0), B(0, j), add ? C(i, j) : 0))
///
/// One chain in the order of k, so the bits depend neither on how rows, columns and k are split nor
/// on packing. Rows are cut into blocks of equal height (32 rows of at most 14: 11 + 11 + 10).
/// Allocates nothing. Tasks may share C if their columns differ: each passes the panels of its own.
///
/// @param rows  0 writes nothing
/// @param cols  0 writes nothing
/// @param k     0 writes zeros, or leaves C if `add`
/// @param a     [rows, k]; quickest with a row stride that is no multiple of 4096 bytes
/// @param b     [k, cols] or wider, packed with the same table
/// @param c     [rows, cols] with c_row elements between rows
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             Panels<S> b, S* c, Index c_row, bool add) {
    detail::check_product(rows, cols, k, c_row);
    if (rows > 0) detail::product_of_panels(table, rows, cols, k, a, b, c, c_row, add);
}

/// The same with B as it lies in memory. It is packed in pieces, each once for all rows, into
/// scratch, or read where it lies if A has few rows.
///
/// Weights W [out, in], row-major, are B in three ways: x W^T is {W, 1, in}, dy W is {W, in, 1},
/// and in dW = dy^T x the left side is {dy, 1, out}.
///
/// @param scratch      product_scratch(table, cols) elements, best aligned to 64 bytes; one per
///                     task
/// @param column_rows  Plan::column_rows
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             Strided<S> b, S* c, Index c_row, bool add, S* scratch,
             Index column_rows = Plan{}.column_rows) {
    detail::check_product(rows, cols, k, c_row);
    MOE_ASSERT(scratch != nullptr, "a product needs room to pack what is not packed");
    if (rows == 0) return;
    if (b.col_stride == 1 && rows <= detail::in_place_blocks * table.tile_rows)
        return detail::product_in_place(table, rows, cols, k, a, b, c, c_row, add, scratch);
    if (b.col_stride == 1)
        return detail::product_by_rows(table, rows, cols, k, a, b, c, c_row, add, scratch);
    // 1, 4 and 8 rows of 768 x 2048 took weights from memory at 34, 32 and 25 GB/s so, at 18, 18
    // and 16 packed here and at 42, 41 and 39 packed beforehand (Zen 5).
    if (b.row_stride == 1 && a.col_stride == 1 && rows <= std::min(column_rows, table.column_rows))
        return table.columns(rows, cols, k, a.data, a.row_stride, b.data, b.col_stride, c, c_row,
                             add);
    detail::product_packing(table, rows, cols, k, a, b, c, c_row, add, scratch);
}

/// The same with B of narrow elements, widened in registers where A has few rows and the columns of
/// B are contiguous, and as they are packed otherwise.
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             const NarrowStrided& b, S* c, Index c_row, bool add, S* scratch,
             Index column_rows = Plan{}.column_rows) {
    detail::check_product(rows, cols, k, c_row);
    MOE_ASSERT(scratch != nullptr, "a product needs room to pack what is not packed");
    MOE_ASSERT(b.kernels->panel_width == table.panel_width, "kernels of one instruction set");
    if (rows == 0) return;
    if (b.col_stride == 1)
        return detail::product_by_rows(table, rows, cols, k, a, b, c, c_row, add, scratch);
    if (b.row_stride == 1 && b.scale_row == 0 && a.col_stride == 1 &&
        rows <= std::min(column_rows, table.column_rows))
        return b.kernels->columns(rows, cols, k, a.data, a.row_stride, b.data, b.col_stride,
                                  b.scales, c, c_row, add);
    detail::product_packing(table, rows, cols, k, a, b, c, c_row, add, scratch);
}

/// The right-hand side B of a product: as it lies in memory, or packed. Only viewed.
template <class S>
struct Operand {
    explicit Operand(const Strided<S>& b) : unpacked(b) {}
    explicit Operand(const PackedMatrix<S>& b) : packed(&b) {}

    /// B without its first `columns` columns.
    /// @param columns  if B is packed, a multiple of the panel width
    Operand columns_from(Index columns) const {
        Operand rest = *this;
        if (packed != nullptr) {
            MOE_ASSERT(columns % packed->table()->panel_width == 0, "packed columns start a panel");
            rest.first_panel += columns / packed->table()->panel_width;
        } else {
            rest.unpacked.data += columns * unpacked.col_stride;
        }
        return rest;
    }

    Strided<S> unpacked{nullptr, 0, 1};
    const PackedMatrix<S>* packed = nullptr;
    Index first_panel = 0;     ///< of the packed matrix
    const S* ahead = nullptr;  ///< Panels::ahead
    Index column_rows = Plan{}.column_rows;
};

/// The same with either.
/// @param scratch  product_scratch(table, cols) elements; may be null if B is packed
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             const Operand<S>& b, S* c, Index c_row, bool add, S* scratch) {
    if (b.packed == nullptr)
        return product(table, rows, cols, k, a, b.unpacked, c, c_row, add, scratch, b.column_rows);
    MOE_ASSERT(b.packed->table() == &table, "the kernels in use are those B was packed for");
    MOE_ASSERT(b.packed->rows() == k, "B has a row for each column of A");
    MOE_ASSERT(b.first_panel * table.panel_width + cols <= b.packed->cols(), "columns of B");
    Panels<S> panels = b.packed->view(b.first_panel);
    panels.ahead = b.ahead;
    product(table, rows, cols, k, a, panels, c, c_row, add);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_PRODUCT_HPP
