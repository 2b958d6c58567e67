// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_AVX512_HPP
#define MOE_KERNELS_X86_AVX512_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <immintrin.h>

#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

// Everything below is compiled for AVX-512 (F, BW, DQ, VL), whatever the flags of the build.
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

/// Float kernels with AVX-512: one register holds the 16 lanes.
///
/// A tile is 14 x 32: 28 accumulators, two vectors of B and a broadcast are 31 of 32 registers.
namespace isa_avx512 {

using S = float;
inline constexpr const char* table_name = "avx512";
inline constexpr int tile_rows = 14;
inline constexpr int tile_vectors = 2;
inline constexpr int row_panels = 1;

struct V {
    __m512 r;
};
template <class>
using Group = V;

[[gnu::always_inline]] inline __mmask16 mask(Index n) {
    n = n < 16 ? n : 16;  // minimum and maximum, not branches: g++ would copy what follows for each
    n = n > 0 ? n : 0;
    return static_cast<__mmask16>((1U << n) - 1U);
}

/// The last call of every kernel: marks the upper parts of the registers as unused. Compilers do so
/// by themselves, but g++ not at -O0, -O1 and -Os, and SSE code after the kernel then waits for
/// those parts in every instruction (std::fma in a loop: 35 times slower, measured).
[[gnu::always_inline]] inline void finish() { _mm256_zeroupper(); }

[[gnu::always_inline]] inline V splat(S x) { return {_mm512_set1_ps(x)}; }
[[gnu::always_inline]] inline V load(const S* p) { return {_mm512_loadu_ps(p)}; }
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    return {_mm512_maskz_loadu_ps(mask(n), p)};
}
[[gnu::always_inline]] inline void store(S* p, V x) { _mm512_storeu_ps(p, x.r); }
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    _mm512_mask_storeu_ps(p, mask(n), x.r);
}
[[gnu::always_inline]] inline V first(Index n, V x, V y) {
    return {_mm512_mask_mov_ps(y.r, mask(n), x.r)};
}
[[gnu::always_inline]] inline V fma(V x, V y, V z) { return {_mm512_fmadd_ps(x.r, y.r, z.r)}; }
[[gnu::always_inline]] inline V add(V x, V y) { return {_mm512_add_ps(x.r, y.r)}; }
[[gnu::always_inline]] inline V sub(V x, V y) { return {_mm512_sub_ps(x.r, y.r)}; }
[[gnu::always_inline]] inline V mul(V x, V y) { return {_mm512_mul_ps(x.r, y.r)}; }
[[gnu::always_inline]] inline V div(V x, V y) { return {_mm512_div_ps(x.r, y.r)}; }
[[gnu::always_inline]] inline V max(V x, V y) { return {_mm512_max_ps(x.r, y.r)}; }
[[gnu::always_inline]] inline V min(V x, V y) { return {_mm512_min_ps(x.r, y.r)}; }
[[gnu::always_inline]] inline V negate(V x) { return {_mm512_xor_ps(x.r, _mm512_set1_ps(-0.0f))}; }
[[gnu::always_inline]] inline V minus_abs(V x) {
    return {_mm512_or_ps(x.r, _mm512_set1_ps(-0.0f))};
}
[[gnu::always_inline]] inline V where_le(V a, V b, V x, V y) {
    return {_mm512_mask_mov_ps(y.r, _mm512_cmp_ps_mask(a.r, b.r, _CMP_LE_OQ), x.r)};
}
/// Bit l is set where a <= b in lane l.
[[gnu::always_inline]] inline std::uint32_t where_le_bits(V a, V b) {
    return _mm512_cmp_ps_mask(a.r, b.r, _CMP_LE_OQ);
}
/// count + 1 where a < b; lanes of count are 32-bit integers.
[[gnu::always_inline]] inline V count_less(V count, V a, V b) {
    const __m512i n = _mm512_castps_si512(count.r);
    return {_mm512_castsi512_ps(_mm512_mask_add_epi32(n, _mm512_cmp_ps_mask(a.r, b.r, _CMP_LT_OQ),
                                                      n, _mm512_set1_epi32(1)))};
}
[[gnu::always_inline]] inline void store_words(std::int32_t* p, V x) {
    _mm512_storeu_si512(p, _mm512_castps_si512(x.r));
}

