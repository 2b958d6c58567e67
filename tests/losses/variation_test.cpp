// SPDX-License-Identifier: MIT
#include <moe/losses/variation.hpp>

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/finite_difference.hpp>

namespace variation_test {
namespace {

using moe::Index;
using moe::Variance;

struct Result {
    double value;
    std::vector<double> slope;
};

Result of(Variance variance, std::vector<double> v, const std::vector<double>& costs = {}) {
    std::vector<double> slope(v.size(), 99.0);
    const double value = moe::detail::squared_variation(
        variance, costs, static_cast<Index>(v.size()), v.data(), slope.data());
    return {value, slope};
}

TEST(SquaredVariation, IsWorkedOutByHand) {
    // mean 3, deviations -2 0 2: 8/3 / 9 of the population, 8/2 / (9 + 1e-10) of a sample
    const Result population = of(Variance::population, {1, 3, 5});
    EXPECT_NEAR(population.value, 8.0 / 27, 1e-15);
    EXPECT_NEAR(of(Variance::sample, {1, 3, 5}).value, 4 / (9 + 1e-10), 1e-15);
    // slope 2 (v - 3) / (3 * 9) - 2 * 3 * (8/3) / (3 * 81)
    const double common = 16.0 / 243;
    EXPECT_NEAR(population.slope[0], -4.0 / 27 - common, 1e-15);
    EXPECT_NEAR(population.slope[1], -common, 1e-15);
    EXPECT_NEAR(population.slope[2], 4.0 / 27 - common, 1e-15);
    // costs 5 1 1 make it 5 3 5: mean 13/3, deviations 2/3 -4/3 2/3
    EXPECT_NEAR(of(Variance::population, {1, 3, 5}, {5, 1, 1}).value, (24.0 / 27) / (169.0 / 9),
                1e-15);
}

TEST(SquaredVariation, HasTheRangeThatItSays) {
    for (const Variance variance : {Variance::population, Variance::sample})
        EXPECT_EQ(of(variance, {2, 2, 2, 2}).value, 0);
    EXPECT_NEAR(of(Variance::population, {0, 0, 7, 0}).value, 3, 1e-14);
    EXPECT_NEAR(of(Variance::sample, {0, 0, 7, 0}).value, 4, 1e-9);
}

TEST(SquaredVariation, OfAPopulationDoesNotSeeTheScale) {
    const double value = of(Variance::population, {0.5, 2, 1, 4}).value;
    EXPECT_EQ(of(Variance::population, {4, 16, 8, 32}).value, value);
    EXPECT_NE(of(Variance::sample, {4, 16, 8, 32}).value,
              of(Variance::sample, {0.5, 2, 1, 4}).value);
}

TEST(SquaredVariation, SlopeAgreesWithDifferences) {
    for (const Variance variance : {Variance::population, Variance::sample})
        for (const std::vector<double>& costs :
             {std::vector<double>{}, std::vector<double>{6, 4, 0, 1, 0.5}}) {
            std::vector<double> v{0.3, 1.5, 0.2, 2.5, 0.9};
            const std::vector<double> slope = of(variance, v, costs).slope;
            const auto value = [&] { return of(variance, v, costs).value; };
            EXPECT_TRUE(moe::testing::check_gradient(value, v, slope));
        }
}

TEST(SquaredVariation, OfOneExpertOrOfZerosIsZero) {
    for (const Variance variance : {Variance::population, Variance::sample}) {
        for (const Result& result : {of(variance, {}), of(variance, {7}), of(variance, {0, 0, 0}),
                                     of(variance, {1, 2, 3}, {0, 0, 0})}) {
            EXPECT_EQ(result.value, 0);
            for (const double slope : result.slope) EXPECT_EQ(slope, 0);
        }
        EXPECT_TRUE(std::isnan(of(variance, {1, NAN, 3}).value));
        EXPECT_TRUE(std::isnan(of(variance, {1, NAN, 3}).slope[0]));
    }
}

}  // namespace
}  // namespace variation_test
