// SPDX-License-Identifier: MIT
#include <moe/io/bind.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "io/stored.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace bind_test {
namespace {

using moe::Coding;
using moe::Dtype;
using moe::FormatError;
using moe::Index;
using moe::Layout;
using moe::Names;
using moe::Orientation;
using moe::Part;
using moe::SafetensorsView;
using moe::SafetensorsWriter;
using moe::Stacking;
using moe::TensorName;
using stored::Bag;
using stored::Rows;
using support::message;

using Layer = moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Swiglu>;
using Bytes = std::vector<std::byte>;

constexpr Index experts = 3;

/// Extents of a layer: square ones hide a matrix that is read the wrong way.
struct Size {
    Index model_dim, ffn_dim;

    moe::Config config() const { return {.model_dim = model_dim}; }
    moe::Swiglu swiglu(Index count = experts) const { return {.count = count, .ffn_dim = ffn_dim}; }
    Layer deferred(Index count = experts) const {
        return Layer(moe::deferred, config(), {}, {.k = 2}, swiglu(count));
    }
    Layer bound(const moe::Checkpoint& file, const Names& names) const {
        return moe::bind(file, names, config(), moe::LinearRouter{}, moe::TopK{.k = 2}, swiglu());
    }
    moe::Matrix<float> input() const { return moe::testing::random_matrix<float>(5, model_dim, 3); }
};

Rows router(Size size) { return stored::matrix(experts, size.model_dim, 99); }
Rows gate(Size size, Index e) { return stored::matrix(size.ffn_dim, size.model_dim, 3 * e); }
Rows up(Size size, Index e) { return stored::matrix(size.ffn_dim, size.model_dim, 3 * e + 1); }
Rows down(Size size, Index e) { return stored::matrix(size.model_dim, size.ffn_dim, 3 * e + 2); }

/// A way to lay out a layer; `pair` is the part that gate is of a tensor with up, whole: of none.
struct Arrangement {
    Orientation orientation = Orientation::out_in;
    Stacking stacking = Stacking::separate;
    Part pair = Part::whole;
    Dtype dtype = Dtype::f32;

