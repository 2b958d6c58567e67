// SPDX-License-Identifier: MIT
#include <moe/layer.hpp>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/message.hpp"
#include "support/narrow_weights.hpp"
#include "support/users_parts.hpp"

namespace layer_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;
using support::message;

// ---- the programs that every user starts from ---------------------------------------------------

TEST(Layer, MixtralLike) {
    moe::Layer layer{
        moe::Config{.model_dim = 256},
        moe::LinearRouter{},
        moe::TopK{.k = 2},
        moe::Swiglu{.count = 8, .ffn_dim = 512},
    };

    moe::Matrix<float> x = moe::Matrix<float>::Random(16, 256);  // 16 tokens, one per row
    moe::Matrix<float> y = layer(x);                             // [16, 256]

    EXPECT_EQ(y.rows(), 16);
    EXPECT_EQ(y.cols(), 256);
    EXPECT_TRUE(y.allFinite());
    EXPECT_GT(y.norm(), 0.1f);
    EXPECT_EQ(layer.num_experts(), 8);
    EXPECT_EQ(layer.model_dim(), 256);
    EXPECT_EQ(layer.output_dim(), 256);
    EXPECT_EQ(moe::num_parameters(layer), 8 * 256 + 8 * 3 * 256 * 512);
}

TEST(Layer, TrainsWithHeterogeneousExperts) {
    const auto x = random_matrix<float>(32, 64, 1), target = random_matrix<float>(32, 64, 2);
    moe::Matrix<float> y(32, 64), dx(32, 64);
    double first = 0, last = 0;

    moe::Layer layer{
        moe::Config{.model_dim = 64, .seed = 7},
        moe::LinearRouter{},
        moe::TopP{.p = 0.6f, .max_experts = 3},   // as many experts as the token needs, at most 3
        moe::Swiglu{.count = 6, .ffn_dim = 128},  // compute
        moe::Zero{},                              // discard
        moe::Copy{},                              // skip
        moe::Constant{.count = 2},                // replace
    };
    auto grad = moe::zeros_like(layer);  // same type, holds d(loss)/d(parameter)
    moe::Workspace<float> ws;

    for (int step = 0; step < 100; ++step) {
        layer.forward(x, y, ws);
        const moe::Matrix<float> dy = (y - target) / 32;  // gradient of your loss at the output
        layer.backward(x, dy, dx, grad, ws);  // dx goes on to whatever comes before the layer

        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.1f * std::exchange(g[i], 0.f);
        });
        last = (y - target).squaredNorm() / 64;
        if (step == 0) first = last;
    }
    EXPECT_GT(first, 5);
    EXPECT_LT(last, first / 4);
}

