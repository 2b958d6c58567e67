// SPDX-License-Identifier: MIT
// A layer of a published model from its folder: run as it lies in the file, packed, trained, saved for Python.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/16_published_model.cpp -o published && ./published
// prints: packed gives the same bits: yes
// prints: mapped back, the same bits: yes
// prints: saved: 25 tensors
#include <cstdio>

#include <moe/io/file.hpp>
#include <moe/moe.hpp>
#include <moe/presets.hpp>

int main(int argc, char** argv) {
    const char* const path = argc > 1 ? argv[1] : "small_mixtral.safetensors";
    moe::presets::Mixtral preset;  // 8x7B
    if (argc == 1) {               // no folder given: make a small Mixtral that stands for one
        preset = {.model_dim = 64, .ffn_dim = 96};
        moe::SafetensorsWriter model;
        moe::save(moe::make_layer(preset), preset.names(0), model, {.dtype = moe::Dtype::bf16});
        moe::write_file(path, model.bytes());
    }

    const auto checkpoint = moe::Checkpoint::open(path);  // a folder or a file; mapped, not read
    const auto layer = moe::bind(checkpoint, preset, 0);  // layer 0; its experts stay in the file

    const auto x = moe::Random(1).normal<float>(4, preset.model_dim, 1);  // 4 tokens
    const moe::Matrix<float> y = layer(x);

    const auto packed = moe::freeze(layer);  // quicker for many tokens, in memory of its own
    const auto small = moe::freeze(layer, {.storage = moe::Storage::int8});
    std::printf("%s", moe::explain(preset).c_str());
    std::printf("packed gives the same bits: %s\n", packed(x) == y ? "yes" : "no");
    std::printf("int8 is off by %.1f %% of the largest output\n",
                100 * (small(x) - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff());

    moe::SafetensorsWriter panels;  // packed once, mapped from now on
    moe::save_frozen(small, panels);
    moe::write_file("panels.safetensors", panels.bytes());
    const auto again = moe::open_frozen(moe::Checkpoint::open("panels.safetensors"), preset);
    std::printf("mapped back, the same bits: %s\n", again(x) == small(x) ? "yes" : "no");

    auto owned = moe::load(checkpoint, preset, 0);  // to train it, own the weights
    owned.router().weight(0, 0) += 0.5f;            // your optimiser
    moe::SafetensorsWriter writer;                  // under the names that Python reads
    moe::save(owned, preset.names(0), writer, {.dtype = moe::Dtype::bf16});
    moe::write_file("tuned.safetensors", writer.bytes());
    std::printf("saved: %td tensors\n", moe::Checkpoint::open("tuned.safetensors").size());
}
