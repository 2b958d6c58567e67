// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FEED_FORWARD_HPP
#define MOE_EXPERTS_FEED_FORWARD_HPP

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include <moe/core/activation.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/weights.hpp>
#include <moe/experts/feed_forward_backward.hpp>
#include <moe/experts/feed_forward_forward.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/experts/frozen_weights.hpp>
#include <moe/experts/packed_feed_forward.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Other passes than the exact ones: pointers, so that a program compiles them where it asks for
/// them.
template <class S>
struct FeedForwardPasses {
    Compute compute;
    void (*forward)(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
                    const Rows<S>& rows, Out<S> y, const Call<S>& call);
    void (*backward)(const FeedForwardShape& shape, const FeedForwardOperands<S>& operands, In<S> x,
                     const Rows<S>& rows, In<S> dy, Out<S> dx, const RowGradients<S>& dweights,
                     const FeedForwardGradients<S>& gradients, const Call<S>& call);
    void (*reserve)(const FeedForwardShape& shape, Index count, Index rows, Workspace<S>& ws);
    Index (*bytes)(const FeedForwardShape& shape, Index count, Index rows, Keep keep, int workers);
};

}  // namespace detail

/// A group of equal feed-forward experts, the module of the recipes Swiglu, Glu and Mlp:
///
///     gated:  y = down (act(g) * u) + down_bias,  g = gate x + gate_bias,  u = up x + up_bias
///     plain:  y = down act(u) + down_bias
///
/// gate, up: [F, D], down: [O, F]; each bias may be absent; g and u may be bounded, see Glu. All
/// experts of the group are computed together; no copy of the tokens and no [N, O] matrix of expert
/// outputs is made.
///
/// The matrices may be exchanged for others of the same extents, for views of a checkpoint for
/// instance, each of any dtype that WeightView says; biases are of type S. Every call looks at the
/// extents first, and throws std::invalid_argument.
template <class S>
class FeedForwardModule {
public:
    using Scalar = S;
    /// Weights::gradient() is asked for each matrix; nothing is computed for those not wanted.
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    FeedForwardModule() = default;

    /// @param biased          whether there are biases
    /// @param without_memory  whether gate, up and down get extents only
    /// @throws std::invalid_argument if plain experts are to be bounded, or if shape.activation is
    ///         none of the enumerators; std::length_error
    FeedForwardModule(Index count, const FeedForwardShape& shape, bool biased, Random& random,
                      bool without_memory = false)
        : shape_(shape), count_(count) {
        if (!shape.gated && shape.is_bounded())
            detail::fail(
                "moe::FeedForwardModule: limit and up_offset are for gated experts; leave them, or "
                "set gated");
        if (std::find(std::begin(all_activations), std::end(all_activations), shape.activation) ==
            std::end(all_activations))
            detail::fail("moe::FeedForwardModule: activation is ",
                         static_cast<int>(shape.activation), ", which is none of moe::Activation");
        const auto matrices = [&](Index rows, Index cols) {
            return without_memory ? Weights<S>::deferred(count, rows, cols)
                                  : Weights<S>(count, rows, cols);
        };
        if (shape.gated) gate = matrices(shape.ffn_dim, shape.model_dim);
        up = matrices(shape.ffn_dim, shape.model_dim);
        down = matrices(shape.output_dim, shape.ffn_dim);
        if (biased && shape.gated) gate_bias = Weights<S>(count, 1, shape.ffn_dim);
        if (biased) up_bias = Weights<S>(count, 1, shape.ffn_dim);
        if (biased) down_bias = Weights<S>(count, 1, shape.output_dim);
        const double in = 1 / std::sqrt(static_cast<double>(shape.model_dim));
        gate.fill_normal(random, in);
        up.fill_normal(random, in);
        down.fill_normal(random, 1 / std::sqrt(static_cast<double>(shape.ffn_dim)));
    }

    Weights<S> gate, up, down;                 // [F, D], [F, D], [O, F] per expert
    Weights<S> gate_bias, up_bias, down_bias;  // [1, F], [1, F], [1, O] per expert, or none

    const FeedForwardShape& shape() const { return shape_; }
    Index num_experts() const { return count_; }
    Compute compute() const { return passes_ == nullptr ? Compute::exact : passes_->compute; }
    /// Multiplies as these do from now on; see InBf16.
    void use(const detail::FeedForwardPasses<S>& passes) { passes_ = &passes; }
    ExpertFacts facts(Index) const { return {.flops_per_row = shape_.flops_per_row()}; }
    void check(const Shape& layer) const { shape_.check(layer); }

    void forward(In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) const {
        check_multiplied();
        if (passes_ != nullptr) return passes_->forward(shape_, operands(call), x, rows, y, call);
        detail::feed_forward<S>(shape_, operands(call), x, rows, y, call);
    }

