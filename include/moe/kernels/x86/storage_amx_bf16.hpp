// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AMX_BF16_HPP
#define MOE_KERNELS_X86_STORAGE_AMX_BF16_HPP

#include <cstddef>
#include <cstdint>

#include <immintrin.h>

#include <moe/kernels/panel_turns.hpp>
#include <moe/kernels/storage_table.hpp>
#include <moe/kernels/x86/amx.hpp>
#include <moe/kernels/x86/avx512.hpp>

// Everything below is compiled for AVX-512 (F, BW, DQ, VL), whatever the flags of the build. Tiles
// need no flag.
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // the intrinsics' own undefined registers
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace moe::inline MOE_ABI {

/// Products with stored weights in AMX tiles; the rest is AVX-512.
///
/// A block is 32 rows of A times the 32 columns of a panel: tiles 0 and 1 hold A, 2 and 3 B, which
/// lies in the panel as tiles want it, and 4 to 7 C. In one step, 64 bytes of each row of A, four
/// loads feed four products.
namespace storage_amx {

using isa_avx512::finish;
using isa_avx512::mask;

inline constexpr Index panel_width = 32;
inline constexpr Index block_rows = 32;
/// Bytes from one row of a tile of B to the next: two tiles lie side by side.
inline constexpr Index b_row = 4 * panel_width;

/// Shapes the tiles.
/// @param rows   of a block, 1 to 32: up to 16 in tiles 0, 4, 5, the others in 1, 6, 7
/// @param depth  rows of a tile of B; A has 4 bytes in each row for each
inline void configure(Index rows, int depth) {
    const Index upper = rows < 16 ? rows : 16;
    amx::TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        const bool a = tile < 2, b = tile == 2 || tile == 3;
        const Index here = b ? depth : tile == 1 || tile >= 6 ? rows - upper : upper;
        config.rows[tile] = static_cast<std::uint8_t>(here);
        config.row_bytes[tile] = static_cast<std::uint16_t>(here == 0 ? 0 : a ? 4 * depth : 64);
    }
    amx::configure(config);
}

/// What will be read next: `lines` cache lines of it come into the second-level cache per step, one
/// of each panel in turn, as in storage_body.inl.
struct Ahead {
    std::uintptr_t at;  // a number: any address may be counted up from
    std::uintptr_t stream, wrap;
    Index lines, streams, left;

    /// @param from   a record of the first panel; null if that is not known
    /// @param here   what is read now
    /// @param bytes  of each panel, in all steps together
    /// @param steps  of all blocks for one panel
    Ahead(const std::byte* from, const std::byte* here, Index panel_bytes, Index panels,
          Index bytes, Index steps)
        : at(reinterpret_cast<std::uintptr_t>(from == nullptr ? here : from)),
          stream(static_cast<std::uintptr_t>(panel_bytes)),
          wrap(64 - stream * static_cast<std::uintptr_t>(panels)),
          lines(from == nullptr ? 0 : (bytes / 64 + steps - 1) / steps),
          streams(panels),
          left(panels) {}

    [[gnu::always_inline]] void step() {
        for (Index l = 0; l < lines; ++l) {
            __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2);
            at += stream;
            if (--left == 0) {
                at += wrap;
                left = streams;
            }
        }
    }
};

// ---- sums of blocks ----

/// sums = A B, or sums += A B if `add`, for a block of up to 16 rows, or of more if `tall`: floats
/// of bf16, or `integers` of bytes. What is read again soon stays in the first-level cache: B if
/// other blocks `share` it, else A. The rest is loaded for one use: a step with four tiles from the
/// second-level cache and four products took 70 and 65 cycles so, and 85 and 80 without (products
/// alone 64, Emerald Rapids).
template <bool integers, bool tall, bool share>
void block(Index steps, const std::byte* a, Index a_row, const std::byte* b, float* sums, bool add,
           Ahead& ahead) {
    constexpr Index bytes = 4 * panel_width;
    float* const lower = sums + 16 * panel_width;
    if (add) {
        amx::load<4>(sums, bytes);
        amx::load<5>(sums + 16, bytes);
        if constexpr (tall) amx::load<6>(lower, bytes);
        if constexpr (tall) amx::load<7>(lower + 16, bytes);
    } else {
        amx::zero<4>();
        amx::zero<5>();
        if constexpr (tall) amx::zero<6>();
        if constexpr (tall) amx::zero<7>();
    }
    for (; steps > 0; --steps, a += 64, b += 16 * b_row) {
        if constexpr (share) {
            amx::load_once<0>(a, a_row);
            amx::load<2>(b, b_row);
            amx::load<3>(b + 64, b_row);
            if constexpr (tall) amx::load_once<1>(a + 16 * a_row, a_row);
        } else {
            amx::load<0>(a, a_row);
            amx::load_once<2>(b, b_row);
            amx::load_once<3>(b + 64, b_row);
            if constexpr (tall) amx::load<1>(a + 16 * a_row, a_row);
        }
        if constexpr (integers) {
            amx::dot_unsigned<4, 0, 2>();
            amx::dot_unsigned<5, 0, 3>();
            if constexpr (tall) amx::dot_unsigned<6, 1, 2>();
            if constexpr (tall) amx::dot_unsigned<7, 1, 3>();
        } else {
            amx::dot_bf16<4, 0, 2>();
            amx::dot_bf16<5, 0, 3>();
            if constexpr (tall) amx::dot_bf16<6, 1, 2>();
            if constexpr (tall) amx::dot_bf16<7, 1, 3>();
        }
        ahead.step();
    }
    amx::store<4>(sums, bytes);
    amx::store<5>(sums + 16, bytes);
    if constexpr (tall) amx::store<6>(lower, bytes);
    if constexpr (tall) amx::store<7>(lower + 16, bytes);
}

