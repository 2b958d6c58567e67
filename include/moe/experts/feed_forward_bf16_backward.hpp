// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_BF16_BACKWARD_HPP
#define MOE_EXPERTS_FEED_FORWARD_BF16_BACKWARD_HPP

#include <algorithm>
#include <cstddef>

#include <moe/experts/feed_forward_backward.hpp>
#include <moe/experts/feed_forward_bf16.hpp>

namespace moe::inline MOE_ABI::detail {

// As feed_forward_backward.hpp, with ' for rounded to bf16; rounding counts as the identity:
//
//     dA = dy' down'               d(w) = <dA, h> + <dy, down_bias>
//     dh = w dA                    (dg, du) = through act(g) * u
//     dx += input weight * (dg' gate' + du' up')    one sum over F of gate, then F of up
//     d(down) += (w dy)'^T h',  d(gate) += dg'^T x',  d(up) += du'^T x'    over the expert's rows
//
// Gradients are added in the scalar of the layer, biases and <.,.> as they are. Each sum of at most
// bf16_sum_rows rows is one product, then added to the gradient.

/// dA for the columns of one item, into state.plain.dgate.
template <class S>
void bf16_dhidden(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                  const Rows<S>& rows, FeedForwardBf16State<S>& state, const FeedForwardItem& item,
                  typename FeedForwardBf16State<S>::Scratch& scratch) {
    const Bf16Table& bf16 = *state.table;
    const Index out = shape.output_dim, records = PanelLayout::records(out);
    const Index panel_bytes = bf16_panel_bytes(bf16, records, 1);
    const Index expert = rows.first_expert + item.expert;
    for (Index at = item.begin; at < item.end; at += bf16_columns) {
        const Index columns = std::min(bf16_columns, item.end - at);
        with_matrix(*operands.down.unpacked, expert, isa(), [&](const auto& w) {
            pack_bf16(bf16, w.from(0, at), out, columns, scratch.panels.data(), panel_bytes);
        });
        for (Index first = rows.begin(item.expert); first < rows.end(item.expert);
             first += feed_forward_rows)
            bf16.product(std::min(feed_forward_rows, rows.end(item.expert) - first), columns,
                         records, state.outer_row(rows, first), state.outer_stride,
                         scratch.panels.data(),
                         state.plain.dgate.data() + state.plain.at(rows, first) + at,
                         state.plain.stride, nullptr, state.tile_rows);
    }
}

/// dg' and du' of rows [begin, end), side by side.
template <class S>
void bf16_inner_gradients(const FeedForwardShape& shape, const Rows<S>& rows,
                          FeedForwardBf16State<S>& state, Index begin, Index end) {
    const Index bytes = padded_length(shape.ffn_dim) * state.table->row_bytes;
    for (Index i = begin; i < end; ++i) {
        std::byte* to = state.inner_row(rows, i);
        const Index at = state.plain.at(rows, i);
        if (shape.gated) {
            state.table->encode(shape.ffn_dim, state.plain.dgate.data() + at, to);
            to += bytes;
        }
        state.table->encode(shape.ffn_dim, state.plain.dup.data() + at, to);
    }
}

/// dx[from] += input weight * (dg' gate' + du' up') for some columns of dx, experts ascending; and
/// the parts of <dg' gate' + du' up', x[from]> in these columns, where input weights want
/// gradients.
template <class S>
void bf16_dx(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
             const Rows<S>& rows, Out<S> dx, FeedForwardBf16State<S>& state, Index begin, Index end,
             typename FeedForwardBf16State<S>::Scratch& scratch) {
    const KernelTable<S>& table = kernels<S>();
    const Bf16Table& bf16 = *state.table;
    const Index part = feed_forward_dot_columns, gates = shape.gated ? 2 : 1;
    const Index parts = FeedForwardState<S>::dot_blocks(shape.model_dim);
    const Index records = gates * PanelLayout::records(shape.ffn_dim);
    const Index panel_bytes = bf16_panel_bytes(bf16, records, 1);
    const bool input_gradients = state.plain.dinput.size() > 0;
    const Index width = std::min(bf16_columns, end - begin);
    S* const block = scratch.floats.data();
    const auto pack = [&](const ExpertMatrices<S>& weights, Index expert, Index at, Index columns,
                          std::byte* to) {
        with_matrix(*weights.unpacked, expert, isa(), [&](const auto& w) {
            pack_bf16(bf16, w.from(0, at), shape.ffn_dim, columns, to, panel_bytes);
        });
    };
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        for (Index at = begin; at < end; at += width) {
            const Index columns = std::min(width, end - at), expert = rows.first_expert + e;
            std::byte* const panels = scratch.panels.data();
            if (shape.gated) pack(operands.gate, expert, at, columns, panels);
            pack(operands.up, expert, at, columns, panels + (gates - 1) * (panel_bytes / gates));
            for (Index first = rows.begin(e); first < rows.end(e); first += feed_forward_rows) {
                const Index count = std::min(feed_forward_rows, rows.end(e) - first);
                bf16.product(count, columns, records, state.inner_row(rows, first),
                             state.inner_stride, panels, block, width, nullptr, state.tile_rows);
                for (Index i = 0; i < count; ++i) {
                    if (const Index next = i + feed_forward_ahead; next < count)
                        prefetch_row<S>(dx, rows.from, first + next, at, columns);
                    const auto row = static_cast<std::size_t>(first + i);
                    table.axpy(columns, rows.input_weight(first + i), block + i * width,
                               row_data(dx, rows.from[row]) + at);
                    for (Index c = 0; input_gradients && c < columns; c += part)
                        state.plain.dinput
                            .data()[(first + i - rows.offsets.front()) * parts + (at + c) / part] =
                            table.dot(std::min(part, columns - c), block + i * width + c,
                                      row_data(x, rows.from[row]) + at + c);
                }
            }
        }
    }
}

