// SPDX-License-Identifier: MIT
#include <moe/gates/noisy.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"
#include "seams/check.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using gates_test::refusal;
using gates_test::routed;
using gates_test::rows;
using Kind = moe::GateNoise::Kind;
using moe::GateNoise;
using moe::Index;
using moe::Noisy;
using moe::Normalize;
using moe::Score;
using moe::TopK;

using Inner = moe::TopKModule<float>;
static_assert(moe::Recipe<Noisy<TopK>>);
static_assert(moe::TrainableGate<moe::NoisyModule<float, Inner>, float>);
static_assert(moe::hooks::reads_k<moe::NoisyModule<float, Inner>>);
static_assert(moe::hooks::per_token<moe::NoisyModule<float, Inner>>);

using Experts = std::vector<Index>;
constexpr Kind all_kinds[] = {Kind::fixed, Kind::fixed_over_experts, Kind::learned, Kind::gumbel};
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();
constexpr moe::Context training{.training = true, .seed = 3};

Index logits_of(Kind kind, Index experts) { return kind == Kind::learned ? 2 * experts : experts; }

template <class S>
class NoisyGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(NoisyGate, Scalars);

// ---- the formula ----

TYPED_TEST(NoisyGate, IsItsInnerGateOnTheNoisyLogits) {
    using S = TypeParam;
    constexpr Index tokens = 50, experts = 6;
    for (const Kind kind : all_kinds) {
        const auto z = moe::testing::random_matrix<S>(tokens, logits_of(kind, experts), 4, 2);
        const TopK inner{.k = 2, .normalize = Normalize::none};
        auto noisy = batch<S>(Noisy{inner, GateNoise{.kind = kind, .std = 3, .epsilon = 0.1}}, 6);
        noisy.context = {.training = true, .seed = 9, .first_token = 100};
        noisy.route(z);
        const moe::CounterRandom random = noisy.call().random();
        moe::Matrix<S> h(tokens, experts);
        for (Index t = 0; t < tokens; ++t)
            for (Index e = 0; e < experts; ++e) {
                double sigma = kind == Kind::fixed_over_experts ? 3.0 / 6 : 3.0;
                if (kind == Kind::learned)
                    sigma = std::log(1 + std::exp(static_cast<double>(z(t, experts + e)))) + 0.1;
                const double noise =
                    kind == Kind::gumbel ? random.gumbel(100 + t, e) : random.normal(100 + t, e);
                h(t, e) = static_cast<S>(static_cast<double>(z(t, e)) + sigma * noise);
            }
        const moe::Routing plain = routed<S>(inner, h, experts, {});
        EXPECT_TRUE(gates_test::same_choices(noisy.routing, plain));
        for (std::size_t a = 0; a < plain.assignments().size(); ++a)
            EXPECT_NEAR(noisy.routing.assignments()[a].weight, plain.assignments()[a].weight,
                        sizeof(S) == 4 ? 2e-6 : 1e-14);
    }
}

TYPED_TEST(NoisyGate, FallsWithTheStepsOfTraining) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(30, 5, 4, 2);
    const TopK inner{.k = 5, .score = Score::raw, .normalize = Normalize::none};
    for (const Kind kind : {Kind::fixed, Kind::fixed_over_experts, Kind::gumbel}) {
        const Noisy falls{
            inner, GateNoise{.kind = kind, .std = 3, .factor = {.from = 2, .to = 0, .steps = 8}}};
        for (const std::uint64_t step : {0u, 3u, 7u, 8u, 90u}) {
            moe::Context context = training;
            context.step = step;
            const double factor = step < 8 ? 2 - 0.25 * static_cast<double>(step) : 0;
            auto tokens = batch<S>(falls, 5);
            tokens.context = context;
            tokens.route(z);
            const moe::CounterRandom random = tokens.call().random();
            const S sigma = static_cast<S>((kind == Kind::fixed_over_experts ? 0.6 : 3) * factor);
            for (const moe::Assignment& a : tokens.routing.assignments()) {  // of weight h
                const double noise = kind == Kind::gumbel ? random.gumbel(a.token, a.expert)
                                                          : random.normal(a.token, a.expert);
                const S h = std::fma(static_cast<S>(noise), sigma, z(a.token, a.expert));
                EXPECT_EQ(static_cast<S>(a.weight), h) << step;
            }
        }
        moe::Context silent = training;
        silent.step = 8;
        const std::vector<double> noise(30 * 5, nan<double>);  // is not looked at
        silent.noise = noise;
        EXPECT_EQ(routed<S>(falls, z, 5, silent), routed<S>(inner, z, 5, {}));
    }
}

