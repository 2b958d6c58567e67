// SPDX-License-Identifier: MIT
#include <moe/gates/dynamic_capacity.hpp>

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
#include <moe/experts/zero.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::routed;
using gates_test::rows;
using moe::DynamicCapacity;
using moe::Index;

static_assert(moe::Recipe<DynamicCapacity>);
static_assert(moe::TrainableGate<moe::DynamicCapacityModule<float>, float>);
static_assert(moe::hooks::per_token<moe::DynamicCapacityModule<float>>);
static_assert(moe::hooks::reads_p<moe::DynamicCapacityModule<float>>);
static_assert(!moe::hooks::reads_k<moe::DynamicCapacityModule<float>>);

using Experts = std::vector<Index>;
using Row = std::vector<double>;
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();
constexpr moe::Context training{.training = true, .seed = 3};
constexpr double dead = -infinity<double>;

/// Logits of which several are always near the best.
template <class S>
moe::Matrix<S> close_logits(Index tokens, Index experts, unsigned seed = 2) {
    moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, experts, seed, 0.25);
    for (Index i = 0; i < z.size(); ++i) z.data()[i] += S(3);
    return z;
}

Row softmax(Row z) {
    const double most = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (double& value : z) sum += value = std::exp(value - most);
    for (double& value : z) value /= sum;
    return z;
}

/// Steps of the published code for one token: what each choice is worth, by expert.
/// @param chosen  in order
Row shares(const Row& z, Index num_dynamic, const Experts& chosen, double jitter) {
    Row m(z.begin(), z.begin() + num_dynamic), worth(m.size(), 0);
    for (const Index e : chosen) {
        const auto at = static_cast<std::size_t>(e);
        const double v = *std::max_element(m.begin(), m.end());
        Row near = m;
        for (std::size_t j = 0; j < m.size(); ++j) {
            const double factor = std::max(std::abs(z[j]), std::abs(v));
            if ((v - z[j]) / factor > 2 * jitter) near[j] = dead;
        }
        worth[at] = softmax(near)[at];
        m[at] = dead;
    }
    return worth;
}

/// Weights of all experts from what the choices are worth.
Row weights(const Row& z, Index num_dynamic, const Experts& chosen, const Row& worth) {
    Row masked(z.size(), dead), result(z.size(), 0);
    for (const Index e : chosen)
        masked[static_cast<std::size_t>(e)] = z[static_cast<std::size_t>(e)];
    const auto n = static_cast<std::size_t>(num_dynamic);
    for (std::size_t e = n; e < z.size(); ++e) masked[e] = z[e];
    const Row all = softmax(masked);
    double sum = 1e-6, mass = 0;
    for (const double value : worth) sum += value;
    for (std::size_t e = 0; e < n; ++e) mass += all[e];
    if (n == z.size()) mass = 1;
    for (std::size_t e = 0; e < z.size(); ++e) result[e] = e < n ? worth[e] / sum * mass : all[e];
    return result;
}

