// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>

#include "raw_file.hpp"
#include "support/message.hpp"

namespace safetensors_test {
namespace {

using moe::Dtype;
using moe::FormatError;
using moe::Index;
using moe::Matrix;
using moe::SafetensorsView;
using moe::TensorView;
using moe_test::error_of;
using moe_test::raw_file;

const std::string data_folder = "tests/io/data/";

// A header with one tensor "a".
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}}";
}

std::string member(const std::string& name, const std::string& offsets, const std::string& shape) {
    return '"' + name + R"(":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           '}';
}

testing::AssertionResult says(const std::string& error, const std::string& part) {
    if (error.find(part) != std::string::npos) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "expected \"" << part << "\" in \"" << error << "\"";
}

// Everything the class promises about a view that exists, and what a damaged file that is accepted
// must be: its tensors lie in it one behind the other, without holes, in the sizes that it says,
// each under a name of its own. That they are the tensors of the undamaged file nobody can promise:
// a changed letter of a name makes another sound file.
void expect_consistent(const SafetensorsView& view, std::span<const std::byte> file) {
    const std::byte* expected = view.size() == 0 ? nullptr : view.begin()->bytes.data();
    std::set<std::string_view> names;
    for (const TensorView& tensor : view) {
        ASSERT_EQ(tensor.bytes.data(), expected);
        expected += tensor.bytes.size();
        ASSERT_GE(tensor.bytes.data(), file.data() + 8);
        ASSERT_LE(expected, file.data() + file.size());
        if (tensor.dtype != Dtype::unknown) {
            ASSERT_EQ(
                tensor.bytes.size(),
                static_cast<std::size_t>(tensor.shape.product() * moe::element_size(tensor.dtype)));
        }
        ASSERT_TRUE(names.insert(tensor.name).second);
        ASSERT_EQ(view.find(tensor.name), &tensor);
    }
    if (view.size() > 0) {
        ASSERT_EQ(expected, file.data() + file.size());
    }
}

// ---- What it reads

TEST(SafetensorsView, ReadsAFileWithoutTensors) {
    const auto file = raw_file("{}      ");
    const SafetensorsView view(file);
    EXPECT_EQ(view.size(), 0);
    EXPECT_TRUE(view.begin() == view.end());
    EXPECT_TRUE(view.metadata().empty());
    EXPECT_EQ(view.find("a"), nullptr);
}

TEST(SafetensorsView, ViewsTheTensorsWhereTheyLie) {
    const auto file = raw_file(one("F32", "[2,3]", "[0,24]"), 24);
    const SafetensorsView view(file);
    const TensorView tensor = view.at("a");
    EXPECT_EQ(tensor.name, "a");
    EXPECT_EQ(tensor.dtype, Dtype::f32);
    EXPECT_EQ(tensor.dtype_text, "F32");
    EXPECT_EQ(tensor.shape, (moe::Extents{2, 3}));
    EXPECT_EQ(tensor.bytes.data() + 24, file.data() + file.size());
    expect_consistent(view, file);
}

TEST(SafetensorsView, ListsTensorsInTheOrderOfTheirBytes) {
    const auto file = raw_file(
        "{" + member("late", "[3,5]", "[2]") + "," + member("z_empty", "[3,3]", "[0]") + "," +
            member("early", "[0,3]", "[3]") + "," + member("empty", "[3,3]", "[7,0]") + "}",
        5);
    const SafetensorsView view(file);
    std::string order;
    for (const TensorView& tensor : view) order += std::string(tensor.name) + " ";
    EXPECT_EQ(order, "early empty z_empty late ");
    expect_consistent(view, file);
}

TEST(SafetensorsView, ReadsFieldsInAnyOrderWithSpacesAndEscapes) {
    const auto file = raw_file(
        "{ \"\\u0061\" : { \"data_offsets\" : [ 0 , 2 ] , \"sh\\u0061pe\":[2], \"dtype\":"
        "\"\\u0055\\u0038\" } } ",
        2);
    const SafetensorsView view(file);
    EXPECT_EQ(view.at("a").dtype, Dtype::u8);
}

