// SPDX-License-Identifier: MIT
#include <moe/gates/sparse_mixer.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"
#include "golden/golden.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Index;
using moe::SparseMixer;

static_assert(moe::Recipe<SparseMixer>);
static_assert(moe::TrainableGate<moe::SparseMixerModule<float>, float>);
static_assert(moe::hooks::per_token<moe::SparseMixerModule<float>>);
static_assert(!moe::hooks::reads_k<moe::SparseMixerModule<float>>);

using Experts = std::vector<Index>;
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();
constexpr moe::Context training{.training = true, .seed = 3};

/// Logits so close together that there are always several near the best.
template <class S>
moe::Matrix<S> close_logits(Index tokens, Index experts, unsigned seed = 2) {
    moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, experts, seed, 0.25);
    for (Index i = 0; i < z.size(); ++i) z.data()[i] += S(3);
    return z;
}

/// From the paper: shares of those near the best that `taken` leaves.
std::vector<double> shares(const std::vector<double>& z, const std::vector<bool>& taken,
                           double epsilon) {
    const std::size_t n = z.size();
    double v = -infinity<double>, sum = 0;
    for (std::size_t j = 0; j < n; ++j)
        if (!taken[j]) v = std::max(v, z[j]);
    std::vector<double> q(n, 0.0);
    for (std::size_t j = 0; j < n; ++j) {
        if (taken[j]) continue;
        const double factor = std::max(std::abs(z[j]), v);
        if (!((v - z[j]) / factor > 2 * epsilon)) sum += q[j] = std::exp(z[j] - v);
    }
    for (double& share : q) share /= sum;
    return q;
}

template <class S>
class SparseMixerGate : public testing::Test {
protected:
    static constexpr double tolerance = sizeof(S) == 4 ? 2e-6 : 1e-13;
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SparseMixerGate, Scalars);

// ---- the published gate ----

TYPED_TEST(SparseMixerGate, MostlyWeighsOne) {
    using S = TypeParam;
    auto tokens = batch<S>(SparseMixer{}, 8);
    tokens.route(golden_logits<S>());
    const std::vector<Experts> chosen{{5, 0}, {3, 7}, {0, 6}, {7, 6}};
    for (Index t = 0; t < 4; ++t) {
        EXPECT_EQ(tokens.experts_of(t), chosen[static_cast<std::size_t>(t)]);
        EXPECT_EQ(tokens.weights_of(t), (std::vector<double>{1, 1}));
    }
    auto wider = batch<S>(SparseMixer{.epsilon = 0.1}, 8);
    wider.route(golden_logits<S>());
    EXPECT_EQ(wider.experts_of(3), (Experts{7, 6}));
    for (const double w : wider.weights_of(3)) EXPECT_NEAR(w, .5249792, 1e-6);
    for (Index t = 0; t < 3; ++t) EXPECT_EQ(wider.weights_of(t), (std::vector<double>{1, 1})) << t;
}

TYPED_TEST(SparseMixerGate, ComputesWhatThePublishedCodeDoesInTrainingAndAtInference) {
    using S = TypeParam;
    const golden::File file("sparse_mixer");
    const auto z = file.read<S>("logits");
    const auto noise = file.read<double>("noise");
    const auto dw = file.read<S>("grad_weights");
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(SparseMixer{}, z.cols());
        tokens.context = {.training = trains,
                          .noise = {noise.data(), static_cast<std::size_t>(noise.size())}};
        tokens.route(z);
        const std::string mode = trains ? "training." : "inference.";
        EXPECT_TRUE(
            moe::testing::same_bits(golden::expert_ids(tokens.routing, 3).leftCols(2).eval(),
                                    file.view().integers(mode + "expert_ids")));
        // The published 0.3333 is rounded to float.
        EXPECT_TRUE(moe::testing::compare(golden::expert_weights(tokens.routing, 2),
                                          file.read<double>(mode + "expert_weights"),
                                          std::max(10 * this->tolerance, trains ? 1e-8 : 0)));
        const std::vector<S> c(dw.data(), dw.data() + dw.size());
        EXPECT_TRUE(moe::testing::compare(
            tokens.backward(z, c), file.read<double>(mode + "grad_logits"), 10 * this->tolerance));
    }
}

