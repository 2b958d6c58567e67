// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_CONDITIONED_HPP
#define MOE_ROUTERS_CONDITIONED_HPP

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include <moe/core/activation.hpp>
#include <moe/core/group.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// What a router with a side vector reads.
enum class RouterInput {
    side,          ///< the side vector only
    concatenated,  ///< the token, then the side vector
};

/// A router that reads a vector that comes with the token: a noise level, a task, a user.
///
///     logits[t] = inner(a(e_t))  or  inner([x[t]; a(e_t)])       a: activation, or nothing
///
/// e_t is the row of Context::side_vectors, [T or B, V]: the token's own, or that of its sequence
/// in Context::sequence_offsets (one row per token where the two numbers agree). For padding the
/// inner router reads zeros.
///
/// dx is what reaches x through the inner router, 0 where that reads side vectors only; the
/// gradient at the side vectors is added to Context::gradients->side_vectors, if given.
template <class S, class Inner>
class ConditionedModule : public RouterWrapper<S, Inner> {
    using Base = RouterWrapper<S, Inner>;

public:
    /// Holds nothing; a gradient like this is not wanted.
    ConditionedModule() = default;
    /// @param model_dim  D, columns of x
    ConditionedModule(Inner router, Index model_dim, Index vector_dim, RouterInput input,
                      std::optional<Activation> activation)
        : Base{std::move(router)},
          model_dim_(model_dim),
          vector_dim_(vector_dim),
          input_(input),
          activation_(activation) {}

    Index vector_dim() const { return vector_dim_; }

    void check(const Shape& shape) const {
        if (shape.model_dim != model_dim_)
            detail::fail("moe::Conditioned: the router was built for model_dim ", model_dim_,
                         ", the layer has ", shape.model_dim, "; build it again from its recipe");
        Shape of_inner = shape;
        of_inner.model_dim = width();
        Base::check(of_inner);
    }

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        Base::forward(joined(x, call), logits, call);
    }

    void backward(In<S> x, In<S> dlogits, Out<S> dx, ConditionedModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        const View<S> input = joined(x, call);
        auto dinput = call.ws.template state<State>().dinput.matrix(x.rows(), width());
        Base::backward(input, dlogits, dinput, grad, call);
        for (Index t = 0; t < x.rows(); ++t)
            if (num_token_columns() > 0)
                std::copy_n(row_data(dinput, t), x.cols(), row_data(dx, t));
            else
                std::fill_n(row_data(dx, t), x.cols(), S(0));
        const ContextGradients* const wanted = call.context.gradients;
        if (wanted != nullptr && !wanted->side_vectors.empty())
            add_gradient(dinput, wanted->side_vectors.template as<S>(), call);
    }

    auto freeze(const FreezeOptions& options) const {
        auto frozen = detail::frozen(this->inner, options);
        return ConditionedModule<S, decltype(frozen)>(std::move(frozen), model_dim_, vector_dim_,
                                                      input_, activation_);
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        State& state = ws.template state<State>();
        state.input.matrix(tokens, width());
        if (ws.keeps()) state.dinput.matrix(tokens, width());
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index copies = keep == Keep::nothing ? 1 : 2;
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::checked_product(tokens, copies * width() * static_cast<Index>(sizeof(S)));
    }

