// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_SVG_HPP
#define MOE_STATS_SVG_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <Eigen/Core>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/color_ramp.hpp>
#include <moe/stats/format.hpp>
#include <moe/stats/heat_map.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// A length in pixels: at most two digits after the point, none that are 0.
inline std::string px(double length) {
    std::string text = fixed(length, 2);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
}

/// About the width of `text` in pixels in a sans-serif font of this size.
inline double text_width(std::string_view text, double size) {
    return 0.6 * size * static_cast<double>(columns_of(text));
}

/// Draws heat maps; one object per picture.
class HeatMapDrawing {
public:
    HeatMapDrawing(std::span<const HeatMapPanel> panels, const HeatMapOptions& options)
        : panels_(panels), options_(options), scale_(panels, options) {
        rows_ = panels.front().values.rows();
        columns_ = panels.front().values.cols();
        choose_cell();
        choose_grid();
    }

    std::string draw() {
        for (std::size_t i = 0; i < panels_.size(); ++i) draw_panel(i);
        draw_axis_titles();
        const double plot_bottom = top_ + static_cast<double>(grid_rows_) * pitch_y_ - gap_y_;
        const double plot_right = left_ + static_cast<double>(grid_columns_) * pitch_x_ - gap_x_;
        const double legend_bottom = draw_legend(plot_right + 28);
        if (!options_.title.empty())
            text(margin, margin + 15, options_.title, "font-size=\"16\" font-weight=\"600\" ");
        const double width =
            std::max(plot_right + 28 + legend_width(), text_width(options_.title, 16)) + margin;
        const double height = std::max(plot_bottom + bottom_, legend_bottom) + margin;
        return header(width, height) + body_ + "</svg>\n";
    }

private:
    static constexpr double margin = 20;
    static constexpr double label_size = 11;

    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    static double wide(Index n) { return static_cast<double>(n); }

    /// The size of a cell, and whether values are written into cells.
    void choose_cell() {
        const bool is_single = panels_.size() == 1;
        std::size_t longest = 0;
        for (const HeatMapPanel& panel : panels_)
            for (Index i = 0; i < panel.values.size(); ++i)
                longest = std::max(longest, fixed(panel.values.data()[i], scale_.places).size());
        const double number_width = 0.62 * 10 * static_cast<double>(longest) + 8;
        const bool has_room = is_single && rows_ <= 20 && columns_ <= 16 && longest <= 6 &&
                              (options_.cell == 0 || options_.cell >= number_width);
        numbers_ = options_.numbers.value_or(has_room);
        const double most = wide(std::max(rows_, columns_));
        cell_ = options_.cell != 0 ? options_.cell
                : is_single        ? std::clamp(std::floor(640 / most), 5.0, 32.0)
                                   : std::clamp(std::floor(150 / most), 4.0, 24.0);
        cell_width_ = numbers_ && options_.cell == 0 ? std::max(cell_, number_width) : cell_;
        inset_ = cell_ >= 12 ? 1 : 0;  // a line of background between cells
    }

    /// Where panels go and how much room is around them.
    void choose_grid() {
        const auto count = static_cast<Index>(panels_.size());
        has_labels_ = count == 1 || !options_.row_labels.empty() || !options_.column_labels.empty();
        double caption_width = 0;
        bool has_captions = false;
        for (const HeatMapPanel& panel : panels_) {
            caption_width = std::max(caption_width, text_width(panel.caption, 12));
            has_captions = has_captions || !panel.caption.empty();
        }
        gap_x_ = gap_y_ = count == 1 ? 0 : 18;
        caption_height_ = has_captions ? 20 : 0;
        pitch_x_ = std::max(wide(columns_) * cell_width_, caption_width) + gap_x_;
        pitch_y_ = wide(rows_) * cell_ + caption_height_ + gap_y_;
        grid_columns_ = options_.panels_per_row;
        if (grid_columns_ == 0) {
            const auto square =
                static_cast<Index>(std::ceil(std::sqrt(1.6 * wide(count) * pitch_y_ / pitch_x_)));
            const auto most = static_cast<Index>(960 / pitch_x_);
            grid_columns_ = std::max<Index>(1, std::min(square, most));
            const Index lines = (count + grid_columns_ - 1) / grid_columns_;
            grid_columns_ = (count + lines - 1) / lines;  // no nearly empty last line
        }
        grid_columns_ = std::min(grid_columns_, count);
        grid_rows_ = (count + grid_columns_ - 1) / grid_columns_;

        double row_label = 0, column_label = 0;
        if (has_labels_) {
            for (Index r = 0; r < rows_; ++r)
                row_label = std::max(row_label, text_width(row_name(r), label_size));
            for (Index c = 0; c < columns_; ++c)
                column_label = std::max(column_label, text_width(column_name(c), label_size));
        }
        is_turned_ = !options_.column_labels.empty() && column_label + 6 > cell_width_;
        row_step_ = label_step(14, cell_, rows_);
        column_step_ = label_step(is_turned_ ? 14 : column_label + 6, cell_width_, columns_);
        const double column_room = !has_labels_ ? 0 : is_turned_ ? column_label + 8 : 18;
        left_ = margin + (options_.row_title.empty() ? 0 : 20) + (has_labels_ ? row_label + 8 : 0);
        top_ = margin + (options_.title.empty() ? 0 : 32);
        bottom_ = column_room + (options_.column_title.empty() ? 0 : 22);
    }