TYPED_TEST(SparseMixerGate, AgreesWithThePlainFormula) {
    using S = TypeParam;
    for (const bool trains : {false, true})
        for (const Index k : {1, 2, 3, 7})
            for (const double epsilon : {0.0, 0.01, 0.05, 10.0}) {
                auto z = close_logits<S>(40, 7);
                for (Index t = 0; t < 10; ++t) z.row(t).array() -= S(5);   // below 0
                for (Index t = 10; t < 20; ++t) z.row(t).array() -= S(3);  // around 0
                auto tokens = batch<S>(SparseMixer{.k = k, .epsilon = epsilon}, 7);
                tokens.context = {.training = trains, .seed = 11};
                tokens.route(z);
                const moe::CounterRandom random = tokens.call().random();
                for (Index t = 0; t < 40; ++t) {
                    std::vector<double> row(7);
                    for (Index e = 0; e < 7; ++e)
                        row[static_cast<std::size_t>(e)] = static_cast<double>(z(t, e));
                    std::vector<bool> taken(7, false);
                    const auto list = tokens.routing.of(t);
                    ASSERT_EQ(static_cast<Index>(list.size()), k);
                    for (std::size_t i = 0; i < list.size(); ++i) {
                        const auto q = shares(row, taken, epsilon);
                        std::size_t best = 0, chosen = 0;
                        double highest = -infinity<double>;
                        for (std::size_t j = 0; j < 7; ++j) {
                            if (q[j] > q[best] || taken[best]) best = j;
                            const double noise =
                                trains ? random.gumbel(t, static_cast<Index>(j),
                                                       static_cast<std::uint32_t>(2 * i))
                                       : 0;
                            if (q[j] > 0 && row[j] + noise > highest)
                                highest = row[j] + noise, chosen = j;
                        }
                        ASSERT_EQ(list[i].expert, chosen) << t << " " << i;
                        const double u = random.uniform(t, static_cast<Index>(chosen),
                                                        static_cast<std::uint32_t>(2 * i + 1));
                        const double r = !trains || chosen == best || u > 0.75 ? 1 : 0.3333;
                        EXPECT_NEAR(list[i].weight, r * q[chosen], this->tolerance);
                        taken[chosen] = true;
                    }
                }
            }
}

// ---- laws ----

TYPED_TEST(SparseMixerGate, DoesNotDependOnTheScaleOfLogitsForWhatIsNear) {
    using S = TypeParam;
    const auto z = close_logits<S>(50, 6);
    const auto near = [](const moe::Matrix<S>& logits) {
        std::vector<bool> is_near;
        for (Index t = 0; t < logits.rows(); ++t) {
            std::vector<S> scratch(18);
            moe::detail::Neighbours<S> neighbours(6, moe::row_data(logits, t), 0.01,
                                                  scratch.data());
            neighbours.look();
            for (Index e = 0; e < 6; ++e) is_near.push_back(neighbours.is_near(e));
        }
        return is_near;
    };
    EXPECT_EQ(near(z), near(4 * z));
    EXPECT_EQ(near(z), near(z / 1024));
    EXPECT_NE(near(z), near((z.array() + S(100)).matrix()));
}

TYPED_TEST(SparseMixerGate, TakesWhatItsNeighboursSharesSayAsOftenAsTheySay) {
    using S = TypeParam;
    // Three near the best with shares of 1/2, 1/3 and 1/6; the fourth is far.
    moe::Matrix<S> z(6000, 4);
    for (Index t = 0; t < z.rows(); ++t)
        z.row(t) << S(100 + std::log(3.0)), S(100 + std::log(2.0)), S(100), S(50);
    auto tokens = batch<S>(SparseMixer{.k = 1}, 4);
    tokens.context = training;
    tokens.route(z);
    std::array<double, 4> counts{};
    int thirds = 0;
    for (const moe::Assignment& a : tokens.routing.assignments()) {
        counts[static_cast<std::size_t>(a.expert)] += 1;
        const double share = a.expert == 0 ? 1.0 / 2 : a.expert == 1 ? 1.0 / 3 : 1.0 / 6;
        thirds += a.weight < 0.9 * share;
    }
    EXPECT_NEAR(counts[0] / 6000, 1.0 / 2, 0.025);
    EXPECT_NEAR(counts[1] / 6000, 1.0 / 3, 0.025);
    EXPECT_NEAR(counts[2] / 6000, 1.0 / 6, 0.025);
    EXPECT_EQ(counts[3], 0);
    EXPECT_NEAR(thirds / (counts[1] + counts[2]), 0.75, 0.03);  // three in four of what is not best
}

