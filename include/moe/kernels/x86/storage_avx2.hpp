// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AVX2_HPP
#define MOE_KERNELS_X86_STORAGE_AVX2_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include <immintrin.h>

#include <moe/kernels/bf16_table.hpp>
#include <moe/kernels/panel_turns.hpp>
#include <moe/kernels/storage_table.hpp>
#include <moe/kernels/x86/avx2.hpp>
#include <moe/kernels/x86/subnormals.hpp>

// AVX2, FMA and F16C; further down with AVX-VNNI.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace moe::inline MOE_ABI {

/// Kernels for stored weights with AVX2: two registers hold 16 lanes.
///
/// A tile of bf16 is 3 x 16 with two chains: 12 accumulators, two vectors of B, a mask and a
/// broadcast are 16 of 16 registers.
namespace storage_avx2 {

using isa_avx2::ColumnsAhead;
using isa_avx2::finish;
using isa_avx2::load;
using isa_avx2::run_length;
using isa_avx2::splat;
using isa_avx2::transpose;
using isa_avx2::V;
using x86::Control;
using x86::flush_subnormals;
using x86::restore;
inline constexpr int tile_vectors = isa_avx2::tile_vectors;
inline constexpr int row_panels = isa_avx2::row_panels;
inline constexpr int bf16_rows = 3;
inline constexpr const char* bf16_name = "avx2";

/// Dwords by their type: with __m256i, which is of quadwords, g++ copies the sums of a tile in
/// every step of a loop.
struct Half {
    int r __attribute__((vector_size(32)));

    Half() = default;
    [[gnu::always_inline]] Half(__m256i x) : r((__typeof__(r))x) {}
    [[gnu::always_inline]] operator __m256i() const { return (__m256i)r; }
};
struct I {
    Half low, high;
};

[[gnu::always_inline]] inline __m256i load_half(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline __m128i load_quarter(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
[[gnu::always_inline]] inline I load_int(const void* p) {
    return {load_half(p), load_half(static_cast<const std::byte*>(p) + 32)};
}
[[gnu::always_inline]] inline void store_int(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.low);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.high);
}
[[gnu::always_inline]] inline I splat_int(std::int32_t x) {
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
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
    const __m128i bytes = load_quarter(p);
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
/// 16 halves as floats.
[[gnu::always_inline]] inline V load_halves(const std::byte* p) {
    return {_mm256_cvtph_ps(load_quarter(p)), _mm256_cvtph_ps(load_quarter(p + 16))};
}
/// The dwords of x, which fit into a byte each.
[[gnu::always_inline]] inline void store_bytes(std::int8_t* p, I x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
[[gnu::always_inline]] inline V as_float(I x) {
    return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)};
}
[[gnu::always_inline]] inline I as_int(V x) {
    return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)};
}
[[gnu::always_inline]] inline V to_float(I x) {
    return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
/// To the nearest, ties to even.
[[gnu::always_inline]] inline I to_int(V x) {
    return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}
[[gnu::always_inline]] inline I add(I x, I y) {
    return {_mm256_add_epi32(x.low, y.low), _mm256_add_epi32(x.high, y.high)};
}
[[gnu::always_inline]] inline I sub(I x, I y) {
    return {_mm256_sub_epi32(x.low, y.low), _mm256_sub_epi32(x.high, y.high)};
}
[[gnu::always_inline]] inline I max(I x, I y) {
    return {_mm256_max_epi32(x.low, y.low), _mm256_max_epi32(x.high, y.high)};
}
[[gnu::always_inline]] inline I and_bits(I x, I y) {
    return {_mm256_and_si256(x.low, y.low), _mm256_and_si256(x.high, y.high)};
}
[[gnu::always_inline]] inline I or_bits(I x, I y) {
    return {_mm256_or_si256(x.low, y.low), _mm256_or_si256(x.high, y.high)};
}
/// x & y | z
[[gnu::always_inline]] inline I and_or(I x, I y, I z) { return or_bits(and_bits(x, y), z); }
template <int n>
[[gnu::always_inline]] inline I shift_left(I x) {
    return {_mm256_slli_epi32(x.low, n), _mm256_slli_epi32(x.high, n)};
}
template <int n>
[[gnu::always_inline]] inline I shift_right(I x) {
    return {_mm256_srli_epi32(x.low, n), _mm256_srli_epi32(x.high, n)};
}
/// x y in every dword, where the upper half of x is 0 and both lower halves have a sign.
[[gnu::always_inline]] inline I mul_low(I x, I y) {
    return {_mm256_madd_epi16(x.low, y.low), _mm256_madd_epi16(x.high, y.high)};
}
/// The sum of all dwords.
[[gnu::always_inline]] inline std::int32_t total(I x) {
    const __m256i half = _mm256_add_epi32(x.low, x.high);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}
/// 32 bytes with a sign as 16 bits each.
[[gnu::always_inline]] inline I widen(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi16(load_quarter(p)), _mm256_cvtepi8_epi16(load_quarter(p + 16))};
}
/// The first two bytes of every dword, or the others, as 16 bits each without a sign.
[[gnu::always_inline]] inline I low_halves(I x) {
    const __m256i bytes =
        _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1, -1, 4,
                         -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    return {_mm256_shuffle_epi8(x.low, bytes), _mm256_shuffle_epi8(x.high, bytes)};
}
[[gnu::always_inline]] inline I high_halves(I x) {
    const __m256i bytes =
        _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1, 2, -1, 3, -1,
                         6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
    return {_mm256_shuffle_epi8(x.low, bytes), _mm256_shuffle_epi8(x.high, bytes)};
}

