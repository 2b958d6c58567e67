// SPDX-License-Identifier: MIT
// What all losses have in common.
#include <moe/losses/loss.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/head.hpp>
#include <moe/layer.hpp>
#include <moe/losses/anchor.hpp>
#include <moe/losses/cost.hpp>
#include <moe/losses/device_balance.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/importance.hpp>
#include <moe/losses/load.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/mass_balance.hpp>
#include <moe/losses/second_place.hpp>
#include <moe/losses/tsallis_entropy.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace loss_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Loss;
using moe::Matrix;
using moe::Routing;
using moe::Workspace;

using In = moe::In<double>;
using Out = moe::Out<double>;

/// One loss in both forms.
struct Named {
    const char* name;
    Loss (*long_form)(In, const Routing&, const Context&, double, Out);
    Loss (*short_form)(Workspace<double>&, double);
    bool is_shared = false;  ///< the gradient of a token depends on the scores of others
};
std::ostream& operator<<(std::ostream& out, const Named& loss) { return out << loss.name; }

constexpr auto sigmoid = moe::Score::sigmoid;

/// Two: the first three of 5 to 8 experts, and the rest.
moe::DeviceBalance devices(Index experts) {
    static constexpr std::int32_t device[] = {0, 0, 0, 1, 1, 1, 1, 1};
    return {.num_devices = 2, .device_of_expert = {device, static_cast<std::size_t>(experts)}};
}

/// Experts of which later ones cost more.
moe::CostBudget budget(Index experts) {
    static constexpr double costs[] = {1, 2, 3, 4, 5, 6, 7, 8};
    return {.budget = 2, .expert_costs = {costs, static_cast<std::size_t>(experts)}};
}

const Named all[] = {
    {"z",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::z_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::z_loss(ws, weight); }},
    {"entropy",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::entropy_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::entropy_loss(ws, weight); }},
    {"load_balance",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::load_balance_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::load_balance_loss(ws, weight); }},
    {"load_balance_sigmoid",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::load_balance_loss(z, plan, context, weight, dz, {.score = sigmoid});
     },
     [](Workspace<double>& ws, double weight) {
         return moe::load_balance_loss(ws, weight, {.score = sigmoid});
     }},
    {"load_balance_selected",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::load_balance_loss(z, plan, context, weight, dz,
                                       {.scored = moe::Scored::selected});
     },
     [](Workspace<double>& ws, double weight) {
         return moe::load_balance_loss(ws, weight, {.scored = moe::Scored::selected});
     }},
    {"importance",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::importance_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::importance_loss(ws, weight); }, true},
    {"second_place",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::second_place_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::second_place_loss(ws, weight); }},
    {"mass_balance",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::mass_balance_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::mass_balance_loss(ws, weight); }, true},
    {"device_balance",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::device_balance_loss(z, plan, context, weight, dz, devices(z.cols()));
     },
     [](Workspace<double>& ws, double weight) {
         return moe::device_balance_loss(ws, weight, devices(ws.expert_logits().cols()));
     }},
    {"communication_balance",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::communication_balance_loss(z, plan, context, weight, dz, devices(z.cols()));
     },
     [](Workspace<double>& ws, double weight) {
         return moe::communication_balance_loss(ws, weight, devices(ws.expert_logits().cols()));
     }},
    {"tsallis_entropy",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::tsallis_entropy_loss(z, plan, context, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::tsallis_entropy_loss(ws, weight); }},
    {"anchor",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::anchor_loss(z, plan, context, 3, weight, dz);
     },
     [](Workspace<double>& ws, double weight) { return moe::anchor_loss(ws, 3, weight); }},
    {"cost",
     [](In z, const Routing& plan, const Context& context, double weight, Out dz) {
         return moe::cost_loss(z, plan, context, weight, dz, budget(z.cols()));
     },
     [](Workspace<double>& ws, double weight) {
         return moe::cost_loss(ws, weight, budget(ws.expert_logits().cols()));
     }},
};

