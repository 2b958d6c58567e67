// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "gates/laws.hpp"
#include "support/message.hpp"

namespace {

using gates_test::build;
using gates_test::refusal;
using moe::Index;
using moe::ProductKeyTopK;
using moe::Score;
using support::message;
using Combine = ProductKeyTopK::Combine;
using Experts = std::vector<Index>;

static_assert(moe::Recipe<ProductKeyTopK>);
static_assert(moe::TrainableGate<moe::ProductKeyTopKModule<float>, float>);
static_assert(moe::hooks::per_token<moe::ProductKeyTopKModule<float>>);

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

template <class S>
class ProductKeyGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ProductKeyGate, Scalars);

/// A batch whose logits are not one per expert.
template <class S>
struct Drive : gates_test::Batch<S, moe::ProductKeyTopKModule<S>> {
    Index experts;

    Drive(const ProductKeyTopK& recipe, Index n)
        : gates_test::Batch<S, moe::ProductKeyTopKModule<S>>(build<S>(recipe, n * n)),
          experts(n * n) {}
    void route(moe::In<S> z) {
        this->routing.reset(z.rows(), experts);
        this->gate.select(z, this->routing, this->call());
        this->routing.group();
        this->weigh(z);
    }
    /// [T, E]
    moe::Matrix<double> weights() const {
        moe::Matrix<double> w = moe::Matrix<double>::Zero(this->routing.num_tokens(), experts);
        for (const moe::Assignment& a : this->routing.assignments())
            w(a.token, a.expert) = a.weight;
        return w;
    }
};

/// The indices of the k largest, the lower of equals.
Experts best(const std::vector<double>& values, Index k) {
    Experts order(values.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<Index>(i);
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
        return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(k));
    return order;
}

/// All n^2 experts of one token, from the papers: weights [E], 0 where not chosen.
std::vector<double> enumerate(const ProductKeyTopK& recipe, const std::vector<double>& z, Index n,
                              const std::vector<std::uint8_t>& allowed = {}) {
    std::vector<double> weights(static_cast<std::size_t>(n * n), 0);
    for (Index h = 0; h < recipe.heads; ++h) {
        const auto from = z.begin() + h * 2 * n;
        const std::vector<double> z1(from, from + n), z2(from + n, from + 2 * n);
        const auto at = [](const std::vector<double>& v, Index i) {
            return v[static_cast<std::size_t>(i)];
        };
        if (recipe.combine == Combine::sum_top_k) {
            std::vector<double> sums;
            for (Index i = 0; i < n; ++i)
                for (Index j = 0; j < n; ++j)
                    sums.push_back(allowed.empty() || allowed[sums.size()] != 0
                                       ? at(z1, i) + at(z2, j)
                                       : -infinity<double>);
            double sum = 0;
            for (const Index e : best(sums, recipe.k)) sum += std::exp(at(sums, e));
            for (const Index e : best(sums, recipe.k))
                weights[static_cast<std::size_t>(e)] += recipe.score == Score::sigmoid
                                                            ? 1 / (1 + std::exp(-at(sums, e)))
                                                            : std::exp(at(sums, e)) / sum;
        } else {
            const Experts first = best(z1, recipe.k), second = best(z2, recipe.k);
            double sum1 = 0, sum2 = 0;
            for (const Index i : first) sum1 += std::exp(at(z1, i));
            for (const Index j : second) sum2 += std::exp(at(z2, j));
            for (const Index i : first)
                for (const Index j : second)
                    if (allowed.empty() || allowed[static_cast<std::size_t>(i * n + j)] != 0)
                        weights[static_cast<std::size_t>(i * n + j)] +=
                            std::exp(at(z1, i)) / sum1 * std::exp(at(z2, j)) / sum2;
        }
    }
    return weights;
}

std::vector<ProductKeyTopK> recipes(Index k, Index heads) {
    return {{.k = k, .heads = heads},
            {.k = k, .heads = heads, .score = Score::sigmoid},
            {.k = k, .heads = heads, .combine = Combine::axis_softmax}};
}

