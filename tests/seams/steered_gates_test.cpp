// SPDX-License-Identifier: MIT
// Masks, forces, offsets and multipliers where they meet unusual gates, routers and drops.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/compose/competition.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates.hpp>
#include <moe/layer.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/hash.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>

#include "seams/check.hpp"
#include "support/message.hpp"

namespace steered_gates_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::OffsetUnit;
using moe::TopK;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 7, dim = 5, experts = 4;
const std::vector<Index> sequences{0, 3, 3, 7};
constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class Gate>
auto make(const Gate& gate, Index free = 2) {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                                   gate, moe::Swiglu{.count = experts - free, .ffn_dim = 4},
                                   moe::Copy{.count = free});
}
Matrix<double> batch() { return random_matrix<double>(tokens, dim, 1); }
Matrix<double> upstream() { return random_matrix<double>(tokens, dim, 2); }

TEST(Steering, WhatPaddingHoldsDoesNotReachTheGradientOfOffsetsInStandardDeviations) {
    const auto layer = make(TopK{.k = 2});
    Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
    x.row(2).setConstant(nan);
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 0, 0};
    const std::vector<double> offset{0.3, -0.2, 0.5, 0.1};
    std::vector<double> doffset(experts, 0);
    moe::ContextGradients gradients{.logit_offset = doffset};
    const Context context{.padding = padding,
                          .logit_offset = offset,
                          .dial = {.offset_unit = OffsetUnit::row_std},
                          .gradients = &gradients};
    Workspace<double> ws;
    layer.forward(x, y, ws, context);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, upstream(), dx, grad, ws, context);
    for (const double g : doffset) EXPECT_TRUE(std::isfinite(g)) << g;
}

TEST(Steering, OffsetsInStandardDeviationsLeaveLogitsThatARouterMaskedAlone) {
    Matrix<double> z(1, 4), dz = Matrix<double>::Ones(1, 4);
    z << 1, 2, -inf, 3;
    const std::vector<double> offset{1, 0.5, 1, -1};
    const Context context{.logit_offset = offset, .dial = {.offset_unit = OffsetUnit::row_std}};
    moe::Buffer<double> raw;
    moe::View<double> logits(z.data(), 1, 4, Eigen::OuterStride<>(4));
    moe::View<double> dlogits(dz.data(), 1, 4, Eigen::OuterStride<>(4));
    moe::detail::steer<double>(logits, context, logits.cols(), &raw);
    EXPECT_TRUE(std::isfinite(z(0, 0))) << z;
    EXPECT_EQ(z(0, 2), -inf) << z;
    dz(0, 2) = 0;
    moe::detail::steer_backward<double>(dlogits, logits, context, logits.cols(), raw);
    EXPECT_TRUE(std::isfinite(dz(0, 0))) << dz;
}

TEST(Steering, ARouterThatMasksRoutesWithOffsetsInStandardDeviations) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4}, moe::HashRouter{},
                                TopK{.k = 1, .ones = true}, moe::Copy{.count = experts});
    const std::vector<std::int64_t> ids{1, 2, 3, 4, 5, 6, 7};
    const std::vector<double> offset{1, 0.5, 1, -1};
    Workspace<double> ws;
    layer.route(
        batch(), ws,
        {.token_ids = ids, .logit_offset = offset, .dial = {.offset_unit = OffsetUnit::row_std}});
    for (const auto& a : ws.routing().assignments()) EXPECT_TRUE(std::isfinite(a.weight));
}

TEST(Steering, TheGradientOfAnOffsetThatIsNotGivenIsThatAtZero) {
    const auto layer = make(TopK{.k = 2, .normalize = moe::Normalize::none});
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    const std::vector<double> zero(experts, 0);
    std::vector<double> given(experts, 0), without(experts, 0);
    for (const bool gives : {true, false}) {
        moe::ContextGradients gradients{.logit_offset = gives ? given : without};
        Context context{.gradients = &gradients};
        if (gives) context.logit_offset = zero;
        Workspace<double> ws;
        layer.forward(batch(), y, ws, context);
        auto grad = moe::zeros_like(layer);
        layer.backward(batch(), upstream(), dx, grad, ws, context);
    }
    EXPECT_EQ(given, without);
}

