// SPDX-License-Identifier: MIT
// Runs one layer of a published model, straight from the files that its authors published: reads
// config.json, finds the layer's tensors in the safetensors files, and computes what the published
// code computes, forward and backward.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/workspace.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/file.hpp>
#include <moe/io/routing.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/save.hpp>
#include <moe/stats/report.hpp>

#include "model.hpp"
#include "options.hpp"
#include "previous_layer.hpp"

namespace run_layer {
namespace {

using moe::Index, moe::Matrix;

/// A tensor of the input as floats; must be [rows, cols].
Matrix<float> read(const moe::Checkpoint& input, const char* name, Index rows, Index cols) {
    const moe::TensorView tensor = input.at(name);
    if (!(tensor.shape == moe::Extents{rows, cols}))
        throw std::runtime_error(std::string("the input's ") + name + " is " +
                                 to_string(tensor.shape) + ", it must be " +
                                 to_string(moe::Extents{rows, cols}));
    return tensor.copy<float>();
}

moe::Checkpoint open_model(const std::string& path) {
    return moe::Checkpoint::open(path, [](Index number, Index count, std::string_view file) {
        std::fprintf(stderr, "%.*s (%td of %td)\n", static_cast<int>(file.size()), file.data(),
                     number, count);
    });
}

/// Whether the router adds to the logits of the layer before.
bool hears_previous(const moe::Names& names, Index layer) {
    return layer > 0 &&
           std::any_of(names.table().begin(), names.table().end(),
                       [](const auto& entry) { return entry.parameter == "router.residual"; });
}

/// Who works on which token: expert_ids and expert_weights [T, K], of experts that were not
/// dropped.
void add_choices(const moe::Routing& routing, moe::SafetensorsWriter& writer) {
    std::vector<std::vector<moe::Assignment>> chosen(
        static_cast<std::size_t>(routing.num_tokens()));
    std::size_t slots = 0;
    for (const moe::Assignment& a : routing.assignments()) {
        if (a.dropped != moe::Dropped::no) continue;
        auto& of_token = chosen[static_cast<std::size_t>(a.token)];
        of_token.push_back(a);
        slots = std::max(slots, of_token.size());
    }
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    for (const auto& of_token : chosen)
        for (std::size_t i = 0; i < slots; ++i) {
            const bool is_used = i < of_token.size();
            ids.push_back(is_used ? of_token[i].expert : -1);
            weights.push_back(
                is_used ? static_cast<float>(of_token[i].weight * of_token[i].input_weight) : 0);
        }
    const moe::Extents shape{routing.num_tokens(), static_cast<Index>(slots)};
    writer.add("expert_ids", std::span(ids), shape);
    writer.add("expert_weights", std::span(weights), shape);
}

void run(const Options& options) {
    const moe::ModelConfig config = read_config(options.model + "/config.json");
    const moe::Checkpoint model = open_model(options.model);
    const auto [layer, names] = read_layer(config, model, options.layer, options.storage);

    const moe::Checkpoint input = moe::Checkpoint::open(options.input);
    const Index tokens = input.at("hidden_states").rows();
    const Matrix<float> x = read(input, "hidden_states", tokens, layer.model_dim());
    moe::Workspace<float> ws, previous;
    if (options.threads > 0) ws.threads(options.threads);
    if (!options.backward) ws.keep(moe::Keep::nothing);
    const std::array<Index, 2> one_sequence{0, tokens};
    moe::Context context{.sequence_offsets = one_sequence};
    const bool hears = hears_previous(names, options.layer);
    if (hears) {
        const Index logits = layer.num_experts();
        leave_logits(read(input, "previous_logits", tokens, logits), previous);
        context.previous = &previous;
    }

    Matrix<float> y(tokens, layer.output_dim());
    layer.forward(x, y, ws, context);
    moe::SafetensorsWriter output;
    output.add("output", y);
    output.add("router_logits", ws.logits());
    add_choices(ws.routing(), output);
    if (options.backward) {
        if (input.find("grad_router_logits") != nullptr)
            ws.dlogits() += read(input, "grad_router_logits", tokens, ws.logits().cols());
        const Matrix<float> dy = read(input, "grad_output", tokens, y.cols());
        Matrix<float> dx(tokens, x.cols());
        moe::AnyLayer<float> grad = zeros_like(layer);
        layer.backward(x, dy, dx, grad, ws, context);
        output.add("grad_input", dx);
        moe::save(grad, names, output, {.prefix = "grad."});
        if (hears) output.add("grad_previous_logits", previous.dlogits());
    }
    moe::write_file(options.output, output.bytes());
    if (!options.routing.empty()) moe::write_file(options.routing, moe::save_routing(ws.routing()));
    if (options.stats) std::fputs(moe::report(ws).c_str(), stdout);
}

}  // namespace
}  // namespace run_layer

int main(int argc, char** argv) {
    try {
        const run_layer::Options options = run_layer::parse(argc, argv);
        if (options.help)
            std::fputs(run_layer::usage, stdout);
        else
            run_layer::run(options);
        return 0;
    } catch (const run_layer::UsageError& error) {
        std::fprintf(stderr, "run_layer: %s\n\n%s", error.what(), run_layer::usage);
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "run_layer: %s\n", error.what());
        return 1;
    }
}
