// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_VIEWS_HPP
#define MOE_CORE_VIEWS_HPP

#include <cstdint>
#include <type_traits>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

/// The door between callers' matrices and the row-major views that everything inside takes.

namespace moe::inline MOE_ABI {

/// First element of a row of a row-major matrix or view, to write to if the matrix is.
template <class M>
auto* row_data(M&& matrix, Index row) {
    return matrix.data() + row * matrix.outerStride();
}

namespace detail {

/// x as the row-major view that the hooks take, without a copy.
///
/// A column-major matrix would be copied silently by Eigen; it is refused here.
template <class S, class Derived>
Eigen::Ref<const Matrix<S>> readable(const Eigen::DenseBase<Derived>& x) {
    static_assert(std::is_same_v<typename Derived::Scalar, S>,
                  "moe: the matrix has another scalar than the layer; use x.cast<...>() or "
                  "make_layer<double>");
    static_assert(Derived::IsRowMajor || Derived::ColsAtCompileTime == 1,
                  "moe: tokens are rows and matrices row-major; pass moe::Matrix, a Map of it, or "
                  "x.transpose() of a column-major matrix that holds one token per column");
    return Eigen::Ref<const Matrix<S>>(x.derived());
}

template <class X>
concept IsMatrix =
    std::is_base_of_v<Eigen::DenseBase<std::remove_cvref_t<X>>, std::remove_cvref_t<X>>;

/// Does not compile: what is no matrix has no rows.
template <class S, class X>
    requires(!IsMatrix<X>)
Eigen::Ref<const Matrix<S>> readable(const X&) {
    static_assert(IsMatrix<X>,
                  "moe: a batch is a matrix with one token per row; view memory as one: "
                  "Eigen::Map<const moe::Matrix<float>>(pointer, tokens, dim)");
}

template <class S, class Y>
Eigen::Ref<Matrix<S>> writable(Y&& y) {
    static_assert(IsMatrix<Y>,
                  "moe: a batch is a matrix with one token per row; view memory as one: "
                  "Eigen::Map<moe::Matrix<float>>(pointer, tokens, dim)");
    using Plain = std::remove_cvref_t<Y>;
    static_assert(std::is_same_v<typename Plain::Scalar, S>,
                  "moe: the matrix has another scalar than the layer; use make_layer<double>");
    static_assert(Plain::IsRowMajor,
                  "moe: tokens are rows and matrices row-major; pass moe::Matrix, a Map of it, or "
                  "y.transpose() of a column-major matrix that holds one token per column");
    return Eigen::Ref<Matrix<S>>(std::forward<Y>(y));
}

/// Whether two row-major matrices share an element. Columns of one wide matrix do not; of matrices
/// with different strides it only sees that their memory is apart.
template <class S>
bool overlap(In<S> a, In<S> b) {
    if (a.size() == 0 || b.size() == 0) return false;
    const auto begin = [](In<S> m) { return reinterpret_cast<std::uintptr_t>(m.data()); };
    const auto end = [](In<S> m) {
        return reinterpret_cast<std::uintptr_t>(row_data(m, m.rows() - 1) + m.cols());
    };
    if (end(a) <= begin(b) || end(b) <= begin(a)) return false;
    if (a.rows() > 1 && b.rows() > 1 && a.outerStride() != b.outerStride()) return false;
    const Index stride = a.rows() > 1 ? a.outerStride() : b.outerStride();
    if (a.rows() == 1 && b.rows() == 1) return true;
    const auto distance =
        static_cast<Index>(begin(b) - begin(a)) / static_cast<Index>(sizeof(S)) % stride;
    const Index shift = distance < 0 ? distance + stride : distance;
    return shift < a.cols() || shift + b.cols() > stride;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_VIEWS_HPP
