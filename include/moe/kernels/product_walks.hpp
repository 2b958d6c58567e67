// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PRODUCT_WALKS_HPP
#define MOE_KERNELS_PRODUCT_WALKS_HPP

#include <algorithm>

#include <moe/config.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/panel_turns.hpp>
#include <moe/kernels/table.hpp>

/// The orders in which products go through their operands; product.hpp chooses one.

namespace moe::inline MOE_ABI {

/// Rows of B that one pass of the tile covers where the panels of B are outermost: the slice of B
/// and that of A, k_block rows of panel_width and of tile_rows elements, take at most 46 KiB, so
/// that both stay in a first-level cache of 48 KiB (256 for AVX-512 in float, 528 for AVX2). The
/// split does not change the result.
template <class S>
Index k_block(const KernelTable<S>& table) {
    const Index bytes = (table.panel_width + table.tile_rows) * static_cast<Index>(sizeof(S));
    return std::max<Index>(16, Index{46 * 1024} / bytes / 16 * 16);
}

/// Where the rows of B are contiguous, what is packed at once: this many rows of B at most, and as
/// many columns as fit the elements below, 512 KiB, a part of the second-level cache.
inline constexpr Index packed_rows = 128;
template <class S>
inline constexpr Index packed_elements = 512 * 1024 / static_cast<Index>(sizeof(S));

/// Elements of the scratch that `product` needs to pack B, and some rows of A, as it goes.
/// @param cols  columns of B, or more
template <class S>
Index product_scratch(const KernelTable<S>& table, Index cols) {
    const Index panel = packed_rows * table.panel_width, slice = k_block(table) * table.panel_width;
    const Index block = std::min(packed_elements<S>, num_panels(table, cols) * panel);
    return std::max(slice, block) + packed_rows * table.tile_rows;
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

inline void check_product([[maybe_unused]] Index rows, [[maybe_unused]] Index cols,
                          [[maybe_unused]] Index k, [[maybe_unused]] Index c_row) {
    MOE_ASSERT(rows >= 0 && cols >= 0 && k >= 0, "extents of a product");
    MOE_ASSERT(rows < 2 || c_row >= cols, "rows of a product do not overlap");
}

/// C (+)= A B with the panels of B outermost: `slice(j, k0, kb)` gives rows [k0, k0 + kb) of panel
/// j; `next(j, k0, kb, part, parts)` a part of what that will read, to be prefetched in kb steps.
/// k is cut at multiples of `unit`.
///
/// While the tiles of one slice are computed, the next slice comes in, a share with each: 16 and 64
/// rows of 768 x 2048 ran at 172 and 185 GFLOP/s with it and at 125 and 174 without. Prefetching
/// between the tiles gained nothing: a burst fills the line buffers and waits. (Figures of this
/// file are those of bench/kernels/tile_bench, AVX-512 in float, one core of a Sapphire Rapids
/// unless they name another.)
template <class S, class Slice, class Next>
void product_of_slices(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                       S* c, Index c_row, bool add, const Slice& slice, const Next& next,
                       Index unit = 1) {
    const EvenSplit row_blocks(rows, table.tile_rows);
    const EvenSplit k_blocks((k + unit - 1) / unit, std::max<Index>(1, k_block(table) / unit));
    const Index steps = num_panels(table, cols) * k_blocks.count;
    for (Index step = 0; step < steps; ++step) {
        const Index j = step / k_blocks.count, s = step % k_blocks.count;
        const Index k0 = unit * k_blocks.begin(s), kb = std::min(k - k0, unit * k_blocks.part(s));
        const Index first_col = j * table.panel_width;
        const Index width = std::min(table.panel_width, cols - first_col);
        const S* const b = slice(j, k0, kb);
        Index row = 0;
        for (Index r = 0; r < row_blocks.count; ++r) {
            Ahead<S> ahead{b, 0};
            if (step + 1 < steps)
                ahead = next((step + 1) / k_blocks.count,
                             unit * k_blocks.begin((step + 1) % k_blocks.count), kb, r,
                             row_blocks.count);
            table.tile(row_blocks.part(r), width, kb,
                       a.data + row * a.row_stride + k0 * a.col_stride, a.row_stride, a.col_stride,
                       b, table.panel_width, c + row * c_row + first_col, c_row, add || s > 0,
                       ahead);
            row += row_blocks.part(r);
        }
    }
}

/// C (+)= A B where the rows of B are contiguous: a block of B outermost, then rows of A, and the
/// panels of the block innermost, so that B is read, and C read and written, along rows as they lie
/// in memory. Weights are read this way in dX, and their gradients are made this way, which are
/// larger than the caches: 3584 x 1024 += [3584, 128] [128, 1024] ran at 77 GFLOP/s with panels
/// outermost, and at 152 so; 16 columns of A instead of 128 at 52 and 106.
///
/// Columns of A that are contiguous, as in dy^T, are packed for each block of rows: elements of one
/// row lie in as many pages as there are columns (131 GFLOP/s without it in the first example). The
/// next block of B is prefetched along its rows, a part of one with each tile: [128, 1024] [1024,
/// 1024] ran at 215 GFLOP/s so and at 190 without (Zen 5). One line of each row with each tile, a
/// page apart, made [128, 3584] [3584, 1024] slower, 114 GFLOP/s instead of 139.
template <class S, class B>
void product_by_rows(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                     const B& b, S* c, Index c_row, bool add, S* scratch) {
    constexpr Index line = 64 / static_cast<Index>(sizeof(S));
    const Index width = table.panel_width;
    const EvenSplit row_blocks(rows, table.tile_rows), k_blocks(k, packed_rows);
    const Index longest = std::max<Index>(1, k_blocks.part(0));
    const EvenSplit panel_blocks(num_panels(table, cols), packed_elements<S> / (longest * width));
    const bool pack_a = a.row_stride == 1 && a.col_stride != 1;
    S* const packed_a = scratch + panel_blocks.part(0) * longest * width;
    for (Index block = 0; block < panel_blocks.count; ++block)
        for (Index s = 0; s < k_blocks.count; ++s) {
            const Index first = panel_blocks.begin(block), panels = panel_blocks.part(block);
            const Index k0 = k_blocks.begin(s), kb = k_blocks.part(s);
            const auto columns = [&](Index j) { return std::min(width, cols - j * width); };
            const B from = b.from(k0, first * width);
            const bool last = s + 1 == k_blocks.count;
            const B next = last ? b.from(0, (first + panels) * width) : from.from(kb, 0);
            const bool more = !last || block + 1 < panel_blocks.count;
            const Index tiles = std::max<Index>(1, row_blocks.count * panels / longest);  // per row
            const Index share = panels * width / tiles;
            constexpr Index together = 16;  // rows of B, of all panels: they may be a page apart
            for (Index p = 0; p < kb; p += together)
                for (Index j = 0; j < panels; ++j)
                    pack_panel(table, from.from(p, j * width), std::min(together, kb - p),
                               columns(first + j), scratch + (j * kb + p) * width);
            Index row = 0;
            for (Index r = 0; r < row_blocks.count; ++r) {
                const Index height = row_blocks.part(r);
                Strided<S> a_block{a.data + row * a.row_stride + k0 * a.col_stride, a.row_stride,
                                   a.col_stride};
                if (pack_a) {
                    for (Index p = 0; p < kb; ++p)
                        std::copy_n(a_block.data + p * a.col_stride, height, packed_a + p * height);
                    a_block = {packed_a, 1, height};
                }
                S* const c_block = c + row * c_row + first * width;
                for (Index j = 0; j < panels; ++j) {
                    if (add && s == 0 && j + 1 < panels)
                        for (Index i = 0; i < height; ++i)
                            for (Index at = 0; at < width; at += line)
                                __builtin_prefetch(c_block + i * c_row + (j + 1) * width + at, 1);
                    const Index tile = r * panels + j;
                    Ahead<S> ahead{scratch, 0};
                    if (more && tile < tiles * kb)
                        ahead = {next.from(tile / tiles, tile % tiles * share).address(),
                                 b.in_scalars(share) / longest + 1};
                    table.tile(height, columns(first + j), kb, a_block.data, a_block.row_stride,
                               a_block.col_stride, scratch + j * kb * width, width,
                               c_block + j * width, c_row, add || s > 0, ahead);
                }
                row += height;
            }
        }
}

/// Most blocks of rows of A for which B is read where it lies although each reads it again: 32 rows
/// of 1024 by 1024 ran at 180 GFLOP/s so and at 137 packed, 64 rows at 176 and 203; with AVX2 16
/// rows at 86 and 84, 24 at 91 and 95 (Zen 5).
inline constexpr Index in_place_blocks = 3;
/// Bytes of C that are added to over and over, a part of the second-level cache.
inline constexpr Index in_place_bytes = 256 * 1024;

/// The same for few rows of A without packing: a few rows of B at a time, no more than a
/// first-level cache holds lines a page apart, along all columns; 1 KiB ahead in each row is
/// prefetched. 2 and 16 rows by 3584 by 1024 ran at 30 and 173 GFLOP/s; at 20 and 139 with 16 rows
/// of B for both and the next panel prefetched, at 17 and 123 in long slices of one panel (Zen 5).
template <class S>
void product_in_place(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                      Strided<S> b, S* c, Index c_row, bool add, S* scratch) {
    constexpr Index element = static_cast<Index>(sizeof(S));
    const Index width = table.panel_width;
    const Index distance = std::max<Index>(1, 1024 / (width * element));  // panels
    const EvenSplit row_blocks(rows, table.tile_rows), k_blocks(k, rows <= 8 ? 8 : 16);
    const Index c_panel = rows * width * element;
    const EvenSplit panel_blocks(num_panels(table, cols),
                                 std::max<Index>(1, in_place_bytes / c_panel));
    for (Index block = 0; block < panel_blocks.count; ++block)
        for (Index s = 0; s < k_blocks.count; ++s) {
            const Index k0 = k_blocks.begin(s), kb = k_blocks.part(s);
            const Index first = panel_blocks.begin(block), panels = panel_blocks.part(block);
            for (Index j = 0; j < panels; ++j) {
                const Index col = (first + j) * width, here = std::min(width, cols - col);
                const S* from = b.data + k0 * b.row_stride + col;
                const S* ahead = from + distance * width;
                if (j + distance >= panels) ahead += kb * b.row_stride - panels * width;
                Index b_row = b.row_stride;
                if (here < width) {  // columns behind the last must not be read
                    table.pack(kb, here, from, b_row, 1, scratch);
                    from = scratch;
                    b_row = width;
                }
                Index row = 0;
                for (Index r = 0; r < row_blocks.count; ++r) {
                    table.tile(row_blocks.part(r), here, kb,
                               a.data + row * a.row_stride + k0 * a.col_stride, a.row_stride,
                               a.col_stride, from, b_row, c + row * c_row + col, c_row,
                               add || s > 0, {r == 0 ? ahead : from, r == 0 ? b.row_stride : 0});
                    row += row_blocks.part(r);
                }
            }
        }
}

/// C (+)= A B with packed B and A of one block of rows, panel by panel, which is the order they
/// have in memory; for Fetcher::processor, which finds what comes after the last panel by itself.
/// Tiles prefetch 8 KiB ahead of what they read: 1, 2, 4, 6, 8 and 12 rows of 768 x 2048 ran at 13,
/// 27, 54, 72, 80 and 99 GFLOP/s so and at 14, 31, 56, 83, 81 and 80 without, 1, 2, 4 and 6 rows
/// with AVX2 at 16, 30, 53 and 66, and at 14, 24, 39 and 49 (Zen 4). `row` made a layer of OLMoE's
/// extents 1.5 times as fast for one token, 0.93 of the rate of a plain read (AVX2, Zen 3).
template <class S>
void product_one_by_one(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                        const S* panels, S* c, Index c_row, bool add) {
    const Index width = table.panel_width, together = table.row_panels * width;
    const Index all = num_panels(table, cols) * width * k;
    constexpr Index distance = 8192 / static_cast<Index>(sizeof(S));
    Index col = 0;
    if (rows == 1 && table.row_panels > 1)
        for (; col + together <= cols; col += together)
            table.row(k, a.data, a.col_stride, panels + col * k, width * k, c + col, add);
    for (; col < cols; col += width)
        table.tile(rows, std::min(width, cols - col), k, a.data, a.row_stride, a.col_stride,
                   panels + col * k, width, c + col, c_row, add,
                   {panels + std::min(col * k + distance, all), width});
}

/// Panels that are multiplied, and prefetched, in turns.
inline constexpr Index panels_together = 8;
/// Rows of B for which they are where A is one block of rows.
inline constexpr Index turn_rows = 128;

/// C (+)= A B with packed B, for Fetcher::kernels or more rows. A few panels take turns, some rows
/// of each at a time; meanwhile the next rows of all of them come in, in streams that are walked
/// together. One core of a Xeon (Emerald Rapids) that read eight rows of memory together at 16, and
/// some time later at 20 GB/s, took 1, 4, 8 and 14 rows by 2048 by 1024 at 15.8, 15.9, 15.7
/// and 14.9 GB/s of weights so, later at 20, 18, 18 and 16, where panel by panel it had
/// been 12.4, 12.8, 11.4 and 10.5, and 15, 15, 13 and 13. With AVX2, where one and two rows have
/// few chains, tiles of two panels gained 7 % on one thread and nothing in a layer on two (Zen 1).
template <class S>
void product_of_panels(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                       Panels<S> b, S* c, Index c_row, bool add) {
    const Index width = table.panel_width, panel = k * width;
    const EvenSplit row_blocks(rows, table.tile_rows);
    if (row_blocks.count == 1 && processor_fetches())
        return product_one_by_one(table, rows, cols, k, a, b.data, c, c_row, add);
    const EvenSplit k_blocks(k, row_blocks.count == 1 ? turn_rows : k_block(table));
    const EvenSplit groups(num_panels(table, cols), panels_together);
    for (Index g = 0; g < groups.count; ++g)
        for (Index s = 0; s < k_blocks.count; ++s) {
            const Index first = groups.begin(g), panels = groups.part(g);
            const Index k0 = k_blocks.begin(s), kb = k_blocks.part(s);
            const S* const from = b.data + first * panel + k0 * width;
            const bool last = s + 1 == k_blocks.count;
            Ahead<S> ahead{from};
            Index share = 0;  // of each stream, with each tile
            const S* const next = !last                  ? from + kb * width
                                  : g + 1 < groups.count ? b.data + (first + panels) * panel
                                                         : b.ahead;
            if (next != nullptr) {
                share = kb * width / (panels * row_blocks.count);
                ahead = {next, panel, panels,
                         (share * panels + kb - 1) / std::max<Index>(1, kb) - panels * panel};
            }
            for (Index j = 0; j < panels; ++j) {
                const Index col = (first + j) * width;
                Index row = 0;
                for (Index r = 0; r < row_blocks.count; ++r) {
                    table.tile(row_blocks.part(r), std::min(width, cols - col), kb,
                               a.data + row * a.row_stride + k0 * a.col_stride, a.row_stride,
                               a.col_stride, from + j * panel, width, c + row * c_row + col, c_row,
                               add || s > 0, ahead);
                    ahead.address += share;
                    row += row_blocks.part(r);
                }
            }
        }
}

/// C (+)= A B with B as it lies in memory, a slice of which is packed at a time.
template <class S, class B>
void product_packing(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
                     const B& b, S* c, Index c_row, bool add, S* scratch) {
    const Index width = table.panel_width;
    product_of_slices(
        table, rows, cols, k, a, c, c_row, add,
        [&](Index j, Index k0, Index kb) -> const S* {
            pack_panel(table, b.from(k0, j * width), kb, std::min(width, cols - j * width),
                       scratch);
            return scratch;
        },
        // A share of the next panel's columns: 16 rows of 768 x 2048, from memory, ran at 141
        // GFLOP/s so and at 101 without (Zen 5).
        [&](Index j, Index k0, Index kb, Index part, Index parts) -> Ahead<S> {
            if (k == 0 || (j + 1) * width >= cols) return {b.from(k0, j * width).address(), 0};
            const Index column = b.in_scalars(b.col_stride);
            return {b.from(0, (j + 1) * width).address() +
                        (k0 * parts + kb * part) * width / parts * column / k,
                    width / parts * column / k};
        });
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_PRODUCT_WALKS_HPP
