// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_NEIGHBOURS_HPP
#define MOE_GATES_NEIGHBOURS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/select.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// Experts of one token that are taken one after another, and each time the softmax over those that
/// are nearly as good as the best one left.
///
///     v    = max of z_j, j left
///     near = { j left : (v - z_j) / max(|z_j|, |v|) <= 2 epsilon }    0 / 0 is near, too
///     q    = softmax(z[near]), 0 elsewhere
///
/// With a usual epsilon of 0.01 most often only the best is near, and its q is exactly 1. What is
/// near does not change when z is multiplied by a positive number; it does when one is added.
///
/// Source: SparseMixer-v2 in GRIN (arXiv:2409.12136); SparseMixer (arXiv:2310.00811).
template <class S>
class Neighbours {
public:
    /// Elements of scratch.
    static Index scratch_size(Index n) { return 3 * n; }

    /// @param z        [n] logits without a NaN; -inf is never near
    /// @param scratch  [scratch_size(n)]
    Neighbours(Index n, const S* z, double epsilon, S* scratch)
        : n_(n),
          width_(static_cast<S>(2 * epsilon)),
          left_(scratch),
          near_(scratch + n),
          q_(scratch + 2 * n) {
        std::copy_n(z, n, left_);
    }

    /// Fills q for those that are left.
    /// @return  the best, the lower index among equals; -1 if none is left
    Index look() {
        Index best = -1;
        for (Index j = 0; j < n_; ++j)
            if (left_[j] != dead && (best < 0 || left_[j] > left_[best])) best = j;
        const S v = best < 0 ? dead : left_[best];
        for (Index j = 0; j < n_; ++j) {
            const S size = std::max(std::abs(left_[j]), std::abs(v));
            const bool is_far = left_[j] == dead || (v - left_[j]) / size > width_;
            near_[j] = is_far ? dead : left_[j];
        }
        kernels<S>().softmax(n_, near_, q_);
        return best;
    }
    void take(Index expert) { left_[expert] = dead; }

    bool is_near(Index expert) const { return near_[expert] != dead; }
    S q(Index expert) const { return q_[expert]; }

    /// One of those near `best`, drawn with probability q: the largest z + Gumbel sample.
    /// @param draw  of the samples
    Index sample(const Samples& samples, Index row, std::uint32_t draw, Index best) const {
        Index winner = best;
        double highest = -std::numeric_limits<double>::infinity();
        for (Index j = 0; j < n_; ++j) {
            if (!is_near(j)) continue;
            const double key = static_cast<double>(near_[j]) + samples.gumbel(row, j, draw);
            if (key > highest) highest = key, winner = j;
        }
        return winner;
    }

    /// dz += d q[expert] / dz * gradient:  q_e (1[j = e] - q_j)
    void add_gradient(Index expert, S gradient, S* dz) const {
        if (!is_near(expert)) return;
        dz[expert] = std::fma(gradient, q_[expert], dz[expert]);
        const S a = gradient * q_[expert];
        for (Index j = 0; j < n_; ++j)
            if (is_near(j)) dz[j] = std::fma(-a, q_[j], dz[j]);
    }

private:
    static constexpr S dead = -std::numeric_limits<S>::infinity();

    Index n_;
    S width_;
    S* left_;  // [n] z, -inf where taken
    S* near_;  // [n] z, -inf where not near
    S* q_;     // [n]
};

/// Draws of a gate that samples: those of its i-th choice.
inline std::uint32_t choice_draw(Index i) { return static_cast<std::uint32_t>(2 * i); }
inline std::uint32_t midpoint_draw(Index i) { return static_cast<std::uint32_t>(2 * i + 1); }

/// What q of a sampled expert is multiplied by: 1 for the best, else 1 in one of four draws and a
/// third in the others. A gradient as if it were always 1 is then that of Heun's third-order
/// method.
template <class S>
S midpoint_factor(bool is_best, double uniform) {
    return is_best || uniform > 0.75 ? S(1) : static_cast<S>(0.3333);  // rounded so when published
}

inline bool is_null(const Assignment& assignment, const Context& context) {
    const auto expert = at(assignment.expert);
    return expert < context.experts.size() && context.experts[expert].is_null;
}

template <class S>
bool has_nan(Index n, const S* z) {
    return std::any_of(z, z + n, [](S value) { return std::isnan(value); });
}

/// The `k` experts that a token takes one after another, in ranked[0 .. count).
/// @param samples  null: the best each time; else one near the best, drawn
/// @param scratch  [Neighbours::scratch_size(n)]
template <class S>
Index take_in_turn(Index n, const S* z, Index k, double epsilon, const Samples* samples, Index row,
                   S* scratch, Ranked<S>* ranked) {
    if (samples == nullptr || has_nan(n, z)) return rank_by_index(n, z, k, ranked);
    Neighbours<S> neighbours(n, z, epsilon, scratch);
    for (Index i = 0; i < k; ++i) {
        const Index best = neighbours.look();
        if (best < 0) return i;
        const Index expert = neighbours.sample(*samples, row, choice_draw(i), best);
        ranked[i] = {z[expert], static_cast<std::int32_t>(expert)};
        neighbours.take(expert);
    }
    return k;
}

/// The gradient of a row of logits that holds a NaN.
template <class S>
void fill_nan(Index n, const S* z, S* dz) {
    for (Index e = 0; e < n; ++e)
        if (z[e] != -std::numeric_limits<S>::infinity())
            dz[e] = std::numeric_limits<S>::quiet_NaN();
}

template <class S>
struct TurnScratch {
    Buffer<S> values;  // [workers, size]
};
template <class S>
Buffer<S>& reserve_turns(Workspace<S>& ws, Index size) {
    auto& values = ws.template state<TurnScratch<S>>().values;
    values.resize(checked_product(ws.executor().concurrency(), round_up_16(size)));
    return values;
}
template <class S>
Index turns_bytes(Index size, Index workers) {
    return workers * round_up_16(size) * static_cast<Index>(sizeof(S));
}

/// f(token, scratch) for every token over the workers, each with scratch of `size` elements.
/// @param n  logits per token
template <class S, class F>
void for_turns(const Call<S>& call, Index tokens, Index n, Index size, F&& f) {
    auto& values = reserve_turns(call.ws, size);
    for_tokens(call.ws.executor(), tokens, 40.0 * static_cast<double>(n),
               [&](Index t, int worker) { f(t, values.data() + worker * round_up_16(size)); });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_NEIGHBOURS_HPP
