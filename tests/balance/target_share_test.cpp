// SPDX-License-Identifier: MIT
#include <moe/balance/target_share.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/balance/load_sum.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace target_share_test {
namespace {

using moe::Index;
using moe::LoadSum;
using moe::TargetShareUpdate;
using Bias = std::vector<double>;
using Load = std::vector<double>;

static_assert(moe::BalanceController<const TargetShareUpdate>);
static_assert(moe::BalanceController<const TargetShareUpdate, double>);

TEST(TargetShare, MovesByTheMissingShareOfTheLoad) {
    // shares 1/8 4/8 3/8; missing 1/2 - 1/8 = 3/8, 1/4 - 4/8 = -1/4, 1/4 - 3/8 = -1/8; times 2
    Bias bias{0, 1, 2};
    TargetShareUpdate{.rate = 2, .target = {0.5, 0.25, 0.25}}.update(std::span(bias),
                                                                     Load{1, 4, 3});
    EXPECT_EQ(bias, (Bias{0.75, 0.5, 1.75}));
}

TEST(TargetShare, LeavesExpertsThatAreNotSteered) {
    // expert 1 is free: of 8 assignments the two others should get a quarter each
    const std::vector<moe::ExpertFacts> facts{{}, {.is_free = true}, {}};
    const auto controller = TargetShareUpdate::of_costly(facts, 0.5, 1);
    EXPECT_EQ(controller.target, (Bias{0.25, 0, 0.25}));
    std::vector<float> bias{0, 1, 2};
    controller.update(std::span(bias), Load{1, 4, 3});
    EXPECT_EQ(bias, (std::vector<float>{0.125F, 1, 1.875F}));
    const double nan = std::numeric_limits<double>::quiet_NaN();  // is not looked at
    TargetShareUpdate{.rate = 1, .target = {0.25, nan, 0.25}, .steered = {1, 0, 1}}.update(
        std::span(bias), Load{1, 4, 3});
    EXPECT_EQ(bias, (std::vector<float>{0.25F, 1, 1.75F}));
}

TEST(TargetShare, OfOneOverEIsTheProportionalUpdate) {
    const Load load{3, 1, 0, 8, 2};
    Bias bias(5, 0.0), proportional(5, 0.0);
    TargetShareUpdate{.rate = 0.5, .target = Bias(5, 0.2)}.update(std::span(bias), load);
    moe::ProportionalUpdate{.rate = 0.1}.update(std::span(proportional), load);
    EXPECT_TRUE(moe::testing::compare(bias, proportional, 1e-15));
}

TEST(TargetShare, DoesNotMoveAtTheTargetsNorWithoutLoad) {
    std::vector<float> bias{1, 2, 3};
    const TargetShareUpdate controller{.rate = 9, .target = {0.5, 0.25, 0.25}};
    controller.update(std::span(bias), Load{6, 3, 3});
    controller.update(std::span(bias), Load{0, 0, 0});
    EXPECT_EQ(bias, (std::vector<float>{1, 2, 3}));
    TargetShareUpdate{.rate = 1, .target = {}}.update(std::span<float>(), {});
}

TEST(TargetShare, CountsTheLoadOfAllMicroBatchesAndProcesses) {
    // The sum is 4 4 0 0 here and 0 0 6 2 there: shares 1/4 1/4 3/8 1/8.
    LoadSum here(4), there(4), all(4);
    here.add(std::vector<Index>{3, 4, 0, 0});
    here.add(std::vector<Index>{1, 0, 0, 0});
    there.add(std::vector<double>{0, 0, 6, 2});
    all.add(here);
    all.add(there.counts());
    Bias bias(4, 0.0);
    TargetShareUpdate{.rate = 8, .target = Bias(4, 0.25)}.update(std::span(bias), all.counts());
    EXPECT_EQ(bias, (Bias{0, 0, -1, 1}));
}

TEST(TargetShare, SteersTheMeanNumberOfCostlyExpertsPerToken) {
    // 4 experts and 2 copies, 3 slots: 2 of them are to be spent on experts, whatever the router
    // would like, and equally on all four; copies share the third as the scores say.
    auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 8, .seed = 3}, moe::LinearRouter{.bias = true},
        moe::TopK{.k = 3, .score = moe::Score::softmax, .selection_bias = true},
        moe::Mlp{.count = 4, .ffn_dim = 2}, moe::Copy{.count = 2});
    layer.router().bias(0, 1) = 1;
    layer.router().bias(0, 4) = 2;
    const auto controller = TargetShareUpdate::of_costly(layer.head().facts(), 2.0 / 3, 0.2);
    moe::Workspace<double> ws;
    LoadSum last(6);
    for (std::uint64_t step = 0; step < 120; ++step) {
        layer.route(moe::testing::random_matrix<double>(64, 8, step, 2), ws);
        if (step >= 60) last.add(ws.routing());
        moe::update_bias(layer, ws.routing(), controller);
    }
    const auto counts = last.counts();
    const double total = 60 * 64 * 3;
    for (std::size_t e = 0; e < 4; ++e) EXPECT_NEAR(counts[e] / total, 1.0 / 6, 0.01) << e;
    EXPECT_GT(counts[4], 1.2 * counts[5]);
    EXPECT_EQ(layer.gate().bias()(0, 4), 0);
    EXPECT_EQ(layer.gate().bias()(0, 5), 0);
}

TEST(TargetShareErrors, AreSentencesAndChangeNothing) {
    std::vector<float> bias{1, 2};
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const auto said = [&](const TargetShareUpdate& update, const Load& load = {1, 3}) {
        return support::message([&] { update.update(std::span(bias), load); });
    };
    EXPECT_EQ(said({.target = {0.5}}),
              "moe::TargetShareUpdate: target has 1 entries and steered 0, the bias has 2");
    EXPECT_NE(said({.target = {0.5, 0.5}, .steered = {1}}), "");
    EXPECT_EQ(said({.target = {0.5, nan}}),
              "moe::TargetShareUpdate: the target of expert 1 is nan, it must be in [0, 1], a "
              "share of all assignments");
    EXPECT_NE(said({.target = {-0.1, 0.5}}), "");
    EXPECT_EQ(said({.target = {0.75, 0.75}}),
              "moe::TargetShareUpdate: the targets sum to 1.5, they are shares of all assignments "
              "and sum to 1 at most");
    EXPECT_EQ(said({.rate = nan, .target = {0.5, 0.5}}),
              "moe::TargetShareUpdate: rate is nan, it must be finite");
    for (const Load& load : {Load{1}, Load{1, -1}, Load{1, nan}})
        EXPECT_NE(said({.target = {0.5, 0.5}}, load), "");
    EXPECT_EQ(bias, (std::vector<float>{1, 2}));

    const std::vector<moe::ExpertFacts> free{{.is_free = true}}, costly(2);
    EXPECT_EQ(support::message([&] { TargetShareUpdate::of_costly(free, 0.5); }),
              "moe::TargetShareUpdate: none of the 1 experts costs anything, so there is nothing "
              "to steer");
    EXPECT_EQ(support::message([&] { TargetShareUpdate::of_costly(costly, 1.5); }),
              "moe::TargetShareUpdate: share is 1.5, it must be in [0, 1]");
}

}  // namespace
}  // namespace target_share_test
