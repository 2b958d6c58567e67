// SPDX-License-Identifier: MIT
#include <moe/testing/gradient_check.hpp>

#include <cmath>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

namespace gradient_check_test {
namespace {

using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::testing::check_gradients;
using moe::testing::GradientComparison;

bool says(const GradientComparison& comparison, const std::string& text) {
    return comparison.message.find(text) != std::string::npos;
}

struct ScaleShift {  // y = scale * x + shift, feature by feature; float only
    Eigen::RowVectorXf scale, shift;

    void forward(In<float> x, Out<float> y) const {
        y = (x * scale.asDiagonal()).rowwise() + shift;
    }
    void backward(In<float> x, In<float> dy, Out<float> dx, ScaleShift& grad) const {
        dx = dy * scale.asDiagonal();
        grad.scale += x.cwiseProduct(dy).colwise().sum();
        grad.shift += dy.colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("scale", scale), visit("shift", shift); }
};

/// y = tanh(x weight^T), with one fault, or none.
enum class Fault {
    none,
    wrong_sign,
    missing_factor,
    overwrites_gradient,
    adds_to_dx,
    one_wrong_entry,
    nan,
    transposed_gradient,
    ignores_parameter,
    partly_unwritten,
    adds_to_y,
    needs_rows,
    dense_rows_only,
};

template <class S, Fault fault = Fault::none>
struct Tanh {
    Matrix<S> weight;  // [O, D]
    mutable int calls = 0;

    void forward(In<S> x, Out<S> y) const {
        Matrix<S> result = (x * weight.transpose()).array().tanh();
        if (fault == Fault::adds_to_y)
            y += result;
        else if (fault == Fault::partly_unwritten)
            y.leftCols(y.cols() - 1) = result.leftCols(y.cols() - 1);
        else if (fault == Fault::dense_rows_only)
            std::copy_n(result.data(), result.size(), y.data());
        else
            y = result;
    }
    void backward(In<S> x, In<S> dy, Out<S> dx, Tanh& grad) const {
        Matrix<S> y = (x * weight.transpose()).array().tanh();
        Matrix<S> dz = dy.array() * (1 - y.array().square());  // [n, O]
        if (fault == Fault::missing_factor) dz /= 2;
        if (fault == Fault::wrong_sign) dz = -dz;
        if (fault == Fault::adds_to_dx)
            dx += dz * weight;
        else
            dx = dz * weight;
        Matrix<S> dweight = dz.transpose() * x;
        if (fault == Fault::one_wrong_entry)
            dweight(20, 30) += S(0.05) * dweight.cwiseAbs().maxCoeff();
        if (fault == Fault::nan) dweight(1, 0) = std::numeric_limits<S>::quiet_NaN();
        if (fault == Fault::transposed_gradient) dweight.transposeInPlace();
        if (fault == Fault::ignores_parameter) return;
        if (fault == Fault::needs_rows && x.rows() == 0) dweight.setOnes();
        if (fault == Fault::overwrites_gradient)
            grad.weight = dweight;
        else
            grad.weight += dweight;
    }
    void visit_parameters(auto&& visit) { visit("weight", weight); }
};

/// The check of a module of 32 to 32 columns, 1024 parameters.
template <class S, Fault fault>
GradientComparison check() {
    const Tanh<S, fault> module{moe::testing::random_matrix<S>(32, 32, 9, 0.25)};
    return check_gradients(module, {.rows = 5, .columns = 32});
}

template <class S>
class ModuleFaults : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ModuleFaults, Scalars);

TYPED_TEST(ModuleFaults, ARightModulePasses) {
    const GradientComparison result = check<TypeParam, Fault::none>();
    EXPECT_TRUE(result);
    EXPECT_EQ(result.checked, 5 * 32 + 32 * 32);
}

TYPED_TEST(ModuleFaults, AWrongSignFails) { EXPECT_FALSE((check<TypeParam, Fault::wrong_sign>())); }

TYPED_TEST(ModuleFaults, AMissingFactorTwoFails) {
    EXPECT_FALSE((check<TypeParam, Fault::missing_factor>()));
}

TYPED_TEST(ModuleFaults, AGradientThatIsOverwrittenFails) {
    const auto result = check<TypeParam, Fault::overwrites_gradient>();
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "does not add to the gradient of weight")) << result;
}

TYPED_TEST(ModuleFaults, AnInputGradientThatIsAddedFails) {
    const auto result = check<TypeParam, Fault::adds_to_dx>();
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "dx")) << result;
}

TYPED_TEST(ModuleFaults, OneWrongEntryInAThousandFailsAndIsNamed) {
    const auto result = check<TypeParam, Fault::one_wrong_entry>();
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "worst weight(20, 30)")) << result;
}