template <class S>
class DynamicCapacityGate : public testing::Test {
protected:
    static constexpr double tolerance = sizeof(S) == 4 ? 3e-6 : 1e-13;
    static Row weights_of(const moe::Routing& routing, Index token) {
        Row all(static_cast<std::size_t>(routing.num_experts()), 0);
        for (const moe::Assignment& a : routing.of(token))
            all[static_cast<std::size_t>(a.expert)] = a.weight;
        return all;
    }
    static Row row(const moe::Matrix<S>& z, Index t) {
        Row values;
        for (Index e = 0; e < z.cols(); ++e) values.push_back(static_cast<double>(z(t, e)));
        return values;
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(DynamicCapacityGate, Scalars);

// ---- the published gate ----

TYPED_TEST(DynamicCapacityGate, WeighsAsThePublishedOne) {
    using S = TypeParam;
    auto tokens = batch<S>(DynamicCapacity{.num_fixed = 2}, 8);
    tokens.route(golden_logits<S>());
    const std::vector<Experts> chosen{{5, 0, 6, 7}, {3, 1, 5, 6, 7}, {0, 6, 7}, {5, 4, 3, 2, 6, 7}};
    const std::vector<Row> expected{
        {.4217010, 0, 0, 0, 0, .4217010, .1174889, .0391086},
        {0, .2203947, 0, .2203947, 0, .2203947, .0911216, .2476942},
        {.9698284, 0, 0, 0, 0, 0, .0292863, .0008844},
        {0, 0, .1495601, .1495601, .1495601, .1495601, .1908442, .2109154}};
    for (Index t = 0; t < 4; ++t) {
        EXPECT_EQ(tokens.experts_of(t), chosen[static_cast<std::size_t>(t)]);
        const Row found = this->weights_of(tokens.routing, t);
        for (std::size_t e = 0; e < 8; ++e)
            EXPECT_NEAR(found[e], expected[static_cast<std::size_t>(t)][e], 1e-6) << t << e;
    }
}

TYPED_TEST(DynamicCapacityGate, AgreesWithThePlainFormulaInTrainingAndAtInference) {
    using S = TypeParam;
    constexpr Index experts = 8;
    for (const bool samples : {false, true})
        for (const Index num_fixed : {0, 1, 3})
            for (const double p : {0.0, 0.3, 0.7, 1.0})
                for (const double jitter : {0.0, 0.01, 0.04, 5.0}) {
                    auto z = close_logits<S>(30, experts);
                    for (Index t = 0; t < 10; ++t) z.row(t).array() -= S(5);
                    const Index n = experts - num_fixed;
                    auto tokens = batch<S>(DynamicCapacity{.p = p,
                                                           .num_fixed = num_fixed,
                                                           .k = 2,
                                                           .jitter = jitter,
                                                           .sample = samples},
                                           experts);
                    tokens.context = training;
                    tokens.route(z);
                    const moe::CounterRandom random = tokens.call().random();
                    for (Index t = 0; t < 30; ++t) {
                        const Row values = this->row(z, t);
                        const Row dynamic(values.begin(), values.begin() + n);
                        Row q = softmax(dynamic);
                        std::sort(q.rbegin(), q.rend());
                        Index count = 1;
                        double sum = 0;
                        for (const double value : q) count += (sum += value) < p;
                        count = p == 0 ? 2 : p == 1 ? n : count;

                        Experts chosen;  // one after another
                        Row worth(static_cast<std::size_t>(n), 0);
                        for (Index i = 0; i < count; ++i) {
                            Index winner = -1, best = -1;
                            double highest = dead;
                            Row shared;
                            for (Index e = 0; e < n; ++e) {
                                if (std::count(chosen.begin(), chosen.end(), e) != 0) continue;
                                auto with = chosen;
                                with.push_back(e);
                                shared = shares(values, n, with, jitter);
                                const auto at = static_cast<std::size_t>(e);
                                if (best < 0 || values[at] > values[static_cast<std::size_t>(best)])
                                    best = e;
                                const double key =
                                    values[at] +
                                    (samples
                                         ? random.gumbel(t, e, static_cast<std::uint32_t>(2 * i))
                                         : 0);
                                if (shared[at] > 0 && key > highest) highest = key, winner = e;
                            }
                            chosen.push_back(winner);
                            const auto at = static_cast<std::size_t>(winner);
                            const double u =
                                random.uniform(t, winner, static_cast<std::uint32_t>(2 * i + 1));
                            worth[at] = shares(values, n, chosen, jitter)[at] *
                                        (!samples || winner == best || u > 0.75 ? 1 : 0.3333);
                        }
                        const Row expected = weights(values, n, chosen, worth);
                        for (Index e = n; e < experts; ++e) chosen.push_back(e);
                        ASSERT_EQ(tokens.experts_of(t), chosen);
                        const Row found = this->weights_of(tokens.routing, t);
                        for (std::size_t e = 0; e < found.size(); ++e)
                            EXPECT_NEAR(found[e], expected[e], this->tolerance);
                    }
                }
}

// ---- laws ----

TYPED_TEST(DynamicCapacityGate, SpreadsAWeightOfOne) {
    using S = TypeParam;
    for (const Index num_fixed : {0, 2}) {
        const auto z = close_logits<S>(40, 9);
        const auto plan = routed<S>(DynamicCapacity{.num_fixed = num_fixed}, z, 9, {});
        for (Index t = 0; t < 40; ++t) {
            double sum = 0;
            for (const moe::Assignment& a : plan.of(t)) sum += a.weight;
            EXPECT_NEAR(sum, 1, 3e-6);
        }
    }
}

TYPED_TEST(DynamicCapacityGate, TakesTheFewestExpertsThatReachPAndMoreAsPGrows) {
    using S = TypeParam;
    const moe::Matrix<S> even = moe::Matrix<S>::Zero(1, 4);
    const auto count = [&](double p) {
        return routed<S>(DynamicCapacity{.p = p}, even, 4, {}).num_assignments();
    };
    EXPECT_EQ(count(0.25), 1);  // reached exactly
    EXPECT_EQ(count(0.26), 2);
    EXPECT_EQ(count(0.75), 3);
    EXPECT_EQ(count(1), 4);
    EXPECT_EQ(count(1e300), 4);
    EXPECT_EQ(count(0), 1);
    const auto z = moe::testing::random_matrix<S>(40, 12, 7, 4);
    Index before = 0;
    for (double p = 0; p < 1.1; p += 0.1) {
        const auto plan = routed<S>(DynamicCapacity{.p = p, .num_fixed = 2}, z, 12, {});
        EXPECT_GE(plan.num_assignments(), before);
        before = plan.num_assignments();
    }
    EXPECT_EQ(before, 40 * 12);
}

TYPED_TEST(DynamicCapacityGate, GivesEveryTokenItsFixedExpertsButPadding) {
    using S = TypeParam;
    auto z = golden_logits<S>();
    z.row(1).setConstant(-infinity<S>);  // padding, as the layer masks it
    z.row(2).leftCols(6).setConstant(-infinity<S>);
    z(3, 7) = -infinity<S>;
    auto tokens = batch<S>(DynamicCapacity{.num_fixed = 2}, 8);
    tokens.route(z);
    EXPECT_TRUE(tokens.experts_of(1).empty());
    EXPECT_EQ(tokens.experts_of(2), (Experts{6, 7}));  // which share all the mass
    EXPECT_NEAR(tokens.weights_of(2)[0] + tokens.weights_of(2)[1], 1, 1e-6);
    EXPECT_EQ(tokens.experts_of(3), (Experts{5, 4, 3, 2, 6}));
    const auto dz = tokens.backward(z, derivatives<S>(tokens.routing.num_assignments()));
    EXPECT_TRUE(dz.allFinite());
    EXPECT_TRUE((dz.row(1).array() == 0).all() && dz(3, 7) == 0);
}

TYPED_TEST(DynamicCapacityGate, LeavesTheShareOfWhatIsDroppedToTheOthers) {
    using S = TypeParam;
    const auto z = golden_logits<S>();
    auto tokens = batch<S>(DynamicCapacity{.num_fixed = 2}, 8);
    tokens.select(z);
    tokens.routing.set_dropped(0, moe::Dropped::capacity);  // token 0's expert 5
    tokens.routing.group();
    tokens.weigh(z);
    const Row kept = weights(this->row(z, 0), 6, {0}, {1, 0, 0, 0, 0, 0});
    EXPECT_EQ(tokens.weights_of(0)[0], 0);
    EXPECT_NEAR(tokens.weights_of(0)[1], kept[0], 2e-6);
    EXPECT_NEAR(tokens.weights_of(0)[2], kept[6], 2e-6);
    tokens.routing.set_dropped(1, moe::Dropped::capacity);  // and its expert 0
    tokens.routing.group();
    tokens.weigh(z);
    EXPECT_EQ(tokens.weights_of(0)[1], 0);
    EXPECT_NEAR(tokens.weights_of(0)[2] + tokens.weights_of(0)[3], 1, 1e-6);

    std::vector<moe::ExpertFacts> facts(8);
    facts[5].is_null = true;
    tokens.context.experts = facts;
    tokens.route(z);
    EXPECT_EQ(tokens.weights_of(0)[0], 0);
    EXPECT_NEAR(tokens.weights_of(0)[1], kept[0], 2e-6);
}

TYPED_TEST(DynamicCapacityGate, DrawsByAddressInTrainingIfTold) {
    using S = TypeParam;
    const auto z = close_logits<S>(60, 8);
    gates_test::expect_noise_by_address<S>(DynamicCapacity{.num_fixed = 2, .sample = true}, z, 8);
    gates_test::expect_no_noise<S>(DynamicCapacity{.num_fixed = 2, .sample = true}, z, 8);
    gates_test::expect_no_noise<S>(DynamicCapacity{.num_fixed = 2}, z, 8, training);
}

TYPED_TEST(DynamicCapacityGate, TakesSamplesThatAreGiven) {
    using S = TypeParam;
    const auto z = rows<S>({{5, 5.05, 5.02}});
    std::array<double, 12> noise{1, 0, 0, 0.7, 0, 0, 0, 0, 0, 0, 0, 0};
    auto tokens = batch<S>(DynamicCapacity{.p = 0, .num_fixed = 1, .sample = true}, 3);
    tokens.context = {.training = true, .noise = noise};
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0, 2}));
    const double b = 0.3333 / (1 + std::exp(0.05)), mass = 1 / (1 + std::exp(0.02));
    EXPECT_NEAR(tokens.weights_of(0)[0], b / (b + 1e-6) * mass, 1e-6);
    tokens.context.noise = std::span(noise).first(11);
    EXPECT_THROW(tokens.route(z), std::invalid_argument);
}

