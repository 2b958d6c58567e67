// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_WEIGHTS_HPP
#define MOE_GATES_WEIGHTS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/placement.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Scores of the selected experts to weights: w = s / q, with d the sum of those scores.
enum class Normalize {
    none,         ///< q = 1
    plain,        ///< q = d (Mixtral)
    add_epsilon,  ///< q = d + epsilon (DeepSeek-V3)
    clamp,        ///< q = max(d, epsilon) (ERNIE-4.5)
};

namespace detail {

/// Combine weights of the assignments a token has, from its logits alone, and the way back.
///
///     s_i = score(z)_i          0 for what is left out
///     d   = sum of s_i in slot order, or the p-norm of s for p != 1
///     w_i = scale * s_i / q     q = 1, d, d + epsilon or max(d, epsilon)
///
/// With MultiplierOrder::before_normalization, s_i is score(z)_i times the context's multiplier.
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
        check_choice(gate, "placement", placement, Placement::input);
    }

    /// Sets the weight and input weight of every assignment.
    /// @param normalizes  normalizes(token, assignments): whether this token is normalised
    template <class S, class Normalizes>
    void weigh(In<S> logits, Routing& routing, const Call<S>& call, Normalizes&& normalizes) const {
        each_token(logits, routing, call, call.ws.executor(), [&](Index t, Token<S>& token) {
            evaluate(token, normalizes(t, kept(token)), call.context);
            const Index first = routing.first(t);
            const bool on_input = placement == Placement::input;
            for (Index i = 0; i < token.count; ++i) {
                const auto w = static_cast<double>(static_cast<S>(scale) * token.q[i]);
                const double output = left_out(token, i, call.context) ? 0 : on_input ? 1 : w;
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
                  Out<S> dlogits, const Call<S>& call, Normalizes&& normalizes) const {
        if (ones && straight_through) {
            CombineRule of_scores = *this;
            of_scores.ones = false;
            return of_scores.backward(logits, routing, dweights, dlogits, call, normalizes);
        }
        const auto given = gradients_at<S>(placement, dweights, routing, logits, dlogits);
        const bool to_multipliers = multiplies(call.context) && call.context.gradients != nullptr;
        SerialExecutor in_order;  // gradients at multipliers are sums over tokens
        Executor& executor = to_multipliers ? in_order : call.ws.executor();
        each_token(logits, routing, call, executor, [&](Index t, Token<S>& token) {
            if (token.count == 0) return;
            S* dz = row_data(dlogits, t);
            const Quotient<S> quotient = evaluate(token, normalizes(t, kept(token)), call.context);
            if (quotient.is_broken) {
                for (Index e = 0; e < token.num_logits; ++e)
                    if (!is_masked(token.z[e])) dz[e] = std::numeric_limits<S>::quiet_NaN();
                for (Index i = 0; i < token.count && to_multipliers; ++i)
                    add_multiplier_gradient(call.context, t, token.expert(i),
                                            std::numeric_limits<double>::quiet_NaN());
                return;
            }
            if (quotient.q == 0) return;
            const S* g = given.data() + routing.first(t);
            for (Index i = 0; i < token.count; ++i)
                token.h[i] = left_out(token, i, call.context) ? S(0) : static_cast<S>(scale) * g[i];
            if (!ones) add_gradient(token, quotient, call.context, dz);
            for (Index i = 0; i < token.count && to_multipliers; ++i)
                add_multiplier_gradient(
                    call.context, t, token.expert(i),
                    static_cast<double>(token.h[i] * (token.plain[i] / quotient.q)));
        });
    }

    /// Room for tokens with up to `longest` assignments.
    /// @param n  logits per token
    template <class S>
    static Buffer<S>& reserve(Workspace<S>& ws, Index n, Index longest) {
        auto& values = ws.template state<WeighScratch<S>>().values;
        values.resize(checked_product(ws.executor().concurrency(), stride_of(n, longest)));
        return values;
    }
    /// Bytes of that room.
    template <class S>
    static Index bytes(Index n, Index longest, Index workers) {
        return workers * stride_of(n, longest) * static_cast<Index>(sizeof(S));
    }

private:
    static Index stride_of(Index n, Index longest) {
        return round_up_16(n) + 5 * round_up_16(longest);
    }

    /// One token: what it is given, and what evaluate() leaves.
    template <class S>
    struct Token {
        Index num_logits;
        const S* z;              // [L] logits
        const Assignment* list;  // [count]
        Index count;
        bool any_left_out;  // false: none in the whole batch, which saves a look at each
        S* all;             // [L] softmax of z, for Score::softmax
        S* s;               // [count] scores
        S* q;               // [count] s / q
        S* h;               // [count] d(loss)/d(s / q)
        S* slope;           // [count] scratch
        S* plain;           // [count] s without multipliers

        Index expert(Index i) const { return list[i].expert; }
        S logit(Index i) const { return z[list[i].expert]; }
    };

    template <class S>
    struct Quotient {
        S d = 1, q = 1;
        bool moves = false;  ///< q depends on the scores
        bool is_broken = false;
    };

    template <class S>
    struct WeighScratch {
        Buffer<S> values;  // [workers, L + 5 * longest list]
    };

    template <class S, class F>
    void each_token(In<S> logits, const Routing& routing, const Call<S>& call, Executor& executor,
                    F&& f) const {
        const auto assignments = routing.assignments();
        const Index tokens = logits.rows(), n = logits.cols();
        Index longest = 0;
        for (Index t = 0; t < tokens; ++t)
            longest = std::max(longest, routing.first(t + 1) - routing.first(t));
        const auto& experts = call.context.experts;
        const bool any_left_out =
            kept_only || std::any_of(experts.begin(), experts.end(),
                                     [](const ExpertFacts& facts) { return facts.is_null; });
        const Index stride = stride_of(n, longest);
        auto& values = reserve<S>(call.ws, n, longest);
        for_tokens(executor, tokens, 20.0 * static_cast<double>(n), [&](Index t, int worker) {
            S* scratch = values.data() + worker * stride;
            S* lists = scratch + round_up_16(n);
            Token<S> token{.num_logits = n,
                           .z = row_data(logits, t),
                           .list = assignments.data() + routing.first(t),
                           .count = routing.first(t + 1) - routing.first(t),
                           .any_left_out = any_left_out,
                           .all = scratch,
                           .s = lists,
                           .q = lists + round_up_16(longest),
                           .h = lists + 2 * round_up_16(longest),
                           .slope = lists + 3 * round_up_16(longest),
                           .plain = lists + 4 * round_up_16(longest)};
            f(t, token);
        });
    }

    template <class S>
    static bool is_masked(S z) {
        return z == -std::numeric_limits<S>::infinity();
    }

    /// Assignments of a token that are not dropped, or pass through.
    template <class S>
    static Index kept(const Token<S>& token) {
        return std::count_if(token.list, token.list + token.count, [](const Assignment& a) {
            return a.dropped == Dropped::no || a.dropped == Dropped::pass_through;
        });
    }
    static bool multiplies(const Context& context) {
        return context.multiplies() &&
               context.dial.multiplier_order == MultiplierOrder::before_normalization;
    }
    /// Scores whose slope is 1, or 0: d(log s)/dz is no number where they are 0.
    bool is_linear() const { return score == Score::raw || score == Score::relu; }

    template <class S>
    bool left_out(const Token<S>& token, Index i, const Context& context) const {
        if (!token.any_left_out) return false;
        const Assignment& assignment = token.list[i];
        if (kept_only && assignment.dropped != Dropped::no &&
            assignment.dropped != Dropped::pass_through)
            return true;
        const auto expert = static_cast<std::size_t>(assignment.expert);
        return expert < context.experts.size() && context.experts[expert].is_null;
    }

    /// Fills s and q of a token.
    template <class S>
    Quotient<S> evaluate(Token<S>& token, bool normalizes, const Context& context) const {
        Quotient<S> quotient;
        if (token.count == 0) return quotient;
        quotient.is_broken = fill_scores(token, context);
        const bool multiplied = multiplies(context);
        for (Index i = 0; i < token.count; ++i) {
            if (left_out(token, i, context)) token.s[i] = 0;
            token.plain[i] = token.s[i];
            if (multiplied)
                token.s[i] = std::fma(  // a bare product could be fused into the sum below
                    token.s[i],
                    static_cast<S>(context.multiplier(token.list[i].token, token.expert(i))), S(0));
            token.q[i] = token.s[i];
        }
        if (quotient.is_broken || ones || !normalizes || normalize == Normalize::none)
            return quotient;
        if (score == Score::softmax_of_selected && normalize == Normalize::plain &&
            norm_power == 1 && !multiplied)
            return quotient;  // sums to 1 as it is

        quotient.moves = true;
        const auto small = static_cast<S>(epsilon);
        if (norm_power == 1) {
            quotient.d = 0;
            for (Index i = 0; i < token.count; ++i) quotient.d += token.s[i];
        } else {
            quotient.d = norm(token);
        }
        quotient.q = quotient.d;
        if (normalize == Normalize::add_epsilon) quotient.q = quotient.d + small;
        if (normalize == Normalize::clamp && quotient.d < small) {
            quotient.q = small;
            quotient.moves = false;
        }
        for (Index i = 0; i < token.count; ++i)
            token.q[i] = quotient.q == 0 ? S(0) : token.s[i] / quotient.q;
        return quotient;
    }

    /// @return  whether the row holds a NaN, or is one whose softmax is not defined
    template <class S>
    bool fill_scores(Token<S>& token, const Context& context) const {
        const KernelTable<S>& table = kernels<S>();
        bool is_broken = false;
        const bool is_dense = score == Score::softmax && !ones;
        if (is_dense) {
            table.softmax(token.num_logits, token.z, token.all);
            is_broken = std::isnan(token.all[0]);
        } else if (!table.is_finite(token.num_logits, token.z)) {
            for (Index e = 0; e < token.num_logits; ++e) is_broken |= std::isnan(token.z[e]);
        }
        if (is_broken) {
            std::fill_n(token.s, token.count, std::numeric_limits<S>::quiet_NaN());
            return true;
        }
        for (Index i = 0; i < token.count; ++i) {
            const S z = token.logit(i);
            if (ones)
                token.s[i] = is_masked(z) ? S(0) : S(1);
            else if (is_dense)
                token.s[i] = token.all[token.expert(i)];
            else if (score == Score::raw)
                token.s[i] = is_masked(z) ? S(0) : z;
            else if (score == Score::softmax_of_selected && left_out(token, i, context))
                token.s[i] = -std::numeric_limits<S>::infinity();
            else
                token.s[i] = z;
        }
        if (ones || is_dense || score == Score::raw) return false;
        if (score == Score::softmax_of_selected)
            table.softmax(token.count, token.s, token.s);
        else
            selection_scores(score, token.count, token.s, token.s);
        return false;
    }

    /// (sum of |s|^p)^(1/p), divided through by the largest so that no power underflows alone.
    template <class S>
    S norm(const Token<S>& token) const {
        double largest = 0, sum = 0;
        for (Index i = 0; i < token.count; ++i)
            largest = std::max(largest, std::abs(static_cast<double>(token.s[i])));
        if (largest == 0) return 0;
        for (Index i = 0; i < token.count; ++i)
            sum += std::pow(std::abs(static_cast<double>(token.s[i])) / largest, norm_power);
        // An fma with 0, because a bare product could be fused into the sum with epsilon.
        return static_cast<S>(std::fma(largest, std::pow(sum, 1 / norm_power), 0.0));
    }

    /// d(d)/d(s_i)
    template <class S>
    S norm_slope(S s, S d) const {
        if (norm_power == 1) return 1;
        if (s == 0) return 0;
        const double ratio = std::abs(static_cast<double>(s)) / static_cast<double>(d);
        return static_cast<S>(
            std::copysign(std::pow(ratio, norm_power - 1), static_cast<double>(s)));
    }

    /// With r = s / q, m = sum of h r and h = d(loss)/dr:
    ///
    ///     d(loss)/ds_i   = (h_i - m dd/ds_i) / q,  without the second term if q does not move
    ///     d(loss)/dlog s = s_i d(loss)/ds_i = r_i (h_i - m dd/ds_i)
    ///
    /// and a softmax subtracts c times itself, c the sum of the latter: m if q does not move, else
    /// m epsilon / q or 0, since the sum of s dd/ds is d.
    template <class S>
    void add_gradient(Token<S>& token, const Quotient<S>& quotient, const Context& context,
                      S* dz) const {
        const KernelTable<S>& table = kernels<S>();
        const Index count = token.count;
        S m = 0;
        for (Index i = 0; i < count; ++i) m = std::fma(token.h[i], token.q[i], m);
        S c = m;
        if (quotient.moves) {
            for (Index i = 0; i < count; ++i)
                token.h[i] = std::fma(-m, norm_slope(token.s[i], quotient.d), token.h[i]);
            c = normalize == Normalize::add_epsilon ? m * (static_cast<S>(epsilon) / quotient.q)
                                                    : S(0);
        }
        if (score == Score::softmax && std::isfinite(c)) {
            if (c != 0) table.axpy(token.num_logits, -c, token.all, dz);
        } else if (score == Score::softmax) {  // 0 times it would not be 0 where masked
            for (Index e = 0; e < token.num_logits; ++e)
                if (!is_masked(token.z[e])) dz[e] = std::fma(-c, token.all[e], dz[e]);
        }
        fill_slopes(token, quotient.q, context);
        for (Index i = 0; i < count; ++i) {
            if (is_masked(token.logit(i))) continue;
            S& slot = dz[token.expert(i)];
            if (score == Score::softmax_of_selected) slot = std::fma(-c, token.plain[i], slot);
            if (is_linear())
                slot = std::fma(token.h[i], token.slope[i], slot);
            else
                slot = std::fma(token.q[i] * token.h[i], token.slope[i], slot);
        }
    }

    /// d(log s)/dz of each assignment on its own; for linear scores 1 / q, 0 where they do not
    /// move.
    template <class S>
    void fill_slopes(Token<S>& token, S q, const Context& context) const {
        for (Index i = 0; i < token.count; ++i) {
            const S z = token.logit(i);
            const bool is_still = left_out(token, i, context) || (score == Score::relu && z <= 0);
            const S factor =
                multiplies(context)
                    ? static_cast<S>(context.multiplier(token.list[i].token, token.expert(i)))
                    : S(1);
            token.slope[i] = !is_linear() ? z : is_still ? S(0) : factor / q;
        }
        if (!is_linear()) score_slopes(score, token.count, token.slope, token.slope);
    }
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_WEIGHTS_HPP
