// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_LAYER_EVIDENCE_HPP
#define MOE_STATS_LAYER_EVIDENCE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <optional>
#include <vector>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/load.hpp>
#include <moe/stats/router.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI::detail {

/// What a diagnosis knows of a layer: sums over batches, without padding.
struct LayerEvidence {
    Index layer = -1;
    Index num_tokens = 0;
    Index unrouted = 0;           ///< tokens that reach no expert
    Index nan_tokens = 0;         ///< tokens with a weight that is NaN
    std::vector<Index> chosen{};  ///< [E] assignments, dropped ones included
    Index refused = 0;            ///< assignments that were dropped for capacity
    Index late_in_sequence = 0;   ///< of them, those of tokens in the second half of their sequence
    Index late_in_batch = 0;      ///< and of their batch
    /// [K] |weight * input_weight| by slot; of tokens that all have K assignments, or empty
    std::vector<double> slot_weights{};
    bool is_uniform = true;  ///< so far every token has as many assignments
    std::optional<RouterStats> router{};
    Index num_logits = 0;  ///< L, of the router

    Index num_experts() const { return static_cast<Index>(chosen.size()); }
    Index num_assignments() const {
        return std::accumulate(chosen.begin(), chosen.end(), Index(0));
    }

    /// Adds a batch.
    void add(const TraceRecord& record, const TraceBatch& batch) {
        chosen.resize(at(record.num_experts));
        for (Index t = 0; t < record.num_tokens(); ++t)
            if (!batch.is_padding(t)) add(record, batch, t);
    }

private:
    void add(const TraceRecord& record, const TraceBatch& batch, Index t) {
        const Index first = record.first(t), count = record.first(t + 1) - first;
        if (is_uniform && num_tokens == 0) slot_weights.resize(at(count));
        if (static_cast<Index>(slot_weights.size()) != count) is_uniform = false;
        if (!is_uniform) slot_weights.clear();
        ++num_tokens;
        bool is_routed = false, has_nan = false;
        for (Index i = 0; i < count; ++i) {
            const Index a = first + i;
            ++chosen[at(record.expert(a))];
            const double input = record.input_weights.empty() ? 1 : record.input_weights[at(a)];
            const double weight = std::abs(record.weight(a) * input);
            has_nan = has_nan || std::isnan(weight);
            if (is_uniform) slot_weights[at(i)] += weight;
            is_routed = is_routed || record.is_kept(a);
            if (!record.is_kept(a)) add_dropped(record, batch, t, a);
        }
        unrouted += is_routed ? 0 : 1;
        nan_tokens += has_nan ? 1 : 0;
    }

    void add_dropped(const TraceRecord& record, const TraceBatch& batch, Index t, Index a) {
        const auto reason = static_cast<Dropped>(record.dropped[at(a)]);
        if (reason == Dropped::pruned) return;  // on purpose
        ++refused;
        const auto& offsets = batch.sequence_offsets;
        const Index begin = sequence_begin(batch, t);
        const Index end =
            offsets.empty()
                ? record.num_tokens()
                : static_cast<Index>(*std::upper_bound(offsets.begin(), offsets.end(), t));
        late_in_sequence += 2 * (t - begin) >= end - begin ? 1 : 0;
        late_in_batch += 2 * t >= record.num_tokens() ? 1 : 0;
    }
};

/// Of one layer of a trace.
inline LayerEvidence layer_evidence(const Trace& trace, Index layer) {
    LayerEvidence evidence{.layer = layer};
    evidence.chosen.resize(at(trace.num_experts(layer)));
    trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch& batch) {
        evidence.add(record, batch);
    });
    return evidence;
}

/// Of one batch.
inline LayerEvidence layer_evidence(const Routing& routing, const Context& context) {
    Trace trace;
    trace.record(0, routing, context);
    LayerEvidence evidence = layer_evidence(trace, 0);
    evidence.layer = -1;
    return evidence;
}

/// As much as statistics of one batch tell: nothing of slots, nor where tokens were dropped.
inline LayerEvidence layer_evidence(const LoadStats& load, const RouterStats& router) {
    LayerEvidence evidence{.num_tokens = load.num_tokens,
                           .unrouted = load.unrouted_tokens,
                           .chosen = load.tokens_per_expert,
                           .router = router,
                           .num_logits = static_cast<Index>(load.tokens_per_expert.size())};
    for (std::size_t e = 0; e < load.dropped_per_expert.size(); ++e) {
        evidence.chosen[e] += load.dropped_per_expert[e];
        evidence.refused += load.dropped_per_expert[e];
    }
    if (router.nan_fraction > 0)  // 7 of 25 is 7 again, and a share that is small is not none
        evidence.nan_tokens = std::max<Index>(
            1, std::lround(router.nan_fraction * static_cast<double>(load.num_tokens)));
    return evidence;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_STATS_LAYER_EVIDENCE_HPP
