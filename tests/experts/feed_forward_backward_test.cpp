// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_backward.hpp>

#include <algorithm>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Index;
using moe::Matrix;

/// Two experts on 3 and 4 rows of 5 tokens, with weights on inputs too.
struct Problem {
    moe::FeedForwardModule<double> group;
    Matrix<double> x = moe::testing::random_matrix<double>(5, 9, 1),
                   dy = moe::testing::random_matrix<double>(5, 9, 2);
    std::vector<Index> offsets{0, 3, 7};
    std::vector<std::int32_t> tokens{0, 2, 4, 0, 1, 2, 3};
    std::vector<double> weights{.5, -.25, 1, 2, .125, .75, -1}, inputs{1, 2, .5, -1, .25, 1.5, 3};
    moe::Context context;
    moe::Workspace<double> ws;

    Problem() {
        moe::Random random(3);
        group = moe::Swiglu{.count = 2, .ffn_dim = 37}.build<double>(
            {.model_dim = 9, .output_dim = 9}, random);
    }
    moe::Rows<double> rows() const {
        return {.offsets = offsets,
                .from = tokens,
                .to = tokens,
                .weights = weights,
                .input_weights = inputs};
    }
    Matrix<double> forward() {
        Matrix<double> y = Matrix<double>::Zero(5, 9);
        group.forward(x, rows(), y, {context, ws});
        return y;
    }
};

TEST(FeedForwardBackward, MayRunTwiceOnOneForwardPass) {
    Problem p;
    p.forward();
    Matrix<double> dx[2];
    std::vector<double> dweights[2];
    for (int run = 0; run < 2; ++run) {
        auto grad = moe::zeros_like(p.group);
        dx[run] = Matrix<double>::Zero(5, 9);
        dweights[run].assign(7, 0);
        p.group.backward(p.x, p.rows(), p.dy, dx[run], {.weights = dweights[run]}, grad,
                         {p.context, p.ws});
    }
    EXPECT_TRUE(moe::testing::same_bits(dx[0], dx[1]));
    EXPECT_TRUE(moe::testing::same_bits(dweights[0], dweights[1]));
}

/// What one step leaves: y, dx, gradients of weights, inputs and parameters.
template <class S>
struct Step {
    Matrix<S> y, dx;
    std::vector<S> dweights, dinputs;
    std::vector<Matrix<S>> parameters;

    /// The first that has other bits, or nothing.
    std::string difference(const Step& other) const {
        const auto same = [](std::span<const S> a, std::span<const S> b) {
            return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
        };
        if (!moe::testing::same_bits(y, other.y)) return "y";
        if (!moe::testing::same_bits(dx, other.dx)) return "dx";
        if (!same(dweights, other.dweights)) return "gradient of weights";
        if (!same(dinputs, other.dinputs)) return "gradient of input weights";
        if (parameters.size() != other.parameters.size()) return "number of parameters";
        for (std::size_t i = 0; i < parameters.size(); ++i)
            if (!moe::testing::same_bits(parameters[i], other.parameters[i],
                                         {.allow_zeros = true}))  // an expert without rows
                return "gradient of parameter " + std::to_string(i);
        return "";
    }
};

/// 2900 rows, more than two parts, of five experts: one has most of them, one has none.
template <class S, class Recipe>
class ManyRows {
public:
    explicit ManyRows(const Recipe& recipe) {
        moe::Random random(3);
        group_ = recipe.template build<S>({.model_dim = 9, .output_dim = 9}, random);
        const Index sizes[] = {150, 0, 1600, 700, 450};
        for (const Index size : sizes) {
            for (Index i = 0; i < size; ++i)
                tokens_.push_back(static_cast<std::int32_t>(1600 * i / size));
            offsets_.push_back(offsets_.back() + size);
        }
        for (std::size_t r = 0; r < tokens_.size(); ++r) {
            weights_.push_back(static_cast<S>(r % 7) - S(2.5));
            inputs_.push_back(static_cast<S>(r % 5) / 2 - S(.75));
        }
    }

