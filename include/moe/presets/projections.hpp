// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_PROJECTIONS_HPP
#define MOE_PRESETS_PROJECTIONS_HPP

#include <initializer_list>
#include <string>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/io/names.hpp>

namespace moe::inline MOE_ABI::detail {

/// Names of most models' gated experts: gate_proj, up_proj and down_proj, each with the scales that
/// FP8 releases have.
/// @param parameter, tensor  "experts.#"
inline std::vector<TensorName> projections(const std::string& parameter,
                                           const std::string& tensor) {
    std::vector<TensorName> table;
    for (const char* const name : {"gate", "up", "down"}) {
        const std::string weight = tensor + "." + name + "_proj.weight";
        table.push_back({.parameter = parameter + "." + name,
                         .tensor = weight,
                         .layout = {},
                         .scales = weight + "_scale_inv"});
    }
    return table;
}

/// All of them, one behind the other.
inline std::vector<TensorName> joined(std::initializer_list<std::vector<TensorName>> tables) {
    std::vector<TensorName> all;
    for (const auto& table : tables) all.insert(all.end(), table.begin(), table.end());
    return all;
}

/// "model.layers.<layer>.mlp"
inline std::string layer_path(Index layer, const char* module, const char* model = "model") {
    return std::string(model) + ".layers." + std::to_string(layer) + "." + module;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_PRESETS_PROJECTIONS_HPP