TYPED_TEST(SparseMixerGate, IsTheSameForTokensInAnotherOrder) {
    using S = TypeParam;
    const auto z = close_logits<S>(9, 6);
    const auto plan = gates_test::routed<S>(SparseMixer{}, z, 6, {});
    const moe::Matrix<S> turned = z.colwise().reverse();
    const auto other = gates_test::routed<S>(SparseMixer{}, turned, 6, {});
    for (Index t = 0; t < 9; ++t)
        for (std::size_t i = 0; i < 2; ++i) {
            EXPECT_EQ(plan.of(t)[i].expert, other.of(8 - t)[i].expert);
            EXPECT_EQ(plan.of(t)[i].weight, other.of(8 - t)[i].weight);
        }
}

TYPED_TEST(SparseMixerGate, DrawsByAddressAndOnlyInTraining) {
    using S = TypeParam;
    const auto z = close_logits<S>(60, 8);
    gates_test::expect_noise_by_address<S>(SparseMixer{}, z, 8);
    gates_test::expect_no_noise<S>(SparseMixer{}, z, 8);
    gates_test::expect_no_noise<S>(SparseMixer{.sample = false}, z, 8, training);
}

TYPED_TEST(SparseMixerGate, TakesSamplesThatAreGiven) {
    using S = TypeParam;
    const auto z = rows<S>({{5, 5.05, 5.02}});
    auto tokens = batch<S>(SparseMixer{.k = 1}, 3);
    std::array<double, 6> noise{1, 0, 0, 0.7, 0, 0};
    tokens.context = {.training = true, .noise = noise};
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0}));
    const double sum = 1 + std::exp(0.05) + std::exp(0.02);
    EXPECT_NEAR(tokens.weights_of(0)[0], 0.3333 / sum, 1e-6);
    noise[3] = 0.8;
    tokens.route(z);
    EXPECT_NEAR(tokens.weights_of(0)[0], 1 / sum, 1e-6);
    tokens.context.noise = std::span(noise).first(5);
    EXPECT_EQ(support::message([&] { tokens.route(z); }),
              "moe::SparseMixer: noise has 5 samples, the gate takes 6: draws x tokens x width = 2 "
              "x 1 x 3");
}

// ---- degenerate rows ----

TYPED_TEST(SparseMixerGate, GivesTiesToTheLowerIndex) {
    using S = TypeParam;
    auto tokens = batch<S>(SparseMixer{}, 4);
    tokens.route(moe::Matrix<S>::Zero(1, 4));  // 0 / 0 is near
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 1}));
    EXPECT_NEAR(tokens.weights_of(0)[0], 1.0 / 4, 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[1], 1.0 / 3, 1e-6);
}

TYPED_TEST(SparseMixerGate, NeverSelectsMinusInfinity) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::Matrix<S>::Constant(3, 5, -infinity<S>);
    z(0, 3) = 2;
    z(2, 1) = 2;
    z(2, 4) = S(1.999);
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(SparseMixer{.k = 3}, 5);
        tokens.context = {.training = trains};
        tokens.route(z);
        EXPECT_EQ(tokens.experts_of(0), (Experts{3}));
        EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{1}));
        EXPECT_TRUE(tokens.experts_of(1).empty());
        EXPECT_EQ(tokens.experts_of(2).size(), 2u);
        const auto dz = tokens.backward(z, derivatives<S>(3));
        EXPECT_TRUE(dz.allFinite());
        for (Index i = 0; i < z.size(); ++i)
            EXPECT_TRUE(z.data()[i] != -infinity<S> || dz.data()[i] == 0);
    }
}

TYPED_TEST(SparseMixerGate, ShowsANaNInWeightsAndGradient) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    z(0, 5) = nan<S>;
    z(0, 1) = -infinity<S>;
    z(2, 3) = infinity<S>;
    for (const bool trains : {false, true}) {
        auto tokens = batch<S>(SparseMixer{}, 8);
        tokens.context = {.training = trains};
        tokens.route(z);
        EXPECT_EQ(tokens.experts_of(0), (Experts{0, 2}));
        for (const double w : tokens.weights_of(0)) EXPECT_TRUE(std::isnan(w));
        EXPECT_TRUE(std::isnan(tokens.weights_of(2)[0]));
        for (const double w : tokens.weights_of(1)) EXPECT_TRUE(std::isfinite(w));
        const auto dz = tokens.backward(z, derivatives<S>(8));
        for (Index e = 0; e < 8; ++e) EXPECT_EQ(std::isnan(dz(0, e)), e != 1);
        EXPECT_EQ(dz(0, 1), 0);
        EXPECT_TRUE(dz.row(1).allFinite());
    }
}

