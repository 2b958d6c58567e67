// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "gates/token_laws.hpp"
#include "seams/check.hpp"

namespace {

using gates_test::batch;
using gates_test::chosen;
using gates_test::derivatives;
using gates_test::Experts;
using gates_test::golden_logits;
using gates_test::refusal;
using gates_test::rows;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::TopAny;

static_assert(moe::Recipe<TopAny>);
static_assert(moe::TrainableGate<moe::TopAnyModule<float>, float>);

constexpr Context training{.training = true};

template <class S>
S sigmoid(S z) {
    return 1 / (1 + std::exp(-z));
}

/// Different thresholds, and expert 2 taken out.
template <class Gate>
void set_thresholds(Gate& gate) {
    using S = typename Gate::Scalar;
    for (Index e = 0; e < gate.num_experts(); ++e)
        gate.threshold(0, e) =
            static_cast<S>(0.4 * moe::testing::random_value(21, static_cast<std::uint64_t>(e)));
    gate.mask(0, 2) = 0;
}

template <class S>
class TopAnyGate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TopAnyGate, Scalars);

TYPED_TEST(TopAnyGate, SharesATokenAmongThoseAboveTheirThresholds) {
    using S = TypeParam;
    auto tokens = batch<S>(TopAny{}, 8);
    tokens.context = training;
    tokens.route(golden_logits<S>());  // thresholds of 1/2: logits above 0
    EXPECT_EQ(tokens.experts_of(0), (Experts{5, 0, 2, 6, 3}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{3, 7, 1, 5}));
    EXPECT_EQ(tokens.weights_of(1), (std::vector<double>{0.25, 0.25, 0.25, 0.25}));
    EXPECT_EQ(tokens.weights_of(2), (std::vector<double>{1}));
    EXPECT_EQ(tokens.experts_of(3).size(), 8u) << "k = E";
    for (const double weight : tokens.weights_of(0))
        EXPECT_EQ(weight, static_cast<double>(S(1) / S(5)));
}

TYPED_TEST(TopAnyGate, IsThePlainLoop) {
    using S = TypeParam;
    const Matrix<S> z = moe::testing::random_matrix<S>(80, 9, 5, 1);
    for (const bool is_training : {true, false})
        for (const double scale : {1.0, 2.5}) {
            auto tokens = batch<S>(TopAny{.scale = scale}, 9);
            set_thresholds(tokens.gate);
            for (Index e = 0; e < 9; ++e) tokens.gate.threshold(0, e) += S(0.3);
            tokens.context.training = is_training;
            tokens.route(z);
            int nobody = 0;
            for (Index t = 0; t < 80; ++t) {
                std::vector<std::pair<double, Index>> active;
                std::pair<double, Index> best{1, -1};
                for (Index e = 0; e < 9; ++e) {
                    const double m = e == 2 ? 0 : 1;
                    const double u = m * sigmoid(static_cast<double>(z(t, e)));
                    const double threshold =
                        sigmoid(scale * static_cast<double>(tokens.gate.threshold(0, e)));
                    ASSERT_GT(std::abs(u - threshold), 1e-6) << "choose other numbers";
                    if (u > threshold) active.emplace_back(-u, e);
                    best = std::min(best, std::pair{-u, e});
                }
                nobody += active.empty();
                if (active.empty() && !is_training) active.push_back(best);
                std::sort(active.begin(), active.end());
                ASSERT_EQ(tokens.experts_of(t).size(), active.size());
                for (std::size_t i = 0; i < active.size(); ++i) {
                    EXPECT_EQ(tokens.experts_of(t)[i], active[i].second);
                    EXPECT_NEAR(tokens.weights_of(t)[i], 1.0 / static_cast<double>(active.size()),
                                1e-7);
                }
            }
            EXPECT_GT(nobody, 0);
        }
}

