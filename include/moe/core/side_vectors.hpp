// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_SIDE_VECTORS_HPP
#define MOE_CORE_SIDE_VECTORS_HPP

#include <type_traits>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

template <class M>
concept HasScalar = is_scalar<typename std::remove_cvref_t<M>::Scalar>;

/// A [rows, cols] matrix of either scalar that is only viewed: it must outlive the calls it is
/// given to. See SideVectors and SideGradients.
template <bool writable>
class SideMatrix {
public:
    SideMatrix() = default;
    template <HasScalar M>
    SideMatrix(M&& vectors)  // NOLINT(google-explicit-constructor)
        : kind_(std::is_same_v<typename std::remove_cvref_t<M>::Scalar, float> ? Kind::f32
                                                                               : Kind::f64),
          rows_(vectors.rows()),
          cols_(vectors.cols()) {
        using Derived = std::remove_cvref_t<M>;
        constexpr bool is_column = Derived::ColsAtCompileTime == 1 && !Derived::IsRowMajor;
        static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0,
                      "moe::Context: side_vectors is a view; pass a matrix, not an expression");
        static_assert(
            is_column || (Derived::IsRowMajor && Derived::InnerStrideAtCompileTime == 1),
            "moe::Context: side_vectors are rows of a row-major matrix; pass moe::Matrix, a Map of "
            "it, or v.transpose() of a column-major matrix with one vector per column");
        constexpr bool is_temporary = !std::is_lvalue_reference_v<M> &&
                                      std::is_same_v<Derived, typename Derived::PlainObject>;
        static_assert(
            !is_temporary,
            "moe::Context: side_vectors is a view; this matrix is gone before it is read");
        data_ = vectors.data();
        stride_ = is_column ? vectors.innerStride() : vectors.outerStride();
    }

    /// Whether none were given; 0 rows may be.
    bool empty() const { return kind_ == Kind::none; }
    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    /// Whether the vectors are of this scalar.
    template <class S>
    bool holds() const {
        return kind_ == (std::is_same_v<S, float> ? Kind::f32 : Kind::f64);
    }

    /// Element `column` of vector `row`, whichever scalar they hold.
    double at(Index row, Index column) const {
        const Index i = row * stride_ + column;
        return kind_ == Kind::f32 ? static_cast<double>(static_cast<const float*>(data_)[i])
                                  : static_cast<const double*>(data_)[i];
    }

    /// The vectors as the scalar of the layer that reads them: a ConstView, or a View to write to.
    /// @throws std::invalid_argument if they hold the other scalar
    template <class S>
    auto as() const {
        if (!holds<S>())
            detail::fail("moe::Context: ", writable ? "gradients->side_vectors" : "side_vectors",
                         " is ", empty() ? "empty" : "of another scalar", ", the part that ",
                         writable ? "writes" : "reads", " it wants ",
                         sizeof(S) == 4 ? "float" : "double",
                         !writable && empty()
                             ? "; set Context::side_vectors, one row per token or per sequence"
                             : "");
        using Element = std::conditional_t<writable, S, const S>;
        using Result = std::conditional_t<writable, View<S>, ConstView<S>>;
        return Result(static_cast<Element*>(data_), rows_, cols_, Eigen::OuterStride<>(stride_));
    }

private:
    enum class Kind { none, f32, f64 };

    std::conditional_t<writable, void*, const void*> data_ = nullptr;
    Kind kind_ = Kind::none;
    Index rows_ = 0, cols_ = 0, stride_ = 0;
};

}  // namespace detail

/// One vector per token or per sequence, of either scalar, for parts that read more than tokens.
/// A row-major matrix, a block or Map of one, or the transpose of a column-major one converts.
class SideVectors : public detail::SideMatrix<false> {
    using SideMatrix::SideMatrix;
};

/// Where the gradient at SideVectors is added: a matrix like theirs that may be written.
class SideGradients : public detail::SideMatrix<true> {
    using SideMatrix::SideMatrix;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_SIDE_VECTORS_HPP
