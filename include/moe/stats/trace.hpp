// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_TRACE_HPP
#define MOE_STATS_TRACE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI {

/// What all layers of one batch of a trace saw: the context, as far as statistics ask for it. An
/// empty member was not given.
struct TraceBatch {
    Index num_tokens = 0;                          ///< T, padding included
    std::uint64_t step = 0;                        ///< Context::step
    std::int64_t first_token = 0;                  ///< Context::first_token
    std::vector<std::int64_t> token_ids{};         ///< [T]
    std::vector<std::int32_t> token_groups{};      ///< [T]
    std::vector<std::uint8_t> padding{};           ///< [T] 1: not a token
    std::vector<std::int64_t> sequence_offsets{};  ///< [B + 1]

    bool is_padding(Index token) const {
        return !padding.empty() && padding[static_cast<std::size_t>(token)] != 0;
    }
    bool operator==(const TraceBatch&) const = default;
};

/// What one layer did with one batch of a trace: a Routing without its expert-major half. The
/// assignments of token t are those from offsets[t] to offsets[t + 1], in slot order, dropped ones
/// included.
struct TraceRecord {
    Index batch = 0;                      ///< number of the batch in the trace
    Index layer = 0;                      ///< the caller's number of the layer
    Index num_experts = 0;                ///< E
    std::vector<std::int32_t> offsets{};  ///< [T + 1]
    std::vector<std::int32_t> experts{};  ///< [N]
    std::vector<double> weights{};        ///< [N] Assignment::weight
    std::vector<double> input_weights{};  ///< [N] or empty: all 1
    std::vector<std::uint8_t> dropped{};  ///< [N] of Dropped, or empty: none is

    Index num_tokens() const { return static_cast<Index>(offsets.size()) - 1; }
    Index num_assignments() const { return static_cast<Index>(experts.size()); }
    /// Numbers of the assignments of a token: first(t) to first(t + 1).
    Index first(Index token) const { return offsets[static_cast<std::size_t>(token)]; }
    std::int32_t expert(Index assignment) const {
        return experts[static_cast<std::size_t>(assignment)];
    }
    double weight(Index assignment) const { return weights[static_cast<std::size_t>(assignment)]; }
    bool is_kept(Index assignment) const {
        return dropped.empty() || dropped[static_cast<std::size_t>(assignment)] ==
                                      static_cast<std::uint8_t>(Dropped::no);
    }

    /// f(token, expert, weight) for every assignment that reaches its expert, in order.
    template <class F>
    void for_each_kept(F&& f) const {
        for (Index t = 0; t < num_tokens(); ++t)
            for (Index a = first(t); a < first(t + 1); ++a)
                if (is_kept(a)) f(t, static_cast<Index>(expert(a)), weight(a));
    }

    /// The routing itself, equal to the one that was recorded, bit for bit. To replay it:
    ///
    ///     layer.bank().apply(x, record.routing(), y, ws);   // with the recorded weights
    ///     layer.reweigh(x, record.routing(), ws);           // with weights of this layer's logits
    ///     layer.apply(x, y, ws);
    Routing routing() const {
        Routing routing;
        routing.reset(num_tokens(), num_experts);
        routing.reserve(num_tokens(), num_experts, num_assignments());
        for (Index t = 0; t < num_tokens(); ++t)
            for (Index a = first(t); a < first(t + 1); ++a) {
                const auto i = static_cast<std::size_t>(a);
                routing.add(t, experts[i], weights[i],
                            input_weights.empty() ? 1 : input_weights[i]);
                if (!dropped.empty()) routing.set_dropped(a, static_cast<Dropped>(dropped[i]));
            }
        routing.group();
        return routing;
    }

    bool operator==(const TraceRecord&) const = default;
};

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
/// weights keep their bits.
class Trace {
public:
    /// Adds what one layer did with one batch.
    /// @param layer    any number >= 0; its experts must be as many each time
    /// @param routing  grouped
    /// @throws std::invalid_argument if layer is negative, E is not what it was for this layer, or
    ///         the context has another number of tokens; std::logic_error if the routing is not
    ///         grouped. Nothing is added then
    void record(Index layer, const Routing& routing, const Context& context = {}) {
        check(layer, routing, context);
        TraceRecord record = read(layer, routing);
        const bool is_new = begins_batch(layer, routing, context);
        if (is_new) batches_.push_back(read(routing, context));
        record.batch = num_batches() - 1;
        records_.push_back(std::move(record));
        is_open_ = true;
        const auto at = static_cast<std::size_t>(layer);
        if (at >= experts_.size()) experts_.resize(at + 1, -1);
        experts_[at] = routing.num_experts();
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
            detail::fail("moe::Trace: layer is ", layer, ", the trace has ", num_layers());
        return std::max<Index>(experts_[static_cast<std::size_t>(layer)], 0);
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
        return batches_[static_cast<std::size_t>(record.batch)];
    }

    /// f(record, batch) for every record of a layer, in order.
    template <class F>
    void for_each_of(Index layer, F&& f) const {
        for (const TraceRecord& record : records_)
            if (record.layer == layer) f(record, batch_of(record));
    }

    /// The same batches and records, bit for bit but that weights that are NaN differ.
    friend bool operator==(const Trace& a, const Trace& b) {
        return a.batches_ == b.batches_ && a.records_ == b.records_;
    }

private:
    void check(Index layer, const Routing& routing, const Context& context) const {
        constexpr Index most_layers = 1'000'000;
        if (layer < 0 || layer >= most_layers)
            detail::fail("moe::Trace::record: layer is ", layer, ", it must lie in [0, ",
                         most_layers - 1, "]");
        if (layer < num_layers())
            if (const Index known = experts_[static_cast<std::size_t>(layer)];
                known >= 0 && known != routing.num_experts())
                detail::fail("moe::Trace::record: layer ", layer, " has ", routing.num_experts(),
                             " experts, it had ", known,
                             " before; record another layer under another number, or begin a new "
                             "trace");
        const Index tokens = routing.num_tokens();
        detail::check_extent("token_ids", context.token_ids.size(), tokens, "one per token");
        detail::check_extent("token_groups", context.token_groups.size(), tokens, "one per token");
        detail::check_extent("padding", context.padding.size(), tokens, "one per token");
        if (!context.sequence_offsets.empty())
            detail::check_sequences("moe::Context", context.sequence_offsets, tokens);
        if (static_cast<Index>(routing.assignments().size()) >
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
        return {
            .num_tokens = routing.num_tokens(),
            .step = context.step,
            .first_token = context.first_token,
            .token_ids = copy(context.token_ids),
            .token_groups = copy(context.token_groups),
            .padding = copy(context.padding),
            .sequence_offsets = {context.sequence_offsets.begin(), context.sequence_offsets.end()}};
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
        bool weighs_input = false, drops = false;
        for (const Assignment& a : assignments) {
            record.experts.push_back(a.expert);
            record.weights.push_back(a.weight);
            weighs_input |= a.input_weight != 1;  // and where it is NaN
            drops |= a.dropped != Dropped::no;
        }
        if (weighs_input)
            for (const Assignment& a : assignments) record.input_weights.push_back(a.input_weight);
        if (drops)
            for (const Assignment& a : assignments)
                record.dropped.push_back(static_cast<std::uint8_t>(a.dropped));
        return record;
    }

    std::vector<TraceBatch> batches_;
    std::vector<TraceRecord> records_;
    std::vector<Index> experts_;  // [layers] -1: never recorded
    bool is_open_ = false;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_TRACE_HPP
