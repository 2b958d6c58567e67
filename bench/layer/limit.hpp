// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_LIMIT_HPP
#define MOE_BENCH_LAYER_LIMIT_HPP

#include <algorithm>

#include <benchmark/benchmark.h>

#include <moe/core/routing.hpp>

#include "machine.hpp"
#include "race.hpp"

namespace bench {

/// What a call has to do at least.
struct Work {
    moe::Compute compute = moe::Compute::exact;  ///< of the experts; the router is always exact
    double router_flops = 0, expert_flops = 0;
    double bytes = 0;  ///< of weights, each read once
    bool hot = false;  ///< they may come from the caches

    /// Seconds: the slower of multiplying at the peak and reading at the bandwidth that this
    /// machine has now. It is measured, 10 runs each: neighbours and clocks change it by the
    /// second, and the first runs of two threads may share a core.
    double limit(int threads) const {
        constexpr int runs = 10;
        const double multiply =
            router_flops / machine::peak(moe::Compute::exact, threads, runs).per_second +
            expert_flops / machine::peak(compute, threads, runs).per_second;
        const double bandwidth =
            machine::read_bandwidth(threads, hot ? bytes : 1e18, runs).per_second;
        return std::max(multiply, bytes / bandwidth);
    }
};

/// Experts that have rows.
inline double experts_used(const moe::Routing& routing) {
    double used = 0;
    for (Index e = 0; e < routing.num_experts(); ++e) used += routing.tokens_of(e).empty() ? 0 : 1;
    return used;
}

/// Counters that every row of a layer has.
inline void report(benchmark::State& state, const Work& work, const moe::Routing& routing,
                   const Race& race) {
    const double seconds = race.seconds();
    const double flops = work.router_flops + work.expert_flops;
    state.counters["GFLOP/s"] = flops / seconds / 1e9;
    state.counters["GB/s"] = work.bytes / seconds / 1e9;
    state.counters["tokens/s"] = static_cast<double>(routing.num_tokens()) / seconds;
    state.counters["weight_bytes"] = work.bytes;
    state.counters["rows_per_expert"] =
        static_cast<double>(routing.num_kept()) / experts_used(routing);
    state.counters["of_limit"] = race.of_limit();
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_LIMIT_HPP
