// SPDX-License-Identifier: MIT
#include <support/dense_layer.hpp>

#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

namespace {

using dense::Activation;
using dense::Expert;
using dense::Index;
using dense::Matrix;
using moe::testing::check_gradient;
using moe::testing::compare;

constexpr Index tokens = 3, width = 5, ffn = 4;

Matrix random(Index rows, Index columns, std::uint64_t seed) {
    return moe::testing::random_matrix<double>(rows, columns, seed);
}

Expert random_swiglu(Activation activation, Index output = width) {
    return dense::swiglu(random(ffn, width, 11), random(ffn, width, 12), random(output, ffn, 13),
                         activation);
}

Expert random_mlp(Activation activation, Index output = width) {
    return dense::mlp(activation, random(ffn, width, 14), random(output, ffn, 15),
                      random(1, ffn, 16), random(1, output, 17));
}

Expert random_constant() { return dense::constant(random(2, width, 18), random(1, width, 19)); }

/// Differences at x, the weights, the input weights and every matrix of every expert.
void check_all(std::vector<Expert> experts, Index output = width) {
    const auto count = static_cast<Index>(experts.size());
    Matrix x = random(tokens, width, 1);
    Matrix weights = random(tokens, count, 2);
    Matrix input_weights = random(tokens, count, 3);
    const Matrix dy = random(tokens, output, 4);
    auto loss = [&] {
        const Matrix y = dense::forward(experts, x, weights, output, input_weights);
        double sum = 0;
        for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * dy.data()[i];
        return sum;
    };
    dense::Gradients gradients = dense::backward(experts, x, weights, dy, input_weights);
    EXPECT_TRUE(check_gradient(loss, x, gradients.dx));
    EXPECT_TRUE(check_gradient(loss, weights, gradients.dweights));
    EXPECT_TRUE(check_gradient(loss, input_weights, gradients.dinput_weights));
    for (std::size_t e = 0; e < experts.size(); ++e) {
        std::vector<Matrix*> claimed;
        gradients.experts[e].visit([&](const char*, Matrix& m) { claimed.push_back(&m); });
        std::size_t i = 0;
        experts[e].visit([&](const char* name, Matrix& matrix) {
            const Matrix& gradient = *claimed[i++];
            ASSERT_EQ(gradient.size(), matrix.size());
            if (matrix.size() == 0) return;
            EXPECT_TRUE(check_gradient(loss, matrix, gradient)) << "expert " << e << " " << name;
        });
    }
}

class DenseLayerActivation : public testing::TestWithParam<Activation> {};

TEST_P(DenseLayerActivation, GradientsAgreeWithDifferences) {
    check_all({random_swiglu(GetParam())});
    check_all({random_mlp(GetParam())});
}

TEST_P(DenseLayerActivation, SlopeIsTheDerivative) {
    for (const double at : {-9.0, -2.0, -0.7, -1e-3, 1e-3, 0.3, 1.0, 2.5, 9.0}) {
        double a = at;
        EXPECT_TRUE(check_gradient([&] { return dense::activate(GetParam(), a); }, a,
                                   dense::activation_slope(GetParam(), at), {.scale = 1}))
            << at;
    }
}

INSTANTIATE_TEST_SUITE_P(All, DenseLayerActivation,
                         testing::Values(Activation::relu, Activation::relu_squared,
                                         Activation::gelu, Activation::gelu_tanh, Activation::silu,
                                         Activation::quick_gelu));

TEST(DenseLayer, GradientsOfUnlikeExpertsAgreeWithDifferences) {
    check_all({random_swiglu(Activation::silu), dense::zero(), dense::copy(), random_constant(),
               random_mlp(Activation::gelu), random_swiglu(Activation::gelu_tanh)});
}

TEST(DenseLayer, GradientsOfAnotherOutputWidthAgreeWithDifferences) {
    check_all({random_swiglu(Activation::silu, 2), random_mlp(Activation::gelu, 2)}, 2);
}

TEST(DenseLayer, ActivationsHaveTheirPublishedValues) {
    EXPECT_EQ(dense::activate(Activation::relu, -2), 0);
    EXPECT_EQ(dense::activate(Activation::relu, 3), 3);
    EXPECT_EQ(dense::activate(Activation::relu_squared, -2), 0);
    EXPECT_EQ(dense::activate(Activation::relu_squared, 3), 9);
    EXPECT_NEAR(dense::activate(Activation::gelu, 1), 0.8413447460685429, 1e-15);
    EXPECT_NEAR(dense::activate(Activation::gelu, -2), -0.04550026389635842, 1e-15);
    EXPECT_NEAR(dense::activate(Activation::gelu_tanh, 1), 0.8411919906082768, 1e-15);
    EXPECT_NEAR(dense::activate(Activation::silu, 1), 0.7310585786300049, 1e-15);
    EXPECT_NEAR(dense::activate(Activation::silu, -1), -0.2689414213699951, 1e-15);
    EXPECT_NEAR(dense::activate(Activation::quick_gelu, 2), 1.9356586231442083, 1e-15);
    EXPECT_EQ(dense::activation_slope(Activation::relu, 0), 0);
}

TEST(DenseLayer, SwigluOfOneTokenIsWhatOneWritesByHand) {
    Matrix gate(1, 2), up(1, 2), down(2, 1), x(1, 2);
    gate << 1, 2;
    up << 3, -1;
    down << 0.5, -2;
    x << 1, 0.5;  // gate x = 2, up x = 2.5
    const double h = 2 / (1 + std::exp(-2.0)) * 2.5;
    const Matrix y = dense::forward({dense::swiglu(gate, up, down)}, x, Matrix::Ones(1, 1), 2);
    EXPECT_NEAR(y(0, 0), 0.5 * h, 1e-14);
    EXPECT_NEAR(y(0, 1), -2 * h, 1e-14);
}

TEST(DenseLayer, MlpAddsItsBiasesAndWeighsThemLikeTheRest) {
    Matrix up(1, 1), down(1, 1), up_bias(1, 1), down_bias(1, 1), x(1, 1);
    up << 2, down << 3, up_bias << 1, down_bias << -4, x << 5;
    const Expert expert = dense::mlp(Activation::relu, up, down, up_bias, down_bias);
    const Matrix y = dense::forward({expert}, x, Matrix::Constant(1, 1, 0.5), 1);
    EXPECT_EQ(y(0, 0), 0.5 * (3 * (2 * 5 + 1) - 4));
}

TEST(DenseLayer, ConstantBlendsTheTokenWithItsValue) {
    Matrix mix(2, 1), value(1, 1), x(1, 1);
    mix << 1, -1;
    value << 10;
    x << 2;  // logits 2, -2
    const double a = 1 / (1 + std::exp(-4.0));
    const Matrix y = dense::forward({dense::constant(mix, value)}, x, Matrix::Ones(1, 1), 1);
    EXPECT_NEAR(y(0, 0), a * 2 + (1 - a) * 10, 1e-14);
}

TEST(DenseLayer, CopyGivesBackTheTokenAndZeroNothing) {
    const Matrix x = random(tokens, width, 1);
    Matrix weights(tokens, 2);
    weights.col(0).setConstant(0.75);
    weights.col(1).setConstant(0.25);
    const Matrix y = dense::forward({dense::copy(), dense::zero()}, x, weights, width);
    EXPECT_TRUE(compare(y, 0.75 * x, 0));
}

TEST(DenseLayer, InputWeightsScaleWhatTheExpertReads) {
    const Matrix x = random(tokens, width, 1);
    const std::vector<Expert> experts{random_swiglu(Activation::silu)};
    const Matrix ones = Matrix::Ones(tokens, 1);
    EXPECT_TRUE(compare(dense::forward(experts, x, ones, width, 2 * ones),
                        dense::forward(experts, 2 * x, ones, width), 0));
}

TEST(DenseLayer, NoTokensGiveNothing) {
    const std::vector<Expert> experts{random_swiglu(Activation::silu)};
    const Matrix none(0, width);
    EXPECT_EQ(dense::forward(experts, none, Matrix(0, 1), width).rows(), 0);
    const dense::Gradients gradients = dense::backward(experts, none, Matrix(0, 1), none);
    EXPECT_EQ(gradients.dx.rows(), 0);
    EXPECT_TRUE(gradients.experts[0].up.isZero());
}

TEST(DenseLayer, WeightsOfARoutingAreThoseOfItsKeptAssignments) {
    moe::Routing routing;
    routing.reset(2, 3);
    routing.add(0, 2, 0.5, 2);
    routing.add(0, 1, 0.25);
    routing.add(1, 0, 0.75);
    routing.group();
    routing.set_dropped(1, moe::Dropped::capacity);
    routing.group();
    Matrix weights(2, 3), inputs(2, 3);
    weights << 0, 0, 0.5, 0.75, 0, 0;
    inputs << 3, 3, 6, 3, 3, 3;
    EXPECT_EQ(dense::weights_of(routing), weights);
    EXPECT_EQ(dense::input_weights_of(routing, 3), inputs);
}

TEST(DenseLayer, ShapesThatDoNotFitAreRejected) {
    const Matrix x = random(tokens, width, 1);
    const std::vector<Expert> experts{random_swiglu(Activation::silu)};
    EXPECT_THROW(dense::forward(experts, x, Matrix::Ones(tokens, 2), width), std::invalid_argument);
    EXPECT_THROW(dense::forward(experts, x, Matrix::Ones(tokens, 1), 4), std::invalid_argument);
    EXPECT_THROW(dense::forward(experts, random(tokens, 4, 1), Matrix::Ones(tokens, 1), width),
                 std::invalid_argument);
}

}  // namespace
