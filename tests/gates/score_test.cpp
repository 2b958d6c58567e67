// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <moe/gates/score.hpp>

namespace {

using moe::Index;
using moe::Score;

template <class S>
class Scores : public testing::Test {
protected:
    static std::vector<S> of(Score score, const std::vector<S>& z) {
        std::vector<S> s(z.size());
        moe::detail::selection_scores(score, static_cast<Index>(z.size()), z.data(), s.data());
        return s;
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Scores, Scalars);

TYPED_TEST(Scores, AreTheirFormulas) {
    using S = TypeParam;
    const std::vector<S> z{S(1.5), S(-0.25), S(0), S(-3)};
    const double tolerance = sizeof(S) == 4 ? 3e-7 : 1e-15;
    double sum = 0;
    for (const S value : z) sum += std::exp(static_cast<double>(value));
    for (std::size_t e = 0; e < z.size(); ++e) {
        const auto value = static_cast<double>(z[e]);
        const auto at = [&](Score score) { return static_cast<double>(this->of(score, z)[e]); };
        EXPECT_NEAR(at(Score::softmax), std::exp(value) / sum, tolerance);
        EXPECT_NEAR(at(Score::sigmoid), 1 / (1 + std::exp(-value)), tolerance);
        EXPECT_NEAR(at(Score::sqrt_softplus), std::sqrt(std::log(1 + std::exp(value))), tolerance);
        EXPECT_EQ(at(Score::raw), value);
        EXPECT_EQ(at(Score::relu), value > 0 ? value : 0);
        EXPECT_EQ(at(Score::softmax_of_selected), value);
    }
}

TYPED_TEST(Scores, HaveTheSlopesOfTheirLogarithmsInBothTails) {
    using S = TypeParam;
    const auto reference = [](Score score, double z) {
        const double small = std::exp(-std::abs(z));
        if (score == Score::sigmoid) return (z < 0 ? 1 : small) / (1 + small);
        if (score == Score::sqrt_softplus)
            return z < -30 ? 0.5 : 0.5 / ((1 + std::exp(-z)) * std::log1p(std::exp(z)));
        return 1.0;
    };
    const std::vector<S> z{S(-80), S(-3), S(0), S(0.5), S(12), S(80)};
    for (const Score score :
         {Score::softmax, Score::softmax_of_selected, Score::sigmoid, Score::sqrt_softplus}) {
        std::vector<S> slope = z;
        moe::detail::score_slopes(score, static_cast<Index>(z.size()), slope.data(), slope.data());
        for (std::size_t e = 0; e < z.size(); ++e) {
            const double expected = reference(score, static_cast<double>(z[e]));
            EXPECT_NEAR(static_cast<double>(slope[e]) / expected, 1, sizeof(S) == 4 ? 1e-6 : 1e-14)
                << static_cast<int>(score) << " at " << static_cast<double>(z[e]);
        }
    }
    // Where exp(z) is less than any normal number, and where the score is 0.
    const S low = sizeof(S) == 4 ? S(-100) : S(-740), infinity = std::numeric_limits<S>::infinity();
    const std::vector<S> edge{low, -infinity};
    std::vector<S> slope(2);
    moe::detail::score_slopes(Score::sqrt_softplus, 2, edge.data(), slope.data());
    EXPECT_NEAR(static_cast<double>(slope[0]), 0.5, 1e-6);
    EXPECT_EQ(slope[1], 0);
}

TYPED_TEST(Scores, OfMaskedExpertsAreZero) {
    using S = TypeParam;
    const std::vector<S> z{-std::numeric_limits<S>::infinity(), 1};
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus, Score::relu})
        EXPECT_EQ(this->of(score, z)[0], S(0));
}

}  // namespace
