// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_TYPES_HPP
#define MOE_CORE_TYPES_HPP

#include <cstddef>
#include <type_traits>

#include <Eigen/Core>

#include <moe/config.hpp>

namespace moe::inline MOE_ABI {

/// Extents and loop variables: signed, as wide as a pointer.
using Index = Eigen::Index;

/// Tokens are rows: x is [T, D], row-major.
template <class S>
using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// One row of a Matrix, [1, D].
template <class S>
using RowVector = Eigen::Matrix<S, 1, Eigen::Dynamic, Eigen::RowMajor>;

/// An argument that is read. Any row stride, inner stride 1, never owned.
///
/// Row-major matrices, their blocks and left columns, one row, a Map, and the transpose of a
/// column-major matrix pass without a copy. An expression is evaluated into a temporary.
template <class S>
using In = const Eigen::Ref<const Matrix<S>>&;

/// An argument that is written in place. What does not fit without a copy does not compile.
template <class S>
using Out = Eigen::Ref<Matrix<S>>;

/// A row-major view of memory with a row stride, as kernels and workspaces hand it out.
template <class S>
using View = Eigen::Map<Matrix<S>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class S>
using ConstView = Eigen::Map<const Matrix<S>, Eigen::Unaligned, Eigen::OuterStride<>>;

/// The scalars a layer exists for.
template <class S>
inline constexpr bool is_scalar = std::is_same_v<S, float> || std::is_same_v<S, double>;

namespace detail {

/// An Index as the standard containers count.
inline std::size_t at(Index i) { return static_cast<std::size_t>(i); }

}  // namespace detail

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_TYPES_HPP
