// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_AVX512_DOUBLE_HPP
#define MOE_KERNELS_X86_AVX512_DOUBLE_HPP

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

/// Double kernels with AVX-512: two registers hold the 16 lanes.
///
/// A tile is 14 x 16: 28 accumulators, two vectors of B and a broadcast are 31 of 32 registers.
/// Elementwise functions call the standard library's exp and erfc.
namespace isa_avx512_double {

using S = double;
inline constexpr const char* table_name = "avx512";
inline constexpr int tile_rows = 14;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 1;

struct V {
    __m512d low, high;
};
template <class>
using Group = V;

/// Of the first n lanes of a half.
[[gnu::always_inline]] inline __mmask8 mask(Index n) {
    n = n < 8 ? n : 8;  // minimum and maximum, not branches: g++ would copy what follows for each
    n = n > 0 ? n : 0;
    return static_cast<__mmask8>((1U << n) - 1U);
}

/// The last call of every kernel: marks the upper parts of the registers as unused. Compilers do so
/// by themselves, but g++ not at -O0, -O1 and -Os, and SSE code after the kernel then waits for
/// those parts in every instruction (std::fma in a loop: 35 times slower, measured).
[[gnu::always_inline]] inline void finish() { _mm256_zeroupper(); }

[[gnu::always_inline]] inline V splat(S x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    return {_mm512_maskz_loadu_pd(mask(n), p), _mm512_maskz_loadu_pd(mask(n - 8), p + 8)};
}
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    _mm512_mask_storeu_pd(p, mask(n), x.low);
    _mm512_mask_storeu_pd(p + 8, mask(n - 8), x.high);
}
[[gnu::always_inline]] inline V fma(V x, V y, V z) {
    return {_mm512_fmadd_pd(x.low, y.low, z.low), _mm512_fmadd_pd(x.high, y.high, z.high)};
}

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; ++p)
        for (Index j = 0; j < 16; ++j)
            to[p * to_row + j] = j < rows ? from[j * from_row + p] : S(0);
}

[[gnu::always_inline]] inline __m128d read_pair(const std::byte* from) {
    return _mm_loadu_pd(reinterpret_cast<const double*>(from));
}
/// Of eight columns: two elements of rows 0, 2, 4 and 6.
[[gnu::always_inline]] inline __m512d read_pairs(const std::byte* from, Index from_row) {
    __m512d r = _mm512_castpd128_pd512(read_pair(from));
    r = _mm512_insertf64x2(r, read_pair(from + 2 * from_row), 1);
    r = _mm512_insertf64x2(r, read_pair(from + 4 * from_row), 2);
    return _mm512_insertf64x2(r, read_pair(from + 6 * from_row), 3);
}

/// to[p] lane j = the number at from + j * from_row + 8 p bytes, for p < 2 and j < 16.
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row, V (&to)[2]) {
    const __m512d even_low = read_pairs(from, from_row);
    const __m512d odd_low = read_pairs(from + from_row, from_row);
    const __m512d even_high = read_pairs(from + 8 * from_row, from_row);
    const __m512d odd_high = read_pairs(from + 9 * from_row, from_row);
    to[0] = {_mm512_unpacklo_pd(even_low, odd_low), _mm512_unpacklo_pd(even_high, odd_high)};
    to[1] = {_mm512_unpackhi_pd(even_low, odd_low), _mm512_unpackhi_pd(even_high, odd_high)};
}

#include <moe/kernels/single.inl>
//
#include <moe/kernels/math_double.inl>
//
#include <moe/kernels/body.inl>

}  // namespace isa_avx512_double
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_AVX512_DOUBLE_HPP
