// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_TRACE_RECORD_HPP
#define MOE_STATS_TRACE_RECORD_HPP

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What all layers of one batch of a trace saw: the context, as far as statistics ask for it. An
/// empty member was not given.
struct TraceBatch {
    Index num_tokens = 0;                      ///< T, padding included
    std::uint64_t step = 0;                    ///< Context::step
    std::int64_t first_token = 0;              ///< Context::first_token
    std::vector<std::int64_t> token_ids{};     ///< [T]
    std::vector<std::int32_t> token_groups{};  ///< [T]
    std::vector<std::uint8_t> padding{};       ///< [T] 1: not a token
    std::vector<Index> sequence_offsets{};     ///< [B + 1]

    bool is_padding(Index token) const {
        return !padding.empty() && padding[detail::at(token)] != 0;
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

    Index num_tokens() const {
        return offsets.empty() ? 0 : static_cast<Index>(offsets.size()) - 1;
    }
    Index num_assignments() const { return static_cast<Index>(experts.size()); }
    /// Numbers of the assignments of a token: first(t) to first(t + 1).
    Index first(Index token) const { return offsets[detail::at(token)]; }
    std::int32_t expert(Index assignment) const { return experts[detail::at(assignment)]; }
    double weight(Index assignment) const { return weights[detail::at(assignment)]; }
    double input_weight(Index assignment) const {
        return input_weights.empty() ? 1 : input_weights[detail::at(assignment)];
    }
    bool is_kept(Index assignment) const {
        return dropped.empty() ||
               dropped[detail::at(assignment)] == static_cast<std::uint8_t>(Dropped::no);
    }

    /// f(token, expert, weight) for every assignment that reaches its expert, in order. Padding has
    /// some only if the gate gave it any: see TraceBatch::is_padding().
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
                routing.add(t, expert(a), weight(a), input_weight(a));
                if (!is_kept(a))
                    routing.set_dropped(a, static_cast<Dropped>(dropped[detail::at(a)]));
            }
        routing.group();
        return routing;
    }

    /// The same bits: a weight that is NaN equals itself, and 0 is not -0.
    friend bool operator==(const TraceRecord& a, const TraceRecord& b) {
        const auto same_bits = [](double x, double y) {
            return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y);
        };
        const auto equal = [same_bits](const auto& x, const auto& y) {
            return std::equal(x.begin(), x.end(), y.begin(), y.end(), same_bits);
        };
        return a.batch == b.batch && a.layer == b.layer && a.num_experts == b.num_experts &&
               a.offsets == b.offsets && a.experts == b.experts && equal(a.weights, b.weights) &&
               equal(a.input_weights, b.input_weights) && a.dropped == b.dropped;
    }
};

namespace detail {

/// Layers of a trace have numbers below this.
inline constexpr Index trace_layers = 1'000'000;

template <class... Parts>
std::string sentence(const Parts&... parts) {
    std::string words;
    ((words += text(parts)), ...);
    return words;
}

/// Whether numbers ascend from 0 to `last`.
template <class T>
bool ascends_to(Index last, const std::vector<T>& offsets) {
    return !offsets.empty() && offsets.front() == 0 && static_cast<Index>(offsets.back()) == last &&
           std::is_sorted(offsets.begin(), offsets.end());
}

/// What contradicts itself in a batch; empty: nothing does.
inline std::string fault_of(const TraceBatch& batch) {
    const Index tokens = batch.num_tokens;
    if (tokens < 0 || tokens > std::numeric_limits<std::int32_t>::max())
        return sentence("is of ", tokens, " tokens, it may be of 0 to 2147483647");
    std::string fault;
    const auto check = [&fault, tokens](const char* what, std::size_t given) {
        if (given != 0 && given != at(tokens))
            fault = sentence("has ", given, " ", what, ", it has ", tokens, " tokens");
    };
    check("token_ids", batch.token_ids.size());
    check("token_groups", batch.token_groups.size());
    check("entries of padding", batch.padding.size());
    if (!batch.sequence_offsets.empty() && !ascends_to(tokens, batch.sequence_offsets))
        fault =
            sentence("has sequence_offsets that do not ascend from 0 to its ", tokens, " tokens");
    return fault;
}

/// What contradicts itself in a record of a batch of so many tokens; empty: nothing does.
inline std::string fault_of(const TraceRecord& record, Index tokens) {
    const Index count = record.num_assignments(), experts = record.num_experts;
    if (record.layer < 0 || record.layer >= trace_layers)
        return sentence("is of layer ", record.layer, ", it must lie in [0, ", trace_layers - 1,
                        "]");
    if (experts < 0 || experts > std::numeric_limits<std::int32_t>::max())
        return sentence("is for ", experts, " experts, it may be for 0 to 2147483647");
    if (record.num_tokens() != tokens || !ascends_to(count, record.offsets))
        return sentence("has offsets that do not ascend from 0 to its ", count, " assignments in ",
                        tokens, " steps, one per token");
    const auto each = [count](std::size_t given) { return given == at(count); };
    if (!each(record.weights.size()) ||
        (!record.input_weights.empty() && !each(record.input_weights.size())) ||
        (!record.dropped.empty() && !each(record.dropped.size())))
        return sentence("has ", count, " experts, ", record.weights.size(), " weights, ",
                        record.input_weights.size(), " input_weights and ", record.dropped.size(),
                        " entries of dropped");
    for (const std::int32_t expert : record.experts)
        if (expert < 0 || expert >= experts)
            return sentence("names expert ", expert, ", there are ", experts);
    for (const std::uint8_t reason : record.dropped)
        if (reason > static_cast<std::uint8_t>(Dropped::pass_through))
            return sentence("has an unknown reason ", int{reason}, " for a dropped assignment");
    std::vector<std::int32_t> own;
    for (Index t = 0; t < tokens; ++t) {
        own.clear();
        for (Index a = record.first(t); a < record.first(t + 1); ++a)
            if (record.is_kept(a)) own.push_back(record.expert(a));
        std::sort(own.begin(), own.end());
        if (const auto twice = std::adjacent_find(own.begin(), own.end()); twice != own.end())
            return sentence("sends token ", t, " to expert ", *twice, " twice");
    }
    return {};
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_TRACE_RECORD_HPP
