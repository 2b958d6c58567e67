// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_COSINE_HPP
#define MOE_ROUTERS_COSINE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>

#include <moe/core/concepts.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/group.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

/// sqrt(sum of v^2), also where the squares overflow or vanish: v is scaled by a power of two then.
template <class S>
S norm(Index n, const S* v) {
    using Limits = std::numeric_limits<S>;
    const S squares = kernels<S>().dot(n, v, v);
    if (squares >= Limits::min() / Limits::epsilon() && squares <= Limits::max())
        return std::sqrt(squares);
    S largest = 0;
    for (Index i = 0; i < n; ++i) largest = std::max(largest, std::abs(v[i]));
    if (!(largest > 0 && largest <= Limits::max())) return std::sqrt(squares);
    const int exponent = std::ilogb(largest);
    S sum = 0;
    for (Index i = 0; i < n; ++i) {
        const S scaled = std::scalbn(v[i], -exponent);
        sum = std::fma(scaled, scaled, sum);
    }
    return std::scalbn(std::sqrt(sum), exponent);
}

}  // namespace detail

/// logits = s cos(r, m_e), r = P x + b        m_e: [Q] one per logit, P: [Q, D], b: [Q]
///
///     cos(r, m) = r . m / (max(|r|, epsilon) max(|m|, epsilon))
///     s         = exp(min(log_scale, log 100))
///
/// Without a projection r is x and Q is D. Without normalize_tokens |r| counts as 1. Logits are in
/// [-s, s], and 0 where r is 0; without b they depend on the direction of x only. log_scale has a
/// gradient up to log 100, beyond it has none.
template <class S>
class CosineRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    CosineRouterModule() = default;

    LinearRouterModule<S> projection;  // weight [Q, D], bias [1, Q] or empty; or nothing
    Parameter<S> embeddings;           // [L, Q]
    Parameter<S> log_scale;            // [1, 1]

    /// s: 1 / temperature, 100 at most.
    S scale() const {
        const double limited = std::min(log_scale(0, 0), max_log_scale);
        return static_cast<S>(std::exp(limited));
    }

    /// Gives every embedding this norm; one of zeros stays. No logit changes, but gradients at
    /// embeddings are in inverse proportion to their norms, which grow as they are trained: XMoE
    /// calls this, with 1.5, before every step.
    void rescale_embeddings(S to) {
        for (Index e = 0; e < embeddings.rows(); ++e)
            if (const S norm = detail::norm(embeddings.cols(), embeddings.row(e)); norm > 0)
                for (Index i = 0; i < embeddings.cols(); ++i)
                    embeddings(e, i) = embeddings(e, i) / norm * to;
    }

    /// @param x  [T, D]   @param logits  [T, L], overwritten
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        auto& state = call.ws.template state<State>();
        if (!has_projection_) return compare(x, logits, state, call);
        auto r = state.r.matrix(x.rows(), embeddings.cols());
        projection.forward(x, r, call.child(projection_node));
        for (Index t = 0; t < x.rows(); ++t)  // what padding holds must not reach the gradient
            if (call.context.is_padding(t)) std::fill_n(row_data(r, t), r.cols(), S(0));
        compare(r, logits, state, call);
    }

    /// @throws std::invalid_argument unless P is [Q, model_dim] and there are num_logits embeddings
    ///         of Q elements, or of model_dim if there is no P
    void check(const Shape& shape) const {
        const Parameter<S>&p = projection.weight, &m = embeddings;
        const Index inner = has_projection_ ? p.rows() : shape.model_dim;
        if ((has_projection_ && p.cols() != shape.model_dim) || m.rows() != shape.num_logits ||
            m.cols() != inner)
            detail::fail("moe::CosineRouter: projection.weight is [", p.rows(), ", ", p.cols(),
                         "] and embeddings [", m.rows(), ", ", m.cols(),
                         "], the layer wants [projection_dim, ", shape.model_dim, "] and [",
                         shape.num_logits,
                         ", projection_dim]: model_dim, logits per token; without a projection, "
                         "embeddings of model_dim");
    }

    /// With g = dlogits, u_e the unit embeddings, n = max(|r|, epsilon), a = (s / n) g:
    ///
    ///     dr = (I - r r^T / n^2) sum_e a_e u_e            the second term only where n = |r|
    ///     dm_e = (I - u_e u_e^T) (sum_t a_e r) / |m_e|    likewise
    ///     dlog_scale = sum_t r . sum_e a_e u_e
    void backward(In<S> x, In<S> dlogits, Out<S> dx, CosineRouterModule& grad,
                  const Call<S>& call) const {
        auto& state = call.ws.template state<State>();
        if (!has_projection_) return compare_backward(x, dlogits, dx, grad, state, call);
        const auto r = state.r.matrix(x.rows(), embeddings.cols());
        auto dr = state.dr.matrix(x.rows(), embeddings.cols());
        compare_backward(r, dlogits, dr, grad, state, call);
        projection.backward(x, dr, dx, grad.projection, call.child(projection_node));
    }

    double flops_per_token() const {
        return projection.flops_per_token() + 2 * static_cast<double>(embeddings.size());
    }

    /// Of what freeze() packed.
    Index bytes() const { return projection.bytes() + frozen_units_.bytes(); }

    /// The same router with P and the unit embeddings packed once, for inference.
    CosineRouterModule freeze(const FreezeOptions& options) const {
        CosineRouterModule frozen = *this;
        if (has_projection_) frozen.projection = projection.freeze(options);
        State state;
        make_units(state);
        frozen.frozen_units_ = state.units.freeze(options);
        return frozen;
    }

    void reserve(Index tokens, Index rows, Workspace<S>& ws) const {
        auto& state = ws.template state<State>();
        make_units(state);
        state.units.reserve(tokens, rows, ws.child(units_node));
        if (has_projection_) {
            projection.reserve(tokens, rows, ws.child(projection_node));
            state.r.matrix(tokens, embeddings.cols());
        }
        if (!ws.keeps()) return;
        if (has_projection_) state.dr.matrix(tokens, embeddings.cols());
        state.a.matrix(tokens, embeddings.rows());
        state.lengths.resize(tokens);
        state.along.resize(tokens);
        clear(state.unit_gradients.weight);
    }
    Index workspace_bytes(Index tokens, Index rows, Keep keep, int workers) const {
        const bool keeps = keep != Keep::nothing;
        Index per_token = keeps ? embeddings.rows() + 2 : 0;                    // a, lengths, along
        if (has_projection_) per_token += (keeps ? 2 : 1) * embeddings.cols();  // r, dr
        const Index once =
            (keeps ? 2 : 1) * embeddings.size() + embeddings.rows() +
            workers * product_scratch(kernels<S>(), std::max(embeddings.rows(), embeddings.cols()));
        return (detail::checked_product(tokens, per_token) + once) * static_cast<Index>(sizeof(S)) +
               (has_projection_ ? projection.workspace_bytes(tokens, rows, keep, workers) : 0);
    }

    /// projection.weight, projection.bias, embeddings, log_scale
    void visit_parameters(auto&& visit) {
        if (has_projection_)
            projection.visit_parameters([&visit](std::string_view name, auto& matrix) {
                detail::with_prefix("projection.", name,
                                    [&](std::string_view whole) { visit(whole, matrix); });
            });
        visit("embeddings", embeddings);
        visit("log_scale", log_scale, learns_scale_ ? Role::trainable : Role::frozen);
    }

