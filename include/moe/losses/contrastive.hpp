// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_CONTRASTIVE_HPP
#define MOE_LOSSES_CONTRASTIVE_HPP

#include <cmath>
#include <utility>

#include <moe/core/memory.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/routers/cosine.hpp>

namespace moe::inline MOE_ABI {

/// Options of contrastive_loss().
struct Contrastive {
    double temperature = 0.1;  ///< of the cosines, finite and > 0
};

namespace detail {

/// Rows of a matrix at length 1, rows of zeros as they are, and how a gradient gets to the matrix.
template <class S>
struct UnitVectors {
    Buffer<S> room;   // [2 B, E] units, then their gradients
    Buffer<S> norms;  // [B]
    Index dim = 0, rows = 0;

    explicit UnitVectors(In<S> matrix) : dim(matrix.cols()), rows(matrix.rows()) {
        room.assign(checked_product(2 * rows, dim), S(0));
        norms.resize(rows);
        for (Index i = 0; i < rows; ++i) {
            norms[i] = norm(dim, row_data(matrix, i));
            for (Index e = 0; e < dim && norms[i] != S(0); ++e)
                unit(i)[e] = matrix(i, e) / norms[i];
        }
    }
    S* unit(Index i) { return room.data() + i * dim; }
    S* gradient(Index i) { return room.data() + (rows + i) * dim; }

    /// dmatrix += factor (I - u u^T) gradient / norm
    void backward(S factor, Out<S>& dmatrix) {
        const KernelTable<S>& table = kernels<S>();
        for (Index i = 0; i < rows; ++i) {
            if (norms[i] == S(0)) continue;
            table.axpy(dim, -table.dot(dim, unit(i), gradient(i)), unit(i), gradient(i));
            table.axpy(dim, factor / norms[i], gradient(i), row_data(dmatrix, i));
        }
    }
};

inline void check_contrastive(const char* field, Index rows, Index cols, Index wanted_rows,
                              Index wanted_cols) {
    if (rows != wanted_rows || cols != wanted_cols)
        fail("moe::contrastive_loss: ", field, " is [", rows, ", ", cols, "], anchors is [",
             wanted_rows, ", ", wanted_cols, "]");
}

}  // namespace detail

/// Tells gate vectors apart: that of a user stays near itself when a part of what is known of him
/// is masked, and away from those of others (InfoNCE).
///
///     s(i)    = cos(g_i, g+_i) / tau,  s(i, j) = cos(g_i, g_j) / tau
///     value   = mean over rows of log(exp s(i) + sum over j != i of exp s(i, j)) - s(i)
///
/// The gradient is exact, and goes to both matrices; g has it as anchor and as others' negative.
/// The value is log B where all cosines are equal, and lies between log(1 + (B - 1) exp(-2 / tau))
/// and log(1 + (B - 1) exp(2 / tau)): without others, for one row, it is 0. Cosines, not dot
/// products: these gate vectors are sums with no softmax, so that a gate could lower the loss of
/// dot products by growing. A row of zeros, such as that of a user of whom all is masked, has
/// cosine 0 to all and no gradient. A NaN in g shows in all rows.
///
/// The vectors are not those of a routing, so nothing but them is read: [B, E] of a batch of users
/// and the same again from a masked input, in the same order.
///
/// @param anchors     [B, E] g
/// @param positives   [B, E] g+
/// @param weight      times the value; small. With 0 gradients are not touched
/// @param danchors, dpositives  [B, E], **added** to
/// @return the value without `weight`; 0 without rows
/// @throws std::invalid_argument if extents differ or the temperature is not finite and > 0.
///         Nothing is added then
/// Source: AW-MoE (arXiv:2306.05011), the contrastive loss of the gate.
template <class X, class Z, class DX, class DZ>
Loss contrastive_loss(const Eigen::DenseBase<X>& anchors, const Eigen::DenseBase<Z>& positives,
                      double weight, DX&& danchors, DZ&& dpositives,
                      const Contrastive& options = {}) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> g = detail::readable<S>(anchors);
    const Eigen::Ref<const Matrix<S>> plus = detail::readable<S>(positives);
    Eigen::Ref<Matrix<S>> dg = detail::writable<S>(std::forward<DX>(danchors));
    Eigen::Ref<Matrix<S>> dplus = detail::writable<S>(std::forward<DZ>(dpositives));
    const Index rows = g.rows(), dim = g.cols();
    detail::check_contrastive("positives", plus.rows(), plus.cols(), rows, dim);
    detail::check_contrastive("danchors", dg.rows(), dg.cols(), rows, dim);
    detail::check_contrastive("dpositives", dplus.rows(), dplus.cols(), rows, dim);
    if (!(options.temperature > 0 && std::isfinite(options.temperature)))
        detail::fail("moe::Contrastive: temperature is ", options.temperature,
                     ", it must be finite and > 0; 0.1 is usual");
    if (rows == 0) return {"contrastive", 0};
    const KernelTable<S>& table = kernels<S>();
    detail::UnitVectors<S> u(g), v(plus);
    Buffer<S> room;  // [B] s(i, .), with s(i) in the place of the row itself
    S* s = room.resize(rows).data();
    const S sharpness = static_cast<S>(1 / options.temperature);
    double sum = 0;
    for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < rows; ++j)
            s[j] = sharpness * table.dot(dim, u.unit(i), i == j ? v.unit(i) : u.unit(j));
        const S own = s[i];
        for (Index j = 0; j < rows; ++j) s[j] -= own;
        sum += static_cast<double>(table.log_sum_exp(rows, s));
        if (weight == 0) continue;
        table.softmax(rows, s, s);
        s[i] -= S(1);
        for (Index j = 0; j < rows; ++j) {
            detail::UnitVectors<S>& other = i == j ? v : u;
            table.axpy(dim, s[j], other.unit(j), u.gradient(i));
            table.axpy(dim, s[j], u.unit(i), other.gradient(j));
        }
    }
    if (weight != 0) {
        const auto factor =
            static_cast<S>(weight / (options.temperature * static_cast<double>(rows)));
        u.backward(factor, dg);
        v.backward(factor, dplus);
    }
    return {"contrastive", sum / static_cast<double>(rows)};
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_CONTRASTIVE_HPP
