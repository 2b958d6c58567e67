// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_EXPERT_MEAN_HPP
#define MOE_STATS_EXPERT_MEAN_HPP

#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// Over what a mean per expert is taken. Tokens that do not count, such as padding, have no part in
/// it.
enum class MeanOver {
    tokens,     ///< every token is worth the same: sum / tokens
    sequences,  ///< every sequence is: the mean of the means over their tokens. Those without any
                ///< are left out. Needs Context::sequence_offsets
};

namespace detail {

/// Sums numbers per expert and gives their mean.
class ExpertMean {
public:
    ExpertMean(Index experts, MeanOver over) : over_(over), run_(at(experts)), sum_(at(experts)) {}

    /// Adds the tokens of a batch.
    /// @param batch   a TraceBatch or a Context
    /// @param counts  counts(token) says whether a token counts
    /// @param add     add(token, run) adds its numbers to run[expert]
    /// @throws std::invalid_argument if the batch lacks sequence_offsets or they are not about it;
    ///         nothing is added then
    template <class Batch, class Counts, class Add>
    void add(const char* who, const Batch& batch, Index tokens, Counts&& counts, Add&& add) {
        const std::span<const Index> offsets(batch.sequence_offsets.data(),
                                             batch.sequence_offsets.size());
        if (over_ == MeanOver::sequences && offsets.empty() && tokens > 0)
            fail(who,
                 ": sequence_offsets is empty, a mean over sequences wants it; set "
                 "Context::sequence_offsets, or take MeanOver::tokens");
        Sequences runs{{}, tokens};
        if (over_ == MeanOver::sequences) runs = sequences(who, offsets, tokens);
        for (Index run = 0; run < runs.count(); ++run) {
            Index counted = 0;
            for (Index t = runs.first(run); t < runs.last(run); ++t)
                if (counts(t)) add(t, run_.data()), ++counted;
            if (counted > 0) finish_run(static_cast<double>(counted));
        }
    }

    double sum(Index expert) const { return sum_[at(expert)]; }
    /// 0 if nothing was added.
    double mean(Index expert) const { return count_ == 0 ? 0 : sum(expert) / count_; }
    /// Tokens or sequences.
    double count() const { return count_; }
    Index num_experts() const { return static_cast<Index>(sum_.size()); }
    /// As new.
    void clear() { *this = ExpertMean(num_experts(), over_); }

private:
    void finish_run(double tokens) {
        const bool is_mean = over_ == MeanOver::sequences;
        for (std::size_t e = 0; e < run_.size(); ++e) {
            sum_[e] += is_mean ? run_[e] / tokens : run_[e];
            run_[e] = 0;
        }
        count_ += is_mean ? 1 : tokens;
    }

    MeanOver over_;
    std::vector<double> run_, sum_;  // [E] of the tokens at hand; of all before
    double count_ = 0;
};

/// [layers, E] value(mean, expert) of what add(record, assignment, run) adds for the assignments of
/// tokens that are not padding; NaN where a layer was not recorded or has fewer experts.
template <class Add, class Value>
Matrix<double> per_expert(const char* who, const Trace& trace, MeanOver over, Add&& add,
                          Value&& value) {
    const Index layers = trace.num_layers(), experts = trace.num_experts();
    checked_product(layers, experts);
    Matrix<double> values =
        Matrix<double>::Constant(layers, experts, std::numeric_limits<double>::quiet_NaN());
    for (Index layer = 0; layer < layers; ++layer) {
        ExpertMean mean(trace.num_experts(layer), over);
        trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch& batch) {
            mean.add(
                who, batch, batch.num_tokens, [&](Index t) { return !batch.is_padding(t); },
                [&](Index t, double* run) {
                    for (Index a = record.first(t); a < record.first(t + 1); ++a)
                        add(record, a, run);
                });
        });
        for (Index e = 0; e < mean.num_experts(); ++e) values(layer, e) = value(mean, e);
    }
    return values;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_EXPERT_MEAN_HPP