TYPED_TEST(SparseMixerGate, WeighsNullExpertsZeroAndReplaysWhatIsFarWithZero) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    auto tokens = batch<S>(SparseMixer{}, 8);
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 1}));
    tokens.context.training = true;
    tokens.routing.reset(4, 8);
    for (const Index e : {7, 5, 0, 1, 2}) tokens.routing.add(0, e);  // more than k, in training
    tokens.routing.group();
    tokens.weigh(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 0, 1, 0, 1}));
    EXPECT_TRUE(tokens.backward(golden_logits<S>(), derivatives<S>(5)).allFinite());
}

TYPED_TEST(SparseMixerGate, RoutesNoTokensAndToOneExpert) {
    using S = TypeParam;
    gates_test::expect_no_tokens_route<S>(SparseMixer{}, 4, 4, training);
    auto tokens = batch<S>(SparseMixer{.k = 1}, 1);
    tokens.context = training;
    tokens.route(rows<S>({{-3}}));
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{1}));
    EXPECT_EQ(tokens.backward(rows<S>({{-3}}), derivatives<S>(1))(0, 0), 0);
}

// ---- gradients ----

TEST(SparseMixerGradient, IsExactAtInference) {
    for (const double epsilon : {0.01, 0.03, 0.5})
        for (const Index k : {1, 2, 4}) {
            const auto z = close_logits<double>(6, 5, 9);
            gates_test::expect_exact_gradient(SparseMixer{.k = k, .epsilon = epsilon}, z, 5);
            gates_test::expect_exact_gradient(
                SparseMixer{.k = k, .epsilon = epsilon, .sample = false}, z, 5, training);
        }
}

TEST(SparseMixerGradient, OfASampleIsThatOfItsShareAsIfTheFactorWereOne) {
    const SparseMixer recipe{.k = 2, .epsilon = 0.03};
    moe::Matrix<double> z = close_logits<double>(12, 5, 9);
    auto tokens = batch<double>(recipe, 5);
    tokens.context = training;
    tokens.route(z);
    const moe::Routing plan = tokens.routing;
    const auto c = derivatives<double>(plan.num_assignments());
    const auto dz = tokens.backward(z, c);
    bool is_scaled = false;
    const auto loss = [&] {
        double sum = 0;
        for (Index t = 0; t < 12; ++t) {
            const std::vector<double> row(z.row(t).begin(), z.row(t).end());
            std::vector<bool> taken(5, false);
            for (Index a = plan.first(t); a < plan.first(t + 1); ++a) {
                const auto number = static_cast<std::size_t>(a);
                const auto e = static_cast<std::size_t>(plan.assignments()[number].expert);
                const double q = shares(row, taken, recipe.epsilon)[e];
                is_scaled |= plan.assignments()[number].weight < 0.5 * q;
                sum += c[number] * q;
                taken[e] = true;
            }
        }
        return sum;
    };
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz));
    EXPECT_TRUE(is_scaled);
}

TEST(SparseMixerGradient, InsideALayerIsExact) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 6, .seed = 4}, moe::LinearRouter{},
        SparseMixer{.k = 2, .epsilon = 0.4}, moe::Swiglu{.count = 4, .ffn_dim = 5});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 6, .columns = 6, .scale = 0.01}));
}

// ---- settings, threads, memory ----

TEST(SparseMixerSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(SparseMixer{}, 8), "");
    EXPECT_EQ(refusal(SparseMixer{.k = 0}, 8),
              "moe::SparseMixer: k is 0, it must be in [1, 8], the experts of the layer");
    EXPECT_EQ(refusal(SparseMixer{}, 1),
              "moe::SparseMixer: k is 2, it must be in [1, 1], the experts of the layer");
    EXPECT_EQ(refusal(SparseMixer{.epsilon = -1}, 8),
              "moe::SparseMixer: epsilon is -1, it must be finite and >= 0");
    EXPECT_NE(refusal(SparseMixer{.epsilon = nan<double>}, 8), "");
    EXPECT_NE(refusal(SparseMixer{}, 0), "");
}

TYPED_TEST(SparseMixerGate, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    const auto z = close_logits<S>(2500, 67);
    for (const bool trains : {false, true}) {
        const moe::Context context{.training = trains, .seed = 5};
        gates_test::expect_same_bits_for_any_thread_count<S>(SparseMixer{.k = 3}, z, 67, context);
        gates_test::expect_no_allocation<S>(SparseMixer{.k = 3}, z, 67, context);
    }
}

}  // namespace