template <class S>
void expect_enumeration(Drive<S>& tokens, const ProductKeyTopK& recipe, const moe::Matrix<S>& z,
                        Index n, bool masks = false) {
    tokens.route(z);
    const moe::Matrix<double> w = tokens.weights();
    for (Index t = 0; t < z.rows(); ++t) {
        const moe::Matrix<double> row = z.row(t).template cast<double>();
        std::vector<std::uint8_t> allowed;
        if (masks) {
            const auto of_token = tokens.context.allowed.subspan(
                static_cast<std::size_t>(t * n * n), static_cast<std::size_t>(n * n));
            allowed.assign(of_token.begin(), of_token.end());
        }
        const auto expected =
            enumerate(recipe, std::vector<double>(row.data(), row.data() + row.size()), n, allowed);
        const moe::Matrix<double> own = w.row(t);
        EXPECT_TRUE(moe::testing::compare(std::vector<double>(own.data(), own.data() + own.size()),
                                          expected, 1e-5, {.allow_zeros = true}));
        Experts chosen;
        for (std::size_t e = 0; e < expected.size(); ++e)
            if (expected[e] > 0) chosen.push_back(static_cast<Index>(e));
        EXPECT_EQ(tokens.experts_of(t), chosen);
    }
}

// ---- what is published ----

TYPED_TEST(ProductKeyGate, IsTheEnumerationOfAllPairs) {
    using S = TypeParam;
    for (const Index n : {1, 2, 3, 5, 8})
        for (const Index heads : {1, 3})
            for (const Index k : {Index(1), Index(2), n})
                for (const ProductKeyTopK& recipe : recipes(std::min(k, n), heads)) {
                    Drive<S> tokens(recipe, n);
                    EXPECT_EQ(tokens.gate.num_logits(n * n), heads * 2 * n);
                    expect_enumeration<S>(
                        tokens, recipe, moe::testing::random_matrix<S>(6, heads * 2 * n, 5, 3), n);
                }
}

TYPED_TEST(ProductKeyGate, ChoosesByHandAsOnPaper) {
    using S = TypeParam;
    // two heads over 3 x 3: head 0 wants (2, 0) and (2, 1), head 1 wants (2, 0) and (1, 0)
    const moe::Matrix<S> z = gates_test::rows<S>({{0, 1, 5, 2, 1, 0, /**/ 0, 3, 4, 3, 0, 0}});
    Drive<S> tokens({.k = 2, .heads = 2}, 3);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{3, 6, 7}));
    const double large = 1 / (1 + std::exp(-1.0)), small = 1 - large;
    EXPECT_NEAR(tokens.weights_of(0)[0], small, 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[1], 2 * large, 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[2], small, 1e-6);
}

TYPED_TEST(ProductKeyGate, KeepsWhatIsAboveTheQuantileAndTheBest) {
    using S = TypeParam;
    const ProductKeyTopK recipe{.k = 2, .combine = Combine::axis_softmax, .by_quantile = true};
    Drive<S> tokens(recipe, 8);  // the quantile 3/4 of the normal distribution is 0.674
    tokens.route(
        gates_test::rows<S>({{1, 0.7, 0.65, 2, -1, 0, 0, 0, /**/ 0, 0, 0.5, 0, 0, 0, -3, 0}}));
    EXPECT_EQ(tokens.experts_of(0), (Experts{0 * 8 + 2, 1 * 8 + 2, 3 * 8 + 2}));
    const double sum = std::exp(1) + std::exp(0.7) + std::exp(2);
    EXPECT_NEAR(tokens.weights_of(0)[0], std::exp(1) / sum, 1e-6);
    EXPECT_NEAR(tokens.weights_of(0)[2], std::exp(2) / sum, 1e-6);

    std::vector<std::string> names;
    moe::visit_parameters(tokens.gate, [&](std::string_view name, const auto&, moe::Role role) {
        names.emplace_back(name);
        EXPECT_EQ(role, moe::Role::state);
    });
    EXPECT_EQ(names, (std::vector<std::string>{"mean", "variance"}));
}

