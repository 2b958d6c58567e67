// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_MARKER_HPP
#define MOE_STATS_MARKER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Normalised pointwise mutual information of two events, from how many of `all` trials each and
/// both happened in: log(p(a, b) / (p(a) p(b))) / -log p(a, b), in [-1, 1].
///
/// 1 if they only ever happen together, 0 if one says nothing of the other, -1 if they never happen
/// together, one of them not happening at all included. Two that always happen are 1.
inline double normalized_information(double a, double b, double both, double all) {
    if (both == 0) return -1;
    if (both == all) return 1;
    // Products of counts are exact below 2^53, so that the two ends and 0 are.
    const double information = std::log(both * all / (a * b));
    return std::clamp(information / std::log(all / both), -1.0, 1.0);
}

/// Counts of one layer.
class MarkerCounts {
public:
    /// @param markers  ascending
    MarkerCounts(std::span<const std::int64_t> markers, Index experts)
        : markers_(markers),
          with_marker_(markers.size()),
          with_expert_(at(experts)),
          with_both_(at(checked_product(static_cast<Index>(markers.size()), experts))) {}

    void add(const TraceRecord& record, const TraceBatch& batch) {
        for (Index t = 0; t < batch.num_tokens; ++t) {
            if (batch.is_padding(t)) continue;
            tokens_ += 1;
            const std::int64_t id = batch.token_ids[at(t)];
            const auto found = std::lower_bound(markers_.begin(), markers_.end(), id);
            const auto marker = static_cast<std::size_t>(found - markers_.begin());
            const bool is_marker = found != markers_.end() && *found == id;
            if (is_marker) with_marker_[marker] += 1;
            for (Index a = record.first(t); a < record.first(t + 1); ++a) {
                if (!record.is_kept(a)) continue;
                const auto expert = static_cast<std::size_t>(record.expert(a));
                with_expert_[expert] += 1;
                if (is_marker) with_both_[marker * with_expert_.size() + expert] += 1;
            }
        }
    }

    /// The mean over the markers that occur; 0 if none does.
    double score(std::size_t expert) const {
        double sum = 0, markers = 0;
        for (std::size_t m = 0; m < with_marker_.size(); ++m) {
            if (with_marker_[m] == 0) continue;
            const double both = with_both_[m * with_expert_.size() + expert];
            sum += normalized_information(with_expert_[expert], with_marker_[m], both, tokens_);
            markers += 1;
        }
        return markers == 0 ? 0 : sum / markers;
    }

private:
    std::span<const std::int64_t> markers_;
    double tokens_ = 0;
    std::vector<double> with_marker_, with_expert_;  // [M], [E] tokens
    std::vector<double> with_both_;                  // [M, E]
};

}  // namespace detail

/// Which experts come with tokens that mark something, such as "wait" or "<think>" a model that
/// reasons: normalised pointwise mutual information of expert e and marker m, by its mean over the
/// markers.
///
///     score(l, e) = mean over m of log(p(e, m) / (p(e) p(m))) / -log p(e, m)      in [-1, 1]
///
/// with p the share of tokens that go to e, that are m, or both. 1: exactly the tokens m go to e.
/// 0: e takes them as often as others; so does an expert that takes every token. -1: it takes none.
/// If all tokens are m and all go to e, the score is 1. A marker that does not occur in a layer's
/// tokens is left out of the mean, which is 0 without any. Dropped assignments and padding do not
/// count. A rare expert may score high by chance: look at activation_counts() as well.
///
/// The two with the largest scores, over all layers, are the cognitive experts whose weights
/// Context::gate_multiplier raises.
///
/// Source: RICE (arXiv:2505.14681).
///
/// @param markers  token ids, each once
/// @return [layers, E] with the largest E; NaN where a layer was not recorded or has fewer experts
/// @throws std::invalid_argument if there is no marker, one is given twice, or a batch lacks
///         token_ids
inline Matrix<double> marker_scores(const Trace& trace, std::span<const std::int64_t> markers) {
    if (markers.empty())
        detail::fail("moe::marker_scores: markers is empty; give the ids of the tokens to look at");
    std::vector<std::int64_t> sorted(markers.begin(), markers.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end())
        detail::fail("moe::marker_scores: markers has ", *twice, " twice; give each id once");
    for (std::size_t b = 0; b < trace.batches().size(); ++b)
        if (trace.batches()[b].token_ids.empty() && trace.batches()[b].num_tokens > 0)
            detail::fail("moe::marker_scores: batch ", b,
                         " of the trace has no token_ids, which markers are looked up in; set "
                         "Context::token_ids in the calls that are recorded");

    const Index layers = trace.num_layers(), experts = trace.num_experts();
    detail::checked_product(layers, experts);
    Matrix<double> scores =
        Matrix<double>::Constant(layers, experts, std::numeric_limits<double>::quiet_NaN());
    for (Index layer = 0; layer < layers; ++layer) {
        detail::MarkerCounts counts(sorted, trace.num_experts(layer));
        trace.for_each_of(layer, [&counts](const TraceRecord& record, const TraceBatch& batch) {
            counts.add(record, batch);
        });
        for (Index e = 0; e < trace.num_experts(layer); ++e)
            scores(layer, e) = counts.score(detail::at(e));
    }
    return scores;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_MARKER_HPP
