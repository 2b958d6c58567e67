// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOKEN_WEIGHTS_HPP
#define MOE_GATES_TOKEN_WEIGHTS_HPP

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <moe/core/context.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/gates/score.hpp>
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

template <class S>
bool is_masked(S z) {
    return z == -std::numeric_limits<S>::infinity();
}

/// Whether the context's multipliers are factors of scores.
inline bool multiplies_scores(const Context& context) {
    return context.multiplies() &&
           context.dial.multiplier_order == MultiplierOrder::before_normalization;
}

/// One token's way from its logits to the weights of its assignments, and back.
/// @tparam Rule  CombineRule, which has the formulas
template <class S, class Rule>
class TokenWeights {
public:
    /// What is the same for all tokens of a call.
    struct Batch {
        const Rule& rule;
        const Context& context;
        const S* bias;      // [L] of scores, or null
        bool any_left_out;  // false: none in the whole batch, which saves a look at each
        Index num_logits;
        Index longest;  // list

        /// Elements of scratch.
        Index room() const { return room_for(num_logits, longest); }
    };
    static Index room_for(Index num_logits, Index longest) {
        return round_up_16(num_logits) + 6 * round_up_16(longest);
    }

    /// @param z        [L] logits
    /// @param list     the token's assignments
    /// @param scratch  [room()]
    TokenWeights(const Batch& batch, const S* z, std::span<const Assignment> list, S* scratch)
        : batch_(batch), z_(z), list_(list), all_(scratch) {
        S* place = scratch + round_up_16(batch.num_logits);
        for (S** values : {&s_, &q_, &h_, &slope_, &plain_, &own_}) {
            *values = place;
            place += round_up_16(batch.longest);
        }
    }

    Index count() const { return static_cast<Index>(list_.size()); }
    /// Assignments that are not dropped, or pass through.
    Index num_kept() const { return std::count_if(list_.begin(), list_.end(), is_kept); }
    bool left_out(Index i) const {
        if (!batch_.any_left_out) return false;
        if (rule().kept_only && !is_kept(list_[at(i)])) return true;
        const auto expert = at(list_[at(i)].expert);
        return expert < context().experts.size() && context().experts[expert].is_null;
    }
    /// s / q, after evaluate().
    S share(Index i) const { return q_[i]; }

    /// Computes scores and quotient.
    void evaluate(bool normalizes) {
        divisor_ = Quotient{};
        if (list_.empty()) return;
        divisor_.is_broken = fill_scores();
        const bool multiplied = multiplies_scores(context());
        for (Index i = 0; i < count(); ++i) {
            const bool is_out = left_out(i);
            if (is_out) s_[i] = 0;
            own_[i] = s_[i];
            if (batch_.bias != nullptr && !rule().ones && !is_out && !is_masked(logit(i)))
                s_[i] += batch_.bias[expert(i)];
            plain_[i] = s_[i];
            if (multiplied)  // a bare product could be fused into the sum below
                s_[i] = std::fma(s_[i], multiplier(i), S(0));
            q_[i] = s_[i];
        }
        if (divisor_.is_broken || rule().ones || !normalizes || rule().normalize == Normalize::none)
            return;
        if (rule().score == Score::softmax_of_selected && rule().normalize == Normalize::plain &&
            rule().norm_power == 1 && !multiplied)
            return;  // sums to 1 as it is

        divisor_.moves = true;
        const auto small = static_cast<S>(rule().epsilon);
        divisor_.d = norm();
        divisor_.q = divisor_.d;
        if (rule().normalize == Normalize::add_epsilon) divisor_.q = divisor_.d + small;
        if (rule().normalize == Normalize::clamp && divisor_.d < small) {
            divisor_.q = small;
            divisor_.moves = false;
        }
        for (Index i = 0; i < count(); ++i) q_[i] = divisor_.q == 0 ? S(0) : s_[i] / divisor_.q;
    }

