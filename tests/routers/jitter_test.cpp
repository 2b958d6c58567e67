// SPDX-License-Identifier: MIT
#include <moe/routers/jitter.hpp>

#include <cmath>

#include <gtest/gtest.h>

#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::Jitter;
using moe::LinearRouter;

template <class S>
class JitteredRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(JitteredRouter, Scalars);

/// u as the paper draws it, for a part at the top of its workspace.
double factor(const Context& context, std::int64_t token, Index column, double epsilon) {
    const moe::CounterRandom random(context.seed, moe::detail::mix(context.stream), context.step);
    return 1 - epsilon + 2 * epsilon * random.uniform(token, column);
}

TYPED_TEST(JitteredRouter, ReadsTokensTimesNoiseAroundOne) {
    using S = TypeParam;
    const auto router = build<S>(Jitter{LinearRouter{.bias = true}, 0.3}, 7, 4);
    const auto x = random_matrix<S>(9, 7, 1), dlogits = random_matrix<S>(9, 4, 2);
    const Context context{.training = true, .step = 5, .seed = 6, .stream = 7, .first_token = 1000};
    Workspace<S> ws;
    const Result<S> got = run<S>(router, x, dlogits, context, ws);
    const Matrix<double> w = router.inner.weight.view().template cast<double>();
    Matrix<double> logits(9, 4), dx(9, 7), dw = Matrix<double>::Zero(4, 7);
    for (Index t = 0; t < 9; ++t)
        for (Index d = 0; d < 7; ++d) {
            const double u = factor(context, 1000 + t, d, 0.3);
            EXPECT_GT(u, 0.7);
            EXPECT_LT(u, 1.3);
            dx(t, d) = 0;
            for (Index l = 0; l < 4; ++l) {
                if (d == 0) logits(t, l) = 0;
                logits(t, l) += static_cast<double>(x(t, d)) * u * w(l, d);
                dx(t, d) += u * static_cast<double>(dlogits(t, l)) * w(l, d);
                dw(l, d) += static_cast<double>(dlogits(t, l)) * static_cast<double>(x(t, d)) * u;
            }
        }
    const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
    EXPECT_TRUE(moe::testing::compare(got.logits, logits, tolerance));
    EXPECT_TRUE(moe::testing::compare(got.dx, dx, tolerance));
    const std::vector<S> dw_got(got.gradient.begin(), got.gradient.begin() + 28);
    EXPECT_TRUE(moe::testing::compare(dw_got, std::span<const double>(dw.data(), 28), tolerance));
}

TYPED_TEST(JitteredRouter, IsTheInnerRouterToTheBitOutsideOfTrainingAndWithoutNoise) {
    using S = TypeParam;
    const auto x = random_matrix<S>(9, 7, 1), dlogits = random_matrix<S>(9, 4, 2);
    Workspace<S> ws;
    const auto expected = run<S>(build<S>(LinearRouter{}, 7, 4), x, dlogits, {}, ws);
    const auto expect_the_same = [&](double epsilon, bool training) {
        Workspace<S> other;
        const auto got = run<S>(build<S>(Jitter{LinearRouter{}, epsilon}, 7, 4), x, dlogits,
                                Context{.training = training}, other);
        EXPECT_TRUE(same_bits(got.logits, expected.logits));
        EXPECT_TRUE(same_bits(got.dx, expected.dx));
        EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
    };
    expect_the_same(0.3, false);
    expect_the_same(0, true);
    Workspace<S> noisy;
    EXPECT_FALSE(same_bits(forward<S>(build<S>(Jitter{}, 7, 4), x, 4, {.training = true}, noisy),
                           expected.logits));
}

TYPED_TEST(JitteredRouter, GivesTheSameBitsHoweverTheBatchIsSplit) {
    using S = TypeParam;
    const auto router = build<S>(Jitter{LinearRouter{}, 0.1}, 67, 19);
    expect_same_bits<S>(router, 400, 67, 19, {.training = true, .step = 3});
    const auto x = random_matrix<S>(20, 67, 1);
    Workspace<S> ws, other;
    const auto whole = forward<S>(router, x, 19, {.training = true}, ws);
    const auto rest =
        forward<S>(router, x.bottomRows(13), 19, {.training = true, .first_token = 7}, other);
    EXPECT_TRUE(same_bits(rest, Matrix<S>(whole.bottomRows(13))));
}