    Layout layout(Part part) const {
        return {.orientation = orientation, .stacking = stacking, .part = part};
    }
    Names names(const std::string& prefix = "a.mlp.") const {
        const std::string number = stacking == Stacking::separate ? ".#" : "";
        const bool paired = pair != Part::whole;
        const Part other = pair == Part::even ? Part::odd : Part::second_half;
        return {
            prefix,
            {{"router.weight", "gate.weight"},
             {"experts.#.gate", (paired ? "gate_up" : "gate") + number, layout(pair)},
             {"experts.#.up", (paired ? "gate_up" : "up") + number, layout(paired ? other : pair)},
             {"experts.#.down", "down" + number, layout(Part::whole)}}};
    }
    void add(SafetensorsWriter& writer, const std::string& name, std::vector<Rows> all) const {
        if (orientation == Orientation::in_out)
            for (Rows& rows : all) rows = stored::transposed(rows);
        stored::add(writer, "a.mlp." + name, dtype, all, stacking);
    }
    void write(SafetensorsWriter& writer, Size size, Index count = experts) const {
        stored::add(writer, "a.mlp.gate.weight", dtype, {router(size)}, {experts, size.model_dim});
        std::vector<Rows> gates, ups, downs, both;
        for (Index e = 0; e < count; ++e) {
            gates.push_back(gate(size, e));
            ups.push_back(up(size, e));
            downs.push_back(down(size, e));
            both.push_back(stored::joined(gates.back(), ups.back(), pair == Part::even));
        }
        if (pair == Part::whole) {
            add(writer, "gate", gates);
            add(writer, "up", ups);
        } else {
            add(writer, "gate_up", both);
        }
        add(writer, "down", downs);
        stored::add(writer, "b.other", dtype, {{{1}}}, {1});  // another part of the model
    }
    Bytes file(Size size, Index count = experts) const {
        SafetensorsWriter writer;
        write(writer, size, count);
        return writer.bytes();
    }
};

std::vector<Arrangement> all_arrangements() {
    std::vector<Arrangement> all;
    for (const Orientation orientation : {Orientation::out_in, Orientation::in_out})
        for (const Stacking stacking : {Stacking::separate, Stacking::leading, Stacking::rows})
            for (const Part pair : {Part::whole, Part::first_half, Part::even})
                for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
                    all.push_back({orientation, stacking, pair, dtype});
    return all;
}

template <class W>
void expect_values(Size size, const W& group) {
    for (Index e = 0; e < experts; ++e) {
        EXPECT_TRUE(stored::holds(group.gate[e], gate(size, e))) << "gate " << e;
        EXPECT_TRUE(stored::holds(group.up[e], up(size, e))) << "up " << e;
        EXPECT_TRUE(stored::holds(group.down[e], down(size, e))) << "down " << e;
    }
}

TEST(Bind, ReadsEveryLayoutAsItIsDefinedAndWithOneResult) {
    for (const Size size : {Size{6, 6}, Size{5, 7}}) {
        const moe::Matrix<float> x = size.input();
        moe::Matrix<float> y;
        for (const Arrangement& arrangement : all_arrangements()) {
            SCOPED_TRACE("layout " + std::to_string(static_cast<int>(arrangement.orientation)) +
                         std::to_string(static_cast<int>(arrangement.stacking)) +
                         std::to_string(static_cast<int>(arrangement.pair)) + " of " +
                         moe::dtype_name(arrangement.dtype));
            const Bytes file = arrangement.file(size);
            const SafetensorsView view{file};
            const Layer bound = size.bound(view, arrangement.names());
            EXPECT_EQ(moe::num_parameters(bound), moe::num_parameters(moe::zeros_like(bound)));
            EXPECT_TRUE(bound.bank().group<0>().up.is_bound());
            EXPECT_TRUE(stored::holds(bound.router().weight, router(size)));
            expect_values(size, bound.bank().group<0>());

            Layer loaded = size.deferred();
            moe::load(view, arrangement.names(), loaded);
            EXPECT_FALSE(loaded.bank().group<0>().up.is_bound());
            expect_values(size, loaded.bank().group<0>());

            if (y.size() == 0) y = loaded(x);
            EXPECT_TRUE(moe::testing::same_bits(loaded(x), y));
            EXPECT_TRUE(moe::testing::same_bits(bound(x), y));
            EXPECT_TRUE(moe::testing::same_bits(moe::freeze(bound)(x), y));
        }
    }
}

TEST(Bind, CopiesNoWeightsOfExperts) {
    const Size size{5, 7};
    const Bytes file = Arrangement{}.file(size);
    const SafetensorsView view{file};
    const Layer bound = size.bound(view, Arrangement{}.names());
    EXPECT_EQ(bound.bank().group<0>().down[2].data, view.at("a.mlp.down.2").bytes.data());
}

/// A damaged config.json may ask for any number of them.
TEST(Bind, RefusesMoreThanTheCheckpointHasRoomForBeforeItAllocates) {
    const Size size{5, 7};
    const Bytes file = Arrangement{}.file(size);
    const SafetensorsView view{file};
    const auto refusal = [&](Index count, Index model_dim) {
        return message<FormatError>([&] {
            moe::bind(view, Arrangement{}.names(), {.model_dim = model_dim}, moe::LinearRouter{},
                      moe::TopK{.k = 1}, moe::Swiglu{.count = count, .ffn_dim = 7});
        });
    };
    Index bytes = 0;
    for (const moe::TensorView& tensor : view) bytes += static_cast<Index>(tensor.bytes.size());
    for (const Index large : {Index{1} << 33, Index{1} << 50, std::numeric_limits<Index>::max()}) {
        EXPECT_EQ(refusal(large, 5).find("moe::bind: "), 0u);
        EXPECT_NE(refusal(large, 5).find(" experts of model_dim 5 do not fit a checkpoint of " +
                                         std::to_string(bytes) + " bytes"),
                  std::string::npos);
        EXPECT_NE(refusal(experts, large).find("do not fit"), std::string::npos);
    }
    // The first that fits is refused for its shape.
    EXPECT_NE(refusal(2 * bytes / 5 + 1, 5).find("do not fit"), std::string::npos);
    EXPECT_NE(refusal(2 * bytes / 5, 5).find("has shape"), std::string::npos);
}

TEST(Bind, GivesTheGradientsOfTheLayerThatOwnsItsWeights) {
    const Size size{5, 7};
    const moe::Matrix<float> x = size.input();
    const auto gradients = [&](const Layer& layer) {
        moe::Workspace<float> ws;
        moe::Matrix<float> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
        layer.forward(x, y, ws);
        Layer grad = moe::zeros_like(layer);
        EXPECT_FALSE(grad.bank().group<0>().gate.is_bound());
        layer.backward(x, y, dx, grad, ws);
        std::vector<float> all(dx.data(), dx.data() + dx.size());
        moe::for_each_parameter(grad, [&](std::string_view, std::span<float> values) {
            all.insert(all.end(), values.begin(), values.end());
        });
        return all;
    };
    for (const Arrangement& arrangement :
         {Arrangement{},
          Arrangement{Orientation::in_out, Stacking::leading, Part::even, Dtype::bf16},
          Arrangement{Orientation::out_in, Stacking::rows, Part::first_half, Dtype::f16}}) {
        const Bytes file = arrangement.file(size);
        const SafetensorsView view{file};
        Layer loaded = size.deferred();
        moe::load(view, arrangement.names(), loaded);
        const auto bound = gradients(size.bound(view, arrangement.names()));
        EXPECT_TRUE(moe::testing::same_bits(bound, gradients(loaded)));
        EXPECT_EQ(bound.size(), static_cast<std::size_t>(x.size() + experts * size.model_dim +
                                                         3 * experts * 5 * 7));
    }
}

TEST(Bind, KeepsAnOpenedFileMappedAfterTheCheckpointIsGone) {
    const Size size{5, 7};
    const auto path =
        std::filesystem::temp_directory_path() /
        ("moe_bind_test_" + std::to_string(std::hash<const void*>{}(&size)) +
         std::to_string(std::uint64_t(
             std::filesystem::file_time_type::clock::now().time_since_epoch().count())));
    const Bytes bytes = Arrangement{}.file(size);
    moe::write_file(path.string(), bytes);
    const auto open = [&] {
        const moe::Checkpoint checkpoint = moe::Checkpoint::open(path.string());
        return size.bound(checkpoint, Arrangement{}.names());
    };
    const Layer bound = open();
    const Layer copy = bound;
    std::filesystem::remove(path);
    const SafetensorsView view{bytes};
    const auto y = size.bound(view, Arrangement{}.names())(size.input());
    EXPECT_TRUE(moe::testing::same_bits(bound(size.input()), y));
    EXPECT_TRUE(moe::testing::same_bits(copy(size.input()), y));
}

TEST(Bind, RefusesWhatCannotBeReadWhereItLiesAndLoadCopiesIt) {
    const Size size{5, 7};
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const Arrangement arrangement{.dtype = dtype};
        Bytes bytes = arrangement.file(size);
        bytes.insert(bytes.begin(), std::byte{});
        const SafetensorsView view{std::span<const std::byte>(bytes).subspan(1)};
        const std::string text =
            message<FormatError>([&] { size.bound(view, arrangement.names()); });
        EXPECT_NE(text.find("no multiple of"), std::string::npos) << text;
        EXPECT_NE(text.find("moe::load copies it"), std::string::npos) << text;
        Layer loaded = size.deferred();
        moe::load(view, arrangement.names(), loaded);
        expect_values(size, loaded.bank().group<0>());
    }
    const Arrangement wide{.dtype = Dtype::f64};
    const Bytes bytes = wide.file(size);
    const SafetensorsView view{bytes};
    const std::string text = message<FormatError>([&] { size.bound(view, wide.names()); });
    EXPECT_NE(text.find("F64, a layer of F32"), std::string::npos) << text;
    EXPECT_NE(text.find("moe::load converts it"), std::string::npos) << text;
    Layer loaded = size.deferred();
    moe::load(view, wide.names(), loaded);
    expect_values(size, loaded.bank().group<0>());
}

