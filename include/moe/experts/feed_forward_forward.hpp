// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_FORWARD_HPP
#define MOE_EXPERTS_FEED_FORWARD_FORWARD_HPP

#include <algorithm>

#include <moe/config.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/weights.hpp>
#include <moe/experts/feed_forward_rows.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/experts/frozen_weights.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// One weight matrix per expert, as trained or frozen.
template <class S>
struct ExpertMatrices {
    const Weights<S>* unpacked = nullptr;
    const FrozenWeights<S>* frozen = nullptr;
    Index column_rows = Plan{}.column_rows;

    /// The kernels to use.
    const KernelTable<S>& table() const {
        return frozen != nullptr ? frozen->kernels() : kernels<S>();
    }
    /// W^T as the right-hand side of X W^T, for W [out, in].
    WeightOperand<S> transposed(Index e) const {
        if (frozen != nullptr) return frozen->transposed(e);
        return with_matrix(*unpacked, e, isa(), [&](const auto& w) {
            WeightOperand<S> b(w.transpose());
            b.plain.column_rows = column_rows;
            return b;
        });
    }
    /// W as the right-hand side of dY W; frozen matrices are none.
    WeightOperand<S> plain(Index e) const {
        return with_matrix(*unpacked, e, isa(), [](const auto& w) { return WeightOperand<S>(w); });
    }
};

template <class S>
struct FeedForwardOperands {
    ExpertMatrices<S> gate;  ///< none if up holds it, as GateUp
    ExpertMatrices<S> up, down;
    const Weights<S>* gate_bias = nullptr;
    const Weights<S>* up_bias = nullptr;  ///< of gate too, as GateUp, if up holds it
    const Weights<S>* down_bias = nullptr;

    bool is_frozen() const { return up.frozen != nullptr; }
    bool is_gate_up() const { return is_frozen() && up.frozen->is_gate_up(); }
};

/// hidden = act(g) * u with g = gate x + gate_bias, u = up x + up_bias, or act(u), for the columns
/// of one item.
/// @param keep  whether g and u are written down too
template <class S>
void feed_forward_hidden(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                         In<S> x, const Rows<S>& rows, bool keep, FeedForwardState<S>& state,
                         const FeedForwardItem& item, Buffer<S>& scratch) {
    const bool together = operands.is_gate_up(), separate = shape.gated && !together;
    const KernelTable<S>& table = operands.up.table();
    const Index expert = rows.first_expert + item.expert, dim = shape.model_dim;
    const Index x_stride = FeedForwardState<S>::row_stride(dim);
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    const Index width = std::min(feed_forward_width(block), item.end - item.begin);
    const Index both = gate_up_columns(width), each = together ? 2 : 1;
    S* const x_block =
        scratch.resize(block * (x_stride + both) + product_scratch(table, width)).data();
    S* const gate_block = x_block + block * x_stride;  // of up too, if they are one matrix
    S* const up_block = gate_block + block * width;
    S* const packing = gate_block + block * both;
    const WeightOperand<S> up = operands.up.transposed(expert);
    const WeightOperand<S> gate = separate ? operands.gate.transposed(expert) : up;
    const S* const up_bias = bias_row(*operands.up_bias, expert);
    const S* const gate_bias = separate ? bias_row(*operands.gate_bias, expert) : nullptr;

    for (Index first = rows.begin(item.expert); first < rows.end(item.expert); first += block) {
        const Index count = std::min(block, rows.end(item.expert) - first);
        gather<S>(table, x, rows.from, rows.input_weights, first, count, 0, dim, x_block, x_stride);
        const Strided<S> a{x_block, x_stride, 1};
        for (Index begin = item.begin; begin < item.end; begin += width) {
            const Index columns = std::min(width, item.end - begin);
            WeightOperand<S> here = up.columns_from(each * begin);
            if (begin + width < item.end)
                here = here.before(up.columns_from(each * (begin + width)));
            if (together)
                product(table, count, gate_up_columns(columns), dim, a, here, gate_block, both,
                        false, packing);
            else
                product(table, count, columns, dim, a, here, up_block, width, false, packing);
            if (separate)
                product(table, count, columns, dim, a, gate.columns_from(begin), gate_block, width,
                        false, packing);
            for (Index i = 0; i < count; ++i) {
                const Index row = first + i;
                S* const hidden = state.hidden.data() + state.at(rows, row) + begin;
                if (together) {
                    S* const gu = gate_block + i * both;
                    add_bias(table, up_bias, each * begin, gate_up_columns(columns), gu);
                    activate_gate_up_row(table, shape, columns, gu, hidden);
                    continue;
                }
                S* const u = up_block + i * width;
                S* const g = gate_block + i * width;
                add_bias(table, up_bias, begin, columns, u);
                add_bias(table, gate_bias, begin, columns, g);
                activate_row(table, shape, columns, g, u, hidden);
                if (!keep) continue;
                const Index at = state.kept_at(row) + begin;
                std::copy_n(u, columns, state.up.data() + at);
                if (shape.gated) std::copy_n(g, columns, state.gate.data() + at);
            }
        }
    }
}

