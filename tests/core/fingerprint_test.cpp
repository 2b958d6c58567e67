// SPDX-License-Identifier: MIT
#include <moe/core/fingerprint.hpp>

#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/workspace.hpp>

namespace fingerprint_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Routing;
using moe::detail::Fingerprint;
using moe::detail::Identity;

const Identity someone;

template <class S>
std::uint64_t of(const moe::Matrix<S>& x) {
    return Fingerprint(someone).batch<S>(x).value();
}
std::uint64_t of(const Context& context) { return Fingerprint(someone).context(context).value(); }
std::uint64_t of(const Routing& routing) { return Fingerprint(someone).routing(routing).value(); }

TEST(Fingerprint, IsNeverZero) {
    EXPECT_NE(Fingerprint(someone).value(), 0u);
    EXPECT_NE(of(moe::Matrix<float>(0, 0)), 0u);
}

TEST(Fingerprint, IsTheSameForTheSameThings) {
    const moe::Matrix<float> x = moe::Matrix<float>::Random(5, 7), same = x;
    EXPECT_EQ(of(x), of(same));
    moe::Matrix<float> wide = moe::Matrix<float>::Random(5, 9);
    wide.middleCols(1, 7) = x;
    EXPECT_EQ(Fingerprint(someone).batch<float>(wide.middleCols(1, 7)).value(),
              Fingerprint(someone).batch<float>(x).value());  // wherever it lies
    EXPECT_EQ(of(Context{}), of(Context{}));
}

TEST(Fingerprint, TellsOwnersApart) {
    const Identity other;
    EXPECT_EQ(Fingerprint(someone).value(), Fingerprint(someone).value());
    EXPECT_NE(Fingerprint(someone).value(), Fingerprint(other).value());
}

TEST(Identity, IsOfOneObjectAndMovesWithIt) {
    Identity a, b;
    const std::uint64_t first = a.number(), second = b.number();
    EXPECT_NE(first, second);
    const Identity copy = a;
    EXPECT_NE(copy.number(), first);
    EXPECT_EQ(a.number(), first);
    Identity moved = std::move(a);
    EXPECT_EQ(moved.number(), first);
    EXPECT_NE(a.number(), first);  // NOLINT(bugprone-use-after-move)
    std::swap(moved, b);
    EXPECT_EQ(moved.number(), second);
    EXPECT_EQ(b.number(), first);
    b = copy;
    EXPECT_NE(b.number(), first);
    EXPECT_NE(b.number(), copy.number());
}

TEST(Fingerprint, TellsShapesApart) {
    std::set<std::uint64_t> seen;
    for (const Index rows : {0, 1, 2, 3, 6})
        for (const Index cols : {1, 2, 3, 6})
            seen.insert(of<float>(moe::Matrix<float>::Zero(rows, cols)));
    EXPECT_EQ(seen.size(), 20u);
}

TEST(Fingerprint, SeesEveryElementOfASmallBatch) {
    moe::Matrix<double> x = moe::Matrix<double>::Random(9, 7);  // 63 elements
    const std::uint64_t before = of(x);
    for (Index i = 0; i < x.size(); ++i) {
        const double value = std::exchange(x.data()[i], 0.125);
        EXPECT_NE(of(x), before) << i;
        x.data()[i] = value;
    }
    EXPECT_EQ(of(x), before);
}

TEST(Fingerprint, SeesEveryRowOfALargeBatch) {
    moe::Matrix<float> x = moe::Matrix<float>::Random(300, 50);
    const std::uint64_t before = of(x);
    for (Index t = 0; t < x.rows(); ++t) {
        const moe::Matrix<float> row = x.row(t);
        x.row(t) *= 2;
        EXPECT_NE(of(x), before) << t;
        x.row(t) = row;
    }
}

TEST(Fingerprint, TellsLargeBatchesApart) {
    for (const Index rows : {64, 65, 100}) {
        const moe::Matrix<float> a = moe::Matrix<float>::Random(rows, 64);
        const moe::Matrix<float> b = moe::Matrix<float>::Random(rows, 64);
        EXPECT_NE(of(a), of(b));
        const moe::Matrix<float> reversed = a.colwise().reverse();
        EXPECT_NE(of(a), of(reversed));
    }
}

