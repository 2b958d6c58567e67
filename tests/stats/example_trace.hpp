// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_STATS_EXAMPLE_TRACE_HPP
#define MOE_TESTS_STATS_EXAMPLE_TRACE_HPP

#include <cstdint>
#include <vector>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/trace.hpp>
#include <moe/testing/random.hpp>

namespace example_trace {

using moe::Index;

/// An expert of a token, and its weight.
struct Slot {
    Index expert;
    double weight = 1;
    moe::Dropped dropped = moe::Dropped::no;
};

/// A routing with these slots for each token.
inline moe::Routing routing(Index experts, const std::vector<std::vector<Slot>>& tokens) {
    moe::Routing plan;
    plan.reset(static_cast<Index>(tokens.size()), experts);
    Index assignment = 0;
    for (std::size_t t = 0; t < tokens.size(); ++t)
        for (const Slot& slot : tokens[t]) {
            plan.add(static_cast<Index>(t), slot.expert, slot.weight);
            plan.set_dropped(assignment++, slot.dropped);
        }
    plan.group();
    return plan;
}

/// 3 batches of 7, 0 and 12 tokens in sequences, in layer 0 of 5 experts and layer 2 of 3. Two
/// tokens are padding, some assignments are dropped, token ids are 0 to 3.
inline moe::Trace random_trace(std::uint64_t seed) {
    std::uint64_t draw = 0;
    const auto number = [&] { return moe::testing::random_value(seed, draw++); };
    const auto plan = [&](Index tokens, Index experts) {
        std::vector<std::vector<Slot>> all(static_cast<std::size_t>(tokens));
        for (auto& slots : all)
            for (Index e = 0; e < experts; ++e) {
                const bool is_chosen = number() > 0;
                const auto dropped = number() > 0.8 ? moe::Dropped::capacity : moe::Dropped::no;
                const double weight = number();
                if (is_chosen) slots.push_back({e, weight, dropped});
            }
        return routing(experts, all);
    };
    const std::vector<Index> offsets[] = {{0, 3, 3, 7}, {0}, {0, 1, 12}};
    moe::Trace trace;
    for (const std::vector<Index>& sequences : offsets) {
        const Index tokens = sequences.back();
        std::vector<std::int64_t> ids;
        std::vector<std::uint8_t> padding(static_cast<std::size_t>(tokens), 0);
        for (Index t = 0; t < tokens; ++t) ids.push_back((t * t + tokens) % 4);
        if (tokens > 0) padding[0] = 1;  // all of the last batch's first sequence
        const moe::Context context{
            .token_ids = ids, .padding = padding, .sequence_offsets = sequences};
        trace.record(0, plan(tokens, 5), context);
        trace.record(2, plan(tokens, 3), context);
    }
    return trace;
}

}  // namespace example_trace

#endif  // MOE_TESTS_STATS_EXAMPLE_TRACE_HPP