/// A layer whose experts are views of 16 and 8 bits is the layer with those numbers in float.
TEST(Layer, ReadsNarrowWeightsWhereTheyLie) {
    const Index tokens = 40, dim = 65, ffn = 37;
    moe::Layer wide{moe::Config{.model_dim = dim, .seed = 3}, moe::LinearRouter{},
                    moe::TopK{.k = 2}, moe::Swiglu{.count = 6, .ffn_dim = ffn},
                    moe::Shared{moe::Swiglu{.ffn_dim = ffn}}};
    auto narrow = wide;
    std::vector<narrow_weights::Stored> stored;
    stored.reserve(18);
    const auto view = [&](moe::Weights<float>& owned, moe::Weights<float>& bound) {
        std::vector<moe::WeightView> views;
        const Index rows = owned.rows(), cols = owned.cols();
        for (Index e = 0; e < owned.count(); ++e) {
            const auto number = static_cast<std::uint64_t>(stored.size());
            const auto& one = stored.emplace_back(narrow_weights::dtypes[number % 3], rows, cols,
                                                  cols, 1, number);
            owned.owned(e).view() = one.values;
            views.push_back(one.view);
        }
        bound = moe::Weights<float>(views);
    };
    auto& from = wide.bank().group<0>();
    auto& to = narrow.bank().group<0>();
    view(from.gate, to.gate);
    view(from.up, to.up);
    view(from.down, to.down);
    EXPECT_EQ(moe::num_parameters(narrow), moe::num_parameters(wide));

    const auto x = random_matrix<float>(tokens, dim, 1), dy = random_matrix<float>(tokens, dim, 2);
    const auto run = [&](const auto& layer, Matrix<float>& y, Matrix<float>& dx) {
        auto grad = moe::zeros_like(layer);
        Workspace<float> ws;
        layer.forward(x, y, ws);
        layer.backward(x, dy, dx, grad, ws);
        return seams::values_of<float>(grad);
    };
    Matrix<float> y(tokens, dim), dx(tokens, dim), wanted_y(tokens, dim), wanted_dx(tokens, dim);
    const auto wanted = run(wide, wanted_y, wanted_dx);
    const auto got = run(narrow, y, dx);
    EXPECT_TRUE(same_bits(y, wanted_y));
    EXPECT_TRUE(same_bits(dx, wanted_dx));
    EXPECT_TRUE(same_bits(got, wanted, {.allow_zeros = true}));
    EXPECT_TRUE(same_bits(moe::freeze(narrow)(x), y));
    for (const moe::Storage storage : {moe::Storage::bf16, moe::Storage::int4})
        EXPECT_TRUE(same_bits(moe::freeze(narrow, {.storage = storage})(x),
                              moe::freeze(wide, {.storage = storage})(x)));
    EXPECT_TRUE(same_bits(moe::freeze(std::move(narrow))(x), y));
}

using users::RoundRobin;
using users::ScaleShift;

TEST(Layer, TakesYourOwnRouterAndExperts) {
    const ScaleShift identity{Eigen::RowVectorXf::Ones(64), Eigen::RowVectorXf::Zero(64)};
    moe::Layer layer{moe::Config{.model_dim = 64}, RoundRobin{}, moe::TopK{.k = 1},
                     moe::experts(4, identity)};
    EXPECT_TRUE(moe::testing::check_gradients(identity, {.rows = 5, .columns = 64}));

    const auto x = random_matrix<float>(10, 64, 1);
    Workspace<float> ws;
    Matrix<float> y(10, 64);
    layer.forward(x, y, ws);
    EXPECT_TRUE(moe::testing::compare(y, x, 1e-6));
    for (Index t = 0; t < 10; ++t) EXPECT_EQ(ws.routing().of(t)[0].expert, t % 4);
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.rows = 5, .columns = 64}));
}

TEST(Layer, SaysWhoDidTheWork) {
    const moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 2},
                           moe::Swiglu{.count = 4, .ffn_dim = 8}};
    const auto x = random_matrix<float>(10, 8, 1);
    Matrix<float> y(10, 8);
    Workspace<float> ws;
    layer.forward(x, y, ws);
    const moe::Routing& routing = ws.routing();
    std::size_t all = 0, most = 0;
    for (Index e = 0; e < routing.num_experts(); ++e) {
        all += routing.tokens_of(e).size();
        most = std::max(most, routing.tokens_of(e).size());
    }
    EXPECT_EQ(all, 20u);
    const moe::LoadStats load = moe::load_stats(routing);
    EXPECT_DOUBLE_EQ(load.max_over_mean, static_cast<double>(most) / 5);
    EXPECT_EQ(load.experts_per_token, 2);
    EXPECT_EQ(load.dropped_fraction, 0);
}

// ---- matrices as users have them ----------------------------------------------------------------

auto make(Index experts = 4, Index k = 2, std::uint64_t seed = 1) {
    return moe::Layer{moe::Config{.model_dim = 8, .output_dim = 6, .seed = seed},
                      moe::LinearRouter{.bias = true}, moe::TopK{.k = k},
                      moe::Swiglu{.count = experts, .ffn_dim = 5},
                      moe::Shared{moe::Mlp{.ffn_dim = 3}, moe::SharedGate::sigmoid}};
}
using Layer = decltype(make());

