// SPDX-License-Identifier: MIT
#include <moe/gates/share_rule.hpp>

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Call;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::detail::Sequences;
using moe::detail::ShareRule;

/// Two runs; tokens with none, one, two and three of four experts. Expert 1 is null.
struct Example {
    static constexpr Index tokens = 6, experts = 4;
    std::array<Index, 3> offsets{0, 4, 6};
    std::vector<moe::ExpertFacts> facts = std::vector<moe::ExpertFacts>(4);
    moe::Routing routing;
    Context context{};

    Example() {
        facts[1].is_null = true;
        context.experts = facts;
        routing.reset(tokens, experts);
        for (const auto& [t, e] : {std::pair<Index, Index>{0, 2},
                                   {1, 0},
                                   {1, 3},
                                   {2, 1},
                                   {3, 0},
                                   {3, 1},
                                   {3, 2},
                                   {5, 1},
                                   {5, 3}})
            routing.add(t, e);
        routing.group();
    }
    Sequences runs() const { return {offsets, tokens}; }
};

TEST(ShareRule, WeighsWithAnExpertsAttentionSharedAmongATokensExperts) {
    Example example;
    moe::Workspace<double> ws;
    const auto z = moe::testing::random_matrix<double>(6, 4, 1, 2);
    ShareRule{}.weigh<double>(z, example.routing, example.runs(), {example.context, ws});
    constexpr int choosers[] = {1, 2, 1, 2, 1, 1};  // experts that are not null
    for (const moe::Assignment& a : example.routing.assignments()) {
        double sum = 0;
        for (Index t = a.token < 4 ? 0 : 4; t < (a.token < 4 ? 4 : 6); ++t)
            sum += std::exp(z(t, a.expert));
        const double share = std::exp(z(a.token, a.expert)) / sum;
        EXPECT_NEAR(a.weight, a.expert == 1 ? 0 : share / choosers[a.token], 1e-14);
        EXPECT_EQ(a.input_weight, 1);
    }
}

TEST(ShareRule, HasAGradientAtEveryTokenOfTheRun) {
    Example example;
    moe::Workspace<double> ws;
    const Call<double> call{example.context, ws};
    auto z = moe::testing::random_matrix<double>(6, 4, 1, 2);
    const std::vector<double> c{0.5, -1, 2, 1, 0.25, 3, -0.75, 1, 1.5};
    const auto loss = [&] {
        ShareRule{}.weigh<double>(z, example.routing, example.runs(), call);
        double sum = 0;
        for (std::size_t a = 0; a < c.size(); ++a)
            sum += c[a] * example.routing.assignments()[a].weight;
        return sum;
    };
    const auto before = moe::testing::random_matrix<double>(6, 4, 2);
    Matrix<double> added = before;
    ShareRule{}.backward<double>(z, example.routing, {c, {}}, added, example.runs(), call);
    const Matrix<double> dz = added - before;
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz));
    EXPECT_NE(dz(2, 0), 0) << "expert 0 does not have token 2";
    EXPECT_NEAR(dz(4, 0), 0, 1e-15) << "expert 0 has no token of this run";
    EXPECT_TRUE(dz.col(1).isZero(1e-15)) << "a null expert";
}

}  // namespace
