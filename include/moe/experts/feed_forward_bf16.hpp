// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_BF16_HPP
#define MOE_EXPERTS_FEED_FORWARD_BF16_HPP

#include <algorithm>
#include <cstddef>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/group.hpp>
#include <moe/experts/feed_forward_bf16_state.hpp>
#include <moe/experts/feed_forward_forward.hpp>

namespace moe::inline MOE_ABI::detail {

/// x' for the rows of a part.
template <class S>
void bf16_inputs(const FeedForwardShape& shape, In<S> x, const Rows<S>& rows,
                 FeedForwardBf16State<S>& state, Executor& executor) {
    const KernelTable<S>& table = kernels<S>();
    for_row_runs(
        executor, rows.num_rows(), encoding_flops(rows.num_rows(), shape.model_dim),
        [&](Index first, Index last, int worker) {
            float* const scaled = state.scratch[static_cast<std::size_t>(worker)].floats.data();
            for (Index i = rows.offsets.front() + first; i < rows.offsets.front() + last; ++i) {
                const auto row = static_cast<std::size_t>(i);
                const float* from = row_data(x, rows.from[row]);
                if (!rows.input_weights.empty()) {
                    table.scale(shape.model_dim, rows.input_weights[row], from, scaled);
                    from = scaled;
                }
                state.table->encode(shape.model_dim, from, state.outer_row(rows, i));
            }
        });
}

/// h' = (act(g) * u)' with g = gate x' + gate_bias, u = up x' + up_bias, or act(u)', for the
/// columns of one item.
/// @param keep  whether g and u are written down too
template <class S>
void bf16_hidden(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                 const Rows<S>& rows, bool keep, FeedForwardBf16State<S>& state,
                 const FeedForwardItem& item, typename FeedForwardBf16State<S>::Scratch& scratch) {
    const KernelTable<S>& table = kernels<S>();
    const Bf16Table& bf16 = *state.table;
    const Index expert = rows.first_expert + item.expert, dim = shape.model_dim;
    const Index records = PanelLayout::records(dim),
                panel_bytes = bf16_panel_bytes(bf16, records, 1);
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    const Index width = bf16_columns / (shape.gated ? 2 : 1);
    std::byte* const up_panels = scratch.panels.data();
    std::byte* const gate_panels =
        up_panels + bf16_panel_bytes(bf16, records, std::min(width, shape.ffn_dim));
    S* const up_block = scratch.floats.data();
    S* const gate_block = up_block + block * width;
    S* const hidden = up_block + block * bf16_columns;
    const S* const up_bias = bias_row(*operands.up_bias, expert);
    const S* const gate_bias = shape.gated ? bias_row(*operands.gate_bias, expert) : nullptr;
    const auto pack = [&](const ExpertMatrices<S>& weights, Index begin, Index columns,
                          std::byte* to) {
        with_matrix(*weights.unpacked, expert, isa(), [&](const auto& w) {
            pack_bf16(bf16, w.transpose().from(0, begin), dim, columns, to, panel_bytes);
        });
    };
    for (Index begin = item.begin; begin < item.end; begin += width) {
        const Index columns = std::min(width, item.end - begin);
        pack(operands.up, begin, columns, up_panels);
        if (shape.gated) pack(operands.gate, begin, columns, gate_panels);
        for (Index first = rows.begin(item.expert); first < rows.end(item.expert); first += block) {
            const Index count = std::min(block, rows.end(item.expert) - first);
            const std::byte* const a = state.outer_row(rows, first);
            bf16.product(count, columns, records, a, state.outer_stride, up_panels, up_block, width,
                         nullptr, state.tile_rows);
            if (shape.gated)
                bf16.product(count, columns, records, a, state.outer_stride, gate_panels,
                             gate_block, width, nullptr, state.tile_rows);
            for (Index i = 0; i < count; ++i) {
                S* const u = up_block + i * width;
                S* const g = gate_block + i * width;
                add_bias(table, up_bias, begin, columns, u);
                add_bias(table, gate_bias, begin, columns, g);
                activate_row(table, shape, columns, g, u, hidden);
                bf16.encode(columns, hidden,
                            state.inner_row(rows, first + i) + begin * bf16.row_bytes);
                if (!keep) continue;
                const Index at = state.plain.kept_at(first + i) + begin;
                std::copy_n(u, columns, state.plain.up.data() + at);
                if (shape.gated) std::copy_n(g, columns, state.plain.gate.data() + at);
            }
        }
    }
}

/// y[to] = fma(weight, down h' + bias, y[to]), experts ascending, for some columns of y that are
/// nobody else's.
template <class S>
void bf16_down(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
               const Rows<S>& rows, Out<S> y, FeedForwardBf16State<S>& state, Index begin,
               Index end, typename FeedForwardBf16State<S>::Scratch& scratch) {
    const KernelTable<S>& table = kernels<S>();
    const Bf16Table& bf16 = *state.table;
    const Index inner = shape.ffn_dim, width = std::min(bf16_columns, end - begin);
    const Index records = PanelLayout::records(inner);
    const Index panel_bytes = bf16_panel_bytes(bf16, records, 1);
    S* const block = scratch.floats.data();
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const Index expert = rows.first_expert + e;
        const S* const bias = bias_row(*operands.down_bias, expert);
        for (Index at = begin; at < end; at += width) {
            const Index columns = std::min(width, end - at);
            with_matrix(*operands.down.unpacked, expert, isa(), [&](const auto& w) {
                pack_bf16(bf16, w.transpose().from(0, at), inner, columns, scratch.panels.data(),
                          panel_bytes);
            });
            for (Index first = rows.begin(e); first < rows.end(e); first += feed_forward_rows) {
                const Index count = std::min(feed_forward_rows, rows.end(e) - first);
                bf16.product(count, columns, records, state.inner_row(rows, first),
                             state.inner_stride, scratch.panels.data(), block, width, nullptr,
                             state.tile_rows);
                combine_rows(table, rows, first, count, at, columns, bias, block, width, y);
            }
        }
    }
}