// Codes with scales of blocks.

/// E4M3 by its definition (OCP 8-bit floating point, section 5).
double e4m3(unsigned code) {
    const int exponent = static_cast<int>(code >> 3 & 15), fraction = static_cast<int>(code & 7);
    const double size =
        exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    return code >> 7 == 0 ? size : -size;
}
double e2m1(unsigned code) {
    constexpr double sizes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return (code & 8) == 0 ? sizes[code & 7] : -sizes[code & 7];
}
/// Code number i of matrix `seed`; no NaN of E4M3.
std::uint8_t code(Index i, Index seed) {
    const auto bits = static_cast<std::uint8_t>((i * 37 + seed * 101 + i * i % 13) % 256);
    return (bits & 0x7f) == 0x7f ? std::uint8_t{0x12} : bits;
}
Index blocks(Index n, Index block) { return (n + block - 1) / block; }

/// A matrix as FP8 codes and scales, and what it means.
struct Fp8 {
    std::vector<std::uint8_t> codes;
    std::vector<float> scales;
    Rows values;

    Fp8(Index rows, Index cols, Index block, Index seed) : values(stored::matrix(rows, cols, 0)) {
        const Index across = blocks(cols, block);
        for (Index b = 0; b < blocks(rows, block) * across; ++b)
            scales.push_back(0.01f + 0.003f * static_cast<float>(b + seed));
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j) {
                codes.push_back(code(i * cols + j, seed));
                const float scale =
                    scales[static_cast<std::size_t>(i / block * across + j / block)];
                values[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] =
                    static_cast<float>(e4m3(codes.back()) * static_cast<double>(scale));
            }
    }
};

/// Adds tensors of U8, and of what else is not of C++.
struct CodedFile {
    SafetensorsWriter writer;
    std::vector<std::vector<std::uint8_t>> kept;

    explicit CodedFile(Size size) {
        stored::add(writer, "a.mlp.gate.weight", Dtype::f32, {router(size)},
                    {experts, size.model_dim});
    }
    void add(const std::string& name, Dtype dtype, std::vector<std::uint8_t> bytes,
             const moe::Extents& shape) {
        kept.push_back(std::move(bytes));
        writer.add_view({"a.mlp." + name, dtype, shape, std::as_bytes(std::span(kept.back())), ""});
    }
};

