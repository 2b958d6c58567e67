// SPDX-License-Identifier: MIT
#ifndef MOE_STEERING_EXPERT_SCORES_HPP
#define MOE_STEERING_EXPERT_SCORES_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// One expert of a model of several layers, and how much it is of interest: an entry of
/// activation_contrast(), mean_weight(), marker_scores(), or of any other matrix [layers, E].
struct ExpertScore {
    Index layer = 0, expert = 0;
    double value = 0;

    bool operator==(const ExpertScore&) const = default;
};

/// The experts whose score is above the threshold, in falling order, n at most. Of equal scores the
/// lower layer comes first, then the lower expert; a NaN is never above.
/// @param scores     [layers, E] any values
/// @param threshold  not NaN; 0.2 to 0.3 for differences of frequencies (arXiv:2510.04694)
/// @param n          >= 0
/// @throws std::invalid_argument if n or the threshold is out of range
inline std::vector<ExpertScore> experts_above(In<double> scores, double threshold, Index n) {
    if (n < 0) detail::fail("moe::experts_above: n is ", n, ", it must be >= 0");
    if (std::isnan(threshold))
        detail::fail("moe::experts_above: threshold is nan, it must be a number");
    std::vector<ExpertScore> found;
    for (Index layer = 0; layer < scores.rows(); ++layer)
        for (Index e = 0; e < scores.cols(); ++e)
            if (scores(layer, e) > threshold) found.push_back({layer, e, scores(layer, e)});
    std::stable_sort(found.begin(), found.end(),
                     [](const ExpertScore& a, const ExpertScore& b) { return a.value > b.value; });
    if (static_cast<Index>(found.size()) > n) found.resize(static_cast<std::size_t>(n));
    return found;
}

/// The n experts of the largest scores, as experts_above(); fewer if there are fewer with a score
/// that is a number above -inf.
inline std::vector<ExpertScore> top_experts(In<double> scores, Index n) {
    return experts_above(scores, -std::numeric_limits<double>::infinity(), n);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STEERING_EXPERT_SCORES_HPP