/// h' of a part of the rows.
template <class S>
void bf16_in(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
             const Rows<S>& rows, bool keep, FeedForwardBf16State<S>& state, Executor& executor) {
    bf16_inputs<S>(shape, x, rows, state, executor);
    const auto item = [&](Index i) -> const FeedForwardItem& {
        return state.plain.items[static_cast<std::size_t>(i)];
    };
    state.plain.items.clear();
    split_experts(rows, shape.ffn_dim, padded_rows, executor.concurrency(), state.plain.items,
                  rows.num_rows());
    parallel_for(
        executor, static_cast<Index>(state.plain.items.size()),
        shape.flops_per_row() * static_cast<double>(rows.num_rows()),
        [&](Index i, int worker) {
            bf16_hidden<S>(shape, operands, rows, keep, state, item(i),
                           state.scratch[static_cast<std::size_t>(worker)]);
        },
        [&](Index i) { return item_cost(rows, item(i)); });
}

/// The forward pass with Compute::bf16, weights in the scalar of the layer. With ' for rounded:
///
///     g = gate' x' + gate_bias,  u = up' x' + up_bias,  h = act(g) u or act(u)
///     y = down' h' + down_bias
///
/// The bits of feed_forward_stored() for the same weights stored as bf16. Weights are rounded as
/// they are packed, a few columns at a time: each matrix once in a part of the rows.
template <class S>
void feed_forward_bf16(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                       In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) {
    if (rows.num_rows() == 0) return;
    Executor& executor = call.ws.executor();
    const int workers = executor.concurrency();
    const Keep keep = call.ws.keep();
    auto& state = call.ws.template state<FeedForwardBf16State<S>>();
    state.tile_rows = call.ws.plan().bf16_tile_rows;
    state.resize(shape, rows.num_experts(), rows.num_rows(),
                 static_cast<Index>(rows.weights.size()), keep, workers);
    const Index chunk =
        column_chunk(shape.output_dim, padded_rows, workers, 4, feed_forward_down_columns);
    const Index chunks = (shape.output_dim + chunk - 1) / chunk;
    const Index most = state.part_rows(shape, rows.num_rows(), workers);
    for_each_part(rows, most, state.plain.offsets, [&](const Rows<S>& part) {
        bf16_in(shape, operands, x, part, keep == Keep::everything, state, executor);
        const double flops = shape.flops_per_row() * static_cast<double>(part.num_rows());
        parallel_for(executor, chunks, flops, [&](Index i, int worker) {
            bf16_down<S>(shape, operands, part, y, state, i * chunk,
                         std::min(shape.output_dim, (i + 1) * chunk),
                         state.scratch[static_cast<std::size_t>(worker)]);
        });
    });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_BF16_HPP