TEST(Fingerprint, SeesEveryFieldOfAContext) {
    const std::vector<std::int64_t> ids{1, 2};
    const std::vector<std::int32_t> groups{0, 1};
    const std::vector<std::uint8_t> bytes{0, 1};
    const std::vector<Index> numbers{0, 2};
    const std::vector<double> reals{0.5, 1};
    const moe::Matrix<float> narrow = moe::Matrix<float>::Zero(2, 3);
    const moe::Matrix<float> wide = moe::Matrix<float>::Zero(2, 4);
    const moe::Matrix<double> f64 = moe::Matrix<double>::Ones(2, 3);
    moe::Workspace<float> previous;
    const std::vector<Context> contexts{
        {},
        {.training = true},
        {.step = 1},
        {.seed = 1},
        {.stream = 1},
        {.first_token = 1},
        {.token_ids = ids},
        {.token_groups = groups},
        {.task = 0},
        {.task = 1},
        {.padding = bytes},
        {.sequence_offsets = numbers},
        {.side_vectors = narrow},
        {.side_vectors = wide},
        {.side_vectors = f64},
        {.allowed = bytes},
        {.logit_offset = reals},
        {.gate_multiplier = reals},
        {.dial = {.k = 1}},
        {.dial = {.p = 0.5}},
        {.dial = {.k_per_sequence = numbers}},
        {.dial = {.p_per_sequence = reals}},
        {.previous = &previous},
    };
    std::set<std::uint64_t> seen;
    for (const Context& context : contexts) seen.insert(of(context));
    EXPECT_EQ(seen.size(), contexts.size());
}

TEST(Fingerprint, SeesWhatTheViewsOfAContextHold) {
    std::vector<std::int64_t> ids{1, 2, 3};
    std::vector<std::uint8_t> padding{0, 0, 1}, allowed{1, 1, 1, 0, 1, 1};
    std::vector<double> offset{0.5, 1}, multiplier{1, 2};
    std::vector<Index> sequences{0, 1, 3}, k{1, 2};
    moe::Matrix<float> vectors = moe::Matrix<float>::Random(3, 2);
    const Context context{.token_ids = ids,
                          .padding = padding,
                          .sequence_offsets = sequences,
                          .side_vectors = vectors,
                          .allowed = allowed,
                          .logit_offset = offset,
                          .gate_multiplier = multiplier,
                          .dial = {.k_per_sequence = k}};
    std::set<std::uint64_t> seen{of(context)};
    const auto changed = [&](auto& value, auto to) {
        const auto before = value;
        value = to;
        const bool is_new = seen.insert(of(context)).second;
        value = before;
        return is_new;
    };
    EXPECT_TRUE(changed(ids[2], 4));
    EXPECT_TRUE(changed(padding[1], std::uint8_t{1}));
    EXPECT_TRUE(changed(allowed[0], std::uint8_t{0}));
    EXPECT_TRUE(changed(offset[1], 1.5));
    EXPECT_TRUE(changed(multiplier[0], -1.0));
    EXPECT_TRUE(changed(sequences[1], 2));
    EXPECT_TRUE(changed(k[1], 1));
    EXPECT_TRUE(changed(vectors(2, 1), 9.0f));
    EXPECT_FALSE(changed(ids[2], 3));
}

TEST(Fingerprint, DoesNotLookAtWhereGradientsGo) {
    moe::ContextGradients gradients;
    EXPECT_EQ(of(Context{.gradients = &gradients}), of(Context{}));
}

Routing plan(Index tokens, Index experts, const std::vector<std::pair<Index, Index>>& pairs) {
    Routing routing;
    routing.reset(tokens, experts);
    for (const auto& pair : pairs) routing.add(pair.first, pair.second);
    routing.group();
    return routing;
}

TEST(Fingerprint, TellsPlansApart) {
    std::set<std::uint64_t> seen;
    std::size_t count = 0;
    const auto add = [&](const Routing& routing) { seen.insert(of(routing)), ++count; };
    add(plan(1, 4, {}));
    add(plan(2, 4, {}));
    add(plan(1, 3, {}));
    for (Index e = 0; e < 4; ++e) add(plan(1, 4, {{0, e}}));  // one token, another expert
    add(plan(2, 4, {{0, 1}, {1, 2}}));
    add(plan(2, 4, {{0, 2}, {1, 1}}));
    add(plan(2, 4, {{0, 1}, {1, 1}}));
    add(plan(2, 4, {{0, 1}, {0, 2}}));
    Routing dropped = plan(2, 4, {{0, 1}, {1, 1}});
    dropped.set_dropped(1, moe::Dropped::capacity);
    dropped.group();
    add(dropped);
    Routing weighed = plan(2, 4, {{0, 1}, {1, 1}});
    weighed.set_weight(1, 0.5);
    add(weighed);
    weighed.set_input_weight(0, 0.5);
    add(weighed);
    EXPECT_EQ(seen.size(), count);
    EXPECT_EQ(of(plan(2, 4, {{1, 2}, {0, 1}})), of(plan(2, 4, {{0, 1}, {1, 2}})));
}

}  // namespace
}  // namespace fingerprint_test
