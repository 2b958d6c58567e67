// SPDX-License-Identifier: MIT
#include <moe/gates/capacity.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/online_pruning.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/io/routing.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/load.hpp>
#include <moe/testing/gradient_check.hpp>

#include "gates/laws.hpp"
#include "seams/check.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::routed;
using gates_test::rows;
using moe::Capacity;
using moe::CapacityLimit;
using moe::Context;
using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::Normalize;
using moe::Routing;
using moe::TopK;
using moe::TopP;
using moe::WithCapacity;
using moe::testing::random_matrix;
using Overflow = Capacity::Overflow;
using Priority = Capacity::Priority;
using Scope = Capacity::Scope;

static_assert(moe::Recipe<WithCapacity<TopK>>);
using OfTopK = moe::CapacityModule<float, moe::TopKModule<float>>;
static_assert(moe::TrainableGate<OfTopK, float>);
static_assert(!OfTopK::per_token && moe::hooks::reads_k<OfTopK> && !moe::hooks::reads_p<OfTopK>);
static_assert(moe::hooks::multiplies_scores<OfTopK>);

constexpr Priority priorities[] = {
    Priority::k_major, Priority::token_major, Priority::probability,      Priority::score,
    Priority::logit,   Priority::random,      Priority::batch_prioritized};
template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();

CapacityLimit places(Index count) { return CapacityLimit::constant(count); }
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

using Pair = std::pair<Index, Index>;  // token, expert
std::set<Pair> kept(const Routing& routing) {
    std::set<Pair> all;
    for (const moe::Assignment& a : routing.assignments())
        if (a.dropped == Dropped::no) all.insert({a.token, a.expert});
    return all;
}
/// Kept ones of the tokens that are asked about.
std::set<Pair> kept_of(const Routing& routing, Index first, Index last) {
    std::set<Pair> some;
    for (const auto& [token, expert] : kept(routing))
        if (token >= first && token < last) some.insert({token - first, expert});
    return some;
}
std::vector<Index> load(const Routing& routing) {
    std::vector<Index> all;
    for (Index e = 0; e < routing.num_experts(); ++e)
        all.push_back(static_cast<Index>(routing.tokens_of(e).size()));
    return all;
}

// ---- who is served ----

/// What is served, in the order of assignments, with what priorities look at.
struct Request {
    Index token, slot, expert;
    double weight, logit, score, importance, draw;
};
std::vector<Request> requests_of(const Routing& routing, const Matrix<double>& z,
                                 const moe::CounterRandom& random) {
    std::vector<Request> all;
    for (const moe::Assignment& a : routing.assignments()) {
        double sum = 0;
        for (Index e = 0; e < z.cols(); ++e)
            sum += std::exp(z(a.token, e) - z.row(a.token).maxCoeff());
        all.push_back({a.token, a.slot, a.expert, a.weight, z(a.token, a.expert),
                       std::exp(z(a.token, a.expert) - z.row(a.token).maxCoeff()) / sum, 1 / sum,
                       random.uniform(a.token, a.expert)});
    }
    return all;
}
void serve(std::vector<Request>& all, Priority priority) {
    std::stable_sort(all.begin(), all.end(), [priority](const Request& a, const Request& b) {
        if (priority == Priority::k_major) return a.slot < b.slot;
        if (priority == Priority::probability) return a.weight > b.weight;
        if (priority == Priority::logit) return a.logit > b.logit;
        if (priority == Priority::score) return a.score > b.score;
        if (priority == Priority::random) return a.draw > b.draw;
        if (priority == Priority::batch_prioritized)
            return a.slot != b.slot ? a.slot < b.slot : a.importance > b.importance;
        return false;
    });
}

TEST(Capacity, KeepsThoseWhoComeFirstByEveryPriority) {
    const Matrix<double> z = random_matrix<double>(40, 5, 1, 2);
    for (const Priority priority : priorities)
        for (const Index k : {1, 2, 3})
            for (const Index capacity : {0, 1, 7, 16, 40}) {
                auto free = batch<double>(TopK{.k = k}, 5);
                free.route(z);
                auto all = requests_of(free.routing, z, free.call().random());
                serve(all, priority);
                std::vector<Index> taken(5, 0);
                std::set<Pair> wanted;
                for (const Request& r : all)
                    if (taken[at(r.expert)]++ < capacity) wanted.insert({r.token, r.expert});

                const Routing routing = routed(
                    WithCapacity{TopK{.k = k}, {.limit = places(capacity), .priority = priority}},
                    z, 5, {});
                ASSERT_EQ(routing.num_assignments(), 40 * k);
                EXPECT_EQ(kept(routing), wanted)
                    << static_cast<int>(priority) << " " << k << " " << capacity;
                for (Index e = 0; e < 5; ++e)  // exactly full, or all that asked
                    EXPECT_EQ(load(routing)[at(e)], std::min(load(free.routing)[at(e)], capacity));
                for (const moe::Assignment& a : routing.assignments())
                    EXPECT_TRUE(a.dropped == Dropped::no || a.dropped == Dropped::capacity);
            }
}

TEST(Capacity, IsTheSameWhetherPositionsCountRequestsOrKeptOnes) {
    const Matrix<double> z = random_matrix<double>(60, 6, 4, 2);
    for (Index k = 1; k <= 4; ++k)
        for (const Index capacity : {1, 5, 11, 30}) {
            const Routing free = routed(TopK{.k = k}, z, 6, {});
            for (const bool counts_requests : {true, false}) {
                std::set<Pair> wanted;
                std::vector<Index> offset(6, 0);
                for (Index slot = 0; slot < k; ++slot) {
                    std::vector<Index> requests(6, 0), served(6, 0);
                    for (Index t = 0; t < 60; ++t) {
                        const Index e = free.of(t)[at(slot)].expert;
                        if (offset[at(e)] + requests[at(e)]++ >= capacity) continue;
                        ++served[at(e)];
                        wanted.insert({t, e});
                    }
                    for (Index e = 0; e < 6; ++e)
                        offset[at(e)] += counts_requests ? requests[at(e)] : served[at(e)];
                }
                EXPECT_EQ(
                    kept(routed(WithCapacity{TopK{.k = k}, {.limit = places(capacity)}}, z, 6, {})),
                    wanted)
                    << k << " " << capacity;
            }
        }
}

TEST(Capacity, ServesTheLowerTokenAmongEquals) {
    const Matrix<double> z = Matrix<double>::Zero(9, 3);
    for (const Priority priority : {Priority::k_major, Priority::token_major, Priority::probability,
                                    Priority::logit, Priority::score, Priority::batch_prioritized})
        EXPECT_EQ(
            kept(routed(WithCapacity{TopK{.k = 2}, {.limit = places(2), .priority = priority}}, z,
                        3, {})),
            (std::set<Pair>{{0, 0}, {0, 1}, {1, 0}, {1, 1}}));
}

