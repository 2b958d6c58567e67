// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TSALLIS_ENTROPY_HPP
#define MOE_GATES_TSALLIS_ENTROPY_HPP

#include <cmath>
#include <limits>

#include <moe/core/random.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// How undecided a router is: the Tsallis entropy of index q of its probabilities, over the largest
/// that there is.
///
///     H = (1 - sum p^q) / (1 - N^(1 - q)),      q = 1: -sum p log p / log N
///
/// p are the probabilities plus epsilon, N the number of experts that are not at -inf: those count
/// as not there. For epsilon 0, H is 1 for equal logits and 0 for one certain expert. Otherwise the
/// p sum to 1 + N epsilon, as published, which moves H by about N epsilon / |q - 1|: choose q = 1
/// rather than a q close to it. 0 if N < 2; NaN if a probability is.
/// @param z              [n] logits
/// @param probabilities  [n] their softmax
template <class S>
double tsallis_entropy(Index n, const S* z, const S* probabilities, double index, double epsilon) {
    Index live = 0;
    double sum = 0;
    for (Index e = 0; e < n; ++e) {
        if (z[e] == -std::numeric_limits<S>::infinity()) continue;
        ++live;
        const double p = static_cast<double>(probabilities[e]) + epsilon;
        if (index != 1)
            sum += std::pow(p, index);
        else if (std::isnan(p))
            return p;
        else if (p > 0)
            sum = std::fma(-p, portable_log(p), sum);
    }
    if (live < 2) return std::isnan(sum) ? sum : 0;
    const auto count = static_cast<double>(live);
    return index == 1 ? sum / portable_log(count) : (1 - sum) / (1 - std::pow(count, 1 - index));
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_TSALLIS_ENTROPY_HPP
