// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_NOISY_HPP
#define MOE_GATES_NOISY_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/softplus.hpp>
#include <moe/core/steering.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/schedule.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// The noise of Noisy.
struct GateNoise {
    enum class Kind {
        fixed,               ///< sigma = std * factor
        fixed_over_experts,  ///< sigma = std * factor / E (V-MoE, Tutel)
        learned,             ///< sigma = softplus(noise logits) + epsilon (Shazeer, fastmoe)
        gumbel,              ///< sigma = std * factor, samples are Gumbel's instead of normal
    };

    Kind kind = Kind::learned;
    double std = 1;  ///< finite and >= 0; not for `learned`
    /// At Context::step, so that noise falls while the layer is trained; >= 0. Nothing is drawn
    /// where it is 0. Not for `learned`, whose sigma the router sets: leave it at 1 there. With
    /// `inference`, the step counts there, too.
    Schedule factor{};
    double epsilon = 1e-2;   ///< for `learned`: the least sigma; finite and >= 0
    bool inference = false;  ///< whether there is noise outside of training, too
    /// Whether weights come from the noisy logits, too. Otherwise noise chooses only, and z weighs
    /// (DeepSpeed's RSample).
    bool weighs = true;
};

/// A gate whose inner gate sees noisy logits, in training only. It explores: an expert that is
/// nearly good enough gets its chance.
///
///     h     = z + noise * sigma      z: [E] the token's logits, noise: N(0, 1) or Gumbel
///     sigma = as GateNoise::kind says
///     inner gate: selects and weighs by h
///
/// Around a gate with a capacity, noise decides who goes first, too (V-MoE); inside of it, tokens
/// are ranked by logits without noise.
///
/// Kind::learned takes 2 E logits of a token from the router, [z | n] with noise logits n. At
/// inference z alone is used. Masks, forces and losses are about z, without noise.
///
/// Backward goes to z and to n, with the samples as constants:
///
///     dz = dh,   dn = dh noise sigmoid(n)
///
/// An expert at -inf stays there, with no gradient. Everything else about rows and experts is the
/// inner gate's. Context::noise: [1, T, E] normal or Gumbel samples; the inner gate then draws its
/// own, if it draws.
///
///     published gate                     noise                inner gate
///     Shazeer (arXiv:1701.06538) eq. 3   learned, epsilon 0   TopK
///     fastmoe NoisyGate                  learned              TopK
///     LLaMA-MoE (arXiv:2406.16554)       learned              TopK, scale = E / k
///     V-MoE (arXiv:2106.05974)           fixed_over_experts   TopK, none
///     M3ViT (arXiv:2210.14793)           fixed_over_experts   TopK, none
///     Tutel (arXiv:2206.03382)           fixed_over_experts   TopK, clamp
///     ShiftAddViT (arXiv:2306.06446)
///       NaiveGate                        no Noisy             TopK, k = 1
///       NoisyGate                        learned, inference   TopK, k = 1
///       NoisyGate_V2                     fixed_over_experts   TopK, none
///
/// "none" and "clamp" are TopK::normalize. LLaMA-MoE's routers are MLPs.
template <class S, class Inner>
class NoisyModule : public GateWrapper<S, Inner> {
    using Base = GateWrapper<S, Inner>;

public:
    static constexpr bool changes_logits = true;
    static constexpr bool fixed_count = hooks::fixed_count<Inner>;

    static constexpr bool skips_empty_gradients = Base::inner_skips_empty_gradients;
    using Base::inner;

    NoisyModule() = default;
    /// @param num_experts  of the layer
    /// @throws std::invalid_argument if a setting is out of range
    NoisyModule(Inner gate, const GateNoise& noise, Index num_experts)
        : Base{std::move(gate)}, noise_(noise), num_experts_(num_experts) {
        detail::check_choice(name, "kind", noise.kind, GateNoise::Kind::gumbel);
        if (!(noise.std >= 0 && std::isfinite(noise.std)))
            detail::fail(name, ": std is ", noise.std, ", it must be finite and >= 0");
        if (!(noise.epsilon >= 0 && std::isfinite(noise.epsilon)))
            detail::fail(name, ": epsilon is ", noise.epsilon, ", it must be finite and >= 0");
        noise.factor.check(name, "factor");
        if (!(noise.factor.from >= 0 && noise.factor.to >= 0))
            detail::fail(name, ": factor goes from ", noise.factor.from, " to ", noise.factor.to,
                         ", both must be >= 0");
        if (is_learned() && (noise.factor.from != 1 || noise.factor.to != 1))
            detail::fail(name, ": factor goes from ", noise.factor.from, " to ", noise.factor.to,
                         ", but kind is learned: the router sets sigma; take another kind");
    }

