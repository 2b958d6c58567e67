// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_AVX2_DOUBLE_HPP
#define MOE_KERNELS_X86_AVX2_DOUBLE_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <immintrin.h>

#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

// Everything below is compiled for AVX2 and FMA, whatever the flags of the build.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace moe::inline MOE_ABI {

/// Double kernels with AVX2 and FMA: four registers hold the 16 lanes.
///
/// A tile is 2 x 16: 8 accumulators, four vectors of B and a broadcast are 13 of 16 registers.
/// Elementwise functions call the standard library's exp and erfc.
namespace isa_avx2_double {

using S = double;
inline constexpr const char* table_name = "avx2";
inline constexpr int tile_rows = 2;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 1;

struct V {
    __m256d part[4];
};
template <class>
using Group = V;

/// The last call of every kernel: marks the upper parts of the registers as unused. Compilers do so
/// by themselves, but g++ not at -O0, -O1 and -Os, and SSE code after the kernel then waits for
/// those parts in every instruction (std::fma in a loop: 35 times slower, measured).
[[gnu::always_inline]] inline void finish() { _mm256_zeroupper(); }

[[gnu::always_inline]] inline V splat(S x) {
    const __m256d r = _mm256_set1_pd(x);
    return {{r, r, r, r}};
}
[[gnu::always_inline]] inline V load(const S* p) {
    return {{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8),
             _mm256_loadu_pd(p + 12)}};
}
[[gnu::always_inline]] inline void store(S* p, V x) {
    _mm256_storeu_pd(p, x.part[0]);
    _mm256_storeu_pd(p + 4, x.part[1]);
    _mm256_storeu_pd(p + 8, x.part[2]);
    _mm256_storeu_pd(p + 12, x.part[3]);
}
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    if (n >= 16) return load(p);
    S lane[16] = {};
    for (Index l = 0; l < n; ++l) lane[l] = p[l];
    return load(lane);
}
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    if (n >= 16) return store(p, x);
    S lane[16];
    store(lane, x);
    for (Index l = 0; l < n; ++l) p[l] = lane[l];
}
[[gnu::always_inline]] inline V fma(V x, V y, V z) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) z.part[i] = _mm256_fmadd_pd(x.part[i], y.part[i], z.part[i]);
    return z;
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
/// to[p] lane j = the number at from + j * from_row + 8 p bytes, for p < 2 and j < 16.
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row, V (&to)[2]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const std::byte* const row = from + 4 * i * from_row;
        const __m256d even = _mm256_insertf128_pd(_mm256_castpd128_pd256(read_pair(row)),
                                                  read_pair(row + 2 * from_row), 1);
        const __m256d odd = _mm256_insertf128_pd(_mm256_castpd128_pd256(read_pair(row + from_row)),
                                                 read_pair(row + 3 * from_row), 1);
        to[0].part[i] = _mm256_unpacklo_pd(even, odd);
        to[1].part[i] = _mm256_unpackhi_pd(even, odd);
    }
}

#include <moe/kernels/single.inl>
//
#include <moe/kernels/math_double.inl>
//
#include <moe/kernels/body.inl>

}  // namespace isa_avx2_double
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_AVX2_DOUBLE_HPP
