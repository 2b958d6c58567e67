// SPDX-License-Identifier: MIT
// Two rounds over one set of experts, each with a router and a gate of its own:
//
//     x1 = x + bank(head1(x)),  x2 = x1 + bank(head2(x1))

#include <vector>

#include <gtest/gtest.h>

#include <moe/bank.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/head.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace chain_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 6, dim = 5;
constexpr moe::Config config{.model_dim = dim, .seed = 2};

using Bank = moe::Bank<double, moe::Swiglu, moe::Copy>;
template <class Gate>
using Head = moe::Head<double, moe::LinearRouter, Gate>;

/// One round: x and a plan to what is added to x.
template <class Gate>
struct Round {
    Head<Gate> head, grad;
    Workspace<double> head_ws, bank_ws;
    std::vector<double> dweights;

    Round(const moe::Config& own, const Gate& gate, const Bank& bank)
        : head(own, moe::LinearRouter{}, gate, bank.facts()), grad(moe::zeros_like(head)) {}

    void forward(const Bank& bank, const Matrix<double>& x, Matrix<double>& next) {
        Matrix<double> y(x.rows(), x.cols());
        head.route(x, head_ws);
        bank.apply(x, head_ws.routing(), y, bank_ws);
        next = x + y;
    }
    void backward(const Bank& bank, Bank& bank_grad, const Matrix<double>& x,
                  const Matrix<double>& dnext, Matrix<double>& dx) {
        dweights.resize(static_cast<std::size_t>(head_ws.routing().num_assignments()));
        bank.apply_backward(x, head_ws.routing(), dnext, dx, dweights, {}, bank_grad, bank_ws);
        head.route_backward(x, {.output = dweights, .input = {}}, dx, grad, head_ws);
        dx += dnext;
    }
};

struct Chain {
    Bank bank{config, moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Copy{}};
    Bank bank_grad = moe::zeros_like(bank);
    Round<moe::TopK> first{moe::Config{.model_dim = dim, .seed = 3}, moe::TopK{.k = 2}, bank};
    Round<moe::TopP> second{moe::Config{.model_dim = dim, .seed = 4}, moe::TopP{.p = 0.7}, bank};
    Matrix<double> x = moe::testing::random_matrix<double>(tokens, dim, 7);
    Matrix<double> dx2 = moe::testing::random_matrix<double>(tokens, dim, 8);
    Matrix<double> x1{tokens, dim}, x2{tokens, dim};

    double loss() {
        first.forward(bank, x, x1);
        second.forward(bank, x1, x2);
        return seams::weighted_sum(x2, dx2);
    }
};

TEST(Chain, GradientsOfTwoRoundsOverOneBankAreExact) {
    Chain chain;
    const auto loss = [&chain] { return chain.loss(); };
    loss();
    Matrix<double> dx1(tokens, dim), dx(tokens, dim);
    chain.second.backward(chain.bank, chain.bank_grad, chain.x1, chain.dx2, dx1);
    chain.first.backward(chain.bank, chain.bank_grad, chain.x, dx1, dx);

    const auto options = seams::options(
        [same1 = seams::SameChoices(chain.first.head_ws),
         same2 = seams::SameChoices(chain.second.head_ws)] { return same1() && same2(); });
    EXPECT_TRUE(moe::testing::check_gradient(loss, chain.x, dx, options));
    seams::expect_parameter_gradients(loss, chain.bank, chain.bank_grad, options);
    seams::expect_parameter_gradients(loss, chain.first.head, chain.first.grad, options);
    seams::expect_parameter_gradients(loss, chain.second.head, chain.second.grad, options);
}

TEST(Chain, ARoundDoesNotTakeTheWorkspaceOfTheOther) {
    Chain chain;
    chain.loss();
    Matrix<double> dx(tokens, dim);
    std::swap(chain.first.bank_ws, chain.second.bank_ws);
    EXPECT_THROW(chain.second.backward(chain.bank, chain.bank_grad, chain.x1, chain.dx2, dx),
                 std::logic_error);
    std::swap(chain.first.bank_ws, chain.second.bank_ws);
    std::swap(chain.first.head_ws, chain.second.head_ws);
    EXPECT_THROW(chain.second.backward(chain.bank, chain.bank_grad, chain.x1, chain.dx2, dx),
                 std::logic_error);
}

}  // namespace
}  // namespace chain_test
