// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <moe/gates/select.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::GroupMask;
using moe::GroupScore;
using moe::Index;
using moe::TieBreak;

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
std::vector<Index> ranked(const std::vector<S>& keys, Index k, TieBreak tie_break) {
    const auto n = static_cast<Index>(keys.size());
    std::vector<moe::detail::Ranked<S>> scratch(keys.size());
    const Index found = moe::detail::rank(n, keys.data(), k, tie_break, scratch.data());
    std::vector<Index> indices;
    for (Index i = 0; i < found; ++i) indices.push_back(scratch[static_cast<std::size_t>(i)].index);
    return indices;
}

/// The same by sorting everything: live entries, NaN after the others, the rest stable.
template <class S>
std::vector<Index> sorted(const std::vector<S>& keys, Index k) {
    std::vector<Index> numbers, broken;
    for (std::size_t e = 0; e < keys.size(); ++e) {
        if (std::isnan(keys[e]))
            broken.push_back(static_cast<Index>(e));
        else if (keys[e] != -infinity<S>)
            numbers.push_back(static_cast<Index>(e));
    }
    std::stable_sort(numbers.begin(), numbers.end(), [&](Index a, Index b) {
        return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
    });
    numbers.insert(numbers.end(), broken.begin(), broken.end());
    numbers.resize(std::min(numbers.size(), static_cast<std::size_t>(k)));
    return numbers;
}

template <class S>
class Ranking : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Ranking, Scalars);

TYPED_TEST(Ranking, IsTheHeadOfAStableSortForAnyLengthAndCount) {
    using S = TypeParam;
    std::uint64_t seed = 1;
    for (const Index n : {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 34, 64, 67, 256})
        for (const Index k :
             {Index(1), Index(2), Index(8), Index(31), Index(32), Index(33), n - 1, n}) {
            if (k < 1 || k > n) continue;
            for (const double levels : {3.0, 1e6}) {  // with many ties and with next to none
                std::vector<S> keys;
                for (Index e = 0; e < n; ++e) {
                    const double value = std::round(levels * moe::testing::random_value(++seed, 0));
                    const double kind = moe::testing::random_value(seed, 1);
                    keys.push_back(kind > 0.9    ? nan<S>
                                   : kind > 0.8  ? -infinity<S>
                                   : kind > 0.75 ? infinity<S>
                                                 : static_cast<S>(value));
                }
                EXPECT_EQ(ranked(keys, k, TieBreak::lower_index), sorted(keys, k))
                    << "n " << n << ", k " << k << ", seed " << seed;
            }
        }
}

TYPED_TEST(Ranking, NaNComesLastAndMinusInfinityNever) {
    using S = TypeParam;
    const std::vector<S> keys{nan<S>, -infinity<S>, 1, nan<S>, infinity<S>, -infinity<S>, 2};
    EXPECT_EQ(ranked(keys, 7, TieBreak::lower_index), (std::vector<Index>{4, 6, 2, 0, 3}));
    EXPECT_EQ(ranked(keys, 4, TieBreak::lower_index), (std::vector<Index>{4, 6, 2, 0}));
    EXPECT_EQ(ranked(std::vector<S>(4, nan<S>), 2, TieBreak::lower_index),
              (std::vector<Index>{0, 1}));
    EXPECT_TRUE(ranked(std::vector<S>(40, -infinity<S>), 3, TieBreak::lower_index).empty());
    EXPECT_TRUE(ranked(std::vector<S>(40, -infinity<S>), 33, TieBreak::lower_index).empty());
}

