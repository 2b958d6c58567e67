// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_DESCRIPTION_HPP
#define MOE_PRESETS_DESCRIPTION_HPP

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What a recipe is set to, in words. describe(recipe, description) fills it; see explain().
///
///     void describe(const MyGate& gate, moe::Description& to) {     // beside MyGate
///         to.name = "MyGate";
///         to.rule("threshold", gate.threshold);
///     }
struct Description {
    struct Setting {
        std::string name, value;
        std::string phrase;    ///< "score sigmoid"; empty: as usual, or said with another setting
        bool matters = true;   ///< as the other settings are
        bool is_rule = false;  ///< otherwise an extent or a count
    };

    std::string name;  ///< of the recipe
    /// The same ones in the same order, whatever they are.
    std::vector<Setting> settings;

    /// Adds a setting that says what is done.
    /// @param value    a number, a bool or a text
    /// @param shown    whether the text has it: settings as usual are left out
    /// @param matters  false: another value would make no difference here
    template <class V>
    Setting& rule(std::string_view of, const V& value, bool shown = true, bool matters = true) {
        return add(of, value, shown && matters, matters, true);
    }
    /// Adds a setting that says how much of it there is.
    template <class V>
    Setting& dimension(std::string_view of, const V& value, bool shown = true) {
        return add(of, value, shown, true, false);
    }

private:
    template <class V>
    Setting& add(std::string_view of, const V& value, bool shown, bool matters, bool is_rule) {
        std::string said;
        if constexpr (std::is_same_v<V, bool>)
            said = value ? "yes" : "no";
        else
            said = detail::text(value);
        std::string phrase;
        if (shown) phrase = std::string(of) + (said == "yes" ? "" : " " + said);
        return settings.emplace_back(
            Setting{std::string(of), std::move(said), std::move(phrase), matters, is_rule});
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_DESCRIPTION_HPP
