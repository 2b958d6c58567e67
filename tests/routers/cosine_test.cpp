// SPDX-License-Identifier: MIT
#include <moe/routers/cosine.hpp>

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

using moe::Call;
using moe::Context;
using moe::CosineRouterModule;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;
using support::message;

static_assert(moe::Recipe<moe::CosineRouter>);
static_assert(moe::Router<CosineRouterModule<float>>);
static_assert(moe::Router<CosineRouterModule<double>, double>);

/// Tutel, XMoE's paper and code, StableMoE, DynMoE, small.
const moe::CosineRouter published[] = {
    {.projection_dim = 7, .bias = true},
    {.projection_dim = 3, .embedding_norm = 1.5},
    {.projection_dim = 3,
     .temperature = 1,
     .learn_temperature = false,
     .normalize_tokens = false,
     .embedding_norm = 1.5,
     .epsilon = 1e-4},
    {.projection_dim = 0, .normalize_tokens = false, .embedding_norm = 1.5},
    {.projection_dim = 0, .temperature = 0.1},
};

template <class S>
CosineRouterModule<S> make(const moe::CosineRouter& recipe, Index dim, Index logits) {
    moe::Random random(1);
    auto router = recipe.build<S>(
        {.model_dim = dim, .num_experts = logits, .output_dim = dim, .num_logits = logits}, random);
    for (Index i = 0; i < router.projection.bias.size(); ++i)
        router.projection.bias.data()[i] =
            static_cast<S>(moe::testing::random_value(7, static_cast<std::uint64_t>(i)));
    return router;
}

/// exp(min(tau, log 100)) cos(P x + b, m_e), one element after the other
template <class S>
Matrix<double> reference(const moe::CosineRouter& recipe, const CosineRouterModule<S>& router,
                         const Matrix<S>& x) {
    const auto length = [&](const std::vector<double>& v) {
        double squares = 0;
        for (const double element : v) squares += element * element;
        return std::max(std::sqrt(squares), recipe.epsilon);
    };
    const auto& p = router.projection.weight;
    Matrix<double> logits(x.rows(), router.embeddings.rows());
    for (Index t = 0; t < x.rows(); ++t) {
        std::vector<double> r;
        for (Index i = 0; i < router.embeddings.cols(); ++i) {
            if (recipe.projection_dim == 0) {
                r.push_back(double{x(t, i)});
                continue;
            }
            double sum = recipe.bias ? double{router.projection.bias(0, i)} : 0;
            for (Index d = 0; d < x.cols(); ++d) sum += double{p(i, d)} * double{x(t, d)};
            r.push_back(sum);
        }
        for (Index e = 0; e < logits.cols(); ++e) {
            std::vector<double> m;
            double dot = 0;
            for (Index i = 0; i < router.embeddings.cols(); ++i) {
                m.push_back(double{router.embeddings(e, i)});
                dot += r[static_cast<std::size_t>(i)] * m.back();
            }
            const double scale = std::min(std::exp(double{router.log_scale(0, 0)}), 100.0);
            logits(t, e) = scale * dot / length(m) / (recipe.normalize_tokens ? length(r) : 1);
        }
    }
    return logits;
}

template <class S>
Matrix<S> logits_of(const CosineRouterModule<S>& router, const Matrix<S>& x) {
    Workspace<S> ws;
    const Context context;
    Matrix<S> logits(x.rows(), router.embeddings.rows());
    router.forward(x, logits, Call<S>{context, ws});
    return logits;
}

template <class S>
routers_test::Result<S> run(const CosineRouterModule<S>& router, const Matrix<S>& x,
                            Workspace<S>& ws) {
    return routers_test::run<S>(router, x, random_matrix<S>(x.rows(), router.embeddings.rows(), 2),
                                Context{}, ws);
}

template <class S>
class CosineRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CosineRouter, Scalars);

TYPED_TEST(CosineRouter, ComparesDirectionsForAnyExtents) {
    using S = TypeParam;
    const Index extents[][3] = {{1, 1, 1}, {3, 5, 2}, {65, 33, 8}, {64, 16, 17}, {0, 4, 3}};
    for (const auto& [tokens, dim, logits] : extents)
        for (const moe::CosineRouter& recipe : published) {
            SCOPED_TRACE(std::to_string(tokens) + " " + std::to_string(&recipe - published));
            const auto router = make<S>(recipe, dim, logits);
            const auto x = random_matrix<S>(tokens, dim, 1);
            EXPECT_TRUE(moe::testing::compare(logits_of(router, x), reference(recipe, router, x),
                                              std::is_same_v<S, float> ? 3e-6 : 1e-14));
        }
}

