// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_MODEL_CONFIG_HPP
#define MOE_PRESETS_MODEL_CONFIG_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// The settings of a model, of its config.json for instance, by name.
///
/// Whoever reads the file, with whatever reads JSON, fills it; members of members are called as in
/// "text_config.hidden_size":
///
///     moe::ModelConfig config;
///     config.set("hidden_size", 4096);
///     config.set("norm_topk_prob", true);
///
/// A preset's of() asks for what it needs; what is missing or of another type throws FormatError
/// with the name.
class ModelConfig {
public:
    using Value = std::variant<std::nullptr_t, bool, std::int64_t, double, std::string,
                               std::vector<std::int64_t>>;

    /// @param value  a bool, an integer, a double, a text, a list of integers, or nullptr, which
    ///               counts as missing but for is_null()
    template <class T>
    void set(std::string_view name, T value) {
        if constexpr (std::is_same_v<T, bool> || std::is_null_pointer_v<T>)
            values_.insert_or_assign(std::string(name), Value(value));
        else if constexpr (std::is_integral_v<T>)
            values_.insert_or_assign(std::string(name), Value(static_cast<std::int64_t>(value)));
        else if constexpr (std::is_floating_point_v<T>)
            values_.insert_or_assign(std::string(name), Value(static_cast<double>(value)));
        else if constexpr (std::is_convertible_v<T, std::string>)
            values_.insert_or_assign(std::string(name), Value(std::string(std::move(value))));
        else
            values_.insert_or_assign(std::string(name), Value(std::move(value)));
    }

    /// The first of names that there is a value of, for what versions call differently; the first
    /// if there is none.
    std::string_view first_of(std::initializer_list<std::string_view> names) const {
        for (const std::string_view name : names)
            if (has(name)) return name;
        return *names.begin();
    }
    /// Whether there is a value of that name, not null.
    bool has(std::string_view name) const { return find(name) != nullptr && !is_null(name); }
    /// Whether null stands there, which says "none" to some models.
    bool is_null(std::string_view name) const {
        const Value* const value = find(name);
        return value != nullptr && std::holds_alternative<std::nullptr_t>(*value);
    }

    /// Makes sure of a setting that a preset does not have.
    /// @throws FormatError if there is another value
    template <class T>
    void expect(std::string_view name, const T& value) const {
        bool same = true;
        std::string found;
        if constexpr (std::is_same_v<T, bool>) {
            same = flag(name, value) == value;
            found = same || value ? "false" : "true";
        } else if constexpr (std::is_arithmetic_v<T>) {
            const double other = number(name, static_cast<double>(value));
            same = other == static_cast<double>(value);
            found = detail::text(other);
        } else {
            found = text(name, value);
            same = found == value;
            found = detail::in_quotes(found);
        }
        if (!same) refuse(name, "is " + found + ", which this preset is not for");
    }

    /// An extent or a count, 0 to 2^40.
    Index integer(std::string_view name) const {
        const auto* integer = std::get_if<std::int64_t>(&at(name));
        if (integer == nullptr) refuse(name, "is no integer");
        return count(name, *integer);
    }
    /// The same of a layer, where there is a list of them with an entry for each.
    Index integer_of_layer(std::string_view name, Index layer) const {
        const auto* list = std::get_if<std::vector<std::int64_t>>(&at(name));
        if (list == nullptr) return integer(name);
        if (layer < 0 || layer >= static_cast<Index>(list->size()))
            refuse(name, "has no entry for layer " + std::to_string(layer));
        return count(name, (*list)[static_cast<std::size_t>(layer)]);
    }
    Index integer(std::string_view name, Index otherwise) const {
        return has(name) ? integer(name) : otherwise;
    }
    /// A finite number.
    double number(std::string_view name) const {
        const Value& value = at(name);
        if (const auto* integer = std::get_if<std::int64_t>(&value))
            return static_cast<double>(*integer);
        const auto* number = std::get_if<double>(&value);
        if (number == nullptr) refuse(name, "is no number");
        if (!std::isfinite(*number)) refuse(name, "is not finite");
        return *number;
    }
    double number(std::string_view name, double otherwise) const {
        return has(name) ? number(name) : otherwise;
    }
    bool flag(std::string_view name) const {
        const auto* flag = std::get_if<bool>(&at(name));
        if (flag == nullptr) refuse(name, "is neither true nor false");
        return *flag;
    }
    bool flag(std::string_view name, bool otherwise) const {
        return has(name) ? flag(name) : otherwise;
    }
    std::string text(std::string_view name) const {
        const auto* text = std::get_if<std::string>(&at(name));
        if (text == nullptr) refuse(name, "is no text");
        return *text;
    }
    std::string text(std::string_view name, std::string_view otherwise) const {
        return has(name) ? text(name) : std::string(otherwise);
    }

    /// The members of a member: "hidden_size" for "text_config.hidden_size"; all if it has none.
    ModelConfig inside(std::string_view name) const {
        const std::string prefix = std::string(name) + ".";
        ModelConfig members;
        for (const auto& [key, value] : values_)
            if (key.starts_with(prefix)) members.values_.emplace(key.substr(prefix.size()), value);
        return members.values_.empty() ? *this : members;
    }

private:
    static Index count(std::string_view name, std::int64_t value) {
        if (value < 0 || value > std::int64_t{1} << 40)
            refuse(name, "is " + std::to_string(value) + ", not a count or an extent");
        return static_cast<Index>(value);
    }
    const Value* find(std::string_view name) const {
        const auto found = values_.find(name);
        return found == values_.end() ? nullptr : &found->second;
    }
    const Value& at(std::string_view name) const {
        const Value* const value = find(name);
        if (value == nullptr || is_null(name)) refuse(name, "is missing");
        return *value;
    }
    [[noreturn]] static void refuse(std::string_view name, const std::string& what) {
        detail::fail<FormatError>("moe::ModelConfig: ", detail::in_quotes(name), " ", what);
    }

    std::map<std::string, Value, std::less<>> values_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_MODEL_CONFIG_HPP