TYPED_TEST(Ranking, OfThoseThatPassIsThatOfAllWithoutTheOthers) {
    using S = TypeParam;
    const std::vector<S> z{nan<S>, 3, -infinity<S>, 1, 4, infinity<S>, 4, nan<S>};
    const auto ranked_where = [&](Index most, auto&& passes) {
        std::vector<S> keys(z.size());
        std::vector<moe::detail::Ranked<S>> entries(z.size());
        const Index count = moe::detail::rank_where(static_cast<Index>(z.size()), z.data(), most,
                                                    passes, keys.data(), entries.data());
        std::vector<Index> experts;
        for (Index i = 0; i < count; ++i)
            experts.push_back(entries[static_cast<std::size_t>(i)].index);
        return experts;
    };
    const auto at = [&](Index e) { return z[static_cast<std::size_t>(e)]; };
    const auto above = [&](Index e) { return at(e) > 2; };
    const auto not_below = [&](Index e) { return !(at(e) <= 2); };
    EXPECT_EQ(ranked_where(8, above), (std::vector<Index>{5, 4, 6, 1}));
    EXPECT_EQ(ranked_where(3, above), (std::vector<Index>{5, 4, 6}));
    EXPECT_EQ(ranked_where(8, not_below), (std::vector<Index>{5, 4, 6, 1, 0, 7})) << "NaN passes";
    EXPECT_EQ(ranked_where(8, [](Index) { return true; }),
              (std::vector<Index>{5, 4, 6, 1, 3, 0, 7}))
        << "-inf never does";
    EXPECT_TRUE(ranked_where(8, [](Index) { return false; }).empty());
}

#if defined(__GLIBCXX__)  // PyTorch's order of ties is that of this library's algorithms

TYPED_TEST(Ranking, OfEqualKeysIsThatOfTorchOnACpu) {
    struct Row {
        Index n, k;
        std::vector<Index> selected;
    };
    const std::vector<Row> table{
        {4, 2, {2, 3}},
        {8, 2, {6, 5}},
        {8, 4, {6, 5, 4, 7}},
        {16, 2, {10, 11}},
        {16, 4, {10, 11, 12, 9}},
        {32, 4, {22, 21, 20, 23}},
        {60, 4, {39, 40, 41, 38}},
        {64, 6, {44, 41, 42, 43, 46, 47}},
        {64, 8, {44, 41, 42, 43, 46, 47, 40, 45}},
        {128, 1, {0}},
        {128, 2, {0, 1}},
        {128, 8, {84, 87, 86, 85, 82, 81, 88, 83}},
        {160, 6, {105, 109, 108, 107, 106, 103}},
        {256, 4, {1, 3, 0, 2}},
        {256, 8, {172, 169, 170, 171, 174, 175, 168, 173}},
        {512, 8, {7, 4, 1, 3, 5, 0, 2, 6}},
        {768, 12, {8, 10, 4, 7, 11, 3, 9, 1, 5, 0, 2, 6}},
    };
    for (const Row& row : table)
        EXPECT_EQ(ranked(std::vector<TypeParam>(static_cast<std::size_t>(row.n), 0), row.k,
                         TieBreak::torch_cpu),
                  row.selected)
            << row.n << " experts, k " << row.k;
}

#endif

TYPED_TEST(Ranking, AsTorchPutsNaNFirstAndLeavesMinusInfinityOut) {
    using S = TypeParam;
    const std::vector<S> keys{1, -infinity<S>, nan<S>, 3, -infinity<S>, 2};
    EXPECT_EQ(ranked(keys, 2, TieBreak::torch_cpu), (std::vector<Index>{2, 3}));
    EXPECT_EQ(ranked(keys, 6, TieBreak::torch_cpu), (std::vector<Index>{2, 3, 5, 0}));
}

TYPED_TEST(Ranking, UnsortedAsTorchFindsTheSameExperts) {
    using S = TypeParam;
    std::uint64_t seed = 100;
    for (const Index n : {8, 64, 160, 256}) {
        std::vector<S> keys;
        for (Index e = 0; e < n; ++e)
            keys.push_back(static_cast<S>(std::round(5 * moe::testing::random_value(++seed, 0))));
        auto in_order = ranked(keys, 8, TieBreak::torch_cpu);
        auto as_found = ranked(keys, 8, TieBreak::torch_cpu_unsorted);
        std::sort(in_order.begin(), in_order.end());
        std::sort(as_found.begin(), as_found.end());
        EXPECT_EQ(in_order, as_found) << n;
    }
}

