// SPDX-License-Identifier: MIT
#include <moe/steering/steering.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace steering_test {
namespace {

using moe::Context;
using moe::ExpertScore;
using moe::Index;
using moe::MultiplierOrder;
using moe::OffsetUnit;
using moe::Steering;
using moe::SteeringSettings;
using support::message;
using Matrix = moe::Matrix<double>;
using State = Steering::State;
using moe::testing::compare;
using moe::testing::same_bits;

constexpr Index dim = 6, experts = 8, tokens = 20;

/// A context that views a temporary does not come about.
template <class T>
concept Steers = requires(T&& steer) {
    static_cast<T&&>(steer).on();
};
template <class T>
concept TurnsOff = requires(T&& steer) {
    static_cast<T&&>(steer).turn_off(0);
};
/// The context of four experts after set(steer).
template <class F>
Context on_four(F set, const Context& context) {
    static Steering steer(4);
    steer.reset();
    set(steer);
    return steer.on(context);
}
static_assert(Steers<Steering&> && Steers<const Steering&> && !Steers<Steering>);
static_assert(TurnsOff<Steering&> && !TurnsOff<Steering>);

using Layer = moe::Layer<double, moe::LinearRouter, moe::TopK, moe::Copy>;

Layer make(moe::Normalize normalize = moe::Normalize::plain) {
    return Layer(moe::Config{.model_dim = dim, .seed = 3}, moe::LinearRouter{},
                 moe::TopK{.k = 2, .score = moe::Score::sigmoid, .normalize = normalize},
                 moe::Copy{.count = experts});
}

/// A batch through the layer, and what it left behind.
struct Batch {
    Layer layer = make();
    Matrix x = moe::testing::random_matrix<double>(tokens, dim, 5, 2);
    Matrix y = Matrix(tokens, dim);
    moe::Workspace<double> ws{};

