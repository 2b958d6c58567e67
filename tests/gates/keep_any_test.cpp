// SPDX-License-Identifier: MIT
#include <moe/gates/keep_any.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/null.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/io/routing.hpp>
#include <moe/layer.hpp>
#include <moe/losses/mask.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/load.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"
#include "seams/check.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using gates_test::refusal;
using gates_test::routed;
using gates_test::rows;
using moe::Context;
using moe::Dropped;
using moe::Index;
using moe::KeepAny;
using moe::Matrix;
using moe::Normalize;
using moe::Routing;
using moe::Schedule;
using moe::Score;
using moe::TopK;
using moe::testing::random_matrix;

static_assert(moe::Recipe<KeepAny>);
using Module = moe::KeepAnyModule<float>;
static_assert(moe::TrainableGate<Module, float>);
static_assert(moe::hooks::per_token<Module> && moe::hooks::reads_k<Module>);
static_assert(moe::hooks::multiplies_scores<Module> && !moe::hooks::reads_p<Module>);

constexpr Context training{.training = true, .seed = 3};
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();
constexpr Score scores[] = {Score::softmax, Score::sigmoid, Score::softmax_of_selected};

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// A batch through the gate, whose V is random.
template <class S>
auto with_masks(const KeepAny& recipe, Index experts, const Context& context) {
    auto tokens = batch<S>(recipe, experts);
    tokens.context = context;
    tokens.gate.mask_weight.view() = random_matrix<S>(recipe.inner.k, recipe.inner.k, 91, 1).eval();
    return tokens;
}

/// c of a token, from the paper's formula, in double.
/// @param g        weights of its n slots
/// @param samples  Gumbel ones, or empty at inference
std::vector<double> kept_by(const std::vector<double>& g, const std::vector<double>& m,
                            const Matrix<double>& v, const std::vector<double>& samples,
                            double tau) {
    const std::size_t n = g.size();
    std::vector<double> a(n), pi(n, 0), c(n, 0);
    for (std::size_t j = 0; j < n; ++j) {
        a[j] = m[j];
        for (std::size_t i = 0; i < n; ++i)
            a[j] += v(static_cast<Index>(j), static_cast<Index>(i)) * g[i];
    }
    if (samples.empty()) {
        if (n > 0) pi[at(std::max_element(a.begin(), a.end()) - a.begin())] = 1;
    } else {
        double sum = 0;
        for (std::size_t j = 0; j < n; ++j) sum += pi[j] = std::exp((a[j] + samples[j]) / tau);
        for (double& p : pi) p /= sum;
    }
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = i; j < n; ++j) c[i] += pi[j];
    return c;
}

template <class S>
class KeepAnyGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(KeepAnyGate, Scalars);

// ---- the formula ----

TYPED_TEST(KeepAnyGate, IsTheFormula) {
    using S = TypeParam;
    constexpr double tolerance = sizeof(S) == 4 ? 3e-5 : 1e-13;
    const Schedule schedule{.from = 2, .to = 0.5, .steps = 10};
    for (const Index k : {1, 2, 4})
        for (const Score score : scores)
            for (const bool trains : {true, false}) {
                const TopK inner{.k = k, .score = score, .normalize = Normalize::none, .scale = 2};
                const Matrix<S> z = random_matrix<S>(50, 6 + k, 4, 2);
                const Context context{.training = trains, .step = 4, .seed = 8, .first_token = 20};
                auto tokens = with_masks<S>(KeepAny{inner, schedule}, 6, context);
                tokens.route(z);
                const Matrix<S> of_experts = z.leftCols(6);
                const Routing plain = routed<S>(inner, of_experts, 6, {});
                const moe::CounterRandom random = tokens.call().random();
                Index gone = 0;
                for (Index t = 0; t < 50; ++t) {
                    std::vector<double> g, m, samples;
                    for (Index i = 0; i < k; ++i) {
                        g.push_back(plain.of(t)[at(i)].weight);
                        m.push_back(static_cast<double>(z(t, 6 + i)));
                        if (trains) samples.push_back(random.gumbel(20 + t, i));
                    }
                    const auto c = kept_by(
                        g, m, tokens.gate.mask_weight.view().template cast<double>(), samples, 1.4);
                    double all = 0, kept = 0;
                    for (std::size_t i = 0; i < g.size(); ++i) {
                        all += g[i];
                        kept += g[i] * c[i];
                    }
                    ASSERT_EQ(tokens.routing.of(t).size(), g.size());
                    for (std::size_t i = 0; i < g.size(); ++i) {
                        const moe::Assignment& a = tokens.routing.of(t)[i];
                        EXPECT_EQ(a.expert, plain.of(t)[i].expert);
                        EXPECT_NEAR(a.weight, g[i] * c[i] * all / kept, tolerance);
                        const bool goes = !trains && c[i] == 0;
                        EXPECT_EQ(a.dropped, goes ? Dropped::pruned : Dropped::no);
                        gone += goes;
                    }
                }
                EXPECT_EQ(gone > 0, !trains && k > 1);
            }
}

