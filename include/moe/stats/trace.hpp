// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_TRACE_HPP
#define MOE_STATS_TRACE_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/stats/trace_record.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

class TraceReader;

}  // namespace detail

/// The routing of many batches in many layers, to be looked at, saved (io/trace.hpp), compared and
/// replayed.
///
///     Trace trace;
///     for (...) {
///         first.forward(x, h, ws0);   trace.record(0, ws0);
///         second.forward(h, y, ws1);  trace.record(1, ws1);
///     }
///
/// A batch is what passes through all layers: its rows are the same tokens in each. A new one
/// begins with a layer that the last one already has, or with another number of tokens, step or
/// first_token; next_batch() begins one where these agree by chance. What the context says of
/// tokens is taken from the first layer that is recorded.
///
/// Nothing is recorded unless you call record(). It takes 12 bytes per assignment and 4 per token;
/// weights keep their bits. Everything is copied: no context need live on.
class Trace {
public:
    Trace() = default;
    /// Made of parts, such as routings that another program has logged. The next record begins a
    /// new batch.
    /// @param records  in the order of their batches, at least one for each
    /// @throws std::invalid_argument if something contradicts itself: a batch without records,
    ///         one with two of a layer, a layer whose E changes, what record() would refuse
    Trace(std::vector<TraceBatch> batches, std::vector<TraceRecord> records)
        : Trace(std::move(batches), std::move(records),
                [](const std::string& fault) { detail::fail("moe::Trace: ", fault); }) {}

    /// Adds what one layer did with one batch.
    /// @param layer    any number >= 0; its experts must be as many each time
    /// @param routing  grouped
    /// @throws std::invalid_argument if layer is negative, E is not what it was for this layer, or
    ///         the context has another number of tokens; std::logic_error if the routing is not
    ///         grouped. Nothing is added then
    void record(Index layer, const Routing& routing, const Context& context = {}) {
        check(layer, routing, context);
        TraceRecord record = read(layer, routing);
        make_room(records_);
        make_room(batches_);
        experts_.reserve(detail::at(layer) + 1);
        if (begins_batch(layer, routing, context)) batches_.push_back(read(routing, context));
        record.batch = num_batches() - 1;  // from here on nothing can fail
        records_.push_back(std::move(record));
        is_open_ = true;
        note(layer, routing.num_experts());
    }
    /// The batch that a workspace holds.
    /// @throws std::logic_error also if it holds none
    template <class S>
    void record(Index layer, const Workspace<S>& ws) {
        record(layer, ws.routing(), ws.context());
    }

    /// The next record begins a new batch.
    void next_batch() { is_open_ = false; }
    /// As new.
    void clear() { *this = Trace(); }

    Index num_batches() const { return static_cast<Index>(batches_.size()); }
    /// One more than the highest number of a layer.
    Index num_layers() const { return static_cast<Index>(experts_.size()); }
    /// Of a layer; 0 if it was never recorded.
    /// @throws std::invalid_argument if there is no such layer
    Index num_experts(Index layer) const {
        if (layer < 0 || layer >= num_layers())
            detail::fail("moe::Trace: layer is ", layer, ", it must be in [0, ", num_layers(),
                         "), the layers of the trace");
        return std::max<Index>(experts_[detail::at(layer)], 0);
    }
    /// The largest of all layers.
    Index num_experts() const {
        Index most = 0;
        for (const Index experts : experts_) most = std::max(most, experts);
        return most;
    }

    std::span<const TraceBatch> batches() const { return detail::elements(batches_); }
    /// In the order in which they were recorded.
    std::span<const TraceRecord> records() const { return detail::elements(records_); }
    const TraceBatch& batch_of(const TraceRecord& record) const {
        return batches_[detail::at(record.batch)];
    }

    /// f(record, batch) for every record of a layer, in order.
    template <class F>
    void for_each_of(Index layer, F&& f) const {
        for (const TraceRecord& record : records_)
            if (record.layer == layer) f(record, batch_of(record));
    }

    /// The same batches and records, bit for bit: a weight that is NaN equals itself.
    friend bool operator==(const Trace& a, const Trace& b) {
        return a.batches_ == b.batches_ && a.records_ == b.records_;
    }

private:
    friend class detail::TraceReader;

    /// The same, for readers that refuse in their own words.
    /// @param refuse  refuse(fault) throws; fault is the end of a sentence
    template <std::invocable<const std::string&> F>
    Trace(std::vector<TraceBatch> batches, std::vector<TraceRecord> records, F&& refuse)
        : batches_(std::move(batches)), records_(std::move(records)) {
        if (const std::string fault = fault_of(batches_, records_); !fault.empty()) refuse(fault);
        for (TraceRecord& record : records_) {
            drop_defaults(record);
            note(record.layer, record.num_experts);
        }
    }