/// Calls f(first, count, at) for the sums of one expert: `count` rows from `first` on, whose panels
/// begin with record `at` of all panels of a part.
template <class S, class F>
void for_bf16_sums(const Rows<S>& rows, Index e, const FeedForwardBf16State<S>& state, F&& f) {
    for (Index first = rows.begin(e); first < rows.end(e); first += bf16_sum_rows)
        f(first, std::min(bf16_sum_rows, rows.end(e) - first),
          state.records[static_cast<std::size_t>(e)] + (first - rows.begin(e)) / record_rows);
}

/// x or h of one expert as B in panels, k its rows, for the columns of one item.
/// @param cols  of the matrix
/// @param from  from(first, count, begin, end): rows of it as {data, stride, 1}
template <class S, class F>
void bf16_row_panels(const Rows<S>& rows, Index cols, FeedForwardBf16State<S>& state,
                     const FeedForwardItem& item, std::byte* panels, const F& from) {
    const Bf16Table& bf16 = *state.table;
    const Index width = bf16.panel_width;
    for_bf16_sums(rows, item.expert, state, [&](Index first, Index count, Index at) {
        const Index records = bf16_sum_records(count);
        const Index panel_bytes = bf16_panel_bytes(bf16, PanelLayout::records(count), 1);
        std::byte* const to = panels + bf16_panel_bytes(bf16, at, cols);
        for (Index begin = item.begin; begin < item.end; begin += bf16_columns) {
            const Index end = std::min(item.end, begin + bf16_columns);
            for (Index r = 0; r < records; ++r) {
                const Index row = r * record_rows;
                const Index here = std::min(record_rows, count - row);
                const Strided<S> b = from(first + row, here, begin, end);
                for (Index j = begin; j < end; j += width)
                    bf16.pack(1, here, std::min(width, end - j), b.data + (j - begin), b.row_stride,
                              1, to + j / width * panel_bytes + bf16_panel_bytes(bf16, r, 1));
            }
        }
    });
}

/// gradient += A B for rows [begin, end) of one expert's matrix, for each sum of it.
/// @param cols    of the matrix
/// @param panels  of the part, for B
/// @param from    from(first, count, begin, end): rows of A^T, columns [begin, end)
template <class S, class F>
void bf16_gradient(const Rows<S>& rows, Index cols, FeedForwardBf16State<S>& state,
                   const FeedForwardItem& item, const std::byte* panels, S* gradient,
                   typename FeedForwardBf16State<S>::Scratch& scratch, const F& from) {
    const KernelTable<S>& table = kernels<S>();
    const Bf16Table& bf16 = *state.table;
    const Index width = std::min(bf16_columns, cols);
    for_bf16_sums(rows, item.expert, state, [&](Index first, Index count, Index at) {
        const Index records = bf16_sum_records(count), stride = bf16_stride(bf16, count);
        const Index panel_bytes = bf16_panel_bytes(bf16, PanelLayout::records(count), 1);
        const std::byte* const b = panels + bf16_panel_bytes(bf16, at, cols);
        for (Index begin = item.begin; begin < item.end; begin += bf16_columns) {
            const Index height = std::min(bf16_columns, item.end - begin);
            for (Index p = 0; p < count; p += padded_rows) {
                const Index here = std::min(padded_rows, count - p);
                const Strided<S> a = from(first + p, here, begin, begin + height);
                bf16.encode_columns(height, here, a.data, a.row_stride,
                                    scratch.rows.data() + p * bf16.row_bytes, stride);
            }
            S* const block = scratch.floats.data();
            for (Index j = 0; j < cols; j += width) {
                const Index columns = std::min(width, cols - j);
                bf16.product(height, columns, records, scratch.rows.data(), stride,
                             b + j / bf16.panel_width * panel_bytes, block, width, nullptr,
                             state.tile_rows);
                S* const to = gradient + begin * cols + j;
                for (Index i = 0; i < height; ++i) {
                    for (Index line = 0; line < columns && i + feed_forward_ahead < height;
                         line += 64 / static_cast<Index>(sizeof(S)))
                        __builtin_prefetch(to + (i + feed_forward_ahead) * cols + line, 1);
                    table.axpy(columns, S(1), block + i * width, to + i * cols);
                }
            }
        }
    });
}

