// SPDX-License-Identifier: MIT
#include <moe/steering/logit_offset_optimizer.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/steering/steering.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace logit_offset_optimizer_test {
namespace {

using moe::Context;
using moe::ContextGradients;
using moe::Index;
using moe::LogitOffsetOptimizer;
using moe::testing::compare;
using moe::testing::same_bits;
using support::message;
using Settings = LogitOffsetOptimizer::Settings;
using Method = Settings::Method;
using Matrix = moe::Matrix<double>;
using Numbers = std::vector<double>;

constexpr Index dim = 5, experts = 6, tokens = 24;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// A layer, a batch, and an answer that two of the experts know: those of index 2 and 4 give back
/// the wanted output, and the router prefers others.
struct Task {
    moe::Layer<double, moe::LinearRouter, moe::TopK, moe::Mlp> layer{
        moe::Config{.model_dim = dim, .seed = 3}, moe::LinearRouter{.bias = true},
        moe::TopK{.k = 2, .normalize = moe::Normalize::none},
        moe::Mlp{.count = experts, .ffn_dim = 2 * dim}};
    Matrix x = moe::testing::random_matrix<double>(tokens, dim, 5);
    Matrix y = Matrix(tokens, dim), dx = y;
    moe::Workspace<double> ws{};

    Task() {
        moe::visit_parameters(layer, [](std::string_view name, auto& matrix, moe::Role) {
            for (const std::string_view knows : {"experts.2.", "experts.4."}) {
                if (!name.starts_with(knows)) continue;
                // relu(x) - relu(-x) = x
                const bool is_up = name.ends_with("up");
                for (Index i = 0; i < matrix.rows(); ++i)
                    for (Index j = 0; j < matrix.cols(); ++j) {
                        const Index unit = is_up ? i : j, d = is_up ? j : i;
                        matrix.data()[i * matrix.cols() + j] = unit == d         ? 1
                                                               : unit == d + dim ? -1
                                                                                 : 0;
                    }
            }
        });
        for (const Index e : {0, 1, 3}) layer.router().bias(0, e) = 1;
    }