TYPED_TEST(NoisyGate, TakesSamplesThatAreGiven) {
    using S = TypeParam;
    std::vector<double> noise{0, 2, 0};
    auto fixed = batch<S>(Noisy{TopK{.k = 1}, GateNoise{.kind = Kind::fixed, .std = 0.5}}, 3);
    fixed.context = {.training = true, .noise = noise};
    fixed.route(rows<S>({{0.9, 0, 0.5}}));
    EXPECT_EQ(fixed.experts_of(0), (Experts{1}));
    auto learned =
        batch<S>(Noisy{TopK{.k = 3, .score = Score::raw, .normalize = Normalize::none}}, 3);
    learned.context = fixed.context;
    learned.route(rows<S>({{0.9, 0, 0.5, -100, 0, 100}}));
    EXPECT_EQ(learned.experts_of(0), (Experts{1, 0, 2}));
    EXPECT_NEAR(learned.weights_of(0)[0], 2 * (std::log(2.0) + 1e-2), 1e-6);
    EXPECT_NEAR(learned.weights_of(0)[1], 0.9, 1e-6);
    noise = {1, 1, -0.01};
    learned.context.noise = noise;
    learned.route(rows<S>({{0.9, 0, 0.5, -100, 0, 100}}));
    EXPECT_NEAR(learned.weights_of(0)[0], 0.9 + 1e-2, 1e-6);
    EXPECT_NEAR(learned.weights_of(0)[2], 0.5 - 1.0001, 1e-6);
    noise.pop_back();
    learned.context.noise = noise;
    EXPECT_THROW(learned.route(rows<S>({{0.9, 0, 0.5, -100, 0, 100}})), std::invalid_argument);
}

TYPED_TEST(NoisyGate, IsItsInnerGateOnCleanLogitsAtInference) {
    using S = TypeParam;
    for (const Kind kind : all_kinds) {
        const Noisy recipe{TopK{.k = 2}, GateNoise{.kind = kind, .std = 5}};
        const auto z = moe::testing::random_matrix<S>(30, logits_of(kind, 5), 4, 2);
        const moe::Matrix<S> clean = z.leftCols(5);
        gates_test::expect_no_noise<S>(recipe, z, 5);
        EXPECT_EQ(routed<S>(recipe, z, 5, {}), routed<S>(TopK{.k = 2}, clean, 5, {}));
        EXPECT_FALSE(routed<S>(recipe, z, 5, training) == routed<S>(recipe, z, 5, {}));

        auto noisy = batch<S>(recipe, 5);
        noisy.route(z);
        auto plain = batch<S>(TopK{.k = 2}, 5);
        plain.route(clean);
        const auto c = derivatives<S>(60);
        const auto dz = noisy.backward(z, c);
        EXPECT_TRUE(moe::testing::same_bits(dz.leftCols(5).eval(), plain.backward(clean, c)));
        EXPECT_TRUE((dz.rightCols(z.cols() - 5).array() == 0).all());
    }
}

TYPED_TEST(NoisyGate, HasNoiseAtInferenceIfTold) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(30, 10, 4, 2);
    gates_test::expect_noise_by_address<S>(Noisy{TopK{.k = 2}, GateNoise{.inference = true}}, z, 5,
                                           {.seed = 2});
}