/// d(down) += (w dy)'^T h' for rows [begin, end) of one expert's `down`, and d(down_bias).
template <class S>
void bf16_ddown(const FeedForwardShape& shape, const Rows<S>& rows, In<S> dy,
                FeedForwardBf16State<S>& state, const FeedForwardItem& item,
                const FeedForwardGradients<S>& grad,
                typename FeedForwardBf16State<S>::Scratch& scratch) {
    const Index expert = rows.first_expert + item.expert;
    if (S* const gradient = grad.down->gradient(expert))
        bf16_gradient(rows, shape.ffn_dim, state, item, state.h_panels.data(), gradient, scratch,
                      [&](Index first, Index count, Index begin, Index end) {
                          S* const to = scratch.floats.data();
                          gather<S>(kernels<S>(), dy, rows.to, rows.weights, first, count, begin,
                                    end, to, end - begin);
                          return Strided<S>{to, end - begin, 1};
                      });
    add_down_bias_gradient(rows, dy, item, grad);
}

/// d(gate) += dg'^T x' and d(up) += du'^T x' for rows [begin, end) of one expert's matrices, and
/// d(up_bias).
template <class S>
void bf16_dgate_dup(const FeedForwardShape& shape, const Rows<S>& rows,
                    FeedForwardBf16State<S>& state, const FeedForwardItem& item,
                    const FeedForwardGradients<S>& grad,
                    typename FeedForwardBf16State<S>::Scratch& scratch) {
    const Index expert = rows.first_expert + item.expert;
    const auto add = [&](const Buffer<S>& source, Weights<S>& to) {
        S* const gradient = to.gradient(expert);
        if (gradient == nullptr) return;
        bf16_gradient(rows, shape.model_dim, state, item, state.x_panels.data(), gradient, scratch,
                      [&](Index first, Index, Index begin, Index) {
                          return Strided<S>{source.data() + state.plain.at(rows, first) + begin,
                                            state.plain.stride, 1};
                      });
    };
    add(state.plain.dgate, *grad.gate);
    add(state.plain.dup, *grad.up);
    add_hidden_bias_gradients(rows, state.plain, item, grad);
}

/// x and h of a part as right-hand sides of weight gradients.
template <class S>
void bf16_operands(const FeedForwardShape& shape, In<S> x, const Rows<S>& rows,
                   FeedForwardBf16State<S>& state, Executor& executor) {
    auto& items = state.plain.items;
    state.records.assign(1, 0);
    for (Index e = 0; e < rows.num_experts(); ++e)
        state.records.push_back(state.records.back() + PanelLayout::records(rows.size(e)));
    items.clear();
    const int workers = executor.concurrency();
    split_experts(rows, shape.model_dim, padded_rows, workers, items, rows.num_rows());
    const auto xs = static_cast<Index>(items.size());
    split_experts(rows, shape.ffn_dim, padded_rows, workers, items, rows.num_rows());
    const auto all = static_cast<Index>(items.size());
    const double flops = 8 * static_cast<double>(rows.num_rows()) *
                         static_cast<double>(shape.model_dim + shape.ffn_dim);
    parallel_for(executor, all, flops, [&](Index i, int worker) {
        const FeedForwardItem& item = items[static_cast<std::size_t>(i)];
        S* const scratch = state.scratch[static_cast<std::size_t>(worker)].floats.data();
        if (i < xs)
            bf16_row_panels(rows, shape.model_dim, state, item, state.x_panels.data(),
                            [&](Index first, Index count, Index begin, Index end) {
                                gather<S>(kernels<S>(), x, rows.from, rows.input_weights, first,
                                          count, begin, end, scratch, end - begin);
                                return Strided<S>{scratch, end - begin, 1};
                            });
        else
            bf16_row_panels(rows, shape.ffn_dim, state, item, state.h_panels.data(),
                            [&](Index first, Index, Index begin, Index) {
                                return Strided<S>{
                                    state.plain.hidden.data() + state.plain.at(rows, first) + begin,
                                    state.plain.stride, 1};
                            });
    });
}

