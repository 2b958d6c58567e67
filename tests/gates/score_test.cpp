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

TEST(Softplus, IsExactInBothTails) {
    EXPECT_EQ(moe::detail::softplus(1000), 1000);
    EXPECT_NEAR(moe::detail::softplus(0), std::log(2.0), 1e-16);
    EXPECT_NEAR(moe::detail::softplus(-40) / std::exp(-40.0), 1, 1e-15);
    EXPECT_EQ(moe::detail::softplus(-1000), 0);
    const double infinity = std::numeric_limits<double>::infinity();
    EXPECT_EQ(moe::detail::softplus(infinity), infinity);
    EXPECT_EQ(moe::detail::softplus(-infinity), 0);
    EXPECT_TRUE(std::isnan(moe::detail::softplus(std::nan(""))));
}

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
        EXPECT_EQ(at(Score::softmax_of_selected), value);
    }
}

TYPED_TEST(Scores, OfMaskedExpertsAreZero) {
    using S = TypeParam;
    const std::vector<S> z{-std::numeric_limits<S>::infinity(), 1};
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus})
        EXPECT_EQ(this->of(score, z)[0], S(0));
}

}  // namespace