class EveryLoss : public testing::TestWithParam<Named> {};
INSTANTIATE_TEST_SUITE_P(All, EveryLoss, testing::ValuesIn(all),
                         [](const auto& loss) { return std::string(loss.param.name); });

TEST_P(EveryLoss, OfNoTokensIsZeroWithoutGradient) {
    Matrix<double> empty(0, 8);
    EXPECT_EQ(GetParam().long_form(empty, example::routing(8, {}), {}, 1.0, empty).value, 0);

    const Matrix<double> nothing = Matrix<double>::Constant(2, 8, example::minus_infinity);
    Matrix<double> dlogits = Matrix<double>::Constant(2, 8, 5);
    EXPECT_EQ(GetParam().long_form(nothing, example::routing(8, {{}, {}}), {}, 1.0, dlogits).value,
              0);
    EXPECT_EQ(dlogits, (Matrix<double>::Constant(2, 8, 5)));
}

TEST_P(EveryLoss, DoesNotSeePadding) {
    // rows 1 and 4: padding by the context, and by -inf
    const Matrix<double> plain = example::logits<double>();
    Matrix<double> logits(6, 8);
    logits << plain.row(0), Matrix<double>::Constant(1, 8, 7), plain.row(1), plain.row(2),
        Matrix<double>::Constant(1, 8, example::minus_infinity), plain.row(3);
    const Routing plan = example::routing(8, {{5, 0}, {4, 3}, {3, 7}, {0, 6}, {}, {7, 6}});
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 0, 0};
    Context context;
    context.padding = padding;

    Matrix<double> dlogits = Matrix<double>::Zero(6, 8), expected = Matrix<double>::Zero(4, 8);
    const double value = GetParam().long_form(logits, plan, context, 0.3, dlogits);
    EXPECT_EQ(value, GetParam().long_form(plain, example::two_best(), {}, 0.3, expected).value);
    EXPECT_EQ(dlogits.row(0), expected.row(0));
    EXPECT_EQ(dlogits.row(2), expected.row(1));
    EXPECT_EQ(dlogits.row(5), expected.row(3));
    EXPECT_EQ(dlogits.row(1), (Matrix<double>::Zero(1, 8)));
    EXPECT_EQ(dlogits.row(4), (Matrix<double>::Zero(1, 8)));
}

TEST_P(EveryLoss, AddsItsWeightedGradientAndReturnsTheValueWithoutTheWeight) {
    const Matrix<double> logits = example::logits<double>();
    Matrix<double> once = Matrix<double>::Zero(4, 8), same = once, none = once;
    const double value = GetParam().long_form(logits, example::two_best(), {}, 1.0, once);
    EXPECT_EQ(GetParam().long_form(logits, example::two_best(), {}, 0.5, same).value, value);
    EXPECT_EQ(GetParam().long_form(logits, example::two_best(), {}, 0.5, same).value, value);
    EXPECT_TRUE(moe::testing::compare(same, once, 1e-14));  // twice a half
    EXPECT_EQ(GetParam().long_form(logits, example::two_best(), {}, 0.0, none).value, value);
    EXPECT_EQ(none, (Matrix<double>::Zero(4, 8)));
}

TEST_P(EveryLoss, ShortFormIsTheLongFormOnTheWorkspace) {
    Workspace<double> ws;
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Context context;
    context.padding = padding;
    example::fill(ws, example::logits<double>(), example::two_best(), context);
    Matrix<double> expected = Matrix<double>::Zero(4, 8);
    const double value = GetParam().long_form(example::logits<double>(), example::two_best(),
                                              context, 0.3, expected);
    EXPECT_EQ(GetParam().short_form(ws, 0.3).value, value);
    EXPECT_EQ(Matrix<double>(ws.dlogits()), expected);
}

TEST_P(EveryLoss, ShortFormAllocatesNothingTheSecondTime) {
    Workspace<double> ws;
    example::fill(ws, example::logits<double>(), example::two_best());
    GetParam().short_form(ws, 0.3);
    double value = 0;
    EXPECT_EQ(allocations::in([&] { value = GetParam().short_form(ws, 0.3); }), 0);
    EXPECT_GT(value, 0);
}

