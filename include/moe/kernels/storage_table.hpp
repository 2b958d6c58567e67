// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORAGE_TABLE_HPP
#define MOE_KERNELS_STORAGE_TABLE_HPP

#include <cstddef>
#include <cstdint>

#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Rows of B (inputs of a layer) in one record of a panel.
inline constexpr Index record_rows = 32;
/// Rows of B are padded with weights of value 0 to a multiple of this: two records.
inline constexpr Index padded_rows = 64;
/// k padded so.
constexpr Index padded_length(Index k) { return (k + padded_rows - 1) / padded_rows * padded_rows; }

/// Bits of a code, for storages of integers.
constexpr int code_bits(Storage storage) {
    if (storage == Storage::ternary) return 2;
    return storage == Storage::int4 || storage == Storage::int4_zero ? 4 : 8;
}

/// The zero of all codes but those of int4_zero.
constexpr int code_zero(Storage storage) {
    return code_bits(storage) == 8 ? 128 : code_bits(storage) == 4 ? 8 : 1;
}

/// How B [k, panel_width], `panel_width` columns of a matrix of stored weights, lies in memory:
/// `scales` (one float per column for int8 and ternary, else nothing), then one record for every 32
/// rows, an even number of them (of those that Bf16Table multiplies the last may be missing). P is
/// panel_width, j a column, p a row within the record:
///
///     bf16        u16 at [p / 2][j][p % 2]                     32 P u16: pairs of rows, as tiles
///     f16         u16 at [p][j]                                32 P u16
///     int8        u8 at [p / 4][j][p % 4]: q + 128             32 P bytes
///     int8_block  the same, then f16 s[P]
///     int4        byte at [p / 8][j][p % 4]: q of p with p % 8 < 4 in its low half, of p + 4 in
///                 its high half; then f16 s[P]                 16 P + 2 P bytes
///     int4_zero   the same, then u8 z[P]                       16 P + 3 P bytes
///     ternary     byte at [p / 16][j][p % 4], bits 2 (p % 16 / 4) and up: q + 1     8 P bytes
///
/// A weight is (code - zero) s with zero 128, 8, z or 1. Padding rows hold the code of zero (for
/// int4_zero z itself); padding columns too, with s = 0.
struct PanelLayout {
    Index scale_bytes;   ///< in front of the records
    Index record_bytes;  ///< of 32 rows

    /// Records of k rows, an even number.
    static constexpr Index records(Index k) { return padded_length(k) / record_rows; }
    /// Bytes of a panel of k rows, a multiple of 64.
    constexpr Index bytes(Index k) const {
        return (scale_bytes + records(k) * record_bytes + 63) / 64 * 64;
    }
};

/// @param storage  any but fp32
constexpr PanelLayout panel_layout(Storage storage, Index panel_width) {
    switch (storage) {
        case Storage::fp32:
            break;
        case Storage::bf16:
        case Storage::f16:
            return {0, 64 * panel_width};
        case Storage::int8:
            return {4 * panel_width, 32 * panel_width};
        case Storage::int8_block:
            return {0, 34 * panel_width};
        case Storage::int4:
            return {0, 18 * panel_width};
        case Storage::int4_zero:
            return {0, 19 * panel_width};
        case Storage::ternary:
            return {4 * panel_width, 8 * panel_width};
    }
    return {0, 0};
}

/// A row of activations for Compute::int8: a(p) = q(p) scale, with q [k padded to 64] and the sums
/// of q over each 32 elements.
struct Int8Rows {
    const std::int8_t* q;      ///< q(i, p) = q[i * q_row + p]
    Index q_row;               ///< a multiple of 64
    const float* scale;        ///< scale(i) = scale[i]
    const std::int32_t* sums;  ///< sums(i, record) = sums[i * sums_row + record]
    Index sums_row;
};

