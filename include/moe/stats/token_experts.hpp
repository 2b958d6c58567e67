// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_TOKEN_EXPERTS_HPP
#define MOE_STATS_TOKEN_EXPERTS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/trace.hpp>

/// How analyses read a trace: tokens that are not padding, and of their assignments those that
/// reach an expert.

namespace moe::inline MOE_ABI::detail {

/// The experts that work on a token, in slot order.
inline void kept_experts(const TraceRecord& record, Index token, std::vector<Index>& experts) {
    experts.clear();
    for (Index a = record.first(token); a < record.first(token + 1); ++a)
        if (record.is_kept(a)) experts.push_back(record.expert(a));
}

/// f(token, experts) for every token of a record that is not padding, without any expert included.
template <class F>
void for_each_token(const TraceRecord& record, const TraceBatch& batch, F&& f) {
    std::vector<Index> experts;
    for (Index t = 0; t < record.num_tokens(); ++t) {
        if (batch.is_padding(t)) continue;
        kept_experts(record, t, experts);
        f(t, elements(experts));
    }
}

/// The same for all records of a layer.
template <class F>
void for_each_token(const Trace& trace, Index layer, F&& f) {
    trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch& batch) {
        for_each_token(record, batch, f);
    });
}

/// f(token, experts, experts in the other layer) for the tokens of one batch in two layers.
template <class F>
void for_each_token(const TraceRecord& one, const TraceRecord& other, const TraceBatch& batch,
                    F&& f) {
    std::vector<Index> others;
    for_each_token(one, batch, [&](Index t, std::span<const Index> experts) {
        kept_experts(other, t, others);
        f(t, experts, elements(others));
    });
}

/// First row of the sequence that a token is in; a batch without offsets is one.
inline Index sequence_begin(const TraceBatch& batch, Index token) {
    const auto& offsets = batch.sequence_offsets;
    if (offsets.empty()) return 0;
    return static_cast<Index>(*(std::upper_bound(offsets.begin(), offsets.end(), token) - 1));
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_STATS_TOKEN_EXPERTS_HPP