TYPED_TEST(KeepAnyGate, ByHand) {
    using S = TypeParam;
    const S log2 = static_cast<S>(std::log(2.0));
    auto tokens = batch<S>(KeepAny{TopK{.k = 2}}, 2);
    const auto z = rows<S>({{0, -1, 1, 1}, {0, -1, 1, 1.5}, {0, -1, 1.5, 1}});
    tokens.route(z);  // V is 0: the mask logits decide, the lower index of equals
    EXPECT_EQ(tokens.routing.of(0)[1].dropped, Dropped::pruned);
    EXPECT_EQ(tokens.routing.of(1)[1].dropped, Dropped::no);
    EXPECT_EQ(tokens.routing.of(2)[1].dropped, Dropped::pruned);
    EXPECT_NEAR(tokens.weights_of(0)[0], 1, 1e-6);
    EXPECT_EQ(tokens.weights_of(0)[1], 0);
    EXPECT_NEAR(tokens.weights_of(1)[0], 1 / (1 + std::exp(-1.0)), 1e-6);
    // a = [0, 2 g_1 - 1] with g = [2/3, 1/3]
    tokens.gate.mask_weight(1, 0) = 2;
    tokens.route(rows<S>({{log2, 0, 0, -1}, {log2, 0, 0, S(-1.5)}}));
    EXPECT_EQ(tokens.routing.of(0)[1].dropped, Dropped::no);
    EXPECT_EQ(tokens.routing.of(1)[1].dropped, Dropped::pruned);
}

TYPED_TEST(KeepAnyGate, TakesSamplesThatAreGiven) {
    using S = TypeParam;
    const std::vector<double> noise{0.5, -0.25};
    auto tokens = batch<S>(KeepAny{TopK{.k = 2}, Schedule::constant(0.5)}, 2);
    tokens.context = {.training = true, .noise = noise};
    tokens.route(rows<S>({{0, 0, 1, 2}}));
    const double c = 1 / (1 + std::exp((1.5 - 1.75) / 0.5));  // of the second slot
    EXPECT_NEAR(tokens.weights_of(0)[0], 1 / (1 + c), 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[1], c / (1 + c), 1e-6);
    tokens.context.noise = std::span(noise).first(1);
    EXPECT_THROW(tokens.route(rows<S>({{0, 0, 1, 2}})), std::invalid_argument);
}

// ---- laws ----

TYPED_TEST(KeepAnyGate, WithEveryMaskKeptIsItsInnerGateToTheBit) {
    using S = TypeParam;
    Matrix<S> z = random_matrix<S>(40, 9, 4, 2);
    z.col(8).setConstant(S(1e6));  // the last mask
    const Matrix<S> of_experts = z.leftCols(6);
    for (const bool trains : {true, false}) {
        const Context context{.training = trains};
        EXPECT_EQ(routed<S>(KeepAny{TopK{.k = 3}}, z, 6, context),
                  routed<S>(TopK{.k = 3}, of_experts, 6, {}));
    }
}

TYPED_TEST(KeepAnyGate, WithHardMasksTrainsAsItInfers) {
    using S = TypeParam;
    const Matrix<S> z = random_matrix<S>(60, 10, 4, 2);
    const std::vector<double> silence(60 * 4, 0.0);
    Context cold{.training = true};
    cold.noise = silence;
    const KeepAny recipe{TopK{.k = 4}, Schedule::constant(1e-7)};
    auto soft = with_masks<S>(recipe, 6, cold), hard = with_masks<S>(recipe, 6, {});
    soft.route(z);
    hard.route(z);
    EXPECT_LT(hard.routing.num_kept(), 240);
    for (std::size_t a = 0; a < 240; ++a)
        EXPECT_NEAR(soft.routing.assignments()[a].weight, hard.routing.assignments()[a].weight,
                    1e-6);
}

