// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_BACKWARD_HPP
#define MOE_EXPERTS_FEED_FORWARD_BACKWARD_HPP

#include <algorithm>
#include <utility>

#include <moe/experts/feed_forward_forward.hpp>

namespace moe::inline MOE_ABI::detail {

/// Where parameter gradients are added; matrices that are not wanted are empty.
template <class S>
struct FeedForwardGradients {
    Weights<S>*gate, *up, *down, *gate_bias, *up_bias, *down_bias;
};

// With h = act(g) * u for one row (g and u bounded first where experts are, see GateBounds), w its
// weight and dy what comes from above:
//
//     dh' = dy down                d(w) = <dh', h> + <dy, down_bias>, which is <dy, expert output>
//     dh  = w dh'                  (dg, du) = through act(g) * u
//     dx += input weight * (dg gate + du up)
//     d(down) += (w dy)^T h,  d(gate) += dg^T x,  d(up) += du^T x    over the expert's rows
//
// Every product is over the rows of one expert, or over F or O, in ascending order, and every
// output element belongs to one task: no sum depends on the number of threads.

/// dh' = dy down for the columns of one item, into state.dgate.
template <class S>
void feed_forward_dhidden(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                          const Rows<S>& rows, In<S> dy, FeedForwardState<S>& state,
                          const FeedForwardItem& item, Buffer<S>& scratch) {
    const KernelTable<S>& table = kernels<S>();
    const Index expert = rows.first_expert + item.expert, dim = shape.output_dim;
    const Index stride = FeedForwardState<S>::row_stride(dim);
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    S* const dy_block =
        scratch.resize(block * stride + product_scratch(table, item.end - item.begin)).data();
    const WeightOperand<S> down = operands.down.plain(expert).columns_from(item.begin);
    for (Index first = rows.begin(item.expert); first < rows.end(item.expert); first += block) {
        const Index count = std::min(block, rows.end(item.expert) - first);
        gather<S>(table, dy, rows.to, {}, first, count, 0, dim, dy_block, stride);
        product(table, count, item.end - item.begin, dim, Strided<S>{dy_block, stride, 1}, down,
                state.dgate.data() + state.at(rows, first) + item.begin, state.stride, false,
                dy_block + block * stride);
    }
}

/// Rows [begin, end): the weight's gradient, dg and du from the dh' that state.dgate holds, and h
/// again.
template <class S>
void feed_forward_nonlinearity(const FeedForwardShape& shape,
                               const FeedForwardOperands<S>& operands, const Rows<S>& rows,
                               In<S> dy, const RowGradients<S>& dweights,
                               FeedForwardState<S>& state, Index begin, Index end) {
    const KernelTable<S>& table = kernels<S>();
    const Index n = shape.ffn_dim;
    for (Index i = begin, e = 0; i < end; ++i) {
        while (rows.end(e) <= i) ++e;
        const S* const down_bias = bias_row(*operands.down_bias, rows.first_expert + e);
        const auto row = static_cast<std::size_t>(i);
        const S* const u = state.up.data() + state.kept_at(i);
        const S* const g = shape.gated ? state.gate.data() + state.kept_at(i) : u;
        S* const h = state.hidden.data() + state.at(rows, i);
        S* const dh = state.dgate.data() + state.at(rows, i);
        S* const du = state.dup.data() + state.at(rows, i);
        activate_row(table, shape, n, g, u, h);
        dweights.weights[row] = table.dot(n, dh, h);
        if (down_bias != nullptr)
            dweights.weights[row] +=
                table.dot(shape.output_dim, dy.data() + rows.to[row] * dy.outerStride(), down_bias);
        table.scale(n, rows.weights[row], dh, dh);
        activate_row_backward(table, shape, n, g, u, dh, du);
    }
}

/// dx[from] += input weight * (dg gate + du up) for some columns of dx, experts ascending; and the
/// parts of <dg gate + du up, x[from]> in these columns, where input weights want gradients.
template <class S>
void feed_forward_dx(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
                     const Rows<S>& rows, Out<S> dx, FeedForwardState<S>& state, Index begin,
                     Index end, Buffer<S>& scratch) {
    const KernelTable<S>& table = kernels<S>();
    const Index width = end - begin, part = feed_forward_dot_columns;
    const Index parts = FeedForwardState<S>::dot_blocks(shape.model_dim);
    const bool input_gradients = state.dinput.size() > 0;
    const Index block_rows = std::min(feed_forward_rows, rows.num_rows());
    S* const block = scratch.resize(block_rows * width + product_scratch(table, width)).data();
    S* const packing = block + block_rows * width;
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const Index expert = rows.first_expert + e;
        const WeightOperand<S> up = operands.up.plain(expert).columns_from(begin);
        for (Index first = rows.begin(e); first < rows.end(e); first += block_rows) {
            const Index count = std::min(block_rows, rows.end(e) - first);
            const Index at = state.at(rows, first);
            if (shape.gated) {
                const WeightOperand<S> gate = operands.gate.plain(expert).columns_from(begin);
                product(table, count, width, shape.ffn_dim,
                        Strided<S>{state.dgate.data() + at, state.stride, 1}, gate, block, width,
                        false, packing);
            }
            product(table, count, width, shape.ffn_dim,
                    Strided<S>{state.dup.data() + at, state.stride, 1}, up, block, width,
                    shape.gated, packing);
            for (Index i = 0; i < count; ++i) {
                const auto row = static_cast<std::size_t>(first + i);
                table.axpy(width, rows.input_weight(first + i), block + i * width,
                           dx.data() + rows.from[row] * dx.outerStride() + begin);
                for (Index c = 0; input_gradients && c < width; c += part)
                    state.dinput
                        .data()[(first + i - rows.offsets.front()) * parts + (begin + c) / part] =
                        table.dot(std::min(part, width - c), block + i * width + c,
                                  x.data() + rows.from[row] * x.outerStride() + begin + c);
            }
        }
    }
}

