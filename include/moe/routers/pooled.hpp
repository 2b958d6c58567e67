// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_POOLED_HPP
#define MOE_ROUTERS_POOLED_HPP

#include <algorithm>
#include <cstdint>
#include <utility>

#include <moe/core/group.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// Which tokens decide together.
enum class PoolScope {
    chunk,     ///< so many consecutive tokens of one sequence, which may be the whole batch
    sequence,  ///< those of a sequence; needs Context::sequence_offsets
    batch,     ///< all tokens of the call: one sample
};

/// One decision for a block of tokens: the router sees the mean of the block.
///
///     m_b       = mean of x[t] over the tokens t of block b, padding left out
///     logits[t] = inner(m_b)      for every t of block b
///     dx[t]     = dm_b / number of tokens of b, 0 for padding
///
/// Chunks start anew with each sequence of Context::sequence_offsets; without those the batch is
/// one. The last chunk of a sequence is as long as it is. A block of padding only has mean 0. With
/// chunks of one token the bits are the inner router's, unless there is padding.
///
/// A token's choice depends on the others of its block. So a batch that is cut in pieces, a stream
/// of tokens for example, routes as the whole does only if every cut is between blocks; and a token
/// is known where to go only when its block is complete.
///
/// The inner router sees blocks as its batch: what a context says per token does not reach it.
/// Random numbers are keyed by the first token of a block.
template <class S, class Inner>
class PooledModule : public RouterWrapper<S, Inner> {
    using Base = RouterWrapper<S, Inner>;

public:
    static constexpr bool per_token = false;  // a block decides together, its last tokens too

    /// Holds nothing; a gradient like this is not wanted.
    PooledModule() = default;
    PooledModule(Inner router, PoolScope scope, Index chunk, const Shape& shape)
        : Base{std::move(router)}, scope_(scope), chunk_(chunk), shape_(shape) {}

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        State& state = call.ws.template state<State>();
        const Index blocks = cut(x.rows(), call, state);
        auto means = state.means.matrix(blocks, x.cols());
        detail::for_column_runs(
            call.ws.executor(), x.cols(), static_cast<double>(x.size()), [&](Index d, Index width) {
                for (Index b = 0; b < blocks; ++b)
                    average(x, call.context, state, b, d, width, row_data(means, b) + d);
            });
        auto decisions = state.logits.matrix(blocks, logits.cols());
        const Context context = call.context.without_tokens();
        Base::forward(means, decisions, {context, call.ws, state.ids.span(), call.expert});
        for (Index b = 0; b < blocks; ++b)
            for (Index t = state.offsets[b]; t < state.offsets[b + 1]; ++t)
                std::copy_n(row_data(decisions, b), logits.cols(), row_data(logits, t));
    }

    void backward(In<S> x, In<S> dlogits, Out<S> dx, PooledModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        State& state = call.ws.template state<State>();
        const Index blocks = cut(x.rows(), call, state);
        auto sums = state.logits.matrix(blocks, dlogits.cols());
        for (Index b = 0; b < blocks; ++b) {
            const Index first = state.offsets[b];
            std::copy_n(row_data(dlogits, first), dlogits.cols(), row_data(sums, b));
            for (Index t = first + 1; t < state.offsets[b + 1]; ++t)
                kernels<S>().axpy(dlogits.cols(), S(1), row_data(dlogits, t), row_data(sums, b));
        }
        const View<S> means(state.means.data(), blocks, x.cols(), Eigen::OuterStride<>(x.cols()));
        auto dmeans = state.dmeans.matrix(blocks, x.cols());
        const Context context = call.context.without_tokens();
        Base::backward(means, sums, dmeans, grad,
                       {context, call.ws, state.ids.span(), call.expert});
        for (Index b = 0; b < blocks; ++b) {
            divide(dmeans, b, num_live(call.context, state, b));
            for (Index t = state.offsets[b]; t < state.offsets[b + 1]; ++t)
                if (call.context.is_padding(t))
                    std::fill_n(row_data(dx, t), dx.cols(), S(0));
                else
                    std::copy_n(row_data(dmeans, b), dx.cols(), row_data(dx, t));
        }
    }

    auto freeze(const FreezeOptions& options) const {
        auto frozen = detail::frozen(this->inner, options);
        return PooledModule<S, decltype(frozen)>(std::move(frozen), scope_, chunk_, shape_);
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        const Index blocks = most_blocks(tokens);
        Base::reserve(blocks, assignments, ws);
        State& state = ws.template state<State>();
        state.offsets.resize(blocks + 1);
        state.ids.resize(blocks);
        state.means.matrix(blocks, shape_.model_dim);
        state.logits.matrix(blocks, shape_.num_logits);
        if (ws.keeps()) state.dmeans.matrix(blocks, shape_.model_dim);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index blocks = most_blocks(tokens), copies = keep == Keep::nothing ? 1 : 2;
        return Base::workspace_bytes(blocks, assignments, keep, workers) +
               static_cast<Index>(sizeof(Index)) * (2 * blocks + 1) +
               detail::checked_product(blocks, copies * shape_.model_dim + shape_.num_logits) *
                   static_cast<Index>(sizeof(S));
    }

