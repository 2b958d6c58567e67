// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_LOSSES_LAWS_HPP
#define MOE_TESTS_LOSSES_LAWS_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/loss.hpp>
#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "support/allocations.hpp"

/// What every loss on the logits of a batch has in common, for tests of one.
namespace loss_laws {

using moe::Context;
using moe::Matrix;

/// One loss in both forms.
struct Forms {
    std::function<moe::Loss(moe::In<double>, const moe::Routing&, const Context&, double,
                            moe::Out<double>)>
        long_form;
    std::function<moe::Loss(moe::Workspace<double>&, double)> short_form;

    double operator()(const Matrix<double>& logits, const moe::Routing& plan,
                      const Context& context, double weight, Matrix<double>& dlogits) const {
        return long_form(logits, plan, context, weight, dlogits);
    }
};

inline void expect_nothing_of_no_tokens(const Forms& loss) {
    Matrix<double> empty(0, 8);
    EXPECT_EQ(loss(empty, example::routing(8, {}), {}, 1.0, empty), 0);
    const Matrix<double> dead = Matrix<double>::Constant(2, 8, example::minus_infinity);
    Matrix<double> dlogits = Matrix<double>::Constant(2, 8, 5);
    EXPECT_EQ(loss(dead, example::routing(8, {{}, {}}), {}, 1.0, dlogits), 0);
    EXPECT_EQ(dlogits, (Matrix<double>::Constant(2, 8, 5)));
}

inline void expect_no_padding_seen(const Forms& loss) {
    // rows 1 and 4: padding by the context, and by -inf
    const Matrix<double> plain = example::logits<double>();
    Matrix<double> logits(6, 8);
    logits << plain.row(0), Matrix<double>::Constant(1, 8, 7), plain.row(1), plain.row(2),
        Matrix<double>::Constant(1, 8, example::minus_infinity), plain.row(3);
    const auto plan = example::routing(8, {{5, 0}, {4, 3}, {3, 7}, {0, 6}, {}, {7, 6}});
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 0, 0};
    Context context;
    context.padding = padding;
    Matrix<double> dlogits = Matrix<double>::Zero(6, 8), expected = Matrix<double>::Zero(4, 8);
    const double value = loss(logits, plan, context, 0.3, dlogits);
    EXPECT_EQ(value, loss(plain, example::two_best(), {}, 0.3, expected));
    EXPECT_EQ(dlogits.row(0), expected.row(0));
    EXPECT_EQ(dlogits.row(2), expected.row(1));
    EXPECT_EQ(dlogits.row(3), expected.row(2));
    EXPECT_EQ(dlogits.row(5), expected.row(3));
    EXPECT_TRUE((dlogits.row(1).array() == 0).all());
    EXPECT_TRUE((dlogits.row(4).array() == 0).all());
}

inline void expect_weight_times_the_gradient(const Forms& loss) {
    const Matrix<double> logits = example::logits<double>();
    Matrix<double> once = Matrix<double>::Zero(4, 8), same = once, none = once;
    const double value = loss(logits, example::two_best(), {}, 1.0, once);
    EXPECT_GT(once.cwiseAbs().maxCoeff(), 1e-4);
    EXPECT_EQ(loss(logits, example::two_best(), {}, 0.5, same), value);
    EXPECT_EQ(loss(logits, example::two_best(), {}, 0.5, same), value);
    EXPECT_TRUE(moe::testing::compare(same, once, 1e-14, {.allow_zeros = true}));
    EXPECT_EQ(loss(logits, example::two_best(), {}, 0.0, none), value);
    EXPECT_TRUE((none.array() == 0).all());
}

/// The long form in a workspace, with nothing allocated the second time.
inline void expect_the_short_form(const Forms& loss) {
    moe::Workspace<double> ws;
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Context context;
    context.padding = padding;
    example::fill(ws, example::logits<double>(), example::two_best(), context);
    Matrix<double> expected = Matrix<double>::Zero(4, 8);
    const double value =
        loss(example::logits<double>(), example::two_best(), context, 0.3, expected);
    EXPECT_EQ(loss.short_form(ws, 0.3).value, value);
    EXPECT_EQ(Matrix<double>(ws.dlogits()), expected);
    double again = 0;
    EXPECT_EQ(allocations::in([&] { again = loss.short_form(ws, 0.3).value; }), 0);
    EXPECT_EQ(again, value);
}

