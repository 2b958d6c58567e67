// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_OPERAND_HPP
#define MOE_KERNELS_OPERAND_HPP

#include <moe/core/weights.hpp>
#include <moe/kernels/grouped_gemm.hpp>

namespace moe::inline MOE_ABI {

/// The right-hand side B of a product: as it lies in memory, or packed. Only viewed.
template <class S>
struct Operand {
    explicit Operand(const Strided<S>& b) : unpacked(b) {}
    explicit Operand(const PackedMatrix<S>& b) : packed(&b) {}

    Strided<S> unpacked{nullptr, 0, 1};
    const PackedMatrix<S>* packed = nullptr;
};

/// C = A B[:, first : first + columns], or C += that; see product().
///
/// @param m, k     rows of A; columns of A, rows of B
/// @param first    a multiple of table.panel_width
/// @param c        [m, columns], C(i, j) = c[i * c_row + j]
/// @param scratch  product_scratch(table) elements
template <class S>
void multiply(const KernelTable<S>& table, Index m, Index k, const Strided<S>& a, const Operand<S>& b,
              Index first, Index columns, S* c, Index c_row, bool add, S* scratch) {
    const Index begin = first / table.panel_width, end = begin + num_panels(table, columns);
    if (b.packed != nullptr) {
        const Panels<S> panels{b.packed->panel(begin)};
        product(table, m, columns, k, a, panels, c, c_row, add, 0, end - begin);
    } else {
        const Strided<S> part{b.unpacked.data + first * b.unpacked.col_stride, b.unpacked.row_stride,
                              b.unpacked.col_stride};
        product(table, m, columns, k, a, part, c, c_row, add, scratch, 0, end - begin);
    }
}

namespace detail {

/// A matrix of weights that is stored in the scalar of the layer.
template <class S>
Strided<S> strided(const WeightView& w) {
    return {static_cast<const S*>(w.data), w.row_stride, w.col_stride};
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_OPERAND_HPP
