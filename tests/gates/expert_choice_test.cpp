// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "gates/laws.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::build;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::ExpertChoice;
using moe::Index;
using support::message;
using Scores = ExpertChoice::Scores;
using Noise = ExpertChoice::Noise;
using Scope = ExpertChoice::Scope;
using Rounding = ExpertChoice::Rounding;

static_assert(moe::Recipe<ExpertChoice>);
static_assert(moe::TrainableGate<moe::ExpertChoiceModule<float>, float>);
static_assert(!moe::hooks::per_token<moe::ExpertChoiceModule<float>>);

constexpr Scores all_scores[] = {Scores::softmax, Scores::sigmoid, Scores::softmax_over_tokens};
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class ExpertChoiceGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ExpertChoiceGate, Scalars);

/// From the papers' formulas: weights [T, E], 0 where not chosen.
struct Reference {
    Scores scores;
    Index capacity;

    moe::Matrix<double> score(const moe::Matrix<double>& z) const {
        moe::Matrix<double> s = z;
        for (Index t = 0; t < z.rows(); ++t)
            for (Index e = 0; e < z.cols(); ++e) {
                double sum = 1;
                if (scores == Scores::softmax) sum = z.row(t).array().exp().sum();
                if (scores == Scores::softmax_over_tokens) sum = z.col(e).array().exp().sum();
                s(t, e) = scores == Scores::sigmoid ? 1 / (1 + std::exp(-z(t, e)))
                                                    : std::exp(z(t, e)) / sum;
            }
        return s;
    }
    moe::Matrix<double> weights(const moe::Matrix<double>& z) const {
        const moe::Matrix<double> s = score(z);
        moe::Matrix<double> w = moe::Matrix<double>::Zero(z.rows(), z.cols());
        for (Index e = 0; e < z.cols(); ++e) {
            std::vector<Index> order(static_cast<std::size_t>(z.rows()));
            std::iota(order.begin(), order.end(), Index(0));
            std::stable_sort(order.begin(), order.end(),
                             [&](Index a, Index b) { return s(a, e) > s(b, e); });
            for (Index i = 0; i < capacity; ++i) {
                const Index t = order[static_cast<std::size_t>(i)];
                w(t, e) = s(t, e);
            }
        }
        if (scores == Scores::softmax_over_tokens)
            for (Index t = 0; t < z.rows(); ++t)
                w.row(t) /=
                    std::max<double>(1, static_cast<double>((w.row(t).array() > 0).count()));
        return w;
    }
};

template <class S>
moe::Matrix<double> dense(const moe::Routing& routing) {
    moe::Matrix<double> w = moe::Matrix<double>::Zero(routing.num_tokens(), routing.num_experts());
    for (const moe::Assignment& a : routing.assignments()) w(a.token, a.expert) = a.weight;
    return w;
}

// ---- what is published ----

TYPED_TEST(ExpertChoiceGate, TakesThePublishedChoiceOnTheGoldenLogits) {
    using S = TypeParam;
    // C = 2 of 4 tokens: capacity_factor 4 over 8 experts
    auto tokens = batch<S>(ExpertChoice{.capacity_factor = 4}, 8);
    tokens.route(golden_logits<S>());
    const std::array<std::array<std::pair<Index, double>, 2>, 8> golden{
        {{{{2, .9312397}, {0, .1953901}}},
         {{{1, .1567041}, {3, .0948413}}},
         {{{0, .1309739}, {3, .1048158}}},
         {{{1, .2583614}, {3, .1158394}}},
         {{{3, .1280223}, {1, .0349654}}},
         {{{0, .4348488}, {3, .1414865}}},
         {{{3, .1563668}, {0, .0877945}}},
         {{{1, .2012120}, {3, .1728120}}}}};
    const moe::Matrix<double> w = dense<S>(tokens.routing);
    moe::Matrix<double> expected = moe::Matrix<double>::Zero(4, 8);
    for (std::size_t e = 0; e < 8; ++e)
        for (const auto& [t, weight] : golden[e]) expected(t, static_cast<Index>(e)) = weight;
    EXPECT_TRUE(moe::testing::compare(w, expected, 1e-6));
    EXPECT_EQ(tokens.experts_of(3), (std::vector<Index>{1, 2, 3, 4, 5, 6, 7}));
}

