// SPDX-License-Identifier: MIT
#include <moe/routers/external.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/top_p.hpp>
#include <moe/losses/z_loss.hpp>

#include "routers/decided.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace {

using moe::Context;
using moe::ContextGradients;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::random_spaced;
using moe::testing::same_bits;
using support::message;

template <class S>
class ExternalRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ExternalRouter, Scalars);

template <class S>
struct Both {
    Matrix<S> logits, dx;
};
/// Forward and backward of the router alone on a batch of NaN.
template <class S>
Both<S> run(Index tokens, const Matrix<S>& dlogits, const Context& context, Workspace<S>& ws) {
    auto router = decided::build<S>(moe::ExternalRouter{}, dlogits.cols());
    constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    const Matrix<S> x = Matrix<S>::Constant(tokens, decided::dim, nan);
    Both<S> result{Matrix<S>::Constant(tokens, dlogits.cols(), nan), x};
    const moe::Call<S> call{context, ws};
    router.forward(x, result.logits, call);
    router.backward(x, dlogits, result.dx, router, call);
    return result;
}

TYPED_TEST(ExternalRouter, TakesTheLogitsOfEachToken) {
    using S = TypeParam;
    Matrix<S> given = random_matrix<S>(5, 3, 1);
    given(1, 2) = -std::numeric_limits<S>::infinity();
    given(3, 0) = std::numeric_limits<S>::quiet_NaN();
    const Matrix<S> dlogits = random_matrix<S>(5, 3, 2), before = random_matrix<S>(5, 3, 3);
    Matrix<S> dgiven = before;
    ContextGradients gradients{.side_vectors = dgiven};
    const Context context{.side_vectors = given, .gradients = &gradients};
    Workspace<S> ws;
    const Both<S> got = run(5, dlogits, context, ws);
    EXPECT_TRUE(same_bits(got.logits, given));
    EXPECT_EQ(got.dx, (Matrix<S>::Zero(5, decided::dim)));
    EXPECT_EQ(dgiven, (before + dlogits).eval());
}

TYPED_TEST(ExternalRouter, TakesTheLogitsOfEachSequence) {
    // Sequences of 2, 0, 1 and 3 tokens.
    using S = TypeParam;
    const Matrix<S> given = random_matrix<S>(4, 3, 1), dlogits = random_matrix<S>(6, 3, 2);
    const std::vector<Index> offsets{0, 2, 2, 3, 6};
    Matrix<S> dgiven = Matrix<S>::Constant(4, 3, S(1));
    ContextGradients gradients{.side_vectors = dgiven};
    const Context context{
        .sequence_offsets = offsets, .side_vectors = given, .gradients = &gradients};
    Workspace<S> ws;
    const Both<S> got = run(6, dlogits, context, ws);
    const Index sequence[]{0, 0, 2, 3, 3, 3};
    Matrix<double> expected = Matrix<double>::Ones(4, 3);
    for (Index t = 0; t < 6; ++t) {
        EXPECT_EQ(got.logits.row(t), given.row(sequence[t])) << t;
        for (Index l = 0; l < 3; ++l)
            expected(sequence[t], l) += static_cast<double>(dlogits(t, l));
    }
    EXPECT_TRUE(moe::testing::compare(dgiven, expected, std::is_same_v<S, float> ? 1e-6 : 1e-15));
    EXPECT_EQ(got.dx, (Matrix<S>::Zero(6, decided::dim)));
}

TYPED_TEST(ExternalRouter, PrefersTokensWhereThereAreAsManySequences) {
    using S = TypeParam;
    const Matrix<S> given = random_matrix<S>(3, 2, 1), dlogits = random_matrix<S>(3, 2, 2);
    const std::vector<Index> offsets{0, 3, 3, 3};
    Workspace<S> ws;
    const Context context{.sequence_offsets = offsets, .side_vectors = given};
    EXPECT_TRUE(same_bits(run(3, dlogits, context, ws).logits, given));
}

