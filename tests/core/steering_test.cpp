// SPDX-License-Identifier: MIT
// What a context does to logits and weights, alone and through whole layers.
#include <moe/core/steering.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>

#include "seams/check.hpp"
#include "support/message.hpp"

namespace steering_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::MultiplierOrder;
using moe::Normalize;
using moe::OffsetUnit;
using moe::Score;
using moe::TopK;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 7, dim = 5, experts = 4;
const std::vector<Index> sequences{0, 3, 3, 7};

template <class Gate>
auto make(const Gate& gate) {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = 2, .ffn_dim = 4},
                                   moe::Copy{.count = 2});
}
Matrix<double> batch() { return random_matrix<double>(tokens, dim, 1); }
Matrix<double> upstream() { return random_matrix<double>(tokens, dim, 2); }

/// Gradients of a layer under a context, at x, at the parameters, and at `values` of the context
/// whose gradient arrives in `claimed`.
template <class Gate>
void expect_exact(const Gate& gate, const Context& context, std::span<double> values = {},
                  std::span<const double> claimed = {}) {
    auto layer = make(gate);
    Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, upstream()) + 0.5 * moe::z_loss(ws, 0);
    };
    loss();
    const auto options = seams::options(seams::SameChoices(ws));
    moe::z_loss(ws, 0.5);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, upstream(), dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
    if (!values.empty()) {
        EXPECT_TRUE(moe::testing::check_gradient(loss, values, claimed, options));
    }
}

TEST(Steering, OffsetsOfTheCallAndOfSequencesAddUp) {
    const auto layer = make(TopK{.k = 2});
    const std::vector<double> all{0.5, 0, -1, 0.25}, each{1, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 2};
    Workspace<double> ws, plain;
    layer.route(batch(), plain);
    layer.route(batch(), ws,
                {.sequence_offsets = sequences,
                 .logit_offset = all,
                 .dial = {.logit_offset_per_sequence = each}});
    for (Index t = 0; t < tokens; ++t)
        for (Index e = 0; e < experts; ++e)
            EXPECT_DOUBLE_EQ(ws.logits()(t, e),
                             plain.logits()(t, e) +
                                 (all[static_cast<std::size_t>(e)] +
                                  each[static_cast<std::size_t>((t < 3 ? 0 : 2) * experts + e)]));
}

TEST(Steering, OffsetsInStandardDeviationsAreThoseOfTheRow) {
    const auto layer = make(TopK{.k = 2});
    const std::vector<double> offset{0.5, 0, -1, 0};
    Workspace<double> ws, plain;
    layer.route(batch(), plain);
    layer.route(batch(), ws,
                {.logit_offset = offset, .dial = {.offset_unit = OffsetUnit::row_std}});
    for (Index t = 0; t < tokens; ++t) {
        const Eigen::ArrayXd z = plain.logits().row(t).transpose();
        const double std = std::sqrt((z - z.mean()).square().mean());
        for (Index e = 0; e < experts; ++e)
            EXPECT_NEAR(ws.logits()(t, e), z(e) + offset[static_cast<std::size_t>(e)] * std, 1e-14);
    }
}

TEST(Steering, OffsetsHaveExactGradients) {
    for (const OffsetUnit unit : {OffsetUnit::logits, OffsetUnit::row_std}) {
        std::vector<double> all{0.3, -0.2, 0.5, 0.1}, dall(experts, 0);
        std::vector<double> each{0.1, 0, 0.2, 0, 9, 9, 9, 9, 0.3, 0.1, 0, 0}, deach(12, 0);
        moe::ContextGradients gradients{.logit_offset = dall, .logit_offset_per_sequence = deach};
        const Context context{.sequence_offsets = sequences,
                              .logit_offset = all,
                              .dial = {.offset_unit = unit, .logit_offset_per_sequence = each},
                              .gradients = &gradients};
        expect_exact(TopK{.k = 2, .normalize = Normalize::none}, context, all, dall);
        std::fill(deach.begin(), deach.end(), 0);
        expect_exact(TopK{.k = 2, .normalize = Normalize::none}, context, each, deach);
        for (std::size_t i = experts; i < 2 * experts; ++i) EXPECT_EQ(deach[i], 0) << "no tokens";
    }
}

