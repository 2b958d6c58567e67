// SPDX-License-Identifier: MIT
#include <moe/losses/cost.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/top_k.hpp>
#include <moe/head.hpp>
#include <moe/routers/linear.hpp>

#include "losses/laws.hpp"
#include "support/message.hpp"

namespace cost_loss_test {
namespace {

using moe::Context;
using moe::CostBudget;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using Form = CostBudget::Form;
using moe::Scored;

const std::vector<double> costs{10, 0, 3, 40, 0, 6, 20, 1};

loss_laws::Forms forms(const CostBudget& options) {
    return {[options](auto z, const auto& plan, const auto& context, double weight, auto dz) {
                return moe::cost_loss(z, plan, context, weight, dz, options);
            },
            [options](auto& ws, double weight) { return moe::cost_loss(ws, weight, options); }};
}

template <class S>
class CostLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CostLoss, Scalars);

TYPED_TEST(CostLoss, OfThreeToOneIsWorkedOutByHand) {
    // p = (1/4, 3/4) of 8 and 4: C = 5, dC = p (cost - 5) = (3/4, -3/4). Over a budget of 4: 5/4
    // and (3/16, -3/16); its hinge 1/16 and 2 * 1/4 times that
    using S = TypeParam;
    const std::vector<double> two{8, 4};
    Matrix<S> logits(1, 2);
    logits << S(0), S(std::log(3.0));
    const auto plan = example::routing(2, {{1}});
    for (const Form form : {Form::linear, Form::hinge}) {
        Matrix<S> dlogits = Matrix<S>::Zero(1, 2);
        const Loss loss = moe::cost_loss(logits, plan, {}, 16.0, dlogits,
                                         {.budget = 4, .form = form, .expert_costs = two});
        const bool is_hinge = form == Form::hinge;
        EXPECT_STREQ(loss.name, "cost");
        EXPECT_NEAR(loss.value, is_hinge ? 1.0 / 16 : 5.0 / 4, 1e-6);
        EXPECT_NEAR(dlogits(0, 0), is_hinge ? 1.5 : 3, 1e-5);
        EXPECT_NEAR(dlogits(0, 1), is_hinge ? -1.5 : -3, 1e-5);
    }
}

TEST(CostLoss, AgreesWithItsFormulaForBothScores) {
    const Matrix<double> z = example::logits<double>();
    const auto plan = example::two_best();
    double of_all = 0, of_selected = 0;
    for (Index t = 0; t < 4; ++t) {
        double total = 0, some = 0, all_cost = 0, some_cost = 0;
        for (Index e = 0; e < 8; ++e) {
            total += std::exp(z(t, e));
            all_cost += std::exp(z(t, e)) * costs[static_cast<std::size_t>(e)];
        }
        for (const auto& a : plan.of(t)) {
            some += std::exp(z(t, a.expert));
            some_cost += std::exp(z(t, a.expert)) * costs[static_cast<std::size_t>(a.expert)];
        }
        of_all += all_cost / total / 4;
        of_selected += some_cost / some / 4;
    }
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    EXPECT_NEAR(forms({.budget = 2, .expert_costs = costs})(z, plan, {}, 1.0, dlogits), of_all / 2,
                1e-13);
    const CostBudget selected{.budget = 2, .scored = Scored::selected, .expert_costs = costs};
    dlogits.setZero();
    EXPECT_NEAR(forms(selected)(z, plan, {}, 1.0, dlogits), of_selected / 2, 1e-13);
    EXPECT_EQ(dlogits(0, 1), 0);
    EXPECT_NE(dlogits(0, 5), 0);
    EXPECT_NEAR(
        forms({.budget = 2, .form = Form::hinge, .expert_costs = costs})(z, plan, {}, 1.0, dlogits),
        std::pow(of_all / 2 - 1, 2), 1e-12);
}

TEST(CostLoss, KeepsTheLawsOfLosses) {
    for (const Form form : {Form::linear, Form::hinge})
        for (const Scored scored : {Scored::all, Scored::selected})
            loss_laws::expect_no_padding_seen(
                forms({.budget = 2, .form = form, .scored = scored, .expert_costs = costs}));
    loss_laws::expect_all(forms({.budget = 2, .expert_costs = costs}));
    for (const CostBudget& options :
         {CostBudget{.budget = 2, .form = Form::hinge, .expert_costs = costs},
          CostBudget{.budget = 2, .scored = Scored::selected, .expert_costs = costs}}) {
        const auto loss = forms(options);
        loss_laws::expect_nothing_of_no_tokens(loss);
        loss_laws::expect_weight_times_the_gradient(loss);
        loss_laws::expect_the_short_form(loss);
        loss_laws::expect_wider_rows(loss);
        loss_laws::expect_exact_gradients(loss);
        loss_laws::expect_no_care_for_a_constant(loss);
    }
}

TEST(CostLoss, HasNoGradientWithinTheBudget) {
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    const auto loss = forms({.budget = 1e3, .form = Form::hinge, .expert_costs = costs});
    EXPECT_EQ(loss(example::logits<double>(), example::two_best(), {}, 1.0, dlogits), 0);
    EXPECT_TRUE((dlogits.array() == 0).all());
    const auto cheapest = forms({.budget = 1e3, .expert_costs = costs});
    EXPECT_GT(cheapest(example::logits<double>(), example::two_best(), {}, 1.0, dlogits), 0);
    EXPECT_FALSE((dlogits.array() == 0).all());
}

TEST(CostLoss, OfEqualLogitsIsTheMeanCostAndOfEqualCostsThatCost) {
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    const std::vector<double> equal(8, 6.0), free(8, 0.0);
    EXPECT_NEAR(forms({.budget = 2, .expert_costs = costs})(Matrix<double>::Constant(4, 8, 3),
                                                            example::two_best(), {}, 0.0, dlogits),
                10.0 / 2, 1e-14);
    EXPECT_NEAR(forms({.budget = 2, .expert_costs = equal})(example::logits<double>(),
                                                            example::two_best(), {}, 1.0, dlogits),
                3, 1e-14);
    EXPECT_NEAR(dlogits.cwiseAbs().maxCoeff(), 0, 1e-15);
    for (const Form form : {Form::linear, Form::hinge})
        EXPECT_EQ(forms({.budget = 2, .form = form, .expert_costs = free})(
                      example::logits<double>(), example::two_best(), {}, 1.0, dlogits),
                  0);
}

TEST(CostLoss, OfATokenThatSelectedNothingIsZero) {
    Matrix<double> dlogits = Matrix<double>::Zero(2, 8);
    const CostBudget selected{.budget = 1, .scored = Scored::selected, .expert_costs = costs};
    EXPECT_EQ(forms(selected)(example::logits<double>().topRows(2), example::routing(8, {{3}, {}}),
                              {}, 1.0, dlogits),
              20);  // 40 of one token of two
    EXPECT_TRUE((dlogits.array() == 0).all());
}

TEST(CostLoss, TakesTheCostsThatAHeadKnows) {
    std::vector<moe::ExpertFacts> facts(5);
    for (std::size_t e = 0; e < 5; ++e) facts[e].flops_per_row = costs[e];
    moe::Head<double, moe::LinearRouter, moe::TopK> head(
        moe::Config{.model_dim = 6, .seed = 3}, moe::LinearRouter{}, moe::TopK{.k = 2}, facts);
    Matrix<double> x = moe::testing::random_matrix<double>(9, 6, 5);
    moe::Workspace<double> ws;
    head.route(x, ws);
    const CostBudget options{.budget = 4, .form = Form::hinge};
    const std::vector<double> given(costs.begin(), costs.begin() + 5);
    Matrix<double> expected = Matrix<double>::Zero(9, 5);
    const double value = moe::cost_loss(ws.logits(), ws.routing(), {}, 0.4, expected,
                                        {.budget = 4, .form = Form::hinge, .expert_costs = given});
    EXPECT_GT(value, 0);
    EXPECT_EQ(moe::cost_loss(ws, 0.4, options).value, value);
    EXPECT_EQ(Matrix<double>(ws.dlogits()), expected);

    auto grad = moe::zeros_like(head);
    const moe::Routing plan = ws.routing();
    const std::vector<double> none(static_cast<std::size_t>(plan.num_assignments()), 0.0);
    Matrix<double> dx = Matrix<double>::Zero(9, 6);
    head.route_backward(x, {.output = none}, dx, grad, ws);
    const auto loss = [&] {
        head.reweigh(x, plan, ws);
        return 0.4 * moe::cost_loss(ws, 0.0, options).value;
    };
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx));
    EXPECT_TRUE(moe::testing::check_gradient(loss, head.router().weight.view(),
                                             grad.router().weight.view()));
}