// ---- degenerate rows ----

TYPED_TEST(DynamicCapacityGate, ShowsANaNInWeightsAndGradient) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    z(0, 2) = nan<S>;
    z(1, 7) = nan<S>;  // a fixed one
    z(0, 1) = -infinity<S>;
    for (const bool samples : {false, true}) {
        auto tokens = batch<S>(DynamicCapacity{.num_fixed = 2, .sample = samples}, 8);
        tokens.context = {.training = true};
        tokens.route(z);
        EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 3, 4, 2, 6, 7}));
        for (const Index t : {0, 1})
            for (const double w : tokens.weights_of(t)) EXPECT_TRUE(std::isnan(w));
        for (const double w : tokens.weights_of(3)) EXPECT_TRUE(std::isfinite(w));
        const auto dz = tokens.backward(z, derivatives<S>(tokens.routing.num_assignments()));
        EXPECT_TRUE(std::isnan(dz(0, 0)) && std::isnan(dz(1, 3)) && dz(0, 1) == 0);
        EXPECT_TRUE(dz.row(3).allFinite());
    }
}

TYPED_TEST(DynamicCapacityGate, GivesTiesToTheLowerIndexAndRoutesOneExpertAndNoTokens) {
    using S = TypeParam;
    const auto plan =
        routed<S>(DynamicCapacity{.p = 0.5, .num_fixed = 1}, moe::Matrix<S>::Zero(1, 5), 5, {});
    EXPECT_EQ(plan.of(0)[0].expert, 0);
    EXPECT_EQ(plan.of(0)[1].expert, 1);
    EXPECT_EQ(plan.of(0)[2].expert, 4);
    const auto one = routed<S>(DynamicCapacity{}, rows<S>({{-3}}), 1, training);
    ASSERT_EQ(one.num_assignments(), 1);
    EXPECT_NEAR(one.of(0)[0].weight, 1, 2e-6);
    gates_test::expect_no_tokens_route<S>(DynamicCapacity{}, 4, 4, training);
}

