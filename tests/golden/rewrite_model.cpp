// SPDX-License-Identifier: MIT
// Reads the MoE layers of a model folder and writes the folder again, with these layers as
// moe::save() writes them: what check_roundtrip.py gives to other readers.
//
//     rewrite_model IN OUT LAYER...
#include <cstdio>
#include <exception>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <moe/io/checkpoint.hpp>
#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/save.hpp>

#include "../../examples/run_layer/model.hpp"

namespace {

void rewrite(const std::string& from, const std::string& to, std::span<char*> layers) {
    const moe::ModelConfig config = run_layer::read_config(from + "/config.json");
    const moe::Checkpoint checkpoint = moe::Checkpoint::open(from);
    moe::SafetensorsWriter all, saved;
    std::set<std::string> prefixes;
    for (const char* const number : layers) {
        const run_layer::ModelLayer layer =
            run_layer::read_layer(config, checkpoint, std::stoi(number), {});
        moe::save(layer.layer, layer.names, all);
        moe::save(layer.layer, layer.names, saved);
        for (const std::string& prefix : layer.names.prefixes()) prefixes.insert(prefix);
    }
    // What no layer wrote is kept, but for tensors of the layers: those would not be ours.
    const std::vector<std::byte> bytes = saved.bytes();
    const moe::SafetensorsView ours(bytes);
    for (const moe::TensorView& tensor : checkpoint) {
        bool is_of_layer = ours.find(tensor.name) != nullptr;
        for (const std::string& prefix : prefixes)
            is_of_layer = is_of_layer || tensor.name.starts_with(prefix);
        if (!is_of_layer) all.add_view(tensor);
    }
    all.add_metadata("format", "pt");  // transformers asks for it
    std::filesystem::create_directories(to);
    std::filesystem::copy_file(from + "/config.json", to + "/config.json",
                               std::filesystem::copy_options::overwrite_existing);
    moe::write_file(to + "/model.safetensors", all.bytes());
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fputs("usage: rewrite_model IN OUT LAYER...\n", stderr);
        return 2;
    }
    try {
        rewrite(argv[1], argv[2], std::span(argv + 3, argv + argc));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "rewrite_model: %s\n", error.what());
        return 1;
    }
}
