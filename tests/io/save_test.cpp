// SPDX-License-Identifier: MIT
#include <moe/io/save.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/any_layer.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/moe.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/testing/compare.hpp>

#include "io/stored.hpp"
#include "support/message.hpp"

namespace save_test {
namespace {

using moe::Dtype;
using moe::Index;
using moe::Names;
using moe::Orientation;
using moe::Part;
using moe::SafetensorsView;
using moe::SafetensorsWriter;
using moe::Stacking;
using stored::Bag;
using stored::Rows;
using support::message;

constexpr Index experts = 3;

template <class S>
moe::Parameter<S> parameter(const Rows& rows) {
    moe::Parameter<S> matrix(static_cast<Index>(rows.size()), static_cast<Index>(rows[0].size()));
    for (Index i = 0; i < matrix.rows(); ++i)
        for (Index j = 0; j < matrix.cols(); ++j)
            matrix(i, j) =
                static_cast<S>(rows[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)]);
    return matrix;
}

template <class S = float>
Bag<S> bag_of(std::vector<std::pair<std::string, Rows>> matrices) {
    Bag<S> bag;
    for (const auto& [name, rows] : matrices) bag.parameters.emplace_back(name, parameter<S>(rows));
    return bag;
}

template <class Layer>
std::vector<std::byte> saved(const Layer& layer, const Names& names,
                             const moe::SaveOptions& options = {}) {
    SafetensorsWriter writer;
    moe::save(layer, names, writer, options);
    return writer.bytes();
}
template <class Layer>
std::string error_of(const Layer& layer, const Names& names, const moe::SaveOptions& options = {}) {
    return message([&] { saved(layer, names, options); });
}
void expect_parts(const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* const part : parts)
        EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

TEST(Save, WritesEveryLayoutAsItIsDefined) {
    for (const Orientation orientation : {Orientation::out_in, Orientation::in_out})
        for (const Stacking stacking : {Stacking::separate, Stacking::leading, Stacking::rows})
            for (const Part pair : {Part::whole, Part::first_half, Part::even})
                for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
                    const bool paired = pair != Part::whole;
                    const std::string number = stacking == Stacking::separate ? ".#" : "";
                    const auto layout = [&](Part part) {
                        return moe::Layout{
                            .orientation = orientation, .stacking = stacking, .part = part};
                    };
                    const Names names("a.", {{"experts.#.gate", "gate" + number, layout(pair)},
                                             {"experts.#.up", (paired ? "gate" : "up") + number,
                                              layout(!paired              ? pair
                                                     : pair == Part::even ? Part::odd
                                                                          : Part::second_half)}});
                    Bag<float> bag;
                    std::vector<Rows> gates, ups;
                    for (Index e = 0; e < experts; ++e) {
                        const Rows gate = stored::matrix(4, 4, e), up = stored::matrix(4, 4, 9 + e);
                        const std::string expert = "experts." + std::to_string(e);
                        bag.parameters.emplace_back(expert + ".gate", parameter<float>(gate));
                        bag.parameters.emplace_back(expert + ".up", parameter<float>(up));
                        Rows first = paired ? stored::joined(gate, up, pair == Part::even) : gate;
                        if (orientation == Orientation::in_out) first = stored::transposed(first);
                        gates.push_back(first);
                        ups.push_back(orientation == Orientation::in_out ? stored::transposed(up)
                                                                         : up);
                    }
                    SafetensorsWriter expected;
                    stored::add(expected, "a.gate", dtype, gates, stacking);
                    if (!paired) stored::add(expected, "a.up", dtype, ups, stacking);
                    EXPECT_EQ(saved(bag, names, {.dtype = dtype}), expected.bytes());
                }
}

