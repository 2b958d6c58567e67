// SPDX-License-Identifier: MIT
// How far the float functions are from the double ones. The kernels equal these references bit for
// bit (table_test.cpp), so what holds here holds for every instruction set.

#include <moe/kernels/polynomials.hpp>

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <moe/kernels/reference.hpp>

#include "guarded.hpp"

namespace {

using kernel_test::ulps;
using moe::Activation;

/// The largest error over [low, high] in units of the last place.
template <class Got, class Want>
double worst(double low, double high, const Got& got, const Want& want, double* where) {
    constexpr int steps = 400000;
    double most = 0;
    for (int i = 0; i <= steps; ++i) {
        const auto x = static_cast<float>(low + (high - low) * i / steps);
        const double error = ulps(got(x), want(double(x)));
        if (!(error <= most)) {
            most = error;
            *where = x;
        }
    }
    return most;
}

#define EXPECT_WITHIN_ULPS(limit, low, high, got, want)                 \
    do {                                                                \
        double where = 0;                                               \
        const double error = worst(low, high, got, want, &where);       \
        EXPECT_TRUE(error <= (limit)) << error << " ulp at " << where;  \
        RecordProperty("ulp_times_100", static_cast<int>(100 * error)); \
    } while (false)

float value(Activation act, float a) {
    float h, slope;
    moe::exact::evaluate(act, a, h, slope);
    return h;
}

float slope(Activation act, float a) {
    float h, da;
    moe::exact::evaluate(act, a, h, da);
    return da;
}

const auto exp_float = [](float x) { return moe::exact::exp(x); };
const auto exp_double = [](double x) { return std::exp(x); };

TEST(Exp, IsWithinAnUlpWhereItIsNormal) {
    EXPECT_WITHIN_ULPS(1.0, -87.3, 88.72, exp_float, exp_double);
}

TEST(Exp, IsWithinAnUlpAroundZero) { EXPECT_WITHIN_ULPS(1.0, -1.0, 1.0, exp_float, exp_double); }

TEST(Exp, UnderflowsThroughDenormals) {
    EXPECT_WITHIN_ULPS(1.0, -104.5, -87.0, exp_float, exp_double);
    EXPECT_GT(moe::exact::exp(-103.9f), 0.0f);
    EXPECT_EQ(moe::exact::exp(-104.0f), 0.0f);
}

TEST(Exp, HasItsLimits) {
    const float inf = std::numeric_limits<float>::infinity();
    EXPECT_EQ(moe::exact::exp(0.0f), 1.0f);
    EXPECT_EQ(moe::exact::exp(-0.0f), 1.0f);
    EXPECT_EQ(moe::exact::exp(inf), inf);
    EXPECT_EQ(moe::exact::exp(-inf), 0.0f);
    EXPECT_EQ(moe::exact::exp(88.8f), inf);
    EXPECT_LT(moe::exact::exp(88.72f), inf);
    EXPECT_EQ(moe::exact::exp(-1e30f), 0.0f);
    EXPECT_TRUE(std::isnan(moe::exact::exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Sigmoid, IsWithinThreeUlp) {
    const auto got = [](float x) { return moe::exact::sigmoid(x); };
    EXPECT_WITHIN_ULPS(3.0, -104.0, 30.0, got, moe::plain::sigmoid);
    EXPECT_EQ(moe::exact::sigmoid(0.0f), 0.5f);
}

/// Phi(a) keeps its relative accuracy in the lower tail.
TEST(Normal, IsWithinAFewUlp) {
    const auto got = [](float a) {
        float cdf, bell;
        moe::exact::normal(a, cdf, bell);
        return cdf;
    };
    const auto want = [](double a) { return 0.5 * std::erfc(-a * std::sqrt(0.5)); };
    EXPECT_WITHIN_ULPS(8.0, -13.0, 8.0, got, want);
    EXPECT_EQ(got(0.0f), 0.5f);
    const auto bell = [](float a) {
        float cdf, e;
        moe::exact::normal(a, cdf, e);
        return e;
    };
    const auto gauss = [](double a) { return std::exp(-0.5 * a * a); };
    EXPECT_WITHIN_ULPS(2.0, -13.0, 13.0, bell, gauss);
}

TEST(Activations, AreWithinAFewUlp) {
    const auto check = [](Activation act, double low, double limit) {
        double where = 0;
        const double error = worst(
            low, 20, [act](float a) { return value(act, a); },
            [act](double a) { return moe::plain::act(act, a); }, &where);
        EXPECT_TRUE(error <= limit)
            << static_cast<int>(act) << ": " << error << " ulp at " << where;
    };
    check(Activation::relu, -20, 0);
    check(Activation::relu_squared, -20, 0.5);
    check(Activation::silu, -87, 4);  // below, sigmoid(a) is a denormal and has fewer digits
    check(Activation::gelu, -13, 9);
}

/// The argument 2u of its sigmoid carries two roundings, and exp turns each into |2u| of its own.
TEST(Activations, OfTanhHaveTheErrorOfTheirArgument) {
    for (int i = 0; i <= 400000; ++i) {
        const auto a = static_cast<float>(-10.0 + 30.0 * i / 400000);
        const double u2 = std::fabs(a * (1.5957691216 + 0.0713548163 * a * a));
        const double limit = a < 0 ? 4 + 2.5 * u2 : 4;
        const double error = ulps(value(Activation::gelu_tanh, a),
                                  moe::plain::act(Activation::gelu_tanh, double(a)));
        ASSERT_TRUE(error <= limit) << error << " ulp at " << a;
    }
}

/// So does the argument of quick_gelu: the constant and the product are rounded.
TEST(Activations, OfAScaledSigmoidHaveTheErrorOfTheirArgument) {
    for (int i = 0; i <= 400000; ++i) {
        const auto a = static_cast<float>(-50.0 + 70.0 * i / 400000);
        const double limit = a < 0 ? 4 + 2 * 1.702 * std::fabs(a) : 4;
        const double error = ulps(value(Activation::quick_gelu, a),
                                  moe::plain::act(Activation::quick_gelu, double(a)));
        ASSERT_TRUE(error <= limit) << error << " ulp at " << a;
    }
}

/// Slopes cross zero, so their error is absolute.
TEST(Activations, HaveSlopesWithinTwoRoundings) {
    for (const Activation act : moe::all_activations) {
        double most = 0, where = 0;
        for (int i = 0; i <= 400000; ++i) {
            const auto a = static_cast<float>(-12.0 + 24.0 * i / 400000);
            const double want = moe::plain::slope(act, a);
            const double error =
                std::fabs(double(slope(act, a)) - want) / std::fmax(1, std::fabs(want));
            if (!(error <= most)) {
                most = error;
                where = a;
            }
        }
        EXPECT_TRUE(most <= 4e-7) << static_cast<int>(act) << ": " << most << " at " << where;
    }
}

}  // namespace
