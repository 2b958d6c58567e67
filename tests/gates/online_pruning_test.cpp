// SPDX-License-Identifier: MIT
#include <moe/gates/online_pruning.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/io/routing.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/load.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::refusal;
using gates_test::routed;
using gates_test::rows;
using moe::Capacity;
using moe::CapacityLimit;
using moe::Context;
using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::OnlinePruning;
using moe::Routing;
using moe::TopK;
using moe::testing::random_matrix;

static_assert(moe::Recipe<OnlinePruning<TopK>>);
using OfTopK = moe::OnlinePruningModule<float, moe::TopKModule<float>>;
static_assert(moe::TrainableGate<OfTopK, float>);
static_assert(!OfTopK::per_token && moe::hooks::reads_k<OfTopK>);
static_assert(moe::hooks::multiplies_scores<OfTopK>);

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

TopK renormalised(Index k) { return {.k = k, .normalize_kept_only = true}; }

/// Which slots of each token are pruned.
std::vector<std::vector<bool>> pruned(const Routing& routing) {
    std::vector<std::vector<bool>> all(at(routing.num_tokens()));
    for (const moe::Assignment& a : routing.assignments())
        all[at(a.token)].push_back(a.dropped == Dropped::pruned);
    return all;
}

// ---- the rule ----

TEST(OnlinePruning, TakesBackWhatWeighsLittleBesideTheFirst) {
    const Matrix<double> z = random_matrix<double>(60, 6, 2, 2);
    for (const Index k : {1, 2, 4})
        for (const Index keep : {1, 2, 3, 9})
            for (const double ratio : {0.0, 0.3, 0.7, 1.0, 5.0}) {
                const Routing free = routed(TopK{.k = k}, z, 6, {});
                const Routing routing =
                    routed(OnlinePruning{renormalised(k), ratio, 0.02, keep}, z, 6, {});
                for (Index t = 0; t < 60; ++t) {
                    double left = 0;
                    for (Index i = 0; i < k; ++i) {
                        const double weight = free.of(t)[at(i)].weight;
                        const bool goes = i >= keep && weight < ratio * free.of(t)[0].weight;
                        EXPECT_EQ(pruned(routing)[at(t)][at(i)], goes);
                        if (!goes) left += weight;
                    }
                    for (Index i = 0; i < k; ++i) {
                        const moe::Assignment& a = routing.of(t)[at(i)];
                        EXPECT_EQ(a.expert, free.of(t)[at(i)].expert);
                        EXPECT_NEAR(a.weight,
                                    a.dropped == Dropped::no ? free.of(t)[at(i)].weight / left : 0,
                                    1e-14);
                    }
                }
            }
}

TEST(OnlinePruning, ByHand) {
    const double log2 = std::log(2.0);
    const auto z = rows<double>({{0, -log2, -3 * log2}, {0, -3 * log2, -log2}, {1, 1, 1}});
    const Routing routing = routed(OnlinePruning{renormalised(3), 0.3}, z, 3, {});
    EXPECT_EQ(pruned(routing),
              (std::vector<std::vector<bool>>{
                  {false, false, true}, {false, false, true}, {false, false, false}}));
    EXPECT_NEAR(routing.of(0)[0].weight, 2.0 / 3, 1e-15);
    EXPECT_NEAR(routing.of(0)[1].weight, 1.0 / 3, 1e-15);
    EXPECT_EQ(routing.of(0)[2].weight, 0);
    EXPECT_EQ(moe::load_stats(routing).tokens_per_expert, (std::vector<Index>{3, 2, 2}));
}

TEST(OnlinePruning, KeepsTheSharesIfTheGateDoesNotNormaliseAnew) {
    const Matrix<double> z = random_matrix<double>(20, 4, 2, 2);
    const Routing free = routed(TopK{.k = 2}, z, 4, {});
    const Routing routing = routed(OnlinePruning{TopK{.k = 2}, 0.6}, z, 4, {});
    EXPECT_LT(routing.num_kept(), 40);
    for (std::size_t a = 0; a < 40; ++a)
        EXPECT_EQ(routing.assignments()[a].weight, free.assignments()[a].weight);
}