private:
    struct State {
        Buffer<S> input, dinput;  // [T, width]
    };

    Index num_token_columns() const { return input_ == RouterInput::side ? 0 : model_dim_; }
    Index width() const { return num_token_columns() + vector_dim_; }

    /// Whether there is one vector per token, and not one per sequence.
    /// @throws std::invalid_argument unless there is one or the other, of sequences that are those
    ///         of the batch
    bool is_per_token(Index tokens, const Context& context) const {
        const SideVectors& side = context.side_vectors;
        const auto offsets = context.sequence_offsets;
        const Index sequences = offsets.empty() ? 0 : static_cast<Index>(offsets.size()) - 1;
        if (side.cols() != vector_dim_ || (side.rows() != tokens && side.rows() != sequences))
            detail::fail("moe::Context: side_vectors is [", side.rows(), ", ", side.cols(),
                         "], moe::Conditioned wants [", tokens, ", ", vector_dim_,
                         "], one per token, or one for each of the ", sequences,
                         " sequences of sequence_offsets");
        if (side.rows() == tokens) return true;
        detail::check_sequences("moe::Conditioned", offsets, tokens);
        return false;
    }

    /// f(row of the side vectors, token) for the tokens that are no padding.
    template <class F>
    void for_each_token(Index tokens, const Context& context, F&& f) const {
        const bool one_each = is_per_token(tokens, context);
        Index row = 0;
        for (Index t = 0; t < tokens; ++t) {
            while (!one_each && context.sequence_offsets[static_cast<std::size_t>(row) + 1] <= t)
                ++row;
            if (!context.is_padding(t)) f(one_each ? t : row, t);
        }
    }

    /// What the inner router reads.
    View<S> joined(In<S> x, const Call<S>& call) const {
        const ConstView<S> side = call.context.side_vectors.template as<S>();
        const Index skip = num_token_columns();
        auto input = call.ws.template state<State>().input.matrix(x.rows(), width());
        std::fill_n(input.data(), input.size(), S(0));
        for_each_token(x.rows(), call.context, [&](Index row, Index t) {
            S* const target = row_data(input, t);
            std::copy_n(row_data(x, t), skip, target);
            if (activation_)
                kernels<S>().activate(*activation_, vector_dim_, row_data(side, row),
                                      target + skip);
            else
                std::copy_n(row_data(side, row), vector_dim_, target + skip);
        });
        return input;
    }

    void add_gradient(View<S> dinput, View<S> target, const Call<S>& call) const {
        const ConstView<S> side = call.context.side_vectors.template as<S>();
        for_each_token(dinput.rows(), call.context, [&](Index row, Index t) {
            S* const share = row_data(dinput, t) + num_token_columns();
            if (activation_)
                kernels<S>().activate_backward(*activation_, vector_dim_, row_data(side, row),
                                               share, share);
            kernels<S>().axpy(vector_dim_, S(1), share, row_data(target, row));
        });
    }

    Index model_dim_ = 0, vector_dim_ = 0;
    RouterInput input_ = RouterInput::side;
    std::optional<Activation> activation_{};
};

/// Recipe: a router reads a side vector, alone or besides the token.
///
///     moe::Conditioned{moe::LinearRouter{.bias = true}, 64, moe::RouterInput::side,
///                      moe::Activation::silu}                         Switch-DiT's
///     moe::Conditioned{moe::LinearRouter{}, 8, moe::RouterInput::concatenated}
///
/// For experts per noise level of a diffusion model, per task by its embedding, per user or query.
/// The inner router is built for rows of vector_dim, or model_dim + vector_dim, elements.
///
/// Source: the side vector alone, with silu: Switch-DiT (arXiv:2403.09176) section 3.2; besides the
/// token: M3ViT (arXiv:2210.14793) section 3.2, task-conditioned gating.
template <class Inner = LinearRouter>
struct Conditioned {
    Inner inner{};
    Index vector_dim = 0;  ///< V, columns of Context::side_vectors; required
    RouterInput input = RouterInput::side;
    std::optional<Activation> activation{};  ///< of the side vector before the router reads it

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (vector_dim < 1)
            detail::fail("moe::Conditioned: vector_dim is ", vector_dim,
                         ", it must be >= 1, the columns of Context::side_vectors; set it: "
                         "moe::Conditioned{moe::LinearRouter{}, 64}");
        if (input != RouterInput::side && input != RouterInput::concatenated)
            detail::fail("moe::Conditioned: input is ", static_cast<int>(input),
                         ", which is none of moe::RouterInput");
        if (activation && std::find(std::begin(all_activations), std::end(all_activations),
                                    *activation) == std::end(all_activations))
            detail::fail("moe::Conditioned: activation is ", static_cast<int>(*activation),
                         ", which is none of moe::Activation");
        Shape of_inner = shape;
        of_inner.model_dim = vector_dim + (input == RouterInput::side ? 0 : shape.model_dim);
        auto router = detail::built_router<Inner, S>(inner, of_inner, random);
        return ConditionedModule<S, decltype(router)>(std::move(router), shape.model_dim,
                                                      vector_dim, input, activation);
    }
};

template <class Inner>
Conditioned(Inner, Index) -> Conditioned<Inner>;
template <class Inner>
Conditioned(Inner, Index, RouterInput) -> Conditioned<Inner>;
template <class Inner>
Conditioned(Inner, Index, RouterInput, Activation) -> Conditioned<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_CONDITIONED_HPP
