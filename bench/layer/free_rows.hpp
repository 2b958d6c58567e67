// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_FREE_ROWS_HPP
#define MOE_BENCH_LAYER_FREE_ROWS_HPP

#include <string>
#include <utility>
#include <vector>

#include <moe/moe.hpp>

#include "limit.hpp"
#include "plan.hpp"
#include "race.hpp"
#include "subject.hpp"

namespace bench {

/// A layer with free experts next to a plain one of the same feed-forward experts, both frozen.
struct MoePlusPlus {
    static constexpr LayerShape shape{
        .name = "moe_plus_plus", .dim = 768, .ffn = 2048, .experts = 8, .k = 2};
    static constexpr Index free_experts = 4;

    explicit MoePlusPlus(const Variant& variant)
        : free(moe::freeze(moe::Layer{moe::Config{.model_dim = shape.dim, .seed = 1},
                                      moe::LinearRouter{}, moe::TopK{.k = shape.k},
                                      moe::Swiglu{.count = shape.experts, .ffn_dim = shape.ffn},
                                      moe::Zero{}, moe::Copy{}, moe::Constant{.count = 2}},
                           {.storage = variant.storage, .compute = variant.compute})),
          plain(moe::freeze(Layer(moe::Config{.model_dim = shape.dim, .seed = 1},
                                  moe::LinearRouter{}, moe::TopK{.k = shape.k},
                                  moe::Swiglu{.count = shape.experts, .ffn_dim = shape.ffn}),
                            {.storage = variant.storage, .compute = variant.compute})) {}

    decltype(moe::freeze(
        std::declval<const moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Swiglu, moe::Zero,
                                      moe::Copy, moe::Constant>&>())) free;
    Frozen plain;
};

/// MoE++ (arXiv:2410.07348): 8 feed-forward experts, one zero, one copy, two constant experts.
/// Trained with tau, which multiplies the balance loss of the free ones (LoadBalance::
/// expert_weights), a feed-forward expert ends with tau times the load of a free one; here the plan
/// is made so. `ideal` is what the plain layer's time over this one's would be if free experts, the
/// router and all else cost nothing.
inline void free_row(benchmark::State& state, const Variant& variant, double tau, Index tokens,
                     int threads) {
    const LayerShape& shape = MoePlusPlus::shape;
    const MoePlusPlus layers(variant);
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim);
    moe::Workspace<float> ws, plain_ws;
    ws.threads(threads), plain_ws.threads(threads);
    const auto experts = static_cast<std::size_t>(shape.experts);
    const double all = tau * static_cast<double>(experts) + double{MoePlusPlus::free_experts};
    std::vector<double> share(experts, tau / all);
    share.resize(experts + MoePlusPlus::free_experts, 1 / all);
    const moe::Routing plan = plan_with(tokens, shape.k, share),
                       plain_plan = plan_with(
                           tokens, shape.k,
                           std::vector<double>(experts, 1 / static_cast<double>(experts)));
    const auto run = [&x, &y](const auto& layer, const moe::Routing& which, auto& workspace) {
        layer.reweigh(x, which, workspace);
        layer.apply(x, y, workspace);
    };
    run(layers.free, plan, ws), run(layers.plain, plain_plan, plain_ws);
    Race race;
    race.add("", [&] { run(layers.free, plan, ws); });
    race.add("vs_plain", [&] { run(layers.plain, plain_plan, plain_ws); });
    const auto rows =
        static_cast<double>(plan.expert_offsets()[experts]);  // of feed-forward experts
    const Work work{.compute = variant.compute,
                    .router_flops = shape.router_flops(tokens),
                    .expert_flops = shape.flops(rows),
                    .bytes = static_cast<double>(layers.plain.bank().group<0>().bytes())};
    race.run(state, shape.hot, ws.executor(), [&] { return work.limit(threads); });
    report(state, work, plan, race);
    state.counters["ideal"] = static_cast<double>(tokens * shape.k) / rows;
}

inline void add_free_rows() {
    constexpr Index tokens = 512;
    for (const auto& [name, tau] : {std::pair{"0.75", 0.75}, std::pair{"0.10", 0.10}})
        for (const Variant& variant : variants)
            for (const int threads : thread_counts())
                if (variant.everywhere)
                    add_row("free/" + variant.name() + "/" + MoePlusPlus::shape.name +
                                "/tau:" + name + "/" + size_of(tokens, threads),
                            runs_of(tokens), [=, tau = tau, &variant](benchmark::State& state) {
                                free_row(state, variant, tau, tokens, threads);
                            });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_FREE_ROWS_HPP
