// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_ROWS_HPP
#define MOE_EXPERTS_FEED_FORWARD_ROWS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <moe/core/rows.hpp>
#include <moe/core/types.hpp>
#include <moe/core/weights.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/kernels/dispatch.hpp>

/// What happens to rows between the products of feed-forward experts, however these multiply.

namespace moe::inline MOE_ABI::detail {

/// The row vector of expert e, null if there is none.
template <class S>
const S* bias_row(const Weights<S>& biases, Index e) {
    return biases.count() > 0 ? strided<S>(biases[e]).data : nullptr;
}

/// Copies columns [begin, end) of rows `index[first .. first + count)` of `source`, scaled.
template <class S>
void gather(const KernelTable<S>& table, In<S> source, std::span<const std::int32_t> index,
            std::span<const S> factors, Index first, Index count, Index begin, Index end, S* to,
            Index to_stride) {
    for (Index i = 0; i < count; ++i) {
        const auto row = static_cast<std::size_t>(first + i);
        const S* from = source.data() + index[row] * source.outerStride() + begin;
        if (factors.empty())
            std::copy_n(from, end - begin, to + i * to_stride);
        else
            table.scale(end - begin, factors[row], from, to + i * to_stride);
    }
}

/// row += bias for `columns` columns from `begin` on of what the bias is for; null: none.
template <class S>
void add_bias(const KernelTable<S>& table, const S* bias, Index begin, Index columns, S* row) {
    if (bias != nullptr) table.axpy(columns, S(1), bias + begin, row);
}

/// What becomes of g and u where FeedForwardShape::is_bounded(), NaN stays NaN:
///
///     g' = min(g, limit),  u' = clamp(u, -limit, limit) + offset
///
/// The gradients at g and u are those at g' and u', and 0 where the bound is exceeded; at the bound
/// itself they pass, and at NaN they are 0.
template <class S>
class GateBounds {
public:
    explicit GateBounds(const FeedForwardShape& shape)
        : limit_(shape.limit < static_cast<double>(std::numeric_limits<S>::max())
                     ? static_cast<S>(shape.limit)
                     : std::numeric_limits<S>::infinity()),
          // -0 added changes nothing, 0 the sign of -0.
          offset_(shape.up_offset == 0 ? S(-0.0) : static_cast<S>(shape.up_offset)) {}

    /// Calls function(first, count, g', u') for every few of n columns.
    template <class F>
    void for_each_block(Index n, const S* g, const S* u, const F& function) const {
        constexpr Index most = 128;
        S near_g[most], near_u[most];
        for (Index first = 0; first < n; first += most) {
            const Index count = std::min(most, n - first);
            bound_gate(count, g + first, near_g);
            bound_up(count, u + first, near_u);
            function(first, count, near_g, near_u);
        }
    }
    /// (g', u') in place of n columns of both, laid out as GateUp.
    void bound_gate_up(Index n, S* gu) const {
        for (Index i = 0; i < n; i += gate_up_run, gu += 2 * gate_up_run) {
            const Index count = std::min(gate_up_run, n - i);
            bound_gate(count, gu, gu);
            bound_up(count, gu + gate_up_run, gu + gate_up_run);
        }
    }
    /// dg and du from the gradients at g' and u', in place.
    void backward(Index n, const S* g, const S* u, S* dg, S* du) const {
        for (Index i = 0; i < n; ++i) dg[i] = g[i] <= limit_ ? dg[i] : S(0);
        for (Index i = 0; i < n; ++i) du[i] = -limit_ <= u[i] && u[i] <= limit_ ? du[i] : S(0);
    }

private:
    void bound_gate(Index n, const S* g, S* to) const {
        for (Index i = 0; i < n; ++i) to[i] = limit_ < g[i] ? limit_ : g[i];
    }
    void bound_up(Index n, const S* u, S* to) const {
        for (Index i = 0; i < n; ++i) {
            const S below = limit_ < u[i] ? limit_ : u[i];
            to[i] = (below < -limit_ ? -limit_ : below) + offset_;
        }
    }