/// low * high = 2^n, where shifted = n + round_shift.
[[gnu::always_inline]] inline void powers_of_two(V shifted, V& low, V& high) {
    const __m512i bias = _mm512_set1_epi32(127);
    const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted.r),
                                       _mm512_set1_epi32(detail::poly::round_shift_bits));
    const __m512i half = _mm512_srai_epi32(n, 1);
    const __m512i rest = _mm512_sub_epi32(n, half);
    low = {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(half, bias), 23))};
    high = {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(rest, bias), 23))};
}

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    const __mmask16 here = mask(cols);
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j)
        r[j] = j < rows ? _mm512_maskz_loadu_ps(here, from + j * from_row) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += 2) {  // pairs of elements of two rows
        t[j] = _mm512_unpacklo_ps(r[j], r[j + 1]);
        t[j + 1] = _mm512_unpackhi_ps(r[j], r[j + 1]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += 4) {  // of four rows: r[j + c] holds column c of each quarter
        r[j] = _mm512_castpd_ps(
            _mm512_unpacklo_pd(_mm512_castps_pd(t[j]), _mm512_castps_pd(t[j + 2])));
        r[j + 1] = _mm512_castpd_ps(
            _mm512_unpackhi_pd(_mm512_castps_pd(t[j]), _mm512_castps_pd(t[j + 2])));
        r[j + 2] = _mm512_castpd_ps(
            _mm512_unpacklo_pd(_mm512_castps_pd(t[j + 1]), _mm512_castps_pd(t[j + 3])));
        r[j + 3] = _mm512_castpd_ps(
            _mm512_unpackhi_pd(_mm512_castps_pd(t[j + 1]), _mm512_castps_pd(t[j + 3])));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {  // of sixteen rows, quarter by quarter
        const __m512 even_low = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xDD);
        const __m512 even_high = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xDD);
        t[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        t[c + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        t[c + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        t[c + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p)
        if (p < cols) _mm512_storeu_ps(to + p * to_row, t[p]);
}

[[gnu::always_inline]] inline __m128 read_four(const std::byte* from) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(from));
}
/// to[p] lane j = the word at from + j * from_row + 4 p bytes, for p < 4 and j < 16. Inserting from
/// memory takes no shuffle unit: half the shuffles of a transposition of 16 x 16.
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row, V (&to)[4]) {
    __m512 r[4];  // row i of each quarter: the quarters hold rows 0 to 3, 4 to 7 and so on
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const std::byte* const row = from + i * from_row;
        r[i] = _mm512_castps128_ps512(read_four(row));
        r[i] = _mm512_insertf32x4(r[i], read_four(row + 4 * from_row), 1);
        r[i] = _mm512_insertf32x4(r[i], read_four(row + 8 * from_row), 2);
        r[i] = _mm512_insertf32x4(r[i], read_four(row + 12 * from_row), 3);
    }
    const __m512d even_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
    const __m512d even_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
    const __m512d odd_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
    const __m512d odd_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
    to[0].r = _mm512_castpd_ps(_mm512_unpacklo_pd(even_low, odd_low));
    to[1].r = _mm512_castpd_ps(_mm512_unpackhi_pd(even_low, odd_low));
    to[2].r = _mm512_castpd_ps(_mm512_unpacklo_pd(even_high, odd_high));
    to[3].r = _mm512_castpd_ps(_mm512_unpackhi_pd(even_high, odd_high));
}

// ---- narrow elements ----

/// Dwords by their type, for shifts by any number.
typedef int Words __attribute__((vector_size(64)));

[[gnu::always_inline]] inline V widen(const Bf16* from, V) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
[[gnu::always_inline]] inline V widen(const F16* from, V) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
[[gnu::always_inline]] inline V widen(const std::int8_t* from, V scale) {
    const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), scale.r)};
}
[[gnu::always_inline]] inline V part(Bf16, V words, int q, V) {
    const Words x = (Words)words.r;
    return {(__m512)(q == 0 ? x << 16 : x & static_cast<int>(0xFFFF0000U))};
}
/// One shuffle puts the first halves of all words in front of the others.
[[gnu::always_inline]] inline V part(F16, V words, int q, V) {
    const __m512i order =
        _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                         22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i halves = _mm512_permutexvar_epi16(order, _mm512_castps_si512(words.r));
    return {_mm512_cvtph_ps(q == 0 ? _mm512_castsi512_si256(halves)
                                   : _mm512_extracti64x4_epi64(halves, 1))};
}
[[gnu::always_inline]] inline V part(std::int8_t, V words, int q, V scale) {
    const Words x = (Words)words.r << (24 - 8 * q) >> 24;
    return {_mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)x), scale.r)};
}

/// Elementwise functions take 16 elements at once, too.
using E = V;
inline constexpr Index elements = 16;
[[gnu::always_inline]] inline E each(S x) { return splat(x); }
[[gnu::always_inline]] inline E load_each(const S* p, Index n) { return load(p, n); }

#include <moe/kernels/math_float.inl>
//
#include <moe/kernels/body.inl>
//
#include <moe/kernels/narrow.inl>

}  // namespace isa_avx512
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_AVX512_HPP
