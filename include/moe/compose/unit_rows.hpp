// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_UNIT_ROWS_HPP
#define MOE_COMPOSE_UNIT_ROWS_HPP

#include <cmath>

#include <moe/core/types.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI::detail {

/// Rows divided by their lengths:
///
///     u = factor * gain * v / |v|,   |v| = sqrt(<v, v> + epsilon)
template <class S>
struct UnitRows {
    Index columns;
    double epsilon;
    S factor = 1;
    const S* gain = nullptr;  ///< [columns]; null: ones

    /// Writes u.
    /// @return 1 / |v|
    S forward(const KernelTable<S>& kernel, const S* v, S* u) const {
        const auto square = static_cast<double>(kernel.dot(columns, v, v));
        const auto inverse = static_cast<S>(1 / std::sqrt(square + epsilon));
        kernel.scale(columns, factor * inverse, v, u);
        for (Index d = 0; gain != nullptr && d < columns; ++d) u[d] *= gain[d];
        return inverse;
    }

    /// Adds to dv:  dv += (h - u' <u', h>) / |v|  with u' = v / |v| and h = factor * gain * du.
    /// @param inverse  1 / |v|
    /// @param du       becomes h
    void backward(const KernelTable<S>& kernel, const S* v, S inverse, S* du, S* dv) const {
        kernel.scale(columns, factor, du, du);
        for (Index d = 0; gain != nullptr && d < columns; ++d) du[d] *= gain[d];
        const S along = inverse * kernel.dot(columns, v, du);
        kernel.axpy(columns, inverse, du, dv);
        kernel.axpy(columns, -inverse * inverse * along, v, dv);
    }

    /// Adds a row's share of d(loss)/d(gain) for some columns; before backward() changes du.
    void backward_gain(Index first, Index count, const S* v, S inverse, const S* du,
                       S* dgain) const {
        for (Index d = first; d < first + count; ++d)
            dgain[d] = std::fma(factor * inverse * v[d], du[d], dgain[d]);
    }
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_COMPOSE_UNIT_ROWS_HPP