/// d(down_bias) += w dy for columns [begin, end) of one expert's, if there is one.
template <class S>
void add_down_bias_gradient(const Rows<S>& rows, In<S> dy, const FeedForwardItem& item,
                            const FeedForwardGradients<S>& grad) {
    S* const gradient = grad.down_bias->gradient(rows.first_expert + item.expert);
    for (Index r = rows.begin(item.expert); r < rows.end(item.expert) && gradient != nullptr; ++r) {
        const auto row = static_cast<std::size_t>(r);
        kernels<S>().axpy(item.end - item.begin, rows.weights[row],
                          dy.data() + rows.to[row] * dy.outerStride() + item.begin,
                          gradient + item.begin);
    }
}

/// d(gate_bias) += dg and d(up_bias) += du for columns [begin, end) of one expert's, where there
/// are such.
template <class S>
void add_hidden_bias_gradients(const Rows<S>& rows, const FeedForwardState<S>& state,
                               const FeedForwardItem& item, const FeedForwardGradients<S>& grad) {
    const Index expert = rows.first_expert + item.expert, width = item.end - item.begin;
    for (const auto& [source, gradient] :
         {std::pair{state.dgate.data(), grad.gate_bias->gradient(expert)},
          std::pair{state.dup.data(), grad.up_bias->gradient(expert)}})
        for (Index r = rows.begin(item.expert); r < rows.end(item.expert) && gradient != nullptr;
             ++r)
            kernels<S>().axpy(width, S(1), source + state.at(rows, r) + item.begin,
                              gradient + item.begin);
}

/// The gradients of input weights from their parts, where they are wanted.
template <class S>
void sum_input_gradients(const FeedForwardShape& shape, const Rows<S>& rows,
                         const RowGradients<S>& dweights, const FeedForwardState<S>& state) {
    const Index parts = FeedForwardState<S>::dot_blocks(shape.model_dim);
    const Index begin = rows.offsets.front();
    for (Index i = begin; i < rows.offsets.back() && state.dinput.size() > 0; ++i)
        dweights.input_weights[static_cast<std::size_t>(i)] =
            kernels<S>().sum(parts, state.dinput.data() + (i - begin) * parts);
}

