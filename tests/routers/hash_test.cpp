// SPDX-License-Identifier: MIT
#include <moe/routers/hash.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routers/token_table.hpp>

#include "routers/decided.hpp"
#include "support/message.hpp"

namespace {

using decided::Chosen;
using moe::Context;
using moe::Index;
using moe::Matrix;
using support::message;

Context with(const std::vector<std::int64_t>& token_ids) {
    Context context;
    context.token_ids = token_ids;
    return context;
}

std::vector<std::int64_t> first_ids(Index count) {
    std::vector<std::int64_t> ids(static_cast<std::size_t>(count));
    std::iota(ids.begin(), ids.end(), std::int64_t{0});
    return ids;
}

template <class S>
class HashRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(HashRouter, Scalars);

/// The documented formula, written out.
std::uint64_t mix(std::uint64_t b) {
    b += 0x9E3779B97F4A7C15u;
    b = (b ^ (b >> 30)) * 0xBF58476D1CE4E5B9u;
    b = (b ^ (b >> 27)) * 0x94D049BB133111EBu;
    return b ^ (b >> 31);
}
std::vector<Index> expected_experts(std::int64_t id, std::uint64_t seed, Index k, Index experts) {
    std::vector<Index> chosen;
    for (Index j = 0; j < k; ++j) {
        const std::uint64_t h =
            mix(mix(mix(seed) ^ static_cast<std::uint64_t>(id)) ^ static_cast<std::uint64_t>(j));
        const Index last = experts - k + j;
        const auto drawn = static_cast<Index>(h % static_cast<std::uint64_t>(last + 1));
        const bool is_taken = std::find(chosen.begin(), chosen.end(), drawn) != chosen.end();
        chosen.push_back(is_taken ? last : drawn);
    }
    return chosen;
}

TYPED_TEST(HashRouter, ChoosesByTheDocumentedHash) {
    using S = TypeParam;
    const std::vector<std::int64_t> ids{
        0, 1, 2, 17, 50256, 128255, -1, -7, 1 << 30, std::numeric_limits<std::int64_t>::max()};
    for (const Index k : {1, 2, 6, 7})
        for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{42}, ~std::uint64_t{0}}) {
            SCOPED_TRACE(std::to_string(k) + " " + std::to_string(seed));
            const auto router = decided::build<S>(moe::HashRouter{.k = k, .seed = seed}, 7);
            Chosen expected;
            for (const std::int64_t id : ids) {
                expected.push_back(expected_experts(id, seed, k, 7));
                std::sort(expected.back().begin(), expected.back().end());
            }
            EXPECT_EQ(decided::chosen_in(decided::logits_of<S>(router, 10, 7, with(ids))),
                      expected);
        }
}

TEST(HashRouterModule, KeepsItsNumbersBetweenVersions) {
    // From the formula in Python. A change here sends every token of a trained model elsewhere.
    EXPECT_EQ(
        moe::random_table(8, 64, 2, 42),
        (std::vector<std::int32_t>{2, 30, 26, 34, 50, 22, 27, 11, 49, 31, 40, 58, 29, 11, 3, 48}));
}

TYPED_TEST(HashRouter, MakesALayerOfJustThoseExperts) {
    const std::vector<std::int64_t> ids{3, 1, 4, 1, 5, 9, 2, 6};
    for (const Index k : {1, 3, 5}) {
        Chosen chosen;
        for (const std::int64_t id : ids) {
            chosen.push_back(expected_experts(id, 8, k, 5));
            std::sort(chosen.back().begin(), chosen.back().end());
        }
        decided::expect_layer_takes<TypeParam>(moe::HashRouter{.k = k, .seed = 8}, 5, k, with(ids),
                                               chosen);
    }
    decided::expect_layer_takes<TypeParam>(moe::HashRouter{}, 1, 1, with({7, 8}), {{0}, {0}});
}

TEST(HashRouterModule, GradientsOfALayerAreExact) {
    const std::vector<std::int64_t> ids{3, 1, 4, 1, 5};
    decided::expect_layer_gradients(moe::HashRouter{.k = 2}, 4, 2, 5, with(ids));
}

