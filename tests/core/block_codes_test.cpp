// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/block_codes.hpp>

#include "support/message.hpp"

namespace block_codes_test {
namespace {

using moe::BlockCodes;
using moe::BlockScales;
using moe::decode_row;
using moe::Dtype;
using moe::Index;
using support::message;

using Bytes = std::vector<std::byte>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// The generator of block_codes_reference.py.
std::vector<std::uint8_t> bytes_of(Index count, std::uint64_t seed) {
    std::vector<std::uint8_t> out(at(count));
    for (std::uint8_t& byte : out) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        byte = static_cast<std::uint8_t>(seed >> 56);
    }
    return out;
}

// Its hash.
std::uint64_t hash_of(std::span<const float> values) {
    std::uint64_t code = 0xcbf29ce484222325u;
    for (const float value : values) {
        const auto bits = std::isnan(value) ? 0x7fc00000u : std::bit_cast<std::uint32_t>(value);
        for (int shift = 0; shift < 32; shift += 8)
            code = (code ^ (bits >> shift & 0xff)) * 0x100000001b3u;
    }
    return code;
}

// Behind one byte, so that nothing is aligned.
template <class T>
Bytes misaligned(const std::vector<T>& values) {
    Bytes out(1 + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(out.data() + 1, values.data(), values.size() * sizeof(T));
    return out;
}

template <class S>
std::vector<S> decoded(const BlockCodes& codes) {
    moe::detail::check_block_codes("test", codes);
    std::vector<S> values(at(codes.rows * codes.cols));
    for (Index i = 0; i < codes.rows; ++i) decode_row(codes, i, values.data() + i * codes.cols);
    return values;
}

// ---- Published formats, against published code: see block_codes_reference.py

TEST(BlockCodes, AreWhatTorchMakesOfEveryCode) {
    std::vector<std::uint8_t> codes(256);
    for (std::size_t i = 0; i < 256; ++i) codes[i] = static_cast<std::uint8_t>(i);
    const Bytes data = misaligned(codes), one = misaligned(std::vector<float>{1.0f});
    const auto hash = [&](Dtype dtype) {
        return hash_of(decoded<float>(
            {data.data() + 1, dtype, 1, 256, 0, {one.data() + 1, Dtype::f32, 1, 256, 0}}));
    };
    EXPECT_EQ(hash(Dtype::f8_e4m3), 0xdad1d9c50f749ca5u);
    EXPECT_EQ(hash(Dtype::f8_e5m2), 0x6c1e56b6fb09c905u);

    const Bytes ones(256, std::byte{0x22});  // codes of 1
    EXPECT_EQ(hash_of(decoded<float>(
                  {ones.data(), Dtype::u8, 256, 2, 0, {data.data() + 1, Dtype::u8, 1, 2, 0}})),
              [&] {
                  std::vector<float> twice;
                  for (const std::uint8_t code : codes)
                      twice.insert(twice.end(), 2, moe::decode_e8m0(code));
                  return hash_of(twice);
              }());
    std::vector<float> scales;
    for (const std::uint8_t code : codes) scales.push_back(moe::decode_e8m0(code));
    EXPECT_EQ(hash_of(scales), 0x6d2c8b41c3f0e5a5u);
}

TEST(BlockCodes, AreWhatTransformersMakesOfGptOss) {
    const Index rows = 5, cols = 96;
    const Bytes blocks = misaligned(bytes_of(2 * rows * cols / 2, 1));
    std::vector<std::uint8_t> exponents = bytes_of(2 * rows * cols / 32, 2);
    for (std::uint8_t& exponent : exponents)
        exponent = static_cast<std::uint8_t>(100 + exponent % 64);
    const Bytes scales = misaligned(exponents);
    std::vector<float> all;
    for (Index e = 0; e < 2; ++e) {
        const std::vector<float> expert =
            decoded<float>({blocks.data() + 1 + e * rows * cols / 2,
                            Dtype::u8,
                            rows,
                            cols,
                            0,
                            {scales.data() + 1 + e * rows * cols / 32, Dtype::u8, 1, 32, 0}});
        all.insert(all.end(), expert.begin(), expert.end());
    }
    EXPECT_EQ(hash_of(all), 0x96192422fed5c83cu);
}

TEST(BlockCodes, AreWhatTorchMakesOfDeepSeekV3) {
    const Bytes codes = misaligned(bytes_of(200 * 300, 3));
    std::vector<float> factors;
    for (const std::uint8_t byte : bytes_of(2 * 3, 4))
        factors.push_back((1 + static_cast<float>(byte) / 256) * 0x1p-10f);
    const Bytes scales = misaligned(factors);
    const BlockCodes weights{codes.data() + 1,
                             Dtype::f8_e4m3,
                             200,
                             300,
                             0,
                             {scales.data() + 1, Dtype::f32, 128, 128, 0}};
    EXPECT_EQ(hash_of(decoded<float>(weights)), 0xd5f6b9dd4ed7642au);
}

// ---- The formula, for every kind of view

struct Case {
    Dtype codes, scales;
    Index rows, cols, block_rows, block_cols, more_stride, more_scales;
};

// Element (i, j) by the comments of BlockScales and BlockCodes, in double.
double by_definition(const BlockCodes& w, Index i, Index j) {
    const Index row_stride = w.row_stride == 0 ? w.cols : w.row_stride;
    const Index blocks = (w.cols + w.scales.block_cols - 1) / w.scales.block_cols;
    const Index scale_stride = w.scales.row_stride == 0 ? blocks : w.scales.row_stride;
    const Index element = i * row_stride + j;
    const auto byte = [&](Index k) { return std::to_integer<std::uint8_t>(w.data[k]); };
    double code = 0;
    if (w.dtype == Dtype::u8) {
        const double values[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        const int nibble = element % 2 == 0 ? byte(element / 2) % 16 : byte(element / 2) / 16;
        code = nibble < 8 ? values[nibble] : -values[nibble - 8];
    } else {
        code = static_cast<double>(w.dtype == Dtype::f8_e4m3 ? moe::decode_f8_e4m3(byte(element))
                                                             : moe::decode_f8_e5m2(byte(element)));
    }
    const Index number = i / w.scales.block_rows * scale_stride + j / w.scales.block_cols;
    const std::byte* const at = w.scales.data + number * moe::element_size(w.scales.dtype);
    return code * (w.scales.dtype == Dtype::u8 ? std::ldexp(1.0, std::to_integer<int>(*at) - 127)
                                               : moe::read_element<double>(w.scales.dtype, at));
}

TEST(BlockCodes, OfAnyBlocksAndStridesAreCodeTimesScale) {
    std::vector<Case> cases;
    for (const Dtype codes : {Dtype::f8_e4m3, Dtype::f8_e5m2, Dtype::u8})
        for (const Dtype scales : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::u8})
            for (const Index block_rows : {Index{1}, Index{2}, Index{9}})
                for (const Index block_cols : {Index{1}, Index{3}, Index{4}, Index{64}})
                    for (const Index more : {Index{0}, Index{2}})
                        for (const Index cols : {Index{0}, Index{2}, Index{14}})
                            cases.push_back(
                                {codes, scales, 5, cols, block_rows, block_cols, more, more / 2});
    for (const Case& c : cases) {
        const Index size = moe::element_size(c.scales), stride = c.cols + c.more_stride;
        const Index scale_stride = (c.cols + c.block_cols - 1) / c.block_cols + c.more_scales;
        std::vector<std::uint8_t> bytes = bytes_of(1 + c.rows * stride, 5);
        std::vector<std::uint8_t> scale_bytes = bytes_of(1 + c.rows * scale_stride * size, 6);
        for (std::uint8_t& byte : bytes)  // no NaN and no infinity: those have no one value
            byte = static_cast<std::uint8_t>(c.codes == Dtype::u8 ? byte : byte & 0xfb & ~0x40);
        for (std::uint8_t& byte : scale_bytes) byte = static_cast<std::uint8_t>(byte & 0x3f);
        const auto* const from = reinterpret_cast<const std::byte*>(bytes.data() + 1);
        const auto* const scales = reinterpret_cast<const std::byte*>(scale_bytes.data() + 1);
        const BlockCodes codes{
            from,
            c.codes,
            c.rows,
            c.cols,
            c.more_stride == 0 ? 0 : stride,
            {scales, c.scales, c.block_rows, c.block_cols, c.more_scales == 0 ? 0 : scale_stride}};
        const std::vector<float> narrow = decoded<float>(codes);
        const std::vector<double> wide = decoded<double>(codes);
        for (Index i = 0; i < c.rows; ++i)
            for (Index j = 0; j < c.cols; ++j) {
                const double expected = by_definition(codes, i, j);
                ASSERT_EQ(wide[at(i * c.cols + j)], expected)
                    << moe::dtype_name(c.codes) << ' ' << moe::dtype_name(c.scales) << ' ' << i
                    << ' ' << j;
                ASSERT_EQ(narrow[at(i * c.cols + j)], static_cast<float>(expected))
                    << i << ' ' << j;
            }
    }
}

TEST(BlockCodes, WriteTheirRowAndNothingElse) {
    const Bytes codes(64, std::byte{0x38}), scales(64, std::byte{127});
    for (const Dtype dtype : {Dtype::f8_e4m3, Dtype::u8})
        for (const Index cols : {Index{2}, Index{6}, Index{34}}) {
            std::vector<float> to(at(cols) + 2, 99.0f);
            decode_row({codes.data(), dtype, 1, cols, 0, {scales.data(), Dtype::u8, 1, 4, 0}}, 0,
                       to.data() + 1);
            EXPECT_EQ(to.front(), 99.0f);
            EXPECT_EQ(to.back(), 99.0f);
            EXPECT_EQ(std::count(to.begin(), to.end(), 99.0f), 2);
        }
}

TEST(BlockCodes, AreRoundedOnceAndKeepWhatIsNotANumber) {
    const auto values = [](std::uint8_t code, float scale) {
        const auto byte = static_cast<std::byte>(code);
        Bytes factor(4);
        std::memcpy(factor.data(), &scale, 4);
        const BlockCodes codes{
            &byte, Dtype::f8_e4m3, 1, 1, 0, {factor.data(), Dtype::f32, 1, 1, 0}};
        return std::pair(decoded<float>(codes)[0], decoded<double>(codes)[0]);
    };
    const float third = 1.0f / 3.0f;
    EXPECT_EQ(values(0x3d, third).first, static_cast<float>(1.625 * static_cast<double>(third)));
    EXPECT_EQ(values(0x3d, third).second, 1.625 * static_cast<double>(third));
    EXPECT_EQ(values(0x7e, 0x1p127f).first, std::numeric_limits<float>::infinity());
    EXPECT_EQ(values(0x7e, 0x1p127f).second, 448.0 * 0x1p127);
    EXPECT_EQ(values(0x01, 0x1p-140f).first, 0x1p-149f);
    EXPECT_TRUE(std::signbit(values(0x80, 1.0f).first));  // -0
    EXPECT_TRUE(std::isnan(values(0x7f, 1.0f).first));
    EXPECT_TRUE(std::isnan(values(0x38, std::numeric_limits<float>::quiet_NaN()).second));
}

// ---- What is refused

std::string error_of(BlockCodes codes) {
    return message([&] { moe::detail::check_block_codes("who", codes); });
}

BlockCodes sound(Dtype dtype) {
    static constexpr std::byte memory[64] = {};
    return {memory, dtype, 4, 8, 0, {memory, Dtype::f32, 2, 4, 0}};
}

template <class Change>
std::string error_with(Dtype dtype, Change&& change) {
    BlockCodes codes = sound(dtype);
    change(codes);
    return error_of(codes);
}

TEST(BlockCodesCheck, LetsPassWhatCanBeDecoded) {
    for (const Dtype dtype : {Dtype::f8_e4m3, Dtype::f8_e5m2, Dtype::u8}) {
        EXPECT_EQ(error_of(sound(dtype)), "");
        EXPECT_EQ(error_with(dtype, [](BlockCodes& c) { c.row_stride = 10; }), "");
        EXPECT_EQ(error_with(dtype, [](BlockCodes& c) { c.scales.row_stride = 3; }), "");
        for (const bool no_rows : {false, true})
            EXPECT_EQ(error_with(dtype,
                                 [&](BlockCodes& c) {
                                     (no_rows ? c.rows : c.cols) = 0;
                                     c.data = c.scales.data = nullptr;
                                 }),
                      "");
    }
}

TEST(BlockCodesCheck, RefusesOtherTypes) {
    EXPECT_EQ(error_of(sound(Dtype::i8)),
              "who: codes are I8, they must be F8_E4M3, F8_E5M2 or U8 (E2M1, two a byte)");
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.scales.dtype = Dtype::f64; }),
              "who: scales are F64, they must be F32, BF16, F16 or U8 (E8M0)");
}

