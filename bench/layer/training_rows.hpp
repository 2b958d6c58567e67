// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_TRAINING_ROWS_HPP
#define MOE_BENCH_LAYER_TRAINING_ROWS_HPP

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"
#include "limit.hpp"
#include "race.hpp"
#include "subject.hpp"

namespace bench {

/// Forward and backward with all gradients against the naive loop and PyTorch, or, if not exact,
/// against the layer that is.
inline void training_row(benchmark::State& state, const LayerShape& shape, moe::Compute compute,
                         Index tokens, int threads) {
    Subject& subject = Subject::get(shape);
    Layer& gradient = subject.gradient();
    const bool exact = compute == moe::Compute::exact;
    const Layer& layer = exact ? subject.layer : subject.bf16();
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1),
                 dy = moe::Random(3).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim), dx(tokens, shape.dim), other(tokens, shape.dim);
    Matrix other_dx(tokens, shape.dim);
    moe::Workspace<float> ws, other_ws;
    ws.threads(threads), other_ws.use(ws.executor());
    const auto ours = [&] {
        layer.forward(x, y, ws);
        layer.backward(x, dy, dx, gradient, ws);
    };
    std::vector<std::pair<std::string, std::function<void()>>> others;
    const auto add_peer = [&](const char* counter, TrainedPeerLayer* peer) {
        peer->set_threads(threads);
        others.emplace_back(counter, [&, peer] {
            peer->forward(x.data(), other.data(), tokens);
            peer->backward(x.data(), dy.data(), other_dx.data(), tokens);
        });
    };
    if (exact) {
        add_peer("vs_naive", &subject.naive);
        if (TrainedPeerLayer* const torch = subject.torch()) add_peer("vs_torch", torch);
    } else {
        others.emplace_back("vs_exact", [&] {
            subject.layer.forward(x, other, other_ws);
            subject.layer.backward(x, dy, other_dx, gradient, other_ws);
        });
    }
    const auto agree = [exact](const Matrix& a, const Matrix& b) {
        const float error = (a - b).cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
        return error <= (exact ? 1e-3f : 2e-2f) * a.cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
    };
    Race race;
    race.add("", ours);
    ours();
    for (const auto& [counter, theirs] : others) {
        other.setConstant(std::numeric_limits<float>::quiet_NaN());
        other_dx = other;
        theirs();
        if (!agree(y, other) || !agree(dx, other_dx))
            return state.SkipWithError((counter + ": the two disagree").c_str());
        race.add(counter, theirs);
    }
    // Backward reads the weights again, and reads and writes their gradients.
    const moe::Routing& routing = ws.routing();
    const Work work{.compute = compute,
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
        for (const moe::Compute compute : {moe::Compute::exact, moe::Compute::bf16})
            for (const Index tokens : {1, 8, 32, 128, 512, 2048})
                for (const int threads : thread_counts())
                    if (tokens <= shape.most_tokens)
                        add_row(
                            (compute == moe::Compute::exact ? "training/fp32/" : "training/bf16/") +
                                std::string(shape.name) + "/" + size_of(tokens, threads),
                            runs_of(tokens), [=, &shape](benchmark::State& state) {
                                training_row(state, shape, compute, tokens, threads);
                            });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_TRAINING_ROWS_HPP
