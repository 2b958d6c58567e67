// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_BLOCK_CODES_HPP
#define MOE_CORE_BLOCK_CODES_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// The scales of the blocks that a matrix of codes is cut into, from its first row and column; the
/// last blocks may be partial. Element (i, j) has scale number
///
///     i / block_rows * row_stride + j / block_cols        f32, bf16, f16: the factor
///                                                         u8: E8M0, 2^(byte - 127)
struct BlockScales {
    const std::byte* data = nullptr;  ///< any alignment
    Dtype dtype = Dtype::unknown;
    Index block_rows = 1, block_cols = 1;
    Index row_stride = 0;  ///< scales; 0: as many as a row has blocks
};

/// [rows, cols] weights that mean something only with the scales of their blocks; only viewed, and
/// decoded a row at a time.
///
///     W(i, j) = value of code (i, j) * scale of its block, rounded once
///
/// The codes are f8_e4m3 or f8_e5m2, one a byte, or u8: E2M1, two a byte, the low nibble first.
/// DeepSeek-V3 (FP8) has blocks of 128 x 128 and its weight_scale_inv as f32 scales, gpt-oss
/// (MXFP4) blocks of 1 x 32 and u8 scales. Sources: OCP 8-bit Floating Point Specification 1.0, OCP
/// Microscaling Formats Specification 1.0, section 5.
struct BlockCodes {
    const std::byte* data = nullptr;  ///< any alignment
    Dtype dtype = Dtype::unknown;
    Index rows = 0, cols = 0;  ///< elements, not bytes
    Index row_stride = 0;      ///< elements from row to row; 0: cols
    BlockScales scales;
};

namespace detail {

inline constexpr auto f8_e4m3_values = [] {
    std::array<float, 256> values{};
    for (std::size_t i = 0; i < 256; ++i) values[i] = decode_f8_e4m3(static_cast<std::uint8_t>(i));
    return values;
}();
inline constexpr auto f8_e5m2_values = [] {
    std::array<float, 256> values{};
    for (std::size_t i = 0; i < 256; ++i) values[i] = decode_f8_e5m2(static_cast<std::uint8_t>(i));
    return values;
}();
inline constexpr auto e2m1_values = [] {
    std::array<float, 16> values{};
    for (std::size_t i = 0; i < 16; ++i) values[i] = decode_e2m1(static_cast<std::uint8_t>(i));
    return values;
}();

/// Blocks in a row of codes.
inline Index row_blocks(const BlockCodes& codes) {
    return codes.cols / codes.scales.block_cols + (codes.cols % codes.scales.block_cols != 0);
}

inline float block_scale(const BlockScales& scales, Index number) {
    const std::byte* const from = scales.data + number * element_size(scales.dtype);
    switch (scales.dtype) {
        case Dtype::f32:
            return load<float>(from);
        case Dtype::bf16:
            return decode_bf16(load<std::uint16_t>(from));
        case Dtype::f16:
            return decode_f16(load<std::uint16_t>(from));
        default:
            return decode_e8m0(load<std::uint8_t>(from));
    }
}

/// @param who  begins the sentence, such as "moe::bind: experts.3.w1"
/// @throws std::invalid_argument unless decode_row() can read every row, std::length_error if an
///         extent times its stride does not fit an Index. That the memory is as large as the
///         extents say is the caller's to check.
inline void check_block_codes(const char* who, const BlockCodes& codes) {
    const BlockScales& scales = codes.scales;
    const bool packed = codes.dtype == Dtype::u8;  // two codes a byte
    if (!packed && codes.dtype != Dtype::f8_e4m3 && codes.dtype != Dtype::f8_e5m2)
        fail(who, ": codes are ", dtype_name(codes.dtype),
             ", they must be F8_E4M3, F8_E5M2 or U8 (E2M1, two a byte)");
    if (scales.dtype != Dtype::f32 && scales.dtype != Dtype::bf16 && scales.dtype != Dtype::f16 &&
        scales.dtype != Dtype::u8)
        fail(who, ": scales are ", dtype_name(scales.dtype),
             ", they must be F32, BF16, F16 or U8 (E8M0)");
    if (codes.rows < 0 || codes.cols < 0)
        fail(who, ": codes are [", codes.rows, ", ", codes.cols, "], no extent may be negative");
    if (scales.block_rows < 1 || scales.block_cols < 1)
        fail(who, ": blocks are [", scales.block_rows, ", ", scales.block_cols,
             "], they must be at least [1, 1]");
    if (packed && codes.cols % 2 != 0)
        fail(who, ": ", codes.cols, " columns of E2M1, they must be even: two share a byte");
    if (codes.row_stride != 0 && codes.row_stride < codes.cols)
        fail(who, ": row_stride is ", codes.row_stride, ", it must be 0 or at least ", codes.cols,
             ", the columns");
    if (packed && codes.row_stride % 2 != 0)
        fail(who, ": row_stride is ", codes.row_stride,
             " elements of E2M1, it must be even: a row begins with a byte");
    const Index blocks = row_blocks(codes);
    if (scales.row_stride != 0 && scales.row_stride < blocks)
        fail(who, ": scales.row_stride is ", scales.row_stride, ", it must be 0 or at least ",
             blocks, ", the blocks of a row");
    checked_product(codes.rows, std::max(codes.row_stride, codes.cols));
    checked_product(checked_product(codes.rows, std::max(scales.row_stride, blocks)),
                    element_size(scales.dtype));
    if (codes.rows == 0 || codes.cols == 0) return;
    if (codes.data == nullptr) fail(who, ": codes have no data");
    if (scales.data == nullptr) fail(who, ": scales have no data");
}

}  // namespace detail