inline void expect_wider_rows(const Forms& loss) {
    Matrix<double> wide = Matrix<double>::Constant(4, 11, 1e3);
    Matrix<double> dwide = Matrix<double>::Constant(4, 11, -2);
    Matrix<double> expected = Matrix<double>::Zero(4, 8);
    wide.leftCols(8) = example::logits<double>();
    dwide.leftCols(8).setZero();
    const double value = loss(example::logits<double>(), example::two_best(), {}, 1.0, expected);
    EXPECT_EQ(
        loss.long_form(wide.leftCols(8), example::two_best(), {}, 1.0, dwide.leftCols(8)).value,
        value);
    EXPECT_EQ(Matrix<double>(dwide.leftCols(8)), expected);
    EXPECT_EQ(Matrix<double>(dwide.rightCols(3)), (Matrix<double>::Constant(4, 3, -2)));
}

/// In the value and in the gradient of its row alone.
inline void expect_nan_in_its_row(const Forms& loss) {
    Matrix<double> logits = example::logits<double>(), dlogits = Matrix<double>::Zero(4, 8);
    logits(1, 3) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(loss(logits, example::two_best(), {}, 1.0, dlogits)));
    EXPECT_TRUE(dlogits.row(1).array().isNaN().all());
    EXPECT_TRUE(dlogits.row(0).allFinite());
}

/// Central differences, of plain logits and of some with masked experts.
inline void expect_exact_gradients(const Forms& loss) {
    const auto form = [&loss](auto&&... arguments) { return loss.long_form(arguments...); };
    EXPECT_TRUE(example::check(form, example::logits<double>(), example::two_best()));
    Matrix<double> masked = example::logits<double>();
    masked(1, 4) = masked(1, 2) = masked(3, 0) = example::minus_infinity;
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    loss(masked, example::two_best(), {}, 0.7, dlogits);
    EXPECT_EQ(dlogits(1, 4), 0);
    EXPECT_EQ(dlogits(3, 0), 0);
    std::vector<double> values, gradient;  // of what is not masked: -inf does not move
    const auto for_each = [&masked](auto f) {
        for (moe::Index i = 0; i < masked.size(); ++i)
            if (std::isfinite(masked.data()[i])) f(i);
    };
    for_each([&](moe::Index i) {
        values.push_back(masked.data()[i]);
        gradient.push_back(dlogits.data()[i]);
    });
    const auto value = [&] {
        std::size_t next = 0;
        for_each([&](moe::Index i) { masked.data()[i] = values[next++]; });
        return 0.7 * loss(masked, example::two_best(), {}, 0.0, dlogits);
    };
    EXPECT_TRUE(moe::testing::check_gradient(value, values, gradient));
}

/// Sixteenths, so that 4096 is added exactly: not a bit differs.
inline void expect_no_care_for_a_constant(const Forms& loss) {
    Matrix<double> logits = example::logits<double>();
    for (moe::Index i = 0; i < logits.size(); ++i)
        logits.data()[i] = std::round(16 * logits.data()[i]) / 16;
    Matrix<double> shifted = logits.array() + 4096;
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8), dshifted = dlogits;
    const double value = loss(logits, example::two_best(), {}, 1.0, dlogits);
    EXPECT_EQ(loss(shifted, example::two_best(), {}, 1.0, dshifted), value);
    EXPECT_EQ(dshifted, dlogits);
}

/// Of a loss whose tokens have nothing to do with each other.
inline void expect_all(const Forms& loss) {
    expect_nothing_of_no_tokens(loss);
    expect_no_padding_seen(loss);
    expect_weight_times_the_gradient(loss);
    expect_the_short_form(loss);
    expect_wider_rows(loss);
    expect_nan_in_its_row(loss);
    expect_exact_gradients(loss);
    expect_no_care_for_a_constant(loss);
}

}  // namespace loss_laws

#endif  // MOE_TESTS_LOSSES_LAWS_HPP
