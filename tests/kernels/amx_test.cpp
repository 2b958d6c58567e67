// SPDX-License-Identifier: MIT
// The tile instructions of this machine against what Intel's manual says, and the table that uses
// them against that of avx512. amx_emulated_test.cpp is for machines without tiles.
#if defined(__x86_64__)

#include <moe/kernels/x86/amx.hpp>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/storage_dispatch.hpp>

#include "amx_shapes.hpp"

namespace {

using moe::Index;
using moe::Isa;
namespace amx = moe::amx;

bool here() { return moe::best_isa() >= Isa::amx && amx::permitted(); }

/// All tiles of 16 rows and 64 bytes, except that tile 1 has 3 rows of 8 bytes.
amx::TileConfig shapes() {
    amx::TileConfig config;
    std::fill_n(config.rows, 8, std::uint8_t{16});
    std::fill_n(config.row_bytes, 8, std::uint16_t{64});
    config.rows[1] = 3;
    config.row_bytes[1] = 8;
    return config;
}

TEST(Amx, AnswersTheSameToEveryThread) {
    if (moe::best_isa() < Isa::amx) GTEST_SKIP() << "no tiles on this machine";
    const bool first = amx::permitted();
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([first] { EXPECT_EQ(amx::permitted(), first); });
    for (auto& thread : threads) thread.join();
}

TEST(Amx, MovesTilesOfTheirShape) {
    if (!here()) GTEST_SKIP() << "no tiles on this machine";
    std::uint8_t from[16][100], to[16][100];
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 100; ++j) {
            from[i][j] = static_cast<std::uint8_t>(i * 31 + j);
            to[i][j] = 0xEE;
        }
    amx::configure(shapes());
    amx::load<0>(from, 100);
    amx::store<0>(to, 100);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 100; ++j)
            EXPECT_EQ(to[i][j], j < 64 ? from[i][j] : 0xEE) << i << ' ' << j;
    std::fill_n(to[0], sizeof to, std::uint8_t{0xEE});
    amx::load_once<1>(from, 100);
    amx::store<1>(to, 100);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 100; ++j)
            EXPECT_EQ(to[i][j], i < 3 && j < 8 ? from[i][j] : 0xEE) << i << ' ' << j;
    amx::zero<1>();
    amx::store<1>(to, 100);
    EXPECT_EQ(to[2][7], 0);
    amx::release();
}

/// A compiler that thinks that nobody reads these bytes removes the first of the stores.
TEST(Amx, LoadsWhatWasJustStored) {
    if (!here()) GTEST_SKIP() << "no tiles on this machine";
    amx::configure(shapes());
    std::int32_t scratch[256], got[2][256];
    for (int i = 0; i < 256; ++i) scratch[i] = i;
    amx::load<0>(scratch, 64);
    for (int i = 0; i < 256; ++i) scratch[i] = -i;
    amx::load<2>(scratch, 64);
    amx::store<0>(got[0], 64);
    amx::store<2>(got[1], 64);
    amx::release();
    for (int i = 0; i < 256; ++i) {
        EXPECT_EQ(got[0][i], i);
        EXPECT_EQ(got[1][i], -i);
    }
}

TEST(Amx, MultipliesBytes) {
    if (!here()) GTEST_SKIP() << "no tiles on this machine";
    kernel_test::Numbers random(1);
    std::int8_t a[16][64], b[16][64];
    for (auto* rows : {a, b})
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 64; ++j) rows[i][j] = static_cast<std::int8_t>(random.bits());
    std::int32_t got[2][16][16];
    amx::configure(shapes());
    amx::load<0>(a, 64);
    amx::load<2>(b, 64);
    for (int twice = 0; twice < 2; ++twice) {
        if (twice == 0) amx::zero<4>();
        if (twice == 0) amx::zero<5>();
        amx::dot_signed<4, 0, 2>();
        amx::dot_unsigned<5, 0, 2>();
    }
    amx::store<4>(got[0], 64);
    amx::store<5>(got[1], 64);
    amx::release();
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) {
            std::int32_t with_signed = 0, with_unsigned = 0;
            for (int p = 0; p < 64; ++p) {
                const std::int8_t weight = b[p / 4][4 * j + p % 4];
                with_signed += 2 * a[i][p] * weight;
                with_unsigned += 2 * a[i][p] * static_cast<std::uint8_t>(weight);
            }
            EXPECT_EQ(got[0][i][j], with_signed) << i << ' ' << j;
            EXPECT_EQ(got[1][i][j], with_unsigned) << i << ' ' << j;
        }
}

TEST(Amx, GivesTheBitsOfVectors) {
    if (!here()) GTEST_SKIP() << "no tiles on this machine";
    ASSERT_STREQ(moe::storage_kernels(Isa::amx).name, "amx");
    kernel_test::expect_same_products(moe::storage_kernels(Isa::amx),
                                      moe::storage_kernels(Isa::avx512));
}

}  // namespace

#endif
