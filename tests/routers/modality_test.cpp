// SPDX-License-Identifier: MIT
#include <moe/routers/modality.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::ExpertRange;
using moe::LinearRouter;
using moe::PerModality;

constexpr Index tokens = 8, dim = 5, experts = 4;
enum : std::int32_t { vision, text };
const std::vector<std::int32_t> modalities{vision, text, text, vision, text, vision, vision, text};
// MoIIE with four experts: vision only, two common ones, text only.
const std::vector<ExpertRange> ranges{{0, 3}, {1, 4}};

const ExpertRange& range_of(Index token) {
    return ranges[static_cast<std::size_t>(modalities[static_cast<std::size_t>(token)])];
}

template <class S>
class ModalityRouters : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ModalityRouters, Scalars);

TYPED_TEST(ModalityRouters, LetEachTokenSeeTheExpertsOfItsModality) {
    using S = TypeParam;
    for (const bool separate : {false, true}) {
        const auto router = build<S>(PerModality{LinearRouter{}, ranges, separate}, dim, experts);
        const auto x = random_matrix<S>(tokens, dim, 1);
        const auto dlogits = random_matrix<S>(tokens, experts, 2);
        Workspace<S> ws;
        const auto got = run<S>(router, x, dlogits, {.token_groups = modalities}, ws);
        Matrix<double> logits(tokens, experts), dx = Matrix<double>::Zero(tokens, dim);
        const std::size_t count = separate ? 2 : 1;
        ASSERT_EQ(router.routers().size(), count);
        std::vector<double> dw(count * experts * dim, 0);
        for (Index t = 0; t < tokens; ++t) {
            const auto m =
                separate ? static_cast<std::size_t>(modalities[static_cast<std::size_t>(t)]) : 0;
            for (Index e = 0; e < experts; ++e) {
                logits(t, e) = range_of(t).holds(e) ? 0 : -infinity;
                for (Index d = 0; d < dim && range_of(t).holds(e); ++d) {
                    const auto w = static_cast<double>(router.routers()[m].weight(e, d));
                    const auto dz = static_cast<double>(dlogits(t, e));
                    logits(t, e) += static_cast<double>(x(t, d)) * w;
                    dx(t, d) += dz * w;
                    dw[(m * experts + static_cast<std::size_t>(e)) * dim +
                       static_cast<std::size_t>(d)] += dz * static_cast<double>(x(t, d));
                }
            }
        }
        const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
        EXPECT_TRUE(moe::testing::compare(got.logits, logits, tolerance));
        EXPECT_TRUE(moe::testing::compare(got.dx, dx, tolerance));
        EXPECT_TRUE(moe::testing::compare(got.gradient, dw, tolerance, {.allow_zeros = true}));
    }
}

TEST(PerModality, HasExactGradients) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    const Context context{.token_groups = modalities};
    for (const bool separate : {false, true}) {
        expect_exact_gradients(
            build<double>(PerModality{LinearRouter{.bias = true}, ranges, separate}, dim, experts),
            x, experts, context);
        expect_exact_gradients(
            build<double>(PerModality{own(dim, experts), ranges, separate}, dim, experts), x,
            experts, context);
        expect_exact_in_layer(PerModality{LinearRouter{}, ranges, separate}, context, tokens);
    }
}

TEST(PerModality, NeverCrossesAMask) {
    for (const bool separate : {false, true})
        for (const Index k : {Index{1}, Index{2}, Index{4}}) {
            auto layer = moe::make_layer<double>(
                moe::Config{.model_dim = dim}, PerModality{LinearRouter{}, ranges, separate},
                moe::TopK{.k = k}, moe::Swiglu{.count = experts, .ffn_dim = 2});
            Workspace<double> ws;
            layer.route(random_matrix<double>(tokens, dim, 1), ws, {.token_groups = modalities});
            EXPECT_EQ(ws.routing().num_kept(), tokens * std::min<Index>(k, 3));
            for (const moe::Assignment& a : ws.routing().assignments())
                EXPECT_TRUE(range_of(a.token).holds(a.expert) || a.dropped != moe::Dropped::no);
        }
}

TEST(PerModality, DoesNotLetExpertsOfOneModalityLearnFromAnother) {
    // Expert 0 is for vision only: text tokens leave its row of W alone, whatever dlogits say.
    const auto router = build<double>(PerModality{LinearRouter{}, ranges}, dim, experts);
    const std::vector<std::int32_t> only_text(tokens, text);
    Workspace<double> ws;
    const auto got =
        run<double>(router, random_matrix<double>(tokens, dim, 1),
                    Matrix<double>::Ones(tokens, experts), {.token_groups = only_text}, ws);
    for (Index i = 0; i < experts * dim; ++i)
        EXPECT_EQ(got.gradient[static_cast<std::size_t>(i)] == 0, i < dim);
}