/// y[to] = fma(weight, down hidden + bias, y[to]), experts ascending, for some columns of y: nobody
/// else writes them, so that the sum has one order for any number of threads.
///
/// A block of hidden rows is multiplied by all these columns while it is in the second-level cache,
/// a few at a time, so that what comes out is still there when it is added to y.
template <class S>
void feed_forward_down(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                       const Rows<S>& rows, Out<S> y, const FeedForwardState<S>& state, Index begin,
                       Index end, Buffer<S>& scratch) {
    const KernelTable<S>& table = operands.up.table();
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const Index block_rows = std::min(feed_forward_rows, rows.size(e));
        const Index width = std::min(feed_forward_width(block_rows), end - begin);
        S* const block = scratch.resize(block_rows * width + product_scratch(table, width)).data();
        S* const packing = block + block_rows * width;
        const Index expert = rows.first_expert + e;
        const WeightOperand<S> down = operands.down.transposed(expert);
        const S* const bias = bias_row(*operands.down_bias, expert);
        const Index after = next_with_rows(rows, e);
        for (Index first = rows.begin(e); first < rows.end(e); first += block_rows) {
            const Index count = std::min(block_rows, rows.end(e) - first);
            const Strided<S> a{state.hidden.data() + state.at(rows, first), state.stride, 1};
            for (Index at = begin; at < end; at += width) {
                const Index columns = std::min(width, end - at);
                WeightOperand<S> here = down.columns_from(at);
                if (at + width < end)
                    here = here.before(down.columns_from(at + width));
                else if (after < rows.num_experts())
                    here = here.before(
                        operands.down.transposed(rows.first_expert + after).columns_from(begin));
                product(table, count, columns, shape.ffn_dim, a, here, block, width, false,
                        packing);
                combine_rows(table, rows, first, count, at, columns, bias, block, width, y);
            }
        }
    }
}

/// The hidden layer of a part of the rows.
template <class S>
void feed_forward_in(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
                     const Rows<S>& rows, bool keep, FeedForwardState<S>& state,
                     Executor& executor) {
    const auto item = [&](Index i) -> const FeedForwardItem& {
        return state.items[static_cast<std::size_t>(i)];
    };
    state.items.clear();
    split_experts(rows, shape.ffn_dim, operands.up.table().panel_width, executor.concurrency(),
                  state.items);
    parallel_for(
        executor, static_cast<Index>(state.items.size()),
        shape.flops_per_row() * static_cast<double>(rows.num_rows()),
        [&](Index i, int worker) {
            feed_forward_hidden<S>(shape, operands, x, rows, keep, state, item(i),
                                   state.scratch[static_cast<std::size_t>(worker)]);
        },
        [&](Index i) { return item_cost(rows, item(i)); });
}

/// The forward pass of a group, part by part of the rows in two phases: into the hidden layer, and
/// out of it.
template <class S>
void feed_forward(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
                  const Rows<S>& rows, Out<S> y, const Call<S>& call) {
    if (rows.num_rows() == 0) return;
    const KernelTable<S>& table = operands.up.table();
    Executor& executor = call.ws.executor();
    const int workers = executor.concurrency();
    // Frozen experts have no backward.
    const Keep keep = operands.is_frozen() ? Keep::nothing : call.ws.keep();
    auto& state = call.ws.template state<FeedForwardState<S>>();
    state.resize(shape, rows.num_rows(), static_cast<Index>(rows.weights.size()), keep, workers);
    state.grow_scratch(shape, rows.num_rows(), keep, workers);
    state.reserve_items(rows.num_experts(), workers);
    const Index chunk =
        column_chunk(shape.output_dim, table.panel_width, workers, 4, feed_forward_down_columns);
    const Index chunks = (shape.output_dim + chunk - 1) / chunk;

    const Index most = FeedForwardState<S>::part_rows(shape, rows.num_rows(), workers);
    for_each_part(rows, most, state.offsets, [&](const Rows<S>& part) {
        feed_forward_in(shape, operands, x, part, keep == Keep::everything, state, executor);
        const double flops = shape.flops_per_row() * static_cast<double>(part.num_rows());
        parallel_for(executor, chunks, flops, [&](Index i, int worker) {
            feed_forward_down<S>(shape, operands, part, y, state, i * chunk,
                                 std::min(shape.output_dim, (i + 1) * chunk),
                                 state.scratch[static_cast<std::size_t>(worker)]);
        });
    });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_FORWARD_HPP
