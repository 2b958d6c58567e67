// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_EXPERT_CHOICE_HPP
#define MOE_GATES_EXPERT_CHOICE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/sequences.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/share_rule.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class ExpertChoiceModule;

/// Recipe for a gate where experts choose: each takes its C best tokens. The load is the same for
/// all without any loss; a token gets 0 to E experts, more where more experts want it.
///
/// A choice depends on all tokens that compete, later ones too: good for encoders, images and
/// training; a decoder generates with inference_threshold or with another gate.
///
/// Source: Zhou et al. (arXiv:2202.09368) section 3.2, whose C is capacity_factor tokens / E.
struct ExpertChoice {
    /// What experts compare tokens by, and the weight.
    enum class Scores {
        softmax,              ///< over the experts of a token (paper, flaxformer, V-MoE)
        sigmoid,              ///< of each logit on its own (MoMa, arXiv:2407.21770)
        softmax_over_tokens,  ///< over the tokens of an expert; the weight is divided by the number
                              ///< of experts that chose the token (mesh-TensorFlow)
    };
    enum class Rounding {
        nearest,  ///< halves to even (flaxformer)
        up,       ///< V-MoE
    };
    /// Which tokens compete.
    enum class Scope {
        batch,
        sequence,  ///< those of a sequence; needs Context::sequence_offsets
    };
    /// What training adds to the logits, for choice and weight.
    enum class Noise {
        none,
        normal,  ///< noise_scale / E times a standard normal sample (V-MoE)
        gumbel,  ///< noise_scale times the difference of two standard Gumbel samples (MoMa)
    };

    double capacity_factor = 2;  ///< experts per token in the mean, > 0
    Rounding rounding = Rounding::nearest;
    Index multiple_of = 1;   ///< C is rounded up to a multiple of it (V-MoE: 4)
    Index min_capacity = 1;  ///< least C, >= 0 (flaxformer: 4)
    Scope scope = Scope::batch;
    Scores scores = Scores::softmax;
    Noise noise = Noise::none;
    double noise_scale = 1;  ///< >= 0
    /// If set, a call without Context::training lets each token take the experts whose sigmoid is
    /// above it, whatever the other tokens are. In [0, 1); for Scores::sigmoid. MoMa: 0.5.
    std::optional<double> inference_threshold{};

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    ExpertChoiceModule<S> build(const Shape& shape, Random&) const {
        return ExpertChoiceModule<S>(*this, shape.num_experts);
    }
};

/// The gate that ExpertChoice describes.
///
///     n   = tokens of the scope that are not padding
///     C   = min(n, round(n capacity_factor / E), at least min_capacity, up to multiple_of)
///     T_e = the C tokens with the largest s_te                s [T, E] scores of z + noise
///     w_te = s_te, or s_te / |{e: t in T_e}| with softmax_over_tokens
///
/// Every expert gets exactly C tokens, fewer only if fewer may go to it. Ties go to the lower
/// token. Slots are in the order of experts. A logit of -inf is never chosen; a row of -inf is
/// padding, neither counted nor chosen. A row that holds a NaN is chosen last and has NaN weights;
/// with softmax_over_tokens a NaN shows in all weights of its expert. Null experts weigh 0 and do
/// not count as having chosen. No noise is added without Context::training.
///
/// Context::noise, where given, is [1, T, E] standard normal or [2, T, E] standard Gumbel samples.
/// The gradient is exact for the chosen set and the noise as constants.
template <class S>
class ExpertChoiceModule : public TokenGate<S, ExpertChoiceModule<S>> {
    using Base = TokenGate<S, ExpertChoiceModule>;
    friend Base;

public:
    static constexpr bool multiplies_scores = false;  // its weights are not CombineRule's
    using Base::num_experts;
    static constexpr bool per_token = false;

    ExpertChoiceModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    ExpertChoiceModule(const ExpertChoice& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_{.score = settings.scores == ExpertChoice::Scores::sigmoid ? Score::sigmoid
                                                                          : Score::softmax,
                .normalize = Normalize::none} {
        check_settings();
    }

    const ExpertChoice& settings() const { return settings_; }

    /// C, the tokens that an expert takes of `tokens` that compete.
    Index capacity(Index tokens) const {
        const double share = static_cast<double>(tokens) * settings_.capacity_factor /
                             static_cast<double>(num_experts());
        if (!(share < static_cast<double>(tokens))) return tokens;
        double whole = std::floor(share);
        const double rest = share - whole;
        const bool is_odd = std::fmod(whole, 2) != 0;
        const bool up = settings_.rounding == ExpertChoice::Rounding::up
                            ? rest > 0
                            : rest > 0.5 || (rest == 0.5 && is_odd);
        if (up) whole += 1;
        const Index most = std::max(static_cast<Index>(whole), settings_.min_capacity);
        if (most >= tokens) return tokens;
        const Index step = settings_.multiple_of, missing = (step - most % step) % step;
        return missing > tokens - most ? tokens : most + missing;
    }

    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_extents(name, logits.rows(), logits.cols(), routing, num_experts(),
                                   call.context);
        const auto z = with_noise(logits, call);
        if (over_tokens())
            detail::ShareRule{}.weigh<S>(z, routing, runs(call.context, z.rows()), call);
        else
            rule_.weigh(In<S>(z), routing, call, normalizes(call.context, z.rows()));
    }

    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, ExpertChoiceModule&, const Call<S>& call) const {
        detail::check_gate_extents(name, logits.rows(), logits.cols(), routing, num_experts(),
                                   call.context);
        const auto z = with_noise(logits, call);
        if (over_tokens())
            detail::ShareRule{}.backward<S>(z, routing, dweights, dlogits,
                                            runs(call.context, z.rows()), call);
        else
            rule_.backward(In<S>(z), routing, dweights, dlogits, call,
                           normalizes(call.context, z.rows()));
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        auto& scratch = ws.template state<Scratch>();
        const Index pairs = detail::checked_product(tokens, num_experts());
        scratch.columns.resize(pairs);
        scratch.taken.resize(pairs);
        scratch.ranked.resize(ranked_size(tokens, ws.executor().concurrency()));
        if (settings_.noise != ExpertChoice::Noise::none) scratch.noisy.resize(pairs);
        if (over_tokens()) detail::ShareRule::reserve<S>(ws, tokens, num_experts());
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const Index pairs = detail::checked_product(tokens, num_experts());
        const Index matrices = settings_.noise == ExpertChoice::Noise::none ? 1 : 2;
        const Index shares = over_tokens() ? detail::ShareRule::bytes<S>(tokens, num_experts()) : 0;
        return Base::workspace_bytes(tokens, assignments, keep, workers) + shares +
               pairs * (matrices * static_cast<Index>(sizeof(S)) + 1) +
               ranked_size(tokens, workers) * static_cast<Index>(sizeof(detail::Ranked<S>));
    }

