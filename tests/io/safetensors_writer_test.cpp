// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>

#include "support/message.hpp"

namespace safetensors_writer_test {
namespace {

using moe::Dtype;
using moe::Index;
using moe::Matrix;
using moe::SafetensorsView;
using moe::SafetensorsWriter;
using moe::TensorView;
using support::message;

std::string header_of(const std::vector<std::byte>& file) {
    const auto length = moe::detail::load<std::uint64_t>(file.data());
    return {reinterpret_cast<const char*>(file.data()) + 8, static_cast<std::size_t>(length)};
}

template <class S>
Matrix<S> random_matrix(Index rows, Index cols) {
    std::mt19937_64 random(7);
    Matrix<S> m(rows, cols);
    auto* bytes = reinterpret_cast<std::byte*>(m.data());  // any pattern, NaNs too
    for (std::size_t i = 0; i < sizeof(S) * static_cast<std::size_t>(m.size()); ++i)
        bytes[i] = static_cast<std::byte>(random());
    return m;
}

template <class S>
bool same_bits(const S* a, const S* b, Index n) {
    return n == 0 || std::memcmp(a, b, sizeof(S) * static_cast<std::size_t>(n)) == 0;
}

TEST(SafetensorsWriter, WithoutTensorsWritesAnEmptyFile) {
    const auto file = SafetensorsWriter{}.bytes();
    EXPECT_EQ(header_of(file), "{}      ");
    EXPECT_EQ(file.size(), 16u);
    EXPECT_EQ(SafetensorsView(std::span(file)).size(), 0);
}

TEST(SafetensorsWriter, WritesTheHeaderThatTheFormatDescribes) {
    SafetensorsWriter writer;
    Matrix<float> m(2, 3);
    m << 0, 1, 2, 3, 4, 5;
    writer.add("a", m);
    writer.add_metadata("format", "pt");
    const auto file = writer.bytes();
    EXPECT_EQ(header_of(file),
              R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],)"
              R"("data_offsets":[0,24]}})");
    EXPECT_EQ(std::memcmp(file.data() + file.size() - 24, m.data(), 24), 0);
}

TEST(SafetensorsWriter, GivesTheBytesThatTheFormatsOwnPackageGives) {
    for (const char* name : {"dtypes", "names", "mixtral"}) {
        const auto reference =
            moe::read_file(std::string("tests/io/data/") + name + ".safetensors");
        const SafetensorsView view(reference);
        SafetensorsWriter writer;
        for (Index i = view.size(); i-- > 0;) writer.add_view(view.begin()[i]);
        for (const auto& [key, value] : view.metadata()) writer.add_metadata(key, value);
        EXPECT_TRUE(writer.bytes() == reference) << name << "\n" << header_of(writer.bytes());
    }
}

TEST(SafetensorsWriter, DoesNotDependOnTheOrderOfAdding) {
    const auto a = random_matrix<float>(3, 5);
    const auto b = random_matrix<double>(2, 2);
    SafetensorsWriter forwards, backwards;
    forwards.add("a", a);
    forwards.add("b", b);
    forwards.add_metadata("x", "1");
    forwards.add_metadata("y", "2");
    backwards.add_metadata("y", "2");
    backwards.add_metadata("x", "1");
    backwards.add("b", b);
    backwards.add("a", a);
    EXPECT_TRUE(forwards.bytes() == backwards.bytes());
}

template <class S>
class SafetensorsRoundTrip : public testing::Test {};
using Stored = testing::Types<double, float, Eigen::half, Eigen::bfloat16, std::int64_t,
                              std::int32_t, std::int16_t, std::int8_t, std::uint64_t, std::uint32_t,
                              std::uint16_t, std::uint8_t>;
TYPED_TEST_SUITE(SafetensorsRoundTrip, Stored);

TYPED_TEST(SafetensorsRoundTrip, KeepsEveryBit) {
    using S = TypeParam;
    for (const auto& [rows, cols] : {std::pair<Index, Index>{7, 5}, {1, 1}, {0, 3}, {3, 0}}) {
        const Matrix<S> values = random_matrix<S>(rows, cols);
        SafetensorsWriter writer;
        writer.add("m", values);
        writer.add("odd", std::vector<std::uint8_t>{1, 2, 3});
        const auto file = writer.bytes();
        const SafetensorsView view(file);
        const TensorView tensor = view.at("m");
        ASSERT_EQ(tensor.dtype, moe::dtype_of<S>);
        ASSERT_EQ(tensor.shape, (moe::Extents{rows, cols}));
        const auto read = tensor.matrix<S>();
        ASSERT_EQ(read.rows(), rows);
        ASSERT_EQ(read.cols(), cols);
        EXPECT_TRUE(same_bits(read.data(), values.data(), values.size()));
    }
}

