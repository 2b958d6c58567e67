// SPDX-License-Identifier: MIT
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <moe/core/dtype.hpp>

namespace dtype_test {
namespace {

using moe::Dtype;

constexpr std::array<Dtype, 15> known = {Dtype::boolean, Dtype::u8,  Dtype::i8,  Dtype::f8_e5m2,
                                         Dtype::f8_e4m3, Dtype::i16, Dtype::u16, Dtype::f16,
                                         Dtype::bf16,    Dtype::i32, Dtype::u32, Dtype::f32,
                                         Dtype::f64,     Dtype::i64, Dtype::u64};

// What an IEEE half means, from the definition.
double half_by_definition(std::uint16_t bits) {
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    const int exponent = (bits >> 10) & 0x1f;
    const int fraction = bits & 0x3ff;
    if (exponent == 31)
        return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    if (exponent == 0) return sign * std::ldexp(fraction, -24);
    return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(Dtype, EachNameParsesBackToItself) {
    for (const Dtype dtype : known) EXPECT_EQ(moe::parse_dtype(moe::dtype_name(dtype)), dtype);
    EXPECT_EQ(moe::parse_dtype("F32"), Dtype::f32);
    EXPECT_EQ(moe::parse_dtype("BOOL"), Dtype::boolean);
}

TEST(Dtype, OtherSpellingsAreUnknown) {
    for (const char* text : {"", "f32", "F32 ", "F8_E8M0", "C64", "unknown"})
        EXPECT_EQ(moe::parse_dtype(text), Dtype::unknown) << text;
    EXPECT_EQ(moe::parse_dtype(std::string_view("F32\0", 4)), Dtype::unknown);
    EXPECT_EQ(moe::element_size(Dtype::unknown), 0);
}

TEST(Dtype, SizesNeverFallAlongTheDeclaredOrder) {
    for (std::size_t i = 1; i < known.size(); ++i) {
        EXPECT_LT(known[i - 1], known[i]);
        EXPECT_LE(moe::element_size(known[i - 1]), moe::element_size(known[i]));
    }
}

TEST(Dtype, ScalarsHaveTheSizeOfTheirDtype) {
    EXPECT_EQ(moe::dtype_of<float>, Dtype::f32);
    EXPECT_EQ(moe::dtype_of<double>, Dtype::f64);
    EXPECT_EQ(moe::dtype_of<Eigen::half>, Dtype::f16);
    EXPECT_EQ(moe::dtype_of<Eigen::bfloat16>, Dtype::bf16);
    EXPECT_EQ(moe::dtype_of<long double>, Dtype::unknown);
    EXPECT_EQ(moe::element_size(moe::dtype_of<std::int64_t>), 8);
    EXPECT_EQ(moe::element_size(moe::dtype_of<Eigen::half>), 2);
    EXPECT_EQ(moe::element_size(moe::dtype_of<std::uint8_t>), 1);
}

TEST(Dtype, EveryHalfDecodesToItsDefinition) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        const double expected = half_by_definition(half);
        const float value = moe::decode_f16(half);
        if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(value)) << bits;
            const auto decoded = std::bit_cast<std::uint32_t>(value);
            ASSERT_EQ(decoded >> 31, bits >> 15) << bits;                 // sign
            ASSERT_EQ((decoded & 0x7fffff) >> 13, bits & 0x3ff) << bits;  // payload
        } else {
            ASSERT_EQ(static_cast<double>(value), expected) << bits;
            ASSERT_EQ(std::signbit(value), bits >> 15 == 1) << bits;
        }
    }
}

TEST(Dtype, EveryBfloat16DecodesToTheFloatWithItsUpperHalf) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float value = moe::decode_bf16(static_cast<std::uint16_t>(bits));
        ASSERT_EQ(std::bit_cast<std::uint32_t>(value), bits << 16);
    }
}

// The definition of a float format of 8 bits or less: sign, exponent, fraction.
double small_float_by_definition(unsigned bits, int exponent_bits, int fraction_bits, int bias) {
    const unsigned fraction = bits & ((1u << fraction_bits) - 1);
    const unsigned exponent = bits >> fraction_bits & ((1u << exponent_bits) - 1);
    const double sign = bits >> (exponent_bits + fraction_bits) & 1 ? -1.0 : 1.0;
    const double part = static_cast<double>(fraction) / (1 << fraction_bits);
    return exponent == 0 ? sign * std::ldexp(part, 1 - bias)
                         : sign * std::ldexp(1 + part, static_cast<int>(exponent) - bias);
}

void expect_same(float value, double expected, unsigned bits) {
    EXPECT_EQ(static_cast<double>(value), expected) << bits;
    EXPECT_EQ(std::signbit(value), std::signbit(expected)) << bits;
}

