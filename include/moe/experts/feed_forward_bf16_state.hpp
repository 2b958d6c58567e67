// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_BF16_STATE_HPP
#define MOE_EXPERTS_FEED_FORWARD_BF16_STATE_HPP

#include <algorithm>
#include <cstddef>
#include <vector>

#include <moe/core/memory.hpp>
#include <moe/core/plan.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/workspace.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/stored_product.hpp>

namespace moe::inline MOE_ABI::detail {

/// Columns of weights that are packed at a time, for all rows of an expert: with D or F of 2048, 1
/// MiB; half as many of each where there are two matrices. Also rows and columns of a weight's
/// gradient that are made at a time. A multiple of 64, as all that columns are cut at: rows are
/// padded to that.
inline constexpr Index bf16_columns = 256;
/// Most rows of an expert that are summed before they are added to a weight's gradient, counted
/// from the expert's first one. Parts of the rows are cut at multiples of it, so that the sums do
/// not depend on where.
inline constexpr Index bf16_sum_rows = 1024;

/// Records of the sums over some rows of an expert: half as many for few rows as padding to 64
/// took.
inline Index bf16_sum_records(Index rows) { return (rows + record_rows - 1) / record_rows; }
/// Bytes of `records` records of all panels for `cols` columns.
inline Index bf16_panel_bytes(const Bf16Table& table, Index records, Index cols) {
    const Index panels = (cols + table.panel_width - 1) / table.panel_width;
    return panels * records * panel_layout(Storage::bf16, table.panel_width).record_bytes;
}

/// Bytes from row to row of A.
inline Index bf16_stride(const Bf16Table& table, Index k) {
    return encoded_stride(padded_length(k) * table.row_bytes);
}

/// Some records of one panel of B, as Bf16Table::pack() writes them.
inline void pack_bf16_records(const Bf16Table& table, const Strided<float>& b, Index records,
                              Index k, Index cols, std::byte* to) {
    table.pack(records, k, cols, b.data, b.row_stride, b.col_stride, to);
}
/// The same of narrow elements, which are widened first.
inline void pack_bf16_records(const Bf16Table& table, const NarrowStrided& b, Index records,
                              Index k, Index cols, std::byte* to) {
    MOE_ASSERT(b.kernels->panel_width == table.panel_width, "kernels of one instruction set");
    alignas(64) float rows[record_rows * 64];
    for (Index r = 0; r < records; ++r) {
        const Index p = std::min(k, r * record_rows), here = std::min(record_rows, k - p);
        b.from(p, 0).pack(here, cols, rows);
        table.pack(1, here, cols, rows, table.panel_width, 1,
                   to + bf16_panel_bytes(table, r, table.panel_width));
    }
}

/// B [k, cols] rounded, in panels that begin panel_bytes apart.
/// @param b  Strided<float> or NarrowStrided
template <class B>
void pack_bf16(const Bf16Table& table, const B& b, Index k, Index cols, std::byte* to,
               Index panel_bytes) {
    const Index width = table.panel_width, records = PanelLayout::records(k);
    // Rows that are contiguous are read along, in all panels.
    const Index step = b.col_stride == 1 ? 1 : records;
    for (Index r = 0; r < records; r += step)
        for (Index j = 0; j * width < cols; ++j) {
            const Index p = std::min(k, r * record_rows);
            pack_bf16_records(table, b.from(p, j * width), step,
                              std::min(k - p, step * record_rows),
                              std::min(width, cols - j * width),
                              to + j * panel_bytes + bf16_panel_bytes(table, r, width));
        }
}

/// What forward leaves for backward, and scratch of both, with Compute::bf16. Everything is
/// numbered as in FeedForwardState.
template <class S>
struct FeedForwardBf16State {
    /// One worker's.
    struct Scratch {
        Buffer<std::byte> panels;  // of weights
        Buffer<std::byte> rows;    // columns of dg, du or dy, encoded
        Buffer<S> floats;
    };

    FeedForwardState<S> plain;  // what is not rounded; its scratch is not used
    Buffer<std::byte> outer;    // [part, outer_stride] x', in backward then dy'
    Buffer<std::byte> inner;    // [part, inner_stride] h', in backward dg' and du' side by side
    Buffer<std::byte> x_panels, h_panels;  // of all experts: x and h as B, k their rows
    std::vector<Index> records;            // [experts + 1] of a panel, before those of an expert
    std::vector<Scratch> scratch;
    const Bf16Table* table = nullptr;
    Index tile_rows = Plan{}.bf16_tile_rows;  // of the call
    Index outer_stride = 0, inner_stride = 0;

    /// What a call needs at most, however rows are spread over the experts: rows, bytes, or
    /// elements of S.
    struct Sizes {
        Index part, outer_stride, inner_stride, x_panels = 0, h_panels = 0;
        Index scratch_panels, scratch_rows = 0, scratch_floats;