TYPED_TEST(DynamicCapacityGate, TakesPFromTheCallAndFromTheSequence) {
    using S = TypeParam;
    auto tokens = batch<S>(DynamicCapacity{.p = 1, .num_fixed = 2}, 8);
    tokens.context.dial.p = 0.7;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 6, 7}));
    const std::array<Index, 3> offsets{0, 2, 4};
    const std::array<double, 2> p{0.7, 0.0};
    tokens.context.dial.p_per_sequence = p;
    tokens.context.sequence_offsets = offsets;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.experts_of(1).size(), 5u);
    EXPECT_EQ(tokens.experts_of(3), (Experts{5, 6, 7}));
    tokens.context.dial = {.p = nan<double>};
    EXPECT_THROW(tokens.route(golden_logits<S>()), std::invalid_argument);
}

// ---- gradients ----

TEST(DynamicCapacityGradient, IsExact) {
    for (const Index num_fixed : {0, 1, 2})
        for (const double p : {0.0, 0.5, 1.0})
            for (const double jitter : {0.01, 0.03, 0.5})
                gates_test::expect_exact_gradient(
                    DynamicCapacity{.p = p, .num_fixed = num_fixed, .k = 2, .jitter = jitter},
                    close_logits<double>(6, 6, 9), 6, training);
}