TEST(BlockCodesCheck, RefusesExtentsThatMeanNothing) {
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.rows = -1; }),
              "who: codes are [-1, 8], no extent may be negative");
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.cols = -2; }),
              "who: codes are [4, -2], no extent may be negative");
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.scales.block_rows = 0; }),
              "who: blocks are [0, 4], they must be at least [1, 1]");
    EXPECT_EQ(error_with(Dtype::f8_e4m3, [](BlockCodes& c) { c.scales.block_cols = -1; }),
              "who: blocks are [2, -1], they must be at least [1, 1]");
}

TEST(BlockCodesCheck, RefusesHalfBytes) {
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.cols = 7; }),
              "who: 7 columns of E2M1, they must be even: two share a byte");
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.row_stride = 9; }),
              "who: row_stride is 9 elements of E2M1, it must be even: a row begins with a byte");
    EXPECT_EQ(error_with(Dtype::f8_e4m3, [](BlockCodes& c) { c.cols = 7, c.row_stride = 9; }), "");
}

TEST(BlockCodesCheck, RefusesStridesShorterThanARow) {
    EXPECT_EQ(error_with(Dtype::f8_e4m3, [](BlockCodes& c) { c.row_stride = 7; }),
              "who: row_stride is 7, it must be 0 or at least 8, the columns");
    EXPECT_EQ(error_with(Dtype::f8_e4m3, [](BlockCodes& c) { c.row_stride = -8; }),
              "who: row_stride is -8, it must be 0 or at least 8, the columns");
    EXPECT_EQ(error_with(Dtype::f8_e4m3, [](BlockCodes& c) { c.scales.row_stride = 1; }),
              "who: scales.row_stride is 1, it must be 0 or at least 2, the blocks of a row");
    EXPECT_EQ(error_with(Dtype::f8_e4m3, [](BlockCodes& c) { c.scales.row_stride = -2; }),
              "who: scales.row_stride is -2, it must be 0 or at least 2, the blocks of a row");
}

TEST(BlockCodesCheck, RefusesWhatIsNotThereOrDoesNotFit) {
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.data = nullptr; }),
              "who: codes have no data");
    EXPECT_EQ(error_with(Dtype::u8, [](BlockCodes& c) { c.scales.data = nullptr; }),
              "who: scales have no data");
    const auto overflows = [](auto change) {
        BlockCodes codes = sound(Dtype::f8_e4m3);
        change(codes);
        EXPECT_THROW(moe::detail::check_block_codes("who", codes), std::length_error);
    };
    overflows([](BlockCodes& c) { c.rows = Index{1} << 61; });
    overflows([](BlockCodes& c) { c.row_stride = Index{1} << 62; });
    overflows([](BlockCodes& c) { c.scales.row_stride = Index{1} << 60; });
}

}  // namespace
}  // namespace block_codes_test