TEST(Save, WritesVectorsWithoutADimensionOfOne) {
    const Names names("a.", {{"gate.bias", "bias", {.orientation = Orientation::vector}},
                             {"router.bias", "column", {.orientation = Orientation::vector}}});
    const auto bytes =
        saved(bag_of({{"gate.bias", {{1, 2, 3}}}, {"router.bias", {{4}, {5}}}}), names);
    const SafetensorsView view{bytes};
    EXPECT_EQ(view.at("a.bias").shape, moe::Extents{3});
    EXPECT_EQ(view.copy<float>("a.bias")(0, 2), 3);
    EXPECT_EQ(view.at("a.column").shape, moe::Extents{2});
    EXPECT_EQ(view.copy<float>("a.column")(0, 1), 5);
}

TEST(Save, WritesUnderTheFirstPlainEntryAndTheFirstPrefix) {
    const Names names(std::vector<std::string>{"a.", "b."},
                      {{"experts.#.up",
                        "blocks",
                        {.stacking = Stacking::leading, .coding = moe::Coding::mxfp4},
                        "scales"},
                       {"experts.#.up", "one.#"},
                       {"experts.#.up", "two.#"}});
    const auto bytes =
        saved(bag_of({{"experts.0.up", stored::matrix(2, 3, 1)}}), names, {.prefix = "grad."});
    const SafetensorsView view{bytes};
    EXPECT_EQ(view.size(), 1);
    EXPECT_NE(view.find("grad.a.one.0"), nullptr);
}

TEST(Save, LeavesOutGradientsThatAreNotWantedAndZeroesThemInSharedTensors) {
    const Names names(
        "a.",
        {{"router.weight", "router"},
         {"experts.#.gate", "both", {.stacking = Stacking::leading, .part = Part::first_half}},
         {"experts.#.up", "both", {.stacking = Stacking::leading, .part = Part::second_half}}});
    Bag<float> grad;
    grad.parameters.emplace_back("router.weight", moe::Parameter<float>());
    grad.parameters.emplace_back("experts.0.gate", moe::Parameter<float>());
    grad.parameters.emplace_back("experts.0.up", moe::Parameter<float>());
    grad.parameters.emplace_back("experts.1.gate", parameter<float>(stored::matrix(2, 3, 1)));
    grad.parameters.emplace_back("experts.1.up", moe::Parameter<float>());
    SafetensorsWriter expected;
    const Rows nothing(4, std::vector<double>(3, 0));
    stored::add(expected, "a.both", Dtype::f32,
                {nothing, stored::joined(stored::matrix(2, 3, 1),
                                         Rows(2, std::vector<double>(3, 0)), false)},
                Stacking::leading);
    EXPECT_EQ(saved(grad, names), expected.bytes());
}

TEST(Save, KeepsThePlacesOfTheLastExpertsInSharedTensors) {
    for (const Stacking stacking : {Stacking::leading, Stacking::rows}) {
        const Names names("a.", {{"experts.#.up", "up", {.stacking = stacking}}});
        Bag<float> grad;
        grad.parameters.emplace_back("experts.0.up", parameter<float>(stored::matrix(2, 3, 1)));
        grad.parameters.emplace_back("experts.1.up", moe::Parameter<float>());
        const Rows nothing(2, std::vector<double>(3, 0));
        SafetensorsWriter expected;
        stored::add(expected, "a.up", Dtype::f32, {stored::matrix(2, 3, 1), nothing}, stacking);
        EXPECT_EQ(saved(grad, names), expected.bytes());
    }
}

/// A layer that shows nothing of itself, as a frozen one.
struct Silent {
    using Scalar = float;
};
moe::Index num_parameters(const Silent&) { return 7; }

TEST(Save, RefusesALayerThatShowsNoneOfItsParameters) {
    const Names names("a.", {{"router.weight", "router"}});
    expect_parts(error_of(Silent{}, names), {"none of its 7 parameters", "moe::save_frozen"});
}

/// A layer with a state.
struct WithState {
    using Scalar = float;
    moe::Parameter<float> weight = moe::Parameter<float>(1, 2), bias = moe::Parameter<float>(1, 2);
    void visit_parameters(auto&& visit) {
        visit("weight", weight, moe::Role::trainable);
        visit("bias", bias, moe::Role::state);
    }
};