    /// Half the squared error per token, and its gradient at delta.
    double step(LogitOffsetOptimizer& rewire) {
        const Context context = rewire.on();
        layer.forward(x, y, ws, context);
        const Matrix dy = (y - x) / tokens;
        layer.backward(x, dy, dx, moe::no_gradient, ws, context);
        return dy.squaredNorm() * tokens / 2;
    }
};

// ---- the gradient ----

TEST(LogitOffsetOptimizer, HasTheExactGradient) {
    Task task;
    LogitOffsetOptimizer rewire(experts, {.method = Method::sgd, .rate = 0.5});
    task.step(rewire);
    rewire.step();  // delta is not 0 now
    task.step(rewire);
    const Numbers claim(rewire.gradient().begin(), rewire.gradient().end());
    Numbers offset(rewire.offset().begin(), rewire.offset().end());
    ASSERT_NE(offset, Numbers(experts, 0.0));
    const auto loss = [&] {
        task.layer.forward(task.x, task.y, task.ws, {.logit_offset = offset});
        return (task.y - task.x).squaredNorm() / tokens / 2;
    };
    const seams::SameChoices same_choices(task.ws);
    EXPECT_TRUE(moe::testing::check_gradient(loss, offset, claim, {.same_branch = same_choices}));
}

TEST(LogitOffsetOptimizer, AddsTheGradientsOfSeveralBatches) {
    Task task;
    LogitOffsetOptimizer rewire(experts);
    task.step(rewire);
    const Numbers once(rewire.gradient().begin(), rewire.gradient().end());
    task.step(rewire);
    for (std::size_t l = 0; l < experts; ++l) EXPECT_NEAR(rewire.gradient()[l], 2 * once[l], 1e-15);
    rewire.step();
    EXPECT_EQ(Numbers(rewire.gradient().begin(), rewire.gradient().end()), Numbers(experts, 0.0));
}

// ---- the steps ----

/// Puts a gradient where backward would add it.
void set_gradient(LogitOffsetOptimizer& rewire, const Numbers& gradient) {
    const Context context = rewire.on();
    for (std::size_t l = 0; l < gradient.size(); ++l)
        context.gradients->logit_offset[l] += gradient[l];
}

TEST(LogitOffsetOptimizer, StepsAgainstTheGradient) {
    LogitOffsetOptimizer rewire(3, {.method = Method::sgd, .rate = 0.5});
    set_gradient(rewire, {1, -2, 0});
    rewire.step();
    set_gradient(rewire, {1, 4, 0});
    rewire.step();
    EXPECT_EQ(Numbers(rewire.offset().begin(), rewire.offset().end()), (Numbers{-1, -1, 0}));
    EXPECT_EQ(rewire.steps(), 2u);
}

TEST(LogitOffsetOptimizer, StepsAsAdamDoes) {
    const Settings settings{.rate = 0.1, .beta1 = 0.8, .beta2 = 0.9, .epsilon = 1e-3};
    LogitOffsetOptimizer rewire(4, settings);
    Numbers delta(4, 0.0), m(4, 0.0), v(4, 0.0);
    for (int t = 1; t <= 5; ++t) {
        const Numbers g{1.0 / t, -3, 0, t - 2.0};
        for (std::size_t l = 0; l < 4; ++l) {
            m[l] = 0.8 * m[l] + 0.2 * g[l];
            v[l] = 0.9 * v[l] + 0.1 * g[l] * g[l];
            delta[l] -= 0.1 * (m[l] / (1 - std::pow(0.8, t))) /
                        (std::sqrt(v[l] / (1 - std::pow(0.9, t))) + 1e-3);
        }
        set_gradient(rewire, g);
        rewire.step();
        EXPECT_TRUE(compare(rewire.offset(), delta, 1e-14));
    }
    EXPECT_EQ(rewire.offset()[2], 0);
    EXPECT_NEAR(rewire.offset()[1], 0.5, 1e-3) << "about the rate in each step";
}

// ---- what it is good for ----

TEST(LogitOffsetOptimizer, FindsTheExpertsThatKnowAndResetRestoresEveryBit) {
    for (const Method method : {Method::sgd, Method::adam}) {
        Task task;
        task.layer.forward(task.x, task.y, task.ws);
        const Matrix before = task.y;
        const moe::Routing routing = task.ws.routing();
        LogitOffsetOptimizer rewire(experts,
                                    {.method = method, .rate = method == Method::sgd ? 2.0 : 0.2});
        const auto adapt = [&] {
            Numbers losses;
            for (int i = 0; i < 20; ++i) {
                losses.push_back(task.step(rewire));
                rewire.step();
            }
            return losses;
        };
        const Numbers losses = adapt();
        EXPECT_LT(losses[5], 0.9 * losses.front());
        EXPECT_LT(losses.back(), 0.5 * losses.front());
        double known = 0;  // weight of those that know, of 1 per token
        for (const Index knows : {2, 4})
            for (const Index a : task.ws.routing().assignments_of(knows))
                known += task.ws.routing().assignments()[static_cast<std::size_t>(a)].weight;
        EXPECT_GT(known / tokens, 0.8);
        RecordProperty(method == Method::sgd ? "sgd_first" : "adam_first",
                       std::to_string(losses.front()));
        RecordProperty(method == Method::sgd ? "sgd_last" : "adam_last",
                       std::to_string(losses.back()));

        rewire.reset();
        EXPECT_EQ(rewire.steps(), 0u);
        task.layer.forward(task.x, task.y, task.ws, rewire.on());
        EXPECT_TRUE(same_bits(task.y, before));
        EXPECT_EQ(task.ws.routing(), routing);
        EXPECT_EQ(adapt(), losses) << "nothing is left of the first time";
    }
}

// ---- contexts ----

TEST(LogitOffsetOptimizer, LeavesOtherGradientsWhereTheyAre) {
    Task task;
    Numbers factors(experts, 1.0), factor_gradient(experts, 0.0);
    ContextGradients gradients{.gate_multiplier = factor_gradient};
    const Context plain{.gate_multiplier = factors, .gradients = &gradients};
    LogitOffsetOptimizer rewire(experts);
    const Context context = rewire.on(plain);
    task.layer.forward(task.x, task.y, task.ws, context);
    task.layer.backward(task.x, task.y, task.dx, moe::no_gradient, task.ws, context);
    EXPECT_NE(factor_gradient, Numbers(experts, 0.0));
    EXPECT_NE(rewire.gradient()[0], 0);
    EXPECT_TRUE(gradients.logit_offset.empty()) << "the caller's own is not changed";
}

TEST(LogitOffsetOptimizer, GivesExpertsThatAreOffNoGradient) {
    Task task;
    moe::Steering steer(experts);
    steer.turn_off(1);
    LogitOffsetOptimizer rewire(experts);
    const Context context = steer.on(rewire.on());
    task.layer.forward(task.x, task.y, task.ws, context);
    task.layer.backward(task.x, task.y, task.dx, moe::no_gradient, task.ws, context);
    EXPECT_EQ(rewire.gradient()[1], 0);
    EXPECT_NE(rewire.gradient()[0], 0);
    rewire.step();
    EXPECT_EQ(rewire.offset()[1], 0);
}

TEST(LogitOffsetOptimizer, AllocatesNothing) {
    if (!allocations::are_counted) return;
    LogitOffsetOptimizer rewire(4);
    EXPECT_EQ(allocations::in([&] {
                  rewire.on().gradients->logit_offset[0] += 1;
                  rewire.step();
                  rewire.reset();
              }),
              0);
}

// ---- refusals ----

TEST(LogitOffsetOptimizerErrors, AreSentences) {
    const auto built = [](Index n, const Settings& settings) {
        return message([&] { LogitOffsetOptimizer(n, settings); });
    };
    EXPECT_EQ(built(-1, {}), "moe::LogitOffsetOptimizer: num_logits is -1, it must be >= 0");
    EXPECT_EQ(built(0, {}), "");
    EXPECT_EQ(built(4, {.rate = nan}), "moe::LogitOffsetOptimizer: rate is nan, it must be finite");
    EXPECT_EQ(built(4, {.beta1 = 1}),
              "moe::LogitOffsetOptimizer: beta1 is 1, it must be in [0, 1)");
    EXPECT_NE(built(4, {.beta2 = nan}), "");
    EXPECT_EQ(built(4, {.epsilon = 0}),
              "moe::LogitOffsetOptimizer: epsilon is 0, it must be finite and > 0");
    EXPECT_NE(built(4, {.method = Method(2)}), "");

    LogitOffsetOptimizer rewire(2);
    Numbers offset{1, 1};
    const std::string taken =
        "moe::LogitOffsetOptimizer::on: the context has logit_offset, or gradients->logit_offset, "
        "of its own; one call has one";
    EXPECT_EQ(message([&] { rewire.on({.logit_offset = offset}); }), taken);
    ContextGradients gradients{.logit_offset = offset};
    EXPECT_EQ(message([&] { rewire.on({.gradients = &gradients}); }), taken);
    Context context;
    context.dial.offset_unit = moe::OffsetUnit::row_std;
    EXPECT_EQ(message([&] { rewire.on(context); }),
              "moe::LogitOffsetOptimizer::on: the context has dial.offset_unit = row_std, this "
              "offset is counted in logits");
}

TEST(LogitOffsetOptimizerErrors, AGradientThatIsNotFiniteMovesNothing) {
    LogitOffsetOptimizer rewire(2, {.method = Method::sgd, .rate = 1});
    set_gradient(rewire, {1, nan});
    EXPECT_EQ(message([&] { rewire.step(); }),
              "moe::LogitOffsetOptimizer::step: the gradient at logit 1 is nan, it must be finite; "
              "leave this batch out with clear_gradient()");
    EXPECT_EQ(rewire.offset()[0], 0);
    EXPECT_EQ(rewire.steps(), 0u);
    rewire.clear_gradient();
    set_gradient(rewire, {1, 0});
    rewire.step();
    EXPECT_EQ(rewire.offset()[0], -1);
}

}  // namespace
}  // namespace logit_offset_optimizer_test
