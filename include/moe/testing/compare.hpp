// SPDX-License-Identifier: MIT
#ifndef MOE_TESTING_COMPARE_HPP
#define MOE_TESTING_COMPARE_HPP

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <ostream>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

/// Comparisons of tensors that garbage cannot pass.
///
///     compare         error relative to the largest expected value
///     compare_within  each element within its own bound
///     same_bits       equal memory
///
/// An argument is a dense Eigen object or expression, a moe::Parameter, anything else contiguous
/// (std::vector, std::span, an array), or one number. All three fail
///   - on a NaN (same_bits: unless the other side is the same NaN);
///   - where one side is infinite and the other is not the same infinity;
///   - on different shapes. A span has no shape: it is compared with as many elements in row-major
///     order. Empty passes against empty of the same shape only, and the message says so;
///   - when they prove nothing, see CompareOptions.

namespace moe::inline MOE_ABI {
namespace testing {

/// What a check found: true if it passed. The message says what was measured, either way.
struct Comparison {
    bool passed = false;
    std::string message;

    explicit operator bool() const { return passed; }

    /// Becomes the result type of GoogleTest, so that a failing EXPECT_TRUE prints the message.
    template <class Result>
        requires requires(const Result& result, const std::string& text) {
            result.failure_message();
            Result(true) << text;
        }
    operator Result() const { return Result(passed) << message; }