TEST(Layer, OfAnotherScalar) {
    moe::Layer f64 =
        moe::make_layer<double>(moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 2},
                                moe::Swiglu{.count = 3, .ffn_dim = 4});
    const moe::Layer f32{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 2},
                         moe::Swiglu{.count = 3, .ffn_dim = 4}};
    const auto x = random_matrix<double>(5, 8, 1);
    EXPECT_TRUE(moe::testing::compare(f32(Matrix<float>(x.cast<float>())), f64(x), 1e-5))
        << "initial parameters are the same numbers";
}

TEST(Layer, TakesColumnMajorMatricesAsTransposes) {
    const Layer layer = make();
    const Eigen::MatrixXf columns = random_matrix<float>(7, 8, 1).transpose();
    const Eigen::MatrixXf dcolumns = random_matrix<float>(7, 6, 2).transpose();
    Eigen::MatrixXf out(6, 7), din(8, 7);
    Workspace<float> ws, other;
    Layer grad = moe::zeros_like(layer);
    layer.forward(columns.transpose(), out.transpose(), ws);
    layer.backward(columns.transpose(), dcolumns.transpose(), din.transpose(), grad, ws);

    const Matrix<float> x = columns.transpose(), dy = dcolumns.transpose();
    Matrix<float> y(7, 6), dx(7, 8);
    layer.forward(x, y, other);
    layer.backward(x, dy, dx, grad, other);
    EXPECT_TRUE(same_bits(Matrix<float>(out.transpose()), y));
    EXPECT_TRUE(same_bits(Matrix<float>(din.transpose()), dx));
}

TEST(Layer, TakesRawMemoryAndLeavesWhatLiesBetweenRows) {
    const Layer layer = make();
    constexpr Index tokens = 7, stride = 13;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const auto x = random_matrix<float>(tokens, 8, 1), dy = random_matrix<float>(tokens, 6, 2);
    // One row more on either side, columns more on the right: not to be read, not to be written.
    Matrix<float> wide_x = Matrix<float>::Constant(tokens + 2, stride, nan), wide_dy = wide_x;
    Matrix<float> wide_y = Matrix<float>::Constant(tokens + 2, stride, 77), wide_dx = wide_y;
    wide_x.block(1, 0, tokens, 8) = x;
    wide_dy.block(1, 0, tokens, 6) = dy;
    using Stride = Eigen::OuterStride<>;
    using Const = Eigen::Map<const Matrix<float>, Eigen::Unaligned, Stride>;
    using Mutable = Eigen::Map<Matrix<float>, Eigen::Unaligned, Stride>;
    const Const x_map(wide_x.data() + stride, tokens, 8, Stride(stride));
    const Const dy_map(wide_dy.data() + stride, tokens, 6, Stride(stride));
    Mutable y_map(wide_y.data() + stride, tokens, 6, Stride(stride));
    Mutable dx_map(wide_dx.data() + stride, tokens, 8, Stride(stride));
    Workspace<float> ws, other;
    Layer grad = moe::zeros_like(layer), wanted = moe::zeros_like(layer);
    layer.forward(x_map, y_map, ws);
    layer.backward(x_map, dy_map, dx_map, grad, ws);

    Matrix<float> y(tokens, 6), dx(tokens, 8);
    layer.forward(x, y, other);
    layer.backward(x, dy, dx, wanted, other);
    EXPECT_TRUE(same_bits(Matrix<float>(y_map), y));
    EXPECT_TRUE(same_bits(Matrix<float>(dx_map), dx));
    EXPECT_TRUE(same_bits(seams::values_of<float>(grad), seams::values_of<float>(wanted)));
    y_map.setConstant(77);
    dx_map.setConstant(77);
    EXPECT_TRUE((wide_y.array() == 77).all());
    EXPECT_TRUE((wide_dx.array() == 77).all());
}

