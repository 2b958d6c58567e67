// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SCORE_HPP
#define MOE_GATES_SCORE_HPP

#include <algorithm>
#include <cmath>

#include <moe/core/softplus.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Logits z to scores s. An expert at -inf scores 0.
enum class Score {
    softmax,              ///< over all logits of the token (Mixtral, Qwen, DeepSeek-V2)
    sigmoid,              ///< 1 / (1 + exp(-z)) (DeepSeek-V3, Llama-4)
    softmax_of_selected,  ///< over the selected logits only (gpt-oss, Granite)
    raw,                  ///< z
    sqrt_softplus,        ///< sqrt(log(1 + exp z)) (Megatron-LM)
    relu,                 ///< max(z, 0) (ReMoE)
};

namespace detail {

/// What selection adds a bias to and compares groups by: the scores; where scores depend on the
/// selection, the logits.
template <class S>
void selection_scores(Score score, Index n, const S* z, S* s) {
    const KernelTable<S>& table = kernels<S>();
    switch (score) {
        case Score::softmax:
            table.softmax(n, z, s);
            return;
        case Score::sigmoid:
            table.sigmoid(n, z, s);
            return;
        case Score::softmax_of_selected:
        case Score::raw:
            std::copy_n(z, n, s);
            return;
        case Score::sqrt_softplus:
            for (Index e = 0; e < n; ++e)
                s[e] = static_cast<S>(std::sqrt(softplus(static_cast<double>(z[e]))));
            return;
        case Score::relu:
            for (Index e = 0; e < n; ++e) s[e] = z[e] <= 0 ? S(0) : z[e];
    }
}

/// slope = d(log s)/dz of each score on its own; slope may be z.
///
///     sigmoid         1 - s = sigmoid(-z), which cancels nothing
///     sqrt_softplus   sigmoid(z) / (2 softplus(z)); 0 where the score is 0
///     else            1: what a softmax is divided by is the caller's to subtract. Raw scores and
///                     relu have no such slope at 0 and are not asked for
template <class S>
void score_slopes(Score score, Index n, const S* z, S* slope) {
    if (score == Score::sigmoid) {
        for (Index e = 0; e < n; ++e) slope[e] = -z[e];
        kernels<S>().sigmoid(n, slope, slope);
    } else if (score == Score::sqrt_softplus) {
        for (Index e = 0; e < n; ++e) {
            const auto wide = static_cast<double>(z[e]);
            const double sum = softplus(wide);
            slope[e] = sum == 0 ? S(0) : static_cast<S>(0.5 * (softplus_slope(wide) / sum));
        }
    } else {
        std::fill_n(slope, n, S(1));
    }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SCORE_HPP