/// Products with stored weights, in float: one table per instruction set, the same bits from each.
/// A function multiplies panels, whole columns of B, with all rows of A: k is not split by the
/// caller. No function checks its arguments; pointers may be unaligned; rows may be 0.
///
/// exact    `decode` writes the float panel that KernelTable<float>::tile of the same instruction
///          set reads: panel_width is the same.
///
/// bf16     the order of the AMX instruction TDPBF16PS (Intel's manual, volume 2): for each record
///          an even and an odd chain of 16 fused multiply-adds,
///
///              even = fma(a(30), b(30), ... fma(a(2), b(2), fma(a(0), b(0), +0)))
///              odd  = fma(a(31), b(31), ... fma(a(3), b(3), fma(a(1), b(1), +0)))
///              c    = c + (even + odd)
///
///          c starts at +0. Subnormal inputs count as 0 and subnormal results become 0, both with
///          their sign. Padding rows take part.
///
/// int8     exact integers, one sum over `row_chunk` rows where scales are per output, over each
///          record where they are per 32 inputs; chunks and records ascending, c from +0:
///
///              per output     sum = sum over the chunk of (code - zero) q
///                             c = c + float(sum),  at last  C = (c s(j)) a_scale(i)
///              per 32 inputs  sum = sum over the record of (code - zero) q
///                             c = fma(float(sum), s, c),  at last  C = c a_scale(i)
struct StorageTable {
    const char* name;   ///< "scalar", "avx2", "avx2_vnni", "avx512_bw", "avx512", "amx"
    Index panel_width;  ///< that of KernelTable<float> for the same instruction set

    /// Rows of one integer sum where scales are per output: no int32 overflows.
    static constexpr Index row_chunk = 2048;

    /// to[p * panel_width + j] = weight(p, j) for 32 `records` rows, each rounded once.
    /// @param record  the first of `records` records of a panel
    /// @param scales  of the panel; only read for int8 and ternary
    void (*decode)(Storage storage, Index records, const std::byte* record, const float* scales,
                   float* to);

    Index row_panels;  ///< panels that one `row` call takes; 1: there is no `row`, it is null

    /// C = A B, or C += A B if `add`, for one row of A and row_panels panels in bf16 or f16: one
    /// chain per element, as KernelTable<float>::tile has on what `decode` writes.
    /// @param records  32 rows of B each, or 0
    /// @param a        [32 records]
    /// @param record   the first of the first panel; b_panel bytes from one panel to the next
    /// @param c        [row_panels * panel_width]
    void (*row)(Storage storage, Index records, const float* a, const std::byte* record,
                Index b_panel, float* c, bool add);

    /// Bytes of one element that encode_bf16 writes: 2 or 4.
    Index bf16_bytes;
    /// x rounded to bf16, to nearest even (NaN stays NaN), then zeros up to a multiple of 64.
    void (*encode_bf16)(Index n, const float* x, std::byte* to);
    /// C = A B for panels stored as bf16.
    /// @param cols   other columns of C are not touched
    /// @param a      rows as encode_bf16 writes them, a_row bytes apart, best no multiple of 4096
    /// @param panel  the first one, layout of Storage::bf16, `records` records; the others follow
    /// @param c      C(i, j) = c[i * c_row + j]
    /// @param ahead  the panels, as many and as large, that will be read next and may be
    ///               prefetched; null if they are not known
    /// @param tile_rows  from so many rows on tiles are used by a table that has them (amx):
    ///                   Plan::tile_rows
    void (*product_bf16)(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                         Index tile_rows);

    /// q = x / scale rounded to nearest even, scale = max|x| / 127, and the sums of q over each 32;
    /// q and sums are padded with zeros up to a multiple of 64 elements. x is divided, not
    /// multiplied by an inverse. If max|x| < 2^-100, q and scale are 0; if x holds a NaN or an
    /// infinity, q is 0 and scale NaN.
    void (*encode_int8)(Index n, const float* x, std::int8_t* q, float* scale, std::int32_t* sums);
    /// C = A B for panels of integers; as product_bf16.
    void (*product_int8)(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                         Index tile_rows);
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORAGE_TABLE_HPP