/// What a file of codes means to bind, load and freeze.
void expect_coded(Size size, const Bytes& bytes, const Names& names, const std::vector<Rows>& gates,
                  const std::vector<Rows>& ups, const std::vector<Rows>& downs) {
    const SafetensorsView view{bytes};
    Layer loaded = size.deferred();
    moe::load(view, names, loaded);
    const auto& group = loaded.bank().group<0>();
    for (std::size_t e = 0; e < experts; ++e) {
        EXPECT_TRUE(stored::holds(group.gate.owned(Index(e)), gates[e])) << e;
        EXPECT_TRUE(stored::holds(group.up.owned(Index(e)), ups[e])) << e;
        EXPECT_TRUE(stored::holds(group.down.owned(Index(e)), downs[e])) << e;
    }
    const Layer bound = size.bound(view, names);
    EXPECT_TRUE(bound.bank().group<0>().gate.is_coded());
    const moe::Matrix<float> x = size.input();
    EXPECT_TRUE(moe::testing::same_bits(moe::freeze(bound)(x), loaded(x)));
    EXPECT_TRUE(moe::testing::same_bits(moe::freeze(loaded)(x), loaded(x)));
    const std::string text = message([&] { bound(x); });
    EXPECT_NE(text.find("codes"), std::string::npos) << text;
    EXPECT_NE(text.find("moe::freeze"), std::string::npos) << text;
}

TEST(Bind, ReadsFp8WithTheScalesOfItsBlocksThoughTheLastArePartial) {
    const Size size{6, 9};
    constexpr Index block = 4;
    for (const Stacking stacking : {Stacking::separate, Stacking::leading}) {
        const bool stacked = stacking == Stacking::leading;
        CodedFile file(size);
        std::vector<TensorName> table{{"router.weight", "gate.weight"}};
        std::vector<std::vector<Rows>> values;
        Index seed = 0;
        for (const char* const name : {"gate", "up", "down"}) {
            const std::string tensor = name + std::string(stacked ? "" : ".#");
            table.push_back({.parameter = std::string("experts.#.") + name,
                             .tensor = tensor,
                             .layout = {.stacking = stacking, .block = block},
                             .scales = tensor + ".scale"});
            const bool is_down = name[0] == 'd';
            const Index rows = is_down ? 6 : 9, cols = is_down ? 9 : 6;
            std::vector<std::uint8_t> codes;
            std::vector<float> scales;
            values.emplace_back();
            for (Index e = 0; e < experts; ++e) {
                const Fp8 matrix(rows, cols, block, seed++);
                values.back().push_back(matrix.values);
                codes.insert(codes.end(), matrix.codes.begin(), matrix.codes.end());
                scales.insert(scales.end(), matrix.scales.begin(), matrix.scales.end());
                if (stacked) continue;
                const std::string one = std::string(name) + "." + std::to_string(e);
                file.add(one, Dtype::f8_e4m3, std::exchange(codes, {}), {rows, cols});
                file.writer.add("a.mlp." + one + ".scale", std::span(scales),
                                {blocks(rows, block), blocks(cols, block)});
                scales.clear();
            }
            if (!stacked) continue;
            file.add(name, Dtype::f8_e4m3, std::move(codes), {experts, rows, cols});
            file.writer.add(std::string("a.mlp.") + name + ".scale", std::span(scales),
                            {experts, blocks(rows, block), blocks(cols, block)});
        }
        expect_coded(size, file.writer.bytes(), Names("a.mlp.", table), values[0], values[1],
                     values[2]);
    }
}

TEST(Bind, ReadsMxfp4OfRowsThatTakeTurnsAndOfHalves) {
    const Size size{64, 32};
    for (const bool take_turns : {true, false}) {
        std::vector<Rows> gates, ups, downs;
        CodedFile file(size);
        const auto add = [&](const std::string& name, Index rows, Index cols, Index seed,
                             auto&& keep) {
            std::vector<std::uint8_t> codes, scales;
            for (Index e = 0; e < experts; ++e) {
                Rows all = stored::matrix(rows, cols, 0);
                for (Index i = 0; i < rows; ++i)
                    for (Index j = 0; j < cols; ++j) {
                        const Index number = (e * rows + i) * cols + j;
                        if (j % 32 == 0)
                            scales.push_back(
                                static_cast<std::uint8_t>(120 + (number / 32 + seed) % 9));
                        if (j % 2 == 0) codes.push_back(code(number, seed));
                        const unsigned pair = codes.back();
                        all[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] = std::ldexp(
                            e2m1(j % 2 == 0 ? pair & 15u : pair >> 4), scales.back() - 127);
                    }
                keep(all);
            }
            file.add(name + "_blocks", Dtype::u8, codes, {experts, rows, cols / 32, 16});
            file.add(name + "_scales", Dtype::u8, scales, {experts, rows, cols / 32});
        };
        add("gate_up", 2 * size.ffn_dim, size.model_dim, 5, [&](const Rows& all) {
            Rows first, second;
            for (std::size_t i = 0; i < all.size(); ++i)
                (take_turns           ? i % 2 == 0
                 : i < all.size() / 2 ? true
                                      : false)
                    ? first.push_back(all[i])
                    : second.push_back(all[i]);
            gates.push_back(first);
            ups.push_back(second);
        });
        add("down", size.model_dim, size.ffn_dim, 7,
            [&](const Rows& all) { downs.push_back(all); });
        const auto coded = [](Part part) {
            return Layout{.stacking = Stacking::leading, .part = part, .coding = Coding::mxfp4};
        };
        const Names names("a.mlp.",
                          {{"router.weight", "gate.weight"},
                           {"experts.#.gate", "gate_up_blocks",
                            coded(take_turns ? Part::even : Part::first_half), "gate_up_scales"},
                           {"experts.#.up", "gate_up_blocks",
                            coded(take_turns ? Part::odd : Part::second_half), "gate_up_scales"},
                           {"experts.#.down", "down_blocks", coded(Part::whole), "down_scales"}});
        expect_coded(size, file.writer.bytes(), names, gates, ups, downs);
    }
}