TYPED_TEST(ExpertChoiceGate, IsThePlainLoopOfThePapers) {
    using S = TypeParam;
    for (const Scores scores : all_scores)
        for (const double factor : {0.5, 1.0, 2.0, 3.7, 10.0}) {
            const moe::Matrix<S> z = moe::testing::random_matrix<S>(37, 10, 5, 3);
            auto tokens = batch<S>(ExpertChoice{.capacity_factor = factor, .scores = scores}, 10);
            tokens.route(z);
            const auto capacity = static_cast<Index>(std::nearbyint(37 * factor / 10));
            const Reference reference{scores, std::min<Index>(37, capacity)};
            EXPECT_TRUE(moe::testing::compare(dense<S>(tokens.routing),
                                              reference.weights(z.template cast<double>()), 1e-5,
                                              {.allow_zeros = true}))
                << static_cast<int>(scores) << " " << factor;
        }
}

TEST(ExpertChoiceCapacity, IsRoundedAsSaid) {
    const auto capacity = [](const ExpertChoice& recipe, Index experts, Index tokens) {
        return build<double>(recipe, experts).capacity(tokens);
    };
    EXPECT_EQ(capacity({.capacity_factor = 2}, 8, 64), 16);
    EXPECT_EQ(capacity({.capacity_factor = 1}, 8, 20), 2);  // 2.5, to even
    EXPECT_EQ(capacity({.capacity_factor = 1}, 8, 28), 4);  // 3.5, to even
    EXPECT_EQ(capacity({.capacity_factor = 1}, 8, 21), 3);
    EXPECT_EQ(capacity({.capacity_factor = 1, .rounding = Rounding::up}, 8, 17), 3);
    EXPECT_EQ(capacity({.capacity_factor = 1, .rounding = Rounding::up}, 8, 16), 2);
    EXPECT_EQ(capacity({.capacity_factor = 1, .multiple_of = 4}, 8, 72), 12);
    EXPECT_EQ(capacity({.capacity_factor = 1, .multiple_of = 4}, 8, 64), 8);
    EXPECT_EQ(capacity({.capacity_factor = 1, .multiple_of = 40}, 8, 64), 40);
    EXPECT_EQ(capacity({.capacity_factor = 1, .multiple_of = 400}, 8, 64), 64);
    EXPECT_EQ(capacity({.capacity_factor = 1}, 8, 1), 1);
    EXPECT_EQ(capacity({.capacity_factor = 1, .min_capacity = 0}, 8, 1), 0);
    EXPECT_EQ(capacity({.capacity_factor = 1, .min_capacity = 4}, 8, 8), 4);
    EXPECT_EQ(capacity({.capacity_factor = 1, .min_capacity = 4}, 8, 3), 3);
    EXPECT_EQ(capacity({.capacity_factor = 1e300}, 8, 5), 5);
    EXPECT_EQ(capacity({}, 8, 0), 0);
}

// ---- laws ----

TYPED_TEST(ExpertChoiceGate, GivesEveryExpertExactlyItsCapacity) {
    using S = TypeParam;
    for (const Scores scores : all_scores)
        for (const Index tokens : {1, 2, 33, 200}) {
            auto drive = batch<S>(ExpertChoice{.capacity_factor = 1.5, .scores = scores}, 6);
            drive.route(moe::testing::random_matrix<S>(tokens, 6, 9, 4));
            for (Index e = 0; e < 6; ++e)
                EXPECT_EQ(static_cast<Index>(drive.routing.tokens_of(e).size()),
                          drive.gate.capacity(tokens));
        }
}

TYPED_TEST(ExpertChoiceGate, GivesTiesToTheLowerToken) {
    using S = TypeParam;
    for (const Scores scores : all_scores) {
        auto tokens = batch<S>(ExpertChoice{.capacity_factor = 1, .scores = scores}, 2);
        tokens.route(moe::Matrix<S>::Zero(8, 2));
        for (Index t = 0; t < 8; ++t)
            EXPECT_EQ(tokens.experts_of(t),
                      t < 4 ? (std::vector<Index>{0, 1}) : std::vector<Index>{});
    }
}

