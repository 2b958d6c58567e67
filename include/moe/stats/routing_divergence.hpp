// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_ROUTING_DIVERGENCE_HPP
#define MOE_STATS_ROUTING_DIVERGENCE_HPP

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/losses/jensen_shannon.hpp>
#include <moe/stats/activation.hpp>
#include <moe/stats/expert_mean.hpp>
#include <moe/stats/information.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// How differently one layer treats two sets of texts. p and q are the shares that experts have in
/// the mean weight (mean_weight) of one and of the other.
struct RoutingDivergence {
    Index layer = 0;
    /// jensen_shannon(p, q) / log 2: 0 for equal shares, 1 for sets that have no expert in common
    double jensen_shannon = 0;
    /// (H(p) - H(q)) / log E, in [-1, 1]: above 0 if the first set spreads over more experts
    double entropy_difference = 0;
};

/// Which layers tell two sets of texts apart, such as two languages: the shares of their experts,
/// layer by layer.
///
/// A layer in which one of the sets has no weight at all, or whose weights are not all finite and
/// >= 0, has NaN; one with a single expert has 0. Padding and dropped assignments do not count.
///
/// Source: multilingual routing (arXiv:2510.04694), divergence of languages.
///
/// @return one entry per layer that was recorded, ascending
/// @throws std::invalid_argument if the traces have other layers or numbers of experts, or a batch
///         lacks the sequences that a mean is to be taken over
inline std::vector<RoutingDivergence> routing_divergence(const Trace& a, const Trace& b,
                                                         MeanOver over = MeanOver::tokens) {
    detail::check_same_layers("moe::routing_divergence", a, b);
    const Matrix<double> weight_a = mean_weight(a, over), weight_b = mean_weight(b, over);
    std::vector<RoutingDivergence> divergence;
    for (Index layer = 0; layer < a.num_layers(); ++layer) {
        const Index experts = a.num_experts(layer);
        if (experts == 0) continue;
        const auto shares_of = [&](const Matrix<double>& weight) {
            double sum = 0;
            bool is_share = true;
            std::vector<double> shares(detail::at(experts));
            for (Index e = 0; e < experts; ++e) {
                shares[detail::at(e)] = weight(layer, e);
                is_share = is_share && weight(layer, e) >= 0;
                sum += weight(layer, e);
            }
            for (double& share : shares) share = is_share ? share / sum : std::nan("");
            return shares;
        };
        const std::vector<double> p = shares_of(weight_a), q = shares_of(weight_b);
        const double apart = jensen_shannon(p, q, 0) / std::log(2.0);
        RoutingDivergence of_layer{layer, apart, std::isnan(apart) ? apart : 0};
        if (experts > 1 && !std::isnan(apart))
            of_layer.entropy_difference = (detail::count_entropy(detail::elements(p)) -
                                           detail::count_entropy(detail::elements(q))) /
                                          std::log(static_cast<double>(experts));
        divergence.push_back(of_layer);
    }
    return divergence;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_ROUTING_DIVERGENCE_HPP