    /// After evaluate(), once.
    /// @param dweights        [count] d(loss)/dw
    /// @param beside          [count] added to it, or null
    /// @param dz              [L] **added** to
    /// @param to_multipliers  whether gradients at the context's multipliers are added: those are
    ///                        sums over tokens, so one token at a time
    void backward(const S* dweights, const S* beside, S* dz, bool to_multipliers) {
        if (list_.empty()) return;
        if (divisor_.is_broken) return add_nan(dz, to_multipliers);
        if (divisor_.q == 0) return;
        for (Index i = 0; i < count(); ++i) {
            const S dw = beside == nullptr ? dweights[i] : dweights[i] + beside[i];
            h_[i] = left_out(i) ? S(0) : static_cast<S>(rule().scale) * dw;
        }
        if (!rule().ones) add_gradient(dz);
        for (Index i = 0; i < count() && to_multipliers; ++i)
            add_to_multiplier(i, h_[i] * (plain_[i] / divisor_.q));
    }

private:
    struct Quotient {
        S d = 1, q = 1;
        bool moves = false;  // q depends on the scores
        bool is_broken = false;
    };

    const Rule& rule() const { return batch_.rule; }
    const Context& context() const { return batch_.context; }
    Index expert(Index i) const { return list_[at(i)].expert; }
    S logit(Index i) const { return z_[expert(i)]; }
    S multiplier(Index i) const {
        return multiplies_scores(context())
                   ? static_cast<S>(context().multiplier(list_[at(i)].token, expert(i)))
                   : S(1);
    }
    static bool is_kept(const Assignment& a) {
        return a.dropped == Dropped::no || a.dropped == Dropped::pass_through;
    }
    /// Scores whose slope is 1, or 0: d(log s)/dz is no number where they are 0.
    bool is_linear() const { return rule().score == Score::raw || rule().score == Score::relu; }

    void add_to_multiplier(Index i, S gradient) const {
        add_multiplier_gradient(context(), list_[at(i)].token, expert(i),
                                static_cast<double>(gradient));
    }
    void add_nan(S* dz, bool to_multipliers) const {
        constexpr S nan = std::numeric_limits<S>::quiet_NaN();
        for (Index e = 0; e < batch_.num_logits; ++e)
            if (!is_masked(z_[e])) dz[e] = nan;
        for (Index i = 0; i < count() && to_multipliers; ++i) add_to_multiplier(i, nan);
    }

    /// Fills s.
    /// @return  whether the row holds a NaN, or is one whose softmax is not defined
    bool fill_scores() {
        const KernelTable<S>& table = kernels<S>();
        const Score score = rule().score;
        const bool ones = rule().ones, is_dense = score == Score::softmax && !ones;
        bool is_broken = false;
        if (is_dense) {
            table.softmax(batch_.num_logits, z_, all_);
            is_broken = std::isnan(all_[0]);
        } else if (!table.is_finite(batch_.num_logits, z_)) {
            for (Index e = 0; e < batch_.num_logits; ++e) is_broken |= std::isnan(z_[e]);
        }
        if (is_broken) {
            std::fill_n(s_, count(), std::numeric_limits<S>::quiet_NaN());
            return true;
        }
        for (Index i = 0; i < count(); ++i) {
            const S z = logit(i);
            if (ones)
                s_[i] = is_masked(z) ? S(0) : S(1);
            else if (is_dense)
                s_[i] = all_[expert(i)];
            else if (score == Score::raw)
                s_[i] = is_masked(z) ? S(0) : z;
            else if (score == Score::softmax_of_selected && left_out(i))
                s_[i] = -std::numeric_limits<S>::infinity();
            else
                s_[i] = z;
        }
        if (ones || is_dense || score == Score::raw) return false;
        if (score == Score::softmax_of_selected)
            table.softmax(count(), s_, s_);
        else
            selection_scores(score, count(), s_, s_);
        return false;
    }

