// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORAGE_REFERENCE_HPP
#define MOE_KERNELS_STORAGE_REFERENCE_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <moe/kernels/storage_table.hpp>

/// The kernels for stored weights as one would write them on paper, element by element, from the
/// layout and the formulas in storage_table.hpp. Every table must equal them bit for bit, except
/// for the sign and payload of a NaN. Slow on purpose; for tests.
namespace moe::inline MOE_ABI {
namespace exact {

// ---- numbers ----

template <class T>
T stored(const std::byte* p, Index i) {
    T value;
    std::memcpy(&value, p + i * static_cast<Index>(sizeof value), sizeof value);
    return value;
}

/// The value of a binary float of 16 bits, of which `fraction_bits` are its fraction: 7 for bf16,
/// 10 for f16.
inline double value_of(std::uint16_t bits, int fraction_bits) {
    const int exponent_bits = 15 - fraction_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    const int fraction = bits & ((1 << fraction_bits) - 1);
    double value = 0;
    if (exponent == 2 * bias + 1)
        value = fraction == 0 ? std::numeric_limits<double>::infinity()
                              : std::numeric_limits<double>::quiet_NaN();
    else if (exponent == 0)
        value = std::ldexp(fraction, 1 - bias - fraction_bits);
    else
        value = std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
    return bits >> 15 != 0 ? -value : value;
}

/// x to the nearest number with `bits` bits, ties to even; any exponent from `lowest` on, which is
/// that of the last bit.
inline double round_to_bits(double x, int bits, int lowest = -100000) {
    if (x == 0 || !std::isfinite(x)) return x;
    int exponent = 0;
    std::frexp(x, &exponent);
    const int last = exponent - bits > lowest ? exponent - bits : lowest;
    return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}

/// A subnormal float becomes a zero of its sign.
inline double without_subnormals(double x) {
    return std::fabs(x) < 0x1p-126 ? std::copysign(0.0, x) : x;
}

/// x y + z for floats of which x y has at most 53 bits, rounded once to the 24 bits of a float of
/// any exponent; what is then below the normal floats becomes 0.
inline float flushed_fma(double x, double y, double z) {
    const double product = x * y;
    double sum = product + z;
    if (!std::isfinite(sum) || sum == 0) return static_cast<float>(sum);
    // What the addition lost. It decides only ties, so it may go into the last bit: an odd one says
    // that there was more.
    const double part = sum - product;
    const double lost = (product - (sum - part)) + (z - part);
    if (lost != 0) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, &sum, sizeof bits);
        if (bits % 2 == 0)
            sum = std::nextafter(sum, lost > 0 ? std::numeric_limits<double>::infinity()
                                               : -std::numeric_limits<double>::infinity());
    }
    const double rounded = without_subnormals(round_to_bits(sum, 24));
    return std::fabs(rounded) >= 0x1p128
               ? static_cast<float>(std::copysign(std::numeric_limits<double>::infinity(), rounded))
               : static_cast<float>(rounded);
}

// ---- panels ----

/// code(p, j) of a panel of integers.
inline int code(Storage storage, Index panel_width, const std::byte* panel, Index p, Index j) {
    const PanelLayout layout = panel_layout(storage, panel_width);
    const std::byte* const record =
        panel + layout.scale_bytes + p / record_rows * layout.record_bytes;
    p %= record_rows;
    switch (storage) {
        case Storage::int8:
        case Storage::int8_block:
            return std::to_integer<int>(record[(p / 4 * panel_width + j) * 4 + p % 4]);
        case Storage::int4:
        case Storage::int4_zero: {
            const int byte = std::to_integer<int>(record[(p / 8 * panel_width + j) * 4 + p % 4]);
            return p % 8 < 4 ? byte % 16 : byte / 16;
        }
        case Storage::ternary: {
            const int byte = std::to_integer<int>(record[(p / 16 * panel_width + j) * 4 + p % 4]);
            return byte >> (2 * (p % 16 / 4)) & 3;
        }
        default:
            return 0;
    }
}

/// code(p, j) - zero of a panel of integers.
inline int integer(Storage storage, Index panel_width, const std::byte* panel, Index p, Index j) {
    const int q = code(storage, panel_width, panel, p, j);
    switch (storage) {
        case Storage::int8:
        case Storage::int8_block:
            return q - 128;
        case Storage::int4:
            return q - 8;
        case Storage::int4_zero: {
            const PanelLayout layout = panel_layout(storage, panel_width);
            const std::byte* const zeros =
                panel + p / record_rows * layout.record_bytes + 18 * panel_width;
            return q - std::to_integer<int>(zeros[j]);
        }
        default:
            return q - 1;
    }
}