/// Writes row number `row` of W as S, float or double. In float a value is the exact product
/// rounded once, to infinity above the largest float; in double it is the exact product. NaN codes
/// and scales give NaN.
///
/// Checks nothing: `codes` must be such as the detail::check_block_codes() lets pass, `row` one of
/// its rows, `to` [cols].
template <class S>
void decode_row(const BlockCodes& codes, Index row, S* to) {
    static_assert(is_scalar<S>, "moe::decode_row: weights are decoded to float or double");
    const BlockScales& scales = codes.scales;
    const Index scale_stride =
        scales.row_stride == 0 ? detail::row_blocks(codes) : scales.row_stride;
    const Index first = row * (codes.row_stride == 0 ? codes.cols : codes.row_stride);
    Index number = row / scales.block_rows * scale_stride;
    // Calls f(begin, end, scale) for each block's part of the row.
    const auto for_each_block = [&](auto&& f) {
        for (Index begin = 0; begin < codes.cols; ++number) {
            const Index end = begin + std::min(scales.block_cols, codes.cols - begin);
            f(begin, end, static_cast<S>(detail::block_scale(scales, number)));
            begin = end;
        }
    };
    if (codes.dtype == Dtype::u8) {
        const std::byte* const from = codes.data + first / 2;
        for_each_block([&](Index begin, Index end, S scale) {
            Index j = begin;
            const auto put = [&](unsigned code) {
                to[j++] = static_cast<S>(detail::e2m1_values[code]) * scale;
            };
            const auto pair = [&] { return std::to_integer<unsigned>(from[j / 2]); };
            if (j % 2 != 0) put(pair() >> 4);  // blocks of odd width begin within a byte, and end
            while (j + 1 < end) {
                const unsigned both = pair();
                put(both & 15u);
                put(both >> 4);
            }
            if (j < end) put(pair() & 15u);
        });
    } else {
        const float* const values = codes.dtype == Dtype::f8_e4m3 ? detail::f8_e4m3_values.data()
                                                                  : detail::f8_e5m2_values.data();
        const std::byte* const from = codes.data + first;
        for_each_block([&](Index begin, Index end, S scale) {
            for (Index j = begin; j < end; ++j)
                to[j] = static_cast<S>(values[std::to_integer<std::uint8_t>(from[j])]) * scale;
        });
    }
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_BLOCK_CODES_HPP