TYPED_TEST(KeepAnyGate, KeepsTheSumOfTheWeightsAndTheFirstSlot) {
    using S = TypeParam;
    const Matrix<S> z = random_matrix<S>(60, 10, 4, 2);
    for (const bool trains : {true, false}) {
        auto tokens =
            with_masks<S>(KeepAny{TopK{.k = 4, .scale = 3}}, 6, {.training = trains, .seed = 2});
        tokens.route(z);
        for (Index t = 0; t < 60; ++t) {
            double sum = 0;
            for (const double w : tokens.weights_of(t)) sum += w;
            EXPECT_NEAR(sum, 3, 1e-5);
            EXPECT_EQ(tokens.routing.of(t)[0].dropped, Dropped::no);
            for (std::size_t i = 1; i < 4; ++i)  // a prefix is kept
                EXPECT_TRUE(tokens.routing.of(t)[i - 1].dropped == Dropped::no ||
                            tokens.routing.of(t)[i].dropped == Dropped::pruned);
        }
    }
}

TYPED_TEST(KeepAnyGate, IsBlindToShiftsOfTheMaskLogits) {
    using S = TypeParam;
    Matrix<S> z = random_matrix<S>(30, 9, 4, 2);
    z = (z * S(16)).array().round() / S(16);  // so that a shift by 2 is exact
    Matrix<S> shifted = z;
    shifted.rightCols(3).array() += S(2);
    EXPECT_EQ(routed<S>(KeepAny{TopK{.k = 3}}, z, 6, {}),
              routed<S>(KeepAny{TopK{.k = 3}}, shifted, 6, {}));
}

TYPED_TEST(KeepAnyGate, DrawsByAddressInTrainingOnly) {
    using S = TypeParam;
    const Matrix<S> z = random_matrix<S>(40, 9, 5, 2);
    gates_test::expect_noise_by_address<S>(KeepAny{TopK{.k = 3}}, z, 6);
    gates_test::expect_no_noise<S>(KeepAny{TopK{.k = 3}}, z, 6);
}

TYPED_TEST(KeepAnyGate, OfFewerExpertsHasAsManyMasks) {
    using S = TypeParam;
    Matrix<S> z = random_matrix<S>(6, 8, 4, 2);
    z.rightCols(4).rowwise() = rows<S>({{0, 1, 2, 3}}).row(0);  // the last that there is
    for (Index e = 1; e < 4; ++e) z(0, e) = z(1, e) = -infinity<S>;
    z(1, 1) = 1;
    z.row(2).head(4).setConstant(-infinity<S>);
    for (const bool trains : {true, false}) {
        auto tokens = batch<S>(KeepAny{TopK{.k = 4}}, 4);
        tokens.context = {.training = trains};
        tokens.route(z);
        EXPECT_EQ(tokens.routing.of(0).size(), 1u);
        EXPECT_EQ(tokens.weights_of(0)[0], 1);
        EXPECT_EQ(tokens.routing.of(1).size(), 2u);
        EXPECT_TRUE(tokens.routing.of(2).empty());
        EXPECT_EQ(tokens.routing.num_kept(), 15);
        const auto dz = tokens.backward(z, derivatives<S>(15));
        EXPECT_TRUE(dz.allFinite());
        EXPECT_TRUE((dz.row(2).array() == 0).all() && (dz.row(0).tail(4).array() == 0).all());
        EXPECT_TRUE((dz.row(1).tail(2).array() == 0).all());
        EXPECT_EQ((dz.row(1).segment(4, 2).array() != 0).all(), trains);
    }
}

TYPED_TEST(KeepAnyGate, ReadsTheDial) {
    using S = TypeParam;
    const Matrix<S> z = random_matrix<S>(6, 8, 4, 2);
    auto tokens = batch<S>(KeepAny{TopK{.k = 3}}, 5);
    tokens.context.training = true;
    tokens.context.dial.k = 2;
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 12);
    const std::vector<Index> k{1, 3}, offsets{0, 2, 6};
    tokens.context.dial = {.k_per_sequence = k};
    tokens.context.sequence_offsets = offsets;
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 14);
    tokens.context.dial = {.k = 4};
    EXPECT_EQ(gates_test::batch<S>(TopK{.k = 3}, 5).gate.num_experts(), 5);
    EXPECT_EQ(support::message([&] { tokens.route(z); }),
              "moe::KeepAny: dial.k is 4, there are 3 masks; it must be at most that");
    const std::vector<Index> too_many{1, 4};
    tokens.context.dial = {.k_per_sequence = too_many};
    EXPECT_THROW(tokens.route(z), std::invalid_argument);
}

