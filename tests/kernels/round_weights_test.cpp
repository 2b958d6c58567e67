// SPDX-License-Identifier: MIT
#include <moe/kernels/round_weights.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numbers>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/storage_reference.hpp>

#include "numbers.hpp"
#include "support/message.hpp"

namespace {

using kernel_test::Numbers;
using moe::Index;
using moe::Storage;
using moe::Strided;

constexpr auto storages = std::span(moe::all_storages).subspan(1);  // all but fp32

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

float half_of(double x) { return static_cast<float>(Eigen::half(static_cast<float>(x))); }

TEST(RoundWeights, HalvesAreTheNearest) {
    for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
        const auto here = static_cast<std::uint16_t>(bits);
        const float low = moe::decode_f16(here);
        EXPECT_EQ(moe::detail::f16_of(low), here);
        EXPECT_EQ(moe::detail::f16_of(-low), here | 0x8000);
        const float high =
            bits == 0x7bff ? 65536 : moe::decode_f16(static_cast<std::uint16_t>(bits + 1));
        const float middle = (low + high) / 2;
        EXPECT_EQ(moe::detail::f16_of(std::nextafter(middle, 0.f)), here);
        if (bits == 0x7bff) continue;
        EXPECT_EQ(moe::detail::f16_of(middle), bits % 2 == 0 ? bits : bits + 1);
        EXPECT_EQ(moe::detail::f16_of(std::nextafter(middle, 1e9f)), bits + 1);
    }
    EXPECT_EQ(moe::detail::f16_of(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(RoundWeights, Bfloat16IsTheNearest) {
    Numbers random(1);
    for (int i = 0; i < 100000; ++i) {
        const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
        if (!(std::fabs(x) <= moe::detail::largest_weight(Storage::bf16))) continue;
        const double found = moe::decode_bf16(moe::detail::bf16_of(x));
        EXPECT_EQ(found, moe::exact::round_to_bf16(x));
    }
    for (const float tie : {1 + 0x1p-8f, 1 + 0x3p-8f})
        EXPECT_EQ(moe::decode_bf16(moe::detail::bf16_of(tie)),
                  tie == 1 + 0x1p-8f ? 1 : 1 + 0x4p-8f);
}

TEST(RoundWeights, TheLargestWeightIsStillFinite) {
    const float inf = std::numeric_limits<float>::infinity();
    const float bf16 = moe::detail::largest_weight(Storage::bf16);
    EXPECT_TRUE(std::isfinite(moe::decode_bf16(moe::detail::bf16_of(bf16))));
    EXPECT_TRUE(std::isinf(moe::exact::round_to_bf16(std::nextafter(bf16, inf))));
    const float f16 = moe::detail::largest_weight(Storage::f16);
    EXPECT_EQ(half_of(f16), 65504);
    EXPECT_TRUE(std::isinf(half_of(std::nextafter(f16, inf))));
    for (const Storage storage : storages) {
        const float most = moe::detail::largest_weight(storage);
        const std::vector<float> w = {most, -most, 1, 2};
        std::vector<std::byte> panel(at(moe::panel_layout(storage, 16).bytes(4)));
        moe::detail::round_panel(storage, 16, {w.data(), 1, 4}, 4, 1, panel.data());
        for (Index p = 0; p < 2; ++p) {
            const float found = moe::exact::weight(storage, 16, panel.data(), p, 0);
            EXPECT_TRUE(std::isfinite(found)) << moe::name(storage);
            if (storage != Storage::ternary && (p == 0 || storage != Storage::int4)) {
                EXPECT_NEAR(found / w[at(p)], 1, 0.07) << moe::name(storage);
            }
        }
    }
}

/// B [k, cols] packed in panels, and its weights as storage_reference.hpp reads them.
struct Panels {
    Storage storage;
    Index width, k, cols;
    std::vector<std::byte> bytes;

    Panels(Storage storage_, Index width_, Strided<float> b, Index k_, Index cols_)
        : storage(storage_), width(width_), k(k_), cols(cols_) {
        const Index each = moe::panel_layout(storage, width).bytes(k);
        const Index count = (cols + width - 1) / width;
        bytes.assign(at(count * each), std::byte{0xa5});
        for (Index j = 0; j < count; ++j)
            moe::detail::round_panel(
                storage, width, {b.data + j * width * b.col_stride, b.row_stride, b.col_stride}, k,
                std::min(width, cols - j * width), bytes.data() + j * each);
    }
    const std::byte* panel(Index j) const {
        return bytes.data() + j / width * moe::panel_layout(storage, width).bytes(k);
    }
    double weight(Index p, Index j) const {
        return moe::exact::weight(storage, width, panel(j), p, j % width);
    }
    double scale(Index p, Index j) const {
        return moe::exact::scale(storage, width, panel(j), p, j % width);
    }
    int integer(Index p, Index j) const {
        return moe::exact::integer(storage, width, panel(j), p, j % width);
    }
    int code(Index p, Index j) const {
        return moe::exact::code(storage, width, panel(j), p, j % width);
    }
};

/// [k, cols] normal numbers, by column.
std::vector<float> normal(Index k, Index cols, std::uint64_t seed) {
    Numbers random(seed);
    std::vector<float> w(at(k * cols));
    for (float& x : w)
        x = static_cast<float>(std::sqrt(-2 * std::log(1 - random.uniform(0, 1))) *
                               std::cos(2 * std::numbers::pi * random.uniform(0, 1)));
    return w;
}

/// Scales as documented, from the weights of a block or a column.
double wanted_scale(Storage storage, const float* w, Index count) {
    double most = 0, low = 0, high = 0, sum = 0, signed_most = 0;
    for (Index p = 0; p < count; ++p) {
        if (std::fabs(w[p]) > most) signed_most = w[p];
        most = std::max(most, double(std::fabs(w[p])));
        low = std::min(low, double(w[p]));
        high = std::max(high, double(w[p]));
        sum += std::fabs(w[p]);
    }
    switch (storage) {
        case Storage::int8:
            return static_cast<float>(most / 127);
        case Storage::int8_block:
            return half_of(most / 127);
        case Storage::int4:
            return half_of(signed_most / -8);
        case Storage::int4_zero:
            return half_of(static_cast<float>(high - low) / 15);
        default:
            return static_cast<float>(sum / static_cast<double>(count));
    }
}

TEST(RoundWeights, CodesAreTheNearestOfTheirScale) {
    const Index k = 101, cols = 37;
    const std::vector<float> w = normal(k, cols, 2);
    for (const Storage storage : storages) {
        if (!moe::is_coded(storage)) continue;
        SCOPED_TRACE(moe::name(storage));
        for (const Index width : {16, 32, 64}) {
            const Panels panels(storage, width, {w.data(), 1, k}, k, cols);
            const int steps = storage == Storage::ternary                                 ? 3
                              : storage == Storage::int4 || storage == Storage::int4_zero ? 16
                                                                                          : 255;
            for (Index j = 0; j < cols; ++j)
                for (Index p = 0; p < k; ++p) {
                    const Index first = moe::has_block_scales(storage) ? p / 32 * 32 : 0;
                    const Index count =
                        moe::has_block_scales(storage) ? std::min<Index>(32, k - first) : k;
                    const double s = panels.scale(p, j);
                    const double wanted = wanted_scale(storage, &w[at(j * k + first)], count);
                    ASSERT_NEAR(s, wanted, std::fabs(wanted) * 1e-6) << p << " " << j;
                    const double found = panels.weight(p, j), x = w[at(j * k + p)];
                    const int zero = panels.code(p, j) - panels.integer(p, j);
                    const int lowest = storage == Storage::int8 || storage == Storage::int8_block;
                    double best = HUGE_VAL;
                    for (int q = lowest; q < lowest + steps; ++q)
                        best = std::min(best, std::fabs((q - zero) * s - x));
                    ASSERT_LE(std::fabs(found - x), best + 1e-6) << p << " " << j;
                    if (storage == Storage::int4_zero) {
                        double low = 0;
                        for (Index i = 0; i < count; ++i)
                            low = std::min(low, double(w[at(j * k + first + i)]));
                        ASSERT_EQ(zero, std::clamp(std::nearbyint(-low / s), 0., 15.));
                    }
                }
        }
    }
}

TEST(RoundWeights, PlainFormatsAreRoundedOneByOne) {
    const Index k = 70, cols = 19;
    const std::vector<float> w = normal(k, cols, 3);
    for (const Index width : {16, 32, 64}) {
        const Panels bf16(Storage::bf16, width, {w.data(), 1, k}, k, cols);
        const Panels f16(Storage::f16, width, {w.data(), 1, k}, k, cols);
        for (Index j = 0; j < cols; ++j)
            for (Index p = 0; p < k; ++p) {
                const float x = w[at(j * k + p)];
                ASSERT_EQ(bf16.weight(p, j), moe::exact::round_to_bf16(x));
                ASSERT_EQ(f16.weight(p, j), half_of(x));
            }
    }
}

/// As the GGUF file format has it: the weight of largest magnitude is -8 s.
TEST(RoundWeights, TheLargestOfFourBitsIsCodeZero) {
    std::vector<float> w(32, 0.25f);
    w[5] = 2;
    w[6] = -2;
    const Panels first(Storage::int4, 16, {w.data(), 1, 32}, 32, 1);
    EXPECT_EQ(first.scale(0, 0), -0.25);
    EXPECT_EQ(first.code(5, 0), 0);
    EXPECT_EQ(first.weight(5, 0), 2);
    EXPECT_EQ(first.weight(6, 0), -1.75) << "there is no code 16";
    EXPECT_EQ(first.weight(0, 0), 0.25);
    w[6] = -4;
    const Panels second(Storage::int4, 16, {w.data(), 1, 32}, 32, 1);
    EXPECT_EQ(second.scale(0, 0), 0.5);
    EXPECT_EQ(second.weight(6, 0), -4);
    EXPECT_EQ(second.weight(0, 0), 0) << "0.5 is a tie: the even one";
}

TEST(RoundWeights, ZeroIsAmongTheFourBitsWithAZero) {
    std::vector<float> w(32, 3.f);
    w[1] = 18;
    const Panels above(Storage::int4_zero, 16, {w.data(), 1, 32}, 32, 1);
    EXPECT_EQ(above.code(0, 0) - above.integer(0, 0), 0);
    EXPECT_NEAR(above.weight(1, 0), 18, 0.01);
    EXPECT_NEAR(above.weight(0, 0), 3, 0.61);
    for (float& x : w) x = -x;
    const Panels below(Storage::int4_zero, 16, {w.data(), 1, 32}, 32, 1);
    EXPECT_EQ(below.code(0, 0) - below.integer(0, 0), 15);
    EXPECT_NEAR(below.weight(1, 0), -18, 0.01);
}

TEST(RoundWeights, TernaryWeightsAreThoseOfBitNet) {
    const std::vector<float> w = {4, -4, 0.9f, -0.9f, 1.1f, 0, 3.1f, 2};  // mean of |w|: 2
    const Panels panels(Storage::ternary, 16, {w.data(), 1, 8}, 8, 1);
    EXPECT_NEAR(panels.scale(0, 0), 2, 1e-6);
    const int wanted[] = {1, -1, 0, 0, 1, 0, 1, 1};
    for (Index p = 0; p < 8; ++p) EXPECT_EQ(panels.integer(p, 0), wanted[p]) << p;
}

TEST(RoundWeights, ZerosAndWeightsBelowEveryScaleBecomeZero) {
    for (const float value : {0.f, -0.f, 1e-42f, 1e-9f}) {
        const std::vector<float> w(40, value);
        for (const Storage storage : storages) {
            const Panels panels(storage, 16, {w.data(), 1, 40}, 40, 1);
            for (Index p = 0; p < 40; ++p) {
                const double found = panels.weight(p, 0);
                ASSERT_LE(std::fabs(found - value), 0.51 * std::fabs(value) + 3e-8)
                    << moe::name(storage);
            }
        }
    }
}

TEST(RoundWeights, PaddingHoldsTheCodeOfZeroAndNoScale) {
    const Index k = 33, cols = 17, width = 32;
    const std::vector<float> w(at(k * cols), 1.f);
    for (const Storage storage : storages) {
        SCOPED_TRACE(moe::name(storage));
        const Panels panels(storage, width, {w.data(), 1, k}, k, cols);
        const Index rows = moe::PanelLayout::records(k) * 32;
        EXPECT_EQ(rows, 64);
        for (Index p = 0; p < rows; ++p)
            for (Index j = 0; j < width; ++j) {
                const bool inside = p < k && j < cols;
                ASSERT_EQ(panels.weight(p, j) != 0, inside) << p << " " << j;
                if (!moe::is_coded(storage)) continue;
                ASSERT_TRUE(inside || panels.integer(p, j) == 0) << p << " " << j;
                ASSERT_TRUE(j < cols || panels.scale(p, j) == 0) << p << " " << j;
            }
    }
    const Panels odd(Storage::int8, 16, {w.data(), 1, k}, k, 1);         // 64 + 2 * 512 bytes
    const Panels tail(Storage::int8_block, 16, {w.data(), 1, k}, k, 1);  // 2 * 544, padded to 64
    EXPECT_EQ(odd.bytes.size() % 64, 0u);
    ASSERT_EQ(tail.bytes.size(), 1088u);
}

TEST(RoundWeights, ReadsAnyStrides) {
    const Index k = 75, cols = 21;
    const std::vector<float> by_column = normal(k, cols, 4);
    std::vector<float> by_row(by_column.size()), apart(3 * by_column.size());
    for (Index j = 0; j < cols; ++j)
        for (Index p = 0; p < k; ++p) {
            by_row[at(p * cols + j)] = by_column[at(j * k + p)];
            apart[at(3 * (p * cols + j))] = by_column[at(j * k + p)];
        }
    for (const Storage storage : storages) {
        const Panels expected(storage, 16, {by_column.data(), 1, k}, k, cols);
        EXPECT_EQ(Panels(storage, 16, {by_row.data(), cols, 1}, k, cols).bytes, expected.bytes);
        EXPECT_EQ(Panels(storage, 16, {apart.data(), 3 * cols, 3}, k, cols).bytes, expected.bytes);
    }
}

/// Root mean square of the error over that of the weights, 2048 inputs.
TEST(RoundWeights, ErrorsOnNormalWeightsAreThoseOfTheFormats) {
    const Index k = 2048, cols = 64;
    const std::vector<float> w = normal(k, cols, 5);
    const auto error = [&](Storage storage) {
        const Panels panels(storage, 16, {w.data(), 1, k}, k, cols);
        double sum = 0, all = 0;
        for (Index j = 0; j < cols; ++j)
            for (Index p = 0; p < k; ++p) {
                const double x = w[at(j * k + p)], off = panels.weight(p, j) - x;
                sum += off * off;
                all += x * x;
            }
        return std::sqrt(sum / all);
    };
    EXPECT_NEAR(error(Storage::bf16), 0.0017, 0.00005);
    EXPECT_NEAR(error(Storage::f16), 0.0017 / 8, 0.00001);
    EXPECT_NEAR(error(Storage::int8_block), 0.0054, 0.00005);
    EXPECT_NEAR(error(Storage::int8), 0.0083, 0.0003);
    EXPECT_NEAR(error(Storage::int4), 0.086, 0.001);
    EXPECT_NEAR(error(Storage::int4_zero), 0.078, 0.004);
    EXPECT_NEAR(error(Storage::ternary), 0.51, 0.005);
}

template <class W>
std::string refusal(Storage storage, const W& w, Index rows, Index cols) {
    return support::message(
        [&] { moe::detail::check_storable(storage, w, rows, cols, "up of expert 3"); });
}

TEST(RoundWeights, RefusesTheFirstWeightThatCannotBeStored) {
    const Index rows = 5, cols = 200;
    std::vector<float> w = normal(cols, rows, 6), transposed(w.size());
    const auto both = [&](Storage storage) {
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j) transposed[at(j * rows + i)] = w[at(i * cols + j)];
        const std::string found = refusal(storage, Strided<float>{w.data(), cols, 1}, rows, cols);
        EXPECT_EQ(refusal(storage, Strided<float>{transposed.data(), 1, rows}, rows, cols), found);
        return found;
    };
    for (const Storage storage : storages) EXPECT_EQ(both(storage), "");
    for (const Index place : {0, 63, 64, 191, 192, 199}) {
        for (const float bad : {HUGE_VALF, -HUGE_VALF, std::nanf(""), -std::nanf("")})
            for (const Storage storage : storages) {
                const float kept = std::exchange(w[at(2 * cols + place)], bad);
                const std::string found = both(storage);
                w[at(2 * cols + place)] = kept;
                EXPECT_EQ(found.find("moe::freeze: up of expert 3: weight [2, " +
                                     std::to_string(place) + "] is "),
                          0u)
                    << found;
                EXPECT_NE(found.find("holds finite weights only"), std::string::npos);
            }
    }
    for (const Storage storage : storages) {
        const float most = moe::detail::largest_weight(storage);
        w[700] = -most;
        EXPECT_EQ(both(storage), "");
        w[700] = std::nextafter(-most, -HUGE_VALF);
        EXPECT_NE(both(storage), "");
    }
    w[700] = -1e6f;
    EXPECT_EQ(both(Storage::int4),
              "moe::freeze: up of expert 3: weight [3, 100] is -1e+06, int4 holds weights up to "
              "524032; store the expert as bf16 or fp32 (not with Compute::int8), see "
              "FreezeOptions::experts");
    w[700] = 3.4e38f;
    EXPECT_NE(both(Storage::bf16).find("; store the expert as fp32 (Compute::exact only), see"),
              std::string::npos);
}

TEST(RoundWeights, RefusesNarrowWeightsWithTheSameSentence) {
    const Index rows = 5, cols = 200;
    std::vector<std::uint16_t> w(at(rows * cols), 0x3F80), transposed;
    std::vector<float> values;
    const auto& kernels = moe::detail::all_narrow_tables<std::int8_t>()[0]->bf16;
    const auto strided = [&](const std::vector<std::uint16_t>& from, Index row, Index col) {
        return moe::NarrowStrided{.data = reinterpret_cast<const std::byte*>(from.data()),
                                  .row_stride = row,
                                  .col_stride = col,
                                  .scales = nullptr,
                                  .scale_row = 0,
                                  .scale_col = 0,
                                  .kernels = &kernels};
    };
    const auto refusals = [&](Storage storage) {
        transposed.resize(w.size());
        values.resize(w.size());
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j) {
                transposed[at(j * rows + i)] = w[at(i * cols + j)];
                values[at(i * cols + j)] = moe::decode_bf16(w[at(i * cols + j)]);
            }
        const std::string found =
            refusal(storage, Strided<float>{values.data(), cols, 1}, rows, cols);
        EXPECT_EQ(refusal(storage, strided(w, cols, 1), rows, cols), found);
        EXPECT_EQ(refusal(storage, strided(transposed, 1, rows), rows, cols), found);
        return found;
    };
    for (const Storage storage : storages) EXPECT_EQ(refusals(storage), "");
    for (const Index place : {0, 15, 16, 199, 400, 999})
        for (const int bad : {0x7F80, 0xFF80, 0x7FC0, 0x7F7F}) {
            const auto kept = std::exchange(w[at(place)], static_cast<std::uint16_t>(bad));
            for (const Storage storage : {Storage::f16, Storage::int8_block, Storage::int4})
                EXPECT_NE(refusals(storage), "") << place << " " << bad;
            EXPECT_EQ(refusals(Storage::int8).empty(), bad == 0x7F7F);
            w[at(place)] = kept;
        }
}

}  // namespace