TYPED_TEST(NoisyGate, DrawsByAddress) {
    using S = TypeParam;
    for (const Kind kind : all_kinds)
        gates_test::expect_noise_by_address<S>(
            Noisy{TopK{.k = 2}, GateNoise{.kind = kind}},
            moe::testing::random_matrix<S>(40, logits_of(kind, 6), 5, 2), 6);
}

TYPED_TEST(NoisyGate, WithoutWeighingChoosesByNoiseAndWeighsByCleanLogits) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(40, 5, 5, 2);
    const TopK inner{.k = 1, .normalize = Normalize::none};
    const GateNoise noise{.kind = Kind::gumbel, .weighs = false};
    auto tokens = batch<S>(Noisy{inner, noise}, 5);
    tokens.context = training;
    tokens.route(z);
    auto loud = batch<S>(Noisy{inner, GateNoise{.kind = Kind::gumbel}}, 5);
    loud.context = training;
    loud.route(z);
    EXPECT_TRUE(gates_test::same_choices(tokens.routing, loud.routing));
    auto plain = batch<S>(inner, 5);
    plain.route(z);
    EXPECT_FALSE(gates_test::same_choices(tokens.routing, plain.routing));
    plain.routing = tokens.routing;
    plain.weigh(z);
    EXPECT_EQ(plain.routing, tokens.routing);
    const auto c = derivatives<S>(40);
    EXPECT_TRUE(moe::testing::same_bits(tokens.backward(z, c), plain.backward(z, c)));
}

TYPED_TEST(NoisyGate, KeepsItsNoiseApartFromAnInnerGates) {
    using S = TypeParam;
    const auto z = moe::testing::random_matrix<S>(1, 2000, 5, 2);
    const GateNoise noise{.kind = Kind::fixed};
    auto tokens = batch<S>(
        Noisy{Noisy{TopK{.k = 2000, .score = Score::raw, .normalize = Normalize::none}, noise},
              noise},
        2000);
    tokens.context = training;
    tokens.route(z);
    double variance = 0;  // of the sum of two noises: 2 if independent, 4 if the same
    for (const moe::Assignment& a : tokens.routing.of(0))
        variance += std::pow(a.weight - static_cast<double>(z(0, a.expert)), 2) / 2000;
    EXPECT_NEAR(variance, 2, 0.3);
}

// ---- masks and degenerate rows ----

TYPED_TEST(NoisyGate, NeverLetsAMaskedExpertIn) {
    using S = TypeParam;
    for (const Kind kind : all_kinds)
        for (const bool trains : {false, true}) {
            moe::Matrix<S> z = moe::testing::random_matrix<S>(30, logits_of(kind, 4), 4, 1);
            for (Index t = 0; t < 30; ++t) z(t, t % 4) = -infinity<S>;
            z.row(7).setConstant(-infinity<S>);
            std::vector<std::uint8_t> allowed(30 * 4, 1);
            const std::vector<moe::ExpertFacts> facts(4);
            for (std::size_t t = 0; t < 30; ++t) allowed[t * 4 + (t + 1) % 4] = 0;
            for (Index t = 0; t < 30; ++t) z(t, (t + 1) % 4) = -infinity<S>;  // as the layer does
            auto tokens = batch<S>(
                Noisy{TopK{.k = 4, .normalize = Normalize::none}, GateNoise{.kind = kind}}, 4);
            tokens.context = {.training = trains, .allowed = allowed, .experts = facts};
            tokens.route(z);
            for (Index t = 0; t < 30; ++t) {
                EXPECT_EQ(tokens.routing.of(t).size(), t == 7 ? 0u : 2u);
                for (const Index e : tokens.experts_of(t)) {
                    EXPECT_NE(e, t % 4);
                    EXPECT_NE(e, (t + 1) % 4);
                }
                double sum = 0;
                for (const double w : tokens.weights_of(t)) sum += w;
                EXPECT_NEAR(sum, t == 7 ? 0 : 1, 1e-6);  // they take no share either
            }
            const auto dz = tokens.backward(z, derivatives<S>(tokens.routing.num_assignments()));
            for (Index t = 0; t < 30; ++t) {
                EXPECT_EQ(dz(t, t % 4), 0);
                EXPECT_EQ(dz(t, (t + 1) % 4), 0);
                EXPECT_EQ(dz(t, logits_of(kind, 4) - 4 + t % 4), 0);
            }
            EXPECT_TRUE(dz.allFinite());
        }
}

