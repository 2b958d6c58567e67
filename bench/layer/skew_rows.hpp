// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_SKEW_ROWS_HPP
#define MOE_BENCH_LAYER_SKEW_ROWS_HPP

#include <algorithm>
#include <string>
#include <vector>

#include "limit.hpp"
#include "plan.hpp"
#include "race.hpp"
#include "subject.hpp"

namespace bench {

/// Half of all tokens on one expert, against the same number of assignments spread evenly. The
/// router runs, its choice is replaced.
inline void skew_row(benchmark::State& state, const LayerShape& shape, const Variant& variant,
                     Index tokens, int threads) {
    const Frozen& frozen = Subject::get(shape).frozen(variant);
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    const auto count = static_cast<double>(shape.experts), k = static_cast<double>(shape.k);
    std::vector<double> share(static_cast<std::size_t>(shape.experts), 1 / count);
    const moe::Routing even = plan_with(tokens, shape.k, share);
    std::fill(share.begin(), share.end(), (1 - 0.5 / k) / (count - 1));
    share[0] = 0.5 / k;
    const moe::Routing skewed = plan_with(tokens, shape.k, share);
    const auto run = [&](const moe::Routing& plan) {
        frozen.reweigh(x, plan, ws);
        frozen.apply(x, y, ws);
    };
    run(skewed), run(even);
    Race race;
    race.add("", [&] { run(skewed); });
    race.add("vs_even", [&] { run(even); });
    const auto bytes = static_cast<double>(frozen.bank().group<0>().bytes());
    const Work work{.compute = variant.compute,
                    .router_flops = shape.router_flops(tokens),
                    .expert_flops = shape.flops(static_cast<double>(tokens * shape.k)),
                    .bytes = bytes,
                    .hot = shape.hot};
    race.run(state, shape.hot, ws.executor(), [&] { return work.limit(threads); });
    report(state, work, skewed, race);
    state.counters["max_over_mean"] = moe::load_stats(skewed).max_over_mean;
}

inline void add_skew_rows() {
    constexpr Index tokens = 512;
    for (const char* name : {"mixtral_mini", "olmoe"})
        for (const Variant& variant : variants)
            for (const int threads : thread_counts())
                if (variant.everywhere)
                    add_row("skew/" + variant.name() + "/" + name + "/" + size_of(tokens, threads),
                            runs_of(tokens), [=, &variant](benchmark::State& state) {
                                skew_row(state, shape_named(name), variant, tokens, threads);
                            });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_SKEW_ROWS_HPP
