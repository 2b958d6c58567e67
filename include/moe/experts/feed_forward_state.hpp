// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_STATE_HPP
#define MOE_EXPERTS_FEED_FORWARD_STATE_HPP

#include <algorithm>
#include <limits>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/group.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/shape.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>

namespace moe::inline MOE_ABI {

/// Extents and nonlinearity of the experts of a feed-forward group.
struct FeedForwardShape {
    Index model_dim = 0;   ///< D
    Index ffn_dim = 0;     ///< F
    Index output_dim = 0;  ///< O
    Activation activation = Activation::silu;
    bool gated = true;
    /// Of gated experts: act(min(g, limit)) * (clamp(u, -limit, limit) + up_offset). See Glu.
    double limit = std::numeric_limits<double>::infinity();
    double up_offset = 0;

    /// Whether g and u are changed before they are multiplied.
    bool is_bounded() const {
        return limit < std::numeric_limits<double>::infinity() || up_offset != 0;
    }

    /// 2 per multiply-add: D F (twice if gated) into the hidden layer, F O out of it.
    double flops_per_row() const {
        const double in = static_cast<double>(model_dim) * static_cast<double>(gated ? 2 : 1);
        return 2 * static_cast<double>(ffn_dim) * (in + static_cast<double>(output_dim));
    }
    /// @throws std::invalid_argument if the layer has other extents
    void check(const Shape& layer) const {
        if (layer.model_dim != model_dim || layer.output_dim != output_dim)
            detail::fail(model_dim == 0 ? "moe: these experts hold nothing (a layer that was moved "
                                          "from?): they map "
                                        : "moe: these experts map ",
                         model_dim, " to ", output_dim, " columns, the layer ", layer.model_dim,
                         " to ", layer.output_dim);
    }
};

namespace detail {

inline void check_feed_forward(const char* who, Index count, Index ffn_dim) {
    check_count(who, count);
    if (ffn_dim < 1) fail(who, ": ffn_dim is ", ffn_dim, ", it must be >= 1; it has no default");
}

/// Rows of a block that is gathered at once: its share of the second-level cache.
inline constexpr Index feed_forward_rows = 256;
/// Columns of the scratch between a product and what is done with its elements. Blocks of few rows
/// take more: panels that follow each other in one product are prefetched.
inline constexpr Index feed_forward_columns = 128;
inline Index feed_forward_width(Index rows) {
    return feed_forward_columns * (4 * rows <= feed_forward_rows ? 4 : 1);
}
/// The rows of a weight's gradient are cut into items at multiples of this.
inline constexpr Index feed_forward_gradient_rows = 128;
/// Columns of one part of the product of a row of dx with one of x: a task has whole parts, so that
/// the sum of them does not depend on the tasks.
inline constexpr Index feed_forward_dot_columns = 64;

/// Most columns of y that a task of the last phase owns. Each task reads all of the hidden layer,
/// so few wide tasks read it less often.
inline constexpr Index feed_forward_down_columns = 512;
/// Rows of y that are asked for before they are added to, since they lie anywhere.
inline constexpr Index feed_forward_ahead = 8;

/// Columns of the block of dx that a task makes at a time. Weights are read along their rows: the
/// wider the better.
inline constexpr Index feed_forward_wide_columns = 1024;

/// Rows whose hidden layer, and gradients of it, are there at the same time: so many, or as many as
/// take 4 MiB each, so that they are still in the last cache when the next phase reads them; more
/// where many workers would wait for each other after every phase.
inline constexpr Index feed_forward_part_rows = 1024;
inline constexpr Index feed_forward_part_bytes = Index{1} << 22;

/// Rows that an expert with fewer costs like: its weights have to come from memory. One row by
/// 2048 x 1024 took 719 us, 16 rows took 1163 us and 64 took 3660 us.
inline constexpr Index feed_forward_least_rows = 12;

/// A piece of work: some rows or columns of one expert.
struct FeedForwardItem {
    Index expert, begin, end;
};

/// What forward leaves for backward, and scratch of both.
///
/// Rows are worked on in parts, experts ascending. What lasts only while a part is worked on is
/// numbered from the part's first row; gate and up, if they are kept, as in Rows, also where a call
/// sees some of the rows, so that each finds its own again. If they are not kept, they are
/// scratch of a part like the others.
template <class S>
struct FeedForwardState {
    Buffer<S> gate, up;              // [N or part, stride] before the nonlinearity
    Buffer<S> hidden;                // [part, stride] act(gate) * up
    Buffer<S> dgate;                 // [part, stride] dh' until the nonlinearity has run, then dg
    Buffer<S> dup;                   // [part, stride]
    Buffer<S> dinput;                // [part, D / 64] parts of the gradients at input weights
    std::vector<Buffer<S>> scratch;  // one per worker
    std::vector<FeedForwardItem> items;
    std::vector<Index> offsets;  // [experts + 1] of a part
    Index stride = 0;
    bool kept = false;     // whether forward has left gate and up
    Index first_kept = 0;  // the row that they begin with