TYPED_TEST(ExpertChoiceGate, DoesNotCareInWhichOrderTokensCome) {
    using S = TypeParam;
    for (const Scores scores : all_scores) {
        const moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 6, 9, 4);
        const moe::Matrix<S> reversed = z.colwise().reverse();
        auto one = batch<S>(ExpertChoice{.scores = scores}, 6);
        auto other = batch<S>(ExpertChoice{.scores = scores}, 6);
        one.route(z);
        other.route(reversed);
        EXPECT_TRUE(moe::testing::compare(dense<S>(one.routing),
                                          dense<S>(other.routing).colwise().reverse(), 1e-6));
    }
}

TYPED_TEST(ExpertChoiceGate, NeitherCountsNorChoosesPadding) {
    using S = TypeParam;
    for (const Scores scores : all_scores) {
        const moe::Matrix<S> z = moe::testing::random_matrix<S>(12, 4, 2, 3);
        moe::Matrix<S> padded = moe::Matrix<S>::Constant(20, 4, -infinity<S>);
        padded.block(3, 0, 12, 4) = z;
        auto whole = batch<S>(ExpertChoice{.scores = scores}, 4);
        auto with = batch<S>(ExpertChoice{.scores = scores}, 4);
        whole.route(z);
        with.route(padded);
        const moe::Matrix<double> w = dense<S>(with.routing);
        EXPECT_TRUE(moe::testing::compare(w.block(3, 0, 12, 4), dense<S>(whole.routing), 1e-6));
        EXPECT_EQ(with.routing.num_assignments(), whole.routing.num_assignments());
        const auto c = gates_test::derivatives<S>(with.routing.num_assignments());
        const moe::Matrix<S> dz = with.backward(padded, c);
        EXPECT_TRUE((dz.topRows(3).array() == 0).all() && (dz.bottomRows(5).array() == 0).all());
        EXPECT_TRUE(moe::testing::compare(dz.block(3, 0, 12, 4), whole.backward(z, c), 1e-5));
    }
}

TYPED_TEST(ExpertChoiceGate, NeverCrossesAMask) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 5, 4, 3);
    for (Index t = 0; t < 30; ++t)  // two kinds of tokens with two kinds of experts (MoMa)
        for (Index e = 0; e < 5; ++e)
            if ((t % 3 == 0) != (e < 2)) z(t, e) = -infinity<S>;
    for (const Scores scores : all_scores)
        for (const double factor : {1.0, 5.0}) {
            auto tokens = batch<S>(ExpertChoice{.capacity_factor = factor, .scores = scores}, 5);
            tokens.route(z);
            for (const moe::Assignment& a : tokens.routing.assignments())
                EXPECT_EQ(a.token % 3 == 0, a.expert < 2);
            for (Index e = 0; e < 5; ++e)
                EXPECT_EQ(static_cast<Index>(tokens.routing.tokens_of(e).size()),
                          std::min<Index>(factor == 1 ? 6 : 30, e < 2 ? 10 : 20));
        }
}

TYPED_TEST(ExpertChoiceGate, LetsSequencesAlone) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(17, 4, 2, 3);
    const std::array<Index, 5> offsets{0, 6, 6, 7, 17};
    for (const Scores scores : all_scores) {
        const ExpertChoice recipe{.scope = Scope::sequence, .scores = scores};
        auto together = batch<S>(recipe, 4);
        together.context.sequence_offsets = offsets;
        together.route(z);
        const auto c = gates_test::derivatives<S>(together.routing.num_assignments());
        const moe::Matrix<S> dz = together.backward(z, c);
        const moe::Matrix<double> w = dense<S>(together.routing);
        std::size_t used = 0;
        for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
            const Index first = offsets[b], count = offsets[b + 1] - first;
            auto alone = batch<S>(ExpertChoice{.scores = scores}, 4);
            const moe::Matrix<S> own = z.middleRows(first, count);
            alone.route(own);
            EXPECT_TRUE(
                moe::testing::same_bits(w.middleRows(first, count), dense<S>(alone.routing)));
            const auto share = static_cast<std::size_t>(alone.routing.num_assignments());
            const std::vector<S> of_run(c.begin() + static_cast<std::ptrdiff_t>(used),
                                        c.begin() + static_cast<std::ptrdiff_t>(used + share));
            used += share;
            EXPECT_TRUE(moe::testing::same_bits(
                dz.middleRows(first, count), alone.backward(own, of_run), {.allow_zeros = true}));
        }
        EXPECT_EQ(used, c.size());
    }
    auto lost = batch<S>(ExpertChoice{.scope = Scope::sequence}, 4);
    EXPECT_NE(message([&] { lost.select(z); }).find("sequence_offsets"), std::string::npos);
    const std::array<Index, 2> wrong{0, 16};
    lost.context.sequence_offsets = wrong;
    EXPECT_NE(message([&] { lost.select(z); }).find("its last entry is 16"), std::string::npos);
}

