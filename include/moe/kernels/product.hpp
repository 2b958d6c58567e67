// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PRODUCT_HPP
#define MOE_KERNELS_PRODUCT_HPP

#include <algorithm>

#include <moe/config.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// Rows of B that one pass of the tile covers: the slice of B and that of A, k_block rows of
/// panel_width and of tile_rows elements, take at most 46 KiB, so that both stay in a first-level
/// cache of 48 KiB (256 for AVX-512 in float, 528 for AVX2). The split does not change the result.
template <class S>
Index k_block(const KernelTable<S>& table) {
    const Index bytes = (table.panel_width + table.tile_rows) * static_cast<Index>(sizeof(S));
    return std::max<Index>(16, Index{46 * 1024} / bytes / 16 * 16);
}

/// Panels that are packed together where the rows of B are contiguous: wider pieces of each row,
/// since rows may be a page apart.
inline constexpr Index packed_together = 4;

/// Elements of the scratch that `product` needs to pack B as it goes.
template <class S>
Index product_scratch(const KernelTable<S>& table) {
    return k_block(table) * table.panel_width * packed_together;
}

namespace detail {

/// Equal parts of `total` that are no larger than `most`; the first `longer` have one more.
struct EvenSplit {
    Index count;
    Index size;
    Index longer;

    EvenSplit(Index total, Index most)
        : count(std::max<Index>(1, total / most + (total % most != 0 ? 1 : 0))),
          size(total / count),
          longer(total % count) {}
    Index part(Index i) const { return size + (i < longer ? 1 : 0); }
    Index begin(Index i) const { return size * i + std::min(i, longer); }
};

/// Where the next tiles' share of B lies, for the tile's prefetch.
template <class S>
struct Ahead {
    const S* address = nullptr;
    Index step = 0;
};

/// `slice(j, k0, kb, &b_row)` gives rows [k0, k0 + kb) of panel j; `next(j, k0, kb, part, parts)`
/// a part of what that will read for `group` panels from j on, to be prefetched in kb steps.
///
/// While the tiles of one slice are computed, the next slice comes in, a share with each. Without
/// it, 128 rows by 512 columns by 256 ran at 177 GFLOP/s from the second-level cache and at 130
/// from the third (one core of a Sapphire Rapids, AVX-512); with it at 175 and 163. Prefetching
/// between the tiles gained nothing: a burst fills the line buffers and waits. Panels are the outer
/// loop, slices of k the inner one. In groups it is the other way round, in short slices: B is then
/// read along its rows as they lie in memory. Where C is added to, which is how weight gradients
/// are made, the next block of C is asked for between the tiles: its rows are far apart, which no
/// hardware prefetcher expects. (Asking for them from within the tiles, one row in each step, was 4
/// to 8 % slower.)
template <class S, class Slice, class Next>
void product_of_slices(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                       S* c, Index c_row, bool add, Index group, const Slice& slice,
                       const Next& next) {
    MOE_ASSERT(rows >= 0 && cols >= 0 && k >= 0, "extents of a product");
    MOE_ASSERT(rows < 2 || c_row >= cols, "rows of a product do not overlap");
    if (rows == 0) return;
    constexpr Index line = 64 / static_cast<Index>(sizeof(S));
    const bool by_row = group > 1;
    const EvenSplit row_blocks(rows, table.tile_rows);
    const EvenSplit k_blocks(k, by_row ? k_block(table) / 4 : k_block(table));
    const Index all_panels = num_panels(table, cols);
    const Index groups = (all_panels + group - 1) / group;
    const Index steps = groups * k_blocks.count;
    for (Index step = 0; step < steps; ++step) {
        const auto first_panel = [&](Index i) {
            return group * (by_row ? i % groups : i / k_blocks.count);
        };
        const auto slice_of = [&](Index i) { return by_row ? i / groups : i % k_blocks.count; };
        const Index first = first_panel(step), panels = std::min(group, all_panels - first);
        const Index s = slice_of(step), k0 = k_blocks.begin(s), kb = k_blocks.part(s);
        for (Index j = first; j < first + panels; ++j) {
            const Index first_col = j * table.panel_width;
            const Index width = std::min(table.panel_width, cols - first_col);
            Index b_row = 0;
            const S* b = slice(j, k0, kb, b_row);
            Index row = 0;
            for (Index r = 0; r < row_blocks.count; ++r) {
                const Index height = row_blocks.part(r);
                Ahead<S> ahead{b, 0};
                if (step + 1 < steps)
                    ahead = next(first_panel(step + 1), k_blocks.begin(slice_of(step + 1)), kb,
                                 (j - first) * row_blocks.count + r, panels * row_blocks.count);
                if (add && s == 0 && r + 1 < row_blocks.count)
                    for (Index i = row + height; i < row + height + row_blocks.part(r + 1); ++i)
                        for (Index at = 0; at < width; at += line)
                            __builtin_prefetch(c + i * c_row + first_col + at, 1);
                table.tile(height, width, kb, a.data + row * a.row_stride + k0 * a.col_stride,
                           a.row_stride, a.col_stride, b, b_row, c + row * c_row + first_col, c_row,
                           add || s > 0, ahead.address, ahead.step);
                row += height;
            }
        }
    }
}

}  // namespace detail

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
    detail::product_of_slices(
        table, rows, cols, k, a, c, c_row, add, Index{1},
        [&](Index j, Index k0, Index, Index& b_row) {
            b_row = table.panel_width;
            return b.data + (j * k + k0) * table.panel_width;
        },
        [&](Index j, Index k0, Index kb, Index part, Index parts) -> detail::Ahead<S> {
            const Index size = kb * table.panel_width;
            return {b.data + (j * k + k0) * table.panel_width + size * part / parts,
                    (size / parts + kb - 1) / kb};
        });
}