/// sum of 16 bits + the products of two bytes without a sign and two with one.
[[gnu::always_inline]] inline I dot_bytes(I sum, I codes, I q) {
    sum = {_mm256_add_epi16(sum.low, _mm256_maddubs_epi16(codes.low, q.low)),
           _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(codes.high, q.high))};
    __asm__("" : "+x"(sum.low.r), "+x"(sum.high.r));
    return sum;
}
/// Two sums of 16 bits as one dword.
[[gnu::always_inline]] inline I add_pairs(I sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(sum.low, ones), _mm256_madd_epi16(sum.high, ones)};
}

#include <moe/kernels/storage_body.inl>

/// Products of integers: codes and q as 16 bits, because two products of bytes do not fit into 16.
namespace words {

inline constexpr const char* table_name = "avx2";
inline constexpr int dot_rows = 2;
inline constexpr int int8_rows = 4;
inline constexpr int block_rows = 3;
inline constexpr int int4_rows = 4;
inline constexpr int ternary_rows = 4;
inline constexpr int chained_rows = 0;
inline constexpr int kept_sums = 0;

/// sum + the products of two pairs of 16 bits, in every dword.
[[gnu::always_inline]] inline I dot(I sum, I codes, I q) {
    sum = add(sum, mul_low(codes, q));
    __asm__(""
            : "+x"(sum.low.r),
              "+x"(sum.high.r));  // or g++ adds the products of several steps first, and spills
    return sum;
}

#include <moe/kernels/storage_int8.inl>

}  // namespace words

using words::table;

}  // namespace storage_avx2
}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

namespace moe::inline MOE_ABI {
namespace storage_avx2 {

/// Products of integers with AVX-VNNI.
namespace vnni {

inline constexpr const char* table_name = "avx2_vnni";
inline constexpr int dot_rows = 4;
inline constexpr int int8_rows = 6;
inline constexpr int block_rows = 6;
inline constexpr int int4_rows = 4;
inline constexpr int ternary_rows = 4;
inline constexpr int chained_rows = 2;
inline constexpr int kept_sums = 0;

/// sum + the products of four bytes without a sign and four with one, in every dword.
[[gnu::always_inline]] inline I dot(I sum, I codes, I q) {
    return {_mm256_dpbusd_avx_epi32(sum.low, codes.low, q.low),
            _mm256_dpbusd_avx_epi32(sum.high, codes.high, q.high)};
}

#include <moe/kernels/storage_int8.inl>

}  // namespace vnni
}  // namespace storage_avx2

/// The same with AVX-VNNI.
namespace storage_avx2_vnni {
using storage_avx2::vnni::table;
}

}  // namespace moe::inline MOE_ABI

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // MOE_KERNELS_X86_STORAGE_AVX2_HPP