    void backward(In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                  const RowGradients<S>& dweights, FeedForwardModule& grad,
                  const Call<S>& call) const {
        check_multiplied();
        check_gradient(grad);
        const detail::FeedForwardGradients<S> gradients{.gate = &grad.gate,
                                                        .up = &grad.up,
                                                        .down = &grad.down,
                                                        .gate_bias = &grad.gate_bias,
                                                        .up_bias = &grad.up_bias,
                                                        .down_bias = &grad.down_bias};
        if (passes_ != nullptr)
            return passes_->backward(shape_, operands(call), x, rows, dy, dx, dweights, gradients,
                                     call);
        detail::feed_forward_backward<S>(shape_, operands(call), x, rows, dy, dx, dweights,
                                         gradients, call);
    }

    void reserve(Index, Index rows, Workspace<S>& ws) const {
        if (passes_ != nullptr) return passes_->reserve(shape_, count_, rows, ws);
        ws.template state<detail::FeedForwardState<S>>().reserve(shape_, count_, rows, ws.keep(),
                                                                 ws.executor().concurrency());
    }

    Index workspace_bytes(Index, Index rows, Keep keep, int workers) const {
        if (passes_ != nullptr) return passes_->bytes(shape_, count_, rows, keep, workers);
        return detail::FeedForwardState<S>::bytes(shape_, rows, keep, workers);
    }

    /// @throws std::invalid_argument if the options do not fit each other or the weights
    void check_freeze(const FreezeOptions& options) const {
        check_matrices();
        detail::check_options<S>(options, count_);
        detail::check_storable(gate, "gate", options);
        detail::check_storable(up, "up", options);
        detail::check_storable(down, "down", options);
    }
    /// The same group for inference.
    /// @throws std::invalid_argument as check_freeze()
    PackedFeedForward<S> freeze(const FreezeOptions& options) const& {
        check_freeze(options);
        return PackedFeedForward<S>(shape_, pack_up(options), FrozenWeights<S>(down, options),
                                    hidden_bias(), down_bias, options.compute);
    }
    /// Releases gate and up as soon as they are packed, before down is.
    PackedFeedForward<S> freeze(const FreezeOptions& options) && {
        check_freeze(options);
        Weights<S> bias = hidden_bias();
        FrozenWeights<S> in = pack_up(options);
        gate = {}, up = {};
        FrozenWeights<S> out(down, options);
        down = {};
        return PackedFeedForward<S>(shape_, std::move(in), std::move(out), std::move(bias),
                                    std::move(down_bias), options.compute);
    }

    /// The same group for inference, for panels that were packed before: PackedFeedForward::bind().
    PackedFeedForward<S> without_panels() const {
        return PackedFeedForward<S>(deferred, count_, shape_, hidden_bias(), down_bias);
    }

    /// @throws std::invalid_argument unless each matrix of grad is absent or of the same extents
    void check_gradient(const FeedForwardModule& grad) const {
        check_gradient("gate", grad.gate, gate);
        check_gradient("up", grad.up, up);
        check_gradient("down", grad.down, down);
        check_gradient("gate_bias", grad.gate_bias, gate_bias);
        check_gradient("up_bias", grad.up_bias, up_bias);
        check_gradient("down_bias", grad.down_bias, down_bias);
    }

    /// <e>.gate, <e>.up, <e>.down, <e>.gate_bias, <e>.up_bias, <e>.down_bias
    void visit_parameters(auto&& visit) {
        for (Index e = 0; e < count_; ++e) {
            gate.visit(e, "gate", visit);
            up.visit(e, "up", visit);
            down.visit(e, "down", visit);
            gate_bias.visit(e, "gate_bias", visit);
            up_bias.visit(e, "up_bias", visit);
            down_bias.visit(e, "down_bias", visit);
        }
    }
    /// visit("gate", gate), ...: the matrices as such, views and those without memory among them,
    /// and biases that are views
    void visit_weights(auto&& visit) {
        if (shape_.gated) visit("gate", gate);
        visit("up", up);
        visit("down", down);
        if (gate_bias.is_bound()) visit("gate_bias", gate_bias);
        if (up_bias.is_bound()) visit("up_bias", up_bias);
        if (down_bias.is_bound()) visit("down_bias", down_bias);
    }
    void own_gradients() {
        for (Weights<S>* weights : {&gate, &up, &down, &gate_bias, &up_bias, &down_bias})
            weights->own_gradients();
    }

private:
    detail::FeedForwardOperands<S> operands(const Call<S>& call) const {
        const Index column_rows = call.ws.plan().column_rows;
        return {.gate = {.unpacked = &gate, .column_rows = column_rows},
                .up = {.unpacked = &up, .column_rows = column_rows},
                .down = {.unpacked = &down, .column_rows = column_rows},
                .gate_bias = &gate_bias,
                .up_bias = &up_bias,
                .down_bias = &down_bias};
    }