TEST(Steering, ReachesTheExpertsLogitsOfGatesThatWantOthersBesides) {
    const std::vector<std::uint8_t> forced{0, 0, 0, 1}, allowed{1, 0, 1, 1};
    const Context context{.allowed = allowed, .forced = forced};
    const auto check = [&](const auto& gate) {
        const auto layer = make(gate);
        Workspace<double> ws;
        layer.route(batch(), ws, context);
        EXPECT_TRUE(ws.routing().tokens_of(1).empty());
        EXPECT_GT(ws.logits().cols(), experts);
        for (Index t = 0; t < tokens; ++t) {
            EXPECT_EQ(ws.routing().of(t)[0].expert, 3);
            EXPECT_EQ(ws.expert_logits()(t, 1), -inf);
        }
        seams::expect_exact_layer(layer, batch(), context);
    };
    check(moe::Noisy{TopK{.k = 2}});
    check(moe::WithCapacity{moe::Noisy{TopK{.k = 2}}, {.limit = moe::CapacityLimit::megatron(9)}});
    check(moe::KeepAny{TopK{.k = 2}});
}

TEST(Steering, AGateThatIsCalledByHandFindsTheRowOfASequenceWithoutFacts) {
    moe::Random random(1);
    const auto gate = TopK{.k = 2}.build<double>({.num_experts = 3}, random);
    const Matrix<double> z = random_matrix<double>(2, 3, 5, 2);
    const std::vector<Index> each{0, 1, 2};
    const std::vector<double> factors{1, 2, 3, 4, 5, 6};
    const std::vector<std::uint8_t> per_token{1, 1, 0, 0, 1, 1};
    Workspace<double> ws;
    Context context{.sequence_offsets = each,
                    .dial = {.multiplier_order = moe::MultiplierOrder::before_normalization,
                             .gate_multiplier_per_sequence = factors}};
    moe::Routing plain, weighed;
    plain.reset(2, 3), weighed.reset(2, 3);
    gate.select(z, plain, {{}, ws});
    plain.group();
    gate.weigh(z, plain, {{}, ws});
    gate.select(z, weighed, {context, ws});
    weighed.group();
    gate.weigh(z, weighed, {context, ws});
    for (Index t = 0; t < 2; ++t) {
        double sum = 0;
        for (const auto& a : plain.of(t))
            sum += a.weight * factors[static_cast<std::size_t>(3 * t + a.expert)];
        for (std::size_t i = 0; i < 2; ++i) {
            const auto& a = plain.of(t)[i];
            EXPECT_NEAR(weighed.of(t)[i].weight,
                        a.weight * factors[static_cast<std::size_t>(3 * t + a.expert)] / sum,
                        1e-15);
        }
    }
    context = {.allowed = per_token};
    EXPECT_NE(support::message([&] {
                  gate.weigh(z, weighed, {context, ws});
              }).find("experts has 0 entries, a gate for 3"),
              std::string::npos);
    const std::vector<moe::ExpertFacts> many(64);
    context = {.experts = many};
    EXPECT_THROW(gate.weigh(z, weighed, {context, ws}), std::invalid_argument);
}

TEST(Steering, OffsetsOfOtherLogitsAreNoneOfALossPerSequence) {
    const auto layer = make(moe::Noisy{TopK{.k = 2}});
    const std::vector<double> offset(2 * experts, 0);
    Matrix<double> y(tokens, dim);
    double value[2];
    for (const bool given : {false, true}) {
        Workspace<double> ws;
        Context context{.sequence_offsets = sequences};
        if (given) context.logit_offset = offset;
        layer.forward(batch(), y, ws, context);
        value[given] = moe::load_balance_loss(ws, 1.0, {.per_sequence = true}).value;
    }
    EXPECT_EQ(value[0], value[1]);
    EXPECT_GT(value[0], 0);
}