TYPED_TEST(TopAnyGate, LeavesATokenAloneInTrainingOnly) {
    using S = TypeParam;
    const auto z = rows<S>({{-1, -3, -0.5, -0.5}, {0, 0, 0, 0}});
    EXPECT_EQ(chosen(TopAny{}, z, training), (std::vector<Experts>{{}, {}}));
    auto tokens = batch<S>(TopAny{}, 4);
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{2})) << "ties go to the lower index";
    EXPECT_EQ(tokens.experts_of(1), (Experts{0}));
    EXPECT_EQ(tokens.weights_of(0), (std::vector<double>{1}));
    const std::vector<S> c{3, 5};
    EXPECT_TRUE((tokens.backward(z, c).array() == 0).all()) << "it passes no threshold";
}

TYPED_TEST(TopAnyGate, NeverChoosesWhatItsMaskTakesOut) {
    using S = TypeParam;
    auto tokens = batch<S>(TopAny{}, 4);
    tokens.gate.mask(0, 1) = 0;
    tokens.gate.threshold(0, 1) = -1000;  // sigmoid 0
    const auto z = rows<S>({{-1, 9, -2, -3}, {1, 9, 2, -3}});
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0}));
    EXPECT_EQ(tokens.experts_of(1), (Experts{2, 0}));
    auto broken = z;
    broken(1, 1) = std::numeric_limits<S>::quiet_NaN();
    tokens.route(broken);
    EXPECT_EQ(tokens.weights_of(1), (std::vector<double>{0.5, 0.5})) << "it is not read";
    tokens.gate.mask.view().fill(0);
    tokens.route(z);
    EXPECT_EQ(tokens.routing.num_assignments(), 0);
}

TYPED_TEST(TopAnyGate, TakesFewerAsAThresholdRises) {
    using S = TypeParam;
    const Matrix<S> z = moe::testing::random_matrix<S>(60, 6, 5, 2);
    auto tokens = batch<S>(TopAny{}, 6);
    tokens.context = training;
    std::size_t before = 361;
    for (double a = -1.9; a < 1.91; a += 0.38) {
        tokens.gate.threshold.view().fill(static_cast<S>(a));
        tokens.route(z);
        const auto now = static_cast<std::size_t>(tokens.routing.num_assignments());
        EXPECT_LT(now, before);
        before = now;
        for (Index t = 0; t < 60; ++t) {
            double sum = 0;
            for (const double weight : tokens.weights_of(t)) sum += weight;
            EXPECT_NEAR(sum, tokens.experts_of(t).empty() ? 0 : 1, 1e-6);
        }
    }
    EXPECT_LT(before, 20u);
}

TYPED_TEST(TopAnyGate, CountsNullExpertsNotAndWeighsThemZero) {
    using S = TypeParam;
    std::vector<moe::ExpertFacts> facts(8);
    facts[7].is_null = facts[0].is_null = true;
    auto tokens = batch<S>(TopAny{}, 8);
    tokens.context = training;
    tokens.context.experts = facts;
    tokens.route(golden_logits<S>());
    EXPECT_EQ(tokens.weights_of(1),
              (std::vector<double>{static_cast<double>(S(1) / 3), 0, static_cast<double>(S(1) / 3),
                                   static_cast<double>(S(1) / 3)}));
    EXPECT_EQ(tokens.weights_of(2), (std::vector<double>{0}));
    const Matrix<S> dz =
        tokens.backward(golden_logits<S>(), derivatives<S>(tokens.routing.num_assignments()));
    EXPECT_EQ(dz(1, 7), 0);
    EXPECT_NE(dz(1, 1), 0);
}

TYPED_TEST(TopAnyGate, KeepsTheLawsOfTokens) {
    using S = TypeParam;
    for (const Context& context : {training, Context{}}) {
        gates_test::expect_token_laws<S>(TopAny{}, context);
        gates_test::expect_token_permutation<S>(TopAny{.scale = 2}, context);
    }
    gates_test::expect_bytes_as_said(TopAny{});
    gates_test::expect_one_expert_works<S>(TopAny{});
}

