// SPDX-License-Identifier: MIT
// Llama-4: the sigmoid of the logit scales what the expert reads, not what it returns.

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/gates/wrapper.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"
#include "support/message.hpp"

namespace input_weighted_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 6, dim = 5;

/// Llama-4's gate, for k experts.
moe::TopK llama(Index k) {
    return {.k = k,
            .score = moe::Score::sigmoid,
            .normalize = moe::Normalize::none,
            .placement = moe::Placement::input};
}

template <class Gate>
auto make(const Gate& gate, double input_scale = 1) {
    return moe::make_layer<double>(
        moe::Config{.model_dim = dim, .input_scale = input_scale, .seed = 5}, moe::LinearRouter{},
        gate, moe::Swiglu{.count = 3, .ffn_dim = 4},
        moe::Mlp{.count = 2, .ffn_dim = 4, .activation = moe::Activation::gelu, .bias = true},
        moe::Constant{}, moe::Copy{}, moe::Shared{moe::Swiglu{.ffn_dim = 6}});
}

/// The output of a layer of make() by the mixture in which every expert sees every token.
template <class Layer>
Matrix<double> dense_output(const Layer& layer, const Matrix<double>& x,
                            const moe::Routing& routing) {
    const auto& bank = layer.bank();
    const double scale = layer.config().input_scale;
    std::vector<dense::Expert> all;
    for (Index e = 0; e < 3; ++e)
        all.push_back(dense::feed_forward_of(bank.template group<0>(), e));
    for (Index e = 0; e < 2; ++e)
        all.push_back(dense::feed_forward_of(bank.template group<1>(), e));
    const auto& constant = bank.template group<2>();
    all.push_back(dense::constant(constant.mix[0].view(), constant.value[0].view()));
    all.push_back(dense::copy());
    all.push_back(dense::feed_forward_of(bank.template group<4>().experts(), 0));
    Matrix<double> weights = Matrix<double>::Ones(tokens, 8);
    Matrix<double> input_weights = Matrix<double>::Constant(tokens, 8, scale);
    weights.leftCols(7) = dense::weights_of(routing);
    input_weights.leftCols(7) = dense::input_weights_of(routing, scale);
    return dense::forward(all, x, weights, dim, input_weights);
}

constexpr moe::testing::ModuleOptions checked{
    .rows = tokens, .columns = dim, .seed = 4, .scale = 0.01};

TEST(InputWeighted, ExpertsReadTheTokenTimesItsWeight) {
    for (const Index k : {1, 3}) {
        const auto layer = make(llama(k), 0.5);
        const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
        Workspace<double> ws;
        Matrix<double> y(tokens, dim);
        layer.forward(x, y, ws);
        for (const moe::Assignment& a : ws.routing().assignments()) {
            EXPECT_EQ(a.weight, 1);
            EXPECT_NEAR(a.input_weight, 1 / (1 + std::exp(-ws.logits()(a.token, a.expert))), 1e-15);
        }
        EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, x, ws.routing()), 1e-14));
        EXPECT_TRUE(moe::testing::same_bits(moe::freeze(layer)(x), y));
    }
}

TEST(InputWeighted, GradientsAreExact) {
    for (const Index k : {1, 3}) {
        EXPECT_TRUE(moe::testing::check_gradients(make(llama(k)), checked)) << k;
        EXPECT_TRUE(moe::testing::check_gradients(make(llama(k), 2), checked)) << k;
    }
}

TEST(InputWeighted, TopPGradientsAreExact) {
    for (const moe::Normalize normalize : {moe::Normalize::none, moe::Normalize::add_epsilon}) {
        const moe::TopP gate{.p = 0.5,
                             .min_experts = 2,
                             .normalize = normalize,
                             .epsilon = 0.25,
                             .placement = moe::Placement::input};
        const auto layer = make(gate, 0.5);
        const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
        Workspace<double> ws;
        Matrix<double> y(tokens, dim);
        layer.forward(x, y, ws);
        EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, x, ws.routing()), 1e-14));
        EXPECT_TRUE(moe::testing::check_gradients(layer, checked));
    }
}