    /// @param together  experts of one call
    Step<S> step(moe::Keep keep, int threads, Index together = 5) const {
        moe::Workspace<S> ws;
        ws.threads(threads).keep(keep);
        Step<S> step{.y = Matrix<S>::Zero(1600, 9),
                     .dx = Matrix<S>::Zero(1600, 9),
                     .dweights = std::vector<S>(weights_.size()),
                     .dinputs = std::vector<S>(weights_.size()),
                     .parameters = {}};
        const moe::Rows<S> rows{.offsets = offsets_,
                                .from = tokens_,
                                .to = tokens_,
                                .weights = weights_,
                                .input_weights = inputs_};
        const auto in_calls = [&](auto&& call) {
            for (Index e = 0; e < 5; e += together)
                call(rows.experts(e, std::min<Index>(5, e + together)));
        };
        const moe::Context context;
        in_calls([&](const moe::Rows<S>& some) {
            group_.forward(x_, some, step.y, {context, ws});
        });
        auto grad = moe::zeros_like(group_);
        in_calls([&](const moe::Rows<S>& some) {
            group_.backward(x_, some, dy_, step.dx,
                            {.weights = step.dweights, .input_weights = step.dinputs}, grad,
                            {context, ws});
        });
        moe::visit_parameters(grad, [&](std::string_view, const auto& matrix, moe::Role) {
            step.parameters.emplace_back(matrix.view());
        });
        return step;
    }

private:
    moe::FeedForwardModule<S> group_;
    std::vector<Index> offsets_{0};
    std::vector<std::int32_t> tokens_;
    std::vector<S> weights_, inputs_;
    Matrix<S> x_ = moe::testing::random_matrix<S>(1600, 9, 1),
              dy_ = moe::testing::random_matrix<S>(1600, 9, 2);
};

template <class S, class Recipe>
void expect_the_same_bits(const Recipe& recipe, const std::vector<int>& team_sizes) {
    const ManyRows<S, Recipe> rows(recipe);
    const Step<S> step = rows.step(moe::Keep::everything, 1);
    EXPECT_EQ(step.difference(Step<S>{}), "y");
    EXPECT_TRUE(step.dx.allFinite() && step.dx.norm() > 0);
    for (const int threads : team_sizes) {
        EXPECT_EQ(step.difference(rows.step(moe::Keep::everything, threads)), "") << threads;
        EXPECT_EQ(step.difference(rows.step(moe::Keep::recompute, threads)), "") << threads;
    }
    // Each call with one or two experts: its rows are cut into other parts.
    EXPECT_EQ(step.difference(rows.step(moe::Keep::everything, 2, 1)), "");
    EXPECT_EQ(step.difference(rows.step(moe::Keep::recompute, 1, 2)), "");
}

TEST(FeedForwardBackward, HasTheSameBitsHoweverRowsAreCutAndWhateverIsKept) {
    ASSERT_LT(moe::detail::FeedForwardState<float>::part_rows({.ffn_dim = 1100}, 9999, 7), 1500);
    expect_the_same_bits<float>(moe::Swiglu{.count = 5, .ffn_dim = 1100}, {1, 2, 3, 7});
    expect_the_same_bits<float>(moe::Mlp{.count = 5, .ffn_dim = 1100}, {2});
    expect_the_same_bits<double>(moe::Swiglu{.count = 5, .ffn_dim = 1100}, {2});
}

TEST(FeedForwardBackward, KeepsNoRowsBesidesAPartIfItRecomputes) {
    Problem p;
    p.ws.keep(moe::Keep::recompute);
    p.forward();
    const auto& state = p.ws.state<moe::detail::FeedForwardState<double>>();
    EXPECT_EQ(state.gate.bytes() + state.up.bytes(), 0);
    Matrix<double> dx = Matrix<double>::Zero(5, 9);
    std::vector<double> dweights(7);
    auto grad = moe::zeros_like(p.group);
    for (int run = 0; run < 2; ++run)  // as often as you like
        p.group.backward(p.x, p.rows(), p.dy, dx, {.weights = dweights}, grad, {p.context, p.ws});
    EXPECT_GT(state.gate.bytes(), 0);
    EXPECT_TRUE(dx.allFinite() && dx.norm() > 0);
}

