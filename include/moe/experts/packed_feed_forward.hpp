// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_PACKED_FEED_FORWARD_HPP
#define MOE_EXPERTS_PACKED_FEED_FORWARD_HPP

#include <type_traits>
#include <utility>

#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/weights.hpp>
#include <moe/experts/feed_forward_forward.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/experts/feed_forward_stored.hpp>
#include <moe/experts/frozen_weights.hpp>

namespace moe::inline MOE_ABI {

/// A group of feed-forward experts for inference, made by FeedForwardModule::freeze(): weights in
/// the panels that the kernels read, each expert's with a storage of its own.
template <class S>
class PackedFeedForward {
public:
    using Scalar = S;

    PackedFeedForward() = default;
    /// @param up       of gate and up if shape.gated
    /// @param up_bias  of gate and up as the columns of GateUp if shape.gated; or none
    /// @param compute  that fits the storage of every expert
    PackedFeedForward(const FeedForwardShape& shape, FrozenWeights<S> up, FrozenWeights<S> down,
                      Weights<S> up_bias, Weights<S> down_bias, Compute compute)
        : up_(std::move(up)),
          down_(std::move(down)),
          up_bias_(std::move(up_bias)),
          down_bias_(std::move(down_bias)),
          shape_(shape),
          compute_(up_.count() > 0 ? compute : Compute::exact) {
        MOE_ASSERT(up_.count() == 0 || up_.is_gate_up() == shape_.gated, "gate is with up");
    }

    const FeedForwardShape& shape() const { return shape_; }
    Compute compute() const { return compute_; }
    Index num_experts() const { return up_.count(); }
    ExpertFacts facts(Index) const { return {.flops_per_row = shape_.flops_per_row()}; }
    void check(const Shape& layer) const { shape_.check(layer); }
    /// How the matrices of expert e are stored.
    /// @throws std::invalid_argument if there is no such expert, as the three below
    Storage storage(Index e) const {
        check_expert(e);
        return up_.storage(e);
    }
    /// Bytes of the packed weights.
    Index bytes() const { return up_.bytes() + down_.bytes(); }

    /// The weights of expert e as the kernels see them: [F, D], [F, D], [O, F].
    /// @throws std::invalid_argument, gate, if the experts have none
    Matrix<S> gate(Index e) const {
        check_expert(e);
        if (!shape_.gated)
            detail::fail("moe::PackedFeedForward::gate: these experts are not gated; ask for up");
        return up_.decode(e).topRows(shape_.ffn_dim);
    }
    Matrix<S> up(Index e) const {
        check_expert(e);
        return up_.decode(e).bottomRows(shape_.ffn_dim);
    }
    Matrix<S> down(Index e) const {
        check_expert(e);
        return down_.decode(e);
    }

    /// The panels; of gate and up together if the experts are gated.
    const FrozenWeights<S>& packed_up() const { return up_; }
    const FrozenWeights<S>& packed_down() const { return down_; }

    void forward(In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) const {
        if constexpr (std::is_same_v<S, float>)
            if (compute_ != Compute::exact)
                return detail::feed_forward_stored(shape_, stored(call.ws.plan()), x, rows, y,
                                                   call);
        const detail::FeedForwardOperands<S> operands{.gate = {},
                                                      .up = {.frozen = &up_},
                                                      .down = {.frozen = &down_},
                                                      .up_bias = &up_bias_,
                                                      .down_bias = &down_bias_};
        detail::feed_forward<S>(shape_, operands, x, rows, y, call);
    }

    void reserve(Index tokens, Index rows, Workspace<S>& ws) const {
        const int workers = ws.executor().concurrency();
        if (compute_ == Compute::exact) {
            ws.template state<detail::FeedForwardState<S>>().reserve(shape_, num_experts(), rows,
                                                                     Keep::nothing, workers);
        } else if constexpr (std::is_same_v<S, float>) {
            ws.template state<detail::FeedForwardStoredState>().reserve(
                shape_, stored().x, stored().hidden, tokens, rows, num_experts(), workers);
        }
    }
    Index workspace_bytes(Index tokens, Index rows, Keep, int workers) const {
        if constexpr (std::is_same_v<S, float>)
            if (compute_ != Compute::exact)
                return detail::FeedForwardStoredState::bytes(shape_, stored().x, stored().hidden,
                                                             tokens, rows, workers);
        return detail::FeedForwardState<S>::bytes(shape_, rows, Keep::nothing, workers);
    }

private:
    void check_expert(Index e) const {
        if (e < 0 || e >= num_experts())
            detail::fail("moe::PackedFeedForward: expert ", e, " of ", num_experts(),
                         "; experts count from 0");
    }
    detail::StoredFeedForward<S> stored(const Plan& plan = {}) const {
        const StorageTable* const table = up_.stored(0).table();
        return {.up = &up_,
                .down = &down_,
                .up_bias = &up_bias_,
                .down_bias = &down_bias_,
                .x = {table, compute_, shape_.model_dim, plan},
                .hidden = {table, compute_, shape_.ffn_dim, plan}};
    }

    FrozenWeights<S> up_, down_;
    Weights<S> up_bias_, down_bias_;
    FeedForwardShape shape_;
    Compute compute_ = Compute::exact;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_PACKED_FEED_FORWARD_HPP
