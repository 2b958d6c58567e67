// SPDX-License-Identifier: MIT
#include <moe/testing/finite_difference.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/parameters.hpp>
#include <moe/testing/random.hpp>

namespace finite_difference_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::testing::check_gradient;
using moe::testing::GradientComparison;
using moe::testing::random_matrix;

bool says(const GradientComparison& comparison, const std::string& text) {
    return comparison.message.find(text) != std::string::npos;
}

/// loss = sum of v^3 / 3 + v
class Cubic : public testing::Test {
protected:
    Matrix<double> v = random_matrix<double>(25, 40, 1);
    Matrix<double> gradient = v.array().square() + 1;

    auto loss() {
        return [this] { return (v.array().cube() / 3 + v.array()).sum(); };
    }
};

TEST_F(Cubic, TheRightGradientPasses) {
    const GradientComparison result = check_gradient(loss(), v, gradient);
    EXPECT_TRUE(result);
    EXPECT_EQ(result.checked, 1000);
    EXPECT_EQ(result.skipped, 0);
    EXPECT_TRUE(says(result, "1000 of 1000 entries checked")) << result;
}

TEST_F(Cubic, ValuesArePutBack) {
    const Matrix<double> before = v;
    check_gradient(loss(), v, gradient);
    EXPECT_EQ(v, before);
    int calls = 0;
    const auto throws = [&] {
        if (++calls == 10) throw std::runtime_error("no");
        return v.sum();
    };
    EXPECT_THROW(check_gradient(throws, v, gradient), std::runtime_error);
    EXPECT_EQ(v, before);
}

TEST_F(Cubic, AWrongSignFails) { EXPECT_FALSE(check_gradient(loss(), v, -gradient)); }

TEST_F(Cubic, AMissingFactorTwoFails) {
    EXPECT_FALSE(check_gradient(loss(), v, gradient / 2));
    EXPECT_FALSE(check_gradient(loss(), v, gradient * 2));
}

TEST_F(Cubic, AGradientOfZerosFails) {
    EXPECT_FALSE(check_gradient(loss(), v, Matrix<double>::Zero(25, 40)));
}

TEST_F(Cubic, OneWrongEntryInAThousandFailsAndIsNamed) {
    gradient(17, 23) *= 1.0001;
    const GradientComparison result = check_gradient(loss(), v, gradient);
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "worst entry (17, 23)")) << result;
}

TEST_F(Cubic, SwappedEntriesFail) {
    std::swap(gradient(0, 0), gradient(0, 1));
    EXPECT_FALSE(check_gradient(loss(), v, gradient));
    EXPECT_FALSE(check_gradient(loss(), v, gradient.transpose()));
}

TEST_F(Cubic, NanAndInfinityInTheGradientFail) {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        Matrix<double> broken = gradient;
        broken(3, 4) = bad;
        const GradientComparison result = check_gradient(loss(), v, broken);
        EXPECT_FALSE(result);
        EXPECT_TRUE(says(result, "(3, 4)")) << result;
    }
}

TEST_F(Cubic, ANanLossFails) {
    const auto nan_loss = [] { return std::numeric_limits<double>::quiet_NaN(); };
    EXPECT_FALSE(check_gradient(nan_loss, v, gradient));
    const auto sometimes = [this] { return v(2, 2) > 0.9 ? std::sqrt(-v(2, 2)) : loss()(); };
    v(2, 2) = 0.9;
    EXPECT_FALSE(check_gradient(sometimes, v, gradient));
}

TEST_F(Cubic, ALossThatIsNotRepeatableFails) {
    int calls = 0;
    const auto counts = [&] { return loss()() + 1e-6 * ++calls; };
    const GradientComparison result = check_gradient(counts, v, gradient);
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "not repeatable")) << result;
}

TEST_F(Cubic, ALossThatRemembersFails) {
    double most = -100;
    const auto remembers = [&] { return most = std::max(most, v.sum()); };
    const GradientComparison result =
        check_gradient(remembers, v, Matrix<double>::Ones(25, 40), {.tolerance = 0.999});
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "remembers")) << result;
}