TEST(Layer, TakesTightMapsAndBlocks) {
    const Layer layer = make();
    const auto x = random_matrix<float>(9, 8, 1);
    const Matrix<float> y = layer(x);
    const Eigen::Map<const Matrix<float>> map(x.data(), 9, 8);
    EXPECT_TRUE(same_bits(layer(map), y));
    EXPECT_TRUE(same_bits(layer(x.middleRows(2, 4)), y.middleRows(2, 4)));
    EXPECT_TRUE(same_bits(layer(x.row(3)), y.row(3)));
    EXPECT_TRUE(same_bits(layer(1.f * x), y)) << "an expression is evaluated once";
}

// ---- edges --------------------------------------------------------------------------------------

TEST(Layer, OfNoTokensGivesNothing) {
    const Layer layer = make();
    Workspace<float> ws;
    Matrix<float> x(0, 8), y(0, 6), dx(0, 8);
    Layer grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, y, dx, grad, ws);
    for (const float value : seams::values_of<float>(grad)) EXPECT_EQ(value, 0);
    EXPECT_EQ(ws.routing().num_assignments(), 0);
    EXPECT_EQ(ws.logits().rows(), 0);
    EXPECT_EQ(layer(x).rows(), 0);
    // The same workspace, other batches.
    const auto x2 = random_matrix<float>(3, 8, 1);
    Matrix<float> y2(3, 6);
    layer.forward(x2, y2, ws);
    EXPECT_TRUE(same_bits(y2, layer(x2)));
}

TEST(Layer, OfOneExpertIsThatExpert) {
    const moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Swiglu{.count = 1, .ffn_dim = 5}};
    const moe::Layer alone{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Zero{}, moe::Shared{layer.bank().group<0>()}};
    const auto x = random_matrix<float>(6, 8, 1);
    EXPECT_TRUE(same_bits(layer(x), alone(x)));
    EXPECT_TRUE(moe::testing::check_gradients<float>(layer, {.columns = 8, .scale = 0.1}));
}

TEST(Layer, OfOneFeatureWorks) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = 1}, moe::LinearRouter{}, moe::TopK{.k = 2},
                                moe::Swiglu{.count = 3, .ffn_dim = 1});
    EXPECT_TRUE(moe::testing::check_gradients(layer, {.columns = 1, .scale = 0.01}));
}

TEST(Layer, WithoutExpertsIsRefused) {
    EXPECT_THROW((moe::Layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                             moe::Swiglu{.count = 0, .ffn_dim = 5}}),
                 std::invalid_argument);
    EXPECT_THROW((moe::Layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 5},
                             moe::Swiglu{.count = 4, .ffn_dim = 5}}),
                 std::invalid_argument);
}

// ---- errors -------------------------------------------------------------------------------------

struct Errors : testing::Test {
    Layer layer = make(), other = make(), grad = moe::zeros_like(layer);
    Matrix<float> x = random_matrix<float>(5, 8, 1), dy = random_matrix<float>(5, 6, 2);
    Matrix<float> y{5, 6}, dx{5, 8};
    Workspace<float> ws;

    std::string backward(const Layer& of, const Matrix<float>& batch,
                         const moe::Context& context = {}) {
        return message<std::logic_error>([&] { of.backward(batch, dy, dx, grad, ws, context); });
    }
};
constexpr const char* not_this_batch =
    "moe::Layer::backward: the workspace does not hold this batch: call forward() of the same "
    "layer with the same x and context first";

