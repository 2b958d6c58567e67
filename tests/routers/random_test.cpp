// SPDX-License-Identifier: MIT
#include <moe/routers/random.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/stats/load.hpp>
#include <moe/testing/gradient_check.hpp>

#include "routers/decided.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace {

using decided::Chosen;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using support::message;
using Scope = moe::RandomRouter::Scope;

template <class S>
class RandomRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(RandomRouter, Scalars);

template <class S = float>
Chosen draw(const moe::RandomRouter& recipe, Index tokens, Index experts, const Context& context) {
    return decided::chosen_in(
        decided::logits_of<S>(decided::build<S>(recipe, experts), tokens, experts, context));
}

constexpr moe::RandomRouter per_token{.training = Scope::token};
constexpr moe::RandomRouter per_sequence{.training = Scope::sequence, .inference = Scope::sequence};
constexpr moe::RandomRouter dealt{.training = Scope::token, .balanced = true};

/// Sum of (count - mean)^2 / mean over `outcomes` outcomes; those that are missing count as 0.
template <class Counts>
double chi_square(const Counts& counts, double outcomes) {
    double draws = 0, sum = 0;
    for (const auto& [outcome, count] : counts) draws += count;
    const double mean = draws / outcomes;
    for (const auto& [outcome, count] : counts) sum += (count - mean) * (count - mean) / mean;
    return sum + (outcomes - static_cast<double>(counts.size())) * mean;
}

/// Chi-square limits of 0.1 % and 99.9 %: chance is not exactly even either.
struct Limits {
    double low, high;
};
constexpr Limits of_7_degrees{0.599, 24.3}, of_9_degrees{1.15, 27.9}, of_15_degrees{3.48, 37.7},
    of_23_degrees{7.53, 49.7};
template <class Counts>
void expect_uniform(const Counts& counts, double outcomes, Limits limits) {
    EXPECT_GT(chi_square(counts, outcomes), limits.low);
    EXPECT_LT(chi_square(counts, outcomes), limits.high);
}

TYPED_TEST(RandomRouter, DrawsExpertsUniformlyForEachToken) {
    std::map<Index, int> counts;
    for (const auto& experts : draw<TypeParam>(moe::RandomRouter{}, 8000, 8, {.seed = 1})) {
        ASSERT_EQ(experts.size(), 1u);
        ++counts[experts[0]];
    }
    expect_uniform(counts, 8, of_7_degrees);
}

TEST(RandomRouterModule, DrawsNeighboursIndependently) {
    std::map<std::pair<Index, Index>, int> counts;
    const Chosen chosen = draw(moe::RandomRouter{}, 8000, 4, {.seed = 2});
    for (std::size_t t = 0; t + 1 < chosen.size(); t += 2)
        ++counts[{chosen[t][0], chosen[t + 1][0]}];
    expect_uniform(counts, 16, of_15_degrees);
}

TEST(RandomRouterModule, DrawsEverySetOfDifferentExpertsAlike) {
    std::map<std::vector<Index>, int> counts;
    for (const auto& experts : draw({.k = 3}, 10000, 5, {.seed = 3})) {
        ASSERT_EQ(experts.size(), 3u);
        ++counts[experts];
    }
    expect_uniform(counts, 10, of_9_degrees);
}

TYPED_TEST(RandomRouter, TrainsOneExpertPerCallAndInfersOnePerToken) {
    using S = TypeParam;
    std::map<Index, int> counts;
    for (std::uint64_t step = 0; step < 4000; ++step) {
        const Chosen chosen = draw<S>({}, 3, 8, {.training = true, .step = step, .seed = 4});
        EXPECT_EQ(chosen, Chosen(3, chosen[0]));
        ++counts[chosen[0][0]];
    }
    expect_uniform(counts, 8, of_7_degrees);
    const Chosen inferred = draw<S>({}, 100, 8, {.seed = 4});
    EXPECT_EQ(std::set(inferred.begin(), inferred.end()).size(), 8u);
}

TEST(RandomRouterModule, DrawsOnceForEachSequence) {
    std::vector<Index> offsets{0};
    for (Index b = 0; b < 4000; ++b) offsets.push_back(offsets.back() + b % 3);
    Context context{.seed = 5, .sequence_offsets = offsets};
    const Chosen chosen = draw(per_sequence, offsets.back(), 8, context);
    std::map<Index, int> counts;
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
        for (Index t = offsets[b]; t < offsets[b + 1]; ++t) {
            const auto& experts = chosen[static_cast<std::size_t>(t)];
            if (t == offsets[b]) ++counts[experts[0]];
            EXPECT_EQ(experts, chosen[static_cast<std::size_t>(offsets[b])]) << t;
        }
    expect_uniform(counts, 8, of_7_degrees);
}