private:
    friend struct CosineRouter;
    static constexpr S max_log_scale = S(4.605170185988092);  // log 100

    static constexpr std::size_t projection_node = 0, units_node = 1;

    struct State {
        LinearRouterModule<S> units;           // weight [L, Q]: u_e = m_e / max(|m_e|, epsilon)
        LinearRouterModule<S> unit_gradients;  // weight [L, Q]
        Buffer<S> norms;                       // [L] |m_e|
        Buffer<S> r, dr;                       // [T, Q] if there is a projection
        Buffer<S> a;                           // [T, L]
        Buffer<S> lengths, along;              // [T] |r| and r . sum_e a_e u_e
    };

    void clear(Parameter<S>& gradient) const {
        if (gradient.rows() != embeddings.rows() || gradient.cols() != embeddings.cols())
            gradient = Parameter<S>(embeddings.rows(), embeddings.cols());
        std::fill_n(gradient.data(), gradient.size(), S(0));
    }

    void make_units(State& state) const {
        Parameter<S>& units = state.units.weight;
        clear(units);
        state.norms.resize(embeddings.rows());
        for (Index e = 0; e < embeddings.rows(); ++e) {
            state.norms[e] = detail::norm(embeddings.cols(), embeddings.row(e));
            const S divisor = std::max(state.norms[e], epsilon_);
            for (Index i = 0; i < embeddings.cols(); ++i) units(e, i) = embeddings(e, i) / divisor;
        }
    }

    /// s / max(length, epsilon)
    S factor(S scale, S length) const {
        return normalizes_tokens_ ? scale / std::max(length, epsilon_) : scale;
    }

    /// logits from r
    void compare(In<S> r, Out<S> logits, State& state, const Call<S>& call) const {
        if (frozen_units_.weight.empty()) {
            make_units(state);
            state.units.forward(r, logits, call.child(units_node));
        } else {
            frozen_units_.forward(r, logits, call.child(units_node));
        }
        const S s = scale();
        over_rows(call, r, [&](Index t) {
            const S length = detail::norm(r.cols(), row_data(r, t));
            kernels<S>().scale(logits.cols(), factor(s, length), row_data(logits, t),
                               row_data(logits, t));
        });
    }

    /// dr, and the gradients of embeddings and log_scale
    void compare_backward(In<S> r, In<S> dlogits, Out<S> dr, CosineRouterModule& grad, State& state,
                          const Call<S>& call) const {
        const KernelTable<S>& table = kernels<S>();
        const Index tokens = r.rows(), dim = r.cols();
        auto a = state.a.matrix(tokens, embeddings.rows());
        state.lengths.resize(tokens);
        state.along.resize(tokens);
        const S s = scale();
        over_rows(call, r, [&](Index t) {
            state.lengths[t] = detail::norm(dim, row_data(r, t));
            table.scale(a.cols(), factor(s, state.lengths[t]), row_data(dlogits, t),
                        row_data(a, t));
        });
        LinearRouterModule<S> not_wanted;
        const bool wanted = !grad.embeddings.empty();
        if (wanted) clear(state.unit_gradients.weight);
        state.units.backward(r, a, dr, wanted ? state.unit_gradients : not_wanted,
                             call.child(units_node));
        over_rows(call, r, [&](Index t) {
            const S length = state.lengths[t];
            state.along[t] = table.dot(dim, row_data(r, t), row_data(dr, t));
            if (normalizes_tokens_ && !(length < epsilon_))
                table.axpy(dim, -(state.along[t] / length / length), row_data(r, t),
                           row_data(dr, t));
        });
        if (wanted) embeddings_backward(grad.embeddings, state);
        if (!grad.log_scale.empty() && log_scale(0, 0) <= max_log_scale)
            grad.log_scale(0, 0) += table.sum(tokens, state.along.data());
    }

    /// From unit embeddings to embeddings.
    void embeddings_backward(Parameter<S>& gradient, State& state) const {
        const KernelTable<S>& table = kernels<S>();
        const Index dim = embeddings.cols();
        for (Index e = 0; e < embeddings.rows(); ++e) {
            const S* const unit = state.units.weight.row(e);
            S* const of_unit = state.unit_gradients.weight.row(e);
            const bool has_norm = !(state.norms[e] < epsilon_);
            if (has_norm) table.axpy(dim, -table.dot(dim, unit, of_unit), unit, of_unit);
            table.axpy(dim, 1 / (has_norm ? state.norms[e] : epsilon_), of_unit, gradient.row(e));
        }
    }

    /// f(token) for all rows, in parallel.
    template <class F>
    void over_rows(const Call<S>& call, In<S> r, F&& f) const {
        const double flops = 4 * static_cast<double>(r.size());
        detail::for_row_runs(call.ws.executor(), r.rows(), flops,
                             [&](Index first, Index last, int) {
                                 for (Index t = first; t < last; ++t) f(t);
                             });
    }

    LinearRouterModule<S> frozen_units_;  // of a frozen router
    S epsilon_ = S(0);
    bool has_projection_ = false, normalizes_tokens_ = true, learns_scale_ = true;
};

