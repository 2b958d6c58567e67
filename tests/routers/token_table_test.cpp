// SPDX-License-Identifier: MIT
#include <moe/routers/token_table.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/frozen.hpp>
#include <moe/routers/hash.hpp>
#include <moe/routers/linear.hpp>

#include "routers/decided.hpp"
#include "support/message.hpp"

namespace {

using decided::Chosen;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using support::message;

const moe::TokenTable two_of_five{.table = {3, 1, 0, 4, 2, 3, 4, 2}, .k = 2};
const std::vector<std::int64_t> ids{2, 0, 3, 3, 1, 2};
const Chosen experts_of_ids{{2, 3}, {1, 3}, {2, 4}, {2, 4}, {0, 4}, {2, 3}};

Context with(const std::vector<std::int64_t>& token_ids) {
    Context context;
    context.token_ids = token_ids;
    return context;
}

template <class S>
class TokenTable : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TokenTable, Scalars);

TYPED_TEST(TokenTable, GivesEveryTokenTheExpertsOfItsRow) {
    using S = TypeParam;
    const auto router = decided::build<S>(two_of_five, 5);
    EXPECT_EQ(decided::chosen_in(decided::logits_of<S>(router, 6, 5, with(ids))), experts_of_ids);
}

TYPED_TEST(TokenTable, MakesALayerOfJustThoseExperts) {
    decided::expect_layer_takes<TypeParam>(two_of_five, 5, 2, with(ids), experts_of_ids);
    const moe::TokenTable one{.table = {3, 0, 1, 0}};
    decided::expect_layer_takes<TypeParam>(one, 4, 1, with(ids), {{1}, {3}, {0}, {0}, {0}, {1}});
    const moe::TokenTable only{.table = {0, 0, 0, 0}};
    decided::expect_layer_takes<TypeParam>(only, 1, 1, with(ids), {{0}, {0}, {0}, {0}, {0}, {0}});
    const moe::TokenTable all{.table = {2, 0, 1}, .k = 3};
    const std::vector<std::int64_t> zeros{0, 0};
    decided::expect_layer_takes<TypeParam>(all, 3, 3, with(zeros), {{0, 1, 2}, {0, 1, 2}});
}

TEST(TokenTableModule, GradientsOfALayerAreExact) {
    decided::expect_layer_gradients(two_of_five, 5, 2, 6, with(ids));
}

TYPED_TEST(TokenTable, LeavesPaddingUnroutedWhateverItsIdIs) {
    using S = TypeParam;
    const std::vector<std::int64_t> some{-100, 1, 99};
    const std::vector<std::uint8_t> padding{1, 0, 1};
    Context context = with(some);
    context.padding = padding;
    const auto router = decided::build<S>(two_of_five, 5);
    EXPECT_EQ(decided::chosen_in(decided::logits_of<S>(router, 3, 5, context)),
              (Chosen{{}, {0, 4}, {}}));
    decided::expect_layer_takes<S>(two_of_five, 5, 2, context, {{}, {0, 4}, {}});
}

TYPED_TEST(TokenTable, LosesWhatAMaskTakesAway) {
    const std::vector<std::uint8_t> allowed{1, 1, 1, 1, 1, 1, 1, 1, 0, 1};
    const std::vector<std::int64_t> same{0, 0};
    Context context = with(same);
    context.allowed = allowed;
    decided::expect_layer_takes<TypeParam>(two_of_five, 5, 2, context, {{1, 3}, {1}});
}

TEST(TokenTableModule, SaysWhichTokenIsOutsideTheTable) {
    const auto router = decided::build<float>(two_of_five, 5);
    const auto forward = [&](std::vector<std::int64_t> token_ids) {
        return message([&] { decided::logits_of<float>(router, 3, 5, with(token_ids)); });
    };
    EXPECT_EQ(forward({0, 4, 1}),
              "moe::TokenTable: token_ids[1] is 4, it must be in [0, 4), the rows of the table");
    EXPECT_EQ(forward({0, 1, -1}),
              "moe::TokenTable: token_ids[2] is -1, it must be in [0, 4), the rows of the table");
    EXPECT_EQ(forward({}),
              "moe::TokenTable: token_ids has 0 entries, the batch has 3 tokens; set "
              "Context::token_ids");
    EXPECT_EQ(forward({0, 1}), "moe::TokenTable: token_ids has 2 entries, the batch has 3 tokens");
}