    S limit_, offset_;
};

/// hidden = act(g') u', or act(u) for experts without a gate, for some columns of a row.
///
/// The products leave g and u in the second-level cache, for this to read once: 0.7 % of the time
/// of a layer of (2048, 1024) and 5 % of one of (256, 512), 512 tokens (bench/layer_bench, rows
/// stages/fp32_forward, AVX2, Zen 1). Frozen gated experts have KernelTable::gate_up for it.
template <class S>
void activate_row(const KernelTable<S>& table, const FeedForwardShape& shape, Index columns,
                  const S* g, const S* u, S* hidden) {
    if (!shape.gated)
        table.activate(shape.activation, columns, u, hidden);
    else if (!shape.is_bounded())
        table.gate(shape.activation, columns, g, u, hidden);
    else
        GateBounds<S>(shape).for_each_block(
            columns, g, u, [&](Index first, Index count, const S* near_g, const S* near_u) {
                table.gate(shape.activation, count, near_g, near_u, hidden + first);
            });
}

/// The same of a row of both as the product with GateUp leaves it, which is overwritten.
template <class S>
void activate_gate_up_row(const KernelTable<S>& table, const FeedForwardShape& shape, Index columns,
                          S* gu, S* hidden) {
    if (shape.is_bounded()) GateBounds<S>(shape).bound_gate_up(columns, gu);
    table.gate_up(shape.activation, columns, gu, hidden);
}

/// dg in place of dh, and du; only du for experts without a gate.
template <class S>
void activate_row_backward(const KernelTable<S>& table, const FeedForwardShape& shape,
                           Index columns, const S* g, const S* u, S* dh, S* du) {
    if (!shape.gated) return table.activate_backward(shape.activation, columns, u, dh, du);
    if (!shape.is_bounded())
        return table.gate_backward(shape.activation, columns, g, u, dh, dh, du);
    const GateBounds<S> bounds(shape);
    bounds.for_each_block(
        columns, g, u, [&](Index first, Index count, const S* near_g, const S* near_u) {
            S* const d = dh + first;
            table.gate_backward(shape.activation, count, near_g, near_u, d, d, du + first);
        });
    bounds.backward(columns, g, u, dh, du);
}

/// Asks for some columns of row `index[row]` of y, which will be added to.
template <class S>
void prefetch_row(const Out<S>& y, std::span<const std::int32_t> index, Index row, Index begin,
                  Index columns) {
    constexpr Index line = 64 / static_cast<Index>(sizeof(S));
    const S* const from = y.data() + index[static_cast<std::size_t>(row)] * y.outerStride() + begin;
    for (Index j = 0; j < columns; j += line) __builtin_prefetch(from + j, 1);
}

/// y[to] = fma(weight, block + bias, y[to]) for `columns` columns from `begin` on of rows
/// [first, first + count).
/// @param block  [count, columns], rows `stride` elements apart; the bias is added to it
/// @param bias   of all columns; null: none
template <class S>
void combine_rows(const KernelTable<S>& table, const Rows<S>& rows, Index first, Index count,
                  Index begin, Index columns, const S* bias, S* block, Index stride, Out<S> y) {
    for (Index i = 0; i < count; ++i) {
        if (const Index next = i + feed_forward_ahead; next < count)
            prefetch_row<S>(y, rows.to, first + next, begin, columns);
        const auto row = static_cast<std::size_t>(first + i);
        add_bias(table, bias, begin, columns, block + i * stride);
        table.axpy(columns, rows.weights[row], block + i * stride,
                   row_data(y, rows.to[row]) + begin);
    }
}

/// Operations, about, that rounding rows to the operands of a product takes.
inline double encoding_flops(Index rows, Index columns) {
    return 8 * static_cast<double>(rows) * static_cast<double>(columns);
}

/// The next expert after e that has rows; rows.num_experts() if there is none.
template <class S>
Index next_with_rows(const Rows<S>& rows, Index e) {
    do ++e;
    while (e < rows.num_experts() && rows.size(e) == 0);
    return e;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_ROWS_HPP