TEST(Capacity, ServesImportantTokensFirstIfItIsToldWhoTheyAre) {
    const Matrix<double> z = random_matrix<double>(8, 3, 4, 2);
    const std::vector<double> importance{0, 5, -1, std::numeric_limits<double>::quiet_NaN(),
                                         2, 5, 9,  infinity<double>};
    const Index order[] = {7, 6, 1, 5, 4, 0, 2, 3};
    Context context;
    context.token_importance = importance;
    const Routing free = routed(TopK{.k = 1}, z, 3, {});
    for (const Index capacity : {1, 2}) {
        std::set<Pair> wanted;
        std::vector<Index> taken(3, 0);
        for (const Index t : order)
            if (taken[at(free.of(t)[0].expert)]++ < capacity)
                wanted.insert({t, free.of(t)[0].expert});
        EXPECT_EQ(kept(routed(WithCapacity{TopK{.k = 1},
                                           {.limit = places(capacity),
                                            .priority = Priority::batch_prioritized}},
                              z, 3, context)),
                  wanted);
    }
}

TEST(Capacity, DrawsWhoIsServedByAddressAndEvenly) {
    const WithCapacity recipe{TopK{.k = 1},
                              Capacity{.limit = places(10), .priority = Priority::random}};
    gates_test::expect_noise_by_address<double>(
        WithCapacity{TopK{.k = 1}, Capacity{.limit = places(1),
                                            .scope = Scope::group,
                                            .group_size = 2,
                                            .priority = Priority::random}},
        Matrix<double>::Zero(60, 3), 3);
    const Matrix<double> z = Matrix<double>::Zero(40, 2);
    std::vector<int> served(40, 0);
    for (std::uint64_t step = 0; step < 2000; ++step)
        for (const auto& pair : kept(routed(recipe, z, 2, {.step = step})))
            ++served[at(pair.first)];
    double chi_squared = 0;  // 39 degrees of freedom; variance of each is 2000 * 1/4 * 3/4
    for (const int count : served) {
        EXPECT_NEAR(count, 500, 110);
        chi_squared += (count - 500.0) * (count - 500.0) / 375;
    }
    EXPECT_LT(chi_squared, 75);
    EXPECT_GT(chi_squared, 15);
}

TEST(Capacity, ServesExemptSequencesFirstAndWhollyInTraining) {
    // Sequences of 0 to 9 tokens; half of them exempt, by the draw of their first token.
    const std::vector<Index> offsets{0, 4, 4, 9, 11, 20, 26, 33, 40};
    const Matrix<double> z = random_matrix<double>(40, 5, 1, 2);
    Context training{.training = true, .seed = 5, .first_token = 100};
    training.sequence_offsets = offsets;
    for (const Priority priority : priorities) {
        const auto of = [&](double fraction, Index capacity) {
            return WithCapacity{TopK{.k = 2}, Capacity{.limit = places(capacity),
                                                       .priority = priority,
                                                       .exempt_fraction = fraction}};
        };
        const auto free = routed(TopK{.k = 2}, z, 5, training);
        auto gate = batch<double>(of(0.5, 9), 5);
        gate.context = training;
        gate.route(z);
        const moe::CounterRandom random = gate.call().random();
        std::vector<bool> exempt(40, false);
        for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
            for (Index t = offsets[b]; t < offsets[b + 1]; ++t)
                exempt[at(t)] = random.uniform(100 + offsets[b], 5) < 0.5;
        ASSERT_EQ(std::count(exempt.begin(), exempt.end(), true), 18);

        auto all = requests_of(free, z, random);
        for (Request& r : all) r.draw = random.uniform(100 + r.token, r.expert);
        serve(all, priority);
        std::stable_partition(all.begin(), all.end(),
                              [&](const Request& r) { return exempt[at(r.token)]; });
        for (const Index capacity : {0, 3, 9}) {
            std::vector<Index> taken(5, 0);
            std::set<Pair> wanted;
            for (const Request& r : all)
                if (taken[at(r.expert)]++ < capacity || exempt[at(r.token)])
                    wanted.insert({r.token, r.expert});
            EXPECT_EQ(kept(routed(of(0.5, capacity), z, 5, training)), wanted)
                << static_cast<int>(priority) << " " << capacity;
        }
        Context inference = training;
        inference.training = false;
        EXPECT_EQ(routed(of(0.5, 9), z, 5, inference), routed(of(0, 9), z, 5, inference));
        EXPECT_EQ(kept(routed(of(1, 0), z, 5, training)), kept(free));

        // A sequence is exempt or not wherever it is in the batch.
        Context second = training;
        second.first_token += 20;
        const std::vector<Index> rest{0, 6, 13, 20};
        second.sequence_offsets = rest;
        const Routing alone = routed(of(0.5, 0), Matrix<double>(z.bottomRows(20)), 5, second);
        EXPECT_EQ(kept(alone), kept_of(routed(of(0.5, 0), z, 5, training), 20, 40));
    }
}

TEST(Capacity, ExemptsAShareOfTheSequencesAndWantsToKnowThem) {
    const WithCapacity recipe{TopK{.k = 1}, Capacity{.limit = places(0), .exempt_fraction = 0.1}};
    std::vector<Index> offsets;
    for (Index b = 0; b <= 4000; ++b) offsets.push_back(b);
    Context training{.training = true};
    const Matrix<double> z = Matrix<double>::Zero(4000, 1);
    auto gate = batch<double>(recipe, 1);
    gate.context = training;
    EXPECT_NE(support::message([&] { gate.route(z); }).find("sequence_offsets"), std::string::npos);
    gate.context.training = false;
    EXPECT_NO_THROW(gate.route(z));
    training.sequence_offsets = offsets;
    EXPECT_NEAR(static_cast<double>(routed(recipe, z, 1, training).num_kept()), 400, 80);
}

// ---- who shares the places ----

template <class Recipe>
void expect_scopes_alone(const Recipe& make, const std::vector<Index>& offsets, Scope scope,
                         Index size) {
    const Matrix<double> z = random_matrix<double>(offsets.back(), 4, 6, 2);
    Context context{.training = true, .seed = 5};
    context.sequence_offsets = offsets;
    const Routing whole = routed(make(scope, size), z, 4, context);
    std::vector<Index> ends = offsets;
    if (scope == Scope::group) {
        ends.clear();
        for (Index t = 0; t < z.rows(); t += size) ends.push_back(t);
        ends.push_back(z.rows());
    }
    for (std::size_t b = 0; b + 1 < ends.size(); ++b) {
        Context alone{.training = true, .seed = 5, .first_token = ends[b]};
        const Matrix<double> own = z.middleRows(ends[b], ends[b + 1] - ends[b]);
        EXPECT_EQ(kept_of(whole, ends[b], ends[b + 1]),
                  kept(routed(make(Scope::batch, 0), own, 4, alone)))
            << b;
    }
}

