// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_SPECIALIZATION_HPP
#define MOE_STATS_SPECIALIZATION_HPP

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/information.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// What tokens are grouped by: key(record, batch, token), a number.
template <class K>
concept TokenKey = requires(K& key, const TraceRecord& record, const TraceBatch& batch, Index t) {
    { key(record, batch, t) } -> std::convertible_to<std::int64_t>;
};

/// By vocabulary id: does the expert depend on the word, whatever stands around it?
struct ByTokenId {
    /// @throws std::invalid_argument if the batch was recorded without token ids
    std::int64_t operator()(const TraceRecord&, const TraceBatch& batch, Index token) const {
        if (batch.token_ids.empty())
            detail::fail(
                "moe::ByTokenId: a batch has no token_ids; record it with a context that "
                "has Context::token_ids");
        return batch.token_ids[detail::at(token)];
    }
};

/// By Context::token_groups: modality, language, task.
struct ByGroup {
    /// @throws std::invalid_argument if the batch was recorded without groups
    std::int64_t operator()(const TraceRecord&, const TraceBatch& batch, Index token) const {
        if (batch.token_groups.empty())
            detail::fail(
                "moe::ByGroup: a batch has no token_groups; record it with a context that "
                "has Context::token_groups");
        return batch.token_groups[detail::at(token)];
    }
};

/// By the place of the row in its sequence, padding included, in bins; of a batch without
/// sequence_offsets, its place in the batch.
struct ByPosition {
    Index bin = 1;  ///< positions to one key, >= 1

    /// @throws std::invalid_argument if bin < 1
    std::int64_t operator()(const TraceRecord&, const TraceBatch& batch, Index token) const {
        if (bin < 1) detail::fail("moe::ByPosition: bin is ", bin, ", it must be >= 1");
        return (token - detail::sequence_begin(batch, token)) / bin;
    }
};

/// By time, as the number of the batch in the trace.
struct ByBatch {
    std::int64_t operator()(const TraceRecord& record, const TraceBatch&, Index) const {
        return record.batch;
    }
};

/// By time, as Context::step.
struct ByStep {
    std::int64_t operator()(const TraceRecord&, const TraceBatch& batch, Index) const {
        return static_cast<std::int64_t>(batch.step);
    }
};

/// How far a key decides the expert. Entropies are in nats.
struct Specialization {
    Index num_keys = 0;              ///< that occur
    Index num_assignments = 0;       ///< that were counted
    double entropy = 0;              ///< H(e) of all of them
    double conditional_entropy = 0;  ///< H(e | key): of each key, weighted by its assignments
    /// 1 - H(e | key) / H(e): 1 if the key decides, 0 if it says nothing; 0 if H(e) is 0
    double explained = 0;
};

/// The experts that each key uses.
struct ExpertsByKey {
    std::vector<std::int64_t> keys;  ///< ascending
    Matrix<double> counts;           ///< [keys, E] assignments
};

/// Which assignments a specialization counts.
enum class SpecializationSlots {
    all,    ///< every one: a key that decides for two experts still leaves log 2 of entropy
    first,  ///< the first of each token that was not dropped
};

namespace detail {

/// (key, expert) of every assignment that counts, sorted.
template <class Key>
std::vector<std::pair<std::int64_t, Index>> experts_of_keys(const Trace& trace, Index layer,
                                                            Key& key, SpecializationSlots slots) {
    check_choice("moe::specialization", "slots", slots, SpecializationSlots::first);
    trace.num_experts(layer);  // throws if there is no such layer
    std::vector<std::pair<std::int64_t, Index>> pairs;
    trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch& batch) {
        for_each_token(record, batch, [&](Index t, std::span<const Index> experts) {
            if (experts.empty()) return;
            if (slots == SpecializationSlots::first) experts = experts.first(1);
            const auto k = static_cast<std::int64_t>(key(record, batch, t));
            for (const Index e : experts) pairs.emplace_back(k, e);
        });
    });
    std::sort(pairs.begin(), pairs.end());
    return pairs;
}

}  // namespace detail

/// How far a key of the tokens decides which expert they get.
///
///     specialization(trace, 0, ByTokenId{}).explained    // context-independent specialisation
///     specialization(trace, 0, ByPosition{.bin = 64}).explained
///
/// explained is the mutual information of key and expert over H(e). It is too high if keys are
/// seldom: a key that occurs once explains all of itself. Padding and dropped assignments do not
/// count. Any function of a record, its batch and a token is a key.
/// @throws std::invalid_argument if there is no such layer, or as the key does
/// Source: OpenMoE (arXiv:2402.01739), section 4, context-independent specialisation.
template <TokenKey Key>
Specialization specialization(const Trace& trace, Index layer, Key&& key,
                              SpecializationSlots slots = SpecializationSlots::all) {
    const auto pairs = detail::experts_of_keys(trace, layer, key, slots);
    Specialization result{.num_assignments = static_cast<Index>(pairs.size())};
    if (pairs.empty()) return result;
    std::vector<double> load(detail::at(trace.num_experts(layer)));
    std::vector<double> of_key;  // assignments to each expert of one key
    for (std::size_t i = 0; i < pairs.size();) {
        const std::int64_t k = pairs[i].first;
        of_key.clear();
        double all = 0;
        while (i < pairs.size() && pairs[i].first == k) {
            const Index e = pairs[i].second;
            double n = 0;
            for (; i < pairs.size() && pairs[i] == std::pair(k, e); ++i) ++n;
            of_key.push_back(n);
            load[detail::at(e)] += n;
            all += n;
        }
        ++result.num_keys;
        result.conditional_entropy = std::fma(all, detail::count_entropy(detail::elements(of_key)),
                                              result.conditional_entropy);
    }
    result.conditional_entropy /= static_cast<double>(pairs.size());
    result.entropy = detail::count_entropy(detail::elements(load));
    if (result.entropy > 0)
        result.explained = std::clamp(1 - result.conditional_entropy / result.entropy, 0.0, 1.0);
    return result;
}

/// The table behind it: how often each key uses each expert.
/// @throws std::invalid_argument as specialization()
template <TokenKey Key>
ExpertsByKey experts_by(const Trace& trace, Index layer, Key&& key,
                        SpecializationSlots slots = SpecializationSlots::all) {
    const auto pairs = detail::experts_of_keys(trace, layer, key, slots);
    ExpertsByKey table;
    for (const auto& [k, expert] : pairs)
        if (table.keys.empty() || table.keys.back() != k) table.keys.push_back(k);
    table.counts.setZero(static_cast<Index>(table.keys.size()), trace.num_experts(layer));
    Index row = -1;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        if (i == 0 || pairs[i].first != pairs[i - 1].first) ++row;
        table.counts(row, pairs[i].second) += 1;
    }
    return table;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_SPECIALIZATION_HPP