TEST(ProductKey, AMaskOfExpertsIsForAllTokens) {
    for (const auto kind : {0, 1, 2}) {  // [T * E], [E], per sequence
        for (const bool sum : {true, false}) {
            const moe::ProductKeyTopK settings{
                .k = 2,
                .combine = sum ? moe::ProductKeyTopK::Combine::sum_top_k
                               : moe::ProductKeyTopK::Combine::axis_softmax};
            const auto layer =
                moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4},
                                        moe::LinearRouter{}, settings, moe::Copy{.count = 9});
            std::vector<std::uint8_t> row{1, 0, 1, 1, 1, 0, 1, 0, 1}, all, each;
            for (Index t = 0; t < tokens; ++t) all.insert(all.end(), row.begin(), row.end());
            for (int b = 0; b < 3; ++b) each.insert(each.end(), row.begin(), row.end());
            Workspace<double> expected, ws;
            layer.route(batch(), expected, {.allowed = all});
            Context context{.sequence_offsets = sequences};
            if (kind == 0) context.allowed = all;
            if (kind == 1) context.allowed = row;
            if (kind == 2) context.dial.allowed_per_sequence = each;
            layer.route(batch(), ws, context);
            EXPECT_TRUE(ws.routing() == expected.routing()) << kind;
            EXPECT_EQ(ws.routing().num_assignments(), expected.routing().num_assignments());
        }
    }
}

TEST(ProductKey, MasksAreOfExpertsEvenWhereThereAreAsManyLogits) {
    // 1 head, 4 experts: 2 x 2 half-keys are 4 logits.
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                                moe::ProductKeyTopK{.k = 1}, moe::Copy{.count = 4});
    const std::vector<std::uint8_t> allowed{0, 1, 1, 1};  // expert 0, pair (0, 0)
    Workspace<double> ws, plain;
    layer.route(batch(), plain);
    std::vector<std::uint8_t> all;
    for (Index t = 0; t < tokens; ++t) all.insert(all.end(), allowed.begin(), allowed.end());
    layer.route(batch(), ws, {.allowed = all});
    EXPECT_TRUE(same_bits(Matrix<double>(ws.logits()), Matrix<double>(plain.logits())))
        << "half-key 0 of the first axis is not expert 0";
    const std::vector<std::uint8_t> forced{0, 1, 0, 0};
    EXPECT_NE(support::message([&] { layer.route(batch(), ws, {.forced = forced}); }), "")
        << "these logits are not the experts'";
}

TEST(Competition, MultipliersOfASequence) {
    const auto layer = moe::make_competition<double>(
        moe::Config{.model_dim = dim, .seed = 3}, moe::CompetitionRule{.k = 2, .frequency = 1},
        moe::LinearRouter{}, TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = 4});
    std::vector<double> each{1, 2, 3, 4, 9, 9, 9, 9, -1, 0.5, 2, 7};
    std::vector<double> deach(12, 0);
    moe::ContextGradients gradients{.gate_multiplier_per_sequence = deach};
    const Context context{.training = true,
                          .sequence_offsets = sequences,
                          .dial = {.gate_multiplier_per_sequence = each},
                          .gradients = &gradients};
    Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, upstream());
    };
    loss();
    Matrix<double> expected(tokens, dim);
    Workspace<double> bare;
    layer.layer().bank().apply(x, ws.routing(), expected, bare, context);
    EXPECT_TRUE(moe::testing::compare(y, expected, 1e-12));
    const auto options = seams::options(seams::SameChoices(ws));
    auto grad = moe::zeros_like(layer);
    layer.backward(x, upstream(), dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, std::span<double>(each),
                                             std::span<const double>(deach), options));
}

TEST(Competition, CannotBeForced) {
    const auto layer = moe::make_competition<double>(
        moe::Config{.model_dim = dim, .seed = 3}, moe::CompetitionRule{.k = 1, .frequency = 1},
        moe::LinearRouter{}, TopK{.k = 1}, moe::Swiglu{.count = experts, .ffn_dim = 4});
    const std::vector<std::uint8_t> forced{0, 0, 0, 1};
    Matrix<double> y(tokens, dim);
    Workspace<double> ws;
    EXPECT_THROW(layer.forward(batch(), y, ws, {.training = true, .forced = forced}),
                 std::invalid_argument);
    layer.forward(batch(), y, ws, {.forced = forced});  // an ordinary layer
    for (Index t = 0; t < tokens; ++t) EXPECT_EQ(ws.routing().of(t)[0].expert, 3);
}

