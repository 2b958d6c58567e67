// SPDX-License-Identifier: MIT
#include <moe/routers/linear.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"

namespace {

using moe::Call;
using moe::Context;
using moe::Index;
using moe::Isa;
using moe::LinearRouterModule;
using moe::Matrix;
using moe::ScopedIsa;
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
struct Result {
    Matrix<S> logits, dx;
    std::vector<S> gradient;
};
template <class S>
Result<S> run(const LinearRouterModule<S>& router, Index tokens, Workspace<S>& ws) {
    const Context context;
    const Index dim = router.weight.cols(), logits = router.weight.rows();
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, logits, 2);
    Result<S> result{Matrix<S>(tokens, logits), Matrix<S>(tokens, dim), {}};
    auto grad = moe::zeros_like(router);
    router.forward(x, result.logits, Call<S>{context, ws});
    router.backward(x, dlogits, result.dx, grad, Call<S>{context, ws});
    result.gradient = seams::values_of<S>(grad);
    return result;
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
            const Result<S> got = run(router, tokens, ws);
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
    const auto router = make<S>(67, 19, true);
    Result<S> expected;
    {
        ScopedIsa scalar(Isa::scalar);
        moe::SerialExecutor serial;
        Workspace<S> ws(serial);
        expected = run(router, 400, ws);
    }
    for (const Isa isa : moe::supported_isas())
        for (const int threads : {1, 2, 7}) {
            SCOPED_TRACE(moe::name(isa));
            SCOPED_TRACE(threads);
            ScopedIsa forced(isa);
            moe::ThreadPool pool(threads);
            Workspace<S> ws(pool);
            const Result<S> got = run(router, 400, ws);
            EXPECT_TRUE(same_bits(got.logits, expected.logits));
            EXPECT_TRUE(same_bits(got.dx, expected.dx));
            EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
            const auto frozen = router.freeze({});
            EXPECT_TRUE(same_bits(run(frozen, 400, ws).logits, expected.logits));
            ScopedIsa other(Isa::scalar);
            EXPECT_TRUE(same_bits(run(frozen, 400, ws).logits, expected.logits));
        }
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
    const auto router = make<float>(33, 9, true);
    moe::ThreadPool pool(2);
    Workspace<float> ws(pool);
    const Context context;
    const auto x = random_matrix<float>(500, 33, 1), dlogits = random_matrix<float>(500, 9, 2);
    Matrix<float> logits(500, 9), dx(500, 33);
    auto grad = moe::zeros_like(router);
    const auto both = [&] {
        router.forward(x, logits, Call<float>{context, ws});
        router.backward(x, dlogits, dx, grad, Call<float>{context, ws});
    };
    both();
    EXPECT_EQ(allocations::in(both), 0);
}

}  // namespace