TYPED_TEST(TopAnyGate, HasGradientsOfThresholdsWithTheSameBitsForAnyThreadCount) {
    using S = TypeParam;
    const Matrix<S> z = moe::testing::random_matrix<S>(900, 12, 3, 2);
    std::vector<moe::Parameter<S>> gradients;
    for (const int threads : {1, 2, 3}) {
        auto tokens = batch<S>(TopAny{}, 12);
        tokens.ws.threads(threads);
        tokens.route(z);
        const auto c = derivatives<S>(tokens.routing.num_assignments());
        auto grad = moe::zeros_like(tokens.gate);
        Matrix<S> dz = Matrix<S>::Zero(900, 12);
        tokens.gate.backward(z, tokens.routing, {c, {}}, dz, grad, tokens.call());
        gradients.push_back(grad.threshold);
    }
    for (const auto& gradient : gradients)
        EXPECT_TRUE(moe::testing::same_bits(gradient, gradients[0]));
}

/// The weights that the gradient is that of: max(u - thr, 0) / k, with the k of a plan.
struct Surrogate {
    moe::TopAnyModule<double> inner{};
    std::vector<double>* base = nullptr;  // [T, E] u - thr at the point that is looked at
    bool* is_recording = nullptr;

    using Scalar = double;
    static constexpr bool skips_empty_gradients = true;

    void select(moe::In<double> z, moe::Routing& routing, const moe::Call<double>& call) const {
        inner.select(z, routing, call);
    }
    /// The gate's own weights, moved as if they followed u - thr.
    void weigh(moe::In<double> z, moe::Routing& routing, const moe::Call<double>& call) const {
        inner.weigh(z, routing, call);
        for (Index a = 0; a < routing.num_assignments(); ++a) {
            const moe::Assignment& one = routing.assignments()[static_cast<std::size_t>(a)];
            const double scale = inner.settings().scale;
            const double above = sigmoid(z(one.token, one.expert)) * inner.mask(0, one.expert) -
                                 sigmoid(scale * inner.threshold(0, one.expert));
            double& from = (*base)[static_cast<std::size_t>(one.token * z.cols() + one.expert)];
            if (*is_recording) from = above;
            if (above > 0) routing.set_weight(a, one.weight * (1 + (above - from)));
        }
    }
    void backward(moe::In<double> z, const moe::Routing& routing,
                  const moe::WeightGradients<double>& dweights, moe::Out<double> dz,
                  Surrogate& grad, const moe::Call<double>& call) const {
        inner.backward(z, routing, dweights, dz, grad.inner, call);
    }
    void visit_parameters(auto&& visit) { inner.visit_parameters(visit); }
};

TEST(TopAnyGradient, IsStraightThroughByItsDefiningFormula) {
    for (const double scale : {1.0, 2.5}) {
        auto tokens = batch<double>(TopAny{.scale = scale}, 6);
        set_thresholds(tokens.gate);
        tokens.context = training;
        const auto z = moe::testing::random_matrix<double>(20, 6, 5, 2);
        tokens.route(z);
        const auto c = derivatives<double>(tokens.routing.num_assignments());
        auto grad = moe::zeros_like(tokens.gate);
        EXPECT_TRUE(grad.mask.empty());
        Matrix<double> dz = Matrix<double>::Constant(20, 6, 0.5);  // is added to
        grad.threshold.view().fill(0.25);
        tokens.gate.backward(z, tokens.routing, {c, {}}, dz, grad, tokens.call());

        Matrix<double> expected = Matrix<double>::Constant(20, 6, 0.5);
        std::vector<double> expected_threshold(6, 0.25);
        for (Index t = 0; t < 20; ++t) {
            const auto list = tokens.routing.of(t);
            for (std::size_t i = 0; i < list.size(); ++i) {
                const Index e = list[i].expert;
                const double g = c[static_cast<std::size_t>(tokens.routing.first(t)) + i];
                const double through = g / static_cast<double>(list.size());
                const double u = sigmoid(z(t, e));
                const double thr = sigmoid(scale * tokens.gate.threshold(0, e));
                expected(t, e) += through * u * (1 - u);
                expected_threshold[static_cast<std::size_t>(e)] -=
                    through * thr * (1 - thr) * scale;
            }
        }
        EXPECT_TRUE(moe::testing::compare(dz, expected, 1e-13));
        EXPECT_TRUE(
            moe::testing::compare(std::span(grad.threshold.data(), 6), expected_threshold, 1e-12));
        EXPECT_FALSE(moe::testing::compare(dz, Matrix<double>::Constant(20, 6, 0.5), 1e-3));
    }
}