TEST(SequenceBudget, TakesForcedExpertsFirstThoughScoresTie) {
    const auto layer =
        moe::make_layer<float>(moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                               moe::SequenceBudget{.k = 1}, moe::Copy{.count = experts});
    const std::vector<std::uint8_t> forced{0, 0, 0, 1};
    Workspace<float> ws;
    layer.route(random_matrix<float>(64, dim, 1), ws, {.forced = forced});
    for (Index t = 0; t < 64; ++t) EXPECT_EQ(ws.routing().of(t)[0].expert, 3) << t;
}

TEST(Multipliers, OfATokenThatIsNotANumberHaveGradientsThatAreNone) {
    const auto layer = make(TopK{.k = 4});
    Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
    x(3, 1) = nan;
    const std::vector<double> multiplier{0.5, 2, 1, 3};
    std::vector<double> dmultiplier(experts, 0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    const Context context{.gate_multiplier = multiplier,
                          .dial = {.multiplier_order = moe::MultiplierOrder::before_normalization},
                          .gradients = &gradients};
    Workspace<double> ws;
    layer.forward(x, y, ws, context);
    auto grad = moe::zeros_like(layer);
    layer.backward(x, upstream(), dx, grad, ws, context);
    for (const double g : dmultiplier) EXPECT_TRUE(std::isnan(g));
}

TEST(Fingerprint, AnotherReasonForADropIsAnotherRouting) {
    const auto layer = make(TopK{.k = 2});
    Matrix<double> x = batch(), y(tokens, dim), dx(tokens, dim);
    Workspace<double> ws;
    layer.route(x, ws);
    moe::Routing plan = ws.routing();
    plan.set_dropped(0, moe::Dropped::capacity);
    plan.group();
    Workspace<double> node;
    layer.bank().apply(x, plan, y, node);
    plan.set_dropped(0, moe::Dropped::pass_through);
    plan.group();
    std::vector<double> dweight(static_cast<std::size_t>(plan.num_assignments()));
    auto grad = moe::zeros_like(layer);
    EXPECT_THROW(layer.bank().apply_backward(x, plan, upstream(), dx, std::span<double>(dweight),
                                             {}, grad.bank(), node),
                 std::logic_error);
}

TEST(Fingerprint, PThatIsMinusOneIsNotPThatIsUnset) {
    moe::detail::Identity owner;
    const auto of = [&](const Context& c) {
        return moe::detail::Fingerprint(owner).context(c).value();
    };
    EXPECT_NE(of({}), of({.dial = {.p = -1.0}}));
    EXPECT_NE(of({}), of({.task = -1}));
}

TEST(Capacity, ATokenThatTriesItsNextChoiceWeighsAsItsOnlyExpert) {
    // k = 1, weights as they are: so they stay where the first choice was full.
    const auto layer =
        make(moe::WithCapacity{TopK{.k = 1, .normalize_single = false},
                               moe::Capacity{.limit = {.factor = 1, .k = 1},
                                             .overflow = moe::Capacity::Overflow::next_choice}});
    Workspace<double> ws;
    layer.route(batch(), ws);
    for (Index t = 0; t < tokens; ++t) {
        const auto own = ws.routing().of(t);
        double sum = 0;
        for (Index e = 0; e < experts; ++e) sum += std::exp(ws.logits()(t, e));
        for (const auto& a : own)
            if (a.dropped == moe::Dropped::no) {
                EXPECT_NEAR(a.weight, std::exp(ws.logits()(t, a.expert)) / sum, 1e-12)
                    << t << " of " << own.size();
            }
    }
}

TEST(Competition, MultipliersInEveryOrderHaveExactGradients) {
    for (const auto order :
         {moe::MultiplierOrder::after_normalization, moe::MultiplierOrder::before_normalization})
        for (const double share : {0.0, 0.4})
            for (const bool sequence : {false, true})
                for (const auto unit : {moe::OffsetUnit::logits, moe::OffsetUnit::row_std}) {
                    auto layer = moe::make_competition<double>(
                        moe::Config{.model_dim = dim, .seed = 3},
                        moe::CompetitionRule{.k = 2, .frequency = 1, .logit_share = share},
                        moe::LinearRouter{}, moe::TopK{.k = 2},
                        moe::Swiglu{.count = 4, .ffn_dim = 4}, moe::Null{.count = 1});
                    std::vector<double> all{1, 2, 0.3, 0.7, 1.5}, dall(5), each(15), deach(15),
                        off{0.1, 0.2, -0.3, 0, 0.4}, doff(5);
                    for (std::size_t i = 0; i < 15; ++i)
                        each[i] = 0.5 + 0.1 * static_cast<double>(i);
                    moe::ContextGradients g{.logit_offset = doff,
                                            .gate_multiplier = dall,
                                            .gate_multiplier_per_sequence = deach};
                    moe::Context c{.training = true,
                                   .sequence_offsets = sequences,
                                   .logit_offset = off,
                                   .gate_multiplier = all,
                                   .dial = {.offset_unit = unit, .multiplier_order = order},
                                   .gradients = &g};
                    if (sequence) c.dial.gate_multiplier_per_sequence = each;
                    Matrix<double> x = batch(), dy = upstream(), y(tokens, dim), dx(tokens, dim);
                    moe::Workspace<double> ws;
                    const auto loss = [&] {
                        layer.forward(x, y, ws, c);
                        return seams::weighted_sum(y, dy) + 0.3 * moe::z_loss(ws, 0);
                    };
                    loss();
                    const auto options = seams::options(seams::SameChoices(ws));
                    moe::z_loss(ws, 0.3);
                    auto grad = moe::zeros_like(layer);
                    layer.backward(x, dy, dx, grad, ws, c);
                    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options))
                        << share << sequence;
                    seams::expect_parameter_gradients(loss, layer, grad, options);
                    EXPECT_TRUE(moe::testing::check_gradient(
                        loss, std::span<double>(all), std::span<const double>(dall), options));
                    EXPECT_TRUE(moe::testing::check_gradient(
                        loss, std::span<double>(off), std::span<const double>(doff), options));
                    if (sequence) {
                        EXPECT_TRUE(moe::testing::check_gradient(loss, std::span<double>(each),
                                                                 std::span<const double>(deach),
                                                                 options));
                    }
                }
}

