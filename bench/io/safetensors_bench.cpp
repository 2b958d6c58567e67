// SPDX-License-Identifier: MIT
// What opening a checkpoint costs, of one file or of several: the headers' checks, a lookup by
// name, and conversion.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>

namespace {

// Names as long as a published model's, 384 matrices a layer.
std::string name_of(std::int64_t i) {
    return "model.layers." + std::to_string(i / 384) + ".mlp.experts." +
           std::to_string(i % 384 / 3) + ".w" + std::to_string(1 + i % 3) + ".weight";
}

// Tensors number first to first + tensors.
std::vector<std::byte> checkpoint(std::int64_t tensors, std::int64_t first = 0) {
    moe::SafetensorsWriter writer;
    const moe::Matrix<float> values = moe::Matrix<float>::Ones(2, 3);
    for (std::int64_t i = first; i < first + tensors; ++i) writer.add(name_of(i), values);
    return writer.bytes();
}

void count_per_tensor(benchmark::State& state) {
    state.counters["per_tensor"] = benchmark::Counter(
        static_cast<double>(state.range(0)),
        benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void open(benchmark::State& state) {
    const std::vector<std::byte> file = checkpoint(state.range(0));
    for (auto _ : state) {
        const moe::SafetensorsView view(file);
        benchmark::DoNotOptimize(view.size());
    }
    count_per_tensor(state);
}
BENCHMARK(open)
    ->Name("safetensors/open")
    ->ArgName("tensors")
    ->Arg(100)
    ->Arg(10'000)
    ->Arg(100'000)
    ->Unit(benchmark::kMillisecond);

// Files and index in memory: what Checkpoint::open() does but for the disk.
void open_sharded(benchmark::State& state) {
    const std::int64_t files = state.range(1);
    const std::int64_t per_file = (state.range(0) + files - 1) / files;
    std::map<std::string, std::vector<std::byte>> shards;
    std::string index = R"({"metadata":{"total_size":1},"weight_map":{)";
    for (std::int64_t first = 0; first < state.range(0); first += per_file) {
        const std::string file = "model-" + std::to_string(shards.size()) + ".safetensors";
        const std::int64_t tensors = std::min(per_file, state.range(0) - first);
        shards.emplace(file, checkpoint(tensors, first));
        for (std::int64_t i = first; i < first + tensors; ++i)
            index += (i == 0 ? "\"" : ",\"") + name_of(i) + "\":\"" + file + '"';
    }
    index += "}}";
    for (auto _ : state) {
        const auto opened = moe::Checkpoint::from_index(index, [&](const std::string& file) {
            return moe::SafetensorsView(shards.at(file), file);
        });
        benchmark::DoNotOptimize(opened.size());
    }
    count_per_tensor(state);
}
BENCHMARK(open_sharded)
    ->Name("checkpoint/open")
    ->ArgNames({"tensors", "files"})
    ->Args({10'000, 1})
    ->Args({10'000, 64})
    ->Unit(benchmark::kMillisecond);

void find(benchmark::State& state) {
    const std::vector<std::byte> file = checkpoint(state.range(0));
    const moe::SafetensorsView view(file);
    std::int64_t i = 0;
    for (auto _ : state) {
        benchmark::DoNotOptimize(view.find(view.begin()[i].name));
        i = (i + 7919) % state.range(0);
    }
}
BENCHMARK(find)->Name("safetensors/find")->ArgName("tensors")->Arg(100)->Arg(10'000);

template <class Stored>
void copy(benchmark::State& state) {
    moe::SafetensorsWriter writer;
    writer.add("w", moe::Matrix<Stored>(moe::Matrix<Stored>::Constant(1024, 1024, Stored(1))));
    const std::vector<std::byte> file = writer.bytes();
    const moe::SafetensorsView view(file);
    for (auto _ : state) {
        const moe::Matrix<float> values = view.copy<float>("w");
        benchmark::DoNotOptimize(values.data());
    }
    state.SetBytesProcessed(state.iterations() * 1024 * 1024 *
                            static_cast<std::int64_t>(sizeof(Stored) + sizeof(float)));
}
BENCHMARK(copy<float>)->Name("safetensors/copy/f32");
BENCHMARK(copy<Eigen::bfloat16>)->Name("safetensors/copy/bf16");
BENCHMARK(copy<Eigen::half>)->Name("safetensors/copy/f16");

}  // namespace
