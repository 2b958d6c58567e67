// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_AVX2_HPP
#define MOE_KERNELS_X86_AVX2_HPP

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include <immintrin.h>

#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

// Everything below is compiled for AVX2, FMA and F16C, whatever the flags of the build.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace moe::inline MOE_ABI {

/// Float kernels with AVX2 and FMA: two registers hold the 16 lanes.
///
/// A tile is 6 x 16: 12 accumulators, two vectors of B and a broadcast are 15 of 16 registers.
namespace isa_avx2 {

using S = float;
inline constexpr const char* table_name = "avx2";
inline constexpr int tile_rows = 6;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 4;

struct V {
    __m256 low, high;
};
/// Half a V.
struct Half {
    __m256 r;
};
/// 16 columns a multiple of 4 KiB apart do not fit one set of a first-level cache of 32 KiB, and
/// each line is read in four steps. GB/s of weights from memory, 768 x 2048, in sixteens and in
/// eights: 1, 4 and 6 rows 14, 10 and 7, and 20, 17 and 15; 1 and 4 rows in bf16 11.1 and 7.3, and
/// 12.7 and 9.1 (tile_bench, Zen 3). Eights have too few chains for int8.
template <class T>
using Group = std::conditional_t<sizeof(T) == 1, V, Half>;
struct Mask {
    __m256i low, high;
};

/// Sixteen ones, sixteen zeros: a window into it is the mask of the first n lanes.
inline constexpr int mask_window[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                        -1, -1, -1, -1, -1, 0,  0,  0,  0,  0,  0,
                                        0,  0,  0,  0,  0,  0,  0,  0,  0,  0};

[[gnu::always_inline]] inline Mask mask(Index n) {
    const int* window = mask_window + 16 - (n < 0 ? 0 : n > 16 ? 16 : n);
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(window)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(window + 8))};
}

/// The last call of every kernel: marks the upper parts of the registers as unused. Compilers do so
/// by themselves, but g++ not at -O0, -O1 and -Os, and SSE code after the kernel then waits for
/// those parts in every instruction (std::fma in a loop: 35 times slower, measured).
[[gnu::always_inline]] inline void finish() { _mm256_zeroupper(); }

[[gnu::always_inline]] inline V splat(S x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
[[gnu::always_inline]] inline V load(const S* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    if (n >= 16) return load(p);
    const Mask m = mask(n);
    return {_mm256_maskload_ps(p, m.low), _mm256_maskload_ps(p + 8, m.high)};
}
[[gnu::always_inline]] inline void store(S* p, V x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
/// Masked stores are slow on AMD's processors, so only the last register of an array uses one.
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    if (n >= 16) return store(p, x);
    const Mask m = mask(n);
    if (n < 8) return _mm256_maskstore_ps(p, m.low, x.low);
    _mm256_storeu_ps(p, x.low);
    if (n > 8) _mm256_maskstore_ps(p + 8, m.high, x.high);
}
[[gnu::always_inline]] inline V first(Index n, V x, V y) {
    const Mask m = mask(n);
    return {_mm256_blendv_ps(y.low, x.low, _mm256_castsi256_ps(m.low)),
            _mm256_blendv_ps(y.high, x.high, _mm256_castsi256_ps(m.high))};
}
[[gnu::always_inline]] inline V fma(V x, V y, V z) {
    return {_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
}
[[gnu::always_inline]] inline V add(V x, V y) {
    return {_mm256_add_ps(x.low, y.low), _mm256_add_ps(x.high, y.high)};
}
[[gnu::always_inline]] inline V sub(V x, V y) {
    return {_mm256_sub_ps(x.low, y.low), _mm256_sub_ps(x.high, y.high)};
}
[[gnu::always_inline]] inline V mul(V x, V y) {
    return {_mm256_mul_ps(x.low, y.low), _mm256_mul_ps(x.high, y.high)};
}
[[gnu::always_inline]] inline V div(V x, V y) {
    return {_mm256_div_ps(x.low, y.low), _mm256_div_ps(x.high, y.high)};
}
[[gnu::always_inline]] inline V max(V x, V y) {
    return {_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high)};
}
[[gnu::always_inline]] inline V min(V x, V y) {
    return {_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high)};
}
[[gnu::always_inline]] inline V negate(V x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(x.low, sign), _mm256_xor_ps(x.high, sign)};
}
[[gnu::always_inline]] inline V minus_abs(V x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(x.low, sign), _mm256_or_ps(x.high, sign)};
}
[[gnu::always_inline]] inline V where_le(V a, V b, V x, V y) {
    return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LE_OQ)),
            _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LE_OQ))};
}
/// Bit l is set where a <= b in lane l.
[[gnu::always_inline]] inline std::uint32_t where_le_bits(V a, V b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LE_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LE_OQ));
    return static_cast<std::uint32_t>(low | high << 8);
}
/// count + 1 where a < b; lanes of count are 32-bit integers.
[[gnu::always_inline]] inline V count_less(V count, V a, V b) {
    const __m256i low = _mm256_castps_si256(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ));
    const __m256i high = _mm256_castps_si256(_mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ));
    return {_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(count.low), low)),
            _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(count.high), high))};
}
[[gnu::always_inline]] inline void store_words(std::int32_t* p, V x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castps_si256(x.low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), _mm256_castps_si256(x.high));
}

[[gnu::always_inline]] inline void powers_of_two(__m256 shifted, __m256& low, __m256& high) {
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted),
                                       _mm256_set1_epi32(detail::poly::round_shift_bits));
    const __m256i half = _mm256_srai_epi32(n, 1);
    const __m256i rest = _mm256_sub_epi32(n, half);
    low = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    high = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
}
/// low * high = 2^n, where shifted = n + round_shift.
[[gnu::always_inline]] inline void powers_of_two(V shifted, V& low, V& high) {
    powers_of_two(shifted.low, low.low, high.low);
    powers_of_two(shifted.high, low.high, high.high);
}