TEST(OnlinePruning, ComparesWeightsOnTheSideWhereTheyAre) {
    const Matrix<double> z = random_matrix<double>(40, 4, 2, 2);
    const TopK outer{.k = 2, .score = moe::Score::sigmoid, .normalize = moe::Normalize::none};
    TopK inner = outer;
    inner.placement = moe::Placement::input;
    EXPECT_EQ(pruned(routed(OnlinePruning{outer, 0.9}, z, 4, {})),
              pruned(routed(OnlinePruning{inner, 0.9}, z, 4, {})));
    EXPECT_DOUBLE_EQ(moe::median_weight_ratio(routed(outer, z, 4, {})),
                     moe::median_weight_ratio(routed(inner, z, 4, {})));
}

TEST(OnlinePruning, PrunesHalfOfTheTokensAtTheMedian) {
    for (const Index tokens : {100, 101})
        for (const Index slot : {1, 2}) {
            const Matrix<double> z = random_matrix<double>(tokens, 8, 5, 2);
            const double ratio =
                moe::median_weight_ratio(routed(TopK{.k = slot + 1}, z, 8, {}), slot);
            EXPECT_GT(ratio, 0);
            EXPECT_LT(ratio, 1);
            const Routing routing =
                routed(OnlinePruning{renormalised(slot + 1), ratio, 0, slot}, z, 8, {});
            const Index gone = routing.num_assignments() - routing.num_kept();
            EXPECT_GE(gone, tokens / 2);
            EXPECT_LE(gone, (tokens + 1) / 2);
        }
}

TEST(MedianWeightRatio, IsTheMiddleOne) {
    Routing routing;
    const auto of = [&routing](std::vector<double> ratios, Index slot = 1) {
        routing.reset(static_cast<Index>(ratios.size()), 3);
        for (std::size_t t = 0; t < ratios.size(); ++t) {
            routing.add(static_cast<Index>(t), 0, 0.5);
            routing.add(static_cast<Index>(t), 1, 0.5 * ratios[t]);
        }
        routing.group();
        return moe::median_weight_ratio(routing, slot);
    };
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(of({0.25}), 0.25);
    EXPECT_EQ(of({0.5, 0.125, 0.25}), 0.25);
    EXPECT_EQ(of({0.5, 0.125, 1, 0.25}), 0.375);
    EXPECT_EQ(of({0.5, nan, nan, 0.25, 1}), 0.5);
    EXPECT_EQ(of({}), 0);
    EXPECT_EQ(of({0.5}, 2), 0);
    EXPECT_EQ(gates_test::refusal(OnlinePruning{TopK{.k = 1}}, 2), "");
    EXPECT_EQ(support::message([&] { of({0.5}, 0); }),
              "moe::median_weight_ratio: slot is 0, it must be >= 1");
}

// ---- who is protected ----

TEST(OnlinePruning, SparesTheTokensThatMatterMost) {
    const Matrix<double> z = random_matrix<double>(50, 6, 2, 2);
    std::vector<double> importance(50);
    for (Index t = 0; t < 50; ++t) importance[at(t)] = static_cast<double>(t * 7 % 50);
    Context context;
    context.token_importance = importance;
    for (const double fraction : {0.0, 0.02, 0.1, 0.11, 1.0}) {
        const double most = std::ceil(fraction * 50);
        const Routing routing =
            routed(OnlinePruning{renormalised(3), 1.0, fraction}, z, 6, context);
        for (Index t = 0; t < 50; ++t) {
            const bool is_spared = importance[at(t)] >= 50 - most;
            EXPECT_EQ(pruned(routing)[at(t)], (std::vector<bool>{false, !is_spared, !is_spared}));
        }
        // and nobody where nothing is known
        EXPECT_EQ(routed(OnlinePruning{renormalised(3), 1.0, fraction}, z, 6, {}).num_kept(), 50);
    }
}