TEST(Bind, TakesNoCodesForSomeExpertsOnlyAndLoadDoes) {
    const Size size{6, 6};
    for (const bool codes_first : {true, false}) {
        CodedFile file(size);
        const auto tensor = [&](const std::string& name, Index e, bool coded, const Rows& rows) {
            const std::string one = name + "." + std::to_string(e);
            if (!coded) return stored::add(file.writer, "a.mlp." + one, Dtype::f32, {rows}, {6, 6});
            file.add(one, Dtype::f8_e4m3, Fp8(6, 6, 128, 1).codes, {6, 6});
            file.writer.add("a.mlp." + one + ".scale", moe::Matrix<float>::Ones(1, 1));
        };
        for (Index e = 0; e < experts; ++e) {
            tensor("gate", e, (e == 0) == codes_first, gate(size, e));
            tensor("up", e, false, up(size, e));
            tensor("down", e, false, down(size, e));
        }
        const Names names("a.mlp.", {{"router.weight", "gate.weight"},
                                     {"experts.#.gate", "gate.#", {}, "gate.#.scale"},
                                     {"experts.#.up", "up.#"},
                                     {"experts.#.down", "down.#"}});
        const Bytes bytes = file.writer.bytes();
        const SafetensorsView view{bytes};
        const std::string text = message<FormatError>([&] { size.bound(view, names); });
        EXPECT_NE(text.find("moe::load"), std::string::npos) << text;
        Layer loaded = size.deferred();
        moe::load(view, names, loaded);
        const Index plain = codes_first ? 1 : 0;
        EXPECT_TRUE(stored::holds(loaded.bank().group<0>().gate.owned(plain), gate(size, plain)));
    }
}

// What is wrong, on a stand-in for a layer.

/// One deferred matrix [2, 3] per expert and the weight of a router.
Bag<float> small_bag(Index count = experts) {
    Bag<float> bag;
    bag.parameters.emplace_back("router.weight", moe::Parameter<float>(2, 3));
    bag.matrices.push_back({"experts.#.up", moe::Weights<float>::deferred(count, 2, 3)});
    return bag;
}
const Names small_names("m.", {{"router.weight", "router"}, {"experts.#.up", "experts.#.up"}});

/// A file of it, without the tensor called `without`.
void write_small(SafetensorsWriter& writer, Index count = experts,
                 const std::string& without = "") {
    const auto add = [&](const std::string& name, Index seed) {
        if (name != without)
            stored::add(writer, "m." + name, Dtype::f32, {stored::matrix(2, 3, seed)}, {2, 3});
    };
    add("router", 50);
    for (Index e = 0; e < count; ++e) add("experts." + std::to_string(e) + ".up", e);
}

template <class Error = FormatError>
std::string error_of(const SafetensorsWriter& writer, const Names& names, Bag<float> bag) {
    const Bytes bytes = writer.bytes();
    const SafetensorsView view{bytes};
    return message<Error>([&] { moe::load(view, names, bag); });
}
void expect_parts(const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* const part : parts)
        EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

TEST(Load, SaysWhatIsMissingAndWhatIsNear) {
    SafetensorsWriter writer;
    write_small(writer, experts, "experts.1.up");
    expect_parts(error_of(writer, small_names, small_bag()),
                 {"moe::load: none of the 3 tensors is called \"m.experts.1.up\" for experts.1.up; "
                  "near it: \"m.experts.",
                  "\"; are layer, recipes and counts those of the model?"});
    expect_parts(error_of<std::invalid_argument>(writer, Names("m.", {{"router.weight", "router"}}),
                                                 small_bag()),
                 {"the names say nothing of \"experts.0.up\""});
    const Names two("m.", {{"router.weight", "router"},
                           {"experts.#.up", "experts.#.up"},
                           {"experts.#.up", "experts.#.w3"}});
    expect_parts(error_of(writer, two, small_bag()),
                 {"\"m.experts.1.up\" or \"m.experts.1.w3\" for experts.1.up"});
}

TEST(Load, TakesNoFileOfMoreOrFewerExperts) {
    for (const Index count : {8, 9, 10}) {
        SafetensorsWriter writer;
        write_small(writer, 9);
        const std::string text = count == 9 ? "" : error_of(writer, small_names, small_bag(count));
        if (count == 8) expect_parts(text, {"\"m.experts.8.up\" [2, 3]", "no parameter"});
        if (count == 10) expect_parts(text, {"\"m.experts.9.up\""});
    }
    const Names names("m.", {{"router.weight", "router"},
                             {"experts.#.up", "up", {.stacking = Stacking::leading}}});
    SafetensorsWriter writer;
    stored::add(writer, "m.router", Dtype::f32, {stored::matrix(2, 3, 50)}, {2, 3});
    stored::add(writer, "m.up", Dtype::f32, std::vector<Rows>(9, stored::matrix(2, 3, 1)),
                Stacking::leading);
    EXPECT_EQ(error_of(writer, names, small_bag(9)), "");
    for (const Index count : {8, 10})
        expect_parts(error_of(writer, names, small_bag(count)),
                     {"\"m.up\" has shape [9, 2, 3]", count == 8 ? "[8, 2, 3]" : "[10, 2, 3]"});
}

