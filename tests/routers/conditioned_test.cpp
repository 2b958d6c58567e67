// SPDX-License-Identifier: MIT
#include <moe/routers/conditioned.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::Activation;
using moe::Conditioned;
using moe::LinearRouter;
using moe::RouterInput;

constexpr Index tokens = 7, dim = 5, experts = 4, width = 3;
const std::vector<Index> sequences{0, 3, 3, 7};  // one of them is empty

/// The row of the side vectors that a token reads, counted by hand.
Index row_of(Index token, bool per_token) { return per_token ? token : (token < 3 ? 0 : 2); }

template <class S>
class ConditionedRouters : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ConditionedRouters, Scalars);

TYPED_TEST(ConditionedRouters, ReadASideVectorAloneOrBehindTheToken) {
    using S = TypeParam;
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, experts, 2);
    for (const bool per_token : {true, false})
        for (const RouterInput input : {RouterInput::side, RouterInput::concatenated})
            for (const bool silu : {false, true}) {
                Conditioned recipe{LinearRouter{.bias = true}, width, input};
                if (silu) recipe.activation = Activation::silu;
                auto router = build<S>(recipe, dim, experts);
                router.inner.bias.data()[1] = S(0.5);
                const auto side = random_matrix<S>(per_token ? tokens : 3, width, 3, 2);
                Matrix<S> dside = Matrix<S>::Constant(side.rows(), width, S(0.25));
                moe::ContextGradients gradients{.side_vectors = dside};
                const Context context{
                    .sequence_offsets = sequences, .side_vectors = side, .gradients = &gradients};
                Workspace<S> ws;
                const auto got = run<S>(router, x, dlogits, context, ws);

                const Index skip = input == RouterInput::side ? 0 : dim;
                const auto& w = router.inner.weight;
                ASSERT_EQ(w.cols(), skip + width);
                Matrix<double> logits = Matrix<double>::Zero(tokens, experts);
                Matrix<double> dx = Matrix<double>::Zero(tokens, dim);
                Matrix<double> de = Matrix<double>::Constant(side.rows(), width, 0.25);
                for (Index t = 0; t < tokens; ++t)
                    for (Index l = 0; l < experts; ++l) {
                        const auto dz = static_cast<double>(dlogits(t, l));
                        logits(t, l) += static_cast<double>(router.inner.bias.data()[l]);
                        for (Index d = 0; d < skip; ++d) {
                            const auto weight = static_cast<double>(w(l, d));
                            logits(t, l) += static_cast<double>(x(t, d)) * weight;
                            dx(t, d) += dz * weight;
                        }
                        for (Index v = 0; v < width; ++v) {
                            const auto e = static_cast<double>(side(row_of(t, per_token), v));
                            const auto weight = static_cast<double>(w(l, skip + v));
                            const double s = 1 / (1 + std::exp(-e));
                            logits(t, l) += (silu ? e * s : e) * weight;
                            de(row_of(t, per_token), v) +=
                                dz * weight * (silu ? s * (1 + e * (1 - s)) : 1);
                        }
                    }
                const double tolerance = std::is_same_v<S, float> ? 3e-6 : 1e-14;
                const moe::testing::CompareOptions zeros{.allow_zeros = true};
                EXPECT_TRUE(moe::testing::compare(got.logits, logits, tolerance));
                EXPECT_TRUE(moe::testing::compare(got.dx, dx, tolerance, zeros));
                EXPECT_TRUE(moe::testing::compare(dside, de, tolerance));
            }
}

