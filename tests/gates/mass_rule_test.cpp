// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include <moe/gates/mass_rule.hpp>

namespace {

using moe::Index;
using moe::MassRule;
using moe::detail::Ranked;

/// How many of these probabilities, in falling order, the rule takes.
template <class S>
Index taken(const std::vector<S>& probabilities, double p, MassRule rule) {
    double sum = 0;
    Index count = 0;
    for (const S probability : probabilities) {
        sum += static_cast<double>(probability);
        const bool ends = moe::detail::is_enough(rule, static_cast<S>(sum), static_cast<S>(p));
        if (!ends || rule != MassRule::below) ++count;
        if (ends) break;
    }
    return count;
}

template <class S>
class Mass : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Mass, Scalars);

TYPED_TEST(Mass, IsGatheredUntilItExceedsReachesOrStaysBelow) {
    using S = TypeParam;
    const std::vector<S> p{S(0.5), S(0.25), S(0.125), S(0.125)};
    EXPECT_EQ(taken(p, 0.75, MassRule::exceed), 3);
    EXPECT_EQ(taken(p, 0.75, MassRule::reach), 2);
    EXPECT_EQ(taken(p, 0.75, MassRule::below), 2);
    EXPECT_EQ(taken(p, 0.7, MassRule::exceed), 2);
    EXPECT_EQ(taken(p, 0.7, MassRule::reach), 2);
    EXPECT_EQ(taken(p, 0.7, MassRule::below), 1);
    EXPECT_EQ(taken(p, 0.1, MassRule::below), 0);
    EXPECT_EQ(taken(p, 1, MassRule::exceed), 4) << "no sum is above 1";
}

TYPED_TEST(Mass, ThatIsNaNIsNeverEnough) {
    using S = TypeParam;
    const std::vector<S> p(3, std::numeric_limits<S>::quiet_NaN());
    EXPECT_EQ(taken(p, 0.5, MassRule::exceed), 3);
    EXPECT_EQ(taken(p, 0.5, MassRule::reach), 3);
    EXPECT_EQ(taken(p, 0.5, MassRule::below), 0);
}

TYPED_TEST(Mass, RanksFewOrAllExpertsAlike) {
    using S = TypeParam;
    constexpr Index n = 200;
    const std::vector<S> even(n, S(0));
    std::vector<S> scratch(2 * n);
    std::vector<Ranked<S>> ranked(n);
    for (const Index wanted : {1, 15, 16, 17, 63, 64, 65, 199})
        for (const Index least : {1, 20, 100})
            for (const Index most : {100, 150, 200}) {
                const Index found = moe::detail::rank_mass(
                    n, even.data(), (static_cast<double>(wanted) - 0.5) / n, MassRule::exceed,
                    least, most, scratch.data(), ranked.data());
                EXPECT_EQ(found, std::clamp(wanted, least, most));
                for (Index i = 0; i < found; ++i)
                    EXPECT_EQ(ranked[static_cast<std::size_t>(i)].index, i);
            }
}

}  // namespace