TEST(Steering, EqualLogitsHaveNoSpreadAndFiniteGradients) {
    Matrix<double> z = Matrix<double>::Constant(1, 4, 2), dz = Matrix<double>::Ones(1, 4);
    const std::vector<double> offset{1, 2, 3, -4};
    const Context context{.logit_offset = offset, .dial = {.offset_unit = OffsetUnit::row_std}};
    moe::Buffer<double> raw;
    moe::View<double> logits(z.data(), 1, 4, Eigen::OuterStride<>(4));
    moe::View<double> dlogits(dz.data(), 1, 4, Eigen::OuterStride<>(4));
    moe::detail::steer<double>(logits, context, logits.cols(), &raw);
    EXPECT_TRUE((z.array() == 2).all());
    moe::detail::steer_backward<double>(dlogits, logits, context, logits.cols(), raw);
    EXPECT_TRUE((dz.array() == 1).all());
}

// ---- masks and forces ----

TEST(Steering, ASequenceMayForbidExperts) {
    const std::vector<std::uint8_t> each{1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0};
    const Context context{.sequence_offsets = sequences, .dial = {.allowed_per_sequence = each}};
    const auto layer = make(TopK{.k = 3});
    Workspace<double> ws;
    layer.route(batch(), ws, context);
    for (const auto& a : ws.routing().assignments()) EXPECT_NE(a.expert, a.token < 3 ? 1 : 3);
    EXPECT_EQ(ws.routing().num_assignments(), 3 * tokens);
    expect_exact(TopK{.k = 3}, context);
    expect_exact(moe::TopP{.p = 0.6}, context);
}

TEST(Steering, ForcedExpertsAreChosenFirstWhateverTheirLogit) {
    const std::vector<std::uint8_t> forced{0, 1, 0, 1};
    // A selection bias, groups, and scores that saturate must not keep them out.
    for (const TopK& gate :
         {TopK{.k = 2}, TopK{.k = 3, .score = Score::sigmoid},
          TopK{.k = 2, .num_groups = 2, .groups_kept = 1},
          TopK{.k = 2, .score = Score::sigmoid, .num_groups = 2, .groups_kept = 2},
          TopK{.k = 2, .tie_break = moe::TieBreak::torch_cpu},
          TopK{.k = 2, .score = Score::sigmoid, .selection_bias = true}}) {
        auto layer = make(gate);
        if (gate.selection_bias) layer.gate().bias()(0, 0) = 100;
        Workspace<double> ws;
        layer.route(batch(), ws, {.forced = forced});
        for (Index t = 0; t < tokens; ++t) {
            const auto own = ws.routing().of(t);
            EXPECT_EQ(own[0].expert % 2, 1);
            if (gate.groups_kept == gate.num_groups) {
                EXPECT_EQ(own[0].expert + own[1].expert, 1 + 3);
            }
        }
        expect_exact(gate, {.forced = forced});
    }
}

TEST(Steering, AForcedExpertWeighsLikeTheBestOfTheOthers) {
    const std::vector<std::uint8_t> forced{0, 1, 0, 0};
    const auto layer = make(TopK{.k = 2});
    Workspace<double> ws, plain;
    layer.route(batch(), plain);
    layer.route(batch(), ws, {.forced = forced});
    for (Index t = 0; t < tokens; ++t) {
        const auto own = ws.routing().of(t), before = plain.routing().of(t);
        EXPECT_EQ(own[0].expert, 1);
        if (before[0].expert == 1) {
            EXPECT_EQ(own[0].weight, before[0].weight) << "was the best already";
        } else {
            EXPECT_EQ(own[1].expert, before[0].expert);
            EXPECT_NEAR(own[0].weight, 0.5, 1e-12);
        }
    }
    expect_exact(TopK{.k = 2, .normalize = Normalize::none}, {.forced = forced});
    expect_exact(moe::TopP{.p = 0.7}, {.forced = forced});
}

