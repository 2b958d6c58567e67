// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AMX_BF16_HPP
#define MOE_KERNELS_X86_STORAGE_AMX_BF16_HPP

#include <cstddef>
#include <cstdint>

#include <immintrin.h>

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
/// lies in the panel as tiles want it, and 4 to 7 C. Four products then need four loads; from the
/// second-level cache those take as long as the products.
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

/// What will be read next: `lines` cache lines of it come into the second-level cache per step.
struct Ahead {
    std::uintptr_t at;  // a number: any address may be counted up from
    Index lines;

    /// @param bytes  of the panel that one step reads
    /// @param times  how often the panel is read
    Ahead(const std::byte* from, Index bytes, Index times)
        : at(reinterpret_cast<std::uintptr_t>(from)), lines((bytes / 64 + times - 1) / times) {}

    [[gnu::always_inline]] void step() {
        std::uintptr_t line = at;
        for (Index l = 0; l < lines; ++l, line += 64)
            __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
        at = line;
    }
};

inline void encode_bf16(Index n, const float* x, std::byte* to) {
    for (Index i = 0; i < (n + padded_rows - 1) / padded_rows * padded_rows; i += 16) {
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

/// C = A B, or C += A B if `add`, for a block of up to 16 rows, or of more if `tall`. What is read
/// again soon stays in the first-level cache: A's block or, if `keep_b`, the panel's records.
template <bool tall, bool keep_b>
void block_bf16(Index records, const std::byte* a, Index a_row, const std::byte* b, float* c,
                Index c_row, bool add, Ahead& ahead) {
    const Index c_bytes = 4 * c_row;
    float* const lower = c + (tall ? 16 * c_row : 0);
    if (add) {
        amx::load<4>(c, c_bytes);
        amx::load<5>(c + 16, c_bytes);
        if constexpr (tall) amx::load<6>(lower, c_bytes);
        if constexpr (tall) amx::load<7>(lower + 16, c_bytes);
    } else {
        amx::zero<4>();
        amx::zero<5>();
        if constexpr (tall) amx::zero<6>();
        if constexpr (tall) amx::zero<7>();
    }
    for (Index r = 0; r < records; ++r, a += 64, b += 16 * b_row) {
        if constexpr (keep_b) {
            amx::load_once<0>(a, a_row);
            amx::load<2>(b, b_row);
            amx::load<3>(b + 64, b_row);
        } else {
            amx::load<0>(a, a_row);
            amx::load_once<2>(b, b_row);
            amx::load_once<3>(b + 64, b_row);
        }
        amx::dot_bf16<4, 0, 2>();
        amx::dot_bf16<5, 0, 3>();
        if constexpr (tall) {
            if constexpr (keep_b)
                amx::load_once<1>(a + 16 * a_row, a_row);
            else
                amx::load<1>(a + 16 * a_row, a_row);
            amx::dot_bf16<6, 1, 2>();
            amx::dot_bf16<7, 1, 3>();
        }
        ahead.step();
    }
    amx::store<4>(c, c_bytes);
    amx::store<5>(c + 16, c_bytes);
    if constexpr (tall) amx::store<6>(lower, c_bytes);
    if constexpr (tall) amx::store<7>(lower + 16, c_bytes);
}

/// Records of a slice of B that stays in the first-level cache while all of A passes: 32 KiB.
inline constexpr Index slice_records = 16;

inline void product_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                         const std::byte* panel, float* c, Index c_row, const std::byte* next) {
    if (rows == 0) return;
    alignas(64) float narrow[block_rows * panel_width];  // for C, where tiles are wider than it
    const Index record_bytes = panel_layout(Storage::bf16, panel_width).record_bytes;
    Ahead ahead(next, record_bytes, (rows + block_rows - 1) / block_rows);
    const Index whole = cols == panel_width ? rows / block_rows * block_rows : 0;
    Index i = 0;
    if (whole > block_rows) {
        configure(block_rows, 16);
        for (Index r = 0; r < records; r += slice_records) {
            const Index here = records - r < slice_records ? records - r : slice_records;
            for (i = 0; i < whole; i += block_rows)
                block_bf16<true, true>(here, a + i * a_row + 64 * r, a_row,
                                       panel + r * record_bytes, c + i * c_row, c_row, r > 0,
                                       ahead);
        }
    }
    Index shaped = i > 0 ? block_rows : 0;
    for (; i < rows; i += block_rows) {
        const Index here = rows - i < block_rows ? rows - i : block_rows;
        if (here != shaped) configure(shaped = here, 16);
        const bool fits = cols == panel_width;
        float* const to = fits ? c + i * c_row : narrow;
        const Index to_row = fits ? c_row : panel_width;
        if (here > 16)
            block_bf16<true, false>(records, a + i * a_row, a_row, panel, to, to_row, false, ahead);
        else
            block_bf16<false, false>(records, a + i * a_row, a_row, panel, to, to_row, false,
                                     ahead);
        for (Index row = 0; row < (fits ? 0 : here); ++row)
            for (Index j = 0; j < cols; j += 16)
                _mm512_mask_storeu_ps(c + (i + row) * c_row + j, mask(cols - j),
                                      _mm512_load_ps(narrow + row * panel_width + j));
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
