// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_LEAST_SQUARES_HPP
#define MOE_CORE_LEAST_SQUARES_HPP

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// Rotates pairs of rows until all are orthogonal, and the same rows of `turns`. A row that is
/// nothing but rounding next to the whole matrix may stay as it is.
///
/// Source: one-sided Jacobi, Hestenes, "Inversion of matrices by biorthogonalization" (1958).
inline void orthogonalize_rows(Matrix<double>& rows, Matrix<double>& turns) {
    constexpr double epsilon = std::numeric_limits<double>::epsilon();
    const KernelTable<double>& table = kernels<double>();
    const Index count = rows.rows(), length = rows.cols();
    const double small = 8 * epsilon * std::sqrt(static_cast<double>(length));
    const double noise = epsilon * epsilon * table.dot(rows.size(), rows.data(), rows.data());
    const auto rotate = [](Index n, double cosine, double sine, double* x, double* y) {
        for (Index i = 0; i < n; ++i) {
            const double u = x[i], v = y[i];
            x[i] = std::fma(cosine, u, -(sine * v));
            y[i] = std::fma(cosine, v, sine * u);
        }
    };
    bool is_orthogonal = false;
    for (int sweep = 0; sweep < 60 && !is_orthogonal; ++sweep) {  // about 6 to 10 do
        is_orthogonal = true;
        for (Index i = 0; i < count; ++i)
            for (Index j = i + 1; j < count; ++j) {
                double *const x = rows.data() + i * length, *const y = rows.data() + j * length;
                const double xx = table.dot(length, x, x), yy = table.dot(length, y, y);
                const double xy = table.dot(length, x, y);
                if (std::min(xx, yy) <= noise || std::abs(xy) <= small * std::sqrt(xx * yy))
                    continue;
                is_orthogonal = false;
                const double slope = (yy - xx) / (2 * xy);
                const double tangent = std::copysign(
                    1 / (std::abs(slope) + std::sqrt(std::fma(slope, slope, 1))), slope);
                const double cosine = 1 / std::sqrt(std::fma(tangent, tangent, 1));
                rotate(length, cosine, tangent * cosine, x, y);
                rotate(count, cosine, tangent * cosine, turns.data() + i * count,
                       turns.data() + j * count);
            }
    }
}

/// The X of least norm among those that minimise |A X - B|, for A of any shape and rank.
///
///     A = sum_i sigma_i u_i v_i^T,   X = sum_i v_i u_i^T B / sigma_i
///
/// over the singular values above max(M, n) epsilon sigma_1. It takes min(M, n)^2 max(M, n)
/// operations some 50 times.
/// @param a  [M, n], finite; may be empty   @param b  [M, any]
/// @returns  [n, columns of b]
inline Matrix<double> least_squares(In<double> a, In<double> b) {
    if (a.rows() != b.rows())
        fail("moe::least_squares: a has ", a.rows(), " rows, b has ", b.rows());
    const bool is_tall = a.rows() >= a.cols();
    Matrix<double> rows = is_tall ? Matrix<double>(a.transpose()) : Matrix<double>(a);
    const Index rank = rows.rows(), length = rows.cols();
    Matrix<double> turns = Matrix<double>::Identity(rank, rank);
    orthogonalize_rows(rows, turns);

    const KernelTable<double>& table = kernels<double>();
    const auto square = [&](Index i) {  // of sigma_i
        return table.dot(length, rows.data() + i * length, rows.data() + i * length);
    };
    double largest = 0;
    for (Index i = 0; i < rank; ++i) largest = std::max(largest, square(i));
    const double relative = static_cast<double>(length) * std::numeric_limits<double>::epsilon();
    Matrix<double> x = Matrix<double>::Zero(a.cols(), b.cols());
    Matrix<double> projected(1, b.cols());
    for (Index i = 0; i < rank; ++i) {
        const double sigma_square = square(i);
        if (!(sigma_square > relative * relative * largest)) continue;
        // A row is sigma_i times one singular vector, the turns are the other one.
        const double *v = rows.data() + i * length, *u = turns.data() + i * rank;
        if (is_tall) std::swap(u, v);
        projected.setZero();
        for (Index m = 0; m < b.rows(); ++m)
            table.axpy(b.cols(), u[m], b.data() + m * b.outerStride(), projected.data());
        for (Index j = 0; j < x.rows(); ++j)
            table.axpy(b.cols(), v[j] / sigma_square, projected.data(), x.data() + j * x.cols());
    }
    return x;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_LEAST_SQUARES_HPP