/// The backward pass of a part of the rows, whose gate and up are there.
template <class S>
void bf16_backward_part(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands,
                        In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                        const RowGradients<S>& dweights, const FeedForwardGradients<S>& grad,
                        FeedForwardBf16State<S>& state, Executor& executor) {
    const Index n = rows.num_rows(), inner = shape.ffn_dim;
    const int workers = executor.concurrency();
    auto& items = state.plain.items;
    const auto scratch = [&](int worker) -> typename FeedForwardBf16State<S>::Scratch& {
        return state.scratch[static_cast<std::size_t>(worker)];
    };
    const auto item = [&](Index i) -> const FeedForwardItem& {
        return items[static_cast<std::size_t>(i)];
    };
    const double flops = shape.flops_per_row() * static_cast<double>(n);
    const Index begin = rows.offsets.front(), end = rows.offsets.back();

    for_row_runs(executor, n, encoding_flops(n, shape.output_dim),
                 [&](Index first, Index last, int) {
                     for (Index i = begin + first; i < begin + last; ++i)
                         state.table->encode(shape.output_dim,
                                             row_data(dy, rows.to[static_cast<std::size_t>(i)]),
                                             state.outer_row(rows, i));
                 });

    items.clear();
    split_experts(rows, inner, padded_rows, workers, items, n);
    parallel_for(
        executor, static_cast<Index>(items.size()), flops,
        [&](Index i, int worker) {
            bf16_dhidden<S>(shape, operands, rows, state, item(i), scratch(worker));
        },
        [&](Index i) { return item_cost(rows, item(i)); });

    const Index step = 16;
    parallel_for(executor, (n + step - 1) / step, flops, [&](Index i, int) {
        const Index first = begin + i * step, last = std::min(end, first + step);
        feed_forward_nonlinearity<S>(shape, operands, rows, dy, dweights, state.plain, first, last);
        bf16_inner_gradients<S>(shape, rows, state, first, last);
    });
    bf16_operands<S>(shape, x, rows, state, executor);

    for_gradient_tasks(
        shape, rows, items, executor,
        [&](Index from, Index to, int worker) {
            bf16_dx<S>(shape, operands, x, rows, dx, state, from, to, scratch(worker));
        },
        [&](const FeedForwardItem& rows_of_down, int worker) {
            bf16_ddown<S>(shape, rows, dy, state, rows_of_down, grad, scratch(worker));
        },
        [&](const FeedForwardItem& rows_of_up, int worker) {
            bf16_dgate_dup<S>(shape, rows, state, rows_of_up, grad, scratch(worker));
        });
    sum_input_gradients(shape, rows, dweights, state.plain);
}

/// The backward pass of a group, from what feed_forward_bf16() left in the same node; gate and up
/// are made again unless they were kept.
template <class S>
void feed_forward_bf16_backward(const FeedForwardShape& shape,
                                const FeedForwardOperands<S>& operands, In<S> x,
                                const Rows<S>& rows, In<S> dy, Out<S> dx,
                                const RowGradients<S>& dweights,
                                const FeedForwardGradients<S>& grad, const Call<S>& call) {
    if (rows.num_rows() == 0) return;
    Executor& executor = call.ws.executor();
    const int workers = executor.concurrency();
    auto& state = call.ws.template state<FeedForwardBf16State<S>>();
    state.tile_rows = call.ws.plan().bf16_tile_rows;
    const Index most = state.part_rows(shape, rows.num_rows(), workers);
    state.resize_gradients(shape, rows.num_experts(), rows.num_rows(),
                           !dweights.input_weights.empty(), workers);
    for_each_part(rows, most, state.plain.offsets, [&](const Rows<S>& part) {
        if (!state.plain.kept) {
            state.plain.first_kept = part.offsets.front();
            bf16_in(shape, operands, x, part, true, state, executor);
        }
        bf16_backward_part(shape, operands, x, part, dy, dx, dweights, grad, state, executor);
    });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_EXPERTS_FEED_FORWARD_BF16_BACKWARD_HPP
