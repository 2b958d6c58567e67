// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_ARM_NEON_HPP
#define MOE_KERNELS_ARM_NEON_HPP

#if defined(__aarch64__)

#include <cmath>
#include <limits>
#include <utility>

#include <arm_neon.h>

#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// Float kernels with NEON, which every 64-bit ARM processor has: four registers hold the 16 lanes.
///
/// A tile is 5 x 16: 20 accumulators, four vectors of B and one element of A for each row, which
/// g++ loads ahead, are 29 of 32 registers. (With six rows g++ 12 puts two accumulators on the
/// stack.) Tested under emulation; not timed on a processor.
namespace isa_neon {

using S = float;
inline constexpr const char* table_name = "neon";
inline constexpr int tile_rows = 5;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 1;

struct V {
    float32x4_t part[4];
};
template <class>
using Group = V;

/// The last call of every kernel; nothing to do here.
inline void finish() {}

[[gnu::always_inline]] inline V splat(S x) {
    const float32x4_t r = vdupq_n_f32(x);
    return {{r, r, r, r}};
}
[[gnu::always_inline]] inline V load(const S* p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
[[gnu::always_inline]] inline void store(S* p, V x) {
    vst1q_f32(p, x.part[0]);
    vst1q_f32(p + 4, x.part[1]);
    vst1q_f32(p + 8, x.part[2]);
    vst1q_f32(p + 12, x.part[3]);
}

/// to[l] = from[l] for l < n, where n is 0 to 15. No loop, as compilers make memcpy of one, and a
/// call would push the caller's vectors onto the stack.
[[gnu::always_inline]] inline void copy(Index n, const S* from, S* to) {
    if (n & 8) {
        vst1q_f32(to, vld1q_f32(from));
        vst1q_f32(to + 4, vld1q_f32(from + 4));
        from += 8, to += 8;
    }
    if (n & 4) {
        vst1q_f32(to, vld1q_f32(from));
        from += 4, to += 4;
    }
    if (n & 2) {
        vst1_f32(to, vld1_f32(from));
        from += 2, to += 2;
    }
    if (n & 1) *to = *from;
}
/// There are no masked loads and stores: the last vector of an array goes through the stack.
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    if (n >= 16) return load(p);
    if (n <= 0) return splat(0);
    S lane[16] = {};
    copy(n, p, lane);
    return load(lane);
}
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    if (n >= 16) return store(p, x);
    S lane[16];
    store(lane, x);
    copy(n, lane, p);
}

/// Lanes l < n of x, the others of y.
[[gnu::always_inline]] inline V first(Index n, V x, V y) {
    if (n >= 16) return x;
    constexpr int lane_numbers[4] = {0, 1, 2, 3};
    int32x4_t lane = vld1q_s32(lane_numbers);
    const int32x4_t end = vdupq_n_s32(static_cast<int>(n));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        x.part[i] = vbslq_f32(vcltq_s32(lane, end), x.part[i], y.part[i]);
        lane = vaddq_s32(lane, vdupq_n_s32(4));
    }
    return x;
}
[[gnu::always_inline]] inline V fma(V x, V y, V z) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) z.part[i] = vfmaq_f32(z.part[i], y.part[i], x.part[i]);
    return z;
}
[[gnu::always_inline]] inline V add(V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x.part[i] = vaddq_f32(x.part[i], y.part[i]);
    return x;
}
[[gnu::always_inline]] inline V sub(V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x.part[i] = vsubq_f32(x.part[i], y.part[i]);
    return x;
}
[[gnu::always_inline]] inline V mul(V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x.part[i] = vmulq_f32(x.part[i], y.part[i]);
    return x;
}
[[gnu::always_inline]] inline V div(V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x.part[i] = vdivq_f32(x.part[i], y.part[i]);
    return x;
}
/// y where either is NaN or both are zeros, as on the other instruction sets: vmaxq_f32 is not so.
[[gnu::always_inline]] inline V max(V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        x.part[i] = vbslq_f32(vcgtq_f32(x.part[i], y.part[i]), x.part[i], y.part[i]);
    return x;
}
[[gnu::always_inline]] inline V min(V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        x.part[i] = vbslq_f32(vcltq_f32(x.part[i], y.part[i]), x.part[i], y.part[i]);
    return x;
}
[[gnu::always_inline]] inline V negate(V x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x.part[i] = vnegq_f32(x.part[i]);
    return x;
}
[[gnu::always_inline]] inline V minus_abs(V x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x.part[i] = vnegq_f32(vabsq_f32(x.part[i]));
    return x;
}
[[gnu::always_inline]] inline V where_le(V a, V b, V x, V y) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        x.part[i] = vbslq_f32(vcleq_f32(a.part[i], b.part[i]), x.part[i], y.part[i]);
    return x;
}
/// Bit l is set where a <= b in lane l.
[[gnu::always_inline]] inline std::uint32_t where_le_bits(V a, V b) {
    constexpr std::uint32_t bits_of_lanes[4] = {1, 2, 4, 8};
    const uint32x4_t of_lane = vld1q_u32(bits_of_lanes);
    std::uint32_t bits = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        bits |= vaddvq_u32(vandq_u32(vcleq_f32(a.part[i], b.part[i]), of_lane)) << (4 * i);
    return bits;
}
/// count + 1 where a < b; lanes of count are 32-bit integers.
[[gnu::always_inline]] inline V count_less(V count, V a, V b) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        count.part[i] = vreinterpretq_f32_u32(
            vsubq_u32(vreinterpretq_u32_f32(count.part[i]), vcltq_f32(a.part[i], b.part[i])));
    return count;
}
[[gnu::always_inline]] inline void store_words(std::int32_t* p, V x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, vreinterpretq_s32_f32(x.part[i]));
}