TEST(Capacity, OfAScopeIsThatOfTheScopeAlone) {
    for (const Priority priority : priorities)
        for (const Overflow overflow : {Overflow::drop, Overflow::next_choice})
            for (const auto& limit : {CapacityLimit::megatron(0.8), CapacityLimit::gshard(1, 1)}) {
                const auto make = [&](Scope scope, Index size) {
                    return WithCapacity{TopK{.k = 2}, Capacity{.limit = limit,
                                                               .scope = scope,
                                                               .group_size = size,
                                                               .priority = priority,
                                                               .overflow = overflow}};
                };
                expect_scopes_alone(make, {0, 11, 11, 30, 37}, Scope::sequence, 0);
                expect_scopes_alone(make, {0, 11, 11, 30, 37}, Scope::group, 7);
                expect_scopes_alone(make, {0, 37}, Scope::group, 100);
            }
}

TEST(Capacity, OfSequencesNeedsThem) {
    const Matrix<double> z = random_matrix<double>(30, 4, 6, 2);
    const auto route = [&z](const CapacityLimit& limit, const moe::Context& context) {
        return routed(
            WithCapacity{TopK{.k = 2}, Capacity{.limit = limit, .scope = Scope::sequence}}, z, 4,
            context);
    };
    const auto said = [&](const std::vector<Index>& offsets) {
        return support::message([&] { route(places(3), {.sequence_offsets = offsets}); });
    };
    const std::string must =
        ": sequence_offsets must ascend from 0 to the 30 tokens of the batch, ";
    EXPECT_EQ(said({}), "moe::Capacity" + must +
                            "it is empty; set Context::sequence_offsets to the first row of each "
                            "sequence and, at last, the number of tokens");
    EXPECT_EQ(said({0, 31}), "moe::Context" + must + "its last entry is 31");
    const std::vector<Index> one{0, 30};
    EXPECT_EQ(route(places(3), {.sequence_offsets = one}),
              routed(WithCapacity{TopK{.k = 2}, Capacity{.limit = places(3)}}, z, 4, {}));
    EXPECT_EQ(route(CapacityLimit::none(), {}).num_kept(), 60) << "nothing is counted";
}

/// Gives everybody expert 0, whatever the logits say.
struct First {
    template <class S>
    struct Module {
        using Scalar = S;
        void select(moe::In<S> logits, Routing& routing) const {
            for (Index t = 0; t < logits.rows(); ++t) routing.add(t, 0);
        }
        void backward(moe::In<S>, const Routing&, const moe::WeightGradients<S>&,
                      moe::Out<S>) const {}
    };
    template <class S>
    Module<S> build(const moe::Shape&, moe::Random&) const {
        return {};
    }
};

TEST(Capacity, PaddingTakesNoPlaceAndIsNotCounted) {
    std::vector<std::uint8_t> padding(24, 0);
    Matrix<double> z = random_matrix<double>(24, 3, 6, 2), own(16, 3);
    Index next = 0;
    for (Index t = 0; t < 24; ++t) {
        padding[at(t)] = t % 3 == 0;
        if (t % 3 == 0)
            z.row(t).setConstant(-infinity<double>);  // as the layer does
        else
            own.row(next++) = z.row(t);
    }
    Context context;
    context.padding = padding;
    for (const Priority priority : priorities) {
        if (priority == Priority::random) continue;  // keyed by the number of the token
        for (const auto& limit :
             {CapacityLimit::gshard(0.7, 1), CapacityLimit::megatron(0.5), places(2)}) {
            const WithCapacity recipe{TopK{.k = 2}, {.limit = limit, .priority = priority}};
            std::set<Pair> moved;
            for (const auto& [t, e] : kept(routed(recipe, own, 3, {})))
                moved.insert({t / 2 * 3 + t % 2 + 1, e});
            EXPECT_EQ(kept(routed(recipe, z, 3, context)), moved);
        }
    }
    // A gate that does not look: what the layer takes out afterwards has no place either.
    auto blind = batch<double>(WithCapacity{First{}, Capacity{.limit = places(2)}}, 3);
    blind.context = context;
    blind.route(z);
    std::set<Pair> of_tokens;
    for (const Pair& pair : kept(blind.routing))
        if (padding[at(pair.first)] == 0) of_tokens.insert(pair);
    EXPECT_EQ(of_tokens, (std::set<Pair>{{1, 0}, {2, 0}}));
}

TEST(Capacity, ExpertsThatAreNotAllowedHaveNoPlacesToTake) {
    const std::vector<moe::ExpertFacts> facts(3);
    std::vector<std::uint8_t> allowed(30, 1);
    for (std::size_t t = 0; t < 4; ++t) allowed[3 * t] = 0;
    auto blind = batch<double>(WithCapacity{First{}, Capacity{.limit = places(2)}}, 3);
    blind.context = {.allowed = allowed, .experts = facts};
    blind.route(Matrix<double>::Zero(10, 3));
    const auto pairs = kept(blind.routing);
    EXPECT_TRUE(pairs.count({4, 0}) == 1 && pairs.count({5, 0}) == 1 && pairs.count({6, 0}) == 0);
}

// ---- how many places ----

TEST(Capacity, OfMoePlusPlusDiffersByWhatExpertsCost) {
    const CapacityLimit limit = CapacityLimit::moe_plus_plus(1, 0.5);
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 4, .seed = 3}, moe::LinearRouter{},
        WithCapacity{TopK{.k = 2}, Capacity{.limit = limit}}, moe::Swiglu{.count = 4, .ffn_dim = 5},
        moe::Constant{.count = 2}, moe::Copy{}, moe::Zero{});
    const Matrix<double> x = random_matrix<double>(90, 4, 2, 3);
    moe::Workspace<double> ws;
    layer.head().route(x, ws);
    const auto free = moe::make_layer<double>(
        moe::Config{.model_dim = 4, .seed = 3}, moe::LinearRouter{}, TopK{.k = 2},
        moe::Swiglu{.count = 4, .ffn_dim = 5}, moe::Constant{.count = 2}, moe::Copy{}, moe::Zero{});
    moe::Workspace<double> free_ws;
    free.head().route(x, free_ws);
    // 180 assignments over 0.5 * 4 + 4 = 6 units: 30 each, 15 for an expert that computes
    bool is_full = false, is_free = false;
    for (Index e = 0; e < 8; ++e) {
        const Index all = load(free_ws.routing())[at(e)], most = e < 4 ? 15 : 30;
        EXPECT_EQ(load(ws.routing())[at(e)], std::min(all, most)) << e;
        (all > most ? is_full : is_free) = true;
    }
    EXPECT_TRUE(is_full && is_free);
}

TEST(Capacity, OfADeviceIsSharedByItsExperts) {
    const Matrix<double> z = random_matrix<double>(48, 6, 9, 3);
    const Routing free = routed(TopK{.k = 2}, z, 6, {});
    const Routing limited = routed(WithCapacity{TopK{.k = 2},
                                                {.limit = CapacityLimit::megatron(0.75),
                                                 .priority = Priority::probability,
                                                 .experts_per_device = 3}},
                                   z, 6, {});
    // 96 assignments over 2 devices: 36 each
    for (const Index device : {0, 1}) {
        std::vector<std::pair<double, Index>> asked;
        std::set<Pair> wanted, found;
        for (Index a = 0; a < free.num_assignments(); ++a) {
            const moe::Assignment& own = free.assignments()[at(a)];
            if (own.expert / 3 == device) asked.push_back({-own.weight, a});
        }
        std::sort(asked.begin(), asked.end());
        for (std::size_t i = 0; i < std::min<std::size_t>(36, asked.size()); ++i) {
            const moe::Assignment& own = free.assignments()[at(asked[i].second)];
            wanted.insert({own.token, own.expert});
        }
        for (const Pair& pair : kept(limited))
            if (pair.second / 3 == device) found.insert(pair);
        EXPECT_EQ(found, wanted);
    }
    EXPECT_LT(limited.num_kept(), free.num_kept());
}

