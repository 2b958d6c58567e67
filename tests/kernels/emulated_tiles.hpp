// SPDX-License-Identifier: MIT
// What <moe/kernels/x86/amx.hpp> declares, in plain loops written from Intel's manual, volume 2:
// included instead of it, before anything that includes it.
#ifndef MOE_KERNELS_X86_AMX_HPP
#define MOE_KERNELS_X86_AMX_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include <gtest/gtest.h>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {
namespace amx {

struct TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

struct Tile {
    int rows = 0, row_bytes = 0;
    std::byte row[16][64] = {};

    template <class T>
    T at(int i, int j) const {
        T value;
        std::memcpy(&value, row[i] + j * static_cast<int>(sizeof value), sizeof value);
        return value;
    }
    template <class T>
    void set(int i, int j, T value) {
        std::memcpy(row[i] + j * static_cast<int>(sizeof value), &value, sizeof value);
    }
};

/// All of a thread's tiles, and how often they were shaped.
struct Tiles {
    Tile tile[8];
    bool configured = false;
    Index loads = 0, products = 0, configurations = 0;
};
inline Tiles& tiles() {
    static thread_local Tiles here;
    return here;
}

inline void configure(const TileConfig& config) {
    Tiles& all = tiles();
    all.configured = true;
    ++all.configurations;
    EXPECT_EQ(config.palette, 1);
    EXPECT_EQ(config.start_row, 0);
    for (const std::uint8_t byte : config.reserved) EXPECT_EQ(byte, 0);
    for (int t = 0; t < 16; ++t) {  // what makes LDTILECFG fail
        EXPECT_LE(config.rows[t], t < 8 ? 16 : 0) << "tile " << t;
        EXPECT_LE(config.row_bytes[t], t < 8 ? 64 : 0) << "tile " << t;
        EXPECT_EQ(config.rows[t] == 0, config.row_bytes[t] == 0) << "tile " << t;
        EXPECT_EQ(config.row_bytes[t] % 4, 0) << "tile " << t;
        if (t < 8) all.tile[t] = Tile{config.rows[t], config.row_bytes[t], {}};
    }
}
inline void release() {
    EXPECT_TRUE(tiles().configured);
    tiles().configured = false;
}

/// A tile that an instruction names, which must have a shape.
template <int number>
Tile& used() {
    static_assert(0 <= number && number < 8);
    Tile& tile = tiles().tile[number];
    EXPECT_TRUE(tiles().configured);
    EXPECT_GT(tile.rows, 0) << "tile " << number;
    return tile;
}

template <int tile>
void zero() {
    std::memset(used<tile>().row, 0, sizeof used<tile>().row);
}
template <int tile>
void load(const void* p, Index stride) {
    Tile& to = used<tile>();
    ++tiles().loads;
    std::memset(to.row, 0, sizeof to.row);
    for (int i = 0; i < to.rows; ++i)
        std::memcpy(to.row[i], static_cast<const std::byte*>(p) + i * stride,
                    static_cast<std::size_t>(to.row_bytes));
}
template <int tile>
void load_once(const void* p, Index stride) {
    load<tile>(p, stride);
}
template <int tile>
void store(void* p, Index stride) {
    const Tile& from = used<tile>();
    for (int i = 0; i < from.rows; ++i)
        std::memcpy(static_cast<std::byte*>(p) + i * stride, from.row[i],
                    static_cast<std::size_t>(from.row_bytes));
}

/// The rules for the shapes of a product; otherwise it is an undefined instruction.
template <int c, int a, int b>
void expect_shapes() {
    static_assert(c != a && c != b && a != b);
    ++tiles().products;
    EXPECT_EQ(used<c>().rows, used<a>().rows);
    EXPECT_EQ(used<c>().row_bytes, used<b>().row_bytes);
    EXPECT_EQ(used<a>().row_bytes, 4 * used<b>().rows);
}

/// x y + z in the processor's arithmetic, subnormal inputs and results being 0 as MXCSR says.
[[gnu::noinline, gnu::target("fma")]] inline float rounded_once(float x, float y, float z) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(x), _mm_set_ss(y), _mm_set_ss(z)));
}
inline float brain(std::uint16_t bits) {
    const std::uint32_t word = std::uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
}

template <int c, int a, int b>
void dot_bf16() {
    expect_shapes<c, a, b>();
    Tile& to = used<c>();
    const Tile &left = used<a>(), &right = used<b>();
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(0x9FC0);  // no traps, to nearest, flush to zero, denormals are zero
    for (int m = 0; m < to.rows; ++m) {
        float sum[32] = {};
        for (int k = 0; k < left.row_bytes / 4; ++k)
            for (int n = 0; n < to.row_bytes / 4; ++n)
                for (int half = 0; half < 2; ++half)
                    sum[2 * n + half] = rounded_once(
                        brain(left.at<std::uint16_t>(m, 2 * k + half)),
                        brain(right.at<std::uint16_t>(k, 2 * n + half)), sum[2 * n + half]);
        for (int n = 0; n < to.row_bytes / 4; ++n) {
            const float both = rounded_once(sum[2 * n], 1, sum[2 * n + 1]);
            to.set(m, n, rounded_once(to.at<float>(m, n), 1, both));
        }
    }
    _mm_setcsr(mode);
}

template <int c, int a, int b, class B>
void dot_bytes() {
    expect_shapes<c, a, b>();
    Tile& to = used<c>();
    const Tile &left = used<a>(), &right = used<b>();
    for (int m = 0; m < to.rows; ++m)
        for (int k = 0; k < left.row_bytes / 4; ++k)
            for (int n = 0; n < to.row_bytes / 4; ++n)
                for (int part = 0; part < 4; ++part)
                    to.set(m, n,
                           to.at<std::int32_t>(m, n) + left.at<std::int8_t>(m, 4 * k + part) *
                                                           right.at<B>(k, 4 * n + part));
}
template <int c, int a, int b>
void dot_signed() {
    dot_bytes<c, a, b, std::int8_t>();
}
template <int c, int a, int b>
void dot_unsigned() {
    dot_bytes<c, a, b, std::uint8_t>();
}

inline bool permitted() { return true; }

}  // namespace amx
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_X86_AMX_HPP