/// A block of 8 x 8: to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for
/// rows <= j < 8.
inline void transpose_8(Index rows, Index cols, const S* from, Index from_row, S* to,
                        Index to_row) {
    const __m256i here = mask(cols).low;
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
        if (j >= rows)
            r[j] = _mm256_setzero_ps();
        else if (cols >= 8)
            r[j] = _mm256_loadu_ps(from + j * from_row);
        else
            r[j] = _mm256_maskload_ps(from + j * from_row, here);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        t[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
        t[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4) {  // r[j + c] holds column c of each half, of four rows
        r[j] = _mm256_shuffle_ps(t[j], t[j + 2], 0x44);
        r[j + 1] = _mm256_shuffle_ps(t[j], t[j + 2], 0xEE);
        r[j + 2] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0x44);
        r[j + 3] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        t[c] = _mm256_permute2f128_ps(r[c], r[c + 4], 0x20);
        t[c + 4] = _mm256_permute2f128_ps(r[c], r[c + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p)
        if (p < cols) _mm256_storeu_ps(to + p * to_row, t[p]);
}

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; p += 8)
        for (Index j = 0; j < 16; j += 8)
            transpose_8(rows - j, cols - p, j < rows ? from + j * from_row + p : from, from_row,
                        to + p * to_row + j, to_row);
}

[[gnu::always_inline]] inline __m128 read_four(const std::byte* from) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(from));
}
[[gnu::always_inline]] inline Half splat(Half, S x) { return {_mm256_set1_ps(x)}; }
[[gnu::always_inline]] inline Half load(Half, const S* p) { return {_mm256_loadu_ps(p)}; }
/// All of it; the count is for V.
[[gnu::always_inline]] inline void store(S* p, Half x, Index) { _mm256_storeu_ps(p, x.r); }
[[gnu::always_inline]] inline Half fma(Half x, Half y, Half z) {
    return {_mm256_fmadd_ps(x.r, y.r, z.r)};
}

[[gnu::always_inline]] inline Half part(S, Half words, int, Half) { return words; }

/// to[p] lane j = the word at from + j * from_row + 4 p bytes, for p < 4 and j < 8.
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row,
                                                Half (&to)[4]) {
    __m256 r[4];  // row i of each half: the halves hold rows 0 to 3 and 4 to 7
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const std::byte* const row = from + i * from_row;
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(read_four(row)),
                                    read_four(row + 4 * from_row), 1);
    }
    const __m256 even_low = _mm256_unpacklo_ps(r[0], r[1]);
    const __m256 even_high = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 odd_low = _mm256_unpacklo_ps(r[2], r[3]);
    const __m256 odd_high = _mm256_unpackhi_ps(r[2], r[3]);
    to[0].r = _mm256_shuffle_ps(even_low, odd_low, 0x44);
    to[1].r = _mm256_shuffle_ps(even_low, odd_low, 0xEE);
    to[2].r = _mm256_shuffle_ps(even_high, odd_high, 0x44);
    to[3].r = _mm256_shuffle_ps(even_high, odd_high, 0xEE);
}

/// to[p] lane j = the word at from + j * from_row + 4 p bytes, for p < 4 and j < 16.
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row, V (&to)[4]) {
    Half low[4], high[4];
    read_columns(from, from_row, low);
    read_columns(from + 8 * from_row, from_row, high);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) to[p] = {low[p].r, high[p].r};
}

// ---- narrow elements ----

/// Dwords by their type, for shifts by any number.
typedef int Words __attribute__((vector_size(32)));

[[gnu::always_inline]] inline __m128i load_16(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
[[gnu::always_inline]] inline V widen(const Bf16* from, V) {
    return {(__m256)((Words)_mm256_cvtepu16_epi32(load_16(from)) << 16),
            (__m256)((Words)_mm256_cvtepu16_epi32(load_16(from + 8)) << 16)};
}
[[gnu::always_inline]] inline V widen(const F16* from, V) {
    return {_mm256_cvtph_ps(load_16(from)), _mm256_cvtph_ps(load_16(from + 8))};
}
[[gnu::always_inline]] inline V widen(const std::int8_t* from, V scale) {
    const __m128i q = load_16(from);
    return mul({_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)))},
               scale);
}
[[gnu::always_inline]] inline Half part(Bf16, Half words, int q, Half) {
    constexpr int upper = static_cast<int>(0xFFFF0000U);
    return {(__m256)(q == 0 ? (Words)words.r << 16 : (Words)words.r & upper)};
}
[[gnu::always_inline]] inline Half part(F16, Half words, int q, Half) {
    const __m256i w = _mm256_castps_si256(words.r);
    const __m256i wide =
        q == 0 ? _mm256_and_si256(w, _mm256_set1_epi32(0xFFFF)) : _mm256_srli_epi32(w, 16);
    return {_mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)))};
}
[[gnu::always_inline]] inline Half part(std::int8_t, Half words, int q, Half scale) {
    const Words wide = (Words)words.r << (24 - 8 * q) >> 24;
    return {_mm256_mul_ps(_mm256_cvtepi32_ps((__m256i)wide), scale.r)};
}
template <class T>
[[gnu::always_inline]] inline V part(T type, V words, int q, V scale) {
    return {part(type, Half{words.low}, q, Half{scale.low}).r,
            part(type, Half{words.high}, q, Half{scale.high}).r};
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

}  // namespace isa_avx2
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_AVX2_HPP
