// SPDX-License-Identifier: MIT
#ifndef MOE_IO_TEXT_HPP
#define MOE_IO_TEXT_HPP

#include <cstddef>
#include <string>
#include <string_view>

#include <moe/config.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Bytes of the longest prefix of `text` that is valid UTF-8: no overlong forms, no surrogates,
/// nothing above U+10FFFF.
inline std::size_t utf8_prefix(std::string_view text) {
    const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    std::size_t i = 0;
    while (i < text.size()) {
        const unsigned char lead = byte(i);
        if (lead < 0x80) {
            ++i;
            continue;
        }
        const std::size_t tail = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || tail >= text.size() - i) return i;
        // Only the first byte after the lead has a narrower range than 80 to BF.
        const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if (byte(i + 1) < low || byte(i + 1) > high) return i;
        for (std::size_t j = 2; j <= tail; ++j)
            if ((byte(i + j) & 0xc0) != 0x80) return i;
        i += tail + 1;
    }
    return i;
}

/// `name` in quotes, fit for a sentence: at most 80 bytes, whatever is not printable ASCII as '?'.
inline std::string in_quotes(std::string_view name) {
    constexpr std::size_t longest = 80;
    std::string out = "\"";
    for (const char c : name.substr(0, longest)) out += c >= ' ' && c <= '~' ? c : '?';
    return out + (name.size() > longest ? "\"..." : "\"");
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_TEXT_HPP