TEST(Load, SaysBothShapes) {
    const auto error = [](const moe::Extents& shape, const Layout& layout) {
        SafetensorsWriter writer;
        stored::add(writer, "m.router", Dtype::f32, {stored::matrix(shape.product(), 1, 1)}, shape);
        Bag<float> bag;
        bag.parameters.emplace_back("router.weight", moe::Parameter<float>(2, 3));
        return error_of(writer, Names("m.", {{"router.weight", "router", layout}}), bag);
    };
    expect_parts(error({3, 2}, {}), {"router.weight [2, 3]", "has shape [3, 2]", "needs [2, 3]"});
    expect_parts(error({2, 3}, {.orientation = Orientation::in_out}),
                 {"has shape [2, 3]", "needs [3, 2]"});
    expect_parts(error({2, 3}, {.part = Part::even}), {"has shape [2, 3]", "needs [4, 3]"});
    EXPECT_EQ(error({4, 3}, {.part = Part::even}), "");
    expect_parts(error({6}, {}), {"has shape [6]", "needs [2, 3]"});
}

TEST(Load, TakesNoTensorOfIntegersOrOfUnknownCodes) {
    for (const Dtype dtype : {Dtype::i8, Dtype::u8, Dtype::f8_e5m2}) {
        SafetensorsWriter writer;
        const std::vector<std::uint8_t> bytes(6);
        writer.add_view({"m.router", dtype, {2, 3}, std::as_bytes(std::span(bytes)), ""});
        Bag<float> bag;
        bag.parameters.emplace_back("router.weight", moe::Parameter<float>(2, 3));
        expect_parts(error_of(writer, Names("m.", {{"router.weight", "router"}}), bag),
                     {"\"m.router\" for router.weight", moe::dtype_name(dtype)});
    }
}

TEST(Load, TakesNoCodesThatTheNamesDoNotDescribe) {
    const auto error = [](const Layout& layout, const std::string& scales, Dtype scale_dtype,
                          const moe::Extents& scale_shape) {
        SafetensorsWriter writer;
        const std::vector<std::uint8_t> bytes(64);
        const auto view = std::as_bytes(std::span(bytes));
        writer.add_view({"m.up.0", Dtype::f8_e4m3, {2, 3}, view.first(6), ""});
        const auto size =
            static_cast<std::size_t>(scale_shape.product() * moe::element_size(scale_dtype));
        writer.add_view({"m.up.0.scale", scale_dtype, scale_shape, view.first(size), ""});
        Bag<float> bag;
        bag.matrices.push_back({"experts.#.up", moe::Weights<float>::deferred(1, 2, 3)});
        return error_of(writer, Names("m.", {{"experts.#.up", "up.#", layout, scales}}), bag);
    };
    EXPECT_EQ(error({}, "up.#.scale", Dtype::f32, {1, 1}), "");
    EXPECT_EQ(error({.block = 2}, "up.#.scale", Dtype::bf16, {1, 2}), "");
    expect_parts(error({}, "", Dtype::f32, {1, 1}), {"F8_E4M3", "nothing of its scales"});
    expect_parts(error({}, "up.#.scales", Dtype::f32, {1, 1}), {"\"m.up.0.scale\""});
    expect_parts(error({}, "up.#.scale", Dtype::f32, {1, 2}), {"[1, 2]", "needs [1, 1]"});
    expect_parts(error({.block = 2}, "up.#.scale", Dtype::f32, {1, 1}), {"needs [1, 2]"});
    expect_parts(error({}, "up.#.scale", Dtype::i32, {1, 1}), {"scales of dtype \"I32\""});
    expect_parts(error({.orientation = Orientation::in_out}, "up.#.scale", Dtype::f32, {1, 1}),
                 {"do not follow its layout"});
}