TYPED_TEST(ExternalRouter, ReadsRowsOfWiderMatrices) {
    using S = TypeParam;
    const Matrix<S> wide = random_matrix<S>(4, 9, 1), dlogits = random_matrix<S>(4, 3, 2);
    Matrix<S> dwide = Matrix<S>::Zero(4, 7);
    ContextGradients gradients{.side_vectors = dwide.leftCols(3)};
    const Context context{.side_vectors = wide.leftCols(3), .gradients = &gradients};
    Workspace<S> ws;
    EXPECT_TRUE(same_bits(run(4, dlogits, context, ws).logits, Matrix<S>(wide.leftCols(3))));
    EXPECT_EQ(dwide.leftCols(3), dlogits);
    EXPECT_EQ(dwide.rightCols(4), (Matrix<S>::Zero(4, 4)));
}

/// A layer on these logits, and a loss on what it returns and on its logits.
template <class Gate>
void expect_gradients(const Gate& gate, Index tokens, Matrix<double> given, Context context) {
    constexpr Index experts = 5;
    auto layer = moe::make_layer<double>(moe::Config{.model_dim = decided::dim, .seed = 3},
                                         moe::ExternalRouter{}, gate,
                                         moe::Swiglu{.count = experts, .ffn_dim = 3});
    Matrix<double> x = random_matrix<double>(tokens, decided::dim, 1);
    const Matrix<double> dy = random_matrix<double>(tokens, decided::dim, 2);
    Matrix<double> y(tokens, decided::dim), dx(tokens, decided::dim);
    Matrix<double> dgiven = Matrix<double>::Zero(given.rows(), given.cols());
    ContextGradients gradients{.side_vectors = dgiven};
    context.side_vectors = given;
    context.gradients = &gradients;
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy) + 0.3 * moe::z_loss(ws, 0);
    };
    loss();
    moe::z_loss(ws, 0.3);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    const auto options = seams::options(seams::SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, given, dgiven, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
    EXPECT_GT(dgiven.cwiseAbs().minCoeff(), 0);
}

TEST(ExternalRouterModule, GradientsAtTheLogitsOfEachTokenAreExact) {
    const auto given = random_spaced<double>(6, 5, 4, 0.3);
    expect_gradients(moe::TopK{.k = 2}, 6, given, {});
    expect_gradients(moe::TopK{.k = 5, .score = moe::Score::sigmoid}, 6, given, {});
    expect_gradients(moe::TopP{.p = 0.6}, 6, given, {});
}

TEST(ExternalRouterModule, GradientsAtTheLogitsOfEachSequenceAreExact) {
    const std::vector<Index> offsets{0, 1, 4, 6};
    Context context;
    context.sequence_offsets = offsets;
    expect_gradients(moe::TopK{.k = 2}, 6, random_spaced<double>(3, 5, 4, 0.3), context);
}

TEST(ExternalRouterModule, PaddingAndMaskedExpertsSendNoGradient) {
    const Matrix<double> given = random_spaced<double>(3, 3, 4, 0.3);
    const std::vector<std::uint8_t> padding{0, 1, 0}, allowed{1, 1, 1, 1, 1, 1, 0, 1, 1};
    Matrix<double> dgiven = Matrix<double>::Zero(3, 3);
    ContextGradients gradients{.side_vectors = dgiven};
    const Context context{
        .padding = padding, .side_vectors = given, .allowed = allowed, .gradients = &gradients};
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = decided::dim}, moe::ExternalRouter{},
                                moe::TopK{.k = 2}, moe::Swiglu{.count = 3, .ffn_dim = 3});
    const auto x = random_matrix<double>(3, decided::dim, 1);
    Matrix<double> y(3, decided::dim), dx(3, decided::dim);
    Workspace<double> ws;
    layer.forward(x, y, ws, context);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, x, dx, grad, ws, context);
    EXPECT_EQ(dgiven.row(1), (Matrix<double>::Zero(1, 3)));
    EXPECT_EQ(dgiven(2, 0), 0);
    EXPECT_NE(dgiven(2, 1), 0);
    EXPECT_TRUE(dgiven.row(0).any());
}