TEST(SafetensorsView, ReadsMetadata) {
    const auto file = raw_file(R"({"__metadata__":{"format":"pt","n\u006fte":"\u00e9","":""}})");
    const SafetensorsView view(file);
    ASSERT_EQ(view.metadata().size(), 3u);
    EXPECT_EQ(view.metadata().find("format")->second, "pt");
    EXPECT_EQ(view.metadata().find("note")->second, "\xc3\xa9");
    EXPECT_EQ(view.size(), 0);
    EXPECT_EQ(view.find("__metadata__"), nullptr);
}

TEST(SafetensorsView, CopiesOutliveTheFirstAndShareItsNames) {
    const auto file = raw_file("{" + member("caf\\u00e9", "[0,1]", "[1]") + "}", 1);
    std::optional<SafetensorsView> first(file);
    const TensorView tensor = first->at("caf\xc3\xa9");
    const SafetensorsView copy = *first;
    const SafetensorsView moved = std::move(*first);
    EXPECT_EQ(first->size(), 1);  // moving copies: there is no empty husk
    first.reset();
    EXPECT_EQ(tensor.name, "caf\xc3\xa9");
    EXPECT_EQ(copy.find("caf\xc3\xa9"), moved.find("caf\xc3\xa9"));
}

TEST(SafetensorsView, IsNotMadeFromATemporaryVector) {
    static_assert(std::is_constructible_v<SafetensorsView, std::vector<std::byte>&>);
    static_assert(std::is_constructible_v<SafetensorsView, const std::vector<std::byte>&>);
    static_assert(std::is_constructible_v<SafetensorsView, std::span<const std::byte>>);
    static_assert(!std::is_constructible_v<SafetensorsView, std::vector<std::byte>>);
    static_assert(!std::is_constructible_v<SafetensorsView, const std::vector<std::byte>>);
    static_assert(!std::is_default_constructible_v<SafetensorsView>);
}

TEST(SafetensorsView, MissingNamesAreAnsweredWithNearOnes) {
    const auto file = raw_file("{" + member("experts.3.w1", "[0,0]", "[0]") + "," +
                               member("experts.3.w3", "[0,0]", "[0]") + "," +
                               member("router", "[0,0]", "[0]") + "}");
    const SafetensorsView view(file);
    const auto missing = [&](std::string_view name) {
        return support::message<FormatError>([&] { view.at(name); });
    };
    EXPECT_EQ(missing("experts.3.w2"),
              "moe::SafetensorsView: none of the 3 tensors is called \"experts.3.w2\"; near it: "
              "\"experts.3.w1\", \"experts.3.w3\"");
    EXPECT_EQ(missing("x"), "moe::SafetensorsView: none of the 3 tensors is called \"x\"");
    EXPECT_EQ(missing(""), "moe::SafetensorsView: none of the 3 tensors is called \"\"");
}

TEST(SafetensorsView, ReadsMisalignedFilesByCopying) {
    std::string header = one("F32", "[1]", "[0,4]");
    if (header.size() % 2 == 0) header += ' ';  // tensors begin at an odd address
    auto file = raw_file(header, 4);
    const float value = 2.5f;
    std::memcpy(file.data() + file.size() - 4, &value, 4);
    const SafetensorsView view(file);
    EXPECT_THROW(view.matrix<float>("a"), FormatError);
    EXPECT_EQ(view.copy<double>("a")(0, 0), 2.5);
}

TEST(SafetensorsView, ErrorsNameTheFileIfItIsNamed) {
    const auto cut = raw_file(one("U8", "[4]", "[0,4]"), 3);
    EXPECT_EQ(
        support::message<FormatError>([&] { SafetensorsView(cut, "model.safetensors"); }),
        "moe::SafetensorsView: \"model.safetensors\": tensor \"a\" ends at byte 4, the file has "
        "3 data bytes");
    const auto broken = raw_file("{]");
    EXPECT_EQ(support::message<FormatError>([&] { SafetensorsView(broken, "\x1b[31m"); }),
              "moe::SafetensorsView: \"?[31m\": header byte 1: expected a string, found ']'");
}

