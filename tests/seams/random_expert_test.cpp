// SPDX-License-Identifier: MIT
// Experts and gates that draw random numbers: the same for a token whatever batch it comes in, and
// different for each part, layer and step.

#include <set>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace random_expert_test {
namespace {

using moe::Call;
using moe::Index;
using moe::Matrix;

constexpr Index tokens = 9, dim = 4;

/// y = x where a coin keyed by token and expert says so.
struct Dropout {
    void forward(moe::In<float> x, moe::Out<float> y, const Call<float>& call) const {
        for (Index i = 0; i < x.rows(); ++i)
            for (Index d = 0; d < x.cols(); ++d) y(i, d) = keeps(call, i, d) ? x(i, d) : 0;
    }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Dropout&,
                  const Call<float>& call) const {
        for (Index i = 0; i < dy.rows(); ++i)
            for (Index d = 0; d < dy.cols(); ++d) dx(i, d) = keeps(call, i, d) ? dy(i, d) : 0;
    }
    static bool keeps(const Call<float>& call, Index row, Index column) {
        return call.random().uniform(call.token(row), call.expert,
                                     static_cast<std::uint32_t>(column)) < 0.5;
    }
};

moe::Layer layer{moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 2},
                 moe::experts(3, Dropout{}), moe::experts(2, Dropout{})};

TEST(RandomExperts, DoNotDependOnTheRestOfTheBatch) {
    const auto x = moe::testing::random_matrix<float>(tokens, dim, 1);
    const Matrix<float> whole = layer(x, {.step = 3, .seed = 7});
    EXPECT_FALSE(moe::testing::same_bits(whole, layer(x, {.step = 4, .seed = 7})));
    EXPECT_FALSE(moe::testing::same_bits(whole, layer(x, {.step = 3, .seed = 8})));
    EXPECT_FALSE(moe::testing::same_bits(whole, layer(x, {.step = 3, .seed = 7, .stream = 1})));
    for (Index cut = 1; cut < tokens; ++cut) {
        const Matrix<float> first = layer(x.topRows(cut), {.step = 3, .seed = 7});
        const Matrix<float> rest =
            layer(x.bottomRows(tokens - cut), {.step = 3, .seed = 7, .first_token = cut});
        EXPECT_TRUE(moe::testing::same_bits(first, Matrix<float>(whole.topRows(cut)))) << cut;
        EXPECT_TRUE(moe::testing::same_bits(rest, Matrix<float>(whole.bottomRows(tokens - cut))))
            << cut;
    }
}

TEST(RandomExperts, DrawTheSameInBackward) {
    const auto x = moe::testing::random_matrix<float>(tokens, dim, 1);
    const Matrix<float> ones = Matrix<float>::Ones(tokens, dim);
    Matrix<float> y(tokens, dim), dx(tokens, dim);
    moe::Workspace<float> ws;
    const moe::Context context{.seed = 7};
    const moe::Routing plan = (layer.route(x, ws, context), ws.routing());
    layer.apply(ones, y, ws, context);
    auto grad = moe::zeros_like(layer);
    layer.apply_backward(ones, ones, dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::same_bits(y, dx));
    EXPECT_LT(y.minCoeff(), y.maxCoeff());
}

TEST(RandomNumbers, AreApartForEveryPartOfALayer) {
    moe::Workspace<float> ws, other;
    const moe::Context context;
    std::set<double> seen;
    const auto draw = [&](moe::Workspace<float>& node) {
        return Call<float>{context, node}.random().uniform(0, 0);
    };
    seen.insert(draw(ws));
    for (std::size_t i = 0; i < 4; ++i) {
        seen.insert(draw(ws.child(i)));
        for (std::size_t j = 0; j < 4; ++j) seen.insert(draw(ws.child(i).child(j)));
    }
    EXPECT_EQ(seen.size(), 21u);
    EXPECT_EQ(draw(ws.child(2).child(1)), draw(other.child(2).child(1)));
}

TEST(RandomNumbers, AreKeyedByTheTokensNumber) {
    moe::Workspace<float> ws;
    const moe::Context context{.first_token = 40};
    const std::vector<std::int64_t> ids{5, 9};
    EXPECT_EQ((Call<float>{context, ws}.token(2)), 42);
    EXPECT_EQ((Call<float>{context, ws, ids}.token(1)), 9);
}

}  // namespace
}  // namespace random_expert_test
