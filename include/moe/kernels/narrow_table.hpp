// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_NARROW_TABLE_HPP
#define MOE_KERNELS_NARROW_TABLE_HPP

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <moe/core/dtype.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Elements of weights that are narrower than the floats they are multiplied as: the upper half of
/// a float, an IEEE half, and std::int8_t, whose value is float(q) times a scale, rounded once.
enum class Bf16 : std::uint16_t {};
enum class F16 : std::uint16_t {};
template <class T>
inline constexpr bool has_scales = std::is_same_v<T, std::int8_t>;

namespace detail {

constexpr float widen(Bf16 x, float) { return decode_bf16(static_cast<std::uint16_t>(x)); }
constexpr float widen(F16 x, float) { return decode_f16(static_cast<std::uint16_t>(x)); }
constexpr float widen(std::int8_t x, float scale) { return static_cast<float>(x) * scale; }

}  // namespace detail

/// What reads B [k, cols] of one narrow type in place, on one instruction set. The bits are those
/// of KernelTable<float> with a decoded copy of B; a NaN may come out with another payload.
///
/// No function checks its arguments; pointers may be unaligned; counts may be 0. `scales` are read
/// only if the type has them.
struct NarrowKernels {
    Index element_size;  ///< bytes
    Index panel_width;   ///< that of KernelTable<float> for the same instruction set

    /// As KernelTable::columns, for the same rows.
    /// @param b       B(p, j) = element b[j * b_col + p], times scales[j]
    void (*columns)(Index rows, Index cols, Index k, const float* a, Index a_row, const void* b,
                    Index b_col, const float* scales, float* c, Index c_row, bool add);

    /// As KernelTable::pack; where that pads with 0, the sign of this 0 is any.
    /// @param b          B(p, j) = element b[p * b_row + j * b_col], times the scale
    /// @param scale_row, scale_col  the scale is scales[p * scale_row + j * scale_col]; one of them
    ///                   is 0, and scale_col is 0 or 1
    void (*pack)(Index k, Index cols, const void* b, Index b_row, Index b_col, const float* scales,
                 Index scale_row, Index scale_col, float* panel);
};

/// Those of one instruction set.
struct NarrowTable {
    NarrowKernels bf16, f16, int8;

    /// @param dtype  bf16, f16 or i8
    const NarrowKernels& of(Dtype dtype) const {
        return dtype == Dtype::bf16 ? bf16 : dtype == Dtype::f16 ? f16 : int8;
    }
};

/// Strided<float> of narrow elements, times a scale per row or per column where their type has
/// scales. Only viewed.
struct NarrowStrided {
    const std::byte* data;
    Index row_stride, col_stride;  ///< elements
    const float* scales;
    Index scale_row, scale_col;  ///< as NarrowKernels::pack() takes them
    const NarrowKernels* kernels;

    NarrowStrided transpose() const {
        return {data, col_stride, row_stride, scales, scale_col, scale_row, kernels};
    }
    /// What begins at element (i, j).
    NarrowStrided from(Index i, Index j) const {
        NarrowStrided rest = *this;
        rest.data += (i * row_stride + j * col_stride) * kernels->element_size;
        if (scales != nullptr) rest.scales += i * scale_row + j * scale_col;
        return rest;
    }
    /// Where the first element lies, for a prefetch.
    const float* address() const { return reinterpret_cast<const float*>(data); }
    /// Floats that take as many bytes as `count` elements.
    Index in_scalars(Index count) const { return count * kernels->element_size / 4; }
    /// The first k rows of one panel, widened.
    void pack(Index k, Index cols, float* panel) const {
        kernels->pack(k, cols, data, row_stride, col_stride, scales, scale_row, scale_col, panel);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_NARROW_TABLE_HPP