TEST(SafetensorsView, ListsTensorsOfUnknownDtypeAndRefusesTheirValues) {
    for (const char* dtype : {"F8_E8M0", "C64", "F4", "f32", "\\u0046\\u0034", ""}) {
        const auto file = raw_file(one(dtype, "[8]", "[0,8]"), 8);
        const SafetensorsView view(file);
        EXPECT_EQ(view.at("a").dtype, Dtype::unknown);
        EXPECT_EQ(view.at("a").bytes.size(), 8u);
        EXPECT_THROW(view.copy<float>("a"), FormatError);
        EXPECT_THROW(view.matrix<float>("a"), FormatError);
        EXPECT_THROW(view.integers("a"), FormatError);
    }
}

// ---- What the format's own package wrote (data/generate.py)

TEST(SafetensorsFile, OfEveryDtypeIsReadBitForBit) {
    const auto file = moe::read_file(data_folder + "dtypes.safetensors");
    const SafetensorsView view(file);
    ASSERT_EQ(view.size(), 15);
    EXPECT_EQ(view.metadata(), (SafetensorsView::Metadata{{"format", "pt"}}));
    expect_consistent(view, file);

    const double special[] = {0.0,
                              -0.0,
                              std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity(),
                              std::numeric_limits<double>::quiet_NaN(),
                              6.0e-8,
                              65504.0,
                              1e-40};
    const auto same = [](double a, double b) {
        return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
    };
    const auto f64 = view.matrix<double>("f64");
    const auto f32 = view.matrix<float>("f32");
    const auto f16 = view.copy<float>("f16");
    const auto bf16 = view.copy<float>("bf16");
    for (const char* name : {"f64", "f32", "f16", "bf16"})
        ASSERT_EQ(view.at(name).shape, (moe::Extents{2, 8}));
    for (Index i = 0; i < 8; ++i) {
        const double number = 1.5 * static_cast<double>(i - 3);
        EXPECT_EQ(f64(0, i), number);
        EXPECT_EQ(static_cast<double>(f32(0, i)), number);
        EXPECT_EQ(static_cast<double>(f16(0, i)), number);
        EXPECT_EQ(static_cast<double>(bf16(0, i)), number);
        EXPECT_TRUE(same(f64(1, i), special[i])) << i;
        EXPECT_TRUE(same(static_cast<double>(f32(1, i)),
                         static_cast<double>(static_cast<float>(special[i]))))
            << i;
    }
    EXPECT_EQ(f16(1, 5), 0x1p-24f);   // 6e-8 is the smallest half
    EXPECT_EQ(f16(1, 6), 65504.0f);   // and this the largest
    EXPECT_EQ(f16(1, 7), 0.0f);       // 1e-40 is below it
    EXPECT_EQ(bf16(1, 6), 65536.0f);  // eight bits of precision
    EXPECT_GT(bf16(1, 7), 0.0f);      // a denormal
    EXPECT_LT(bf16(1, 7), 0x1p-126f);
    EXPECT_TRUE(std::isnan(f16(1, 4)));
    EXPECT_TRUE(std::isnan(bf16(1, 4)));
    EXPECT_TRUE(std::signbit(f16(1, 1)));
    EXPECT_TRUE(std::signbit(bf16(1, 1)));

    const std::int64_t i64[] = {std::numeric_limits<std::int64_t>::min(), -1, 0, 1, 3'000'000'000,
                                std::numeric_limits<std::int64_t>::max()};
    ASSERT_EQ(view.integers("i64").rows(), 2);
    for (Index i = 0; i < 6; ++i) EXPECT_EQ(view.integers("i64").data()[i], i64[i]);
    for (const char* name : {"i32", "i16", "i8"})
        for (Index i = 0; i < 8; ++i) EXPECT_EQ(view.integers(name)(0, i), i - 3) << name;
    EXPECT_EQ(view.integers("u8")(0, 4), 255);
    EXPECT_EQ(view.integers("u16")(0, 2), 65535);
    EXPECT_EQ(view.integers("u32")(0, 2), 4294967295);
    EXPECT_EQ(view.integers("u64")(0, 2), std::numeric_limits<std::int64_t>::max());
    EXPECT_EQ(view.integers("bool")(0, 0), 1);
    EXPECT_EQ(view.integers("bool")(0, 1), 0);
    EXPECT_EQ(view.copy<double>("i64")(1, 1), 3e9);
    EXPECT_EQ(view.copy<float>("i32")(0, 0), -3.0f);

    EXPECT_EQ(view.at("f8_e4m3").dtype, Dtype::f8_e4m3);
    EXPECT_EQ(view.at("f8_e5m2").dtype, Dtype::f8_e5m2);
    EXPECT_EQ(view.at("f8_e4m3").bytes[5], std::byte{0x44});  // 3 = 2^1 x 1.5
    EXPECT_THROW(view.copy<float>("f8_e4m3"), FormatError);
}

