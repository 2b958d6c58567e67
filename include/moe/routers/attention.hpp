// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_ATTENTION_HPP
#define MOE_ROUTERS_ATTENTION_HPP

#include <algorithm>
#include <cstddef>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {

/// Attention of the experts to each other, within one token:
///
///     q = Wq x, k = Wk x, v = Wv x                    Wq, Wk, Wv: [L, D]
///     logit_i = sum_j softmax_j(q_i k_j) v_j
///
/// No square root divides the scores. A token's logits lie between its least and its largest v.
/// Products cost three times a linear router's; L^2 exponentials per token come on top. The q, k
/// and v of a token that is padding are 0, whatever it holds.
template <class S>
class AttentionRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    AttentionRouterModule() = default;

    LinearRouterModule<S> projection;  // weight [3 L, D]: Wq, Wk, Wv below each other

    /// @param x  [T, D]   @param logits  [T, L], overwritten
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        auto& state = call.ws.template state<State>();
        const Index n = num_logits();
        auto qkv = state.qkv.matrix(x.rows(), 3 * n);
        projection.forward(x, qkv, call.child(projection_node));
        for_tokens(x.rows(), state, call, [&](Index t, S* p) {
            if (call.context.is_padding(t)) std::fill_n(row_data(qkv, t), 3 * n, S(0));
            const S *const q = row_data(qkv, t), *const k = q + n, *const v = k + n;
            for (Index i = 0; i < n; ++i) {
                attend(q[i], k, p);
                logits(t, i) = kernels<S>().dot(n, p, v);
            }
        });
    }

    /// @throws std::invalid_argument unless the weight is [3 num_logits, model_dim] of the layer
    void check(const Shape& shape) const {
        const Parameter<S>& weight = projection.weight;
        if (weight.rows() != 3 * shape.num_logits || weight.cols() != shape.model_dim)
            detail::fail("moe::AttentionRouter: weight is [", weight.rows(), ", ", weight.cols(),
                         "], the layer wants [", 3 * shape.num_logits, ", ", shape.model_dim,
                         "]: 3 * logits per token, model_dim");
    }

    /// With g = dlogits, z the logits, p_i = softmax(q_i k) and u_ij = p_ij (v_j - z_i):
    ///
    ///     dq_i = g_i sum_j u_ij k_j,   dk = sum_i g_i q_i u_i,   dv = sum_i g_i p_i
    void backward(In<S> x, In<S> dlogits, Out<S> dx, AttentionRouterModule& grad,
                  const Call<S>& call) const {
        const KernelTable<S>& table = kernels<S>();
        auto& state = call.ws.template state<State>();
        const Index n = num_logits();
        const auto qkv = state.qkv.matrix(x.rows(), 3 * n);
        auto dqkv = state.dqkv.matrix(x.rows(), 3 * n);
        for_tokens(x.rows(), state, call, [&](Index t, S* p) {
            const S *const q = row_data(qkv, t), *const k = q + n, *const v = k + n;
            S *const dq = row_data(dqkv, t), *const dk = dq + n, *const dv = dk + n;
            std::fill_n(dk, 2 * n, S(0));
            for (Index i = 0; i < n; ++i) {
                const S g = dlogits(t, i);
                attend(q[i], k, p);
                table.axpy(n, g, p, dv);
                const S z = table.dot(n, p, v);
                for (Index j = 0; j < n; ++j) p[j] *= v[j] - z;
                dq[i] = g * table.dot(n, p, k);
                table.axpy(n, g * q[i], p, dk);
            }
        });
        projection.backward(x, dqkv, dx, grad.projection, call.child(projection_node));
    }

    double flops_per_token() const {
        const auto n = static_cast<double>(num_logits());
        return projection.flops_per_token() + 4 * n * n;
    }

    /// Of what freeze() packed.
    Index bytes() const { return projection.bytes(); }

    /// The same router with its weight packed once, for inference.
    AttentionRouterModule freeze(const FreezeOptions& options) const {
        AttentionRouterModule frozen = *this;
        frozen.projection = projection.freeze(options);
        return frozen;
    }

    void reserve(Index tokens, Index rows, Workspace<S>& ws) const {
        auto& state = ws.template state<State>();
        projection.reserve(tokens, rows, ws.child(projection_node));
        state.qkv.matrix(tokens, 3 * num_logits());
        if (ws.keeps()) state.dqkv.matrix(tokens, 3 * num_logits());
        state.p.resize(ws.executor().concurrency() * room());
    }
    Index workspace_bytes(Index tokens, Index rows, Keep keep, int workers) const {
        const Index matrices = keep == Keep::nothing ? 1 : 2;
        return (detail::checked_product(tokens, 3 * num_logits() * matrices) + workers * room()) *
                   static_cast<Index>(sizeof(S)) +
               projection.workspace_bytes(tokens, rows, keep, workers);
    }

    /// weight
    void visit_parameters(auto&& visit) { projection.visit_parameters(visit); }

private:
    static constexpr std::size_t projection_node = 0;

    struct State {
        Buffer<S> qkv, dqkv;  // [T, 3 L] q, k and v of a token in a row
        Buffer<S> p;          // a row of L per worker
    };

    Index num_logits() const { return projection.weight.rows() / 3; }
    Index room() const { return detail::round_up_16(num_logits()); }

    /// p = softmax(q k)
    void attend(S q, const S* k, S* p) const {
        kernels<S>().scale(num_logits(), q, k, p);
        kernels<S>().softmax(num_logits(), p, p);
    }

    /// f(t, scratch of L elements) for every token, in parallel; some 30 operations per
    /// exponential.
    template <class F>
    void for_tokens(Index tokens, State& state, const Call<S>& call, F&& f) const {
        Executor& executor = call.ws.executor();
        state.p.resize(executor.concurrency() * room());
        const auto n = static_cast<double>(num_logits());
        detail::for_tokens(executor, tokens, 30 * n * n,
                           [&](Index t, int worker) { f(t, state.p.data() + worker * room()); });
    }
};

/// Recipe of a router in which experts are weighed against each other before the gate, for many
/// experts of which some are alike. The three matrices start as N(0, 1 / D).
///
/// Source: Yuan 2.0-M32 (arXiv:2405.17976), attention router. Its gate is TopK{.k = 2} and its
/// checkpoints store the three matrices apart.
struct AttentionRouter {
    template <class S>
    AttentionRouterModule<S> build(const Shape& shape, Random& random) const {
        Shape three = shape;
        three.num_logits = detail::checked_product(3, shape.num_logits);
        AttentionRouterModule<S> router;
        router.projection = LinearRouter{}.build<S>(three, random);
        return router;
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_ATTENTION_HPP