TEST(InputWeighted, RawScoresMayBeNegativeAndZero) {
    moe::TopK gate = llama(7);  // all, so that no order decides
    gate.score = moe::Score::raw;
    auto layer = make(gate);
    layer.router().weight.view().row(2).setZero();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    layer.forward(x, y, ws);
    bool has_negative = false;
    for (const moe::Assignment& a : ws.routing().assignments()) {
        EXPECT_EQ(a.weight, 1);
        EXPECT_EQ(a.input_weight, ws.logits()(a.token, a.expert));
        EXPECT_EQ(a.input_weight == 0, a.expert == 2);
        has_negative = has_negative || a.input_weight < 0;
    }
    EXPECT_TRUE(has_negative);
    EXPECT_TRUE(moe::testing::compare(y, dense_output(layer, x, ws.routing()), 1e-14));
    EXPECT_TRUE(moe::testing::check_gradients(layer, checked));
}

/// A gate around TopK that changes nothing.
struct Wrapped {
    moe::TopK inner;

    template <class S>
    auto build(const moe::Shape& shape, moe::Random& random) const {
        return moe::GateWrapper<S, moe::TopKModule<S>>{inner.build<S>(shape, random)};
    }
};

TEST(InputWeighted, AGateAroundAGateIsTheInnerGate) {
    const auto plain = make(llama(3));
    const auto wrapped = make(Wrapped{llama(3)});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    EXPECT_TRUE(moe::testing::same_bits(wrapped(x), plain(x)));
    EXPECT_TRUE(moe::testing::check_gradients(wrapped, checked));
}

/// A gate of one's own that hands on to TopK but forgets to say on which side its weights are.
struct Silent {
    moe::TopKModule<double> inner;

    void select(moe::In<double> logits, moe::Routing& routing,
                const moe::Call<double>& call) const {
        inner.select(logits, routing, call);
    }
    void weigh(moe::In<double> logits, moe::Routing& routing, const moe::Call<double>& call) const {
        inner.weigh(logits, routing, call);
    }
    void backward(moe::In<double> logits, const moe::Routing& routing,
                  const moe::WeightGradients<double>& dweights, moe::Out<double> dlogits,
                  Silent& grad, const moe::Call<double>& call) const {
        inner.backward(logits, routing, dweights, dlogits, grad.inner, call);
    }
};

TEST(InputWeighted, AGateThatDoesNotSayThatItWeighsInputsThrowsInsteadOfLosingGradients) {
    const auto layer = make(Silent{{llama(2), 7}});
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 2);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    layer.forward(x, y, ws);
    auto grad = moe::zeros_like(layer);
    EXPECT_EQ(support::message<std::logic_error>([&] { layer.backward(x, dy, dx, grad, ws); }),
              "moe: a gate that weighs inputs got 0 gradients for 12 assignments; a gate "
              "around it must say weighs_input() as it does");
}

TEST(InputWeighted, ARowWithANaNShowsItBehindZeroExpertsToo) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 5}, moe::LinearRouter{},
                                llama(2), moe::Zero{.count = 2}, moe::Swiglu{.ffn_dim = 4});
    Matrix<double> x = moe::testing::random_matrix<double>(tokens, dim, 1);
    x(2, 3) = std::numeric_limits<double>::quiet_NaN();
    Workspace<double> ws;
    Matrix<double> y(tokens, dim);
    layer.forward(x, y, ws);
    for (const moe::Assignment& a : ws.routing().of(2)) EXPECT_LT(a.expert, 2);  // both are Zero
    for (Index d = 0; d < dim; ++d) EXPECT_TRUE(std::isnan(y(2, d)));
    EXPECT_TRUE(y.topRows(2).allFinite());
    EXPECT_TRUE(y.bottomRows(tokens - 3).allFinite());
}

TEST(InputWeighted, TheGateMultiplierScalesOutputsNevertheless) {
    const auto layer = make(llama(2));
    auto x = moe::testing::random_matrix<double>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 2);
    std::vector<double> multiplier{0.5, 2, -1, 0.25, 3, 1.5, 0.75};
    std::vector<double> dmultiplier(multiplier.size(), 0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    const moe::Context context{.gate_multiplier = multiplier, .gradients = &gradients};
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy);
    };
    loss();
    const auto options = seams::options(seams::SameChoices(ws));
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, dmultiplier, options));
}

}  // namespace
}  // namespace input_weighted_test