TEST_F(Cubic, AToleranceThatZerosWouldPassFails) {
    EXPECT_FALSE(check_gradient(loss(), v, gradient, {.tolerance = 1}));
    EXPECT_FALSE(check_gradient(loss(), v, gradient, {.tolerance = -1}));
    EXPECT_FALSE(check_gradient(loss(), v, gradient, {.step = -1}));
    EXPECT_FALSE(check_gradient(loss(), v, gradient,
                                {.tolerance = std::numeric_limits<double>::quiet_NaN()}));
}

TEST_F(Cubic, ShapesMustAgree) {
    EXPECT_FALSE(check_gradient(loss(), v, gradient.topRows(24)));
    EXPECT_FALSE(check_gradient(loss(), v, Matrix<double>(gradient.transpose())));
    EXPECT_FALSE(check_gradient(loss(), v, std::vector<double>(999, 1)));
}

TEST(FiniteDifference, NoEntriesAreAFailure) {
    Matrix<double> none(0, 4);
    const GradientComparison result = check_gradient([] { return 1.0; }, none, none);
    EXPECT_FALSE(result);
    EXPECT_EQ(result.checked, 0);
    EXPECT_TRUE(says(result, "nothing was checked")) << result;
}

TEST(FiniteDifference, ALossThatDependsOnNothingIsMistrusted) {
    Matrix<double> v = random_matrix<double>(2, 3, 1);
    const Matrix<double> zero = Matrix<double>::Zero(2, 3);
    const auto constant = [] { return 3.0; };
    const GradientComparison result = check_gradient(constant, v, zero);
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "mistrusted")) << result;
    EXPECT_TRUE(check_gradient(constant, v, zero, {.scale = 1}));
    EXPECT_FALSE(check_gradient(constant, v, Matrix<double>::Constant(2, 3, 0.01), {.scale = 1}));
}

TEST(FiniteDifference, ScaleIsWhatVanishingGradientsAreMeasuredAgainst) {
    double v = 0.3;
    const auto loss = [&] { return 1e-12 * v; };
    EXPECT_FALSE(check_gradient(loss, v, 0.0));
    EXPECT_TRUE(check_gradient(loss, v, 0.0, {.scale = 1}));
    EXPECT_FALSE(check_gradient(loss, v, 1e-3, {.scale = 1}));
}

TEST(FiniteDifference, FloatValuesAreMovedByWhatTheyReallyMove) {
    Matrix<float> v = random_matrix<float>(3, 5, 2, 1000);
    const auto loss = [&] {
        double sum = 0;
        for (Index i = 0; i < v.size(); ++i) sum += std::sin(double{v.data()[i]} / 1000);
        return sum;
    };
    Matrix<float> gradient = (v.array() / 1000).cos() / 1000;
    EXPECT_TRUE(check_gradient(loss, v, gradient));
    EXPECT_TRUE(check_gradient(loss, v, gradient.cast<double>()));
    EXPECT_TRUE(check_gradient(loss, v, gradient, {.step = 2e-7}));  // two or three ulps
    gradient(1, 1) *= 1.02f;
    EXPECT_FALSE(check_gradient(loss, v, gradient));
}

TEST(FiniteDifference, SpansArraysBlocksParametersAndSingleNumbersCanBeMoved) {
    std::vector<double> vector{1, 2, 3};
    const auto sum = [&] { return vector[0] * vector[1] * vector[2]; };
    const std::vector<double> gradient{6, 3, 2};
    EXPECT_TRUE(check_gradient(sum, vector, gradient));
    EXPECT_TRUE(check_gradient(sum, std::span(vector), gradient));
    EXPECT_TRUE(check_gradient(sum, std::span(vector).first(2), std::array{6.0, 3.0}));
    EXPECT_FALSE(check_gradient(sum, std::span(vector).first(2), std::array{3.0, 6.0}));

    Matrix<double> matrix = random_matrix<double>(4, 5, 3);
    Matrix<double> square = 2 * matrix;
    const auto squares = [&] { return matrix.squaredNorm(); };
    EXPECT_TRUE(check_gradient(squares, matrix.block(1, 1, 2, 3), square.block(1, 1, 2, 3)));
    EXPECT_FALSE(check_gradient(squares, matrix.block(1, 1, 2, 3), square.block(1, 2, 2, 3)));
    EXPECT_TRUE(check_gradient(squares, matrix.row(2), square.row(2)));
    Eigen::MatrixXd columns = matrix;  // the other storage order
    EXPECT_TRUE(check_gradient([&] { return columns.squaredNorm(); }, columns, square));

    moe::Parameter<double> parameter(2, 2);
    parameter(0, 1) = 3;
    const auto product = [&] { return parameter(0, 1) * (parameter(1, 0) + 2); };
    Matrix<double> by_parameter(2, 2);
    by_parameter << 0, 2, 3, 0;
    EXPECT_TRUE(check_gradient(product, parameter, by_parameter));
    EXPECT_FALSE(check_gradient(product, parameter, Matrix<double>(by_parameter.transpose())));

    double number = 3;
    EXPECT_TRUE(check_gradient([&] { return number * number; }, number, 6.0));
    EXPECT_FALSE(check_gradient([&] { return number * number; }, number, 3.0));
}