TEST(Steering, WhatIsNotAllowedIsNotForced) {
    const std::vector<std::uint8_t> forced{0, 1, 0, 1}, allowed{1, 0, 1, 1};
    const auto layer = make(TopK{.k = 2});
    Workspace<double> ws;
    layer.route(batch(), ws, {.allowed = allowed, .forced = forced});
    for (const auto& a : ws.routing().assignments()) EXPECT_NE(a.expert, 1);
    for (Index t = 0; t < tokens; ++t) EXPECT_EQ(ws.routing().of(t)[0].expert, 3);
}

TEST(Steering, ForcingAllOrASequenceForcesNoOneElse) {
    const auto layer = make(TopK{.k = 2});
    const std::vector<std::uint8_t> all(experts, 1), each{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0};
    Workspace<double> ws, plain;
    layer.route(batch(), plain);
    layer.route(batch(), ws, {.forced = all});
    EXPECT_TRUE(ws.routing() == plain.routing());
    layer.route(batch(), ws,
                {.sequence_offsets = sequences, .dial = {.forced_per_sequence = each}});
    for (Index t = 0; t < tokens; ++t) {
        const auto own = ws.routing().of(t), before = plain.routing().of(t);
        if (t < 3) {
            EXPECT_EQ(own[0].expert, 3);
        } else {
            EXPECT_TRUE(std::equal(own.begin(), own.end(), before.begin(), before.end()));
        }
    }
}

// ---- multipliers ----

TEST(Steering, MultipliersOfTheCallAndOfSequencesMultiply) {
    std::vector<double> all{0.5, 2, -1, 1}, dall(experts, 0);
    std::vector<double> each{1, 3, 1, 1, 9, 9, 9, 9, 0.5, 1, 1, 2}, deach(12, 0);
    moe::ContextGradients gradients{.gate_multiplier = dall, .gate_multiplier_per_sequence = deach};
    const Context context{.sequence_offsets = sequences,
                          .gate_multiplier = all,
                          .dial = {.gate_multiplier_per_sequence = each},
                          .gradients = &gradients};
    const auto layer = make(TopK{.k = 2});
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), expected(tokens, dim);
    layer.forward(batch(), y, ws, context);
    Workspace<double> edited;
    layer.route(batch(), edited);
    for (Index a = 0; a < edited.routing().num_assignments(); ++a) {
        const moe::Assignment own = edited.routing().assignments()[static_cast<std::size_t>(a)];
        const auto e = static_cast<std::size_t>(own.expert);
        edited.edit_routing().set_weight(a,
                                         own.weight * (all[e] * each[(own.token < 3 ? 0 : 8) + e]));
    }
    layer.apply(batch(), expected, edited);
    EXPECT_TRUE(same_bits(y, expected));
    expect_exact(TopK{.k = 2}, context, all, dall);
    std::fill(deach.begin(), deach.end(), 0);
    expect_exact(TopK{.k = 2}, context, each, deach);
}

