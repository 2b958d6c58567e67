// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_STATS_TRACES_HPP
#define MOE_TESTS_STATS_TRACES_HPP

#include <cstdint>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/trace.hpp>
#include <moe/testing/random.hpp>

namespace traces {

using moe::Index;

/// The experts of each token, in slot order.
using Lists = std::vector<std::vector<Index>>;

inline moe::Routing routing(Index experts, const Lists& chosen) {
    moe::Routing plan;
    plan.reset(static_cast<Index>(chosen.size()), experts);
    for (std::size_t t = 0; t < chosen.size(); ++t)
        for (const Index e : chosen[t]) plan.add(static_cast<Index>(t), e);
    plan.group();
    return plan;
}

/// A trace of one layer and one batch.
inline moe::Trace trace(Index experts, const Lists& chosen, const moe::Context& context = {}) {
    moe::Trace trace;
    trace.record(0, routing(experts, chosen), context);
    return trace;
}

/// A number in [0, n).
inline Index draw(std::uint64_t seed, std::uint64_t index, Index n) {
    const double u = (moe::testing::random_value(seed, index) + 1) / 2;
    return static_cast<Index>(u * static_cast<double>(n));
}

/// Tokens with k different random experts each.
inline Lists random_lists(Index tokens, Index experts, Index k, std::uint64_t seed) {
    Lists lists(static_cast<std::size_t>(tokens));
    std::uint64_t number = 0;
    for (auto& list : lists)
        while (static_cast<Index>(list.size()) < k) {
            const Index e = draw(seed, number++, experts);
            bool is_new = true;
            for (const Index other : list) is_new = is_new && other != e;
            if (is_new) list.push_back(e);
        }
    return lists;
}

}  // namespace traces

#endif  // MOE_TESTS_STATS_TRACES_HPP