TYPED_TEST(ProductKeyGate, KeepsAboutKWithStatisticsOfItsLogits) {
    using S = TypeParam;
    const ProductKeyTopK recipe{
        .k = 4, .heads = 2, .combine = Combine::axis_softmax, .by_quantile = true};
    Drive<S> tokens(recipe, 16);
    moe::Matrix<S> z(200, 64);
    moe::Random random(3);
    random.fill_normal(z, 5);
    z.array() += S(20);
    z.middleCols(16, 16).array() -= S(50);
    z.row(7).setConstant(-infinity<S>);  // padding counts for nothing
    tokens.gate.update_statistics(z, 1);
    tokens.route(z);
    EXPECT_TRUE(tokens.routing.of(7).empty());
    const double mean = static_cast<double>(tokens.routing.num_assignments()) / 199;
    EXPECT_GT(mean, 20);  // two heads of 4 x 4, less where they meet
    EXPECT_LT(mean, 40);

    double sum = 0, squares = 0;
    for (Index t = 0; t < 200; ++t)
        for (Index i = 16; i < 32 && t != 7; ++i) sum += static_cast<double>(z(t, i)) / (199 * 16);
    for (Index t = 0; t < 200; ++t)
        for (Index i = 16; i < 32 && t != 7; ++i)
            squares += std::pow(static_cast<double>(z(t, i)) - sum, 2) / (199 * 16 - 1);
    std::vector<S> state;
    moe::visit_parameters(tokens.gate, [&](std::string_view, const auto& matrix, moe::Role) {
        state.insert(state.end(), matrix.data(), matrix.data() + matrix.size());
    });
    EXPECT_NEAR(state[1], sum, 1e-4);  // head 0, second axis
    EXPECT_NEAR(state[5], squares, 1e-3);
    const moe::Matrix<S> zeros = moe::Matrix<S>::Zero(4, 64);
    tokens.gate.update_statistics(zeros, 0.25);
    moe::visit_parameters(tokens.gate, [&](std::string_view name, const auto& matrix, moe::Role) {
        const S before = name == "mean" ? state[1] : state[5];
        EXPECT_NEAR(matrix.data()[1], S(0.75) * before, 1e-3);
    });
    Drive<S> plain({.k = 1}, 2);
    EXPECT_THROW(plain.gate.update_statistics(zeros), std::invalid_argument);
    EXPECT_THROW(tokens.gate.update_statistics(zeros.leftCols(3)), std::invalid_argument);
}

// ---- laws ----

TYPED_TEST(ProductKeyGate, WeightsOfAHeadSumToOneAndDoNotCareForAShift) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(20, 3 * 2 * 6, 5, 3);
    moe::Matrix<S> shifted = z;
    for (Index a = 0; a < 6; ++a) shifted.middleCols(a * 6, 6).array() += S(a);
    for (const Combine combine : {Combine::sum_top_k, Combine::axis_softmax}) {
        const ProductKeyTopK recipe{.k = 3, .heads = 3, .combine = combine};
        Drive<S> one(recipe, 6), other(recipe, 6);
        one.route(z);
        other.route(shifted);
        for (Index t = 0; t < 20; ++t) {
            EXPECT_NEAR(one.weights().row(t).sum(), 3, 1e-5);
            EXPECT_EQ(one.experts_of(t), other.experts_of(t));
        }
        EXPECT_TRUE(
            moe::testing::compare(one.weights(), other.weights(), 1e-5, {.allow_zeros = true}));
    }
}

TYPED_TEST(ProductKeyGate, GivesTiesToTheLowerIndex) {
    using S = TypeParam;
    Drive<S> sums({.k = 3}, 4);
    sums.route(moe::Matrix<S>::Zero(1, 8));
    EXPECT_EQ(sums.experts_of(0), (Experts{0, 1, 2}));
    Drive<S> axes({.k = 2, .combine = Combine::axis_softmax}, 4);
    axes.route(moe::Matrix<S>::Zero(1, 8));
    EXPECT_EQ(axes.experts_of(0), (Experts{0, 1, 4, 5}));
}

TYPED_TEST(ProductKeyGate, TreatsEveryTokenForItself) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(9, 2 * 2 * 5, 5, 3);
    for (const ProductKeyTopK& recipe : recipes(2, 2)) {
        Drive<S> all(recipe, 5), alone(recipe, 5);
        all.route(z);
        for (Index t = 0; t < 9; ++t) {
            alone.route(z.row(t));
            EXPECT_EQ(alone.experts_of(0), all.experts_of(t));
            EXPECT_EQ(alone.weights_of(0), all.weights_of(t));
        }
    }
}

