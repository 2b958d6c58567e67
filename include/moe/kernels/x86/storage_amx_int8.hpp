// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AMX_INT8_HPP
#define MOE_KERNELS_X86_STORAGE_AMX_INT8_HPP

#include <cstddef>
#include <cstdint>

#include <immintrin.h>

#include <moe/kernels/x86/storage_amx_bf16.hpp>

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
namespace storage_amx {

// ---- int8, one scale per output ----

/// C = C + float(sums - zero (sum of q)) for `rows` rows and one chunk of `records` records.
/// @param sums    [rows, panel_width]
/// @param q_sums  of the records
/// @param first   C starts at +0
/// @param scales  of the columns after the last chunk, when C is multiplied by both; else nullptr
inline void add_chunk(Index rows, Index cols, Index records, std::int32_t zero, const float* sums,
                      const std::int32_t* q_sums, Index q_sums_row, bool first, const float* scales,
                      const float* a_scale, float* c, Index c_row) {
    for (Index i = 0; i < rows; ++i, sums += panel_width, q_sums += q_sums_row, c += c_row) {
        __m512i total = _mm512_setzero_si512();
        for (Index r = 0; r < records; r += 16)
            total =
                _mm512_add_epi32(total, _mm512_maskz_loadu_epi32(mask(records - r), q_sums + r));
        const __m512i shift = _mm512_set1_epi32(zero * _mm512_reduce_add_epi32(total));
        for (Index j = 0; j < panel_width; j += 16) {
            const __mmask16 here = mask(cols - j);
            __m512 x = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + j), shift));
            if (!first) x = _mm512_add_ps(_mm512_maskz_loadu_ps(here, c + j), x);
            if (scales != nullptr)
                x = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_loadu_ps(scales + j)),
                                  _mm512_set1_ps(a_scale[i]));
            _mm512_mask_storeu_ps(c + j, here, x);
        }
    }
}