TEST(Save, KeepsStatesInFloat) {
    const Names names("", {{"weight", "weight"}, {"bias", "bias"}});
    WithState layer;
    layer.bias(0, 1) = 1.0009765f;
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32, Dtype::f64}) {
        const auto bytes = saved(layer, names, {.dtype = dtype});
        const SafetensorsView view{bytes};
        EXPECT_EQ(view.at("weight").dtype, dtype);
        EXPECT_EQ(view.at("bias").dtype, dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
        EXPECT_EQ(view.copy<float>("bias")(0, 1), 1.0009765f);
    }
}

TEST(Save, RoundsADoubleOnce) {
    const Names names("", {{"weight", "weight"}});
    // Just above and below the middle of two numbers of the type, nearer than a float can say; and
    // what is none to round.
    const double inf = std::numeric_limits<double>::infinity(), tiny = 0x1p-40;
    for (const double half : {0x1p-8, 0x1p-11}) {  // of bf16, of f16
        const Dtype dtype = half == 0x1p-8 ? Dtype::bf16 : Dtype::f16;
        const double step = 2 * half;
        const std::vector<double> values{1 + half + tiny,
                                         1 + half,
                                         1 + half - tiny,
                                         1 + step + half,
                                         1 + 3 * half - tiny,
                                         -1 - half - tiny,
                                         inf,
                                         -inf,
                                         0x1p-200,
                                         -0x1p-200,
                                         1e300,
                                         0};
        const std::vector<double> expected{1 + step, 1,    1,   1 + 2 * step, 1 + step, -1 - step,
                                           inf,      -inf, 0.0, -0.0,         inf,      0};
        const auto bytes = saved(bag_of<double>({{"weight", {values}}}), names, {.dtype = dtype});
        const auto read = SafetensorsView{bytes}.copy<double>("weight");
        for (std::size_t i = 0; i < values.size(); ++i) {
            EXPECT_EQ(read(0, Index(i)), expected[i]) << moe::dtype_name(dtype) << " " << i;
            EXPECT_EQ(std::signbit(read(0, Index(i))), std::signbit(expected[i])) << i;
        }
        const double nan = std::numeric_limits<double>::quiet_NaN();
        const auto none = saved(bag_of<double>({{"weight", {{nan}}}}), names, {.dtype = dtype});
        EXPECT_TRUE(std::isnan(SafetensorsView{none}.copy<double>("weight")(0, 0)));
    }
}

TEST(Save, ReadsViewsWithTheirStridesAndScales) {
    const std::vector<std::int8_t> codes{1, 2, 3, 4, 5, 6};
    const std::vector<float> scales{0.5f, 2.0f};
    const std::vector<float> values{1, 2, 3, 4, 5, 6};
    Bag<float> bag;
    bag.matrices.push_back(
        {"experts.#.up",
         moe::Weights<float>(std::vector<moe::WeightView>{{.data = codes.data(),
                                                           .dtype = Dtype::i8,
                                                           .rows = 2,
                                                           .cols = 3,
                                                           .row_stride = 3,
                                                           .scales = scales.data()},
                                                          {.data = values.data(),
                                                           .dtype = Dtype::f32,
                                                           .rows = 2,
                                                           .cols = 3,
                                                           .row_stride = 1,
                                                           .col_stride = 2}}),
         4});
    const auto bytes = saved(bag, Names("", {{"experts.#.up", "up.#"}}));
    const SafetensorsView view{bytes};
    moe::Matrix<float> first(2, 3), second(2, 3);
    first << 0.5f, 1, 1.5f, 8, 10, 12;
    second << 1, 3, 5, 2, 4, 6;
    EXPECT_TRUE(moe::testing::same_bits(view.copy<float>("up.4"), first));
    EXPECT_TRUE(moe::testing::same_bits(view.copy<float>("up.5"), second));
}

