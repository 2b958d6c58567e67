// SPDX-License-Identifier: MIT
#ifndef MOE_TESTING_FINITE_DIFFERENCE_HPP
#define MOE_TESTING_FINITE_DIFFERENCE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/testing/compare.hpp>

namespace moe::inline MOE_ABI {
namespace testing {

struct GradientOptions {
    /// Each value v moves by step * max(1, |v|) up and down; 0: 2^-17, or 2^-7 if v is a float.
    double step = 0;
    /// Largest error, relative to the largest numeric derivative; 0: 1e-7, or 5e-3 if v is a float.
    double tolerance = 0;
    /// Errors are relative to at least this. Set it where the derivative may vanish: without it, a
    /// gradient that is zero everywhere fails, because zeros look the same as a loss that does not
    /// depend on the values at all.
    double scale = 0;
    /// Asked after each evaluation of the loss: did it take the branch that it takes at the given
    /// values (select the same experts, say)? Where it did not, the step is halved, up to 4 times.
    std::function<bool()> same_branch = {};
    /// Entries whose branch changes even so are left out. Otherwise one of them fails the check.
    bool allow_branch_changes = false;
};

/// A comparison that also says how much was compared. A check of no entries fails.
struct GradientComparison : Comparison {
    Index checked = 0;  ///< entries measured
    Index skipped = 0;  ///< entries whose branch changes next to them
};

namespace detail {

inline constexpr int most_halvings = 4;

template <class Loss>
concept LossFunction = std::is_invocable_r_v<double, Loss&>;

template <class S>
GradientOptions with_defaults(GradientOptions options) {
    static_assert(is_scalar<S>, "gradients are checked in float or double");
    constexpr bool is_double = std::is_same_v<S, double>;
    if (options.step == 0) options.step = is_double ? 0x1p-17 : 0x1p-7;
    if (options.tolerance == 0) options.tolerance = is_double ? 1e-7 : 5e-3;
    return options;
}

/// Puts a moved value back, whatever the loss throws.
template <class S>
class Restore {
public:
    explicit Restore(S& value) : value_(value), original_(value) {}
    ~Restore() { value_ = original_; }
    Restore(const Restore&) = delete;
    Restore& operator=(const Restore&) = delete;

private:
    S& value_;
    S original_;
};

struct Derivative {
    double value = 0;
    double step = 0;
    bool is_measured = false;  ///< false: the branch changed at every step tried
};

/// (loss above - loss below) / distance for one value.
/// @param loss  loss.evaluate(0) computes it above, loss.evaluate(1) below; loss.difference()
template <class S, class Loss>
Derivative central_difference(S& value, double step, Loss& loss, const GradientOptions& options) {
    const Restore<S> restore(value);
    const auto middle = static_cast<double>(value);
    const auto at = [&](double moved, int side) {
        value = static_cast<S>(moved);
        const auto rounded = static_cast<double>(value);
        loss.evaluate(side);
        return std::pair(rounded, !options.same_branch || options.same_branch());
    };
    for (int halvings = 0; halvings <= most_halvings; ++halvings, step /= 2) {
        const auto above = at(middle + step, 0);
        if (!above.second) continue;
        const auto below = at(middle - step, 1);
        if (!below.second) continue;
        return {loss.difference() / (above.first - below.first), step, true};
    }
    return {};
}

/// Measures every derivative, compares, and words the verdict.
/// @param at       at(i) is a reference to value i
/// @param claimed  claimed[i] is the derivative to be checked
/// @param name     name(i) says which value that is
template <class At, class Name, class Loss>
GradientComparison check_entries(At at, std::span<const double> claimed, Name name, Loss& loss,
                                 const GradientOptions& options) {
    const auto count = static_cast<Index>(claimed.size());
    std::vector<Derivative> measured(claimed.size());
    GradientComparison result;
    if (!(options.step > 0 && options.tolerance > 0 && options.tolerance < 1)) {
        result.message =
            "step must be above 0 and tolerance in (0, 1): a gradient of zeros has an "
            "error of 1";
        return result;
    }
    Index first_skipped = 0;
    double largest = 0;
    for (Index i = 0; i < count; ++i) {
        auto& value = at(i);
        const double step = options.step * std::max(1.0, std::abs(static_cast<double>(value)));
        const Derivative derivative = central_difference(value, step, loss, options);
        measured[static_cast<std::size_t>(i)] = derivative;
        if (derivative.is_measured) {
            ++result.checked;
            largest = std::max(largest, std::abs(derivative.value));
        } else if (result.skipped++ == 0) {
            first_skipped = i;
        }
    }

    const double scale = std::max(largest, options.scale);
    double worst = -1;
    Index worst_at = 0;
    for (Index i = 0; i < count && !std::isnan(worst); ++i) {
        Derivative& derivative = measured[static_cast<std::size_t>(i)];
        if (!derivative.is_measured) continue;
        const auto error_of = [&](double numeric) {
            const double error = std::abs(claimed[static_cast<std::size_t>(i)] - numeric);
            return error == 0 ? 0 : error / scale;
        };
        double error = error_of(derivative.value);
        double step = derivative.step;
        // A kink within the step spoils the difference. Closer to the value there is no kink, but a
        // wrong gradient is as wrong as before.
        for (int halvings = 0; halvings < most_halvings && error > options.tolerance; ++halvings) {
            step /= 2;
            const Derivative closer = central_difference(at(i), step, loss, options);
            if (!closer.is_measured || !(error_of(closer.value) < error)) continue;
            derivative = closer;
            error = error_of(closer.value);
        }
        if (!(error <= worst)) {
            worst = error;
            worst_at = i;
        }
    }

    if (result.checked == 0) {
        result.message =
            "nothing was checked: the branch changes next to all " + digits(count) + " entries";
        if (count == 0) result.message = "nothing was checked: there are no entries";
        return result;
    }
    const auto worst_entry = static_cast<std::size_t>(worst_at);
    result.message = "relative error " + digits(worst) + ", limit " + digits(options.tolerance) +
                     "; worst " + name(worst_at) + ": gradient says " +
                     digits(claimed[worst_entry]) + ", differences say " +
                     digits(measured[worst_entry].value) + "; largest " + digits(largest) + ", " +
                     digits(result.checked) + " of " + digits(count) + " entries checked";
    result.passed = worst <= options.tolerance;
    if (result.passed && !(scale > 0)) {
        result.passed = false;
        result.message = "mistrusted: every derivative is 0; if that is meant, set scale";
    }
    if (result.skipped > 0 && !options.allow_branch_changes) {
        result.passed = false;
        result.message = "the branch changes next to " + digits(result.skipped) +
                         " entries, the first is " + name(first_skipped) + "; " + result.message;
    }
    return result;
}

}  // namespace detail

/// Checks the gradient of a loss by central differences.
///
///     auto loss = [&] { return total_loss(layer(x)); };
///     EXPECT_TRUE(check_gradient(loss, x, dx, {.same_branch = [&] { return same(routing); }}));
///
/// Every value is moved up and down, the loss is evaluated, and the value is put back. An entry
/// that disagrees is measured again closer by, so that a kink (relu) near a value does no harm.
///
/// @param loss      () -> double; reads `values` in place, gives the same bits for the same values
/// @param values    what is moved: an Eigen object with writable elements, anything contiguous, or
///                  one number; float or double
/// @param gradient  d loss / d values, as many elements (and the same shape, if both have one)
/// @return          true if the largest error is at most options.tolerance times the largest
///                  derivative; a NaN anywhere fails
template <detail::LossFunction Loss, class Values, detail::Dense Gradient>
GradientComparison check_gradient(Loss&& loss, Values&& values, const Gradient& gradient,
                                  const GradientOptions& options = {}) {
    const auto before = detail::tensor(values);
    const auto claims = detail::tensor(gradient);
    using Given = std::remove_cvref_t<Values>;
    using S = typename decltype(before.values)::Scalar;
    if (const Comparison shapes = detail::compare_shapes(claims, before); !shapes.passed)
        return {{false, "gradient and values: " + shapes.message}};

    const auto at = [&](Index i) -> S& {
        if constexpr (detail::EigenDense<Given>)
            return values.coeffRef(i / values.cols(), i % values.cols());
        else if constexpr (detail::Contiguous<Given>)
            return std::data(values)[i];
        else
            return values;
    };
    const auto name = [&](Index i) {
        if (!before.has_shape) return "entry " + detail::digits(i);
        const Index columns = before.values.cols();
        return "entry (" + detail::digits(i / columns) + ", " + detail::digits(i % columns) + ")";
    };
    const Matrix<double> claimed = claims.values.template cast<double>();

    struct Sides {
        Loss& loss;
        double side[2] = {};
        void evaluate(int which) { side[which] = loss(); }
        double difference() const { return side[0] - side[1]; }
    } sides{loss};

    sides.evaluate(0);
    if (options.same_branch && !options.same_branch())
        return {{false, "same_branch() is false at the given values"}};
    sides.evaluate(1);
    const double given = sides.side[0];
    const auto is_given = [given](double again) {
        return std::memcmp(&given, &again, sizeof given) == 0;
    };
    if (!is_given(sides.side[1]))
        return {{false, "the loss is not repeatable: " + detail::digits(given) + ", then " +
                            detail::digits(sides.side[1])}};

    GradientComparison result = detail::check_entries(
        at, std::span(claimed.data(), static_cast<std::size_t>(claimed.size())), name, sides,
        detail::with_defaults<S>(options));
    sides.evaluate(0);
    if (!is_given(sides.side[0])) {
        result.passed = false;
        result.message = "the loss remembers earlier values: it was " + detail::digits(given) +
                         ", and now it is " + detail::digits(sides.side[0]) + "; " + result.message;
    }
    return result;
}

}  // namespace testing
}  // namespace moe::inline MOE_ABI

#endif  // MOE_TESTING_FINITE_DIFFERENCE_HPP