TYPED_TEST(NoisyGate, NeverLetsAnExpertInThatASequenceMayNotHave) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(12, 8, 4, 1);
    const std::vector<moe::ExpertFacts> facts(4);
    const std::vector<std::uint8_t> allowed{0, 1, 1, 0, 1, 1, 0, 1};
    const std::vector<Index> offsets{0, 5, 12};
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(Noisy{TopK{.k = 2}}, 4);
        tokens.context = {.training = trains, .experts = facts};
        tokens.context.sequence_offsets = offsets;
        tokens.context.dial.allowed_per_sequence = allowed;
        for (Index t = 0; t < 12; ++t)  // as the layer does
            for (Index e = 0; e < 4; ++e)
                if (!tokens.context.is_allowed(t, e)) z(t, e) = -infinity<S>;
        tokens.route(z);
        EXPECT_EQ(tokens.routing.num_assignments(), 24);
        for (const moe::Assignment& a : tokens.routing.assignments())
            EXPECT_TRUE(tokens.context.is_allowed(a.token, a.expert));
    }
}

TYPED_TEST(NoisyGate, ShowsANaN) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(3, 8, 4, 1);
    z(0, 2) = nan<S>;
    z(1, 5) = nan<S>;  // a noise logit
    auto tokens = batch<S>(Noisy{TopK{.k = 2}}, 4);
    tokens.context = training;
    tokens.route(z);
    for (const Index t : {0, 1})
        for (const double w : tokens.weights_of(t)) EXPECT_TRUE(std::isnan(w));
    for (const double w : tokens.weights_of(2)) EXPECT_TRUE(std::isfinite(w));
    const auto dz = tokens.backward(z, derivatives<S>(6));
    EXPECT_TRUE(std::isnan(dz(0, 0)) && std::isnan(dz(1, 7)));
    EXPECT_TRUE(dz.row(2).allFinite());
}

TYPED_TEST(NoisyGate, RoutesNoTokensAndToOneExpert) {
    using S = TypeParam;
    gates_test::expect_no_tokens_route<S>(Noisy{TopK{.k = 1}}, 4, 8, training);
    auto tokens = batch<S>(Noisy{TopK{.k = 1}}, 1);
    tokens.context = training;
    tokens.route(rows<S>({{-3, 1}}));
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{1}));
}

TYPED_TEST(NoisyGate, ReadsTheDialOfItsInnerGate) {
    using S = TypeParam;
    auto tokens = batch<S>(Noisy{TopK{.k = 1}}, 4);
    tokens.context = training;
    tokens.context.dial.k = 3;
    tokens.route(moe::testing::random_matrix<S>(5, 8, 4, 1));
    EXPECT_EQ(tokens.routing.num_assignments(), 15);
    using OfTopP = moe::NoisyModule<S, moe::TopPModule<S>>;
    EXPECT_TRUE(moe::hooks::reads_p<OfTopP> && !moe::hooks::reads_k<OfTopP>);
}

// ---- gradients ----

TEST(NoisyGradient, IsExactForEveryKindAndScore) {
    for (const Kind kind : all_kinds)
        for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected})
            for (const Normalize normalize : {Normalize::none, Normalize::plain})
                gates_test::expect_exact_gradient(
                    Noisy{TopK{.k = 3, .score = score, .normalize = normalize},
                          GateNoise{.kind = kind, .std = 0.7}},
                    moe::testing::random_matrix<double>(6, logits_of(kind, 5), 8, 1), 5, training);
}