TEST(Load, LeavesTheLayerAsItWasIfAnythingIsWrong) {
    const auto bag_of_values = [] {
        Bag<float> bag = small_bag();
        bag.parameters.emplace_back("gate.bias", moe::Parameter<float>(1, 3));
        float value = 1;
        for (auto& [name, parameter] : bag.parameters)
            for (Index i = 0; i < parameter.size(); ++i) parameter.data()[i] = value++;
        return bag;
    };
    const Names names("m.", {{"router.weight", "router"},
                             {"experts.#.up", "experts.#.up"},
                             {"gate.bias", "bias", {.orientation = Orientation::vector}}});
    SafetensorsWriter writer;
    write_small(writer);
    const auto expect_unchanged = [&](const Bag<float>& bag) {
        const Bag<float> before = bag_of_values();
        for (std::size_t i = 0; i < bag.parameters.size(); ++i)
            EXPECT_TRUE(
                moe::testing::same_bits(bag.parameters[i].second, before.parameters[i].second));
        EXPECT_TRUE(bag.matrices[0].weights.is_deferred());
    };
    Bag<float> bag = bag_of_values();
    {
        const Bytes bytes = writer.bytes();  // without the bias, which is looked for last
        EXPECT_THROW(moe::load(SafetensorsView{bytes}, names, bag), FormatError);
        expect_unchanged(bag);
    }
    writer.add("m.bias", std::vector<float>{7, 8, 9});
    const Bytes bytes = writer.bytes();
    const SafetensorsView view{bytes};
    long failures = 0;
    while (allocations::are_counted &&
           allocations::fails_at(failures, [&] { moe::load(view, names, bag); })) {
        expect_unchanged(bag);
        ++failures;
    }
    EXPECT_TRUE(!allocations::are_counted || failures > 10) << failures;
    bag = bag_of_values();
    moe::load(view, names, bag);
    EXPECT_EQ(bag.parameters[1].second(0, 2), 9);
    EXPECT_TRUE(stored::holds(bag.matrices[0].weights.owned(2), stored::matrix(2, 3, 2)));
}

TEST(Load, ReadsIntoMemoryThatALayerHasAndRefusesViews) {
    SafetensorsWriter writer;
    write_small(writer);
    const Bytes bytes = writer.bytes();
    const SafetensorsView view{bytes};
    Bag<float> bag;
    for (Index e = 0; e < experts; ++e)
        bag.parameters.emplace_back("experts." + std::to_string(e) + ".up",
                                    moe::Parameter<float>(2, 3));
    bag.parameters.emplace_back("router.weight", moe::Parameter<float>(2, 3));
    const float* const memory = bag.parameters[1].second.data();
    moe::load(view, small_names, bag);
    EXPECT_EQ(bag.parameters[1].second.data(), memory);
    EXPECT_TRUE(stored::holds(bag.parameters[1].second, stored::matrix(2, 3, 1)));

    bag = small_bag();
    bag.matrices[0].weights = moe::Weights<float>(std::vector<moe::WeightView>(
        experts, {.data = memory, .dtype = Dtype::f32, .rows = 2, .cols = 3}));
    expect_parts(error_of<std::invalid_argument>(writer, small_names, bag),
                 {"experts.#.up are views", "load into a layer that owns"});
}

TEST(Load, FindsTheFirstPrefixThatTheFileHas) {
    for (const std::string prefix : {"m.", "model.m."}) {
        SafetensorsWriter writer;
        for (Index e = 0; e < experts; ++e)
            stored::add(writer, prefix + "up." + std::to_string(e), Dtype::f32,
                        {stored::matrix(2, 3, e)}, {2, 3});
        stored::add(writer, prefix == "m." ? "beside" : "model.beside", Dtype::f32,
                    {stored::matrix(2, 3, 9)}, {2, 3});
        Bag<float> bag = small_bag();
        const Bytes bytes = writer.bytes();
        moe::load(SafetensorsView{bytes},
                  Names(std::vector<std::string>{"model.m.", "m."},
                        {{"experts.#.up", "up.#"}, {"router.weight", "../beside"}}),
                  bag);
        EXPECT_TRUE(stored::holds(bag.parameters[0].second, stored::matrix(2, 3, 9)));
        EXPECT_TRUE(stored::holds(bag.matrices[0].weights.owned(1), stored::matrix(2, 3, 1)));
    }
}

TEST(Load, LooksForThePrefixByAnExpertThatTheFirstEntryHas) {
    SafetensorsWriter writer;
    stored::add(writer, "m.up.0", Dtype::f32, {stored::matrix(2, 3, 4)}, {2, 3});
    Bag<float> bag;
    bag.matrices.push_back({"experts.#.up", moe::Weights<float>::deferred(1, 2, 3), 5});
    const Bytes bytes = writer.bytes();
    moe::load(SafetensorsView{bytes},
              Names(std::vector<std::string>{"x.", "m."},
                    {{.parameter = "experts.#.up", .tensor = "up.#", .first = 5}}),
              bag);
    EXPECT_TRUE(stored::holds(bag.matrices[0].weights.owned(0), stored::matrix(2, 3, 4)));
}

TEST(Load, LeavesTensorsOutThatTheNamesCallUnused) {
    SafetensorsWriter writer;
    write_small(writer);
    writer.add("m.old", std::vector<float>{1});
    expect_parts(error_of(writer, small_names, small_bag()), {"\"m.old\" [1]", "no parameter"});
    const Names names("m.",
                      {{"router.weight", "router"}, {"experts.#.up", "experts.#.up"}, {"", "old"}});
    EXPECT_EQ(error_of(writer, names, small_bag()), "");
    const Names both("m.", {{"router.weight", "router"},
                            {"experts.#.up", "experts.#.up"},
                            {"", "old"},
                            {"", "router"}});
    EXPECT_EQ(error_of(writer, both, small_bag()), "");
}