TEST(OnlinePruning, SparesTheLowerOfEqualsNoNaNAndNoPadding) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const Matrix<double> z = random_matrix<double>(6, 4, 2, 2);
    const std::vector<double> importance{nan, 9, 5, 5, 5, 1};
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 0, 0};
    Context context;
    context.token_importance = importance;
    const auto spared = [&] {
        std::vector<Index> tokens;
        const auto gone = pruned(routed(OnlinePruning{renormalised(2), 1.0, 0.4}, z, 4, context));
        for (Index t = 0; t < 6; ++t)
            if (!gone[at(t)][1]) tokens.push_back(t);
        return tokens;
    };
    EXPECT_EQ(spared(), (std::vector<Index>{1, 2, 3}));  // ceil(2.4)
    context.padding = padding;
    EXPECT_EQ(spared(), (std::vector<Index>{2, 3}));  // 2 of 5, and not the padding
}

// ---- other gates, replay, gradients ----

TEST(OnlinePruning, LeavesWhatIsDroppedAlready) {
    // The first slot of tokens 1 to 3 has no place, so their second is the first that counts.
    const auto z = rows<double>({{3, 1, 0}, {3, 1, 0.9}, {3, 1, -2}, {3, 1, -2}});
    for (const auto overflow : {Capacity::Overflow::drop, Capacity::Overflow::pass_through}) {
        const Dropped reason =
            overflow == Capacity::Overflow::drop ? Dropped::capacity : Dropped::pass_through;
        const moe::WithCapacity inner{TopK{.k = 3},
                                      Capacity{.limit = CapacityLimit::constant(1),
                                               .priority = Capacity::Priority::k_major,
                                               .overflow = overflow,
                                               .unlimited_last = 2}};
        const Routing routing = routed(OnlinePruning{inner, 0.5}, z, 3, {});
        const auto reasons = [&routing](Index t) {
            std::vector<Dropped> all;
            for (const moe::Assignment& a : routing.of(t)) all.push_back(a.dropped);
            return all;
        };
        const Dropped no = Dropped::no, gone = Dropped::pruned;
        EXPECT_EQ(reasons(0), (std::vector<Dropped>{no, gone, gone}));
        EXPECT_EQ(reasons(1), (std::vector<Dropped>{reason, no, no}));
        EXPECT_EQ(reasons(2), (std::vector<Dropped>{reason, no, gone}));
    }
}

TEST(OnlinePruning, IsOfAnyGate) {
    const Matrix<double> z = random_matrix<double>(30, 5, 2, 2);
    const auto check = [&](const auto& inner, const Matrix<double>& logits) {
        const Routing free = routed(inner, logits, 5, {});
        const Routing routing = routed(OnlinePruning{inner, 0.6}, logits, 5, {});
        ASSERT_EQ(free.num_assignments(), routing.num_assignments());
        EXPECT_LT(routing.num_kept(), free.num_kept());
        for (Index t = 0; t < 30; ++t) EXPECT_FALSE(pruned(routing)[at(t)][0]);
    };
    check(moe::TopP{.p = 0.9}, z);
    check(moe::Noisy{TopK{.k = 2}, moe::GateNoise{.kind = moe::GateNoise::Kind::fixed}}, z);
    check(OnlinePruning{TopK{.k = 4}, 0.2}, z);
}

TEST(OnlinePruning, TwiceIsTheLargerRatio) {
    const Matrix<double> z = random_matrix<double>(30, 5, 2, 2);
    auto twice = batch<double>(OnlinePruning{OnlinePruning{TopK{.k = 4}, 0.2}, 0.6}, 5);
    twice.route(z);
    twice.route(z);
    EXPECT_EQ(twice.routing, routed(OnlinePruning{TopK{.k = 4}, 0.6}, z, 5, {}));
}

template <class Gate>
auto make(const Gate& gate) {
    return moe::make_layer<double>(moe::Config{.model_dim = 4, .seed = 4}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = 4, .ffn_dim = 3});
}

TEST(OnlinePruning, IsReplayedAndSaved) {
    const auto layer = make(OnlinePruning{renormalised(3), 0.8});
    const Matrix<double> x = random_matrix<double>(14, 4, 2, 2);
    moe::Workspace<double> ws, other;
    layer.head().route(x, ws);
    EXPECT_LT(ws.routing().num_kept(), ws.routing().num_assignments());
    const Routing saved = moe::load_routing(moe::save_routing(ws.routing()));
    EXPECT_EQ(saved, ws.routing());
    layer.head().reweigh(x, saved, other);
    EXPECT_EQ(other.routing(), ws.routing());
}

