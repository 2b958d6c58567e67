// SPDX-License-Identifier: MIT
#include <moe/stats/svg.hpp>

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace svg_test {
namespace {

using moe::HeatMapOptions;
using moe::HeatMapPanel;
using moe::Index;
using moe::Matrix;

Index count(std::string_view text, std::string_view part) {
    Index found = 0;
    for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size()))
        ++found;
    return found;
}

bool has(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

/// Whether every element is closed in order and no markup is left over: enough of XML for what
/// we write. Returns the first fault, or "".
std::string fault_of(const std::string& svg) {
    std::vector<std::string> open;
    std::size_t at = 0;
    while (at < svg.size()) {
        if (svg[at] == '&') {
            const std::string_view entity =
                std::string_view(svg).substr(at, svg.find(';', at) - at);
            if (entity != "&amp" && entity != "&lt" && entity != "&gt" && entity != "&quot")
                return "entity " + std::string(entity);
        }
        if (svg[at] == '>') return "a stray >";
        if (svg[at] != '<') {
            ++at;
            continue;
        }
        const std::size_t end = svg.find('>', at);
        if (end == svg.npos) return "an open <";
        const std::string tag = svg.substr(at + 1, end - at - 1);
        if (has(tag, "<")) return "< in " + tag;
        if (count(tag, "\"") % 2 != 0) return "quotes in " + tag;
        if (tag.front() == '/') {
            if (open.empty() || open.back() != tag.substr(1)) return "closes " + tag;
            open.pop_back();
        } else if (tag.back() != '/') {
            open.push_back(tag.substr(0, tag.find(' ')));
        }
        at = end + 1;
    }
    return open.empty() ? "" : "open " + open.back();
}

double attribute(const std::string& svg, const std::string& name) {
    return std::stod(svg.substr(svg.find(name + "=\"") + name.size() + 2));
}

Matrix<float> ramp(Index rows, Index columns) {
    Matrix<float> values(rows, columns);
    for (Index i = 0; i < values.size(); ++i) values.data()[i] = static_cast<float>(i);
    return values;
}

TEST(SvgHeatMap, HasOneTitledCellPerValue) {
    const std::string svg = moe::svg_heat_map(
        ramp(3, 2), {.title = "Load", .row_title = "layer", .column_title = "expert"});
    EXPECT_EQ(fault_of(svg), "");
    EXPECT_EQ(svg.rfind("<svg xmlns=\"http://www.w3.org/2000/svg\"", 0), 0u);
    EXPECT_EQ(count(svg, "<rect x="), 3 * 2 + 1);  // and the legend
    EXPECT_TRUE(has(svg, "<title>Load</title>"));
    EXPECT_TRUE(has(svg, "<title>layer 2, expert 1: 5</title>"));
    EXPECT_TRUE(has(svg, "fill=\"" + moe::ramp_color(0).hex() + "\"><title>layer 0, expert 0: 0<"));
    EXPECT_TRUE(has(svg, "fill=\"" + moe::ramp_color(1).hex() + "\"><title>layer 2, expert 1: 5<"));
    EXPECT_TRUE(
        has(svg, "fill=\"" + moe::ramp_color(0.4).hex() + "\"><title>layer 1, expert 0: 2<"));
    EXPECT_FALSE(has(svg, "NaN"));
}

TEST(SvgHeatMap, IsTheSameForFloatDoubleAndTheSecondTime) {
    const std::string svg = moe::svg_heat_map(ramp(5, 4));
    EXPECT_EQ(moe::svg_heat_map(ramp(5, 4)), svg);
    EXPECT_EQ(moe::svg_heat_map(Matrix<double>(ramp(5, 4).cast<double>())), svg);
    EXPECT_EQ(moe::svg_heat_map(Eigen::MatrixXi(ramp(5, 4).cast<int>())), svg);  // column-major
}

TEST(SvgHeatMap, EscapesEveryText) {
    const std::string odd = "<b>&\"'";
    const std::string svg = moe::svg_heat_map(ramp(1, 2), {.title = odd,
                                                           .row_labels = {odd},
                                                           .column_labels = {odd, odd},
                                                           .row_title = odd,
                                                           .column_title = odd,
                                                           .value_title = odd});
    EXPECT_EQ(fault_of(svg), "");
    EXPECT_FALSE(has(svg, "<b>"));
    EXPECT_GE(count(svg, "&lt;b&gt;&amp;&quot;'"), 8);
    const std::string panel =
        moe::svg_heat_maps(std::vector<HeatMapPanel>{{odd, Matrix<double>::Zero(1, 1)}});
    EXPECT_EQ(fault_of(panel), "");
    EXPECT_TRUE(has(panel, "&lt;b&gt;&amp;&quot;'"));
}

TEST(SvgHeatMap, HatchesNaNAndNamesItInTheLegend) {
    Matrix<double> values = Matrix<double>::Zero(2, 2);
    values << 0, std::numeric_limits<double>::quiet_NaN(), 1,
        std::numeric_limits<double>::infinity();
    const std::string svg = moe::svg_heat_map(values);
    EXPECT_EQ(fault_of(svg), "");
    EXPECT_TRUE(has(svg, "fill=\"url(#moe-nan)\"><title>0, 1: nan</title>"));
    EXPECT_TRUE(has(svg, "fill=\"" + moe::ramp_color(1).hex() + "\"><title>1, 1: inf</title>"));
    EXPECT_TRUE(has(svg, ">NaN</text>"));
    values.setConstant(std::numeric_limits<double>::quiet_NaN());
    EXPECT_EQ(fault_of(moe::svg_heat_map(values)), "");
}

TEST(SvgHeatMap, WritesNumbersWhereTheyFitAndWhereAsked) {
    EXPECT_TRUE(has(moe::svg_heat_map(ramp(2, 2)), ">3</text>"));
    EXPECT_EQ(count(moe::svg_heat_map(ramp(30, 30)), "pointer-events"), 0);
    EXPECT_EQ(count(moe::svg_heat_map(ramp(30, 30), {.numbers = true}), "pointer-events"), 900);
    EXPECT_EQ(count(moe::svg_heat_map(ramp(2, 2), {.numbers = false}), "pointer-events"), 0);
    // light text on dark cells, dark text on light ones
    const std::string svg = moe::svg_heat_map(ramp(1, 2));
    EXPECT_TRUE(has(svg, "fill=\"#1f2328\">0</text>"));
    EXPECT_TRUE(has(svg, "fill=\"#ffffff\">1</text>"));
}

TEST(SvgHeatMap, GrowsWithTheData) {
    const double small = attribute(moe::svg_heat_map(ramp(4, 4)), "width");
    EXPECT_GT(attribute(moe::svg_heat_map(ramp(4, 200)), "width"), small);
    EXPECT_GT(attribute(moe::svg_heat_map(ramp(200, 4)), "height"), 200 * 5);
    EXPECT_GT(attribute(moe::svg_heat_map(ramp(4, 4), {.cell = 100}), "width"), 400);
    EXPECT_GT(attribute(moe::svg_heat_map(ramp(1, 1), {.title = std::string(100, 'x')}), "width"),
              900);
    // labels keep apart: 200 columns of 5 pixels have one every 5 or more
    EXPECT_LT(count(moe::svg_heat_map(ramp(4, 200)), "text-anchor=\"middle\""), 41);
}

TEST(SvgHeatMap, PutsPanelsUnderOneScale) {
    std::vector<HeatMapPanel> panels;
    for (int e = 0; e < 8; ++e)
        panels.push_back({"expert " + std::to_string(e), Matrix<double>::Constant(7, 7, e)});
    panels[3].values(6, 5) = 14;
    const std::string svg = moe::svg_heat_maps(
        panels, {.row_title = "row", .column_title = "column", .value_title = "n"});
    EXPECT_EQ(fault_of(svg), "");
    EXPECT_EQ(count(svg, "<rect x="), 8 * 49 + 1);
    EXPECT_EQ(count(svg, "font-weight=\"600\""), 8);  // captions
    EXPECT_TRUE(has(svg, "<title>expert 3, row 6, column 5: 14</title>"));
    // 7 is in the middle of 0 to 14 in every panel
    EXPECT_EQ(count(svg, "fill=\"" + moe::ramp_color(0.5).hex() + "\"><title>expert 7"), 49);
    const double wide = attribute(moe::svg_heat_maps(panels, {.panels_per_row = 8}), "width");
    const double tall = attribute(moe::svg_heat_maps(panels, {.panels_per_row = 1}), "width");
    EXPECT_GT(wide, attribute(svg, "width"));
    EXPECT_LT(tall, attribute(svg, "width"));
}

TEST(SvgHeatMap, LabelsPanelsAtTheLeftAndTheBottomOnly) {
    const std::vector<HeatMapPanel> panels(4, {"", Matrix<double>::Zero(2, 2)});
    const std::string svg = moe::svg_heat_maps(
        panels, {.row_labels = {"up", "down"}, .column_labels = {"L", "R"}, .panels_per_row = 2});
    EXPECT_EQ(count(svg, ">up</text>"), 2);
    EXPECT_EQ(count(svg, ">L</text>"), 2);
}

TEST(SvgHeatMap, RefusesEmptyDataAndWrongLabels) {
    EXPECT_THROW(moe::svg_heat_map(Matrix<float>(0, 3)), std::invalid_argument);
    EXPECT_THROW(moe::svg_heat_map(Matrix<float>(3, 0)), std::invalid_argument);
    EXPECT_THROW(moe::svg_heat_maps({}), std::invalid_argument);
    const std::vector<HeatMapPanel> unequal{{"", Matrix<double>::Zero(2, 2)},
                                            {"", Matrix<double>::Zero(2, 3)}};
    EXPECT_THROW(moe::svg_heat_maps(unequal), std::invalid_argument);
    EXPECT_THROW(moe::svg_heat_map(ramp(2, 2), {.row_labels = {"a"}}), std::invalid_argument);
    EXPECT_THROW(moe::svg_heat_map(ramp(2, 2), {.column_labels = {"a"}}), std::invalid_argument);
    for (const double cell : {-1.0, 1e-30, 0.5, 1001.0, std::numeric_limits<double>::infinity(),
                              std::numeric_limits<double>::quiet_NaN()})
        EXPECT_THROW(moe::svg_heat_map(ramp(2, 2), {.cell = cell}), std::invalid_argument) << cell;
    for (const double cell : {0.0, 1.0, 1000.0})
        EXPECT_NO_THROW(moe::svg_heat_map(ramp(2, 2), {.cell = cell})) << cell;
    EXPECT_THROW(moe::svg_heat_map(ramp(2, 2), {.panels_per_row = -1}), std::invalid_argument);
    EXPECT_THROW(moe::svg_heat_map(ramp(2, 2), {.panels_per_row = -1}), std::invalid_argument);
}

}  // namespace
}  // namespace svg_test