TEST(SafetensorsFile, WithRareNamesAndShapesIsRead) {
    const auto file = moe::read_file(data_folder + "names.safetensors");
    const SafetensorsView view(file);
    ASSERT_EQ(view.size(), 7);
    expect_consistent(view, file);
    EXPECT_EQ(view.metadata().find("note")->second, "tab \t, \"quoted\", \xc3\xbc");
    EXPECT_EQ(view.matrix<float>("").cols(), 6);
    EXPECT_EQ(view.at("scalar").shape.size(), 0);
    EXPECT_EQ(view.copy<float>("scalar")(0, 0), 0.0f);
    EXPECT_EQ(view.matrix<float>("empty").rows(), 0);
    EXPECT_EQ(view.matrix<float>("empty").cols(), 3);
    EXPECT_EQ(view.matrix<float>("cube")(1, 2), 5.0f);
    EXPECT_EQ(view.matrix<float>("quote \" backslash \\ newline \n")(0, 1), 1.0f);
    EXPECT_EQ(view.matrix<float>("gr\xc3\xb6\xc3\x9f"
                                 "e \xe5\xa4\xa7 \xf0\x9f\x98\x80")(0, 2),
              2.0f);
    EXPECT_EQ(view.matrix<float>(std::string_view("\0\x1f\x7f", 3)).cols(), 1);
}

TEST(SafetensorsFile, OfAPublishedLayoutIsRead) {
    const auto file = moe::read_file(data_folder + "mixtral.safetensors");
    const SafetensorsView view(file);
    ASSERT_EQ(view.size(), 7);
    const std::string prefix = "model.layers.0.block_sparse_moe.";
    const auto check = [&](const std::string& name, Index rows, Index cols, Index start) {
        const Matrix<float> weight = view.copy<float>(prefix + name);
        ASSERT_EQ(weight.rows(), rows);
        ASSERT_EQ(weight.cols(), cols);
        for (Index i = 0; i < weight.size(); ++i)
            ASSERT_EQ(weight.data()[i], static_cast<float>((i + start) % 17 - 8) / 8) << name << i;
    };
    check("gate.weight", 2, 8, 0);
    for (Index e = 0; e < 2; ++e) {
        const std::string expert = "experts." + std::to_string(e);
        check(expert + ".w1.weight", 4, 8, 3 * e + 1);
        check(expert + ".w2.weight", 8, 4, 3 * e + 2);
        check(expert + ".w3.weight", 4, 8, 3 * e + 3);
    }
}

// ---- Attacks, one per test

TEST(SafetensorsAttack, EmptyFile) {
    EXPECT_TRUE(says(error_of(std::vector<std::byte>{}), "at least 8 bytes, this one has 0"));
}

TEST(SafetensorsAttack, FileShorterThanItsLengthField) {
    EXPECT_TRUE(says(error_of(std::vector<std::byte>(7)), "at least 8 bytes, this one has 7"));
}

TEST(SafetensorsAttack, HeaderLengthBeyondTheFile) {
    EXPECT_EQ(error_of(raw_file("{}", 0, 3)),
              "moe::SafetensorsView: the header has 3 bytes, the file only 2 after its length");
}

TEST(SafetensorsAttack, HeaderLengthThatWrapsWhenEightIsAdded) {
    for (std::uint64_t back = 1; back <= 16; ++back)
        EXPECT_TRUE(says(error_of(raw_file("{}", 0, 0 - back)), "the limit is 100000000"));
}

TEST(SafetensorsAttack, FileOfAnotherFormat) {
    EXPECT_TRUE(says(error_of(raw_file("", 64, 0x0000000346554747)),  // "GGUF", version 3
                     "is this a safetensors file?"));
}

TEST(SafetensorsAttack, HeaderOfNoBytes) {
    EXPECT_TRUE(says(error_of(""), "header byte 0: expected '{', found the end"));
}