TYPED_TEST(ModuleFaults, NanFails) { EXPECT_FALSE((check<TypeParam, Fault::nan>())); }

TYPED_TEST(ModuleFaults, ATransposedGradientFails) {
    EXPECT_FALSE((check<TypeParam, Fault::transposed_gradient>()));
}

TYPED_TEST(ModuleFaults, AForgottenParameterFails) {
    EXPECT_FALSE((check<TypeParam, Fault::ignores_parameter>()));
}

TYPED_TEST(ModuleFaults, OutputsThatAreNotWrittenFail) {
    EXPECT_FALSE((check<TypeParam, Fault::partly_unwritten>()));
    EXPECT_FALSE((check<TypeParam, Fault::adds_to_y>()));
}

TYPED_TEST(ModuleFaults, AGradientFromNoRowsFails) {
    const auto result = check<TypeParam, Fault::needs_rows>();
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "without rows")) << result;
}

TYPED_TEST(ModuleFaults, IgnoringTheRowStrideFails) {
    EXPECT_FALSE((check<TypeParam, Fault::dense_rows_only>()));
}

TEST(GradientCheck, AFloatOnlyExpertOfTheUserPasses) {
    const ScaleShift identity{Eigen::RowVectorXf::Ones(64), Eigen::RowVectorXf::Zero(64)};
    EXPECT_TRUE(check_gradients(identity, {.rows = 5, .columns = 64}));
}

TEST(GradientCheck, OutputsMayHaveTheirOwnWidth) {
    const Tanh<double> module{moe::testing::random_matrix<double>(3, 7, 9)};
    EXPECT_TRUE(check_gradients(module, {.rows = 4, .columns = 7, .output_columns = 3}));
    EXPECT_TRUE(check_gradients<double>(module, {.rows = 1, .columns = 7, .output_columns = 3}));
}

TEST(GradientCheck, TheModuleIsLeftAlone) {
    const Tanh<double> module{moe::testing::random_matrix<double>(3, 3, 9)};
    const Matrix<double> before = module.weight;
    EXPECT_TRUE(check_gradients(module, {.rows = 2, .columns = 3}));
    EXPECT_EQ(module.weight, before);
}

TEST(GradientCheck, WidthsMustBeGiven) {
    const Tanh<double> module{moe::testing::random_matrix<double>(3, 3, 9)};
    EXPECT_FALSE(check_gradients(module, {.rows = 2}));
    EXPECT_FALSE(check_gradients(module, {.rows = 0, .columns = 3}));
}

struct Forgetful {  // no parameters, y = x^2, but every call moves it
    mutable double drift = 0;
    void forward(In<double> x, Out<double> y) const { y = x.array().square() + (drift += 1e-3); }
    void backward(In<double> x, In<double> dy, Out<double> dx, Forgetful&) const {
        dx = 2 * x.array() * dy.array();
    }
};

TEST(GradientCheck, ForwardThatIsNotRepeatableFails) {
    EXPECT_TRUE(says(check_gradients(Forgetful{}, {.columns = 4}), "not repeatable"));
    EXPECT_FALSE(check_gradients(Forgetful{}, {.columns = 4}));
}

struct Clamps {  // y = factor x, after forward has clamped the factors for good
    mutable Eigen::RowVectorXd factor;
    void forward(In<double> x, Out<double> y) const {
        factor = factor.cwiseMin(0.5);
        y = x * factor.asDiagonal();
    }
    void backward(In<double> x, In<double> dy, Out<double> dx, Clamps& grad) const {
        dx = dy * factor.asDiagonal();
        grad.factor += x.cwiseProduct(dy).colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("factor", factor); }
};

TEST(GradientCheck, ForwardThatChangesAParameterFails) {
    EXPECT_TRUE(check_gradients(Clamps{Eigen::RowVectorXd::Constant(4, 0.25)}, {.columns = 4}));
    const auto result =
        check_gradients(Clamps{Eigen::RowVectorXd::Constant(4, 0.75)}, {.columns = 4});
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "changes the parameter factor")) << result;
}

struct Squares {  // no visit_parameters
    void forward(In<double> x, Out<double> y) const { y = x.array().square(); }
    void backward(In<double> x, In<double> dy, Out<double> dx, Squares&) const {
        dx = 2 * x.array() * dy.array();
    }
};

TEST(GradientCheck, AModuleWithoutParametersPasses) {
    EXPECT_TRUE(check_gradients(Squares{}, {.columns = 4}));
}

struct Nothing {  // y = 0
    void forward(In<float>, Out<float> y) const { y.setZero(); }
    void backward(In<float>, In<float>, Out<float> dx, Nothing&) const { dx.setZero(); }
};