TEST(Capacity, LeavesTheLastExpertsUnlimitedAndOutOfTheFormula) {
    const Matrix<double> z = random_matrix<double>(50, 5, 9, 3);
    for (const Overflow overflow : {Overflow::drop, Overflow::next_choice}) {
        const Routing free = routed(TopK{.k = 2}, z, 5, {});
        const Routing limited =
            routed(WithCapacity{TopK{.k = 2},
                                {.limit = CapacityLimit::megatron(0.5),
                                 .overflow = overflow,
                                 .next_choices = overflow == Overflow::drop ? 0 : 1,
                                 .unlimited_last = 2}},
                   z, 5, {});
        Index made = 0;
        for (Index e = 0; e < 3; ++e) made += load(free)[at(e)];
        const Index most = (made + 5) / 6;  // ceil(made / 3 * 0.5)
        for (Index e = 0; e < 3; ++e) {
            EXPECT_GT(load(free)[at(e)], most);
            EXPECT_EQ(load(limited)[at(e)], most);
        }
        for (Index e = 3; e < 5; ++e) {
            if (overflow == Overflow::drop)
                EXPECT_EQ(load(limited)[at(e)], load(free)[at(e)]);
            else
                EXPECT_GT(load(limited)[at(e)], load(free)[at(e)]);
        }
    }
}

TEST(Capacity, OfInferenceMayBeAnother) {
    const Matrix<double> z = random_matrix<double>(50, 5, 9, 3);
    const Context training{.training = true};
    const Routing free = routed(TopK{.k = 2}, z, 5, {});
    WithCapacity recipe{TopK{.k = 2}, Capacity{.limit = places(3)}};
    EXPECT_EQ(routed(recipe, z, 5, training), routed(recipe, z, 5, {}));
    recipe.capacity.inference_limit = places(5);
    EXPECT_EQ(routed(recipe, z, 5, training).num_kept(), 15);
    EXPECT_EQ(routed(recipe, z, 5, {}).num_kept(), 25);
    recipe.capacity.inference_limit = CapacityLimit::none();
    EXPECT_EQ(routed(recipe, z, 5, training).num_kept(), 15);
    EXPECT_EQ(routed(recipe, z, 5, {}), free);
}

// ---- what becomes of the others ----

/// mesh-TF's no-token-left-behind: rank by rank, tokens that have no place yet try, in order.
std::set<Pair> left_behind(const Matrix<double>& z, Index capacity, Index ranks) {
    std::set<Pair> placed;
    std::vector<Index> taken(at(z.cols()), 0);
    std::vector<bool> has(at(z.rows()), false);
    for (Index rank = 0; rank < ranks; ++rank)
        for (Index t = 0; t < z.rows(); ++t) {
            if (has[at(t)]) continue;
            std::vector<Index> experts(at(z.cols()));
            std::iota(experts.begin(), experts.end(), Index(0));
            std::stable_sort(experts.begin(), experts.end(),
                             [&](Index a, Index b) { return z(t, a) > z(t, b); });
            const Index e = experts[at(rank)];
            if (taken[at(e)] >= capacity) continue;
            ++taken[at(e)];
            has[at(t)] = true;
            placed.insert({t, e});
        }
    return placed;
}

TEST(Capacity, NextChoicesLeaveNoTokenBehindAsMeshTensorFlowDoes) {
    const Matrix<double> z = random_matrix<double>(40, 5, 8, 2);
    for (const Index capacity : {1, 4, 8, 12, 40})
        for (Index more = 1; more <= 4; ++more) {
            const WithCapacity recipe{TopK{.k = 1, .normalize = Normalize::none},
                                      Capacity{.limit = places(capacity),
                                               .overflow = Overflow::next_choice,
                                               .next_choices = more}};
            const Routing routing = routed(recipe, z, 5, {});
            EXPECT_EQ(kept(routing), left_behind(z, capacity, more + 1));
            for (const moe::Assignment& a : routing.assignments()) {  // raw probabilities
                double sum = 0;
                for (Index e = 0; e < 5; ++e) sum += std::exp(z(a.token, e));
                EXPECT_NEAR(a.weight, std::exp(z(a.token, a.expert)) / sum, 1e-14);
            }
        }
    WithCapacity all{TopK{.k = 1}, Capacity{.limit = places(8), .overflow = Overflow::next_choice}};
    const Routing routing = routed(all, z, 5, {});
    EXPECT_EQ(routing.num_kept(), 40);  // as many places as tokens
    EXPECT_EQ(kept(routing), left_behind(z, 8, 5));
}

TEST(Capacity, NextChoicesOfATokenWithTwoExpertsAreOthers) {
    const Matrix<double> z = random_matrix<double>(30, 6, 8, 2);
    const Routing routing =
        routed(WithCapacity{TopK{.k = 2}, {.limit = places(10), .overflow = Overflow::next_choice}},
               z, 6, {});
    EXPECT_EQ(routing.num_kept(), 60);
    for (Index t = 0; t < 30; ++t) {
        std::set<Index> experts;
        Index served = 0;
        for (const moe::Assignment& a : routing.of(t)) {
            EXPECT_TRUE(experts.insert(a.expert).second);
            served += a.dropped == Dropped::no;
            EXPECT_EQ(a.slot < 2 || a.dropped == Dropped::no, true);
        }
        EXPECT_EQ(served, 2);
    }
}

TEST(Capacity, NextChoicesNeverCrossAMask) {
    Matrix<double> z = random_matrix<double>(12, 4, 8, 2);
    z.col(3).setConstant(-infinity<double>);
    z.row(5).setConstant(-infinity<double>);
    z(7, 2) = std::numeric_limits<double>::quiet_NaN();
    const Routing routing =
        routed(WithCapacity{TopK{.k = 1}, {.limit = places(2), .overflow = Overflow::next_choice}},
               z, 4, {});
    EXPECT_EQ(load(routing), (std::vector<Index>{2, 2, 2, 0}));
    EXPECT_TRUE(routing.of(5).empty());
    for (const moe::Assignment& a : routing.assignments())
        EXPECT_EQ(std::isnan(a.weight), a.token == 7);
}