    /// Room for forward of `rows` rows.
    /// @param all  rows that are numbered, of which these are some
    void resize(const FeedForwardShape& shape, Index rows, Index all, Keep keep, int workers) {
        stride = row_stride(shape.ffn_dim);
        kept = keep == Keep::everything;
        first_kept = 0;
        hidden.resize(checked_product(part_rows(shape, rows, workers), stride));
        const Index size = kept ? checked_product(all, stride) : 0;
        up.resize(size);
        gate.resize(shape.gated ? size : 0);
    }
    /// Room for backward of a part.
    void resize_gradients(const FeedForwardShape& shape, Index rows, bool of_inputs) {
        const Index size = rows * stride;
        hidden.resize(size);
        dgate.resize(size);
        dup.resize(size);
        dinput.resize(of_inputs ? rows * dot_blocks(shape.model_dim) : 0);
        if (kept) return;
        up.resize(size);
        gate.resize(shape.gated ? size : 0);
    }

    /// Room for calls of up to `rows` rows.
    void reserve(const FeedForwardShape& shape, Index experts, Index rows, Keep keep, int workers) {
        resize(shape, rows, rows, keep, workers);
        if (keep != Keep::nothing) resize_gradients(shape, part_rows(shape, rows, workers), true);
        reserve_items(experts, workers);
        grow_scratch(shape, rows, keep, workers);
    }
    /// Room for every worker, whichever tasks it will get.
    /// @param rows  of a part
    void grow_scratch(const FeedForwardShape& shape, Index rows, Keep keep, int workers) {
        scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(workers)));
        for (Buffer<S>& buffer : scratch) buffer.resize(scratch_size(shape, rows, keep));
    }
    /// Room for the items of split_experts(), twice, however rows are spread over the experts.
    void reserve_items(Index experts, int workers) {
        items.reserve(2 * static_cast<std::size_t>(8 * Index{workers} + experts));
        offsets.reserve(static_cast<std::size_t>(experts) + 1);
    }
    /// Bytes that such a call needs at most; see memory_budget().
    static Index bytes(const FeedForwardShape& shape, Index rows, Keep keep, int workers) {
        const Index part = part_rows(shape, rows, workers);
        const Index kept = keep == Keep::everything ? rows : part;
        Index elements = part * row_stride(shape.ffn_dim);
        if (keep != Keep::nothing)
            elements = 3 * elements + part * dot_blocks(shape.model_dim) +
                       (shape.gated ? 2 : 1) * kept * row_stride(shape.ffn_dim);
        return static_cast<Index>(sizeof(S)) *
               (elements + workers * scratch_size(shape, rows, keep));
    }
    /// Where a row begins in what is numbered from the part's first row, and in gate and up.
    Index at(const Rows<S>& part, Index row) const { return (row - part.offsets.front()) * stride; }
    Index kept_at(Index row) const { return (row - first_kept) * stride; }
    /// Rows of a part of `rows` rows.
    static Index part_rows(const FeedForwardShape& shape, Index rows, int workers) {
        const Index row = row_stride(shape.ffn_dim) * static_cast<Index>(sizeof(S));
        return std::min(rows, std::max(feed_forward_part_rows, feed_forward_part_bytes / row) *
                                  (1 + workers / 8));
    }
    /// Elements of one worker's scratch, at most.
    /// @param rows  of a part
    static Index scratch_size(const FeedForwardShape& shape, Index rows, Keep keep) {
        const Index in = row_stride(std::max(shape.model_dim, shape.output_dim));
        const Index block = std::min(rows, feed_forward_rows) * in +
                            2 * std::min(4 * rows, feed_forward_rows) * feed_forward_columns;
        const Index wide = std::min(rows, feed_forward_rows) *
                           std::min(shape.model_dim, feed_forward_wide_columns);
        // Forward packs a few columns, if any; backward reads matrices along their rows.
        const bool backward = keep != Keep::nothing;
        const Index packed = backward ? std::max({shape.model_dim, shape.ffn_dim, shape.output_dim})
                                      : feed_forward_width(1);
        return std::max(block, backward ? wide : 0) + product_scratch(kernels<S>(), packed);
    }