TEST(NoisyGradient, IsExactWhileTheNoiseFalls) {
    moe::Context context = training;
    for (const std::uint64_t step : {1u, 4u}) {  // half of the noise, and none
        context.step = step;
        for (const Kind kind : {Kind::fixed, Kind::gumbel})
            gates_test::expect_exact_gradient(
                Noisy{TopK{.k = 3},
                      GateNoise{.kind = kind, .factor = {.from = 1, .to = 0, .steps = 2}}},
                moe::testing::random_matrix<double>(6, 5, 8, 1), 5, context);
    }
}

TEST(NoisyGradient, InsideALayerIsExactInTraining) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
                                Noisy{TopK{.k = 2}}, moe::Swiglu{.count = 4, .ffn_dim = 5});
    ASSERT_EQ(layer.head().num_logits(), 8);
    const auto x = moe::testing::random_matrix<double>(7, 5, 1);
    std::vector<std::uint8_t> allowed(28, 1), padding(7, 0);
    allowed[2] = allowed[9] = 0;
    padding[3] = 1;
    moe::Context context = training;
    context.allowed = allowed;
    context.padding = padding;
    moe::Workspace<double> ws;
    layer.route(x, ws, context);
    for (const moe::Assignment& a : ws.routing().assignments())
        EXPECT_TRUE(allowed[static_cast<std::size_t>(a.token * 4 + a.expert)] != 0 && a.token != 3);
    seams::expect_exact_layer(layer, x, context);
}

TEST(NoisyGradient, InsideALayerIsExactAtInference) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
        Noisy{TopK{.k = 2}, GateNoise{.inference = true}}, moe::Swiglu{.count = 4, .ffn_dim = 5});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.columns = 5, .scale = 0.01}));
}

// ---- settings, threads, memory ----

TEST(NoisyGradient, IsForLossesOnNoisyLogitsToo) {
    // z 1 -1, n 0 2, samples 0.5 -2: sigma log 2 + 0.01 and softplus(2) + 0.01
    const auto gate = gates_test::build<double>(Noisy{TopK{.k = 1}, GateNoise{}}, 2);
    moe::Matrix<double> z(1, 4), dh(1, 2), dsigma(1, 2);
    z << 1, -1, 0, 2;
    dh << 3, 5;
    dsigma << 7, 11;
    const std::vector<double> samples{0.5, -2};
    moe::Context context = training;
    context.noise = samples;
    moe::Workspace<double> ws;
    const moe::Call<double> call{context, ws};
    const double sigma[] = {std::log(2.0) + 0.01, std::log1p(std::exp(2.0)) + 0.01};
    const moe::View<double> h = gate.noisy_logits(z, call);
    for (Index e = 0; e < 2; ++e) {
        EXPECT_NEAR(gate.sigma(z, 0, e, {}), sigma[e], 1e-15);
        EXPECT_NEAR(h(0, e), z(0, e) + sigma[e] * samples[static_cast<std::size_t>(e)], 1e-14);
    }
    // dn = (dh noise + dsigma) sigmoid(n), sigmoid 1/2 and 1 / (1 + exp -2)
    const double slope = 1 / (1 + std::exp(-2.0));
    moe::Matrix<double> dz = moe::Matrix<double>::Ones(1, 4);
    gate.noise_backward(z, dh, dsigma, dz, call);
    EXPECT_NEAR(dz(0, 0), 1 + 3, 1e-14);
    EXPECT_NEAR(dz(0, 1), 1 + 5, 1e-14);
    EXPECT_NEAR(dz(0, 2), 1 + (1.5 + 7) / 2, 1e-14);
    EXPECT_NEAR(dz(0, 3), 1 + (-10 + 11) * slope, 1e-14);
    z(0, 1) = -infinity<double>;
    dz.setOnes();
    gate.noise_backward(z, dh, moe::Matrix<double>(), dz, call);
    EXPECT_NEAR(dz(0, 2), 1 + 1.5 / 2, 1e-14);
    EXPECT_EQ(dz(0, 1), 1);
    EXPECT_EQ(dz(0, 3), 1);
}