    /// The sum of s, or (sum of |s|^p)^(1/p), divided through by the largest so that no power
    /// underflows alone.
    S norm() const {
        if (rule().norm_power == 1) {
            S sum = 0;
            for (Index i = 0; i < count(); ++i) sum += s_[i];
            return sum;
        }
        double largest = 0, sum = 0;
        for (Index i = 0; i < count(); ++i)
            largest = std::max(largest, std::abs(static_cast<double>(s_[i])));
        if (largest == 0) return 0;
        for (Index i = 0; i < count(); ++i)
            sum += std::pow(std::abs(static_cast<double>(s_[i])) / largest, rule().norm_power);
        // An fma with 0, because a bare product could be fused into the sum with epsilon.
        return static_cast<S>(std::fma(largest, std::pow(sum, 1 / rule().norm_power), 0.0));
    }

    /// d(d)/d(s_i)
    S norm_slope(S s) const {
        if (rule().norm_power == 1) return 1;
        if (s == 0) return 0;
        const double ratio = std::abs(static_cast<double>(s)) / static_cast<double>(divisor_.d);
        return static_cast<S>(
            std::copysign(std::pow(ratio, rule().norm_power - 1), static_cast<double>(s)));
    }

    /// With r = s / q, m = sum of h r and h = d(loss)/dr:
    ///
    ///     d(loss)/ds_i   = (h_i - m dd/ds_i) / q,  without the second term if q does not move
    ///     d(loss)/dlog s = s_i d(loss)/ds_i = r_i (h_i - m dd/ds_i)
    ///
    /// and a softmax subtracts c times itself, c the sum of the latter: m if q does not move, else
    /// m epsilon / q or 0, since the sum of s dd/ds is d. With a bias, only the score's part of s
    /// moves: r_i is the share of that.
    void add_gradient(S* dz) {
        const KernelTable<S>& table = kernels<S>();
        S m = 0;
        for (Index i = 0; i < count(); ++i) m = std::fma(h_[i], q_[i], m);
        S c = m;
        if (divisor_.moves) {
            for (Index i = 0; i < count(); ++i) h_[i] = std::fma(-m, norm_slope(s_[i]), h_[i]);
            c = rule().normalize == Normalize::add_epsilon
                    ? m * (static_cast<S>(rule().epsilon) / divisor_.q)
                    : S(0);
        }
        if (batch_.bias != nullptr) {
            c = 0;
            for (Index i = 0; i < count(); ++i) {
                q_[i] = own_[i] * (multiplier(i) / divisor_.q);
                c = std::fma(h_[i], q_[i], c);
            }
        }
        const Score score = rule().score;
        if (score == Score::softmax && std::isfinite(c)) {
            if (c != 0) table.axpy(batch_.num_logits, -c, all_, dz);
        } else if (score == Score::softmax) {  // 0 times it would not be 0 where masked
            for (Index e = 0; e < batch_.num_logits; ++e)
                if (!is_masked(z_[e])) dz[e] = std::fma(-c, all_[e], dz[e]);
        }
        fill_slopes();
        for (Index i = 0; i < count(); ++i) {
            if (is_masked(logit(i))) continue;
            S& slot = dz[expert(i)];
            if (score == Score::softmax_of_selected) slot = std::fma(-c, plain_[i], slot);
            if (is_linear())
                slot = std::fma(h_[i], slope_[i], slot);
            else
                slot = std::fma(q_[i] * h_[i], slope_[i], slot);
        }
    }

    /// d(log s)/dz of each assignment on its own; for linear scores 1 / q, 0 where they do not
    /// move.
    void fill_slopes() {
        for (Index i = 0; i < count(); ++i) {
            const S z = logit(i);
            const bool is_still = left_out(i) || (rule().score == Score::relu && z <= 0);
            slope_[i] = !is_linear() ? z : is_still ? S(0) : multiplier(i) / divisor_.q;
        }
        if (!is_linear()) score_slopes(rule().score, count(), slope_, slope_);
    }

    const Batch& batch_;
    const S* z_;  // [L] logits
    std::span<const Assignment> list_;
    S* all_;    // [L] softmax of z, for Score::softmax
    S* s_;      // [count] scores, with bias and multipliers
    S* q_;      // [count] s / q
    S* h_;      // [count] d(loss)/d(s / q)
    S* slope_;  // [count] scratch
    S* plain_;  // [count] s without multipliers
    S* own_;    // [count] s without multipliers and bias
    Quotient divisor_{};
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOKEN_WEIGHTS_HPP