TYPED_TEST(KeepAnyGate, NeverLetsAMaskedExpertIn) {
    using S = TypeParam;
    const Matrix<S> unmasked = random_matrix<S>(20, 7, 4, 1);
    const std::vector<moe::ExpertFacts> facts(4);
    std::vector<std::uint8_t> allowed(80, 1), per_sequence{0, 1, 1, 1, 1, 1, 1, 0};
    for (std::size_t t = 0; t < 20; ++t) allowed[t * 4 + t % 4] = 0;
    const std::vector<Index> offsets{0, 9, 20};
    for (const bool by_sequence : {false, true})
        for (const bool trains : {false, true}) {
            auto tokens = batch<S>(KeepAny{TopK{.k = 3}}, 4);
            tokens.context = {.training = trains, .experts = facts};
            tokens.context.sequence_offsets = offsets;
            if (by_sequence)
                tokens.context.dial.allowed_per_sequence = per_sequence;
            else
                tokens.context.allowed = allowed;
            Matrix<S> z = unmasked;
            for (Index t = 0; t < 20; ++t)  // as the layer does
                for (Index e = 0; e < 4; ++e)
                    if (!tokens.context.is_allowed(t, e))
                        z(t, e) = -std::numeric_limits<S>::infinity();
            tokens.route(z);
            EXPECT_EQ(tokens.routing.num_assignments(), 60);
            for (const moe::Assignment& a : tokens.routing.assignments())
                EXPECT_TRUE(tokens.context.is_allowed(a.token, a.expert));
            const auto dz = tokens.backward(z, derivatives<S>(60));
            EXPECT_TRUE(dz.allFinite());
            for (Index t = 0; t < 20; ++t)
                for (Index e = 0; e < 4; ++e)
                    EXPECT_TRUE(tokens.context.is_allowed(t, e) || dz(t, e) == 0);
        }
}

TYPED_TEST(KeepAnyGate, ShowsANaN) {
    using S = TypeParam;
    Matrix<S> z = random_matrix<S>(4, 7, 4, 1);
    z(0, 2) = nan<S>;
    z(1, 5) = nan<S>;  // a mask
    z(2, 4) = nan<S>;
    for (const bool trains : {false, true}) {
        auto tokens = with_masks<S>(KeepAny{TopK{.k = 3}}, 4, {.training = trains});
        tokens.route(z);
        for (const Index t : {0, 1, 2})
            EXPECT_TRUE(std::isnan(tokens.weights_of(t)[0])) << t << " " << trains;
        for (const double w : tokens.weights_of(3)) EXPECT_TRUE(std::isfinite(w));
        const auto dz = tokens.backward(z, derivatives<S>(12));
        for (const Index t : {0, 1, 2}) EXPECT_TRUE(std::isnan(dz(t, 0))) << t << " " << trains;
        EXPECT_TRUE(dz.row(3).allFinite());
    }
}

TYPED_TEST(KeepAnyGate, RanksAMaskThatIsNotANumberLast) {
    using S = TypeParam;
    auto tokens = batch<S>(KeepAny{TopK{.k = 3}}, 3);
    tokens.route(
        rows<S>({{3, 2, 1, nan<S>, 1, 2}, {3, 2, 1, 1, nan<S>, 2}, {3, 2, 1, 0, 1, nan<S>}}));
    const std::vector<Index> kept{3, 3, 2};
    for (Index t = 0; t < 3; ++t)
        for (Index i = 0; i < 3; ++i)
            EXPECT_EQ(tokens.routing.of(t)[at(i)].dropped == Dropped::no, i < kept[at(t)]);
}