TEST(TokenTableModule, RefusesTablesThatDoNotFit) {
    const auto build = [](moe::TokenTable recipe) {
        return message([&] { decided::build<float>(recipe, 5); });
    };
    EXPECT_EQ(build({}),
              "moe::TokenTable: table is empty; give it k experts for each vocabulary id, e.g. "
              "moe::random_table(vocabulary, experts)");
    EXPECT_EQ(build({.table = {0}, .k = 0}),
              "moe::TokenTable: k is 0, it must be in [1, 5], the experts of the layer");
    EXPECT_EQ(build({.table = {0, 1, 2, 3, 4, 5}, .k = 6}),
              "moe::TokenTable: k is 6, it must be in [1, 5], the experts of the layer");
    EXPECT_EQ(build({.table = {0, 1, 2}, .k = 2}),
              "moe::TokenTable: table has 3 entries, it must be a multiple of k = 2: row-major "
              "[vocabulary, k]");
    EXPECT_EQ(build({.table = {0, 1, 2, 5}, .k = 2}),
              "moe::TokenTable: row 1 of table names expert 5, it must be in [0, 5)");
    EXPECT_EQ(build({.table = {0, -1}}),
              "moe::TokenTable: row 1 of table names expert -1, it must be in [0, 5)");
    EXPECT_EQ(build({.table = {0, 1, 2, 2}, .k = 2}),
              "moe::TokenTable: row 1 of table names expert 2 twice, a token goes to an expert "
              "once; use another one, or a smaller k");
}

TEST(TokenTableModule, HasNoParametersAndSharesItsTableWithCopies) {
    const auto router = decided::build<double>(two_of_five, 5);
    const auto copy = router;
    EXPECT_EQ(&copy.table(), &router.table());
    EXPECT_EQ(router.table().table, two_of_five.table);
    EXPECT_EQ(moe::num_parameters(router), 0);
    const auto layer = decided::layer_of<double>(two_of_five, 5, 2);
    EXPECT_EQ(&moe::zeros_like(layer).router().table(), &layer.router().table());
}

TEST(TokenTableModule, RoutesAFrozenLayerAlike) {
    const auto layer = decided::layer_of<float>(two_of_five, 5, 2);
    const auto frozen = moe::freeze(layer, moe::FreezeOptions{});
    const auto x = moe::testing::random_matrix<float>(6, decided::dim, 1);
    Matrix<float> expected(6, decided::dim), got(6, decided::dim);
    Workspace<float> ws;
    layer.forward(x, expected, ws, with(ids));
    frozen.forward(x, got, ws, with(ids));
    EXPECT_TRUE(moe::testing::same_bits(got, expected));
}

TYPED_TEST(TokenTable, AsAMaskOfALearnedRouterIsDeepSeekV4sHashLayer) {
    // s = sqrt(softplus(x W^T)), w = 1.5 s / sum of s over the experts of the row
    using S = TypeParam;
    const auto layer =
        moe::make_layer<S>(moe::Config{.model_dim = decided::dim}, moe::LinearRouter{},
                           moe::TopK{.k = 2, .score = moe::Score::sqrt_softplus, .scale = 1.5},
                           moe::Swiglu{.count = 5, .ffn_dim = 3});
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 0};
    Context context = with(ids);
    context.padding = padding;
    std::vector<std::uint8_t> allowed(30, 7);
    two_of_five.allow(context, 5, allowed);
    context.allowed = allowed;
    const auto x = moe::testing::random_matrix<S>(6, decided::dim, 1);
    Matrix<S> y(6, decided::dim);
    Workspace<S> ws;
    layer.forward(x, y, ws, context);
    const Matrix<double> z = x.template cast<double>() *
                             layer.router().weight.view().template cast<double>().transpose();
    Matrix<double> expected = Matrix<double>::Zero(6, 5);
    for (Index t = 0; t < 6; ++t) {
        if (t == 2) continue;
        const auto& row = experts_of_ids[static_cast<std::size_t>(t)];
        double sum = 0;
        for (const Index e : row) sum += std::sqrt(std::log1p(std::exp(z(t, e))));
        for (const Index e : row)
            expected(t, e) = 1.5 * std::sqrt(std::log1p(std::exp(z(t, e)))) / sum;
    }
    EXPECT_TRUE(moe::testing::compare(dense::weights_of(ws.routing()), expected,
                                      std::is_same_v<S, float> ? 1e-6 : 1e-14));
}

TEST(TokenTableModule, RefusesMasksThatDoNotFit) {
    std::vector<std::uint8_t> allowed(29);
    EXPECT_EQ(
        message([&] { two_of_five.allow(with(ids), 5, allowed); }),
        "moe::TokenTable::allow: allowed has 29 entries, it must have 30: 6 token ids times 5 "
        "experts");
    allowed.resize(24);
    EXPECT_EQ(message([&] { two_of_five.allow(with(ids), 4, allowed); }),
              "moe::TokenTable: row 3 of table names expert 4, it must be in [0, 4)");
    const std::vector<std::int64_t> outside{7};
    allowed.resize(5);
    const std::vector<std::uint8_t> short_padding(2);
    Context padded = with(ids);
    padded.padding = short_padding;
    allowed.resize(30);
    EXPECT_EQ(message([&] { two_of_five.allow(padded, 5, allowed); }),
              "moe::Context: padding has 2 entries, it wants 6, one per token");
    allowed.resize(5);
    EXPECT_EQ(message([&] { two_of_five.allow(with(outside), 5, allowed); }),
              "moe::TokenTable: token_ids[0] is 7, it must be in [0, 4), the rows of the table");
}