TEST(FeedForwardBackward, GivesTheGradientOfInputWeightsToWhoWantsIt) {
    Problem p;
    p.forward();
    auto grad = moe::zeros_like(p.group);
    Matrix<double> dx = Matrix<double>::Zero(5, 9);
    std::vector<double> dweights(7), dinputs(7);
    p.group.backward(p.x, p.rows(), p.dy, dx, {.weights = dweights, .input_weights = dinputs}, grad,
                     {p.context, p.ws});
    const auto loss = [&] { return p.forward().cwiseProduct(p.dy).sum(); };
    const auto difference = [&](double& value) {
        const double kept = value, step = 1e-5;
        value = kept + step;
        const double above = loss();
        value = kept - step;
        const double below = loss();
        value = kept;
        return (above - below) / (2 * step);
    };
    for (std::size_t r = 0; r < 7; ++r) {
        EXPECT_NEAR(dinputs[r], difference(p.inputs[r]), 1e-8) << "row " << r;
        EXPECT_NEAR(dweights[r], difference(p.weights[r]), 1e-8) << "row " << r;
    }
}

TEST(FeedForwardBackward, SkipsGradientsThatAreEmpty) {
    Problem p;
    p.forward();
    auto all = moe::zeros_like(p.group);
    auto some = moe::zeros_like(
        p.group, [](std::string_view name) { return name != "1.up" && name != "0.down"; });
    moe::FeedForwardModule<double> none;
    std::vector<double> dweights(7);
    Matrix<double> dx[3];
    int i = 0;
    for (auto* grad : {&all, &some, &none}) {
        dx[i] = Matrix<double>::Zero(5, 9);
        p.group.backward(p.x, p.rows(), p.dy, dx[i++], {.weights = dweights}, *grad,
                         {p.context, p.ws});
    }
    EXPECT_TRUE(moe::testing::same_bits(dx[0], dx[1]));
    EXPECT_TRUE(moe::testing::same_bits(dx[0], dx[2]));
    EXPECT_EQ(some.up.gradient(1), nullptr);
    EXPECT_TRUE(moe::testing::same_bits(some.up.owned(0).view(), all.up.owned(0).view()));
    EXPECT_TRUE(moe::testing::same_bits(some.down.owned(1).view(), all.down.owned(1).view()));
}

TEST(FeedForwardBackward, RefusesGradientsOfOtherExtents) {
    Problem p;
    p.forward();
    auto grad = moe::zeros_like(p.group);
    std::vector<double> dweights(7);
    Matrix<double> dx = Matrix<double>::Zero(5, 9);
    const auto refusal = [&] {
        try {
            p.group.backward(p.x, p.rows(), p.dy, dx, {.weights = dweights}, grad,
                             {p.context, p.ws});
        } catch (const std::invalid_argument& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    EXPECT_EQ(refusal(), "");
    grad.up = moe::Weights<double>(2, 9, 37);
    EXPECT_EQ(refusal(),
              "moe::FeedForwardModule::backward: up of the gradient holds 2 matrices [9, 37], "
              "the experts have 2 of [37, 9]; make it with zeros_like(layer)");
    grad.up = moe::Weights<double>(1, 37, 9);
    EXPECT_NE(refusal(), "");
    grad.up = {};
    EXPECT_EQ(refusal(), "") << "not wanted";
    grad.down_bias = moe::Weights<double>(2, 1, 9);
    EXPECT_EQ(refusal(),
              "moe::FeedForwardModule::backward: down_bias of the gradient holds 2 matrices "
              "[1, 9], the experts have 0 of [0, 0]; make it with zeros_like(layer)");
}

}  // namespace
