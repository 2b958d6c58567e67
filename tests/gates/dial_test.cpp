// SPDX-License-Identifier: MIT
// What a call may turn at a gate, every gate does or a layer refuses.
#include <cmath>
#include <cstddef>
#include <cstdint>
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

/// A gate in a layer gets a context that the layer has checked. Called by hand, it checks what it
/// would look up, before it reads past an end.
TEST(ContextOfEveryGate, IsCheckedInACallByHandToo) {
    const std::vector<Index> right{0, 10, 24}, late{1, 10, 24}, early{0, 10, 20},
        falling{0, 30, 24};
    const std::vector<std::uint8_t> masks(2 * experts, 1), few_masks(experts, 1), padding(3);
    const std::vector<double> factors(2 * experts, 1), few_factors(experts, 1), importance(3, 1);
    std::vector<Context> wrong;
    for (const auto* offsets : {&late, &early, &falling}) {
        wrong.push_back({.sequence_offsets = *offsets});
        wrong.back().dial.allowed_per_sequence = masks;
        wrong.back().dial.forced_per_sequence = masks;
        wrong.back().dial.gate_multiplier_per_sequence = factors;
    }
    wrong.emplace_back().dial.allowed_per_sequence = masks;  // no sequences
    wrong.emplace_back().dial.forced_per_sequence = masks;
    wrong.emplace_back().dial.gate_multiplier_per_sequence = factors;
    for (int field = 0; field < 3; ++field) {  // of too few sequences
        Context& context = wrong.emplace_back(Context{.sequence_offsets = right});
        if (field == 0) context.dial.allowed_per_sequence = few_masks;
        if (field == 1) context.dial.forced_per_sequence = few_masks;
        if (field == 2) context.dial.gate_multiplier_per_sequence = few_factors;
    }
    wrong.push_back({.padding = padding});
    wrong.push_back({.token_importance = importance});
    wrong.push_back({.allowed = padding});
    wrong.push_back({.forced = padding});
    for_each_gate([&](const char* name, const auto& recipe) {
        const auto layer = make(recipe);
        const auto& gate = layer.gate();
        auto grad = gate;
        Matrix<double> z =
            moe::testing::random_matrix<double>(tokens, layer.head().num_logits(), 3, 2);
        Matrix<double> dz = Matrix<double>::Zero(z.rows(), z.cols());
        for (std::size_t i = 0; i < wrong.size(); ++i) {
            SCOPED_TRACE(std::string(name) + ", context " + std::to_string(i));
            Context& context = wrong[i];
            moe::Workspace<double> ws, by_hand;
            context.experts = layer.head().facts();
            EXPECT_THROW(layer.head().route(Matrix<double>(tokens, 4), ws, context),
                         std::invalid_argument);
            const moe::Call<double> call{context, by_hand};
            moe::Routing routing;
            routing.reset(tokens, experts);
            EXPECT_THROW(moe::hooks::select<double>(gate, z, routing, call), std::invalid_argument);
            routing.reset(tokens, experts);
            routing.group();
            EXPECT_THROW(moe::hooks::weigh<double>(gate, z, routing, call), std::invalid_argument);
            EXPECT_THROW(moe::hooks::backward<double>(gate, z, routing, {{}, {}}, dz, grad, call),
                         std::invalid_argument);
        }
    });
}

TEST(ContextOfABank, IsCheckedInACallByHandToo) {
    const auto layer = make(moe::TopK{.k = 2});
    const Matrix<double> x = moe::testing::random_matrix<double>(tokens, 4, 2, 3);
    Matrix<double> y(tokens, 4);
    moe::Workspace<double> ws, other;
    layer.route(x, ws);
    const std::vector<double> factors(2 * experts, 1);
    const std::vector<Index> late{1, 10, 24}, early{0, 10, 20}, falling{0, 30, 24};
    const auto apply = [&](const std::vector<Index>& offsets) {
        Context context{.sequence_offsets = offsets};
        context.dial.gate_multiplier_per_sequence = factors;
        layer.bank().apply(x, ws.routing(), y, other, context);
    };
    for (const auto& offsets : {late, early, falling, {}})
        EXPECT_THROW(apply(offsets), std::invalid_argument);
    EXPECT_NO_THROW(apply({0, 10, 24}));
}

}  // namespace