TEST_P(EveryLoss, ShowsNaN) {
    Matrix<double> logits = example::logits<double>(), dlogits = Matrix<double>::Zero(4, 8);
    logits(1, 3) = std::numeric_limits<double>::quiet_NaN();
    const double value = GetParam().long_form(logits, example::two_best(), {}, 1.0, dlogits);
    EXPECT_TRUE(std::isnan(value));
    for (Index e = 0; e < 8; ++e) EXPECT_TRUE(std::isnan(dlogits(1, e)));
    EXPECT_EQ(std::isfinite(dlogits(0, 0)), !GetParam().is_shared);
}

TEST_P(EveryLoss, WorksOnRowsOfWiderMatrices) {
    Matrix<double> wide = Matrix<double>::Constant(4, 11, 1e3);
    Matrix<double> dwide = Matrix<double>::Constant(4, 11, -2),
                   expected = Matrix<double>::Zero(4, 8);
    wide.leftCols(8) = example::logits<double>();
    dwide.leftCols(8).setZero();
    const double value =
        GetParam().long_form(example::logits<double>(), example::two_best(), {}, 1.0, expected);
    EXPECT_EQ(GetParam()
                  .long_form(wide.leftCols(8), example::two_best(), {}, 1.0, dwide.leftCols(8))
                  .value,
              value);
    EXPECT_EQ(Matrix<double>(dwide.leftCols(8)), expected);
    EXPECT_EQ(Matrix<double>(dwide.rightCols(3)), (Matrix<double>::Constant(4, 3, -2)));
}

TEST(CountsInLosses, WhatIsNeitherPaddingNorMaskedThroughout) {
    const double dead = example::minus_infinity, nan = std::numeric_limits<double>::quiet_NaN();
    Matrix<double> logits(5, 3);
    logits << 1, 2, 3,      // padding
        dead, dead, dead,   //
        dead, dead, -1e30,  //
        dead, nan, dead,    //
        -dead, dead, dead;
    const std::vector<std::uint8_t> padding{1, 0, 0, 0, 0};
    Context context;
    context.padding = padding;
    const bool expected[] = {false, false, true, true, true};
    for (Index t = 0; t < 5; ++t) {
        EXPECT_EQ(moe::counts_in_losses(context, logits, t), expected[t]) << t;
        EXPECT_EQ(moe::counts_in_losses(context, logits.cast<float>().eval(), t), expected[t]) << t;
        EXPECT_EQ(moe::counts_in_losses({}, logits, t), t != 1) << t;
    }
    EXPECT_FALSE(moe::counts_in_losses({}, Matrix<double>(1, 0), 0));
}

/// A loss of one's own: the mean over tokens of the mean logit.
double mean_logit(Workspace<double>& ws, double weight) {
    const auto z = ws.logits();
    Index tokens = 0;
    double sum = 0;
    for (Index t = 0; t < z.rows(); ++t)
        tokens += moe::counts_in_losses(ws.context(), z, t) ? 1 : 0;
    for (Index t = 0; t < z.rows(); ++t) {
        if (!moe::counts_in_losses(ws.context(), z, t)) continue;
        sum += z.row(t).mean();
        ws.dlogits().row(t).array() += weight / static_cast<double>(tokens * z.cols());
    }
    return tokens == 0 ? 0 : sum / static_cast<double>(tokens);
}

TEST(CountsInLosses, IsAllThatALossOfOnesOwnNeeds) {
    Workspace<double> ws;
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    Context context;
    context.padding = padding;
    example::fill(ws, example::logits<double>(), example::two_best(), context);
    const auto z = example::logits<double>();
    EXPECT_NEAR(mean_logit(ws, 3), (z.row(0).mean() + z.row(1).mean() + z.row(3).mean()) / 3,
                1e-15);
    EXPECT_NEAR(ws.dlogits().sum(), 3, 1e-14);
    EXPECT_EQ(ws.dlogits()(2, 0), 0);
}

