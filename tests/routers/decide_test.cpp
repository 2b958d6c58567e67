// SPDX-License-Identifier: MIT
// What all routers that do not look at tokens have in common.
#include <moe/routers/decide.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/noisy.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/head.hpp>
#include <moe/routers/balanced.hpp>
#include <moe/routers/external.hpp>
#include <moe/routers/hash.hpp>
#include <moe/routers/label.hpp>
#include <moe/routers/random.hpp>
#include <moe/routers/token_table.hpp>

#include "routers/decided.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace {

using decided::dim;
using moe::Call;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;
using support::message;

constexpr Index tokens = 150, experts = 6;

/// All that any of these routers reads, for `tokens` tokens.
template <class S>
struct Batch {
    std::vector<std::int64_t> ids;
    std::vector<std::int32_t> labels;
    std::vector<Index> offsets{0, 20, 90, tokens};
    Matrix<S> side = random_matrix<S>(tokens, experts, 8);
    Context context;

    Batch() {
        for (Index t = 0; t < tokens; ++t) {
            ids.push_back(t * t % 37);
            labels.push_back(static_cast<std::int32_t>(t % (experts + 1)) - 1);
        }
        context.seed = 3;
        context.token_ids = ids;
        context.token_groups = labels;
        context.sequence_offsets = offsets;
        context.side_vectors = side;
    }
    Batch(const Batch&) = delete;
};

/// f(recipe, what its messages start with) for each router.
template <class F>
void for_each_router(F&& f) {
    using Scope = moe::RandomRouter::Scope;
    const auto traced = [&f](const auto& recipe, const char* name) {
        SCOPED_TRACE(name);
        f(recipe, std::string(name));
    };
    traced(moe::TokenTable{.table = moe::random_table(37, experts, 2), .k = 2}, "moe::TokenTable");
    traced(moe::HashRouter{.k = 2}, "moe::HashRouter");
    traced(moe::ExternalRouter{}, "moe::ExternalRouter");
    traced(moe::LabelRouter{}, "moe::LabelRouter");
    traced(moe::RandomRouter{.k = 2}, "moe::RandomRouter");
    traced(moe::RandomRouter{.inference = Scope::sequence}, "moe::RandomRouter");
    traced(moe::RandomRouter{.training = Scope::token, .balanced = true}, "moe::RandomRouter");
    traced(moe::BalancedRouter{.k = 2}, "moe::BalancedRouter");
}

template <class S>
class RoutersThatDoNotLook : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(RoutersThatDoNotLook, Scalars);

TYPED_TEST(RoutersThatDoNotLook, GiveTheSameLogitsForAnyTokens) {
    using S = TypeParam;
    const Batch<S> batch;
    for_each_router([&](const auto& recipe, const std::string&) {
        const auto router = decided::build<S>(recipe, experts);
        static_assert(moe::Router<std::remove_const_t<decltype(router)>, S>);
        Workspace<S> ws;
        const Matrix<S> of_nan = decided::logits_of<S>(router, tokens, experts, batch.context, ws);
        EXPECT_FALSE(of_nan.array().isNaN().any());
        EXPECT_FALSE((of_nan.array() == std::numeric_limits<S>::infinity()).any());
        Matrix<S> logits(tokens, experts);
        router.forward(random_matrix<S>(tokens, dim, 5), logits, Call<S>{batch.context, ws});
        EXPECT_EQ(logits, of_nan);
    });
}

TYPED_TEST(RoutersThatDoNotLook, WriteAGradientOfZeros) {
    using S = TypeParam;
    const Batch<S> batch;
    for_each_router([&](const auto& recipe, const std::string&) {
        auto router = decided::build<S>(recipe, experts);
        Workspace<S> ws;
        Matrix<S> wide = Matrix<S>::Constant(tokens, dim + 2, S(7));
        router.backward(random_matrix<S>(tokens, dim, 5), random_matrix<S>(tokens, experts, 6),
                        wide.leftCols(dim), router, Call<S>{batch.context, ws});
        EXPECT_EQ(wide.leftCols(dim), (Matrix<S>::Zero(tokens, dim)));
        EXPECT_EQ(wide.rightCols(2), (Matrix<S>::Constant(tokens, 2, S(7))));
        EXPECT_EQ(moe::num_parameters(router), 0);
    });
}