/// Codes of `records` records of ternary weights, as int8 records hold them.
inline void unpack_ternary(Index records, const std::byte* from, std::byte* to) {
    const __m512i low = _mm512_set1_epi8(3);
    for (Index group = 0; group < 2 * records; ++group, from += b_row, to += 4 * b_row)
        for (Index half = 0; half < b_row; half += 64) {
            const __m512i v = _mm512_loadu_si512(from + half);
            _mm512_store_si512(to + half, _mm512_and_si512(v, low));
            _mm512_store_si512(to + half + b_row, _mm512_and_si512(_mm512_srli_epi16(v, 2), low));
            _mm512_store_si512(to + half + 2 * b_row,
                               _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
            _mm512_store_si512(to + half + 3 * b_row,
                               _mm512_and_si512(_mm512_srli_epi16(v, 6), low));
        }
}

template <bool ternary>
void product_by_output(Index rows, Index cols, Index records, const Int8Rows& a,
                       const std::byte* panel, float* c, Index c_row, const std::byte* next) {
    constexpr Index chunk = StorageTable::row_chunk / record_rows, slice = 2 * slice_steps;
    static_assert(chunk % slice == 0);
    constexpr PanelLayout layout =
        panel_layout(ternary ? Storage::ternary : Storage::int8, panel_width);
    alignas(64) float sums[sums_size];
    alignas(64) std::byte codes[ternary ? slice * record_rows * panel_width : 64];
    const Index panel_bytes = layout.bytes(records * record_rows), together = panels_together(rows);
    for (detail::PanelTurns turn(panel, panel_bytes, panel_width, cols, together, next);
         turn.panels > 0; turn.next()) {
        const Index col = turn.column, panels = turn.panels;
        for (Index i = 0, here = 0; i < rows; i += here) {
            here = group_of(rows - i);
            if (i == 0 || here < block_rows) configure(here < block_rows ? here : block_rows, 16);
            for (Index r = 0, count = 0; r < records; r += count) {
                count = records - r < slice ? records - r : slice;
                const std::byte* const from =
                    turn.at + layout.scale_bytes + r * layout.record_bytes;
                const Index end = r + count, begin = r / chunk * chunk;
                Ahead ahead(end < records     ? from + count * layout.record_bytes
                            : i + here < rows ? nullptr
                                              : turn.then,
                            from, panel_bytes, panels, count * layout.record_bytes,
                            count / 2 * blocks_of(here));
                for (Index j = 0; j < panels; ++j) {
                    const std::byte* with = from + j * panel_bytes;
                    float* const to = sums + j * here * panel_width;
                    if constexpr (ternary) {
                        unpack_ternary(count, with, codes);
                        with = codes;
                    }
                    group<true>(
                        here, count / 2,
                        reinterpret_cast<const std::byte*>(a.q) + i * a.q_row + r * record_rows,
                        a.q_row, with, to, r > begin, ahead);
                    if (end % chunk > 0 && end < records) continue;
                    const Index at = col + j * panel_width;
                    add_chunk(here, cols - at, end - begin,
                              code_zero(ternary ? Storage::ternary : Storage::int8), to,
                              a.sums + i * a.sums_row + begin, a.sums_row, begin == 0,
                              end == records
                                  ? reinterpret_cast<const float*>(turn.at + j * panel_bytes)
                                  : nullptr,
                              a.scale + i, c + i * c_row + at, c_row);
                }
            }
        }
    }
    amx::release();
    finish();
}

// ---- int8, scales per 32 inputs ----

/// Records whose weights are unpacked at once, 16 KiB.
inline constexpr Index unpacked_records = 16;

/// weight(p, j) = code s(j) of some records.
struct Unpacked {
    alignas(64) std::byte code[unpacked_records][record_rows * panel_width];  ///< signed, as int8
    alignas(64) float scale[unpacked_records][panel_width];
};

inline void unpack(Storage storage, Index records, const std::byte* from, Unpacked& to) {
    const Index bytes = panel_layout(storage, panel_width).record_bytes;
    const Index code_bytes = record_rows * panel_width * code_bits(storage) / 8;
    const __m512i low = _mm512_set1_epi8(15);
    for (Index r = 0; r < records; ++r, from += bytes) {
        const std::byte* const tail = from + code_bytes;
        for (Index half = 0; half < b_row; half += 64) {  // 16 columns
            const Index j = half / 4;
            std::byte* const code = to.code[r] + half;
            _mm512_store_ps(to.scale[r] + j, _mm512_cvtph_ps(_mm256_loadu_si256(
                                                 reinterpret_cast<const __m256i*>(tail + 2 * j))));
            if (storage == Storage::int8_block) {
                for (Index row = 0; row < 8 * b_row; row += b_row)  // q + 128 without its top bit
                    _mm512_store_si512(code + row,
                                       _mm512_xor_si512(_mm512_loadu_si512(from + half + row),
                                                        _mm512_set1_epi8(-128)));
                continue;
            }
            __m512i zero = _mm512_set1_epi8(static_cast<char>(code_zero(Storage::int4)));
            if (storage == Storage::int4_zero)
                zero = _mm512_mullo_epi32(
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(
                        reinterpret_cast<const __m128i*>(tail + 2 * panel_width + j))),
                    _mm512_set1_epi32(0x01010101));
            for (Index row = 0; row < 4 * b_row; row += b_row) {
                const __m512i v = _mm512_loadu_si512(from + half + row);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
                _mm512_store_si512(code + 2 * row, _mm512_sub_epi8(_mm512_and_si512(v, low), zero));
                _mm512_store_si512(code + 2 * row + b_row, _mm512_sub_epi8(high, zero));
            }
        }
    }
}

/// sums = A B for 16 rows, 16 columns and each of two records.
[[gnu::always_inline]] inline void two_records(const std::int8_t* q, Index q_row,
                                               const std::byte* code, std::int32_t* sums) {
    amx::zero<4>();
    amx::load<0>(q, q_row);
    amx::load<2>(code, b_row);
    amx::dot_signed<4, 0, 2>();
    amx::zero<5>();
    amx::load<1>(q + record_rows, q_row);
    amx::load<3>(code + record_rows * panel_width, b_row);
    amx::dot_signed<5, 1, 3>();
    amx::store<4>(sums, 64);
    amx::store<5>(sums + 256, 64);
}

/// C = fma(float(sum), s, C) for those.
[[gnu::always_inline]] inline void add_two(const std::int32_t* sums, const float* scale,
                                           __m512* c) {
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
        const __m512 s = _mm512_load_ps(scale + r * panel_width);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            c[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + 256 * r + 16 * i)),
                                   s, c[i]);
    }
}