TEST(DynamicCapacityGradient, OfASampleTakesItsFactorForOne) {
    const DynamicCapacity recipe{.p = 0.6, .num_fixed = 2, .jitter = 0.03, .sample = true};
    moe::Matrix<double> z = close_logits<double>(12, 7, 9);
    auto tokens = batch<double>(recipe, 7);
    tokens.context = training;
    tokens.route(z);
    const moe::Routing plan = tokens.routing;
    const auto c = derivatives<double>(plan.num_assignments());
    const auto dz = tokens.backward(z, c);
    const auto row = [&](Index t) { return Row(z.row(t).begin(), z.row(t).end()); };
    std::vector<Row> offsets;  // b = q + offset, whatever q does
    std::vector<Experts> chosen;
    const moe::CounterRandom random = tokens.call().random();
    bool is_scaled = false;
    for (Index t = 0; t < 12; ++t) {
        Experts experts;
        for (const moe::Assignment& a : plan.of(t))
            if (a.expert < 5) experts.push_back(a.expert);
        Row q = shares(row(t), 5, experts, recipe.jitter), left = row(t), offset(5, 0);
        left.resize(5);
        for (std::size_t i = 0; i < experts.size(); ++i) {
            const auto e = static_cast<std::size_t>(experts[i]);
            const auto best = std::max_element(left.begin(), left.end()) - left.begin();
            const double u = random.uniform(t, experts[i], static_cast<std::uint32_t>(2 * i + 1));
            const double r = experts[i] == best || u > 0.75 ? 1 : 0.3333;
            is_scaled |= r < 1;
            offset[e] = (r - 1) * q[e];
            left[e] = dead;
        }
        offsets.push_back(offset);
        chosen.push_back(experts);
    }
    EXPECT_TRUE(is_scaled);
    const auto loss = [&] {
        double sum = 0;
        for (Index t = 0; t < 12; ++t) {
            const auto at = static_cast<std::size_t>(t);
            Row worth = shares(row(t), 5, chosen[at], recipe.jitter);
            for (std::size_t e = 0; e < 5; ++e) worth[e] += offsets[at][e];
            const Row w = weights(row(t), 5, chosen[at], worth);
            for (Index a = plan.first(t); a < plan.first(t + 1); ++a) {
                const auto number = static_cast<std::size_t>(a);
                sum += c[number] * w[static_cast<std::size_t>(plan.assignments()[number].expert)];
            }
        }
        return sum;
    };
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz));
}

