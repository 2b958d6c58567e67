// SPDX-License-Identifier: MIT
#include <moe/losses/top_any.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/gates/top_any.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/head.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "losses/example.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace top_any_loss_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::testing::random_matrix;

/// A gate that has activated, for 3 tokens and 3 experts at thresholds of 1/2, what is above 0:
/// {0, 1}, {0} and none.
struct Batch {
    moe::TopAnyModule<double> gate{{}, 3};
    moe::TopAnyModule<double> grad = moe::zeros_like(gate);
    moe::Workspace<double> ws;
    Matrix<double> logits{3, 3};

    explicit Batch(std::vector<std::vector<Index>> chosen = {{0, 1}, {0}, {}},
                   const Context& context = {.training = true}) {
        logits << std::log(3.0), 1, -1, std::log(2.0), -2, -1, -1, -2, -3;
        example::fill(ws, logits, example::routing(3, chosen), context);
    }
};

TEST(ActivationBalanceLoss, OfThreeTokensIsWorkedOutByHand) {
    // Two tokens with an expert: f = (1, 1/2, 0), P = (3/4, 1/4, 0), value 3 (3/4 + 1/8) = 21/8.
    // Token 0 has k = 2 and mean f 3/4: du = 3 / (2 * 2) (1/4, -1/4) = (3/16, -3/16), and
    // u = 3/4 at logit log 3: dz = 3/16 * 3/16. Token 1 has one expert: nothing to move.
    Batch batch;
    const Loss loss = moe::activation_balance_loss(batch.gate, batch.ws, 2.0, batch.grad);
    EXPECT_STREQ(loss.name, "activation_balance");
    EXPECT_NEAR(loss.value, 21.0 / 8, 1e-15);
    const auto dz = batch.ws.dlogits();
    EXPECT_NEAR(dz(0, 0), 2 * 9.0 / 256, 1e-15);
    const double u = 1 / (1 + std::exp(-1.0));
    EXPECT_NEAR(dz(0, 1), -2 * 3.0 / 16 * u * (1 - u), 1e-15);
    EXPECT_EQ(dz(0, 2), 0);
    EXPECT_TRUE((dz.bottomRows(2).array() == 0).all());
    EXPECT_NEAR(batch.grad.threshold(0, 0), -2 * 3.0 / 16 / 4, 1e-15);  // slope of 1/2 is 1/4
    EXPECT_NEAR(batch.grad.threshold(0, 1), 2 * 3.0 / 16 / 4, 1e-15);
    EXPECT_EQ(batch.grad.threshold(0, 2), 0);
}

TEST(ActivationLoss, OfThreeTokensIsWorkedOutByHand) {
    // 3 of 9 entries; du = 1/9 for each of them, u (1 - u) of logits log 3, 1 and log 2
    Batch batch;
    const Loss loss = moe::activation_loss(batch.gate, batch.ws, 2.0, batch.grad);
    EXPECT_STREQ(loss.name, "activation");
    EXPECT_NEAR(loss.value, 1.0 / 3, 1e-15);
    const auto dz = batch.ws.dlogits();
    EXPECT_NEAR(dz(0, 0), 2.0 / 9 * 3 / 16, 1e-15);
    const double u = 1 / (1 + std::exp(-1.0));
    EXPECT_NEAR(dz(0, 1), 2.0 / 9 * u * (1 - u), 1e-15);
    EXPECT_NEAR(dz(1, 0), 2.0 / 9 * 2 / 9, 1e-15);
    EXPECT_EQ(dz(1, 1), 0);
    EXPECT_TRUE((dz.row(2).array() == 0).all());
    EXPECT_NEAR(batch.grad.threshold(0, 0), -2 * 2.0 / 9 / 4, 1e-15);
    EXPECT_NEAR(batch.grad.threshold(0, 1), -2.0 / 9 / 4, 1e-15);
    EXPECT_EQ(batch.grad.threshold(0, 2), 0);
}