    /// Elements from row to row of `columns`: no power of two, rows that far apart would share one
    /// set of the first cache.
    static Index row_stride(Index columns) { return columns + 16; }
    /// Parts of the product of a row of dx with one of x.
    static Index dot_blocks(Index columns) {
        return (columns + feed_forward_dot_columns - 1) / feed_forward_dot_columns;
    }
};

/// Calls function(part) for parts of the rows of at most `most` rows, ascending: whole experts, and
/// pieces of one that has more.
/// @param offsets  memory for those of a part
template <class S, class F>
void for_each_part(const Rows<S>& rows, Index most, std::vector<Index>& offsets, F&& function) {
    if (rows.num_rows() <= most) return function(rows);
    Rows<S> part = rows;
    for (Index begin = rows.offsets.front(), end = 0; begin < rows.offsets.back(); begin = end) {
        end = std::min(begin + most, rows.offsets.back());
        for (const Index offset : rows.offsets)  // the last that leaves something, if there is one
            if (begin < offset && offset <= begin + most) end = offset;
        offsets.clear();
        for (const Index offset : rows.offsets) offsets.push_back(std::clamp(offset, begin, end));
        part.offsets = elements(offsets);
        function(part);
    }
}

/// What an item costs, in rows of the matrix times the unit of split_experts().
template <class S>
double item_cost(const Rows<S>& rows, const FeedForwardItem& item) {
    return static_cast<double>(std::max(rows.size(item.expert), feed_forward_least_rows)) *
           static_cast<double>(item.end - item.begin);
}

/// What all rows cost, in rows.
template <class S>
double part_cost(const Rows<S>& rows) {
    Index cost = 0;
    for (Index e = 0; e < rows.num_experts(); ++e)
        if (rows.size(e) > 0) cost += std::max(rows.size(e), feed_forward_least_rows);
    return static_cast<double>(cost);
}

/// Cuts every expert that has rows into pieces of `unit`, so that there are a few pieces of about
/// equal cost per worker, hot experts or not.
/// @param extent  what is cut: columns of a matrix or rows of a gradient, the same for all experts
/// @param whole   rows of an expert up to which one worker alone has nothing from pieces: where
///                there are more, each piece of a matrix is in the cache for all of them
template <class S>
void split_experts(const Rows<S>& rows, Index extent, Index unit, int workers,
                   std::vector<FeedForwardItem>& items, Index whole = feed_forward_rows) {
    const Index units = (extent + unit - 1) / unit;
    const double each = part_cost(rows) * static_cast<double>(extent) / (8.0 * workers);
    for (Index e = 0; e < rows.num_experts(); ++e) {
        if (rows.size(e) == 0) continue;
        const Index most = workers == 1 && rows.size(e) <= whole ? 1 : units;
        const Index pieces =
            std::clamp(static_cast<Index>(item_cost(rows, {e, 0, extent}) / each), Index{1}, most);
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

/// Columns that one task of a column-stationary phase owns: `tasks` tasks per worker, whole
/// multiples of `unit`, at most `most` columns.
inline Index column_chunk(Index columns, Index unit, int workers, Index tasks, Index most) {
    const Index units = (columns + unit - 1) / unit;
    return unit * std::clamp<Index>(units / (tasks * workers), 1, std::max<Index>(1, most / unit));
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_FEED_FORWARD_STATE_HPP