TYPED_TEST(ProductKeyGate, WeighsNothingThatNoHeadWouldChoose) {
    using S = TypeParam;
    Drive<S> tokens({.k = 1}, 3);
    const moe::Matrix<S> z = gates_test::rows<S>({{0, 0, 5, 2, 0, 0}});
    tokens.routing.reset(1, 9);
    tokens.routing.add(0, 8);
    tokens.routing.add(0, 6);
    tokens.routing.group();
    tokens.weigh(z);
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 1}));
}

// ---- masks and degenerate rows ----

TYPED_TEST(ProductKeyGate, NeverCrossesAMaskOfPairs) {
    using S = TypeParam;
    const Index n = 5;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(12, 2 * 2 * n, 5, 3);
    std::vector<std::uint8_t> allowed(12 * 25);
    for (std::size_t i = 0; i < allowed.size(); ++i)
        allowed[i] = moe::testing::random_value(7, static_cast<unsigned>(i)) > -0.2;
    for (const ProductKeyTopK& recipe : recipes(3, 2)) {
        Drive<S> tokens(recipe, n);
        tokens.context.allowed = allowed;
        expect_enumeration<S>(tokens, recipe, z, n, true);
    }
    const std::vector<std::uint8_t> none(12 * 25, 0);
    for (const ProductKeyTopK& recipe : recipes(3, 2)) {
        Drive<S> tokens(recipe, n);
        tokens.context.allowed = none;
        tokens.route(z);
        EXPECT_EQ(tokens.routing.num_assignments(), 0);
    }
}

TYPED_TEST(ProductKeyGate, LeavesPaddingAndHalfKeysAtMinusInfinityOut) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(3, 2 * 2 * 4, 5, 3);
    z.row(1).setConstant(-infinity<S>);
    z(0, 2) = z(0, 4) = z(0, 8 + 1) = -infinity<S>;
    z.block(2, 0, 1, 4).setConstant(-infinity<S>);  // head 0 has no first half
    auto all = recipes(3, 2);
    all.push_back({.k = 3, .heads = 2, .combine = Combine::axis_softmax, .by_quantile = true});
    for (const ProductKeyTopK& recipe : all) {
        Drive<S> tokens(recipe, 4);
        tokens.route(z);
        EXPECT_TRUE(tokens.routing.of(1).empty());
        EXPECT_FALSE(tokens.routing.of(2).empty());
        for (const moe::Assignment& a : tokens.routing.assignments())
            EXPECT_TRUE(std::isfinite(a.weight) && a.weight > 0);
        const auto count = tokens.routing.num_assignments();
        const moe::Matrix<S> dz = tokens.backward(z, gates_test::derivatives<S>(count));
        EXPECT_TRUE(dz.allFinite());
        EXPECT_TRUE((dz.row(1).array() == 0).all() && dz(0, 2) == 0 && dz(0, 4) == 0);
    }
}

TYPED_TEST(ProductKeyGate, RanksANaNLastAndShowsIt) {
    using S = TypeParam;
    moe::Matrix<S> z = moe::testing::random_matrix<S>(2, 8, 5, 3);
    z(0, 1) = nan<S>;
    auto all = recipes(2, 1);
    all.push_back({.k = 2, .combine = Combine::axis_softmax, .by_quantile = true});
    for (const ProductKeyTopK& recipe : all) {
        Drive<S> tokens(recipe, 4);
        tokens.route(z);
        ASSERT_FALSE(tokens.routing.of(0).empty());
        for (const Index e : tokens.experts_of(0)) EXPECT_NE(e / 4, 1);
        for (const double weight : tokens.weights_of(0)) EXPECT_TRUE(std::isnan(weight));
        for (const double weight : tokens.weights_of(1)) EXPECT_TRUE(std::isfinite(weight));
        const moe::Matrix<S> dz =
            tokens.backward(z, gates_test::derivatives<S>(tokens.routing.num_assignments()));
        EXPECT_TRUE(dz.row(0).array().isNaN().all() && dz.row(1).allFinite());
    }
}

