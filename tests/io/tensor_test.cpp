// SPDX-License-Identifier: MIT
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/tensor.hpp>

#include "support/message.hpp"

namespace tensor_test {
namespace {

using moe::Dtype;
using moe::Extents;
using moe::FormatError;
using moe::Index;
using moe::TensorView;
using support::message;

template <class T>
TensorView view_of(const std::vector<T>& values, const Extents& shape) {
    return {"t", moe::dtype_of<T>, shape, std::as_bytes(std::span(values)), ""};
}

TEST(Extents, HoldUpToEightDimensions) {
    const Extents extents{1, 2, 3, 4, 5, 6, 7, 8};
    EXPECT_EQ(extents.size(), 8);
    EXPECT_EQ(extents.product(), 40320);
    EXPECT_EQ(to_string(extents), "[1, 2, 3, 4, 5, 6, 7, 8]");
    EXPECT_THROW((Extents{1, 2, 3, 4, 5, 6, 7, 8, 9}), std::length_error);
}

TEST(Extents, AreNeverNegative) { EXPECT_THROW((Extents{2, -1}), std::invalid_argument); }

TEST(Extents, OfAScalarHaveProductOne) {
    EXPECT_EQ(Extents{}.product(), 1);
    EXPECT_EQ(to_string(Extents{}), "[]");
}

TEST(Extents, CompareByLengthAndValue) {
    EXPECT_EQ((Extents{2, 3}), (Extents{2, 3}));
    EXPECT_FALSE((Extents{2, 3}) == (Extents{2}));
    EXPECT_FALSE((Extents{2, 3}) == (Extents{3, 2}));
}

TEST(Extents, RefuseAProductThatOverflows) {
    const Index big = Index{1} << 32;
    EXPECT_THROW((Extents{big, big}.product()), std::length_error);
}

TEST(TensorView, AsAMatrixKeepsTheLastDimensionAndFoldsTheOthers) {
    const std::vector<float> values = {0, 1, 2, 3, 4, 5};
    const auto is = [&](const Extents& shape, Index rows, Index cols) {
        const moe::ConstView<float> m = view_of(values, shape).matrix<float>();
        ASSERT_EQ(m.rows(), rows);
        ASSERT_EQ(m.cols(), cols);
        EXPECT_EQ(m.data(), values.data());  // a view, not a copy
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j) EXPECT_EQ(m(i, j), static_cast<float>(i * cols + j));
    };
    is({6}, 1, 6);
    is({2, 3}, 2, 3);
    is({3, 1, 2}, 3, 2);
    is({1, 2, 3, 1}, 6, 1);
}

TEST(TensorView, OfAScalarIsOneByOne) {
    const std::vector<double> values = {2.5};
    const auto m = view_of(values, {}).matrix<double>();
    ASSERT_EQ(m.rows(), 1);
    ASSERT_EQ(m.cols(), 1);
    EXPECT_EQ(m(0, 0), 2.5);
}

TEST(TensorView, MayBeEmptyInAnyDimension) {
    const std::vector<float> none;
    EXPECT_EQ(view_of(none, {0, 3}).matrix<float>().cols(), 3);
    EXPECT_EQ(view_of(none, {3, 0}).matrix<float>().rows(), 3);
    EXPECT_EQ(view_of(none, {0}).copy<double>().size(), 0);
}

TEST(TensorView, RefusesAnotherTypeAndNamesTheRemedy) {
    const std::vector<Eigen::bfloat16> values(2, Eigen::bfloat16(1.0f));
    EXPECT_EQ(message<FormatError>([&] { view_of(values, {2}).matrix<float>(); }),
              "moe::TensorView: tensor \"t\" is BF16, not F32; copy() converts");
    EXPECT_EQ(view_of(values, {2}).matrix<Eigen::bfloat16>()(0, 1), Eigen::bfloat16(1.0f));
}

TEST(TensorView, RefusesMisalignedMemoryAndCopiesIt) {
    std::vector<std::byte> memory(3 * sizeof(double) + 1);
    const double values[] = {1.5, -2.5, 3.5};
    std::memcpy(memory.data() + 1, values, sizeof values);
    const TensorView tensor{"t", Dtype::f64, {3}, std::span(memory).subspan(1), ""};
    EXPECT_EQ(message<FormatError>([&] { tensor.matrix<double>(); }),
              "moe::TensorView: tensor \"t\" is at an address that is no multiple of 8; copy() "
              "does without");
    const moe::Matrix<double> copied = tensor.copy<double>();
    for (Index i = 0; i < 3; ++i) EXPECT_EQ(copied(0, i), values[i]);
}

template <class T>
void expect_copied_from_any_address(std::initializer_list<T> list) {
    const std::vector<T> values(list);
    for (std::size_t offset = 0; offset < 8; ++offset) {
        std::vector<std::byte> memory(offset + values.size() * sizeof(T));
        std::memcpy(memory.data() + offset, values.data(), values.size() * sizeof(T));
        const TensorView tensor{"t",
                                moe::dtype_of<T>,
                                {static_cast<Index>(values.size())},
                                std::span(memory).subspan(offset),
                                ""};
        const moe::Matrix<double> copied = tensor.copy<double>();
        for (std::size_t i = 0; i < values.size(); ++i)
            EXPECT_EQ(copied(0, static_cast<Index>(i)), static_cast<double>(values[i])) << offset;
        if constexpr (std::is_integral_v<T>) {
            const moe::Matrix<T> same = tensor.copy<T>();
            for (std::size_t i = 0; i < values.size(); ++i)
                EXPECT_EQ(same(0, static_cast<Index>(i)), values[i]) << offset;
        }
    }
}

TEST(TensorView, IsCopiedFromAnyAddressWhateverItsType) {
    expect_copied_from_any_address<std::uint8_t>({0, 255});
    expect_copied_from_any_address<std::int8_t>({-128, 127});
    expect_copied_from_any_address<std::uint16_t>({1, 65535});
    expect_copied_from_any_address<std::int16_t>({-32768, 32767});
    expect_copied_from_any_address<std::uint32_t>({1, 4294967295u});
    expect_copied_from_any_address<std::int32_t>({-1, 2147483647});
    expect_copied_from_any_address<std::uint64_t>({1, ~std::uint64_t{0}});  // 2^64 - 1
    expect_copied_from_any_address<std::int64_t>(
        {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()});
    expect_copied_from_any_address<float>({1e-45f, -3.5f});
    expect_copied_from_any_address<double>({5e-324, -0.1});
    expect_copied_from_any_address<Eigen::half>({Eigen::half(0x1p-24f), Eigen::half(-3.5f)});
    expect_copied_from_any_address<Eigen::bfloat16>({Eigen::bfloat16(0.5f), Eigen::bfloat16(-2.f)});
}

TEST(TensorView, MadeByHandMustHaveTheBytesOfItsShape) {
    const std::vector<float> values(6);
    EXPECT_EQ(message<FormatError>([&] {
                  view_of(values, {2, 4}).matrix<float>();
              }),
              "moe::TensorView: tensor \"t\" is [2, 4] of F32 in 24 bytes");
    EXPECT_THROW(view_of(values, {5}).copy<float>(), FormatError);
    const Index big = Index{1} << 32;
    EXPECT_THROW(view_of(values, {big, big}).copy<float>(), std::length_error);
    EXPECT_THROW(view_of(values, {Index{1} << 62}).matrix<float>(), std::length_error);
}

TEST(TensorView, OfUnknownDtypeIsRefusedByItsName) {
    const TensorView tensor{"t", Dtype::unknown, {1}, {}, "F8_E8M0"};
    const std::string expected =
        "moe::TensorView: tensor \"t\" is of dtype \"F8_E8M0\", which has no conversion";
    EXPECT_EQ(message<FormatError>([&] { tensor.copy<float>(); }), expected);
    EXPECT_EQ(message<FormatError>([&] { tensor.integers(); }), expected);
    EXPECT_THROW(tensor.matrix<float>(), FormatError);
}

TEST(TensorView, DoesNotConvertEightBitFloats) {
    const std::vector<std::byte> bytes(2);
    const TensorView tensor{"t", Dtype::f8_e4m3, {2}, bytes, ""};
    EXPECT_EQ(message<FormatError>([&] { tensor.copy<float>(); }),
              "moe::TensorView: tensor \"t\" is F8_E4M3, whose values need scales: decode_row() "
              "reads them as moe::BlockCodes");
}

TEST(TensorView, CopiesItsOwnTypeBitForBit) {
    const std::vector<float> values = {-0.0f, 1e-45f, std::numeric_limits<float>::infinity(),
                                       std::bit_cast<float>(0x7fc12345u)};
    const moe::Matrix<float> copied = view_of(values, {4}).copy<float>();
    EXPECT_EQ(std::memcmp(copied.data(), values.data(), sizeof(float) * 4), 0);
}

TEST(TensorView, CopyRoundsDoublesToTheNearestFloat) {
    const std::vector<double> values = {0.1, 1.0 + 0x1p-24, 1.0 + 0x3p-24, 1e300, -1e300, 1e-60};
    const moe::Matrix<float> copied = view_of(values, {6}).copy<float>();
    EXPECT_EQ(copied(0, 0), 0.1f);
    EXPECT_EQ(copied(0, 1), 1.0f);             // ties to even
    EXPECT_EQ(copied(0, 2), 1.0f + 0x1p-22f);  // ties to even
    EXPECT_EQ(copied(0, 3), std::numeric_limits<float>::infinity());
    EXPECT_EQ(copied(0, 4), -std::numeric_limits<float>::infinity());
    EXPECT_EQ(copied(0, 5), 0.0f);
}

TEST(TensorView, CopiesIntegersToFloats) {
    const std::vector<std::int64_t> values = {-3, 1 << 24, (1 << 24) + 1};
    EXPECT_EQ((view_of(values, {3}).copy<double>()(0, 2)), 16777217.0);
    EXPECT_EQ((view_of(values, {3}).copy<float>()(0, 2)), 16777216.0f);
    EXPECT_EQ((view_of(values, {3}).copy<float>()(0, 0)), -3.0f);
}

TEST(TensorView, CopiesIntegersToNarrowerOnesOnlyIfTheyFit) {
    const std::vector<std::int64_t> values = {-1, 3'000'000'000};
    EXPECT_EQ(view_of(values, {2, 1}).integers()(1, 0), 3'000'000'000);
    EXPECT_EQ(message<FormatError>([&] { view_of(values, {2}).copy<std::int32_t>(); }),
              "moe::TensorView: tensor \"t\" is holding 3000000000, which does not fit 32 bits");
    EXPECT_THROW(view_of(values, {2}).copy<std::uint64_t>(), FormatError);
    const std::vector<std::uint64_t> large = {std::uint64_t{1} << 63};
    EXPECT_THROW(view_of(large, {1}).integers(), FormatError);
    EXPECT_EQ(view_of(large, {1}).copy<std::uint64_t>()(0, 0), large[0]);
}

TEST(TensorView, RefusesFloatsAsIntegersEvenIfThereAreNone) {
    const std::vector<float> values = {1.0f};
    EXPECT_EQ(message<FormatError>([&] { view_of(values, {1}).integers(); }),
              "moe::TensorView: tensor \"t\" is F32, not integers");
    EXPECT_THROW(view_of(std::vector<float>{}, {0}).integers(), FormatError);
}

}  // namespace
}  // namespace tensor_test
