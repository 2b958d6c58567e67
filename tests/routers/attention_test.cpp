// SPDX-License-Identifier: MIT
#include <moe/routers/attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/testing/gradient_check.hpp>

#include "routers/laws.hpp"
#include "support/message.hpp"

namespace {

using moe::AttentionRouterModule;
using moe::Call;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

static_assert(moe::Recipe<moe::AttentionRouter>);
static_assert(moe::Router<AttentionRouterModule<float>>);
static_assert(moe::Router<AttentionRouterModule<double>, double>);

template <class S>
AttentionRouterModule<S> make(Index dim, Index logits) {
    moe::Random random(1);
    return moe::AttentionRouter{}.build<S>(
        {.model_dim = dim, .num_experts = logits, .output_dim = dim, .num_logits = logits}, random);
}

/// q, k or v of a token: block 0, 1, 2 of the weight.
template <class S>
std::vector<double> part(const AttentionRouterModule<S>& router, Index block, const Matrix<S>& x,
                         Index t) {
    const auto& w = router.projection.weight;
    std::vector<double> values;
    for (Index i = block * w.rows() / 3; i < (block + 1) * w.rows() / 3; ++i) {
        double sum = 0;
        for (Index d = 0; d < x.cols(); ++d) sum += double{w(i, d)} * double{x(t, d)};
        values.push_back(sum);
    }
    return values;
}

/// softmax(q k^T) v, one element after the other
template <class S>
Matrix<double> reference(const AttentionRouterModule<S>& router, const Matrix<S>& x) {
    const Index n = router.projection.weight.rows() / 3;
    Matrix<double> logits(x.rows(), n);
    for (Index t = 0; t < x.rows(); ++t) {
        const auto q = part(router, 0, x, t), k = part(router, 1, x, t), v = part(router, 2, x, t);
        for (Index i = 0; i < n; ++i) {
            double sum = 0, total = 0;
            for (std::size_t j = 0; j < k.size(); ++j) {
                const double e = std::exp(q[static_cast<std::size_t>(i)] * k[j]);
                sum += e * v[j], total += e;
            }
            logits(t, i) = sum / total;
        }
    }
    return logits;
}

template <class S>
Matrix<S> logits_of(const AttentionRouterModule<S>& router, const Matrix<S>& x) {
    Workspace<S> ws;
    const Context context;
    Matrix<S> logits(x.rows(), router.projection.weight.rows() / 3);
    router.forward(x, logits, Call<S>{context, ws});
    return logits;
}

template <class S>
class AttentionRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(AttentionRouter, Scalars);

TYPED_TEST(AttentionRouter, AttendsForAnyExtents) {
    using S = TypeParam;
    const Index extents[][3] = {{1, 1, 1}, {3, 5, 2}, {65, 33, 8}, {64, 16, 17}, {0, 4, 3}};
    for (const auto& [tokens, dim, logits] : extents) {
        SCOPED_TRACE(std::to_string(tokens) + " " + std::to_string(logits));
        const auto router = make<S>(dim, logits);
        const auto x = random_matrix<S>(tokens, dim, 1, 4);
        EXPECT_TRUE(moe::testing::compare(logits_of(router, x), reference(router, x),
                                          std::is_same_v<S, float> ? 4e-6 : 1e-14));
    }
}

TYPED_TEST(AttentionRouter, LogitsLieBetweenTheValues) {
    using S = TypeParam;
    const auto router = make<S>(6, 5);
    for (const double size : {0.01, 1.0, 100.0}) {
        const auto x = random_matrix<S>(30, 6, 1, size);
        const auto logits = logits_of(router, x);
        for (Index t = 0; t < 30; ++t) {
            const auto v = part(router, 2, x, t);
            const auto [least, largest] = std::minmax_element(v.begin(), v.end());
            const double slack = 1e-5 * std::max(std::abs(*least), std::abs(*largest));
            EXPECT_GE(static_cast<double>(logits.row(t).minCoeff()), *least - slack);
            EXPECT_LE(static_cast<double>(logits.row(t).maxCoeff()), *largest + slack);
        }
    }
}

TYPED_TEST(AttentionRouter, RelabellingExpertsRelabelsLogits) {
    using S = TypeParam;
    const auto router = make<S>(6, 5);
    auto reversed = router;
    for (Index block = 0; block < 3; ++block)
        for (Index i = 0; i < 5; ++i)
            std::copy_n(router.projection.weight.row(5 * block + i), 6,
                        reversed.projection.weight.row(5 * block + 4 - i));
    const auto x = random_matrix<S>(20, 6, 1);
    EXPECT_TRUE(moe::testing::compare(logits_of(reversed, x),
                                      Matrix<S>(logits_of(router, x).rowwise().reverse()), 2e-6));
}

TYPED_TEST(AttentionRouter, EqualKeysGiveEveryExpertTheMeanOfTheValues) {
    using S = TypeParam;
    auto router = make<S>(6, 4);
    for (Index i = 5; i < 8; ++i)
        std::copy_n(router.projection.weight.row(4), 6, router.projection.weight.row(i));
    const auto x = random_matrix<S>(9, 6, 1);
    const auto logits = logits_of(router, x);
    Matrix<double> mean(9, 4);
    for (Index t = 0; t < 9; ++t) {
        const auto v = part(router, 2, x, t);
        mean.row(t).setConstant((v[0] + v[1] + v[2] + v[3]) / 4);
    }
    EXPECT_TRUE(moe::testing::compare(logits, mean, 2e-6));
}

TYPED_TEST(AttentionRouter, GivesTheSameBitsHoweverItIsComputed) {
    using S = TypeParam;
    routers_test::expect_same_bits_on_every_isa<S>(make<S>(67, 19), 400, 67, 19);
}

TYPED_TEST(AttentionRouter, ATokenThatHoldsANaNSpoilsItsOwnLogitsOnly) {
    using S = TypeParam;
    const auto router = make<S>(6, 5);
    auto x = random_matrix<S>(3, 6, 1);
    const auto expected = logits_of(router, x);
    x(1, 2) = std::numeric_limits<S>::quiet_NaN();
    const auto got = logits_of(router, x);
    EXPECT_TRUE(got.row(1).array().isNaN().all());
    EXPECT_TRUE(same_bits(Matrix<S>(got.row(0)), Matrix<S>(expected.row(0))));
    EXPECT_TRUE(same_bits(Matrix<S>(got.row(2)), Matrix<S>(expected.row(2))));
}

TYPED_TEST(AttentionRouter, ATokenOfZerosScoresZero) {
    using S = TypeParam;
    const auto logits = logits_of(make<S>(6, 5), Matrix<S>(Matrix<S>::Zero(2, 6)));
    EXPECT_TRUE((logits.array() == 0).all());
}

TEST(AttentionRouterModule, GradientsAreExact) {
    for (const Index logits : {1, 4, 7})
        EXPECT_TRUE(moe::testing::check_gradients(
            make<double>(5, logits), {.rows = 6, .columns = 5, .output_columns = logits}));
}

TEST(AttentionRouterModule, GradientsInsideALayerAreExact) {
    EXPECT_TRUE(moe::testing::check_gradients(
        moe::make_layer<double>(moe::Config{.model_dim = 5}, moe::AttentionRouter{},
                                moe::TopK{.k = 2}, moe::Swiglu{.count = 3, .ffn_dim = 4},
                                moe::Copy{}),
        {.rows = 6, .columns = 5, .scale = 0.01}));
}

TEST(AttentionRouterModule, LeavesOutAGradientThatIsNotWanted) {
    const auto router = make<double>(5, 4);
    const auto x = random_matrix<double>(6, 5, 1), dlogits = random_matrix<double>(6, 4, 2);
    Workspace<double> ws;
    const Context context;
    const auto expected = routers_test::run<double>(router, x, dlogits, context, ws);
    AttentionRouterModule<double> nothing;
    Matrix<double> dx(6, 5);
    router.backward(x, dlogits, dx, nothing, Call<double>{context, ws});
    EXPECT_TRUE(same_bits(dx, expected.dx));
    EXPECT_TRUE(nothing.projection.weight.empty());
}

TEST(AttentionRouterModule, PaddingDoesNotReachTheGradient) {
    routers_test::expect_padding_does_not_reach_the_gradient(moe::AttentionRouter{});
}

TEST(AttentionRouterModule, FrozenInALayerGivesTheSameBits) {
    routers_test::expect_same_bits_frozen(moe::AttentionRouter{});
    EXPECT_GE(make<float>(16, 4).freeze({}).bytes(), 4 * 16 * 12);
}

TEST(AttentionRouterModule, StartsAsDocumentedAndNamesItsParameter) {
    const auto router = make<float>(400, 10);
    EXPECT_NEAR(router.projection.weight.view().squaredNorm() / (400 * 30), 1.0 / 400, 2e-4);
    EXPECT_EQ(router.flops_per_token(), 2 * 400 * 30 + 4 * 100);
    std::vector<std::string> names;
    moe::visit_parameters(router, [&](std::string_view name, const auto& matrix, moe::Role role) {
        names.emplace_back(name);
        EXPECT_EQ(matrix.rows(), 30);
        EXPECT_EQ(role, moe::Role::trainable);
    });
    EXPECT_EQ(names, std::vector<std::string>{"weight"});
}

TEST(AttentionRouterModule, RefusesOtherShapes) {
    const auto router = make<float>(4, 2);
    const moe::Shape shape{.model_dim = 4, .num_experts = 2, .output_dim = 4, .num_logits = 2};
    EXPECT_NO_THROW(router.check(shape));
    for (const auto& [rows, cols] : {std::pair<Index, Index>{6, 5}, {2, 4}}) {
        auto other = router;
        other.projection.weight = moe::Parameter<float>(rows, cols);
        EXPECT_NE(support::message([&] { other.check(shape); }).find("the layer wants [6, 4]"),
                  std::string::npos);
    }
}

TEST(AttentionRouterModule, AllocatesNothingInTheSecondCall) {
    routers_test::expect_no_allocations<float>(make<float>(33, 9), 500, 33, 9, {});
}

}  // namespace