TYPED_TEST(ExternalRouter, WorksWithoutTokensAndWithoutAGradient) {
    using S = TypeParam;
    Workspace<S> ws;
    EXPECT_EQ(run(0, Matrix<S>(0, 3), Context{}, ws).logits.rows(), 0);
    const Matrix<S> none(0, 3), given = random_matrix<S>(2, 3, 1);
    EXPECT_EQ(run(0, none, Context{.side_vectors = none}, ws).logits.rows(), 0);
    ContextGradients other;
    const Context context{.side_vectors = given, .gradients = &other};
    EXPECT_EQ(run(2, given, context, ws).dx, (Matrix<S>::Zero(2, decided::dim)));
}

TEST(ExternalRouterModule, GivesTheSameBitsWithAnyNumberOfThreads) {
    constexpr Index tokens = 1400, logits = 9;
    const auto dlogits = random_matrix<float>(tokens, logits, 2);
    std::vector<Index> offsets;  // of 200 sequences
    for (Index b = 0; b <= 200; ++b) offsets.push_back(b * (b + 80) * tokens / (200 * 280));
    for (const Index rows : {tokens, Index{200}}) {
        const auto given = random_matrix<float>(rows, logits, 1);
        Matrix<float> first, dfirst;
        for (const int threads : {1, 2, 3}) {
            Matrix<float> dgiven = Matrix<float>::Zero(rows, logits);
            ContextGradients gradients{.side_vectors = dgiven};
            const Context context{
                .sequence_offsets = offsets, .side_vectors = given, .gradients = &gradients};
            Workspace<float> ws;
            ws.threads(threads).plan({.serial_flops = 0});
            const auto got = run(tokens, dlogits, context, ws);
            if (threads == 1) first = got.logits, dfirst = dgiven;
            EXPECT_TRUE(same_bits(got.logits, first));
            EXPECT_TRUE(same_bits(dgiven, dfirst));
        }
    }
}

TEST(ExternalRouterModule, AllocatesNothing) {
    const auto given = random_matrix<float>(100, 8, 1);
    Matrix<float> dgiven = given, logits(100, 8), x(100, decided::dim), dx = x;
    ContextGradients gradients{.side_vectors = dgiven};
    const Context context{.side_vectors = given, .gradients = &gradients};
    auto router = decided::build<float>(moe::ExternalRouter{}, 8);
    Workspace<float> ws;
    EXPECT_EQ(allocations::in([&] {
                  router.forward(x, logits, moe::Call<float>{context, ws});
                  router.backward(x, given, dx, router, moe::Call<float>{context, ws});
              }),
              0);
}

TEST(ExternalRouterModule, SaysWhatItMisses) {
    const auto forward = [](const Context& context) {
        Workspace<double> ws;
        return message([&] { run(5, Matrix<double>(5, 3), context, ws); });
    };
    EXPECT_EQ(forward({}),
              "moe::Context: side_vectors is empty, the part that reads it wants double; set "
              "Context::side_vectors, one row per token or per sequence");
    const Matrix<float> other(5, 3);
    EXPECT_EQ(forward({.side_vectors = other}),
              "moe::Context: side_vectors is of another scalar, the part that reads it wants "
              "double");
    const Matrix<double> narrow(5, 2), few(2, 3), none(0, 3);
    EXPECT_EQ(forward({.side_vectors = narrow}),
              "moe::ExternalRouter: side_vectors is [5, 2], it must have 3 columns and a row for "
              "each of the 5 tokens, or for each sequence of sequence_offsets");
    const std::string wanted =
        "moe::ExternalRouter: side_vectors is [2, 3], it must have 3 columns and a row for each of "
        "the 5 tokens, or for each sequence of sequence_offsets";
    EXPECT_EQ(forward({.side_vectors = few}), wanted);
    const std::vector<Index> three{0, 1, 3, 5}, wrong{0, 1, 4};
    EXPECT_EQ(forward({.sequence_offsets = three, .side_vectors = few}), wanted);
    EXPECT_NE(forward({.side_vectors = none}).find("side_vectors is [0, 3]"), std::string::npos);
    EXPECT_NE(forward({.sequence_offsets = wrong, .side_vectors = few})
                  .find("moe::ExternalRouter: sequence_offsets must ascend from 0 to the 5"),
              std::string::npos);
}

}  // namespace