    /// What keeps parts from being a trace, as the end of a sentence; empty: nothing does. Takes
    /// time in proportion to their size, and no memory for experts.
    static std::string fault_of(std::span<const TraceBatch> batches,
                                std::span<const TraceRecord> records) {
        for (std::size_t b = 0; b < batches.size(); ++b)
            if (const std::string fault = detail::fault_of(batches[b]); !fault.empty())
                return detail::sentence("batch ", b, " ", fault);
        std::vector<Index> experts, last_batch;  // [layers]
        Index batch = -1;
        for (std::size_t r = 0; r < records.size(); ++r) {
            const TraceRecord& record = records[r];
            if (record.batch < std::max<Index>(batch, 0) || record.batch > batch + 1 ||
                record.batch >= static_cast<Index>(batches.size()))
                return detail::sentence("record ", r, " is of batch ", record.batch, " after ",
                                        batch, ", there are ", batches.size(),
                                        ", each must have records, in their order");
            batch = record.batch;
            const Index tokens = batches[detail::at(batch)].num_tokens;
            if (const std::string fault = detail::fault_of(record, tokens); !fault.empty())
                return detail::sentence("record ", r, " ", fault);
            const std::size_t layer = detail::at(record.layer);
            if (layer >= experts.size())
                experts.resize(layer + 1, -1), last_batch.resize(layer + 1, -1);
            if (last_batch[layer] == batch)
                return detail::sentence("record ", r, " is the second of layer ", layer,
                                        " in batch ", batch);
            if (experts[layer] >= 0 && experts[layer] != record.num_experts)
                return detail::sentence("record ", r, " is for ", record.num_experts,
                                        " experts, its layer ", layer, " had ", experts[layer]);
            last_batch[layer] = batch;
            experts[layer] = record.num_experts;
        }
        if (batch + 1 != static_cast<Index>(batches.size()))
            return detail::sentence("batch ", batch + 1, " has no records");
        return {};
    }

    void check(Index layer, const Routing& routing, const Context& context) const {
        if (layer < 0 || layer >= detail::trace_layers)
            detail::fail("moe::Trace::record: layer is ", layer, ", it must lie in [0, ",
                         detail::trace_layers - 1, "]");
        if (layer < num_layers())
            if (const Index known = experts_[detail::at(layer)];
                known >= 0 && known != routing.num_experts())
                detail::fail("moe::Trace::record: layer ", layer, " has ", routing.num_experts(),
                             " experts, it had ", known,
                             " before; record another layer under another number, or begin a "
                             "new trace");
        const Index tokens = routing.num_tokens();
        detail::check_extent("token_ids", context.token_ids.size(), tokens, "one per token");
        detail::check_extent("token_groups", context.token_groups.size(), tokens, "one per token");
        detail::check_extent("padding", context.padding.size(), tokens, "one per token");
        if (!context.sequence_offsets.empty())
            detail::check_sequences("moe::Context", context.sequence_offsets, tokens);
        if (static_cast<Index>(routing.assignments().size()) >  // throws unless grouped
            std::numeric_limits<std::int32_t>::max())
            detail::fail("moe::Trace::record: the batch has ", routing.num_assignments(),
                         " assignments, it may have 2147483647; record it in parts");
    }

    bool begins_batch(Index layer, const Routing& routing, const Context& context) const {
        if (!is_open_ || batches_.empty()) return true;
        const TraceBatch& last = batches_.back();
        if (last.num_tokens != routing.num_tokens() || last.step != context.step ||
            last.first_token != context.first_token)
            return true;
        for (auto record = records_.rbegin();
             record != records_.rend() && record->batch == num_batches() - 1; ++record)
            if (record->layer == layer) return true;
        return false;
    }

    static TraceBatch read(const Routing& routing, const Context& context) {
        const auto copy = [](auto view) {
            return std::vector<std::remove_const_t<typename decltype(view)::element_type>>(
                view.begin(), view.end());
        };
        return {.num_tokens = routing.num_tokens(),
                .step = context.step,
                .first_token = context.first_token,
                .token_ids = copy(context.token_ids),
                .token_groups = copy(context.token_groups),
                .padding = copy(context.padding),
                .sequence_offsets = copy(context.sequence_offsets)};
    }

    static TraceRecord read(Index layer, const Routing& routing) {
        const auto assignments = routing.assignments();
        const std::size_t count = assignments.size();
        TraceRecord record{.layer = layer, .num_experts = routing.num_experts()};
        record.offsets.reserve(static_cast<std::size_t>(routing.num_tokens()) + 1);
        for (Index t = 0; t <= routing.num_tokens(); ++t)
            record.offsets.push_back(static_cast<std::int32_t>(routing.first(t)));
        record.experts.reserve(count);
        record.weights.reserve(count);
        for (const Assignment& a : assignments) {
            record.experts.push_back(a.expert);
            record.weights.push_back(a.weight);
        }
        const auto weighs_input = [](const Assignment& a) { return a.input_weight != 1; };
        if (std::any_of(assignments.begin(), assignments.end(), weighs_input)) {
            record.input_weights.reserve(count);
            for (const Assignment& a : assignments) record.input_weights.push_back(a.input_weight);
        }
        if (routing.num_kept() != routing.num_assignments()) {
            record.dropped.reserve(count);
            for (const Assignment& a : assignments)
                record.dropped.push_back(static_cast<std::uint8_t>(a.dropped));
        }
        return record;
    }

    /// Empties what read() would have left empty.
    static void drop_defaults(TraceRecord& record) {
        const auto is_one = [](double weight) { return weight == 1; };
        const auto is_kept = [](std::uint8_t reason) { return reason == 0; };
        auto& weights = record.input_weights;
        if (std::all_of(weights.begin(), weights.end(), is_one)) weights.clear();
        auto& dropped = record.dropped;
        if (std::all_of(dropped.begin(), dropped.end(), is_kept)) dropped.clear();
    }

    /// Room for one more, so that it can be added without fail.
    template <class T>
    static void make_room(std::vector<T>& all) {
        if (all.size() == all.capacity()) all.reserve(std::max<std::size_t>(8, 2 * all.size()));
    }

    void note(Index layer, Index experts) {
        if (layer >= num_layers()) experts_.resize(detail::at(layer) + 1, -1);
        experts_[detail::at(layer)] = experts;
    }

    std::vector<TraceBatch> batches_;
    std::vector<TraceRecord> records_;
    std::vector<Index> experts_;  // [layers] -1: never recorded
    bool is_open_ = false;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_TRACE_HPP