    /// Every how many rows or columns a label has the room it needs: 1, 2, 5, 10, 20, ...
    static Index label_step(double need, double pitch, Index count) {
        Index step = 1;
        for (int i = 0; wide(step) * pitch < need && step < count; ++i)
            step = i % 3 == 1 ? step / 2 * 5 : step * 2;
        return step;
    }

    std::string row_name(Index r) const {
        return options_.row_labels.empty() ? std::to_string(r) : options_.row_labels[at(r)];
    }
    std::string column_name(Index c) const {
        return options_.column_labels.empty() ? std::to_string(c) : options_.column_labels[at(c)];
    }

    void draw_panel(std::size_t number) {
        const HeatMapPanel& panel = panels_[number];
        const auto i = static_cast<Index>(number);
        const double x = left_ + wide(i % grid_columns_) * pitch_x_;
        const double y = top_ + wide(i / grid_columns_) * pitch_y_ + caption_height_;
        if (!panel.caption.empty())
            text(x, y - 7, panel.caption, "font-size=\"12\" font-weight=\"600\" ");
        body_ += "<g shape-rendering=\"crispEdges\">\n";
        for (Index r = 0; r < rows_; ++r)
            for (Index c = 0; c < columns_; ++c) draw_cell(panel, r, c, x, y);
        body_ += "</g>\n";
        if (numbers_) draw_numbers(panel, x, y);
        if (!has_labels_) return;
        if (i % grid_columns_ == 0)
            for (Index r = 0; r < rows_; r += row_step_)
                text(x - 6, y + (wide(r) + 0.5) * cell_ + 4, row_name(r), label_style("end"));
        if (i + grid_columns_ >= static_cast<Index>(panels_.size())) draw_column_labels(x, y);
    }

    void draw_cell(const HeatMapPanel& panel, Index r, Index c, double x, double y) {
        const double value = panel.values(r, c);
        body_ += "<rect x=\"" + px(x + wide(c) * cell_width_) + "\" y=\"" +
                 px(y + wide(r) * cell_) + "\" width=\"" + px(cell_width_ - inset_) +
                 "\" height=\"" + px(cell_ - inset_) + "\" fill=\"" + fill(value) + "\"><title>";
        if (!panel.caption.empty()) body_ += escape_xml(panel.caption) + ", ";
        body_ += named(options_.row_title, row_name(r)) + ", " +
                 named(options_.column_title, column_name(c)) + ": " + significant(value, 6) +
                 "</title></rect>\n";
    }

    void draw_numbers(const HeatMapPanel& panel, double x, double y) {
        for (Index r = 0; r < rows_; ++r)
            for (Index c = 0; c < columns_; ++c) {
                const double value = panel.values(r, c);
                if (std::isnan(value)) continue;
                const bool is_dark = ramp_color(scale_.place(value)).luminance() < 0.3;
                // Appended, not added up: g++ 12 warns of array bounds in the sum.
                std::string style =
                    "font-size=\"10\" text-anchor=\"middle\" pointer-events=\"none\" ";
                style += is_dark ? "fill=\"#ffffff\" " : "fill=\"#1f2328\" ";
                text(x + (wide(c) + 0.5) * cell_width_ - inset_ / 2,
                     y + (wide(r) + 0.5) * cell_ + 3.5, fixed(value, scale_.places), style);
            }
    }