TEST(DynamicCapacityGradient, WithDroppedAssignmentsIsExact) {
    moe::Matrix<double> z = close_logits<double>(6, 6, 9);
    auto tokens = batch<double>(DynamicCapacity{.num_fixed = 2, .jitter = 0.03}, 6);
    const auto route = [&] {
        tokens.select(z);
        for (Index a = 0; a < tokens.routing.num_assignments(); a += 3)
            tokens.routing.set_dropped(a, moe::Dropped::capacity);
        tokens.routing.group();
        tokens.weigh(z);
    };
    route();
    const moe::Routing plan = tokens.routing;
    const auto c = derivatives<double>(plan.num_assignments());
    const auto dz = tokens.backward(z, c);
    const auto loss = [&] {
        route();
        double sum = 0;
        for (std::size_t a = 0; a < std::min(c.size(), tokens.routing.assignments().size()); ++a)
            sum += c[a] * tokens.routing.assignments()[a].weight;
        return sum;
    };
    const auto same_branch = [&] { return gates_test::same_choices(tokens.routing, plan); };
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}));
}

TEST(DynamicCapacityGradient, InsideALayerIsExact) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 6, .seed = 4}, moe::LinearRouter{},
        DynamicCapacity{.num_fixed = 1, .jitter = 0.2}, moe::Swiglu{.count = 3, .ffn_dim = 5},
        moe::Zero{}, moe::Swiglu{.count = 1, .ffn_dim = 3});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 6, .columns = 6, .scale = 0.01}));
}

TEST(DynamicCapacityLayer, ShrinksTheOutputByTheShareOfZeroExperts) {
    const auto make = [](const auto&... experts) {
        return moe::make_layer<double>(moe::Config{.model_dim = 6, .seed = 4}, moe::LinearRouter{},
                                       DynamicCapacity{.p = 0, .num_fixed = 1}, experts...);
    };
    auto layer = make(moe::Zero{.count = 2}, moe::Swiglu{.count = 1, .ffn_dim = 3});
    const auto x = moe::testing::random_matrix<double>(5, 6, 1);
    moe::Matrix<double> y(5, 6), whole(5, 6);
    moe::Workspace<double> ws;
    layer.forward(x, y, ws);
    moe::Routing full = ws.routing();
    for (Index t = 0; t < 5; ++t) {
        ASSERT_EQ(full.of(t).size(), 2u);
        EXPECT_NEAR(full.of(t)[0].weight + full.of(t)[1].weight, 1, 2e-6);
    }
    for (Index t = 0; t < 5; ++t) full.set_weight(full.first(t) + 1, 1);
    ws.edit_routing() = full;
    layer.apply(x, whole, ws);
    layer.forward(x, y, ws);
    for (Index t = 0; t < 5; ++t)
        EXPECT_TRUE(moe::testing::compare(
            y.row(t).eval(), (ws.routing().of(t)[1].weight * whole.row(t)).eval(), 1e-12));
}

// ---- settings, threads, memory ----

TEST(DynamicCapacitySettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(DynamicCapacity{.num_fixed = 7}, 8), "");
    EXPECT_EQ(refusal(DynamicCapacity{.num_fixed = 8}, 8),
              "moe::DynamicCapacity: num_fixed is 8, it must be in [0, 7], fewer than the experts "
              "of the layer");
    EXPECT_NE(refusal(DynamicCapacity{.num_fixed = -1}, 8), "");
    EXPECT_EQ(refusal(DynamicCapacity{.num_fixed = 2, .k = 7}, 8),
              "moe::DynamicCapacity: k is 7, it must be in [1, 6], the experts that are not fixed");
    EXPECT_EQ(refusal(DynamicCapacity{.jitter = -1}, 8),
              "moe::DynamicCapacity: jitter is -1, it must be finite and >= 0");
    EXPECT_EQ(refusal(DynamicCapacity{.p = nan<double>}, 8),
              "moe::DynamicCapacity: p is not a number");
    EXPECT_NE(refusal(DynamicCapacity{}, 0), "");
}

TYPED_TEST(DynamicCapacityGate, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    const auto z = close_logits<S>(1100, 33);
    const DynamicCapacity recipe{.p = 0.3, .num_fixed = 2, .sample = true};
    for (const bool trains : {false, true}) {
        const moe::Context context{.training = trains, .seed = 5};
        gates_test::expect_same_bits_for_any_thread_count<S>(recipe, z, 33, context);
        gates_test::expect_no_allocation<S>(recipe, z, 33, context);
    }
}

}  // namespace