    friend std::ostream& operator<<(std::ostream& out, const Comparison& comparison) {
        return out << (comparison.passed ? "passed: " : "failed: ") << comparison.message;
    }
};

struct CompareOptions {
    /// Data that are mostly zeros agree for the wrong reason: with each other, and with a result
    /// that was never computed. A comparison that would not notice if more than 90 % of the actual
    /// values were replaced by zeros therefore fails as mistrusted, and same_bits also one of which
    /// more than 90 % are 0, NaN or infinite. Where such data are right (a sparse gradient, the
    /// output of dropped tokens), say so here.
    bool allow_zeros = false;
};

namespace detail {

template <class Derived>
void is_eigen(const Eigen::DenseBase<Derived>&);

template <class X>
concept EigenDense = requires(const X& x) {
    is_eigen(x);
};

template <class X>
concept Contiguous = !EigenDense<X> && requires(const X& x) {
    std::span(std::data(x), std::size(x));
};

template <class X>
concept Dense = EigenDense<X> || Contiguous<X> || std::is_arithmetic_v<X>;

/// A copy of an argument. One without rows() and cols() has one row, and no shape to compare.
template <class S>
struct Tensor {
    using Scalar = S;
    Matrix<S> values;
    bool has_shape;
};

template <Dense X>
auto tensor(const X& x) {
    if constexpr (EigenDense<X>) {
        return Tensor<typename X::Scalar>{x.matrix(), true};
    } else if constexpr (Contiguous<X>) {
        const std::span view(std::data(x), static_cast<std::size_t>(std::size(x)));
        using S = typename decltype(view)::value_type;
        Tensor<S> result{Matrix<S>(1, static_cast<Index>(view.size())), false};
        if constexpr (requires { x.rows() * x.cols(); })  // a moe::Parameter
            result = {Matrix<S>(x.rows(), x.cols()), true};
        for (std::size_t i = 0; i < view.size(); ++i) result.values.data()[i] = view[i];
        return result;
    } else {
        return Tensor<X>{Matrix<X>::Constant(1, 1, x), false};
    }
}

/// The shortest decimal that reads back as the same number.
template <class S>
std::string digits(S value) {
    if constexpr (std::is_arithmetic_v<S>)
        return moe::detail::text(value);
    else
        return moe::detail::text(static_cast<float>(value));  // 16-bit floats
}

/// The bits of a value, most significant first.
template <class S>
std::string hex(const S& value) {
    constexpr bool little = std::endian::native == std::endian::little;
    unsigned char bytes[sizeof(S)];
    std::memcpy(bytes, &value, sizeof(S));
    std::string text = "0x";
    for (std::size_t i = 0; i < sizeof(S); ++i) {
        const unsigned byte = bytes[little ? sizeof(S) - 1 - i : i];
        text += "0123456789abcdef"[byte >> 4];
        text += "0123456789abcdef"[byte & 15u];
    }
    return text;
}

/// Steps from one number that S holds to the next between a and b; -0 and 0 are one number.
/// Both finite.
template <class S>
std::uint64_t ulps(S a, S b) {
    static_assert(sizeof(S) == 2 || sizeof(S) == 4 || sizeof(S) == 8);
    using Bits =
        std::conditional_t<sizeof(S) == 8, std::uint64_t,
                           std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint16_t>>;
    const auto ascending = [](S value) -> std::uint64_t {
        constexpr std::uint64_t sign = std::uint64_t{1} << (8 * sizeof(S) - 1);
        Bits bits;
        std::memcpy(&bits, &value, sizeof(S));
        return (bits & sign) != 0 ? sign - (bits & (sign - 1)) : sign + bits;
    };
    const std::uint64_t x = ascending(a);
    const std::uint64_t y = ascending(b);
    return x < y ? y - x : x - y;
}

template <class S>
std::string shape(const Tensor<S>& t) {
    if (!t.has_shape) return "[" + digits(t.values.size()) + "]";
    return "[" + digits(t.values.rows()) + ", " + digits(t.values.cols()) + "]";
}

/// Fails if the shapes differ, passes if both are empty; otherwise the message is empty and there
/// is something to compare.
template <class A, class B>
Comparison compare_shapes(const Tensor<A>& actual, const Tensor<B>& expected) {
    const bool same = actual.has_shape && expected.has_shape
                          ? actual.values.rows() == expected.values.rows() &&
                                actual.values.cols() == expected.values.cols()
                          : actual.values.size() == expected.values.size();
    if (!same)
        return {false, "shapes differ: got " + shape(actual) + ", expected " + shape(expected)};
    if (actual.values.size() == 0) return {true, "both are empty, " + shape(actual)};
    return {true, ""};
}

/// "at (3, 17): got 1.5, expected 1.25", or "at 17: ..." for spans
template <class A, class B>
std::string both_values(const Tensor<A>& actual, const Tensor<B>& expected, Index i) {
    const Index columns = actual.has_shape ? actual.values.cols() : expected.values.cols();
    std::string text = "at ";
    if (actual.has_shape || expected.has_shape)
        text += "(" + digits(i / columns) + ", " + digits(i % columns) + ")";
    else
        text += digits(i);
    const A a = actual.values.data()[i];
    const B b = expected.values.data()[i];
    text += ": got " + digits(a) + ", expected " + digits(b);
    if constexpr (!std::is_integral_v<A>) {
        const A rounded = static_cast<A>(b);
        if (std::isfinite(static_cast<double>(a)) && std::isfinite(static_cast<double>(rounded)))
            text += ", " + digits(ulps(a, rounded)) + " ulp";
    }
    return text;
}

/// Whether zeros would do for more than 90 % of the values.
inline bool mistrusts(Index telling, Index count, CompareOptions options) {
    return !options.allow_zeros &&
           static_cast<double>(count - telling) > 0.9 * static_cast<double>(count);
}

inline std::string mistrusted(Index telling, Index count, const char* what) {
    return "mistrusted: only " + digits(telling) + " of the " + digits(count) + " values " + what +
           "; if that is meant, set allow_zeros";
}

/// Measures every element in its own unit and passes if the largest error is at most `limit`.
/// @param unit  the unit of element i; 0 demands equality, NaN or less than 0 fails
template <class A, class B, class Unit>
Comparison compare_units(const Tensor<A>& actual, const Tensor<B>& expected, double limit,
                         const char* kind, CompareOptions options, Unit unit) {
    static_assert(!std::is_integral_v<A> && !std::is_integral_v<B>,
                  "integers have no rounding error: use same_bits");
    const Index count = actual.values.size();
    double worst = -1;
    Index at = 0;
    Index telling = 0;  // values that a zero could not replace
    for (Index i = 0; i < count; ++i) {
        const auto a = static_cast<double>(actual.values.data()[i]);
        const auto b = static_cast<double>(expected.values.data()[i]);
        const double one = unit(i);
        if (std::isinf(b) || std::abs(b) > limit * one) ++telling;

        double error;
        if (std::isinf(a) || std::isinf(b))
            error = a == b ? 0 : std::numeric_limits<double>::infinity();
        else if (!(one >= 0))
            error = std::numeric_limits<double>::quiet_NaN();
        else
            error = a == b ? 0 : std::abs(a - b) / one;
        if (!(error <= worst)) {
            worst = error;
            at = i;
            if (std::isnan(error)) break;  // there is no worse
        }
    }
    Comparison result{worst <= limit, std::string(kind) + " " + digits(worst) + ", limit " +
                                          digits(limit) + "; worst " +
                                          both_values(actual, expected, at)};
    if (result.passed && mistrusts(telling, count, options))
        return {false,
                mistrusted(telling, count, "could not be 0 instead") + " (" + result.message + ")"};
    return result;
}

}  // namespace detail

/// max |actual - expected| / max |expected| <= tolerance, both maxima over the finite elements.
///
/// If all of expected is 0 (and that is allowed), actual must be 0 too.
/// @param tolerance  in [0, 1): with 1 or more, zeros would pass for anything; fails outside
template <detail::Dense Actual, detail::Dense Expected>
Comparison compare(const Actual& actual, const Expected& expected, double tolerance,
                   CompareOptions options = {}) {
    const auto a = detail::tensor(actual);
    const auto b = detail::tensor(expected);
    if (!(tolerance >= 0 && tolerance < 1))
        return {false, "tolerance " + detail::digits(tolerance) + " is outside [0, 1)"};
    if (Comparison shapes = detail::compare_shapes(a, b); !shapes.message.empty()) return shapes;

    double scale = 0;
    for (Index i = 0; i < b.values.size(); ++i) {
        const double size = std::abs(static_cast<double>(b.values.data()[i]));
        if (std::isfinite(size) && size > scale) scale = size;
    }
    return detail::compare_units(a, b, tolerance, "relative error", options,
                                 [scale](Index) { return scale; });
}

/// |actual - expected| <= bound for each element; for kernels, with a bound from rounding_bound or
/// product_bound.
/// @param bound  of the same shape, 0 or more; an element whose bound is NaN or negative fails
template <detail::Dense Actual, detail::Dense Expected, detail::Dense Bound>
Comparison compare_within(const Actual& actual, const Expected& expected, const Bound& bound,
                          CompareOptions options = {}) {
    const auto a = detail::tensor(actual);
    const auto b = detail::tensor(expected);
    const auto bounds = detail::tensor(bound);
    if (const Comparison shapes = detail::compare_shapes(bounds, b); !shapes.passed)
        return {false, "bound: " + shapes.message};
    if (Comparison shapes = detail::compare_shapes(a, b); !shapes.message.empty()) return shapes;
    return detail::compare_units(
        a, b, 1, "error in units of its bound", options,
        [&bounds](Index i) { return static_cast<double>(bounds.values.data()[i]); });
}

/// Equal memory, element by element: 0 is not -0, and a NaN equals itself with the same payload.
/// For any scalar that has no padding, integers included.
template <detail::Dense Actual, detail::Dense Expected>
Comparison same_bits(const Actual& actual, const Expected& expected, CompareOptions options = {}) {
    const auto a = detail::tensor(actual);
    const auto b = detail::tensor(expected);
    using S = typename decltype(a.values)::Scalar;
    static_assert(std::is_same_v<S, typename decltype(b.values)::Scalar>,
                  "different types cannot have the same bits");
    if (Comparison shapes = detail::compare_shapes(a, b); !shapes.message.empty()) return shapes;

    Index differing = 0;
    Index first = 0;
    Index telling = 0;  // finite and not 0
    for (Index i = 0; i < a.values.size(); ++i) {
        const S x = a.values.data()[i];
        const S y = b.values.data()[i];
        if (std::memcmp(&x, &y, sizeof(S)) != 0 && differing++ == 0) first = i;
        if (const auto value = static_cast<double>(y); value != 0 && std::isfinite(value))
            ++telling;
    }
    const std::string count = detail::digits(a.values.size());
    if (differing != 0)
        return {false, detail::digits(differing) + " of " + count + " elements differ, the first " +
                           detail::both_values(a, b, first) + " (" +
                           detail::hex(a.values.data()[first]) + ", " +
                           detail::hex(b.values.data()[first]) + ")"};
    if (detail::mistrusts(telling, a.values.size(), options))
        return {false, detail::mistrusted(telling, a.values.size(), "are finite and not 0")};
    return {true, count + " elements have the same bits"};
}

/// length * epsilon * magnitude: twice what rounding can do to a sum of `length` terms whose
/// absolute values sum to `magnitude`, in any order, with or without fused multiply-adds.
///
/// Denormals are counted in: the smallest normal number times epsilon per term.
/// @tparam S          the scalar that was summed in
/// @param magnitudes  any shape, of any scalar
template <class S, detail::Dense Magnitudes>
Matrix<double> rounding_bound(Index length, const Magnitudes& magnitudes) {
    const auto sums = detail::tensor(magnitudes);
    const auto step = static_cast<double>(length) * double{std::numeric_limits<S>::epsilon()};
    Matrix<double> bound(sums.values.rows(), sums.values.cols());
    for (Index i = 0; i < bound.size(); ++i)
        bound.data()[i] = step * (static_cast<double>(sums.values.data()[i]) +
                                  double{std::numeric_limits<S>::min()});
    return bound;
}

/// rounding_bound for each element of the product A B when summed in S:
/// k * epsilon * sum over k of |a(i, k)| |b(k, j)|.
/// @param a  [rows, k]
/// @param b  [k, columns]
/// @throws std::invalid_argument if a and b do not agree in k
template <class S, detail::EigenDense A, detail::EigenDense B>
Matrix<double> product_bound(const A& a, const B& b) {
    const auto left = detail::tensor(a);
    const auto right = detail::tensor(b);
    if (left.values.cols() != right.values.rows())
        moe::detail::fail("moe::testing::product_bound: a has ", left.values.cols(),
                          " columns, b has ", right.values.rows(), " rows");
    Matrix<double> sums = Matrix<double>::Zero(left.values.rows(), right.values.cols());
    for (Index i = 0; i < sums.rows(); ++i)
        for (Index k = 0; k < left.values.cols(); ++k)
            for (Index j = 0; j < sums.cols(); ++j)
                sums(i, j) += std::abs(static_cast<double>(left.values(i, k))) *
                              std::abs(static_cast<double>(right.values(k, j)));
    return rounding_bound<S>(left.values.cols(), sums);
}

}  // namespace testing
}  // namespace moe::inline MOE_ABI

#endif  // MOE_TESTING_COMPARE_HPP