TEST(Capacity, WeightsOfWhatIsLeftAreAsBeforeOrNormalisedAnew) {
    const Matrix<double> z = random_matrix<double>(30, 4, 8, 2);
    const Routing free = routed(TopK{.k = 2}, z, 4, {});
    for (const bool anew : {false, true}) {
        const Routing routing =
            routed(WithCapacity{TopK{.k = 2, .normalize_kept_only = anew}, {.limit = places(8)}}, z,
                   4, {});
        bool saw_one_left = false;
        for (Index t = 0; t < 30; ++t) {
            double sum = 0;
            Index left = 0;
            for (const moe::Assignment& a : routing.of(t)) {
                if (a.dropped != Dropped::no) continue;
                sum += a.weight;
                ++left;
                EXPECT_TRUE(anew || a.weight == free.of(t)[at(a.slot)].weight);
            }
            EXPECT_TRUE(!anew || left == 0 || std::abs(sum - 1) < 1e-14) << sum;
            saw_one_left |= left == 1;
        }
        EXPECT_TRUE(saw_one_left);
    }
}

TEST(Capacity, WhatPassesThroughKeepsItsShare) {
    const Matrix<double> z = random_matrix<double>(30, 4, 8, 2);
    const Routing free = routed(TopK{.k = 2}, z, 4, {});
    for (const bool anew : {false, true}) {
        const Routing routing =
            routed(WithCapacity{TopK{.k = 2, .normalize_kept_only = anew},
                                {.limit = places(8), .overflow = Overflow::pass_through}},
                   z, 4, {});
        EXPECT_EQ(routing.num_kept(), 32);
        for (std::size_t a = 0; a < free.assignments().size(); ++a) {
            EXPECT_EQ(routing.assignments()[a].weight, free.assignments()[a].weight);
            EXPECT_NE(routing.assignments()[a].dropped, Dropped::capacity);
        }
    }
}

// ---- whole layers ----

template <class Gate>
auto make(const Gate& gate, moe::Config config = {.model_dim = 4, .seed = 4}) {
    return moe::make_layer<double>(config, moe::LinearRouter{}, gate,
                                   moe::Swiglu{.count = 4, .ffn_dim = 3});
}

TEST(Capacity, ATokenStandsInForAFullExpert) {
    const Capacity passes{.limit = places(3), .overflow = Overflow::pass_through},
        drops{.limit = places(3)};
    for (const double input_scale : {1.0, 2.0}) {
        const moe::Config config{.model_dim = 4, .input_scale = input_scale, .seed = 4};
        const auto passing = make(WithCapacity{TopK{.k = 2}, passes}, config);
        const auto dropping = make(WithCapacity{TopK{.k = 2}, drops}, config);
        const Matrix<double> x = random_matrix<double>(14, 4, 2, 2);
        Matrix<double> y(14, 4), wanted(14, 4);
        moe::Workspace<double> ws, other;
        passing.forward(x, y, ws);
        dropping.forward(x, wanted, other);
        Index passed = 0;
        for (const moe::Assignment& a : ws.routing().assignments()) {
            if (a.dropped != Dropped::pass_through) continue;
            wanted.row(a.token) += a.weight * x.row(a.token);
            ++passed;
        }
        EXPECT_EQ(passed, 28 - 12);
        EXPECT_TRUE(moe::testing::compare(y, wanted, 1e-14));
    }
}

TEST(Capacity, GradientsThroughALayerAreExactForEveryOverflow) {
    for (const Overflow overflow : {Overflow::drop, Overflow::pass_through, Overflow::next_choice})
        for (const bool anew : {false, true})
            for (const moe::Score score : {moe::Score::softmax, moe::Score::sigmoid}) {
                const auto layer =
                    make(WithCapacity{TopK{.k = 2, .score = score, .normalize_kept_only = anew},
                                      {.limit = places(3), .overflow = overflow}});
                EXPECT_TRUE(
                    moe::testing::check_gradients(layer, {.rows = 9, .columns = 4, .scale = 0.01}));
            }
}

TEST(Capacity, GradientsOnInputWeightsOfWhatPassesThroughAreExact) {
    const auto layer = make(
        WithCapacity{TopK{.k = 2, .score = moe::Score::sigmoid, .placement = moe::Placement::input},
                     {.limit = places(3), .overflow = Overflow::pass_through}});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 9, .columns = 4, .scale = 0.01}));
}

TEST(Capacity, BothWeightsOfWhatPassesThroughHaveGradients) {
    const auto layer = make(TopK{.k = 1});
    Routing plan;
    plan.reset(1, 4);
    plan.add(0, 2, 0.5, 3);
    plan.set_dropped(0, Dropped::pass_through);
    plan.group();
    const Matrix<double> x = rows<double>({{1, 2, 3, 4}}), dy = rows<double>({{2, 0, -1, 1}});
    Matrix<double> y(1, 4), dx(1, 4);
    moe::Workspace<double> ws;
    auto grad = layer.bank();
    std::vector<double> dweight(1), dinput(1);
    layer.bank().apply(x, plan, y, ws);
    layer.bank().apply_backward(x, plan, dy, dx, dweight, dinput, grad, ws);
    EXPECT_EQ(y, Matrix<double>(1.5 * x));
    EXPECT_EQ(dx, Matrix<double>(1.5 * dy));
    EXPECT_EQ(dweight[0], 3 * 3.0);  // dy x is 3
    EXPECT_EQ(dinput[0], 0.5 * 3.0);
}

TEST(Capacity, ComparesWeightsOnTheSideWhereTheyAre) {
    const Matrix<double> z = random_matrix<double>(30, 4, 8, 2);
    const Capacity likeliest{.limit = places(6), .priority = Priority::probability};
    const TopK output{.k = 2, .score = moe::Score::sigmoid, .normalize = Normalize::none};
    TopK input = output;
    input.placement = moe::Placement::input;
    EXPECT_EQ(kept(routed(WithCapacity{output, likeliest}, z, 4, {})),
              kept(routed(WithCapacity{input, likeliest}, z, 4, {})));
}

TEST(Capacity, GradientsAreExact) {
    for (const Overflow overflow : {Overflow::drop, Overflow::next_choice})
        for (const bool anew : {false, true})
            gates_test::expect_exact_gradient(
                WithCapacity{TopK{.k = 2, .normalize_kept_only = anew},
                             {.limit = places(3), .overflow = overflow}},
                random_matrix<double>(10, 5, 3, 1), 5);
}

TEST(Capacity, GradientsAreExactByScoresAndWithExemptSequences) {
    const std::vector<Index> offsets{0, 4, 6, 9};
    Context training{.training = true, .seed = 2};
    training.sequence_offsets = offsets;
    for (const Priority priority : {Priority::score, Priority::random}) {
        const WithCapacity recipe{
            TopK{.k = 2},
            Capacity{.limit = places(2), .priority = priority, .exempt_fraction = 0.5}};
        const Matrix<double> z = random_matrix<double>(9, 5, 3, 1);
        ASSERT_LT(routed(recipe, z, 5, training).num_kept(), 18);
        gates_test::expect_exact_gradient(recipe, z, 5, training);
        gates_test::expect_same_bits_for_any_thread_count<double>(recipe, z, 5, training);
        gates_test::expect_no_allocation<double>(recipe, z, 5, training);
    }
}