/// Most rows of a group: whole blocks that take turns with a slice of B, which stays in the
/// first-level cache meanwhile, or the rows that are left.
inline constexpr Index group_rows = 4 * block_rows;
inline constexpr Index slice_steps = 16;  // 32 KiB of B

/// Panels that take turns, a slice of each at a time.
inline Index panels_together(Index rows) { return rows <= block_rows ? 8 : 4; }
/// Elements of the sums of a group, of all those panels.
inline constexpr Index sums_size = 4 * group_rows * panel_width;

inline Index blocks_of(Index rows) { return (rows + block_rows - 1) / block_rows; }
/// Rows of the next group.
inline Index group_of(Index left) {
    if (left < block_rows) return left;
    return left < group_rows ? left / block_rows * block_rows : group_rows;
}

/// The same for a group and at most slice_steps steps; sums [rows, panel_width].
template <bool integers>
void group(Index rows, Index steps, const std::byte* a, Index a_row, const std::byte* b,
           float* sums, bool add, Ahead& ahead) {
    for (Index i = 0; i < rows; i += block_rows, a += block_rows * a_row) {
        float* const to = sums + i * panel_width;
        if (rows > block_rows)
            block<integers, true, true>(steps, a, a_row, b, to, add, ahead);
        else if (rows > 16)
            block<integers, true, false>(steps, a, a_row, b, to, add, ahead);
        else
            block<integers, false, false>(steps, a, a_row, b, to, add, ahead);
    }
}

// ---- bf16 ----

inline void encode_bf16(Index n, const float* x, std::byte* to) {
    for (Index i = 0; i < padded_length(n); i += 16) {
        const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask(n - i), x + i));
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
        const __mmask16 nan = _mm512_cmpgt_epi32_mask(
            _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)), _mm512_set1_epi32(0x7F800000));
        const __m512i rounded =
            _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));  // a quiet one
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
    finish();
}

/// n numbers, a multiple of 16, as floats.
inline void widen_bf16(Index n, const std::byte* from, float* to) {
    for (Index i = 0; i < n; i += 16) {
        const __m512i bits = _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * i)));
        _mm512_store_si512(to + i, _mm512_slli_epi32(bits, 16));
    }
    finish();
}

/// StorageTable::product_bf16 in tiles.
inline void tiles_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                       const std::byte* panel, float* c, Index c_row, const std::byte* next) {
    constexpr PanelLayout layout = panel_layout(Storage::bf16, panel_width);
    // Not in C, whose rows may lie a multiple of 4096 bytes apart: all in one set of the cache.
    alignas(64) float sums[sums_size];
    const Index panel_bytes = layout.bytes(records * record_rows), together = panels_together(rows);
    for (detail::PanelTurns turn(panel, panel_bytes, panel_width, cols, together, next);
         turn.panels > 0; turn.next()) {
        const Index col = turn.column, panels = turn.panels;
        for (Index i = 0, here = 0; i < rows; i += here) {
            here = group_of(rows - i);
            if (i == 0 || here < block_rows) configure(here < block_rows ? here : block_rows, 16);
            for (Index r = 0, count = 0; r < records; r += count) {
                count = records - r < slice_steps ? records - r : slice_steps;
                const std::byte* const from = turn.at + r * layout.record_bytes;
                Ahead ahead(r + count < records ? from + count * layout.record_bytes
                            : i + here < rows   ? nullptr
                                                : turn.then,
                            from, panel_bytes, panels, count * layout.record_bytes,
                            count * blocks_of(here));
                for (Index j = 0; j < panels; ++j)
                    group<false>(here, count, a + i * a_row + 64 * r, a_row, from + j * panel_bytes,
                                 sums + j * here * panel_width, r > 0, ahead);
            }
            for (Index row = 0; row < here; ++row)
                for (Index at = 0; at < panels * panel_width; at += 16)
                    _mm512_mask_storeu_ps(
                        c + (i + row) * c_row + col + at, mask(cols - col - at),
                        _mm512_load_ps(sums + (at / panel_width * here + row) * panel_width +
                                       at % panel_width));
        }
    }
    amx::release();
    finish();
}

}  // namespace storage_amx
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_STORAGE_AMX_BF16_HPP
