// SPDX-License-Identifier: MIT
// A layer of a published model from its folder: run as it lies in the files, packed, explained,
// trained and saved for Python. Give it a folder of Mixtral; without one it writes a small one.
#include <cstdio>
#include <string>

#include <moe/io/save.hpp>
#include <moe/moe.hpp>
#include <moe/presets.hpp>

// Stands for a download: layer 0 of a Mixtral with other extents, under its published names.
static void write_model(const std::string& path, const moe::presets::Mixtral& preset) {
    moe::SafetensorsWriter writer;
    moe::save(moe::make_layer(preset), preset.names(0), writer, {.dtype = moe::Dtype::bf16});
    moe::write_file(path, writer.bytes());
}

int main(int argc, char** argv) {
    std::string path = argc > 1 ? argv[1] : "small_mixtral.safetensors";
    moe::presets::Mixtral preset;  // 8x7B
    if (argc < 2) write_model(path, preset = {.model_dim = 64, .ffn_dim = 96});

    // From the folder to the first output.
    const auto checkpoint = moe::Checkpoint::open(path);       // mapped; only headers are read
    const auto layer = moe::bind(checkpoint, preset, 0);       // layer 0: experts stay in the file
    const auto x = moe::Random(1).normal<float>(4, preset.model_dim, 1);  // your tokens
    const moe::Matrix<float> y = layer(x);

    const auto packed = moe::freeze(layer);                    // quicker for many tokens
    const auto small = moe::freeze(layer, {.storage = moe::Storage::int8});
    std::printf("%s\n", moe::explain(preset).c_str());
    std::printf("packed gives the same bits: %s\n", packed(x) == y ? "yes" : "no");
    // prints: packed gives the same bits: yes
    std::printf("int8 is off by %.1f %% of the largest output\n",
                100 * (small(x) - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff());

    // To train it, own the weights; to give it back, write what Python reads.
    auto owned = moe::load(checkpoint, preset, 0);
    owned.router().weight(0, 0) += 0.5f;
    moe::SafetensorsWriter writer;
    moe::save(owned, preset.names(0), writer, {.dtype = moe::Dtype::bf16});
    moe::write_file("tuned.safetensors", writer.bytes());
    std::printf("%td tensors saved\n", moe::Checkpoint::open("tuned.safetensors").size());
    // prints: 25 tensors saved
}