TEST(TopAnyLayer, HasTheStraightThroughGradientsOfDifferences) {
    constexpr Index tokens = 12, dim = 5, experts = 5;
    std::vector<double> base(tokens * experts);
    bool is_recording = true;
    Surrogate gate{gates_test::build<double>(TopAny{.scale = 1.5}, experts), &base, &is_recording};
    set_thresholds(gate.inner);
    auto layer = moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4},
                                         moe::LinearRouter{.bias = true}, gate,
                                         moe::Swiglu{.count = experts, .ffn_dim = 4});
    auto x = moe::testing::random_matrix<double>(tokens, dim, 7);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 8);
    moe::Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim), own(tokens, dim);
    const auto loss = [&] {
        layer.forward(x, y, ws, training);
        return seams::weighted_sum(y, dy);
    };
    loss();
    is_recording = false;
    loss();
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, training);
    const auto options = seams::options(seams::SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);

    // The layer of the gate itself has the same output and the same gradient there.
    auto plain = moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4},
                                         moe::LinearRouter{.bias = true}, TopAny{.scale = 1.5},
                                         moe::Swiglu{.count = experts, .ffn_dim = 4});
    set_thresholds(plain.gate());
    loss();
    plain.forward(x, own, ws, training);
    EXPECT_TRUE(moe::testing::same_bits(own, y, {.allow_zeros = true}));
    Matrix<double> plain_dx(tokens, dim);
    auto plain_grad = moe::zeros_like(plain);
    plain.backward(x, dy, plain_dx, plain_grad, ws, training);
    EXPECT_TRUE(moe::testing::same_bits(plain_dx, dx));
    EXPECT_TRUE(moe::testing::same_bits(plain_grad.gate().threshold, grad.gate().inner.threshold));
}

TEST(TopAnySettings, AreCheckedOnceWithASentence) {
    EXPECT_EQ(refusal(TopAny{}), "");
    EXPECT_EQ(refusal(TopAny{.scale = 0}), "moe::TopAny: scale is 0, it must be finite and > 0");
    EXPECT_NE(refusal(TopAny{.scale = std::nan("")}), "");
    EXPECT_NE(refusal(TopAny{.scale = std::numeric_limits<double>::infinity()}), "");
}

TEST(TopAnyParameters, AreThresholdsAndAMaskThatIsState) {
    const auto gate = gates_test::build<double>(TopAny{}, 4);
    std::vector<std::string> names;
    moe::visit_parameters(gate, [&](std::string_view name, const auto& matrix, moe::Role role) {
        names.emplace_back(name);
        EXPECT_EQ(role == moe::Role::state, name == "mask");
        for (Index e = 0; e < 4; ++e) EXPECT_EQ(matrix.data()[e], name == "mask" ? 1 : 0);
    });
    EXPECT_EQ(names, (std::vector<std::string>{"threshold", "mask"}));
    EXPECT_THROW(gate.check({.model_dim = 2, .num_experts = 5}), std::invalid_argument);
}

}  // namespace
