// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_SCORES_HPP
#define MOE_LOSSES_SCORES_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/gates/score.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Which experts of a token have scores in a loss; the scores sum to 1 over those.
enum class Scored {
    all,       ///< every expert
    selected,  ///< those that the token has selected; the others score 0 and get no gradient
};

namespace detail {

inline bool is_softmax(Score score) {
    return score == Score::softmax || score == Score::softmax_of_selected;
}

/// s(z) = g(z) / sum g of one token, and slope(e) = d(log g)/dz; slope may be z. softmax has slope
/// 1, which is not written.
template <class S>
void normalized_scores(const KernelTable<S>& table, Score score, Index experts, const S* z, S* s,
                       S* slope) {
    if (is_softmax(score)) return table.softmax(experts, z, s);
    selection_scores(score, experts, z, s);
    score_slopes(score, experts, z, slope);
    const S sum = table.sum(experts, s);
    for (Index e = 0; e < experts && sum != 0; ++e) s[e] /= sum;
}

/// masked = z where the token has selected the expert, else -inf. A NaN stays, so that it shows.
/// @param count_dropped  whether a dropped assignment is selected
template <class S>
void mask_unselected(const Routing& routing, Index token, bool count_dropped, Index experts,
                     const S* z, S* masked) {
    for (Index e = 0; e < experts; ++e)
        masked[e] = std::isnan(z[e]) ? z[e] : -std::numeric_limits<S>::infinity();
    for (const Assignment& a : routing.of(token))
        if (count_dropped || a.dropped == Dropped::no) masked[a.expert] = z[a.expert];
}

/// dz += factor * s (g - sum_j s(j) g(j)): the way back through a softmax.
/// @param gradient  [n] scratch
template <class S>
void add_softmax_gradient(const KernelTable<S>& table, Index n, S factor, const S* s, const S* g,
                          S* gradient, S* dz) {
    const S mean = table.dot(n, s, g);
    for (Index e = 0; e < n; ++e) gradient[e] = s[e] * (g[e] - mean);
    table.axpy(n, factor, gradient, dz);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_SCORES_HPP