TEST(SafetensorsAttack, HeaderThatDoesNotStartWithABrace) {
    EXPECT_TRUE(says(error_of(" {}"), "header byte 0: expected '{'"));
    EXPECT_TRUE(says(error_of("\xef\xbb\xbf{}"), "header byte 0: expected '{'"));
    EXPECT_TRUE(says(error_of("[]"), "header byte 0: expected '{'"));
}

TEST(SafetensorsAttack, HeaderThatIsNotUtf8) {
    EXPECT_TRUE(says(error_of("{\"\xff\":{}}"), "header byte 2: not valid UTF-8"));
}

TEST(SafetensorsAttack, BytesBehindTheHeaderObject) {
    EXPECT_TRUE(says(error_of("{}{}"), "expected nothing but spaces"));
    EXPECT_TRUE(says(error_of("{}\n"), "expected nothing but spaces"));
    EXPECT_TRUE(says(error_of(std::string_view("{}\0", 3)), "expected nothing but spaces"));
}

TEST(SafetensorsAttack, HeaderCutInsideATensor) {
    EXPECT_TRUE(says(error_of(R"({"a":{"dtype":"U8","shape":[1],)"), "found the end"));
}

TEST(SafetensorsAttack, DeepNesting) {
    std::string header = R"({"a":{"dtype":"U8","shape":)";
    header.append(100'000, '[');
    EXPECT_TRUE(says(error_of(header), "expected an unsigned integer, found '['"));
    std::string objects;
    for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
    EXPECT_TRUE(says(error_of(objects), "has an unknown field \"a\""));
}

TEST(SafetensorsAttack, ProductOfDimensionsThatWrapsToZero) {
    EXPECT_TRUE(says(error_of(one("F32", "[4294967296,4294967296]", "[0,0]")), "overflows"));
}

TEST(SafetensorsAttack, ProductOfDimensionsThatWrapsToASmallSize) {
    // 2^62 + 1 times 4 is 4 modulo 2^64.
    EXPECT_TRUE(says(error_of(one("F32", "[4611686018427387905]", "[0,4]"), 4), "overflows"));
    EXPECT_TRUE(says(error_of(one("F32", "[2147483649,2147483648,2]", "[0,8]"), 8), "overflows"));
}

TEST(SafetensorsAttack, SizeThatIsNegativeAsASignedNumber) {
    EXPECT_TRUE(says(error_of(one("U8", "[9223372036854775808]", "[0,0]")), "overflows"));
    EXPECT_TRUE(says(error_of(one("U8", "[18446744073709551615]", "[0,0]")), "overflows"));
    EXPECT_TRUE(says(error_of(one("U8", "[3037000500,3037000500]", "[0,0]")), "overflows"));
}

TEST(SafetensorsAttack, OverflowHiddenBehindAZeroDimension) {
    for (const char* shape :
         {"[0,4294967296,4294967296]", "[4294967296,0,4294967296]", "[4294967296,4294967296,0]",
          "[0,9223372036854775808]", "[0,4611686018427387904]"})
        EXPECT_TRUE(says(error_of(one("F32", shape, "[0,0]")), "overflows")) << shape;
}

TEST(SafetensorsAttack, ExtentsUpToTheLargestIndexAndNoFurther) {
    const std::string most = "9223372036854775807";  // 2^63 - 1
    EXPECT_EQ(error_of(one("U8", "[" + most + ",0]", "[0,0]")), "");
    EXPECT_EQ(error_of(one("U8", "[0,1,7,1317624576693539401]", "[0,0]")), "");  // the same product
    EXPECT_TRUE(says(error_of(one("U8", "[0,7,1317624576693539402]", "[0,0]")), "overflows"));
    EXPECT_TRUE(says(error_of(one("F16", "[" + most + ",0]", "[0,0]")), "overflows"));
    EXPECT_EQ(error_of(one("F16", "[4611686018427387903,0]", "[0,0]")), "");
    EXPECT_TRUE(says(error_of(one("F16", "[4611686018427387904,0]", "[0,0]")), "overflows"));
    EXPECT_EQ(error_of(one("U64", "[1152921504606846975,0]", "[0,0]")), "");
    EXPECT_TRUE(says(error_of(one("U64", "[1152921504606846976,0]", "[0,0]")), "overflows"));
    EXPECT_TRUE(says(error_of(one("U8", "[18446744073709551616,0]", "[0,0]")), "above 2^64 - 1"));
}

TEST(SafetensorsAttack, ExabytesDeclaredOverAFewBytes) {
    EXPECT_EQ(error_of(one("F32", "[1000000000,250000000]", "[0,4096]"), 4096),
              "moe::SafetensorsView: tensor \"a\" has shape [1000000000, 250000000] of F32, which "
              "is 1000000000000000000 bytes, but data_offsets span 4096");
}

TEST(SafetensorsAttack, ShapeLargerThanItsBytes) {
    EXPECT_TRUE(says(error_of(one("F32", "[3]", "[0,8]"), 8),
                     "which is 12 bytes, but data_offsets span 8"));
}

TEST(SafetensorsAttack, ShapeSmallerThanItsBytes) {
    EXPECT_TRUE(
        says(error_of(one("F32", "[1]", "[0,8]"), 8), "which is 4 bytes, but data_offsets span 8"));
}

TEST(SafetensorsAttack, EmptyShapeThatOwnsBytes) {
    EXPECT_TRUE(says(error_of(one("U8", "[0]", "[0,8]"), 8), "data_offsets span 8"));
}

TEST(SafetensorsAttack, ZeroSizedTensorOutsideTheFile) {
    EXPECT_EQ(error_of(one("F32", "[0]", "[1000,1000]"), 4),
              "moe::SafetensorsView: tensor \"a\" ends at byte 1000, the file has 4 data bytes");
}

TEST(SafetensorsAttack, ZeroSizedTensorInsideAnother) {
    EXPECT_TRUE(says(
        error_of("{" + member("a", "[0,4]", "[4]") + "," + member("b", "[2,2]", "[0]") + "}", 4),
        "tensor \"b\" begins at data byte 2, but the tensors before it end at 4"));
}

TEST(SafetensorsAttack, OffsetsBeyondTheFile) {
    EXPECT_EQ(error_of(R"({"experts.3.w1":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", 8),
              "moe::SafetensorsView: tensor \"experts.3.w1\" ends at byte 12, the file has 8 data "
              "bytes");
}

TEST(SafetensorsAttack, OffsetsThatRunBackwards) {
    EXPECT_TRUE(
        says(error_of(one("U8", "[4]", "[4,0]"), 4), "begins at byte 4 and ends before it, at 0"));
}

TEST(SafetensorsAttack, OffsetsWhoseDifferenceWraps) {
    EXPECT_TRUE(says(error_of(one("U8", "[8]", "[18446744073709551612,4]"), 4),
                     "and ends before it, at 4"));
    EXPECT_TRUE(says(error_of(one("U8", "[8]", "[0,18446744073709551615]"), 4),
                     "ends at byte 18446744073709551615"));
}

TEST(SafetensorsAttack, OffsetsThatOverlap) {
    EXPECT_EQ(
        error_of("{" + member("a", "[0,4]", "[4]") + "," + member("b", "[3,6]", "[3]") + "}", 6),
        "moe::SafetensorsView: tensor \"b\" begins at data byte 3, but the tensors before it "
        "end at 4; there must be no overlaps");
}

TEST(SafetensorsAttack, ManyTensorsOverTheSameBytes) {
    EXPECT_TRUE(says(
        error_of("{" + member("a", "[0,4]", "[4]") + "," + member("b", "[0,4]", "[4]") + "}", 4),
        "there must be no overlaps"));
}

TEST(SafetensorsAttack, HoleBeforeTheFirstTensor) {
    EXPECT_TRUE(says(error_of(one("U8", "[4]", "[1,5]"), 5), "there must be no holes"));
}

TEST(SafetensorsAttack, HoleBetweenTensors) {
    EXPECT_TRUE(says(
        error_of("{" + member("a", "[0,2]", "[2]") + "," + member("b", "[3,4]", "[1]") + "}", 4),
        "there must be no holes"));
}

TEST(SafetensorsAttack, BytesBehindTheLastTensor) {
    EXPECT_EQ(
        error_of(one("U8", "[4]", "[0,4]"), 5),
        "moe::SafetensorsView: the tensors end at data byte 4, but the file has 5 data bytes");
}

TEST(SafetensorsAttack, BytesThatBelongToNoTensorAtAll) {
    EXPECT_TRUE(says(error_of("{}", 1), "the tensors end at data byte 0"));
}

TEST(SafetensorsAttack, NameGivenTwice) {
    EXPECT_TRUE(says(
        error_of("{" + member("a", "[0,1]", "[1]") + "," + member("a", "[1,2]", "[1]") + "}", 2),
        "tensor \"a\" is given twice"));
}

TEST(SafetensorsAttack, NameGivenTwiceInDisguise) {
    EXPECT_TRUE(says(
        error_of("{" + member("a", "[0,1]", "[1]") + "," + member("\\u0061", "[1,2]", "[1]") + "}",
                 2),
        "tensor \"a\" is given twice"));
}

TEST(SafetensorsAttack, FieldGivenTwice) {
    for (const char* field :
         {R"("dtype":"U8")", R"("shape":[1])", R"("data_offsets":[0,1])", R"("sh\u0061pe":[1])"}) {
        const std::string header =
            R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],)" + std::string(field) + "}}";
        EXPECT_TRUE(says(error_of(header, 1), "\" twice")) << field;
    }
}