template <class Gate>
void expect_weights(const char* name, const Gate& gate) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
        moe::WithCapacity{gate, moe::Capacity{.limit = {.factor = 0.5},
                                              .overflow = moe::Capacity::Overflow::pass_through}},
        moe::Copy{.count = 6});
    moe::Workspace<double> ws;
    layer.route(random_matrix<double>(40, 5, 1), ws, {.training = true});
    int passed = 0, zero = 0;
    for (const auto& a : ws.routing().assignments())
        if (a.dropped == moe::Dropped::pass_through) ++passed, zero += a.weight == 0;
    EXPECT_GT(passed, 0) << name;
    EXPECT_EQ(zero, 0) << name << " of " << passed;
}
TEST(Capacity, WhatPassesThroughWeighs) {
    expect_weights("TopK", moe::TopK{.k = 2, .normalize_kept_only = true});
    expect_weights("TopP", moe::TopP{.p = 0.6});
    expect_weights("DynamicCapacity", moe::DynamicCapacity{});
    expect_weights("SparseMixer", moe::SparseMixer{});
    expect_weights("TopAny", moe::TopAny{});
    expect_weights("KeepAny", moe::KeepAny{moe::TopK{.k = 2}});
    expect_weights("OnlinePruning",
                   moe::OnlinePruning{moe::TopK{.k = 2, .normalize_kept_only = true}});
    expect_weights("GShardTop2", moe::GShardTop2{.normalize_kept_only = true});
}

}  // namespace
}  // namespace steered_gates_test