TYPED_TEST(ProductKeyGate, LeavesNullExpertsOut) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(9);
    facts[6].is_null = true;
    const moe::Matrix<S> z = gates_test::rows<S>({{0, 0, 5, 2, 1, 0}});
    Drive<S> tokens({.k = 2}, 3);
    tokens.context.experts = facts;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{6, 7}));
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{0, 1}));
}

TYPED_TEST(ProductKeyGate, RoutesNoTokens) {
    using S = TypeParam;
    for (const ProductKeyTopK& recipe : recipes(2, 2)) {
        Drive<S> tokens(recipe, 3);
        const moe::Matrix<S> z(0, 12);
        tokens.route(z);
        EXPECT_EQ(tokens.routing.num_assignments(), 0);
        EXPECT_EQ(tokens.backward(z, {}).rows(), 0);
    }
}

// ---- gradients ----

TEST(ProductKeyGradient, AgreesWithDifferences) {
    const Index n = 4;
    std::vector<std::uint8_t> allowed(5 * 16);
    for (std::size_t i = 0; i < allowed.size(); ++i)
        allowed[i] = moe::testing::random_value(7, static_cast<unsigned>(i)) > -0.4;
    std::vector<moe::ExpertFacts> facts(16);
    facts[3].is_null = facts[9].is_null = true;
    auto all = recipes(3, 2);
    all.push_back({.k = 3, .heads = 2, .combine = Combine::axis_softmax, .by_quantile = true});
    for (const ProductKeyTopK& recipe : all)
        for (const bool masks : {false, true}) {
            moe::Matrix<double> z = moe::testing::random_matrix<double>(5, 16, 12, 2);
            Drive<double> tokens(recipe, n);
            if (masks) {
                tokens.context.allowed = allowed;
                tokens.context.experts = facts;
            }
            tokens.route(z);
            const moe::Routing plan = tokens.routing;
            const auto c = gates_test::derivatives<double>(plan.num_assignments());
            const moe::Matrix<double> dz = tokens.backward(z, c);
            const auto loss = [&] {
                tokens.route(z);
                double sum = 0;
                const auto now = tokens.routing.assignments();
                for (std::size_t a = 0; a < std::min(c.size(), now.size()); ++a)
                    sum += c[a] * now[a].weight;
                return sum;
            };
            const auto same_branch = [&] {
                const auto was = plan.assignments(), is = tokens.routing.assignments();
                return std::equal(was.begin(), was.end(), is.begin(), is.end(),
                                  [](const moe::Assignment& a, const moe::Assignment& b) {
                                      return a.token == b.token && a.expert == b.expert;
                                  });
            };
            EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}))
                << static_cast<int>(recipe.combine) << masks;
        }
}

TEST(ProductKeyGradient, IsExactInALayer) {
    for (const ProductKeyTopK& recipe : recipes(2, 2))
        EXPECT_TRUE(moe::testing::check_gradients(
            moe::make_layer<double>(moe::Config{.model_dim = 5, .seed = 3},
                                    moe::LinearRouter{.bias = true}, recipe,
                                    moe::Swiglu{.count = 8, .ffn_dim = 3}, moe::Zero{}),
            {.rows = 6, .columns = 5, .scale = 0.01}));
}

TEST(ProductKeyLayer, KeepsToMasksAndPadding) {
    const auto layer = moe::make_layer<double>(
        moe::Config{.model_dim = 5, .seed = 3}, moe::LinearRouter{},
        ProductKeyTopK{.k = 2, .heads = 2}, moe::Swiglu{.count = 9, .ffn_dim = 3});
    const auto x = moe::testing::random_matrix<double>(6, 5, 1);
    std::vector<std::uint8_t> allowed(54, 1), padding(6, 0);
    for (std::size_t t = 0; t < 6; ++t) allowed[t * 9 + t] = allowed[t * 9 + 4] = 0;
    padding[2] = 1;
    moe::Workspace<double> ws;
    layer.route(x, ws, {.padding = padding, .allowed = allowed});
    for (Index t = 0; t < 6; ++t) {
        EXPECT_EQ(ws.routing().of(t).empty(), t == 2);
        double sum = 0;
        for (const moe::Assignment& a : ws.routing().of(t)) {
            EXPECT_TRUE(a.expert != t && a.expert != 4);
            sum += a.weight;
        }
        EXPECT_NEAR(sum, t == 2 ? 0 : 2, 1e-12);  // what is forbidden leaves no gap
    }
}

