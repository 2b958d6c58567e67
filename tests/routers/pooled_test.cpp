// SPDX-License-Identifier: MIT
#include <moe/routers/pooled.hpp>

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routers/jitter.hpp>

#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::LinearRouter;
using moe::Pooled;
using moe::PoolScope;

constexpr Index tokens = 11, dim = 5, experts = 4;
const std::vector<Index> sequences{0, 4, 4, 5, 11};  // one of them is empty

/// Number of the block of each token, counted by hand.
const std::vector<Index> in_chunks_of_3{0, 0, 0, 1, 2, 3, 3, 3, 4, 4, 4};
const std::vector<Index> in_sequences{0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2};
const std::vector<Index> in_one_run_of_3{0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3};
const std::vector<Index> in_one(tokens, 0);

using Head = moe::Head<double, Pooled<LinearRouter>, moe::TopK>;
static_assert(!Head::per_token && moe::Head<double, LinearRouter, moe::TopK>::per_token);
static_assert(!moe::Head<double, moe::Jitter<Pooled<LinearRouter>>, moe::TopK>::per_token);

TEST(PooledRouter, IsNotCausalForTheWholeBlockDecides) {
    const std::vector<moe::ExpertFacts> facts(experts);
    const moe::Config config{.model_dim = dim};
    EXPECT_FALSE(Head(config, Pooled{LinearRouter{}}, moe::TopK{.k = 1}, facts).is_causal());
    EXPECT_TRUE(
        (moe::Head<double, LinearRouter, moe::TopK>(config, {}, {.k = 1}, facts)).is_causal());
}

template <class S>
class PooledRouters : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PooledRouters, Scalars);

TYPED_TEST(PooledRouters, DecideByTheMeanOfABlock) {
    using S = TypeParam;
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, experts, 2);
    const std::vector<std::uint8_t> none{}, some{0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1};
    const auto expect_blocks = [&](PoolScope scope, Index chunk, Context context,
                                   const std::vector<Index>& block_of) {
        for (const auto* const padding : {&none, &some}) {
            context.padding = *padding;
            const auto router = build<S>(Pooled{LinearRouter{}, scope, chunk}, dim, experts);
            Workspace<S> ws;
            const auto got = run<S>(router, x, dlogits, context, ws);
            const Matrix<double> w = router.inner.weight.view().template cast<double>();
            Matrix<double> logits(tokens, experts), dx = Matrix<double>::Zero(tokens, dim);
            Matrix<double> dw = Matrix<double>::Zero(experts, dim);
            for (Index t = 0; t < tokens; ++t) {
                Matrix<double> mean = Matrix<double>::Zero(1, dim);
                Matrix<double> dz = Matrix<double>::Zero(1, experts);
                int count = 0;
                for (Index i = 0; i < tokens; ++i) {
                    if (block_of[static_cast<std::size_t>(i)] !=
                        block_of[static_cast<std::size_t>(t)])
                        continue;
                    dz += dlogits.row(i).template cast<double>();
                    if (context.is_padding(i)) continue;
                    mean += x.row(i).template cast<double>();
                    ++count;
                }
                if (count > 0) mean /= count;
                logits.row(t) = mean * w.transpose();
                dw += dlogits.row(t).template cast<double>().transpose() * mean;
                if (!context.is_padding(t)) dx.row(t) = dz * w / count;
            }
            const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
            EXPECT_TRUE(moe::testing::compare(got.logits, logits, tolerance));
            EXPECT_TRUE(moe::testing::compare(got.dx, dx, tolerance));
            EXPECT_TRUE(moe::testing::compare(
                got.gradient,
                std::span<const double>(dw.data(), static_cast<std::size_t>(dw.size())),
                tolerance));
        }
    };
    const Context with_sequences{.sequence_offsets = sequences};
    expect_blocks(PoolScope::chunk, 3, with_sequences, in_chunks_of_3);
    expect_blocks(PoolScope::chunk, 3, {}, in_one_run_of_3);
    expect_blocks(PoolScope::chunk, 100, with_sequences, in_sequences);
    expect_blocks(PoolScope::chunk, 100, {}, in_one);
    expect_blocks(PoolScope::sequence, 0, with_sequences, in_sequences);
    expect_blocks(PoolScope::batch, 0, with_sequences, in_one);
    expect_blocks(PoolScope::batch, 0, {}, in_one);
}

