// SPDX-License-Identifier: MIT
// The reference against values from paper and against the standard library.

#include <moe/kernels/storage_reference.hpp>

#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/dtype.hpp>

#include "guarded.hpp"

namespace {

using kernel_test::Numbers;
using kernel_test::same;
using moe::Index;
using moe::Storage;

TEST(StorageReference, ReadsEveryNumberOfSixteenBits) {
    for (int i = 0; i < 65536; ++i) {
        const auto bits = static_cast<std::uint16_t>(i);
        ASSERT_TRUE(same(static_cast<float>(moe::exact::value_of(bits, 10)), moe::decode_f16(bits)))
            << i;
        ASSERT_TRUE(same(static_cast<float>(moe::exact::value_of(bits, 7)), moe::decode_bf16(bits)))
            << i;
    }
}

TEST(StorageReference, RoundsToBf16AsEigenDoes) {
    Numbers random(1);
    for (int i = 0; i < 100000; ++i) {
        auto bits = static_cast<std::uint32_t>(random.bits());
        if (i % 3 == 0) bits = (bits & 0xFFFF0000U) | 0x8000U;  // a tie
        const auto x = std::bit_cast<float>(bits);
        ASSERT_TRUE(
            same(moe::exact::round_to_bf16(x), static_cast<float>(static_cast<Eigen::bfloat16>(x))))
            << x;
    }
}

/// Where nothing is subnormal it is std::fma; elsewhere zero, or the smallest normal number.
TEST(StorageReference, FlushedFmaIsFmaAboveTheSubnormals) {
    constexpr float smallest = std::numeric_limits<float>::min();
    Numbers random(2);
    int normal = 0, flushed = 0;
    for (int i = 0; i < 300000; ++i) {
        const auto brain = [&] {
            return std::bit_cast<float>(static_cast<std::uint32_t>(
                (random.bits() & 0x807F0000U) | (60 + random.bits() % 10) << 23));
        };
        const float x = brain(), y = i % 2 == 0 ? brain() : brain() * 0x1p60f;
        const float z = i % 3 == 0   ? brain() * brain()
                        : i % 3 == 1 ? brain()
                                     : std::nextafter(-x * y, 0.0f);
        if (std::fabs(z) < smallest) continue;
        const float got = moe::exact::flushed_fma(double(x), double(y), double(z));
        const float want = std::fma(x, y, z);
        if (std::fabs(want) > smallest || want == 0) {
            ASSERT_TRUE(same(got, want)) << x << " " << y << " " << z;
            ++normal;
        } else if (std::fabs(want) < smallest) {
            ASSERT_TRUE(same(got, std::copysign(0.0f, want))) << x << " " << y << " " << z;
            ++flushed;
        }
    }
    EXPECT_GT(normal, 100000);
    EXPECT_GT(flushed, 1000);
    constexpr float inf = std::numeric_limits<float>::infinity();
    EXPECT_EQ(moe::exact::flushed_fma(0x1p100, 0x1p28, 0), inf);
    EXPECT_EQ(moe::exact::flushed_fma(-0x1p100, 0x1p28, 0x1p102), -inf);
    EXPECT_TRUE(std::isnan(moe::exact::flushed_fma(double(inf), 0, 1)));
    // 2^-126 less 2^-151 is a tie of 24 bits, and goes up; any more goes down.
    EXPECT_EQ(moe::exact::flushed_fma(0x1p-76, -0x1p-75, 0x1p-126), smallest);
    EXPECT_EQ(moe::exact::flushed_fma(0x1p-76, -0x1.02p-75, 0x1p-126), 0.0f);
}

TEST(StorageReference, ReadsCodesWhereTheLayoutSays) {
    constexpr Index width = 16;
    std::vector<std::byte> panel(1 << 14);
    const auto set = [&](Index at, int value) {
        panel[static_cast<std::size_t>(at)] = static_cast<std::byte>(value);
    };
    // Row 32 + 13 of column 5, in the second record.
    set(4 * 16 + 512 + (3 * 16 + 5) * 4 + 1, 200);
    EXPECT_EQ(moe::exact::integer(Storage::int8, width, panel.data(), 45, 5), 72);
    std::fill(panel.begin(), panel.end(), std::byte{0});
    set(288 + (1 * 16 + 5) * 4 + 1, 0xB3);  // rows 9 and 13
    EXPECT_EQ(moe::exact::integer(Storage::int4, width, panel.data(), 45, 5), 3);
    EXPECT_EQ(moe::exact::integer(Storage::int4, width, panel.data(), 41, 5), -5);
    std::fill(panel.begin(), panel.end(), std::byte{0});
    set(304 + (1 * 16 + 5) * 4 + 1, 0xB3);
    set(304 + 18 * 16 + 5, 4);
    EXPECT_EQ(moe::exact::integer(Storage::int4_zero, width, panel.data(), 45, 5), 7);
    std::fill(panel.begin(), panel.end(), std::byte{0});
    set(4 * 16 + 128 + 5 * 4 + 1, 0b10010001);  // rows 13, 9, 5, 1
    EXPECT_EQ(moe::exact::integer(Storage::ternary, width, panel.data(), 45, 5), 1);
    EXPECT_EQ(moe::exact::integer(Storage::ternary, width, panel.data(), 41, 5), 0);
    EXPECT_EQ(moe::exact::integer(Storage::ternary, width, panel.data(), 37, 5), -1);
    EXPECT_EQ(moe::exact::integer(Storage::ternary, width, panel.data(), 33, 5), 0);
}

TEST(StorageReference, EncodesRowsOfEightBits) {
    const float x[3] = {-2.54f, 0.01f, 1.27f};
    std::int8_t q[64];
    float scale = 0;
    std::int32_t sums[2];
    moe::exact::encode_int8(3, x, q, &scale, sums);
    EXPECT_FLOAT_EQ(scale, 0.02f);
    EXPECT_EQ(q[0], -127);
    EXPECT_EQ(q[1], 0);   // 0.5 or just below: even
    EXPECT_EQ(q[2], 64);  // 63.5
    EXPECT_EQ(q[3], 0);
    EXPECT_EQ(sums[0], -63);
    EXPECT_EQ(sums[1], 0);
}

}  // namespace
