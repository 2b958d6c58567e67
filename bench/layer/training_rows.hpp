// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_TRAINING_ROWS_HPP
#define MOE_BENCH_LAYER_TRAINING_ROWS_HPP

#include <string>

#include "error.hpp"
#include "limit.hpp"
#include "race.hpp"
#include "subject.hpp"

namespace bench {

/// Forward and backward with all gradients against the naive loop.
inline void training_row(benchmark::State& state, const LayerShape& shape, Index tokens,
                         int threads) {
    Subject& subject = Subject::get(shape);
    Layer& gradient = subject.gradient();
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1),
                 dy = moe::Random(3).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim), dx(tokens, shape.dim), other(tokens, shape.dim);
    Matrix other_dx(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    subject.naive.set_threads(threads);
    const auto ours = [&] {
        subject.layer.forward(x, y, ws);
        subject.layer.backward(x, dy, dx, gradient, ws);
    };
    const auto theirs = [&] {
        subject.naive.forward(x.data(), other.data(), tokens);
        subject.naive.backward(x.data(), dy.data(), other_dx.data(), tokens);
    };
    ours();
    theirs();
    const auto agree = [](const Matrix& a, const Matrix& b) {
        return (a - b).cwiseAbs().maxCoeff() <= 1e-3f * a.cwiseAbs().maxCoeff();
    };
    if (!agree(y, other) || !agree(dx, other_dx))
        return state.SkipWithError("the naive layer disagrees");
    Race race;
    race.add("", ours);
    race.add("vs_naive", theirs);
    // Backward reads the weights again, and reads and writes their gradients.
    const moe::Routing& routing = ws.routing();
    const Work work{.compute = moe::Compute::exact,
                    .router_flops = 3 * shape.router_flops(tokens),
                    .expert_flops = 3 * shape.flops(static_cast<double>(routing.num_kept())),
                    .bytes = 4 * 4 * shape.weights_per_expert() * experts_used(routing),
                    .hot = shape.hot};
    race.run(state, shape.hot, ws.executor(), [&] { return work.limit(threads); });
    report(state, work, routing, race);
    state.counters["max_error"] = max_error(subject.layer, routing, x, y);
}

inline void add_training_rows() {
    for (const LayerShape& shape : shapes)
        for (const Index tokens : {1, 8, 32, 128, 512, 2048})
            for (const int threads : thread_counts())
                if (tokens <= shape.most_tokens)
                    add_row(
                        std::string("training/fp32/") + shape.name + "/" + size_of(tokens, threads),
                        runs_of(tokens), [=, &shape](benchmark::State& state) {
                            training_row(state, shape, tokens, threads);
                        });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_TRAINING_ROWS_HPP