TYPED_TEST(PooledRouters, AreTheInnerRouterToTheBitWithChunksOfOneToken) {
    using S = TypeParam;
    auto x = random_matrix<S>(tokens, dim, 1);
    x(2, 1) = S(-0.0);
    const auto dlogits = random_matrix<S>(tokens, experts, 2);
    const Context context{.training = true, .first_token = 30, .sequence_offsets = sequences};
    Workspace<S> ws, other;
    const moe::Jitter noisy{LinearRouter{.bias = true}, 0.2};  // random numbers are the same too
    const auto pooled = build<S>(Pooled{noisy, PoolScope::chunk, 1}, dim, experts);
    const auto got = run<S>(pooled, x, dlogits, context, ws);
    // The wrapper has a node of its own, so the same numbers come from one node further down.
    const moe::RouterWrapper<S, std::decay_t<decltype(pooled.inner)>> plain{pooled.inner};
    const auto expected = run<S>(plain, x, dlogits, context, other);
    EXPECT_TRUE(same_bits(got.logits, expected.logits));
    EXPECT_TRUE(same_bits(got.dx, expected.dx));
    EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
}

TEST(Pooled, GivesAllTokensOfABlockTheSameExperts) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = dim}, Pooled{LinearRouter{}, PoolScope::chunk, 3},
        moe::TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = 2});
    Workspace<double> ws;
    layer.route(random_matrix<double>(tokens, dim, 1), ws, {.sequence_offsets = sequences});
    for (Index t = 1; t < tokens; ++t) {
        const auto before = static_cast<std::size_t>(t - 1), now = static_cast<std::size_t>(t);
        if (in_chunks_of_3[before] != in_chunks_of_3[now]) continue;
        for (std::size_t k = 0; k < 2; ++k) {
            EXPECT_EQ(ws.routing().of(t)[k].expert, ws.routing().of(t - 1)[k].expert);
            EXPECT_EQ(ws.routing().of(t)[k].weight, ws.routing().of(t - 1)[k].weight);
        }
    }
}

TEST(Pooled, RoutesASplitBatchTheSameOnlyWhereCutsAreBetweenBlocks) {
    const auto router = build<double>(Pooled{LinearRouter{}, PoolScope::chunk, 4}, dim, experts);
    const auto x = random_matrix<double>(12, dim, 1);
    Workspace<double> ws;
    const auto whole = forward<double>(router, x, experts, {}, ws);
    const auto from = [&](Index first) {
        return forward<double>(router, x.bottomRows(12 - first), experts, {}, ws);
    };
    EXPECT_TRUE(same_bits(from(4), Matrix<double>(whole.bottomRows(8))));
    EXPECT_FALSE(same_bits(from(5), Matrix<double>(whole.bottomRows(7))));
}

TEST(Pooled, HasExactGradients) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    const std::vector<std::uint8_t> padding{0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1};
    for (const Context& context : {Context{.sequence_offsets = sequences},
                                   Context{.padding = padding, .sequence_offsets = sequences}})
        for (const auto& [scope, chunk] :
             {std::pair(PoolScope::chunk, 3), std::pair(PoolScope::sequence, 0),
              std::pair(PoolScope::batch, 0)}) {
            const Pooled linear{LinearRouter{.bias = true}, scope, chunk};
            const Pooled users{own(dim, experts), scope, chunk};
            expect_exact_gradients(build<double>(linear, dim, experts), x, experts, context);
            expect_exact_gradients(build<double>(users, dim, experts), x, experts, context);
            expect_exact_in_layer(linear, context, tokens);
            expect_exact_in_layer(users, context, tokens);
        }
}

TEST(Pooled, IsNotTouchedByWhatPaddingHolds) {
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[4] = padding[7] = 1;  // 4 is a block of its own
    const Context context{.padding = padding, .sequence_offsets = sequences};
    const auto router = build<double>(Pooled{LinearRouter{}, PoolScope::chunk, 3}, dim, experts);
    auto x = random_matrix<double>(tokens, dim, 1);
    const auto dlogits = random_matrix<double>(tokens, experts, 2);
    Workspace<double> ws;
    const auto expected = run<double>(router, x, dlogits, context, ws);
    x.row(4).setConstant(not_a_number);
    x.row(7).setConstant(infinity);
    const auto got = run<double>(router, x, dlogits, context, ws);
    EXPECT_TRUE(same_bits(got.logits, expected.logits));
    EXPECT_TRUE(same_bits(got.dx, expected.dx));
    EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
    EXPECT_TRUE((got.logits.row(4).array() == 0).all());
}

TEST(Pooled, KeepsATokenThatIsNotANumberInItsBlock) {
    const auto router = build<double>(Pooled{LinearRouter{}, PoolScope::chunk, 3}, dim, experts);
    auto x = random_matrix<double>(tokens, dim, 1);
    x(3, 0) = not_a_number;
    Workspace<double> ws;
    const auto logits = forward<double>(router, x, experts, {}, ws);
    for (Index t = 0; t < tokens; ++t)
        EXPECT_EQ(logits.row(t).array().isNaN().any(), 3 <= t && t < 6) << t;
}

