// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_CO_ACTIVATION_HPP
#define MOE_STATS_CO_ACTIVATION_HPP

#include <span>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// What co_activation() tells of experts a and b. n(a, b) is the number of tokens that both work
/// on, n(a) = n(a, a) the load of a. What would be 0 / 0, of an expert without tokens, is 0.
enum class CoActivation {
    count,        ///< n(a, b)
    conditional,  ///< P(b | a) = n(a, b) / n(a): of the tokens of row a, those that b sees, too
    jaccard,      ///< n(a, b) / (n(a) + n(b) - n(a, b)): symmetric, 1 if they share all tokens
};

/// Which experts of a layer work on the same tokens.
///
/// Pairs that are high together do one job in two parts, and are worth keeping on one device. With
/// conditional, compare a column with the share of all tokens that its expert gets, which is what
/// each of its entries would be if experts were chosen independently.
///
/// Tokens are those that are not padding, of all batches; dropped assignments do not count.
///
///     svg_heat_map(co_activation(trace, 3, CoActivation::jaccard))
///
/// @return [E, E]
/// @throws std::invalid_argument if the trace has no such layer
/// Source: OLMoE (arXiv:2409.02060), section 5, expert co-activation, which is conditional.
inline Matrix<double> co_activation(const Trace& trace, Index layer,
                                    CoActivation form = CoActivation::count) {
    detail::check_choice("moe::co_activation", "form", form, CoActivation::jaccard);
    const Index experts = trace.num_experts(layer);
    Matrix<double> together = Matrix<double>::Zero(experts, experts);
    detail::for_each_token(trace, layer, [&](Index, std::span<const Index> chosen) {
        for (const Index a : chosen)
            for (const Index b : chosen) together(a, b) += 1;
    });
    if (form == CoActivation::count) return together;

    Matrix<double> ratio = Matrix<double>::Zero(experts, experts);
    for (Index a = 0; a < experts; ++a)
        for (Index b = 0; b < experts; ++b) {
            const double all = form == CoActivation::conditional
                                   ? together(a, a)
                                   : together(a, a) + together(b, b) - together(a, b);
            if (all > 0) ratio(a, b) = together(a, b) / all;
        }
    return ratio;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_CO_ACTIVATION_HPP
