// SPDX-License-Identifier: MIT
#include <moe/gates/wrapper.hpp>

#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::derivatives;
using moe::Index;
using moe::Normalize;
using moe::Score;
using moe::TopK;

/// A gate around a gate: an expert keeps the first `capacity` tokens that chose it.
template <class S, class Inner>
struct FirstCome : moe::GateWrapper<S, Inner> {
    using Base = moe::GateWrapper<S, Inner>;
    static constexpr bool per_token = false;

    Index capacity = 0;

    void select(moe::In<S> logits, moe::Routing& routing, const moe::Call<S>& call) const {
        Base::select(logits, routing, call);
        routing.group();
        std::vector<Index> refused;
        for (Index e = 0; e < routing.num_experts(); ++e) {
            const auto own = routing.assignments_of(e);
            for (Index i = capacity; i < static_cast<Index>(own.size()); ++i)
                refused.push_back(own[static_cast<std::size_t>(i)]);
        }
        for (const Index a : refused) routing.set_dropped(a, moe::Dropped::capacity);
        routing.group();
    }
};

struct FirstComeTopK {
    TopK inner;
    Index capacity = 0;

    template <class S>
    auto build(const moe::Shape& shape, moe::Random& random) const {
        auto gate = inner.build<S>(shape, random);
        return FirstCome<S, decltype(gate)>{{gate}, capacity};
    }
};

static_assert(moe::Recipe<FirstComeTopK>);
static_assert(moe::TrainableGate<FirstCome<double, moe::TopKModule<double>>, double>);

TEST(AWrappedGate, DropsByPositionAndKeepsTheChoiceInTheTokensList) {
    auto tokens = batch<double>(FirstComeTopK{{.k = 3}, 1}, 4);  // capacity below k
    tokens.route(moe::Matrix<double>::Zero(3, 4));               // all want 0, 1, 2
    EXPECT_EQ(tokens.routing.num_assignments(), 9);
    EXPECT_EQ(tokens.routing.num_kept(), 3);
    for (const moe::Assignment& a : tokens.routing.assignments())
        EXPECT_EQ(a.dropped, a.token == 0 ? moe::Dropped::no : moe::Dropped::capacity);
    for (const double weight : tokens.weights_of(2)) EXPECT_NEAR(weight, 1.0 / 3, 1e-15);
}

TEST(AWrappedGate, PassesItsInnerGatesStateOn) {
    auto tokens = batch<double>(FirstComeTopK{{.k = 2, .selection_bias = true}, 1}, 4);
    int visited = 0;
    moe::visit_parameters(tokens.gate, [&](std::string_view name, auto&, moe::Role role) {
        EXPECT_EQ(name, "bias");
        EXPECT_EQ(role, moe::Role::state);
        ++visited;
    });
    EXPECT_EQ(visited, 1);
}

TEST(AWrappedGate, AnswersWhatItsInnerGateAnswers) {
    const auto plain = gates_test::build<double>(FirstComeTopK{{.k = 2}, 1}, 4);
    EXPECT_FALSE(moe::hooks::weighs_input(plain));
    EXPECT_FALSE(moe::hooks::per_token<decltype(plain)>);
    EXPECT_EQ(plain.workspace_bytes(10, 20, moe::Keep::everything, 2),
              plain.inner.workspace_bytes(10, 20, moe::Keep::everything, 2));
    const auto on_input = gates_test::build<double>(
        FirstComeTopK{{.k = 2, .placement = moe::Placement::input}, 1}, 4);
    EXPECT_TRUE(moe::hooks::weighs_input(on_input));
    EXPECT_NO_THROW(on_input.check({.num_experts = 4}));
    EXPECT_EQ(support::message([&] { on_input.check({.num_experts = 5}); }),
              "moe::TopK: the gate was built for 4 experts, the layer has 5; build it again "
              "from its recipe");
}

