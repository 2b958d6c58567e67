// SPDX-License-Identifier: MIT
// What the tests of PerTask and PerModality do not show of what they share.
#include <moe/routers/router_set.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/product_key.hpp>
#include <moe/head.hpp>
#include <moe/routers/conditioned.hpp>
#include <moe/routers/modality.hpp>
#include <moe/routers/task.hpp>

#include "routers/wrapped.hpp"
#include "support/message.hpp"

namespace {

using namespace routers_test;
using moe::LinearRouter;
using moe::PerModality;
using support::message;

constexpr Index dim = 4, experts = 5;

auto separate() {
    return build<double>(PerModality{LinearRouter{}, {{0, 3}, {2, 5}}, true}, dim, experts);
}

TEST(ExpertRange, HoldsItsFirstAndNotItsLast) {
    const moe::ExpertRange range{2, 4};
    for (const Index e : {0, 1, 2, 3, 4}) EXPECT_EQ(range.holds(e), e == 2 || e == 3) << e;
    EXPECT_FALSE(moe::ExpertRange{}.holds(0));
}

TEST(TokenGroups, AreOneOfTheBatchOrOneOfEachToken) {
    const std::vector<std::int32_t> each{1, 0};
    const moe::detail::TokenGroups one{.of_batch = 3}, own{.of_tokens = each};
    EXPECT_TRUE(one.is_one());
    EXPECT_EQ(one(7), 3);
    EXPECT_FALSE(own.is_one());
    EXPECT_EQ(own(1), 0);
}

TEST(RouterSet, OfNoTokensRoutesNone) {
    Workspace<double> ws;
    const auto got =
        run<double>(separate(), Matrix<double>(0, dim), Matrix<double>(0, experts), {}, ws);
    EXPECT_EQ(got.logits.rows(), 0);
    EXPECT_EQ(got.dx.rows(), 0);
}

TEST(RouterSet, OfPaddingOnlyRoutesNoneAndHasNoGradient) {
    const std::vector<std::int32_t> groups{-1, 9};
    const std::vector<std::uint8_t> padding{1, 1};
    Workspace<double> ws;
    const auto got = run<double>(separate(), random_matrix<double>(2, dim, 1),
                                 random_matrix<double>(2, experts, 2),
                                 {.token_groups = groups, .padding = padding}, ws);
    EXPECT_TRUE((got.logits.array() == -infinity).all());
    EXPECT_EQ(got.dx, (Matrix<double>::Zero(2, dim)));
    for (const double value : got.gradient) EXPECT_EQ(value, 0);
}

TEST(RouterSet, WantsAGroupOfEachTokenThatExists) {
    const auto router = separate();
    const auto said = [&](const std::vector<std::int32_t>& groups) {
        Workspace<double> ws;
        return message([&] {
            forward<double>(router, random_matrix<double>(3, dim, 1), experts,
                            {.token_groups = groups}, ws);
        });
    };
    EXPECT_EQ(said({}),
              "moe::Context: token_groups is empty, moe::PerModality wants the modality of each "
              "token; set Context::token_groups");
    EXPECT_EQ(said({0, 1}), "moe::Context: token_groups has 2 entries, it wants 3, one per token");
    EXPECT_EQ(said({0, 2, 1}),
              "moe::Context: token_groups[1] is 2, moe::PerModality has 2 of them: a modality must "
              "be in [0, 2)");
    EXPECT_NE(said({0, 1, -1}), "");
    EXPECT_EQ(said({0, 1, 1}), "");
}

TEST(RouterSet, RefusesWhatItCannotPassOnWhateverTheGroupsAre) {
    // Side vectors are per token: separate routers do not get them, for one modality or two.
    const auto x = random_matrix<double>(3, dim, 1), side = random_matrix<double>(3, 2, 2);
    const moe::Conditioned inner{LinearRouter{}, 2};
    const auto said = [&](const PerModality<moe::Conditioned<LinearRouter>>& recipe,
                          const std::vector<std::int32_t>& groups) {
        const auto router = build<double>(recipe, dim, experts);
        Workspace<double> ws;
        return message([&] {
            forward<double>(router, x, experts, {.token_groups = groups, .side_vectors = side}, ws);
        });
    };
    const std::string mixed = said({inner, {{0, 3}, {2, 5}}, true}, {0, 1, 0});
    EXPECT_EQ(mixed.find("moe::Context: side_vectors is"), 0u) << mixed;
    EXPECT_NE(mixed.find("; a router for each group of tokens sees those tokens alone: what a "
                         "context says of tokens, of sequences or of the layer before does not "
                         "reach it; use one router for all groups, or moe::PerTask with "
                         "Context::task"),
              std::string::npos)
        << mixed;
    EXPECT_NE(said({inner, {{0, 3}, {2, 5}}, true}, {0, 0, 0}), "");
    EXPECT_NE(said({inner, {{0, 3}, {2, 5}}, true}, {1, 1, 1}), "");
    EXPECT_EQ(said({inner, {{0, 3}}, true}, {0, 0, 0}), "") << "there is nothing to split";
    for (const std::vector<std::int32_t>& groups : {std::vector{0, 1, 0}, {1, 1, 1}})
        EXPECT_EQ(said({inner, {{0, 3}, {2, 5}}, false}, groups), "") << "one router for all";
}

TEST(RouterSet, GivesTokensOfOneGroupWhatTheyGetBesidePaddingAndOthers) {
    const auto router = separate();
    const auto x = random_matrix<double>(4, dim, 1), dlogits = random_matrix<double>(4, experts, 2);
    const std::vector<std::int32_t> one{1, 1, 1, 1}, mixed{1, 1, 1, 0};
    const std::vector<std::uint8_t> padding{0, 0, 0, 1};
    Workspace<double> ws;
    const auto expected = run<double>(router, x, dlogits, {.token_groups = one}, ws);
    for (const Context& context :
         {Context{.token_groups = mixed}, Context{.token_groups = one, .padding = padding}}) {
        const auto got = run<double>(router, x, dlogits, context, ws);
        EXPECT_TRUE(same_bits(Matrix<double>(got.logits.topRows(3)),
                              Matrix<double>(expected.logits.topRows(3))));
        EXPECT_TRUE(
            same_bits(Matrix<double>(got.dx.topRows(3)), Matrix<double>(expected.dx.topRows(3))));
    }
}

/// A user's router that looks at all it gets: every logit is the sum of the batch.
struct Sum {
    void forward(moe::In<double> x, moe::Out<double> logits) const { logits.fill(x.sum()); }
};

TEST(RouterSet, ShowsPaddingToNoRouterOfItsGroup) {
    const auto router =
        build<double>(PerModality{Sum{}, {{0, experts}, {0, experts}}, true}, dim, experts);
    const std::vector<std::uint8_t> padding{0, 1, 0};
    Workspace<double> ws;
    for (const std::vector<std::int32_t>& groups : {std::vector{1, 1, 1}, {1, 0, 1}, {0, 1, 1}}) {
        const auto got = forward<double>(router, Matrix<double>::Ones(3, dim), experts,
                                         {.token_groups = groups, .padding = padding}, ws);
        EXPECT_EQ(got(2, 0), groups[0] == groups[2] ? 2 * dim : dim);
    }
}

TEST(RouterSet, OfAnotherLayerIsRefused) {
    const auto router = separate();
    EXPECT_EQ(
        message([&] { router.check({.model_dim = dim, .num_experts = 6, .num_logits = 6}); }),
        "moe: a set of routers with a range of experts for each group: the router was built for "
        "5 logits per token, the layer wants 6; build it again from its recipe");
    EXPECT_NE(message([&] {
                  router.check({.model_dim = dim,
                                .num_experts = experts,
                                .num_logits = experts,
                                .has_expert_logits = false});
              }),
              "");
    const auto shared = build<double>(PerModality{LinearRouter{}, {{0, 3}, {2, 5}}}, dim, experts);
    EXPECT_EQ(message([&] { router.check_gradient(shared); }),
              "moe::Layer::backward: grad is of another layer: it has 1 routers, the layer has 2; "
              "make it with zeros_like(layer)");
    EXPECT_NO_THROW(router.check_gradient({})) << "not wanted";
}

TEST(RouterSet, MasksExpertsAndNoHalfKeys) {
    // 2 heads with 4 and 4 half-keys for 16 experts: as many logits as experts.
    const moe::ProductKeyTopK gate{.k = 2, .heads = 2};
    const std::vector<moe::ExpertFacts> facts(16);
    const auto said = [&](const auto& router) {
        return message([&] { moe::Head(moe::Config{.model_dim = dim}, router, gate, facts); });
    };
    const std::string why =
        "the router speaks of experts, the gate takes 16 logits for 16 experts, none of which is "
        "an expert's own; use a gate with one logit per expert, such as moe::TopK";
    EXPECT_EQ(said(PerModality{LinearRouter{}, {{0, 9}, {8, 16}}}), "moe::PerModality: " + why);
    EXPECT_EQ(said(moe::PerTask{LinearRouter{}, 2, 9}),
              "moe::PerTask with experts_per_task: " + why);
    EXPECT_EQ(said(moe::PerTask{LinearRouter{}, 2}), "") << "masks nothing";
}

}  // namespace
