// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <moe/gates/tsallis_entropy.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"

namespace {

using moe::Index;

template <class S>
class TsallisEntropy : public testing::Test {
protected:
    static double of(const moe::Matrix<S>& z, double index, double epsilon) {
        std::vector<S> p(static_cast<std::size_t>(z.cols()));
        moe::kernels<S>().softmax(z.cols(), z.data(), p.data());
        return moe::detail::tsallis_entropy(z.cols(), z.data(), p.data(), index, epsilon);
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TsallisEntropy, Scalars);

TYPED_TEST(TsallisEntropy, OfTheGoldenLogits) {
    using S = TypeParam;
    const moe::Matrix<S> z = gates_test::golden_logits<S>();
    const double golden[] = {.7869866, .9229029, .1603252, .9873304};
    for (Index t = 0; t < 4; ++t)
        EXPECT_NEAR(this->of(z.row(t), 1.1, 1e-5), golden[t], sizeof(S) == 4 ? 1e-6 : 5.1e-8);
}

TYPED_TEST(TsallisEntropy, IsItsFormulaForAnyIndex) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(20, 11, 4, 2);
    for (const double q : {0.5, 1.0, 1.1, 2.0, 3.0})
        for (const double epsilon : {0.0, 1e-5, 0.01})
            for (Index t = 0; t < 20; ++t) {
                double over = 0, sum = 0;
                for (Index e = 0; e < 11; ++e) over += std::exp(static_cast<double>(z(t, e)));
                for (Index e = 0; e < 11; ++e) {
                    const double p = std::exp(static_cast<double>(z(t, e))) / over + epsilon;
                    sum += q == 1 ? -p * std::log(p) : std::pow(p, q);
                }
                const double expected =
                    q == 1 ? sum / std::log(11)
                           : ((1 - sum) / (q - 1)) / ((1 - std::pow(11, 1 - q)) / (q - 1));
                EXPECT_NEAR(this->of(z.row(t), q, epsilon), expected,
                            sizeof(S) == 4 ? 1e-5 : 1e-13);
            }
}

TYPED_TEST(TsallisEntropy, IsOneForEqualLogitsAndZeroForACertainExpert) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::Matrix<S>::Zero(1, 16);
    for (const double q : {0.5, 1.0, 1.1, 2.0})
        EXPECT_NEAR(this->of(z, q, 0), 1, sizeof(S) == 4 ? 1e-6 : 1e-14);
    z(0, 3) = 2000;
    for (const double q : {0.5, 1.0, 1.1, 2.0}) EXPECT_EQ(this->of(z, q, 0), 0);
}

TYPED_TEST(TsallisEntropy, NearIndexOneIsNearShannons) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(1, 16, 4, 2);
    EXPECT_NEAR(this->of(z, 1 + 1e-5, 0), this->of(z, 1, 0), sizeof(S) == 4 ? 0.01 : 1e-5);
    EXPECT_NEAR(this->of(z, 1 - 1e-5, 0), this->of(z, 1, 0), sizeof(S) == 4 ? 0.01 : 1e-5);
}

TYPED_TEST(TsallisEntropy, CountsMaskedExpertsAsNotThere) {
    using S = TypeParam;
    constexpr S dead = -std::numeric_limits<S>::infinity();
    const moe::Matrix<S> few = moe::testing::random_matrix<S>(1, 5, 4, 2);
    moe::Matrix<S> z = moe::Matrix<S>::Constant(1, 9, dead);
    for (Index e = 0; e < 5; ++e) z(0, e + 2) = few(0, e);
    for (const double q : {1.0, 1.1})
        EXPECT_NEAR(this->of(z, q, 1e-5), this->of(few, q, 1e-5), sizeof(S) == 4 ? 1e-6 : 1e-14);
    z.fill(dead);
    EXPECT_EQ(this->of(z, 1.1, 1e-5), 0);
    z(0, 4) = 1;
    EXPECT_EQ(this->of(z, 1.1, 1e-5), 0) << "there is no choice";
    EXPECT_EQ(this->of(z, 1, 1e-5), 0);
}

TYPED_TEST(TsallisEntropy, OfANaNIsANaN) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::Matrix<S>::Zero(1, 4);
    z(0, 2) = std::numeric_limits<S>::quiet_NaN();
    for (const double q : {0.5, 1.0, 1.1}) EXPECT_TRUE(std::isnan(this->of(z, q, 1e-5)));
    const moe::Matrix<S> one = z.middleCols(2, 1);
    for (const double q : {0.5, 1.0, 1.1}) EXPECT_TRUE(std::isnan(this->of(one, q, 1e-5)));
}

}  // namespace