TEST_F(Errors, SayWhatIsWrongWithTheConfig) {
    const auto with = [](const moe::Config& config) {
        return message([&] {
            moe::Layer{config, moe::LinearRouter{}, moe::TopK{.k = 1}, moe::Swiglu{.ffn_dim = 5}};
        });
    };
    EXPECT_EQ(with({}),
              "moe::Config: model_dim is 0, it must be >= 1; set it: "
              "moe::Config{.model_dim = 256}");
    EXPECT_EQ(with({.model_dim = 8, .output_dim = -1}),
              "moe::Config: output_dim is -1, it must be >= 0 (0: model_dim)");
    EXPECT_EQ(message([&] {
                  moe::Layer{moe::Config{.model_dim = 8, .output_dim = 4}, moe::LinearRouter{},
                             moe::TopK{.k = 1}, moe::Copy{}};
              }),
              "moe::Copy: output_dim is 4, model_dim is 8; a token can only be copied if they are "
              "equal");
    EXPECT_EQ(message([&] {
                  moe::Layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{},
                             moe::Swiglu{.count = 4, .ffn_dim = 5}};
              }),
              "moe::TopK: k is 0, it must be >= 1; set it: moe::TopK{.k = 2}");
}

TEST_F(Errors, SayWhichMatrixHasWhichShape) {
    const auto narrow = random_matrix<float>(5, 7, 1);
    EXPECT_EQ(message([&] { layer.forward(narrow, y, ws); }),
              "moe::Layer::forward: x has 7 columns, model_dim is 8; a token is a row of x");
    EXPECT_EQ(message([&] { layer(narrow); }),
              "moe::Layer::forward: x has 7 columns, model_dim is 8; a token is a row of x");
    Matrix<float> wide(5, 8), few(4, 6);
    EXPECT_EQ(message([&] { layer.forward(x, wide, ws); }),
              "moe::Layer::forward: y is [5, 8], it must be [5, 6]");
    EXPECT_EQ(message([&] { layer.forward(x, few, ws); }),
              "moe::Layer::forward: y is [4, 6], it must be [5, 6]");
    layer.forward(x, y, ws);
    EXPECT_EQ(message([&] { layer.backward(x, few, dx, grad, ws); }),
              "moe::Layer::backward: dy is [4, 6], it must be [5, 6]");
    Matrix<float> small(5, 7);
    EXPECT_EQ(message([&] { layer.backward(x, dy, small, grad, ws); }),
              "moe::Layer::backward: dx is [5, 7], it must be [5, 8]");
    layer.backward(x, dy, dx, grad, ws);
}

TEST_F(Errors, BackwardNeedsForward) {
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws), std::logic_error);
    EXPECT_THROW(ws.routing(), std::logic_error);
    layer.route(x, ws);
    EXPECT_EQ(backward(layer, x), not_this_batch) << "routed, not applied";
    ws.keep(moe::Keep::nothing);
    layer.forward(x, y, ws);
    EXPECT_EQ(backward(layer, x),
              "moe::Layer::backward: the workspace keeps nothing for backward: call "
              "ws.keep(moe::Keep::everything), or Keep::recompute, and forward() again before it");
    ws.keep(moe::Keep::everything);
    EXPECT_EQ(backward(layer, x), not_this_batch);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
}

TEST_F(Errors, BackwardNeedsTheSameLayerBatchAndContext) {
    layer.forward(x, y, ws);
    EXPECT_EQ(backward(other, x), not_this_batch);
    EXPECT_EQ(backward(layer, random_matrix<float>(5, 8, 3)), not_this_batch);
    EXPECT_EQ(backward(layer, x, {.training = true}), not_this_batch);
    EXPECT_EQ(backward(layer, x, {.step = 1}), not_this_batch);
    const std::vector<std::uint8_t> padding(5, 0);
    EXPECT_EQ(backward(layer, x, {.padding = padding}), not_this_batch);
    layer.backward(x, dy, dx, grad, ws);
    other.forward(x, y, ws);
    EXPECT_EQ(backward(layer, x), not_this_batch);
    moe::freeze(layer).forward(x, y, ws);
    EXPECT_EQ(backward(layer, x), not_this_batch) << "a frozen layer keeps nothing";
    EXPECT_EQ(ws.keep(), moe::Keep::everything);
}