// ---- training and inference ----

TYPED_TEST(ExpertChoiceGate, AddsNoiseInTrainingOnly) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(30, 5, 4, 3);
    for (const Scores scores : all_scores)
        for (const Noise noise : {Noise::normal, Noise::gumbel}) {
            const ExpertChoice recipe{.scores = scores, .noise = noise, .noise_scale = 0.7};
            auto noisy = batch<S>(recipe, 5);
            auto plain = batch<S>(ExpertChoice{.scores = scores}, 5);
            plain.route(z);
            noisy.route(z);
            EXPECT_EQ(noisy.routing, plain.routing);
            noisy.context = {.training = true, .step = 3, .seed = 8, .first_token = 100};
            noisy.route(z);
            EXPECT_FALSE(noisy.routing == plain.routing);
            const moe::Routing drawn = noisy.routing;

            const moe::CounterRandom random = noisy.call().random();
            moe::Matrix<S> sum = z;
            std::vector<double> samples(noise == Noise::normal ? 150 : 300);
            for (Index t = 0; t < 30; ++t)
                for (Index e = 0; e < 5; ++e) {
                    const auto i = static_cast<std::size_t>(5 * t + e);
                    double added = 0;
                    if (noise == Noise::normal) {
                        samples[i] = random.normal(100 + t, e);
                        added = 0.7 / 5 * samples[i];
                    } else {
                        samples[i] = random.gumbel(100 + t, e);
                        samples[150 + i] = random.gumbel(100 + t, e, 1);
                        added = 0.7 * (samples[i] - samples[150 + i]);
                    }
                    sum(t, e) = static_cast<S>(static_cast<double>(z(t, e)) + added);
                }
            plain.route(sum);
            EXPECT_TRUE(moe::testing::compare(dense<S>(drawn), dense<S>(plain.routing), 1e-5));

            noisy.context.seed = 9;
            noisy.context.noise = samples;  // the caller's go first
            noisy.route(z);
            EXPECT_EQ(noisy.routing, drawn);
            noisy.context.noise = std::span<const double>(samples).first(3);
            EXPECT_THROW(noisy.select(z), std::invalid_argument);
        }
}

TYPED_TEST(ExpertChoiceGate, TakesWhatIsAboveTheThresholdAtInference) {
    using S = TypeParam;
    auto tokens = batch<S>(ExpertChoice{.scores = Scores::sigmoid, .inference_threshold = 0.5}, 8);
    const moe::Matrix<S> z = golden_logits<S>();
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (std::vector<Index>{0, 2, 3, 5, 6}));
    EXPECT_EQ(tokens.experts_of(1), (std::vector<Index>{1, 3, 5, 7}));  // not 0, at 0.5
    EXPECT_EQ(tokens.experts_of(2), (std::vector<Index>{0}));
    EXPECT_NEAR(tokens.weights_of(2)[0], .9525741, 1e-6);
    const moe::Routing all = tokens.routing;
    for (Index t = 0; t < 4; ++t) {  // whatever the other tokens are
        tokens.route(z.row(t));
        EXPECT_EQ(tokens.experts_of(0).size(), all.of(t).size());
        for (std::size_t i = 0; i < all.of(t).size(); ++i)
            EXPECT_EQ(tokens.weights_of(0)[i], all.of(t)[i].weight);
    }
    tokens.context.training = true;
    tokens.route(z);
    for (Index e = 0; e < 8; ++e) EXPECT_EQ(tokens.routing.tokens_of(e).size(), 1u);

    tokens.context.training = false;
    tokens.route(rows<S>({{nan<double>, 1, -1, -infinity<double>, 0, 0, 0, infinity<double>}}));
    EXPECT_EQ(tokens.experts_of(0), (std::vector<Index>{0, 1, 7}));
    for (const double weight : tokens.weights_of(0)) EXPECT_TRUE(std::isnan(weight));
}