TYPED_TEST(RandomRouter, IsReproducibleAndDiffersBySeedStepAndStream) {
    using S = TypeParam;
    for (const moe::RandomRouter& recipe : {moe::RandomRouter{}, per_token, dealt}) {
        const Context base{.step = 3, .seed = 7, .stream = 2};
        const Chosen first = draw<S>(recipe, 200, 8, base);
        EXPECT_EQ(draw<S>(recipe, 200, 8, base), first);
        for (const Context& other : {Context{.step = 4, .seed = 7, .stream = 2},
                                     Context{.step = 3, .seed = 8, .stream = 2},
                                     Context{.step = 3, .seed = 7, .stream = 3}}) {
            const Chosen second = draw<S>(recipe, 200, 8, other);
            int same = 0;
            for (std::size_t t = 0; t < 200; ++t) same += first[t] == second[t] ? 1 : 0;
            EXPECT_NEAR(same, 200 / 8, 17);
        }
    }
}

TEST(RandomRouterModule, DrawsTheSameInPartsOfABatch) {
    const std::vector<Index> offsets{0, 4, 9, 12};
    const Context whole{.seed = 7, .first_token = 50, .sequence_offsets = offsets};
    const Chosen by_token = draw(per_token, 12, 64, whole);
    const Chosen by_sequence = draw(per_sequence, 12, 64, whole);
    Context training = whole;
    training.training = true;
    const Chosen by_batch = draw({}, 12, 64, training);
    const auto part = [](const Chosen& all, Index first, Index last) {
        return Chosen(all.begin() + first, all.begin() + last);
    };
    for (Index cut = 1; cut < 12; ++cut) {
        Context first = whole, rest = whole;
        first.sequence_offsets = rest.sequence_offsets = {};
        rest.first_token += cut;
        EXPECT_EQ(draw(per_token, cut, 64, first), part(by_token, 0, cut));
        EXPECT_EQ(draw(per_token, 12 - cut, 64, rest), part(by_token, cut, 12));
        first.training = rest.training = true;
        EXPECT_EQ(draw({}, cut, 64, first), part(by_batch, 0, cut));
        EXPECT_EQ(draw({}, 12 - cut, 64, rest), part(by_batch, cut, 12));
    }
    const std::vector<Index> rest_offsets{0, 5, 8};
    const Context rest{.seed = 7, .first_token = 54, .sequence_offsets = rest_offsets};
    EXPECT_EQ(draw(per_sequence, 8, 64, rest), part(by_sequence, 4, 12));
}

TYPED_TEST(RandomRouter, DealsTokensInEqualParts) {
    using S = TypeParam;
    for (const Index experts : {1, 3, 8})
        for (const Index tokens : {1, 2, 7, 24, 100})
            for (const Index k : {1, 2, 3}) {
                if (k > experts) continue;
                SCOPED_TRACE(std::to_string(experts) + " " + std::to_string(tokens) + " " +
                             std::to_string(k));
                moe::RandomRouter recipe = dealt;
                recipe.k = k;
                const auto layer = decided::layer_of<S>(recipe, experts, k);
                Workspace<S> ws;
                layer.route(moe::testing::random_matrix<S>(tokens, decided::dim, 1), ws,
                            {.training = true, .seed = 11});
                const moe::LoadStats stats = moe::load_stats(ws.routing());
                const auto [least, most] = std::minmax_element(stats.tokens_per_expert.begin(),
                                                               stats.tokens_per_expert.end());
                EXPECT_LE(*most - *least, tokens * k % experts == 0 ? 0 : 1);
                EXPECT_EQ(stats.experts_per_token, static_cast<double>(k));
            }
}

TEST(RandomRouterModule, DealsEveryPartitionAlike) {
    // 4 tokens to 4 experts: 24 permutations; 1 token to 8 experts
    std::map<Chosen, int> partitions;
    std::map<Chosen, int> single;
    for (std::uint64_t step = 0; step < 6000; ++step) {
        ++partitions[draw(dealt, 4, 4, {.step = step, .seed = 12})];
        ++single[draw(dealt, 1, 8, {.step = step, .seed = 13})];
    }
    expect_uniform(partitions, 24, of_23_degrees);
    expect_uniform(single, 8, of_7_degrees);
}

TEST(RandomRouterModule, DealsNothingToPadding) {
    std::vector<std::uint8_t> padding(40, 0);
    for (std::size_t t = 0; t < 40; t += 3) padding[t] = 1;  // 14 of 40
    const Chosen chosen = draw(dealt, 40, 13, {.seed = 1, .padding = padding});
    std::map<Index, int> counts;
    for (std::size_t t = 0; t < 40; ++t) {
        EXPECT_EQ(chosen[t].empty(), padding[t] != 0) << t;
        for (const Index e : chosen[t]) ++counts[e];
    }
    ASSERT_EQ(counts.size(), 13u);
    for (const auto& [expert, count] : counts) EXPECT_EQ(count, 2) << expert;
}

