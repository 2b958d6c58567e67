// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_ACTIVATION_HPP
#define MOE_STATS_ACTIVATION_HPP

#include <algorithm>
#include <cmath>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/expert_mean.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// What activation_frequency() counts, and what it divides by.
struct ActivationOptions {
    MeanOver over = MeanOver::tokens;
    bool count_dropped = false;  ///< count what was selected; false: only what reaches its expert
};

namespace detail {

/// Adds 1 for an assignment.
inline auto count_activation(bool count_dropped) {
    return [count_dropped](const TraceRecord& record, Index assignment, double* run) {
        if (count_dropped || record.is_kept(assignment)) run[record.expert(assignment)] += 1;
    };
}

/// @throws std::invalid_argument unless both have the same layers of the same numbers of experts
inline void check_same_layers(const char* who, const Trace& a, const Trace& b) {
    for (Index layer = 0; layer < std::max(a.num_layers(), b.num_layers()); ++layer) {
        const Index of_a = layer < a.num_layers() ? a.num_experts(layer) : 0;
        const Index of_b = layer < b.num_layers() ? b.num_experts(layer) : 0;
        if (of_a != of_b)
            fail(who, ": layer ", layer, " has ", of_a, " experts in one trace and ", of_b,
                 " in the other; record the same layers");
    }
}

}  // namespace detail

/// How often each expert is activated: the share of tokens that go to it.
///
///     frequency(l, e) = activations of e / tokens                        MeanOver::tokens
///                     = mean over sequences of activations / length      MeanOver::sequences
///
/// Each is in [0, 1], and those of a layer sum to its experts per token. Padding has no part in it.
/// NaN where a layer was not recorded or has fewer experts than another, which is nowhere in a
/// ranking and hatched in a heat map; 0 for a layer without tokens.
///
/// Source: multilingual routing (arXiv:2510.04694), the profile of a task, which is a mean over
/// sequences.
///
/// @return [layers, E] with the largest E
/// @throws std::invalid_argument if a batch lacks the sequences that a mean is to be taken over
inline Matrix<double> activation_frequency(const Trace& trace,
                                           const ActivationOptions& options = {}) {
    return detail::per_expert(
        "moe::activation_frequency", trace, options.over,
        detail::count_activation(options.count_dropped),
        [](const detail::ExpertMean& mean, Index expert) { return mean.mean(expert); });
}

/// The numbers of activations themselves, as activation_frequency() counts them.
/// @return [layers, E]
inline Matrix<double> activation_counts(const Trace& trace, bool count_dropped = false) {
    return detail::per_expert(
        "moe::activation_counts", trace, MeanOver::tokens, detail::count_activation(count_dropped),
        [](const detail::ExpertMean& mean, Index expert) { return mean.sum(expert); });
}

/// Which experts two sets of texts tell apart: frequency in `a` - frequency in `b`, in [-1, 1].
///
/// Those far above 0 belong to what `a` shows and `b` does not: a language or a task beside general
/// text (multilingual routing, arXiv:2510.04694, where 0.2 to 0.3 is far), a behaviour beside a
/// control set (tunable experts, arXiv:2502.11096, which subtracts counts: for sets of one size the
/// same order).
///
/// @return [layers, E], NaN as activation_frequency()
/// @throws std::invalid_argument if the traces have other layers or numbers of experts, or as
///         activation_frequency()
inline Matrix<double> activation_contrast(const Trace& a, const Trace& b,
                                          const ActivationOptions& options = {}) {
    detail::check_same_layers("moe::activation_contrast", a, b);
    Matrix<double> contrast = activation_frequency(a, options);
    const Matrix<double> other = activation_frequency(b, options);
    for (Index i = 0; i < contrast.size(); ++i) contrast.data()[i] -= other.data()[i];
    return contrast;
}

/// How much weight each expert gets: its mean over tokens, 0 where it was not selected, or was
/// dropped; with MeanOver::sequences, as published, the mean of the means of sequences. The weight
/// is Assignment::weight * input_weight; NaN if one is.
///
/// The one with the largest, over all layers, is what the texts of the trace depend on most: the
/// expert to unlearn them in. What of a router's scores was not selected counts as 0 here; ScoreSum
/// is the mean of all scores.
///
/// Source: SEUF (arXiv:2411.18797), expert attribution.
///
/// @return [layers, E], NaN as activation_frequency()
/// @throws std::invalid_argument if a batch lacks the sequences that a mean is to be taken over
inline Matrix<double> mean_weight(const Trace& trace, MeanOver over = MeanOver::tokens) {
    return detail::per_expert(
        "moe::mean_weight", trace, over,
        [](const TraceRecord& record, Index assignment, double* run) {
            double& sum = run[record.expert(assignment)];
            if (record.is_kept(assignment))
                sum = std::fma(record.weight(assignment), record.input_weight(assignment), sum);
        },
        [](const detail::ExpertMean& mean, Index expert) { return mean.mean(expert); });
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_ACTIVATION_HPP
