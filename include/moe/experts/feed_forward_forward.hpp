// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_FORWARD_HPP
#define MOE_EXPERTS_FEED_FORWARD_FORWARD_HPP

#include <algorithm>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/group.hpp>
#include <moe/core/weights.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/operand.hpp>

namespace moe::inline MOE_ABI {

/// Extents and nonlinearity of the experts of a feed-forward group.
struct FeedForwardShape {
    Index model_dim = 0;   ///< D
    Index ffn_dim = 0;     ///< F
    Index output_dim = 0;  ///< O
    Activation activation = Activation::silu;
    bool gated = true;

    /// 2 per multiply-add: D F (twice if gated) into the hidden layer, F O out of it.
    double flops_per_row() const {
        const double in = static_cast<double>(model_dim) * static_cast<double>(gated ? 2 : 1);
        return 2 * static_cast<double>(ffn_dim) * (in + static_cast<double>(output_dim));
    }
    /// @throws std::invalid_argument if the layer has other extents
    void check(const Shape& layer) const {
        if (layer.model_dim != model_dim || layer.output_dim != output_dim)
            detail::fail("moe: these experts map ", model_dim, " to ", output_dim,
                         " columns, the layer ", layer.model_dim, " to ", layer.output_dim);
    }
};

namespace detail {

inline void check_feed_forward(const char* who, Index count, Index ffn_dim) {
    check_count(who, count);
    if (ffn_dim < 1) fail(who, ": ffn_dim is ", ffn_dim, ", it must be >= 1; it has no default");
}

/// One weight matrix per expert, row-major as trained or packed.
template <class S>
struct ExpertMatrices {
    const Weights<S>* unpacked = nullptr;
    const std::vector<PackedMatrix<S>>* packed = nullptr;

    /// The kernels to use: packed weights are read by those they were packed for.
    const KernelTable<S>& table() const {
        return packed != nullptr && !packed->empty() ? *packed->front().table() : kernels<S>();
    }
    /// W^T as the right-hand side of X W^T, for W [out, in].
    Operand<S> transposed(Index e) const {
        if (packed != nullptr) return Operand<S>((*packed)[static_cast<std::size_t>(e)]);
        return Operand<S>(strided<S>((*unpacked)[e]).transpose());
    }
};

template <class S>
struct FeedForwardOperands {
    ExpertMatrices<S> gate, up, down;
    const Weights<S>* up_bias = nullptr;
    const Weights<S>* down_bias = nullptr;
};

/// Rows of a block that is gathered at once: its share of the second-level cache.
inline constexpr Index feed_forward_rows = 256;
/// Columns of the scratch between a product and what is done with its elements.
inline constexpr Index feed_forward_columns = 128;

/// The same where weights are read along their rows: the wider the better, 16 rows by 1024 columns
/// at a time ran twice as fast as by 128. Fewer rows then, for the same scratch.
inline constexpr Index feed_forward_wide_columns = 1024;
inline constexpr Index feed_forward_wide_rows = 128;

/// A piece of work: some rows or columns of one expert.
struct FeedForwardItem {
    Index expert, begin, end;
};

/// What forward leaves for backward, and scratch of both. Rows are numbered as in Rows, also where
/// a call sees a part of them, so that each part finds its own again.
template <class S>
struct FeedForwardState {
    Buffer<S> gate, up;        // [N, stride] before the nonlinearity
    Buffer<S> hidden;          // [N, stride] act(gate) * up
    Buffer<S> dgate, dup;      // [N, stride]
    Buffer<S> dinput;          // [N, D] only with input weights that want gradients
    std::vector<Buffer<S>> scratch;  // one per worker
    std::vector<FeedForwardItem> items;
    Index stride = 0;

    /// @param keep  whether backward will want gate and up
    void resize(const FeedForwardShape& shape, Index rows, bool keep) {
        stride = padded(shape.ffn_dim);
        hidden.resize(checked_product(rows, stride));
        up.resize(keep ? rows * stride : 0);
        gate.resize(keep && shape.gated ? rows * stride : 0);
    }