private:
    struct State {
        Buffer<Index> offsets;     // [blocks + 1] first token of each block
        Buffer<std::int64_t> ids;  // [blocks] its number
        Buffer<S> means, dmeans;   // [blocks, D]
        Buffer<S> logits;          // [blocks, L]; in backward their gradient
    };

    /// Every block but that of scope batch may be one token.
    Index most_blocks(Index tokens) const {
        return scope_ == PoolScope::batch ? std::min<Index>(tokens, 1) : tokens;
    }

    /// What no block crosses.
    /// @throws std::invalid_argument if sequences are wanted and none are given
    detail::Sequences sequences(Index tokens, const Context& context) const {
        constexpr const char* name = "moe::Pooled";
        const auto offsets = context.sequence_offsets;
        if (scope_ == PoolScope::batch) return {{}, tokens};
        return scope_ == PoolScope::sequence ? detail::required_sequences(name, offsets, tokens)
                                             : detail::sequences(name, offsets, tokens);
    }

    /// Cuts the batch into blocks, none of them empty.
    /// @return their number
    Index cut(Index tokens, const Call<S>& call, State& state) const {
        const detail::Sequences runs = sequences(tokens, call.context);
        state.offsets.resize(most_blocks(tokens) + 1);
        Index blocks = 0;
        for (Index run = 0; run < runs.count(); ++run) {
            const Index last = runs.last(run);
            const Index length = scope_ == PoolScope::chunk ? chunk_ : runs.size(run);
            for (Index first = runs.first(run); first < last;
                 first += std::min(length, last - first))
                state.offsets[blocks++] = first;
        }
        state.offsets[blocks] = tokens;
        const auto ids = state.ids.resize(blocks);
        for (Index b = 0; b < blocks; ++b)
            ids[static_cast<std::size_t>(b)] = call.token(state.offsets[b]);
        return blocks;
    }

    static Index num_live(const Context& context, const State& state, Index block) {
        Index count = 0;
        for (Index t = state.offsets[block]; t < state.offsets[block + 1]; ++t)
            if (!context.is_padding(t)) ++count;
        return count;
    }

    /// Columns d to d + width of a block's mean. One token is copied, not added to 0 or divided.
    static void average(In<S> x, const Context& context, const State& state, Index block, Index d,
                        Index width, S* mean) {
        Index count = 0;
        for (Index t = state.offsets[block]; t < state.offsets[block + 1]; ++t) {
            if (context.is_padding(t)) continue;
            if (count++ == 0)
                std::copy_n(row_data(x, t) + d, width, mean);
            else
                kernels<S>().axpy(width, S(1), row_data(x, t) + d, mean);
        }
        if (count == 0) std::fill_n(mean, width, S(0));
        for (Index i = 0; i < width && count > 1; ++i) mean[i] /= static_cast<S>(count);
    }
    static void divide(View<S>& rows, Index row, Index count) {
        for (Index d = 0; d < rows.cols() && count > 1; ++d) rows(row, d) /= static_cast<S>(count);
    }

    PoolScope scope_ = PoolScope::batch;
    Index chunk_ = 0;
    Shape shape_{};
};

/// Recipe: tokens are routed by the block.
///
///     moe::Pooled{moe::LinearRouter{}, moe::PoolScope::chunk, 16}
///     moe::Pooled{moe::LinearRouter{}, moe::PoolScope::sequence}
///
/// Fewer and longer runs of rows for each expert, and experts that are known for a whole sequence
/// or sample. Not for generation token by token, unless blocks are cut where the stream is.
///
/// Source: chunks as in Hydra (arXiv:2508.15099); sequences as in Union-of-Experts
/// (arXiv:2503.02495) section 3; samples as in CMoE (arXiv:2402.11919).
template <class Inner = LinearRouter>
struct Pooled {
    Inner inner{};
    PoolScope scope = PoolScope::sequence;
    Index chunk = 0;  ///< tokens per chunk, for scope chunk; else 0

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (scope != PoolScope::chunk && scope != PoolScope::sequence && scope != PoolScope::batch)
            detail::fail("moe::Pooled: scope is ", static_cast<int>(scope),
                         ", which is none of moe::PoolScope");
        if (scope == PoolScope::chunk ? chunk < 1 : chunk != 0)
            detail::fail("moe::Pooled: chunk is ", chunk, ", it must be ",
                         scope == PoolScope::chunk
                             ? ">= 1, the tokens of a chunk"
                             : "0 unless scope is chunk: moe::PoolScope::chunk");
        auto router = detail::built_router<Inner, S>(inner, shape, random);
        return PooledModule<S, decltype(router)>(std::move(router), scope, chunk, shape);
    }
};

Pooled()->Pooled<>;
template <class Inner>
Pooled(Inner) -> Pooled<Inner>;
template <class Inner>
Pooled(Inner, PoolScope) -> Pooled<Inner>;
template <class Inner>
Pooled(Inner, PoolScope, Index) -> Pooled<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_POOLED_HPP