/// d(down) += (w dy)^T h for rows [begin, end) of one expert's `down`.
template <class S>
void feed_forward_ddown(const FeedForwardShape& shape, const Rows<S>& rows, In<S> dy,
                        const FeedForwardState<S>& state, const FeedForwardItem& item,
                        const FeedForwardGradients<S>& grad, Buffer<S>& scratch) {
    const Index expert = rows.first_expert + item.expert, end = rows.end(item.expert);
    const KernelTable<S>& table = kernels<S>();
    const Index width = item.end - item.begin;
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    S* const dy_block =
        scratch.resize(block * width + product_scratch(table, shape.ffn_dim)).data();
    S* const gradient = grad.down->gradient(expert);
    for (Index first = rows.begin(item.expert); first < end && gradient != nullptr;
         first += block) {
        const Index count = std::min(block, end - first);
        gather<S>(table, dy, rows.to, rows.weights, first, count, item.begin, item.end, dy_block,
                  width);
        product(table, width, shape.ffn_dim, count, Strided<S>{dy_block, 1, width},
                Strided<S>{state.hidden.data() + state.at(rows, first), state.stride, 1},
                gradient + item.begin * shape.ffn_dim, shape.ffn_dim, true,
                dy_block + block * width);
    }
    add_down_bias_gradient(rows, dy, item, grad);
}

/// d(gate) += dg^T x and d(up) += du^T x for rows [begin, end) of one expert's matrices.
template <class S>
void feed_forward_dgate_dup(const FeedForwardShape& shape, In<S> x, const Rows<S>& rows,
                            const FeedForwardState<S>& state, const FeedForwardItem& item,
                            const FeedForwardGradients<S>& grad, Buffer<S>& scratch) {
    const Index expert = rows.first_expert + item.expert, end = rows.end(item.expert);
    const Index dim = shape.model_dim, width = item.end - item.begin;
    S* const dgate = grad.gate->gradient(expert);
    S* const dup = grad.up->gradient(expert);
    const bool wanted = dgate != nullptr || dup != nullptr;
    const KernelTable<S>& table = kernels<S>();
    const Index x_stride = FeedForwardState<S>::row_stride(dim);
    const Index block = std::min(feed_forward_rows, rows.size(item.expert));
    S* const x_block = scratch.resize(block * x_stride + product_scratch(table, dim)).data();
    for (Index first = rows.begin(item.expert); first < end && wanted; first += block) {
        const Index count = std::min(block, end - first);
        gather<S>(table, x, rows.from, rows.input_weights, first, count, 0, dim, x_block, x_stride);
        const Index at = state.at(rows, first) + item.begin;
        for (const auto& [source, gradient] :
             {std::pair{state.dgate.data(), dgate}, std::pair{state.dup.data(), dup}})
            if (gradient != nullptr)
                product(table, width, dim, count, Strided<S>{source + at, 1, state.stride},
                        Strided<S>{x_block, x_stride, 1}, gradient + item.begin * dim, dim, true,
                        x_block + block * x_stride);
    }
    add_hidden_bias_gradients(rows, state, item, grad);
}

/// The last phase of a part, of either backward: the rest depends on nothing else, so that it is
/// one list of tasks of three kinds. dx(begin, end, worker) for columns of dx, ddown(item, worker)
/// for rows of `down`, dgate_dup(item, worker) for rows of `gate` and `up`.
template <class S, class Dx, class Ddown, class DgateDup>
void for_gradient_tasks(const FeedForwardShape& shape, const Rows<S>& rows,
                        std::vector<FeedForwardItem>& items, Executor& executor, const Dx& dx,
                        const Ddown& ddown, const DgateDup& dgate_dup) {
    const Index n = rows.num_rows(), dim = shape.model_dim, inner = shape.ffn_dim;
    const int workers = executor.concurrency();
    items.clear();
    split_experts(rows, shape.output_dim, feed_forward_gradient_rows, workers, items, n);
    const auto downs = static_cast<Index>(items.size());
    split_experts(rows, inner, feed_forward_gradient_rows, workers, items, n);
    const auto all = static_cast<Index>(items.size());
    const auto item = [&](Index i) -> const FeedForwardItem& {
        return items[static_cast<std::size_t>(i)];
    };
    const Index chunk =
        column_chunk(dim, feed_forward_dot_columns, workers, 1, feed_forward_wide_columns);
    const Index chunks = (dim + chunk - 1) / chunk;
    const Index inputs = shape.gated ? 2 * dim : dim;
    const double cost_of_dx = part_cost(rows) * static_cast<double>(inner) *
                              static_cast<double>(inputs) / static_cast<double>(chunks);
    parallel_for(
        executor, chunks + all, shape.flops_per_row() * static_cast<double>(n),
        [&](Index i, int worker) {
            if (i < chunks)
                dx(i * chunk, std::min(dim, (i + 1) * chunk), worker);
            else if (i < chunks + downs)
                ddown(item(i - chunks), worker);
            else
                dgate_dup(item(i - chunks), worker);
        },
        [&](Index i) {
            if (i < chunks) return cost_of_dx;
            return item_cost(rows, item(i - chunks)) *
                   static_cast<double>(i < chunks + downs ? inner : inputs);
        });
}