TYPED_TEST(RoutersThatDoNotLook, WriteRowsOfWiderMatrices) {
    using S = TypeParam;
    const Batch<S> batch;
    for_each_router([&](const auto& recipe, const std::string&) {
        const auto router = decided::build<S>(recipe, experts);
        Workspace<S> ws;
        Matrix<S> wide = Matrix<S>::Constant(tokens, experts + 3, S(7));
        router.forward(Matrix<S>(tokens, dim), wide.leftCols(experts), Call<S>{batch.context, ws});
        EXPECT_EQ(wide.leftCols(experts),
                  decided::logits_of<S>(router, tokens, experts, batch.context));
        EXPECT_EQ(wide.rightCols(3), (Matrix<S>::Constant(tokens, 3, S(7))));
    });
}

TYPED_TEST(RoutersThatDoNotLook, GiveTheSameBitsWithAnyNumberOfThreads) {
    using S = TypeParam;
    const Batch<S> batch;
    for_each_router([&](const auto& recipe, const std::string&) {
        const auto router = decided::build<S>(recipe, experts);
        Workspace<S> serial;
        serial.threads(1);
        const auto expected = decided::logits_of<S>(router, tokens, experts, batch.context, serial);
        for (const int threads : {2, 3}) {
            Workspace<S> ws;
            ws.threads(threads).plan({.serial_flops = 0});
            const auto got = decided::logits_of<S>(router, tokens, experts, batch.context, ws);
            EXPECT_TRUE(same_bits(got, expected, {.allow_zeros = true}));
        }
    });
}

TYPED_TEST(RoutersThatDoNotLook, WorkWithoutTokens) {
    using S = TypeParam;
    for_each_router([&](const auto& recipe, const std::string&) {
        auto router = decided::build<S>(recipe, experts);
        const Context context;
        Workspace<S> ws;
        EXPECT_EQ(decided::logits_of<S>(router, 0, experts, context, ws).rows(), 0);
        Matrix<S> none(0, dim);
        router.backward(none, Matrix<S>(0, experts), none, router, Call<S>{context, ws});
        const auto layer = decided::layer_of<S>(recipe, experts, 2);
        EXPECT_EQ(layer(none).rows(), 0);
    });
}

TEST(RoutersThatDoNotLook, AllocateNothingInTheSecondCall) {
    const Batch<float> batch;
    for_each_router([&](const auto& recipe, const std::string&) {
        auto router = decided::build<float>(recipe, experts);
        moe::ThreadPool pool(2);
        Workspace<float> ws(pool);
        Matrix<float> x = random_matrix<float>(tokens, dim, 1), dx = x, logits(tokens, experts);
        const Call<float> call{batch.context, ws};
        const auto both = [&] {
            router.forward(x, logits, call);
            router.backward(x, logits, dx, router, call);
        };
        both();
        EXPECT_EQ(allocations::in(both), 0);
    });
}

TEST(RoutersThatDoNotLook, RefuseALayerOfOtherExtents) {
    const Batch<double> batch;
    for_each_router([&](const auto& recipe, const std::string& name) {
        auto router = decided::build<double>(recipe, experts);
        EXPECT_EQ(message([&] { router.check({.num_logits = 9}); }),
                  name +
                      ": the router was built for 6 logits per token, the layer wants 9; build "
                      "it again from its recipe");
        router.check({.num_experts = experts, .num_logits = experts});
        Workspace<double> ws;
        const Call<double> call{batch.context, ws};
        const Matrix<double> x(tokens, dim), dlogits(tokens, experts);
        Matrix<double> logits(tokens, 5), dx(tokens - 1, dim);
        EXPECT_EQ(
            message([&] { router.forward(x, logits, call); }),
            name + ": logits is [150, 5], it must be [150, 6]: tokens of x, logits per token");
        EXPECT_EQ(message([&] { router.backward(x, dlogits, dx, router, call); }),
                  name + ": dx is [149, 4], it must be [150, 4] like x");
    });
}

TEST(RoutersThatDecide, RefuseAGateWhoseLogitsAreNotTheExpertsOwn) {
    // As many half-keys as experts, 2 heads with 4 and 4 for 16 experts; and then twice as many.
    using moe::ProductKeyTopK;
    const std::vector<moe::ExpertFacts> facts(16);
    for_each_router([&](const auto& recipe, const std::string& name) {
        if (name == "moe::ExternalRouter") return;  // its logits may be anybody's
        const auto said = [&](const auto& gate) {
            return message([&] { moe::Head(moe::Config{.model_dim = dim}, recipe, gate, facts); });
        };
        EXPECT_EQ(said(ProductKeyTopK{.k = 2, .heads = 2}),
                  name +
                      ": the router speaks of experts, the gate takes 16 logits for 16 experts, "
                      "none of which is an expert's own; use a gate with one logit per expert, "
                      "such as moe::TopK");
        EXPECT_EQ(said(moe::Noisy{moe::TopK{.k = 2}}),
                  name +
                      ": the router speaks of experts, the gate takes 32 logits for 16 experts; "
                      "use a gate with one logit per expert, such as moe::TopK");
        EXPECT_EQ(said(moe::TopK{.k = 2}), "");
        auto router = decided::build<double>(recipe, 16);
        EXPECT_NE(
            message([&] {
                router.check({.num_experts = 16, .num_logits = 16, .has_expert_logits = false});
            }),
            "");
    });
    moe::Head(moe::Config{.model_dim = dim}, moe::ExternalRouter{},
              ProductKeyTopK{.k = 2, .heads = 2}, facts);
}

