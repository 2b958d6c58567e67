// SPDX-License-Identifier: MIT
#include <moe/gates/product_key_rule.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

namespace {

using moe::Call;
using moe::Context;
using moe::Index;
using moe::detail::ExpertValue;
using moe::detail::ProductKeyRule;
using moe::detail::ProductKeyScratch;

/// What a token gets, by expert; 0 where it does not have one.
template <class S>
std::vector<double> weights(const ProductKeyRule<S>& rule, const std::vector<S>& z,
                            const Context& context = {}) {
    moe::Workspace<S> ws;
    ProductKeyScratch<S> scratch;
    scratch.resize(rule, 2, context.restricts(), rule.most_entries());
    const auto room = scratch.room(1);
    const Index count = rule.merge(z.data(), 0, Call<S>{context, ws}, room);
    std::vector<double> found(static_cast<std::size_t>(rule.n * rule.n));
    for (Index i = 0; i < count; ++i) {
        EXPECT_TRUE(i == 0 || room.entries[i - 1] < room.entries[i]) << "ascending";
        found[static_cast<std::size_t>(room.entries[i].expert)] = double{room.entries[i].value};
    }
    return found;
}

template <class S>
class ProductKeys : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ProductKeys, Scalars);

TYPED_TEST(ProductKeys, AddWhatTwoHeadsGiveToTheSameExpert) {
    using S = TypeParam;
    // Two half-keys per axis, one pair per head: head 0 and head 1 choose expert 0 * 2 + 1.
    const ProductKeyRule<S> rule{.n = 2, .heads = 2, .k = 1};
    EXPECT_EQ(weights<S>(rule, {2, 1, 0, 3, 5, 4, 1, 2}), (std::vector<double>{0, 2, 0, 0}));
    EXPECT_EQ(weights<S>(rule, {2, 1, 0, 3, 4, 5, 2, 1}), (std::vector<double>{0, 1, 1, 0}));
}

TYPED_TEST(ProductKeys, OfAnAxisSoftmaxMultiply) {
    using S = TypeParam;
    const ProductKeyRule<S> rule{.n = 2, .heads = 1, .k = 2, .is_sum = false};
    const double p = 1 / (1 + std::exp(-1.0)), q = 1 / (1 + std::exp(2.0));
    const std::vector<double> expected{p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)};
    const auto found = weights<S>(rule, {1, 0, 0, 2});
    for (std::size_t e = 0; e < 4; ++e) EXPECT_NEAR(found[e], expected[e], 1e-6);
}

TYPED_TEST(ProductKeys, LookAtEveryPairWhereSomeAreForbidden) {
    using S = TypeParam;
    // The best half-keys make expert 0 only, which is forbidden: its neighbours are found.
    const ProductKeyRule<S> rule{.n = 2, .heads = 1, .k = 1};
    const std::vector<std::uint8_t> allowed{0, 1, 1, 1};
    const std::vector<S> z{3, 0, 2, 1};
    EXPECT_EQ(weights<S>(rule, z), (std::vector<double>{1, 0, 0, 0}));
    EXPECT_EQ(weights<S>(rule, z, {.allowed = allowed}), (std::vector<double>{0, 1, 0, 0}));
}

TEST(ProductKeyRule, CountsWhatItsHeadsChooseAtMost) {
    EXPECT_EQ((ProductKeyRule<float>{.n = 4, .heads = 3, .k = 2}.most_entries()), 6);
    EXPECT_EQ((ProductKeyRule<float>{.n = 2, .heads = 3, .k = 2}.most_experts()), 4);
    const ProductKeyRule<float> axes{.n = 4, .heads = 3, .k = 2, .is_sum = false};
    EXPECT_EQ(axes.most_entries(), 12);
    const float moments[6]{};
    ProductKeyRule<float> quantile = axes;
    quantile.mean = quantile.variance = moments;
    EXPECT_EQ(quantile.most_kept(), 4) << "all may be above the quantile";
}

TEST(ExpertValues, AreFoundAmongAscendingOnes) {
    const ExpertValue<double> entries[] = {{1, 0, 0.5}, {4, 0, -2}};
    EXPECT_EQ(ProductKeyRule<double>::find(entries, 2, 4), -2);
    for (const Index other : {0, 2, 5})
        EXPECT_EQ(ProductKeyRule<double>::find(entries, 2, other), 0);
    EXPECT_TRUE((ExpertValue<double>{1, 2, 0} < ExpertValue<double>{2, 0, 0}));
    EXPECT_TRUE((ExpertValue<double>{1, 0, 9} < ExpertValue<double>{1, 1, 0})) << "then by head";
}

}  // namespace
