// SPDX-License-Identifier: MIT
#include <moe/routers/linear.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/gradient_check.hpp>

#include "routers/laws.hpp"

namespace {

using moe::Call;
using moe::Context;
using moe::Index;
using moe::LinearRouterModule;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

template <class S>
LinearRouterModule<S> make(Index dim, Index logits, bool bias) {
    moe::Random random(1);
    auto router = moe::LinearRouter{.bias = bias}.build<S>(
        {.model_dim = dim, .num_experts = logits, .num_logits = logits}, random);
    for (Index l = 0; l < router.bias.size(); ++l)
        router.bias.data()[l] =
            static_cast<S>(moe::testing::random_value(7, static_cast<std::uint64_t>(l)));
    return router;
}

template <class S>
routers_test::Result<S> run(const LinearRouterModule<S>& router, Index tokens, Workspace<S>& ws) {
    return routers_test::run<S>(router, random_matrix<S>(tokens, router.weight.cols(), 1),
                                random_matrix<S>(tokens, router.weight.rows(), 2), Context{}, ws);
}

template <class S>
class LinearRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LinearRouter, Scalars);

TYPED_TEST(LinearRouter, IsAProductForAnyExtents) {
    using S = TypeParam;
    const Index extents[][3] = {{1, 1, 1},    {3, 5, 2},    {65, 33, 8},
                                {64, 16, 17}, {130, 7, 64}, {0, 4, 3}};
    for (const auto& [tokens, dim, logits] : extents)
        for (const bool bias : {false, true}) {
            SCOPED_TRACE(std::to_string(tokens) + " " + std::to_string(dim) + " " +
                         std::to_string(logits));
            const auto router = make<S>(dim, logits, bias);
            Workspace<S> ws;
            const auto got = run(router, tokens, ws);
            const Matrix<double> x = random_matrix<double>(tokens, dim, 1);
            const Matrix<double> dlogits = random_matrix<double>(tokens, logits, 2);
            const Matrix<double> w = router.weight.view().template cast<double>();
            Matrix<double> expected = x * w.transpose();
            if (bias) expected.rowwise() += router.bias.view().row(0).template cast<double>();
            const Matrix<double> dw = dlogits.transpose() * x;
            std::vector<double> gradient(dw.data(), dw.data() + dw.size());
            if (bias)
                for (Index l = 0; l < logits; ++l) gradient.push_back(dlogits.col(l).sum());
            const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
            const moe::testing::CompareOptions zeros{.allow_zeros = true};
            EXPECT_TRUE(moe::testing::compare(got.logits, expected, tolerance));
            EXPECT_TRUE(moe::testing::compare(got.dx, Matrix<double>(dlogits * w), tolerance));
            EXPECT_TRUE(moe::testing::compare(got.gradient, gradient, tolerance, zeros));
        }
}

TYPED_TEST(LinearRouter, GivesTheSameBitsHoweverItIsComputed) {
    using S = TypeParam;
    routers_test::expect_same_bits_on_every_isa<S>(make<S>(67, 19, true), 400, 67, 19);
}

TEST(LinearRouterModule, GradientsAreExact) {
    EXPECT_TRUE(moe::testing::check_gradients(make<double>(5, 4, true),
                                              {.rows = 6, .columns = 5, .output_columns = 4}));
}

TEST(LinearRouterModule, LeavesOutGradientsThatAreNotWanted) {
    const auto router = make<double>(5, 4, true);
    Workspace<double> ws;
    const Context context;
    const auto expected = run(router, 6, ws);
    const auto x = random_matrix<double>(6, 5, 1), dlogits = random_matrix<double>(6, 4, 2);
    const auto only = [&](std::string_view wanted) {
        auto grad = moe::zeros_like(router, [&](std::string_view name) { return name == wanted; });
        Matrix<double> dx(6, 5);
        router.backward(x, dlogits, dx, grad, Call<double>{context, ws});
        EXPECT_TRUE(same_bits(dx, expected.dx));
        return grad;
    };
    const auto weight = only("weight"), bias = only("bias"), neither = only("neither");
    EXPECT_TRUE(same_bits(weight.weight.view(), Matrix<double>(Eigen::Map<const Matrix<double>>(
                                                    expected.gradient.data(), 4, 5))));
    EXPECT_TRUE(same_bits(std::span(bias.bias.data(), 4), std::span(expected.gradient).last(4)));
    EXPECT_TRUE(weight.bias.empty() && bias.weight.empty());
    EXPECT_TRUE(neither.weight.empty() && neither.bias.empty());
}

TEST(LinearRouterModule, StartsWithTheDocumentedVariance) {
    const auto router = make<float>(400, 50, false);
    EXPECT_NEAR(router.weight.view().squaredNorm() / (400 * 50), 1.0 / 400, 2e-4);
    EXPECT_TRUE(router.bias.empty());
    EXPECT_EQ(router.flops_per_token(), 2 * 400 * 50);
}

TEST(LinearRouterModule, AllocatesNothingInTheSecondCall) {
    routers_test::expect_no_allocations<float>(make<float>(33, 9, true), 500, 33, 9, {});
}

}  // namespace