TYPED_TEST(CosineRouter, ScalingATokenChangesNothingWithoutABias) {
    using S = TypeParam;
    const auto x = random_matrix<S>(20, 6, 1);
    const double far = std::is_same_v<S, float> ? 0x1p100 : 0x1p900;
    const double near = std::is_same_v<S, float> ? 0x1p-20 : 0x1p-30;  // above epsilon
    for (const moe::CosineRouter& recipe : published) {
        if (recipe.bias || !recipe.normalize_tokens) continue;
        const auto router = make<S>(recipe, 6, 5);
        const auto expected = logits_of(router, x);
        for (const double factor : {near, 0.5, 8.0, far})
            EXPECT_TRUE(moe::testing::compare(logits_of<S>(router, x * static_cast<S>(factor)),
                                              expected, std::is_same_v<S, float> ? 1e-6 : 1e-15))
                << factor;
    }
}

TYPED_TEST(CosineRouter, ScalingAnEmbeddingChangesNothing) {
    using S = TypeParam;
    const auto x = random_matrix<S>(20, 6, 1);
    for (const moe::CosineRouter& recipe : published) {
        auto router = make<S>(recipe, 6, 5);
        const auto expected = logits_of(router, x);
        router.rescale_embeddings(S(0.75));
        for (Index e = 0; e < 5; ++e)
            EXPECT_NEAR(static_cast<double>(router.embeddings.view().row(e).norm()), 0.75, 1e-6);
        EXPECT_TRUE(moe::testing::compare(logits_of(router, x), expected,
                                          std::is_same_v<S, float> ? 1e-6 : 1e-15));
    }
}

TYPED_TEST(CosineRouter, LogitsAreWithinTheScaleWhichEndsAt100) {
    using S = TypeParam;
    auto router = make<S>({.projection_dim = 0}, 6, 5);
    const auto x = Matrix<S>(router.embeddings.view() * S(3));  // token t lies along embedding t
    for (const double scale : {2.0, 50.0, 100.0, 1000.0}) {
        router.log_scale(0, 0) = static_cast<S>(std::log(scale));
        const Matrix<S> logits = logits_of(router, x);
        const double expected = std::min(scale, 100.0);
        for (Index t = 0; t < 5; ++t)
            EXPECT_NEAR(static_cast<double>(logits(t, t)) / expected, 1, 1e-6);
        EXPECT_LE(static_cast<double>(logits.cwiseAbs().maxCoeff()), expected * (1 + 1e-6));
    }
}

TYPED_TEST(CosineRouter, GivesTheSameBitsHoweverItIsComputed) {
    using S = TypeParam;
    for (moe::CosineRouter recipe : published) {
        if (recipe.projection_dim > 0) recipe.projection_dim = 33;
        routers_test::expect_same_bits_on_every_isa<S>(make<S>(recipe, 67, 19), 400, 67, 19);
    }
}

TYPED_TEST(CosineRouter, ZeroTokensAndEmbeddingsScoreZeroWithFiniteGradients) {
    using S = TypeParam;
    for (const moe::CosineRouter& recipe : published) {
        if (recipe.bias) continue;
        auto router = make<S>(recipe, 6, 3);
        router.embeddings.view().row(1).setZero();
        auto x = random_matrix<S>(4, 6, 1);
        x.row(2).setZero();
        Workspace<S> ws;
        const auto got = run(router, x, ws);
        EXPECT_TRUE((got.logits.row(2).array() == 0).all());
        EXPECT_TRUE((got.logits.col(1).array() == 0).all());
        EXPECT_TRUE((got.logits.col(0).array() != 0).count() == 3);
        EXPECT_TRUE(got.dx.allFinite());
        for (const S value : got.gradient) EXPECT_TRUE(std::isfinite(value));
    }
}

