// SPDX-License-Identifier: MIT
// The only place that knows JSON.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <moe/io/file.hpp>

#include "model.hpp"

namespace run_layer {
namespace {

using nlohmann::json;

/// Adds the members of an object, the names behind `prefix`. What presets do not ask for (lists
/// of texts, objects far inside) is left out.
void add_members(const json& object, const std::string& prefix, int depth,
                 moe::ModelConfig& config) {
    for (const auto& [key, value] : object.items()) {
        const std::string name = prefix + key;
        const auto is_integer = [](const json& one) { return one.is_number_integer(); };
        if (value.is_object() && depth > 0)
            add_members(value, name + ".", depth - 1, config);
        else if (value.is_null())
            config.set(name, nullptr);
        else if (value.is_boolean())
            config.set(name, value.get<bool>());
        else if (value.is_number_integer())
            config.set(name, value.get<std::int64_t>());
        else if (value.is_number())
            config.set(name, value.get<double>());
        else if (value.is_string())
            config.set(name, value.get<std::string>());
        else if (value.is_array() && std::all_of(value.begin(), value.end(), is_integer))
            config.set(name, value.get<std::vector<std::int64_t>>());
    }
}

}  // namespace

moe::ModelConfig read_config(const std::string& path) {
    const std::vector<std::byte> bytes = moe::read_file(path);
    const auto* const text = reinterpret_cast<const char*>(bytes.data());
    const json root = json::parse(text, text + bytes.size(), nullptr, false);  // does not throw
    if (!root.is_object()) throw std::runtime_error(path + " is no JSON object");
    moe::ModelConfig config;
    add_members(root, "", 4, config);
    return config;
}

}  // namespace run_layer