TEST(Dtype, EveryEightBitFloatDecodesToItsDefinition) {
    for (unsigned bits = 0; bits < 256; ++bits) {
        const auto code = static_cast<std::uint8_t>(bits);
        if ((bits & 0x7f) == 0x7f)
            EXPECT_TRUE(std::isnan(moe::decode_f8_e4m3(code))) << bits;
        else
            expect_same(moe::decode_f8_e4m3(code), small_float_by_definition(bits, 4, 3, 7), bits);
        if ((bits & 0x7f) < 0x7c)
            expect_same(moe::decode_f8_e5m2(code), small_float_by_definition(bits, 5, 2, 15), bits);
        else
            EXPECT_EQ(std::isinf(moe::decode_f8_e5m2(code)), (bits & 0x7f) == 0x7c) << bits;
    }
    EXPECT_EQ(moe::decode_f8_e4m3(0x7e), 448.0f);
    EXPECT_EQ(moe::decode_f8_e4m3(0x01), 0x1p-9f);
    EXPECT_TRUE(std::isnan(moe::decode_f8_e5m2(0x7d)));
    EXPECT_EQ(moe::decode_f8_e5m2(0xfc), -std::numeric_limits<float>::infinity());
}

TEST(Dtype, EveryScaleOfAByteDecodesToItsPowerOfTwo) {
    for (int bits = 0; bits < 255; ++bits)
        EXPECT_EQ(static_cast<double>(moe::decode_e8m0(static_cast<std::uint8_t>(bits))),
                  std::ldexp(1.0, bits - 127))
            << bits;
    EXPECT_TRUE(std::isnan(moe::decode_e8m0(255)));
}

TEST(Dtype, EveryFourBitFloatDecodesToItsDefinition) {
    const double values[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    for (unsigned bits = 0; bits < 256; ++bits) {
        const double magnitude = values[bits & 7];
        expect_same(moe::decode_e2m1(static_cast<std::uint8_t>(bits)),
                    bits & 8 ? -magnitude : magnitude, bits);
    }
}

TEST(Dtype, DecodingIsConstexpr) {
    static_assert(moe::decode_f8_e4m3(0x44) == 3.0f);
    static_assert(moe::decode_f8_e5m2(0xbc) == -1.0f);
    static_assert(moe::decode_e8m0(127) == 1.0f);
    static_assert(moe::decode_e2m1(0xf) == -6.0f);
    static_assert(moe::decode_f16(0x3c00) == 1.0f);
    static_assert(moe::decode_f16(0x0001) == 0x1p-24f);
    static_assert(moe::decode_bf16(0x3f80) == 1.0f);
    static_assert(moe::element_size(Dtype::bf16) == 2);
}

template <class T, class S>
S through_bytes(Dtype dtype, T stored) {
    std::array<std::byte, 1 + sizeof(T)> buffer{};
    std::memcpy(buffer.data() + 1, &stored, sizeof stored);  // unaligned on purpose
    return moe::read_element<S>(dtype, buffer.data() + 1);
}

TEST(ReadElement, ReadsEachTypeUnaligned) {
    EXPECT_EQ((through_bytes<double, double>(Dtype::f64, 0.1)), 0.1);
    EXPECT_EQ((through_bytes<double, float>(Dtype::f64, 0.1)), 0.1f);
    EXPECT_EQ((through_bytes<float, double>(Dtype::f32, 0.1f)), static_cast<double>(0.1f));
    EXPECT_EQ((through_bytes<std::uint16_t, float>(Dtype::f16, 0xc100)), -2.5f);
    EXPECT_EQ((through_bytes<std::uint16_t, double>(Dtype::bf16, 0xc020)), -2.5);
    EXPECT_EQ((through_bytes<std::int64_t, double>(Dtype::i64, -7)), -7.0);
    EXPECT_EQ((through_bytes<std::uint64_t, float>(Dtype::u64, ~std::uint64_t{0})), 0x1p64f);
    EXPECT_EQ((through_bytes<std::int32_t, float>(Dtype::i32, -7)), -7.0f);
    EXPECT_EQ((through_bytes<std::int16_t, float>(Dtype::i16, -7)), -7.0f);
    EXPECT_EQ((through_bytes<std::int8_t, float>(Dtype::i8, -7)), -7.0f);
    EXPECT_EQ((through_bytes<std::uint8_t, float>(Dtype::u8, 200)), 200.0f);
    EXPECT_EQ((through_bytes<std::uint8_t, float>(Dtype::boolean, 2)), 1.0f);
}

TEST(ReadElement, KeepsNanPayloadsOfItsOwnType) {
    const float nan = std::bit_cast<float>(0xffc12345u);
    const float read = through_bytes<float, float>(Dtype::f32, nan);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(read), 0xffc12345u);
}

TEST(ReadElement, RefusesWhatHasNoValueOfItsOwn) {
    const std::byte byte{};
    EXPECT_THROW(moe::read_element<float>(Dtype::f8_e4m3, &byte), std::invalid_argument);
    EXPECT_THROW(moe::read_element<float>(Dtype::unknown, &byte), std::invalid_argument);
}

}  // namespace
}  // namespace dtype_test