TEST(Pooled, DoesNotDependOnTheOrderOfTokensInABlock) {
    const auto router = build<double>(Pooled{LinearRouter{}, PoolScope::batch}, dim, experts);
    const auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    EXPECT_TRUE(moe::testing::compare(
        forward<double>(router, Matrix<double>(x.colwise().reverse()), experts, {}, ws),
        forward<double>(router, x, experts, {}, ws), 1e-14));
}

TEST(Pooled, WorksOnNoTokens) {
    Workspace<double> ws;
    for (const auto scope : {PoolScope::sequence, PoolScope::batch}) {
        const auto got = run<double>(build<double>(Pooled{LinearRouter{}, scope}, dim, experts),
                                     Matrix<double>(0, dim), Matrix<double>(0, experts), {}, ws);
        EXPECT_EQ(got.logits.rows(), 0);
        for (const double value : got.gradient) EXPECT_EQ(value, 0);
    }
}

TEST(Pooled, HasTheSameBitsOnAnyNumberOfThreadsAndAllocatesNothingTwice) {
    const std::vector<Index> offsets{0, 150, 151, 400};
    const Context context{.sequence_offsets = offsets};
    for (const auto& [scope, chunk] :
         {std::pair(PoolScope::chunk, 7), std::pair(PoolScope::sequence, 0),
          std::pair(PoolScope::batch, 0)}) {
        const auto router = build<float>(Pooled{LinearRouter{}, scope, chunk}, 300, 19);
        expect_same_bits<float>(router, 400, 300, 19, context);
        expect_no_allocations<float>(router, 400, 300, 19, context);
    }
}

TEST(Pooled, RefusesSequencesThatAreNotGiven) {
    const auto router = build<double>(Pooled{LinearRouter{}}, dim, experts);
    Workspace<double> ws;
    expect_message<std::invalid_argument>(
        [&] { forward<double>(router, random_matrix<double>(3, dim, 1), experts, {}, ws); },
        {"moe::Pooled: sequence_offsets must ascend from 0 to the 3 tokens of the batch, it is "
         "empty; set Context::sequence_offsets"});
}

TEST(Pooled, RefusesSequencesOfAnotherBatch) {
    const std::vector<Index> offsets{0, 2, 4};
    for (const auto& [scope, chunk] :
         {std::pair(PoolScope::chunk, 2), std::pair(PoolScope::sequence, 0)}) {
        const auto router = build<double>(Pooled{LinearRouter{}, scope, chunk}, dim, experts);
        Workspace<double> ws;
        expect_message<std::invalid_argument>(
            [&] {
                forward<double>(router, random_matrix<double>(3, dim, 1), experts,
                                {.sequence_offsets = offsets}, ws);
            },
            {"moe::Pooled: sequence_offsets must ascend from 0 to the 3 tokens of the batch, its "
             "last entry is 4"});
    }
}

TEST(Pooled, DoesNotShowTheInnerRouterWhatIsPerToken) {
    // It would read another token's: one that wants such a field says that it is not there.
    const std::vector<std::int32_t> groups(tokens, 0);
    struct Groups {
        void forward(In<double>, Out<double> logits, const Call<double>& call) const {
            EXPECT_TRUE(call.context.token_groups.empty());
            EXPECT_TRUE(call.context.sequence_offsets.empty());
            EXPECT_EQ(call.ids.size(), 4u);
            EXPECT_EQ(call.token(1), 1003);
            logits.setZero();
        }
    };
    const auto router = build<double>(Pooled{Groups{}, PoolScope::chunk, 3}, dim, experts);
    Workspace<double> ws;
    forward<double>(router, random_matrix<double>(tokens, dim, 1), experts,
                    {.first_token = 1000, .token_groups = groups}, ws);
}

TEST(Pooled, RefusesBadSettings) {
    expect_message<std::invalid_argument>(
        [] {
            build<double>(Pooled{LinearRouter{}, PoolScope::chunk}, dim, experts);
        },
        {"moe::Pooled: chunk is 0, it must be >= 1"});
    expect_message<std::invalid_argument>(
        [] {
            build<double>(Pooled{LinearRouter{}, PoolScope::batch, 4}, dim, experts);
        },
        {"moe::Pooled: chunk is 4, it must be 0 unless scope is chunk"});
    expect_message<std::invalid_argument>(
        [] {
            build<double>(Pooled{LinearRouter{}, static_cast<PoolScope>(9)}, dim, experts);
        },
        {"moe::Pooled: scope is 9, which is none of moe::PoolScope"});
}

}  // namespace