TEST(ActivationBalanceLoss, AtPerfectBalanceIsTheMeanNumberOfExperts) {
    Batch one({{0}, {1}, {2}}), two({{0, 1}, {1, 2}, {2, 0}}), all({{0, 1, 2}, {0, 1, 2}, {}});
    EXPECT_NEAR(moe::activation_balance_loss(one.gate, one.ws, 0.0, one.grad), 1, 1e-15);
    EXPECT_NEAR(moe::activation_balance_loss(two.gate, two.ws, 0.0, two.grad), 2, 1e-15);
    EXPECT_NEAR(moe::activation_balance_loss(all.gate, all.ws, 0.0, all.grad), 3, 1e-15);
    Batch worst({{0}, {0}, {0}});
    EXPECT_NEAR(moe::activation_balance_loss(worst.gate, worst.ws, 0.0, worst.grad), 3, 1e-15);
    EXPECT_TRUE((one.ws.dlogits().array() == 0).all());
}

/// The value with what its gradient takes A for: 1 + (u - thr) - (u - thr as it was) where it was
/// 1, and 0 elsewhere; f as it was.
struct StraightThrough {
    Matrix<double> first_logits, first_thresholds;
    bool is_balance;

    static double above(const Matrix<double>& z, const Matrix<double>& a, Index t, Index e) {
        return 1 / (1 + std::exp(-z(t, e))) - 1 / (1 + std::exp(-a(0, e)));
    }
    double value(const Matrix<double>& z, const Matrix<double>& a) const {
        const Index tokens = z.rows(), experts = z.cols();
        Matrix<double> active = Matrix<double>::Zero(tokens, experts), was = active;
        for (Index t = 0; t < tokens; ++t)
            for (Index e = 0; e < experts; ++e) {
                const double first = above(first_logits, first_thresholds, t, e);
                if (!(first > 0)) continue;
                was(t, e) = 1;
                active(t, e) = 1 + above(z, a, t, e) - first;
            }
        if (!is_balance) return active.sum() / static_cast<double>(tokens * experts);
        double served = 0, sum = 0;
        for (Index t = 0; t < tokens; ++t) served += was.row(t).sum() > 0 ? 1 : 0;
        for (Index e = 0; e < experts; ++e) {
            double p = 0;
            for (Index t = 0; t < tokens; ++t)
                if (was(t, e) > 0) p += active(t, e) / active.row(t).sum();
            sum += p / served * was.col(e).sum() / served;
        }
        return static_cast<double>(experts) * sum;
    }
};

/// What a gate with these thresholds activates in training.
moe::Routing activated(const Matrix<double>& logits, const Matrix<double>& a) {
    std::vector<std::vector<Index>> chosen(static_cast<std::size_t>(logits.rows()));
    for (Index t = 0; t < logits.rows(); ++t)
        for (Index e = 0; e < logits.cols(); ++e)
            if (logits(t, e) > a(0, e)) chosen[static_cast<std::size_t>(t)].push_back(e);
    return example::routing(logits.cols(), chosen);
}

TEST(ActivationLosses, GradientsAreThoseOfTheirStraightThroughForm) {
    for (const bool is_balance : {true, false}) {
        Matrix<double> z = random_matrix<double>(9, 4, 3, 3), a = random_matrix<double>(1, 4, 5);
        moe::TopAnyModule<double> gate({}, 4);
        gate.threshold.view() = a;
        moe::Workspace<double> ws;
        example::fill(ws, z, activated(z, a), {.training = true});
        ASSERT_GT(ws.routing().num_assignments(), 9);
        auto grad = moe::zeros_like(gate);
        const double value = is_balance ? moe::activation_balance_loss(gate, ws, 0.7, grad)
                                        : moe::activation_loss(gate, ws, 0.7, grad);
        const StraightThrough form{z, a, is_balance};
        EXPECT_NEAR(form.value(z, a), value, 1e-14);
        const auto loss = [&] { return 0.7 * form.value(z, a); };
        EXPECT_TRUE(moe::testing::check_gradient(loss, z, Matrix<double>(ws.dlogits())));
        EXPECT_TRUE(moe::testing::check_gradient(loss, a, Matrix<double>(grad.threshold.view())));
    }
}

