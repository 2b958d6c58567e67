// SPDX-License-Identifier: MIT
#include <moe/gates/token_gate.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "gates/token_laws.hpp"
#include "support/message.hpp"

namespace {

using gates_test::batch;
using gates_test::Experts;
using gates_test::golden_logits;
using gates_test::rows;
using moe::Call;
using moe::Index;
using moe::Matrix;
using support::message;

// ---- a user's gate: the first experts that a token may have -------------------------------------

struct First {
    Index count = 1;
    moe::Placement placement = moe::Placement::output;

    template <class S>
    auto build(const moe::Shape& shape, moe::Random&) const;
};

template <class S>
class FirstModule : public moe::TokenGate<S, FirstModule<S>> {
    using Base = moe::TokenGate<S, FirstModule>;
    friend Base;

public:
    FirstModule() = default;
    FirstModule(const First& settings, Index experts) : Base(experts), count_(settings.count) {
        rule_.placement = settings.placement;
    }

private:
    static constexpr const char* name = "user::First";
    Index most_experts() const { return count_; }
    const moe::detail::CombineRule& rule() const { return rule_; }
    auto choice(const Call<S>&, Index) const {
        return [this](Index, const S* z, S*, moe::detail::Ranked<S>* ranked) {
            Index chosen = 0;
            for (Index e = 0; e < this->num_experts() && chosen < count_; ++e)
                if (z[e] != -std::numeric_limits<S>::infinity())
                    ranked[chosen++].index = static_cast<std::int32_t>(e);
            return chosen;
        };
    }

    Index count_ = 1;
    moe::detail::CombineRule rule_{.normalize = moe::Normalize::none};
};
template <class S>
auto First::build(const moe::Shape& shape, moe::Random&) const {
    return FirstModule<S>(*this, shape.num_experts);
}

static_assert(moe::Recipe<First>);
static_assert(moe::TrainableGate<FirstModule<float>, float>);
static_assert(moe::TrainableGate<FirstModule<double>, double>);

template <class S>
class TokenGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TokenGate, Scalars);

TYPED_TEST(TokenGate, WeighsWhatTheGateChose) {
    using S = TypeParam;
    const auto z = golden_logits<S>();
    auto tokens = batch<S>(First{.count = 2}, 8);
    tokens.route(z);
    for (Index t = 0; t < 4; ++t) {
        double sum = 0;
        for (Index e = 0; e < 8; ++e) sum += std::exp(double{z(t, e)});
        EXPECT_EQ(tokens.experts_of(t), (Experts{0, 1}));
        for (const Index e : {0, 1})
            EXPECT_NEAR(tokens.weights_of(t)[static_cast<std::size_t>(e)],
                        std::exp(double{z(t, e)}) / sum, 1e-6);
    }
}

TYPED_TEST(TokenGate, GivesAUsersGateTheLawsOfTokens) {
    using S = TypeParam;
    for (const First& recipe : {First{}, First{.count = 3}}) {
        gates_test::expect_token_laws<S>(recipe);
        gates_test::expect_token_permutation<S>(recipe);
        gates_test::expect_bytes_as_said(recipe);
    }
    gates_test::expect_one_expert_works<S>(First{});
    gates_test::expect_no_tokens_route<S>(First{}, 4, 4);
}

TEST(TokenGateGradient, IsExactOnBothSidesOfAnExpert) {
    for (const moe::Placement placement : {moe::Placement::output, moe::Placement::input})
        gates_test::expect_gradient(First{.count = 2, .placement = placement},
                                    moe::testing::random_matrix<double>(6, 5, 3, 2));
}

TEST(TokenGateErrors, NameTheGate) {
    EXPECT_EQ(gates_test::refusal(First{}, 8), "");
    EXPECT_EQ(gates_test::refusal(First{}, 0).find("user::First"), 0u);
    auto tokens = batch<double>(First{}, 8);
    EXPECT_EQ(message([&] { tokens.route(Matrix<double>::Zero(2, 7)); }).find("user::First"), 0u);
    EXPECT_EQ(message([&] { tokens.gate.check({.num_experts = 7, .num_logits = 7}); }).find("user"),
              0u);
    EXPECT_EQ(message([&] { tokens.gate.check({.num_experts = 8, .num_logits = 8}); }), "");
}

// ---- one that looks at the whole batch, and says when its weights are normalised ----------------

template <class S>
class CrowdModule : public moe::TokenGate<S, CrowdModule<S>> {
    using Base = moe::TokenGate<S, CrowdModule>;
    friend Base;

public:
    static constexpr bool per_token = false;
    explicit CrowdModule(Index experts = 1) : Base(experts) {}

private:
    static constexpr const char* name = "user::Crowd";
    Index most_experts() const { return 1; }
    const moe::detail::CombineRule& rule() const { return rule_; }
    /// The expert with the largest sum of logits.
    auto choice(const Call<S>&, moe::In<S> logits) const {
        Index best = 0;
        logits.colwise().sum().maxCoeff(&best);
        return [best](Index, const S*, S*, moe::detail::Ranked<S>* ranked) {
            ranked[0].index = static_cast<std::int32_t>(best);
            return Index(1);
        };
    }
    auto normalizes(const moe::Context& context, Index) const {
        return [training = context.training](Index token, Index) { return training && token > 0; };
    }

    moe::detail::CombineRule rule_;
};
struct Crowd {
    template <class S>
    auto build(const moe::Shape& shape, moe::Random&) const {
        return CrowdModule<S>(shape.num_experts);
    }
};

TYPED_TEST(TokenGate, MayLookAtTheWholeBatchFirst) {
    using S = TypeParam;
    auto tokens = batch<S>(Crowd{}, 3);
    tokens.route(rows<S>({{1, 0, 0}, {0, 2, -9}, {0, 0, 3}}));
    for (Index t = 0; t < 3; ++t) EXPECT_EQ(tokens.experts_of(t), (Experts{1}));
}

TYPED_TEST(TokenGate, NormalizesWhereTheGateSaysSo) {
    using S = TypeParam;
    auto tokens = batch<S>(Crowd{}, 2);
    const Matrix<S> z = Matrix<S>::Zero(3, 2);
    tokens.route(z);
    for (Index t = 0; t < 3; ++t) EXPECT_EQ(tokens.weights_of(t), (std::vector<double>{0.5}));
    tokens.context.training = true;
    tokens.route(z);
    for (Index t = 0; t < 3; ++t)
        EXPECT_EQ(tokens.weights_of(t), (std::vector<double>{t > 0 ? 1 : 0.5}));
}

}  // namespace