TYPED_TEST(KeepAnyGate, OfNoTokensOfOneExpertAndOfEqualLogits) {
    using S = TypeParam;
    for (const bool trains : {false, true}) {
        const Context context{.training = trains};
        gates_test::expect_no_tokens_route<S>(KeepAny{TopK{.k = 2}}, 4, 6, context);
        EXPECT_EQ(routed<S>(KeepAny{TopK{.k = 1}}, rows<S>({{-3, 7}}), 1, context).of(0)[0].weight,
                  1);
        const Routing equal =
            routed<S>(KeepAny{TopK{.k = 4}}, Matrix<S>(Matrix<S>::Zero(2, 8)), 4, context);
        EXPECT_EQ(equal.num_kept(), trains ? 8 : 2);
        for (const moe::Assignment& a : equal.of(0)) EXPECT_EQ(a.expert, a.slot);
    }
}

TEST(KeepAnyGate, ASumOfZeroMakesWeightsOfZero) {
    // The only expert kept is a null expert.
    std::vector<moe::ExpertFacts> facts(3);
    facts[0].is_null = true;
    auto tokens = batch<double>(KeepAny{TopK{.k = 2}}, 3);
    tokens.context.experts = facts;
    const auto z = rows<double>({{3, 1, 0, 5, 0}});
    tokens.route(z);
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 0}));
    EXPECT_TRUE(tokens.backward(z, derivatives<double>(2)).allFinite());
}

// ---- replay, other gates around it ----

template <class S, class Gate>
auto make(const Gate& gate) {
    auto layer = moe::make_layer<S>(moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
                                    gate, moe::Swiglu{.count = 4, .ffn_dim = 3});
    if constexpr (requires { layer.gate().mask_weight; })
        layer.gate().mask_weight.view() = random_matrix<S>(3, 3, 91, 1).eval();
    return layer;
}

TEST(KeepAnyLayer, PrunesWhatCostsNothingAndIsReplayed) {
    const auto layer = make<double>(KeepAny{TopK{.k = 3}});
    EXPECT_EQ(layer.head().num_logits(), 7);
    const Matrix<double> x = random_matrix<double>(20, 5, 2, 4);
    moe::Workspace<double> ws, other;
    layer.head().route(x, ws);
    EXPECT_LT(ws.routing().num_kept(), 60);
    EXPECT_GT(ws.routing().num_kept(), 20);
    const auto stats = moe::load_stats(ws.routing());
    EXPECT_NEAR(stats.experts_per_token, static_cast<double>(ws.routing().num_kept()) / 20, 1e-15);
    const Routing saved = moe::load_routing(moe::save_routing(ws.routing()));
    layer.head().reweigh(x, saved, other);
    EXPECT_EQ(other.routing(), ws.routing());

    Routing edited = saved;  // a mask that no one chose: what is pruned by hand weighs nothing
    for (Index t = 0; t < 20; ++t) {
        const Index first = 3 * t;
        for (Index i = 0; i < 3; ++i)
            edited.set_dropped(first + i, i == 1 ? Dropped::pruned : Dropped::no);
    }
    edited.group();
    layer.head().reweigh(x, edited, other);
    for (Index t = 0; t < 20; ++t) {
        EXPECT_EQ(other.routing().of(t)[1].weight, 0);
        EXPECT_NEAR(other.routing().of(t)[0].weight + other.routing().of(t)[2].weight, 1, 1e-14);
    }
    Routing more = saved;
    for (Index e = 0; e < 4; ++e)
        if (std::none_of(saved.of(0).begin(), saved.of(0).end(),
                         [e](const moe::Assignment& a) { return a.expert == e; }))
            more.add(0, e);
    more.group();
    EXPECT_THROW(layer.head().reweigh(x, more, other), std::invalid_argument);
}

TEST(KeepAnyLayer, WithinACapacity) {
    const auto layer = make<double>(moe::WithCapacity{
        KeepAny{TopK{.k = 3}}, moe::Capacity{.limit = moe::CapacityLimit::constant(4)}});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 9, .columns = 5, .scale = 0.01}));
    EXPECT_THROW(make<double>(moe::WithCapacity{
                     KeepAny{TopK{.k = 3}},
                     moe::Capacity{.overflow = moe::Capacity::Overflow::next_choice}}),
                 std::invalid_argument);
}

// ---- gradients ----