/// The backward pass of a part of the rows, whose gate and up are there.
template <class S>
void feed_forward_backward_part(const FeedForwardShape& shape,
                                const FeedForwardOperands<S>& operands, In<S> x,
                                const Rows<S>& rows, In<S> dy, Out<S> dx,
                                const RowGradients<S>& dweights,
                                const FeedForwardGradients<S>& grad, FeedForwardState<S>& state,
                                Executor& executor) {
    const KernelTable<S>& table = kernels<S>();
    const Index n = rows.num_rows(), inner = shape.ffn_dim;
    const int workers = executor.concurrency();
    const auto scratch = [&](int worker) -> Buffer<S>& {
        return state.scratch[static_cast<std::size_t>(worker)];
    };
    const auto item = [&](Index i) -> const FeedForwardItem& {
        return state.items[static_cast<std::size_t>(i)];
    };
    const double flops = shape.flops_per_row() * static_cast<double>(n);

    state.items.clear();
    split_experts(rows, inner, table.panel_width, workers, state.items);
    parallel_for(
        executor, static_cast<Index>(state.items.size()), flops,
        [&](Index i, int worker) {
            feed_forward_dhidden<S>(shape, operands, rows, dy, state, item(i), scratch(worker));
        },
        [&](Index i) { return item_cost(rows, item(i)); });

    const Index step = 16, begin = rows.offsets.front(), end = rows.offsets.back();
    parallel_for(executor, (n + step - 1) / step, flops, [&](Index i, int) {
        feed_forward_nonlinearity<S>(shape, operands, rows, dy, dweights, state, begin + i * step,
                                     std::min(end, begin + (i + 1) * step));
    });

    for_gradient_tasks(
        shape, rows, state.items, executor,
        [&](Index from, Index to, int worker) {
            feed_forward_dx<S>(shape, operands, x, rows, dx, state, from, to, scratch(worker));
        },
        [&](const FeedForwardItem& rows_of_down, int worker) {
            feed_forward_ddown<S>(shape, rows, dy, state, rows_of_down, grad, scratch(worker));
        },
        [&](const FeedForwardItem& rows_of_up, int worker) {
            feed_forward_dgate_dup<S>(shape, x, rows, state, rows_of_up, grad, scratch(worker));
        });
    sum_input_gradients(shape, rows, dweights, state);
}

/// The backward pass of a group, from what feed_forward() left in the same node; gate and up are
/// made again unless they were kept.
template <class S>
void feed_forward_backward(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                           In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                           const RowGradients<S>& dweights, const FeedForwardGradients<S>& grad,
                           const Call<S>& call) {
    if (rows.num_rows() == 0) return;
    Executor& executor = call.ws.executor();
    const int workers = executor.concurrency();
    auto& state = call.ws.template state<FeedForwardState<S>>();
    const Index most = FeedForwardState<S>::part_rows(shape, rows.num_rows(), workers);
    state.resize_gradients(shape, most, !dweights.input_weights.empty());
    state.grow_scratch(shape, rows.num_rows(), Keep::everything, workers);
    state.reserve_items(rows.num_experts(), workers);
    for_each_part(rows, most, state.offsets, [&](const Rows<S>& part) {
        if (!state.kept) {
            state.first_kept = part.offsets.front();
            feed_forward_in(shape, operands, x, part, true, state, executor);
        }
        feed_forward_backward_part(shape, operands, x, part, dy, dx, dweights, grad, state,
                                   executor);
    });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_BACKWARD_HPP
