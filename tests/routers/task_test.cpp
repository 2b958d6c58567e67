// SPDX-License-Identifier: MIT
#include <moe/routers/task.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routers/jitter.hpp>
#include <moe/routers/residual.hpp>

#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;
using moe::Jitter;
using moe::LinearRouter;
using moe::PerTask;

constexpr Index tokens = 9, dim = 5, experts = 8;
const std::vector<std::int32_t> tasks{2, 0, 2, 1, 0, 2, 2, 1, 0};

template <class S>
class TaskRouters : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TaskRouters, Scalars);

TYPED_TEST(TaskRouters, UseTheRouterOfEachTokensTask) {
    using S = TypeParam;
    const auto router = build<S>(PerTask{LinearRouter{}, 3}, dim, experts);
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, experts, 2);
    Workspace<S> ws;
    const auto got = run<S>(router, x, dlogits, {.token_groups = tasks}, ws);
    Matrix<double> logits = Matrix<double>::Zero(tokens, experts), dx(tokens, dim);
    Matrix<double> dw = Matrix<double>::Zero(3 * experts, dim);
    dx.setZero();
    for (Index t = 0; t < tokens; ++t)
        for (Index l = 0; l < experts; ++l)
            for (Index d = 0; d < dim; ++d) {
                const Index task = tasks[static_cast<std::size_t>(t)];
                const auto& own = router.routers()[static_cast<std::size_t>(task)];
                const auto w = static_cast<double>(own.weight(l, d));
                const auto dz = static_cast<double>(dlogits(t, l));
                logits(t, l) += static_cast<double>(x(t, d)) * w;
                dx(t, d) += dz * w;
                dw(task * experts + l, d) += dz * static_cast<double>(x(t, d));
            }
    const double tolerance = std::is_same_v<S, float> ? 2e-6 : 1e-14;
    EXPECT_TRUE(moe::testing::compare(got.logits, logits, tolerance));
    EXPECT_TRUE(moe::testing::compare(got.dx, dx, tolerance));
    EXPECT_TRUE(moe::testing::compare(
        got.gradient, std::span<const double>(dw.data(), static_cast<std::size_t>(dw.size())),
        tolerance));
}

TYPED_TEST(TaskRouters, AreTheInnerRoutersToTheBit) {
    using S = TypeParam;
    const auto router = build<S>(PerTask{LinearRouter{}, 3}, dim, experts);
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, experts, 2);
    for (Index task = 0; task < 3; ++task) {
        Workspace<S> ws, other, mixed;
        const auto& own = router.routers()[static_cast<std::size_t>(task)];
        const auto expected = run<S>(own, x, dlogits, {}, other);
        // The task of the batch goes before those of tokens.
        const auto got = run<S>(router, x, dlogits, {.token_groups = tasks, .task = task}, ws);
        EXPECT_TRUE(same_bits(got.logits, expected.logits));
        EXPECT_TRUE(same_bits(got.dx, expected.dx));
        const auto per_token = run<S>(router, x, dlogits, {.token_groups = tasks}, mixed);
        for (Index t = 0; t < tokens; ++t) {
            if (tasks[static_cast<std::size_t>(t)] != task) continue;
            EXPECT_TRUE(same_bits(per_token.logits.row(t), expected.logits.row(t)));
            EXPECT_TRUE(same_bits(per_token.dx.row(t), expected.dx.row(t)));
        }
        // Routers of other tasks get nothing.
        const auto size = static_cast<std::size_t>(experts * dim);
        for (std::size_t i = 0; i < got.gradient.size(); ++i) {
            const bool is_own = i / size == static_cast<std::size_t>(task);
            if (is_own)
                EXPECT_EQ(got.gradient[i], expected.gradient[i % size]);
            else
                EXPECT_EQ(got.gradient[i], 0);
        }
    }
}