TEST(SafetensorsAttack, MetadataGivenTwice) {
    EXPECT_TRUE(
        says(error_of(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ is given twice"));
    EXPECT_TRUE(
        says(error_of(R"({"__metadata__":{"a":"1","a":"2"}})"), "metadata \"a\" is given twice"));
}

TEST(SafetensorsAttack, MetadataThatIsNotStrings) {
    for (const char* value : {"null", "[]", "\"x\"", R"({"a":1})", R"({"a":null})", R"({"a":{}})"})
        EXPECT_TRUE(says(error_of("{\"__metadata__\":" + std::string(value) + "}"), "expected"))
            << value;
}

TEST(SafetensorsAttack, FieldMissing) {
    EXPECT_TRUE(says(error_of(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), "has no dtype"));
    EXPECT_TRUE(says(error_of(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1), "has no shape"));
    EXPECT_TRUE(says(error_of(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "has no data_offsets"));
    EXPECT_TRUE(says(error_of(R"({"a":{}})"), "has no dtype"));
}

TEST(SafetensorsAttack, FieldThatNobodyKnows) {
    EXPECT_TRUE(says(error_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1),
                     "has an unknown field \"x\""));
}

TEST(SafetensorsAttack, TensorThatIsNoObject) {
    for (const char* value : {"null", "1", "\"x\"", R"(["U8",[1],[0,1]])"})
        EXPECT_TRUE(says(error_of("{\"a\":" + std::string(value) + "}", 1), "expected an object"))
            << value;
}

TEST(SafetensorsAttack, OffsetsOfAnotherCount) {
    for (const char* offsets : {"[]", "[0]", "[0,1,1]", "[0,1,2,3,4]"})
        EXPECT_TRUE(says(error_of(one("U8", "[1]", offsets), 1), "needs 2 data_offsets"))
            << offsets;
}

TEST(SafetensorsAttack, IntegersInOtherSpellings) {
    for (const char* number : {"-1", "1.0", "1e0", "01", "+1", "0x1", "null", "\"1\"", "true"}) {
        const std::string text = number;
        EXPECT_NE(error_of(one("U8", "[" + text + "]", "[0,1]"), 1), "") << text;
        EXPECT_NE(error_of(one("U8", "[1]", "[0," + text + "]"), 1), "") << text;
    }
}

TEST(SafetensorsAttack, IntegersThatADoubleWouldRound) {
    // 2^53 + 1 read through a double is 2^53, which this file would contain.
    EXPECT_TRUE(says(error_of(one("U8", "[4]", "[9007199254740993,9007199254740997]"), 4),
                     "ends at byte 9007199254740997"));
}

TEST(SafetensorsAttack, UnknownDtypeDoesNotSkipTheOffsetChecks) {
    EXPECT_TRUE(says(error_of(one("X", "[4]", "[0,8]"), 4), "ends at byte 8"));
    EXPECT_TRUE(says(error_of(one("X", "[4]", "[4,0]"), 4), "ends before it"));
    EXPECT_TRUE(says(error_of(one("X", "[3]", "[1,4]"), 4), "no holes"));
    EXPECT_TRUE(says(error_of(one("X", "[4]", "[0,4]"), 5), "the file has 5 data bytes"));
}

TEST(SafetensorsAttack, UnknownDtypeDoesNotSkipTheSizeChecks) {
    EXPECT_TRUE(says(error_of(one("X", "[4294967296,4294967296]", "[0,0]")), "overflows"));
    EXPECT_TRUE(says(error_of(one("X", "[4]", "[0,0]")), "cannot hold evenly"));
    EXPECT_TRUE(says(error_of(one("X", "[0]", "[0,4]"), 4), "cannot hold evenly"));
    EXPECT_TRUE(says(error_of(one("X", "[3]", "[0,4]"), 4), "cannot hold evenly"));
    EXPECT_TRUE(says(error_of(one("X", "[1000]", "[0,4]"), 4), "cannot hold evenly"));
    EXPECT_EQ(error_of(one("F4", "[8]", "[0,4]"), 4), "");  // half a byte each
}

TEST(SafetensorsAttack, TerminalEscapesInANameDoNotReachTheError) {
    const std::string error = error_of("{" + member("\\u001b[31m\\u202e", "[0,2]", "[1]") + "}", 2);
    EXPECT_TRUE(says(error, "tensor \"?[31m???\" has shape"));
}

TEST(SafetensorsAttack, LongNamesAreCutInTheError) {
    const std::string error =
        error_of("{" + member(std::string(1000, 'n'), "[0,2]", "[1]") + "}", 2);
    EXPECT_TRUE(says(error, "tensor \"" + std::string(80, 'n') + "\"... has shape"));
    EXPECT_LT(error.size(), 250u);
}

// ---- Damage

TEST(SafetensorsDamage, AFileCutShortAnywhereIsRefused) {
    for (const char* name : {"dtypes", "names", "mixtral"}) {
        const auto file = moe::read_file(data_folder + name + ".safetensors");
        for (std::size_t n = 0; n < file.size(); ++n)
            ASSERT_NE(error_of(std::vector<std::byte>(
                          file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n))),
                      "")
                << name << " cut to " << n;
    }
}

TEST(SafetensorsDamage, AFlippedHeaderBitIsAnErrorOrAConsistentFile) {
    for (const char* name : {"dtypes", "names"}) {
        const auto file = moe::read_file(data_folder + name + ".safetensors");
        const auto header = moe::detail::load<std::uint64_t>(file.data());
        std::size_t accepted = 0, refused = 0;
        for (std::size_t i = 0; i < 8 + header; ++i)
            for (int bit = 0; bit < 8; ++bit) {
                auto damaged = file;
                damaged[i] ^= static_cast<std::byte>(1 << bit);
                try {
                    const SafetensorsView view(damaged);
                    expect_consistent(view, damaged);
                    ++accepted;
                } catch (const FormatError&) {
                    ++refused;
                }
            }
        EXPECT_GT(accepted, 0u);  // a changed letter of a name, say
        EXPECT_GT(refused, accepted);
    }
}

TEST(SafetensorsDamage, EveryValueOfAHeaderByteIsAnErrorOrAConsistentFile) {
    const auto file =
        raw_file(R"({"ab":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}  )", 12);
    for (std::size_t i = 0; i < file.size() - 12; ++i)
        for (int value = 0; value < 256; ++value) {
            auto damaged = file;
            damaged[i] = static_cast<std::byte>(value);
            try {
                const SafetensorsView view(damaged);
                expect_consistent(view, damaged);
            } catch (const FormatError&) {
                continue;
            }
        }
}

TEST(SafetensorsDamage, TheHostileCorpusIsRefused) {
    std::size_t hostile = 0, sound = 0;
    for (const auto& entry : std::filesystem::directory_iterator("tests/fuzz/safetensors")) {
        const std::string name = entry.path().filename().string();
        const std::string error = error_of(moe::read_file(entry.path().string()));
        if (name.starts_with("sound_")) {
            EXPECT_EQ(error, "") << name;
            ++sound;
        } else {
            EXPECT_NE(error, "") << name;
            ++hostile;
        }
    }
    EXPECT_GE(hostile, 40u);
    EXPECT_GE(sound, 5u);
}

}  // namespace
}  // namespace safetensors_test