TEST(KeepAnyGradient, IsExactForEveryScore) {
    for (const bool trains : {true, false})
        for (const Index k : {1, 2, 4})
            for (const Score score : scores)
                for (const Normalize normalize : {Normalize::none, Normalize::plain})
                    gates_test::expect_exact_gradient(
                        KeepAny{TopK{.k = k, .score = score, .normalize = normalize},
                                Schedule::constant(0.7)},
                        random_matrix<double>(6, 5 + k, 8, 1), 5,
                        {.training = trains, .step = 2, .seed = 4}, 0.01);
}

TEST(KeepAnyGradient, OfAReplayInTrainingKeepsOutWhatIsPruned) {
    Matrix<double> z = random_matrix<double>(6, 9, 8, 1);
    auto tokens = with_masks<double>(KeepAny{TopK{.k = 4}}, 5, training);
    tokens.route(z);
    for (Index t = 0; t < 6; ++t) {
        tokens.routing.set_dropped(4 * t + t % 4, Dropped::pruned);
        tokens.routing.set_dropped(4 * t + 3, Dropped::pruned);
    }
    tokens.routing.group();
    tokens.weigh(z);
    for (const moe::Assignment& a : tokens.routing.assignments())
        EXPECT_EQ(a.weight == 0, a.dropped == Dropped::pruned);
    const auto c = derivatives<double>(24);
    const Matrix<double> dz = tokens.backward(z, c);
    const auto loss = [&] {
        tokens.weigh(z);
        double sum = 0;
        for (std::size_t a = 0; a < c.size(); ++a)
            sum += c[a] * tokens.routing.assignments()[a].weight;
        return sum;
    };
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.scale = 0.01}));
}

/// The layer's gradients at x and at every parameter, in training.
template <class Gate>
void expect_exact_layer(const Gate& gate, const Context& context) {
    const auto grad =
        seams::expect_exact_layer(make<double>(gate), random_matrix<double>(7, 5, 1), context);
    EXPECT_EQ((grad.gate().mask_weight.view().array() != 0).all(), context.training);
}

TEST(KeepAnyGradient, InsideALayerIsExact) {
    std::vector<std::uint8_t> allowed(28, 1), padding(7, 0);
    allowed[2] = allowed[9] = 0;
    padding[3] = 1;
    for (const bool trains : {true, false})
        for (const auto placement : {moe::Placement::output, moe::Placement::input}) {
            Context context{.training = trains, .seed = 6};
            context.allowed = allowed;
            context.padding = padding;
            expect_exact_layer(
                KeepAny{TopK{.k = 3, .score = Score::sigmoid, .placement = placement},
                        Schedule::constant(0.8)},
                context);
        }
}

TEST(KeepAnyGradient, IsAddedAndLeftOutWhereNotWanted) {
    const Matrix<double> z = random_matrix<double>(8, 8, 8, 1);
    auto tokens = with_masks<double>(KeepAny{TopK{.k = 3}}, 5, training);
    tokens.route(z);
    const auto c = derivatives<double>(24);
    Matrix<double> once = Matrix<double>::Zero(8, 8), twice = once, other = once;
    auto grad = moe::zeros_like(tokens.gate), both = moe::zeros_like(tokens.gate);
    moe::KeepAnyModule<double> none;
    tokens.gate.backward(z, tokens.routing, {c, {}}, once, grad, tokens.call());
    tokens.gate.backward(z, tokens.routing, {c, {}}, twice, both, tokens.call());
    tokens.gate.backward(z, tokens.routing, {c, {}}, twice, both, tokens.call());
    tokens.gate.backward(z, tokens.routing, {c, {}}, other, none, tokens.call());
    EXPECT_TRUE(moe::testing::compare(twice, (2 * once).eval(), 1e-14));
    EXPECT_TRUE(moe::testing::compare(both.mask_weight.view().eval(),
                                      (2 * grad.mask_weight.view()).eval(), 1e-14));
    EXPECT_TRUE(moe::testing::same_bits(other, once));
}

// ---- settings, threads, memory ----

