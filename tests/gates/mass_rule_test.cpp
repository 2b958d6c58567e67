// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include <moe/gates/mass_rule.hpp>
#include <moe/kernels/dispatch.hpp>

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

/// The first `count` of a full sort, where probabilities differ and many are needed: experts are
/// ranked 16 at a time.
TYPED_TEST(Mass, GoesOnBehindTheFirstSixteen) {
    using S = TypeParam;
    constexpr Index n = 150;
    std::vector<S> z(n), probabilities(n), scratch(2 * n);
    std::vector<Ranked<S>> ranked(n);
    std::mt19937 random(5);
    std::uniform_int_distribution<int> step(0, 40);  // some are equal
    for (int turn = 0; turn < 20; ++turn) {
        for (S& logit : z) logit = static_cast<S>(step(random)) / 20;
        if (turn % 4 == 3)  // fewer than are wanted
            for (Index e = 0; e < n; ++e)
                if (e % 3 != 0)
                    z[static_cast<std::size_t>(e)] = -std::numeric_limits<S>::infinity();
        moe::kernels<S>().softmax(n, z.data(), probabilities.data());
        std::vector<std::size_t> order;
        for (std::size_t e = 0; e < z.size(); ++e)
            if (z[e] > -std::numeric_limits<S>::infinity()) order.push_back(e);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return z[a] > z[b]; });
        std::vector<S> falling;
        for (const std::size_t e : order) falling.push_back(probabilities[e]);
        const auto alive = static_cast<Index>(order.size());
        for (const MassRule rule : {MassRule::exceed, MassRule::reach, MassRule::below})
            for (const double p : {0.1, 0.25, 0.4, 0.55, 0.8, 0.97, 0.9999999})
                for (const Index least : {1, 17, 40})
                    for (const Index most : {40, 49, 150}) {
                        const Index want =
                            std::min({std::max(taken(falling, p, rule), least), most, alive});
                        const Index found = moe::detail::rank_mass(
                            n, z.data(), p, rule, least, most, scratch.data(), ranked.data());
                        ASSERT_EQ(found, want)
                            << "p " << p << " least " << least << " most " << most;
                        for (Index i = 0; i < found; ++i)
                            ASSERT_EQ(
                                static_cast<std::size_t>(ranked[static_cast<std::size_t>(i)].index),
                                order[static_cast<std::size_t>(i)])
                                << "place " << i << " p " << p;
                    }
    }
}

}  // namespace