/// A router and a gate in double, and a batch.
struct Model {
    moe::Head<double, moe::LinearRouter, moe::TopK> head{
        moe::Config{.model_dim = 6, .seed = 3}, moe::LinearRouter{.bias = true}, moe::TopK{.k = 2},
        std::vector<moe::ExpertFacts>(5)};
    Matrix<double> x = moe::testing::random_matrix<double>(9, 6, 5);
    Workspace<double> ws;
};

TEST_P(EveryLoss, GradientReachesTheRouterThroughBackward) {
    Model model;
    const double weight = 0.4;
    auto grad = moe::zeros_like(model.head);
    model.head.route(model.x, model.ws);
    const Routing plan = model.ws.routing();
    GetParam().short_form(model.ws, weight);
    const std::vector<double> dweights(static_cast<std::size_t>(plan.num_assignments()), 0.0);
    Matrix<double> dx = Matrix<double>::Zero(9, 6);
    model.head.route_backward(model.x, {.output = dweights, .input = {}}, dx, grad, model.ws);

    const auto value = [&] {
        model.head.reweigh(model.x, plan, model.ws);
        return weight * GetParam().short_form(model.ws, 0).value;
    };
    auto& router = model.head.router();
    EXPECT_TRUE(
        moe::testing::check_gradient(value, router.weight.view(), grad.router().weight.view()));
    EXPECT_TRUE(moe::testing::check_gradient(value, router.bias.view(), grad.router().bias.view()));
    EXPECT_TRUE(moe::testing::check_gradient(value, model.x, dx));
}

/// f(layer) for a layer of 5 experts and each gate that wants other logits besides theirs.
template <class F>
void for_each_gate_with_other_logits(F&& f) {
    const auto layer_of = [](const auto& gate) {
        return moe::make_layer<double>(moe::Config{.model_dim = 4, .seed = 3},
                                       moe::LinearRouter{.bias = true}, gate,
                                       moe::Swiglu{.count = 5, .ffn_dim = 3});
    };
    const moe::Noisy noisy{moe::TopK{.k = 2}, moe::GateNoise{}};
    f("Noisy", layer_of(noisy));
    f("Noisy in WithCapacity",
      layer_of(moe::WithCapacity{noisy, moe::Capacity{.limit = moe::CapacityLimit::constant(2)}}));
    f("Noisy in Noisy", layer_of(moe::Noisy{noisy, moe::GateNoise{.epsilon = 0.1}}));
    f("KeepAny", layer_of(moe::KeepAny{moe::TopK{.k = 3}}));
}

/// The formula knows nothing of gates: it sees what a layer with the experts' logits alone had.
TEST_P(EveryLoss, IsAboutTheLogitsOfExpertsWhereThereAreOthers) {
    const Matrix<double> x = moe::testing::random_matrix<double>(9, 4, 5);
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 0, 0, 0, 0};
    std::vector<std::uint8_t> allowed(5 * 9, 1);
    allowed[1] = allowed[5 * 3 + 4] = allowed[5 * 3] = 0;
    std::fill(allowed.begin() + 5 * 6, allowed.begin() + 5 * 7, std::uint8_t{0});
    for_each_gate_with_other_logits([&](const char* name, const auto& layer) {
        SCOPED_TRACE(name);
        for (const bool restricts : {false, true}) {
            Context context{.training = true, .padding = padding};
            if (restricts) context.allowed = allowed;
            Workspace<double> ws;
            layer.route(x, ws, context);
            Matrix<double> z = ws.logits().leftCols(5), expected = Matrix<double>::Zero(9, 5);
            for (Index t = 0; t < 9 && restricts; ++t)
                for (Index e = 0; e < 5; ++e)
                    if (allowed[static_cast<std::size_t>(5 * t + e)] == 0)
                        z(t, e) = example::minus_infinity;
            const double value = GetParam().long_form(z, ws.routing(), context, 0.3, expected);
            EXPECT_GT(value, 0);
            EXPECT_EQ(GetParam().short_form(ws, 0.3).value, value);
            EXPECT_EQ(Matrix<double>(ws.dlogits().leftCols(5)), expected);
            const Index others = ws.logits().cols() - 5;
            EXPECT_EQ(Matrix<double>(ws.dlogits().rightCols(others)),
                      (Matrix<double>::Zero(9, others)));
            EXPECT_EQ(allocations::in([&] { GetParam().short_form(ws, 0.3); }), 0);
        }
    });
}