TYPED_TEST(Ranking, WithoutTiesIsTheSameUnderEveryTieBreak) {
    using S = TypeParam;
    std::vector<S> keys;
    for (unsigned e = 0; e < 160; ++e)
        keys.push_back(static_cast<S>(moe::testing::random_value(9, e)));
    for (const Index k : {1, 2, 6, 40, 160})
        EXPECT_EQ(ranked(keys, k, TieBreak::torch_cpu), ranked(keys, k, TieBreak::lower_index));
}

template <class S>
std::vector<S> limited(const moe::detail::GroupLimit& limit, const std::vector<S>& scores,
                       std::vector<S> keys, Index k = 3,
                       TieBreak tie_break = TieBreak::lower_index) {
    std::vector<S> values(scores.size());
    std::vector<moe::detail::Ranked<S>> scratch(scores.size());
    limit.apply(static_cast<Index>(scores.size()), k, scores.data(), keys.data(), tie_break,
                values.data(), scratch.data());
    return keys;
}

TEST(GroupLimit, ComparesGroupsByTheirBestScore) {
    const std::vector<double> scores{5, 0, 4, 4, 1, 1};
    const moe::detail::GroupLimit limit{3, 1, GroupScore::max, GroupMask::minus_infinity};
    const double dead = -infinity<double>;
    EXPECT_EQ(limited(limit, scores, scores), (std::vector<double>{5, 0, dead, dead, dead, dead}));
}

TEST(GroupLimit, ComparesGroupsByTheirTwoBestScores) {
    const std::vector<double> scores{5, 0, 0, 4, 1, 4, 1, 1, 1};
    const moe::detail::GroupLimit limit{3, 1, GroupScore::top_two_sum, GroupMask::zero};
    EXPECT_EQ(limited(limit, scores, scores), (std::vector<double>{0, 0, 0, 4, 1, 4, 0, 0, 0}));
}

TEST(GroupLimit, ComparesGroupsByAsManyScoresAsAKeptGroupGives) {
    const std::vector<double> scores{5, 5, 0, 4, 4, 4, 3, 3, 3, 1, 1, 1};
    const moe::detail::GroupLimit limit{4, 2, GroupScore::top_sum, GroupMask::zero};
    const std::vector<double> first_and_second{5, 5, 0, 4, 4, 4, 0, 0, 0, 0, 0, 0};
    const std::vector<double> without_the_uneven{0, 0, 0, 4, 4, 4, 0, 0, 0, 0, 0, 0};
    EXPECT_EQ(limited(limit, scores, scores, 4), first_and_second);  // sums of 2: 10 8 6 2
    moe::detail::GroupLimit one = limit;
    one.groups_kept = 1;
    EXPECT_EQ(limited(one, scores, scores, 3), without_the_uneven);  // sums of 3: 10 12 9 3
}

TEST(GroupLimit, CountsLiveExpertsOnlyAndKeepsNoDeadGroup) {
    const double dead = -infinity<double>;
    const std::vector<double> scores{dead, dead, dead, 3, 1, 1};
    const moe::detail::GroupLimit limit{3, 2, GroupScore::top_two_sum, GroupMask::minus_infinity};
    EXPECT_EQ(limited(limit, scores, scores), scores);
    moe::detail::GroupLimit one = limit;
    one.groups_kept = 1;
    EXPECT_EQ(limited(one, scores, scores), (std::vector<double>{dead, dead, dead, 3, dead, dead}));
}