// ---- settings, threads, memory ----

TEST(ProductKeySettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(ProductKeyTopK{.k = 3}, 9), "");
    EXPECT_EQ(
        refusal(ProductKeyTopK{.k = 1}, 10),
        "moe::ProductKeyTopK: the layer has 10 experts, it must be a square n x n of pairs of "
        "half-keys; the nearest is 9");
    EXPECT_EQ(
        refusal(ProductKeyTopK{}, 9),
        "moe::ProductKeyTopK: k is 0, it must be in [1, 3], the half-keys of an axis; set it: "
        "moe::ProductKeyTopK{.k = 2}");
    EXPECT_NE(refusal(ProductKeyTopK{.k = 4}, 9), "");
    EXPECT_EQ(refusal(ProductKeyTopK{.k = 1, .heads = 0}, 9),
              "moe::ProductKeyTopK: heads is 0, it must be >= 1");
    EXPECT_NE(refusal(ProductKeyTopK{.k = 1, .score = Score::softmax}, 9), "");
    EXPECT_NE(refusal(ProductKeyTopK{.k = 1, .combine = Combine(2)}, 9), "");
    EXPECT_NE(refusal(ProductKeyTopK{.k = 1, .by_quantile = true}, 9), "");
    EXPECT_NE(
        refusal(ProductKeyTopK{.k = 1, .combine = Combine::axis_softmax, .score = Score::sigmoid},
                9),
        "");
    EXPECT_NE(refusal(ProductKeyTopK{.k = 1}, 0), "");
    Drive<double> tokens({.k = 1}, 3);
    EXPECT_NE(message([&] {
                  tokens.route(moe::Matrix<double>::Zero(2, 9));
              }).find("9 experts and 6 logits per token"),
              std::string::npos);
}

TYPED_TEST(ProductKeyGate, GivesTheSameBitsForAnyThreadCountAndAllocatesNothingAgain) {
    using S = TypeParam;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(500, 3 * 2 * 20, 3, 4);
    auto all = recipes(4, 3);
    all.push_back({.k = 4, .heads = 3, .combine = Combine::axis_softmax, .by_quantile = true});
    for (const ProductKeyTopK& recipe : all) {
        Drive<S> serial(recipe, 20);
        moe::SerialExecutor one;
        serial.ws.use(one);
        serial.route(z);
        const auto c = gates_test::derivatives<S>(serial.routing.num_assignments());
        const moe::Matrix<S> dz = serial.backward(z, c);
        for (const int threads : {2, 3, 7}) {
            moe::ThreadPool pool(threads);
            Drive<S> other(recipe, 20);
            other.ws.use(pool);
            other.route(z);
            EXPECT_EQ(other.routing, serial.routing);
            EXPECT_TRUE(moe::testing::same_bits(other.backward(z, c), dz, {.allow_zeros = true}));
        }
        moe::Matrix<S> sum = moe::Matrix<S>::Zero(500, 120);
        const auto once = [&](Drive<S>& drive) {
            drive.route(z);
            drive.gate.backward(z, drive.routing, {std::span<const S>(c), {}}, sum, drive.gate,
                                drive.call());
        };
        EXPECT_EQ(allocations::in([&] { once(serial); }), 0);
        Drive<S> reserved(recipe, 20);
        reserved.ws.use(one);
        reserved.routing.reserve(500, 400, static_cast<Index>(c.size()));
        const long before = allocations::bytes_asked_for.load();
        reserved.gate.reserve(500, 0, reserved.ws);
        const long spent = allocations::bytes_asked_for.load() - before;
        const Index said = reserved.gate.workspace_bytes(500, 0, moe::Keep::everything, 1);
        if (allocations::are_counted) {
            EXPECT_GE(spent, said);
            EXPECT_LE(spent, said + 1024);
        }
        EXPECT_EQ(allocations::in([&] { once(reserved); }), 0);
    }
}

}  // namespace