TEST(RoutersThatDoNotLook, AreNothingByDefault) {
    for_each_router([](const auto& recipe, const std::string&) {
        using Module = decltype(decided::build<float>(recipe, experts));
        const Module nothing;
        const Module copy = nothing;
        EXPECT_EQ(moe::num_parameters(copy), 0);
    });
}

TEST(RoutersThatDoNotLook, CheckExtentsWithASentence) {
    EXPECT_NO_THROW(moe::detail::check_k("moe::X", 1, 1));
    EXPECT_EQ(message([] { moe::detail::check_k("moe::X", 0, 3); }),
              "moe::X: k is 0, it must be in [1, 3], the experts of the layer");
    EXPECT_EQ(message([] { moe::detail::check_k("moe::X", 4, 3); }),
              "moe::X: k is 4, it must be in [1, 3], the experts of the layer");
    EXPECT_NO_THROW(moe::detail::check_per_token("moe::X", "token_ids", 0, 0));
    EXPECT_EQ(message([] { moe::detail::check_per_token("moe::X", "token_ids", 2, 1); }),
              "moe::X: token_ids has 2 entries, the batch has 1 token");
    EXPECT_EQ(message([] { moe::detail::check_per_token("moe::X", "token_ids", 0, 5); }),
              "moe::X: token_ids has 0 entries, the batch has 5 tokens; set Context::token_ids");
}

TEST(Decide, LeavesPaddingWithoutExpertsAndAnEmptyBatchAlone) {
    const std::vector<std::uint8_t> padding{0, 1, 0};
    const Context context{.padding = padding};
    Workspace<double> ws;
    Matrix<double> logits = Matrix<double>::Zero(3, 2), none(0, 2);
    moe::detail::decide<double>(logits, {context, ws}, [](Index t, double* row) {
        EXPECT_NE(t, 1);
        row[1] = 0;
    });
    constexpr double dead = -std::numeric_limits<double>::infinity();
    EXPECT_EQ(logits, (Matrix<double>(3, 2) << dead, 0, dead, dead, dead, 0).finished());
    const Context nothing;
    moe::detail::decide<double>(none, {nothing, ws}, [](Index, double*) { ADD_FAILURE(); });
}

TEST(TakeDifferent, TakesEachOfAllWhereAsManyAreWanted) {
    for (const Index n : {0, 1, 2, 9}) {
        std::vector<Index> taken;
        moe::detail::take_different(
            n, n, [](Index, Index) { return Index{0}; },
            [&](Index e) { return std::find(taken.begin(), taken.end(), e) != taken.end(); },
            [&](Index e) { taken.push_back(e); });
        std::sort(taken.begin(), taken.end());
        ASSERT_EQ(static_cast<Index>(taken.size()), n);
        for (Index e = 0; e < n; ++e) EXPECT_EQ(taken[static_cast<std::size_t>(e)], e);
    }
}

TEST(TakeDifferent, MakesEverySetFromAsManyDraws) {
    // All 4 * 5 * 6 pairs of draws for 3 of 6: each of the 20 sets 6 times.
    std::map<std::vector<Index>, int> sets;
    for (Index a = 0; a < 4; ++a)
        for (Index b = 0; b < 5; ++b)
            for (Index c = 0; c < 6; ++c) {
                const Index draws[]{a, b, c}, bounds[]{4, 5, 6};
                std::vector<Index> taken;
                moe::detail::take_different(
                    3, 6,
                    [&](Index j, Index bound) {
                        EXPECT_EQ(bound, bounds[j]);
                        return draws[j];
                    },
                    [&](Index e) {
                        return std::find(taken.begin(), taken.end(), e) != taken.end();
                    },
                    [&](Index e) { taken.push_back(e); });
                std::sort(taken.begin(), taken.end());
                ++sets[taken];
            }
    EXPECT_EQ(sets.size(), 20u);
    for (const auto& [set, count] : sets) EXPECT_EQ(count, 6);
}

}  // namespace
