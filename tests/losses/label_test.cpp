// SPDX-License-Identifier: MIT
#include <moe/losses/label.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace label_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::Routing;
using moe::Workspace;

const std::vector<std::int32_t> some{5, -1, 3, 7};

Routing nowhere(Index tokens, Index experts) {
    return example::routing(experts, std::vector<std::vector<Index>>(std::size_t(tokens)));
}

template <class S>
class LabelLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LabelLoss, Scalars);

TYPED_TEST(LabelLoss, IsTheMeanCrossEntropyOfLabelledTokens) {
    // probabilities .4348488, .0023083 and .1728120
    using S = TypeParam;
    Matrix<S> dlogits = Matrix<S>::Zero(4, 8);
    const Loss loss =
        moe::label_loss(example::logits<S>(), example::two_best(), {}, some, 3.0, dlogits);
    EXPECT_STREQ(loss.name, "label");
    EXPECT_NEAR(loss.value, -(std::log(.4348488) + std::log(.0023083) + std::log(.1728120)) / 3,
                1e-5);
    EXPECT_NEAR(dlogits(0, 5), .4348488 - 1, 1e-6);  // 3 / 3
    EXPECT_NEAR(dlogits(0, 0), .1953901, 1e-6);
    EXPECT_EQ(dlogits.row(1), (Matrix<S>::Zero(1, 8)));
    EXPECT_NEAR(dlogits(2, 3), .0023083 - 1, 1e-6);
    EXPECT_NEAR(dlogits(3, 6), .1563668, 1e-6);
}

TYPED_TEST(LabelLoss, AgreesWithItsFormulaInDouble) {
    using S = TypeParam;
    constexpr Index tokens = 23, experts = 19;
    const Matrix<S> logits = moe::testing::random_matrix<S>(tokens, experts, 3, 8);
    std::vector<std::int32_t> labels;
    for (Index t = 0; t < tokens; ++t)
        labels.push_back(static_cast<std::int32_t>((t * 7) % (experts + 2)) - 2);
    const Matrix<S> before = moe::testing::random_matrix<S>(tokens, experts, 4);
    Matrix<S> dlogits = before;
    const double value =
        moe::label_loss(logits, nowhere(tokens, experts), {}, labels, 0.6, dlogits);
    double sum = 0, count = 0;
    for (const std::int32_t label : labels) count += label >= 0 ? 1 : 0;
    Matrix<double> expected = before.template cast<double>();
    for (Index t = 0; t < tokens; ++t) {
        const std::int32_t label = labels[static_cast<std::size_t>(t)];
        if (label < 0) continue;
        double total = 0;
        for (Index l = 0; l < experts; ++l) total += std::exp(double(logits(t, l)));
        sum -= std::log(std::exp(double(logits(t, label))) / total);
        for (Index l = 0; l < experts; ++l)
            expected(t, l) += 0.6 / count * (std::exp(double(logits(t, l))) / total - (l == label));
    }
    const double tolerance = std::is_same_v<S, float> ? 1e-6 : 1e-14;
    EXPECT_NEAR(value, sum / count, tolerance * sum / count);
    EXPECT_TRUE(moe::testing::compare(dlogits, expected, tolerance));
}

TEST(LabelLoss, GradientAgreesWithDifferences) {
    const auto loss_of = [](std::vector<std::int32_t> labels) {
        return [labels](auto&& z, auto&& plan, auto&& context, double weight, auto&& dz) {
            return moe::label_loss(z, plan, context, labels, weight, dz);
        };
    };
    EXPECT_TRUE(example::check(loss_of(some), example::logits<double>(), example::two_best()));
    const auto logits = moe::testing::random_matrix<double>(5, 33, 4, 2);
    EXPECT_TRUE(example::check(loss_of({0, 32, 7, -100, 7}), logits, nowhere(5, 33)));
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Context context;
    context.padding = padding;
    EXPECT_TRUE(
        example::check(loss_of(some), example::logits<double>(), example::two_best(), context));
}

TEST(LabelLoss, GradientsThroughALayerAreExact) {
    auto layer = moe::make_layer<double>(moe::Config{.model_dim = 4}, moe::LinearRouter{},
                                         moe::TopK{.k = 2}, moe::Swiglu{.count = 5, .ffn_dim = 3});
    Matrix<double> x = moe::testing::random_matrix<double>(4, 4, 1);
    const auto dy = moe::testing::random_matrix<double>(4, 4, 2);
    const std::vector<std::int32_t> labels{4, -1, 0, 3};
    Matrix<double> y(4, 4), dx(4, 4);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws);
        return seams::weighted_sum(y, dy) + 0.4 * moe::label_loss(ws, labels, 0);
    };
    loss();
    moe::label_loss(ws, labels, 0.4);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws);
    const auto options = seams::options(seams::SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
}

