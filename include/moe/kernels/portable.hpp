// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PORTABLE_HPP
#define MOE_KERNELS_PORTABLE_HPP

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// Float kernels in standard C++: for any processor, and what the others must equal bit for bit.
///
/// Where the build's own instruction set has no fused multiply-add (x86-64 without flags),
/// std::fma is a call into the standard library: right, and slow.
namespace portable_float {

using S = float;
inline constexpr const char* table_name = "scalar";
inline constexpr int tile_rows = 2;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 1;

#include <moe/kernels/lanes.inl>
//
#include <moe/kernels/single.inl>

/// low * high = 2^n, where shifted = n + round_shift.
inline void powers_of_two(E shifted, E& low, E& high) {
    const std::int32_t n = std::bit_cast<std::int32_t>(shifted.x) - detail::poly::round_shift_bits;
    const std::int32_t half = n >> 1;
    low.x = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
    high.x = std::bit_cast<float>(static_cast<std::uint32_t>(n - half + 127) << 23);
}

/// 16 elements as floats.
template <class T>
[[gnu::always_inline]] inline V widen(const T* from, V scale) {
    T x[16];
    __builtin_memcpy(x, from, sizeof x);
    for (int l = 0; l < 16; ++l) scale.lane[l] = detail::widen(x[l], scale.lane[l]);
    return scale;
}
/// Element q of each word as a float.
template <class T>
[[gnu::always_inline]] inline V part(T, V words, int q, V scale) {
    for (int l = 0; l < 16; ++l) {
        T word[sizeof(S) / sizeof(T)];
        __builtin_memcpy(word, &words.lane[l], sizeof(S));
        words.lane[l] = detail::widen(word[q], scale.lane[l]);
    }
    return words;
}

#include <moe/kernels/math_float.inl>
//
#include <moe/kernels/body.inl>
//
#include <moe/kernels/narrow.inl>

}  // namespace portable_float

/// Double kernels in standard C++.
namespace portable_double {

using S = double;
inline constexpr const char* table_name = "scalar";
inline constexpr int tile_rows = 2;
inline constexpr int tile_vectors = 1;
inline constexpr int row_panels = 1;

#include <moe/kernels/lanes.inl>
//
#include <moe/kernels/single.inl>
//
#include <moe/kernels/math_double.inl>
//
#include <moe/kernels/body.inl>

}  // namespace portable_double
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_PORTABLE_HPP