TEST(Save, RefusesNamesThatDoNotFitAndAddsNothingThen) {
    const Rows small = stored::matrix(2, 3, 1);
    expect_parts(error_of(bag_of({{"router.weight", small}}), Names("", {{"gate.bias", "b"}})),
                 {"\"router.weight\"", "names say nothing"});
    const Names both("", {{"experts.#.gate", "both", {.stacking = Stacking::leading}},
                          {"experts.#.up", "both", {.stacking = Stacking::leading}}});
    expect_parts(error_of(bag_of({{"experts.0.gate", small}, {"experts.0.up", small}}), both),
                 {"experts.0.gate and experts.0.up", "same elements of \"both\""});
    const Names halves(
        "", {{"router.weight", "a"},
             {"experts.#.gate", "both", {.stacking = Stacking::leading, .part = Part::even}},
             {"experts.#.up", "both", {.stacking = Stacking::leading, .part = Part::odd}}});
    const Bag<float> uneven = bag_of({{"router.weight", small},
                                      {"experts.0.gate", small},
                                      {"experts.0.up", stored::matrix(3, 3, 1)}});
    expect_parts(error_of(uneven, halves), {"[1, 4, 3]", "[1, 6, 3]", "experts.0.up"});
    SafetensorsWriter writer;
    EXPECT_THROW(moe::save(uneven, halves, writer), std::invalid_argument);
    const auto empty = writer.bytes();
    EXPECT_EQ(SafetensorsView{empty}.size(), 0);
    const Names vector("", {{"router.weight", "a", {.orientation = Orientation::vector}}});
    expect_parts(error_of(bag_of({{"router.weight", small}}), vector), {"[2, 3]", "vector"});
    expect_parts(error_of(bag_of({{"a", small}}), Names("", {{"a", "a"}}), {.dtype = Dtype::i8}),
                 {"I8", "F32, F64, BF16 or F16"});
}

TEST(Save, RefusesWhatHasNoValues) {
    const Names names("", {{"experts.#.up", "up.#"}});
    Bag<float> bag;
    bag.matrices.push_back({"experts.#.up", moe::Weights<float>::deferred(2, 2, 3)});
    expect_parts(error_of(bag, names), {"experts.#.up have no values yet"});
    const std::vector<std::byte> bytes(6);
    moe::BlockCodes codes{.data = bytes.data(),
                          .dtype = Dtype::f8_e4m3,
                          .rows = 2,
                          .cols = 3,
                          .scales = {.data = bytes.data(), .dtype = Dtype::u8}};
    bag.matrices[0].weights = moe::Weights<float>(std::vector<moe::BlockCodes>{codes});
    expect_parts(error_of(bag, names), {"experts.#.up are codes", "moe::load"});
}

TEST(Save, SeesTheViewsOfALayerBehindAnyLayerAndRefusesWhatIsPacked) {
    const moe::presets::Mixtral preset{.model_dim = 6, .ffn_dim = 4, .num_experts = 3};
    const auto layer = moe::make_layer(preset);
    moe::SafetensorsWriter first, second, none;
    moe::save(layer, preset.names(0), first);
    const std::vector<std::byte> file = first.bytes();
    const auto bound = moe::bind(moe::SafetensorsView(file), preset, 0);
    EXPECT_EQ(moe::num_parameters(bound), moe::num_parameters(layer));

    const moe::AnyLayer<float> any = bound;
    EXPECT_EQ(moe::num_parameters(any), moe::num_parameters(layer));
    moe::save(any, preset.names(0), second);
    EXPECT_EQ(second.bytes(), file);

    const auto frozen = moe::freeze(bound);
    EXPECT_THROW(moe::save(frozen, preset.names(0), none), std::invalid_argument);
    const moe::AnyLayer<float> any_frozen = frozen;
    EXPECT_THROW(moe::save(any_frozen, preset.names(0), none), std::invalid_argument);
}

}  // namespace
}  // namespace save_test
