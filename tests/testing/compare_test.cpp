// SPDX-License-Identifier: MIT
#include <moe/testing/compare.hpp>

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/random.hpp>

namespace compare_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::testing::compare;
using moe::testing::compare_within;
using moe::testing::Comparison;
using moe::testing::product_bound;
using moe::testing::random_matrix;
using moe::testing::rounding_bound;
using moe::testing::same_bits;

bool says(const Comparison& comparison, const std::string& text) {
    return comparison.message.find(text) != std::string::npos;
}

template <class S>
class CompareTyped : public testing::Test {
protected:
    static constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    static constexpr S infinity = std::numeric_limits<S>::infinity();
    static constexpr S epsilon = std::numeric_limits<S>::epsilon();
    const Matrix<S> good = random_matrix<S>(4, 7, 1);

    /// `good` with one element replaced
    Matrix<S> with(S value) const {
        Matrix<S> changed = good;
        changed(2, 3) = value;
        return changed;
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CompareTyped, Scalars);

TYPED_TEST(CompareTyped, EqualTensorsPass) {
    EXPECT_TRUE(compare(this->good, this->good, 0));
    EXPECT_TRUE(compare_within(this->good, this->good, Matrix<double>::Zero(4, 7)));
    EXPECT_TRUE(same_bits(this->good, this->good));
}

TYPED_TEST(CompareTyped, NanOnEitherSideFails) {
    const auto bad = this->with(this->nan);
    const Matrix<double> bound = Matrix<double>::Constant(4, 7, 0.01);
    EXPECT_FALSE(compare(bad, this->good, 0.5));
    EXPECT_FALSE(compare(this->good, bad, 0.5));
    EXPECT_FALSE(compare(bad, bad, 0.5));
    EXPECT_FALSE(compare_within(bad, this->good, bound));
    EXPECT_FALSE(compare_within(this->good, bad, bound));
    EXPECT_FALSE(compare_within(bad, bad, bound));
    EXPECT_FALSE(same_bits(bad, this->good));
    EXPECT_FALSE(same_bits(this->good, bad));
}

TYPED_TEST(CompareTyped, NanIsTheWorstElementWhereverItIs) {
    auto bad = this->with(this->nan);
    bad(3, 6) = 100;  // a large error after the NaN does not cover it
    bad(0, 0) = 100;  // nor one before
    EXPECT_TRUE(says(compare(bad, this->good, 0.5), "(2, 3)"));
}

TYPED_TEST(CompareTyped, InfinitiesMustAgreeInSign) {
    const auto plus = this->with(this->infinity);
    const auto minus = this->with(-this->infinity);
    const auto huge = this->with(std::numeric_limits<TypeParam>::max());
    EXPECT_TRUE(compare(plus, plus, 0));
    EXPECT_TRUE(compare(minus, minus, 0));
    EXPECT_FALSE(compare(plus, minus, 0.5));
    EXPECT_FALSE(compare(minus, plus, 0.5));
    EXPECT_FALSE(compare(plus, this->good, 0.5));
    EXPECT_FALSE(compare(this->good, plus, 0.5));
    EXPECT_FALSE(compare(huge, plus, 0.5));
    EXPECT_FALSE(compare(plus, huge, 0.5));
    EXPECT_FALSE(compare(this->with(this->nan), plus, 0.5));
    EXPECT_FALSE(compare(plus, this->with(this->nan), 0.5));
}

TYPED_TEST(CompareTyped, AnInfinityDoesNotHideErrorsOfFiniteElements) {
    const auto expected = this->with(this->infinity);
    auto actual = expected;
    actual(0, 0) += TypeParam(0.01);
    EXPECT_FALSE(compare(actual, expected, 1e-3));
}

TYPED_TEST(CompareTyped, NegativeValuesAreComparedLikePositiveOnes) {
    EXPECT_FALSE(compare(TypeParam(-1000), TypeParam(-10), 0.5));
    EXPECT_FALSE(compare(TypeParam(-10), TypeParam(-1000), 0.5));
    EXPECT_FALSE(compare(TypeParam(-10), TypeParam(10), 0.5));
    EXPECT_FALSE(compare(TypeParam(10), TypeParam(-10), 0.5));
    EXPECT_TRUE(compare(TypeParam(-10), TypeParam(-10.5), 0.1));
}

TYPED_TEST(CompareTyped, AZeroAgainstANumberFails) {
    EXPECT_FALSE(compare(TypeParam(0), TypeParam(1e-20), 0.5));
    EXPECT_FALSE(compare(TypeParam(1e-20), TypeParam(0), 0.5));
    EXPECT_FALSE(compare(TypeParam(1e-20), TypeParam(0), 0.5, {.allow_zeros = true}));
    EXPECT_TRUE(compare(TypeParam(0), TypeParam(0), 0.5, {.allow_zeros = true}));
    EXPECT_TRUE(compare(TypeParam(-0.0), TypeParam(0), 0, {.allow_zeros = true}));
}

TYPED_TEST(CompareTyped, ErrorIsRelativeToTheLargestExpectedValue) {
    const std::vector<TypeParam> expected{4, 2, 1};
    const std::vector<TypeParam> actual{4, 2, TypeParam(1.5)};  // 0.5 / 4
    EXPECT_TRUE(compare(actual, expected, 0.125));
    EXPECT_FALSE(compare(actual, expected, 0.1249));
}

TYPED_TEST(CompareTyped, MostlyZerosAreMistrusted) {
    Matrix<TypeParam> sparse = Matrix<TypeParam>::Zero(4, 5);
    sparse(0, 0) = 1;  // 95 % zeros
    const Matrix<double> bound = Matrix<double>::Constant(4, 5, 1e-3);
    EXPECT_FALSE(compare(sparse, sparse, 0.5));
    EXPECT_TRUE(says(compare(sparse, sparse, 0.5), "mistrusted"));
    EXPECT_FALSE(compare_within(sparse, sparse, bound));
    EXPECT_FALSE(same_bits(sparse, sparse));
    EXPECT_TRUE(compare(sparse, sparse, 0.5, {.allow_zeros = true}));
    EXPECT_TRUE(compare_within(sparse, sparse, bound, {.allow_zeros = true}));
    EXPECT_TRUE(same_bits(sparse, sparse, {.allow_zeros = true}));
    sparse(1, 0) = 1;  // 90 %
    EXPECT_TRUE(compare(sparse, sparse, 0.5));
    EXPECT_TRUE(compare_within(sparse, sparse, bound));
    EXPECT_TRUE(same_bits(sparse, sparse));
}

TYPED_TEST(CompareTyped, AllZerosAreMistrusted) {
    const Matrix<TypeParam> zeros = Matrix<TypeParam>::Zero(3, 3);
    EXPECT_FALSE(compare(zeros, zeros, 0));
    EXPECT_FALSE(compare_within(zeros, zeros, zeros));
    EXPECT_FALSE(same_bits(zeros, zeros));
}

TYPED_TEST(CompareTyped, OneOutlierThatDwarfsTheRestIsMistrusted) {
    auto expected = this->with(TypeParam(1e9));
    EXPECT_FALSE(compare(expected, expected, 1e-3));  // zeros elsewhere would pass
    EXPECT_TRUE(compare(expected, expected, 1e-3, {.allow_zeros = true}));
}

TYPED_TEST(CompareTyped, ToleranceThatZerosWouldPassFails) {
    for (const double tolerance : {1.0, 2.0, -0.1, double{this->infinity}, double{this->nan}}) {
        EXPECT_FALSE(compare(this->good, this->good, tolerance)) << tolerance;
        EXPECT_FALSE(compare(this->good, this->good, tolerance, {.allow_zeros = true}));
    }
}

TYPED_TEST(CompareTyped, BoundsThatZerosWouldPassAreMistrusted) {
    EXPECT_FALSE(compare_within(this->good, this->good, Matrix<double>::Constant(4, 7, 2)));
    EXPECT_FALSE(compare_within(this->good, this->good,
                                Matrix<double>::Constant(4, 7, double{this->infinity})));
}

TYPED_TEST(CompareTyped, ABoundThatIsNanOrNegativeFails) {
    Matrix<double> bound = Matrix<double>::Constant(4, 7, 1e-3);
    bound(1, 1) = double{this->nan};
    EXPECT_FALSE(compare_within(this->good, this->good, bound));
    bound(1, 1) = -1;
    EXPECT_FALSE(compare_within(this->good, this->good, bound));
}

TYPED_TEST(CompareTyped, EachElementHasItsOwnBound) {
    const std::vector<TypeParam> expected{1, 100};
    const std::vector<double> bound{0.25, 8};
    EXPECT_TRUE(compare_within(std::vector<TypeParam>{TypeParam(1.25), 108}, expected, bound));
    EXPECT_FALSE(compare_within(std::vector<TypeParam>{TypeParam(1.5), 100}, expected, bound));
    EXPECT_FALSE(compare_within(std::vector<TypeParam>{1, 91}, expected, bound));
}

TYPED_TEST(CompareTyped, EmptyPassesAgainstEmptyOnlyAndSaysSo) {
    const Matrix<TypeParam> empty(0, 7);
    const std::vector<TypeParam> nothing;
    for (const Comparison& c : {compare(empty, empty, 0.1), compare_within(empty, empty, empty),
                                same_bits(empty, empty), compare(nothing, nothing, 0.1)}) {
        EXPECT_TRUE(c);
        EXPECT_TRUE(says(c, "both are empty")) << c;
    }
    EXPECT_FALSE(compare(empty, this->good, 0.1));
    EXPECT_FALSE(compare(this->good, empty, 0.1));
    EXPECT_FALSE(compare_within(empty, this->good, this->good));
    EXPECT_FALSE(same_bits(empty, this->good));
    EXPECT_FALSE(compare(nothing, std::vector<TypeParam>{1}, 0.1));
    EXPECT_FALSE(compare(empty, Matrix<TypeParam>(0, 6), 0.1));  // both empty, other shape
}

TYPED_TEST(CompareTyped, DifferentShapesFail) {
    const Matrix<TypeParam> turned = this->good.transpose();
    EXPECT_FALSE(compare(turned, this->good, 0.5));
    EXPECT_TRUE(says(compare(turned, this->good, 0.5), "got [7, 4], expected [4, 7]"));
    EXPECT_FALSE(same_bits(turned, this->good));
    EXPECT_FALSE(compare_within(turned, this->good, this->good));
    EXPECT_FALSE(compare_within(this->good, this->good, turned));
    EXPECT_FALSE(compare(this->good.topRows(3), this->good, 0.5));
    EXPECT_FALSE(compare(std::vector<TypeParam>(27, 1), this->good, 0.5));
}

TYPED_TEST(CompareTyped, ExpressionsSpansAndColumnMajorMatricesAreArguments) {
    using ColumnMajor = Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic>;
    const auto& given = this->good;
    const ColumnMajor columns = given;
    const std::vector<TypeParam> flat(given.data(), given.data() + given.size());
    EXPECT_TRUE(same_bits(columns, given));
    EXPECT_TRUE(same_bits(flat, given));
    EXPECT_TRUE(same_bits(given, std::span(flat)));
    EXPECT_TRUE(compare(given * TypeParam(2), given + given, 0));
    EXPECT_TRUE(compare(given.array() * TypeParam(2), given.array() + given.array(), 0));
    EXPECT_TRUE(same_bits(given.block(1, 2, 2, 3), columns.block(1, 2, 2, 3)));
    EXPECT_FALSE(same_bits(given.block(1, 2, 2, 3), columns.block(1, 3, 2, 3)));
    const TypeParam array[]{1, 2, 3};
    EXPECT_TRUE(compare(array, std::vector<TypeParam>{1, 2, 3}, 0));
}

TYPED_TEST(CompareTyped, TheMessageNamesTheWorstElementBothValuesAndTheirDistance) {
    const TypeParam expected = this->good(2, 3);
    const auto next = std::nextafter(std::nextafter(expected, TypeParam(9)), TypeParam(9));
    const Comparison comparison = compare(this->with(next), this->good, 0);
    EXPECT_FALSE(comparison);
    EXPECT_TRUE(says(comparison, "(2, 3)")) << comparison;
    EXPECT_TRUE(says(comparison, "2 ulp")) << comparison;
    EXPECT_TRUE(says(comparison, moe::testing::detail::digits(expected))) << comparison;
    EXPECT_TRUE(says(comparison, moe::testing::detail::digits(next))) << comparison;
}

TYPED_TEST(CompareTyped, UlpsCountAcrossZero) {
    const TypeParam least = std::numeric_limits<TypeParam>::denorm_min();
    using moe::testing::detail::ulps;
    EXPECT_EQ(ulps(least, -least), 2u);
    EXPECT_EQ(ulps(TypeParam(0), TypeParam(-0.0)), 0u);
    EXPECT_EQ(ulps(TypeParam(1), TypeParam(1) + this->epsilon), 1u);
    EXPECT_EQ(ulps(TypeParam(-1) - this->epsilon, TypeParam(-1)), 1u);
}

TYPED_TEST(CompareTyped, SameBitsTellsZeroFromMinusZero) {
    const Comparison comparison = same_bits(this->with(TypeParam(-0.0)), this->with(TypeParam(0)));
    EXPECT_FALSE(comparison);
    EXPECT_TRUE(says(comparison, "(2, 3)")) << comparison;
    EXPECT_TRUE(says(comparison, "0x80000000")) << comparison;
}

TYPED_TEST(CompareTyped, SameBitsFindsOneUlp) {
    const TypeParam next = std::nextafter(this->good(2, 3), TypeParam(9));
    const Comparison comparison = same_bits(this->with(next), this->good);
    EXPECT_FALSE(comparison);
    EXPECT_TRUE(says(comparison, "1 of 28 elements differ")) << comparison;
}

TYPED_TEST(CompareTyped, SameBitsAcceptsTheSameNan) {
    EXPECT_TRUE(same_bits(this->with(this->nan), this->with(this->nan)));
    EXPECT_FALSE(same_bits(this->with(this->nan), this->with(-this->nan)));  // sign bit
}

TYPED_TEST(CompareTyped, SameBitsMistrustsTensorsOfNanOrInfinity) {
    const std::vector<TypeParam> nans(20, this->nan);
    const std::vector<TypeParam> infinities(20, this->infinity);
    EXPECT_FALSE(same_bits(nans, nans));
    EXPECT_FALSE(same_bits(infinities, infinities));
    EXPECT_TRUE(same_bits(nans, nans, {.allow_zeros = true}));
}

TYPED_TEST(CompareTyped, RoundingBoundHoldsForASumAndNotForAWrongOne) {
    const auto a = random_matrix<TypeParam>(3, 257, 5);
    const auto b = random_matrix<TypeParam>(257, 4, 6);
    Matrix<TypeParam> sum = Matrix<TypeParam>::Zero(3, 4);
    Matrix<double> exact = Matrix<double>::Zero(3, 4);
    for (Index k = 0; k < 257; ++k)
        for (Index i = 0; i < 3; ++i)
            for (Index j = 0; j < 4; ++j) {
                sum(i, j) += a(i, k) * b(k, j);
                exact(i, j) += static_cast<double>(a(i, k)) * static_cast<double>(b(k, j));
            }
    const Matrix<double> bound = product_bound<TypeParam>(a, b);
    EXPECT_TRUE(compare_within(sum, exact, bound));
    sum(1, 2) -= a(1, 100) * b(100, 2);  // one term of 257 left out
    EXPECT_FALSE(compare_within(sum, exact, bound));
}

TYPED_TEST(CompareTyped, RoundingBoundIsLengthTimesEpsilonTimesMagnitude) {
    const Matrix<double> bound = rounding_bound<TypeParam>(8, std::vector<double>{0, 1, 4});
    const double unit = 8 * double{this->epsilon};
    EXPECT_TRUE(compare(bound, std::vector<double>{0, unit, 4 * unit}, 1e-12));
    EXPECT_GT(bound(0, 0), 0);
}

TEST(Compare, ProductBoundRejectsShapesThatDoNotMultiply) {
    const Matrix<float> a(2, 3);
    EXPECT_THROW((void)product_bound<float>(a, a), std::invalid_argument);
}

TEST(Compare, FloatIsComparedWithDouble) {
    const auto exact = random_matrix<double>(5, 5, 3, 0.1);
    const Matrix<float> rounded = exact.cast<float>();
    EXPECT_TRUE(compare(rounded, exact, 1e-7));
    EXPECT_FALSE(compare(rounded, exact, 1e-10));
    EXPECT_FALSE(compare(std::numeric_limits<float>::infinity(), 1e39, 0.5));
}

TEST(Compare, SixteenBitFloatsAreComparedInTheirOwnUlps) {
    const std::vector<Eigen::bfloat16> expected{Eigen::bfloat16(1.f), Eigen::bfloat16(2.f)};
    const std::vector<Eigen::bfloat16> actual{Eigen::bfloat16(1.f), Eigen::bfloat16(2.03125f)};
    EXPECT_TRUE(says(compare(actual, expected, 0.01), "2 ulp")) << compare(actual, expected, 0.01);
    EXPECT_FALSE(same_bits(actual, expected));
}

TEST(Compare, IntegersAreComparedByTheirBits) {
    const std::vector<std::int32_t> ids{3, 1, 4, 1, 5};
    std::vector<std::int32_t> other = ids;
    EXPECT_TRUE(same_bits(ids, other));
    other[2] = -4;
    EXPECT_FALSE(same_bits(ids, other));
    EXPECT_TRUE(says(same_bits(other, ids), "at 2: got -4, expected 4")) << same_bits(other, ids);
}

TEST(Compare, TheResultPrintsItsMessage) {
    std::ostringstream out;
    out << compare(1.0, 2.0, 0.1);
    EXPECT_EQ(out.str().substr(0, 26), "failed: relative error 0.5");
}

TEST(Compare, ExpectTrueShowsTheMessage) {
    const testing::AssertionResult result = compare(1.0, 2.0, 0.1);
    EXPECT_FALSE(result);
    EXPECT_STREQ(result.message(), compare(1.0, 2.0, 0.1).message.c_str());
    const testing::AssertionResult passed = compare(1.0, 1.0, 0.1);
    EXPECT_TRUE(passed);
}

}  // namespace
}  // namespace compare_test
