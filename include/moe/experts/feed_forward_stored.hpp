// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_STORED_HPP
#define MOE_EXPERTS_FEED_FORWARD_STORED_HPP

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/group.hpp>
#include <moe/experts/feed_forward_forward.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/experts/frozen_weights.hpp>

namespace moe::inline MOE_ABI::detail {

/// Scratch of feed_forward_stored(). Rows are numbered from the first of a part; those of x as in
/// x, unless they are encoded for each row.
struct FeedForwardStoredState {
    /// One worker's.
    struct Scratch {
        Buffer<std::byte> rows;  // of x, encoded, of one expert
        Buffer<float> scales;
        Buffer<float> products;
    };

    Buffer<std::byte> x_rows, hidden_rows;  // encoded
    Buffer<float> x_scales, hidden_scales;
    Buffer<float> hidden;  // [part, stride] act(gate) * up
    std::vector<Scratch> scratch;
    std::vector<FeedForwardItem> items;
    std::vector<Index> offsets;  // of a part

    /// @param inputs  rows of x that are encoded at once
    /// @param rows    of a part
    /// @param most    rows of one expert
    void resize(const FeedForwardShape& shape, const RowEncoding& x, const RowEncoding& h,
                Index inputs, Index rows, Index most, Index experts, int workers) {
        x_rows.resize(checked_product(inputs, x.stride()));
        x_scales.resize(inputs);
        hidden.resize(checked_product(rows, FeedForwardState<float>::row_stride(shape.ffn_dim)));
        hidden_rows.resize(checked_product(rows, h.stride()));
        hidden_scales.resize(rows);
        const Index block = std::min(most, feed_forward_rows);
        scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(workers)));
        for (Scratch& of : scratch) {
            of.rows.resize(block * x.stride());
            of.scales.resize(block);
            of.products.resize(std::max(products_size(block), shape.model_dim));
        }
        items.reserve(2 * static_cast<std::size_t>(8 * Index{workers} + experts));
        offsets.reserve(static_cast<std::size_t>(experts) + 1);
    }
    /// Elements of what is multiplied at once, for blocks of up to `block` rows: gate and up.
    static Index products_size(Index block) {
        return 2 * std::min(4 * block, feed_forward_rows) * feed_forward_columns;
    }
    /// Room for calls of up to `tokens` tokens and `rows` rows: weighted inputs are encoded for
    /// each row of a part, others for each token.
    void reserve(const FeedForwardShape& shape, const RowEncoding& x, const RowEncoding& h,
                 Index tokens, Index rows, Index experts, int workers) {
        const Index part = FeedForwardState<float>::part_rows(shape, rows, workers);
        resize(shape, x, h, std::max(tokens, part), part, rows, experts, workers);
    }
    /// Bytes that such a call needs at most.
    static Index bytes(const FeedForwardShape& shape, const RowEncoding& x, const RowEncoding& h,
                       Index tokens, Index rows, int workers) {
        const Index part = FeedForwardState<float>::part_rows(shape, rows, workers);
        const Index row = 4 * FeedForwardState<float>::row_stride(shape.ffn_dim) + h.stride() + 4;
        const Index block = std::min(rows, feed_forward_rows);
        return std::max(tokens, part) * (x.stride() + 4) + part * row +
               workers *
                   (block * (x.stride() + 4) + 4 * products_size(block) + 4 * shape.model_dim);
    }
    EncodedRows x() { return {x_rows.data(), x_scales.data()}; }
    EncodedRows h() { return {hidden_rows.data(), hidden_scales.data()}; }
};

/// Experts whose weights are all stored, none as fp32.
template <class S>
struct StoredFeedForward {
    const FrozenWeights<S>*up, *down;      ///< up holds gate too, as GateUp, if there is one
    const Weights<S>*up_bias, *down_bias;  ///< up_bias of gate too, as GateUp
    RowEncoding x, hidden;                 ///< of inputs and of hidden rows
};

/// Whether a call encodes one input for each row of an expert, as it must where inputs are weighted
/// and does where these are no more than the tokens; otherwise each token once.
template <class S>
bool encodes_by_row(Index tokens, const Rows<S>& rows) {
    return !rows.input_weights.empty() || rows.num_rows() <= tokens;
}

