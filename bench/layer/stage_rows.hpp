// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_STAGE_ROWS_HPP
#define MOE_BENCH_LAYER_STAGE_ROWS_HPP

#include <initializer_list>
#include <string>
#include <utility>

#include "limit.hpp"
#include "race.hpp"
#include "stages.hpp"
#include "subject.hpp"

namespace bench {

using NamedStage = std::pair<const char*, void (Stages::*)()>;

/// A stage of the experts by itself, as a share of the row's time.
inline void add_stages(Race& race, Stages& stages, std::initializer_list<NamedStage> list) {
    for (const auto& [name, stage] : list)
        race.add(name, [&stages, stage = stage] { (stages.*stage)(); });
}

/// Forward of a frozen layer, and what its stages take alone.
inline void forward_stages_row(benchmark::State& state, const LayerShape& shape, Index tokens,
                               int threads) {
    Subject& subject = Subject::get(shape);
    const Frozen& frozen = subject.frozen({moe::Storage::fp32, moe::Compute::exact});
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim);
    moe::Workspace<float> ws, route_ws;
    ws.threads(threads), route_ws.use(ws.executor());
    frozen.forward(x, y, ws), frozen.route(x, route_ws);
    Stages stages(subject, &frozen, ws.routing(), ws.executor(), x);
    Race race;
    race.add("", [&] { frozen.forward(x, y, ws); });
    race.add("route", [&] { frozen.route(x, route_ws); });
    add_stages(race, stages,
               {{"gather", &Stages::gather},
                {"up", &Stages::up},
                {"activate", &Stages::activate},
                {"down", &Stages::down},
                {"combine", &Stages::combine}});
    race.run(state, shape.hot, ws.executor(), [] { return 1.0; });
}

/// Backward of a layer, and what its stages take alone.
inline void backward_stages_row(benchmark::State& state, const LayerShape& shape, Index tokens,
                                int threads) {
    Subject& subject = Subject::get(shape);
    Layer& gradient = subject.gradient();
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1),
                 dy = moe::Random(3).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim), dx(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    subject.layer.forward(x, y, ws);
    subject.layer.backward(x, dy, dx, gradient, ws);
    Stages stages(subject, nullptr, ws.routing(), ws.executor(), x);
    Race race;
    race.add("", [&] { subject.layer.backward(x, dy, dx, gradient, ws); });
    race.add("route", [&] { subject.layer.route_backward(x, dx, gradient, ws); });
    add_stages(race, stages,
               {{"combine", &Stages::combine_backward},
                {"down", &Stages::down_backward},
                {"activate", &Stages::activate_backward},
                {"up", &Stages::up_backward},
                {"gather", &Stages::gather_backward}});
    race.run(state, shape.hot, ws.executor(), [] { return 1.0; });
}

inline void add_stage_rows() {
    using Row = void (*)(benchmark::State&, const LayerShape&, Index, int);
    for (const LayerShape& shape : shapes)
        for (const auto& [name, row] : {std::pair<const char*, Row>{"forward", forward_stages_row},
                                        {"backward", backward_stages_row}})
            for (const Index tokens : {1, 32, 512})
                for (const int threads : thread_counts())
                    if (tokens <= shape.most_tokens)
                        add_row("stages/fp32_" + std::string(name) + "/" + shape.name + "/" +
                                    size_of(tokens, threads),
                                runs_of(tokens), [=, row = row, &shape](benchmark::State& state) {
                                    row(state, shape, tokens, threads);
                                });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_STAGE_ROWS_HPP