TEST(Capacity, TokensPassThroughOnlyWhereOutputsAreAsWideAsTokens) {
    const Capacity passes{.limit = places(3), .overflow = Overflow::pass_through};
    const moe::Config narrow{.model_dim = 4, .output_dim = 3, .seed = 4};
    EXPECT_EQ(support::message([&] {
                  make(WithCapacity{TopK{.k = 2}, passes}, narrow);
              }),
              "moe::Capacity: overflow is pass_through, but output_dim is 3 and model_dim "
              "4; they must be equal");
    const auto layer = make(TopK{.k = 2}, narrow);  // and a routing that someone edits
    const Matrix<double> x = random_matrix<double>(5, 4, 2, 2);
    Matrix<double> y(5, 3);
    moe::Workspace<double> ws;
    layer.forward(x, y, ws);
    Routing plan = ws.routing();
    plan.set_dropped(3, Dropped::pass_through);
    plan.group();
    moe::Workspace<double> of_bank;
    EXPECT_THROW(layer.bank().apply(x, plan, y, of_bank), std::invalid_argument);
    plan.set_dropped(3, Dropped::capacity);
    plan.group();
    EXPECT_NO_THROW(layer.bank().apply(x, plan, y, of_bank));
}

TEST(Capacity, IsReplayedWithItsDrops) {
    for (const Overflow overflow :
         {Overflow::drop, Overflow::pass_through, Overflow::next_choice}) {
        const auto layer = make(WithCapacity{TopK{.k = 2, .normalize_kept_only = true},
                                             {.limit = places(3), .overflow = overflow}});
        const Matrix<double> x = random_matrix<double>(14, 4, 2, 2);
        moe::Workspace<double> ws, other;
        layer.head().route(x, ws);
        const Routing saved = moe::load_routing(moe::save_routing(ws.routing()));
        EXPECT_EQ(saved, ws.routing());
        layer.head().reweigh(x, saved, other);
        EXPECT_EQ(other.routing(), ws.routing());
        Routing mixed = saved;  // every reason at once
        mixed.set_dropped(0, Dropped::pruned);
        mixed.set_dropped(1, Dropped::pass_through);
        mixed.set_dropped(2, Dropped::capacity);
        mixed.group();
        EXPECT_EQ(moe::load_routing(moe::save_routing(mixed)), mixed);
        layer.head().reweigh(x, mixed, other);
        EXPECT_TRUE(gates_test::same_choices(other.routing(), mixed));
    }
}

TEST(Capacity, ShowsInTheLoad) {
    const Matrix<double> z = random_matrix<double>(20, 4, 8, 2);
    for (const Overflow overflow : {Overflow::drop, Overflow::pass_through}) {
        const Routing free = routed(TopK{.k = 1}, z, 4, {});
        const Routing routing = routed(
            WithCapacity{TopK{.k = 1}, {.limit = places(3), .overflow = overflow}}, z, 4, {});
        const moe::LoadStats stats = moe::load_stats(routing);
        EXPECT_EQ(stats.tokens_per_expert, load(routing));
        for (Index e = 0; e < 4; ++e)
            EXPECT_EQ(stats.dropped_per_expert[at(e)], std::max(load(free)[at(e)] - 3, Index(0)));
        EXPECT_EQ(stats.unrouted_tokens, 20 - routing.num_kept());
        EXPECT_DOUBLE_EQ(stats.dropped_fraction, static_cast<double>(20 - routing.num_kept()) / 20);
    }
}

TEST(Capacity, OfFirstComeDropsMoreTowardsTheEnd) {
    // The drop rate by position of OpenMoE (arXiv:2402.01739).
    const Matrix<double> z = random_matrix<double>(400, 4, 8, 2);
    const Routing routing = routed(
        WithCapacity{TopK{.k = 2},
                     {.limit = CapacityLimit::openmoe(0.5), .priority = Priority::token_major}},
        z, 4, {});
    std::vector<Index> dropped(4, 0);
    for (const moe::Assignment& a : routing.assignments())
        dropped[at(a.token / 100)] += a.dropped != Dropped::no;
    EXPECT_EQ(dropped[0], 0);
    EXPECT_EQ(dropped[3], 200);
    EXPECT_LE(dropped[1], dropped[2]);
}

// ---- causality ----

TEST(Capacity, TokenMajorNeverLooksAhead) {
    Matrix<double> z = random_matrix<double>(40, 4, 8, 2), changed = z;
    changed.bottomRows(20) = random_matrix<double>(20, 4, 99, 2);
    const auto differs = [&](Priority priority, Index k) {
        const WithCapacity recipe{
            TopK{.k = k}, Capacity{.limit = CapacityLimit::megatron(0.6), .priority = priority}};
        return kept_of(routed(recipe, z, 4, {}), 0, 20) !=
               kept_of(routed(recipe, changed, 4, {}), 0, 20);
    };
    for (const Index k : {1, 2, 3}) EXPECT_FALSE(differs(Priority::token_major, k));
    EXPECT_FALSE(differs(Priority::k_major, 1));
    EXPECT_TRUE(differs(Priority::k_major, 3));
    EXPECT_TRUE(differs(Priority::probability, 2));
    EXPECT_TRUE(differs(Priority::logit, 1));
    EXPECT_TRUE(differs(Priority::score, 1));
}

TEST(Capacity, SaysWhetherItIsCausal) {
    const auto is_causal = [](const auto& inner, const Capacity& capacity) {
        return gates_test::build<double>(WithCapacity{inner, capacity}, 4).is_causal();
    };
    const Priority in_order = Priority::token_major;
    EXPECT_TRUE(is_causal(TopK{.k = 2}, {.priority = in_order}));
    EXPECT_TRUE(
        is_causal(TopK{.k = 2}, {.priority = in_order, .overflow = Overflow::pass_through}));
    EXPECT_FALSE(is_causal(TopK{.k = 2}, {}));
    EXPECT_FALSE(is_causal(TopK{.k = 2}, {.priority = in_order, .exempt_fraction = 0.1}));
    // How many choose the limited experts is known when all have chosen.
    EXPECT_FALSE(is_causal(TopK{.k = 2}, {.priority = in_order, .unlimited_last = 1}));
    EXPECT_TRUE(
        is_causal(TopK{.k = 2}, {.limit = places(3), .priority = in_order, .unlimited_last = 1}));
    EXPECT_FALSE(
        is_causal(TopK{.k = 2}, {.priority = in_order, .overflow = Overflow::next_choice}));
    EXPECT_FALSE(is_causal(moe::ExpertChoice{}, {.priority = in_order}));
    // Later tokens may lower N where they are pruned.
    const moe::OnlinePruning pruned{TopK{.k = 2}, 0.5, 0.0};
    EXPECT_FALSE(is_causal(pruned, {.priority = in_order}));
    EXPECT_TRUE(is_causal(pruned, {.limit = places(3), .priority = in_order}));
    EXPECT_TRUE(is_causal(moe::SparseMixer{}, {.priority = in_order}));
    EXPECT_TRUE(is_causal(moe::Noisy{TopK{.k = 2}}, {.priority = in_order}));
    EXPECT_FALSE(is_causal(moe::Noisy{TopP{}}, {.priority = in_order}));
    // And raise it where a token's number of experts is its own.
    EXPECT_FALSE(is_causal(TopP{}, {.priority = in_order}));
    EXPECT_TRUE(is_causal(TopP{}, {.limit = places(3), .priority = in_order}));
    EXPECT_TRUE(is_causal(TopP{}, {.limit = CapacityLimit::gshard(), .priority = in_order}));
    EXPECT_FALSE(is_causal(TopP{}, {.limit = CapacityLimit::gshard(),
                                    .inference_limit = CapacityLimit::megatron(),
                                    .priority = in_order}));
}