TEST(Steering, MultipliersMayComeBeforeNormalization) {
    std::vector<double> multiplier{0.5, 64, 0, 2}, dmultiplier(experts, 0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    const Context context{.gate_multiplier = multiplier,
                          .dial = {.multiplier_order = MultiplierOrder::before_normalization},
                          .gradients = &gradients};
    const auto layer = make(TopK{.k = 3});
    Workspace<double> ws, plain;
    layer.route(batch(), plain);
    layer.route(batch(), ws, context);
    for (Index t = 0; t < tokens; ++t) {
        double sum = 0;
        for (const auto& a : plain.routing().of(t))
            sum += a.weight * multiplier[static_cast<std::size_t>(a.expert)];
        for (std::size_t i = 0; i < 3; ++i) {
            const auto& own = plain.routing().of(t)[i];
            EXPECT_EQ(ws.routing().of(t)[i].expert, own.expert) << "who is chosen stays";
            EXPECT_NEAR(ws.routing().of(t)[i].weight,
                        own.weight * multiplier[static_cast<std::size_t>(own.expert)] / sum, 1e-14);
        }
    }
    Matrix<double> y(tokens, dim), expected(tokens, dim);
    layer.apply(batch(), y, ws);
    Workspace<double> bare;
    layer.bank().apply(batch(), ws.routing(), expected, bare);
    EXPECT_TRUE(same_bits(y, expected)) << "experts are not multiplied once more";
}

TEST(Steering, MultipliersBeforeNormalizationHaveExactGradients) {
    for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected,
                              Score::raw, Score::sqrt_softplus})
        for (const Normalize normalize :
             {Normalize::none, Normalize::plain, Normalize::add_epsilon, Normalize::clamp})
            for (const bool ones : {false, true}) {
                std::vector<double> multiplier{0.5, 3, 1.5, 2}, dmultiplier(experts, 0);
                moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
                const Context context{
                    .gate_multiplier = multiplier,
                    .dial = {.multiplier_order = MultiplierOrder::before_normalization},
                    .gradients = &gradients};
                SCOPED_TRACE(static_cast<int>(score));
                SCOPED_TRACE(static_cast<int>(normalize));
                expect_exact(TopK{.k = 2,
                                  .score = score,
                                  .normalize = normalize,
                                  .epsilon = 0.3,
                                  .ones = ones},
                             context, multiplier, dmultiplier);
            }
}

// ---- what a gate does not have ----

struct First {
    void select(moe::In<double> logits, moe::Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t) routing.add(t, 0);
    }
    void backward(moe::In<double>, const moe::Routing&, const moe::WeightGradients<double>&,
                  moe::Out<double>) const {}
};

TEST(Steering, SettingWhatTheGateDoesNotHaveIsRefused) {
    const auto refusal = [](const auto& gate, const Context& context) {
        return support::message([&] { make(gate)(batch(), context); });
    };
    const std::vector<Index> k{1, 1, 1};
    const std::vector<double> p{0.1, 0.1, 0.1}, multiplier(experts, 1);
    const std::string dial = "moe::Context: dial.";
    const std::string no_k = " is set, but the gate of this layer has no k";
    const std::string no_p = " is set, but the gate of this layer has no p";
    const std::string rest = " that a call can change; leave it unset for this layer";
    EXPECT_EQ(refusal(moe::TopP{}, {.dial = {.k = 2}}), dial + "k" + no_k + rest);
    EXPECT_EQ(refusal(moe::TopP{}, {.sequence_offsets = sequences, .dial = {.k_per_sequence = k}}),
              dial + "k_per_sequence" + no_k + rest);
    EXPECT_EQ(refusal(TopK{.k = 1}, {.dial = {.p = 0.5}}), dial + "p" + no_p + rest);
    EXPECT_EQ(refusal(TopK{.k = 1}, {.sequence_offsets = sequences, .dial = {.p_per_sequence = p}}),
              dial + "p_per_sequence" + no_p + rest);
    EXPECT_EQ(refusal(First{}, {.dial = {.k = 1}}), dial + "k" + no_k + rest);
    EXPECT_EQ(
        refusal(First{}, {.gate_multiplier = multiplier,
                          .dial = {.multiplier_order = MultiplierOrder::before_normalization}}),
        "moe::Context: dial.multiplier_order is before_normalization, which the gate of "
        "this layer cannot do; take after_normalization");
    EXPECT_NO_THROW(make(First{})(batch(), {.gate_multiplier = multiplier}));
}

}  // namespace
}  // namespace steering_test