/// C = A B, or C += A B if `add`, for up to 16 rows (A has 16), `cols` of 16 columns and a pair of
/// records or more; at last times a_scale, if that is there. C stays in registers, and the tiles
/// are one pair ahead of it.
inline void block_by_record(Index rows, Index cols, Index pairs, const std::int8_t* q, Index q_row,
                            const std::byte* code, const float* scale, const float* a_scale,
                            float* c, Index c_row, bool add, Ahead& ahead) {
    alignas(64) std::int32_t sums[2][2 * 256];
    alignas(64) float now[16 * 16];
    for (Index i = 0; i < 16; ++i)
        _mm512_store_ps(now + 16 * i, add && i < rows
                                          ? _mm512_maskz_loadu_ps(mask(cols), c + i * c_row)
                                          : _mm512_setzero_ps());
    __m512 acc[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) acc[i] = _mm512_load_ps(now + 16 * i);
    two_records(q, q_row, code, sums[0]);
    ahead.step();
    for (Index pair = 1; pair < pairs; ++pair) {
        q += 2 * record_rows;
        code += 2 * record_rows * panel_width;
        two_records(q, q_row, code, sums[pair % 2]);
        ahead.step();
        add_two(sums[(pair - 1) % 2], scale, acc);
        scale += 2 * panel_width;
    }
    add_two(sums[(pairs - 1) % 2], scale, acc);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_ps(now + 16 * i, acc[i]);
    for (Index i = 0; i < rows; ++i) {
        const __m512 s = _mm512_set1_ps(a_scale == nullptr ? 1.0f : a_scale[i]);
        _mm512_mask_storeu_ps(c + i * c_row, mask(cols),
                              _mm512_mul_ps(_mm512_load_ps(now + 16 * i), s));
    }
}

inline void product_by_record(Storage storage, Index rows, Index cols, Index records,
                              const Int8Rows& a, const std::byte* panel, float* c, Index c_row,
                              const std::byte* next) {
    constexpr Index q_bytes = unpacked_records * record_rows;
    alignas(64) std::int8_t padded[16 * q_bytes];  // the last rows of A, up to 16
    Unpacked b;
    const PanelLayout layout = panel_layout(storage, panel_width);
    const Index panel_bytes = layout.bytes(records * record_rows), together = panels_together(rows);
    configure(block_rows, 8);
    for (detail::PanelTurns turn(panel, panel_bytes, panel_width, cols, together, next);
         turn.panels > 0; turn.next()) {
        const Index col = turn.column, panels = turn.panels;
        for (Index r = 0, count = 0; r < records; r += count) {
            count = records - r < unpacked_records ? records - r : unpacked_records;
            const bool last = r + count == records;
            const std::byte* const from = turn.at + r * layout.record_bytes;
            Ahead ahead(last ? turn.then : from + count * layout.record_bytes, from, panel_bytes,
                        panels, count * layout.record_bytes, count * ((rows + 15) / 16));
            for (Index j = 0; j < panels * panel_width; j += 16) {
                if (j % panel_width == 0)
                    unpack(storage, count, from + j / panel_width * panel_bytes, b);
                if (col + j >= cols) break;
                for (Index i = 0; i < rows; i += 16) {
                    const Index height = rows - i < 16 ? rows - i : 16;
                    const std::int8_t* q = a.q + i * a.q_row + r * record_rows;
                    Index q_row = a.q_row;
                    if (height < 16) {
                        for (Index row = 0; row < 16; ++row)
                            for (Index p = 0; p < count * record_rows; p += 64)
                                _mm512_store_si512(padded + row * q_bytes + p,
                                                   row < height
                                                       ? _mm512_loadu_si512(q + row * q_row + p)
                                                       : _mm512_setzero_si512());
                        q = padded;
                        q_row = q_bytes;
                    }
                    block_by_record(height, cols - col - j, count / 2, q, q_row,
                                    b.code[0] + 4 * (j % panel_width), b.scale[0] + j % panel_width,
                                    last ? a.scale + i : nullptr, c + i * c_row + col + j, c_row,
                                    r > 0, ahead);
                }
            }
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

#endif  // MOE_KERNELS_X86_STORAGE_AMX_INT8_HPP