TEST(PerTask, GivesEachTaskItsWindowOfExperts) {
    const auto expect_starts = [](const auto& recipe, Index count, std::vector<Index> starts,
                                  Index window) {
        const auto router = build<double>(recipe, dim, count);
        ASSERT_EQ(router.num_tasks(), static_cast<Index>(starts.size()));
        for (std::size_t task = 0; task < starts.size(); ++task) {
            EXPECT_EQ(router.ranges()[task].first, starts[task]);
            EXPECT_EQ(router.ranges()[task].last, starts[task] + window);
        }
    };
    expect_starts(PerTask{LinearRouter{}, 3, 4}, 8, {0, 2, 4}, 4);
    expect_starts(PerTask{LinearRouter{}, 4, 4}, 8, {0, 1, 2, 4}, 4);  // int(i * 4 / 3)
    expect_starts(PerTask{LinearRouter{}, 5, 4}, 16, {0, 3, 6, 9, 12}, 4);
    expect_starts(PerTask{LinearRouter{}, 2, 8}, 8, {0, 0}, 8);
    expect_starts(PerTask{LinearRouter{}, 1, 3}, 8, {0}, 3);
    expect_starts(PerTask{LinearRouter{}, 2}, 8, {0, 0}, 8);
}

TEST(PerTask, NeverCrossesAWindow) {
    const PerTask recipe{LinearRouter{}, 3, 4};
    const auto router = build<double>(recipe, dim, experts);
    const auto x = random_matrix<double>(tokens, dim, 1);
    const auto dlogits = random_matrix<double>(tokens, experts, 2);
    const auto expect_masked = [&](const Context& context, auto&& task_of) {
        Workspace<double> ws;
        const auto got = run<double>(router, x, dlogits, context, ws);
        for (Index t = 0; t < tokens; ++t)
            for (Index e = 0; e < experts; ++e) {
                const Index start = 2 * task_of(t);
                EXPECT_EQ(got.logits(t, e) == -infinity, e < start || e >= start + 4);
            }
    };
    expect_masked({.token_groups = tasks},
                  [](Index t) { return tasks[static_cast<std::size_t>(t)]; });
    expect_masked({.task = 1}, [](Index) { return 1; });
    expect_exact_gradients(router, x, experts, {.token_groups = tasks});
    expect_exact_gradients(router, x, experts, {.task = 2});

    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, recipe, moe::TopK{.k = 4},
                                moe::Swiglu{.count = experts, .ffn_dim = 2});
    Workspace<double> ws;
    layer.route(x, ws, {.token_groups = tasks});
    EXPECT_EQ(ws.routing().num_assignments(), 4 * tokens);
    for (const moe::Assignment& a : ws.routing().assignments())
        EXPECT_TRUE(
            router.ranges()[static_cast<std::size_t>(tasks[static_cast<std::size_t>(a.token)])]
                .holds(a.expert));
}

TEST(PerTask, HasExactGradients) {
    const auto x = random_matrix<double>(tokens, dim, 1);
    for (const Context& context :
         {Context{.token_groups = tasks}, Context{.task = 1}, Context{.task = 0}}) {
        expect_exact_gradients(build<double>(PerTask{LinearRouter{.bias = true}, 3}, dim, 4), x, 4,
                               context);
        expect_exact_gradients(build<double>(PerTask{own(dim, 4), 3}, dim, 4), x, 4, context);
        expect_exact_in_layer(PerTask{LinearRouter{}, 3, 3}, context, tokens);
        expect_exact_in_layer(PerTask{own(dim, 4), 3}, context, tokens);
    }
    expect_exact_in_layer(PerTask{Jitter{LinearRouter{}, 0.3}, 3},
                          {.training = true, .token_groups = tasks}, tokens);
}

TEST(PerTask, KeepsRandomNumbersWithTheirTokens) {
    // Each token draws the numbers that it would draw in a batch of its own task.
    const auto router = build<double>(PerTask{Jitter{LinearRouter{}, 0.3}, 3}, dim, experts);
    const auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws, other;
    const auto mixed =
        forward<double>(router, x, experts, {.training = true, .token_groups = tasks}, ws);
    for (Index task = 0; task < 3; ++task) {
        const auto whole =
            forward<double>(router, x, experts, {.training = true, .task = task}, other);
        for (Index t = 0; t < tokens; ++t)
            if (tasks[static_cast<std::size_t>(t)] == task) {
                EXPECT_TRUE(same_bits(mixed.row(t), whole.row(t)));
            }
    }
}

