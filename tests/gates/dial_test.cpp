// SPDX-License-Identifier: MIT
// What a call may turn at a gate, every gate does or a layer refuses.
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/auction.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/dense_to_sparse.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/hybrid_entropy.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/gates/min_p.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/online_pruning.hpp>
#include <moe/gates/ranks.hpp>
#include <moe/gates/relu.hpp>
#include <moe/gates/sequence_budget.hpp>
#include <moe/gates/sinkhorn.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/threshold.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;

constexpr Index tokens = 24, experts = 5;

/// f(name, recipe) for every gate.
template <class F>
void for_each_gate(F&& f) {
    using moe::TopK;
    f("Auction", moe::Auction{});
    f("DenseToSparse", moe::DenseToSparse{});
    f("DynamicCapacity", moe::DynamicCapacity{});
    f("ExpertChoice", moe::ExpertChoice{});
    f("GShardTop2", moe::GShardTop2{});
    f("HybridEntropy", moe::HybridEntropy{});
    f("KeepAny", moe::KeepAny{TopK{.k = 2}});
    f("MinP", moe::MinP{});
    f("Noisy", moe::Noisy{TopK{.k = 2}});
    f("NoisyTopP", moe::Noisy{moe::TopP{}});
    f("OnlinePruning", moe::OnlinePruning{TopK{.k = 3}});
    f("Ranks", moe::Ranks{{0, 2}});
    f("Relu", moe::Relu{});
    f("SequenceBudget", moe::SequenceBudget{});
    f("Sinkhorn", moe::Sinkhorn{.k = 2});
    f("SparseMixer", moe::SparseMixer{});
    f("Threshold", moe::Threshold{});
    f("TopAny", moe::TopAny{});
    f("TopK", TopK{.k = 2});
    f("TopP", moe::TopP{});
    f("WithCapacity", moe::WithCapacity{TopK{.k = 2}});
    f("WithCapacityTopP", moe::WithCapacity{moe::TopP{}});
}

template <class Gate>
auto make(const Gate& gate) {
    return moe::make_layer<double>(moe::Config{.model_dim = 4, .seed = 4}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = experts, .ffn_dim = 3});
}

/// What a layer with this gate says to a context; "" if it takes it, and then the routing.
template <class Layer>
std::string said(const Layer& layer, const Context& context, moe::Routing* routing = nullptr) {
    const Matrix<double> x = moe::testing::random_matrix<double>(tokens, 4, 2, 3);
    moe::Workspace<double> ws;
    return support::message([&] {
        layer.head().route(x, ws, context);
        if (routing != nullptr) *routing = ws.routing();
    });
}

/// @param says  says(gate): whether the gate says that it reads the field
template <class Says>
void expect_read_or_refused(Says&& says, const char* field, const Context& low,
                            const Context& high) {
    for_each_gate([&](const char* name, const auto& recipe) {
        const auto layer = make(recipe);
        moe::Routing few, many;
        const std::string answer = said(layer, low, &few);
        if (says(layer.gate())) {
            EXPECT_EQ(answer, "") << name;
            EXPECT_EQ(said(layer, high, &many), "") << name;
            EXPECT_LT(few.num_assignments(), many.num_assignments()) << name << " reads " << field;
        } else {
            EXPECT_NE(answer.find(field), std::string::npos) << name << ": " << answer;
        }
    });
}

TEST(DialOfEveryGate, KIsReadOrRefused) {
    Context low, high;
    low.dial.k = 1;
    high.dial.k = 2;
    expect_read_or_refused(
        [](const auto& gate) { return moe::hooks::reads_k<std::remove_cvref_t<decltype(gate)>>; },
        "dial.k", low, high);
}

TEST(DialOfEveryGate, PIsReadOrRefused) {
    Context low, high;
    low.dial.p = 0.1;
    high.dial.p = 0.95;
    expect_read_or_refused(
        [](const auto& gate) { return moe::hooks::reads_p<std::remove_cvref_t<decltype(gate)>>; },
        "dial.p", low, high);
}

/// With scores multiplied by m, weights of a token stay proportional to m times what they were.
TEST(DialOfEveryGate, MultipliersOfScoresAreInTheWeightsOrRefused) {
    const std::vector<double> multiplier{0.5, 2, 1, 3, 0.25};
    Context before;
    before.gate_multiplier = multiplier;
    before.dial.multiplier_order = moe::MultiplierOrder::before_normalization;
    for_each_gate([&](const char* name, const auto& recipe) {
        const auto layer = make(recipe);
        using Gate = std::remove_cvref_t<decltype(layer.gate())>;
        moe::Routing plain, multiplied;
        ASSERT_EQ(said(layer, {}, &plain), "") << name;
        const std::string answer = said(layer, before, &multiplied);
        if (!moe::hooks::multiplies_scores<Gate>) {
            EXPECT_NE(answer.find("multiplier_order"), std::string::npos) << name << answer;
            return;
        }
        EXPECT_EQ(answer, "") << name;
        ASSERT_GT(multiplied.num_assignments(), 0) << name;
        const std::string called = name;
        if (called == "KeepAny" || called == "OnlinePruning") return;  // weights choose there
        ASSERT_EQ(plain.num_assignments(), multiplied.num_assignments()) << name;
        Index changed = 0;
        for (Index t = 0; t < tokens; ++t) {
            double factor = 0;  // the token's: of the first
            for (std::size_t i = 0; i < plain.of(t).size(); ++i) {
                const moe::Assignment &was = plain.of(t)[i], &is = multiplied.of(t)[i];
                ASSERT_EQ(was.expert, is.expert) << name;
                if (was.weight == 0) continue;
                const double ratio =
                    is.weight / (was.weight * multiplier[static_cast<std::size_t>(is.expert)]);
                if (factor == 0) factor = ratio;
                EXPECT_NEAR(ratio, factor, 1e-12 * factor) << name;
                changed += is.weight != was.weight;
            }
        }
        EXPECT_GT(changed, 0) << name;
    });
}

}  // namespace
