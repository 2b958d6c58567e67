// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORAGE_PORTABLE_HPP
#define MOE_KERNELS_STORAGE_PORTABLE_HPP

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <moe/core/dtype.hpp>
#include <moe/kernels/bf16_table.hpp>
#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/portable.hpp>
#include <moe/kernels/storage_table.hpp>

namespace moe::inline MOE_ABI {

/// Kernels for stored weights in standard C++: for any processor, and what the others must equal
/// bit for bit.
namespace storage_portable {

inline constexpr Index panel_width = portable_float::panel_width;

// ---- records ----

/// The number at p + i elements, wherever it lies.
template <class T>
T element(const std::byte* p, Index i) {
    T value;
    std::memcpy(&value, p + i * static_cast<Index>(sizeof value), sizeof value);
    return value;
}

/// One record of integers: weight(p, j) = w[p][j] s[j].
struct Integers {
    std::int8_t w[record_rows][panel_width];  ///< code - zero
    float s[panel_width];

    /// @param scales  of the panel, for int8 and ternary
    Integers(Storage storage, const std::byte* record, const std::byte* scales) {
        const int bits = code_bits(storage);
        const std::byte* const tail = record + record_rows * panel_width * bits / 8;
        for (Index j = 0; j < panel_width; ++j)
            s[j] = has_block_scales(storage) ? decode_f16(element<std::uint16_t>(tail, j))
                                             : element<float>(scales, j);
        for (Index p = 0; p < record_rows; ++p)
            for (Index j = 0; j < panel_width; ++j) {
                // Four rows side by side in a dword, then more in its higher bits.
                const Index plane = p / 4 % (8 / bits);
                const Index dword = p / 4 / (8 / bits) * panel_width + j;
                const int byte = std::to_integer<int>(record[dword * 4 + p % 4]);
                const int code = byte >> (plane * bits) & ((1 << bits) - 1);
                const int zero = storage == Storage::int4_zero
                                     ? element<std::uint8_t>(tail + 2 * panel_width, j)
                                     : code_zero(storage);
                w[p][j] = static_cast<std::int8_t>(code - zero);
            }
    }
};

inline void decode(Storage storage, Index records, const std::byte* record, const float* scales,
                   float* to) {
    const Index bytes = panel_layout(storage, panel_width).record_bytes;
    for (; records > 0; --records, record += bytes, to += record_rows * panel_width) {
        if (is_coded(storage)) {
            const Integers integers(storage, record, reinterpret_cast<const std::byte*>(scales));
            for (Index p = 0; p < record_rows; ++p)
                for (Index j = 0; j < panel_width; ++j)
                    to[p * panel_width + j] = static_cast<float>(integers.w[p][j]) * integers.s[j];
        } else {
            for (Index p = 0; p < record_rows; ++p)
                for (Index j = 0; j < panel_width; ++j)
                    to[p * panel_width + j] =
                        storage == Storage::bf16
                            ? decode_bf16(element<std::uint16_t>(
                                  record, (p / 2 * panel_width + j) * 2 + p % 2))
                            : decode_f16(element<std::uint16_t>(record, p * panel_width + j));
        }
    }
}

// ---- bf16 ----

/// x, or a zero of its sign if it is subnormal.
inline float flush(float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

/// x y + z, rounded once, and then a zero if it is subnormal, for x and y of bf16 and normal z. As
/// in the hardware a result counts as subnormal if rounding to 24 bits leaves it below the smallest
/// normal number. The plain sum has fewer bits there and may come out as just that number.
inline float flushed_fma(float x, float y, float z) {
    const float sum = std::fma(x, y, z);
    if (std::fabs(sum) != std::numeric_limits<float>::min()) return flush(sum);
    const double exact = static_cast<double>(x) * static_cast<double>(y) + static_cast<double>(z);
    return std::fabs(exact) < 0x1p-126 - 0x1p-151 ? std::copysign(0.0f, sum) : sum;
}

/// x rounded to bf16, to nearest even.
inline float round_to_bf16(float x) {
    std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    bits = x != x ? bits | 0x400000U : bits + 0x7FFFU + (bits >> 16 & 1U);
    return std::bit_cast<float>(bits & 0xFFFF0000U);
}

inline void encode_bf16(Index n, const float* x, std::byte* to) {
    for (Index i = 0; i < padded_length(n); ++i) {
        const float rounded = i < n ? round_to_bf16(x[i]) : 0.0f;
        std::memcpy(to + 4 * i, &rounded, 4);
    }
}

inline void encode_columns_bf16(Index rows, Index k, const float* x, Index x_row, std::byte* to,
                                Index to_row) {
    for (Index i = 0; i < rows; ++i)
        for (Index p = 0; p < padded_length(k); ++p) {
            const float rounded = p < k ? round_to_bf16(x[p * x_row + i]) : 0.0f;
            std::memcpy(to + i * to_row + 4 * p, &rounded, 4);
        }
}

inline void pack_bf16(Index records, Index k, Index cols, const float* b, Index b_row, Index b_col,
                      std::byte* to) {
    for (Index p = 0; p < records * record_rows; ++p)
        for (Index j = 0; j < panel_width; ++j) {
            const float weight = p < k && j < cols ? round_to_bf16(b[p * b_row + j * b_col]) : 0.0f;
            const auto bits =
                static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(weight) >> 16);
            std::memcpy(to + 2 * ((p / 2 * panel_width + j) * 2 + p % 2), &bits, 2);
        }
}

inline void product_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                         Index tile_rows) {
    for (; cols > panel_width; cols -= panel_width, c += panel_width) {
        product_bf16(rows, panel_width, records, a, a_row, panel, c, c_row, ahead, tile_rows);
        panel += panel_layout(Storage::bf16, panel_width).bytes(records * record_rows);
    }
    float b[record_rows * panel_width];
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) c[i * c_row + j] = 0;
    for (Index r = 0; r < records; ++r) {
        decode(Storage::bf16, 1, panel + 2 * r * record_rows * panel_width, nullptr, b);
        for (float& weight : b) weight = flush(weight);
        for (Index i = 0; i < rows; ++i) {
            float chains[2][panel_width] = {};
            for (Index p = 0; p < record_rows; ++p) {
                const float x = flush(element<float>(a + i * a_row, r * record_rows + p));
                float* const chain = chains[p % 2];
                for (Index j = 0; j < cols; ++j)
                    chain[j] = flushed_fma(x, b[p * panel_width + j], chain[j]);
            }
            float* const to = c + i * c_row;
            for (Index j = 0; j < cols; ++j)
                to[j] = flush(to[j] + flush(chains[0][j] + chains[1][j]));
        }
    }
}