TEST(LabelLoss, LabelsAreExpertsWhereAGateWantsOtherLogitsBesides) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 4}, moe::LinearRouter{},
                                               moe::Noisy{moe::TopK{.k = 2}},
                                               moe::Swiglu{.count = 5, .ffn_dim = 3});
    Workspace<double> ws;
    layer.route(moe::testing::random_matrix<double>(3, 4, 1), ws);
    const std::vector<std::int32_t> labels{4, -1, 0}, noise{5, -1, 0};
    const Matrix<double> z = ws.logits().leftCols(5);
    Matrix<double> dz = Matrix<double>::Zero(3, 5);
    EXPECT_EQ(moe::label_loss(ws, labels, 0.4).value,
              moe::label_loss(z, ws.routing(), {}, labels, 0.4, dz).value);
    EXPECT_EQ(Matrix<double>(ws.dlogits().leftCols(5)), dz);
    EXPECT_TRUE((ws.dlogits().rightCols(5).array() == 0).all());
    EXPECT_THROW(moe::label_loss(ws, noise, 0.4), std::invalid_argument);
}

TEST(LabelLoss, FollowedDownhillTeachesTheRouter) {
    auto layer = moe::make_layer<double>(moe::Config{.model_dim = 6}, moe::LinearRouter{},
                                         moe::TopK{.k = 1}, moe::Swiglu{.count = 3, .ffn_dim = 3});
    const auto x = moe::testing::random_matrix<double>(6, 6, 1);
    const std::vector<std::int32_t> labels{2, 0, 1, 1, 2, 0};
    Matrix<double> dx(6, 6), y(6, 6);
    const Matrix<double> none = Matrix<double>::Zero(6, 6);
    Workspace<double> ws;
    for (int step = 0; step < 300; ++step) {
        layer.forward(x, y, ws);
        moe::label_loss(ws, labels, 5.0);
        auto grad = moe::zeros_like(layer);
        layer.backward(x, none, dx, grad, ws);
        layer.router().weight.view() -= grad.router().weight.view();
    }
    layer.forward(x, y, ws);
    for (Index t = 0; t < 6; ++t)
        EXPECT_EQ(ws.routing().of(t)[0].expert, labels[static_cast<std::size_t>(t)]);
}

TYPED_TEST(LabelLoss, LiesBetweenZeroAndTheLogarithmOfTheExpertsForABestLabel) {
    using S = TypeParam;
    Matrix<S> logits = Matrix<S>::Constant(2, 5, S(3)), dlogits = Matrix<S>::Zero(2, 5);
    const std::vector<std::int32_t> labels{2, 2};
    EXPECT_NEAR(moe::label_loss(logits, nowhere(2, 5), {}, labels, 1.0, dlogits), std::log(5.0),
                1e-6);
    logits.col(2).setConstant(S(5000));  // the others underflow to probability 0
    dlogits.setZero();
    EXPECT_EQ(moe::label_loss(logits, nowhere(2, 5), {}, labels, 1.0, dlogits).value, 0);
    EXPECT_EQ(dlogits, (Matrix<S>::Zero(2, 5)));
    const std::vector<std::int32_t> others{0, 4};
    EXPECT_EQ(moe::label_loss(logits, nowhere(2, 5), {}, others, 1.0, dlogits).value, 4997);
    EXPECT_EQ(dlogits(0, 0), S(-0.5));
    EXPECT_EQ(dlogits(1, 2), S(0.5));
}

TYPED_TEST(LabelLoss, IsZeroWhereThereIsOneExpert) {
    using S = TypeParam;
    const Matrix<S> logits = moe::testing::random_matrix<S>(3, 1, 1);
    Matrix<S> dlogits = Matrix<S>::Zero(3, 1);
    EXPECT_EQ(moe::label_loss(logits, nowhere(3, 1), {}, std::vector<std::int32_t>{0, 0, -1}, 1.0,
                              dlogits)
                  .value,
              0);
    EXPECT_EQ(dlogits, (Matrix<S>::Zero(3, 1)));
}

TYPED_TEST(LabelLoss, DoesNotCareForAConstantAddedToTheLogits) {
    // Sixteenths up to 4: exact in float with 4096 added.
    using S = TypeParam;
    Matrix<S> logits(3, 5);
    for (Index i = 0; i < logits.size(); ++i)
        logits.data()[i] =
            S(std::round(64 * moe::testing::random_value(7, static_cast<std::uint64_t>(i)))) / 16;
    logits(1, 2) = -std::numeric_limits<S>::infinity();
    const std::vector<std::int32_t> labels{1, 0, 4};
    Matrix<S> dlogits = Matrix<S>::Zero(3, 5);
    const double value = moe::label_loss(logits, nowhere(3, 5), {}, labels, 1.0, dlogits);
    EXPECT_GT(value, 0.1);
    EXPECT_EQ(dlogits(1, 2), 0);
    for (const S shift : {S(4096), S(-4096), S(256)}) {
        const Matrix<S> shifted = logits.array() + shift;
        Matrix<S> dshifted = Matrix<S>::Zero(3, 5);
        EXPECT_EQ(moe::label_loss(shifted, nowhere(3, 5), {}, labels, 1.0, dshifted).value, value);
        EXPECT_EQ(dshifted, dlogits);
    }
}

