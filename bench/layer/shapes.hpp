// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_SHAPES_HPP
#define MOE_BENCH_LAYER_SHAPES_HPP

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>

namespace bench {

using moe::Index;
using Matrix = moe::Matrix<float>;

/// What is measured: SwiGLU experts behind a linear router that takes the k best.
struct LayerShape {
    const char* name;
    Index dim, ffn, experts, k;
    Index most_tokens = 2048;
    bool hot = false;  ///< weights may stay in the caches; those of the others are driven out

    double weights_per_expert() const { return 3.0 * static_cast<double>(dim * ffn); }
    /// Of the experts: 2 per multiply-add.
    double flops(double rows) const { return 2 * weights_per_expert() * rows; }
    double router_flops(Index tokens) const {
        return 2.0 * static_cast<double>(tokens * dim * experts);
    }
};

inline constexpr LayerShape shapes[] = {
    {.name = "tiny", .dim = 256, .ffn = 512, .experts = 8, .k = 2, .hot = true},
    {.name = "mixtral_mini", .dim = 1024, .ffn = 3584, .experts = 8, .k = 2},
    {.name = "olmoe", .dim = 2048, .ffn = 1024, .experts = 64, .k = 8},
    {.name = "deepseek_lite", .dim = 2048, .ffn = 1408, .experts = 64, .k = 6},
    {.name = "qwen3_30b", .dim = 2048, .ffn = 768, .experts = 128, .k = 8},
    // two of the eight experts of Mixtral 8x7B, both for every token
    {.name = "mixtral_pair", .dim = 4096, .ffn = 14336, .experts = 2, .k = 2, .most_tokens = 128}};

inline const LayerShape& shape_named(const std::string& name) {
    return *std::find_if(std::begin(shapes), std::end(shapes),
                         [&](const LayerShape& shape) { return shape.name == name; });
}

/// How a layer is frozen.
struct Variant {
    moe::Storage storage;
    moe::Compute compute;
    bool everywhere = true;  ///< false: only measured for a few numbers of tokens

    bool is_float() const { return storage == moe::Storage::fp32; }
    /// "bf16" for weights stored so and multiplied as floats, else "int4_int8".
    std::string name() const {
        const std::string stored = moe::name(storage);
        return compute == moe::Compute::exact ? stored : stored + "_" + moe::name(compute);
    }
    /// Rows with a larger max_error are wrong.
    double tolerance() const {
        return compute == moe::Compute::exact ? 1e-5 : compute == moe::Compute::bf16 ? 2e-2 : 8e-2;
    }
};

inline constexpr Variant variants[] = {{moe::Storage::fp32, moe::Compute::exact},
                                       {moe::Storage::bf16, moe::Compute::bf16},
                                       {moe::Storage::int8, moe::Compute::int8},
                                       {moe::Storage::int4, moe::Compute::int8},
                                       {moe::Storage::bf16, moe::Compute::exact, false},
                                       {moe::Storage::int8, moe::Compute::exact, false},
                                       {moe::Storage::int4, moe::Compute::exact, false},
                                       {moe::Storage::ternary, moe::Compute::int8, false}};

/// 1, 2, 4, … and all cores.
inline std::vector<int> thread_counts() {
    const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    std::vector<int> counts;
    for (int threads = 1; threads < cores; threads *= 2) counts.push_back(threads);
    counts.push_back(cores);
    return counts;
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_SHAPES_HPP