    const GateNoise& noise() const { return noise_; }
    Index num_experts() const { return num_experts_; }
    /// Whether a call has noise in what is selected; whether in what weighs, too.
    bool is_on(const Context& context) const {
        return (context.training || noise_.inference) && noise_.factor.at(context.step) != 0;
    }
    bool weighs(const Context& context) const { return noise_.weighs && is_on(context); }

    /// h [T, E] again, for losses on noisy logits. It lies in the gate's node and lives until the
    /// gate's next call.
    /// @param logits  [T, L] of select()   @param call  of select(), in the gate's node; has noise
    View<S> noisy_logits(In<S> logits, const Call<S>& call) const {
        within(logits, call, true, [](In<S>, const Call<S>&) {});
        return call.ws.template state<State>().noisy.matrix(logits.rows(), width());
    }
    /// sigma of a logit, at the context's step.
    S sigma(In<S> logits, Index token, Index expert, const Context& context) const {
        return is_learned() ? learned_sigma(logits, token, expert) : fixed_sigma(context);
    }
    /// From h and sigma back to the logits, as in backward(). Nothing for experts at -inf.
    ///
    ///     dz += dh,   dn += (dh noise + dsigma) sigmoid(n)
    ///
    /// @param dh, dsigma  [T, E]; dsigma is read for Kind::learned and may be [0, 0]: none
    void noise_backward(In<S> logits, In<S> dh, In<S> dsigma, Out<S> dlogits,
                        const Call<S>& call) const {
        const detail::Samples samples(name, call, logits.rows(), width());
        const bool has_sigma = dsigma.size() != 0;
        each_row(logits, call, [&](Index t, Index e) {
            if (logits(t, e) == masked) return;
            dlogits(t, e) += dh(t, e);
            if (!is_learned()) return;
            const auto n = static_cast<double>(logits(t, width() + e));
            const S from_sigma = has_sigma ? dsigma(t, e) : S(0);
            const S ds = std::fma(dh(t, e), sample(samples, t, e), from_sigma);
            S& dn = dlogits(t, width() + e);
            dn = std::fma(ds, static_cast<S>(detail::softplus_slope(n)), dn);
        });
    }
    /// Twice as many as the inner gate's for Kind::learned.
    Index num_logits(Index experts) const {
        return (is_learned() ? 2 : 1) * hooks::num_logits(inner, experts);
    }
    bool is_causal() const { return hooks::is_causal(inner); }
    /// @throws std::invalid_argument if the layer has another number of experts
    void check(const Shape& shape) const {
        detail::check_gate(name, num_experts_, shape);
        Shape of_inner = shape;  // it reads noisy logits, and no noise logits
        of_inner.num_logits = hooks::num_logits(inner, num_experts_);
        Base::check(of_inner);
    }

    /// @param logits  [T, L]
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        within(logits, call, is_on(call.context), [&](In<S> h, const Call<S>& without_noise) {
            Base::select(h, routing, without_noise);
        });
    }

    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        within(logits, call, weighs(call.context), [&](In<S> h, const Call<S>& without_noise) {
            Base::weigh(h, routing, without_noise);
        });
    }

    /// Adds to dlogits [T, L]. Noise is drawn again rather than kept.
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, NoisyModule& grad,
                  const Call<S>& call) const requires TrainableGate<Inner, S> {
        if (dlogits.rows() != logits.rows() || dlogits.cols() != logits.cols())
            detail::fail(name, ": dlogits is [", dlogits.rows(), ", ", dlogits.cols(),
                         "], logits are [", logits.rows(), ", ", logits.cols(), "]");
        const bool is_noisy = weighs(call.context);
        within(logits, call, is_noisy, [&](In<S> h, const Call<S>& without_noise) {
            const auto add = [&](Out<S> dh) {
                Base::backward(h, routing, dweights, dh, grad, without_noise);
            };
            if (!is_noisy || !is_learned()) return add(dlogits.leftCols(h.cols()));  // dh/dz is 1
            auto dh = call.ws.template state<State>().gradient.matrix(h.rows(), h.cols());
            dh.setZero();
            add(dh);
            noise_backward(logits, dh, Matrix<S>(), dlogits, call);
        });
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        auto& state = ws.template state<State>();
        state.noisy.matrix(tokens, width());
        if (is_learned() && ws.keeps()) state.gradient.matrix(tokens, width());
        Base::reserve(tokens, assignments, ws);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index matrices = is_learned() && keep != Keep::nothing ? 2 : 1;
        return matrices * tokens * width() * static_cast<Index>(sizeof(S)) +
               Base::workspace_bytes(tokens, assignments, keep, workers);
    }

