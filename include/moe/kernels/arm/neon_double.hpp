// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_ARM_NEON_DOUBLE_HPP
#define MOE_KERNELS_ARM_NEON_DOUBLE_HPP

#if defined(__aarch64__)

#include <cmath>
#include <limits>
#include <utility>

#include <arm_neon.h>

#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// Double kernels with NEON: eight registers hold the 16 lanes.
///
/// A tile is 2 x 16: 16 accumulators, eight vectors of B and an element of A are 25 of 32
/// registers. Elementwise functions call the standard library's exp and erfc.
/// Tested under emulation; not timed on a processor.
namespace isa_neon_double {

using S = double;
inline constexpr const char* table_name = "neon";
inline constexpr int tile_rows = 2;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 1;

struct V {
    float64x2_t part[8];
};
template <class>
using Group = V;

/// The last call of every kernel; nothing to do here.
inline void finish() {}

[[gnu::always_inline]] inline V splat(S x) {
    const float64x2_t r = vdupq_n_f64(x);
    return {{r, r, r, r, r, r, r, r}};
}
[[gnu::always_inline]] inline V load(const S* p) {
    V r;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r.part[i] = vld1q_f64(p + 2 * i);
    return r;
}
[[gnu::always_inline]] inline void store(S* p, V x) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) vst1q_f64(p + 2 * i, x.part[i]);
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
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) z.part[i] = vfmaq_f64(z.part[i], y.part[i], x.part[i]);
    return z;
}
/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; ++p)
        for (Index j = 0; j < 16; ++j)
            to[p * to_row + j] = j < rows ? from[j * from_row + p] : S(0);
}

#include <moe/kernels/single.inl>
//
#include <moe/kernels/math_double.inl>
//
#include <moe/kernels/body.inl>

}  // namespace isa_neon_double
}  // namespace moe::inline MOE_ABI

#endif  // defined(__aarch64__)
#endif  // MOE_KERNELS_ARM_NEON_DOUBLE_HPP
