// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_OUTPUT_LENGTHS_HPP
#define MOE_COMPOSE_OUTPUT_LENGTHS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <moe/bank.hpp>
#include <moe/core/group.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// |v| of a row.
template <class S>
S row_length(const KernelTable<S>& kernel, const View<S>& matrix, Index row) {
    const S* const v = row_data(matrix, row);
    return std::sqrt(kernel.dot(matrix.cols(), v, v));
}

/// How long an answer every routed expert of a bank has for every token that is not padding:
///
///     |expert_e(input_scale * x_t)|
///
/// Outputs are not kept: at any time there are those of a block, which is all the tokens for as
/// many experts of one group as fit, one at least.
template <class S>
class OutputLengths {
public:
    /// Rows that there must be room for. It grows with the tokens, as the rows in use need not: so
    /// a smaller batch finds room in a workspace that has seen a larger one.
    static Index most_rows(Index tokens, Index experts) {
        return std::min(checked_product(tokens, experts), std::max(block_rows, tokens));
    }

    /// @param outputs  scratch
    /// @param node     whose children are the groups'
    /// @param context  with the bank's facts
    /// @param f        f(token, expert, length), in parallel
    template <class Bank, class F>
    void for_each(const Bank& bank, In<S> x, Buffer<S>& outputs, Workspace<S>& node,
                  const Context& context, F&& f) {
        live_.resize(x.rows());
        Index live = 0;
        for (Index t = 0; t < x.rows(); ++t)
            if (!context.is_padding(t)) live_[live++] = static_cast<std::int32_t>(t);
        if (live == 0) return;
        const KernelTable<S>& kernel = kernels<S>();
        const Index room = most_rows(x.rows(), bank.num_experts()), cols = bank.output_dim();
        resize_block(room, bank.num_experts(), bank.config().input_scale);
        outputs.matrix(room, cols);
        Index before = 0;  // experts of earlier groups
        bank.for_each_group([&](std::size_t i, const auto& group) {
            if (group.num_experts() == 0) return;
            if constexpr (requires { group.reserve(live, live, node); })  // see most_rows()
                group.reserve(live, room, node.child(i));
            const Index step = std::clamp<Index>(block_rows / live, 1, group.num_experts());
            for (Index first = 0; first < group.num_experts(); first += step) {
                const Index count = std::min(step, group.num_experts() - first);
                const Rows<S> rows = block_of(first, count, live, group.num_experts(), context);
                View<S> of_block(outputs.data(), count * live, cols, Eigen::OuterStride<>(cols));
                of_block.setZero();
                group.forward(x, rows, of_block, Call<S>{context, node.child(i)});
                const double flops = 2.0 * static_cast<double>(of_block.size());
                for_row_runs(node.executor(), of_block.rows(), flops,
                             [&](Index begin, Index end, int) {
                                 for (Index r = begin; r < end; ++r)
                                     f(Index{live_[r % live]}, before + first + r / live,
                                       row_length(kernel, of_block, r));
                             });
            }
            before += group.num_experts();
        });
    }

    void reserve(Index tokens, Index experts, double input_scale) {
        live_.resize(tokens);
        resize_block(most_rows(tokens, experts), experts, input_scale);
    }
    /// Bytes of that room.
    static Index bytes(Index tokens, Index experts, double input_scale) {
        constexpr auto index = static_cast<Index>(sizeof(std::int32_t));
        const Index factors = (input_scale != 1 ? 2 : 1) * static_cast<Index>(sizeof(S));
        return tokens * index + (experts + 1) * static_cast<Index>(sizeof(Index)) +
               checked_product(most_rows(tokens, experts),
                               2 * index + static_cast<Index>(sizeof(std::int64_t)) + factors);
    }

private:
    /// Rows of a block, if it is of more than one expert.
    static constexpr Index block_rows = 4096;

    void resize_block(Index rows, Index experts, double input_scale) {
        offsets_.resize(experts + 1);
        from_.assign(rows, 0), to_.assign(rows, 0), ids_.assign(rows, 0);
        ones_.assign(rows, S(1));
        scales_.assign(input_scale != 1 ? rows : 0, static_cast<S>(input_scale));
    }

    /// All live tokens for each of the local experts [first, first + count), none for the others.
    /// As long as the block's room and as many experts as the group has, whatever is in use: what
    /// groups keep follows both.
    Rows<S> block_of(Index first, Index count, Index live, Index experts, const Context& context) {
        for (Index e = 0; e <= experts; ++e)
            offsets_[e] = std::clamp<Index>(e - first, 0, count) * live;
        for (Index r = 0; r < count * live; ++r) {
            from_[r] = live_[r % live];
            to_[r] = static_cast<std::int32_t>(r);
            ids_[r] = context.first_token + from_[r];
        }
        const auto whole = static_cast<std::size_t>(experts) + 1;
        return {.offsets = std::as_const(offsets_).span().first(whole),
                .from = std::as_const(from_).span(),
                .to = std::as_const(to_).span(),
                .weights = std::as_const(ones_).span(),
                .input_weights = std::as_const(scales_).span(),
                .ids = std::as_const(ids_).span()};
    }

    Buffer<std::int32_t> live_;       // [T] tokens that are not padding
    Buffer<Index> offsets_;           // [experts of a group + 1]
    Buffer<std::int32_t> from_, to_;  // [most_rows]
    Buffer<std::int64_t> ids_;        // [most_rows]
    Buffer<S> ones_, scales_;         // [most_rows]; scales may be empty
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_COMPOSE_OUTPUT_LENGTHS_HPP