private:
    static constexpr const char* name = "moe::Noisy";
    static constexpr S masked = -std::numeric_limits<S>::infinity();

    struct State {
        Buffer<S> noisy;     // [T, E] h
        Buffer<S> gradient;  // [T, E] d(loss)/dh
    };

    bool is_learned() const { return noise_.kind == GateNoise::Kind::learned; }
    /// Logits that the inner gate reads.
    Index width() const { return hooks::num_logits(inner, num_experts_); }

    /// f(h, call without samples); h is z where there is nothing to add.
    template <class F>
    void within(In<S> logits, const Call<S>& call, bool is_noisy, F&& f) const {
        if (logits.cols() != num_logits(num_experts_))
            detail::fail(name, ": logits is [", logits.rows(), ", ", logits.cols(),
                         "], the gate wants ", num_logits(num_experts_), " logits per token");
        detail::check_gate_context(call.context, logits.rows(), num_experts_);
        Context context = call.context;
        context.noise = {};
        const Call<S> without_noise{context, call.ws, call.ids, call.expert};
        if (!is_noisy) return f(logits.leftCols(width()), without_noise);

        auto h = call.ws.template state<State>().noisy.matrix(logits.rows(), width());
        const detail::Samples samples(name, call, logits.rows(), width());
        const S fixed = fixed_sigma(call.context);
        each_row(logits, call, [&](Index t, Index e) {
            const S z = logits(t, e);
            const S sigma = is_learned() ? learned_sigma(logits, t, e) : fixed;
            h(t, e) = z == masked ? z : std::fma(sample(samples, t, e), sigma, z);
        });
        f(h, without_noise);
    }

    /// f(token, logit) for each that the inner gate reads.
    template <class F>
    void each_row(In<S> logits, const Call<S>& call, F&& f) const {
        const Index n = width();
        detail::for_tokens(call.ws.executor(), logits.rows(), 200.0 * static_cast<double>(n),
                           [&](Index t, int) {
                               for (Index e = 0; e < n; ++e) f(t, e);
                           });
    }

    S sample(const detail::Samples& samples, Index t, Index e) const {
        const bool is_gumbel = noise_.kind == GateNoise::Kind::gumbel;
        return static_cast<S>(is_gumbel ? samples.gumbel(t, e) : samples.normal(t, e));
    }
    S fixed_sigma(const Context& context) const {
        const bool is_divided = noise_.kind == GateNoise::Kind::fixed_over_experts;
        const double std = is_divided ? noise_.std / static_cast<double>(num_experts_) : noise_.std;
        return static_cast<S>(std * noise_.factor.at(context.step));
    }
    S learned_sigma(In<S> logits, Index t, Index e) const {
        const auto n = static_cast<double>(logits(t, width() + e));
        return static_cast<S>(detail::softplus(n) + noise_.epsilon);
    }

    GateNoise noise_{};
    Index num_experts_ = 0;
};

/// Recipe: noise on the logits of another gate.
///
///     moe::Noisy{moe::TopK{.k = 2}, moe::GateNoise{.kind = moe::GateNoise::Kind::learned}}
template <class Inner>
struct Noisy {
    Inner inner;
    GateNoise noise{};

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        using Gate = detail::built_t<Inner, S>;
        static_assert(moe::Gate<Gate, S>,
                      "moe: moe::Noisy takes a gate, e.g. moe::Noisy{moe::TopK{.k = 2}}");
        return NoisyModule<S, Gate>(detail::built<Inner, S>(inner, shape, random), noise,
                                    shape.num_experts);
    }
};

template <class Inner>
Noisy(Inner) -> Noisy<Inner>;
template <class Inner>
Noisy(Inner, GateNoise) -> Noisy<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_NOISY_HPP