// ---- int8 ----

inline void encode_int8(Index n, const float* x, std::int8_t* q, float* scale, std::int32_t* sums) {
    std::uint32_t most = 0;  // bits of max|x|; those of inf and NaN are above all others
    for (Index i = 0; i < n; ++i) {
        const std::uint32_t bits = std::bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFFU;
        most = bits > most ? bits : most;
    }
    const bool finite = most < 0x7F800000U;
    const bool any = finite && most >= std::bit_cast<std::uint32_t>(0x1p-100f);
    *scale = any      ? std::bit_cast<float>(most) / 127
             : finite ? 0
                      : std::numeric_limits<float>::quiet_NaN();
    for (Index i = 0; i < padded_length(n); ++i) {
        std::int32_t nearest = 0;
        if (any && i < n)
            nearest = std::bit_cast<std::int32_t>(x[i] / *scale + detail::poly::round_shift) -
                      detail::poly::round_shift_bits;
        q[i] = static_cast<std::int8_t>(nearest);
        std::int32_t& sum = sums[i / record_rows];
        sum = (i % record_rows == 0 ? 0 : sum) + nearest;
    }
}

/// Rows of A that share an unpacked record.
inline constexpr Index block_rows = 16;

inline void product_int8(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                         Index tile_rows) {
    const PanelLayout layout = panel_layout(storage, panel_width);
    for (; cols > panel_width; cols -= panel_width, c += panel_width) {
        product_int8(storage, rows, panel_width, records, a, panel, c, c_row, ahead, tile_rows);
        panel += layout.bytes(records * record_rows);
    }
    const bool by_record = has_block_scales(storage);
    const Index chunk = by_record ? 1 : StorageTable::row_chunk / record_rows;
    for (Index first = 0; first < rows; first += block_rows) {
        const Index end = rows - first < block_rows ? rows : first + block_rows;
        std::int32_t sums[block_rows][panel_width] = {};
        for (Index i = first; i < end; ++i)
            for (Index j = 0; j < cols; ++j) c[i * c_row + j] = 0;
        for (Index r = 0; r < records; ++r) {
            const Integers b(storage, panel + layout.scale_bytes + r * layout.record_bytes, panel);
            for (Index i = first; i < end; ++i) {
                std::int32_t* const sum = sums[i - first];
                const std::int8_t* const q = a.q + i * a.q_row + r * record_rows;
                for (Index p = 0; p < record_rows; ++p)
                    for (Index j = 0; j < panel_width; ++j) sum[j] += b.w[p][j] * q[p];
                if ((r + 1) % chunk != 0 && r + 1 != records) continue;
                float* const to = c + i * c_row;
                for (Index j = 0; j < cols; ++j)
                    to[j] = by_record ? std::fma(static_cast<float>(sum[j]), b.s[j], to[j])
                                      : to[j] + static_cast<float>(sum[j]);
                for (Index j = 0; j < panel_width; ++j) sum[j] = 0;
            }
        }
        for (Index i = first; i < end; ++i)
            for (Index j = 0; j < cols; ++j) {
                float& to = c[i * c_row + j];
                to = (by_record ? to : to * element<float>(panel, j)) * a.scale[i];
            }
    }
}

template <class>
inline constexpr StorageTable table{.name = "scalar",
                                    .panel_width = panel_width,
                                    .decode = decode,
                                    .row_panels = 1,
                                    .row = nullptr,
                                    .bf16_bytes = 4,
                                    .encode_bf16 = encode_bf16,
                                    .product_bf16 = product_bf16,
                                    .encode_int8 = encode_int8,
                                    .product_int8 = product_int8};

template <class>
inline constexpr Bf16Table bf16_table{.name = "scalar",
                                      .panel_width = panel_width,
                                      .row_bytes = 4,
                                      .encode = encode_bf16,
                                      .encode_columns = encode_columns_bf16,
                                      .pack = pack_bf16,
                                      .product = product_bf16};

}  // namespace storage_portable
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORAGE_PORTABLE_HPP