// ---- other gates inside ----

const Capacity roomy{.limit = places(1000)};

TEST(Capacity, IsOfAnyGate) {
    const Matrix<double> z = random_matrix<double>(40, 6, 8, 2);
    const Context training{.training = true, .seed = 3};
    const auto check = [&](const auto& inner) {
        // As free as alone, with the draws of a gate inside another.
        const Routing free = routed(WithCapacity{inner, roomy}, z, 6, training);
        for (const Priority priority : priorities) {
            const Routing routing =
                routed(WithCapacity{inner, Capacity{.limit = places(5), .priority = priority}}, z,
                       6, training);
            ASSERT_EQ(routing.num_assignments(), free.num_assignments());
            for (Index e = 0; e < 6; ++e)
                EXPECT_EQ(load(routing)[at(e)], std::min(load(free)[at(e)], Index(5)));
            for (std::size_t a = 0; a < free.assignments().size(); ++a) {
                const moe::Assignment &one = free.assignments()[a],
                                      &other = routing.assignments()[a];
                EXPECT_EQ(one.expert, other.expert);
                EXPECT_TRUE(one.dropped == Dropped::no || other.dropped == one.dropped);
            }
        }
    };
    check(TopP{.p = 0.8});
    check(moe::GShardTop2{});
    check(moe::ExpertChoice{});
    check(moe::OnlinePruning{TopK{.k = 3}, 0.5});
    check(moe::Noisy{TopK{.k = 2}, moe::GateNoise{.kind = moe::GateNoise::Kind::fixed}});
    check(WithCapacity{TopK{.k = 3}, Capacity{.limit = places(9)}});
}

TEST(Capacity, IsApartFromThePartsOfTheGateInside) {
    // The same gate type twice, around one another: as if one after the other.
    const Matrix<double> z = random_matrix<double>(40, 3, 8, 2);
    const auto inner = WithCapacity{TopK{.k = 2}, Capacity{.limit = places(20)}};
    const WithCapacity twice{inner, Capacity{.limit = places(9), .priority = Priority::logit}};
    auto gate = batch<double>(twice, 3);
    gate.route(z);
    gate.route(z);
    std::set<Pair> wanted;
    const auto first = kept(routed(inner, z, 3, {}));
    for (Index e = 0; e < 3; ++e) {
        std::vector<std::pair<double, Index>> asked;
        for (const Pair& pair : first)
            if (pair.second == e) asked.push_back({-z(pair.first, e), pair.first});
        std::sort(asked.begin(), asked.end());
        for (std::size_t i = 0; i < std::min<std::size_t>(9, asked.size()); ++i)
            wanted.insert({asked[i].second, e});
    }
    EXPECT_EQ(kept(gate.routing), wanted);

    // What is drawn here does not follow what the same gate inside drew for a token and expert: of
    // 2000 tokens that want one expert, the inner gate keeps half and the outer half of those.
    const Capacity by_draw{.limit = places(1000), .priority = Priority::random};
    const auto halves = [&](Index places_left) {
        Capacity of_outer = by_draw;
        of_outer.limit = places(places_left);
        return kept(routed<double>(WithCapacity{WithCapacity{TopK{.k = 1}, by_draw}, of_outer},
                                   Matrix<double>::Zero(2000, 1), 1, {}));
    };
    const auto half = halves(1000), quarter = halves(500);
    ASSERT_EQ(half.size(), 1000u);
    ASSERT_EQ(quarter.size(), 500u);
    const moe::CounterRandom random = gate.call().child(0).random();  // the inner gate's
    std::vector<double> draws;
    for (const Pair& pair : half) draws.push_back(random.uniform(pair.first, 0));
    std::sort(draws.begin(), draws.end());
    Index above = 0;  // of the quarter, by the inner draws: all of it if the outer drew the same
    for (const Pair& pair : quarter) above += random.uniform(pair.first, 0) > draws[500] ? 1 : 0;
    EXPECT_NEAR(static_cast<double>(above), 250, 50);
}

TEST(Capacity, CountsFirstChoicesThatAreTakenBackBeforeIt) {
    // GShard's random second experts are no longer counted.
    const Matrix<double> z = random_matrix<double>(60, 4, 8, 1);
    const Context training{.training = true, .seed = 3};
    const Routing free = routed(WithCapacity{moe::GShardTop2{}, roomy}, z, 4, training);
    ASSERT_LT(free.num_kept(), free.num_assignments());
    const Routing limited =
        routed(WithCapacity{moe::GShardTop2{}, Capacity{.limit = CapacityLimit::megatron(0.5)}}, z,
               4, training);
    const Index most = (free.num_kept() + 7) / 8;
    for (Index e = 0; e < 4; ++e)
        EXPECT_EQ(load(limited)[at(e)], std::min(load(free)[at(e)], most));
}

// ---- degenerate batches, settings, threads, memory ----

TEST(Capacity, OfNoTokensAndOfOneExpert) {
    for (const Priority priority : priorities)
        for (const Scope scope : {Scope::batch, Scope::sequence, Scope::group}) {
            const WithCapacity recipe{TopK{.k = 1},
                                      Capacity{.limit = CapacityLimit::gshard(1, 2),
                                               .scope = scope,
                                               .group_size = scope == Scope::group ? 4 : 0,
                                               .priority = priority,
                                               .overflow = Overflow::next_choice}};
            gates_test::expect_no_tokens_route<double>(recipe, 3, 3, {});
            const std::vector<Index> offsets{0, 3};
            const Routing one = routed(recipe, Matrix<double>(Matrix<double>::Zero(3, 1)), 1,
                                       {.sequence_offsets = offsets});
            EXPECT_EQ(one.num_kept(), 3);
        }
    const WithCapacity none{TopK{.k = 1}, Capacity{.limit = places(0)}};
    EXPECT_EQ(routed(none, Matrix<double>(Matrix<double>::Zero(3, 1)), 1, {}).num_kept(), 0);
}

TEST(Capacity, ANaNComesLast) {
    Matrix<double> z = random_matrix<double>(8, 2, 8, 1);
    z.col(0).setConstant(3);
    z(0, 1) = std::numeric_limits<double>::quiet_NaN();
    for (const Priority priority : {Priority::probability, Priority::batch_prioritized}) {
        const Routing routing = routed(WithCapacity{TopK{.k = 1, .normalize = Normalize::none},
                                                    {.limit = places(7), .priority = priority}},
                                       z, 2, {});
        EXPECT_EQ(routing.of(0)[0].dropped, Dropped::capacity);
        EXPECT_EQ(routing.num_kept(), 7);
        EXPECT_TRUE(std::isnan(routing.of(0)[0].weight));
    }
}