TEST(GroupLimit, BreaksTiesOfGroupsAsItIsTold) {
    const double dead = -infinity<double>;
    const std::vector<double> scores(8, 1.0);
    const moe::detail::GroupLimit limit{4, 2, GroupScore::top_two_sum, GroupMask::minus_infinity};
    EXPECT_EQ(limited(limit, scores, scores),
              (std::vector<double>{1, 1, 1, 1, dead, dead, dead, dead}));
#if defined(__GLIBCXX__)  // of 4 equal groups torch takes the last 2
    EXPECT_EQ(limited(limit, scores, scores, 3, TieBreak::torch_cpu),
              (std::vector<double>{dead, dead, dead, dead, 1, 1, 1, 1}));
#endif
}

TEST(GroupLimit, RanksAGroupWithANaNLastOrAsTorchFirst) {
    const double dead = -infinity<double>;
    const std::vector<double> scores{3, 3, nan<double>, 1, 2, 2};
    const moe::detail::GroupLimit limit{3, 1, GroupScore::max, GroupMask::minus_infinity};
    EXPECT_EQ(limited(limit, scores, {1, 2, 3, 4, 5, 6}),
              (std::vector<double>{1, 2, dead, dead, dead, dead}));
    EXPECT_EQ(limited(limit, scores, {1, 2, 3, 4, 5, 6}, 3, TieBreak::torch_cpu),
              (std::vector<double>{dead, dead, 3, 4, dead, dead}));
}

TEST(GroupLimit, NeverRevivesADeadExpertWithAZero) {
    const double dead = -infinity<double>;
    const moe::detail::GroupLimit limit{2, 1, GroupScore::max, GroupMask::zero};
    EXPECT_EQ(limited<double>(limit, {2, 1, dead, 1}, {2, 1, dead, 1}),
              (std::vector<double>{2, 1, dead, 0}));
}

TEST(GroupLimit, RanksWhatIsLeftWhenOthersAreMasked) {
    using S = float;
    unsigned seed = 0;
    const auto fill = [&seed](std::vector<S>& row) {
        for (S& x : row) {
            const double dice = moe::testing::random_value(++seed, 1);
            x = dice > 2     ? nan<S>
                : dice < -2  ? -infinity<S>
                : dice > 1.5 ? S(0)
                             : static_cast<S>(moe::testing::random_value(seed, 0));
        }
    };
    for (const Index groups : {2, 8, 64, 65, 80})
        for (const Index size : {1, 2, 5, 32})
            for (const Index kept : {Index(1), groups / 2, groups - 1})
                for (const auto mask : {GroupMask::minus_infinity, GroupMask::zero})
                    for (const auto tie_break : {TieBreak::lower_index, TieBreak::torch_cpu}) {
                        const auto n = static_cast<std::size_t>(groups * size);
                        const moe::detail::GroupLimit limit{groups, kept, GroupScore::max, mask};
                        std::vector<S> scores(n), keys(n), values(2 * n);
                        fill(scores), fill(keys);
                        for (const Index k : {Index(1), std::min<Index>(8, kept * size)}) {
                            const auto want =
                                ranked(limited(limit, scores, keys, k, tie_break), k, tie_break);
                            std::vector<moe::detail::Ranked<S>> found(n);
                            const Index count =
                                limit.rank(groups * size, k, scores.data(), keys.data(), tie_break,
                                           values.data(), found.data());
                            ASSERT_EQ(count, static_cast<Index>(want.size()));
                            for (std::size_t i = 0; i < want.size(); ++i)
                                ASSERT_EQ(found[i].index, want[i])
                                    << groups << " x " << size << " place " << i;
                        }
                    }
}

TEST(GroupLimit, KeepsTheFirstGroupsOfARowOfNaN) {
    const std::vector<double> keys{1, 2, 3, 4};
    const moe::detail::GroupLimit limit{2, 1, GroupScore::top_two_sum, GroupMask::zero};
    EXPECT_EQ(limited(limit, std::vector<double>(4, nan<double>), keys),
              (std::vector<double>{1, 2, 0, 0}));
}

}  // namespace
