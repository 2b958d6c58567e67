// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_WEIGHTS_HPP
#define MOE_GATES_WEIGHTS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/placement.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/token_weights.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

/// Combine weights of the assignments a token has, from its logits alone, and the way back.
///
///     s_i = score(z)_i          0 for what is left out
///     d   = sum of s_i in slot order, or the p-norm of s for p != 1
///     w_i = scale * s_i / q     q = 1, d, d + epsilon or max(d, epsilon)
///
/// With a bias, s_i is score(z)_i + bias_i. With MultiplierOrder::before_normalization, s_i is that
/// times the context's multiplier.
///
/// Left out, with weight 0, are null experts and, if kept_only, dropped assignments. A quotient by
/// 0 is 0, and so is its gradient. A row that holds a NaN has NaN weights and a NaN gradient.
struct CombineRule {
    Score score = Score::softmax;
    Normalize normalize = Normalize::plain;
    double epsilon = 1e-20;
    double norm_power = 1;
    double scale = 1;
    bool kept_only = false;
    bool ones = false;              ///< s = 1 and q = 1 instead
    bool straight_through = false;  ///< with ones: the way back is that of the scores
    Placement placement = Placement::output;

    /// @param gate  whose settings these are, for the message
    /// @throws std::invalid_argument
    void check(const char* gate) const {
        if (!(epsilon >= 0 && std::isfinite(epsilon)))
            fail(gate, ": epsilon is ", epsilon, ", it must be finite and >= 0");
        if (!(norm_power >= 1 && std::isfinite(norm_power)))
            fail(gate, ": norm_power is ", norm_power, ", it must be finite and >= 1");
        if (!std::isfinite(scale)) fail(gate, ": scale is ", scale, ", it must be finite");
        check_choice(gate, "score", score, Score::relu);
        check_choice(gate, "normalize", normalize, Normalize::clamp);
        check_choice(gate, "placement", placement, Placement::straight_through);
    }

    /// Sets the weight and input weight of every assignment.
    /// @param normalizes  normalizes(token, assignments): whether this token is normalised
    /// @param bias        [L] of scores, or null; not for softmax_of_selected
    template <class S, class Normalizes>
    void weigh(In<S> logits, Routing& routing, const Call<S>& call, Normalizes&& normalizes,
               const S* bias = nullptr) const {
        const bool on_input = placement == Placement::input;
        each_token<S>(logits, routing, call, bias, call.ws.executor(), [&](Index t, auto& token) {
            token.evaluate(normalizes(t, token.num_kept()));
            const Index first = routing.first(t);
            for (Index i = 0; i < token.count(); ++i) {
                const auto w = static_cast<double>(static_cast<S>(scale) * token.share(i));
                const double output = token.left_out(i) ? 0 : on_input ? 1 : w;
                routing.set_weights(first + i, output, on_input ? w : 1);
            }
        });
    }

    /// Adds to dlogits. Exact for every combination of settings; 0 at logits of -inf, whatever
    /// the gradients at the weights are.
    /// @throws std::logic_error unless there is one gradient per assignment on the side of the
    ///         weights
    /// @throws std::invalid_argument if dlogits is of another extent than logits
    template <class S, class Normalizes>
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, const Call<S>& call, Normalizes&& normalizes,
                  const S* bias = nullptr) const {
        if (ones && straight_through) {
            CombineRule of_scores = *this;
            of_scores.ones = false;
            return of_scores.backward(logits, routing, dweights, dlogits, call, normalizes, bias);
        }
        const auto given = gradients_at<S>(placement, dweights, routing, logits, dlogits);
        const S* const beside =
            placement == Placement::straight_through ? dweights.input.data() : nullptr;
        const bool to_multipliers =
            multiplies_scores(call.context) && call.context.gradients != nullptr;
        SerialExecutor in_order;  // gradients at multipliers are sums over tokens
        Executor& executor = to_multipliers ? in_order : call.ws.executor();
        each_token<S>(logits, routing, call, bias, executor, [&](Index t, auto& token) {
            const Index first = routing.first(t);
            token.evaluate(normalizes(t, token.num_kept()));
            token.backward(given.data() + first, beside == nullptr ? nullptr : beside + first,
                           row_data(dlogits, t), to_multipliers);
        });
    }

    /// Room for tokens with up to `longest` assignments.
    /// @param n  logits per token
    template <class S>
    static Buffer<S>& reserve(Workspace<S>& ws, Index n, Index longest) {
        auto& values = ws.template state<WeighScratch<S>>().values;
        values.resize(checked_product(ws.executor().concurrency(),
                                      TokenWeights<S, CombineRule>::room_for(n, longest)));
        return values;
    }
    /// Bytes of that room.
    template <class S>
    static Index bytes(Index n, Index longest, Index workers) {
        return workers * TokenWeights<S, CombineRule>::room_for(n, longest) *
               static_cast<Index>(sizeof(S));
    }

private:
    template <class S>
    struct WeighScratch {
        Buffer<S> values;  // [workers, TokenWeights::room]
    };

    /// f(token, its TokenWeights)
    template <class S, class F>
    void each_token(In<S> logits, const Routing& routing, const Call<S>& call, const S* bias,
                    Executor& executor, F&& f) const {
        using Token = TokenWeights<S, CombineRule>;
        const Index tokens = logits.rows(), n = logits.cols();
        Index longest = 0;
        for (Index t = 0; t < tokens; ++t)
            longest = std::max(longest, routing.first(t + 1) - routing.first(t));
        const auto& experts = call.context.experts;
        const bool any_left_out =
            kept_only || std::any_of(experts.begin(), experts.end(),
                                     [](const ExpertFacts& facts) { return facts.is_null; });
        const typename Token::Batch batch{*this, call.context, bias, any_left_out, n, longest};
        S* const scratch = reserve<S>(call.ws, n, longest).data();
        for_tokens(executor, tokens, 20.0 * static_cast<double>(n), [&](Index t, int worker) {
            Token token(batch, row_data(logits, t), routing.of(t), scratch + worker * batch.room());
            f(t, token);
        });
    }
};

/// The rule that a recipe describes by its settings; those that it has not are as they are above.
template <class Settings>
CombineRule combine_rule(const Settings& settings, Score score) {
    CombineRule rule{.score = score,
                     .normalize = settings.normalize,
                     .epsilon = settings.epsilon,
                     .scale = settings.scale,
                     .placement = settings.placement};
    if constexpr (requires { settings.normalize_kept_only; })
        rule.kept_only = settings.normalize_kept_only;
    if constexpr (requires { settings.norm_power; }) rule.norm_power = settings.norm_power;
    if constexpr (requires { settings.ones; }) rule.ones = settings.ones;
    if constexpr (requires { settings.straight_through; })
        rule.straight_through = settings.straight_through;
    return rule;
}

/// A rule with the bias of its scores; without, if that is null.
template <class S>
struct BiasedRule : CombineRule {
    const S* bias;  // [L]

    template <class Normalizes>
    void weigh(In<S> logits, Routing& routing, const Call<S>& call, Normalizes&& normalizes) const {
        CombineRule::weigh<S>(logits, routing, call, normalizes, bias);
    }
    template <class Normalizes>
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, const Call<S>& call, Normalizes&& normalizes) const {
        CombineRule::backward<S>(logits, routing, dweights, dlogits, call, normalizes, bias);
    }
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_WEIGHTS_HPP