TYPED_TEST(CosineRouter, ATokenThatIsNotFiniteSpoilsItsOwnLogitsOnly) {
    using S = TypeParam;
    for (const moe::CosineRouter& recipe : published)
        for (const S bad :
             {std::numeric_limits<S>::quiet_NaN(), std::numeric_limits<S>::infinity()}) {
            const auto router = make<S>(recipe, 6, 5);
            auto x = random_matrix<S>(3, 6, 1);
            const auto expected = logits_of(router, x);
            x(1, 2) = bad;
            const auto got = logits_of(router, x);
            EXPECT_FALSE(got.row(1).array().isFinite().any());
            EXPECT_TRUE(!recipe.normalize_tokens || got.row(1).array().isNaN().all());
            EXPECT_TRUE(same_bits(Matrix<S>(got.row(0)), Matrix<S>(expected.row(0))));
            EXPECT_TRUE(same_bits(Matrix<S>(got.row(2)), Matrix<S>(expected.row(2))));
        }
}

TEST(CosineRouterModule, GradientsAreExact) {
    for (const moe::CosineRouter& recipe : published) {
        SCOPED_TRACE(&recipe - published);
        EXPECT_TRUE(moe::testing::check_gradients(make<double>(recipe, 5, 4),
                                                  {.rows = 6, .columns = 5, .output_columns = 4}));
    }
}

TEST(CosineRouterModule, GradientsAreExactWhereNormsAreClamped) {
    for (moe::CosineRouter recipe : published) {
        recipe.epsilon = 0.5;  // above some norms, below others
        recipe.embedding_norm = 1;
        auto router = make<double>(recipe, 5, 4);
        for (const Index e : {0, 2})
            for (Index i = 0; i < router.embeddings.cols(); ++i) router.embeddings(e, i) *= 0.3;
        auto x = random_matrix<double>(6, 5, 1);
        x.topRows(3) *= 0.05;
        if (recipe.bias) router.projection.bias.view() *= 0.05;
        EXPECT_TRUE(
            moe::testing::compare(logits_of(router, x), reference(recipe, router, x), 1e-14));
        routers_test::expect_exact_gradients(router, x, 4, {});
    }
}

TEST(CosineRouterModule, TheScaleHasAGradientUpTo100) {
    const auto gradient = [](double log_scale) {
        auto router = make<double>({.projection_dim = 0}, 5, 4);
        router.log_scale(0, 0) = log_scale;
        Workspace<double> ws;
        return run(router, random_matrix<double>(6, 5, 1), ws).gradient.back();
    };
    EXPECT_NE(gradient(4.6), 0);
    EXPECT_EQ(gradient(4.7), 0);
    const auto least = make<double>({.temperature = 0.01}, 5, 4);
    const auto least_float = make<float>({.temperature = 0.01}, 5, 4);
    EXPECT_NEAR(least.scale(), 100, 1e-12);
    EXPECT_NE(gradient(least.log_scale(0, 0)), 0);
    EXPECT_LE(least_float.log_scale(0, 0), 4.6051702f);
    EXPECT_NEAR(least_float.scale(), 100.0f, 1e-4f);
}

TEST(CosineRouterModule, GradientsInsideALayerAreExact) {
    for (const moe::CosineRouter& recipe : published)
        EXPECT_TRUE(moe::testing::check_gradients(
            moe::make_layer<double>(moe::Config{.model_dim = 5}, recipe, moe::TopK{.k = 2},
                                    moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Copy{}),
            {.rows = 6, .columns = 5, .scale = 0.01}));
}

TEST(CosineRouterModule, TheGradientOfATokenIsAcrossIt) {
    const auto router = make<double>({.projection_dim = 0}, 6, 5);
    const auto x = random_matrix<double>(7, 6, 1);
    Workspace<double> ws;
    const auto got = run(router, x, ws);
    for (Index t = 0; t < 7; ++t) {
        EXPECT_NEAR(got.dx.row(t).dot(x.row(t)), 0, 1e-14);
        EXPECT_GT(got.dx.row(t).norm(), 0.1);
    }
}

TEST(CosineRouterModule, LeavesOutGradientsThatAreNotWanted) {
    routers_test::expect_only_wanted_gradients(
        make<double>({.projection_dim = 3, .bias = true}, 5, 4), 5, 4,
        {"projection.weight", "projection.bias", "embeddings", "log_scale"});
}