TEST(TokenTableModule, OfSeveralSegmentsIsMultiHash) {
    // Two tables of three entries choose the first and the second half of the hidden units.
    constexpr Index choices = 3, segments = 2, width = 2;
    const std::vector<std::int32_t> first{1, 0, 2, 1}, second{0, 0, 1, 2};
    moe::TokenTable recipe{.k = segments};
    for (std::size_t id = 0; id < first.size(); ++id) {
        recipe.table.push_back(first[id]);
        recipe.table.push_back(second[id] + choices);
    }
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = decided::dim}, recipe, moe::TopK{.k = segments, .ones = true},
        moe::Mlp{.count = segments * choices, .ffn_dim = width});
    const auto& group = layer.bank().group<0>();
    const auto x = moe::testing::random_matrix<double>(6, decided::dim, 1);
    Matrix<double> y(6, decided::dim), expected(6, decided::dim);
    Workspace<double> ws;
    layer.forward(x, y, ws, with(ids));
    for (Index t = 0; t < 6; ++t) {
        const auto id = static_cast<std::size_t>(ids[static_cast<std::size_t>(t)]);
        const auto a = dense::feed_forward_of(group, first[id]);
        const auto b = dense::feed_forward_of(group, choices + second[id]);
        dense::Expert whole = a;
        whole.up.resize(2 * width, decided::dim);
        whole.up << a.up, b.up;
        whole.down.resize(decided::dim, 2 * width);
        whole.down << a.down, b.down;
        expected.row(t) = dense::forward({whole}, Matrix<double>(x.row(t)),
                                         Matrix<double>::Ones(1, 1), decided::dim);
    }
    EXPECT_TRUE(moe::testing::compare(y, expected, 1e-13));
}

/// Sums of frequencies by expert.
std::vector<double> sums_of(const std::vector<std::int32_t>& table,
                            const std::vector<double>& frequencies, Index experts) {
    std::vector<double> sums(static_cast<std::size_t>(experts), 0);
    for (std::size_t id = 0; id < table.size(); ++id)
        sums[static_cast<std::size_t>(table[id])] += frequencies[id];
    return sums;
}

TEST(BalancedTable, GivesTheMostFrequentFirstToTheLightestExpert) {
    // 9 -> 0, 7 -> 1, 6 -> 2, 5 (id 1) -> 2, 5 (id 4) -> 1, 2 -> 0
    EXPECT_EQ(moe::balanced_table(std::vector<double>{7, 5, 9, 2, 5, 6}, 3),
              (std::vector<std::int32_t>{1, 2, 0, 0, 1, 2}));
    EXPECT_EQ(moe::balanced_table(std::vector<double>{1, 1, 1, 1}, 2),
              (std::vector<std::int32_t>{0, 1, 0, 1}));
    EXPECT_EQ(moe::balanced_table(std::vector<double>{0, 3, 0}, 2),
              (std::vector<std::int32_t>{1, 0, 1}));
    EXPECT_EQ(moe::balanced_table(std::vector<double>{}, 2), (std::vector<std::int32_t>{}));
    EXPECT_EQ(moe::balanced_table(std::vector<double>{2, 1}, 1), (std::vector<std::int32_t>{0, 0}));
}

TEST(BalancedTable, DiffersFromTheMeanByLessThanOneFrequency) {
    // Zipf's law. Greedy: when an expert got its last id it was the lightest, so below the mean.
    constexpr Index experts = 16;
    std::vector<double> frequencies(5000);
    for (std::size_t id = 0; id < frequencies.size(); ++id)
        frequencies[id] = 1e6 / static_cast<double>((id * 37) % frequencies.size() + 20);
    const auto sums = sums_of(moe::balanced_table(frequencies, experts), frequencies, experts);
    const double mean = std::accumulate(sums.begin(), sums.end(), 0.0) / experts;
    EXPECT_LT(*std::max_element(sums.begin(), sums.end()), mean * (1 + 1e-3));
    EXPECT_GT(*std::min_element(sums.begin(), sums.end()), mean * (1 - 1e-3));
    const auto by_chance = sums_of(moe::random_table(5000, experts), frequencies, experts);
    EXPECT_GT(*std::max_element(by_chance.begin(), by_chance.end()), mean * 1.05);
}

TEST(BalancedTable, RefusesFrequenciesThatAreNone) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(message([] {
                  moe::balanced_table(std::vector<double>{1, -2}, 3);
              }),
              "moe::balanced_table: frequencies[1] is -2, it must be finite and >= 0");
    EXPECT_NE(message([&] {
                  moe::balanced_table(std::vector<double>{nan}, 3);
              }).find("frequencies[0] is"),
              std::string::npos);
    EXPECT_EQ(message([] { moe::balanced_table(std::vector<double>{1}, 0); }),
              "moe::balanced_table: experts is 0, it must be in [1, 2147483647]");
}

}  // namespace
