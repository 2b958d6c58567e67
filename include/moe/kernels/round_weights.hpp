// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_ROUND_WEIGHTS_HPP
#define MOE_KERNELS_ROUND_WEIGHTS_HPP

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/storage_table.hpp>

/// From weights to what is stored of them: rounding to nearest, into the panels of
/// kernels/storage_table.hpp. Plain loops: they run once per weight, about as fast as the weights
/// can be read.

namespace moe::inline MOE_ABI::detail {

/// The nearest bf16, ties to even.
/// @param x  at most largest_weight(Storage::bf16)
inline std::uint16_t bf16_of(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// The nearest IEEE half, ties to even, subnormals included.
/// @param x  at most largest_weight(Storage::f16)
inline std::uint16_t f16_of(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x), size = bits & 0x7fffffff;
    const std::uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    // Below 2^-14 a half counts in steps of 2^-24, as a float between 1/2 and 1 does.
    const auto small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000;
    return static_cast<std::uint16_t>((bits >> 16 & 0x8000) | (size < 0x38800000 ? small : normal));
}

/// The largest magnitude that a weight may have: larger ones would be rounded to infinity, or the
/// f16 scale of their block would.
inline float largest_weight(Storage storage) {
    constexpr float largest_f16 = 65504;
    switch (storage) {
        case Storage::bf16:
            return 0x1.fefffep127f;
        case Storage::f16:
            return 0x1.ffdffep15f;  // from the next float on, 65520, they are
        case Storage::int8_block:
            return 127 * largest_f16;
        case Storage::int4:
            return 8 * largest_f16;
        case Storage::int4_zero:
            return 7.5f * largest_f16;  // both ends of a range that is 15 s wide
        case Storage::int8:
            return 0x1.fffffcp127f;  // 127 s may be above it
        case Storage::fp32:
        case Storage::ternary:
            break;
    }
    return std::numeric_limits<float>::max();
}

/// The first of n numbers whose magnitude is above `most`, or that is NaN; n if there is none.
inline Index first_above(Index n, const float* x, Index stride, float most) {
    const auto limit = std::bit_cast<std::uint32_t>(most);
    const auto above = [&](Index i) {
        return (std::bit_cast<std::uint32_t>(x[i * stride]) & 0x7fffffff) > limit;
    };
    for (Index i = 0; i < n; ++i) {
        if (stride == 1 && i % 64 == 0 && i + 64 <= n) {
            std::uint32_t any = 0;
            for (Index p = i; p < i + 64; ++p)
                any |= (std::bit_cast<std::uint32_t>(x[p]) & 0x7fffffff) > limit ? 1 : 0;
            if (any == 0) {
                i += 63;
                continue;
            }
        }
        if (above(i)) return i;
    }
    return n;
}

/// @param w     [rows, cols]
/// @param name  of the matrix, in the sentence: "up of expert 3"
/// @param first_row, first_col  of w within the matrix
/// @throws std::invalid_argument if a weight is not finite or too large to be stored so
inline void check_storable(Storage storage, Strided<float> w, Index rows, Index cols,
                           const std::string& name, Index first_row = 0, Index first_col = 0) {
    const float most = largest_weight(storage);
    const bool along_rows = w.col_stride == 1 || w.row_stride != 1;
    const Index lines = along_rows ? rows : cols, length = along_rows ? cols : rows;
    for (Index line = 0; line < lines; ++line) {
        const float* const from = w.data + line * (along_rows ? w.row_stride : w.col_stride);
        const Index stride = along_rows ? w.col_stride : w.row_stride;
        const Index at = first_above(length, from, stride, most);
        if (at == length) continue;
        const float found = from[at * stride];
        const std::string place = name + ": weight [" + text(first_row + (along_rows ? line : at)) +
                                  ", " + text(first_col + (along_rows ? at : line)) + "]";
        if (!std::isfinite(found))
            fail("moe::freeze: ", place, " is ", found, ", ", moe::name(storage),
                 " holds finite weights only; mend it, or store the expert as fp32, which keeps "
                 "every bit (Compute::exact only)");
        fail("moe::freeze: ", place, " is ", found, ", ", moe::name(storage),
             " holds weights up to ", storage == Storage::f16 ? 65504 : most,
             "; store the expert as ",
             storage == Storage::bf16 ? "fp32 (Compute::exact only)"
                                      : "bf16 or fp32 (not with Compute::int8)",
             ", see FreezeOptions::experts");
    }
}

/// The same of narrow elements, a piece of a line at a time.
template <class S = float>  // compiled where it is used
void check_storable(Storage storage, const NarrowStrided& w, Index rows, Index cols,
                    const std::string& name) {
    const bool along_rows = w.col_stride == 1 || w.row_stride != 1;
    const Index lines = along_rows ? rows : cols, length = along_rows ? cols : rows;
    const Index width = w.kernels->panel_width;
    S piece[64];
    for (Index line = 0; line < lines; ++line)
        for (Index at = 0; at < length; at += width) {
            const Index count = std::min(width, length - at);
            const Index row = along_rows ? line : at, col = along_rows ? at : line;
            const NarrowStrided rest = w.from(row, col);
            (along_rows ? rest : rest.transpose()).pack(1, count, piece);
            check_storable(storage, Strided<S>{piece, along_rows ? width : 1, 1},
                           along_rows ? 1 : count, along_rows ? count : 1, name, row, col);
        }
}

/// Rows of one record, column by column: w[j][p] is weight (p, j).
using RecordWeights = float[64][record_rows];

/// Copies `rows` of `cols` columns; the other rows and columns become 0.
inline void gather_record(Strided<float> b, Index rows, Index cols, Index width, RecordWeights& w) {
    for (Index j = 0; j < width; ++j)
        if (j >= cols || rows < record_rows) std::fill_n(w[j], record_rows, 0.f);
    if (b.row_stride == 1) {
        for (Index j = 0; j < cols; ++j) std::copy_n(b.data + j * b.col_stride, rows, w[j]);
        return;
    }
    for (Index p = 0; p < rows; ++p)
        for (Index j = 0; j < cols; ++j) w[j][p] = b.data[p * b.row_stride + j * b.col_stride];
}

/// The least and the largest weight of a record's column, and 0.
struct WeightRange {
    float low, high;
    float size() const { return std::max(-low, high); }
};
inline WeightRange range_of(const float* w) {
    float low[8] = {}, high[8] = {};
    for (Index p = 0; p < record_rows; p += 8)
        for (Index i = 0; i < 8; ++i) {
            low[i] = w[p + i] < low[i] ? w[p + i] : low[i];
            high[i] = w[p + i] > high[i] ? w[p + i] : high[i];
        }
    return {*std::min_element(low, low + 8), *std::max_element(high, high + 8)};
}

/// The weight of largest magnitude, the first of equals.
inline float largest_of(const float* w) {
    const WeightRange range = range_of(w);
    if (range.high != -range.low) return range.high > -range.low ? range.high : range.low;
    return *std::find_if(w, w + record_rows, [&](float x) { return std::fabs(x) == range.high; });
}

/// codes = zero + q, q = w / s rounded to nearest even, within [least, most]; q is 0 where s is.
inline void round_codes(const float* w, float s, int zero, int least, int most,
                        std::uint8_t* codes) {
    constexpr float shift = 0x1.8p23f;     // floats up there are integers, the last 8 bits theirs
    const float divisor = s == 0 ? 1 : s;  // weights that small give 0
    const auto low = static_cast<float>(least - zero), high = static_cast<float>(most - zero);
    float q[record_rows];
    std::int32_t bits[record_rows];
    // One step per loop: together they become branches, which weights at random mispredict.
    for (Index p = 0; p < record_rows; ++p) q[p] = w[p] / divisor;
    for (Index p = 0; p < record_rows; ++p) q[p] = q[p] < low ? low : q[p];
    for (Index p = 0; p < record_rows; ++p) q[p] = q[p] > high ? high : q[p];
    for (Index p = 0; p < record_rows; ++p) bits[p] = std::bit_cast<std::int32_t>(q[p] + shift);
    for (Index p = 0; p < record_rows; ++p) codes[p] = static_cast<std::uint8_t>(bits[p] + zero);
}

/// One record.
/// @param scales  one per column, for int8 and ternary
inline void round_record(Storage storage, Index width, const RecordWeights& w, const float* scales,
                         std::byte* to) {
    const auto put = [to](Index at, auto value) { std::memcpy(to + at, &value, sizeof value); };
    // Four rows of a column lie side by side.
    const auto put_fours = [&](Index j, const std::uint8_t* bytes, Index count) {
        for (Index g = 0; g < count; g += 4) std::memcpy(to + g * width + 4 * j, bytes + g, 4);
    };
    std::uint8_t q[record_rows];
    std::uint16_t halves[record_rows];
    const auto put_halves = [&](Index j) {
        std::uint8_t bytes[record_rows / 2];
        for (Index p = 0; p < record_rows / 2; ++p) {
            const Index from = p / 4 * 8 + p % 4;
            bytes[p] = static_cast<std::uint8_t>(q[from] | q[from + 4] << 4);
        }
        put_fours(j, bytes, record_rows / 2);
    };
    for (Index j = 0; j < width; ++j) {
        switch (storage) {
            case Storage::fp32:
                break;
            case Storage::bf16:
                for (Index p = 0; p < record_rows; ++p) halves[p] = bf16_of(w[j][p]);
                for (Index p = 0; p < record_rows; p += 2)
                    std::memcpy(to + 2 * p * width + 4 * j, halves + p, 4);
                break;
            case Storage::f16:
                for (Index p = 0; p < record_rows; ++p) halves[p] = f16_of(w[j][p]);
                for (Index p = 0; p < record_rows; ++p) put(2 * (p * width + j), halves[p]);
                break;
            case Storage::int8:
                round_codes(w[j], scales[j], 128, 1, 255, q);
                put_fours(j, q, record_rows);
                break;
            case Storage::int8_block: {
                const std::uint16_t s = f16_of(range_of(w[j]).size() / 127);
                round_codes(w[j], decode_f16(s), 128, 1, 255, q);
                put_fours(j, q, record_rows);
                put(32 * width + 2 * j, s);
                break;
            }
            case Storage::int4: {
                const std::uint16_t s = f16_of(largest_of(w[j]) / -8);
                round_codes(w[j], decode_f16(s), 8, 0, 15, q);
                put_halves(j);
                put(16 * width + 2 * j, s);
                break;
            }
            case Storage::int4_zero: {
                const WeightRange range = range_of(w[j]);
                const std::uint16_t s = f16_of((range.high - range.low) / 15);
                const float step = decode_f16(s);
                const float lowest[record_rows] = {range.low};
                round_codes(lowest, -step, 0, 0, 15, q);
                const std::uint8_t z = q[0];
                round_codes(w[j], step, z, 0, 15, q);
                put_halves(j);
                put(16 * width + 2 * j, s);
                put(18 * width + j, z);
                break;
            }
            case Storage::ternary: {
                round_codes(w[j], scales[j], 1, 0, 2, q);
                std::uint8_t bytes[record_rows / 4];
                for (Index p = 0; p < record_rows / 4; ++p) {
                    const std::uint8_t* const from = q + p / 4 * 16 + p % 4;
                    bytes[p] = static_cast<std::uint8_t>(from[0] | from[4] << 2 | from[8] << 4 |
                                                         from[12] << 6);
                }
                put_fours(j, bytes, record_rows / 4);
                break;
            }
        }
    }
}

/// One panel.
/// @param storage  any but fp32
/// @param width    panel_width, at most 64
/// @param b        [k, cols], weights that check_storable() passes
/// @param to       panel_layout(storage, width).bytes(k) bytes
inline void round_panel(Storage storage, Index width, Strided<float> b, Index k, Index cols,
                        std::byte* to) {
    const PanelLayout layout = panel_layout(storage, width);
    const Index records = PanelLayout::records(k);
    RecordWeights w;
    const auto gather = [&](Index record) {
        const Index first = record * record_rows, rows = std::clamp<Index>(k - first, 0, 32);
        gather_record({b.data + (rows == 0 ? 0 : first * b.row_stride), b.row_stride, b.col_stride},
                      rows, cols, width, w);
    };
    float scales[64] = {};
    if (layout.scale_bytes > 0) {
        double sums[64] = {};
        for (Index record = 0; record < records; ++record) {
            gather(record);
            for (Index j = 0; j < cols && storage == Storage::int8; ++j)
                scales[j] = std::max(scales[j], range_of(w[j]).size());
            for (Index j = 0; j < cols && storage == Storage::ternary; ++j) {
                double even = 0, odd = 0;
                for (Index p = 0; p < record_rows; p += 2) {
                    even += static_cast<double>(std::fabs(w[j][p]));
                    odd += static_cast<double>(std::fabs(w[j][p + 1]));
                }
                sums[j] += even + odd;
            }
        }
        for (Index j = 0; j < cols; ++j)
            scales[j] =
                storage == Storage::int8
                    ? scales[j] / 127
                    : static_cast<float>(sums[j] / static_cast<double>(std::max<Index>(k, 1)));
        std::memcpy(to, scales, static_cast<std::size_t>(layout.scale_bytes));
    }
    for (Index record = 0; record < records; ++record) {
        gather(record);
        round_record(storage, width, w, scales,
                     to + layout.scale_bytes + record * layout.record_bytes);
    }
    const Index used = layout.scale_bytes + records * layout.record_bytes;
    std::fill(to + used, to + layout.bytes(k), std::byte{0});
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_KERNELS_ROUND_WEIGHTS_HPP