/// s of the weight (p, j) of a panel of integers.
inline float scale(Storage storage, Index panel_width, const std::byte* panel, Index p, Index j) {
    if (!has_block_scales(storage)) return stored<float>(panel, j);
    const PanelLayout layout = panel_layout(storage, panel_width);
    const std::byte* const record = panel + p / record_rows * layout.record_bytes;
    const Index codes = (storage == Storage::int8_block ? 32 : 16) * panel_width;
    return static_cast<float>(value_of(stored<std::uint16_t>(record + codes, j), 10));
}

/// The weight (p, j) of a panel, rounded once.
inline float weight(Storage storage, Index panel_width, const std::byte* panel, Index p, Index j) {
    if (storage == Storage::bf16)
        return static_cast<float>(
            value_of(stored<std::uint16_t>(panel, (p / 2 * panel_width + j) * 2 + p % 2), 7));
    if (storage == Storage::f16)
        return static_cast<float>(value_of(stored<std::uint16_t>(panel, p * panel_width + j), 10));
    return static_cast<float>(integer(storage, panel_width, panel, p, j) *
                              double(scale(storage, panel_width, panel, p, j)));
}

// ---- products ----

/// x rounded to bf16, as a float.
inline float round_to_bf16(float x) {
    const double rounded = round_to_bits(double(x), 8, -133);
    return std::fabs(rounded) >= 0x1p128
               ? static_cast<float>(std::copysign(std::numeric_limits<double>::infinity(), rounded))
               : static_cast<float>(rounded);
}

/// C = A B in the order of TDPBF16PS, for a panel stored as bf16.
/// @param a  rounded to bf16: A(i, p) = a[i * a_row + p], 32 `records` in a row
inline void product_bf16(Index rows, Index cols, Index records, const float* a, Index a_row,
                         Index panel_width, const std::byte* panel, float* c, Index c_row) {
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
            float sum = 0;
            for (Index r = 0; r < records; ++r) {
                float chains[2] = {0, 0};  // even, odd
                for (Index p = r * record_rows; p < (r + 1) * record_rows; ++p)
                    chains[p % 2] = flushed_fma(
                        without_subnormals(double(a[i * a_row + p])),
                        without_subnormals(double(weight(Storage::bf16, panel_width, panel, p, j))),
                        double(chains[p % 2]));
                const float both = flushed_fma(double(chains[0]), 1, double(chains[1]));
                sum = flushed_fma(double(both), 1, double(sum));
            }
            c[i * c_row + j] = sum;
        }
}

/// q, scale and sums of q over each 32, of x padded with zeros up to a multiple of 64.
inline void encode_int8(Index n, const float* x, std::int8_t* q, float* scale, std::int32_t* sums) {
    float most = 0;
    bool finite = true;
    for (Index i = 0; i < n; ++i) {
        finite = finite && std::isfinite(x[i]);
        most = std::fmax(most, std::fabs(x[i]));
    }
    const bool any = finite && most >= 0x1p-100f;
    *scale = any ? most / 127 : finite ? 0 : std::numeric_limits<float>::quiet_NaN();
    const Index padded = (n + padded_rows - 1) / padded_rows * padded_rows;
    for (Index r = 0; r < padded / record_rows; ++r) sums[r] = 0;
    for (Index i = 0; i < padded; ++i) {
        q[i] = static_cast<std::int8_t>(any && i < n ? std::nearbyint(x[i] / *scale) : 0.0f);
        sums[i / record_rows] += q[i];
    }
}

/// C = A B for one panel of integers; `sums` of A are not used.
inline void product_int8(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                         Index panel_width, const std::byte* panel, float* c, Index c_row) {
    const Index k = records * record_rows;
    const Index chunk = has_block_scales(storage) ? record_rows : StorageTable::row_chunk;
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
            float all = 0;
            for (Index from = 0; from < k; from += chunk) {
                std::int64_t sum = 0;
                for (Index p = from; p < k && p < from + chunk; ++p)
                    sum += integer(storage, panel_width, panel, p, j) * a.q[i * a.q_row + p];
                const float s = scale(storage, panel_width, panel, from, j);
                all = has_block_scales(storage) ? std::fma(static_cast<float>(sum), s, all)
                                                : all + static_cast<float>(sum);
            }
            if (!has_block_scales(storage)) all *= scale(storage, panel_width, panel, 0, j);
            c[i * c_row + j] = all * a.scale[i];
        }
}

}  // namespace exact
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORAGE_REFERENCE_HPP
