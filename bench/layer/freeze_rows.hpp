// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_FREEZE_ROWS_HPP
#define MOE_BENCH_LAYER_FREEZE_ROWS_HPP

#include <optional>
#include <string>

#include "limit.hpp"
#include "race.hpp"
#include "subject.hpp"

namespace bench {

/// What there is to wait for before a frozen layer answers: packing, then its first call.
inline void freeze_row(benchmark::State& state, const LayerShape& shape, const Variant& variant,
                       int threads) {
    Subject& subject = Subject::get(shape);
    subject.forget();
    const Index tokens = 128;
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    const moe::FreezeOptions options{
        .storage = variant.storage, .compute = variant.compute, .executor = &ws.executor()};
    for (auto _ : state) {
        machine::forget_peak_memory();
        const double before = machine::memory();
        std::optional<Frozen> frozen;
        const double pack =
            machine::timed([&] { frozen.emplace(moe::freeze(subject.layer, options)); });
        const double first = machine::timed([&] { frozen->forward(x, y, ws); });
        const double more = machine::peak_memory() - before;
        const double second = machine::timed([&] { frozen->forward(x, y, ws); });
        state.SetIterationTime(pack);
        const auto stored = static_cast<double>(frozen->bank().group<0>().bytes());
        const double trained = 4 * shape.weights_per_expert() * static_cast<double>(shape.experts);
        state.counters["stored_bytes"] = stored;
        state.counters["of_trained_bytes"] = stored / trained;
        state.counters["GB/s"] = (trained + stored) / pack / 1e9;
        state.counters["first_call_ms"] = first * 1e3;
        state.counters["second_call_ms"] = second * 1e3;
        state.counters["peak_over_stored"] = more / stored;
    }
}

inline void add_freeze_rows() {
    for (const LayerShape& shape : shapes)
        for (const Variant& variant : variants)
            for (const int threads : {1, thread_counts().back()})
                if (variant.everywhere && (threads == 1 || thread_counts().size() > 1))
                    add_row("freeze/" + variant.name() + "/" + shape.name +
                                "/threads:" + std::to_string(threads),
                            1, [=, &shape, &variant](benchmark::State& state) {
                                freeze_row(state, shape, variant, threads);
                            });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_FREEZE_ROWS_HPP
