// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_NARROW_WEIGHTS_HPP
#define MOE_TESTS_SUPPORT_NARROW_WEIGHTS_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/types.hpp>
#include <moe/core/weights.hpp>
#include <moe/testing/random.hpp>

/// Weights as checkpoints hold them, in fewer bits than a float.
namespace narrow_weights {

using moe::Dtype;
using moe::Index;

inline constexpr Dtype dtypes[] = {Dtype::bf16, Dtype::f16, Dtype::i8};

/// Element i, near 1 in magnitude; integers are any of -128 to 127.
inline std::uint16_t random_bits(Dtype dtype, std::uint64_t seed, Index i) {
    const double u = moe::testing::random_value(seed, static_cast<std::uint64_t>(i));  // in [-1, 1)
    if (dtype == Dtype::i8) return static_cast<std::uint8_t>(static_cast<int>(u * 128.999));
    const auto sign = static_cast<std::uint16_t>(u < 0 ? 0x8000 : 0);
    const int steps = static_cast<int>((u < 0 ? -u : u) * 0x1000);  // 12 bits below the sign
    const int lowest = dtype == Dtype::bf16 ? 0x3E00 : 0x3000;
    return static_cast<std::uint16_t>(sign |
                                      (lowest + steps % (dtype == Dtype::bf16 ? 512 : 4096)));
}

/// Writes it as element i of `to`.
inline void put(Dtype dtype, std::byte* to, Index i, std::uint16_t bits) {
    const auto size = static_cast<std::size_t>(moe::element_size(dtype));
    std::memcpy(to + static_cast<std::size_t>(i) * size, &bits, size);  // little-endian
}

/// A [rows, cols] matrix and its values in float.
struct Stored {
    std::vector<std::byte> bytes;
    std::vector<float> scales;
    moe::WeightView view;
    moe::Matrix<float> values;  // [rows, cols]

    /// Element (i, j) at i * row_stride + j * col_stride.
    Stored(Dtype dtype, Index rows, Index cols, Index row_stride, Index col_stride,
           std::uint64_t seed)
        : values(rows, cols) {
        const Index size = moe::element_size(dtype);
        const Index length =
            rows * cols == 0 ? 0 : (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
        bytes.assign(static_cast<std::size_t>(length * size), std::byte{0x7F});
        if (dtype == Dtype::i8)
            for (Index i = 0; i < rows; ++i)
                scales.push_back(static_cast<float>(
                    0.01 * moe::testing::random_value(seed + 1, static_cast<std::uint64_t>(i))));
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j) {
                const Index at = i * row_stride + j * col_stride;
                put(dtype, bytes.data(), at, random_bits(dtype, seed, i * cols + j));
                const auto value = moe::read_element<float>(dtype, bytes.data() + at * size);
                values(i, j) = scales.empty() ? value : value * scales[static_cast<std::size_t>(i)];
            }
        view = {.data = bytes.data(),
                .dtype = dtype,
                .rows = rows,
                .cols = cols,
                .row_stride = row_stride,
                .col_stride = col_stride,
                .scales = scales.empty() ? nullptr : scales.data()};
    }
    Stored(Stored&&) = default;  // the arrays stay where they are

    /// The same matrix in float, row-major.
    moe::WeightView widened() const {
        return {.data = values.data(),
                .dtype = Dtype::f32,
                .rows = view.rows,
                .cols = view.cols,
                .row_stride = view.cols};
    }
};

}  // namespace narrow_weights

#endif  // MOE_TESTS_SUPPORT_NARROW_WEIGHTS_HPP