    void run(const Context& context = {}) { layer.forward(x, y, ws, context); }
    Matrix logits() const { return ws.logits(); }
    bool uses(Index token, Index expert) const {
        for (const moe::Assignment& a : ws.routing().of(token))
            if (a.expert == expert) return true;
        return false;
    }
};

// ---- what it does to a layer ----

TEST(Steering, ExpertsThatAreOffAreNeverChosenAndOthersTakeTheirPlace) {
    Batch batch;
    batch.run();
    const moe::Routing before = batch.ws.routing();
    const Matrix y = batch.y;
    ASSERT_FALSE(before.tokens_of(3).empty());
    Steering steer(experts);
    steer.turn_off(3).turn_off(6);
    batch.run(steer.on());
    EXPECT_TRUE(batch.ws.routing().tokens_of(3).empty());
    EXPECT_TRUE(batch.ws.routing().tokens_of(6).empty());
    EXPECT_EQ(batch.ws.routing().num_assignments(), 2 * tokens);
    for (Index t = 0; t < tokens; ++t) {
        bool used = false;
        for (const moe::Assignment& a : before.of(t)) used |= a.expert == 3 || a.expert == 6;
        if (used) continue;
        EXPECT_TRUE(same_bits(batch.y.row(t), y.row(t))) << t;
    }
}

TEST(Steering, ForcedExpertsAreChosenForEveryToken) {
    Batch batch;
    Steering steer(experts, {.k = 2});
    steer.force(5);
    batch.run(steer.on());
    EXPECT_EQ(batch.ws.routing().tokens_of(5).size(), std::size_t{tokens});
    EXPECT_EQ(batch.ws.routing().num_assignments(), 2 * tokens);
    steer.force(0);
    batch.run(steer.on());
    EXPECT_EQ(batch.ws.routing().tokens_of(0).size(), std::size_t{tokens});
    EXPECT_EQ(batch.ws.routing().tokens_of(5).size(), std::size_t{tokens});
}

TEST(Steering, OffsetsAreInStandardDeviationsOfATokensLogitsOrInLogits) {
    Batch batch;
    batch.run();
    Matrix in_std = batch.logits(), plain = in_std;
    for (Index t = 0; t < tokens; ++t) {
        double mean = 0, squares = 0;
        for (Index e = 0; e < experts; ++e) mean += in_std(t, e) / experts;
        for (Index e = 0; e < experts; ++e) squares += std::pow(in_std(t, e) - mean, 2) / experts;
        in_std(t, 2) += 0.5 * std::sqrt(squares);
        plain(t, 2) += 0.5;
    }
    Steering relative(experts), absolute(experts, {.offset_unit = OffsetUnit::logits});
    batch.run(relative.offset(2, 0.5).on());
    EXPECT_TRUE(compare(batch.logits(), in_std, 1e-14));
    batch.run(absolute.offset(2, 9).offset(2, 0.5).on());  // the last one counts
    EXPECT_TRUE(compare(batch.logits(), plain, 1e-14));
}

TEST(Steering, FactorsMultiplyWeightsBeforeOrAfterTheyAreNormalised) {
    // A copy gives back x times its weight: y = (sum of weights) x.
    Batch batch;
    batch.run();
    const moe::Routing before = batch.ws.routing();
    Matrix after_sum = batch.x, first_weight = Matrix::Zero(tokens, experts);
    for (Index t = 0; t < tokens; ++t) {
        const auto slots = before.of(t);
        double sum = 0, scores = 0;
        for (const moe::Assignment& a : slots) {
            const double factor = a.expert == 7 ? 64 : 1;
            const double score = 1 / (1 + std::exp(-batch.logits()(t, a.expert)));
            sum += factor * a.weight;
            scores += factor * score;
            first_weight(t, a.expert) = factor * score;
        }
        after_sum.row(t) *= sum;
        first_weight.row(t) /= scores;
    }
    Steering after(experts);
    after.multiply(7, 64);
    batch.run(after.on());
    EXPECT_EQ(batch.ws.routing(), before) << "the routing keeps the weights";
    EXPECT_TRUE(compare(batch.y, after_sum, 1e-14));
    ASSERT_FALSE(before.tokens_of(7).empty());

    Steering within(experts, {.multiplier_order = MultiplierOrder::before_normalization});
    within.multiply(7, 64);
    batch.run(within.on());
    Matrix weights = Matrix::Zero(tokens, experts);
    for (const moe::Assignment& a : batch.ws.routing().assignments())
        weights(a.token, a.expert) = a.weight;
    EXPECT_TRUE(compare(weights, first_weight, 1e-14));
    EXPECT_TRUE(compare(batch.y, batch.x, 1e-14)) << "weights sum to 1";
}

TEST(Steering, OfNothingGivesBackTheContextAndTheSameBits) {
    Batch batch;
    batch.run();
    const moe::Routing before = batch.ws.routing();
    const Matrix y = batch.y;
    Steering steer(experts, {.multiplier_order = MultiplierOrder::before_normalization});
    steer.turn_off(1).force(2).offset(3, 1).multiply(4, 2);
    steer.reset();
    for (const bool undone : {false, true}) {
        if (undone)
            steer.turn_off(1).turn_normal(1).offset(3, 4).offset(3, 0).multiply(4, 2).multiply(4,
                                                                                               1);
        const Context context = steer.on({.seed = 3});
        EXPECT_TRUE(context.allowed.empty() && context.forced.empty());
        EXPECT_TRUE(context.logit_offset.empty() && context.gate_multiplier.empty());
        EXPECT_EQ(context.dial.offset_unit, OffsetUnit::logits);
        EXPECT_EQ(context.dial.multiplier_order, MultiplierOrder::after_normalization);
        EXPECT_EQ(context.seed, 3u);
        batch.run(context);
        EXPECT_EQ(batch.ws.routing(), before);
        EXPECT_TRUE(same_bits(batch.y, y));
    }
}

TEST(Steering, IsCombinedWithWhatTheContextHasPerSequence) {
    Batch batch;
    const std::vector<Index> offsets{0, 8, tokens};
    std::vector<std::uint8_t> allowed(2 * experts, 1), forced(2 * experts, 0);
    allowed[2] = 0;           // expert 2 in the first sequence
    forced[experts + 4] = 1;  // expert 4 in the second
    const std::vector<double> factors(2 * experts, 0.5);
    Context context{.sequence_offsets = offsets};
    context.dial.allowed_per_sequence = allowed;
    context.dial.forced_per_sequence = forced;
    context.dial.gate_multiplier_per_sequence = factors;
    Steering steer(experts);
    steer.turn_off(3).multiply(4, 4);
    batch.run(steer.on(context));
    EXPECT_TRUE(batch.ws.routing().tokens_of(3).empty());
    for (Index t = 0; t < tokens; ++t) {
        if (t < 8) {
            EXPECT_FALSE(batch.uses(t, 2)) << t;
            continue;
        }
        EXPECT_TRUE(batch.uses(t, 4)) << t;
        double sum = 0;
        for (const moe::Assignment& a : batch.ws.routing().of(t))
            sum += a.weight * (a.expert == 4 ? 2 : 0.5);
        EXPECT_NEAR(batch.y(t, 0), sum * batch.x(t, 0), 1e-14);
    }
}

TEST(Steering, HasExactGradients) {
    const auto x = moe::testing::random_matrix<double>(6, dim, 5);
    Steering steer(experts, {.multiplier_order = MultiplierOrder::before_normalization});
    steer.turn_off(1).offset(2, 0.5).offset(5, -0.25).multiply(4, 3);
    seams::expect_exact_layer(make(moe::Normalize::none), x, steer.on());
}

TEST(Steering, KnowsHowManyLogitsALayerHas) {
    struct Noisy {  // a layer with noise logits, as far as of() asks for it
        const Noisy& head() const { return *this; }
        Index num_logits() const { return 16; }
        Index num_experts() const { return 8; }
    };
    Steering steer = Steering::of(Noisy{});
    EXPECT_EQ(steer.num_experts(), 8);
    steer.offset(2, 50).turn_off(1).force(7).multiply(3, 2);
    const Context context = steer.on();
    EXPECT_EQ(context.logit_offset.size(), 16u);
    EXPECT_EQ(context.logit_offset[2], 50);
    EXPECT_EQ(context.allowed.size(), 8u);
    EXPECT_EQ(context.forced.size(), 8u);
    EXPECT_EQ(context.gate_multiplier.size(), 8u);
    Batch batch;
    steer = Steering::of(batch.layer);
    batch.run(steer.offset(2, 50).on());
    EXPECT_EQ(batch.ws.routing().tokens_of(2).size(), std::size_t{tokens});
}

// ---- states and lists ----

TEST(Steering, RemembersTheLastStateOfAnExpert) {
    Steering steer(4);
    EXPECT_EQ(steer.state(1), State::normal);
    steer.turn_off(1).force(1);
    EXPECT_EQ(steer.state(1), State::forced);
    steer.turn_off(1);
    EXPECT_EQ(steer.state(1), State::off);
    EXPECT_TRUE(steer.on().forced.empty());
    steer.turn_normal(1);
    EXPECT_EQ(steer.state(1), State::normal);
    EXPECT_TRUE(steer.on().allowed.empty());
}

TEST(Steering, TakesExpertsOfOneLayerFromAList) {
    const std::vector<ExpertScore> list{{0, 3, 0.9}, {1, 2, 0.8}, {0, 1, 0.7}, {1, 9, 0.1}};
    Steering steer(4);
    steer.turn_off(list, 0);
    for (Index e = 0; e < 4; ++e)
        EXPECT_EQ(steer.state(e), e == 1 || e == 3 ? State::off : State::normal) << e;
    steer.reset();
    steer.force(list, 0).offset(list, 0, 0.5).multiply(list, 0, 64);
    const Context context = steer.on();
    ASSERT_EQ(context.forced.size(), 4u);
    ASSERT_EQ(context.logit_offset.size(), 4u);
    ASSERT_EQ(context.gate_multiplier.size(), 4u);
    for (std::size_t e = 0; e < 4; ++e) {
        const bool is_listed = e == 1 || e == 3;
        EXPECT_EQ(context.forced[e], is_listed ? 1 : 0);
        EXPECT_EQ(context.logit_offset[e], is_listed ? 0.5 : 0);
        EXPECT_EQ(context.gate_multiplier[e], is_listed ? 64 : 1);
    }
    steer.reset();
    EXPECT_EQ(message([&] { steer.turn_off(list, 1); }),
              "moe::Steering: there is no expert 9, the layer has 4");
    EXPECT_EQ(steer.state(2), State::normal) << "nothing is changed then";
    steer.turn_off(list, 2);
    EXPECT_TRUE(steer.on().allowed.empty());
}

TEST(Steering, AllocatesNothingInACall) {
    if (!allocations::are_counted) return;
    Steering steer(4);
    steer.turn_off(1).force(2).offset(3, 1).multiply(0, 2);
    EXPECT_EQ(allocations::in([&] { EXPECT_EQ(steer.on().forced[2], 1); }), 0);
}

// ---- refusals ----

TEST(SteeringErrors, AreSentences) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    Steering steer(4);
    EXPECT_EQ(message([&] { steer.turn_off(4); }),
              "moe::Steering: there is no expert 4, the layer has 4");
    EXPECT_NE(message([&] { steer.force(-1); }), "");
    EXPECT_EQ(message([&] { steer.offset(1, nan); }),
              "moe::Steering::offset: the number is nan, it must be finite");
    EXPECT_NE(message([&] { steer.multiply(1, nan); }), "");
    EXPECT_TRUE(steer.on().logit_offset.empty());
    const auto built = [](Index n, const SteeringSettings& settings) {
        return message([&] { Steering(n, settings); });
    };
    EXPECT_EQ(built(-1, {}), "moe::Steering: num_experts is -1, it must be >= 0");
    EXPECT_EQ(built(4, {.k = -1}), "moe::Steering: k is -1, it must be >= 0; 0 if it is not known");
    EXPECT_EQ(built(4, {.num_logits = 3}),
              "moe::Steering: num_logits is 3, it must be at least 4, one per expert; 0 if they "
              "are as many");
    EXPECT_EQ(built(4, {.offset_unit = OffsetUnit(2)}),
              "moe::Steering: offset_unit is number 2 of its choices, they are 0 to 1");
    EXPECT_NE(built(4, {.multiplier_order = MultiplierOrder(7)}), "");
}