// ---- degenerate rows ----

TYPED_TEST(ExpertChoiceGate, ChoosesANaNLastAndShowsIt) {
    using S = TypeParam;
    moe::Matrix<S> z = golden_logits<S>();
    z(1, 3) = nan<S>;
    for (const Scores scores : {Scores::softmax, Scores::sigmoid}) {
        auto some = batch<S>(ExpertChoice{.capacity_factor = 6, .scores = scores}, 8);
        some.route(z);  // 3 of 4
        for (const Index t : some.routing.tokens_of(3)) EXPECT_NE(t, 1);
        auto all = batch<S>(ExpertChoice{.capacity_factor = 8, .scores = scores}, 8);
        all.route(z);
        for (Index t = 0; t < 4; ++t)
            for (const double weight : all.weights_of(t)) EXPECT_EQ(std::isnan(weight), t == 1);
        const moe::Matrix<S> dz = all.backward(z, gates_test::derivatives<S>(32));
        EXPECT_TRUE(dz.row(0).allFinite() && dz.row(1).array().isNaN().all());
    }
    auto shares =
        batch<S>(ExpertChoice{.capacity_factor = 8, .scores = Scores::softmax_over_tokens}, 8);
    shares.route(z);
    for (const moe::Assignment& a : shares.routing.assignments())
        EXPECT_EQ(std::isnan(a.weight), a.expert == 3);
}

TYPED_TEST(ExpertChoiceGate, GivesOneExpertAllTokensIfAsked) {
    using S = TypeParam;
    for (const Scores scores : all_scores) {
        auto one = batch<S>(ExpertChoice{.capacity_factor = 1, .scores = scores}, 1);
        one.route(moe::testing::random_matrix<S>(5, 1, 3));
        EXPECT_EQ(one.routing.num_assignments(), 5);
        auto masked = batch<S>(ExpertChoice{.scores = scores}, 3);
        masked.route(moe::Matrix<S>::Constant(4, 3, -infinity<S>));
        EXPECT_EQ(masked.routing.num_assignments(), 0);
        gates_test::expect_no_tokens_route<double>(ExpertChoice{.scores = scores}, 4, 4);
    }
}

TYPED_TEST(ExpertChoiceGate, LeavesNullExpertsOut) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(4);
    facts[1].is_null = true;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(6, 4, 3);
    for (const Scores scores : all_scores) {
        auto tokens = batch<S>(ExpertChoice{.capacity_factor = 4, .scores = scores}, 4);
        tokens.route(z);
        const moe::Matrix<double> all = dense<S>(tokens.routing);
        tokens.context.experts = facts;
        tokens.weigh(z);
        const moe::Matrix<double> w = dense<S>(tokens.routing);
        EXPECT_TRUE((w.col(1).array() == 0).all());
        const double more = scores == Scores::softmax_over_tokens ? 4.0 / 3 : 1;
        EXPECT_TRUE(moe::testing::compare(w.col(2), more * all.col(2), 1e-6));
    }
}

// ---- gradients ----

