// SPDX-License-Identifier: MIT
#include <moe/core/random.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/memory.hpp>

namespace random_test {
namespace {

using moe::CounterRandom;
using moe::Index;
using moe::Random;
using moe::detail::mix;
using moe::detail::normal_quantile;
using moe::detail::philox;
using moe::detail::portable_log;
using Words = std::array<std::uint32_t, 4>;

constexpr double epsilon = std::numeric_limits<double>::epsilon();

// FNV-1a over the bits of doubles.
struct Hash {
    std::uint64_t value = 0xcbf29ce484222325u;
    void add(double number) {
        value = (value ^ std::bit_cast<std::uint64_t>(number)) * 0x100000001b3u;
    }
};

// Known answers of the Random123 distribution, kat_vectors, philox4x32 with 10 rounds.
TEST(Philox, GivesTheKnownAnswers) {
    constexpr std::uint32_t ones = 0xffffffff;
    EXPECT_EQ(philox({0, 0, 0, 0}, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox({ones, ones, ones, ones}, ~std::uint64_t{0}),
              (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822u),
              (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Mix, IsSplitMix64) {  // the first two outputs for seed 0
    EXPECT_EQ(mix(0), 0xe220a8397b1dcdafu);
    EXPECT_EQ(mix(0x9e3779b97f4a7c15u), 0x6e789e6aa1b965f4u);
}

TEST(PortableLog, AgreesWithTheStandardLibrary) {
    const auto check = [](double x) {
        const double expected = std::log(x), actual = portable_log(x);
        EXPECT_TRUE(std::abs(actual - expected) <= 4 * epsilon * std::abs(expected))
            << x << ": " << actual << ", not " << expected;
    };
    for (double x = 1e-300; x < 1e300; x *= 3.7) check(x);
    for (int i = 1; i < 200; ++i) check(i * 0.01);
    for (const double x : {1 - epsilon / 2, 1 + epsilon, 0.70710678118654746, 0.70710678118654757,
                           1.4142135623730949, 1.4142135623730951, 0.5, 2.0, 0x1p-53, 1 - 0x1p-20,
                           std::numeric_limits<double>::max(), std::numeric_limits<double>::min(),
                           std::numeric_limits<double>::denorm_min()})
        check(x);
    EXPECT_EQ(portable_log(1), 0);
}

// The exact quantiles of these doubles; statistics.NormalDist().inv_cdf of Python agrees to 3e-16.
TEST(NormalQuantile, AgreesWithATable) {
    struct Pair {
        double u, x;
    };
    constexpr std::array<Pair, 28> table{{
        {0x1p-53, -8.209536151601386856},
        {1e-15, -7.941345326170996771},
        {1e-12, -7.034483825301131933},
        {1e-09, -5.997807015007686861},
        {1e-06, -4.753424308822898957},
        {0.0001, -3.719016485455680552},
        {0.001, -3.090232306167813535},
        {0.01, -2.326347874040841093},
        {0.05, -1.644853626951472688},
        {0.074999, -1.439538535345230688},
        {0.075, -1.439531470938455935},
        {0.0750001, -1.439530764501729686},
        {0.1, -1.281551565544600435},
        {0.25, -0.6744897501960817432},
        {0.4, -0.2533471031357997413},
        {0.499, -0.002506630899571766232},
        {0.5, 0},
        {0.500001, 2.506628274705705199e-6},
        {0.6, 0.2533471031357997413},
        {0.75, 0.6744897501960817432},
        {0.9, 1.281551565544600593},
        {0.92499, 1.439460830821625634},
        {0.925, 1.439531470938456229},
        {0.925001, 1.439538535345230394},
        {0.975, 1.959963984540053856},
        {0.99, 2.326347874040840768},
        {0.999, 3.090232306167813278},
        {0.999999, 4.753424308817087766},
    }};
    for (const auto& [u, x] : table) {
        const double actual = normal_quantile(u);
        EXPECT_TRUE(std::abs(actual - x) <= 4 * epsilon * std::abs(x))
            << u << ": " << actual << ", not " << x;
    }
}

TEST(NormalQuantile, IsOddAboutOneHalf) {
    for (const double u : {0x1p-52, 0x1p-30, 0x1p-10, 0.0625, 0.078125, 0.25, 0.484375})
        EXPECT_EQ(normal_quantile(u), -normal_quantile(1 - u)) << u;
}

TEST(NormalQuantile, RisesThroughTheSeamsOfItsPieces) {
    for (const double seam : {0.5 - 0.425, 0.5 + 0.425, 1.388794386496402e-11, 0.5})
        for (int i = -50; i < 50; ++i)
            EXPECT_LT(normal_quantile(seam * (1 + i * 1e-9)),
                      normal_quantile(seam * (1 + (i + 1) * 1e-9)));
}

TEST(CounterRandom, HasOneValuePerAddress) {
    const CounterRandom random(42, 7, 3);
    EXPECT_EQ(random.uniform(0, 5), 0.9323925064093427);
    EXPECT_EQ(random.uniform(1, 5), 0.6764802275901879);
    EXPECT_EQ(random.uniform(-1, 0, 2), 0.9574154366103064);
}

TEST(CounterRandom, ValuesDoNotDependOnTheOrderOfCalls) {
    const CounterRandom random(1, 2, 3);
    std::vector<double> forwards, backwards;
    for (Index t = 0; t < 40; ++t)
        for (Index e = 0; e < 3; ++e) forwards.push_back(random.normal(t, e));
    for (Index t = 39; t >= 0; --t)
        for (Index e = 2; e >= 0; --e) backwards.push_back(random.normal(t, e));
    EXPECT_TRUE(std::equal(forwards.begin(), forwards.end(), backwards.rbegin()));
}

TEST(CounterRandom, ASplitBatchDrawsWhatTheWholeOneDraws) {
    const auto noise = [](std::int64_t first_token, Index rows) {
        const CounterRandom random(9, 0, 4);
        std::vector<double> values;
        for (Index row = 0; row < rows; ++row)
            for (Index e = 0; e < 3; ++e) values.push_back(random.normal(first_token + row, e));
        return values;
    };
    std::vector<double> parts = noise(100, 13);
    const std::vector<double> second = noise(113, 17);
    parts.insert(parts.end(), second.begin(), second.end());
    EXPECT_EQ(parts, noise(100, 30));
    EXPECT_NE(parts, noise(0, 30));
}

TEST(CounterRandom, EveryPartOfTheAddressCounts) {
    std::set<double> values;
    std::size_t count = 0;
    const auto add = [&](double value) { values.insert(value), ++count; };
    for (const std::uint64_t seed : {0u, 1u, 2u})
        for (const std::uint64_t stream : {0u, 1u, 2u})
            for (const std::uint64_t step : {0u, 1u, 2u})
                for (const std::int64_t token : {0, 1, 2})
                    for (const Index expert : {0, 1, 2})
                        for (const std::uint32_t draw : {0u, 1u, 2u})
                            add(CounterRandom(seed, stream, step).uniform(token, expert, draw));
    for (int bit = 0; bit < 63; ++bit)
        add(CounterRandom(0, 0, 0).uniform((std::int64_t{1} << bit) + 3, 0));
    for (int bit = 8; bit < 64; ++bit) {
        const std::uint64_t far = std::uint64_t{1} << bit;
        add(CounterRandom(far, 0, 0).uniform(0, 0));
        add(CounterRandom(0, far, 0).uniform(0, 0));
        add(CounterRandom(0, 0, far).uniform(0, 0));
    }
    EXPECT_EQ(values.size(), count);
}

TEST(CounterRandom, UniformsStayInsideTheOpenInterval) {
    const CounterRandom random(3, 0, 0);
    double low = 1, high = 0;
    for (Index t = 0; t < 20000; ++t) {
        const double u = random.uniform(t, 0);
        low = std::min(low, u), high = std::max(high, u);
    }
    EXPECT_GT(low, 0);
    EXPECT_LT(high, 1);
    EXPECT_LT(low, 1e-3);
    EXPECT_GT(high, 1 - 1e-3);
}

// Bounds are 5 standard deviations of the estimate; the numbers are fixed.
TEST(CounterRandom, UniformsFillTheIntervalEvenly) {
    constexpr Index count = 20000, bins = 20;
    const CounterRandom random(11, 1, 0);
    std::array<double, bins> histogram{};
    double mean = 0, product = 0, previous = 0.5;
    for (Index t = 0; t < count; ++t) {
        const double u = random.uniform(t, 3);
        ++histogram[static_cast<std::size_t>(u * bins)];
        mean += u / count;
        product += (u - 0.5) * (previous - 0.5) / count;
        previous = u;
    }
    EXPECT_NEAR(mean, 0.5, 5 * std::sqrt(1.0 / 12 / count));
    EXPECT_NEAR(product, 0, 5 * (1.0 / 12) / std::sqrt(count));
    double chi_squared = 0;
    for (const double in_bin : histogram)
        chi_squared += (in_bin - count / bins) * (in_bin - count / bins) / (count / bins);
    EXPECT_LT(chi_squared, 19 + 5 * std::sqrt(2 * 19.0));
}

TEST(CounterRandom, NormalsHaveTheMomentsOfTheNormalDistribution) {
    constexpr Index count = 20000;
    const CounterRandom random(5, 0, 9);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0;
    for (Index t = 0; t < count; ++t) {
        const double x = random.normal(t, 1);
        m1 += x / count, m2 += x * x / count, m3 += x * x * x / count, m4 += x * x * x * x / count;
    }
    const double root = std::sqrt(count);
    EXPECT_NEAR(m1, 0, 5 / root);
    EXPECT_NEAR(m2, 1, 5 * std::sqrt(2) / root);
    EXPECT_NEAR(m3, 0, 5 * std::sqrt(15) / root);
    EXPECT_NEAR(m4, 3, 5 * std::sqrt(96) / root);
}

TEST(CounterRandom, GumbelsAreTheDoubleLogarithmOfUniforms) {
    constexpr Index count = 20000;
    const CounterRandom random(6, 0, 0);
    double mean = 0;
    for (Index t = 0; t < count; ++t) {
        const double g = random.gumbel(t, 1), expected = -std::log(-std::log(random.uniform(t, 1)));
        ASSERT_TRUE(std::abs(g - expected) <= 1e-12 * (1 + std::abs(expected))) << t;
        mean += g / count;
    }
    EXPECT_NEAR(mean, 0.57721566490153286, 5 * 1.2825498301618641 / std::sqrt(count));
}

TEST(Random, IsTheSequenceOfItsStream) {
    Random random(42);
    const CounterRandom source(42, 0, 0);
    for (Index i = 0; i < 20; ++i) EXPECT_EQ(random.uniform(), source.uniform(i, 0));
    Random other(42, 7);
    EXPECT_EQ(other.normal(), CounterRandom(42, 7, 0).normal(0, 0));
    EXPECT_EQ(other.uniform(-3, 5), std::fma(CounterRandom(42, 7, 0).uniform(1, 0), 8.0, -3.0));
}

TEST(Random, AnIntervalIsNotLeft) {
    Random random(8);
    for (int i = 0; i < 1000; ++i) {
        const double u = random.uniform(-2, 3);
        EXPECT_GE(u, -2);
        EXPECT_LE(u, 3);
    }
    EXPECT_EQ(random.uniform(4, 4), 4);
}

TEST(Random, ChildrenDoNotDependOnWhatWasDrawn) {
    Random fresh(3), used(3);
    for (int i = 0; i < 10; ++i) used.normal();
    Random a = fresh.child(5), b = used.child(5);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(a.uniform(), b.uniform());
    EXPECT_EQ(fresh.uniform(), Random(3).uniform());  // nor does making one
}

TEST(Random, ChildrenDifferFromEachOtherAndFromTheirParent) {
    const Random root(0);
    std::set<double> values{Random(0).uniform(), Random(1).uniform(), Random(0, 1).uniform()};
    std::size_t count = values.size();
    for (std::uint64_t i = 0; i < 20; ++i) {
        Random child = root.child(i);
        values.insert(child.uniform()), ++count;
        for (std::uint64_t j = 0; j < 20; ++j)
            values.insert(root.child(i).child(j).uniform()), ++count;
    }
    EXPECT_EQ(values.size(), count);
}

TEST(Random, FillsInStorageOrder) {
    Random a(1), b(1), c(1);
    const moe::Matrix<double> matrix = a.normal<double>(3, 4, 0.5);
    for (Index i = 0; i < 12; ++i) EXPECT_EQ(matrix.data()[i], 0.5 * b.normal());
    const moe::Matrix<float> same = c.normal<float>(3, 4, 0.5);
    for (Index i = 0; i < 12; ++i) EXPECT_EQ(same.data()[i], static_cast<float>(matrix.data()[i]));
}

TEST(Random, FillsAnythingWithDataAndSize) {
    moe::Buffer<float> buffer;
    buffer.resize(9);
    Eigen::RowVectorXf row(9);
    Random a(4), b(4);
    a.fill_normal(buffer, 2);
    b.fill_normal(row, 2);
    for (Index i = 0; i < 9; ++i) EXPECT_EQ(buffer[i], row(i));
    Random empty(4);
    EXPECT_EQ(empty.normal<float>(0, 5, 1).size(), 0);
    EXPECT_EQ(empty.uniform(), Random(4).uniform());
}

// Computed from the definitions in another language, each fused multiply-add in exact arithmetic
// and rounded once; every compiler, optimisation level and instruction set must agree.
TEST(Random, ValuesAreTheSameEverywhere) {
    Hash uniform, sequence, normal, gumbel, interval;
    const CounterRandom random(42, 7, 3);
    Random values(42), more(42);
    for (Index t = 0; t < 1000; ++t) {
        uniform.add(random.uniform(t, 5));
        normal.add(random.normal(t, 5));
        gumbel.add(random.gumbel(t, 5));
        sequence.add(values.uniform());
        interval.add(more.uniform(-0.1, 0.7));
    }
    EXPECT_EQ(uniform.value, 0x13cb6733fe54ad1eu);
    EXPECT_EQ(sequence.value, 0x5d2aa201726b32ddu);
    EXPECT_EQ(normal.value, 0x40a8584add67dc64u);
    EXPECT_EQ(gumbel.value, 0xaa52f840553808eeu);
    EXPECT_EQ(interval.value, 0x222804325ec2cc8cu);
}

}  // namespace
}  // namespace random_test