TEST(SafetensorsWriter, KeepsTheBytesOfTypesWithoutAScalar) {
    const std::vector<std::byte> bytes = {std::byte{1}, std::byte{0}, std::byte{0x7f}};
    for (const Dtype dtype : {Dtype::boolean, Dtype::f8_e4m3, Dtype::f8_e5m2}) {
        SafetensorsWriter writer;
        writer.add_view({"t", dtype, {3, 1}, bytes, ""});
        const auto file = writer.bytes();
        const SafetensorsView view(file);
        EXPECT_EQ(view.at("t").dtype, dtype);
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), view.at("t").bytes.begin()));
    }
}

TEST(SafetensorsWriter, AlignsEveryTensorToItsElements) {
    SafetensorsWriter writer;
    writer.add("a", std::vector<std::uint8_t>(3));
    writer.add("b", std::vector<std::int16_t>(3));
    writer.add("c", std::vector<float>(3));
    writer.add("d", std::vector<double>(3));
    writer.add("e", std::vector<std::int64_t>(1));
    writer.add("f", std::vector<std::uint8_t>(1));
    const auto file = writer.bytes();
    const SafetensorsView view(file);
    for (const TensorView& tensor : view)
        EXPECT_EQ((tensor.bytes.data() - file.data()) % moe::element_size(tensor.dtype), 0)
            << tensor.name;
}

TEST(SafetensorsWriter, AlignsTheFirstTensorAsAsked) {
    for (const moe::Index bytes : {1, 8, 64, 4096})
        for (std::size_t length = 0; length < 70; length += 3) {
            moe::SafetensorsWriter writer;
            writer.align(bytes);
            writer.align(2);
            writer.add(std::string(length + 1, 'n'), std::vector<std::uint64_t>{7});
            const std::vector<std::byte> file = writer.bytes();
            const moe::SafetensorsView view(file);
            EXPECT_EQ((view.begin()->bytes.data() - file.data()) % std::max<moe::Index>(bytes, 8),
                      0);
            EXPECT_LT(static_cast<moe::Index>(file.size()), 200 + bytes);
        }
    moe::SafetensorsWriter writer;
    EXPECT_EQ(message([&] { writer.align(48); }),
              "moe::SafetensorsWriter::align: 48 bytes, it must be a power of two, from 1 to 4096");
    EXPECT_THROW(writer.align(0), std::invalid_argument);
    EXPECT_THROW(writer.align(8192), std::invalid_argument);
}

TEST(SafetensorsWriter, TakesMatricesOfAnyLayoutAndExpressions) {
    const Matrix<double> m = Matrix<double>::Random(4, 6);
    const Eigen::MatrixXd columns = m;
    SafetensorsWriter writer;
    writer.add("rows", m);
    writer.add("columns", columns);
    writer.add("block", m.block(1, 2, 2, 3));
    writer.add("transpose", m.transpose());
    writer.add("array", m.array() * 2.0);
    writer.add("row", m.row(1));
    writer.add("column", m.col(2));
    writer.add("row vector", moe::RowVector<double>(m.row(3)));
    const auto file = writer.bytes();
    const SafetensorsView view(file);
    EXPECT_TRUE(view.matrix<double>("rows") == m);
    EXPECT_TRUE(view.matrix<double>("columns") == m);
    EXPECT_TRUE(view.matrix<double>("block") == m.block(1, 2, 2, 3));
    EXPECT_TRUE(view.matrix<double>("transpose") == m.transpose());
    EXPECT_TRUE(view.matrix<double>("array") == m * 2.0);
    EXPECT_TRUE(view.matrix<double>("row") == m.row(1));
    EXPECT_EQ(view.at("row").shape, (moe::Extents{6}));
    EXPECT_TRUE(view.matrix<double>("column") == m.col(2).transpose());
    EXPECT_EQ(view.at("column").shape, (moe::Extents{4}));
    EXPECT_TRUE(view.matrix<double>("row vector") == m.row(3));
}

TEST(SafetensorsWriter, CopiesWhatIsAdded) {
    SafetensorsWriter writer;
    {
        std::vector<std::int32_t> ids = {4, 2, 7, 1};
        writer.add("ids", std::span(ids), {2, 2});
        ids.assign(4, 0);
    }
    const auto file = writer.bytes();
    const SafetensorsView view(file);
    EXPECT_EQ(view.integers("ids")(0, 1), 2);
    EXPECT_EQ(view.matrix<std::int32_t>("ids")(1, 0), 7);
}