/// Weights times a learned factor; it does not ask whether its gradient is wanted.
template <class S, class Inner>
struct Scaled : moe::GateWrapper<S, Inner> {
    using Base = moe::GateWrapper<S, Inner>;
    moe::Parameter<S> factor = moe::Parameter<S>(1, 1);

    void backward(moe::In<S> logits, const moe::Routing& routing,
                  const moe::WeightGradients<S>& dweights, moe::Out<S> dlogits, Scaled& grad,
                  const moe::Call<S>& call) const {
        Base::backward(logits, routing, dweights, dlogits, grad, call);
        grad.factor(0, 0) += 1;
    }
    void visit_parameters(auto&& visit) {
        Base::visit_parameters(visit);
        visit("factor", factor);
    }
};
struct ScaledTopK {
    template <class S>
    auto build(const moe::Shape& shape, moe::Random& random) const {
        auto gate = moe::TopK{.k = 1}.build<S>(shape, random);
        return Scaled<S, decltype(gate)>{{gate}};
    }
};

TEST(AWrappedGate, WithAParameterOfItsOwnIsLentAGradientWhereNoneIsWanted) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 4}, moe::LinearRouter{},
                                               ScaledTopK{}, moe::Copy{.count = 3});
    const moe::Matrix<double> x = moe::testing::random_matrix<double>(5, 4, 1);
    moe::Matrix<double> y(5, 4), dx(5, 4), without(5, 4);
    moe::Workspace<double> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, x, dx, grad, ws);
    EXPECT_EQ(grad.gate().factor(0, 0), 1);
    layer.forward(x, y, ws);
    layer.backward(x, x, without, moe::no_gradient, ws);
    EXPECT_TRUE(moe::testing::same_bits(without, dx));
}

TEST(AWrappedGate, HasExactGradientsWithCapacityBelowK) {
    for (const bool kept_only : {false, true})
        for (const Score score : {Score::softmax, Score::sigmoid, Score::softmax_of_selected})
            for (const Normalize normalize : {Normalize::none, Normalize::add_epsilon}) {
                moe::Matrix<double> z = moe::testing::random_spaced<double>(6, 5, 3, 0.2);
                auto tokens = batch<double>(FirstComeTopK{{.k = 3,
                                                           .score = score,
                                                           .normalize = normalize,
                                                           .epsilon = 0.2,
                                                           .normalize_kept_only = kept_only},
                                                          2},
                                            5);
                tokens.route(z);
                const moe::Routing plan = tokens.routing;
                EXPECT_LT(plan.num_kept(), plan.num_assignments());
                // What is dropped reaches no expert, so the loss does not see its weight.
                auto c = derivatives<double>(plan.num_assignments());
                for (std::size_t a = 0; a < c.size(); ++a)
                    if (plan.assignments()[a].dropped != moe::Dropped::no) c[a] = 0;
                const moe::Matrix<double> dz = tokens.backward(z, c);
                const auto loss = [&] {
                    tokens.route(z);
                    double sum = 0;
                    for (std::size_t a = 0; a < c.size(); ++a)
                        sum += c[a] * tokens.routing.assignments()[a].weight;
                    return sum;
                };
                const auto same_branch = [&] {
                    for (std::size_t a = 0; a < c.size(); ++a)
                        if (plan.assignments()[a].expert != tokens.routing.assignments()[a].expert)
                            return false;
                    return true;
                };
                EXPECT_TRUE(
                    moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}));
            }
}

struct MarkedState {
    double drawn = 0;
    Index reserved = 0;
};
/// A gate around a gate that leaves in the workspace what it drew, and adds it to the weights.
template <class S, class Inner>
struct Marked : moe::GateWrapper<S, Inner> {
    using Base = moe::GateWrapper<S, Inner>;

