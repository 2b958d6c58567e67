// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_PLAN_HPP
#define MOE_BENCH_LAYER_PLAN_HPP

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include <moe/core/routing.hpp>

#include "shapes.hpp"

namespace bench {

/// A plan in which every token goes to k experts and expert e gets share[e] of all assignments, to
/// within one. Shares sum to 1, none is above 1 / k. Neighbours in an expert's list of tokens are
/// no neighbours in x.
inline moe::Routing plan_with(Index tokens, Index k, const std::vector<double>& share) {
    const auto experts = static_cast<Index>(share.size());
    std::vector<double> owed(share.size());
    std::vector<Index> order(share.size());
    moe::Routing plan;
    plan.reset(tokens, experts);
    for (Index i = 0; i < tokens; ++i) {
        for (std::size_t e = 0; e < share.size(); ++e) owed[e] += share[e] * static_cast<double>(k);
        std::iota(order.begin(), order.end(), Index{0});
        std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](Index a, Index b) {
            return owed[static_cast<std::size_t>(a)] > owed[static_cast<std::size_t>(b)];
        });
        for (Index slot = 0; slot < k; ++slot) {
            const Index e = order[static_cast<std::size_t>(slot)];
            owed[static_cast<std::size_t>(e)] -= 1;
            plan.add(i * 7919 % tokens, e);  // 7919 is prime: each token once
        }
    }
    plan.group();
    return plan;
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_PLAN_HPP
