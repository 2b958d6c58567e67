// SPDX-License-Identifier: MIT
// One token through a layer that reads its weights where a checkpoint has them: how far it is from
// what the machine reads from memory, and from the same layer packed.
#include <cstddef>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/io/bind.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/save.hpp>
#include <moe/moe.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/presets/olmoe.hpp>

#include "layer/race.hpp"
#include "machine/bandwidth.hpp"

namespace {

using moe::Index;

/// A row: the next token of a pool each time, whose experts no cache holds: each way has just read
/// as many bytes, of the same experts if they are more than twice the last cache.
///     of_read         time in which the same threads read as many bytes from memory, in 8 rows
///                     walked together, over the time of this one: in turn with it, medians of both
///     of_probe        bytes of the token's experts per second over the best of 32 such reads just
///                     before
///     packed          time of the layer packed in the same storage, over the time of this one
template <class Preset>
void decode(benchmark::State& state, const Preset& preset, moe::Dtype dtype, moe::Storage storage,
            int threads) {
    moe::SafetensorsWriter writer;
    moe::save(moe::make_layer(preset), preset.names(0), writer, {.dtype = dtype});
    const std::vector<std::byte> file = writer.bytes();
    const auto views = moe::bind(moe::SafetensorsView(file), preset, 0);
    const auto packed = moe::freeze(views, {.storage = storage});

    moe::Workspace<float> ws;
    ws.threads(threads).keep(moe::Keep::nothing);
    constexpr Index tokens = 64;
    const moe::Matrix<float> x = moe::Random(2).normal<float>(tokens, preset.model_dim, 1);
    moe::Matrix<float> y(1, preset.model_dim), other = y;
    for (Index t = 0; t < tokens; ++t) {
        views.forward(x.middleRows(t, 1), y, ws);
        packed.forward(x.middleRows(t, 1), other, ws);
        if (y != other) return state.SkipWithError("views and panels differ in their bits");
    }

    Index next = 0;
    bench::Race race;
    race.add("", [&] { views.forward(x.middleRows(next, 1), y, ws); });
    const double bytes = static_cast<double>(preset.k * 3 * preset.model_dim * preset.ffn_dim *
                                             moe::element_size(dtype));
    const machine::EightRows rows(static_cast<Index>(bytes));
    const auto read = [&](Index part, int) { rows.read(part, threads); };
    race.add("of_read", [&] { ws.executor().run(threads, read); });
    race.add("packed", [&] { packed.forward(x.middleRows(next, 1), other, ws); });
    const bool hot = bytes > 2 * static_cast<double>(machine::last_level_cache());
    race.run(state, hot, ws.executor(), [&] {
        next = (next + 1) % tokens;
        return bytes / machine::read_bandwidth(threads).per_second;
    });
    state.counters["of_probe"] = 1 / race.of_limit();
    state.counters["GB"] = bytes * 1e-9;
}

}  // namespace

int main(int argc, char** argv) {
    const moe::presets::Olmoe olmoe;
    const moe::presets::Mixtral mixtral{.model_dim = 4096, .ffn_dim = 14336, .num_experts = 2};
    struct Form {
        const char* name;
        moe::Dtype dtype;
        moe::Storage storage;
    };
    for (const Form& form : {Form{"fp32", moe::Dtype::f32, moe::Storage::fp32},
                             Form{"bf16", moe::Dtype::bf16, moe::Storage::bf16},
                             Form{"f16", moe::Dtype::f16, moe::Storage::f16}})
        for (const int threads : {1, 2}) {
            const std::string size = bench::size_of(1, threads);
            bench::add_row(std::string("views/") + form.name + "/olmoe/" + size, 15,
                           [=](benchmark::State& state) {
                               decode(state, olmoe, form.dtype, form.storage, threads);
                           });
            bench::add_row(std::string("views/") + form.name + "/mixtral_8x7b/" + size, 15,
                           [=](benchmark::State& state) {
                               decode(state, mixtral, form.dtype, form.storage, threads);
                           });
        }
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
}