    void select(moe::In<S> logits, moe::Routing& routing, const moe::Call<S>& call) const {
        call.ws.template state<MarkedState>().drawn = call.random().uniform(0, 0);
        Base::select(logits, routing, call);
    }
    void weigh(moe::In<S> logits, moe::Routing& routing, const moe::Call<S>& call) const {
        Base::weigh(logits, routing, call);
        const double drawn = call.ws.template state<MarkedState>().drawn;
        for (Index a = 0; a < routing.num_assignments(); ++a)
            routing.set_weight(a, routing.template weight<double>(a) + drawn);
    }
    void reserve(Index tokens, Index assignments, moe::Workspace<S>& ws) const {
        ws.template state<MarkedState>().reserved += tokens;
        Base::reserve(tokens, assignments, ws);
    }
};

TEST(AWrappedGate, SharesNoStateAndNoDrawsWithItsOwnKindInside) {
    using Twice = Marked<double, Marked<double, moe::TopKModule<double>>>;
    const auto top_k = gates_test::build<double>(TopK{.k = 1}, 3);
    gates_test::Batch<double, Twice> tokens(Twice{{{{top_k}}}});
    tokens.context.seed = 5;
    tokens.route(moe::Matrix<double>::Zero(1, 3));
    const double outer = tokens.call().random().uniform(0, 0),
                 inner = tokens.call().child(0).random().uniform(0, 0);
    EXPECT_NE(outer, inner);
    EXPECT_NEAR(tokens.weights_of(0)[0], 1 + inner + outer, 1e-15);
    tokens.gate.reserve(7, 7, tokens.ws);
    EXPECT_EQ(tokens.ws.state<MarkedState>().reserved, 7);
    EXPECT_EQ(tokens.ws.child(0).state<MarkedState>().reserved, 7);
}

TEST(AWrappedGate, AddsNoiseOfItsOwnToThatOfTheNoiseInside) {
    const moe::GateNoise noise{.kind = moe::GateNoise::Kind::fixed, .std = 0.5};
    const TopK inner{.k = 3, .score = Score::raw, .normalize = Normalize::none};
    auto tokens = batch<double>(moe::Noisy{moe::Noisy{inner, noise}, noise}, 3);
    tokens.context = {.training = true, .seed = 8};
    const moe::Matrix<double> z = moe::testing::random_matrix<double>(20, 3, 1, 2);
    tokens.route(z);
    const moe::CounterRandom outer = tokens.call().random(),
                             within = tokens.call().child(0).random();
    for (const moe::Assignment& a : tokens.routing.assignments()) {
        const double sum = outer.normal(a.token, a.expert) + within.normal(a.token, a.expert);
        EXPECT_NEAR(a.weight, z(a.token, a.expert) + 0.5 * sum, 1e-12);
    }
}

/// A gate around a gate that says nothing of its own.
struct Plain {
    template <class S>
    auto operator()(S, const auto& inner) const {
        auto gate = gates_test::build<S>(inner, 4);
        return moe::GateWrapper<S, decltype(gate)>{gate};
    }
};

TEST(AWrappedGate, IsCausalAroundAGateThatChoosesTokenByTokenUnlessItLooksAtOthers) {
    const auto is_causal = [](const auto& inner) {
        return moe::hooks::is_causal(Plain()(1.0, inner));
    };
    const moe::Capacity in_order{.priority = moe::Capacity::Priority::token_major};
    EXPECT_TRUE(is_causal(TopK{.k = 2}));
    // The gate inside looks back only. Whether the wrapper does, it must say.
    EXPECT_FALSE(is_causal(moe::WithCapacity{TopK{.k = 2}, in_order}));
    EXPECT_TRUE(moe::hooks::is_causal(
        gates_test::build<double>(moe::Noisy{moe::WithCapacity{TopK{.k = 2}, in_order}}, 4)));
    EXPECT_FALSE(moe::hooks::is_causal(
        gates_test::build<double>(moe::Noisy{moe::WithCapacity{TopK{.k = 2}, {}}}, 4)));
    EXPECT_FALSE(is_causal(moe::ExpertChoice{}));
    // One that looks at other tokens, and does not say at which, might look at later ones.
    EXPECT_FALSE(moe::hooks::is_causal(gates_test::build<double>(FirstComeTopK{{.k = 2}, 1}, 4)));
}

}  // namespace
