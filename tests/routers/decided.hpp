// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ROUTERS_DECIDED_HPP
#define MOE_TESTS_ROUTERS_DECIDED_HPP

#include <cstddef>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

/// What tests of routers share that do not look at tokens.
namespace decided {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;

/// The experts of each token; where a router decides outright, ascending.
using Chosen = std::vector<std::vector<Index>>;

inline constexpr Index dim = 4;

template <class S, class Recipe>
auto build(const Recipe& recipe, Index logits) {
    moe::Random random(1);
    const moe::Shape shape{
        .model_dim = dim, .num_experts = logits, .output_dim = dim, .num_logits = logits};
    return recipe.template build<S>(shape, random);
}

/// Logits of a batch of NaN, which a router that does not look cannot mind.
template <class S, class Router>
Matrix<S> logits_of(const Router& router, Index tokens, Index logits, const Context& context,
                    Workspace<S>& ws) {
    constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    const Matrix<S> x = Matrix<S>::Constant(tokens, dim, nan);
    Matrix<S> result = Matrix<S>::Constant(tokens, logits, nan);
    router.forward(x, result, moe::Call<S>{context, ws});
    return result;
}
template <class S, class Router>
Matrix<S> logits_of(const Router& router, Index tokens, Index logits, const Context& context = {}) {
    Workspace<S> ws;
    return logits_of<S>(router, tokens, logits, context, ws);
}

/// Where logits are 0; the test fails if another is not -inf.
template <class S>
Chosen chosen_in(const Matrix<S>& logits) {
    Chosen chosen(static_cast<std::size_t>(logits.rows()));
    for (Index t = 0; t < logits.rows(); ++t)
        for (Index e = 0; e < logits.cols(); ++e) {
            if (logits(t, e) == S(0))
                chosen[static_cast<std::size_t>(t)].push_back(e);
            else
                EXPECT_EQ(logits(t, e), -std::numeric_limits<S>::infinity()) << t << ", " << e;
        }
    return chosen;
}

/// A layer of this router, k unweighted experts per token, and `experts` small networks.
template <class S, class Recipe>
auto layer_of(const Recipe& router, Index experts, Index k) {
    return moe::make_layer<S>(moe::Config{.model_dim = dim, .seed = 5}, router,
                              moe::TopK{.k = k, .ones = true},
                              moe::Swiglu{.count = experts, .ffn_dim = 3});
}

/// Fails the test unless a layer with this router sends each token through just these experts, in
/// this order of slots, with weight 1, and its gradients are those of that.
template <class S, class Recipe>
void expect_layer_takes(const Recipe& router, Index experts, Index k, const Context& context,
                        const Chosen& chosen) {
    const auto tokens = static_cast<Index>(chosen.size());
    const auto layer = layer_of<S>(router, experts, k);
    const Matrix<S> x = moe::testing::random_matrix<S>(tokens, dim, 1);
    const Matrix<S> dy = moe::testing::random_matrix<S>(tokens, dim, 2);
    Matrix<S> y(tokens, dim), dx(tokens, dim);
    Workspace<S> ws;
    layer.forward(x, y, ws, context);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);

    Matrix<double> weights = Matrix<double>::Zero(tokens, experts);
    for (Index t = 0; t < tokens; ++t) {
        const auto& wanted = chosen[static_cast<std::size_t>(t)];
        std::vector<Index> got;
        for (const moe::Assignment& a : ws.routing().of(t)) got.push_back(a.expert);
        EXPECT_EQ(got, wanted) << "token " << t;
        for (const Index e : wanted) weights(t, e) = 1;
    }
    std::vector<dense::Expert> all;
    for (Index e = 0; e < experts; ++e)
        all.push_back(dense::feed_forward_of(layer.bank().template group<0>(), e));
    const Matrix<double> wide_x = x.template cast<double>(), wide_dy = dy.template cast<double>();
    const auto expected = dense::backward(all, wide_x, weights, wide_dy);
    const double tolerance = std::is_same_v<S, float> ? 1e-5 : 1e-13;
    const moe::testing::CompareOptions zeros{.allow_zeros = true};
    EXPECT_TRUE(moe::testing::compare(y, dense::forward(all, wide_x, weights, dim), tolerance));
    EXPECT_TRUE(moe::testing::compare(dx, expected.dx, tolerance));
    for (Index e = 0; e < experts; ++e) {
        const auto got = dense::feed_forward_of(grad.bank().template group<0>(), e);
        const auto& want = expected.experts[static_cast<std::size_t>(e)];
        EXPECT_TRUE(moe::testing::compare(got.gate, want.gate, tolerance, zeros)) << e;
        EXPECT_TRUE(moe::testing::compare(got.up, want.up, tolerance, zeros)) << e;
        EXPECT_TRUE(moe::testing::compare(got.down, want.down, tolerance, zeros)) << e;
    }
}

/// Fails the test unless the layer's gradients agree with central differences.
template <class Recipe>
void expect_layer_gradients(const Recipe& router, Index experts, Index k, Index tokens,
                            const Context& context) {
    seams::expect_exact_layer(layer_of<double>(router, experts, k),
                              moe::testing::random_matrix<double>(tokens, dim, 1), context);
}

}  // namespace decided

#endif  // MOE_TESTS_ROUTERS_DECIDED_HPP
