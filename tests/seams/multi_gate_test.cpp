// SPDX-License-Identifier: MIT
// Several tasks share one set of experts: a router and a gate per task, an output per task, and the
// gradients of the experts added up (multi-gate mixtures, Ma et al., KDD 2018).

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/bank.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/head.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace multi_gate_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 6, dim = 5, out = 3;
constexpr moe::Config config{.model_dim = dim, .output_dim = out, .seed = 2};

using Bank = moe::Bank<double, moe::Swiglu, moe::Mlp>;
using Head = moe::Head<double, moe::LinearRouter, moe::TopK>;

Bank make_bank() {
    return Bank(
        config, moe::Swiglu{.count = 3, .ffn_dim = 4},
        moe::Mlp{.count = 2, .ffn_dim = 3, .activation = moe::Activation::gelu, .bias = true});
}

struct Task {
    Head head, grad;
    Matrix<double> dy, y{tokens, out};
    Workspace<double> head_ws, bank_ws;

    Task(std::uint64_t seed, Index k, const Bank& bank)
        : head({.model_dim = dim, .seed = seed}, moe::LinearRouter{.bias = true}, moe::TopK{.k = k},
               bank.facts()),
          grad(moe::zeros_like(head)),
          dy(moe::testing::random_matrix<double>(tokens, out, seed)) {}

    double loss(const Bank& bank, const Matrix<double>& x) {
        head.route(x, head_ws);
        bank.apply(x, head_ws.routing(), y, bank_ws);
        return seams::weighted_sum(y, dy);
    }
    Matrix<double> backward(const Bank& bank, Bank& bank_grad, const Matrix<double>& x) {
        Matrix<double> dx(tokens, dim);
        std::vector<double> dweights(static_cast<std::size_t>(head_ws.routing().num_assignments()));
        bank.apply_backward(x, head_ws.routing(), dy, dx, dweights, {}, bank_grad, bank_ws);
        head.route_backward(x, {.output = dweights, .input = {}}, dx, grad, head_ws);
        return dx;
    }
};

TEST(MultiGate, GradientsOfTwoTasksAddUp) {
    Bank bank = make_bank();
    Bank bank_grad = moe::zeros_like(bank);
    Task click(5, 2, bank), buy(6, 3, bank);
    auto x = moe::testing::random_matrix<double>(tokens, dim, 7);
    const auto loss = [&] { return click.loss(bank, x) + buy.loss(bank, x); };
    loss();
    const Matrix<double> dx = click.backward(bank, bank_grad, x) + buy.backward(bank, bank_grad, x);

    const auto options =
        seams::options([same1 = seams::SameChoices(click.head_ws),
                        same2 = seams::SameChoices(buy.head_ws)] { return same1() && same2(); });
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, bank, bank_grad, options);
    seams::expect_parameter_gradients(loss, click.head, click.grad, options);
    seams::expect_parameter_gradients(loss, buy.head, buy.grad, options);
}

/// The other way to do it: one call of the group with rows of both tasks, an expert's rows of one
/// task behind those of the other, and outputs that lie one above the other.
TEST(MultiGate, OneCallForAllTasksGivesTheSameBits) {
    const auto group = std::get<0>(make_bank().groups());
    const moe::Config own{.model_dim = dim, .output_dim = out, .seed = 2};
    const moe::Bank<double, moe::FeedForwardModule<double>> bank(own, group);
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 7);
    Matrix<double> y(2 * tokens, out);
    std::vector<moe::Routing> plans;
    std::vector<Workspace<double>> spaces(2);
    for (std::size_t task = 0; task < 2; ++task) {
        const Head head({.model_dim = dim, .seed = task}, moe::LinearRouter{}, moe::TopK{.k = 2},
                        bank.facts());
        head.route(x, spaces[task]);
        plans.push_back(spaces[task].routing());
        Workspace<double> ws;
        bank.apply(x, plans[task], y.middleRows(static_cast<Index>(task) * tokens, tokens), ws);
    }

    std::vector<Index> offsets{0};
    std::vector<std::int32_t> from, to;
    std::vector<double> weights;
    for (Index e = 0; e < bank.num_experts(); ++e) {
        for (std::size_t task = 0; task < 2; ++task)
            for (const Index a : plans[task].assignments_of(e)) {
                const auto token = plans[task].assignments()[static_cast<std::size_t>(a)].token;
                from.push_back(token);
                to.push_back(token +
                             static_cast<std::int32_t>(task) * static_cast<std::int32_t>(tokens));
                weights.push_back(plans[task].weight<double>(a));
            }
        offsets.push_back(static_cast<Index>(from.size()));
    }
    Matrix<double> both = Matrix<double>::Zero(2 * tokens, out);
    Workspace<double> ws;
    const moe::Context context;
    group.forward(x, {.offsets = offsets, .from = from, .to = to, .weights = weights}, both,
                  {context, ws});
    EXPECT_TRUE(moe::testing::same_bits(both, y));
}

}  // namespace
}  // namespace multi_gate_test
