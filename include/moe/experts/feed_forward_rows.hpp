// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_ROWS_HPP
#define MOE_EXPERTS_FEED_FORWARD_ROWS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

/// hidden = act(g) u, or act(u) for experts without a gate, for some columns of a row; before
/// that u += bias.
///
/// The products leave g and u in the second-level cache, for this to read once: 0.7 % of the time
/// of a layer of (2048, 1024) and 5 % of one of (256, 512), 512 tokens (bench/layer_bench, rows
/// stages/fp32_forward, AVX2, Zen 1). Frozen gated experts have KernelTable::gate_up for it.
/// @param bias  of these columns; null: none
template <class S>
void activate_row(const KernelTable<S>& table, const FeedForwardShape& shape, Index columns,
                  const S* bias, const S* g, S* u, S* hidden) {
    if (bias != nullptr) table.axpy(columns, S(1), bias, u);
    if (shape.gated)
        table.gate(shape.activation, columns, g, u, hidden);
    else
        table.activate(shape.activation, columns, u, hidden);
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
        if (bias != nullptr) table.axpy(columns, S(1), bias + begin, block + i * stride);
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