TEST(RandomRouterModule, DealsSequencesInEqualParts) {
    moe::RandomRouter recipe = per_sequence;
    recipe.balanced = true;
    // of 1 to 4 tokens, two empty ones, one of padding, one that begins with padding
    const std::vector<Index> offsets{0, 0, 3, 4, 8, 8, 10, 12, 15, 16};
    std::vector<std::uint8_t> padding(16, 0);
    padding[3] = padding[8] = 1;
    const Chosen chosen =
        draw(recipe, 16, 3, {.seed = 3, .padding = padding, .sequence_offsets = offsets});
    std::map<Index, int> sequences;
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
        std::set<std::vector<Index>> experts;
        for (Index t = offsets[b]; t < offsets[b + 1]; ++t)
            if (!padding[static_cast<std::size_t>(t)])
                experts.insert(chosen[static_cast<std::size_t>(t)]);
        EXPECT_LE(experts.size(), 1u);
        for (const auto& set : experts) ++sequences[set.at(0)];
    }
    EXPECT_EQ(sequences, (std::map<Index, int>{{0, 2}, {1, 2}, {2, 2}}));
}

TEST(RandomRouterModule, GivesTheSameBitsWithAnyNumberOfThreads) {
    moe::RandomRouter two = dealt;
    two.k = 2;
    const std::vector<Index> offsets{0, 100, 200, 1000};
    for (const moe::RandomRouter& recipe : {moe::RandomRouter{.k = 3}, per_sequence, two}) {
        const auto router = decided::build<float>(recipe, 9);
        const Context context{.seed = 6, .sequence_offsets = offsets};
        Workspace<float> serial;
        serial.threads(1);
        const auto expected = decided::logits_of<float>(router, 1000, 9, context, serial);
        for (const int threads : {2, 3}) {
            Workspace<float> ws;
            ws.threads(threads).plan({.serial_flops = 0});
            EXPECT_EQ(decided::logits_of<float>(router, 1000, 9, context, ws), expected);
        }
    }
}

TYPED_TEST(RandomRouter, MakesALayerOfTheExpertsItDrew) {
    using S = TypeParam;
    for (const moe::RandomRouter& recipe : {moe::RandomRouter{.k = 2}, dealt})
        for (const bool training : {false, true}) {
            const auto layer = decided::layer_of<S>(recipe, 5, recipe.k);
            const Context context{.training = training, .step = 1, .seed = 3};
            Workspace<S> ws;
            layer.route(moe::testing::random_matrix<S>(7, decided::dim, 1), ws, context);
            const Chosen chosen = decided::chosen_in(Matrix<S>(ws.logits()));
            EXPECT_FALSE(chosen[0].empty());
            decided::expect_layer_takes<S>(recipe, 5, recipe.k, context, chosen);
        }
    decided::expect_layer_takes<S>(moe::RandomRouter{}, 1, 1, {}, {{0}, {0}});
}

TYPED_TEST(RandomRouter, OfAllExpertsIsTheirMean) {
    using S = TypeParam;
    constexpr Index experts = 4;
    const auto layer =
        moe::make_layer<S>(moe::Config{.model_dim = decided::dim}, moe::RandomRouter{.k = experts},
                           moe::TopK{.k = experts, .scale = 1.0 / experts, .ones = true},
                           moe::Swiglu{.count = experts, .ffn_dim = 3});
    const auto x = moe::testing::random_matrix<S>(6, decided::dim, 1);
    Matrix<S> y(6, decided::dim);
    Workspace<S> ws;
    layer.forward(x, y, ws);
    std::vector<dense::Expert> all;
    for (Index e = 0; e < experts; ++e)
        all.push_back(dense::feed_forward_of(layer.bank().template group<0>(), e));
    const Matrix<double> mean = Matrix<double>::Constant(6, experts, 0.25);
    EXPECT_TRUE(
        moe::testing::compare(y, dense::forward(all, x.template cast<double>(), mean, decided::dim),
                              std::is_same_v<S, float> ? 1e-5 : 1e-13));
}

TEST(RandomRouterModule, TwoPassesOfEqualExpertsAgree) {
    // The consistency loss of THOR is 0 then.
    auto layer = decided::layer_of<double>(per_token, 3, 1);
    const auto x = moe::testing::random_matrix<double>(20, decided::dim, 1);
    const Context first{.training = true, .stream = 0}, second{.training = true, .stream = 1};
    Matrix<double> p = layer(x, first), q = layer(x, second);
    EXPECT_FALSE(moe::testing::same_bits(p, q));
    moe::visit_parameters(layer, [](auto, auto& weights, moe::Role) {
        for (Index i = 0; i < weights.size(); ++i) weights.data()[i] = 0.1 * double(i % 5 - 1);
    });
    p = layer(x, first), q = layer(x, second);
    EXPECT_TRUE(moe::testing::same_bits(p, q));
}