TEST_F(Errors, NameTheFieldOfTheContext) {
    const std::vector<std::uint8_t> bytes(4, 1), three(3, 1);
    const std::vector<double> numbers(3, 1);
    const std::vector<Index> offsets{0, 3, 4};
    const auto with = [&](const moe::Context& context) {
        return message([&] { layer.forward(x, y, ws, context); });
    };
    EXPECT_EQ(with({.padding = bytes}),
              "moe::Context: padding has 4 entries, it wants 5, one per token");
    EXPECT_EQ(
        with({.allowed = three}),
        "moe::Context: allowed has 3 entries, it wants 4, one per expert, or 20, one per token "
        "and expert");
    EXPECT_EQ(with({.logit_offset = numbers}),
              "moe::Context: logit_offset has 3 entries, it wants 4, one per logit");
    EXPECT_EQ(with({.gate_multiplier = numbers}),
              "moe::Context: gate_multiplier has 3 entries, it wants 4, one per expert");
    EXPECT_EQ(with({.sequence_offsets = offsets}),
              "moe::Context: sequence_offsets must ascend from 0 to the 5 tokens of the batch, its "
              "last entry is 4");
}

// ---- parameters ---------------------------------------------------------------------------------

TEST(Layer, NamesItsParameters) {
    moe::Layer layer{moe::Config{.model_dim = 4},
                     moe::LinearRouter{.bias = true},
                     moe::TopK{.k = 2, .selection_bias = true},
                     moe::Swiglu{.count = 2, .ffn_dim = 3},
                     moe::Zero{},
                     moe::Constant{},
                     moe::Mlp{.ffn_dim = 3, .bias = true},
                     moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 3}},
                     moe::Shared{moe::Mlp{.ffn_dim = 3}, moe::SharedGate::sigmoid}};
    std::vector<std::string> names, states;
    moe::visit_parameters(
        std::as_const(layer), [&](std::string_view name, const auto& matrix, moe::Role role) {
            names.push_back(std::string(name) + " " + std::to_string(matrix.rows()) + "x" +
                            std::to_string(matrix.cols()));
            if (role == moe::Role::state) states.emplace_back(name);
        });
    EXPECT_EQ(names,
              (std::vector<std::string>{
                  "router.weight 5x4",  "router.bias 1x5",       "gate.bias 1x5",
                  "experts.0.gate 3x4", "experts.0.up 3x4",      "experts.0.down 4x3",
                  "experts.1.gate 3x4", "experts.1.up 3x4",      "experts.1.down 4x3",
                  "experts.3.mix 2x4",  "experts.3.value 1x4",   "experts.4.up 3x4",
                  "experts.4.down 4x3", "experts.4.up_bias 1x3", "experts.4.down_bias 1x4",
                  "shared.0.gate 3x4",  "shared.0.up 3x4",       "shared.0.down 4x3",
                  "shared.1.gate 3x4",  "shared.1.up 3x4",       "shared.1.down 4x3",
                  "shared.2.up 3x4",    "shared.2.down 4x3",     "shared.2.shared_gate 1x4"}));
    EXPECT_EQ(states, std::vector<std::string>{"gate.bias"});
}

TEST(Layer, AddingAPartLeavesTheParametersOfTheOthers) {
    const moe::Layer few{moe::Config{.model_dim = 4, .seed = 3}, moe::LinearRouter{},
                         moe::TopK{.k = 1}, moe::Swiglu{.count = 2, .ffn_dim = 3}};
    const moe::Layer more{moe::Config{.model_dim = 4, .seed = 3}, moe::LinearRouter{},
                          moe::TopK{.k = 1}, moe::Swiglu{.count = 2, .ffn_dim = 3},
                          moe::Shared{moe::Swiglu{.ffn_dim = 3}}};
    EXPECT_TRUE(same_bits(seams::values_of<float>(few.bank().group<0>()),
                          seams::values_of<float>(more.bank().group<0>())));
    EXPECT_TRUE(same_bits(few.router().weight, more.router().weight));
}