TEST(ActivationLosses, GoThroughWrappersAndCountWhatWasDropped) {
    Batch plain;
    struct Wrapped : moe::GateWrapper<double, moe::TopAnyModule<double>> {};
    const Wrapped gate{{moe::TopAnyModule<double>({}, 3)}};
    auto grad = moe::zeros_like(gate);
    Batch dropped;
    dropped.ws.edit_routing().set_dropped(0, moe::Dropped::capacity);
    dropped.ws.edit_routing().group();
    EXPECT_EQ(moe::activation_balance_loss(gate, dropped.ws, 0.7, grad).value,
              moe::activation_balance_loss(plain.gate, plain.ws, 0.7, plain.grad).value);
    EXPECT_EQ(moe::activation_loss(gate, dropped.ws, 0.7, grad).value,
              moe::activation_loss(plain.gate, plain.ws, 0.7, plain.grad).value);
    EXPECT_TRUE(moe::testing::same_bits(Matrix<double>(dropped.ws.dlogits()),
                                        Matrix<double>(plain.ws.dlogits()), {.allow_zeros = true}));
    EXPECT_TRUE(moe::testing::same_bits(grad.inner.threshold.view(), plain.grad.threshold.view()));
}

TEST(ActivationLosses, DoNotCountNullExpertsOrPadding) {
    const std::vector<moe::ExpertFacts> facts{{}, {.is_null = true}, {}};
    const std::vector<std::uint8_t> padding{0, 0, 1};
    Context context{.training = true, .padding = padding};
    context.experts = facts;
    Batch batch({{0, 1}, {0}, {}}, context);
    // f = (1, 0, 0) = P over two tokens; 2 of 6 entries
    EXPECT_NEAR(moe::activation_balance_loss(batch.gate, batch.ws, 1.0, batch.grad), 3, 1e-15);
    EXPECT_TRUE((batch.ws.dlogits().array() == 0).all());
    EXPECT_NEAR(moe::activation_loss(batch.gate, batch.ws, 1.0, batch.grad), 2.0 / 6, 1e-15);
    EXPECT_EQ(batch.ws.dlogits()(0, 1), 0);
    EXPECT_GT(batch.ws.dlogits()(0, 0), 0);
}

TEST(ActivationLosses, OfNoTokensOrNoActivationsAreZero) {
    Batch batch({{}, {}, {}});
    EXPECT_EQ(moe::activation_balance_loss(batch.gate, batch.ws, 1.0, batch.grad).value, 0);
    EXPECT_EQ(moe::activation_loss(batch.gate, batch.ws, 1.0, batch.grad).value, 0);
    example::fill(batch.ws, Matrix<double>(0, 3), example::routing(3, {}));
    EXPECT_EQ(moe::activation_balance_loss(batch.gate, batch.ws, 1.0, batch.grad).value, 0);
    EXPECT_EQ(moe::activation_loss(batch.gate, batch.ws, 1.0, batch.grad).value, 0);
}

TEST(ActivationLosses, ShowNaNInTheGradientOfItsRow) {
    Batch batch;
    batch.logits(0, 1) = std::numeric_limits<double>::quiet_NaN();
    example::fill(batch.ws, batch.logits, example::routing(3, {{0, 1}, {0}, {}}),
                  {.training = true});
    EXPECT_NEAR(moe::activation_loss(batch.gate, batch.ws, 1.0, batch.grad), 1.0 / 3, 1e-15);
    EXPECT_TRUE(batch.ws.dlogits().row(0).array().isNaN().all());
    EXPECT_TRUE(batch.ws.dlogits().bottomRows(2).allFinite());
}

TEST(ActivationLosses, AddTheirWeightedGradientsAndAllocateNothingTheSecondTime) {
    Batch once, twice;
    moe::activation_balance_loss(once.gate, once.ws, 1.0, once.grad);
    moe::activation_loss(once.gate, once.ws, 1.0, once.grad);
    const auto halves = [&] {
        moe::activation_balance_loss(twice.gate, twice.ws, 0.5, twice.grad);
        moe::activation_loss(twice.gate, twice.ws, 0.5, twice.grad);
    };
    halves();
    EXPECT_EQ(allocations::in(halves), 0);
    EXPECT_TRUE(moe::testing::compare(Matrix<double>(twice.ws.dlogits()),
                                      Matrix<double>(once.ws.dlogits()), 1e-15,
                                      {.allow_zeros = true}));
    EXPECT_TRUE(
        moe::testing::compare(twice.grad.threshold.view(), once.grad.threshold.view(), 1e-15));
}