TEST(GradientCheck, AGradientOfZerosPassesOnlyWithAScale) {
    EXPECT_FALSE(check_gradients(Nothing{}, {.columns = 4}));
    EXPECT_TRUE(check_gradients(Nothing{}, {.columns = 4, .scale = 1}));
}

/// y = relu(x) factor + offset, taking a call; offset is frozen and a state counts
struct WithRoles {
    Eigen::RowVectorXd factor, offset, counter;

    void forward(In<double> x, Out<double> y, const moe::Call<double>& call) const {
        call.ws.state<int>() += 1;
        y = (x.cwiseMax(0) * factor.asDiagonal()).rowwise() + offset;
    }
    void backward(In<double> x, In<double> dy, Out<double> dx, WithRoles& grad,
                  const moe::Call<double>&) const {
        dx = (x.array() > 0).select(dy * factor.asDiagonal(), 0);
        grad.factor += x.cwiseMax(0).cwiseProduct(dy).colwise().sum();
    }
    void visit_parameters(auto&& visit) {
        visit("factor", factor);
        visit("offset", offset, moe::Role::frozen);
        visit("counter", counter, moe::Role::state);
    }
};

TEST(GradientCheck, ACallIsPassedAndOnlyTrainableParametersAreChecked) {
    const WithRoles module{Eigen::RowVectorXd::Random(6), Eigen::RowVectorXd::Random(6),
                           Eigen::RowVectorXd::Ones(1)};
    const GradientComparison result = check_gradients(module, {.rows = 3, .columns = 6});
    EXPECT_TRUE(result);
    EXPECT_EQ(result.checked, 3 * 6 + 6);
}

struct Alias {  // copies share the memory
    double* shared;
    Eigen::Map<Eigen::RowVectorXd> factor{shared, 2};
    void forward(In<double> x, Out<double> y) const { y = x * factor.asDiagonal(); }
    void backward(In<double> x, In<double> dy, Out<double> dx, Alias& grad) const {
        dx = dy * factor.asDiagonal();
        grad.factor += x.cwiseProduct(dy).colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("factor", factor); }
};

TEST(GradientCheck, AModuleWhoseCopiesShareMemoryFails) {
    double memory[]{1, 2};
    const GradientComparison result = check_gradients(Alias{memory}, {.columns = 2});
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "share the memory of factor")) << result;
}

/// The best expert, weighted with its logit; the gradient is multiplied by `factor`.
struct Best {
    double factor = 1;

    void select(In<double> logits, moe::Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t) {
            Index best = 0;
            for (Index e = 1; e < logits.cols(); ++e)
                if (logits(t, e) > logits(t, best)) best = e;
            routing.add(t, best, logits(t, best));
        }
    }
    void backward(In<double>, const moe::Routing& routing,
                  const moe::WeightGradients<double>& dweights, Out<double> dlogits) const {
        Index number = 0;
        for (const moe::Assignment& a : routing.assignments())
            dlogits(a.token, a.expert) += factor * dweights[number++];
    }
};

auto layer_with(Best gate) {
    return moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 1}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = 2, .ffn_dim = 3});
}

TEST(GradientCheck, AWholeLayerPasses) {
    const GradientComparison result = check_gradients(layer_with({}), {.rows = 8, .columns = 5});
    EXPECT_TRUE(result);
    EXPECT_EQ(result.checked, 8 * 5 + 2 * 5 + 2 * 3 * 3 * 5);
}

TEST(GradientCheck, AWholeLayerWithAWrongGateFails) {
    EXPECT_FALSE(check_gradients(layer_with({.factor = 2}), {.rows = 8, .columns = 5}));
}

/// A router whose first expert is ahead by x(t, 0) and by nothing else.
struct Ahead {
    void forward(In<double> x, Out<double> logits) const {
        logits.setOnes();
        logits.col(0) += x.col(0);
    }
    void backward(In<double>, In<double> dlogits, Out<double> dx, Ahead&) const {
        dx.setZero();
        dx.col(0) = dlogits.col(0);
    }
};

TEST(GradientCheck, ALayerIsNotMeasuredAcrossAChangeOfRouting) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 1}, Ahead{},
                                               Best{}, moe::Swiglu{.count = 2, .ffn_dim = 3});
    EXPECT_TRUE(check_gradients(layer, {.rows = 8, .columns = 5}));
    // Inputs lie in (-1, 1): even a sixteenth of this step changes the expert of every token.
    const GradientComparison result =
        check_gradients(layer, {.rows = 8, .columns = 5, .step = 16, .tolerance = 0.9});
    EXPECT_FALSE(result);
    EXPECT_TRUE(says(result, "the branch changes next to")) << result;
    EXPECT_EQ(result.skipped, 8);
}

}  // namespace
}  // namespace gradient_check_test