        /// @param experts  of the call
        Sizes(const Bf16Table& bf16, const FeedForwardShape& shape, Index experts, Index rows,
              bool backward, int workers)
            : part(part_rows(shape, rows, workers)) {
            const Index in = shape.model_dim, mid = shape.ffn_dim, out = shape.output_dim;
            const Index gates = shape.gated ? 2 : 1, both = padded_length(mid) * gates;
            const auto panels = [&](Index k, Index cols, Index most) {
                return bf16_panel_bytes(bf16, PanelLayout::records(k), std::min(cols, most));
            };
            outer_stride = bf16_stride(bf16, backward ? std::max(in, out) : in);
            inner_stride = bf16_stride(bf16, backward ? both : mid);
            scratch_panels = std::max(gates * panels(in, mid, bf16_columns / gates),
                                      panels(mid, out, bf16_columns));
            scratch_floats = std::max((std::min(part, feed_forward_rows) + 1) * bf16_columns, in);
            if (!backward) return;
            // Each expert that has rows may leave most of two records empty.
            const Index all = part / record_rows + 2 * std::min(experts, part);
            x_panels = bf16_panel_bytes(bf16, all, in);
            h_panels = bf16_panel_bytes(bf16, all, mid);
            scratch_panels = std::max(
                {scratch_panels, panels(out, mid, bf16_columns), panels(both, in, bf16_columns)});
            scratch_rows = bf16_columns * bf16_stride(bf16, std::min(part, bf16_sum_rows));
            scratch_floats = std::max(scratch_floats, bf16_columns * bf16_columns);
        }
    };

    /// Room for forward of `rows` rows.
    /// @param all  rows that are numbered, of which these are some
    void resize(const FeedForwardShape& shape, Index experts, Index rows, Index all, Keep keep,
                int workers) {
        resize_parts(shape, Sizes(bf16_kernels(isa()), shape, experts, rows, false, workers),
                     experts, workers);
        plain.kept = keep == Keep::everything;
        plain.first_kept = 0;
        const Index size = plain.kept ? checked_product(all, plain.stride) : 0;
        plain.up.resize(size);
        plain.gate.resize(shape.gated ? size : 0);
    }
    /// Room for backward of them.
    void resize_gradients(const FeedForwardShape& shape, Index experts, Index rows, bool of_inputs,
                          int workers) {
        const Sizes sizes(bf16_kernels(isa()), shape, experts, rows, true, workers);
        resize_parts(shape, sizes, experts, workers);
        plain.resize_gradients(shape, sizes.part, of_inputs);
    }

    /// Room for calls of up to `rows` rows.
    void reserve(const FeedForwardShape& shape, Index experts, Index rows, Keep keep, int workers) {
        plain.kept = keep == Keep::everything;  // and not scratch of a part first
        if (keep != Keep::nothing) resize_gradients(shape, experts, rows, true, workers);
        resize(shape, experts, rows, rows, keep, workers);
    }
    /// Bytes that such a call needs at most.
    static Index bytes(const FeedForwardShape& shape, Index experts, Index rows, Keep keep,
                       int workers) {
        const bool backward = keep != Keep::nothing;
        const Sizes sizes(bf16_kernels(isa()), shape, experts, rows, backward, workers);
        const Index kept = keep == Keep::everything ? rows : sizes.part;
        const Index row = FeedForwardState<S>::row_stride(shape.ffn_dim);
        Index elements = workers * sizes.scratch_floats;
        if (backward)
            elements += 3 * sizes.part * row + (shape.gated ? 2 : 1) * kept * row +
                        sizes.part * FeedForwardState<S>::dot_blocks(shape.model_dim);
        return static_cast<Index>(sizeof(S)) * elements +
               sizes.part * (sizes.outer_stride + sizes.inner_stride) + sizes.x_panels +
               sizes.h_panels + workers * (sizes.scratch_panels + sizes.scratch_rows);
    }
    /// Rows of a part of `rows` rows.
    static Index part_rows(const FeedForwardShape& shape, Index rows, int workers) {
        const Index row =
            FeedForwardState<S>::row_stride(shape.ffn_dim) * static_cast<Index>(sizeof(S));
        const Index sums = std::max<Index>(1, feed_forward_part_bytes / row / bf16_sum_rows);
        return std::min(rows, sums * bf16_sum_rows * (1 + workers / 8));
    }

    std::byte* outer_row(const Rows<S>& part, Index row) {
        return outer.data() + (row - part.offsets.front()) * outer_stride;
    }
    std::byte* inner_row(const Rows<S>& part, Index row) {
        return inner.data() + (row - part.offsets.front()) * inner_stride;
    }

private:
    void resize_parts(const FeedForwardShape& shape, const Sizes& sizes, Index experts,
                      int workers) {
        plain.stride = FeedForwardState<S>::row_stride(shape.ffn_dim);
        table = &bf16_kernels(isa());
        outer_stride = sizes.outer_stride;
        inner_stride = sizes.inner_stride;
        outer.resize(checked_product(sizes.part, outer_stride));
        inner.resize(checked_product(sizes.part, inner_stride));
        x_panels.resize(sizes.x_panels);
        h_panels.resize(sizes.h_panels);
        scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(workers)));
        for (Scratch& of : scratch) {
            of.panels.resize(sizes.scratch_panels);
            of.rows.resize(sizes.scratch_rows);
            of.floats.resize(sizes.scratch_floats);
        }
        plain.reserve_items(experts, workers);
        records.reserve(static_cast<std::size_t>(experts) + 1);
    }
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_BF16_STATE_HPP