TEST(KeepAnySettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(KeepAny{TopK{.k = 2}}, 4), "");
    EXPECT_EQ(refusal(KeepAny{TopK{.k = 2}, {.from = -1, .to = 1, .steps = 9}}, 4),
              "moe::KeepAny: temperature goes from -1 to 1, both must be > 0");
    EXPECT_EQ(refusal(KeepAny{TopK{.k = 2}, Schedule::constant(0)}, 4),
              "moe::KeepAny: temperature goes from 0 to 0, both must be > 0");
    EXPECT_NE(refusal(KeepAny{TopK{.k = 2}, {.from = nan<double>}}, 4), "");
    EXPECT_EQ(refusal(KeepAny{TopK{.k = 2, .normalize_kept_only = true}}, 4),
              "moe::KeepAny: normalize_kept_only of the gate inside is set, it must not be: what "
              "is kept is normalised here");
    EXPECT_NE(refusal(KeepAny{TopK{.k = 5}}, 4), "");
    EXPECT_EQ(
        refusal(KeepAny{TopK{.k = 2, .placement = moe::Placement::straight_through}}, 4),
        "moe::KeepAny: placement of the gate inside is straight_through, it must be output or "
        "input");
    auto tokens = batch<double>(KeepAny{TopK{.k = 2}}, 4);
    EXPECT_EQ(support::message([&] { tokens.select(Matrix<double>::Zero(2, 4)); }),
              "moe::KeepAny: logits is [2, 4], the gate wants 6 logits per token");
}

TEST(KeepAnyMaskLoss, ReachesTheGateThroughGatesAroundIt) {
    // Capacity that is never full, twice: the numbers and gradients of the gate alone.
    const KeepAny recipe{TopK{.k = 3, .score = Score::sigmoid, .normalize = Normalize::none}};
    const moe::Capacity roomy{.limit = moe::CapacityLimit::megatron(100)};
    const auto make = [](const auto& gate) {
        return moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 4}, moe::LinearRouter{},
                                       gate, moe::Swiglu{.count = 4, .ffn_dim = 3});
    };
    auto alone = make(recipe);
    auto within = make(moe::WithCapacity{moe::WithCapacity{recipe, roomy}, roomy});
    moe::KeepAnyModule<double>& inner = within.gate().inner.inner;
    alone.gate().mask_weight.view() = random_matrix<double>(3, 3, 91, 1).eval();
    inner.mask_weight = alone.gate().mask_weight;
    // At inference nothing is drawn; in training the samples are given.
    const std::vector<double> noise(9 * 3, 0.25);
    for (const bool trains : {false, true}) {
        const Context context{.training = trains, .noise = noise};
        const auto x = random_matrix<double>(9, 5, 2, 2);
        moe::Workspace<double> ws, ws_within;
        alone.head().route(x, ws, context);
        within.head().route(x, ws_within, context);
        auto grad = moe::zeros_like(alone);
        auto grad_within = moe::zeros_like(within);
        EXPECT_EQ(moe::mask_loss(alone.gate(), ws, 0.7, grad.gate()).value,
                  moe::mask_loss(within.gate(), ws_within, 0.7, grad_within.gate()).value);
        EXPECT_TRUE(
            moe::testing::same_bits(ws_within.dlogits(), ws.dlogits(), {.allow_zeros = true}));
        EXPECT_TRUE(moe::testing::same_bits(grad_within.gate().inner.inner.mask_weight.view(),
                                            grad.gate().mask_weight.view(), {.allow_zeros = true}));
        EXPECT_EQ(ws.dlogits().isZero(0), !trains);
    }
}

TEST(KeepAnySettings, ParametersAreNamed) {
    const auto gate = gates_test::build<float>(KeepAny{TopK{.k = 2, .selection_bias = true}}, 4);
    std::vector<std::string> names;
    moe::visit_parameters(gate, [&](std::string_view name, const auto& matrix, moe::Role role) {
        names.emplace_back(name);
        EXPECT_EQ(role == moe::Role::trainable, name == "mask_weight");
        EXPECT_EQ(matrix.size(), 4);
        for (Index i = 0; i < 4; ++i) EXPECT_EQ(matrix.data()[i], 0);
    });
    EXPECT_EQ(names, (std::vector<std::string>{"bias", "mask_weight"}));
}

TYPED_TEST(KeepAnyGate, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    const auto z = random_matrix<S>(1500, 39, 4, 1);
    for (const bool trains : {false, true}) {
        const Context context{.training = trains, .seed = 5};
        gates_test::expect_same_bits_for_any_thread_count<S>(KeepAny{TopK{.k = 4}}, z, 35, context);
        gates_test::expect_no_allocation<S>(KeepAny{TopK{.k = 4}}, z, 35, context);
    }
}

}  // namespace