TEST(LabelLoss, DoesNotSeePaddingOrRowsOfMinusInfinity) {
    const Matrix<double> plain = example::logits<double>();
    Matrix<double> logits(6, 8);
    logits << plain.row(0), Matrix<double>::Constant(1, 8, 7), plain.row(1), plain.row(2),
        Matrix<double>::Constant(1, 8, example::minus_infinity), plain.row(3);
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 0, 0};
    Context context;
    context.padding = padding;
    // labels of what does not count need not be ones
    const std::vector<std::int32_t> labels{5, 99, -1, 3, 2, 7};
    Matrix<double> dlogits = Matrix<double>::Zero(6, 8), expected = Matrix<double>::Zero(4, 8);
    const double value = moe::label_loss(logits, nowhere(6, 8), context, labels, 0.3, dlogits);
    EXPECT_EQ(value, moe::label_loss(plain, nowhere(4, 8), {}, some, 0.3, expected).value);
    EXPECT_EQ(dlogits.row(0), expected.row(0));
    EXPECT_EQ(dlogits.row(3), expected.row(2));
    EXPECT_EQ(dlogits.row(5), expected.row(3));
    EXPECT_TRUE((dlogits.row(1).array() == 0).all());
    EXPECT_TRUE((dlogits.row(4).array() == 0).all());
}

TEST(LabelLoss, OfNoLabelsIsZeroWithoutGradient) {
    Matrix<double> empty(0, 8);
    EXPECT_EQ(moe::label_loss(empty, nowhere(0, 8), {}, {}, 1.0, empty).value, 0);
    Matrix<double> dlogits = Matrix<double>::Constant(4, 8, 5);
    const std::vector<std::int32_t> none{-1, -1, -1, -100};
    EXPECT_EQ(
        moe::label_loss(example::logits<double>(), example::two_best(), {}, none, 1.0, dlogits)
            .value,
        0);
    EXPECT_EQ(dlogits, (Matrix<double>::Constant(4, 8, 5)));
}

TEST(LabelLoss, OnAWorkspaceIsTheLongFormAndAllocatesNothing) {
    Workspace<double> ws;
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Context context;
    context.padding = padding;
    example::fill(ws, example::logits<double>(), example::two_best(), context);
    Matrix<double> expected = Matrix<double>::Zero(4, 8), untouched = expected;
    const double value = moe::label_loss(example::logits<double>(), example::two_best(), context,
                                         some, 0.3, expected);
    EXPECT_EQ(moe::label_loss(ws, some, 0.3).value, value);
    EXPECT_EQ(Matrix<double>(ws.dlogits()), expected);
    EXPECT_EQ(allocations::in([&] { moe::label_loss(ws, some, 0.3); }), 0);
    EXPECT_EQ(moe::label_loss(example::logits<double>(), example::two_best(), context, some, 0.0,
                              untouched)
                  .value,
              value);
    EXPECT_TRUE((untouched.array() == 0).all());
}

TEST(LabelLoss, ShowsNaN) {
    Matrix<double> logits = example::logits<double>(), dlogits = Matrix<double>::Zero(4, 8);
    logits(2, 6) = std::numeric_limits<double>::quiet_NaN();
    logits(1, 0) = std::numeric_limits<double>::quiet_NaN();  // has no label
    EXPECT_TRUE(
        std::isnan(moe::label_loss(logits, example::two_best(), {}, some, 1.0, dlogits).value));
    EXPECT_TRUE(dlogits.row(2).array().isNaN().all());
    EXPECT_TRUE(dlogits.row(0).allFinite());
    EXPECT_TRUE((dlogits.row(1).array() == 0).all());
}

TEST(LabelLoss, RefusesLabelsThatLeadNowhere) {
    Matrix<double> logits = example::logits<double>();
    logits(3, 7) = example::minus_infinity;
    const Matrix<double> before = moe::testing::random_matrix<double>(4, 8, 1);
    Matrix<double> dlogits = before;
    const auto message = [&](const std::vector<std::int32_t>& labels) {
        return support::message(
            [&] { moe::label_loss(logits, example::two_best(), {}, labels, 1.0, dlogits); });
    };
    EXPECT_EQ(
        message({1, 2, 3}),
        "moe::label_loss: labels has 3 entries, logits has 4 rows; give -1 to a token without "
        "a label");
    EXPECT_EQ(message({1, 8, 0, 0}),
              "moe::label_loss: labels[1] is 8, it must be below the 8 logits of a token, or "
              "negative for none");
    EXPECT_EQ(message({1, 1, 0, 7}),
              "moe::label_loss: labels[3] is 7, but that expert is masked for the token (its logit "
              "is -inf), so the loss is infinite; allow the expert, or give the token -1");
    EXPECT_EQ(dlogits, before);
}

}  // namespace
}  // namespace label_test