/// Recipe of a router that compares directions: long tokens have no louder logits, and no expert
/// wins by the length of its embedding. P starts as N(0, 1 / D), b at 0, embeddings in random
/// directions.
///
///     Tutel (arXiv:2206.03382)     {.bias = true}
///     XMoE (arXiv:2204.09179)      {.projection_dim = 8, .embedding_norm = 1.5}; its released code
///                                  has {.temperature = 1, .learn_temperature = false,
///                                  .normalize_tokens = false, .epsilon = 1e-4} besides
///     StableMoE (released code)    as that of XMoE with {.projection_dim = 0}
///     DynMoE (arXiv:2405.14297)    {.projection_dim = 0, .temperature = 1,
///                                  .learn_temperature = false}
struct CosineRouter {
    Index projection_dim = 256;     ///< Q; 0: no projection
    bool bias = false;              ///< of the projection
    double temperature = 0.5;       ///< 1 / s at the start; 0.01 at least
    bool learn_temperature = true;  ///< whether log_scale is trainable
    bool normalize_tokens = true;   ///< false: logits grow with |r|
    double embedding_norm = 1;      ///< at the start; see rescale_embeddings()
    double epsilon = 1e-12;         ///< norms count as this at least

    template <class S>
    CosineRouterModule<S> build(const Shape& shape, Random& random) const {
        if (projection_dim < 0)
            detail::fail("moe::CosineRouter: projection_dim is ", projection_dim,
                         ", it must be >= 0 (0: no projection)");
        if (bias && projection_dim == 0)
            detail::fail(
                "moe::CosineRouter: bias is true and projection_dim is 0: the bias is "
                "that of the projection; set projection_dim or leave bias false");
        if (!(temperature >= 0.01 && std::isfinite(temperature)))
            detail::fail("moe::CosineRouter: temperature is ", temperature,
                         ", it must be finite and >= 0.01: logits are at most 100");
        check_positive<S>("embedding_norm", embedding_norm);
        check_positive<S>("epsilon", epsilon);
        CosineRouterModule<S> router;
        if (projection_dim > 0) {
            Shape inner = shape;
            inner.num_logits = projection_dim;
            router.projection = LinearRouter{.bias = bias}.build<S>(inner, random);
        }
        router.embeddings =
            Parameter<S>(shape.num_logits, projection_dim > 0 ? projection_dim : shape.model_dim);
        random.fill_normal(router.embeddings, 1);
        router.rescale_embeddings(static_cast<S>(embedding_norm));
        router.log_scale = Parameter<S>(1, 1);
        router.log_scale(0, 0) = static_cast<S>(-std::log(temperature));
        router.epsilon_ = static_cast<S>(epsilon);
        router.has_projection_ = projection_dim > 0;
        router.normalizes_tokens_ = normalize_tokens;
        router.learns_scale_ = learn_temperature;
        return router;
    }

private:
    template <class S>
    static void check_positive(const char* field, double value) {
        if (!(static_cast<S>(value) > 0 && std::isfinite(static_cast<S>(value))))
            detail::fail("moe::CosineRouter: ", field, " is ", value,
                         ", it must be finite and > 0 in the scalar of the layer");
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_COSINE_HPP