TEST(Capacity, ChecksItsSettingsWithASentence) {
    const auto said = [](const Capacity& capacity) {
        return gates_test::refusal(WithCapacity{TopK{.k = 1}, capacity}, 6);
    };
    EXPECT_EQ(said({}), "");
    EXPECT_EQ(said({.limit = {.factor = -1}}),
              "moe::Capacity: factor is -1, it must be >= 0; for no limit take "
              "moe::CapacityLimit::none()");
    EXPECT_NE(said({.inference_limit = CapacityLimit{.factor = -1}}), "");
    EXPECT_EQ(said({.scope = Scope::group}),
              "moe::Capacity: group_size is 0, it must be >= 1 tokens for Scope::group");
    EXPECT_EQ(said({.next_choices = -1}), "moe::Capacity: next_choices is -1, it must be >= 0");
    EXPECT_EQ(
        said({.next_choices = 2}),
        "moe::Capacity: next_choices is 2, but overflow is not Overflow::next_choice; set it, "
        "or leave it 0");
    EXPECT_EQ(said({.group_size = 4}),
              "moe::Capacity: group_size is 4, but scope is not Scope::group; set it, or leave "
              "group_size 0");
    EXPECT_EQ(said({.unlimited_last = 6}),
              "moe::Capacity: unlimited_last is 6, it must be in [0, 6), the experts of the layer");
    EXPECT_NE(said({.unlimited_last = -1}), "");
    EXPECT_EQ(said({.exempt_fraction = 1.5}),
              "moe::Capacity: exempt_fraction is 1.5, it must be in [0, 1]; 0 exempts no sequence");
    EXPECT_NE(said({.exempt_fraction = std::nan("")}), "");
    EXPECT_EQ(said({.experts_per_device = 4}),
              "moe::Capacity: experts_per_device is 4, it must divide the 6 limited experts of the "
              "layer");
    EXPECT_EQ(said({.unlimited_last = 2, .experts_per_device = 4}), "");
    EXPECT_EQ(said({.scope = Scope(3)}),
              "moe::Capacity: scope is number 3 of its choices, they are 0 to 2");
    EXPECT_NE(said({.priority = Priority(7)}), "");
    EXPECT_NE(said({.overflow = Overflow(3)}), "");
    EXPECT_NE(gates_test::refusal(WithCapacity{TopK{.k = 7}}, 6), "");
}

TEST(Capacity, ComparesLogitsOnlyWhereExpertsHaveTheirOwn) {
    const auto said = [](const Capacity& capacity) {  // with as many half-keys as experts
        return support::message([&] {
            const auto layer = make(WithCapacity{moe::ProductKeyTopK{.k = 1}, capacity});
            const Matrix<double> x = random_matrix<double>(5, 4, 2, 2);
            Matrix<double> y(5, 4);
            moe::Workspace<double> ws;
            layer.forward(x, y, ws);
        });
    };
    EXPECT_EQ(said({}), "");
    EXPECT_EQ(said({.priority = Priority::probability}), "");
    EXPECT_EQ(said({.priority = Priority::logit}),
              "moe::Capacity: the gate inside has 4 logits for 4 experts, none of which are the "
              "experts' own; take Priority::probability and not Overflow::next_choice");
    EXPECT_EQ(said({.priority = Priority::score}), said({.priority = Priority::logit}));
    EXPECT_EQ(said({.overflow = Overflow::next_choice}), said({.priority = Priority::logit}));
    EXPECT_EQ(
        said({.priority = Priority::batch_prioritized}),
        "moe::Capacity: token_importance is empty, batch_prioritized wants one per token of a "
        "gate with 4 logits for 4 experts, none of which are the experts' own");
}

TEST(Capacity, ComparesTheExpertsLogitsOfAGateThatWantsOthersBesides) {
    const Matrix<double> z = random_matrix<double>(9, 4, 3, 2);
    Matrix<double> with_noise(9, 8);
    with_noise << z, random_matrix<double>(9, 4, 4, 5);
    for (const Priority priority : {Priority::logit, Priority::score, Priority::batch_prioritized})
        for (const Overflow overflow : {Overflow::drop, Overflow::next_choice}) {
            const Capacity capacity{.limit = places(2), .priority = priority, .overflow = overflow};
            auto plain = batch<double>(WithCapacity{TopK{.k = 2}, capacity}, 4);
            auto noisy = batch<double>(WithCapacity{moe::Noisy{TopK{.k = 2}}, capacity}, 4);
            plain.route(z);
            noisy.route(with_noise);
            EXPECT_EQ(noisy.routing, plain.routing);
            EXPECT_LT(plain.routing.num_kept(), plain.routing.num_assignments());
        }
}

template <class S>
class CapacityOfScalar : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CapacityOfScalar, Scalars);

TYPED_TEST(CapacityOfScalar, GivesTheSameBitsForAnyThreadCountAndAllocatesOnce) {
    using S = TypeParam;
    const auto z = random_matrix<S>(700, 9, 4, 1);
    for (const Priority priority : priorities)
        for (const Overflow overflow :
             {Overflow::drop, Overflow::pass_through, Overflow::next_choice}) {
            const WithCapacity recipe{TopK{.k = 3}, Capacity{.limit = CapacityLimit::megatron(0.7),
                                                             .priority = priority,
                                                             .overflow = overflow}};
            const Context context{.seed = 5};
            gates_test::expect_same_bits_for_any_thread_count<S>(recipe, z, 9, context);
            gates_test::expect_no_allocation<S>(recipe, z, 9, context);
        }
}

TYPED_TEST(CapacityOfScalar, ChoosesAsInDouble) {
    using S = TypeParam;
    const auto z = random_matrix<S>(60, 5, 4, 1);
    const Matrix<double> wide = z.template cast<double>();
    for (const Priority priority : priorities) {
        if (priority == Priority::probability) continue;  // weights are rounded to S
        const WithCapacity recipe{TopK{.k = 2}, Capacity{.limit = places(9), .priority = priority}};
        EXPECT_EQ(kept(routed(recipe, z, 5, {})), kept(routed(recipe, wide, 5, {})));
    }
}

TYPED_TEST(CapacityOfScalar, OfALayerAllocatesNothingTheSecondTime) {
    using S = TypeParam;
    if (!allocations::are_counted) return;
    const auto layer = moe::make_layer<S>(
        moe::Config{.model_dim = 4, .seed = 4}, moe::LinearRouter{},
        WithCapacity{TopK{.k = 2}, {.limit = places(3), .overflow = Overflow::pass_through}},
        moe::Swiglu{.count = 4, .ffn_dim = 3});
    const Matrix<S> x = random_matrix<S>(30, 4, 2, 2);
    Matrix<S> y(30, 4), dx(30, 4);
    moe::SerialExecutor serial;
    moe::Workspace<S> ws(serial);
    auto grad = moe::zeros_like(layer);
    const auto step = [&] {
        layer.forward(x, y, ws);
        layer.backward(x, x, dx, grad, ws);
    };
    step();
    EXPECT_EQ(allocations::in(step), 0);
}

}  // namespace