TEST(Conditioned, HasExactGradientsAtSideVectorsToo) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    const auto dlogits = random_matrix<double>(tokens, experts, 2);
    const std::vector<std::uint8_t> none{}, some{0, 0, 1, 0, 1, 0, 0};
    for (const auto* const padding : {&none, &some})
        for (const bool per_token : {true, false})
            for (const RouterInput input : {RouterInput::side, RouterInput::concatenated})
                for (const auto activation :
                     {std::optional<Activation>(), std::optional(Activation::gelu)}) {
                    auto side = random_matrix<double>(per_token ? tokens : 3, width, 3);
                    const Context context{
                        .padding = *padding, .sequence_offsets = sequences, .side_vectors = side};
                    const Conditioned<> recipe{
                        .vector_dim = width, .input = input, .activation = activation};
                    expect_exact_in_layer(recipe, context, tokens);

                    auto layer = moe::make_layer<double>(
                        moe::Config{.model_dim = dim}, recipe, moe::TopK{.k = 2},
                        moe::Swiglu{.count = experts, .ffn_dim = 3});
                    Matrix<double> y(tokens, dim), dx(tokens, dim);
                    const auto dy = random_matrix<double>(tokens, dim, 4);
                    Workspace<double> ws;
                    const auto loss = [&] {
                        layer.forward(x, y, ws, context);
                        return seams::weighted_sum(y, dy);
                    };
                    loss();
                    Matrix<double> dside = Matrix<double>::Zero(side.rows(), width);
                    moe::ContextGradients gradients{.side_vectors = dside};
                    Context back = context;
                    back.gradients = &gradients;
                    auto grad = moe::zeros_like(layer);
                    layer.backward(x, dy, dx, grad, ws, back);
                    EXPECT_TRUE(moe::testing::check_gradient(
                        loss, side, dside, seams::options(seams::SameChoices(ws))));
                    EXPECT_GT(dside.norm(), 1e-4);
                }
}

TEST(Conditioned, HasExactGradientsAroundAUsersRouter) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    const auto side = random_matrix<double>(tokens, width, 3);
    const Context context{.side_vectors = side};
    const Conditioned recipe{own(dim + width, experts), width, RouterInput::concatenated,
                             Activation::silu};
    expect_exact_gradients(build<double>(recipe, dim, experts), x, experts, context);
    expect_exact_in_layer(recipe, context, tokens);
}

TEST(Conditioned, GivesTheTokensOfASequenceOneDecision) {
    // As with a vector for each of its tokens, to the bit; x does not matter.
    const Conditioned recipe{LinearRouter{.bias = true}, width, RouterInput::side,
                             Activation::silu};
    const auto router = build<double>(recipe, dim, experts);
    const auto side = random_matrix<double>(3, width, 3);
    Matrix<double> expanded(tokens, width);
    for (Index t = 0; t < tokens; ++t) expanded.row(t) = side.row(row_of(t, false));
    Workspace<double> ws;
    const auto got = forward<double>(router, random_matrix<double>(tokens, dim, 1), experts,
                                     {.sequence_offsets = sequences, .side_vectors = side}, ws);
    const auto expected = forward<double>(router, random_matrix<double>(tokens, dim, 7), experts,
                                          {.side_vectors = expanded}, ws);
    EXPECT_TRUE(same_bits(got, expected));
    EXPECT_TRUE(same_bits(got.row(0), got.row(2)));
    EXPECT_FALSE(same_bits(got.row(2), got.row(3)));
}

TEST(Conditioned, IsNotTouchedByWhatPaddingHolds) {
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[2] = 1;
    auto x = random_matrix<double>(tokens, dim, 1), side = random_matrix<double>(tokens, width, 3);
    Matrix<double> dside = Matrix<double>::Zero(tokens, width);
    moe::ContextGradients gradients{.side_vectors = dside};
    const Context context{.padding = padding, .side_vectors = side, .gradients = &gradients};
    const auto router =
        build<double>(Conditioned{LinearRouter{}, width, RouterInput::concatenated}, dim, experts);
    x.row(2).setConstant(not_a_number);
    side.row(2).setConstant(not_a_number);
    Workspace<double> ws;
    const auto got = run<double>(router, x, random_matrix<double>(tokens, experts, 2), context, ws);
    EXPECT_TRUE(got.logits.allFinite() && got.dx.allFinite() && dside.allFinite());
    for (const double value : got.gradient) EXPECT_TRUE(std::isfinite(value));
    EXPECT_TRUE((dside.row(2).array() == 0).all());
}

TEST(Conditioned, BuildsTheInnerRouterForWhatItReads) {
    const auto side_only = build<float>(Conditioned{LinearRouter{}, width}, dim, experts);
    EXPECT_EQ(side_only.inner.weight.cols(), width);
    EXPECT_EQ(side_only.flops_per_token(), 2 * width * experts);
    const auto both =
        build<float>(Conditioned{LinearRouter{}, width, RouterInput::concatenated}, dim, experts);
    EXPECT_EQ(both.inner.weight.cols(), dim + width);
    const moe::Shape shape{.model_dim = dim, .num_experts = experts, .num_logits = experts};
    EXPECT_NO_THROW(side_only.check(shape));
    EXPECT_NO_THROW(both.check(shape));
    expect_message<std::invalid_argument>(
        [&] { both.check({.model_dim = 6, .num_experts = experts, .num_logits = experts}); },
        {"moe::Conditioned: the router was built for model_dim 5, the layer has 6"});
}

