// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SCORE_HPP
#define MOE_GATES_SCORE_HPP

#include <algorithm>
#include <cmath>

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
};

namespace detail {

/// log(1 + exp z) without overflow.
inline double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); }

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
    }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SCORE_HPP
