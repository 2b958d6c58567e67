// SPDX-License-Identifier: MIT
// A gate whose choice is not the token's own: every expert takes the tokens that score best with
// it, and hands its assignments over expert by expert.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace expert_choice_test {
namespace {

using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Routing;
using moe::WeightGradients;
using moe::Workspace;

/// softmax over the experts of a token; 0 in a row of -inf.
Matrix<double> softmax(In<double> logits) {
    Matrix<double> scores = Matrix<double>::Zero(logits.rows(), logits.cols());
    for (Index t = 0; t < logits.rows(); ++t) {
        const double most = logits.row(t).maxCoeff();
        if (most == -std::numeric_limits<double>::infinity()) continue;
        scores.row(t) = (logits.row(t).array() - most).exp();
        scores.row(t) /= scores.row(t).sum();
    }
    return scores;
}

/// Every expert takes its `capacity` best tokens, ties to the lower token; the weight is the score.
/// Source: Zhou et al., "Mixture-of-experts with expert choice routing" (arXiv:2202.09368).
struct ExpertChoice {
    static constexpr bool per_token = false;
    Index capacity = 1;

    void select(In<double> logits, Routing& routing) const {
        const Matrix<double> scores = softmax(logits);
        for (Index e = 0; e < logits.cols(); ++e) {
            std::vector<Index> order;
            for (Index t = 0; t < logits.rows(); ++t)
                if (scores(t, e) > 0) order.push_back(t);
            std::stable_sort(order.begin(), order.end(),
                             [&](Index a, Index b) { return scores(a, e) > scores(b, e); });
            order.resize(std::min(order.size(), static_cast<std::size_t>(capacity)));
            for (const Index t : order) routing.add(t, e);
        }
    }
    void weigh(In<double> logits, Routing& routing) const {
        const Matrix<double> scores = softmax(logits);
        for (Index a = 0; a < routing.num_assignments(); ++a) {
            const moe::Assignment& at = routing.assignments()[static_cast<std::size_t>(a)];
            routing.set_weight(a, scores(at.token, at.expert));
        }
    }
    void backward(In<double> logits, const Routing& routing,
                  const WeightGradients<double>& dweights, Out<double> dlogits) const {
        const Matrix<double> scores = softmax(logits);
        for (Index t = 0; t < logits.rows(); ++t) {
            Eigen::RowVectorXd dscores = Eigen::RowVectorXd::Zero(logits.cols());
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a)
                dscores(routing.assignments()[static_cast<std::size_t>(a)].expert) += dweights[a];
            const double mean = scores.row(t).dot(dscores);
            dlogits.row(t).array() += scores.row(t).array() * (dscores.array() - mean);
        }
    }
};
static_assert(moe::TrainableGate<ExpertChoice, double> && !ExpertChoice::per_token);

constexpr Index tokens = 7, dim = 5, experts = 4, capacity = 3;

auto make(std::uint64_t seed = 3) {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = seed}, moe::LinearRouter{},
                                   ExpertChoice{.capacity = capacity},
                                   moe::Swiglu{.count = experts - 1, .ffn_dim = 6}, moe::Zero{});
}

TEST(ExpertChoice, EveryExpertTakesItsBestTokens) {
    const auto layer = make();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    layer.route(x, ws);
    const Routing& routing = ws.routing();
    EXPECT_EQ(routing.num_assignments(), experts * capacity);
    const Matrix<double> scores = softmax(ws.logits());
    Index longest = 0, shortest = experts;
    for (Index e = 0; e < experts; ++e) {
        const auto taken = routing.tokens_of(e);
        ASSERT_EQ(taken.size(), static_cast<std::size_t>(capacity));
        EXPECT_TRUE(std::is_sorted(taken.begin(), taken.end()));
        for (const Index t : taken) {
            const auto better = (scores.col(e).array() > scores(t, e)).count();
            EXPECT_LT(better, capacity) << "expert " << e << ", token " << t;
        }
    }
    for (Index t = 0; t < tokens; ++t) {
        const auto own = routing.of(t);
        longest = std::max(longest, static_cast<Index>(own.size()));
        shortest = std::min(shortest, static_cast<Index>(own.size()));
        for (std::size_t slot = 0; slot < own.size(); ++slot) {
            EXPECT_EQ(own[slot].slot, static_cast<std::int32_t>(slot));
            EXPECT_EQ(own[slot].weight, scores(t, own[slot].expert));
        }
    }
    EXPECT_GT(longest, shortest) << "the example should be ragged";
}

TEST(ExpertChoice, OutputIsTheDenseMixture) {
    const auto layer = make();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    layer.forward(x, y, ws);
    std::vector<dense::Expert> all;
    for (Index e = 0; e < experts - 1; ++e)
        all.push_back(dense::feed_forward_of(layer.bank().group<0>(), e));
    all.push_back(dense::zero());
    const auto expected = dense::forward(all, x, dense::weights_of(ws.routing()), dim);
    EXPECT_TRUE(moe::testing::compare(y, expected, 1e-14));
}

TEST(ExpertChoice, GradientsAreExact) {
    EXPECT_TRUE(
        moe::testing::check_gradients(make(), {.rows = tokens, .columns = dim, .scale = 0.01}));
}

TEST(ExpertChoice, ReplayGivesTheSameBits) {
    const auto layer = make();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws, other;
    Matrix<double> y(tokens, dim), again(tokens, dim);
    layer.forward(x, y, ws);
    layer.reweigh(x, ws.routing(), other);
    layer.apply(x, again, other);
    EXPECT_TRUE(moe::testing::same_bits(again, y));
}

TEST(ExpertChoice, PaddingTakesNoPlace) {
    const auto layer = make();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[2] = padding[6] = 1;
    Matrix<double> real(tokens - 2, dim), y(tokens, dim), y_real(tokens - 2, dim);
    const std::vector<Index> kept{0, 1, 3, 4, 5};
    for (Index i = 0; i < real.rows(); ++i) real.row(i) = x.row(kept[static_cast<std::size_t>(i)]);
    Workspace<double> ws;
    layer.forward(x, y, ws, {.padding = padding});
    layer.forward(real, y_real, ws);
    EXPECT_TRUE((y.row(2).array() == 0).all() && (y.row(6).array() == 0).all());
    for (Index i = 0; i < real.rows(); ++i)
        EXPECT_TRUE(moe::testing::same_bits(y.row(kept[static_cast<std::size_t>(i)]), y_real.row(i),
                                            {.allow_zeros = true}));
}

}  // namespace
}  // namespace expert_choice_test
