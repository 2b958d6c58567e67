// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AVX512_HPP
#define MOE_KERNELS_X86_STORAGE_AVX512_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include <immintrin.h>

#include <moe/kernels/bf16_table.hpp>
#include <moe/kernels/panel_turns.hpp>
#include <moe/kernels/storage_table.hpp>
#include <moe/kernels/x86/avx512.hpp>
#include <moe/kernels/x86/subnormals.hpp>

// As avx512.hpp; further down with VNNI.
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

/// Kernels for stored weights with AVX-512.
///
/// A tile of bf16 is 6 x 32 with two chains: 24 accumulators, four vectors of B, a mask and a
/// broadcast are 30 of 32 registers.
namespace storage_avx512 {

using isa_avx512::ColumnsAhead;
using isa_avx512::finish;
using isa_avx512::load;
using isa_avx512::run_length;
using isa_avx512::splat;
using isa_avx512::transpose;
using isa_avx512::V;
using x86::Control;
using x86::flush_subnormals;
using x86::restore;
inline constexpr int tile_vectors = isa_avx512::tile_vectors;
inline constexpr int row_panels = isa_avx512::row_panels;
inline constexpr int bf16_rows = 6;
inline constexpr const char* bf16_name = "avx512";

/// Dwords by their type: with __m512i, which is of quadwords, g++ copies the sums of a tile in
/// every step of a loop.
struct I {
    int r __attribute__((vector_size(64)));

    I() = default;
    [[gnu::always_inline]] I(__m512i x) : r((__typeof__(r))x) {}
    [[gnu::always_inline]] operator __m512i() const { return (__m512i)r; }
};

[[gnu::always_inline]] inline I load_int(const void* p) { return {_mm512_loadu_si512(p)}; }
[[gnu::always_inline]] inline void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
[[gnu::always_inline]] inline I splat_int(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
/// The four bytes at p, in every dword.
[[gnu::always_inline]] inline I splat_int_from(const void* p) {
    std::int32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return splat_int(x);
}
[[gnu::always_inline]] inline V splat_from(const void* p) {
    float x;
    __builtin_memcpy(&x, p, sizeof x);
    return splat(x);
}
/// 16 bytes as dwords.
[[gnu::always_inline]] inline I load_bytes(const std::byte* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
/// 16 halves as floats.
[[gnu::always_inline]] inline V load_halves(const std::byte* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
/// The dwords of x, which fit into a byte each.
[[gnu::always_inline]] inline void store_bytes(std::int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}
[[gnu::always_inline]] inline V as_float(I x) { return {_mm512_castsi512_ps(x)}; }
[[gnu::always_inline]] inline I as_int(V x) { return {_mm512_castps_si512(x.r)}; }
[[gnu::always_inline]] inline V to_float(I x) { return {_mm512_cvtepi32_ps(x)}; }
/// To the nearest, ties to even.
[[gnu::always_inline]] inline I to_int(V x) { return {_mm512_cvtps_epi32(x.r)}; }
[[gnu::always_inline]] inline I add(I x, I y) { return {_mm512_add_epi32(x, y)}; }
[[gnu::always_inline]] inline I sub(I x, I y) { return {_mm512_sub_epi32(x, y)}; }
[[gnu::always_inline]] inline I max(I x, I y) { return {_mm512_max_epi32(x, y)}; }
[[gnu::always_inline]] inline I and_bits(I x, I y) { return {_mm512_and_si512(x, y)}; }
[[gnu::always_inline]] inline I or_bits(I x, I y) { return {_mm512_or_si512(x, y)}; }
/// x & y | z
[[gnu::always_inline]] inline I and_or(I x, I y, I z) {
    return {_mm512_ternarylogic_epi32(x, y, z, 0xEA)};
}
template <int n>
[[gnu::always_inline]] inline I shift_left(I x) {
    return {_mm512_slli_epi32(x, n)};
}
template <int n>
[[gnu::always_inline]] inline I shift_right(I x) {
    return {_mm512_srli_epi32(x, n)};
}
/// x y in every dword, where the upper half of x is 0 and both lower halves have a sign.
[[gnu::always_inline]] inline I mul_low(I x, I y) { return {_mm512_madd_epi16(x, y)}; }
/// The sum of all dwords.
[[gnu::always_inline]] inline std::int32_t total(I x) {
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}
/// 32 bytes with a sign as 16 bits each.
[[gnu::always_inline]] inline I widen(const std::int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
/// The first two bytes of every dword, or the others, as 16 bits each without a sign.
[[gnu::always_inline]] inline I low_halves(I x) {
    return {_mm512_shuffle_epi8(
        x, _mm512_set4_epi32(static_cast<int>(0x800D800C), static_cast<int>(0x80098008),
                             static_cast<int>(0x80058004), static_cast<int>(0x80018000)))};
}
[[gnu::always_inline]] inline I high_halves(I x) {
    return {_mm512_shuffle_epi8(
        x, _mm512_set4_epi32(static_cast<int>(0x800F800E), static_cast<int>(0x800B800A),
                             static_cast<int>(0x80078006), static_cast<int>(0x80038002)))};
}

/// sum of 16 bits + the products of two bytes without a sign and two with one.
[[gnu::always_inline]] inline I dot_bytes(I sum, I codes, I q) {
    sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, q));
    __asm__("" : "+v"(sum.r));
    return sum;
}
/// Two sums of 16 bits as one dword.
[[gnu::always_inline]] inline I add_pairs(I sum) {
    return _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
}

#include <moe/kernels/storage_body.inl>

/// Products of integers without VNNI: codes and q as 16 bits.
namespace words {

inline constexpr const char* table_name = "avx512_bw";
inline constexpr int dot_rows = 2;
inline constexpr int int8_rows = 5;
inline constexpr int block_rows = 5;
inline constexpr int int4_rows = 5;
inline constexpr int ternary_rows = 5;
inline constexpr int chained_rows = 0;
inline constexpr int kept_sums = 0;

/// sum + the products of two pairs of 16 bits, in every dword.
[[gnu::always_inline]] inline I dot(I sum, I codes, I q) {
    sum = add(sum, _mm512_madd_epi16(codes, q));
    __asm__("" : "+v"(sum.r));  // or g++ adds the products of several steps first, and spills
    return sum;
}

#include <moe/kernels/storage_int8.inl>

}  // namespace words
}  // namespace storage_avx512
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // the intrinsics' own undefined registers
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

namespace moe::inline MOE_ABI {
namespace storage_avx512 {

/// Products of integers with VNNI.
///
/// A tile of int8 is 14 x 32, as in isa_avx512. With scales per 32 inputs it is 6 x 32: floats stay
/// in registers as well, 80 % of the peak on an EPYC 9005 where 14 x 32 had 65 %.
namespace vnni {

inline constexpr const char* table_name = "avx512";
inline constexpr int dot_rows = 4;
inline constexpr int int8_rows = 14;
inline constexpr int block_rows = 6;
inline constexpr int int4_rows = 6;
inline constexpr int ternary_rows = 10;
inline constexpr int chained_rows = 4;
inline constexpr int kept_sums = 12;

/// sum + the products of four bytes without a sign and four with one, in every dword.
[[gnu::always_inline]] inline I dot(I sum, I codes, I q) {
    return _mm512_dpbusd_epi32(sum, codes, q);
}

#include <moe/kernels/storage_int8.inl>

}  // namespace vnni

/// For processors with VNNI; words::table is for the others.
using vnni::table;

}  // namespace storage_avx512
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_STORAGE_AVX512_HPP