TEST(ExpertChoiceGradient, AgreesWithDifferencesForEveryScore) {
    const std::array<Index, 3> offsets{0, 4, 9};
    moe::Matrix<double> z = moe::testing::random_matrix<double>(9, 5, 12, 3);
    z.row(6).setConstant(-infinity<double>);
    z(2, 1) = -infinity<double>;
    std::vector<moe::ExpertFacts> facts(5);
    facts[3].is_null = true;
    for (const Scores scores : all_scores)
        for (const Scope scope : {Scope::batch, Scope::sequence})
            for (const Noise noise : {Noise::none, Noise::normal, Noise::gumbel}) {
                moe::Matrix<double> live = moe::testing::random_matrix<double>(9, 5, 12, 3);
                gates_test::expect_exact_gradient(
                    ExpertChoice{.scope = scope, .scores = scores, .noise = noise}, live, 5,
                    {.training = true, .sequence_offsets = offsets, .experts = facts});
            }
    gates_test::expect_exact_gradient(
        ExpertChoice{.scores = Scores::sigmoid, .inference_threshold = 0.4},
        moe::testing::random_matrix<double>(9, 5, 12, 3), 5);
    for (const Scores scores : all_scores) {
        auto masked = batch<double>(ExpertChoice{.scores = scores}, 5);
        masked.route(z);
        const auto dz =
            masked.backward(z, gates_test::derivatives<double>(masked.routing.num_assignments()));
        EXPECT_TRUE(dz.allFinite());
        EXPECT_TRUE((dz.row(6).array() == 0).all() && dz(2, 1) == 0);
    }
}

TEST(ExpertChoiceGradient, IsExactInALayer) {
    for (const Scores scores : all_scores)
        EXPECT_TRUE(moe::testing::check_gradients(
            moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 3}, moe::LinearRouter{},
                                    ExpertChoice{.scores = scores},
                                    moe::Swiglu{.count = 3, .ffn_dim = 6}, moe::Zero{}),
            {.rows = 7, .columns = 5, .scale = 0.01}));
}

// ---- settings, threads, memory ----

TEST(ExpertChoiceSettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(ExpertChoice{}, 8), "");
    EXPECT_EQ(refusal(ExpertChoice{.capacity_factor = 0}, 8),
              "moe::ExpertChoice: capacity_factor is 0, it must be finite and > 0: experts per "
              "token in the mean");
    EXPECT_NE(refusal(ExpertChoice{.capacity_factor = nan<double>}, 8), "");
    EXPECT_EQ(refusal(ExpertChoice{.multiple_of = 0}, 8),
              "moe::ExpertChoice: multiple_of is 0, it must be >= 1");
    EXPECT_EQ(refusal(ExpertChoice{.min_capacity = -1}, 8),
              "moe::ExpertChoice: min_capacity is -1, it must be >= 0");
    EXPECT_EQ(refusal(ExpertChoice{.noise_scale = -1}, 8),
              "moe::ExpertChoice: noise_scale is -1, it must be finite and >= 0");
    EXPECT_EQ(refusal(ExpertChoice{.scores = Scores::sigmoid, .inference_threshold = 1}, 8),
              "moe::ExpertChoice: inference_threshold is 1, it must be in [0, 1)");
    EXPECT_EQ(refusal(ExpertChoice{.inference_threshold = 0.5}, 8),
              "moe::ExpertChoice: inference_threshold is 0.5, it is compared with sigmoids: set "
              "scores to Scores::sigmoid");
    EXPECT_NE(refusal(ExpertChoice{.scores = Scores(3)}, 8), "");
    EXPECT_NE(refusal(ExpertChoice{.noise = Noise(3)}, 8), "");
    EXPECT_NE(refusal(ExpertChoice{.scope = Scope(2)}, 8), "");
    EXPECT_NE(refusal(ExpertChoice{.rounding = Rounding(2)}, 8), "");
    EXPECT_NE(refusal(ExpertChoice{}, 0), "");
}

TYPED_TEST(ExpertChoiceGate, GivesTheSameBitsForAnyThreadCountAndAllocatesNothingAgain) {
    using S = TypeParam;
    const std::array<Index, 4> offsets{0, 300, 301, 700};
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(700, 23, 3, 4);
    for (const Scores scores : all_scores)
        for (const Scope scope : {Scope::batch, Scope::sequence}) {
            const ExpertChoice recipe{.scope = scope, .scores = scores, .noise = Noise::gumbel};
            const moe::Context context{.training = true, .sequence_offsets = offsets};
            gates_test::expect_same_bits_for_any_thread_count<S>(recipe, z, 23, context);
            gates_test::expect_no_allocation<S>(recipe, z, 23, context);
        }
}

}  // namespace