TEST(ActivationLosses, RefuseTheGateOfAnotherLayer) {
    Batch batch;
    const moe::TopAnyModule<double> other({}, 4);
    auto grad = moe::zeros_like(other);
    EXPECT_EQ(support::message([&] { moe::activation_loss(other, batch.ws, 1.0, grad); }),
              "moe::activation_loss: logits is [3, 3], the routing is for 3 tokens and 3 experts, "
              "the gate was built for 4 experts");
    EXPECT_NE(support::message([&] { moe::activation_balance_loss(other, batch.ws, 1.0, grad); }),
              "");
    const moe::TopAnyModule<double> fewer({}, 2);
    grad = moe::zeros_like(fewer);
    EXPECT_EQ(support::message([&] { moe::activation_loss(batch.gate, batch.ws, 1.0, grad); }),
              "moe::activation_loss: the threshold of grad has 2 entries, the gate is for 3 "
              "experts; make grad with zeros_like() of the gate's layer");
    EXPECT_NE(
        support::message([&] { moe::activation_balance_loss(batch.gate, batch.ws, 1.0, grad); }),
        "");
    EXPECT_TRUE((batch.ws.dlogits().array() == 0).all());
}

TEST(ActivationLosses, GiveTheSameBitsForAnyThreadCount) {
    const auto random = random_matrix<float>(700, 4, 3, 3);
    const auto plan = activated(random.cast<double>(), Matrix<double>::Zero(1, 4));
    const moe::TopAnyModule<float> gate({}, 4);
    Matrix<float> dlogits, dthreshold;
    for (const int threads : {1, 2, 3}) {
        moe::ThreadPool pool(threads);
        moe::Workspace<float> ws(pool);
        auto grad = moe::zeros_like(gate);
        example::fill(ws, random, plan, {.training = true});
        moe::activation_balance_loss(gate, ws, 1.0, grad);
        moe::activation_loss(gate, ws, 1.0, grad);
        if (threads == 1) {
            dlogits = ws.dlogits();
            dthreshold = grad.threshold.view();
        }
        EXPECT_TRUE(
            moe::testing::same_bits(Matrix<float>(ws.dlogits()), dlogits, {.allow_zeros = true}));
        EXPECT_TRUE(moe::testing::same_bits(grad.threshold.view(), dthreshold));
    }
}

TEST(ActivationLosses, FollowedDownhillSpreadTokens) {
    moe::Head<double, moe::LinearRouter, moe::TopAny> head(
        moe::Config{.model_dim = 5, .seed = 2}, moe::LinearRouter{.bias = true}, moe::TopAny{},
        std::vector<moe::ExpertFacts>(4));
    head.router().bias.view() << 1, -1, -1, -1;  // all want the first
    const Matrix<double> x = random_matrix<double>(60, 5, 3, 2);
    moe::Workspace<double> ws;
    auto grad = moe::zeros_like(head);
    const auto imbalance = [&] {  // 1 at balance
        head.route(x, ws, {.training = true});
        double served = 0;
        for (Index t = 0; t < 60; ++t) served += ws.routing().of(t).empty() ? 0 : 1;
        return moe::activation_balance_loss(head.gate(), ws, 0.0, grad.gate()) * served /
               static_cast<double>(ws.routing().num_assignments());
    };
    EXPECT_GT(imbalance(), 1.5);
    for (int step = 0; step < 200; ++step) {
        head.route(x, ws, {.training = true});
        grad = moe::zeros_like(head);
        moe::activation_balance_loss(head.gate(), ws, 1.0, grad.gate());
        const std::vector<double> none(static_cast<std::size_t>(ws.routing().num_assignments()));
        Matrix<double> dx = Matrix<double>::Zero(60, 5);
        head.route_backward(x, {.output = none}, dx, grad, ws, {.training = true});
        head.router().bias.view() -= grad.router().bias.view();
        head.router().weight.view() -= grad.router().weight.view();
    }
    EXPECT_LT(imbalance(), 1.05);
}

}  // namespace
}  // namespace top_any_loss_test