TEST(SafetensorsWriter, CanBeCopiedAndOutlived) {
    std::optional<SafetensorsWriter> writer(std::in_place);
    writer->add("a", random_matrix<float>(3, 5));
    const auto file = writer->bytes();
    const SafetensorsWriter copy = *writer;
    writer.reset();
    EXPECT_TRUE(copy.bytes() == file);
}

TEST(SafetensorsWriter, HandsOutTheSameFileInPieces) {
    SafetensorsWriter writer;
    writer.add("a", random_matrix<float>(3, 5));
    writer.add("b", random_matrix<double>(2, 2));
    std::vector<std::byte> pieces;
    writer.write([&](std::span<const std::byte> piece) {
        pieces.insert(pieces.end(), piece.begin(), piece.end());
    });
    EXPECT_TRUE(pieces == writer.bytes());
}

TEST(SafetensorsWriter, WritesNamesThatNeedEscapes) {
    std::string name;
    for (int c = 0; c < 0x80; ++c) name += static_cast<char>(c);
    name += "\xc3\xa9\xf0\x9f\x98\x80";
    SafetensorsWriter writer;
    writer.add(name, std::vector<float>{1.0f});
    writer.add("", std::vector<float>{2.0f});
    writer.add_metadata(name, name);
    const auto file = writer.bytes();
    const SafetensorsView view(file);
    EXPECT_EQ(view.copy<float>(name)(0, 0), 1.0f);
    EXPECT_EQ(view.copy<float>("")(0, 0), 2.0f);
    EXPECT_EQ(view.metadata().find(name)->second, name);
}

TEST(SafetensorsWriter, RefusesNamesThatTheReaderWould) {
    SafetensorsWriter writer;
    const std::vector<float> one = {1.0f};
    writer.add("a", one);
    const auto before = writer.bytes();
    EXPECT_EQ(message<std::invalid_argument>([&] { writer.add("a", std::vector<int>{1}); }),
              "moe::SafetensorsWriter: tensor \"a\" is added twice");
    EXPECT_THROW(writer.add("__metadata__", one), std::invalid_argument);
    EXPECT_THROW(writer.add("\xff", one), std::invalid_argument);
    EXPECT_THROW(writer.add("\xed\xa0\x80", one), std::invalid_argument);
    EXPECT_THROW(writer.add(std::string(1025, 'n'), one), std::length_error);
    EXPECT_THROW(writer.add_metadata(std::string(1025, 'n'), ""), std::length_error);
    EXPECT_THROW(writer.add_metadata("k", "\xff"), std::invalid_argument);
    EXPECT_TRUE(writer.bytes() == before);  // nothing was added
    writer.add(std::string(1024, 'n'), one);
    writer.add_metadata("k", "1");
    EXPECT_THROW(writer.add_metadata("k", "2"), std::invalid_argument);
    const auto file = writer.bytes();
    EXPECT_EQ(SafetensorsView(std::span(file)).size(), 2);
}

TEST(SafetensorsWriter, RefusesShapesThatDoNotFitTheirValues) {
    SafetensorsWriter writer;
    const std::vector<float> values(6);
    EXPECT_EQ(
        message<std::invalid_argument>([&] {
            writer.add("a", std::span(values), {2, 4});
        }),
        "moe::SafetensorsWriter: tensor \"a\" has shape [2, 4] of F32, which is 32 bytes, but 24 "
        "are given");
    EXPECT_THROW(writer.add_view({"a", Dtype::unknown, {6}, {}, ""}), std::invalid_argument);
    const Index big = Index{1} << 32;
    EXPECT_THROW(writer.add("a", std::span(values), {big, big}), std::length_error);
    EXPECT_THROW(writer.add("a", std::span<const float>(), {big, big, 0}), std::length_error);
    EXPECT_THROW(writer.add("a", std::span<const float>(), {0, Index{1} << 62}), std::length_error);
}

TEST(SafetensorsWriter, RefusesAHeaderOverTheLimit) {
    SafetensorsWriter writer;
    writer.add_metadata("text", std::string(moe::SafetensorsLimits::header_bytes, 'x'));
    EXPECT_THROW(writer.bytes(), std::length_error);
    bool called = false;
    EXPECT_THROW(writer.write([&](std::span<const std::byte>) { called = true; }),
                 std::length_error);
    EXPECT_FALSE(called);
}

}  // namespace
}  // namespace safetensors_writer_test