    FrozenWeights<S> pack_up(const FreezeOptions& options) const {
        return shape_.gated ? FrozenWeights<S>(gate, up, options) : FrozenWeights<S>(up, options);
    }

    /// The biases that are added to what pack_up() gives: those of gate and up as the columns of
    /// GateUp. What is missing is -0, which leaves alone all that it is added to.
    Weights<S> hidden_bias() const {
        if (!shape_.gated || gate_bias.count() + up_bias.count() == 0) return up_bias;
        Weights<S> both(count_, 1, gate_up_columns(shape_.ffn_dim));
        for (Index e = 0; e < count_; ++e) {
            const S* const g = detail::bias_row(gate_bias, e);
            const S* const u = detail::bias_row(up_bias, e);
            S* const to = both.owned(e).data();
            std::fill_n(to, both.cols(), S(-0.0));
            for (Index j = 0; j < shape_.ffn_dim; ++j) {
                const Index at = j / gate_up_run * 2 * gate_up_run + j % gate_up_run;
                if (g != nullptr) to[at] = g[j];
                if (u != nullptr) to[at + gate_up_run] = u[j];
            }
        }
        return both;
    }

    /// Six comparisons of extents.
    void check_matrices() const {
        const Index inner = shape_.ffn_dim, gates = shape_.gated ? count_ : 0;
        check_matrix("gate", gate, gates, inner, shape_.model_dim);
        check_matrix("up", up, count_, inner, shape_.model_dim);
        check_matrix("down", down, count_, shape_.output_dim, inner);
        if (!shape_.gated && gate_bias.count() > 0)
            detail::fail(
                "moe::FeedForwardModule: experts without a gate have no gate_bias; assign {} to "
                "it, or use moe::Glu");
        check_bias("gate_bias", gate_bias, inner);
        check_bias("up_bias", up_bias, inner);
        check_bias("down_bias", down_bias, shape_.output_dim);
        if (gate.is_deferred() || up.is_deferred() || down.is_deferred())
            detail::fail(
                "moe::FeedForwardModule: the experts have no weights yet, as moe::deferred asked; "
                "moe::load or moe::bind gives them some");
    }
    /// Codes are decoded by freeze(), products do not read them.
    void check_multiplied() const {
        check_matrices();
        if (gate.is_coded() || up.is_coded() || down.is_coded())
            detail::fail(
                "moe::FeedForwardModule: the experts' weights are codes with block scales (FP8, "
                "MXFP4), which are not multiplied as they lie; moe::freeze(layer) decodes and "
                "packs them, moe::load makes a layer of their values");
    }
    static void check_matrix(const char* name, const Weights<S>& found, Index count, Index rows,
                             Index cols) {
        if (found.count() == count &&
            (count == 0 || (found.rows() == rows && found.cols() == cols)))
            return;
        detail::fail("moe::FeedForwardModule: ", name, " holds ", found.count(), " matrices [",
                     found.rows(), ", ", found.cols(), "], these experts need ", count, " of [",
                     rows, ", ", cols, "], one for each expert of Swiglu, Glu or Mlp");
    }
    void check_bias(const char* name, const Weights<S>& found, Index cols) const {
        check_matrix(name, found, found.count() == 0 ? 0 : count_, 1, cols);
        if (!found.has_contiguous_rows())
            detail::fail("moe::FeedForwardModule: a view in ", name,
                         " has a col_stride other than 1; copy the bias into a row and view that");
        for (Index e = 0; found.has_narrow() && e < found.count(); ++e)
            if (found.is_narrow(e))
                detail::fail("moe::FeedForwardModule: ", name, " of expert ", e, " holds ",
                             dtype_name(found[e].dtype), ", biases are read as ",
                             dtype_name(dtype_of<S>), " only; convert it and view the copy");
    }
    static void check_gradient(const char* name, const Weights<S>& found,
                               const Weights<S>& wanted) {
        if (found.count() == 0 || (found.count() == wanted.count() &&
                                   found.rows() == wanted.rows() && found.cols() == wanted.cols()))
            return;
        detail::fail("moe::FeedForwardModule::backward: ", name, " of the gradient holds ",
                     found.count(), " matrices [", found.rows(), ", ", found.cols(),
                     "], the experts have ", wanted.count(), " of [", wanted.rows(), ", ",
                     wanted.cols(), "]; make it with zeros_like(layer)");
    }

    FeedForwardShape shape_;
    Index count_ = 0;
    const detail::FeedForwardPasses<S>* passes_ = nullptr;  // the exact ones
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_FEED_FORWARD_HPP