    void draw_column_labels(double x, double y) {
        const double below = y + wide(rows_) * cell_;
        for (Index c = 0; c < columns_; c += column_step_) {
            const double middle = x + (wide(c) + 0.5) * cell_width_;
            if (is_turned_)
                text(middle + 4, below + 6, column_name(c),
                     label_style("end") + "transform=\"rotate(-90 " + px(middle + 4) + " " +
                         px(below + 6) + ")\" ");
            else
                text(middle, below + 14, column_name(c), label_style("middle"));
        }
    }

    void draw_axis_titles() {
        const double plot_width = wide(grid_columns_) * pitch_x_ - gap_x_;
        const double plot_height = wide(grid_rows_) * pitch_y_ - gap_y_;
        if (!options_.column_title.empty())
            text(left_ + plot_width / 2, top_ + plot_height + bottom_ - 3, options_.column_title,
                 "font-size=\"12\" text-anchor=\"middle\" ");
        if (options_.row_title.empty()) return;
        const double x = margin + 10, y = top_ + plot_height / 2;
        text(x, y, options_.row_title,
             "font-size=\"12\" text-anchor=\"middle\" transform=\"rotate(-90 " + px(x) + " " +
                 px(y) + ")\" ");
    }

    double legend_width() const {
        double labels = scale_.has_nan ? text_width("NaN", label_size) : 0;
        for (const double tick : scale_.ticks())
            labels = std::max(labels, text_width(significant(tick, 4), label_size));
        return std::max(14 + 8 + labels, text_width(options_.value_title, label_size));
    }

    /// A bar with ticks, and a hatched field if a value is NaN. @return its lowest y
    double draw_legend(double x) {
        const double plot_height = wide(grid_rows_) * pitch_y_ - gap_y_;
        double y = top_ + caption_height_;
        if (!options_.value_title.empty()) {
            text(x, y + 9, options_.value_title, label_style("start"));
            y += 20;
        }
        const double height = std::clamp(plot_height - (y - top_), 60.0, 180.0);
        body_ +=
            "<rect x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"14\" height=\"" + px(height) +
            "\" fill=\"" +
            (scale_.low < scale_.high ? std::string("url(#moe-ramp)") : ramp_color(0.5).hex()) +
            "\"/>\n";
        for (const double tick : scale_.ticks()) {
            const double line = y + height * (1 - scale_.place(tick));
            body_ += "<path d=\"M" + px(x + 14) + " " + px(line) + "h4\" stroke=\"#57606a\"/>\n";
            text(x + 22, line + 4, significant(tick, 4), label_style("start"));
        }
        y += height;
        if (scale_.has_nan) {
            y += 16;
            body_ += "<rect x=\"" + px(x) + "\" y=\"" + px(y) +
                     "\" width=\"14\" height=\"14\" fill=\"url(#moe-nan)\"/>\n";
            text(x + 22, y + 11, "NaN", label_style("start"));
            y += 14;
        }
        return y;
    }

    std::string fill(double value) const {
        return std::isnan(value) ? "url(#moe-nan)" : ramp_color(scale_.place(value)).hex();
    }
    /// "expert 3" from "expert" and "3", which is already a name if it is a label.
    static std::string named(const std::string& what, const std::string& name) {
        return escape_xml(what.empty() ? name : what + " " + name);
    }
    static std::string label_style(const char* anchor) {
        return std::string("font-size=\"11\" fill=\"#57606a\" text-anchor=\"") + anchor + "\" ";
    }
    void text(double x, double y, const std::string& words, const std::string& style) {
        body_ += "<text x=\"" + px(x) + "\" y=\"" + px(y) + "\" " + style;
        body_.back() = '>';
        body_ += escape_xml(words) + "</text>\n";
    }