    /// Room for calls of up to `rows` rows.
    void reserve(const FeedForwardShape& shape, Index experts, Index rows, bool keep, int workers) {
        resize(shape, rows, keep);
        dgate.resize(keep ? rows * stride : 0);
        dup.resize(keep ? rows * stride : 0);
        reserve_items(experts, workers);
        grow_scratch(shape, rows, keep, workers);
    }
    /// Room for every worker, whichever tasks it will get.
    /// @param rows  of one expert, at most
    void grow_scratch(const FeedForwardShape& shape, Index rows, bool keep, int workers) {
        scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(workers)));
        for (Buffer<S>& buffer : scratch) buffer.resize(scratch_size(shape, rows, keep));
    }
    /// Room for the items of split_experts(), twice, however rows are spread over the experts.
    void reserve_items(Index experts, int workers) {
        items.reserve(2 * static_cast<std::size_t>(8 * Index{workers} + experts));
    }
    /// Bytes that such a call needs at most; see memory_budget().
    static Index bytes(const FeedForwardShape& shape, Index rows, bool keep, int workers) {
        const Index row = padded(shape.ffn_dim) * (keep ? (shape.gated ? 5 : 4) : 1);
        return static_cast<Index>(sizeof(S)) * (rows * row + workers * scratch_size(shape, rows, keep));
    }
    /// Elements of one worker's scratch, at most.
    /// @param rows  of one expert
    static Index scratch_size(const FeedForwardShape& shape, Index rows, bool keep) {
        const Index in = padded(std::max(shape.model_dim, shape.output_dim));
        const Index block = std::min(rows, feed_forward_rows) * (in + 2 * feed_forward_columns);
        // Backward gathers all rows of an expert for a block of columns.
        const Index columns = std::max({feed_forward_rows * feed_forward_columns,
                                        keep ? rows * feed_forward_columns : Index{0},
                                        keep ? feed_forward_wide_rows * feed_forward_wide_columns : 0});
        return std::max(block, columns) + product_scratch(kernels<S>());
    }

    /// Row strides are not powers of two: rows that are would share one set of the first cache.
    static Index padded(Index columns) { return columns + 16; }
};

/// Cuts every expert that has rows into pieces of `unit`, so that there are a few pieces of about
/// equal cost per worker, hot experts or not.
/// @param extent  what is cut: columns of a matrix, the same for all experts
template <class S>
void split_experts(const Rows<S>& rows, Index extent, Index unit, int workers,
                   std::vector<FeedForwardItem>& items) {
    const Index units = (extent + unit - 1) / unit;
    const double total = static_cast<double>(rows.num_rows()) * static_cast<double>(units);
    const double each = std::max(total / (8.0 * workers), 1.0);
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const double cost = static_cast<double>(rows.size(e)) * static_cast<double>(units);
        const Index pieces = std::clamp(static_cast<Index>(cost / each), Index{1}, units);
        for (Index piece = 0; piece < pieces; ++piece)
            items.push_back({e, std::min(extent, units * piece / pieces * unit),
                             std::min(extent, units * (piece + 1) / pieces * unit)});
    }
}