TEST(Jitter, IsAnotherEveryStepAndForEachOfTwoInOne) {
    const auto router = build<double>(Jitter{LinearRouter{}, 0.3}, 7, 4);
    const auto x = random_matrix<double>(9, 7, 1);
    Workspace<double> ws;
    const auto first = forward<double>(router, x, 4, {.training = true, .step = 1}, ws);
    EXPECT_FALSE(
        same_bits(forward<double>(router, x, 4, {.training = true, .step = 2}, ws), first));
    EXPECT_TRUE(same_bits(forward<double>(router, x, 4, {.training = true, .step = 1}, ws), first));
    // The inner one draws numbers of its own: were they the same, the factor would be u squared.
    const auto twice = build<double>(Jitter{Jitter{LinearRouter{}, 0.3}, 0.3}, 1, 1);
    const Matrix<double> one = Matrix<double>::Ones(1, 1);
    const double u = factor({}, 0, 0, 0.3), w = twice.inner.inner.weight(0, 0);
    const double got = forward<double>(twice, one, 1, {.training = true}, ws)(0, 0) / w;
    EXPECT_GT(std::abs(got - u * u), 1e-3);
    EXPECT_LT(std::abs(got / u - 1), 0.3);
}

TEST(Jitter, IsUniformAroundOne) {
    // Through a router of weight 1 from one column, a logit is the factor itself.
    auto router = build<double>(Jitter{LinearRouter{}, 0.25}, 1, 1);
    router.inner.weight(0, 0) = 1;
    Workspace<double> ws;
    const Index count = 20000;
    const auto u =
        forward<double>(router, Matrix<double>::Ones(count, 1), 1, {.training = true}, ws);
    EXPECT_NEAR(u.mean(), 1, 4e-3);
    EXPECT_NEAR((u.array() - 1).square().mean(), 0.25 * 0.25 / 3, 4e-4);
    EXPECT_GT(u.minCoeff(), 0.75);
    EXPECT_LT(u.minCoeff(), 0.751);
    EXPECT_LT(u.maxCoeff(), 1.25);
    EXPECT_GT(u.maxCoeff(), 1.249);
}

TEST(Jitter, HasExactGradients) {
    const Context context{.training = true, .step = 2};
    const auto x = random_matrix<double>(6, 5, 3);
    expect_exact_gradients(build<double>(Jitter{LinearRouter{.bias = true}, 0.3}, 5, 4), x, 4,
                           context);
    expect_exact_gradients(build<double>(Jitter{own(5, 4), 0.3}, 5, 4), x, 4, context);
    expect_exact_gradients(build<double>(Jitter{own(5, 4), 0.3}, 5, 4), x, 4, {});
    expect_exact_in_layer(Jitter{LinearRouter{}, 0.3}, context, 6);
}

TEST(Jitter, DoesNotReachTheExperts) {
    // One expert with weight 1: the choice and its weight do not depend on the logits.
    const auto layer_of = [](const auto& router) {
        return moe::make_layer<double>(moe::Config{.model_dim = 5}, router, moe::TopK{.k = 1},
                                       moe::Swiglu{.ffn_dim = 3});
    };
    const auto x = random_matrix<double>(6, 5, 3);
    Matrix<double> y(6, 5);
    Workspace<double> ws;
    const Matrix<double> copy = x;
    layer_of(Jitter{LinearRouter{}, 0.5}).forward(x, y, ws, Context{.training = true});
    EXPECT_TRUE(same_bits(y, layer_of(LinearRouter{})(x)));
    EXPECT_TRUE(same_bits(x, copy));
}

TEST(Jitter, KeepsWhatPaddingHoldsOutOfGradients) {
    auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5}, Jitter{LinearRouter{}, 0.3},
                                         moe::TopK{.k = 2}, moe::Swiglu{.count = 3, .ffn_dim = 3});
    Matrix<double> x = random_matrix<double>(4, 5, 3), y(4, 5), dx(4, 5);
    x.row(1).setConstant(not_a_number);
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    const Context context{.training = true, .padding = padding};
    Workspace<double> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws, context);
    layer.backward(x, random_matrix<double>(4, 5, 4), dx, grad, ws, context);
    EXPECT_TRUE(dx.allFinite());
    for (const double value : seams::values_of<double>(grad)) EXPECT_TRUE(std::isfinite(value));
}

TEST(Jitter, AllocatesWhatItSaysAndNothingTwice) {
    expect_no_allocations<float>(build<float>(Jitter{}, 33, 9), 300, 33, 9, {.training = true});
}

TEST(Jitter, WorksOnNoTokens) {
    Workspace<double> ws;
    const auto got = run<double>(build<double>(Jitter{}, 5, 4), Matrix<double>(0, 5),
                                 Matrix<double>(0, 4), {.training = true}, ws);
    EXPECT_EQ(got.logits.rows(), 0);
    for (const double value : got.gradient) EXPECT_EQ(value, 0);
}

TEST(Jitter, RefusesAnEpsilonThatIsNone) {
    for (const double epsilon : {-0.1, 1.0, not_a_number})
        expect_message<std::invalid_argument>(
            [&] { build<double>(Jitter<>{.epsilon = epsilon}, 5, 4); },
            {"moe::Jitter: epsilon is ", moe::detail::text(epsilon).c_str(),
             "it must be in [0, 1); Switch Transformers use 0.01"});
}

}  // namespace
