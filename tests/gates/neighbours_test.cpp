// SPDX-License-Identifier: MIT
#include <moe/gates/neighbours.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace {

using moe::Index;
using moe::detail::Neighbours;

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Neighbours of logits, with the scratch they need.
template <class S, std::size_t N>
struct Drive {
    std::array<S, N> z;
    std::array<S, 3 * N> scratch{};
    Neighbours<S> near;

    Drive(const std::array<S, N>& logits, double epsilon)
        : z(logits), near(static_cast<Index>(N), z.data(), epsilon, scratch.data()) {}
    std::vector<double> look() {
        near.look();
        std::vector<double> q;
        for (std::size_t j = 0; j < N; ++j)
            q.push_back(static_cast<double>(near.q(static_cast<Index>(j))));
        return q;
    }
};

TEST(Neighbours, AreThoseWithinTwiceEpsilonOfTheSizeOfTheBest) {
    // Distances from the best, in parts of the larger size: 0, 1/8, 1/4, above 1/4.
    Drive<double, 4> drive({8, 7, 6, 5.9}, 0.125);
    const auto q = drive.look();
    EXPECT_TRUE(drive.near.is_near(0) && drive.near.is_near(1) && drive.near.is_near(2));
    EXPECT_FALSE(drive.near.is_near(3));
    EXPECT_NEAR(q[1] / q[0], std::exp(-1), 1e-14);
    EXPECT_NEAR(q[0] + q[1] + q[2], 1, 1e-14);
    EXPECT_EQ(q[3], 0);
    // Below 0 the size is that of the lower one.
    Drive<double, 4> below({-6, -7, -8, -8.1}, 0.125);
    below.look();
    EXPECT_TRUE(below.near.is_near(1) && below.near.is_near(2));
    EXPECT_FALSE(below.near.is_near(3));
}

TEST(Neighbours, OfWhatIsLeftChangeAsExpertsAreTaken) {
    Drive<float, 4> drive({8, 4, 3.9f, 1}, 0.05);
    EXPECT_EQ(drive.near.look(), 0);
    EXPECT_EQ(drive.near.q(0), 1);
    drive.near.take(0);
    EXPECT_EQ(drive.near.look(), 1);
    EXPECT_FALSE(drive.near.is_near(0));
    EXPECT_TRUE(drive.near.is_near(2));
    EXPECT_NEAR(static_cast<double>(drive.near.q(1)), 1 / (1 + std::exp(-0.1)), 1e-6);
    for (const Index e : {1, 2, 3}) drive.near.take(e);
    EXPECT_EQ(drive.near.look(), -1);
    for (Index e = 0; e < 4; ++e) EXPECT_EQ(drive.near.q(e), 0);
}

TEST(Neighbours, OfZeroAreZerosAndMinusInfinityIsNobodys) {
    Drive<double, 4> drive({0, -0.0, -1e-300, -infinity}, 0.01);
    EXPECT_EQ(drive.near.look(), 0);
    EXPECT_TRUE(drive.near.is_near(1));
    EXPECT_FALSE(drive.near.is_near(2) || drive.near.is_near(3));
    EXPECT_EQ(drive.near.q(0), 0.5);
}

TEST(Neighbours, AddTheGradientOfOneShare) {
    Drive<double, 3> drive({4, 3.9, 1}, 0.05);
    const auto q = drive.look();
    std::array<double, 3> dz{1, 1, 1};
    drive.near.add_gradient(1, 2, dz.data());
    EXPECT_NEAR(dz[0], 1 - 2 * q[1] * q[0], 1e-15);
    EXPECT_NEAR(dz[1], 1 + 2 * q[1] * (1 - q[1]), 1e-15);
    EXPECT_EQ(dz[2], 1);
    drive.near.add_gradient(2, 2, dz.data());  // not near: its share is 0 whatever moves
    EXPECT_NEAR(dz[0], 1 - 2 * q[1] * q[0], 1e-15);
    EXPECT_EQ(dz[2], 1);
}

TEST(Neighbours, MidpointFactorIsOneForTheBestAndOnceInFour) {
    EXPECT_EQ(moe::detail::midpoint_factor<double>(true, 0.1), 1);
    EXPECT_EQ(moe::detail::midpoint_factor<double>(false, 0.76), 1);
    EXPECT_EQ(moe::detail::midpoint_factor<double>(false, 0.75), 0.3333);
}

}  // namespace