TEST(HashRouterModule, LeavesPaddingUnrouted) {
    const std::vector<std::int64_t> ids{3, 3};
    const std::vector<std::uint8_t> padding{0, 1};
    Context context = with(ids);
    context.padding = padding;
    decided::expect_layer_takes<double>(moe::HashRouter{}, 4, 1, context,
                                        {expected_experts(3, 0, 1, 4), {}});
}

TYPED_TEST(HashRouter, IsItsTable) {
    using S = TypeParam;
    constexpr Index vocabulary = 300, experts = 11, k = 4;
    const auto ids = first_ids(vocabulary);
    const auto hash = decided::build<S>(moe::HashRouter{.k = k, .seed = 5}, experts);
    const auto table = decided::build<S>(
        moe::TokenTable{.table = moe::random_table(vocabulary, experts, k, 5), .k = k}, experts);
    EXPECT_EQ(decided::logits_of<S>(hash, vocabulary, experts, with(ids)),
              decided::logits_of<S>(table, vocabulary, experts, with(ids)));
}

TEST(HashRouterModule, SpreadsIdsEvenlyOverExpertsAndSets) {
    constexpr Index vocabulary = 60000;
    std::map<std::vector<std::int32_t>, int> sets, ones;
    for (std::int64_t id = 0; id < vocabulary; ++id) {
        const auto chosen = expected_experts(id, 3, 2, 6);
        std::vector<std::int32_t> set(chosen.begin(), chosen.end());
        std::sort(set.begin(), set.end());
        ++sets[set];
    }
    for (const std::int32_t e : moe::random_table(vocabulary, 6, 1, 3)) ++ones[{e}];
    const auto chi_square = [](const auto& counts) {
        const double mean = double(vocabulary) / static_cast<double>(counts.size());
        double sum = 0;
        for (const auto& [set, count] : counts) sum += (count - mean) * (count - mean) / mean;
        return sum;
    };
    ASSERT_EQ(sets.size(), 15u);
    ASSERT_EQ(ones.size(), 6u);
    EXPECT_LT(chi_square(sets), 36.1);  // 14 degrees of freedom: 0.1 %
    EXPECT_LT(chi_square(ones), 20.5);  // 5
    EXPECT_GT(chi_square(sets), 3.0);   // 0.1 %: chance is not exactly even
}

TEST(HashRouterModule, DiffersBySeedAndNotByContext) {
    const auto ids = first_ids(200);
    const auto of = [&](std::uint64_t seed, const Context& context) {
        return decided::chosen_in(decided::logits_of<float>(
            decided::build<float>(moe::HashRouter{.seed = seed}, 8), 200, 8, context));
    };
    Context other = with(ids);
    other.seed = 1, other.step = 2, other.stream = 3, other.first_token = 4, other.training = true;
    EXPECT_EQ(of(1, with(ids)), of(1, other));
    const Chosen a = of(1, with(ids)), b = of(2, with(ids));
    int same = 0;
    for (std::size_t t = 0; t < a.size(); ++t) same += a[t] == b[t] ? 1 : 0;
    EXPECT_NEAR(same, 200 / 8, 15);
}

TEST(HashRouterModule, RefusesWhatItCannotUse) {
    const auto build = [](Index k) {
        return message([&] { decided::build<float>(moe::HashRouter{.k = k}, 4); });
    };
    EXPECT_EQ(build(0), "moe::HashRouter: k is 0, it must be in [1, 4], the experts of the layer");
    EXPECT_EQ(build(5), "moe::HashRouter: k is 5, it must be in [1, 4], the experts of the layer");
    const auto router = decided::build<float>(moe::HashRouter{}, 4);
    EXPECT_EQ(message([&] { decided::logits_of<float>(router, 2, 4, with({})); }),
              "moe::HashRouter: token_ids has 0 entries, the batch has 2 tokens; set "
              "Context::token_ids");
    EXPECT_EQ(message([] { moe::random_table(-1, 4); }),
              "moe::random_table: vocabulary is -1, it must be >= 0");
    EXPECT_EQ(message([] { moe::random_table(3, 4, 5); }),
              "moe::random_table: k is 5, it must be in [1, 4], the experts of the layer");
    EXPECT_TRUE(moe::random_table(0, 4).empty());
}

}  // namespace
