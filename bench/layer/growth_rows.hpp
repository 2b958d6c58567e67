// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_GROWTH_ROWS_HPP
#define MOE_BENCH_LAYER_GROWTH_ROWS_HPP

#include <string>

#include "limit.hpp"
#include "race.hpp"
#include "subject.hpp"

namespace bench {

/// A frozen layer alone, all cores, as one number doubles. `over_half` is the time over that of
/// the row before, where the number was half of this.
inline void growth_row(benchmark::State& state, const LayerShape& shape, const Variant& variant,
                       Index tokens, bool is_first) {
    static double before = 0;
    if (is_first) before = 0;
    const Frozen& frozen = Subject::get(shape).frozen(variant);
    const int threads = thread_counts().back();
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    frozen.forward(x, y, ws);
    Race race;
    race.add("", [&] { frozen.forward(x, y, ws); });
    const moe::Routing& routing = ws.routing();
    const double used = experts_used(routing) / static_cast<double>(shape.experts);
    const Work work{.compute = variant.compute,
                    .router_flops = shape.router_flops(tokens),
                    .expert_flops = shape.flops(static_cast<double>(routing.num_kept())),
                    .bytes = used * static_cast<double>(frozen.bank().group<0>().bytes())};
    race.run(state, shape.hot, ws.executor(), [&] { return work.limit(threads); });
    report(state, work, routing, race);
    if (before > 0) state.counters["over_half"] = race.seconds() / before;
    before = race.seconds();
}

/// Tokens from 64 to 4096; experts from 8 to 256, of which 512 tokens take 2 each.
inline void add_growth_rows() {
    const auto add = [](const std::string& name, const LayerShape& shape, Index tokens,
                        bool is_first) {
        for (const Variant& variant : variants)
            if (variant.is_float())
                add_row("growth/" + variant.name() + "/" + name + "/" +
                            size_of(tokens, thread_counts().back()),
                        runs_of(tokens), [=, &variant](benchmark::State& state) {
                            growth_row(state, shape, variant, tokens, is_first);
                        });
    };
    for (Index tokens = 64; tokens <= 4096; tokens *= 2)
        add("olmoe", shape_named("olmoe"), tokens, tokens == 64);
    static constexpr const char* names[] = {"e8", "e16", "e32", "e64", "e128", "e256"};
    for (Index i = 0; i < 6; ++i)
        add(names[i], {.name = names[i], .dim = 512, .ffn = 512, .experts = Index{8} << i, .k = 2},
            512, i == 0);
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_GROWTH_ROWS_HPP