TEST(SteeringErrors, ForceNoMoreThanATokenHasPlacesFor) {
    Steering steer(8, {.k = 2});
    steer.force(1).force(4).force(1);
    EXPECT_EQ(message([&] { steer.force(5); }),
              "moe::Steering::force: 2 experts are forced already, k is 2; a token has no place "
              "for expert 5");
    EXPECT_EQ(steer.state(5), State::normal);
    const std::vector<ExpertScore> list{{0, 1, 1}, {0, 6, 1}};
    EXPECT_NE(message([&] { steer.force(list, 0); }), "");
    Context context;
    context.dial.k = 1;
    EXPECT_EQ(message([&] { steer.on(context); }),
              "moe::Steering::on: 2 experts are forced, a token has 1 in this call");
    const std::vector<Index> offsets{0, 2, 4}, k{2, 1};
    context = {.sequence_offsets = offsets};
    context.dial.k_per_sequence = k;
    EXPECT_NE(message([&] { steer.on(context); }), "");
    steer.turn_off(4);
    EXPECT_EQ(message([&] { steer.on(context); }), "");
    Steering unknown(8);
    EXPECT_NO_THROW(unknown.force(0).force(1).force(2).on());
}

TEST(SteeringErrors, RefuseAContextThatSaysTheSame) {
    const std::vector<std::uint8_t> mask(4, 1);
    const std::vector<double> numbers(4, 1.0), per_sequence(8, 0.0);
    const std::vector<Index> offsets{0, 2, 4};
    Steering steer(4);
    EXPECT_NO_THROW(steer.on({.allowed = mask, .forced = mask}));
    EXPECT_EQ(
        message([&] { on_four([](Steering& four) { four.turn_off(1); }, {.allowed = mask}); }),
        "moe::Steering::on: the context has allowed of its own; set it in one place, or per "
        "token and sequence in the context without this object");
    EXPECT_NE(message([&] { on_four([](Steering& four) { four.force(1); }, {.forced = mask}); }),
              "");
    EXPECT_NE(message([&] {
                  on_four([](Steering& four) { four.offset(1, 1); }, {.logit_offset = numbers});
              }),
              "");
    EXPECT_NE(message([&] {
                  on_four([](Steering& four) { four.multiply(1, 2); },
                          {.gate_multiplier = numbers});
              }),
              "");
    EXPECT_NO_THROW(on_four([](Steering& four) { four.turn_off(1); },
                            {.forced = mask, .logit_offset = numbers}));

    Context context{.sequence_offsets = offsets};
    context.dial.logit_offset_per_sequence = per_sequence;  // in logits
    context.dial.gate_multiplier_per_sequence = per_sequence;
    EXPECT_EQ(message([&] { on_four([](Steering& four) { four.offset(1, 1); }, context); }),
              "moe::Steering::on: the context has dial.logit_offset_per_sequence with another "
              "offset_unit than this object; one call has one");
    context.dial.offset_unit = OffsetUnit::row_std;
    EXPECT_NO_THROW(on_four([](Steering& four) { four.offset(1, 1); }, context));
    EXPECT_NO_THROW(on_four([](Steering& four) { four.multiply(1, 2); }, context));
    context.dial.multiplier_order = MultiplierOrder::before_normalization;
    EXPECT_EQ(message([&] { on_four([](Steering& four) { four.multiply(1, 2); }, context); }),
              "moe::Steering::on: the context has dial.gate_multiplier_per_sequence with another "
              "multiplier_order than this object; one call has one");
}

TEST(SteeringErrors, LeaveALayerOfNoExpertsAlone) {
    Steering steer(0);
    EXPECT_TRUE(steer.on().allowed.empty());
    EXPECT_THROW(steer.force(0), std::invalid_argument);
}

}  // namespace
}  // namespace steering_test