/// Rows of the expert that has most.
template <class S>
Index most_rows(const Rows<S>& rows) {
    Index most = 0;
    for (Index e = 0; e < rows.num_experts(); ++e) most = std::max(most, rows.size(e));
    return most;
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

/// hidden = act(gate x) * (up x), or act(up x + bias), for the columns of one item.
template <class S>
void feed_forward_hidden(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                         In<S> x, const Rows<S>& rows, bool keep, FeedForwardState<S>& state,
                         const FeedForwardItem& item, Buffer<S>& scratch) {
    const KernelTable<S>& table = operands.up.table();
    const Index expert = rows.first_expert + item.expert, dim = shape.model_dim;
    const Index x_stride = FeedForwardState<S>::padded(dim);
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    const Index width = std::min(feed_forward_columns, item.end - item.begin);
    S* const x_block = scratch.resize(block * (x_stride + 2 * width) + product_scratch(table)).data();
    S* const gate_block = x_block + block * x_stride;
    S* const up_block = gate_block + block * width;
    S* const packing = up_block + block * width;
    const Operand<S> up = operands.up.transposed(expert);
    const Operand<S> gate = shape.gated ? operands.gate.transposed(expert) : up;
    const S* bias =
        operands.up_bias->count() > 0 ? static_cast<const S*>((*operands.up_bias)[expert].data) : nullptr;

    for (Index first = rows.begin(item.expert); first < rows.end(item.expert); first += block) {
        const Index count = std::min(block, rows.end(item.expert) - first);
        gather<S>(table, x, rows.from, rows.input_weights, first, count, 0, dim, x_block, x_stride);
        const Strided<S> a{x_block, x_stride, 1};
        for (Index begin = item.begin; begin < item.end; begin += width) {
            const Index columns = std::min(width, item.end - begin);
            multiply(table, count, dim, a, up, begin, columns, up_block, width, false, packing);
            if (shape.gated)
                multiply(table, count, dim, a, gate, begin, columns, gate_block, width, false, packing);
            for (Index i = 0; i < count; ++i) {
                const Index at = (first + i) * state.stride + begin;
                S* const u = up_block + i * width;
                S* const g = gate_block + i * width;
                if (bias != nullptr) table.axpy(columns, S(1), bias + begin, u);
                if (shape.gated)
                    table.gate(shape.activation, columns, g, u, state.hidden.data() + at);
                else
                    table.activate(shape.activation, columns, u, state.hidden.data() + at);
                if (!keep) continue;
                std::copy_n(u, columns, state.up.data() + at);
                if (shape.gated) std::copy_n(g, columns, state.gate.data() + at);
            }
        }
    }
}

/// y[to] = fma(weight, down hidden + bias, y[to]), experts ascending, for some columns of y: nobody
/// else writes them, so that the sum has one order for any number of threads.
template <class S>
void feed_forward_down(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                       const Rows<S>& rows, Out<S> y, const FeedForwardState<S>& state, Index begin,
                       Index end, Buffer<S>& scratch) {
    const KernelTable<S>& table = operands.up.table();
    const Index width = end - begin;
    S* const block = scratch.resize(feed_forward_rows * width + product_scratch(table)).data();
    S* const packing = block + feed_forward_rows * width;
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const Index expert = rows.first_expert + e;
        const Operand<S> down = operands.down.transposed(expert);
        const S* bias = operands.down_bias->count() > 0
                            ? static_cast<const S*>((*operands.down_bias)[expert].data)
                            : nullptr;
        for (Index first = rows.begin(e); first < rows.end(e); first += feed_forward_rows) {
            const Index count = std::min(feed_forward_rows, rows.end(e) - first);
            const Strided<S> a{state.hidden.data() + first * state.stride, state.stride, 1};
            multiply(table, count, shape.ffn_dim, a, down, begin, width, block, width, false, packing);
            for (Index i = 0; i < count; ++i) {
                const auto row = static_cast<std::size_t>(first + i);
                if (bias != nullptr) table.axpy(width, S(1), bias + begin, block + i * width);
                table.axpy(width, rows.weights[row], block + i * width,
                           y.data() + rows.to[row] * y.outerStride() + begin);
            }
        }
    }
}

/// Columns that one task of a column-stationary phase owns: `tasks` tasks per worker, whole panels,
/// at most `most` columns.
inline Index column_chunk(Index columns, Index panel, int workers, Index tasks, Index most) {
    const Index panels = (columns + panel - 1) / panel;
    return panel * std::clamp<Index>(panels / (tasks * workers), 1, std::max<Index>(1, most / panel));
}

/// The forward pass of a group: two phases, [N, F] in between.
template <class S>
void feed_forward(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
                  const Rows<S>& rows, Out<S> y, const Call<S>& call) {
    if (rows.num_rows() == 0) return;
    const KernelTable<S>& table = operands.up.table();
    Executor& executor = call.ws.executor();
    const int workers = executor.concurrency();
    const bool keep = call.ws.keeps();
    auto& state = call.ws.template state<FeedForwardState<S>>();
    state.resize(shape, static_cast<Index>(rows.weights.size()), keep);
    state.grow_scratch(shape, most_rows(rows), keep, workers);
    state.reserve_items(rows.num_experts(), workers);
    const double flops = shape.flops_per_row() * static_cast<double>(rows.num_rows());

    state.items.clear();
    split_experts(rows, shape.ffn_dim, table.panel_width, workers, state.items);
    parallel_for(executor, static_cast<Index>(state.items.size()), flops, [&](Index i, int worker) {
        feed_forward_hidden<S>(shape, operands, x, rows, keep, state,
                               state.items[static_cast<std::size_t>(i)],
                               state.scratch[static_cast<std::size_t>(worker)]);
    });

    const Index chunk = column_chunk(shape.output_dim, table.panel_width, workers, 4,
                                     feed_forward_columns);
    const Index chunks = (shape.output_dim + chunk - 1) / chunk;
    parallel_for(executor, chunks, flops, [&](Index i, int worker) {
        feed_forward_down<S>(shape, operands, rows, y, state, i * chunk,
                             std::min(shape.output_dim, (i + 1) * chunk),
                             state.scratch[static_cast<std::size_t>(worker)]);
    });
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_FEED_FORWARD_FORWARD_HPP