TEST(OnlinePruning, GradientsAreExact) {
    for (const bool anew : {false, true}) {
        const TopK inner{.k = 3, .normalize_kept_only = anew};
        gates_test::expect_exact_gradient(OnlinePruning{inner, 0.5},
                                          random_matrix<double>(10, 5, 3, 1), 5);
        EXPECT_TRUE(moe::testing::check_gradients(make(OnlinePruning{inner, 0.8}),
                                                  {.rows = 9, .columns = 4, .scale = 0.01}));
    }
}

// ---- degenerate batches, settings, threads, memory ----

TEST(OnlinePruning, ShowsANaNAndKeepsMasks) {
    constexpr double dead = -std::numeric_limits<double>::infinity();
    Matrix<double> z = random_matrix<double>(4, 3, 2, 2);
    z(0, 1) = std::numeric_limits<double>::quiet_NaN();
    z.row(1).setConstant(dead);
    z(2, 0) = z(2, 2) = dead;
    const Routing routing = routed(OnlinePruning{renormalised(2), 0.9}, z, 3, {});
    for (const moe::Assignment& a : routing.of(0)) {
        EXPECT_TRUE(std::isnan(a.weight));
        EXPECT_EQ(a.dropped, Dropped::no);
    }
    EXPECT_TRUE(routing.of(1).empty());
    ASSERT_EQ(routing.of(2).size(), 1u);
    EXPECT_EQ(routing.of(2)[0].weight, 1);
}

TEST(OnlinePruning, OfNoTokensAndOfOneExpert) {
    gates_test::expect_no_tokens_route<double>(OnlinePruning{renormalised(2)}, 3, 3, {});
    const auto z = rows<double>({{1}, {-2}});
    EXPECT_EQ(routed(OnlinePruning{renormalised(1), 100.0}, z, 1, {}).num_kept(), 2);
    EXPECT_EQ(routed(OnlinePruning{renormalised(3), 1.0},
                     Matrix<double>(Matrix<double>::Zero(2, 3)), 3, {})
                  .num_kept(),
              6);  // equal weights are not below
}

TEST(OnlinePruning, SaysWhetherItIsCausal) {
    EXPECT_FALSE(gates_test::build<double>(OnlinePruning{TopK{.k = 2}}, 4).is_causal());
    EXPECT_TRUE(gates_test::build<double>(OnlinePruning{TopK{.k = 2}, 0.5, 0.0}, 4).is_causal());
    EXPECT_FALSE(
        gates_test::build<double>(OnlinePruning{moe::WithCapacity{TopK{.k = 2}}, 0.5, 0.0}, 4)
            .is_causal());
}

TEST(OnlinePruning, ChecksItsSettingsWithASentence) {
    const auto said = [](double ratio, double fraction = 0, Index keep = 1) {
        return refusal(OnlinePruning{TopK{.k = 2}, ratio, fraction, keep}, 4);
    };
    EXPECT_EQ(said(0), "");
    EXPECT_EQ(said(-1), "moe::OnlinePruning: ratio is -1, it must be finite and >= 0");
    EXPECT_NE(said(std::numeric_limits<double>::quiet_NaN()), "");
    EXPECT_NE(said(std::numeric_limits<double>::infinity()), "");
    EXPECT_EQ(said(0.5, 1.5),
              "moe::OnlinePruning: protected_fraction is 1.5, it must be in [0, 1]");
    EXPECT_EQ(said(0.5, 0, 0), "moe::OnlinePruning: keep is 0, it must be >= 1");
}

template <class S>
class OnlinePruningOfScalar : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(OnlinePruningOfScalar, Scalars);

TYPED_TEST(OnlinePruningOfScalar, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    const auto z = random_matrix<S>(700, 9, 4, 1);
    std::vector<double> importance(700);
    for (std::size_t t = 0; t < 700; ++t) importance[t] = static_cast<double>(t * 13 % 31);
    Context context;
    context.token_importance = importance;
    gates_test::expect_same_bits_for_any_thread_count<S>(OnlinePruning{renormalised(3)}, z, 9,
                                                         context);
    gates_test::expect_no_allocation<S>(OnlinePruning{renormalised(3)}, z, 9, context);
}

}  // namespace