/// loss = sum of v^2 where v > 0, 5 - v elsewhere: it jumps at 0
class Jump : public testing::Test {
protected:
    Matrix<double> v = random_matrix<double>(4, 8, 6);
    Matrix<double> gradient;
    std::vector<bool> chosen, now;

    Jump() { v(0, 0) = 3e-6; }  // closer to 0 than the step, further than the step / 4
    double loss() {
        double sum = 0;
        now.clear();
        for (Index i = 0; i < v.size(); ++i) {
            const double x = v.data()[i];
            now.push_back(x > 0);
            sum += x > 0 ? x * x : 5 - x;
        }
        return sum;
    }
    void differentiate() {
        loss();
        chosen = now;
        gradient = (v.array() > 0).select(2 * v.array(), -Matrix<double>::Ones(4, 8).array());
    }
    GradientComparison check(bool watch, bool allow = false) {
        differentiate();
        moe::testing::GradientOptions options{
            .step = 1e-5, .scale = 1, .allow_branch_changes = allow};
        if (watch) options.same_branch = [this] { return now == chosen; };
        return check_gradient([this] { return loss(); }, v, gradient, options);
    }
};

TEST_F(Jump, IsAWrongGradientToWhoDoesNotWatchTheBranch) {
    v(0, 0) = 1e-7;
    EXPECT_FALSE(check(false));
}

TEST_F(Jump, EntriesNearABranchAreMeasuredCloserBy) {
    const GradientComparison result = check(true);
    EXPECT_TRUE(result);
    EXPECT_EQ(result.checked, 32);
}

TEST_F(Jump, EntriesAtABranchFailUnlessAllowed) {
    v(0, 0) = 1e-9;
    const GradientComparison strict = check(true);
    EXPECT_FALSE(strict);
    EXPECT_EQ(strict.skipped, 1);
    EXPECT_TRUE(says(strict, "entry (0, 0)")) << strict;
    const GradientComparison lenient = check(true, true);
    EXPECT_TRUE(lenient);
    EXPECT_EQ(lenient.checked, 31);
    EXPECT_EQ(lenient.skipped, 1);
}

TEST_F(Jump, NothingLeftToCheckFailsEvenIfAllowed) {
    v.setConstant(1e-9);
    const GradientComparison result = check(true, true);
    EXPECT_FALSE(result);
    EXPECT_EQ(result.checked, 0);
    EXPECT_EQ(result.skipped, 32);
}

TEST_F(Jump, ABranchThatIsNotItsOwnFails) {
    differentiate();
    EXPECT_FALSE(check_gradient([this] { return loss(); }, v, gradient,
                                {.same_branch = [] { return false; }}));
}

TEST(FiniteDifference, AKinkWithinTheStepDoesNoHarm) {
    double v = 2e-6;  // relu bends at 0, and the step is 7.6e-6
    const auto relu = [&] { return v > 0 ? v : 0.0; };
    EXPECT_TRUE(check_gradient(relu, v, 1.0));
    EXPECT_FALSE(check_gradient(relu, v, 0.5));
    EXPECT_FALSE(check_gradient(relu, v, 0.0));
}

}  // namespace
}  // namespace finite_difference_test