    std::string header(double width, double height) const {
        const std::string w = px(std::ceil(width)), h = px(std::ceil(height));
        std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + w +
                          "\" height=\"" + h + "\" viewBox=\"0 0 " + w + " " + h +
                          "\" role=\"img\" font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, "
                          "'DejaVu Sans', sans-serif\" fill=\"#1f2328\">\n";
        if (!options_.title.empty()) out += "<title>" + escape_xml(options_.title) + "</title>\n";
        out += "<defs>\n<linearGradient id=\"moe-ramp\" x1=\"0\" y1=\"1\" x2=\"0\" y2=\"0\">\n";
        for (std::size_t i = 0; i < ramp_stops.size(); ++i)
            out += "<stop offset=\"" + px(static_cast<double>(i) / (ramp_stops.size() - 1)) +
                   "\" stop-color=\"" + ramp_stops[i].hex() + "\"/>\n";
        return out +
               "</linearGradient>\n"
               "<pattern id=\"moe-nan\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
               "patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"#eaecef\"/>"
               "<rect width=\"2\" height=\"6\" fill=\"#b7bdc5\"/></pattern>\n</defs>\n"
               "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
    }

    std::span<const HeatMapPanel> panels_;
    const HeatMapOptions& options_;
    HeatMapScale scale_;
    std::string body_;
    Index rows_ = 0, columns_ = 0, grid_rows_ = 1, grid_columns_ = 1;
    Index row_step_ = 1, column_step_ = 1;
    bool numbers_ = false, has_labels_ = false, is_turned_ = false;
    double cell_ = 0, cell_width_ = 0, inset_ = 0, caption_height_ = 0;
    double gap_x_ = 0, gap_y_ = 0, pitch_x_ = 0, pitch_y_ = 0, left_ = 0, top_ = 0, bottom_ = 0;
};

}  // namespace detail

/// Several heat maps of equal extents side by side, under one scale and one legend.
///
/// A self-contained SVG: light cells are small values and dark cells large ones, NaN is hatched
/// grey, infinities take the end colours, and pointing at a cell shows where it is and what it
/// holds. Sizes follow from the data; the same input gives the same bytes.
///
/// @throws std::invalid_argument if there is no panel or an empty one, if extents differ, if labels
///         are not one per row or column, or if `low`, `high`, `cell` or `panels_per_row` is out of
///         range
inline std::string svg_heat_maps(std::span<const HeatMapPanel> panels,
                                 const HeatMapOptions& options = {}) {
    if (panels.empty()) detail::fail("moe::svg_heat_maps: there is no panel");
    const Index rows = panels.front().values.rows(), columns = panels.front().values.cols();
    for (const HeatMapPanel& panel : panels) {
        const Index r = panel.values.rows(), c = panel.values.cols();
        if (r == 0 || c == 0)
            detail::fail("moe::svg_heat_map: values is [", r, ", ", c,
                         "], there is nothing to draw");
        if (r != rows || c != columns)
            detail::fail("moe::svg_heat_maps: panels are [", rows, ", ", columns, "] and [", r,
                         ", ", c, "], they must have equal extents");
    }
    const auto check = [](const char* what, std::size_t given, Index wanted) {
        if (given != 0 && static_cast<Index>(given) != wanted)
            detail::fail("moe::svg_heat_map: ", what, " has ", given, " entries, there are ",
                         wanted);
    };
    check("row_labels", options.row_labels.size(), rows);
    check("column_labels", options.column_labels.size(), columns);
    if (options.cell != 0 && !(options.cell >= 1 && options.cell <= 1000))
        detail::fail("moe::svg_heat_map: cell is ", options.cell,
                     ", it must be in [1, 1000], or 0 to be chosen");
    if (options.panels_per_row < 0)
        detail::fail("moe::svg_heat_map: panels_per_row is ", options.panels_per_row,
                     ", it must be >= 1, or 0 to be chosen");
    return detail::HeatMapDrawing(panels, options).draw();
}

/// One heat map; see svg_heat_maps.
///
///     const std::string svg = svg_heat_map(logits, {.title = "Logits", .row_title = "token"});
///     write_file("logits.svg", std::as_bytes(std::span(svg)));
///
/// @param values  [rows, columns] of any scalar that a double can hold; any storage order
/// @throws std::invalid_argument as svg_heat_maps
template <class Derived>
std::string svg_heat_map(const Eigen::DenseBase<Derived>& values,
                         const HeatMapOptions& options = {}) {
    const auto& given = values.derived();
    HeatMapPanel panel{"", Matrix<double>(given.rows(), given.cols())};
    for (Index r = 0; r < given.rows(); ++r)
        for (Index c = 0; c < given.cols(); ++c)
            panel.values(r, c) = static_cast<double>(given.coeff(r, c));
    return svg_heat_maps(std::span<const HeatMapPanel>(&panel, 1), options);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_SVG_HPP