TEST(CosineRouterModule, ATemperatureThatIsNotLearnedIsFrozen) {
    for (const bool learn : {false, true}) {
        const auto router = make<float>({.learn_temperature = learn}, 5, 4);
        std::vector<std::string> trainable;
        moe::for_each_parameter(router,
                                [&](std::string_view name, auto) { trainable.emplace_back(name); });
        EXPECT_EQ(trainable.size(), learn ? 3u : 2u);
        EXPECT_EQ(trainable.back(), learn ? "log_scale" : "embeddings");
        EXPECT_EQ(moe::zeros_like(router).log_scale.empty(), !learn);
    }
}

TEST(CosineRouterModule, PaddingDoesNotReachTheGradient) {
    for (const moe::CosineRouter& recipe : published)
        routers_test::expect_padding_does_not_reach_the_gradient(recipe);
}

TEST(CosineRouterModule, FrozenInALayerGivesTheSameBits) {
    for (const moe::CosineRouter& recipe : published) routers_test::expect_same_bits_frozen(recipe);
    EXPECT_GE(make<float>({.projection_dim = 8}, 16, 4).freeze({}).bytes(), 4 * 8 * (16 + 4));
    EXPECT_GE(make<float>({.projection_dim = 0}, 16, 4).freeze({}).bytes(), 4 * 16 * 4);
}

TEST(CosineRouterModule, StartsAsDocumented) {
    const auto router = make<float>({.bias = true}, 400, 10);
    EXPECT_EQ(router.projection.weight.rows(), 256);
    EXPECT_NEAR(router.projection.weight.view().squaredNorm() / (400 * 256), 1.0 / 400, 1e-4);
    for (Index e = 0; e < 10; ++e) EXPECT_NEAR(router.embeddings.view().row(e).norm(), 1, 1e-6);
    EXPECT_NEAR(router.scale(), 2, 1e-6);
    EXPECT_EQ(router.flops_per_token(), 2 * 256 * (400 + 10));
    EXPECT_TRUE(make<float>({}, 8, 2).projection.bias.empty());
    EXPECT_TRUE(make<float>({.projection_dim = 0}, 8, 2).projection.weight.empty());
}

TEST(CosineRouterModule, RefusesBadSettingsAndOtherShapes) {
    const auto refused = [](const moe::CosineRouter& recipe) {
        return message([&] { make<float>(recipe, 4, 2); });
    };
    EXPECT_EQ(refused({.projection_dim = -1}),
              "moe::CosineRouter: projection_dim is -1, it must be >= 0 (0: no projection)");
    EXPECT_NE(refused({.projection_dim = 0, .bias = true}).find("set projection_dim or leave"),
              std::string::npos);
    for (const double temperature : {0.0, -1.0, 0.009, std::nan(""), HUGE_VAL})
        EXPECT_NE(
            refused({.temperature = temperature})
                .find("temperature is " + moe::detail::text(temperature) + ", it must be finite"),
            std::string::npos);
    for (const double value : {0.0, -1.0, 1e-60, 1e60, std::nan("")}) {
        const std::string is = " is " + moe::detail::text(value) + ", it must be finite and > 0";
        EXPECT_NE(refused({.embedding_norm = value}).find("embedding_norm" + is),
                  std::string::npos);
        EXPECT_NE(refused({.epsilon = value}).find("epsilon" + is), std::string::npos);
    }
    const moe::Shape shape{.model_dim = 4, .num_experts = 2, .output_dim = 4, .num_logits = 2};
    for (const moe::CosineRouter& recipe : published) {
        const auto router = make<float>(recipe, 4, 2);
        EXPECT_NO_THROW(router.check(shape));
        const Index inner = router.embeddings.cols();
        for (const auto& [rows, cols] : {std::pair<Index, Index>{3, inner}, {2, inner + 1}}) {
            auto other = router;
            other.embeddings = moe::Parameter<float>(rows, cols);
            EXPECT_NE(message([&] { other.check(shape); }).find("the layer wants"),
                      std::string::npos);
        }
        if (recipe.projection_dim == 0) continue;
        auto other = router;
        other.projection.weight = moe::Parameter<float>(inner, 5);
        EXPECT_NE(message([&] { other.check(shape); }).find("the layer wants"), std::string::npos);
    }
}

TEST(CosineRouterModule, AllocatesNothingInTheSecondCall) {
    for (const moe::CosineRouter& recipe : published)
        routers_test::expect_no_allocations<float>(make<float>(recipe, 33, 9), 500, 33, 9, {});
}

}  // namespace