/// Encodes inputs [first, last): rows of x, or, by row, what the rows of the experts read.
template <class S>
void encode_inputs(const RowEncoding& encoding, const KernelTable<S>& table, In<S> x,
                   const Rows<S>& rows, bool by_row, Index first, Index last,
                   FeedForwardStoredState& state, float* scaled) {
    for (Index i = first; i < last; ++i) {
        const auto row = static_cast<std::size_t>(rows.offsets.front() + i);
        const float* from = row_data(x, by_row ? rows.from[row] : i);
        if (!rows.input_weights.empty()) {
            table.scale(encoding.n, rows.input_weights[row], from, scaled);
            from = scaled;
        }
        encoding.encode(from, state.x().from(i, encoding.stride()));
    }
}

/// hidden = act(g) * u with g = gate x + gate_bias, u = up x + up_bias, or act(u), for the columns
/// of one item.
template <class S>
void stored_hidden(const FeedForwardShape& shape, const StoredFeedForward<S>& experts, bool by_row,
                   const Rows<S>& rows, const FeedForwardItem& item, FeedForwardStoredState& state,
                   FeedForwardStoredState::Scratch& scratch) {
    const KernelTable<S>& table = experts.up->kernels();
    const Index expert = rows.first_expert + item.expert, base = rows.offsets.front();
    const StoredMatrix& up = experts.up->stored(expert);
    const float* const bias = bias_row(*experts.up_bias, expert);
    const Index stride = experts.x.stride();
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    const Index each = shape.gated ? 2 : 1;  // columns of a product for one of hidden
    const Index width = feed_forward_width(block), product_stride = each * width;
    const Index hidden_stride = FeedForwardState<S>::row_stride(shape.ffn_dim);
    float* const products = scratch.products.data();

    for (Index first = rows.begin(item.expert); first < rows.end(item.expert); first += block) {
        const Index count = std::min(block, rows.end(item.expert) - first);
        EncodedRows a = state.x().from(first - base, stride);
        if (!by_row && count == 1)
            a = state.x().from(rows.from[static_cast<std::size_t>(first)], stride);
        else if (!by_row) {
            a = {scratch.rows.data(), scratch.scales.data()};
            for (Index i = 0; i < count; ++i) {
                const Index token = rows.from[static_cast<std::size_t>(first + i)];
                const EncodedRows from = state.x().from(token, stride);
                std::memcpy(a.data + i * stride, from.data, static_cast<std::size_t>(stride));
                a.scales[i] = *from.scales;
            }
        }
        for (Index begin = item.begin; begin < item.end; begin += width) {
            const Index columns = std::min(width, item.end - begin);
            const Index panel = each * begin / table.panel_width;
            const std::byte* const next = begin + width < item.end
                                              ? up.panel(each * (begin + width) / table.panel_width)
                                              : nullptr;
            experts.x.multiply(count, shape.gated ? gate_up_columns(columns) : columns, a, up,
                               panel, products, product_stride, next);
            for (Index i = 0; i < count; ++i) {
                float* const row = products + i * product_stride;
                float* const to = state.hidden.data() + (first - base + i) * hidden_stride + begin;
                add_bias(table, bias, each * begin,
                         shape.gated ? gate_up_columns(columns) : columns, row);
                if (shape.gated)
                    activate_gate_up_row(table, shape, columns, row, to);
                else
                    activate_row(table, shape, columns, row, row, to);
            }
        }
    }
}

/// y[to] = fma(weight, down hidden + bias, y[to]), experts ascending, for some columns of y that
/// are nobody else's.
template <class S>
void stored_down(const StoredFeedForward<S>& experts, const Rows<S>& rows, Out<S> y, Index begin,
                 Index end, FeedForwardStoredState& state,
                 FeedForwardStoredState::Scratch& scratch) {
    const KernelTable<S>& table = experts.down->kernels();
    const Index stride = experts.hidden.stride(), base = rows.offsets.front();
    float* const block = scratch.products.data();
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const Index expert = rows.first_expert + e;
        const StoredMatrix& down = experts.down->stored(expert);
        const float* const bias = bias_row(*experts.down_bias, expert);
        const Index width = feed_forward_width(std::min(feed_forward_rows, rows.size(e)));
        const Index after = next_with_rows(rows, e);
        const std::byte* const then =
            after < rows.num_experts()
                ? experts.down->stored(rows.first_expert + after).panel(begin / table.panel_width)
                : nullptr;
        for (Index first = rows.begin(e); first < rows.end(e); first += feed_forward_rows) {
            const Index count = std::min(feed_forward_rows, rows.end(e) - first);
            const EncodedRows a = state.h().from(first - base, stride);
            for (Index at = begin; at < end; at += width) {
                const Index columns = std::min(width, end - at);
                experts.hidden.multiply(
                    count, columns, a, down, at / table.panel_width, block, width,
                    at + width < end ? down.panel((at + width) / table.panel_width) : then);
                combine_rows(table, rows, first, count, at, columns, bias, block, width, y);
            }
        }
    }
}