TEST(CostLoss, RefusesOptionsOutOfRange) {
    const auto message = [](const CostBudget& options) {
        Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
        const std::string found = support::message([&] {
            forms(options)(example::logits<double>(), example::two_best(), {}, 1, dlogits);
        });
        EXPECT_TRUE((dlogits.array() == 0).all());
        return found;
    };
    const std::vector<double> few(3, 1.0), negative{1, 1, 1, 1, 1, 1, 1, -2};
    EXPECT_EQ(message({.expert_costs = costs}),
              "moe::CostBudget: budget is 0, it must be finite and > 0: the cost of an assignment "
              "that is to be afforded");
    EXPECT_NE(message({.budget = std::numeric_limits<double>::infinity(), .expert_costs = costs}),
              "");
    EXPECT_EQ(message({.budget = 1, .form = static_cast<Form>(7), .expert_costs = costs}),
              "moe::CostBudget: form is number 7 of its choices, they are 0 to 1");
    EXPECT_NE(message({.budget = 1, .scored = static_cast<Scored>(7), .expert_costs = costs}), "");
    EXPECT_EQ(message({.budget = 1, .expert_costs = few}),
              "moe::CostBudget: expert_costs has 3 entries, there are 8 experts");
    EXPECT_EQ(message({.budget = 1}),
              "moe::CostBudget: expert_costs is empty, and the context's experts has 0 entries, "
              "there are 8 experts; set expert_costs, or call cost_loss on the workspace of a "
              "layer, which knows what its experts cost");
    EXPECT_EQ(message({.budget = 1, .expert_costs = negative}),
              "moe::CostBudget: an entry of expert_costs is -2, it must be finite and >= 0");
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    EXPECT_EQ(support::message([&] {
                  moe::cost_loss(example::logits<double>(),
                                 example::routing(9, {{8}, {0}, {0}, {0}}), {}, 1.0, dlogits,
                                 {.budget = 1, .expert_costs = costs});
              }),
              "moe::cost_loss: there are 8 logits per token and 9 experts; it needs one logit per "
              "expert");
}

}  // namespace
}  // namespace cost_loss_test
