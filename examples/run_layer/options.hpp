// SPDX-License-Identifier: MIT
#ifndef RUN_LAYER_OPTIONS_HPP
#define RUN_LAYER_OPTIONS_HPP

#include <optional>
#include <stdexcept>
#include <string>

#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>

namespace run_layer {

/// What the command line says.
struct Options {
    std::string model, input, output;
    moe::Index layer = -1;
    std::optional<moe::Storage> storage;  ///< none: experts read the checkpoint where it lies
    std::string routing;                  ///< a file to write; empty: none
    int threads = 0;                      ///< 0: as many as the machine has
    bool backward = false, stats = false, help = false;
};

/// A command line that cannot be followed.
struct UsageError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

extern const char* const usage;

/// @throws UsageError
Options parse(int argc, const char* const* argv);

}  // namespace run_layer

#endif  // RUN_LAYER_OPTIONS_HPP
