// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_PACKED_FEED_FORWARD_HPP
#define MOE_EXPERTS_PACKED_FEED_FORWARD_HPP

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/shape.hpp>
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
          up_bias_(owned(std::move(up_bias))),
          down_bias_(owned(std::move(down_bias))),
          shape_(shape),
          count_(up_.count()),
          compute_(count_ > 0 ? compute : Compute::exact) {
        MOE_ASSERT(count_ == 0 || up_.is_gate_up() == shape_.gated, "gate is with up");
    }
    /// Without panels, which bind() gives it; calls throw until then.
    PackedFeedForward(Deferred, Index count, const FeedForwardShape& shape, Weights<S> up_bias,
                      Weights<S> down_bias)
        : up_bias_(owned(std::move(up_bias))),
          down_bias_(owned(std::move(down_bias))),
          shape_(shape),
          count_(count) {}

    const FeedForwardShape& shape() const { return shape_; }
    Compute compute() const { return compute_; }
    Index num_experts() const { return count_; }
    ExpertFacts facts(Index) const { return {.flops_per_row = shape_.flops_per_row()}; }
    void check(const Shape& layer) const { shape_.check(layer); }
    /// How the matrices of expert e are stored.
    /// @throws std::invalid_argument if there is no such expert, as the three below
    Storage storage(Index e) const {
        check_expert(e);
        return up_.storage(e);
    }
    /// Extents of packed_up() and packed_down(), also before they have panels.
    FrozenExtents up_extents() const {
        return {.out = shape_.ffn_dim, .in = shape_.model_dim, .is_gate_up = shape_.gated};
    }
    FrozenExtents down_extents() const { return {.out = shape_.output_dim, .in = shape_.ffn_dim}; }
    /// Takes views of panels that freeze() packed, in place of its own.
    /// @param up, down  one per expert, stored alike, as FrozenWeights takes them
    /// @throws std::invalid_argument if they do not fit; nothing is changed then
    void bind(Compute compute, const std::vector<FrozenPanels>& up,
              const std::vector<FrozenPanels>& down) {
        const auto count = static_cast<std::size_t>(count_);
        if (up.size() != count || down.size() != count)
            detail::fail("moe::PackedFeedForward::bind: panels of ", up.size(), " and ",
                         down.size(), " experts, there are ", count);
        FreezeOptions options{.compute = compute};
        for (std::size_t e = 0; e < count; ++e) {
            if (up[e].storage != down[e].storage)
                detail::fail("moe::PackedFeedForward::bind: expert ", e, " is stored as ",
                             name(up[e].storage), " and ", name(down[e].storage),
                             "; one expert has one storage");
            options.experts.push_back(up[e].storage);
        }
        detail::check_options<S>(options, count_);
        FrozenWeights<S> in(up_extents(), up), out(down_extents(), down);
        up_ = std::move(in);
        down_ = std::move(out);
        compute_ = compute;
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
        if (up_.count() != count_)
            detail::fail(
                "moe::PackedFeedForward: the experts have no panels yet; bind() gives "
                "them some");
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

    /// What is not packed: <e>.up_bias or, of gate and up together, <e>.gate_up_bias;
    /// <e>.down_bias
    void visit_parameters(auto&& visit) {
        for (Index e = 0; e < count_; ++e) {
            up_bias_.visit(e, shape_.gated ? "gate_up_bias" : "up_bias", visit);
            down_bias_.visit(e, "down_bias", visit);
        }
    }
    /// visit(this group)
    void visit_packed(auto&& visit) { visit(*this); }

private:
    void check_expert(Index e) const {
        if (e < 0 || e >= up_.count())
            detail::fail("moe::PackedFeedForward: expert ", e, " of ", up_.count(),
                         "; experts count from 0");
    }
    /// Biases of its own: what is frozen reads nothing of the layer any more.
    static Weights<S> owned(Weights<S> biases) {
        if (!biases.is_bound()) return biases;
        Weights<S> copies(biases.count(), biases.rows(), biases.cols());
        for (Index e = 0; e < biases.count(); ++e)
            std::copy_n(static_cast<const S*>(biases[e].data), biases.cols(),
                        copies.owned(e).data());
        return copies;
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
    Index count_ = 0;
    Compute compute_ = Compute::exact;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_PACKED_FEED_FORWARD_HPP