TEST_P(EveryLoss, GradientsThroughLayersWithOtherLogitsAreExact) {
    const auto dy = moe::testing::random_matrix<double>(6, 4, 2);
    std::vector<std::uint8_t> allowed(5 * 6, 1);
    allowed[5 * 2 + 3] = allowed[5 * 4] = 0;
    for_each_gate_with_other_logits([&](const char* name, auto layer) {
        SCOPED_TRACE(name);
        Matrix<double> x = moe::testing::random_matrix<double>(6, 4, 5), y(6, 4), dx(6, 4);
        const Context context{.training = true, .allowed = allowed};
        Workspace<double> ws;
        const auto loss = [&] {
            layer.forward(x, y, ws, context);
            return seams::weighted_sum(y, dy) + 0.4 * GetParam().short_form(ws, 0).value;
        };
        loss();
        GetParam().short_form(ws, 0.4);
        auto grad = moe::zeros_like(layer);
        layer.backward(x, dy, dx, grad, ws, context);
        const auto options = seams::options(seams::SameChoices(ws));
        EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
        seams::expect_parameter_gradients(loss, layer, grad, options);
    });
}

TEST_P(EveryLoss, RefusesAGateWithoutLogitsOfExperts) {
    // Two half keys of two: as many logits as experts, and none is an expert's.
    const moe::Head<double, moe::LinearRouter, moe::ProductKeyTopK> head{
        moe::Config{.model_dim = 6}, moe::LinearRouter{}, moe::ProductKeyTopK{.k = 1},
        std::vector<moe::ExpertFacts>(4)};
    Workspace<double> ws;
    head.route(moe::testing::random_matrix<double>(3, 6, 5), ws);
    ASSERT_EQ(ws.logits().cols(), 4);
    EXPECT_EQ(ws.expert_logits().cols(), 0);
    const std::string found = support::message([&] { GetParam().short_form(ws, 0.3); });
    EXPECT_NE(found.find("_loss: the gate of this layer has no logits of experts"),
              std::string::npos)
        << found;
    EXPECT_TRUE((ws.dlogits().array() == 0).all());
}

TEST(LossesOnNoise, GradientsThroughALayerAreExact) {
    const auto layer_of = [](const auto& gate) {
        return moe::make_layer<double>(moe::Config{.model_dim = 4, .seed = 3},
                                       moe::LinearRouter{.bias = true}, gate,
                                       moe::Swiglu{.count = 5, .ffn_dim = 3});
    };
    auto layer = layer_of(moe::Noisy{moe::TopK{.k = 2}, moe::GateNoise{}});
    Matrix<double> x = moe::testing::random_matrix<double>(6, 4, 5), y(6, 4), dx(6, 4);
    const auto dy = moe::testing::random_matrix<double>(6, 4, 2);
    const std::vector<double> latency{6, 4, 1, 1, 2};
    const Context context{.training = true};
    Workspace<double> ws;
    const auto losses = [&](double weight) {
        constexpr auto sample = moe::Variance::sample;
        return moe::importance_loss(layer.gate(), ws, weight,
                                    {.variance = sample, .expert_costs = latency}) +
               moe::load_loss(layer.gate(), ws, weight,
                              {.variance = sample, .expert_costs = latency});
    };
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy) + 0.4 * losses(0);
    };
    loss();
    losses(0.4);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    const auto options = seams::options(seams::SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
}

}  // namespace
}  // namespace loss_test
