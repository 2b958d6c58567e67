// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_HEAT_MAP_HPP
#define MOE_STATS_HEAT_MAP_HPP

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// How a heat map looks. All texts are UTF-8 and escaped.
struct HeatMapOptions {
    std::string title{};
    std::vector<std::string> row_labels{};     ///< one per row; empty: numbers from 0
    std::vector<std::string> column_labels{};  ///< one per column; empty: numbers from 0
    std::string row_title{};                   ///< what the rows are
    std::string column_title{};                ///< what the columns are
    std::string value_title{};                 ///< what the colours are
    std::optional<double> low{};    ///< lightest colour; unset: the smallest finite value
    std::optional<double> high{};   ///< darkest colour, >= low; unset: the largest finite value
    double cell = 0;                ///< side of a cell in pixels, up to 1000; 0: from the extents
    std::optional<bool> numbers{};  ///< write values into cells; unset: where they fit
    Index panels_per_row = 0;       ///< 0: from the extents
};

/// One of several heat maps side by side.
struct HeatMapPanel {
    std::string caption;
    Matrix<double> values;  // [rows, columns]
};

namespace detail {

/// Values to colours, over the finite values of all panels.
class HeatMapScale {
public:
    /// @throws std::invalid_argument if an end is not finite or low > high
    HeatMapScale(std::span<const HeatMapPanel> panels, const HeatMapOptions& options) {
        bool is_integral = true;
        for (const HeatMapPanel& panel : panels)
            for (Index i = 0; i < panel.values.size(); ++i) {
                const double v = panel.values.data()[i];
                has_nan = has_nan || std::isnan(v);
                if (!std::isfinite(v)) continue;
                low = std::min(low, v);
                high = std::max(high, v);
                is_integral = is_integral && v == std::floor(v);
            }
        if (!(low <= high)) low = 0, high = 1;  // nothing finite
        const double largest = std::max(std::abs(low), std::abs(high));
        if (!is_integral && largest > 0)
            places = std::clamp(1 - static_cast<int>(std::floor(std::log10(largest))), 0, 4);
        low = options.low.value_or(low);
        high = options.high.value_or(high);
        if (!(low <= high) || !std::isfinite(low) || !std::isfinite(high))
            fail("moe::svg_heat_map: the scale goes from ", low, " to ", high,
                 ", it must be finite and low <= high");
    }

    /// Where a value lies between low (0) and high (1), not clamped but for infinities; a scale of
    /// one value is all in the middle. NaN stays NaN.
    double place(double value) const {
        if (low == high) return value < low ? 0 : value > high ? 1 : 0.5;
        if (std::isinf(value)) return value < 0 ? 0 : 1;
        return (value / 2 - low / 2) / (high / 2 - low / 2);  // halves: the range may overflow
    }

    /// Round numbers from low to high, three to six of them; one if the scale has one value.
    std::vector<double> ticks() const {
        const double rough = (high / 2 - low / 2) / 2;  // a quarter of the range
        if (!(rough > 0) || !std::isfinite(rough)) return {low};
        const double magnitude = std::pow(10.0, std::floor(std::log10(rough)));
        double step = 10 * magnitude;
        for (const double factor : {5.0, 2.5, 2.0, 1.0})
            if (factor * magnitude >= rough) step = factor * magnitude;
        std::vector<double> values;
        const double first = std::ceil(low / step - 1e-9), last = std::floor(high / step + 1e-9);
        if (!(step > 0) || !(last - first < 20)) return {low, high};
        for (double i = first; i <= last; ++i) values.push_back(i * step);
        return values;
    }

    double low = std::numeric_limits<double>::infinity(), high = -low;
    int places = 0;  ///< digits after the point of a value in a cell
    bool has_nan = false;
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_HEAT_MAP_HPP
