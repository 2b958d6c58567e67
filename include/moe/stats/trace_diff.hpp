// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_TRACE_DIFF_HPP
#define MOE_STATS_TRACE_DIFF_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/format.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// How far two routings of the same tokens agree, in one layer or in all. A token's experts are
/// those that its assignments reach: dropped ones do not count, nor does padding. Shares and means
/// over no tokens are 1: nothing differs.
struct LayerDiff {
    Index layer = -1;         ///< -1: all
    Index num_tokens = 0;     ///< that were compared, once for each layer
    double same_experts = 1;  ///< share of tokens whose set of experts A is the other's B
    /// Mean over tokens of |A and B| / |A or B| (Jaccard), 1 where both are empty: 0 to 1.
    double overlap = 1;
    /// Share of tokens whose largest weight * input_weight is of the same expert. Of equal ones it
    /// is that of the first slot; NaN is below all others.
    double same_first = 1;
    /// Largest |difference| between weights, or input weights, of a token's expert that is in A and
    /// in B. NaN if one is NaN and the other not; two NaN differ by 0.
    double weight_difference = 0;
    Index first_batch = -1;  ///< of the first token, batch by batch, with A other than B; -1: none
    Index first_token = -1;  ///< its row there
};

/// What differs between two traces of the same batches.
struct TraceDiff {
    std::vector<LayerDiff> layers;  ///< that were recorded, ascending
    LayerDiff all;                  ///< over all of them; its first token is the lowest layer's
};

namespace detail {

/// Adds up what a LayerDiff says.
class DiffSum {
public:
    explicit DiffSum(Index layer) { diff_.layer = layer; }

    void add(const TraceRecord& a, const TraceRecord& b, const TraceBatch& batch) {
        for (Index t = 0; t < batch.num_tokens; ++t)
            if (!batch.is_padding(t)) add(a, b, t);
    }

    void add(const DiffSum& layer) {
        diff_.num_tokens += layer.diff_.num_tokens;
        same_experts_ += layer.same_experts_;
        same_first_ += layer.same_first_;
        overlap_ += layer.overlap_;
        raise(layer.diff_.weight_difference);
        if (diff_.first_batch < 0) note_first(layer.diff_.first_batch, layer.diff_.first_token);
    }

    LayerDiff result() const {
        LayerDiff result = diff_;
        if (diff_.num_tokens == 0) return result;
        const auto tokens = static_cast<double>(diff_.num_tokens);
        result.same_experts = static_cast<double>(same_experts_) / tokens;
        result.same_first = static_cast<double>(same_first_) / tokens;
        result.overlap = overlap_ / tokens;
        return result;
    }

private:
    using Chosen = std::vector<std::pair<std::int32_t, Index>>;  // expert, assignment

    /// Fills the token's experts, ascending; returns that of the largest weight, -1 without any.
    static std::int32_t choose(const TraceRecord& record, Index token, Chosen& chosen) {
        chosen.clear();
        std::int32_t first = -1;
        double most = 0;
        for (Index i = record.first(token); i < record.first(token + 1); ++i) {
            if (!record.is_kept(i)) continue;
            chosen.emplace_back(record.expert(i), i);
            const double weight = record.weight(i) * record.input_weight(i);
            if (first < 0 || weight > most || (std::isnan(most) && !std::isnan(weight)))
                first = record.expert(i), most = weight;
        }
        std::sort(chosen.begin(), chosen.end());
        return first;
    }

    void add(const TraceRecord& a, const TraceRecord& b, Index token) {
        const bool is_same_first = choose(a, token, of_a_) == choose(b, token, of_b_);
        std::size_t common = 0;
        for (auto i = of_a_.begin(), j = of_b_.begin(); i != of_a_.end() && j != of_b_.end();) {
            if (i->first != j->first) {
                ++(i->first < j->first ? i : j);
                continue;
            }
            raise(difference(a.weight(i->second), b.weight(j->second)));
            raise(difference(a.input_weight(i->second), b.input_weight(j->second)));
            ++common, ++i, ++j;
        }
        const std::size_t either = of_a_.size() + of_b_.size() - common;
        ++diff_.num_tokens;
        same_experts_ += common == either ? 1 : 0;
        same_first_ += is_same_first ? 1 : 0;
        overlap_ += either == 0 ? 1 : static_cast<double>(common) / static_cast<double>(either);
        if (common != either && diff_.first_batch < 0) note_first(a.batch, token);
    }

    static double difference(double a, double b) {
        return a == b || (std::isnan(a) && std::isnan(b)) ? 0 : std::abs(a - b);
    }
    /// To the larger one; NaN stays.
    void raise(double difference) {
        if (!(difference <= diff_.weight_difference) && !std::isnan(diff_.weight_difference))
            diff_.weight_difference = difference;
    }
    void note_first(Index batch, Index token) {
        diff_.first_batch = batch;
        diff_.first_token = token;
    }

