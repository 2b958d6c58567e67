// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_FORMAT_HPP
#define MOE_STATS_FORMAT_HPP

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>

#include <moe/config.hpp>
#include <moe/core/types.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// `value` with `places` digits after the point, whatever the locale; "nan", "inf", "-inf". A zero
/// has no sign.
inline std::string fixed(double value, int places) {
    if (std::isnan(value)) return "nan";
    char buffer[400];
    const auto end =
        std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed, places).ptr;
    std::string text(buffer, end);
    if (text.front() == '-' && text.find_first_not_of("-0.") == std::string::npos) text.erase(0, 1);
    return text;
}

/// `value` with `digits` significant digits and no trailing zeros: "0.125", "1500", "2.5e-07".
inline std::string significant(double value, int digits) {
    if (std::isnan(value)) return "nan";
    if (value == 0) return "0";
    char buffer[64];
    return {buffer,
            std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, digits)
                .ptr};
}

inline std::string percent(double fraction) { return fixed(100 * fraction, 1) + " %"; }

/// Code points of a UTF-8 text: about how many columns it takes.
inline Index columns_of(std::string_view text) {
    return static_cast<Index>(std::count_if(text.begin(), text.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    }));
}

/// `text` with spaces on its left, `columns` wide or wider.
inline std::string right_aligned(const std::string& text, Index columns) {
    const Index missing = std::max<Index>(0, columns - columns_of(text));
    return std::string(static_cast<std::size_t>(missing), ' ') + text;
}

/// The singular or plural: "1 token", "2 tokens".
inline std::string counted(Index count, const char* what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

/// `text` for XML: markup escaped, what XML cannot hold (bytes that are not UTF-8, control
/// characters) as U+FFFD.
inline std::string escape_xml(std::string_view text) {
    static constexpr const char* replacement = "\xef\xbf\xbd";
    std::string out;
    while (!text.empty()) {
        const std::size_t valid = utf8_prefix(text);
        for (std::size_t i = 0; i < valid; ++i) {
            const char c = text[i];
            const bool is_noncharacter =
                text.substr(i, 3) == "\xef\xbf\xbe" || text.substr(i, 3) == "\xef\xbf\xbf";
            if (is_noncharacter) {
                out += replacement;
                i += 2;
            } else if (c == '&') {
                out += "&amp;";
            } else if (c == '<') {
                out += "&lt;";
            } else if (c == '>') {
                out += "&gt;";
            } else if (c == '"') {
                out += "&quot;";
            } else if (c == '\t' || c == '\n' || c == '\r') {
                out += ' ';
            } else if (static_cast<unsigned char>(c) < 0x20) {
                out += replacement;
            } else {
                out += c;
            }
        }
        text.remove_prefix(valid);
        if (text.empty()) break;
        out += replacement;
        text.remove_prefix(1);
    }
    return out;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_FORMAT_HPP
