// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORED_PRODUCT_HPP
#define MOE_KERNELS_STORED_PRODUCT_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <moe/config.hpp>
#include <moe/core/plan.hpp>
#include <moe/kernels/product.hpp>
#include <moe/kernels/stored_matrix.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

/// Up to this many rows of A a slice of B is short, and only `decode` prefetches: what it and the
/// tile take alternates with what memory takes, in shorter turns. 1 row by 2048 by 1024 of
/// bf16 took 124 us with slices of 64 rows of B and 142 us with those of 256, 14 rows 330 and 297
/// (AVX-512, one core of a Zen 5).
inline constexpr Index few_rows = 4;
inline constexpr Index few_rows_records = 2;

}  // namespace detail

/// C (+)= A B in float on the decoded weights: the bits of a product with B.decode().
///
/// Slices of B are decoded into scratch, where the tiles of all rows find them in the first-level
/// cache, while the stored bytes of the next slice come in.
/// @param table        the kernels of the instruction set that B was packed for
/// @param first_panel  of B, where column 0 of C is
/// @param scratch      product_scratch(table, 1) elements, best aligned to 64 bytes
inline void product(const KernelTable<float>& table, Index rows, Index cols, Index k,
                    Strided<float> a, const StoredMatrix& b, Index first_panel, float* c,
                    Index c_row, bool add, float* scratch) {
    detail::check_product(rows, cols, k, c_row);
    MOE_ASSERT(b.table()->panel_width == table.panel_width, "kernels of one instruction set");
    MOE_ASSERT(b.rows() == k, "B has a row for each column of A");
    MOE_ASSERT(first_panel * table.panel_width + cols <= b.cols(), "columns of B");
    if (rows == 0) return;
    const PanelLayout layout = b.layout();
    const Index width = table.panel_width, panel_bytes = b.panel_bytes();
    const std::byte* const panels = b.panel(first_panel);
    const auto records = [](Index count) { return (count + record_rows - 1) / record_rows; };
    const auto record = [&](Index j, Index k0) {
        return panels + j * panel_bytes + layout.scale_bytes +
               k0 / record_rows * layout.record_bytes;
    };
    const auto slice = [&](Index j, Index k0, Index kb) -> const float* {
        b.table()->decode(b.storage(), records(kb), record(j, k0),
                          reinterpret_cast<const float*>(panels + j * panel_bytes), scratch);
        return scratch;
    };
    if (rows > std::min(detail::few_rows, table.tile_rows) || k == 0)
        return detail::product_of_slices(
            table, rows, cols, k, a, c, c_row, add, slice,
            [&](Index j, Index k0, Index kb, Index part, Index parts) -> Ahead<float> {
                const Index size = records(kb) * layout.record_bytes / 4;
                return {reinterpret_cast<const float*>(record(j, k0)) + size * part / parts,
                        (size / parts + kb - 1) / std::max<Index>(1, kb)};
            },
            record_rows);
    constexpr Index step = detail::few_rows_records * record_rows;
    // One row of 16-bit weights: widened in registers, as far as records and panels are whole. A
    // layer of OLMoE's extents took 0.6 of the time for one token in bf16, 0.5 in f16 (Zen 3).
    const Index together = b.table()->row_panels, whole = k / record_rows;
    const bool by_row = rows == 1 && a.col_stride == 1 && together > 1 && whole > 0 &&
                        (b.storage() == Storage::bf16 || b.storage() == Storage::f16) &&
                        detail::processor_fetches();
    const Index done = by_row ? cols / width / together * together : 0;  // panels
    for (Index j = 0; j < done; j += together)
        b.table()->row(b.storage(), whole, a.data, record(j, 0), panel_bytes, c + j * width, add);
    for (Index j = 0; j * width < cols; ++j)
        for (Index k0 = j < done ? whole * record_rows : 0; k0 < k; k0 += step) {
            const Index kb = std::min(step, k - k0);
            table.tile(rows, std::min(width, cols - j * width), kb, a.data + k0 * a.col_stride,
                       a.row_stride, a.col_stride, slice(j, k0, kb), width, c + j * width, c_row,
                       add || k0 > 0, {scratch});
        }
}

/// Operand, or a matrix of stored weights, or one of narrow elements. Only viewed.
template <class S>
struct WeightOperand {
    explicit WeightOperand(const Operand<S>& b) : plain(b) {}
    explicit WeightOperand(const Strided<S>& b) : plain(b) {}
    explicit WeightOperand(const StoredMatrix& b) : stored(&b) {}
    explicit WeightOperand(const NarrowStrided& b) : narrow(b) {}