TEST(Conditioned, HasTheSameBitsOnAnyNumberOfThreadsAndAllocatesNothingTwice) {
    const auto side = random_matrix<float>(400, 9, 3);
    Matrix<float> dside = Matrix<float>::Zero(400, 9);
    const Context context{.side_vectors = side};
    for (const RouterInput input : {RouterInput::side, RouterInput::concatenated}) {
        const auto router = build<float>(
            Conditioned{LinearRouter{.bias = true}, 9, input, Activation::silu}, 67, 19);
        expect_same_bits<float>(router, 400, 67, 19, context);
        moe::ContextGradients gradients{.side_vectors = dside};
        expect_no_allocations<float>(router, 400, 67, 19,
                                     {.side_vectors = side, .gradients = &gradients});
    }
}

TEST(Conditioned, WorksOnNoTokens) {
    const auto router = build<double>(Conditioned{LinearRouter{}, width}, dim, experts);
    const Matrix<double> side(0, width);
    Workspace<double> ws;
    const auto got = run<double>(router, Matrix<double>(0, dim), Matrix<double>(0, experts),
                                 {.side_vectors = side}, ws);
    EXPECT_EQ(got.logits.rows(), 0);
    for (const double value : got.gradient) EXPECT_EQ(value, 0);
}

TEST(Conditioned, SaysWhatIsWrongWithSideVectors) {
    const auto router = build<double>(Conditioned{LinearRouter{}, width}, dim, experts);
    const auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    const auto call = [&](const Context& context) {
        return [&router, &x, &ws, context] { forward<double>(router, x, experts, context, ws); };
    };
    expect_message<std::invalid_argument>(call({}), {"moe::Context: side_vectors is empty"});
    const auto of_float = random_matrix<float>(tokens, width, 3);
    expect_message<std::invalid_argument>(call({.side_vectors = of_float}),
                                          {"side_vectors is of another scalar"});
    const auto narrow = random_matrix<double>(tokens, 2, 3);
    expect_message<std::invalid_argument>(
        call({.side_vectors = narrow}),
        {"moe::Context: side_vectors is [7, 2], moe::Conditioned wants [7, 3], one per token"});
    const auto three = random_matrix<double>(3, width, 3);
    expect_message<std::invalid_argument>(call({.side_vectors = three}),
                                          {"side_vectors is [3, 3]", "each of the 0 sequences"});
    const auto two = random_matrix<double>(2, width, 3);
    expect_message<std::invalid_argument>(
        call({.sequence_offsets = sequences, .side_vectors = two}),
        {"side_vectors is [2, 3]", "each of the 3 sequences of sequence_offsets"});
    const std::vector<Index> shorter{0, 2, 6}, falling{0, 8, 7};
    expect_message<std::invalid_argument>(
        call({.sequence_offsets = shorter, .side_vectors = two}),
        {"moe::Conditioned: sequence_offsets must ascend from 0 to the 7", "last entry is 6"});
    expect_message<std::invalid_argument>(
        call({.sequence_offsets = falling, .side_vectors = two}),
        {"moe::Conditioned: sequence_offsets must ascend", "its entry 2 is 7 after 8"});
}

TEST(Conditioned, RefusesBadSettings) {
    expect_message<std::invalid_argument>(
        [] { build<double>(Conditioned<>{}, dim, experts); },
        {"moe::Conditioned: vector_dim is 0, it must be >= 1", "set it: "});
    expect_message<std::invalid_argument>(
        [] {
            build<double>(Conditioned{LinearRouter{}, 3, static_cast<RouterInput>(7)}, dim,
                          experts);
        },
        {"moe::Conditioned: input is 7, which is none of moe::RouterInput"});
    expect_message<std::invalid_argument>(
        [] {
            build<double>(
                Conditioned{LinearRouter{}, 3, RouterInput::side, static_cast<Activation>(70)}, dim,
                experts);
        },
        {"moe::Conditioned: activation is 70, which is none of moe::Activation"});
}

}  // namespace