TEST(NoisySettings, AreCheckedOnceWithASentence) {
    const auto said = [](const GateNoise& noise) { return refusal(Noisy{TopK{.k = 1}, noise}, 4); };
    EXPECT_EQ(said({}), "");
    EXPECT_EQ(said({.std = -1}), "moe::Noisy: std is -1, it must be finite and >= 0");
    EXPECT_EQ(said({.epsilon = nan<double>}),
              "moe::Noisy: epsilon is nan, it must be finite and >= 0");
    EXPECT_EQ(said({.kind = Kind(4)}),
              "moe::Noisy: kind is number 4 of its choices, they are 0 to 3");
    EXPECT_EQ(said({.kind = Kind::fixed, .factor = {.from = 1, .to = 0, .steps = 9}}), "");
    EXPECT_EQ(said({.kind = Kind::fixed, .factor = {.from = 1, .to = 0}}),
              "moe::Noisy: factor goes from 1 to 0 in 0 steps; set factor.steps, or take "
              "Schedule::constant(0)");
    EXPECT_EQ(said({.kind = Kind::gumbel, .factor = {.from = 1, .to = -1, .steps = 9}}),
              "moe::Noisy: factor goes from 1 to -1, both must be >= 0");
    EXPECT_EQ(said({.factor = moe::Schedule::constant(2)}),
              "moe::Noisy: factor goes from 2 to 2, but kind is learned: the router sets sigma; "
              "take another kind");
    EXPECT_NE(refusal(Noisy{TopK{.k = 5}}, 4), "");
    auto tokens = batch<double>(Noisy{TopK{.k = 1}}, 4);
    EXPECT_EQ(support::message([&] { tokens.select(moe::Matrix<double>::Zero(2, 4)); }),
              "moe::Noisy: logits is [2, 4], the gate wants 8 logits per token");
}

TEST(NoisyExtents, AreChecked) {
    auto tokens = batch<double>(Noisy{TopK{.k = 1}}, 4);
    const moe::Matrix<double> z = moe::Matrix<double>::Zero(2, 8);
    tokens.route(z);
    moe::Matrix<double> narrow = moe::Matrix<double>::Zero(2, 4);
    auto grad = tokens.gate;
    const std::vector<double> c(2, 1.0);
    EXPECT_EQ(support::message([&] {
                  tokens.gate.backward(z, tokens.routing, {c, {}}, narrow, grad, tokens.call());
              }),
              "moe::Noisy: dlogits is [2, 4], logits are [2, 8]");
    EXPECT_NO_THROW(tokens.gate.check({.num_experts = 4}));
    EXPECT_THROW(tokens.gate.check({.num_experts = 8}), std::invalid_argument);
    // The gate inside sees one logit per expert, however many the router gives.
    const moe::WithCapacity next{moe::TopK{.k = 2},
                                 {.overflow = moe::Capacity::Overflow::next_choice}};
    const auto learned = gates_test::build<double>(moe::Noisy{next}, 4);
    EXPECT_NO_THROW(learned.check({.num_experts = 4, .num_logits = 8}));
}

TYPED_TEST(NoisyGate, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    for (const Kind kind : {Kind::fixed, Kind::learned}) {
        const Noisy recipe{TopK{.k = 3}, GateNoise{.kind = kind}};
        const auto z = moe::testing::random_matrix<S>(1500, logits_of(kind, 35), 4, 1);
        for (const bool trains : {false, true}) {
            const moe::Context context{.training = trains, .seed = 5};
            gates_test::expect_same_bits_for_any_thread_count<S>(recipe, z, 35, context);
            gates_test::expect_no_allocation<S>(recipe, z, 35, context);
        }
    }
}

}  // namespace