TEST(Load, RefusesNamesWithoutATable) {
    SafetensorsWriter writer;
    write_small(writer);
    expect_parts(error_of<std::invalid_argument>(writer, Names(), small_bag()), {"are empty"});
    expect_parts(error_of<std::invalid_argument>(writer, Names(), Bag<float>{}), {"are empty"});
}

TEST(Load, RefusesExtentsThatOverflowBeforeItAllocates) {
    constexpr Index most = std::numeric_limits<Index>::max();
    SafetensorsWriter writer;
    stored::add(writer, "m.up", Dtype::f32, {stored::matrix(2, 3, 4)}, {1, 2, 3});
    for (const Part part : {Part::whole, Part::even}) {
        Bag<float> bag;
        bag.matrices.push_back({"experts.#.up", moe::Weights<float>::deferred(1, most, most)});
        const Bytes bytes = writer.bytes();
        const Names names("m.",
                          {{"experts.#.up", "up", {.stacking = Stacking::leading, .part = part}}});
        if (part == Part::whole)
            EXPECT_THROW(moe::load(SafetensorsView{bytes}, names, bag), FormatError);
        else
            EXPECT_THROW(moe::load(SafetensorsView{bytes}, names, bag), std::length_error);
    }
}

TEST(Load, RoundsToTheScalarOfTheLayer) {
    SafetensorsWriter writer;
    writer.add("m.router", std::vector<double>{1, 1e300, 1.0000000001});
    const Names names("m.", {{"router.bias", "router", {.orientation = Orientation::vector}}});
    const Bytes bytes = writer.bytes();
    Bag<double> wide;
    wide.parameters.emplace_back("router.bias", moe::Parameter<double>(1, 3));
    moe::load(SafetensorsView{bytes}, names, wide);
    EXPECT_EQ(wide.parameters[0].second(0, 1), 1e300);
    EXPECT_EQ(wide.parameters[0].second(0, 2), 1.0000000001);
    Bag<float> narrow;
    narrow.parameters.emplace_back("router.bias", moe::Parameter<float>(3, 1));  // a column
    moe::load(SafetensorsView{bytes}, names, narrow);
    EXPECT_TRUE(std::isinf(narrow.parameters[0].second(1, 0)));
    EXPECT_EQ(narrow.parameters[0].second(2, 0), 1.0f);
}

TEST(Load, ReadsEveryDtypeIntoLayersOfDouble) {
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
        SafetensorsWriter writer;
        stored::add(writer, "m.up", dtype, {stored::matrix(2, 3, 4), stored::matrix(2, 3, 5)},
                    Stacking::leading);
        Bag<double> bag;
        bag.matrices.push_back({"experts.#.up", moe::Weights<double>::deferred(2, 2, 3)});
        const Bytes bytes = writer.bytes();
        const SafetensorsView view{bytes};
        const Names names("m.", {{"experts.#.up", "up", {.stacking = Stacking::leading}}});
        moe::load(view, names, bag);
        EXPECT_TRUE(stored::holds(bag.matrices[0].weights.owned(1), stored::matrix(2, 3, 5)));

        moe::detail::TensorPlan<SafetensorsView> plan(view, names, "moe::bind");
        for (const char* const name : {"experts.0.up", "experts.1.up"}) plan.want(name, 2, 3);
        const auto& found = plan.find();
        if (dtype == Dtype::f64)
            EXPECT_TRUE(stored::holds(found[1].view<double>(), stored::matrix(2, 3, 5)));
        else
            expect_parts(message<FormatError>([&] { found[1].view<double>(); }),
                         {"a layer of F64", "moe::load converts it"});
    }
}

/// A part of a user's own with a column-major matrix and a column.
struct UsersPart {
    using Scalar = float;
    Eigen::MatrixXf weight = Eigen::MatrixXf(2, 3);
    Eigen::VectorXf bias = Eigen::VectorXf(2);
    void visit_parameters(auto&& visit) {
        visit("weight", weight);
        visit("bias", bias);
    }
};

TEST(Load, FollowsTheStorageOrderOfAUsersMatrix) {
    SafetensorsWriter writer;
    stored::add(writer, "m.weight", Dtype::f32, {stored::matrix(2, 3, 1)}, {2, 3});
    writer.add("m.bias", std::vector<float>{4, 5});
    UsersPart part;
    const Bytes bytes = writer.bytes();
    moe::load(
        SafetensorsView{bytes},
        Names("m.", {{"weight", "weight"}, {"bias", "bias", {.orientation = Orientation::vector}}}),
        part);
    const Rows expected = stored::matrix(2, 3, 1);
    for (Index i = 0; i < 2; ++i)
        for (Index j = 0; j < 3; ++j)
            EXPECT_EQ(static_cast<double>(part.weight(i, j)),
                      expected[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)]);
    EXPECT_EQ(part.bias(0), 4);
    EXPECT_EQ(part.bias(1), 5);
}

}  // namespace
}  // namespace bind_test