/// The same with B as it lies in memory. Each slice is packed once for all rows, into scratch,
/// except where it is read once only: contiguous rows of B and one block of rows of A.
///
/// Weights W [out, in], row-major, are B in three ways: x W^T is {W, 1, in}, dy W is {W, in, 1},
/// and in dW = dy^T x the left side is {dy, 1, out}.
///
/// @param scratch  product_scratch(table) elements, best aligned to 64 bytes; one per task
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             Strided<S> b, S* c, Index c_row, bool add, S* scratch) {
    MOE_ASSERT(scratch != nullptr, "a product needs room to pack what is not packed");
    const Index width = table.panel_width, all_panels = num_panels(table, cols);
    const bool by_row = b.col_stride == 1, in_place = by_row && rows <= table.tile_rows;
    const Index group = by_row && !in_place ? packed_together : 1;
    const auto at = [&](Index j, Index p) {
        return b.data + p * b.row_stride + j * width * b.col_stride;
    };
    const auto pack = [&](Index j, Index k0, Index kb, Index panels) {
        constexpr Index step = 16;  // rows of B at a time, all panels of the group
        for (Index p = 0; p < kb; p += panels == 1 ? kb : step)
            for (Index g = 0; g < panels; ++g)
                table.pack(panels == 1 ? kb : std::min(step, kb - p),
                           std::min(width, cols - (j + g) * width), at(j + g, k0 + p), b.row_stride,
                           b.col_stride, scratch + (g * kb + p) * width);
    };
    detail::product_of_slices(
        table, rows, cols, k, a, c, c_row, add, group,
        [&](Index j, Index k0, Index kb, Index& b_row) -> const S* {
            if (in_place && (j + 1) * width <= cols) {
                b_row = b.row_stride;
                return at(j, k0);
            }
            const Index g = j % group;
            if (g == 0) pack(j, k0, kb, std::min(group, all_panels - j));
            b_row = width;
            return scratch + g * kb * width;
        },
        [&](Index j, Index k0, Index, Index part, Index) -> detail::Ahead<S> {
            // Rows of B, one line of each per tile; columns are left to the hardware.
            constexpr Index line = 64 / static_cast<Index>(sizeof(S));
            if (!by_row || part * line >= group * width) return {at(j, k0), 0};
            return {at(j, k0) + part * line, b.row_stride};
        });
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
    Index first_panel = 0;  ///< of the packed matrix
};

/// The same with either.
/// @param scratch  product_scratch(table) elements; may be null if B is packed
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             const Operand<S>& b, S* c, Index c_row, bool add, S* scratch) {
    if (b.packed == nullptr)
        return product(table, rows, cols, k, a, b.unpacked, c, c_row, add, scratch);
    MOE_ASSERT(b.packed->table() == &table, "the kernels in use are those B was packed for");
    MOE_ASSERT(b.packed->rows() == k, "B has a row for each column of A");
    MOE_ASSERT(b.first_panel * table.panel_width + cols <= b.packed->cols(), "columns of B");
    product(table, rows, cols, k, a, Panels<S>{b.packed->panel(b.first_panel)}, c, c_row, add);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_PRODUCT_HPP
