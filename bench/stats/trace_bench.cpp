// SPDX-License-Identifier: MIT
// What recording a trace costs beside the forward pass that it records.
//
//   record/fp32/SHAPE/T:n/threads:m   a frozen layer, and what it left recorded
//
//   of_forward  time of record() over that of forward alone, medians of turns
//   with_trace  time of both over forward alone: the same figure, but for the machine's noise
#include <string>
#include <utility>

#include <benchmark/benchmark.h>

#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/trace.hpp>

#include "layer/race.hpp"
#include "layer/shapes.hpp"

namespace {

using bench::Index;
using bench::Matrix;

const bench::LayerShape& shape = bench::shape_named("olmoe");

auto make_layer() {
    moe::Layer layer{moe::Config{.model_dim = shape.dim, .seed = 1}, moe::LinearRouter{},
                     moe::TopK{.k = shape.k},
                     moe::Swiglu{.count = shape.experts, .ffn_dim = shape.ffn}};
    return moe::freeze(std::move(layer), {});
}

void record(benchmark::State& state, Index tokens, int threads) {
    static const auto frozen = make_layer();
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    frozen.forward(x, y, ws);
    moe::Trace trace;
    const auto forward = [&] { frozen.forward(x, y, ws); };
    const auto remember = [&] { trace.record(0, ws); };
    bench::Race race;
    race.add("", forward);
    race.add("of_forward", remember);
    race.add("with_trace", [&] { forward(), remember(); });
    race.run(state, shape.hot, ws.executor(), [] { return 1.0; });
}

const int registered = [] {
    for (const Index tokens : {1, 512})
        for (const int threads : bench::thread_counts())
            bench::add_row(
                std::string("record/fp32/") + shape.name + "/" + bench::size_of(tokens, threads),
                bench::runs_of(tokens),
                [=](benchmark::State& state) { record(state, tokens, threads); });
    return 0;
}();

}  // namespace