private:
    static constexpr const char* name = "moe::ExpertChoice";
    static constexpr S dead = -std::numeric_limits<S>::infinity();

    struct Scratch {
        Buffer<S> noisy;                   // [T, E] logits with noise
        Buffer<S> columns;                 // [E, T] what is ranked
        Buffer<detail::Ranked<S>> ranked;  // [workers, T]
        Buffer<std::uint8_t> taken;        // [T, E]
    };

    void check_settings() const {
        const ExpertChoice& s = settings_;
        if (!(s.capacity_factor > 0 && std::isfinite(s.capacity_factor)))
            detail::fail(name, ": capacity_factor is ", s.capacity_factor,
                         ", it must be finite and > 0: experts per token in the mean");
        if (s.multiple_of < 1)
            detail::fail(name, ": multiple_of is ", s.multiple_of, ", it must be >= 1");
        if (s.min_capacity < 0)
            detail::fail(name, ": min_capacity is ", s.min_capacity, ", it must be >= 0");
        if (!(s.noise_scale >= 0 && std::isfinite(s.noise_scale)))
            detail::fail(name, ": noise_scale is ", s.noise_scale, ", it must be finite and >= 0");
        detail::check_choice(name, "rounding", s.rounding, ExpertChoice::Rounding::up);
        detail::check_choice(name, "scope", s.scope, ExpertChoice::Scope::sequence);
        detail::check_choice(name, "scores", s.scores, ExpertChoice::Scores::softmax_over_tokens);
        detail::check_choice(name, "noise", s.noise, ExpertChoice::Noise::gumbel);
        if (!s.inference_threshold) return;
        if (!(*s.inference_threshold >= 0 && *s.inference_threshold < 1))
            detail::fail(name, ": inference_threshold is ", *s.inference_threshold,
                         ", it must be in [0, 1)");
        if (s.scores != ExpertChoice::Scores::sigmoid)
            detail::fail(name, ": inference_threshold is ", *s.inference_threshold,
                         ", it is compared with sigmoids: set scores to Scores::sigmoid");
    }

    bool over_tokens() const {
        return settings_.scores == ExpertChoice::Scores::softmax_over_tokens;
    }
    Index most_experts() const { return num_experts(); }
    const detail::CombineRule& rule() const { return rule_; }
    static auto normalizes(const Context&, Index) {
        return [](Index, Index) { return false; };
    }
    double flops() const { return 20.0 * static_cast<double>(num_experts()); }
    static Index ranked_size(Index tokens, Index workers) {
        return detail::checked_product(workers, detail::round_up_16(tokens));
    }

    detail::Sequences runs(const Context& context, Index tokens) const {
        if (settings_.scope == ExpertChoice::Scope::batch) return {{}, tokens};
        return detail::required_sequences(name, context.sequence_offsets, tokens);
    }

    /// [T, E] logits and the noise of this call.
    Eigen::Ref<const Matrix<S>> with_noise(In<S> logits, const Call<S>& call) const {
        if (settings_.noise == ExpertChoice::Noise::none || !call.context.training) return logits;
        const bool is_normal = settings_.noise == ExpertChoice::Noise::normal;
        const double scale = is_normal ? settings_.noise_scale / static_cast<double>(num_experts())
                                       : settings_.noise_scale;
        const detail::Samples samples(name, call, logits.rows(), num_experts(), is_normal ? 1 : 2);
        auto noisy = call.ws.template state<Scratch>().noisy.matrix(logits.rows(), logits.cols());
        detail::for_tokens(call.ws.executor(), logits.rows(), 10 * flops(), [&](Index t, int) {
            for (Index e = 0; e < num_experts(); ++e) {
                const double sample = is_normal ? samples.normal(t, e)
                                                : samples.gumbel(t, e) - samples.gumbel(t, e, 1);
                noisy(t, e) =
                    static_cast<S>(std::fma(scale, sample, static_cast<double>(logits(t, e))));
            }
        });
        return noisy;
    }

    auto choice(const Call<S>& call, In<S> logits) const {
        auto& scratch = call.ws.template state<Scratch>();
        scratch.taken.assign(detail::checked_product(logits.rows(), num_experts()), 0);
        if (settings_.inference_threshold && !call.context.training)
            let_tokens_choose(logits, scratch, call);
        else
            let_experts_choose(with_noise(logits, call), scratch, call);
        return [n = num_experts(), taken = scratch.taken.data()](Index t, const S*, S*,
                                                                 detail::Ranked<S>* ranked) {
            Index count = 0;
            for (Index e = 0; e < n; ++e)
                if (taken[t * n + e] != 0) ranked[count++].index = static_cast<std::int32_t>(e);
            return count;
        };
    }

    void let_tokens_choose(In<S> logits, Scratch& scratch, const Call<S>& call) const {
        const Index n = num_experts();
        const auto threshold = static_cast<S>(*settings_.inference_threshold);
        auto scores = scratch.columns.matrix(logits.rows(), n);
        detail::for_tokens(call.ws.executor(), logits.rows(), flops(), [&](Index t, int) {
            kernels<S>().sigmoid(n, row_data(logits, t), row_data(scores, t));
            for (Index e = 0; e < n; ++e)  // a NaN is taken, to be seen
                scratch.taken[t * n + e] = logits(t, e) != dead && !(scores(t, e) <= threshold);
        });
    }

    /// What ranks like the scores of an expert: logits where scores rise with them.
    void let_experts_choose(In<S> z, Scratch& scratch, const Call<S>& call) const {
        const Index n = num_experts(), tokens = z.rows();
        const auto runs = this->runs(call.context, tokens);
        S* keys = transpose(z, scratch, call, [&](const S* row, S* values) {
            if (settings_.scores == ExpertChoice::Scores::softmax)
                kernels<S>().softmax(n, row, values);
            else
                std::copy_n(row, n, values);
            for (Index e = 0; e < n; ++e)
                if (row[e] == dead) values[e] = dead;
        });
        scratch.ranked.resize(ranked_size(tokens, call.ws.executor().concurrency()));
        detail::each_column(runs, n, call.ws.executor(), [&](Index run, Index e, int worker) {
            const Index first = runs.first(run), last = runs.last(run);
            Index live = 0;
            for (Index t = first; t < last; ++t) live += detail::is_live(n, row_data(z, t)) ? 1 : 0;
            auto* ranked = scratch.ranked.data() + worker * detail::round_up_16(tokens);
            const Index found = detail::rank_by_index(last - first, keys + e * tokens + first,
                                                      capacity(live), ranked);
            for (Index i = 0; i < found; ++i) scratch.taken[(first + ranked[i].index) * n + e] = 1;
        });
    }

    /// [E, T] of what f(row of z, values [E]) makes of each token.
    template <class F>
    S* transpose(In<S> z, Scratch& scratch, const Call<S>& call, F&& f) const {
        const Index n = num_experts(), tokens = z.rows();
        S* columns = scratch.columns.resize(detail::checked_product(tokens, n)).data();
        auto& values = detail::CombineRule::reserve<S>(call.ws, n, n);
        const Index stride = values.size() / call.ws.executor().concurrency();
        detail::for_tokens(call.ws.executor(), tokens, flops(), [&](Index t, int worker) {
            S* row = values.data() + worker * stride;
            f(row_data(z, t), row);
            for (Index e = 0; e < n; ++e) columns[e * tokens + t] = row[e];
        });
        return columns;
    }

    ExpertChoice settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_EXPERT_CHOICE_HPP