TEST(PerModality, IsTheInnerRouterToTheBitWhereAllExpertsAreCommon) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    const auto dlogits = random_matrix<double>(tokens, experts, 2);
    const std::vector<ExpertRange> all{{0, 4}, {0, 4}};
    const auto router = build<double>(PerModality{LinearRouter{}, all}, dim, experts);
    Workspace<double> ws, other;
    const auto got = run<double>(router, x, dlogits, {.token_groups = modalities}, ws);
    const auto expected =
        run<double>(build<double>(LinearRouter{}, dim, experts), x, dlogits, {}, other);
    EXPECT_TRUE(same_bits(got.logits, expected.logits));
    EXPECT_TRUE(same_bits(got.dx, expected.dx));
    EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
}

TEST(PerModality, DoesNotDependOnTheOrderOfTokens) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    for (const bool separate : {false, true}) {
        const auto router =
            build<double>(PerModality{LinearRouter{}, ranges, separate}, dim, experts);
        Workspace<double> ws;
        const auto expected = forward<double>(router, x, experts, {.token_groups = modalities}, ws);
        Matrix<double> reversed = x.colwise().reverse();
        const std::vector<std::int32_t> groups(modalities.rbegin(), modalities.rend());
        const auto got = forward<double>(router, reversed, experts, {.token_groups = groups}, ws);
        EXPECT_TRUE(same_bits(Matrix<double>(got.colwise().reverse()), expected));
    }
}

TEST(PerModality, LeavesPaddingOut) {
    auto groups = modalities;
    groups[1] = -1;
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[1] = 1;
    const Context context{.token_groups = groups, .padding = padding};
    for (const bool separate : {false, true}) {
        const auto router =
            build<double>(PerModality{LinearRouter{}, ranges, separate}, dim, experts);
        const auto x = random_matrix<double>(tokens, dim, 1);
        Workspace<double> ws;
        const auto got =
            run<double>(router, x, random_matrix<double>(tokens, experts, 2), context, ws);
        EXPECT_TRUE((got.logits.row(1).array() == -infinity).all());
        EXPECT_TRUE((got.dx.row(1).array() == 0).all());
        expect_exact_in_layer(PerModality{LinearRouter{}, ranges, separate}, context, tokens);
    }
}

TEST(PerModality, HasTheSameBitsOnAnyNumberOfThreadsAndAllocatesNothingTwice) {
    std::vector<std::int32_t> groups;
    for (int t = 0; t < 400; ++t) groups.push_back((t * t + t / 3) % 2);
    const Context context{.token_groups = groups};
    for (const bool separate : {false, true}) {
        const auto router =
            build<float>(PerModality{LinearRouter{}, {{0, 12}, {7, 19}}, separate}, 67, 19);
        expect_same_bits<float>(router, 400, 67, 19, context);
        expect_no_allocations<float>(router, 400, 67, 19, context);
    }
}

TEST(PerModality, NamesItsRouters) {
    const auto names_of = [](const auto& router) {
        std::string names;
        moe::visit_parameters(router, [&](std::string_view name, const auto&, moe::Role) {
            names += std::string(name) + " ";
        });
        return names;
    };
    EXPECT_EQ(names_of(build<double>(PerModality{LinearRouter{}, ranges}, dim, experts)),
              "weight ");
    EXPECT_EQ(names_of(build<double>(PerModality{LinearRouter{}, ranges, true}, dim, experts)),
              "0.weight 1.weight ");
}

TEST(PerModality, RefusesAModalityThatIsNone) {
    const auto router = build<double>(PerModality{LinearRouter{}, ranges}, dim, experts);
    const auto x = random_matrix<double>(2, dim, 1);
    Workspace<double> ws;
    expect_message<std::invalid_argument>(
        [&] { forward<double>(router, x, experts, {}, ws); },
        {"moe::Context: token_groups is empty, moe::PerModality wants the modality of each token; "
         "set Context::token_groups"});
    const std::vector<std::int32_t> groups{1, 2};
    expect_message<std::invalid_argument>(
        [&] { forward<double>(router, x, experts, {.token_groups = groups}, ws); },
        {"moe::Context: token_groups[1] is 2, moe::PerModality has 2", "must be in [0, 2)"});
}

TEST(PerModality, RefusesBadSettings) {
    expect_message<std::invalid_argument>(
        [] { build<double>(PerModality<>{}, dim, experts); },
        {"moe::PerModality: ranges is empty", "moe::PerModality{moe::LinearRouter{}, {{0, 3}"});
    for (const ExpertRange wrong :
         {ExpertRange{-1, 2}, ExpertRange{2, 2}, ExpertRange{3, 1}, ExpertRange{2, 5}})
        expect_message<std::invalid_argument>(
            [&] {
                build<double>(PerModality{LinearRouter{}, {{0, 4}, wrong}}, dim, experts);
            },
            {"moe::PerModality: ranges[1] is [", "at least one of the 4 experts"});
    moe::Random random(1);
    expect_message<std::invalid_argument>(
        [&] {
            PerModality{LinearRouter{}, ranges}.build<double>(
                {.model_dim = dim, .num_experts = 4, .num_logits = 8}, random);
        },
        {"8 logits for 4 experts; use a gate with one logit per expert"});
}

}  // namespace