TEST(PerTask, DoesNotShowOneTasksTokensToAnother) {
    // A token that is NaN harms its own task's gradient only.
    const auto router = build<double>(PerTask{LinearRouter{}, 3}, dim, experts);
    auto x = random_matrix<double>(tokens, dim, 1);
    x(3, 2) = not_a_number;  // task 1
    Workspace<double> ws;
    const auto got = run<double>(router, x, random_matrix<double>(tokens, experts, 2),
                                 {.token_groups = tasks}, ws);
    const Index size = experts * dim;
    for (Index i = 0; i < 3 * size; ++i)
        EXPECT_EQ(std::isnan(got.gradient[static_cast<std::size_t>(i)]),
                  i / size == 1 && i % dim == 2);
    for (Index t = 0; t < tokens; ++t)
        EXPECT_EQ(got.logits.row(t).array().isNaN().any(), t == 3) << t;
}

TEST(PerTask, LeavesPaddingOut) {
    auto groups = tasks;
    groups[0] = -7;  // padding may say anything
    groups[5] = 99;
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[0] = padding[5] = 1;
    const Context context{.token_groups = groups, .padding = padding};
    const auto router = build<double>(PerTask{LinearRouter{}, 3}, dim, experts);
    auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    const auto expected =
        run<double>(router, x, random_matrix<double>(tokens, experts, 2), context, ws);
    x.row(5).setConstant(not_a_number);
    const auto got = run<double>(router, x, random_matrix<double>(tokens, experts, 2), context, ws);
    EXPECT_TRUE(same_bits(got.logits, expected.logits));
    EXPECT_TRUE(same_bits(got.dx, expected.dx));
    EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
    EXPECT_TRUE((got.logits.row(5).array() == -infinity).all());
    EXPECT_TRUE((got.dx.row(5).array() == 0).all());
    expect_exact_in_layer(PerTask{LinearRouter{}, 3}, context, tokens);
}

TEST(PerTask, WorksOnNoTokensAndOnPaddingOnly) {
    const auto router = build<double>(PerTask{LinearRouter{}, 3}, dim, experts);
    Workspace<double> ws;
    const auto none =
        run<double>(router, Matrix<double>(0, dim), Matrix<double>(0, experts), {}, ws);
    EXPECT_EQ(none.logits.rows(), 0);
    const std::vector<std::int32_t> groups{0, 1};
    const std::vector<std::uint8_t> padding{1, 1};
    const auto got =
        run<double>(router, random_matrix<double>(2, dim, 1), random_matrix<double>(2, experts, 2),
                    {.token_groups = groups, .padding = padding}, ws);
    EXPECT_TRUE((got.logits.array() == -infinity).all());
    EXPECT_TRUE((got.dx.array() == 0).all());
    for (const double value : got.gradient) EXPECT_EQ(value, 0);
}

TEST(PerTask, HandsABatchOfOneTaskOnAsItIs) {
    // A router inside that reads the layer before needs the batch's own rows.
    auto layer1 =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, LinearRouter{}, moe::TopK{.k = 2},
                                moe::Swiglu{.count = experts, .ffn_dim = 2});
    const auto x = random_matrix<double>(tokens, dim, 1);
    Workspace<double> before, ws, other;
    layer1.route(x, before);
    const auto router =
        build<double>(PerTask{moe::GatingResidual{LinearRouter{}}, 3}, dim, experts);
    const auto got = forward<double>(router, x, experts, {.task = 2, .previous = &before}, ws);
    const auto expected =
        forward<double>(router.routers()[2], x, experts, {.previous = &before}, other);
    EXPECT_TRUE(same_bits(got, expected));
    // Which tasks the tokens are of must not decide whether a call throws.
    const std::vector<std::int32_t> one(tokens, 2);
    for (const auto& groups : {one, tasks})
        expect_message<std::invalid_argument>(
            [&] {
                forward<double>(router, x, experts, {.token_groups = groups, .previous = &before},
                                ws);
            },
            {"Context::previous is empty",
             "a router for each group of tokens sees those tokens alone"});
}