TEST(Layer, WithoutGradientsGivesTheSameDx) {
    const Layer layer = make();
    const auto x = random_matrix<float>(5, 8, 1), dy = random_matrix<float>(5, 6, 2);
    Matrix<float> y(5, 6), dx(5, 8), only(5, 8);
    Workspace<float> ws;
    Layer grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
    layer.forward(x, y, ws);
    layer.backward(x, dy, only, moe::no_gradient, ws);
    EXPECT_TRUE(same_bits(only, dx));
}

/// A linear router as a user writes it.
struct OwnRouter {
    Matrix<float> weight;
    void forward(moe::In<float> x, moe::Out<float> logits) const {
        logits = x * weight.transpose();
    }
    void backward(moe::In<float> x, moe::In<float> dlogits, moe::Out<float> dx,
                  OwnRouter& grad) const {
        dx = dlogits * weight;
        grad.weight += dlogits.transpose() * x;
    }
    void visit_parameters(auto&& visit) { visit("weight", weight); }
};

TEST(Layer, WithYourOwnPartsAndWithoutGradientsGivesTheSameDx) {
    const ScaleShift expert{Eigen::RowVectorXf::Ones(8), Eigen::RowVectorXf::Ones(8)};
    const moe::Layer layer{moe::Config{.model_dim = 8}, OwnRouter{random_matrix<float>(4, 8, 5)},
                           moe::TopK{.k = 2}, moe::experts(4, expert)};
    const auto x = random_matrix<float>(5, 8, 1), dy = random_matrix<float>(5, 8, 2);
    Matrix<float> y(5, 8), dx(5, 8), only(5, 8);
    Workspace<float> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
    layer.backward(x, dy, only, moe::no_gradient, ws);
    EXPECT_TRUE(same_bits(only, dx));
    // and with those of some parameters only
    auto some =
        moe::zeros_like(layer, [](std::string_view name) { return name == "experts.2.shift"; });
    layer.backward(x, dy, only, some, ws);
    EXPECT_TRUE(same_bits(only, dx));
    EXPECT_TRUE(
        same_bits(some.bank().group<0>().expert(2).shift, grad.bank().group<0>().expert(2).shift));
}

/// An expert without parameters.
struct Negate {
    void forward(moe::In<float> x, moe::Out<float> y) const { y = -x; }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Negate&) const {
        dx = -dy;
    }
};

TEST(Layer, OfPartsWithoutParametersHasNoGradientsToLeaveOut) {
    const moe::Layer layer{moe::Config{.model_dim = 8}, RoundRobin{}, moe::TopK{.k = 1},
                           moe::experts(4, Negate{})};
    const auto x = random_matrix<float>(5, 8, 1), dy = random_matrix<float>(5, 8, 2);
    Matrix<float> y(5, 8), dx(5, 8);
    Workspace<float> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, moe::no_gradient, ws);
    EXPECT_TRUE(same_bits(dx, Matrix<float>(-dy)));
    layer.backward(x, dy, dx, grad, ws);
    EXPECT_TRUE(same_bits(dx, Matrix<float>(-dy)));
    EXPECT_EQ(moe::num_parameters(layer), 0);
}

