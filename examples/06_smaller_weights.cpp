// SPDX-License-Identifier: MIT
// A layer for inference whose weights take 16, 8, 4 or 2 bits, and what that changes.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/06_smaller_weights.cpp -o small
//     && ./small
// prints: bf16       exact   0.79 MB, off by 0.0
// prints: int8       int8    0.41 MB, off by 0.0
#include <cstdio>
#include <stdexcept>

#include <moe/moe.hpp>

int main() {
    using moe::Compute;
    using moe::Storage;
    const moe::Layer layer{moe::Config{.model_dim = 128}, moe::LinearRouter{}, moe::TopK{.k = 2},
                           moe::Swiglu{.count = 8, .ffn_dim = 128}};
    const moe::Matrix<float> x = moe::Random(3).normal<float>(200, 128, 1), y = layer(x);
    const auto report = [&](const char* stored, const char* computed,
                            const moe::FreezeOptions& options) {
        const auto frozen = moe::freeze(layer, options);
        const double off = (frozen(x) - y).norm() / y.norm();
        std::printf("%-10s %-7s %.2f MB, off by %.4f\n", stored, computed,
                    static_cast<double>(frozen.bank().group<0>().bytes()) / 1e6, off);
    };

    for (const Storage storage : moe::all_storages)
        for (const Compute compute : moe::all_computes)
            if (moe::fits(storage, compute))
                report(moe::name(storage), moe::name(compute),
                       {.storage = storage, .compute = compute});

    // One storage per expert: the first two keep 8 bits, the others 4.
    moe::FreezeOptions options{.compute = Compute::int8};
    for (moe::Index e = 0; e < layer.num_experts(); ++e)
        options.experts.push_back(e < 2 ? Storage::int8 : Storage::int4);
    report("8 and 4", "int8", options);

    options.experts[5] = Storage::f16;  // which no integer arithmetic multiplies
    try {
        report("", "", options);
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
    }
}