    LayerDiff diff_;
    Index same_experts_ = 0, same_first_ = 0;  // tokens
    double overlap_ = 0;
    Chosen of_a_, of_b_;
};

/// @throws std::invalid_argument unless both saw the same tokens
inline void check_same_batches(const char* who, const Trace& a, const Trace& b) {
    if (a.num_batches() != b.num_batches())
        fail("moe::", who, ": the traces have ", a.num_batches(), " and ", b.num_batches(),
             " batches; record the same ones");
    for (std::size_t i = 0; i < a.batches().size(); ++i) {
        const TraceBatch &x = a.batches()[i], &y = b.batches()[i];
        if (x.num_tokens != y.num_tokens)
            fail("moe::", who, ": batch ", i, " is of ", x.num_tokens, " tokens in one trace and ",
                 y.num_tokens, " in the other; record the same batches");
        for (Index t = 0; t < x.num_tokens; ++t)
            if (x.is_padding(t) != y.is_padding(t))
                fail("moe::", who, ": token ", t, " of batch ", i,
                     " is padding in one trace only; record the same batches");
        if (!x.token_ids.empty() && !y.token_ids.empty() && x.token_ids != y.token_ids)
            fail("moe::", who, ": batch ", i,
                 " has other token_ids in each trace; record the same batches");
    }
}

/// The records of a layer, one per batch that has it.
inline std::vector<const TraceRecord*> records_of(const Trace& trace, Index layer) {
    std::vector<const TraceRecord*> records;
    trace.for_each_of(
        layer, [&](const TraceRecord& record, const TraceBatch&) { records.push_back(&record); });
    return records;
}

}  // namespace detail

/// Compares the routings of the same batches, as two models made them or one model twice: how much
/// of the routing of a checkpoint is that of the last one already, what storing weights in fewer
/// bits changes, whether a change that should not matter does.
///
///     const TraceDiff diff = trace_diff(before, after);
///     if (diff.all.same_experts < 1) std::puts(report(diff).c_str());
///
/// Cost: O(N log K). Source of the use on checkpoints: OpenMoE (arXiv:2402.01739), early learning.
///
/// @throws std::invalid_argument if the traces differ in batches, tokens, padding, token ids where
///         both have them, recorded layers, or numbers of experts
inline TraceDiff trace_diff(const Trace& a, const Trace& b) {
    detail::check_same_batches("trace_diff", a, b);
    TraceDiff diff;
    detail::DiffSum all(-1);
    for (Index layer = 0; layer < std::max(a.num_layers(), b.num_layers()); ++layer) {
        const auto of_a = detail::records_of(a, layer), of_b = detail::records_of(b, layer);
        const auto is_pair = [](const TraceRecord* x, const TraceRecord* y) {
            return x->batch == y->batch;
        };
        if (!std::equal(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), is_pair))
            detail::fail("moe::trace_diff: layer ", layer, " is in ", of_a.size(), " and ",
                         of_b.size(), " batches, not the same; record the same layers");
        if (of_a.empty()) continue;
        if (a.num_experts(layer) != b.num_experts(layer))
            detail::fail("moe::trace_diff: layer ", layer, " has ", a.num_experts(layer), " and ",
                         b.num_experts(layer), " experts, there must be as many");
        detail::DiffSum sum(layer);
        for (std::size_t i = 0; i < of_a.size(); ++i)
            sum.add(*of_a[i], *of_b[i], a.batch_of(*of_a[i]));
        all.add(sum);
        diff.layers.push_back(sum.result());
    }
    diff.all = all.result();
    return diff;
}

/// A table with a line for each layer, and one for all.
inline std::string report(const TraceDiff& diff) {
    static constexpr std::array<const char*, 6> titles{"layer",   "tokens",     "same experts",
                                                       "overlap", "same first", "weights differ"};
    std::string text;
    for (const char* title : titles) text += std::string(title) + "  ";
    text += "other experts from\n";
    const auto add = [&text](const LayerDiff& layer) {
        const std::array<std::string, 6> cells{
            layer.layer < 0 ? "all" : std::to_string(layer.layer),
            std::to_string(layer.num_tokens),
            detail::percent(layer.same_experts),
            detail::fixed(layer.overlap, 3),
            detail::percent(layer.same_first),
            detail::significant(layer.weight_difference, 3)};
        for (std::size_t i = 0; i < cells.size(); ++i)
            text += detail::right_aligned(cells[i], detail::columns_of(titles[i])) + "  ";
        text += layer.first_batch < 0 ? std::string("-\n")
                                      : "batch " + std::to_string(layer.first_batch) + ", token " +
                                            std::to_string(layer.first_token) + "\n";
    };
    for (const LayerDiff& layer : diff.layers) add(layer);
    add(diff.all);
    return text;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_TRACE_DIFF_HPP
