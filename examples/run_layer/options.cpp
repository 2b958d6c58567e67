// SPDX-License-Identifier: MIT
#include "options.hpp"

#include <charconv>
#include <string_view>
#include <system_error>

namespace run_layer {
namespace {

/// A whole number from `least` on.
template <class Number>
Number number(const std::string& option, std::string_view text, Number least) {
    Number value{};
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end || value < least)
        throw UsageError(option + " is " + std::string(text) +
                         ", it must be a whole number >= " + std::to_string(least));
    return value;
}

moe::Storage storage(const std::string& option, const std::string& text) {
    for (const moe::Storage one : {moe::Storage::fp32, moe::Storage::bf16, moe::Storage::int8})
        if (text == moe::name(one)) return one;
    throw UsageError(option + " is " + text + ", it must be fp32, bf16 or int8");
}

}  // namespace

const char* const usage =
    R"(usage: run_layer --model DIR --layer N --input FILE --output FILE [options]

Runs one mixture-of-experts layer of a published model on vectors of your own.

  --model DIR      a folder with config.json and safetensors files, as save_pretrained() writes it
  --layer N        which of its layers, counted from 0; of an encoder and a decoder, the decoder's
                   follow those of the encoder
  --input FILE     safetensors with hidden_states [T, D], of any floating-point dtype, and
                     grad_output [T, D]         for --backward
                     previous_logits [T, L]     MoE++, all layers but the first: router_logits of
                                                the layer before
                     grad_router_logits [T, L]  for --backward, if something else than the output
                                                depends on the logits, too
  --output FILE    safetensors with
                     output [T, D]
                     router_logits [T, L]   before softmax or sigmoid
                     expert_ids [T, K]      in order of selection, -1 where a token has fewer
                     expert_weights [T, K]  of the experts' outputs (Llama-4: of their inputs)
                   and with --backward
                     grad_input [T, D], grad.NAME for every tensor NAME of the layer,
                     grad_previous_logits [T, L] if there were previous_logits
  --backward       also computes gradients, of the sum of output * grad_output
  --storage KIND   packs the experts for this machine, stored as fp32, bf16 or int8; without it
                   they are read where the checkpoint has them
  --routing FILE   writes who works on which token, for moe::load_routing()
  --stats          prints how the work is shared out
  --threads N      instead of one for each processor
  --help           prints this text
)";

Options parse(int argc, const char* const* argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        const auto value = [&]() -> std::string {
            if (i + 1 == argc) throw UsageError(option + " wants a value");
            return argv[++i];
        };
        if (option == "--model")
            options.model = value();
        else if (option == "--layer")
            options.layer = number<moe::Index>(option, value(), 0);
        else if (option == "--input")
            options.input = value();
        else if (option == "--output")
            options.output = value();
        else if (option == "--storage")
            options.storage = storage(option, value());
        else if (option == "--routing")
            options.routing = value();
        else if (option == "--threads")
            options.threads = number(option, value(), 1);
        else if (option == "--backward")
            options.backward = true;
        else if (option == "--stats")
            options.stats = true;
        else if (option == "--help")
            options.help = true;
        else
            throw UsageError("unknown option " + option);
    }
    if (options.help) return options;
    if (options.model.empty()) throw UsageError("--model is missing");
    if (options.layer < 0) throw UsageError("--layer is missing");
    if (options.input.empty()) throw UsageError("--input is missing");
    if (options.output.empty()) throw UsageError("--output is missing");
    if (options.backward && options.storage)
        throw UsageError("--backward does not go with --storage: packed layers have no backward");
    return options;
}

}  // namespace run_layer
