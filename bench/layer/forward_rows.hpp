// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_FORWARD_ROWS_HPP
#define MOE_BENCH_LAYER_FORWARD_ROWS_HPP

#include <limits>
#include <memory>
#include <string>

#include "error.hpp"
#include "limit.hpp"
#include "race.hpp"
#include "stages.hpp"
#include "subject.hpp"

namespace bench {

/// A frozen layer against the others.
inline void forward_row(benchmark::State& state, const LayerShape& shape, const Variant& variant,
                        Index tokens, int threads) {
    Subject& subject = Subject::get(shape);
    const Frozen& frozen = subject.frozen(variant);
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim), other(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);

    Race race;
    race.add("", [&] { frozen.forward(x, y, ws); });
    frozen.forward(x, y, ws);
    std::unique_ptr<Stages> alone;
    if (variant.is_float()) {
        alone = std::make_unique<Stages>(subject, &frozen, ws.routing(), ws.executor(), x);
        race.add("", [&] { alone->products(); });
    }
    const auto disagrees = [&other](const Matrix& expected, double tolerance) {
        const double largest = expected.cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
        const double error = (expected - other).cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
        return !(error <= tolerance * largest);
    };
    const auto run_alone = [&](PeerLayer& peer) {  // one that writes nothing leaves NaN
        other.setConstant(std::numeric_limits<float>::quiet_NaN());
        peer.forward(x.data(), other.data(), tokens);
    };
    subject.naive.set_threads(threads);
    race.add("vs_naive", [&] { subject.naive.forward(x.data(), other.data(), tokens); });
    run_alone(subject.naive);
    if (variant.is_float() && disagrees(y, 1e-4))
        return state.SkipWithError("the naive layer disagrees");
    const Matrix expected = other;
    for (auto& [counter, layer] : subject.peers(variant)) {
        PeerLayer* const peer = layer.get();
        peer->set_threads(threads);
        run_alone(*peer);
        if (disagrees(expected, variant.is_float() ? 1e-4 : 2e-2))
            return state.SkipWithError((counter + ": it disagrees with the naive layer").c_str());
        const double settle = counter == "vs_openblas" && threads > 1 ? 0.05 : 0;
        race.add(
            counter, [&, peer] { peer->forward(x.data(), other.data(), tokens); }, settle);
    }
    const double error = max_error(frozen, ws.routing(), x, y);
    if (!(error <= variant.tolerance())) return state.SkipWithError("the output is wrong");
    const moe::Routing& routing = ws.routing();
    const double used = experts_used(routing) / static_cast<double>(shape.experts);
    const auto& group = frozen.bank().group<0>();
    const Work work{.compute = variant.compute,
                    .router_flops = shape.router_flops(tokens),
                    .expert_flops = shape.flops(static_cast<double>(routing.num_kept())),
                    .bytes = used * static_cast<double>(group.bytes()),
                    .hot = shape.hot};
    race.run(state, shape.hot, ws.executor(), [&] { return work.limit(threads); });
    report(state, work, routing, race);
    state.counters["max_error"] = error;
    state.counters["of_trained"] = max_error(subject.layer, routing, x, y);
    if (alone) state.counters["overhead"] = (race.seconds() - race.seconds(1)) / race.seconds();
}

inline void add_forward_rows() {
    for (const LayerShape& shape : shapes)
        for (const Variant& variant : variants)
            for (const Index tokens : {1, 8, 32, 128, 512, 2048}) {
                const bool few = tokens == 1 || tokens == 32 || tokens == 512;
                if (tokens > shape.most_tokens || (!variant.everywhere && !few)) continue;
                for (const int threads : thread_counts())
                    add_row("forward/" + variant.name() + "/" + shape.name + "/" +
                                size_of(tokens, threads),
                            runs_of(tokens), [=, &shape, &variant](benchmark::State& state) {
                                forward_row(state, shape, variant, tokens, threads);
                            });
            }
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_FORWARD_ROWS_HPP