TEST(Layer, LeavesOutGradientsByName) {
    Layer layer = make();
    const auto x = random_matrix<float>(5, 8, 1), dy = random_matrix<float>(5, 6, 2);
    Matrix<float> y(5, 6), dx(5, 8), other(5, 8);
    Workspace<float> ws;
    Layer all = moe::zeros_like(layer);
    const auto wanted = [](std::string_view name) {
        return name == "router.bias" || name == "experts.1.up" || name == "shared.0.down";
    };
    Layer some = moe::zeros_like(layer, wanted);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, all, ws);
    layer.backward(x, dy, other, some, ws);
    EXPECT_TRUE(same_bits(other, dx));
    std::vector<std::string> seen;
    moe::for_each_parameter(layer, some, [&](std::string_view name, auto, std::span<float> g) {
        seen.emplace_back(name);
        moe::for_each_parameter(layer, all,
                                [&](std::string_view same, auto, std::span<float> whole) {
                                    if (same != name) return;
                                    EXPECT_TRUE(same_bits(g, whole, {.allow_zeros = true}));
                                });
    });
    EXPECT_EQ(seen, (std::vector<std::string>{"router.bias", "experts.1.up", "shared.0.down"}));
}

TEST(Layer, LivesInOneSpanOnRequest) {
    Layer layer = make();
    const auto x = random_matrix<float>(5, 8, 1), dy = random_matrix<float>(5, 6, 2);
    const Matrix<float> before = layer(x);
    const std::vector<float> values = seams::values_of<float>(layer);
    std::vector<float> memory(static_cast<std::size_t>(moe::num_parameters(layer)));
    moe::flatten(layer, memory);
    EXPECT_TRUE(same_bits(memory, values));
    EXPECT_TRUE(same_bits(layer(x), before));

    Layer copy = layer;  // has memory of its own
    Layer grad = moe::zeros_like(layer);
    const std::span<float> gradient = moe::flatten(grad);
    ASSERT_EQ(gradient.size(), memory.size());
    Matrix<float> y(5, 6), dx(5, 8);
    Workspace<float> ws;
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] -= 0.1f * gradient[i];
    EXPECT_FALSE(same_bits(layer(x), before)) << "an optimiser over two spans";
    EXPECT_TRUE(same_bits(copy(x), before));
    EXPECT_THROW(moe::flatten(copy, std::span<float>(memory).first(3)), std::invalid_argument);
}

TEST(Layer, OfEigenMatricesCannotMove) {
    const ScaleShift expert{Eigen::RowVectorXf::Ones(8), Eigen::RowVectorXf::Ones(8)};
    moe::Layer layer{moe::Config{.model_dim = 8}, RoundRobin{}, moe::TopK{.k = 2},
                     moe::experts(4, expert)};
    EXPECT_EQ(message([&] { moe::flatten(layer); }),
              "moe::flatten: experts.0.scale is not a moe::Parameter and cannot move; make it one");
}

TEST(Layer, CopiesItsParametersOutAndIn) {
    Layer layer = make(4, 2, 1), other = make(4, 2, 2);
    std::vector<float> values(static_cast<std::size_t>(moe::num_parameters(layer)));
    moe::copy_parameters(layer, values);
    EXPECT_TRUE(same_bits(values, seams::values_of<float>(layer)));
    const auto x = random_matrix<float>(5, 8, 1);
    EXPECT_FALSE(same_bits(other(x), layer(x)));
    moe::copy_parameters(values, other);
    EXPECT_TRUE(same_bits(other(x), layer(x)));
    values.pop_back();
    EXPECT_THROW(moe::copy_parameters(layer, values), std::invalid_argument);
    EXPECT_THROW(moe::copy_parameters(values, layer), std::invalid_argument);
}

TEST(Layer, CopiesAreIndependent) {
    Layer layer = make();
    const auto x = random_matrix<float>(5, 8, 1);
    const Matrix<float> before = layer(x);
    Layer copy = layer;
    moe::for_each_parameter(copy,
                            [](auto, std::span<float> w) { std::fill(w.begin(), w.end(), 0.f); });
    EXPECT_TRUE(same_bits(layer(x), before));
    EXPECT_TRUE((copy(x).array() == 0).all());
    const Layer moved = std::move(layer);
    EXPECT_TRUE(same_bits(moved(x), before));
}

}  // namespace
}  // namespace layer_test