    /// B without its first `columns` columns; a multiple of the panel width, unless B lies as it is
    /// in memory.
    WeightOperand columns_from(Index columns) const {
        WeightOperand rest = *this;
        if (stored != nullptr)
            rest.first_panel += columns / stored->table()->panel_width;
        else if (narrow.kernels != nullptr)
            rest.narrow = narrow.from(0, columns);
        else
            rest.plain = plain.columns_from(columns);
        return rest;
    }

    /// B when `next` will be read after it: a hint.
    WeightOperand before(const WeightOperand& next) const {
        WeightOperand here = *this;
        if (next.plain.packed != nullptr)
            here.plain.ahead = next.plain.packed->panel(next.plain.first_panel);
        return here;
    }

    Operand<S> plain{Strided<S>{nullptr, 0, 0}};
    const StoredMatrix* stored = nullptr;
    Index first_panel = 0;   ///< of the stored matrix
    NarrowStrided narrow{};  ///< none without kernels
};

/// C (+)= A B with any of them, the same bits.
/// @param scratch  product_scratch(table, cols) elements; product_scratch(table, 1) are enough if B
///                 is packed or stored
template <class S>
void product(const KernelTable<S>& table, Index rows, Index cols, Index k, Strided<S> a,
             const WeightOperand<S>& b, S* c, Index c_row, bool add, S* scratch) {
    if constexpr (std::is_same_v<S, float>) {
        if (b.stored != nullptr)
            return product(table, rows, cols, k, a, *b.stored, b.first_panel, c, c_row, add,
                           scratch);
        if (b.narrow.kernels != nullptr)
            return product(table, rows, cols, k, a, b.narrow, c, c_row, add, scratch,
                           b.plain.column_rows);
    }
    product(table, rows, cols, k, a, b.plain, c, c_row, add, scratch);
}

namespace detail {

/// Rows of activations as a table's encode_bf16 or encode_int8 writes them. Only viewed.
struct EncodedRows {
    std::byte* data;
    float* scales;  ///< one per row, written and read only for int8

    EncodedRows from(Index row, Index stride) const { return {data + row * stride, scales + row}; }
};

/// Bytes from one encoded row of `bytes` bytes to the next, a multiple of 64; none of 4096: rows
/// that far apart would share one set of the first cache.
inline Index encoded_stride(Index bytes) {
    const Index lines = (bytes + 63) / 64 + 1;
    return 64 * (lines % 64 == 0 ? lines + 1 : lines);
}

/// How rows of n floats are encoded for products with stored weights, and those products.
struct RowEncoding {
    const StorageTable* table;
    Compute compute;  ///< bf16 or int8
    Index n;
    Plan plan{};

    Index padded() const { return padded_length(n); }
    /// Bytes from row to row. For int8 the sums stand behind the integers.
    Index stride() const {
        return encoded_stride(compute == Compute::bf16 ? padded() * table->bf16_bytes
                                                       : padded() + padded() / record_rows * 4);
    }

    void encode(const float* x, const EncodedRows& to) const {
        if (compute == Compute::bf16)
            table->encode_bf16(n, x, to.data);
        else
            table->encode_int8(n, x, reinterpret_cast<std::int8_t*>(to.data), to.scales,
                               reinterpret_cast<std::int32_t*>(to.data + padded()));
    }

    /// C = A B for panels of B from `panel` on.
    /// @param ahead  the panels that come next, as many; null if they are not known
    void multiply(Index rows, Index cols, const EncodedRows& a, const StoredMatrix& b, Index panel,
                  float* c, Index c_row, const std::byte* ahead) const {
        if (compute == Compute::bf16)
            return table->product_bf16(rows, cols, b.records(), a.data, stride(), b.panel(panel), c,
                                       c_row, ahead, plan.tile_rows(b.storage()));
        const Int8Rows q{reinterpret_cast<const std::int8_t*>(a.data), stride(), a.scales,
                         reinterpret_cast<const std::int32_t*>(a.data + padded()), stride() / 4};
        table->product_int8(b.storage(), rows, cols, b.records(), q, b.panel(panel), c, c_row,
                            ahead, plan.tile_rows(b.storage()));
    }
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORED_PRODUCT_HPP