/// low * high = 2^n, where shifted = n + round_shift.
[[gnu::always_inline]] inline void powers_of_two(V shifted, V& low, V& high) {
    const int32x4_t bias = vdupq_n_s32(127);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(shifted.part[i]),
                                      vdupq_n_s32(detail::poly::round_shift_bits));
        const int32x4_t half = vshrq_n_s32(n, 1);
        const int32x4_t rest = vsubq_s32(n, half);
        low.part[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
        high.part[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    }
}

/// A block of 4 x 4: to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for
/// rows <= j < 4.
[[gnu::always_inline]] inline void transpose_4(Index rows, Index cols, const S* from,
                                               Index from_row, S* to, Index to_row) {
    float32x4_t r[4], t[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        if (j >= rows)
            r[j] = vdupq_n_f32(0);
        else if (cols >= 4)
            r[j] = vld1q_f32(from + j * from_row);
        else
            r[j] = load(from + j * from_row, cols).part[0];
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {  // t[j]: columns 0 and 1, t[j + 2]: 2 and 3, of rows j and j + 2
        t[j] = vzip1q_f32(r[j], r[j + 2]);
        t[j + 2] = vzip2q_f32(r[j], r[j + 2]);
    }
#pragma GCC unroll 2
    for (int c = 0; c < 4; c += 2) {
        r[c] = vzip1q_f32(t[c], t[c + 1]);
        r[c + 1] = vzip2q_f32(t[c], t[c + 1]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
        if (p < cols) vst1q_f32(to + p * to_row, r[p]);
}

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; p += 4)
        for (Index j = 0; j < 16; j += 4)
            transpose_4(rows - j, cols - p, j < rows ? from + j * from_row + p : from, from_row,
                        to + p * to_row + j, to_row);
}

/// to[p] lane j = the word at from + j * from_row + 4 p bytes, for p < 4 and j < 16.
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row, V (&to)[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        float32x4_t r[4], t[4];  // as in transpose_4
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) __builtin_memcpy(&r[j], from + (4 * i + j) * from_row, 16);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            t[j] = vzip1q_f32(r[j], r[j + 2]);
            t[j + 2] = vzip2q_f32(r[j], r[j + 2]);
        }
#pragma GCC unroll 2
        for (int c = 0; c < 4; c += 2) {
            to[c].part[i] = vzip1q_f32(t[c], t[c + 1]);
            to[c + 1].part[i] = vzip2q_f32(t[c], t[c + 1]);
        }
    }
}

// ---- narrow elements ----

/// The 16-bit elements from `from` on, of any type.
[[gnu::always_inline]] inline uint16x4_t load_four(const void* from) {
    uint16x4_t r;
    __builtin_memcpy(&r, from, sizeof r);
    return r;
}
/// Four halves as floats.
[[gnu::always_inline]] inline float32x4_t widen_halves(uint16x4_t halves) {
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}
/// Four integers in the upper bytes of words.
[[gnu::always_inline]] inline float32x4_t widen_bytes(uint32x4_t words) {
    return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(words), 24));
}
[[gnu::always_inline]] inline V widen(const Bf16* from, V) {
    V r;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        r.part[i] = vreinterpretq_f32_u32(vshll_n_u16(load_four(from + 4 * i), 16));
    return r;
}
[[gnu::always_inline]] inline V widen(const F16* from, V) {
    V r;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) r.part[i] = widen_halves(load_four(from + 4 * i));
    return r;
}
[[gnu::always_inline]] inline V widen(const std::int8_t* from, V scale) {
    const int8x16_t q = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_s8(vget_high_s8(q));
    return mul(
        {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
          vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
          vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}},
        scale);
}
[[gnu::always_inline]] inline V part(Bf16, V words, int q, V) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t x = vreinterpretq_u32_f32(words.part[i]);
        words.part[i] = vreinterpretq_f32_u32(q == 0 ? vshlq_n_u32(x, 16)
                                                     : vandq_u32(x, vdupq_n_u32(0xFFFF0000U)));
    }
    return words;
}
[[gnu::always_inline]] inline V part(F16, V words, int q, V) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t x = vreinterpretq_u32_f32(words.part[i]);
        words.part[i] = widen_halves(q == 0 ? vmovn_u32(x) : vshrn_n_u32(x, 16));
    }
    return words;
}
[[gnu::always_inline]] inline V part(std::int8_t, V words, int q, V scale) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        words.part[i] = widen_bytes(vreinterpretq_u32_f32(words.part[i]) << (24 - 8 * q));
    return mul(words, scale);
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

}  // namespace isa_neon
}  // namespace moe::inline MOE_ABI

#endif  // defined(__aarch64__)
#endif  // MOE_KERNELS_ARM_NEON_HPP