TEST(RandomRouterModule, LosesWhatAMaskTakesAway) {
    std::vector<std::uint8_t> allowed(300, 1);
    for (std::size_t t = 0; t < 100; ++t) allowed[3 * t] = 0;
    const auto layer = decided::layer_of<double>(moe::RandomRouter{}, 3, 1);
    const Matrix<double> x = Matrix<double>::Zero(100, decided::dim);
    Workspace<double> ws;
    layer.route(x, ws);
    Chosen expected = decided::chosen_in(Matrix<double>(ws.logits()));
    for (auto& experts : expected) std::erase(experts, 0);
    layer.route(x, ws, {.allowed = allowed});
    EXPECT_EQ(decided::chosen_in(Matrix<double>(ws.logits())), expected);
    EXPECT_GT(moe::load_stats(ws.routing()).unrouted_tokens, 10);
}

TEST(RandomRouterModule, GradientsAreExact) {
    for (const moe::RandomRouter& recipe : {moe::RandomRouter{.k = 2}, dealt}) {
        EXPECT_TRUE(
            moe::testing::check_gradients(decided::layer_of<double>(recipe, 3, recipe.k),
                                          {.rows = 5, .columns = decided::dim, .scale = 0.01}));
    }
    decided::expect_layer_gradients(moe::RandomRouter{}, 3, 1, 5, {.training = true, .seed = 2});
}

TEST(RandomRouterModule, AllocatesNothingInTheSecondCallNorInTheFirstWithReserve) {
    for (const moe::RandomRouter& recipe : {moe::RandomRouter{}, dealt}) {
        const auto router = decided::build<float>(recipe, 16);
        const Matrix<float> x(500, decided::dim);
        Matrix<float> logits(500, 16);
        const Context context;
        Workspace<float> ws, reserved;
        const auto once = [&](Workspace<float>& on, Index tokens) {
            router.forward(x.topRows(tokens), logits.topRows(tokens), {context, on});
        };
        once(ws, 500);
        EXPECT_EQ(allocations::in([&] { once(ws, 500), once(ws, 70); }), 0);
        router.reserve(500, 500, reserved);
        EXPECT_EQ(allocations::in([&] { once(reserved, 500); }), 0);
        const Index bytes = router.workspace_bytes(500, 500, moe::Keep::everything, 1);
        EXPECT_EQ(bytes, recipe.balanced ? 500 * (16 + Index{sizeof(Index)}) + 16 * 16 : 0);
    }
}

TEST(RandomRouterModule, WorksWithoutTokens) {
    for (const moe::RandomRouter& recipe : {moe::RandomRouter{}, per_sequence, dealt})
        EXPECT_TRUE(draw(recipe, 0, 4, {}).empty());
}

TEST(RandomRouterModule, RefusesWhatItCannotUse) {
    const auto build = [](const moe::RandomRouter& recipe) {
        return message([&] { decided::build<float>(recipe, 4); });
    };
    EXPECT_EQ(build({.k = 0}),
              "moe::RandomRouter: k is 0, it must be in [1, 4], the experts of the layer");
    EXPECT_EQ(build({.k = 5}),
              "moe::RandomRouter: k is 5, it must be in [1, 4], the experts of the layer");
    EXPECT_EQ(build({.training = static_cast<Scope>(3)}),
              "moe::RandomRouter: training is number 3 of its choices, they are 0 to 2");
    EXPECT_EQ(build({.inference = static_cast<Scope>(-1)}),
              "moe::RandomRouter: inference is number -1 of its choices, they are 0 to 2");
    EXPECT_EQ(build({.balanced = true}),
              "moe::RandomRouter: balanced is true and training is Scope::batch, where all tokens "
              "share a draw and nothing is dealt; set it to Scope::token or Scope::sequence");
    EXPECT_NE(build({.training = Scope::token, .inference = Scope::batch, .balanced = true})
                  .find("inference is Scope::batch"),
              std::string::npos);
    EXPECT_EQ(
        message([] { draw(per_sequence, 5, 4, {}); }),
        "moe::RandomRouter: sequence_offsets must ascend from 0 to the 5 tokens of the batch, "
        "it is empty; set Context::sequence_offsets to the first row of each sequence and, "
        "at last, the number of tokens");
    const std::vector<Index> wrong{0, 4};
    EXPECT_EQ(
        message([&] { draw(per_sequence, 5, 4, {.sequence_offsets = wrong}); }),
        "moe::RandomRouter: sequence_offsets must ascend from 0 to the 5 tokens of the batch, "
        "its last entry is 4");
}

}  // namespace
