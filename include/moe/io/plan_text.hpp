// SPDX-License-Identifier: MIT
#ifndef MOE_IO_PLAN_TEXT_HPP
#define MOE_IO_PLAN_TEXT_HPP

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/plan.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

inline constexpr std::string_view plan_title = "moe-plan";
inline constexpr int plan_version = 1;

/// visit(name, member) for every member.
template <class P, class F>
void for_each_member(P& plan, F&& visit) {
    visit("column_rows", plan.column_rows);
    visit("bf16_tile_rows", plan.bf16_tile_rows);
    visit("int8_tile_rows", plan.int8_tile_rows);
    visit("block_tile_rows", plan.block_tile_rows);
    visit("ternary_tile_rows", plan.ternary_tile_rows);
    visit("serial_flops", plan.serial_flops);
}

/// Without the blanks at both ends.
inline std::string_view trimmed(std::string_view text) {
    constexpr std::string_view blanks = " \t\r";
    const std::size_t begin = text.find_first_not_of(blanks);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

/// What stands before the first `end`, which is taken off the text with it; all if there is none.
inline std::string_view take_until(std::string_view& text, char end) {
    const std::size_t at = std::min(text.find(end), text.size());
    const std::string_view taken = text.substr(0, at);
    text.remove_prefix(std::min(at + 1, text.size()));
    return trimmed(taken);
}

/// Whether all of the text is one number that N can hold.
template <class N>
bool read_number(std::string_view text, N& to) {
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, to);
    return error == std::errc() && stop == end;
}

/// A piece of a text in a message, its beginning only if it is long.
inline std::string quoted(std::string_view piece) {
    constexpr std::size_t most = 40;
    std::string text = "\"";
    text += piece.substr(0, most);
    return text + (piece.size() > most ? "...\"" : "\"");
}

/// @throws FormatError, std::invalid_argument  see plan_from_text()
inline void check_plan_title(std::string_view line) {
    std::string_view rest = line;
    const auto word = [&] {
        rest = trimmed(rest);
        return take_until(rest, ' ');
    };
    const std::string_view title = word(), version = word(), measured = trimmed(rest);
    int number = 0;
    if (title != plan_title || !read_number(version, number) || measured.empty())
        fail<FormatError>("moe::plan_from_text: the first line is ", quoted(line),
                          ", it must be a title like \"moe-plan 1 avx512\"; write the text with "
                          "moe::to_text");
    if (number != plan_version)
        fail<FormatError>("moe::plan_from_text: the plan has version ", number,
                          ", this library reads version ", plan_version,
                          "; measure again with moe::tune");
    if (measured != name(isa()))
        fail("moe::plan_from_text: the plan was measured with ", quoted(measured),
             ", the instruction set in use is \"", name(isa()), "\"; measure again with moe::tune");
}

}  // namespace detail

/// A plan as text: a title with the version of the format and the instruction set in use, which
/// must be the one that the plan was measured with, then a line `key = value` for each member. The
/// same text in every locale.
inline std::string to_text(const Plan& plan) {
    std::string text(detail::plan_title);
    text += " " + detail::text(detail::plan_version) + " " + name(isa()) + "\n";
    detail::for_each_member(plan, [&](const char* key, auto value) {
        text += std::string(key) + " = " + detail::text(value) + "\n";
    });
    return text;
}

/// The plan that to_text() wrote. Keys may be in any order; one that is missing means the default.
/// @throws FormatError if the text is not a plan: another title or version, a line that is not
///         `key = value`, a key that is unknown or there twice, a value that is not a number
/// @throws std::invalid_argument if the plan was measured with another instruction set than the one
///         in use, or a value is outside its range
inline Plan plan_from_text(std::string_view text) {
    detail::check_plan_title(detail::take_until(text, '\n'));
    Plan plan;
    std::vector<std::string_view> seen;
    while (!text.empty()) {
        const std::string_view line = detail::take_until(text, '\n');
        if (line.empty()) continue;
        if (line.find('=') == std::string_view::npos)
            detail::fail<FormatError>("moe::plan_from_text: a line is ", detail::quoted(line),
                                      ", it must be \"key = value\"");
        std::string_view value = line;
        const std::string_view key = detail::take_until(value, '=');
        value = detail::trimmed(value);
        if (std::find(seen.begin(), seen.end(), key) != seen.end())
            detail::fail<FormatError>("moe::plan_from_text: the key ", detail::quoted(key),
                                      " is there twice, remove one");
        seen.push_back(key);
        bool known = false;
        detail::for_each_member(plan, [&](const char* member, auto& to) {
            if (key != member) return;
            known = true;
            if (!detail::read_number(value, to))
                detail::fail<FormatError>(
                    "moe::plan_from_text: ", member, " is ", detail::quoted(value),
                    ", it must be a ",
                    std::is_same_v<decltype(to), double&> ? "number" : "whole number of 64 bits",
                    "; measure again with moe::tune");
        });
        if (!known)
            detail::fail<FormatError>("moe::plan_from_text: the key ", detail::quoted(key),
                                      " is unknown; measure again with moe::tune");
    }
    detail::check_plan("moe::plan_from_text", plan);
    return plan;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_PLAN_TEXT_HPP
