// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_DENSE_TO_SPARSE_HPP
#define MOE_GATES_DENSE_TO_SPARSE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/schedule.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class DenseToSparseModule;

/// Recipe for a gate that begins with all experts and ends with one: a noisy softmax whose
/// temperature falls while the layer is trained, so that the router sees every expert before it
/// has to choose.
///
/// Source: EvoMoE (arXiv:2112.14397). Its code may keep the noise at inference; here there is none.
struct DenseToSparse {
    /// At Context::step; 0 or less: all experts, no noise. Set one that falls: EvoMoE's is
    /// {.from = 2, .to = 0.3, .steps = ...}; this is where it ends.
    Schedule temperature = Schedule::constant(0.3);
    double threshold = 0.001;  ///< finite; experts above it work, and the best always
    /// Context::step from which on the best expert works alone, at whatever temperature.
    std::uint64_t hard_from = std::numeric_limits<std::uint64_t>::max();
    /// Whether weights are the noisy softmax that chooses, or that of the logits as they are.
    bool noisy_weights = true;
    double scale = 1;  ///< multiplies the weights at last

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    DenseToSparseModule<S> build(const Shape& shape, Random&) const {
        return DenseToSparseModule<S>(*this, shape.num_experts);
    }
};

/// The gate that DenseToSparse describes.
///
///     training:   p_t = softmax((z_t + G_t) / tau)      [L], z the logits, G standard Gumbel noise
///                 S_t = experts with p > threshold, the best one always
///                       the best one alone               from step hard_from on
///                 w_t = scale * p_t[S_t], or scale * softmax(z_t)[S_t] without noisy_weights
///     tau <= 0:   w_t = scale * softmax(z_t), all experts
///     inference:  the best expert of z_t, weighed with scale * softmax(z_t)
///
/// Weights are not normalised. All logits get a gradient, through softmax and temperature. Noise is
/// keyed by token and expert; Context::noise [T, E] replaces it. With the noise fixed, no token
/// gets more experts as tau falls, if the threshold is at most 1 / E.
///
/// Slots are in falling order of what is ranked, ties go to the lower index. Experts at -inf are
/// never selected: a row of -inf routes nowhere, any other to at least one. A row that holds a NaN
/// gets NaN weights, and all experts where several are chosen. Null experts count in the softmax
/// and weigh 0.
template <class S>
class DenseToSparseModule : public TokenGate<S, DenseToSparseModule<S>> {
    using Base = TokenGate<S, DenseToSparseModule>;
    friend Base;

public:
    using Base::num_experts;

    DenseToSparseModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    DenseToSparseModule(const DenseToSparse& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_{.score = Score::softmax, .normalize = Normalize::none, .scale = settings.scale} {
        settings.temperature.check(name, "temperature");
        if (!std::isfinite(settings.threshold))
            detail::fail(name, ": threshold is ", settings.threshold, ", it must be finite");
        rule_.check(name);
    }

    const DenseToSparse& settings() const { return settings_; }

    /// As TokenGate, from the noisy logits where those weigh.
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        if (!weighs_noisy(call.context)) return Base::weigh(logits, routing, call);
        Base::weigh(noisy(logits, call), routing, call);
    }

    /// As TokenGate: d(loss)/dz = d(loss)/d((z + G) / tau) / tau.
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, DenseToSparseModule& grad, const Call<S>& call) const {
        if (!weighs_noisy(call.context))
            return Base::backward(logits, routing, dweights, dlogits, grad, call);
        View<S> z = noisy(logits, call);
        View<S> dz = scratch(call.ws).dnoisy.matrix(logits.rows(), num_experts());
        std::fill_n(dz.data(), dz.size(), S(0));
        Base::backward(z, routing, dweights, dz, grad, call);
        const S factor = 1 / temperature(call.context);
        detail::for_tokens(call.ws.executor(), logits.rows(),
                           2.0 * static_cast<double>(num_experts()), [&](Index t, int) {
                               kernels<S>().axpy(num_experts(), factor, row_data(dz, t),
                                                 row_data(dlogits, t));
                           });
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        if (!settings_.noisy_weights) return;
        scratch(ws).noisy.matrix(tokens, num_experts());
        scratch(ws).dnoisy.matrix(tokens, num_experts());
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index own = settings_.noisy_weights ? 2 * tokens * num_experts() : 0;
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               own * static_cast<Index>(sizeof(S));
    }

private:
    static constexpr const char* name = "moe::DenseToSparse";

    struct Scratch {
        Buffer<S> noisy, dnoisy;  // [T, L]
    };
    static Scratch& scratch(Workspace<S>& ws) { return ws.template state<Scratch>(); }

    Index most_experts() const { return num_experts(); }
    const detail::CombineRule& rule() const { return rule_; }

    S temperature(const Context& context) const {
        return static_cast<S>(settings_.temperature.at(context.step));
    }
    bool is_noisy(const Context& context) const {
        return context.training && temperature(context) > 0;
    }
    bool weighs_noisy(const Context& context) const {
        return settings_.noisy_weights && is_noisy(context);
    }

    /// (z + G) / tau of a token.
    void add_noise(const detail::Samples& samples, S tau, Index t, const S* z, S* noisy) const {
        for (Index e = 0; e < num_experts(); ++e)
            noisy[e] = (z[e] + static_cast<S>(samples.gumbel(t, e))) / tau;
    }
    /// [T, L] the same of all, in the workspace.
    View<S> noisy(In<S> logits, const Call<S>& call) const {
        const detail::Samples samples(name, call, logits.rows(), num_experts());
        View<S> all = scratch(call.ws).noisy.matrix(logits.rows(), num_experts());
        detail::for_tokens(call.ws.executor(), logits.rows(),
                           200.0 * static_cast<double>(num_experts()), [&](Index t, int) {
                               add_noise(samples, temperature(call.context), t, row_data(logits, t),
                                         row_data(all, t));
                           });
        return all;
    }

    auto choice(const Call<S>& call, Index tokens) const {
        const Index n = num_experts();
        const bool is_noisy = this->is_noisy(call.context);
        const bool is_single = !call.context.training || call.context.step >= settings_.hard_from;
        return [this, n, is_noisy, is_single, tau = temperature(call.context),
                samples = detail::Samples(name, call, tokens, n)](Index t, const S* z, S* values,
                                                                  detail::Ranked<S>* ranked) {
            if (!is_noisy) return detail::rank_by_index(n, z, is_single ? 1 : n, ranked);
            S *noisy = values, *p = values + n, *keys = values + 2 * n;
            add_noise(samples, tau, t, z, noisy);
            if (is_single) return detail::rank_by_index(n, noisy, 1, ranked);
            kernels<S>().softmax(n, noisy, p);
            const auto limit = static_cast<S>(settings_.threshold);
            const Index found = detail::rank_where(
                n, noisy, n, [&](Index e) { return !(p[e] <= limit); }, keys, ranked);
            return found > 0 ? found : detail::rank_by_index(n, noisy, 1, ranked);
        };
    }

    DenseToSparse settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_DENSE_TO_SPARSE_HPP