/// One part of the rows, from inputs to y.
template <class S>
void stored_part(const FeedForwardShape& shape, const StoredFeedForward<S>& experts, bool by_row,
                 const Rows<S>& rows, Out<S> y, FeedForwardStoredState& state, Executor& executor) {
    const Index panel_width = experts.up->kernels().panel_width, count = rows.num_rows();
    const int workers = executor.concurrency();
    const double flops = shape.flops_per_row() * static_cast<double>(count);
    const auto scratch = [&](int worker) -> FeedForwardStoredState::Scratch& {
        return state.scratch[static_cast<std::size_t>(worker)];
    };
    const auto item = [&](Index i) { return state.items[static_cast<std::size_t>(i)]; };
    state.items.clear();
    split_experts(rows, shape.ffn_dim, panel_width, workers, state.items);
    parallel_for(
        executor, static_cast<Index>(state.items.size()), flops,
        [&](Index i, int worker) {
            stored_hidden(shape, experts, by_row, rows, item(i), state, scratch(worker));
        },
        [&](Index i) { return item_cost(rows, item(i)); });

    for_row_runs(executor, count, encoding_flops(count, shape.ffn_dim),
                 [&](Index first, Index last, int) {
                     const Index stride = FeedForwardState<S>::row_stride(shape.ffn_dim);
                     for (Index i = first; i < last; ++i)
                         experts.hidden.encode(state.hidden.data() + i * stride,
                                               state.h().from(i, experts.hidden.stride()));
                 });

    const Index chunk =
        column_chunk(shape.output_dim, panel_width, workers, 4, feed_forward_down_columns);
    parallel_for(executor, (shape.output_dim + chunk - 1) / chunk, flops, [&](Index i, int worker) {
        stored_down(experts, rows, y, i * chunk, std::min(shape.output_dim, (i + 1) * chunk), state,
                    scratch(worker));
    });
}

/// The forward pass with Compute::bf16 or int8:
///
///     x' = encoded(x),  h' = encoded(act(gate x') * (up x')),  y = down h'
///
/// Part by part of the rows, in four phases: inputs are encoded (rows of x once, for all parts),
/// hidden rows made, encoded, and multiplied by down.
template <class S>
void feed_forward_stored(const FeedForwardShape& shape, const StoredFeedForward<S>& experts,
                         In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) {
    if (rows.num_rows() == 0) return;
    Executor& executor = call.ws.executor();
    const bool by_row = encodes_by_row(x.rows(), rows);
    const Index most =
        FeedForwardState<S>::part_rows(shape, rows.num_rows(), executor.concurrency());
    auto& state = call.ws.template state<FeedForwardStoredState>();
    state.resize(shape, experts.x, experts.hidden, by_row ? most : x.rows(), most, most_rows(rows),
                 rows.num_experts(), executor.concurrency());
    const auto encode = [&](const Rows<S>& part, Index inputs) {
        for_row_runs(executor, inputs, encoding_flops(inputs, shape.model_dim),
                     [&](Index first, Index last, int worker) {
                         encode_inputs(
                             experts.x, experts.up->kernels(), x, part, by_row, first, last, state,
                             state.scratch[static_cast<std::size_t>(worker)].products.data());
                     });
    };
    if (!by_row) encode(rows, x.rows());
    for_each_part(rows, most, state.offsets, [&](const Rows<S>& part) {
        if (by_row) encode(part, part.num_rows());
        stored_part(shape, experts, by_row, part, y, state, executor);
    });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_STORED_HPP
