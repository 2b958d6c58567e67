// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_COLOR_RAMP_HPP
#define MOE_STATS_COLOR_RAMP_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// An sRGB colour.
struct Color {
    std::uint8_t red = 0, green = 0, blue = 0;

    bool operator==(const Color&) const = default;

    /// Relative luminance in [0, 1]: 1 is white (WCAG 2).
    double luminance() const {
        const auto linear = [](std::uint8_t channel) {
            const double c = channel / 255.0;
            return c <= 0.04045 ? c / 12.92 : std::pow((c + 0.055) / 1.055, 2.4);
        };
        return std::fma(0.2126, linear(red),
                        std::fma(0.7152, linear(green), 0.0722 * linear(blue)));
    }

    /// "#rrggbb"
    std::string hex() const {
        static constexpr char digits[] = "0123456789abcdef";
        std::string text = "#";
        for (const int channel : {red, green, blue}) {
            text += digits[channel / 16];
            text += digits[channel % 16];
        }
        return text;
    }
};

/// The stops of the ramp: pale yellow over teal to dark violet, lightness falling in equal steps in
/// OKLab, so that more is darker for every eye and in grey print.
inline constexpr std::array<Color, 11> ramp_stops{{{0xf5, 0xfa, 0xde},
                                                   {0xc9, 0xeb, 0xbb},
                                                   {0x92, 0xdc, 0xac},
                                                   {0x4d, 0xcb, 0xaa},
                                                   {0x0d, 0xb3, 0xac},
                                                   {0x05, 0x98, 0xa6},
                                                   {0x03, 0x7f, 0x9d},
                                                   {0x00, 0x65, 0x93},
                                                   {0x17, 0x4b, 0x85},
                                                   {0x26, 0x34, 0x65},
                                                   {0x24, 0x22, 0x40}}};

/// The colour at t: 0 is the lightest, 1 the darkest. t is clamped; it must not be NaN.
inline Color ramp_color(double t) {
    const double place = std::clamp(t, 0.0, 1.0) * static_cast<double>(ramp_stops.size() - 1);
    const auto stop = std::min(static_cast<std::size_t>(place), ramp_stops.size() - 2);
    const double part = place - static_cast<double>(stop);
    const auto mix = [part](std::uint8_t from, std::uint8_t to) {
        return static_cast<std::uint8_t>(
            std::lround(std::fma(part, static_cast<double>(to) - from, static_cast<double>(from))));
    };
    const Color &a = ramp_stops[stop], &b = ramp_stops[stop + 1];
    return {mix(a.red, b.red), mix(a.green, b.green), mix(a.blue, b.blue)};
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_COLOR_RAMP_HPP