TEST(PerTask, CountsOneRouterPerTokenAndNamesThemAll) {
    const auto router = build<double>(PerTask{LinearRouter{.bias = true}, 2}, dim, experts);
    EXPECT_EQ(router.flops_per_token(), 2 * dim * experts);
    std::vector<std::string> names;
    moe::visit_parameters(
        router, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names, (std::vector<std::string>{"0.weight", "0.bias", "1.weight", "1.bias"}));
    EXPECT_FALSE(same_bits(router.routers()[0].weight.view(), router.routers()[1].weight.view()));
    EXPECT_EQ(router.freeze({}).bytes(), 2 * router.routers()[0].freeze({}).bytes());
}

TEST(PerTask, HasTheSameBitsOnAnyNumberOfThreadsAndAllocatesNothingTwice) {
    std::vector<std::int32_t> groups;
    for (int t = 0; t < 400; ++t) groups.push_back((t * t + t / 3) % 3);
    const auto router = build<float>(PerTask{LinearRouter{.bias = true}, 3, 8}, 67, 19);
    const Context context{.token_groups = groups};
    expect_same_bits<float>(router, 400, 67, 19, context);
    expect_same_bits<float>(router, 400, 67, 19, {.task = 1});
    expect_no_allocations<float>(router, 400, 67, 19, context);
}

TEST(PerTask, RefusesATaskThatIsNone) {
    const auto router = build<double>(PerTask{LinearRouter{}, 3}, dim, experts);
    const auto x = random_matrix<double>(2, dim, 1);
    Workspace<double> ws;
    const auto call = [&](const Context& context) {
        return [&router, &x, &ws, context] { forward<double>(router, x, experts, context, ws); };
    };
    expect_message<std::invalid_argument>(
        call({}), {"moe::Context: token_groups is empty, moe::PerTask without Context::task wants "
                   "the task of each token; set Context::token_groups"});
    expect_message<std::invalid_argument>(
        call({.task = 3}),
        {"moe::Context: task is 3, moe::PerTask has 3 tasks: it must be in [0, 3)"});
    expect_message<std::invalid_argument>(call({.task = -1}), {"task is -1"});
    const std::vector<std::int32_t> groups{0, 3}, negative{-1, 0}, long_one{0, 0, 0};
    expect_message<std::invalid_argument>(call({.token_groups = groups}),
                                          {"token_groups[1] is 3", "must be in [0, 3)"});
    expect_message<std::invalid_argument>(call({.token_groups = negative}),
                                          {"token_groups[0] is -1"});
    expect_message<std::invalid_argument>(call({.token_groups = long_one}),
                                          {"token_groups has 3 entries"});
}

TEST(PerTask, RefusesBadSettings) {
    expect_message<std::invalid_argument>(
        [] { build<double>(PerTask<>{}, dim, experts); },
        {"moe::PerTask: num_tasks is 0, it must be >= 1; set it"});
    for (const Index window : {Index{-1}, Index{9}})
        expect_message<std::invalid_argument>(
            [&] {
                build<double>(PerTask{LinearRouter{}, 2, window}, dim, experts);
            },
            {"moe::PerTask: experts_per_task is ", "it must be in [0, 8]", "(0: all)"});
    moe::Random random(1);
    expect_message<std::invalid_argument>(
        [&] {
            PerTask{LinearRouter{}, 2, 3}.build<double>(
                {.model_dim = dim, .num_experts = 8, .num_logits = 16}, random);
        },
        {"moe::PerTask with experts_per_task: the router speaks of experts, the gate takes 16 "
         "logits for 8 experts; use a gate with one logit per expert"});
    const auto router = build<double>(PerTask{LinearRouter{}, 2}, dim, experts);
    expect_message<std::invalid_argument>(
        [&] { router.check({.model_dim = dim, .num_experts = 9, .num_logits = 9}); },
        {"was built for 8 logits per token, the layer wants 9"});
    auto grad = moe::zeros_like(build<double>(PerTask{LinearRouter{}, 3}, dim, experts));
    expect_message<std::invalid_argument>(
        [&] { router.check_gradient(grad); },
        {"grad is of another layer: it has 3 routers, the layer has 2"});
}

}  // namespace
